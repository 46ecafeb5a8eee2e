//! Who has had how much: the virtual runtimes of groups, trees and tasks, one of each for all workers.
//!
//! It owns the three-level account and the table of groups. It must not know queues, threads or clocks.
//!
//! A virtual runtime is the time used divided by the weight, in nanoseconds of the normal weight. At each
//! level the one with the least runs next: the group first, in it the tree, in it the task. Since they are
//! common to all workers, shares hold over the whole machine wherever a task happens to be queued.
//!
//! Each parent has a *floor*: the virtual runtime of the child that was picked last, as far as it ever
//! rose. It says where the competition is, so
//! - who is new starts there, with neither credit nor debt;
//! - who was away, or cannot use its share (one task cannot use two cores), is lifted to no further
//!   behind it than a bounded credit.
//!
//! Virtual runtimes and floors only grow. A group that leaves with a debt is remembered until the others
//! have caught up, so that coming back is no fresh start.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::queue::Reason;
use super::weights::{NORMAL, Nice, virtual_ns};
use crate::process::Pid;

/// Floors follow in steps of this many virtual nanoseconds: less than any credit, and enough to keep two
/// workers with tiny slices from writing the same cache line all the time.
const FLOOR_STEP: u64 = 20_000;

/// A worker owes a group no more than this.
const OWED_AT_MOST_NS: u64 = 20_000;

/// No slot in that worker's queue.
pub(super) const NO_SLOT: u32 = u32::MAX;

/// What a task is for the scheduler: whose share it uses, and how much of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskSpec {
    /// Whose task it is.
    pub pid: Pid,
    /// The group (user, tenant) that pays first; made when its first task comes.
    pub group: Arc<str>,
    /// The agent tree in the group: its root process's id. The tree weighs what that root's nice says.
    pub tree: u64,
    /// The task's weight against the others of its tree.
    pub nice: Nice,
}

impl TaskSpec {
    /// A task of normal weight that is its own tree in the group `default`.
    #[must_use]
    pub fn new(pid: Pid) -> Self {
        Self { pid, group: Arc::from("default"), tree: pid.0, nice: Nice::default() }
    }
}

/// How far from the floor one may be, in virtual nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Behind it after a sleep.
    pub(super) woken: u64,
    /// Behind it after a slice.
    pub(super) running: u64,
    /// Ahead of it by what was charged for use off the CPU.
    pub(super) charged: u64,
}

/// All shares.
pub(super) struct Shares {
    bounds: Bounds,
    workers: usize,
    /// Of the groups.
    floor: AtomicU64,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    groups: HashMap<Arc<str>, Member>,
    /// Weights that were set, for groups that are not there yet too.
    weights: HashMap<Arc<str>, u32>,
    /// An upper bound of the groups that have no task and are kept for their debt.
    ghosts: usize,
}

struct Member {
    group: Arc<Group>,
    /// With the number of tasks.
    trees: HashMap<u64, (Arc<Tree>, usize)>,
}

/// A group's account, on cache lines of its own, for all workers write to it.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Group {
    vruntime: AtomicU64,
    pub(super) cpu_ns: AtomicU64,
    pub(super) charged_ns: AtomicU64,
    weight: AtomicU32,
    /// Of its trees.
    floor: AtomicU64,
    pub(super) id: u64,
    pub(super) name: Arc<str>,
    /// Where each worker's queue keeps it; guarded by that queue's lock.
    pub(super) slots: Box<[AtomicU32]>,
}

/// An agent tree's account.
#[derive(Debug)]
pub(super) struct Tree {
    vruntime: AtomicU64,
    weight: AtomicU32,
    /// Of its tasks.
    floor: AtomicU64,
    id: u64,
    root: u64,
    pub(super) slots: Box<[AtomicU32]>,
}

/// A task's account and those that it belongs to: the right to run, and who pays for it.
#[derive(Debug)]
pub(super) struct Claim {
    vruntime: AtomicU64,
    weight: AtomicU32,
    nice: AtomicI8,
    is_root: bool,
    pub(super) tree: Arc<Tree>,
    pub(super) group: Arc<Group>,
}

