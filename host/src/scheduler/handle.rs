//! The outside face of a task: look at it, stop it, continue it, kill it, wait for its end.

use std::fmt;
use std::sync::Arc;

use super::state::TaskState;
use super::task::{End, Task};
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
