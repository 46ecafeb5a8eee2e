//! Run queues: the order of runnable tasks behind a trait, one queue per worker.
//!
//! It owns who is next. It must not know threads, sleeping or polling.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::task::Task;
use crate::process::Pid;

/// A runnable task in a queue.
pub struct Entry(pub(super) Arc<Task>);

impl Entry {
    /// Whose task it is.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.0.pid
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Entry").field(&self.pid()).finish()
    }
}

/// Why a task enters a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It was just added.
    New,
    /// It used its slice up and can go on.
    SliceUsed,
    /// It was blocked or stopped and can go on.
    Woken,
}

/// An order of runnable tasks. Each worker has its own, called under a lock: it must not block.
pub trait Policy: Send {
    /// Takes a task in.
    fn enqueue(&mut self, entry: Entry, reason: Reason);
    /// Gives the task that runs next, `None` only when it holds none. An idle worker of another queue
    /// calls it too.
    fn next(&mut self) -> Option<Entry>;
    /// How many tasks it holds.
    fn len(&self) -> usize;
    /// Whether it holds none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// First come, first served, whatever the reason.
#[derive(Debug, Default)]
pub struct RoundRobin(VecDeque<Entry>);

impl RoundRobin {
    /// An empty one, as [`Scheduler::start`](super::Scheduler::start) takes it.
    #[must_use]
    pub fn boxed() -> Box<dyn Policy> {
        Box::new(Self::default())
    }
}

impl Policy for RoundRobin {
    fn enqueue(&mut self, entry: Entry, _: Reason) {
        self.0.push_back(entry);
    }

    fn next(&mut self) -> Option<Entry> {
        self.0.pop_front()
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

/// One worker's queue. Aligned so that two workers' queues share no cache line.
#[repr(align(128))]
pub(super) struct Queue {
    policy: Mutex<Box<dyn Policy>>,
    /// The policy's length as of its last change, to be read without the lock.
    len: AtomicUsize,
}

impl Queue {
    pub(super) fn new(policy: Box<dyn Policy>) -> Self {
        Self { policy: Mutex::new(policy), len: AtomicUsize::new(0) }
    }

    pub(super) fn push(&self, task: Arc<Task>, reason: Reason) {
        let mut policy = self.policy.lock().unwrap_or_else(PoisonError::into_inner);
        policy.enqueue(Entry(task), reason);
        self.len.store(policy.len(), Ordering::Release);
    }

    pub(super) fn pop(&self) -> Option<Arc<Task>> {
        // An entry pushed after this look is not lost: its push wakes a sleeper, and whoever falls
        // asleep looks once more (idle.rs).
        if self.len() == 0 {
            return None;
        }
        let mut policy = self.policy.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = policy.next();
        self.len.store(policy.len(), Ordering::Release);
        entry.map(|e| e.0)
    }

    pub(super) fn len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("len", &self.len()).finish_non_exhaustive()
    }
}
