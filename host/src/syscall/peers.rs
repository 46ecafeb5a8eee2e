//! What a syscall asks of the kernel about other processes. The kernel implements it; the path knows no more of it.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use super::Caller;
use crate::abi::Error;
use crate::process::{Exit, Input, Pid, ProcessSpec, Signal};
use crate::storage::Change;

/// What an agent asks its child to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Child {
    /// The agent.
    pub agent: String,
    /// Its task.
    pub task: String,
    /// Bytes for it.
    pub input: Input,
    /// Its name for people; the agent's when `None`.
    pub name: Option<String>,
    /// −20…19; the spawner's when `None`.
    pub nice: Option<i8>,
    /// `provider/model`; the spawner's when `None`.
    pub model: Option<String>,
    /// Limits as JSON; the standard ones when `None`.
    pub quota: Option<String>,
}

/// A child that is ready: to be written down by its spawner, and then started.
pub struct Newborn {
    /// Its PID.
    pub pid: Pid,
    /// What makes it durable.
    pub changes: Vec<Change>,
    /// Puts it on the run queue.
    pub start: Box<dyn FnOnce() + Send>,
}

impl fmt::Debug for Newborn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Newborn").field("pid", &self.pid).finish_non_exhaustive()
    }
}

/// A process as another sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Peer {
    /// What it is.
    pub spec: ProcessSpec,
    /// How it ended, once it has.
    pub exit: Option<Exit>,
}

/// The other processes.
#[async_trait]
pub trait Peers: Send + Sync + fmt::Debug {
    /// A process.
    async fn find(&self, pid: Pid) -> Result<Option<Peer>, Error>;
    /// Makes a child of `parent` ready. Nothing of it is durable and nothing of it runs.
    async fn prepare(&self, parent: Caller, child: Child) -> Result<Newborn, Error>;
    /// Waits for the end of a process. One that runs nowhere is resumed.
    async fn ended(&self, pid: Pid) -> Result<Exit, Error>;
    /// Signals a process for another.
    async fn signal(&self, from: Pid, to: Pid, signal: Signal) -> Result<(), Error>;
    /// What a process is as another agent, from this journal position on.
    async fn become_agent(
        &self,
        caller: Caller,
        agent: String,
        task: String,
        input: Input,
    ) -> Result<ProcessSpec, Error>;
    /// Charges a process's share of the processor for what it used elsewhere, in nanoseconds.
    fn charge(&self, pid: Pid, ns: u64);
}

/// The peers of a kernel that is put together.
pub(crate) type Family = Arc<dyn Peers>;
