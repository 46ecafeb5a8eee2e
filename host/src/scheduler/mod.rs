//! The run queue: which process runs next, and for how long.
//!
//! It owns the worker threads, their queues, and the life of every task's future. It knows no Wasm: a
//! task is any future that returns `Pending` after at most one fuel interval. Tokio does I/O and
//! timers; it never chooses who runs.
//!
//! # Protocol
//! 1. A task is a future, one state byte (`state.rs`) and one waker, made once. Exactly one queue holds
//!    it while it is Queued, exactly one worker polls it while it is Running; otherwise nobody does.
//! 2. A worker takes a task from its own queue, else from the busiest other one, and polls it. One poll
//!    is at most one interval; it is charged the time that it took.
//! 3. After `Pending` the state tells why. Woken during the poll: the interval is used up, the task is
//!    runnable, and is polled again until its slice of `intervals_per_slice` is over; then it goes back
//!    to the queue of its worker. Not woken: it is blocked and in no queue.
//! 4. A wake, from any thread at any time: of a blocked task, queues it at the worker that had it last;
//!    of a polled task, marks it for step 3; of any other, changes nothing, for it will be polled anyway.
//!    Each case is one atomic step, so a wake lands before the end of the poll or after it, never between.
//! 5. After pushing, the pusher wakes a sleeping worker if there is one, the task's own if that sleeps.
//!    A worker that finds nothing raises its flag, looks into all queues once more, and only then parks
//!    (`idle.rs` says why one of the two sees the other).
//! 6. A worker that puts its own task back wakes nobody: it looks into the queues itself before it
//!    sleeps. If it takes another task then, that one's push woke a sleeper or found none.
//! 7. STOP: a worker that takes a stopped task, or whose poll ends in one that was woken, lets go of it
//!    (Held); a wake of a blocked one makes it Held too. `cont` queues a Held task, nothing else.
//! 8. KILL of a task that nobody polls makes it Done and drops the future at once, on the killer's
//!    thread; its entry in a queue is void and is skipped when it comes up. Of a polled one, the worker
//!    drops it when the poll ends. Those who wait are told after the drop.
//! 9. A panic in a poll or in a drop is caught: the task is over, its worker goes on.
//! 10. Shutdown: no task is added any more; each worker leaves at the end of its interval and is joined;
//!     then every task that is left is killed, now that nobody polls.

mod handle;
mod idle;
mod queue;
mod state;
mod stats;
mod task;
#[cfg(test)]
mod tests;
mod worker;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

pub use handle::TaskHandle;
pub use queue::{Entry, Policy, Reason, RoundRobin};
pub use state::TaskState;
pub use stats::Load;
pub use task::End;

use crate::process::Pid;
use idle::Idle;
use queue::Queue;
use stats::WorkerStats;
use task::Task;

/// What the scheduler runs: a future whose every poll takes at most one fuel interval.
pub trait Runnable: Future<Output = ()> + Send + 'static {}

impl<F: Future<Output = ()> + Send + 'static> Runnable for F {}

/// How the scheduler is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Worker threads; 0 counts as 1.
    pub workers: usize,
    /// Polls in a row that a runnable task gets before the next one's turn; 0 counts as 1.
    pub intervals_per_slice: u32,
}

/// The run queues and their worker threads. Dropping it shuts it down.
pub struct Scheduler {
    shared: Arc<Shared>,
    workers: Mutex<Vec<JoinHandle<()>>>,
}

