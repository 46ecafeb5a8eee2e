//! Loans: a task that waits for another one lends it its claim, so that nobody in between delays both.
//!
//! It owns the graph of who lent to whom. It must not know queues: it says which claim is the best.
//!
//! While a loan lives its holder is queued under the better of its own claim and those of all that lend
//! to it, over any number of steps: with the group, the tree, the weight and the place of the lender. The
//! slice is then paid from the claim that it ran under. That is sound, for the lender waits and does not
//! use its share itself: the holder gets what the lender gave up, never more, and a lender's group never
//! pays for more than its share. The time is still counted as the holder's use (`cpu_ns`).
//!
//! 1. Lending queues those that gain by it anew (`Task::refile`): the holder and whom that lends to.
//! 2. A worker that takes an entry under a claim that is no longer lent to its task queues it anew.
//! 3. The end of a loan makes a holder that runs give way after its interval, so that a lender that it
//!    wakes is not kept waiting by its own claim.
//!
//! Each task has one lock for its edges; a walk holds one at a time, and visits no task twice. Cycles, also
//! of one task, are walked like anything else.

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::share::Claim;
use super::state::TaskState;
use super::task::Task;
use super::weights::Nice;

/// A task's edges in the graph of loans.
#[derive(Default)]
pub(super) struct Loans {
    /// The length of `from`, to be read without the lock.
    lenders: AtomicUsize,
    edges: Mutex<Edges>,
}

#[derive(Default)]
struct Edges {
    from: Vec<Edge>,
    to: Vec<Edge>,
}

struct Edge {
    loan: u64,
    task: Weak<Task>,
}

impl Loans {
    pub(super) fn any(&self) -> bool {
        self.lenders.load(Ordering::SeqCst) > 0
    }

    fn lock(&self) -> MutexGuard<'_, Edges> {
        self.edges.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running loan of one task's claim to another; dropping it ends it.
#[must_use = "the loan ends when this is dropped"]
pub struct Loan {
    id: u64,
    lender: Arc<Task>,
    holder: Arc<Task>,
}

impl Loan {
    pub(super) fn new(lender: Arc<Task>, holder: Arc<Task>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        lender.loans.lock().to.push(Edge { loan: id, task: Arc::downgrade(&holder) });
        let mut edges = holder.loans.lock();
        edges.from.push(Edge { loan: id, task: Arc::downgrade(&lender) });
        holder.loans.lenders.store(edges.from.len(), Ordering::SeqCst);
        drop(edges);
        for task in holder.and_those_it_lends_to() {
            task.refile();
        }
        Self { id, lender, holder }
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.lender.loans.lock().to.retain(|e| e.loan != self.id);
        let mut edges = self.holder.loans.lock();
        edges.from.retain(|e| e.loan != self.id);
        self.holder.loans.lenders.store(edges.from.len(), Ordering::SeqCst);
        drop(edges);
        for task in self.holder.and_those_it_lends_to() {
            if task.state.get() == TaskState::Running {
                let worker = task.home.load(Ordering::Relaxed);
                task.shared.board.give_way(worker, &task.best_claim());
            }
        }
    }
}

impl fmt::Debug for Loan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loan").field("from", &self.lender.pid).field("to", &self.holder.pid).finish()
    }
}

impl Task {
    /// The claim that lets it run first.
    pub(super) fn best_claim(&self) -> Arc<Claim> {
        let own = Arc::clone(&self.claim);
        self.lenders().iter().map(|t| &t.claim).fold(own, better)
    }

    /// Whether it may still run under a claim that it was queued with.
    pub(super) fn may_use(&self, claim: &Arc<Claim>) -> bool {
        Arc::ptr_eq(claim, &self.claim) || self.lenders().iter().any(|t| Arc::ptr_eq(claim, &t.claim))
    }

    /// The least nice of itself and its lenders.
    pub(super) fn effective_nice(&self) -> Nice {
        self.lenders().iter().map(|t| t.claim.nice()).fold(self.claim.nice(), Nice::min)
    }

    /// The lender whose claim is the best right now.
    pub(super) fn inherits_from(&self) -> Option<Arc<Self>> {
        let ahead = |a: Arc<Self>, b: Arc<Self>| if is_better(&b.claim, &a.claim) { b } else { a };
        self.lenders().into_iter().reduce(ahead)
    }

    /// All that lend to it and are not over, over any number of steps.
    fn lenders(&self) -> Vec<Arc<Self>> {
        if !self.loans.any() {
            return Vec::new();
        }
        walk(self, |edges| &edges.from)
    }

    fn and_those_it_lends_to(self: &Arc<Self>) -> Vec<Arc<Self>> {
        let mut all = walk(self, |edges| &edges.to);
        all.push(Arc::clone(self));
        all
    }
}

/// The tasks that are reached from one over edges of one direction, without it and without those that are
/// over.
fn walk(from: &Task, direction: fn(&Edges) -> &Vec<Edge>) -> Vec<Arc<Task>> {
    let neighbours = |task: &Task| -> Vec<Arc<Task>> {
        direction(&task.loans.lock()).iter().filter_map(|e| e.task.upgrade()).collect()
    };
    let mut seen = HashSet::from([from.key]);
    let mut todo = neighbours(from);
    let mut found = Vec::new();
    while let Some(task) = todo.pop() {
        if task.state.get() != TaskState::Done && seen.insert(task.key) {
            todo.extend(neighbours(&task));
            found.push(task);
        }
    }
    found
}

fn better(a: Arc<Claim>, b: &Arc<Claim>) -> Arc<Claim> {
    if is_better(b, &a) { Arc::clone(b) } else { a }
}

fn is_better(a: &Claim, b: &Claim) -> bool {
    a.place().lead_over(&b.place()) < 0
}
