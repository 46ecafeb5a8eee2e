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
    /// Only the thread that is measured may call this, and all that follows.
    pub(super) fn new(wall_ns: u64) -> Self {
        Self { wall_ns, cpu_ns: thread_cpu_ns() }
    }

    /// Starts anew after a sleep.
    pub(super) fn restart(&mut self, wall_ns: u64) {
        *self = Self::new(wall_ns);
    }

    /// Nanoseconds since the last look in which this thread did not run, if it is time for a look.
    pub(super) fn lost_ns(&mut self, wall_ns: u64) -> u64 {
        let passed = wall_ns.saturating_sub(self.wall_ns);
        if passed < CHECK_EVERY_NS {
            return 0;
        }
        let before = self.cpu_ns;
        self.restart(wall_ns);
        let lost = passed.saturating_sub(self.cpu_ns.saturating_sub(before));
        if lost > NOISE_NS { lost } else { 0 }
    }
}

fn thread_cpu_ns() -> u64 {
    let t = clock_gettime(ClockId::ThreadCPUTime);
    // Never negative: it counts from the thread's start.
    u64::try_from(t.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(t.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_sleep_is_lost_and_work_is_not() {
        let start = Instant::now();
        let now = || u64::try_from(start.elapsed().as_nanos()).unwrap();
        let mut meter = Meter::new(now());
        // The sleep is how this thread loses its core; nothing waits for it.
        std::thread::sleep(Duration::from_millis(5));
        let lost = meter.lost_ns(now());
        assert!(lost > 4_000_000, "{lost}");
        assert_eq!(meter.lost_ns(now()), 0, "too early for another look");
        let since = now();
        while thread_cpu_ns() < meter.cpu_ns + 2_000_000 {}
        let (end, cpu) = (now(), 2_000_000);
        // All but the work, whatever this machine did besides.
        assert!(meter.lost_ns(end) <= (end - since).saturating_sub(cpu) + NOISE_NS);
    }
}
