//! What the workers did and what the tasks are doing, in numbers.
//!
//! It owns the counters of workers. Nothing in the scheduler reads them to decide anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Buckets of a [`Histogram`]: up to 2³⁹ ns, nine minutes, and all that is longer.
const BUCKETS: usize = 41;

/// Times in buckets of powers of two nanoseconds: bucket `i` counts what is shorter than 2^i ns and not in
/// the one before; the last has no upper end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    /// How many in each bucket.
    pub counts: Vec<u64>,
    /// All times together, in nanoseconds.
    pub sum_ns: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], sum_ns: 0 }
    }
}

impl Histogram {
    /// How many times were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The upper end, in nanoseconds, of the bucket that holds the quantile `q` of 0…1; 0 without times.
    #[must_use]
    pub fn quantile_ns(&self, q: f64) -> u64 {
        let rank = (self.count() as f64 * q.clamp(0.0, 1.0)).ceil() as u64;
        let mut seen = 0;
        for (i, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank && *count > 0 {
                return 1 << i;
            }
        }
        0
    }
}

/// A histogram that one thread writes and any thread reads.
#[derive(Debug)]
pub(super) struct Times {
    counts: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

impl Default for Times {
    fn default() -> Self {
        Self { counts: std::array::from_fn(|_| AtomicU64::new(0)), sum_ns: AtomicU64::new(0) }
    }
}

impl Times {
    pub(super) fn add(&self, ns: u64) {
        bump(&self.counts[bucket(ns)], 1);
        bump(&self.sum_ns, ns);
    }

    pub(super) fn add_to(&self, all: &mut Histogram) {
        for (to, from) in all.counts.iter_mut().zip(&self.counts) {
            *to += from.load(Ordering::Relaxed);
        }
        all.sum_ns = all.sum_ns.wrapping_add(self.sum_ns.load(Ordering::Relaxed));
    }
}

fn bucket(ns: u64) -> usize {
    ((u64::BITS - ns.leading_zeros()) as usize).min(BUCKETS - 1)
}

/// A worker's counters. Only the worker writes them, so plain stores are enough.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct WorkerStats {
    slices: AtomicU64,
    busy_ns: AtomicU64,
    /// From a wake to the poll that follows.
    pub(super) wakes: Times,
    /// In a queue, whatever the reason.
    pub(super) waits: Times,
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
    /// How long a slice is now, in nanoseconds, one figure per worker.
    pub slice_ns: Vec<u64>,
    /// Workers whose thread lives. Fewer than there were at the start: a bug, and it was logged.
    pub workers_alive: usize,
    /// From the wake of a blocked task to its poll.
    pub wake_to_run: Histogram,
    /// From entering a run queue to the poll, whatever the reason.
    pub queue_wait: Histogram,
    /// The groups that have tasks, by name.
    pub groups: Vec<GroupLoad>,
}

/// A group's load at one instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupLoad {
    /// Its name.
    pub name: Arc<str>,
    /// Its weight against other groups; 1024 is normal.
    pub weight: u32,
    /// Its tasks that are not over.
    pub tasks: usize,
    /// Its tasks in a run queue or polled.
    pub runnable: usize,
    /// Nanoseconds that its tasks' polls took since it has had tasks.
    pub cpu_ns: u64,
    /// Nanoseconds that its tasks were charged for what they used elsewhere, since then too.
    pub charged_ns: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_powers_of_two_and_the_last_takes_the_rest() {
        for (ns, at) in [(0, 0), (1, 1), (2, 2), (3, 2), (4, 3), (1023, 10), (1024, 11), (u64::MAX, BUCKETS - 1)] {
            assert_eq!(bucket(ns), at, "{ns}");
        }
    }

    #[test]
    fn quantiles_are_upper_ends() {
        let times = Times::default();
        for ns in [100; 99] {
            times.add(ns);
        }
        times.add(5_000);
        let mut all = Histogram::default();
        assert_eq!(all.quantile_ns(0.5), 0);
        times.add_to(&mut all);
        assert_eq!((all.count(), all.sum_ns), (100, 99 * 100 + 5_000));
        assert_eq!((all.quantile_ns(0.5), all.quantile_ns(0.99), all.quantile_ns(1.0)), (128, 128, 8192));
    }
}
