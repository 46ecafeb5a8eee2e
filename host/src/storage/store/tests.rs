//! What group commit adds to a backend: order, the barrier, and processes that are barred.

use futures_util::FutureExt as _;

use super::super::conformance::{Opened, memory, sqlite};
use super::super::sample::{batch, end, put, spec, syscall};
use super::*;
use crate::audit::{Chain, verify};

fn journal(pid: u64, seq: u64) -> Batch {
    batch(pid, vec![Change::Journal(Box::new(end(pid, seq)))])
}

fn spawn(pid: u64) -> Batch {
    batch(pid, vec![Change::Spawn(Box::new(spec(pid)))])
}

async fn seqs(store: &Store, pid: u64) -> Vec<u64> {
    store.journal(Pid(pid)).await.unwrap().iter().map(|record| record.seq).collect()
}

async fn each_backend() -> [(Store, Opened); 2] {
    [memory().await, sqlite().await].map(|opened| (Store::with(Arc::clone(&opened.store)), opened))
}

/// Checked by the compiler: a caller may move the futures between threads.
#[test]
fn futures_are_send() {
    fn send<T: Send>(_: T) {}
    fn all(store: &Store, batch: Batch) {
        send(store.commit(batch.clone()));
        send(store.enqueue(batch));
        send(store.sync(Pid(1)));
        send(store.sync_all());
        send(store.close());
        send(store.pages(Pid(1)));
        send(store.state("", ""));
    }
    let _ = all;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_process_keeps_its_order() {
    const EACH: u64 = 300;
    for (store, _opened) in each_backend().await {
        let tasks: Vec<_> = (1..=8)
            .map(|pid| {
                let store = store.clone();
                tokio::spawn(async move {
                    let mut chain = Chain::resume(Pid(pid), None);
                    store.enqueue(spawn(pid)).await.unwrap();
                    // The chain's head refuses any other order.
                    for seq in 1..=EACH {
                        let batch = syscall(&mut chain, pid, seq);
                        match seq % 50 {
                            0 => store.commit(batch).await.unwrap(),
                            _ => store.enqueue(batch).await.unwrap(),
                        }
                        if seq % 70 == 0 {
                            store.sync(Pid(pid)).await.unwrap();
                            assert_eq!(store.journal(Pid(pid)).await.unwrap().len() as u64, seq);
                        }
                    }
                    store.sync(Pid(pid)).await.unwrap();
                    assert_eq!(seqs(&store, pid).await, (1..=EACH).collect::<Vec<_>>());
                    let records = store.audit_chain(Pid(pid)).await.unwrap();
                    assert_eq!(verify(Pid(pid), &records, chain.head()), Ok(EACH));
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(store.pending(), 0);
        assert!(store.healthy());
        assert!(store.shared().lock().lanes.is_empty(), "a process that is done leaves nothing behind");
    }
}

#[tokio::test]
async fn the_barrier_waits_only_for_what_is_under_way() {
    for (store, _opened) in each_backend().await {
        assert!(store.sync(Pid(1)).now_or_never().unwrap().is_ok());
        store.enqueue(journal(1, 1)).await.unwrap();
        // The writer has not run yet: this test is one thread.
        assert_eq!(store.pending(), 1);
        assert!(store.sync(Pid(2)).now_or_never().unwrap().is_ok(), "another process's batches are not waited for");
        assert!(store.sync(Pid(1)).now_or_never().is_none());
        store.sync(Pid(1)).await.unwrap();
        assert_eq!(seqs(&store, 1).await, [1]);
        assert!(store.sync(Pid(1)).now_or_never().unwrap().is_ok());
        store.sync_all().now_or_never().unwrap();
        store.enqueue(journal(1, 2)).await.unwrap();
        store.enqueue(journal(2, 1)).await.unwrap();
        store.sync_all().await;
        assert_eq!((seqs(&store, 1).await, seqs(&store, 2).await), (vec![1, 2], vec![1]));
    }
}

#[tokio::test]
async fn what_nobody_waits_for_becomes_durable() {
    let store = Store::open("memory:", Durability::Process).await.unwrap();
    store.enqueue(journal(1, 1)).await.unwrap();
    let durable = async {
        while store.pending() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), durable).await.unwrap();
    assert_eq!(seqs(&store, 1).await, [1]);
}

#[tokio::test]
async fn a_failed_batch_bars_its_process_until_it_is_forgiven() {
    for (store, _opened) in each_backend().await {
        store.commit(spawn(1)).await.unwrap();
        store.enqueue(journal(1, 1)).await.unwrap();
        store.enqueue(spawn(1)).await.unwrap();
        store.enqueue(journal(1, 2)).await.unwrap();
        store.enqueue(journal(2, 1)).await.unwrap();
        let behind = store.commit(journal(1, 3)).await;
        assert!(matches!(behind, Err(Error::Refused { pid: Pid(1), .. })), "{behind:?}");

        assert!(matches!(store.sync(Pid(1)).await, Err(Error::Broken { .. })));
        for refused in [store.enqueue(journal(1, 4)).await, store.commit(journal(1, 4)).await] {
            let Err(Error::Refused { pid: Pid(1), first }) = refused else { panic!("{refused:?}") };
            assert_eq!(first, "process 1 exists already");
        }
        assert!(store.healthy(), "one batch's fault is not the backend's");
        store.sync(Pid(2)).await.unwrap();
        assert_eq!((seqs(&store, 1).await, seqs(&store, 2).await), (vec![1], vec![1]));

        store.forgive(Pid(1));
        store.sync(Pid(1)).await.unwrap();
        store.commit(journal(1, 2)).await.unwrap();
        assert_eq!(seqs(&store, 1).await, [1, 2]);
    }
}

#[tokio::test]
async fn a_conflict_bars_unless_its_caller_hears_of_it() {
    for (store, _opened) in each_backend().await {
        let stale = || batch(1, vec![put("k", b"", Some(9))]);
        assert!(matches!(store.commit(stale()).await, Err(Error::Conflict { found: 0, .. })));
        store.commit(journal(1, 1)).await.unwrap();

        // Nobody hears of these: one is not waited for, the other's caller is gone.
        for gone in [false, true] {
            if gone {
                assert!(store.commit(stale()).now_or_never().is_none());
            } else {
                store.enqueue(stale()).await.unwrap();
            }
            store.enqueue(journal(1, 2)).await.unwrap();
            store.enqueue(journal(2, 1 + u64::from(gone))).await.unwrap();
            assert!(matches!(store.sync(Pid(1)).await, Err(Error::Conflict { .. })));
            store.sync_all().await;
            assert_eq!(seqs(&store, 1).await, [1], "a hole in the journal");
            store.forgive(Pid(1));
        }
        store.commit(journal(1, 2)).await.unwrap();
        assert_eq!((seqs(&store, 1).await, seqs(&store, 2).await), (vec![1, 2], vec![1, 2]));
    }
}

#[tokio::test]
async fn a_dropped_commit_happens_once() {
    for (store, _opened) in each_backend().await {
        assert!(store.commit(batch(1, vec![put("k", b"v", None)])).now_or_never().is_none());
        store.sync(Pid(1)).await.unwrap();
        assert_eq!(store.state("pid:1", "k").await.unwrap().unwrap().revision, 1);
    }
}

#[tokio::test]
async fn too_much_at_once_has_to_wait() {
    let store = Store::open("memory:", Durability::Process).await.unwrap();
    let mut queued = 0;
    while store.enqueue(journal(1, queued + 1)).now_or_never().is_some() {
        queued += 1;
    }
    assert_eq!(queued, MAX_BATCHES as u64);
    // That one has queued nothing; this one waits for room and then goes on.
    store.enqueue(journal(1, queued + 1)).await.unwrap();
    let big = |n: u8| batch(2, vec![put(&n.to_string(), &vec![n; 7 << 20], None)]);
    store.sync_all().await;
    for n in 0..3 {
        assert!(store.enqueue(big(n)).now_or_never().is_some());
    }
    assert!(store.enqueue(big(3)).now_or_never().is_none());
    store.enqueue(big(4)).await.unwrap();
    store.sync_all().await;
    assert_eq!(seqs(&store, 1).await.len() as u64, queued + 1);
    assert!(store.state("pid:1", "3").await.unwrap().is_none());
    assert!(store.state("pid:1", "4").await.unwrap().is_some());
}

#[tokio::test]
async fn a_full_backend_bars_until_forgiven() {
    let directory = tempfile::tempdir().unwrap();
    let backend = Arc::new(Sqlite::open(&directory.path().join("aok.db"), Durability::Process).await.unwrap());
    let store = Store::with(Arc::clone(&backend) as Arc<dyn Storage>);
    store.commit(journal(1, 1)).await.unwrap();
    backend.limit_growth(Some(0)).await;
    let full = store.commit(batch(1, vec![put("k", &[1; 100_000], None)])).await;
    assert!(matches!(full, Err(Error::Full { .. })), "{full:?}");
    assert!(!store.healthy());
    assert!(matches!(store.enqueue(journal(1, 2)).await, Err(Error::Refused { .. })));
    backend.limit_growth(None).await;
    store.forgive(Pid(1));
    store.commit(journal(1, 2)).await.unwrap();
    assert!(store.healthy());
    assert_eq!(seqs(&store, 1).await, [1, 2]);
}

#[tokio::test]
async fn closing_writes_what_is_queued() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", directory.path().join("aok.db").display());
    let store = Store::open(&url, Durability::Power).await.unwrap();
    assert_eq!(store.name(), url);
    for seq in 1..=5 {
        store.enqueue(journal(1, seq)).await.unwrap();
    }
    store.close().await;
    assert_eq!(store.pending(), 0);
    assert!(matches!(store.enqueue(journal(1, 6)).await, Err(Error::Backend { .. })));
    assert!(matches!(store.commit(journal(1, 6)).await, Err(Error::Backend { .. })));
    store.close().await;
    let reader = Store::open_read(&url).await.unwrap();
    assert_eq!(seqs(&reader, 1).await, [1, 2, 3, 4, 5]);
    assert!(reader.commit(journal(1, 6)).await.is_err());
}

#[tokio::test]
async fn the_last_handle_ends_the_writer_after_its_work() {
    let backend = Arc::new(Memory::new());
    let store = Store::with(Arc::clone(&backend) as Arc<dyn Storage>);
    store.enqueue(journal(1, 1)).await.unwrap();
    drop(store);
    // The writer's share of the backend goes with the writer.
    while Arc::strong_count(&backend) > 1 {
        tokio::task::yield_now().await;
    }
    assert_eq!(super::super::CheckpointJournal::journal(&*backend, Pid(1)).await.unwrap().len(), 1);
}

#[tokio::test]
async fn only_known_urls_open() {
    for url in ["", "memory", "memory:x", "sqlite:", "sqlite", "postgres://x", "/tmp/aok.db"] {
        let error = Store::open(url, Durability::Process).await.unwrap_err();
        assert!(matches!(error, Error::Url { .. }), "{url}: {error:?}");
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("aok.db");
    let reader = Store::open_read(&format!("sqlite:{}", path.display())).await.unwrap();
    assert_eq!(reader.last_pid().await.unwrap(), 0);
    assert!(!path.exists(), "a reader makes no file");
}
