//! The run queue: which process runs next, and for how long.
//!
//! It owns the worker threads, their queues, and the life of every task's future. It knows no Wasm: a
//! task is any future that returns `Pending` after at most one fuel interval. Tokio does I/O and
//! timers; it never chooses who runs.
//!
//! Who is next is a matter of shares (`share.rs`): the group that has had the least, in it the agent tree,
//! in it the task, each by its weight, counted over all workers. `fair.rs` keeps one worker's tasks in that
//! order, `board.rs` chooses between workers, `loan.rs` lets a waiting task push the one that it waits for,
//! and `sim.rs` runs all of this in virtual time.
//!
//! # Protocol
//! 1. A task is a future, one state byte (`state.rs`) and one waker, made once. At most one worker polls
//!    it. While it is Queued, one entry with its newest ticket is in a queue or about to be pushed by who
//!    drew that ticket. Older entries are void and are skipped when they come up.
//! 2. A worker takes a task from its own queue; from another one, when its own is empty or the other's first
//!    task, of all or of the own head's group or tree, lags behind by a margin. It polls it. One poll is at most one interval; it is charged the time that
//!    it took, without what other programs took of it (`meter.rs`); a slice's first one the switch too.
//! 3. After `Pending` the state tells why. Woken during the poll: the interval is used up, the task is
//!    runnable, and is polled again until its slice is over or it must give way; then it goes back to the
//!    queue of its worker. Not woken: it is blocked and in no queue.
//! 4. A wake, from any thread at any time: of a blocked task, queues it (step 5); of a polled task, marks it
//!    for step 3; of any other, changes nothing, for it will be polled anyway. Each case is one atomic step,
//!    so a wake lands before the end of the poll or after it, never between.
//! 5. A woken task is queued at a sleeping worker, its own first; if none sleeps, where the running task is
//!    furthest ahead of it, which is told to give way at the end of its interval; if it is ahead of none,
//!    at its own. The flag is raised after the push and lowered before the worker looks into its queue, so
//!    either that look finds the entry or the next slice is short.
//! 6. After pushing, the pusher wakes a sleeping worker if there is one. A worker that finds nothing raises
//!    its flag, looks into all queues once more, and only then parks (`idle.rs` says why one of the two sees
//!    the other).
//! 7. A worker that puts its own task back wakes nobody for it, as it looks into the queues itself before it
//!    sleeps. But whenever it starts a slice, leaves tasks in its queue and somebody sleeps, it wakes one: a
//!    sleeper may have looked into this queue before the task came back, and into another after this worker
//!    had emptied that.
//! 8. STOP: a worker that takes a stopped task, or whose poll ends in one that was woken, lets go of it
//!    (Held); a wake of a blocked one makes it Held too. `cont` queues a Held task, nothing else.
//! 9. KILL of a task that nobody polls makes it Done and drops the future at once, on the killer's
//!    thread; its entry in a queue is void. Of a polled one, the worker drops it when the poll ends. Those
//!    who wait are told after the drop.
//! 10. A panic in a poll or in a drop is caught: the task is over, its worker goes on. A panic outside of
//!     them ends the worker: the task that it polled ends as Panicked, the worker is marked dead, its queue
//!     emptied, and every task that is Queued is given a new entry in a living worker's queue. A pusher looks
//!     after its push whether the worker is dead by then, and if so queues the task anew; either it sees the
//!     mark or the dying worker sees the task. With the last worker the scheduler closes, drops all tasks and
//!     says so.
//! 11. Shutdown: no task is added any more; each worker leaves at the end of its interval and is joined;
//!     then every task that is left is killed, now that nobody polls.

mod board;
mod fair;
mod handle;
mod idle;
mod loan;
mod meter;
mod queue;
mod share;
pub mod sim;
mod state;
mod stats;
mod task;
#[cfg(test)]
mod tests;
mod weights;
mod worker;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use tokio::sync::SetOnce;

