//! The outside face of a task: look at it, stop it, continue it, kill it, wait for its end.

use std::fmt;
use std::sync::Arc;

use super::loan::Loan;
use super::state::TaskState;
use super::task::{End, Task};
use super::weights::Nice;
use crate::process::Pid;

/// A task of the scheduler. Clones mean the same task; dropping them changes nothing.
#[derive(Clone)]
pub struct TaskHandle(pub(super) Arc<Task>);

impl TaskHandle {
    /// Whose task it is.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.0.pid
    }

    /// What it is doing right now. A stopped task stays `Running` until its current interval ends.
    #[must_use]
    pub fn state(&self) -> TaskState {
        self.0.state.get()
    }

    /// Slices that workers gave it, shortened ones included.
    #[must_use]
    pub fn slices(&self) -> u64 {
        self.0.slices()
    }

    /// Nanoseconds that its polls took, to the end of its last interval.
    #[must_use]
    pub fn cpu_ns(&self) -> u64 {
        self.0.cpu_ns()
    }

    /// Nanoseconds that it was charged for what it used off the CPU.
    #[must_use]
    pub fn charged_ns(&self) -> u64 {
        self.0.charged_ns()
    }

    /// Makes it, its tree and its group pay for `ns` nanoseconds of something else than polls, as if it had
    /// run for so long: LLM tokens, time on a gateway's slot. They wait accordingly while others want to run,
    /// but the debt of each stays below a hundred target latencies (a second): what is more is only counted.
    pub fn charge(&self, ns: u64) {
        self.0.charge(ns);
    }

    /// Its own nice value.
    #[must_use]
    pub fn nice(&self) -> Nice {
        self.0.claim.nice()
    }

    /// Changes its weight from the next charge on; of its tree's root task, the tree's weight as well.
    pub fn set_nice(&self, nice: Nice) {
        self.0.claim.set_nice(nice);
    }

    /// The nice value that it runs with: the lowest of its own and those of all that lend to it.
    #[must_use]
    pub fn effective_nice(&self) -> Nice {
        self.0.effective_nice()
    }

    /// Who lends to it, of several the one whose turn comes first; `None` without a loan.
    #[must_use]
    pub fn inherits_from(&self) -> Option<Pid> {
        self.0.inherits_from().map(|lender| lender.pid)
    }

    /// Lends this task's claim to `holder`, for whose progress it waits, until the loan is dropped. The
    /// holder runs with the better of its own claim and this one's group, tree, weight and place, and what
    /// it passes on by loans of its own it passes on with this claim. While it runs under this claim, this
    /// task's account pays; the time still counts as the holder's.
    pub fn lend_to(&self, holder: &Self) -> Loan {
        Loan::new(Arc::clone(&self.0), Arc::clone(&holder.0))
    }

    /// Keeps it from being polled from the end of its current interval on. Wakes are remembered.
    pub fn stop(&self) {
        self.0.stop();
    }

    /// Lets it run again; nothing if it is not stopped.
    pub fn cont(&self) {
        self.0.cont();
    }

    /// Drops its future as soon as no worker polls it, and returns when it is dropped.
    ///
    /// # Cancel safety
    /// Once polled, the kill stands: a dropped `kill` only stops waiting for it.
    pub async fn kill(&self) {
        self.0.kill();
        self.done().await;
    }

    /// Returns when its future has returned or was dropped, with how it ended.
    ///
    /// # Cancel safety
    /// Waiting changes nothing.
    pub async fn done(&self) -> End {
        self.0.wait().await
    }
}

impl fmt::Debug for TaskHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskHandle")
            .field("pid", &self.pid())
            .field("state", &self.state())
            .field("slices", &self.slices())
            .finish_non_exhaustive()
    }
}
