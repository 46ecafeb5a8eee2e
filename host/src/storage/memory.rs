//! The store in memory (`memory:`): for tests and for runs that keep nothing. Refuses whatever SQLite
//! refuses, with the same errors.
//!
//! A batch is applied in place; each change leaves the closure that undoes it, and a refused batch
//! runs them backwards. The lock is never held across an await.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::sync::Arc;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::admission::{Gate, refusal};
use super::{
    AuditLog, Batch, Change, CheckpointJournal, EpisodicMemory, Error, JournalRecord, LogRecord, PageRecord,
    ProcessRow, StateEntry, StateStore, Storage,
};
use crate::audit::{GENESIS, Head, Record as AuditRecord};
use crate::process::{Pid, ProcessSpec, ProcessState, Seq, Usage};

/// A store that ends with the process. See the module's text.
pub struct Memory {
    tables: Mutex<Option<Tables>>,
}

#[derive(Default)]
struct Tables {
    processes: BTreeMap<Pid, ProcessRow>,
    journal: BTreeMap<(Pid, Seq), JournalRecord>,
    pages: BTreeMap<(Pid, u64), PageRecord>,
    state: BTreeMap<(String, String), StateEntry>,
    logs: BTreeMap<Pid, Vec<LogRecord>>,
    audit: BTreeMap<Pid, Vec<AuditRecord>>,
    heads: BTreeMap<Pid, Head>,
}

/// Takes one change back; run in the reverse order of the changes.
type Undo = Box<dyn FnOnce(&mut Tables)>;

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Memory")
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Memory {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self { tables: Mutex::new(Some(Tables::default())) }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Tables>> {
        // A panic under the lock can only come from the allocator; the tables stay usable.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read<T>(&self, look: impl FnOnce(&Tables) -> T) -> Result<T, Error> {
        self.lock().as_ref().map(look).ok_or_else(closed)
    }
}

fn closed() -> Error {
    Error::backend("memory", "it is closed")
}