/// A claim's place in the order, at one moment. Two places compare at the first level where they differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) group: u64,
    pub(super) group_vruntime: u64,
    pub(super) tree: u64,
    pub(super) tree_vruntime: u64,
    pub(super) vruntime: u64,
}

impl Place {
    /// How much more than `other` it has had, in virtual nanoseconds: it runs first if this is negative.
    pub(super) fn lead_over(&self, other: &Self) -> i64 {
        let (mine, others) = if self.group != other.group {
            (self.group_vruntime, other.group_vruntime)
        } else if self.tree != other.tree {
            (self.tree_vruntime, other.tree_vruntime)
        } else {
            (self.vruntime, other.vruntime)
        };
        mine.wrapping_sub(others).cast_signed()
    }
}

impl Shares {
    pub(super) fn new(workers: usize, bounds: Bounds) -> Self {
        Self { bounds, workers, floor: AtomicU64::new(0), table: Mutex::default() }
    }

    /// Makes a task's claim, with its group and tree if they are new.
    pub(super) fn join(&self, spec: &TaskSpec) -> Arc<Claim> {
        let mut table = self.lock();
        let member = table.member(&spec.group, self);
        let (tree, tasks) = member.trees.entry(spec.tree).or_insert_with(|| {
            let floor = member.group.floor.load(Ordering::Relaxed);
            (Arc::new(Tree::new(spec.tree, floor, self.workers)), 0)
        });
        *tasks += 1;
        let claim = Claim {
            vruntime: AtomicU64::new(tree.floor.load(Ordering::Relaxed)),
            weight: AtomicU32::new(NORMAL),
            nice: AtomicI8::new(0),
            is_root: spec.pid.0 == spec.tree,
            tree: Arc::clone(tree),
            group: Arc::clone(&member.group),
        };
        claim.set_nice(spec.nice);
        Arc::new(claim)
    }

    /// Takes a task's claim out, once, and with it the tree and the group whose last one it was.
    pub(super) fn leave(&self, claim: &Claim) {
        let mut table = self.lock();
        let Some(member) = table.groups.get_mut(&claim.group.name) else {
            return;
        };
        if let Some((_, tasks)) = member.trees.get_mut(&claim.tree.root) {
            *tasks -= 1;
            if *tasks == 0 {
                member.trees.remove(&claim.tree.root);
            }
        }
        if member.trees.is_empty() {
            if self.has_debt(&member.group) {
                table.ghosts += 1;
            } else {
                table.groups.remove(&claim.group.name);
            }
        }
    }

    /// Sets a group's weight, now and whenever it comes; 0 counts as 1.
    pub(super) fn set_group_weight(&self, name: &str, weight: u32) {
        let weight = weight.max(1);
        let mut table = self.lock();
        table.weights.insert(Arc::from(name), weight);
        if let Some(member) = table.groups.get(name) {
            member.group.weight.store(weight, Ordering::Relaxed);
        }
    }

    /// Every group that has tasks, with their number.
    pub(super) fn groups(&self) -> Vec<(Arc<Group>, usize)> {
        let table = self.lock();
        let members = table.groups.values().filter(|m| !m.trees.is_empty());
        members.map(|m| (Arc::clone(&m.group), m.trees.values().map(|(_, tasks)| tasks).sum())).collect()
    }

    /// Lifts a claim that is about to be queued to its bounded credit, at all three levels.
    pub(super) fn admit(&self, claim: &Claim, reason: Reason) {
        let credit = match reason {
            Reason::SliceUsed => self.bounds.running,
            Reason::New | Reason::Woken => self.bounds.woken,
        };
        let lift = |vruntime: &AtomicU64, floor: &AtomicU64| {
            raise(vruntime, floor.load(Ordering::Relaxed).saturating_sub(credit), 0);
        };
        lift(&claim.group.vruntime, &self.floor);
        lift(&claim.tree.vruntime, &claim.group.floor);
        lift(&claim.vruntime, &claim.tree.floor);
    }

