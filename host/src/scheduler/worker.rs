//! A worker thread's loop: take a task, give it a slice, put it back, sleep when there is none.
//!
//! It owns the choice between its own queue and the others'. It must not know what a task does.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Shared;
use super::queue::Reason;
use super::state::Taken;
use super::task::Task;

/// A busy worker looks at the other queues first in one turn of so many. Without it the tasks of a
/// longer queue would get less than their share for as long as every worker has something to do; with
/// it they mix, at the price of a few loads.
const MIX_EVERY: u32 = 16;

/// Runs worker `me` until the scheduler closes.
pub(super) fn run(shared: &Shared, me: usize) {
    let _tokio = shared.runtime.enter();
    let stats = &shared.stats[me];
    let mut turn: u32 = 0;
    while !shared.is_closing() {
        turn = turn.wrapping_add(1);
        let Some(task) = next(shared, me, turn) else {
            stats.busy.store(false, Ordering::Relaxed);
            shared.idle.sleep(me, || shared.is_closing() || shared.has_queued());
            continue;
        };
        if task.state.take() == Taken::Skip {
            continue;
        }
        stats.busy.store(true, Ordering::Relaxed);
        task.home.store(me, Ordering::Relaxed);
        if task.run_slice(stats) {
            // No wake-up: this worker looks into the queues again before it sleeps (step 6 of mod.rs).
            shared.queues[me].push(task, Reason::SliceUsed);
        }
    }
}

fn next(shared: &Shared, me: usize, turn: u32) -> Option<Arc<Task>> {
    let own = &shared.queues[me];
    if turn.is_multiple_of(MIX_EVERY) {
        let (busiest, len) = shared.busiest(me);
        if len >= own.len()
            && let Some(task) = shared.queues[busiest].pop()
        {
            return Some(task);
        }
    }
    own.pop().or_else(|| steal(shared, me))
}

/// Takes one task from the busiest queue; it stays with this worker from then on.
fn steal(shared: &Shared, me: usize) -> Option<Arc<Task>> {
    loop {
        let (busiest, len) = shared.busiest(me);
        if len == 0 {
            return None;
        }
        // It may have been emptied since: look for another then.
        if let Some(task) = shared.queues[busiest].pop() {
            return Some(task);
        }
    }
}
