//! The scheduler in virtual time: the real order, routing, preemption and slices, without threads.
//!
//! It owns virtual workers, a calendar of events and what made-up tasks want to do. It drives the same
//! `Board` as the workers do and repeats only their loop, so a load that this machine cannot hold can be
//! tried, and the same seed gives the same run. Switches cost nothing here.
//!
//! ```
//! # use agent_os_kernel::scheduler::sim::{Pattern, SimTask, Simulation};
//! let mut sim = Simulation::new(2);
//! sim.tasks = (0..4).map(|i| SimTask::new("default", i, Pattern::Spinner)).collect();
//! let used = sim.run(1_000_000_000);
//! // Four spinners on two workers: half a second each.
//! assert!(used.iter().all(|u| u.cpu_ns.abs_diff(500_000_000) < 10_000_000));
//! ```

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::board::Board;
use super::queue::{Entry, Reason};
use super::share::Claim;
use super::task::CHARGE_EVERY_NS;
use super::{Nice, PolicyKind, Settings, SliceRule, TaskSpec};
use crate::process::Pid;

/// What a simulated task does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Never blocks.
    Spinner,
    /// Computes for `burst_ns`, then sleeps for `sleep_ns`, and so on; both in nanoseconds.
    Periodic {
        /// CPU time between two sleeps; 0 counts as 1.
        burst_ns: u64,
        /// From the end of a burst to the wake.
        sleep_ns: u64,
    },
    /// The same with exponentially distributed times of these means.
    Random {
        /// Mean CPU time between two sleeps.
        burst_ns: u64,
        /// Mean time from the end of a burst to the wake.
        sleep_ns: u64,
    },
}

/// A simulated task. Its id is its index in [`Simulation::tasks`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimTask {
    /// Its group's name.
    pub group: String,
    /// Its tree in the group; the root is the task whose index this is.
    pub tree: u64,
    /// Its nice value.
    pub nice: Nice,
    /// What it does.
    pub pattern: Pattern,
}

impl SimTask {
    /// One of nice 0.
    #[must_use]
    pub fn new(group: &str, tree: u64, pattern: Pattern) -> Self {
        Self { group: group.to_owned(), tree, nice: Nice::default(), pattern }
    }
}

/// What to simulate.
#[derive(Clone, Debug)]
pub struct Simulation {
    /// Workers, order and slices, as the real scheduler takes them.
    pub settings: Settings,
    /// The length of a fuel interval in nanoseconds; 0 counts as 1.
    pub interval_ns: u64,
    /// Of the random patterns.
    pub seed: u64,
    /// Weights of groups that are not normal.
    pub group_weights: Vec<(String, u32)>,
    /// The tasks, all runnable at time 0.
    pub tasks: Vec<SimTask>,
}

/// What a simulated task got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SimUse {
    /// CPU time in nanoseconds.
    pub cpu_ns: u64,
    /// Slices, shortened ones included.
    pub slices: u64,
    /// From each wake to the poll that followed, in nanoseconds.
    pub wake_ns: Vec<u64>,
    /// The longest time that it was runnable without running, in nanoseconds; also if it still is.
    pub longest_wait_ns: u64,
}

impl Simulation {
    /// Default settings, intervals of 50 µs, no tasks yet.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        let settings = Settings { workers, policy: PolicyKind::default(), slice: SliceRule::default() };
        Self { settings, interval_ns: 50_000, seed: 0, group_weights: Vec::new(), tasks: Vec::new() }
    }

    /// Runs from time 0 for `duration_ns` nanoseconds. One result for each task.
    #[must_use]
    pub fn run(&self, duration_ns: u64) -> Vec<SimUse> {
        let mut world = World::new(self);
        world.start();
        while let Some(Reverse((at, _, event))) = world.calendar.pop() {
            if at > duration_ns {
                break;
            }
            world.now = at;
            match event {
                Event::PollEnds(worker) => world.poll_ends(worker),
                Event::Wakes(task) => world.wakes(task),
            }
        }
        world.now = duration_ns;
        world.finish()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    PollEnds(usize),
    Wakes(usize),
}

struct World {
    board: Board<usize>,
    interval_ns: u64,
    now: u64,
    /// By time; what was planned first comes first.
    calendar: BinaryHeap<Reverse<(u64, u64, Event)>>,
    planned: u64,
    workers: Vec<Worker>,
    tasks: Vec<Task>,
}

#[derive(Default)]
struct Worker {
    /// `None`: it sleeps.
    current: Option<Slice>,
    looked_ns: u64,
}

struct Slice {
    entry: Entry<usize>,
    slice_ns: u64,
    used_ns: u64,
    unpaid_ns: u64,
    /// The length of the poll that is going on.
    poll_ns: u64,
}

struct Task {
    claim: Arc<Claim>,
    pattern: Pattern,
    rng: StdRng,
    /// Left of this burst.
    burst_ns: u64,
    home: usize,
    waits_since: Option<u64>,
    used: SimUse,
}

