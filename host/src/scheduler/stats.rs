//! What the workers did and what the tasks are doing, in numbers.
//!
//! It owns the counters of workers. Nothing in the scheduler reads them to decide anything.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A worker's counters. Only the worker writes them, so plain stores are enough.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct WorkerStats {
    slices: AtomicU64,
    busy_ns: AtomicU64,
    /// It polls a task now; tells the emptier of two workers with empty queues.
    pub(super) busy: AtomicBool,
}

impl WorkerStats {
    pub(super) fn slice(&self) {
        bump(&self.slices, 1);
    }

    pub(super) fn polled(&self, ns: u64) {
        bump(&self.busy_ns, ns);
    }

    pub(super) fn slices(&self) -> u64 {
        self.slices.load(Ordering::Relaxed)
    }

    pub(super) fn busy_ns(&self) -> u64 {
        self.busy_ns.load(Ordering::Relaxed)
    }
}

/// Adds to a counter that one thread at a time writes: no locked instruction needed.
pub(super) fn bump(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

/// The scheduler's load at one instant, for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Tasks in a run queue.
    pub runnable: usize,
    /// Tasks that a worker polls.
    pub running: usize,
    /// Tasks that wait for their waker.
    pub blocked: usize,
    /// Tasks that wait to be continued.
    pub stopped: usize,
    /// Slices given since the start.
    pub slices: u64,
    /// Nanoseconds spent polling since the start, one figure per worker.
    pub busy_ns: Vec<u64>,
}
