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
        let to = self.board.put(entry, task.home, |w| workers[w].current.is_none());
        let n = workers.len();
        if let Some(sleeper) = (0..n).map(|k| (to + k) % n).find(|w| workers[*w].current.is_none()) {
            self.next(sleeper, None);
        }
    }

    /// A worker looks for a task, after it has put `back` what it ran.
    fn next(&mut self, me: usize, back: Option<Entry<usize>>) {
        let worker = &mut self.workers[me];
        let Some(entry) = self.board.next(me, self.now, &mut worker.looked_ns, back) else {
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
        worker.current = Some(Slice { entry, used_ns: 0, unpaid_ns: 0, poll_ns: 0 });
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
        let more = self.board.goes_on(me, slice.used_ns);
        if blocks || !more || slice.unpaid_ns >= CHARGE_EVERY_NS {
            slice.entry.claim.charge(std::mem::take(&mut slice.unpaid_ns));
            seat.runs(&slice.entry.claim);
        }
        if blocks {
            let at = self.now.saturating_add(task.next_sleep());
            self.plan(at, Event::Wakes(slice.entry.item));
            self.next(me, None);
        } else if more {
            self.workers[me].current = Some(slice);
            self.poll(me);
        } else {
            task.waits_since = Some(self.now);
            let entry = Entry { since_ns: self.now, reason: Reason::SliceUsed, ..slice.entry };
            self.next(me, Some(entry));
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

    fn exponential(&mut self, mean_ns: u64) -> u64 {
        let u: f64 = self.rng.random();
        (-(1.0 - u).ln() * mean_ns as f64) as u64
    }
}

#[cfg(test)]
mod tests {
    //! The invariants of the order, exactly repeatable: no clock decides anything here.

    use super::*;

    const MS: u64 = 1_000_000;
    const SECOND: u64 = 1_000 * MS;

    fn jain(used: &[SimUse]) -> f64 {
        let (sum, squares) = used.iter().fold((0.0, 0.0), |(s, q), u| {
            let x = u.cpu_ns as f64;
            (s + x, q + x * x)
        });
        sum * sum / (used.len() as f64 * squares)
    }

    fn cpu(used: &[SimUse]) -> u64 {
        used.iter().map(|u| u.cpu_ns).sum()
    }

    /// Asserts that `got` is within `percent` of `fair`.
    fn near(got: u64, fair: f64, percent: f64) {
        let error = 100.0 * (got as f64 / fair - 1.0);
        assert!(error.abs() <= percent, "{got} is {error:+.2} % off {fair}");
    }

    fn spinners(n: u64, group: &str, from: u64) -> Vec<SimTask> {
        (from..from + n).map(|i| SimTask::new(group, i, Pattern::Spinner)).collect()
    }

    #[test]
    fn equal_tasks_get_equal_shares_on_any_number_of_workers() {
        for workers in [1, 2, 3, 8] {
            for policy in [PolicyKind::Fair, PolicyKind::RoundRobin] {
                let mut sim = Simulation::new(workers);
                sim.settings.policy = policy;
                sim.tasks = spinners(64, "all", 0);
                let used = sim.run(3 * SECOND);
                let index = jain(&used);
                assert!(index >= 0.999, "{policy:?} on {workers}: {index}");
                assert!(cpu(&used) >= workers as u64 * 3 * SECOND - 8 * MS, "nobody idles");
            }
        }
    }

    #[test]
    fn groups_share_by_weight() {
        let mut sim = Simulation::new(2);
        for (i, weight) in [1024, 2048, 4096].into_iter().enumerate() {
            let name = format!("g{i}");
            sim.tasks.extend(spinners(4, &name, 4 * i as u64));
            sim.group_weights.push((name, weight));
        }
        let used = sim.run(10 * SECOND);
        for (i, weight) in [1.0, 2.0, 4.0].into_iter().enumerate() {
            near(cpu(&used[4 * i..4 * i + 4]), 20.0 * SECOND as f64 * weight / 7.0, 1.0);
        }
    }

    #[test]
    fn trees_and_tasks_share_by_nice() {
        // Trees, each weighing what its root does.
        let mut sim = Simulation::new(2);
        sim.tasks = spinners(12, "all", 0);
        for (i, task) in sim.tasks.iter_mut().enumerate() {
            task.nice = Nice::new([0, -3, -6][i / 4]).unwrap();
        }
        // Tasks of one tree.
        let mut family = sim.clone();
        family.tasks.iter_mut().for_each(|t| t.tree = 1_000);
        for sim in [sim, family] {
            let used = sim.run(10 * SECOND);
            let weights: Vec<f64> = sim.tasks.iter().map(|t| t.nice.weight().into()).collect();
            let unit = cpu(&used) as f64 / weights.iter().sum::<f64>();
            for (u, w) in used.iter().zip(weights) {
                near(u.cpu_ns, unit * w, 2.0);
            }
        }
    }

    #[test]
    fn a_flood_in_one_group_costs_the_others_nothing() {
        for workers in [1, 2, 4] {
            let mut sim = Simulation::new(workers);
            sim.tasks = (0..9).map(|i| SimTask::new(&format!("t{i}"), i, Pattern::Spinner)).collect();
            sim.tasks.extend(spinners(100, "flood", 9));
            let used = sim.run(5 * SECOND);
            for lone in &used[..9] {
                near(lone.cpu_ns, workers as f64 * 0.5 * SECOND as f64, 1.0);
            }
            assert!(jain(&used[9..]) >= 0.99);
        }
    }

    /// What a group has is shared over all workers too, however its trees and tasks lie in their queues.
    #[test]
    fn a_group_among_others_is_fair_inside() {
        for workers in [2, 4] {
            let mut sim = Simulation::new(workers);
            // Nothing is in step: bursts and sleeps of all lengths.
            let noise = Pattern::Random { burst_ns: 300_000, sleep_ns: 2 * MS };
            sim.tasks = (0..10).map(|i| SimTask::new(&format!("t{i}"), i, noise)).collect();
            sim.tasks.extend((10..13).map(|i| SimTask::new(&format!("t{i}"), i, Pattern::Spinner)));
            sim.tasks.extend(spinners(51, "trees", 13));
            sim.tasks.extend((64..115).map(|_| SimTask::new("tree", 64, Pattern::Spinner)));
            let used = sim.run(20 * SECOND);
            for many in [&used[13..64], &used[64..115]] {
                let index = jain(many);
                assert!(index >= 0.9995, "{index} on {workers}");
            }
        }
    }

    #[test]
    fn a_tree_of_many_gets_no_more_than_a_tree_of_one() {
        let mut sim = Simulation::new(2);
        sim.tasks = spinners(3, "all", 0);
        sim.tasks.extend((3..40).map(|_| SimTask::new("all", 3, Pattern::Spinner)));
        let used = sim.run(10 * SECOND);
        for lone in &used[..3] {
            near(lone.cpu_ns, 5.0 * SECOND as f64, 1.0);
        }
    }

    /// The fair share of a task that cannot use its own is what one worker can give; the rest is others'.
    #[test]
    fn a_lone_heavy_task_gets_a_whole_worker_and_the_others_the_rest() {
        let mut sim = Simulation::new(2);
        sim.group_weights = vec![("heavy".to_owned(), 10 * 1024)];
        sim.tasks = spinners(1, "heavy", 0);
        sim.tasks.extend(spinners(10, "light", 1));
        let used = sim.run(10 * SECOND);
        near(used[0].cpu_ns, 10.0 * SECOND as f64, 1.0);
        assert!(jain(&used[1..]) >= 0.999);
        near(cpu(&used[1..]), 10.0 * SECOND as f64, 1.0);
    }

    #[test]
    fn a_wake_among_spinners_runs_after_an_interval() {
        for workers in [1, 2, 4] {
            let mut sim = Simulation::new(workers);
            sim.tasks = spinners(100, "all", 0);
            sim.tasks.push(SimTask::new("all", 100, Pattern::Random { burst_ns: 40_000, sleep_ns: 20 * MS }));
            let mut wakes = sim.run(10 * SECOND).remove(100).wake_ns;
            wakes.sort_unstable();
            assert!(wakes.len() > 300);
            let (p99, max) = (wakes[wakes.len() * 99 / 100], wakes[wakes.len() - 1]);
            assert!(p99 <= 2 * sim.interval_ns, "{p99}");
            assert!(max <= 20 * MS, "{max}");
        }
    }

    #[test]
    fn sleep_earns_a_bounded_credit() {
        let mut sim = Simulation::new(1);
        sim.tasks = spinners(1, "all", 0);
        sim.tasks.push(SimTask::new("all", 1, Pattern::Periodic { burst_ns: SECOND, sleep_ns: 3 * SECOND }));
        let used = sim.run(30 * SECOND);
        // Half a target latency of credit, a slice, and intervals in which they end.
        assert!(used[0].longest_wait_ns <= 11 * MS, "{}", used[0].longest_wait_ns);
        // Whoever sleeps does not get more than who does not.
        assert!(used[0].cpu_ns > used[1].cpu_ns);
    }

    #[test]
    fn the_same_seed_gives_the_same_run() {
        let mut sim = Simulation::new(3);
        sim.tasks = spinners(5, "a", 0);
        sim.tasks.extend((5..20).map(|i| SimTask::new("b", i, Pattern::Random { burst_ns: MS, sleep_ns: 4 * MS })));
        let first = sim.run(SECOND);
        assert_eq!(first, sim.run(SECOND));
        sim.seed = 1;
        assert_ne!(first, sim.run(SECOND));
    }

    /// Nobody waits longer than it takes the others to have as much as its last slice and its credit.
    #[test]
    fn nobody_starves_under_random_loads() {
        let seed = super::super::tests::seed();
        for round in 0..10 {
            let mut rng = StdRng::seed_from_u64(seed.wrapping_add(round));
            let mut sim = Simulation::new(rng.random_range(1..=4));
            sim.seed = rng.random();
            let groups = rng.random_range(1..=4);
            sim.group_weights = (0..groups).map(|g| (format!("g{g}"), rng.random_range(256..4096))).collect();
            for i in 0..rng.random_range(2..60) {
                let times = (rng.random_range(10_000..10 * MS), rng.random_range(0..20 * MS));
                let pattern = match rng.random_range(0..3) {
                    0 => Pattern::Spinner,
                    1 => Pattern::Periodic { burst_ns: times.0, sleep_ns: times.1 },
                    _ => Pattern::Random { burst_ns: times.0, sleep_ns: times.1 },
                };
                let group = format!("g{}", rng.random_range(0..groups));
                let tree = if rng.random_bool(0.5) { i } else { 1_000 + rng.random_range(0..3) };
                let nice = Nice::new(rng.random_range(-8..=8)).unwrap();
                sim.tasks.push(SimTask { nice, ..SimTask::new(&group, tree, pattern) });
            }
            let used = sim.run(3 * SECOND);
            for (i, (task, used)) in sim.tasks.iter().zip(&used).enumerate() {
                let bound = (20.0 * MS as f64 / least_share(&sim, task)) as u64;
                assert!(used.longest_wait_ns <= bound, "round {round}, task {i}: {used:?} over {bound}");
            }
        }
    }

    /// A task's share of one worker if all are always runnable.
    fn least_share(sim: &Simulation, task: &SimTask) -> f64 {
        let tree_weight = |g: &str, tree: u64| {
            let root = sim.tasks.get(usize::try_from(tree).unwrap()).filter(|r| r.group == g && r.tree == tree);
            root.map_or(1024.0, |r| r.nice.weight().into())
        };
        let in_group: Vec<_> = sim.tasks.iter().filter(|t| t.group == task.group).collect();
        let in_tree = in_group.iter().filter(|t| t.tree == task.tree);
        let trees: std::collections::HashSet<u64> = in_group.iter().map(|t| t.tree).collect();
        let of_tree = f64::from(task.nice.weight()) / in_tree.map(|t| f64::from(t.nice.weight())).sum::<f64>();
        let of_group =
            tree_weight(&task.group, task.tree) / trees.iter().map(|tree| tree_weight(&task.group, *tree)).sum::<f64>();
        let weight =
            |name: &str| sim.group_weights.iter().find(|(n, _)| n == name).map_or(1024.0, |(_, w)| (*w).into());
        let of_all = weight(&task.group) / sim.group_weights.iter().map(|(_, w)| f64::from(*w)).sum::<f64>();
        of_tree * of_group * of_all
    }
}
