//! What a worker's time was: the task's, or the operating system's that ran something else meanwhile.
//!
//! It owns one thread's two clocks. It must not know tasks.
//!
//! Polls are timed by the wall clock, which is cheap. Where other programs want the cores too, a thread
//! may lose its core within a poll for many milliseconds, and a task that pays for those waits a hundred
//! times as long for its next turn if a hundred others run. So from time to time, and after any poll as
//! long as that, the thread's CPU clock is asked too, and what it did not count is taken off the bill.

use rustix::time::{ClockId, clock_gettime};

/// The CPU clock is a system call: it is asked no more often than this.
const CHECK_EVERY_NS: u64 = 200_000;

/// The clocks differ by this much without a reason.
const NOISE_NS: u64 = 10_000;

/// One worker thread's clocks, as of the last look at both.
pub(super) struct Meter {
    wall_ns: u64,
    cpu_ns: u64,
}

impl Meter {
    /// `cpu_ns` of the thread that is measured, which is the calling one in all of these.
    pub(super) fn new(wall_ns: u64, cpu_ns: u64) -> Self {
        Self { wall_ns, cpu_ns }
    }

    /// Nanoseconds since the last look in which this thread did not run, if it is time for a look.
    pub(super) fn lost_ns(&mut self, wall_ns: u64, read_cpu_ns: impl FnOnce() -> u64) -> u64 {
        let passed = wall_ns.saturating_sub(self.wall_ns);
        if passed < CHECK_EVERY_NS {
            return 0;
        }
        let before = std::mem::replace(self, Self::new(wall_ns, read_cpu_ns()));
        let lost = passed.saturating_sub(self.cpu_ns.saturating_sub(before.cpu_ns));
        if lost > NOISE_NS { lost } else { 0 }
    }
}

/// The calling thread's CPU time.
pub(super) fn thread_cpu_ns() -> u64 {
    let t = clock_gettime(ClockId::ThreadCPUTime);
    // Never negative: it counts from the thread's start.
    u64::try_from(t.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(t.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_cpu_clock_did_not_count_is_lost() {
        let mut meter = Meter::new(1_000_000, 50_000);
        let never = || unreachable!("too early for a look");
        assert_eq!(meter.lost_ns(1_199_999, never), 0);
        assert_eq!(meter.lost_ns(1_300_000, || 345_000), 0, "noise");
        assert_eq!(meter.lost_ns(1_400_000, never), 0);
        assert_eq!(meter.lost_ns(9_300_000, || 1_345_000), 7_000_000);
        assert_eq!(meter.lost_ns(9_600_000, || 1_700_000), 0, "no debt if it counted more");
    }

    #[test]
    fn the_cpu_clock_counts_work() {
        let before = thread_cpu_ns();
        while thread_cpu_ns() == before {}
        assert!(thread_cpu_ns() > before);
    }
}