impl Scheduler {
    /// Starts the workers, threads named `aok-worker-N`. Each polls inside `runtime`, so tasks can use
    /// Tokio's timers and I/O. `policy` makes one queue per worker.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn start(
        settings: Settings,
        policy: fn() -> Box<dyn Policy>,
        runtime: tokio::runtime::Handle,
    ) -> std::io::Result<Self> {
        let n = settings.workers.max(1);
        let shared = Arc::new(Shared {
            intervals_per_slice: settings.intervals_per_slice.max(1),
            runtime,
            queues: (0..n).map(|_| Queue::new(policy())).collect(),
            stats: (0..n).map(|_| WorkerStats::default()).collect(),
            idle: Idle::new(n),
            closing: AtomicBool::new(false),
            tasks: Mutex::default(),
        });
        // On an error the drop of `scheduler` ends the workers that did start.
        let scheduler = Self { shared, workers: Mutex::default() };
        for me in 0..n {
            let shared = Arc::clone(&scheduler.shared);
            let thread =
                thread::Builder::new().name(format!("aok-worker-{me}")).spawn(move || worker::run(&shared, me))?;
            scheduler.workers.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        }
        Ok(scheduler)
    }

    /// Adds a task, runnable at once, on the worker with the least to do. After a shutdown the task is
    /// dropped unpolled and the handle says so.
    pub fn add(&self, pid: Pid, run: impl Runnable) -> TaskHandle {
        let shared = &self.shared;
        let home = shared.emptiest();
        let mut tasks = shared.lock_tasks();
        let key = tasks.next_key;
        tasks.next_key += 1;
        let task = Task::new(pid, key, home, Box::pin(run), Arc::clone(shared));
        // Under the lock: a shutdown either sees this task in the table or is seen here.
        let closing = shared.is_closing();
        if !closing {
            tasks.live.insert(key, Arc::clone(&task));
        }
        drop(tasks);
        if closing {
            task.kill();
        } else {
            shared.push(Arc::clone(&task), Reason::New);
        }
        TaskHandle(task)
    }

    /// The load right now. Looks at every task, so it is meant for metrics.
    #[must_use]
    pub fn load(&self) -> Load {
        let mut load = Load::default();
        for task in self.shared.lock_tasks().live.values() {
            match task.state.get() {
                TaskState::Runnable => load.runnable += 1,
                TaskState::Running => load.running += 1,
                TaskState::Blocked => load.blocked += 1,
                TaskState::Stopped => load.stopped += 1,
                TaskState::Done => {}
            }
        }
        for worker in &self.shared.stats {
            load.slices += worker.slices();
            load.busy_ns.push(worker.busy_ns());
        }
        load
    }

    /// Drops all tasks' futures and joins the workers, which takes as long as the longest interval that
    /// is being polled. Blocks; a second call does nothing. Called from a task, it leaves that task's
    /// worker to end by itself.
    pub fn shutdown(&self) {
        let live = self.shared.lock_tasks();
        self.shared.closing.store(true, Ordering::SeqCst);
        drop(live);
        self.shared.idle.wake_all();
        let workers = std::mem::take(&mut *self.workers.lock().unwrap_or_else(PoisonError::into_inner));
        for worker in workers {
            if worker.thread().id() != thread::current().id() && worker.join().is_err() {
                tracing::error!("a scheduler worker panicked; its tasks are dropped");
            }
        }
        let live: Vec<_> = self.shared.lock_tasks().live.values().cloned().collect();
        for task in live {
            task.kill();
        }
        // Void entries would keep their tasks, and these the queues, alive for ever.
        for queue in &self.shared.queues {
            while queue.pop().is_some() {}
        }
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scheduler").field("queues", &self.shared.queues).finish_non_exhaustive()
    }
}

/// What workers, wakers and handles share.
struct Shared {
    intervals_per_slice: u32,
    runtime: tokio::runtime::Handle,
    /// One per worker, as are `stats`.
    queues: Box<[Queue]>,
    stats: Box<[WorkerStats]>,
    idle: Idle,
    closing: AtomicBool,
    tasks: Mutex<Tasks>,
}

/// Every task that is not over, so that a shutdown reaches the blocked ones too.
#[derive(Default)]
struct Tasks {
    live: HashMap<u64, Arc<Task>>,
    /// Keys are never reused; PIDs could be, by a careless caller.
    next_key: u64,
}

impl Shared {
    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    /// Queues a task at its home and sees to it that somebody is awake to run it.
    fn push(&self, task: Arc<Task>, reason: Reason) {
        let home = task.home.load(Ordering::Relaxed);
        self.queues[home].push(task, reason);
        self.idle.wake_one(home);
    }

    fn has_queued(&self) -> bool {
        self.queues.iter().any(|q| q.len() > 0)
    }

    /// The longest queue besides `me`'s, and its length; `me` and 0 where there is none.
    fn busiest(&self, me: usize) -> (usize, usize) {
        let others = self.queues.iter().enumerate().filter(|(i, _)| *i != me);
        others.map(|(i, q)| (i, q.len())).max_by_key(|(_, len)| *len).unwrap_or((me, 0))
    }

    /// The worker with the fewest tasks, the one that it polls included.
    fn emptiest(&self) -> usize {
        let load = |i: &usize| self.queues[*i].len() + usize::from(self.stats[*i].busy.load(Ordering::Relaxed));
        (0..self.queues.len()).min_by_key(load).unwrap_or(0)
    }

    fn forget(&self, key: u64) {
        self.lock_tasks().live.remove(&key);
    }

    fn lock_tasks(&self) -> std::sync::MutexGuard<'_, Tasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
