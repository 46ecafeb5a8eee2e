//! Records for the store's tests.

use std::path::PathBuf;

use super::{Batch, Change, JournalRecord, LogRecord, PageKind, PageMeta, PageRecord};
use crate::abi::{Effect, ToolCall};
use crate::audit::Chain;
use crate::process::{Input, Mount, Pid, ProcessSpec, Seq, Usage};
use crate::quota::{OnQuota, ResourceQuota};

pub(super) fn batch(pid: u64, changes: Vec<Change>) -> Batch {
    Batch { pid: Pid(pid), changes }
}

pub(super) fn spec(pid: u64) -> ProcessSpec {
    ProcessSpec {
        pid: Pid(pid),
        ppid: (pid > 1).then_some(Pid(1)),
        name: "grüße \0 🦀".to_owned(),
        agent: "assistant".to_owned(),
        digest: String::new(),
        model: Some("script/a.jsonl".to_owned()),
        group: "default".to_owned(),
        nice: -20,
        input: Input(vec![0, 255]),
        root: None,
        epoch: None,
        task: "zähle \"Dateien\"\n".to_owned(),
        mounts: vec![Mount {
            host: PathBuf::from("/tmp/ä b"), guest: "ä b".to_owned(), writable: true, private: true
        }],
        hosts: Vec::new(),
        yes: false,
        quota: ResourceQuota::STANDARD,
        on_quota: OnQuota::Suspend,
        seed: u64::MAX,
        created_ms: 1_700_000_000_000,
    }
}

pub(super) fn usage(fuel: u64) -> Usage {
    Usage { fuel, slices: 2, tokens_in: 3, tokens_cached: 4, tokens_out: 5, micro_usd: None, ..Usage::default() }
}

pub(super) fn start(pid: u64, seq: Seq) -> JournalRecord {
    JournalRecord {
        pid: Pid(pid),
        seq,
        call: "tool-call".into(),
        request: r#"{"name":"fs__read","arguments":{"path":"a"}}"#.to_owned(),
        effect: Some(Effect::Idempotent),
        started_ms: 1000 + seq,
        outcome: None,
        ended_ms: None,
    }
}

pub(super) fn end(pid: u64, seq: Seq) -> JournalRecord {
    JournalRecord { outcome: Some(format!("{{\"ok\":{seq}}}")), ended_ms: Some(2000 + seq), ..start(pid, seq) }
}

pub(super) fn meta(accesses: u32) -> PageMeta {
    PageMeta {
        tokens: 12,
        exact: false,
        importance: 0.3,
        pinned: true,
        resident: accesses.is_multiple_of(2),
        accessed_ms: 77,
        accesses,
    }
}

pub(super) fn page(pid: u64, id: u64, text: &str) -> PageRecord {
    PageRecord {
        pid: Pid(pid),
        id,
        seq: id,
        kind: PageKind::Assistant,
        text: text.to_owned(),
        tool_calls: vec![ToolCall { id: "c\0".to_owned(), name: "calc".to_owned(), arguments: "{ }".to_owned() }],
        answers: Some((String::new(), "calc".to_owned())),
        meta: meta(0),
        hash: "00ff".to_owned(),
        created_ms: 55,
    }
}

pub(super) fn log(pid: u64, seq: Seq, message: &str) -> LogRecord {
    LogRecord {
        pid: Pid(pid),
        seq,
        at_ms: 9,
        level: "info".to_owned(),
        source: "assistant".to_owned(),
        message: message.to_owned(),
    }
}

/// What a typical syscall writes: its outcome, the page that it made, what it used, and its audit record.
pub(super) fn syscall(chain: &mut Chain, pid: u64, seq: Seq) -> Batch {
    let journal = JournalRecord { outcome: Some("x".repeat(200)), ..end(pid, seq) };
    let page = page(pid, seq, &"lorem ipsum ".repeat(40));
    batch(
        pid,
        vec![
            Change::Journal(Box::new(journal)),
            Change::Page(Box::new(page)),
            Change::Usage(usage(seq)),
            Change::Audit(chain.append(1000 + seq, "tool-call", "fs__read", "allow", "policy")),
        ],
    )
}

pub(super) fn put(key: &str, value: &[u8], expected: Option<u64>) -> Change {
    Change::StatePut { scope: "pid:1".to_owned(), key: key.to_owned(), value: value.to_vec(), expected }
}

pub(super) fn delete(key: &str) -> Change {
    Change::StateDelete { scope: "pid:1".to_owned(), key: key.to_owned() }
}