pub use board::SliceRule;
pub use handle::TaskHandle;
pub use loan::Loan;
pub use queue::PolicyKind;
pub use share::TaskSpec;
pub use state::TaskState;
pub use stats::{GroupLoad, Histogram, Load};
pub use task::End;
pub use weights::Nice;

use board::Board;
use idle::Idle;
use queue::Reason;
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
    /// The order of runnable tasks.
    pub policy: PolicyKind,
    /// How long slices are.
    pub slice: SliceRule,
}

impl Settings {
    /// The default order and slices on so many workers.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        Self { workers, policy: PolicyKind::default(), slice: SliceRule::default() }
    }
}

/// The run queues and their worker threads. Dropping it shuts it down.
pub struct Scheduler {
    shared: Arc<Shared>,
    workers: Mutex<Vec<JoinHandle<()>>>,
}

impl Scheduler {
    /// Starts the workers, threads named `aok-worker-N`. Each polls inside `runtime`, so tasks can use
    /// Tokio's timers and I/O.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn start(settings: Settings, runtime: tokio::runtime::Handle) -> std::io::Result<Self> {
        let n = settings.workers.max(1);
        let shared = Arc::new(Shared {
            epoch: Instant::now(),
            runtime,
            board: Board::new(n, settings.policy, settings.slice),
            stats: (0..n).map(|_| WorkerStats::default()).collect(),
            idle: Idle::new(n),
            closing: AtomicBool::new(false),
            all_died: SetOnce::new(),
            tasks: Mutex::default(),
            #[cfg(test)]
            crash_at: std::sync::atomic::AtomicU64::new(u64::MAX),
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
    pub fn add(&self, spec: &TaskSpec, run: impl Runnable) -> TaskHandle {
        let shared = &self.shared;
        let (home, claim) = (shared.board.emptiest(), shared.board.shares.join(spec));
        let mut tasks = shared.lock_tasks();
        let key = tasks.next_key;
        tasks.next_key += 1;
        let task = Task::new(spec.pid, key, home, claim, Box::pin(run), Arc::clone(shared));
        // Under the lock: a shutdown either sees this task in the table or is seen here.
        let closing = shared.is_closing();
        if !closing {
            tasks.live.insert(key, Arc::clone(&task));
        }
        drop(tasks);
        if closing {
            task.kill();
        } else {
            shared.push(Arc::clone(&task), Reason::New, shared.now_ns());
        }
        TaskHandle(task)
    }

    /// Sets a group's weight against other groups, from the next charge on, also before it has a task and
    /// after it had its last one. 1024 is normal; 0 counts as 1.
    pub fn set_group_weight(&self, name: &str, weight: u32) {
        self.shared.board.shares.set_group_weight(name, weight);
    }

    /// Returns when the last worker has died of a bug: the scheduler has closed itself then and dropped
    /// all tasks. The one who waits should end the program, with an error.
    ///
    /// # Cancel safety
    /// Waiting changes nothing.
    pub async fn all_workers_died(&self) {
        self.shared.all_died.wait().await;
    }

    /// The load right now. Looks at every task, so it is meant for metrics.
    #[must_use]
    pub fn load(&self) -> Load {
        let board = &self.shared.board;
        let mut load = Load { workers_alive: board.workers_alive(), ..Load::default() };
        let mut active: HashMap<u64, usize> = HashMap::new();
        for task in self.shared.lock_tasks().live.values() {
            let state = task.state.get();
            match state {
                TaskState::Runnable => load.runnable += 1,
                TaskState::Running => load.running += 1,
                TaskState::Blocked => load.blocked += 1,
                TaskState::Stopped => load.stopped += 1,
                TaskState::Done => {}
            }
            if matches!(state, TaskState::Runnable | TaskState::Running) {
                *active.entry(task.claim.group.id).or_default() += 1;
            }
        }
        for (me, worker) in self.shared.stats.iter().enumerate() {
            load.slices += worker.slices();
            load.busy_ns.push(worker.busy_ns());
            load.slice_ns.push(board.slice_ns(me));
            worker.wakes.add_to(&mut load.wake_to_run);
            worker.waits.add_to(&mut load.queue_wait);
        }
        let groups = board.shares.groups().into_iter().map(|(group, tasks)| GroupLoad {
            name: Arc::clone(&group.name),
            weight: group.weight(),
            tasks,
            runnable: active.get(&group.id).copied().unwrap_or(0),
            cpu_ns: group.cpu_ns.load(Ordering::Relaxed),
            charged_ns: group.charged_ns.load(Ordering::Relaxed),
        });
        load.groups = groups.collect();
        load.groups.sort_by(|a, b| a.name.cmp(&b.name));
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
                tracing::error!("a scheduler worker panicked while it died; its tasks are dropped");
            }
        }
        self.shared.kill_all();
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scheduler").field("workers", &self.shared.stats.len()).finish_non_exhaustive()
    }
}