    /// Makes all three levels pay for `ns` nanoseconds of something else than the CPU, each no further than
    /// to the bound: a model call of a minute must not exile an agent and its whole group for as long.
    pub(super) fn charge(&self, claim: &Claim, ns: u64) {
        let pay = |vruntime: &AtomicU64, weight: &AtomicU32, floor: &AtomicU64| {
            let bound = floor.load(Ordering::Relaxed).saturating_add(self.bounds.charged);
            let room = bound.saturating_sub(vruntime.load(Ordering::Relaxed));
            vruntime.fetch_add(virtual_ns(ns, weight.load(Ordering::Relaxed)).min(room), Ordering::Relaxed);
        };
        pay(&claim.vruntime, &claim.weight, &claim.tree.floor);
        pay(&claim.tree.vruntime, &claim.tree.weight, &claim.group.floor);
        pay(&claim.group.vruntime, &claim.group.weight, &self.floor);
    }

    /// Notes that a claim was picked as the next one.
    pub(super) fn picked(&self, claim: &Claim) {
        raise(&self.floor, claim.group.vruntime(), FLOOR_STEP);
        raise(&claim.group.floor, claim.tree.vruntime(), FLOOR_STEP);
        raise(&claim.tree.floor, claim.vruntime(), FLOOR_STEP);
    }

    fn has_debt(&self, group: &Group) -> bool {
        group.vruntime() > self.floor.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// The group of that name, made if there is none. Drops the ghosts whose debt is paid, once they may be
    /// half of all.
    fn member(&mut self, name: &Arc<str>, shares: &Shares) -> &mut Member {
        if self.ghosts > 0 && self.ghosts >= self.groups.len() / 2 {
            self.groups.retain(|other, m| other == name || !m.trees.is_empty() || shares.has_debt(&m.group));
            let others = self.groups.iter().filter(|(other, m)| *other != name && m.trees.is_empty());
            self.ghosts = others.count();
        }
        let weight = self.weights.get(name).copied().unwrap_or(NORMAL);
        self.groups.entry(Arc::clone(name)).or_insert_with(|| {
            let floor = shares.floor.load(Ordering::Relaxed);
            Member { group: Arc::new(Group::new(name, weight, floor, shares.workers)), trees: HashMap::new() }
        })
    }
}

impl Group {
    fn new(name: &Arc<str>, weight: u32, floor: u64, workers: usize) -> Self {
        Self {
            vruntime: AtomicU64::new(floor),
            cpu_ns: AtomicU64::new(0),
            charged_ns: AtomicU64::new(0),
            weight: AtomicU32::new(weight),
            floor: AtomicU64::new(0),
            id: next_id(),
            name: Arc::clone(name),
            slots: no_slots(workers),
        }
    }

    pub(super) fn vruntime(&self) -> u64 {
        self.vruntime.load(Ordering::Relaxed)
    }

    pub(super) fn weight(&self) -> u32 {
        self.weight.load(Ordering::Relaxed)
    }

    fn charge(&self, ns: u64) {
        pay(&self.vruntime, &self.weight, ns);
    }
}

/// What a worker still owes to the group whose tasks it ran last. All workers write to the same few groups:
/// with slices of a microsecond they would do little else.
#[derive(Default)]
pub(super) struct Purse {
    /// The group whose share pays, and the one whose use is counted: not the same one on a loan.
    groups: Option<(Arc<Group>, Arc<Group>)>,
    owed_ns: u64,
}

impl Purse {
    /// A claim pays for `ns` nanoseconds that a task of `user`'s group used; the groups may do so a little later.
    pub(super) fn pay(&mut self, claim: &Claim, user: &Claim, ns: u64) {
        claim.charge_below_group(ns);
        let same = |(payer, used): &(Arc<Group>, Arc<Group>)| {
            Arc::ptr_eq(payer, &claim.group) && Arc::ptr_eq(used, &user.group)
        };
        if !self.groups.as_ref().is_some_and(same) {
            self.settle();
            self.groups = Some((Arc::clone(&claim.group), Arc::clone(&user.group)));
        }
        self.owed_ns += ns;
        if self.owed_ns >= OWED_AT_MOST_NS {
            self.settle();
        }
    }