impl World {
    fn new(sim: &Simulation) -> Self {
        let workers = sim.settings.workers.max(1);
        let board: Board<usize> = Board::new(workers, sim.settings.policy, sim.settings.slice);
        for (name, weight) in &sim.group_weights {
            board.shares.set_group_weight(name, *weight);
        }
        let tasks = sim.tasks.iter().enumerate().map(|(i, task)| {
            let (group, pid) = (Arc::from(task.group.as_str()), Pid(i as u64));
            let spec = TaskSpec { pid, group, tree: task.tree, nice: task.nice };
            Task {
                claim: board.shares.join(&spec),
                pattern: task.pattern,
                rng: StdRng::seed_from_u64(sim.seed.wrapping_add(i as u64)),
                burst_ns: 0,
                home: 0,
                waits_since: None,
                used: SimUse::default(),
            }
        });
        Self {
            interval_ns: sim.interval_ns.max(1),
            now: 0,
            calendar: BinaryHeap::new(),
            planned: 0,
            workers: (0..workers).map(|_| Worker::default()).collect(),
            tasks: tasks.collect(),
            board,
        }
    }

    fn start(&mut self) {
        for i in 0..self.tasks.len() {
            self.tasks[i].burst_ns = self.tasks[i].next_burst();
            self.tasks[i].home = self.board.emptiest();
            self.becomes_runnable(i, Reason::New);
        }
    }

    fn wakes(&mut self, i: usize) {
        self.tasks[i].burst_ns = self.tasks[i].next_burst();
        self.becomes_runnable(i, Reason::Woken);
    }

    fn becomes_runnable(&mut self, i: usize, reason: Reason) {
        let task = &mut self.tasks[i];
        task.waits_since = Some(self.now);
        let claim = Arc::clone(&task.claim);
        let entry = Entry { item: i, claim, ticket: 0, since_ns: self.now, reason };
        let workers = &self.workers;
        let to = self.board.place(entry, task.home, |w| workers[w].current.is_none());
        let n = workers.len();
        if let Some(sleeper) = (0..n).map(|k| (to + k) % n).find(|w| workers[*w].current.is_none()) {
            self.next(sleeper);
        }
    }

    /// A worker looks for a task.
    fn next(&mut self, me: usize) {
        let worker = &mut self.workers[me];
        let Some(entry) = self.board.next(me, self.now, &mut worker.looked_ns) else {
            worker.current = None;
            self.board.seats[me].set_busy(false);
            return;
        };
        self.board.seats[me].runs(&entry.claim);
        self.board.seats[me].set_busy(true);
        let task = &mut self.tasks[entry.item];
        task.home = me;
        task.used.slices += 1;
        let waited = self.now - task.waits_since.take().unwrap_or(self.now);
        task.used.longest_wait_ns = task.used.longest_wait_ns.max(waited);
        if entry.reason == Reason::Woken {
            task.used.wake_ns.push(waited);
        }
        let slice_ns = self.board.slice_for(me);
        worker.current = Some(Slice { entry, slice_ns, used_ns: 0, unpaid_ns: 0, poll_ns: 0 });
        self.poll(me);
    }

    fn poll(&mut self, me: usize) {
        if let Some(slice) = &mut self.workers[me].current {
            slice.poll_ns = self.tasks[slice.entry.item].burst_ns.min(self.interval_ns);
            let at = self.now + slice.poll_ns;
            self.plan(at, Event::PollEnds(me));
        }
    }

    fn poll_ends(&mut self, me: usize) {
        let Some(mut slice) = self.workers[me].current.take() else {
            return;
        };
        let (ns, seat) = (slice.poll_ns, &self.board.seats[me]);
        let task = &mut self.tasks[slice.entry.item];
        task.used.cpu_ns += ns;
        task.burst_ns -= ns;
        slice.used_ns += ns;
        slice.unpaid_ns += ns;
        let blocks = task.burst_ns == 0;
        let more = slice.used_ns < slice.slice_ns && !seat.must_give_way();
        if blocks || !more || slice.unpaid_ns >= CHARGE_EVERY_NS {
            slice.entry.claim.charge(std::mem::take(&mut slice.unpaid_ns));
            seat.runs(&slice.entry.claim);
        }
        if blocks {
            let at = self.now.saturating_add(task.next_sleep());
            self.plan(at, Event::Wakes(slice.entry.item));
            self.next(me);
        } else if more {
            self.workers[me].current = Some(slice);
            self.poll(me);
        } else {
            task.waits_since = Some(self.now);
            let entry = Entry { since_ns: self.now, reason: Reason::SliceUsed, ..slice.entry };
            self.board.put_back(entry, me);
            self.next(me);
        }
    }

    fn plan(&mut self, at: u64, event: Event) {
        self.planned += 1;
        self.calendar.push(Reverse((at, self.planned, event)));
    }

    fn finish(self) -> Vec<SimUse> {
        let now = self.now;
        let used = self.tasks.into_iter().map(|mut task| {
            let waited = now - task.waits_since.unwrap_or(now);
            task.used.longest_wait_ns = task.used.longest_wait_ns.max(waited);
            task.used
        });
        used.collect()
    }
}

impl Task {
    fn next_burst(&mut self) -> u64 {
        match self.pattern {
            Pattern::Spinner => u64::MAX,
            Pattern::Periodic { burst_ns, .. } => burst_ns.max(1),
            Pattern::Random { burst_ns, .. } => self.exponential(burst_ns).max(1),
        }
    }

    fn next_sleep(&mut self) -> u64 {
        match self.pattern {
            Pattern::Spinner => 0,
            Pattern::Periodic { sleep_ns, .. } => sleep_ns,
            Pattern::Random { sleep_ns, .. } => self.exponential(sleep_ns),
        }
    }

    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a random time, rounded to nanoseconds"
    )]
    fn exponential(&mut self, mean_ns: u64) -> u64 {
        let u: f64 = self.rng.random();
        (-(1.0 - u).ln() * mean_ns as f64) as u64
    }
}