/// What workers, wakers and handles share.
struct Shared {
    /// The zero of the scheduler's clock.
    epoch: Instant,
    runtime: tokio::runtime::Handle,
    board: Board<Arc<Task>>,
    /// One per worker.
    stats: Box<[WorkerStats]>,
    idle: Idle,
    closing: AtomicBool,
    all_died: SetOnce<()>,
    tasks: Mutex<Tasks>,
    /// A worker dies when it is about to poll the task of this PID.
    #[cfg(test)]
    crash_at: std::sync::atomic::AtomicU64,
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

    /// Nanoseconds since the start.
    fn now_ns(&self) -> u64 {
        // 584 years fit.
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Queues a task, runnable since then, and sees to it that somebody is awake to run it.
    fn push(&self, task: Arc<Task>, reason: Reason, since_ns: u64) {
        let home = task.home.load(Ordering::Relaxed);
        let again = Arc::clone(&task);
        let to = self.board.put(task.entry(reason, since_ns), home, |w| self.idle.is_asleep(w));
        self.idle.wake_one(to);
        // Step 10. Without any worker the scheduler closes, which ends the task.
        if self.board.seats[to].is_dead() && self.board.workers_alive() > 0 {
            again.refile();
        }
    }

    /// Step 10: hands over what a dead worker had.
    fn worker_died(&self, me: usize, current: Option<queue::Entry<Arc<Task>>>, message: &str) {
        tracing::error!(worker = me, message, "a scheduler worker died; please report this");
        if let Some(entry) = current {
            entry.item.fail(format!("worker {me} died: {message}"));
        }
        self.board.bury_worker(me);
        if self.board.workers_alive() == 0 {
            tracing::error!("the last scheduler worker died: no task can run, all are dropped");
            let live = self.lock_tasks();
            self.closing.store(true, Ordering::SeqCst);
            drop(live);
            self.kill_all();
            // Set once: there is one last worker.
            self.all_died.set(()).ok();
            return;
        }
        let live: Vec<_> = self.lock_tasks().live.values().cloned().collect();
        for task in live {
            task.refile();
        }
    }

    /// Kills every task, when nobody polls and none is added any more.
    fn kill_all(&self) {
        let live: Vec<_> = self.lock_tasks().live.values().cloned().collect();
        for task in live {
            task.kill();
        }
        // Void entries would keep their tasks, and these the queues, alive for ever.
        self.board.clear();
    }

    fn forget(&self, task: &Task) {
        self.lock_tasks().live.remove(&task.key);
        self.board.shares.leave(&task.claim);
    }

    fn lock_tasks(&self) -> std::sync::MutexGuard<'_, Tasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    fn crash_if_told(&self, pid: crate::process::Pid) {
        assert!(self.crash_at.load(Ordering::SeqCst) != pid.0, "told to crash");
    }
}