    /// Pays what is owed.
    pub(super) fn settle(&mut self) {
        if let Some((payer, user)) = &self.groups
            && self.owed_ns > 0
        {
            payer.charge(self.owed_ns);
            user.cpu_ns.fetch_add(self.owed_ns, Ordering::Relaxed);
            self.owed_ns = 0;
        }
    }
}

impl Tree {
    fn new(root: u64, floor: u64, workers: usize) -> Self {
        Self {
            vruntime: AtomicU64::new(floor),
            weight: AtomicU32::new(NORMAL),
            floor: AtomicU64::new(0),
            id: next_id(),
            root,
            slots: no_slots(workers),
        }
    }

    pub(super) fn vruntime(&self) -> u64 {
        self.vruntime.load(Ordering::Relaxed)
    }
}

impl Claim {
    pub(super) fn vruntime(&self) -> u64 {
        self.vruntime.load(Ordering::Relaxed)
    }

    /// Makes all three levels pay for `ns` nanoseconds.
    pub(super) fn charge(&self, ns: u64) {
        self.charge_below_group(ns);
        self.group.charge(ns);
    }

    /// Makes the task and its tree pay; the group's part is the caller's to charge.
    pub(super) fn charge_below_group(&self, ns: u64) {
        pay(&self.vruntime, &self.weight, ns);
        pay(&self.tree.vruntime, &self.tree.weight, ns);
    }

    pub(super) fn place(&self) -> Place {
        Place {
            group: self.group.id,
            group_vruntime: self.group.vruntime(),
            tree: self.tree.id,
            tree_vruntime: self.tree.vruntime(),
            vruntime: self.vruntime(),
        }
    }

    pub(super) fn nice(&self) -> Nice {
        Nice::new(self.nice.load(Ordering::Relaxed).into()).unwrap_or_default()
    }

    /// From the next charge on. A root task's nice is its tree's too.
    pub(super) fn set_nice(&self, nice: Nice) {
        self.nice.store(nice.get(), Ordering::Relaxed);
        self.weight.store(nice.weight(), Ordering::Relaxed);
        if self.is_root {
            self.tree.weight.store(nice.weight(), Ordering::Relaxed);
        }
    }
}

fn pay(vruntime: &AtomicU64, weight: &AtomicU32, ns: u64) {
    vruntime.fetch_add(virtual_ns(ns, weight.load(Ordering::Relaxed)), Ordering::Relaxed);
}

/// Raises `to` to `at_least`, unless less than `step` is missing.
fn raise(to: &AtomicU64, at_least: u64, step: u64) {
    if to.load(Ordering::Relaxed).saturating_add(step) < at_least {
        to.fetch_max(at_least, Ordering::Relaxed);
    }
}

fn no_slots(workers: usize) -> Box<[AtomicU32]> {
    (0..workers).map(|_| AtomicU32::new(NO_SLOT)).collect()
}

/// Tells groups and trees apart in places; never reused, as names and PIDs might be.
fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares() -> Shares {
        Shares::new(1, Bounds { woken: 5_000_000, running: 40_000_000, charged: 1_000_000_000 })
    }

    fn spec(pid: u64, group: &str, tree: u64, nice: i64) -> TaskSpec {
        TaskSpec { pid: Pid(pid), group: Arc::from(group), tree, nice: Nice::new(nice).unwrap() }
    }

