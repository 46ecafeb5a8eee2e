//! The audit record and its hash chain. Pure: who writes and who reads them is elsewhere.
//!
//! Each record's hash covers its other fields and the hash of the record before, so a chain can only
//! be rewritten from some point to its end; the [`Head`], kept apart, pins that end. What this cannot
//! see: records and head cut back together to an earlier, honest state.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::process::{Pid, Seq};

/// What stands for the hash before the first record.
pub const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// One audited decision (CONTRACT §8). `hash` covers every other field and `prev`.
///
/// A record is made on one thread and written on another, and memory that changes threads is dear: what
/// is mostly a constant is borrowed, and a hash is shared with the record after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Position in its chain, from 1.
    pub seq: Seq,
    /// Whose chain; 0 is the kernel's.
    pub pid: Pid,
    /// Unix milliseconds.
    pub at_ms: u64,
    /// What was asked: the syscall's name, `spawn`, `exit`, `plugin-load` …
    pub event: Cow<'static, str>,
    /// On what: a tool, a model, a page, a path.
    pub object: String,
    /// `allow`, `deny`, `error`, `interrupted` …
    pub decision: Cow<'static, str>,
    /// Who decided: `policy`, a hook's name, `quota`, `person`.
    pub by: Cow<'static, str>,
    /// Hash of the record before, 64 zeros for the first.
    pub prev: Arc<str>,
    /// SHA-256, hex.
    pub hash: Arc<str>,
}

/// What the last record of a chain is, kept apart from the records so that a cut tail is seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its position.
    pub seq: Seq,
    /// Its hash.
    pub hash: Arc<str>,
}

/// A chain being written: knows where the next record goes.
#[derive(Clone, Debug)]
pub struct Chain {
    pid: Pid,
    head: Head,
}

impl Chain {
    /// Goes on behind `head`, or starts the chain where there is none.
    #[must_use]
    pub fn resume(pid: Pid, head: Option<Head>) -> Self {
        Self { pid, head: head.unwrap_or_else(|| Head { seq: 0, hash: GENESIS.into() }) }
    }

    /// Makes the next record. The caller puts every record into the store, in this order; where one
    /// could not be stored, the chain is resumed from the store's head.
    pub fn append(
        &mut self,
        at_ms: u64,
        event: impl Into<Cow<'static, str>>,
        object: impl Into<String>,
        decision: impl Into<Cow<'static, str>>,
        by: impl Into<Cow<'static, str>>,
    ) -> Record {
        let mut record = Record {
            seq: self.head.seq.saturating_add(1),
            pid: self.pid,
            at_ms,
            event: event.into(),
            object: object.into(),
            decision: decision.into(),
            by: by.into(),
            prev: Arc::clone(&self.head.hash),
            hash: Arc::clone(&self.head.hash),
        };
        record.hash = hex(digest(record.seq, &record.prev, &record)).into();
        self.head.seq = record.seq;
        self.head.hash = Arc::clone(&record.hash);
        record
    }

    /// The last record's position and hash; `None` while the chain is empty.
    #[must_use]
    pub fn head(&self) -> Option<&Head> {
        (self.head.seq > 0).then_some(&self.head)
    }
}

/// What was done to a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Why {
    /// A record is not what was written.
    Changed,
    /// A record is gone, and later ones are there.
    Missing,
    /// Records stand in each other's place, or one stands twice.
    Reordered,
    /// The chain does not end where its head says, or has lost its head.
    Truncated,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Changed => "changed",
            Self::Missing => "missing",
            Self::Reordered => "reordered",
            Self::Truncated => "truncated",
        })
    }
}

/// The first thing that is wrong with a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("audit record {seq} of process {pid} is {why}")]
pub struct Fault {
    /// Whose chain.
    pub pid: Pid,
    /// The first position that is wrong.
    pub seq: Seq,
    /// What is wrong there.
    pub why: Why,
}