impl Tables {
    fn apply(&mut self, batch: &Batch) -> Result<(), Error> {
        let mut undo: Vec<Undo> = Vec::with_capacity(batch.changes.len());
        for change in &batch.changes {
            match self.change(batch.pid, change) {
                Ok(step) => undo.push(step),
                Err(error) => {
                    for step in undo.into_iter().rev() {
                        step(self);
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn change(&mut self, pid: Pid, change: &Change) -> Result<Undo, Error> {
        let refused = || refusal(pid, change);
        match change {
            Change::Spawn(spec) => self.spawn(spec).ok_or_else(refused),
            Change::Respec(spec) => {
                let row = self.processes.get_mut(&spec.pid).ok_or_else(refused)?;
                let old = std::mem::replace(&mut row.spec, (**spec).clone());
                Ok(Box::new(move |t| {
                    if let Some(row) = t.processes.get_mut(&old.pid) {
                        row.spec = old;
                    }
                }))
            }
            Change::Forget(before) => {
                let old: Vec<_> = self.journal.range((pid, 0)..(pid, *before)).map(|(key, _)| *key).collect();
                let forgotten: Vec<_> = old.into_iter().filter_map(|key| self.journal.remove_entry(&key)).collect();
                Ok(Box::new(move |t| t.journal.extend(forgotten)))
            }
            Change::Usage(usage) => self.update(pid, |row| row.usage = *usage).ok_or_else(refused),
            Change::State(state, waiting_on) => self
                .update(pid, |row| {
                    row.state = *state;
                    row.waiting_on.clone_from(waiting_on);
                })
                .ok_or_else(refused),
            Change::Exit(exit) => {
                if self.processes.get(&pid).is_some_and(|row| row.exit.is_some()) {
                    return Err(refused());
                }
                let end = |row: &mut ProcessRow| {
                    row.state = ProcessState::Zombie;
                    row.waiting_on = None;
                    row.exit = Some(exit.clone());
                };
                self.update(pid, end).ok_or_else(refused)
            }
            Change::Journal(record) => self.journal(record).ok_or_else(refused),
            Change::Page(page) => match self.pages.entry((page.pid, page.id)) {
                Entry::Occupied(_) => Err(refused()),
                Entry::Vacant(slot) => {
                    let key = *slot.key();
                    slot.insert((**page).clone());
                    Ok(Box::new(move |t| drop(t.pages.remove(&key))))
                }
            },
            Change::PageMeta(id, meta) => {
                let key = (pid, *id);
                let page = self.pages.get_mut(&key).ok_or_else(refused)?;
                let old = std::mem::replace(&mut page.meta, *meta);
                Ok(Box::new(move |t| {
                    if let Some(page) = t.pages.get_mut(&key) {
                        page.meta = old;
                    }
                }))
            }
            Change::StatePut { scope, key, value, expected } => self.put(scope, key, value, *expected),
            Change::StateDelete { scope, key } => {
                let old = self.state.remove(&(scope.clone(), key.clone()));
                Ok(restore_state(scope, key, old))
            }
            Change::Log(record) => {
                let pid = record.pid;
                self.logs.entry(pid).or_default().push(record.clone());
                Ok(Box::new(move |t| drop(t.logs.entry(pid).or_default().pop())))
            }
            Change::Audit(record) => self.audit(record).ok_or_else(refused),
        }
    }

    fn spawn(&mut self, spec: &ProcessSpec) -> Option<Undo> {
        let pid = spec.pid;
        let Entry::Vacant(slot) = self.processes.entry(pid) else {
            return None;
        };
        slot.insert(ProcessRow {
            spec: spec.clone(),
            state: ProcessState::Runnable,
            waiting_on: None,
            usage: Usage::default(),
            exit: None,
        });
        Some(Box::new(move |t| drop(t.processes.remove(&pid))))
    }

    fn update(&mut self, pid: Pid, set: impl FnOnce(&mut ProcessRow)) -> Option<Undo> {
        let row = self.processes.get_mut(&pid)?;
        let (state, waiting_on, usage, exit) = (row.state, row.waiting_on.clone(), row.usage, row.exit.clone());
        set(row);
        Some(Box::new(move |t| {
            if let Some(row) = t.processes.get_mut(&pid) {
                (row.state, row.waiting_on, row.usage, row.exit) = (state, waiting_on, usage, exit);
            }
        }))
    }

    fn journal(&mut self, record: &JournalRecord) -> Option<Undo> {
        let key = (record.pid, record.seq);
        match self.journal.entry(key) {
            Entry::Vacant(slot) => {
                slot.insert(record.clone());
                Some(Box::new(move |t| drop(t.journal.remove(&key))))
            }
            Entry::Occupied(mut slot) => {
                let start = slot.get_mut();
                if start.outcome.is_some() || record.outcome.is_none() || start.call != record.call {
                    return None;
                }
                let old = start.ended_ms;
                start.outcome.clone_from(&record.outcome);
                start.ended_ms = record.ended_ms;
                Some(Box::new(move |t| {
                    if let Some(start) = t.journal.get_mut(&key) {
                        (start.outcome, start.ended_ms) = (None, old);
                    }
                }))
            }
        }
    }

    fn put(&mut self, scope: &str, key: &str, value: &[u8], expected: Option<u64>) -> Result<Undo, Error> {
        let slot = (scope.to_owned(), key.to_owned());
        let found = self.state.get(&slot).map_or(0, |entry| entry.revision);
        if let Some(expected) = expected.filter(|expected| *expected != found) {
            return Err(Error::Conflict { key: key.to_owned(), expected, found });
        }
        let old = self.state.insert(slot, StateEntry { value: value.to_vec(), revision: found + 1 });
        Ok(restore_state(scope, key, old))
    }

    fn audit(&mut self, record: &AuditRecord) -> Option<Undo> {
        let pid = record.pid;
        let old = self.heads.get(&pid).cloned();
        let (seq, hash) = old.as_ref().map_or((0, GENESIS), |head| (head.seq, &*head.hash));
        if record.seq != seq + 1 || *record.prev != *hash {
            return None;
        }
        self.audit.entry(pid).or_default().push(record.clone());
        self.heads.insert(pid, Head { seq: record.seq, hash: Arc::clone(&record.hash) });
        Some(Box::new(move |t| {
            t.audit.entry(pid).or_default().pop();
            match old {
                Some(head) => drop(t.heads.insert(pid, head)),
                None => drop(t.heads.remove(&pid)),
            }
        }))
    }
}

fn restore_state(scope: &str, key: &str, old: Option<StateEntry>) -> Undo {
    let slot = (scope.to_owned(), key.to_owned());
    Box::new(move |t| match old {
        Some(entry) => drop(t.state.insert(slot, entry)),
        None => drop(t.state.remove(&slot)),
    })
}

#[async_trait]
impl EpisodicMemory for Memory {
    async fn pages(&self, pid: Pid) -> Result<Vec<PageRecord>, Error> {
        self.read(|t| t.pages.range((pid, 0)..=(pid, u64::MAX)).map(|(_, page)| page.clone()).collect())
    }

    async fn page(&self, pid: Pid, id: u64) -> Result<Option<PageRecord>, Error> {
        self.read(|t| t.pages.get(&(pid, id)).cloned())
    }
}

#[async_trait]
impl StateStore for Memory {
    async fn processes(&self) -> Result<Vec<ProcessRow>, Error> {
        self.read(|t| t.processes.values().cloned().collect())
    }

    async fn process(&self, pid: Pid) -> Result<Option<ProcessRow>, Error> {
        self.read(|t| t.processes.get(&pid).cloned())
    }

    async fn last_pid(&self) -> Result<u64, Error> {
        self.read(|t| t.processes.last_key_value().map_or(0, |(pid, _)| pid.0))
    }

    async fn state(&self, scope: &str, key: &str) -> Result<Option<StateEntry>, Error> {
        self.read(|t| t.state.get(&(scope.to_owned(), key.to_owned())).cloned())
    }

    async fn states(&self, scope: &str) -> Result<Vec<(String, StateEntry)>, Error> {
        self.read(|t| {
            let all = t.state.iter().filter(|((s, _), _)| s == scope);
            let mut all: Vec<_> = all.map(|((_, key), entry)| (key.clone(), entry.clone())).collect();
            all.sort_by(|a, b| a.0.cmp(&b.0));
            all
        })
    }

    async fn logs(&self, pid: Pid, skip: u64) -> Result<Vec<LogRecord>, Error> {
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        self.read(|t| t.logs.get(&pid).into_iter().flatten().skip(skip).cloned().collect())
    }
}

#[async_trait]
impl AuditLog for Memory {
    async fn audit_tail(&self, pid: Option<Pid>, limit: u64) -> Result<Vec<AuditRecord>, Error> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        self.read(|t| {
            let chains = t.audit.iter().filter(|(chain, _)| pid.is_none_or(|pid| pid == **chain));
            let mut records: Vec<&AuditRecord> = chains.flat_map(|(_, records)| records).collect();
            records.sort_by_key(|r| (r.at_ms, r.pid, r.seq));
            let start = records.len().saturating_sub(limit);
            records.into_iter().skip(start).cloned().collect()
        })
    }

    async fn audit_chain(&self, pid: Pid) -> Result<Vec<AuditRecord>, Error> {
        self.read(|t| t.audit.get(&pid).cloned().unwrap_or_default())
    }

    async fn audit_heads(&self) -> Result<Vec<(Pid, Head)>, Error> {
        self.read(|t| t.heads.iter().map(|(pid, head)| (*pid, head.clone())).collect())
    }
}

#[async_trait]
impl CheckpointJournal for Memory {
    async fn journal(&self, pid: Pid) -> Result<Vec<JournalRecord>, Error> {
        self.read(|t| t.journal.range((pid, 0)..=(pid, Seq::MAX)).map(|(_, record)| record.clone()).collect())
    }
}

#[async_trait]
impl Storage for Memory {
    async fn commit(&self, batches: Vec<Batch>) -> Vec<Result<(), Error>> {
        let mut tables = self.lock();
        let Some(tables) = tables.as_mut() else {
            return vec![Err(closed()); batches.len()];
        };
        let mut gate = Gate::default();
        let mut apply = |batch: &Batch| {
            let result = gate.check(batch).and_then(|()| tables.apply(batch));
            gate.note(batch.pid, &result);
            result
        };
        batches.iter().map(&mut apply).collect()
    }

    fn name(&self) -> String {
        "memory".to_owned()
    }

    async fn close(&self) {
        *self.lock() = None;
    }
}