    #[test]
    fn all_levels_pay_by_their_weights() {
        let shares = shares();
        shares.set_group_weight("a", 2048);
        let root = shares.join(&spec(1, "a", 1, 0));
        let child = shares.join(&spec(2, "a", 1, 19));
        child.charge(1_000_000);
        let (r, c) = (root.place(), child.place());
        assert_eq!((c.group_vruntime, c.tree_vruntime), (500_000, 1_000_000));
        assert_eq!((c.vruntime, r.vruntime), (virtual_ns(1_000_000, Nice::MAX.weight()), 0));
        assert!(c.lead_over(&r) > 0 && r.lead_over(&c) < 0 && r.lead_over(&r) == 0);
    }

    #[test]
    fn a_tree_weighs_what_its_root_does() {
        let shares = shares();
        let root = shares.join(&spec(1, "a", 1, 0));
        let child = shares.join(&spec(2, "a", 1, 0));
        child.set_nice(Nice::MIN);
        assert_eq!(root.tree.weight.load(Ordering::Relaxed), NORMAL);
        root.set_nice(Nice::MAX);
        assert_eq!(root.tree.weight.load(Ordering::Relaxed), Nice::MAX.weight());
    }

    #[test]
    fn a_new_group_starts_where_the_others_are() {
        let shares = shares();
        let old = shares.join(&spec(1, "old", 1, 0));
        old.charge(1_000_000_000);
        shares.picked(&old);
        let new = shares.join(&spec(2, "new", 2, 0));
        assert_eq!(new.place().lead_over(&old.place()), 0);
        // So does a new tree, and a new task in a tree.
        let (sibling, child) = (shares.join(&spec(3, "old", 3, 0)), shares.join(&spec(4, "old", 1, 0)));
        assert_eq!(sibling.place().lead_over(&old.place()), 0);
        assert_eq!(child.place().lead_over(&old.place()), 0);
    }

    #[test]
    fn coming_back_is_no_fresh_start_until_the_debt_is_paid() {
        let shares = shares();
        let (stays, leaves) = (shares.join(&spec(1, "stays", 1, 0)), shares.join(&spec(2, "leaves", 2, 0)));
        shares.picked(&stays);
        leaves.charge(500_000_000);
        shares.leave(&leaves);
        assert_eq!(shares.groups().len(), 1, "it is listed no more");
        let back = shares.join(&spec(3, "leaves", 3, 0));
        assert_eq!(back.group.vruntime(), 500_000_000);
        shares.leave(&back);
        stays.charge(600_000_000);
        shares.picked(&stays);
        let other = shares.join(&spec(4, "other", 4, 0));
        assert_eq!(shares.lock().groups.len(), 2, "the debt is paid and forgotten");
        let back = shares.join(&spec(5, "leaves", 5, 0));
        assert_eq!(back.group.vruntime(), 600_000_000);
        for claim in [&back, &other, &stays] {
            shares.leave(claim);
        }
        assert!(shares.groups().is_empty());
    }

    #[test]
    fn a_charge_from_elsewhere_counts_up_to_its_bound() {
        let shares = shares();
        let claim = shares.join(&spec(1, "a", 1, 0));
        shares.charge(&claim, 400_000_000);
        assert_eq!((claim.vruntime(), claim.group.vruntime()), (400_000_000, 400_000_000));
        shares.charge(&claim, u64::MAX);
        let place = claim.place();
        assert_eq!([place.vruntime, place.tree_vruntime, place.group_vruntime], [1_000_000_000; 3]);
    }

    #[test]
    fn a_sleeper_is_lifted_to_its_credit_and_a_debtor_is_not() {
        let shares = shares();
        let (busy, sleeper) = (shares.join(&spec(1, "a", 1, 0)), shares.join(&spec(2, "a", 1, 0)));
        busy.charge(100_000_000);
        shares.picked(&busy);
        shares.admit(&sleeper, Reason::SliceUsed);
        assert_eq!(sleeper.vruntime(), 60_000_000);
        shares.admit(&sleeper, Reason::Woken);
        assert_eq!(sleeper.vruntime(), 95_000_000);
        sleeper.charge(50_000_000);
        shares.admit(&sleeper, Reason::Woken);
        assert_eq!(sleeper.vruntime(), 145_000_000);
    }
}
