//! What a group of batches comes to, table by table: rows of one table are written with few
//! statements, and what a later change supersedes is not written at all.
//!
//! Knows no SQL. A plan may only be written where that gives what the changes one by one would have
//! given; [`Plan::in_order`] says whether it does.

use std::collections::{BTreeMap, BTreeSet};

use super::super::{Batch, Change, JournalRecord, LogRecord, PageMeta, PageRecord};
use crate::audit::Record as AuditRecord;
use crate::process::{Exit, Pid, ProcessSpec, ProcessState, Seq, Usage};

/// A change of the key-value state; these keep their order.
pub(super) enum StateOp<'a> {
    Put { scope: &'a str, key: &'a str, value: &'a [u8], expected: Option<u64> },
    Delete { scope: &'a str, key: &'a str },
}

/// The step of one chain's head: from the record before `first` to `last`.
pub(super) struct HeadMove<'a> {
    pub(super) first: Seq,
    pub(super) prev: &'a str,
    pub(super) last: Seq,
    pub(super) hash: &'a str,
}

/// See the module's text. Tables are written in the order of the fields.
#[derive(Default)]
pub(super) struct Plan<'a> {
    pub(super) spawns: Vec<&'a ProcessSpec>,
    pub(super) respecs: BTreeMap<Pid, &'a ProcessSpec>,
    pub(super) usage: BTreeMap<Pid, &'a Usage>,
    pub(super) exits: BTreeMap<Pid, &'a Exit>,
    pub(super) states: BTreeMap<Pid, (ProcessState, Option<&'a str>)>,
    pub(super) journal: Vec<&'a JournalRecord>,
    /// Up to which position, itself excluded. What a group adds lies behind what it forgets, or is forgotten too.
    pub(super) forgets: BTreeMap<Pid, Seq>,
    pub(super) pages: Vec<&'a PageRecord>,
    pub(super) metas: BTreeMap<(Pid, u64), &'a PageMeta>,
    pub(super) state: Vec<StateOp<'a>>,
    pub(super) logs: Vec<&'a LogRecord>,
    pub(super) audit: Vec<&'a AuditRecord>,
    pub(super) heads: BTreeMap<Pid, HeadMove<'a>>,
    /// Processes that a change spoke of, to see one that is spawned only later.
    spoken_of: BTreeSet<Pid>,
    out_of_order: bool,
}

impl<'a> Plan<'a> {
    /// The plan of whole batches.
    pub(super) fn of_batches(batches: &'a [Batch]) -> Self {
        let mut plan = Self::default();
        for batch in batches {
            for change in &batch.changes {
                plan.add(batch.pid, change);
            }
        }
        plan
    }

    /// The plan of a single change of a batch of `pid`.
    pub(super) fn of_change(pid: Pid, change: &'a Change) -> Self {
        let mut plan = Self::default();
        plan.add(pid, change);
        plan
    }

    /// False where some change only holds, or fails, because of its place among the others.
    pub(super) fn in_order(&self) -> bool {
        !self.out_of_order
    }

    fn add(&mut self, pid: Pid, change: &'a Change) {
        match change {
            Change::Spawn(spec) => {
                self.out_of_order |= self.spoken_of.contains(&spec.pid);
                self.spawns.push(spec);
            }
            Change::Respec(spec) => {
                self.spoken_of.insert(spec.pid);
                self.respecs.insert(spec.pid, spec);
            }
            Change::Forget(before) => {
                let known = self.forgets.entry(pid).or_default();
                *known = (*known).max(*before);
            }
            Change::Usage(usage) => {
                self.spoken_of.insert(pid);
                self.usage.insert(pid, usage);
            }
            Change::State(state, waiting_on) => {
                self.spoken_of.insert(pid);
                self.states.insert(pid, (*state, waiting_on.as_deref()));
            }
            Change::Exit(exit) => {
                self.spoken_of.insert(pid);
                // States are written after exits: one from before this exit is superseded by it.
                self.states.remove(&pid);
                self.out_of_order |= self.exits.insert(pid, exit).is_some();
            }
            Change::Journal(record) => {
                self.out_of_order |= self.forgets.get(&record.pid).is_some_and(|before| record.seq < *before);
                self.journal.push(record);
            }
            Change::Page(page) => {
                self.out_of_order |= self.metas.contains_key(&(page.pid, page.id));
                self.pages.push(page);
            }
            Change::PageMeta(id, meta) => {
                self.metas.insert((pid, *id), meta);
            }
            Change::StatePut { scope, key, value, expected } => {
                self.state.push(StateOp::Put { scope, key, value, expected: *expected });
            }
            Change::StateDelete { scope, key } => self.state.push(StateOp::Delete { scope, key }),
            Change::Log(record) => self.logs.push(record),
            Change::Audit(record) => self.audit(record),
        }
    }

    fn audit(&mut self, record: &'a AuditRecord) {
        self.audit.push(record);
        let step = HeadMove { first: record.seq, prev: &record.prev, last: record.seq, hash: &record.hash };
        match self.heads.get_mut(&record.pid) {
            None => {
                self.heads.insert(record.pid, step);
            }
            Some(head) => {
                self.out_of_order |= Some(step.first) != head.last.checked_add(1) || step.prev != head.hash;
                (head.last, head.hash) = (step.last, step.hash);
            }
        }
    }
}