/// Checks the chain of `pid`, its records in the order in which they are stored, and counts them.
///
/// # Errors
/// The first fault by position.
pub fn verify(pid: Pid, chain: &[Record], head: Option<&Head>) -> Result<u64, Fault> {
    let fault = |seq, why| Err(Fault { pid, seq, why });
    let mut prev = GENESIS;
    let mut expected: Seq = 1;
    for (index, record) in chain.iter().enumerate() {
        if record.pid != pid || !is_genuine(record.seq, &record.prev, record, &record.hash) {
            let why = if was_exchanged(chain, index) { Why::Reordered } else { Why::Changed };
            return fault(expected, why);
        }
        if record.seq != expected {
            let elsewhere = chain[index..].iter().any(|later| later.seq == expected);
            let why = if elsewhere || record.seq < expected { Why::Reordered } else { Why::Missing };
            return fault(expected, why);
        }
        if *record.prev != *prev {
            // This record is sound and says what stood before it: that one was rewritten, hash and all.
            return fault(expected.saturating_sub(1).max(1), Why::Changed);
        }
        prev = &record.hash;
        expected += 1;
    }
    let records = expected - 1;
    match head {
        None if records == 0 => Ok(0),
        None => fault(records, Why::Truncated),
        Some(head) if head.seq > records => fault(expected, Why::Truncated),
        Some(head) if head.seq < records => fault(head.seq + 1, Why::Truncated),
        Some(head) if *head.hash != *prev => fault(records.max(1), Why::Changed),
        Some(_) => Ok(records),
    }
}

/// Whether the record at `index` and another one hold parts of each other, such that giving the parts
/// back makes both genuine. Looks at all records, but runs once for a broken chain.
fn was_exchanged(chain: &[Record], index: usize) -> bool {
    let mine = &chain[index];
    chain.iter().enumerate().any(|(other, theirs)| {
        other != index
            && (1..15_u8).any(|parts| is_genuine_with(mine, theirs, parts) && is_genuine_with(theirs, mine, parts))
    })
}

/// Whether `record` is genuine once the parts in the bit set `parts` are taken from `other`.
fn is_genuine_with(record: &Record, other: &Record, parts: u8) -> bool {
    let from = |part: u8| if parts & part == 0 { record } else { other };
    is_genuine(from(1).seq, &from(2).prev, from(4), &from(8).hash)
}

fn is_genuine(seq: Seq, prev: &str, content: &Record, hash: &str) -> bool {
    let digest = digest(seq, prev, content);
    hash.len() == 2 * digest.len()
        && digest.iter().zip(hash.as_bytes().chunks_exact(2)).all(|(byte, text)| text == hex_pair(*byte))
}

/// SHA-256 over the position, the link and the content: numbers in eight bytes, each text behind its
/// length, so that no two records read alike. A changed encoding is a new tag.
fn digest(seq: Seq, prev: &str, content: &Record) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(b"aok-audit-1\0");
    for number in [content.pid.0, seq, content.at_ms] {
        hasher.update(number.to_le_bytes());
    }
    for text in [prev, &content.event, &content.object, &content.decision, &content.by] {
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    }
    hasher.finalize().into()
}

fn hex_pair(byte: u8) -> [u8; 2] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]
}

