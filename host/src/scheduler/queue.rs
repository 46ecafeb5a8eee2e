//! Run queues: what an order of runnable tasks is, and one worker's queue of them.
//!
//! It owns the trait of policies and the lock around one. It must not know threads, sleeping or polling.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use super::fair::Fair;
use super::share::{Claim, Place, Shares};

/// A runnable task in a queue, `T` being the task: the simulator has its own.
pub(super) struct Entry<T> {
    pub(super) item: T,
    /// Under whose claim it runs: its own, or one that it was lent.
    pub(super) claim: Arc<Claim>,
    /// Of all entries of a task only the one with its newest ticket counts.
    pub(super) ticket: u64,
    /// When it became runnable, in nanoseconds of the scheduler's clock.
    pub(super) since_ns: u64,
    pub(super) reason: Reason,
}

/// Why a task enters a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// It was just added.
    New,
    /// It used its slice up, or gave way, and can go on.
    SliceUsed,
    /// It was blocked or stopped and can go on.
    Woken,
}

/// Which order of runnable tasks the scheduler keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PolicyKind {
    /// Weighted fair by virtual runtime: group, then tree, then task; wakes preempt.
    #[default]
    Fair,
    /// First come, first served, without weights and preemption; for comparison.
    RoundRobin,
}

impl PolicyKind {
    /// By its name in a configuration file, `fair` or `round-robin`.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "fair" => Some(Self::Fair),
            "round-robin" => Some(Self::RoundRobin),
            _ => None,
        }
    }

    pub(super) fn order<T: Send + 'static>(self, worker: usize, shares: &Arc<Shares>) -> Box<dyn Policy<T>> {
        match self {
            Self::Fair => Box::new(Fair::new(worker, Arc::clone(shares))),
            Self::RoundRobin => Box::new(RoundRobin(VecDeque::new())),
        }
    }
}

/// Among which tasks of a queue one comes first.
#[derive(Clone, Copy, Debug)]
pub(super) enum Near<'a> {
    /// All.
    Any,
    /// Those of this one's group.
    Group(&'a Claim),
    /// Those of this one's tree.
    Tree(&'a Claim),
}

/// An order of runnable tasks. Each worker has its own, called under a lock: it must not block.
pub(super) trait Policy<T>: Send {
    /// Takes a task in.
    fn enqueue(&mut self, entry: Entry<T>);
    /// Gives the task that runs next, of all `None` only when it holds none. Other workers call it too.
    fn next(&mut self, near: Near<'_>) -> Option<Entry<T>>;
    /// What `next` would give: its place, to be compared with other queues' of the same kind, and claim.
    fn head(&mut self, near: Near<'_>) -> Option<(Place, Arc<Claim>)>;
    /// How many entries it holds, void ones included.
    fn len(&self) -> usize;
}

/// First come, first served, whatever the reason.
struct RoundRobin<T>(VecDeque<Entry<T>>);

impl<T: Send> Policy<T> for RoundRobin<T> {
    fn enqueue(&mut self, entry: Entry<T>) {
        self.0.push_back(entry);
    }

    fn next(&mut self, near: Near<'_>) -> Option<Entry<T>> {
        // Groups and trees are nothing here.
        if matches!(near, Near::Any) { self.0.pop_front() } else { None }
    }

    /// Waiting time is the place: who came first is first.
    fn head(&mut self, near: Near<'_>) -> Option<(Place, Arc<Claim>)> {
        let first = self.0.front().filter(|_| matches!(near, Near::Any))?;
        Some((Place { vruntime: first.since_ns, ..Place::default() }, Arc::clone(&first.claim)))
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

/// One worker's queue. Aligned so that two workers' queues share no cache line.
#[repr(align(128))]
pub(super) struct Queue<T> {
    policy: Mutex<Box<dyn Policy<T>>>,
    /// The policy's length as of its last change, to be read without the lock.
    len: AtomicUsize,
}

impl<T> Queue<T> {
    pub(super) fn new(policy: Box<dyn Policy<T>>) -> Self {
        Self { policy: Mutex::new(policy), len: AtomicUsize::new(0) }
    }

    pub(super) fn push(&self, entry: Entry<T>) {
        let mut policy = self.lock();
        policy.enqueue(entry);
        self.len.store(policy.len(), Ordering::Release);
    }

    /// Takes one in and gives the head.
    pub(super) fn swap(&self, entry: Entry<T>) -> Option<Entry<T>> {
        let mut policy = self.lock();
        policy.enqueue(entry);
        let head = policy.next(Near::Any);
        self.len.store(policy.len(), Ordering::Release);
        head
    }

    pub(super) fn pop(&self) -> Option<Entry<T>> {
        self.pop_if(Near::Any, |_| true)
    }

    /// Takes the head if `wanted` says so.
    pub(super) fn pop_if(&self, near: Near<'_>, wanted: impl FnOnce(&mut dyn Policy<T>) -> bool) -> Option<Entry<T>> {
        // An entry pushed after this look is not lost: its push wakes a sleeper, and whoever falls
        // asleep looks once more (idle.rs).
        if self.len() == 0 {
            return None;
        }
        let mut policy = self.lock();
        if !wanted(policy.as_mut()) {
            return None;
        }
        let entry = policy.next(near);
        self.len.store(policy.len(), Ordering::Release);
        entry
    }

    /// The head's place and claim; `None` too if another worker has the queue right now.
    pub(super) fn try_head(&self, near: Near<'_>) -> Option<(Place, Arc<Claim>)> {
        if self.len() == 0 {
            return None;
        }
        match self.policy.try_lock() {
            Ok(mut policy) => policy.head(near),
            Err(TryLockError::Poisoned(policy)) => policy.into_inner().head(near),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Drops the policy, whatever state a panic left it in, and goes on with another one.
    pub(super) fn reset(&self, fresh: Box<dyn Policy<T>>) {
        let mut policy = self.lock();
        self.len.store(fresh.len(), Ordering::Release);
        // Under the lock: the old one takes its marks off the shares before the new one sets any.
        drop(std::mem::replace(&mut *policy, fresh));
    }

    pub(super) fn len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, Box<dyn Policy<T>>> {
        self.policy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("len", &self.len()).finish_non_exhaustive()
    }
}
