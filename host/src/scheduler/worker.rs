//! A worker thread's loop: take a task, give it a slice, put it back, sleep when there is none.
//!
//! It owns what a worker does between two slices, and what happens when it dies there. It must not know
//! what a task does, nor who is next.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Shared;
use super::meter::{Meter, thread_cpu_ns};
use super::queue::{Entry, Reason};
use super::share::Purse;
use super::state::Taken;
use super::task::{Task, Turn, panic_message};

/// Runs worker `me` until the scheduler closes. A panic here is a bug of the scheduler: the others take
/// over what this worker had, all but the task that it polled, whose future may be half way through.
pub(super) fn run(shared: &Shared, me: usize) {
    let _tokio = shared.runtime.enter();
    // Out here, so that it is there after a panic.
    let mut current = None;
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| turns(shared, me, &mut current))) {
        shared.worker_died(me, current, &panic_message(panic.as_ref()));
    }
}

fn turns(shared: &Shared, me: usize, current: &mut Option<Entry<Arc<Task>>>) {
    let (board, stats, seat) = (&shared.board, &shared.stats[me], &shared.board.seats[me]);
    let mut now_ns = shared.now_ns();
    let mut looked_ns = now_ns;
    let (mut meter, mut purse) = (Meter::new(now_ns, thread_cpu_ns()), Purse::default());
    let mut back = None;
    while !shared.is_closing() {
        let Some(entry) = board.next(me, now_ns, &mut looked_ns, back.take()) else {
            seat.set_busy(false);
            purse.settle();
            shared.idle.sleep(me, || shared.is_closing() || board.has_queued());
            now_ns = shared.now_ns();
            meter = Meter::new(now_ns, thread_cpu_ns());
            continue;
        };
        let task = &entry.item;
        if !task.is_newest(&entry) {
            continue;
        }
        if !task.may_use(&entry.claim) {
            task.refile();
            continue;
        }
        // Before the state says Running: whoever sees that finds the worker.
        task.home.store(me, Ordering::Relaxed);
        if task.state.take() == Taken::Skip {
            continue;
        }
        // Step 7 of mod.rs.
        if shared.idle.anybody() && board.leaves_some(me) {
            shared.idle.wake_one(me);
        }
        seat.runs(&entry.claim);
        seat.set_busy(true);
        let waited = now_ns.saturating_sub(entry.since_ns);
        stats.waits.add(waited);
        if entry.reason == Reason::Woken {
            stats.wakes.add(waited);
        }
        let entry = current.insert(entry);
        #[cfg(test)]
        shared.crash_if_told(entry.item.pid);
        let (now_ns, meter, purse) = (&mut now_ns, &mut meter, &mut purse);
        let turn = Turn { shared, worker: me, claim: &entry.claim, now_ns, meter, purse };
        let goes_on = entry.item.run_slice(turn);
        back = current.take().filter(|_| goes_on).map(|entry| Task::renew(entry, *now_ns));
    }
    seat.set_busy(false);
}
