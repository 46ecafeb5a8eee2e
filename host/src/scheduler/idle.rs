//! Who sleeps: parks workers without work and wakes them without losing a wake-up.
//!
//! It owns the sleeping flags and the parked threads. It must not know tasks or queues.
//!
//! Sleeping and pushing race, so both sides first write, then fence, then look:
//! 1. a pusher puts its entry into a queue, fences, and looks for a sleeper;
//! 2. a worker raises its flag, fences, and looks into all queues.
//!
//! Whichever fence comes second sees the other's write: either the pusher finds the sleeper or the
//! sleeper finds the entry. The flag, not the park token, decides: a stray or a swallowed unpark
//! changes nothing.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::thread::{self, Thread};

#[derive(Debug)]
pub(super) struct Idle {
    /// An upper bound of the raised flags: spares a pusher the scan while everyone works.
    sleepers: AtomicUsize,
    seats: Box<[Seat]>,
}

#[derive(Debug, Default)]
struct Seat {
    /// Set by the worker before it first sleeps.
    thread: OnceLock<Thread>,
    /// Raised by the worker; whoever lowers it has woken the worker and counts it out.
    asleep: AtomicBool,
}

impl Idle {
    pub(super) fn new(workers: usize) -> Self {
        Self { sleepers: AtomicUsize::new(0), seats: (0..workers).map(|_| Seat::default()).collect() }
    }

    /// Parks the calling thread as worker `me` until it is woken, unless `has_work` says that there is
    /// something to do already.
    pub(super) fn sleep(&self, me: usize, has_work: impl Fn() -> bool) {
        let seat = &self.seats[me];
        seat.thread.get_or_init(thread::current);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        seat.asleep.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if has_work() {
            self.lower(seat);
            return;
        }
        while seat.asleep.load(Ordering::Acquire) {
            thread::park();
        }
    }

    /// Whether anybody may be asleep.
    pub(super) fn anybody(&self) -> bool {
        self.sleepers.load(Ordering::Relaxed) > 0
    }

    /// Whether a worker sleeps, or is about to.
    pub(super) fn is_asleep(&self, worker: usize) -> bool {
        self.anybody() && self.seats[worker].asleep.load(Ordering::Relaxed)
    }

    /// Wakes a sleeper, `preferred` if it is one. Call it after the entry is in its queue.
    pub(super) fn wake_one(&self, preferred: usize) {
        fence(Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) == 0 {
            return;
        }
        let n = self.seats.len();
        for i in 0..n {
            let seat = &self.seats[(preferred + i) % n];
            if self.lower(seat) {
                return;
            }
        }
    }

    /// Wakes all. Call it after what they shall see is written.
    pub(super) fn wake_all(&self) {
        fence(Ordering::SeqCst);
        for seat in &self.seats {
            self.lower(seat);
        }
    }

    /// Lowers the flag; false if it was not raised.
    fn lower(&self, seat: &Seat) -> bool {
        let was_asleep = seat.asleep.load(Ordering::SeqCst) && seat.asleep.swap(false, Ordering::SeqCst);
        if was_asleep {
            self.sleepers.fetch_sub(1, Ordering::SeqCst);
            if let Some(thread) = seat.thread.get() {
                thread.unpark();
            }
        }
        was_asleep
    }
}
