//! What only a file can do: be reopened, be foreign, be newer, be full.

use std::path::PathBuf;

use sqlx::sqlite::SqliteConnection;
use tempfile::TempDir;

use super::super::sample::{batch, end, page, put, spec, syscall};
use super::*;
use crate::audit::{Chain, verify};
use crate::process::ProcessSpec;

fn directory() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a b?#%41.db");
    (directory, path)
}

async fn open(path: &Path) -> Sqlite {
    Sqlite::open(path, Durability::Process).await.unwrap()
}

async fn raw(path: &Path) -> SqliteConnection {
    options(path).connect().await.unwrap()
}

fn texts(results: &[Result<(), Error>]) -> Vec<String> {
    results.iter().map(|result| result.as_ref().map_or_else(Error::chain, |()| "ok".to_owned())).collect()
}

#[tokio::test]
async fn reopening_keeps_everything() {
    for durability in [Durability::Process, Durability::Power] {
        let (_directory, path) = directory();
        let mut chain = Chain::resume(Pid(1), None);
        let spawn = Change::Spawn(Box::<ProcessSpec>::new(spec(1)));
        let group = vec![batch(1, vec![spawn, put("k", b"v", None)]), syscall(&mut chain, 1, 1)];
        let before = {
            let store = Sqlite::open(&path, durability).await.unwrap();
            assert_eq!(texts(&store.commit(group).await), ["ok", "ok"]);
            (store.process(Pid(1)).await.unwrap(), store.pages(Pid(1)).await.unwrap())
            // Not closed: as after a kill, the log holds it all.
        };
        for close in [true, false] {
            let store = Sqlite::open(&path, durability).await.unwrap();
            assert_eq!((store.process(Pid(1)).await.unwrap(), store.pages(Pid(1)).await.unwrap()), before);
            assert_eq!(store.state("pid:1", "k").await.unwrap().unwrap().revision, 1);
            assert_eq!(store.last_pid().await.unwrap(), 1);
            assert_eq!(verify(Pid(1), &store.audit_chain(Pid(1)).await.unwrap(), chain.head()), Ok(1));
            if close {
                store.close().await;
            }
        }
    }
}

#[cfg(unix)]
#[tokio::test]
async fn only_the_owner_may_read_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let (directory, path) = directory();
    let store = open(&path).await;
    store.commit(vec![batch(1, vec![put("k", b"v", None)])]).await;
    for file in fs::read_dir(directory.path()).unwrap().map(Result::unwrap) {
        let mode = file.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{:?}", file.file_name());
    }
}

#[tokio::test]
async fn a_newer_schema_is_left_alone() {
    let (directory, path) = directory();
    open(&path).await.close().await;
    let mut conn = raw(&path).await;
    query("INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (99, 'x', 1, x'00', 0)")
        .execute(&mut conn)
        .await
        .unwrap();
    conn.close().await.unwrap();
    let before = fs::read(&path).unwrap();
    let error = Sqlite::open(&path, Durability::Process).await.unwrap_err();
    assert!(matches!(error, Error::TooNew { found: 99, .. }), "{error:?}");
    let error = Sqlite::open_read(&path).await.unwrap_err();
    assert!(matches!(error, Error::TooNew { found: 99, .. }), "{error:?}");
    assert!(fs::read(&path).unwrap() == before, "the file was changed");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "files were left beside it");
}