fn hex(digest: [u8; 32]) -> String {
    let mut text = String::with_capacity(2 * digest.len());
    for byte in digest {
        let [high, low] = hex_pair(byte);
        text.push(char::from(high));
        text.push(char::from(low));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const PID: Pid = Pid(7);

    /// Six records, two of them alike but for their place.
    fn honest() -> (Vec<Record>, Head) {
        let mut chain = Chain::resume(PID, None);
        let mut records: Vec<Record> =
            (0..5).map(|i| chain.append(100 + i, "tool-call", format!("fs__read {i}"), "allow", "policy")).collect();
        records.push(chain.append(104, "tool-call", "fs__read 4", "allow", "policy"));
        (records, chain.head().cloned().unwrap())
    }

    fn check(seq: Seq, why: Why, tamper: impl FnOnce(&mut Vec<Record>)) {
        let (mut records, head) = honest();
        tamper(&mut records);
        assert_eq!(verify(PID, &records, Some(&head)), Err(Fault { pid: PID, seq, why }), "{records:#?}");
    }

    #[test]
    fn an_honest_chain_is_whole() {
        let (records, head) = honest();
        assert_eq!(verify(PID, &records, Some(&head)), Ok(6));
        assert_eq!(verify(PID, &[], None), Ok(0));
    }

    #[test]
    fn a_resumed_chain_goes_on() {
        let (mut records, head) = honest();
        let mut chain = Chain::resume(PID, Some(head));
        records.push(chain.append(200, "exit", "", "allow", "policy"));
        assert_eq!(verify(PID, &records, chain.head()), Ok(7));
    }

    #[test]
    fn each_changed_field_is_seen() {
        type Change = fn(&mut Record);
        let changes: [Change; 10] = [
            |r| r.seq += 1,
            |r| r.seq = 0,
            |r| r.pid = Pid(8),
            |r| r.at_ms += 1,
            |r| r.event.to_mut().push('x'),
            |r| r.object.clear(),
            |r| r.decision = "deny".into(),
            |r| r.by = "person".into(),
            |r| r.prev = format!("g{}", &r.prev[1..]).into(),
            |r| r.hash = format!("g{}", &r.hash[1..]).into(),
        ];
        for at in 0..6_usize {
            for change in changes {
                check(at as u64 + 1, Why::Changed, |records| change(&mut records[at]));
            }
        }
    }

    #[test]
    fn text_moved_between_fields_is_seen() {
        check(3, Why::Changed, |records| {
            let moved = records[2].event.to_mut().pop().unwrap();
            records[2].object.insert(0, moved);
        });
    }

    #[test]
    fn a_record_rewritten_with_its_hash_is_seen() {
        for at in 0..6_usize {
            check(at as u64 + 1, Why::Changed, |records| {
                records[at].decision = "deny".into();
                records[at].hash = hex(digest(records[at].seq, &records[at].prev, &records[at])).into();
            });
        }
    }

    #[test]
    fn each_removed_record_is_seen() {
        for at in 0..5_usize {
            check(at as u64 + 1, Why::Missing, |records| drop(records.remove(at)));
        }
        check(6, Why::Truncated, |records| drop(records.pop()));
        check(3, Why::Truncated, |records| records.truncate(2));
        check(1, Why::Truncated, Vec::clear);
    }

    #[test]
    fn a_doubled_record_is_seen() {
        check(3, Why::Reordered, |records| records.insert(2, records[1].clone()));
        check(7, Why::Reordered, |records| records.push(records[5].clone()));
    }

    #[test]
    fn each_exchange_of_two_records_is_seen() {
        type Exchange = fn(&mut Record, &mut Record);
        let exchanges: [Exchange; 6] = [
            std::mem::swap,
            // All but the position.
            |a, b| {
                std::mem::swap(a, b);
                std::mem::swap(&mut a.seq, &mut b.seq);
            },
            // All but position, link and hash.
            |a, b| {
                std::mem::swap(a, b);
                std::mem::swap(&mut a.seq, &mut b.seq);
                std::mem::swap(&mut a.prev, &mut b.prev);
                std::mem::swap(&mut a.hash, &mut b.hash);
            },
            // All but position and link.
            |a, b| {
                std::mem::swap(a, b);
                std::mem::swap(&mut a.seq, &mut b.seq);
                std::mem::swap(&mut a.prev, &mut b.prev);
            },
            |a, b| std::mem::swap(&mut a.prev, &mut b.prev),
            |a, b| std::mem::swap(&mut a.hash, &mut b.hash),
        ];
        for a in 0..5_usize {
            for b in a + 1..6 {
                for (kind, exchange) in exchanges.iter().enumerate() {
                    // The contents of the last two are equal, so exchanging only those changes nothing.
                    if (a, b, kind) == (4, 5, 2) {
                        continue;
                    }
                    check(a as u64 + 1, Why::Reordered, |records| {
                        let (left, right) = records.split_at_mut(b);
                        exchange(&mut left[a], &mut right[0]);
                    });
                }
            }
        }
    }

    #[test]
    fn a_cut_head_is_seen() {
        let (records, head) = honest();
        let fault = |seq, why| Err(Fault { pid: PID, seq, why });
        assert_eq!(verify(PID, &records, None), fault(6, Why::Truncated));
        let earlier = Head { seq: 4, hash: records[3].hash.clone() };
        assert_eq!(verify(PID, &records, Some(&earlier)), fault(5, Why::Truncated));
        let other = Head { seq: 6, hash: records[3].hash.clone() };
        assert_eq!(verify(PID, &records, Some(&other)), fault(6, Why::Changed));
        assert_eq!(verify(PID, &[], Some(&head)), fault(1, Why::Truncated));
    }

    #[test]
    fn faults_read_as_words() {
        let fault = Fault { pid: PID, seq: 3, why: Why::Reordered };
        assert_eq!(fault.to_string(), "audit record 3 of process 7 is reordered");
    }
}
