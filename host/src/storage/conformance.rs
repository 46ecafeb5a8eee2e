//! The laws of a backend: one function per law, run against every backend, and a randomised
//! comparison of the two. What only a file can do (reopening, being full) is in `sqlite`'s own tests,
//! what group commit adds in `store`'s.

use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tempfile::TempDir;

use super::sample::{batch, delete, end, log, meta, page, put, spec, start, syscall, usage};
use super::{Batch, Change, Durability, Error, JournalRecord, Memory, PageKind, PageRecord, Sqlite, Storage};
use crate::audit::{Chain, Head, verify};
use crate::process::{Exit, Pid, ProcessSpec, ProcessState, Usage};

/// An open store, and what it must not outlive.
pub(super) struct Opened {
    pub(super) store: Arc<dyn Storage>,
    _directory: Option<TempDir>,
}

pub(super) async fn memory() -> Opened {
    Opened { store: Arc::new(Memory::new()), _directory: None }
}

pub(super) async fn sqlite() -> Opened {
    let directory = tempfile::tempdir().unwrap();
    let store = Sqlite::open(&directory.path().join("aok.db"), Durability::Process).await.unwrap();
    Opened { store: Arc::new(store), _directory: Some(directory) }
}

/// Makes one test of each law for each backend.
macro_rules! suite {
    ($($law:ident),+ $(,)?) => {
        mod on_memory {
            $(#[tokio::test] async fn $law() { super::$law(&*super::memory().await.store).await; })+
        }
        mod on_sqlite {
            $(#[tokio::test] async fn $law() { super::$law(&*super::sqlite().await.store).await; })+
        }
    };
}

suite!(
    returns_what_was_put,
    an_empty_store_is_empty,
    a_big_text_comes_back,
    a_failing_batch_changes_nothing_and_the_others_hold,
    a_failed_batch_bars_the_later_ones_of_its_process,
    a_conflict_bars_nothing,
    a_journal_position_ends_once,
    a_process_is_spawned_once,
    a_process_exits_once,
    what_a_process_is_is_replaced,
    a_journal_is_forgotten_up_to_a_position,
    a_process_must_exist,
    changes_of_a_batch_apply_in_order,
    state_is_compared_and_set,
    revisions_grow_by_one,
    a_missing_page_has_no_meta,
    logs_are_skipped,
    heads_move_with_their_records,
    the_tail_is_by_time,
    the_last_pid_never_goes_back,
    what_no_backend_holds_is_refused,
    a_large_group_is_applied,
    a_closed_store_fails,
);

async fn commit(store: &dyn Storage, pid: u64, changes: Vec<Change>) -> Result<(), Error> {
    store.commit(vec![batch(pid, changes)]).await.remove(0)
}

async fn refused(store: &dyn Storage, pid: u64, changes: Vec<Change>) {
    let result = commit(store, pid, changes).await;
    assert!(matches!(result, Err(Error::Broken { .. })), "{result:?}");
}

fn spawn(pid: u64) -> Change {
    Change::Spawn(Box::new(spec(pid)))
}

fn journal(record: JournalRecord) -> Change {
    Change::Journal(Box::new(record))
}

fn new_page(record: PageRecord) -> Change {
    Change::Page(Box::new(record))
}

async fn returns_what_was_put(store: &dyn Storage) {
    let mut chain = Chain::resume(Pid(1), None);
    let audit = chain.append(5, "tool-call", "ä\0🦀", "allow", "");
    let plain = PageRecord {
        kind: PageKind::System,
        tool_calls: Vec::new(),
        answers: None,
        meta: super::PageMeta { importance: f32::MIN_POSITIVE, tokens: u32::MAX, accesses: u32::MAX, ..meta(1) },
        ..page(1, 2, "")
    };
    let bare = JournalRecord { effect: None, request: String::new(), ..start(1, 2) };
    let usage = Usage { micro_usd: Some(0), wall_us: i64::MAX as u64, ..usage(7) };
    let changes = vec![
        spawn(1),
        Change::Usage(usage),
        Change::State(ProcessState::Waiting, Some("llm \0 ü".to_owned())),
        journal(end(1, 1)),
        journal(bare.clone()),
        new_page(page(1, 1, "a\0b ü 🦀\u{10ffff}\r\n'\"")),
        new_page(plain.clone()),
        put("k\0", &[0, 255, 1], None),
        put("", b"", None),
        Change::Log(log(1, 1, "\0")),
        Change::Audit(audit.clone()),
    ];
    commit(store, 1, changes).await.unwrap();

    let row = store.process(Pid(1)).await.unwrap().unwrap();
    assert_eq!((row.spec.clone(), row.usage, row.exit.clone()), (spec(1), usage, None));
    assert_eq!((row.state, row.waiting_on.as_deref()), (ProcessState::Waiting, Some("llm \0 ü")));
    assert_eq!(store.processes().await.unwrap(), [row]);
    assert_eq!(store.journal(Pid(1)).await.unwrap(), [end(1, 1), bare]);
    let first = page(1, 1, "a\0b ü 🦀\u{10ffff}\r\n'\"");
    assert_eq!(store.page(Pid(1), 1).await.unwrap().as_ref(), Some(&first));
    assert_eq!(store.pages(Pid(1)).await.unwrap(), [first, plain]);
    let entry = store.state("pid:1", "k\0").await.unwrap().unwrap();
    assert_eq!((entry.value.as_slice(), entry.revision), (&[0, 255, 1][..], 1));
    assert_eq!(store.state("pid:1", "").await.unwrap().unwrap().value, b"");
    let all = store.states("pid:1").await.unwrap();
    assert_eq!(all.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), ["", "k\0"]);
    assert_eq!(all[1].1, entry);
    assert_eq!(store.states("pid:").await.unwrap(), [], "a part of a scope's name is none");
    assert_eq!(store.logs(Pid(1), 0).await.unwrap(), [log(1, 1, "\0")]);
    assert_eq!(store.audit_chain(Pid(1)).await.unwrap(), [audit]);

    for exit in [Exit::Success("ü".into()), Exit::Failure(String::new()), Exit::Killed("\0".into())] {
        let pid = store.last_pid().await.unwrap() + 1;
        commit(store, pid, vec![spawn(pid), Change::Exit(exit.clone())]).await.unwrap();
        let row = store.process(Pid(pid)).await.unwrap().unwrap();
        assert_eq!((row.state, row.waiting_on, row.exit), (ProcessState::Zombie, None, Some(exit)));
    }
}

async fn an_empty_store_is_empty(store: &dyn Storage) {
    assert_eq!(store.commit(Vec::new()).await.len(), 0);
    commit(store, 1, Vec::new()).await.unwrap();
    assert_eq!(store.last_pid().await.unwrap(), 0);
    assert_eq!(store.process(Pid(1)).await.unwrap(), None);
    assert_eq!(store.page(Pid(u64::MAX), u64::MAX).await.unwrap(), None);
    assert_eq!(store.state("", "").await.unwrap(), None);
    assert_eq!(store.states("").await.unwrap(), []);
    assert_eq!(store.audit_heads().await.unwrap(), []);
}

async fn a_big_text_comes_back(store: &dyn Storage) {
    let text = "0123456789abcdéf".repeat(1 << 16);
    let value = vec![7; 1 << 20];
    commit(store, 1, vec![new_page(page(1, 1, &text)), put("big", &value, None)]).await.unwrap();
    assert!(store.page(Pid(1), 1).await.unwrap().unwrap().text == text);
    assert!(store.state("pid:1", "big").await.unwrap().unwrap().value == value);
}

async fn a_failing_batch_changes_nothing_and_the_others_hold(store: &dyn Storage) {
    commit(store, 1, vec![spawn(1), new_page(page(1, 1, "a"))]).await.unwrap();
    let mut chain = Chain::resume(Pid(2), None);
    let bad = vec![
        Change::Usage(usage(99)),
        Change::State(ProcessState::Stopped, None),
        Change::PageMeta(1, meta(9)),
        put("k", b"bad", None),
        Change::Log(log(1, 1, "bad")),
        Change::Audit(Chain::resume(Pid(1), None).append(1, "bad", "", "allow", "policy")),
        journal(end(1, 1)),
        spawn(4),
        new_page(page(1, 1, "again")),
    ];
    let group = vec![
        batch(2, vec![spawn(2), Change::Audit(chain.append(1, "spawn", "", "allow", "policy"))]),
        batch(1, bad),
        batch(3, vec![spawn(3), put("k", b"good", None)]),
    ];
    let before = store.process(Pid(1)).await.unwrap();
    let results = store.commit(group).await;
    assert!(matches!(results[..], [Ok(()), Err(Error::Broken { .. }), Ok(())]), "{results:?}");

    assert_eq!(store.process(Pid(1)).await.unwrap(), before);
    assert_eq!(store.pages(Pid(1)).await.unwrap(), [page(1, 1, "a")]);
    assert_eq!(store.state("pid:1", "k").await.unwrap().unwrap().value, b"good");
    assert_eq!(store.logs(Pid(1), 0).await.unwrap(), []);
    assert_eq!(store.journal(Pid(1)).await.unwrap(), []);
    let pids: Vec<u64> = store.processes().await.unwrap().iter().map(|row| row.spec.pid.0).collect();
    assert_eq!(pids, [1, 2, 3]);
    assert_eq!(store.audit_heads().await.unwrap(), [(Pid(2), chain.head().unwrap().clone())]);
}

async fn a_failed_batch_bars_the_later_ones_of_its_process(store: &dyn Storage) {
    commit(store, 1, vec![spawn(1)]).await.unwrap();
    let group = vec![
        batch(1, vec![journal(end(1, 1))]),
        batch(1, vec![spawn(1)]),
        batch(1, vec![journal(end(1, 2))]),
        batch(2, vec![journal(end(2, 1))]),
        batch(1, vec![journal(end(1, 3))]),
    ];
    let results = store.commit(group).await;
    assert!(matches!(results[1], Err(Error::Broken { .. })), "{results:?}");
    for later in [&results[2], &results[4]] {
        let Err(Error::Refused { pid: Pid(1), first }) = later else { panic!("{later:?}") };
        assert_eq!(first, "process 1 exists already");
    }
    assert_eq!(store.journal(Pid(1)).await.unwrap(), [end(1, 1)]);
    assert_eq!(store.journal(Pid(2)).await.unwrap(), [end(2, 1)]);
    commit(store, 1, vec![journal(end(1, 2))]).await.unwrap();
}

async fn a_conflict_bars_nothing(store: &dyn Storage) {
    let group = vec![batch(1, vec![put("k", b"a", Some(3))]), batch(1, vec![put("k", b"b", Some(0))])];
    let results = store.commit(group).await;
    assert!(matches!(results[..], [Err(Error::Conflict { expected: 3, found: 0, .. }), Ok(())]), "{results:?}");
}

async fn a_journal_position_ends_once(store: &dyn Storage) {
    commit(store, 1, vec![journal(start(1, 1))]).await.unwrap();
    assert_eq!(store.journal(Pid(1)).await.unwrap(), [start(1, 1)]);
    refused(store, 1, vec![journal(start(1, 1))]).await;
    refused(store, 1, vec![journal(JournalRecord { call: "sleep".into(), ..end(1, 1) })]).await;
    commit(store, 1, vec![journal(end(1, 1))]).await.unwrap();
    assert_eq!(store.journal(Pid(1)).await.unwrap(), [end(1, 1)]);
    refused(store, 1, vec![journal(end(1, 1))]).await;
    refused(store, 1, vec![journal(start(1, 1))]).await;
    // Start and end in one group, the positions written out of order.
    let group = vec![batch(2, vec![journal(start(2, 2))]), batch(2, vec![journal(end(2, 1)), journal(end(2, 2))])];
    assert!(store.commit(group).await.iter().all(Result::is_ok));
    assert_eq!(store.journal(Pid(2)).await.unwrap(), [end(2, 1), end(2, 2)]);
}

async fn a_process_is_spawned_once(store: &dyn Storage) {
    commit(store, 1, vec![spawn(1)]).await.unwrap();
    refused(store, 1, vec![spawn(1)]).await;
    refused(store, 0, vec![spawn(2), spawn(2)]).await;
    assert_eq!(store.processes().await.unwrap().len(), 1);
}

async fn a_process_exits_once(store: &dyn Storage) {
    commit(store, 1, vec![spawn(1), Change::Exit(Exit::Success("42".into()))]).await.unwrap();
    refused(store, 1, vec![Change::Exit(Exit::Killed("late".into()))]).await;
    let row = store.process(Pid(1)).await.unwrap().unwrap();
    assert_eq!(row.exit, Some(Exit::Success("42".into())));
    let twice = vec![Change::Exit(Exit::Success("1".into())), Change::Exit(Exit::Success("2".into()))];
    commit(store, 2, vec![spawn(2)]).await.unwrap();
    refused(store, 2, twice).await;
    assert_eq!(store.process(Pid(2)).await.unwrap().unwrap().exit, None);
}

async fn what_a_process_is_is_replaced(store: &dyn Storage) {
    let other = |nice| Change::Respec(Box::new(ProcessSpec { nice, ..spec(1) }));
    refused(store, 1, vec![other(3)]).await;
    commit(store, 1, vec![spawn(1), other(3), other(4)]).await.unwrap();
    assert_eq!(store.process(Pid(1)).await.unwrap().unwrap().spec.nice, 4);
    // Undone with the rest of its batch.
    refused(store, 1, vec![other(5), spawn(1)]).await;
    assert_eq!(store.process(Pid(1)).await.unwrap().unwrap().spec.nice, 4);
}

async fn a_journal_is_forgotten_up_to_a_position(store: &dyn Storage) {
    let seqs = async |pid| store.journal(Pid(pid)).await.unwrap().iter().map(|r| r.seq).collect::<Vec<_>>();
    let three = |pid| (1..=3).map(|seq| journal(end(pid, seq))).collect::<Vec<_>>();
    commit(store, 1, three(1)).await.unwrap();
    commit(store, 2, three(2)).await.unwrap();
    commit(store, 1, vec![Change::Forget(3), journal(end(1, 4))]).await.unwrap();
    assert_eq!((seqs(1).await, seqs(2).await), (vec![3, 4], vec![1, 2, 3]));
    refused(store, 1, vec![Change::Forget(9), journal(end(2, 1))]).await;
    // What comes behind a forgotten position is a position again.
    commit(store, 1, vec![Change::Forget(4), journal(end(1, 1))]).await.unwrap();
    assert_eq!(seqs(1).await, vec![1, 4]);
}

async fn a_process_must_exist(store: &dyn Storage) {
    refused(store, 1, vec![Change::Usage(usage(1))]).await;
    refused(store, 1, vec![Change::State(ProcessState::Waiting, None)]).await;
    refused(store, 1, vec![Change::Exit(Exit::Success(String::new()))]).await;
    refused(store, 1, vec![Change::Usage(usage(1)), spawn(1)]).await;
    assert_eq!(store.last_pid().await.unwrap(), 0);
}

async fn changes_of_a_batch_apply_in_order(store: &dyn Storage) {
    refused(store, 1, vec![Change::PageMeta(1, meta(1)), new_page(page(1, 1, "a"))]).await;
    let changes = vec![
        spawn(1),
        Change::State(ProcessState::Waiting, Some("llm".into())),
        Change::Usage(usage(1)),
        Change::Exit(Exit::Success("42".into())),
        Change::Usage(usage(2)),
        new_page(page(1, 1, "a")),
        Change::PageMeta(1, meta(1)),
        Change::PageMeta(1, meta(2)),
        put("a", b"1", None),
        delete("a"),
        put("a", b"2", Some(0)),
        put("a", b"3", None),
        put("b", b"1", None),
        delete("b"),
        delete("b"),
    ];
    commit(store, 1, changes).await.unwrap();
    let row = store.process(Pid(1)).await.unwrap().unwrap();
    assert_eq!((row.state, row.waiting_on, row.usage), (ProcessState::Zombie, None, usage(2)));
    assert_eq!(store.page(Pid(1), 1).await.unwrap().unwrap().meta, meta(2));
    let entry = store.state("pid:1", "a").await.unwrap().unwrap();
    assert_eq!((entry.value.as_slice(), entry.revision), (&b"3"[..], 2));
    assert_eq!(store.state("pid:1", "b").await.unwrap(), None);
}

async fn state_is_compared_and_set(store: &dyn Storage) {
    let conflict = |result: Result<(), Error>| match result {
        Err(Error::Conflict { key, expected, found }) => (key, expected, found),
        other => panic!("{other:?}"),
    };
    let set = |expected| commit(store, 1, vec![Change::Log(log(1, 1, "x")), put("k", b"v", expected)]);
    assert_eq!(conflict(set(Some(1)).await), ("k".to_owned(), 1, 0));
    set(Some(0)).await.unwrap();
    assert_eq!(conflict(set(Some(0)).await), ("k".to_owned(), 0, 1));
    set(Some(1)).await.unwrap();
    assert_eq!(conflict(set(Some(1)).await), ("k".to_owned(), 1, 2));
    // Other scopes and keys are other entries.
    let other = Change::StatePut { scope: "plugin:p".into(), key: "k".into(), value: vec![], expected: Some(0) };
    commit(store, 1, vec![other]).await.unwrap();
    assert_eq!(store.logs(Pid(1), 0).await.unwrap().len(), 2);
}

async fn revisions_grow_by_one(store: &dyn Storage) {
    for revision in 1..=5 {
        commit(store, 1, vec![put("k", b"v", None)]).await.unwrap();
        assert_eq!(store.state("pid:1", "k").await.unwrap().unwrap().revision, revision);
    }
    commit(store, 1, vec![put("k", b"v", None), put("k", b"w", None), put("k", b"x", Some(7))]).await.unwrap();
    assert_eq!(store.state("pid:1", "k").await.unwrap().unwrap().revision, 8);
    commit(store, 1, vec![delete("k"), put("k", b"v", None)]).await.unwrap();
    assert_eq!(store.state("pid:1", "k").await.unwrap().unwrap().revision, 1);
}

async fn a_missing_page_has_no_meta(store: &dyn Storage) {
    commit(store, 1, vec![new_page(page(1, 1, "a"))]).await.unwrap();
    refused(store, 1, vec![Change::PageMeta(2, meta(1))]).await;
    refused(store, 2, vec![Change::PageMeta(1, meta(1))]).await;
    refused(store, 1, vec![Change::PageMeta(1, meta(1)), Change::PageMeta(2, meta(1))]).await;
    assert_eq!(store.page(Pid(1), 1).await.unwrap().unwrap().meta, meta(0));
    commit(store, 1, vec![Change::PageMeta(1, meta(3))]).await.unwrap();
    assert_eq!(store.page(Pid(1), 1).await.unwrap().unwrap().meta, meta(3));
}

async fn logs_are_skipped(store: &dyn Storage) {
    // The order is that of writing, not of `seq`.
    let seqs = [3, 1, 2];
    for seq in seqs {
        commit(store, 1, vec![Change::Log(log(1, seq, "a")), Change::Log(log(2, seq, "b"))]).await.unwrap();
    }
    for skip in 0..=4_usize {
        let lines = store.logs(Pid(1), skip as u64).await.unwrap();
        let expected: Vec<u64> = seqs.iter().skip(skip).copied().collect();
        assert_eq!(lines.iter().map(|line| line.seq).collect::<Vec<_>>(), expected);
    }
    assert_eq!(store.logs(Pid(1), u64::MAX).await.unwrap(), []);
}

async fn heads_move_with_their_records(store: &dyn Storage) {
    let mut chains = [Chain::resume(Pid::KERNEL, None), Chain::resume(Pid(1), None)];
    for round in 0..3 {
        let mut next = |chain: usize| Change::Audit(chains[chain].append(round, "e", "o", "allow", "policy"));
        let group = vec![batch(1, vec![next(1), next(0)]), batch(0, vec![next(0)]), batch(1, vec![next(1)])];
        assert!(store.commit(group).await.iter().all(Result::is_ok));
    }
    let heads: Vec<(Pid, Head)> =
        [Pid::KERNEL, Pid(1)].into_iter().zip(chains.iter().map(|c| c.head().unwrap().clone())).collect();
    assert_eq!(store.audit_heads().await.unwrap(), heads);
    for (pid, head) in &heads {
        assert_eq!(verify(*pid, &store.audit_chain(*pid).await.unwrap(), Some(head)), Ok(6));
    }
    // A record that does not follow: the same again, one too far, and one of another history.
    let again = store.audit_chain(Pid(1)).await.unwrap().pop().unwrap();
    refused(store, 1, vec![Change::Audit(again)]).await;
    chains[1].append(9, "lost", "", "allow", "policy");
    refused(store, 1, vec![Change::Audit(chains[1].append(9, "e", "", "allow", "policy"))]).await;
    let other = Head { seq: 6, hash: "ab".repeat(32).into() };
    let record = Chain::resume(Pid(1), Some(other)).append(9, "e", "", "allow", "policy");
    refused(store, 1, vec![Change::Audit(record)]).await;
    assert_eq!(store.audit_heads().await.unwrap(), heads);
    let mut chain = Chain::resume(Pid(1), Some(heads[1].1.clone()));
    commit(store, 1, vec![Change::Audit(chain.append(9, "e", "", "allow", "policy"))]).await.unwrap();
}

async fn the_tail_is_by_time(store: &dyn Storage) {
    let (mut one, mut two) = (Chain::resume(Pid(1), None), Chain::resume(Pid(2), None));
    for at in [5, 5, 9, 7] {
        let changes = vec![
            Change::Audit(two.append(at, "e", "", "allow", "policy")),
            Change::Audit(one.append(at, "e", "", "allow", "policy")),
        ];
        commit(store, 1, changes).await.unwrap();
    }
    let keys =
        |records: Vec<crate::audit::Record>| records.into_iter().map(|r| (r.at_ms, r.pid.0, r.seq)).collect::<Vec<_>>();
    let all = [(5, 1, 1), (5, 1, 2), (5, 2, 1), (5, 2, 2), (7, 1, 4), (7, 2, 4), (9, 1, 3), (9, 2, 3)];
    for limit in 0..=9_usize {
        let tail = keys(store.audit_tail(None, limit as u64).await.unwrap());
        assert_eq!(tail, all[all.len().saturating_sub(limit)..]);
    }
    assert_eq!(keys(store.audit_tail(Some(Pid(2)), 2).await.unwrap()), [(7, 2, 4), (9, 2, 3)]);
    assert_eq!(keys(store.audit_tail(Some(Pid(3)), u64::MAX).await.unwrap()), []);
}

async fn the_last_pid_never_goes_back(store: &dyn Storage) {
    for (pid, last) in [(3, 3), (1, 3), (7, 7), (2, 7)] {
        commit(store, pid, vec![spawn(pid), Change::Exit(Exit::Success(String::new()))]).await.unwrap();
        assert_eq!(store.last_pid().await.unwrap(), last);
    }
}

async fn what_no_backend_holds_is_refused(store: &dyn Storage) {
    let nan = super::PageMeta { importance: f32::NAN, ..meta(0) };
    refused(store, 1, vec![new_page(PageRecord { meta: nan, ..page(1, 1, "") })]).await;
    refused(store, 1, vec![new_page(page(1, u64::MAX, ""))]).await;
    refused(store, 1, vec![journal(end(1, 1 << 63))]).await;
    refused(store, u64::MAX, vec![spawn(1)]).await;
    refused(store, 1, vec![spawn(u64::MAX)]).await;
    refused(store, 1, vec![spawn(1), Change::Usage(Usage { micro_usd: Some(u64::MAX), ..usage(1) })]).await;
    assert_eq!(store.last_pid().await.unwrap(), 0);
}

async fn a_large_group_is_applied(store: &dyn Storage) {
    let mut chains: Vec<Chain> = (0..10).map(|pid| Chain::resume(Pid(pid), None)).collect();
    let mut group: Vec<Batch> = (0..10).map(|pid| batch(pid, vec![spawn(pid)])).collect();
    for seq in 1..=21 {
        for (pid, chain) in (0..).zip(&mut chains) {
            group.push(syscall(chain, pid, seq));
        }
    }
    assert!(store.commit(group).await.iter().all(Result::is_ok));
    for pid in (0..10).map(Pid) {
        let seqs: Vec<u64> = store.journal(pid).await.unwrap().iter().map(|r| r.seq).collect();
        assert_eq!(seqs, (1..=21).collect::<Vec<_>>());
        assert_eq!(store.pages(pid).await.unwrap().len(), 21);
        assert_eq!(store.process(pid).await.unwrap().unwrap().usage, usage(21));
    }
}

async fn a_closed_store_fails(store: &dyn Storage) {
    store.close().await;
    assert!(matches!(commit(store, 1, vec![spawn(1)]).await, Err(Error::Backend { .. })));
    assert!(store.processes().await.is_err());
    store.close().await;
}

/// A change, mostly a sensible one.
fn random_change(rng: &mut StdRng, chains: &mut [Chain]) -> Change {
    let pid = rng.random_range(0..3_u64);
    let seq = rng.random_range(1..12);
    let key = ["a", "b"][rng.random_range(0..2_usize)];
    match rng.random_range(0..15) {
        0 => spawn(rng.random_range(0..4)),
        1 => Change::Usage(usage(seq)),
        2 => Change::State(ProcessState::Waiting, rng.random_bool(0.5).then(|| "llm".to_owned())),
        3 if rng.random_bool(0.2) => Change::Exit(Exit::Killed("x".to_owned())),
        3 | 4 => journal(end(pid, seq)),
        5 => journal(start(pid, seq)),
        6 => new_page(page(pid, seq, "text")),
        7 => Change::PageMeta(seq, meta(rng.random_range(0..9))),
        8 => put(key, &[1], None),
        9 => put(key, &[2], Some(rng.random_range(0..3))),
        10 => delete(key),
        11 => Change::Log(log(pid, seq, "line")),
        12 => Change::Forget(seq),
        13 => Change::Respec(Box::new(ProcessSpec { nice: 7, ..spec(pid) })),
        _ => {
            let chain = &mut chains[rng.random_range(0..3_usize)];
            // Some are made and lost, so that the next one does not follow.
            if rng.random_bool(0.05) {
                chain.append(seq, "lost", "", "allow", "policy");
            }
            Change::Audit(chain.append(seq, "e", "o", "allow", "policy"))
        }
    }
}

/// Everything that a store says.
async fn contents(store: &dyn Storage) -> Vec<String> {
    let mut all = vec![
        format!("{:?}", store.processes().await.unwrap()),
        format!("{:?}", store.audit_heads().await.unwrap()),
        format!("{:?}", store.audit_tail(None, 50).await.unwrap()),
        format!("{:?}", store.last_pid().await.unwrap()),
    ];
    for pid in (0..4).map(Pid) {
        all.push(format!("{:?}", store.pages(pid).await.unwrap()));
        all.push(format!("{:?}", store.journal(pid).await.unwrap()));
        all.push(format!("{:?}", store.logs(pid, 1).await.unwrap()));
        all.push(format!("{:?}", store.audit_chain(pid).await.unwrap()));
    }
    for key in ["a", "b"] {
        all.push(format!("{:?}", store.state("pid:1", key).await.unwrap()));
    }
    all
}

#[tokio::test]
async fn both_backends_agree_on_random_batches() {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    for _ in 0..8 {
        let (memory, sqlite) = (memory().await, sqlite().await);
        let mut chains: Vec<Chain> = (0..3).map(|pid| Chain::resume(Pid(pid), None)).collect();
        let (mut held, mut failed) = (0, 0);
        for _ in 0..60 {
            let group: Vec<Batch> = (0..rng.random_range(1..8))
                .map(|_| {
                    let size = rng.random_range(1..4);
                    let changes = (0..size).map(|_| random_change(&mut rng, &mut chains)).collect();
                    batch(rng.random_range(0..3), changes)
                })
                .collect();
            let in_memory = memory.store.commit(group.clone()).await;
            let in_sqlite = sqlite.store.commit(group.clone()).await;
            let text = |results: &[Result<(), Error>]| format!("{results:?}");
            assert_eq!(text(&in_memory), text(&in_sqlite), "seed {seed}, {group:?}");
            held += in_memory.iter().filter(|r| r.is_ok()).count();
            failed += in_memory.iter().filter(|r| r.is_err()).count();
            // A writer that lost a record goes on from the store's head.
            let heads = memory.store.audit_heads().await.unwrap();
            for (pid, chain) in (0..).map(Pid).zip(&mut chains) {
                let head = heads.iter().find(|(of, _)| *of == pid).map(|(_, head)| head.clone());
                *chain = Chain::resume(pid, head);
            }
        }
        assert!(held > 20 && failed > 20, "seed {seed}: the batches test little ({held} held, {failed} failed)");
        assert_eq!(contents(&*memory.store).await, contents(&*sqlite.store).await, "seed {seed}");
    }
}