#[tokio::test]
async fn a_file_that_is_no_store_says_so() {
    let (_directory, path) = directory();
    let text = "not a database, but longer than a header of one hundred bytes. ".repeat(20);
    fs::write(&path, &text).unwrap();
    for error in
        [Sqlite::open(&path, Durability::Process).await.unwrap_err(), Sqlite::open_read(&path).await.unwrap_err()]
    {
        assert!(error.chain().ends_with("the file is not a store of aok: move it away or name another"), "{error:?}");
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
    let missing = path.join("aok.db");
    assert!(matches!(Sqlite::open(&missing, Durability::Process).await, Err(Error::Backend { .. })));
}

#[tokio::test]
async fn a_full_store_loses_nothing_and_works_again_with_room() {
    let (_directory, path) = directory();
    let store = open(&path).await;
    let big = |seq| {
        batch(
            2,
            vec![Change::Journal(Box::new(end(2, seq))), Change::Page(Box::new(page(2, seq, &"x".repeat(30_000))))],
        )
    };
    assert_eq!(texts(&store.commit(vec![big(1)]).await), ["ok"]);
    store.limit_growth(Some(12)).await;
    let mut held = 1;
    let full = loop {
        let group = vec![batch(1, vec![put("k", &[1], None)]), big(held + 1)];
        let results = store.commit(group).await;
        if results[1].is_err() {
            break results;
        }
        held += 1;
        assert!(held < 50, "it never filled");
    };
    assert!(full.iter().all(|result| matches!(result, Err(Error::Full { .. }))), "{full:?}");
    assert_eq!(store.pages(Pid(2)).await.unwrap().len() as u64, held);
    assert_eq!(store.journal(Pid(2)).await.unwrap().len() as u64, held);
    assert_eq!(store.state("pid:1", "k").await.unwrap().unwrap().revision, held - 1);
    store.limit_growth(None).await;
    assert_eq!(texts(&store.commit(vec![big(held + 1)]).await), ["ok"]);
    assert_eq!(store.pages(Pid(2)).await.unwrap().len() as u64, held + 1);
}

#[tokio::test]
async fn a_dropped_commit_leaves_no_transaction_open() {
    use futures_util::FutureExt as _;
    let (_directory, path) = directory();
    let store = open(&path).await;
    for n in 0..20_u8 {
        let key = n.to_string();
        let mut commit = Box::pin(store.commit(vec![batch(1, vec![put(&key, &[n], None), put("all", &[n], None)])]));
        // Polled some times, then dropped wherever it stands.
        for _ in 0..n {
            if (&mut commit).now_or_never().is_some() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(texts(&store.commit(vec![batch(1, vec![put("last", b"", None)])]).await), ["ok"]);
    let mut count = 0;
    for n in 0..20_u8 {
        count += u64::from(store.state("pid:1", &n.to_string()).await.unwrap().is_some());
    }
    let revision = store.state("pid:1", "all").await.unwrap().map_or(0, |entry| entry.revision);
    assert_eq!(count, revision, "a batch was applied in part");
}

#[tokio::test]
async fn another_process_reads_and_does_not_write() {
    let (_directory, path) = directory();
    assert!(Sqlite::open_read(&path).await.unwrap().is_none());
    assert!(!path.exists());
    fs::write(&path, "").unwrap();
    assert!(Sqlite::open_read(&path).await.unwrap().is_none());
    let writer = open(&path).await;
    let reader = Sqlite::open_read(&path).await.unwrap().unwrap();
    for n in 1..=3 {
        writer.commit(vec![batch(1, vec![put("k", b"v", None)])]).await;
        assert_eq!(reader.state("pid:1", "k").await.unwrap().unwrap().revision, n);
    }
    let refused = reader.commit(vec![batch(1, vec![put("k", b"v", None)])]).await;
    assert!(texts(&refused)[0].ends_with("it is open for reading only"), "{refused:?}");
}

#[tokio::test]
async fn a_tampered_chain_is_read_as_it_stands() {
    for (tamper, seq, why) in [
        ("UPDATE audit SET seq = CASE seq WHEN 2 THEN 3 WHEN 3 THEN 2 ELSE seq END", 2, "reordered"),
        ("UPDATE audit SET rowid = CASE rowid WHEN 2 THEN 30 WHEN 3 THEN 29 ELSE rowid + 30 END", 1, "reordered"),
        ("UPDATE audit SET at_ms = -1 WHERE seq = 3", 3, "changed"),
        ("UPDATE audit SET event = CAST(x'ff00' AS TEXT) WHERE seq = 2", 2, "changed"),
        ("UPDATE audit SET pid = -5 WHERE seq = 2", 2, "missing"),
        ("DELETE FROM audit WHERE seq = 1", 1, "missing"),
        ("DELETE FROM audit WHERE seq = 4", 4, "truncated"),
        ("DELETE FROM audit", 1, "truncated"),
    ] {
        let (_directory, path) = directory();
        let store = open(&path).await;
        let mut chain = Chain::resume(Pid(1), None);
        let records = (0..4).map(|n| Change::Audit(chain.append(n, "e", "o", "allow", "policy"))).collect();
        store.commit(vec![batch(1, records)]).await;
        query(tamper).execute(&mut raw(&path).await).await.unwrap();
        let records = store.audit_chain(Pid(1)).await.unwrap();
        let heads = store.audit_heads().await.unwrap();
        let fault = verify(Pid(1), &records, Some(&heads[0].1)).unwrap_err();
        assert_eq!((fault.seq, fault.why.to_string().as_str()), (seq, why), "{tamper}");
        store.audit_tail(None, 10).await.unwrap();
    }
}
