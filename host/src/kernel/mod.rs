//! The façade: builds every part in order, owns their lifetimes, and holds no policy.

mod approvals;
mod books;
mod builder;
mod client;
mod doctor;
mod dormant;
mod error;
mod grants;
mod hooks;
pub mod info;
mod life;
mod lock;
mod peers;
mod plugins;
mod proof;
mod query;
mod request;
mod signal;
mod tree;
mod undo;
mod urgency;

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use tokio::task::AbortHandle;

pub use builder::Builder;
pub use client::{ClientCall, Connection};
pub use doctor::Examination;
pub use error::Error;
pub use plugins::{report_bundled, report_file};
pub use signal::GRACE;

use crate::audit::Chain;
use crate::capability::HostGrant;
use crate::grants::Grants;
use crate::hook::Hook;
use crate::process::{Exit, Mount, Pid};
use crate::quota::{OnQuota, ResourceQuota};
use crate::registry::Registry;
use crate::scheduler::{Scheduler, TaskHandle};
use crate::storage::{Batch, Change};
use crate::syscall::{Caller, Peers, Services, now_ms};

/// What to spawn.
#[derive(Clone, Debug, Default)]
pub struct SpawnRequest {
    /// Agent name; `assistant` when empty.
    pub agent: String,
    /// The task.
    pub task: String,
    /// `provider/model`; the configuration's default when `None`.
    pub model: Option<String>,
    /// Name for people.
    pub name: Option<String>,
    /// Scheduling group.
    pub group: Option<String>,
    /// −20…19.
    pub nice: i8,
    /// Directories for its tools.
    pub mounts: Vec<Mount>,
    /// Hosts that its tools may reach.
    pub hosts: Vec<HostGrant>,
    /// Whether its starter says yes to all that a hook asks a person about.
    pub yes: bool,
    /// Limits.
    pub quota: ResourceQuota,
    /// What becomes of it when one is used up.
    pub on_quota: OnQuota,
}

/// A running kernel, or a reader of one's store. Cheap to clone; [`Kernel::shutdown`] ends it.
#[derive(Clone, Debug)]
pub struct Kernel(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// How it was opened.
    setup: Builder,
    services: Arc<Services>,
    registry: Registry,
    grants: Grants,
    /// What only the owner of the data directory has.
    owner: Option<Owner>,
    /// The kernel as its processes see it.
    household: OnceLock<Arc<dyn Peers>>,
    started: Instant,
}

#[derive(Debug)]
struct Owner {
    scheduler: Arc<Scheduler>,
    live: Mutex<HashMap<Pid, Live>>,
    /// Roots of the trees whose private copies are applied or discarded at this moment, and which must not begin to run. It is
    /// locked after `live`.
    settling: Mutex<HashSet<Pid>>,
    /// Processes that are about to be resumed.
    resuming: Mutex<HashSet<Pid>>,
    tree: tree::Tree,
    sleepers: dormant::Sleepers,
    books: books::Books,
    connections: client::Connections,
    /// Held from reading what a process is to writing what it is to be.
    respec: tokio::sync::Mutex<()>,
    /// Whether it is being shut down.
    closing: AtomicBool,
    next_pid: AtomicU64,
    chain: tokio::sync::Mutex<Chain>,
    lock: Mutex<Option<lock::Lock>>,
    /// Keeps the plugins as their directories are.
    follower: Mutex<Option<Follower>>,
    /// Sees to it that a kernel without workers ends.
    watch: Mutex<Option<Follower>>,
    /// Keeps idle processes out of memory.
    swapper: Mutex<Option<Follower>>,
}

/// A process that this kernel runs, or has run and seen end.
#[derive(Clone, Debug)]
struct Live {
    process: Process,
    task: TaskHandle,
}

/// A process and how it ended, once it has.
#[derive(Clone, Debug)]
struct Process {
    caller: Caller,
    end: Arc<tokio::sync::watch::Sender<Option<End>>>,
}

/// How a process left the run queue.
#[derive(Clone, Debug, PartialEq)]
enum End {
    /// For good; durable.
    Exit(Exit),
    /// The environment failed; it can be resumed.
    Suspended(String),
    /// No model answered; it can be resumed.
    Unanswered(Box<crate::llm::Error>),
}

/// A task that follows something; it ends with this.
#[derive(Debug)]
struct Follower(AbortHandle);

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Kernel {
    /// A kernel for the data directory `data`.
    pub fn builder(data: impl Into<std::path::PathBuf>) -> Builder {
        Builder::new(data.into())
    }

    fn owner(&self) -> Result<&Owner, Error> {
        self.0.owner.as_ref().ok_or(Error::ReadOnly)
    }

    fn live(&self, pid: Pid) -> Option<Live> {
        self.0.owner.as_ref().and_then(|o| lock(&o.live).get(&pid).cloned())
    }

    /// Writes a record into the kernel's own chain.
    async fn audit(
        &self,
        event: &'static str,
        object: &str,
        decision: &'static str,
        by: impl Into<Cow<'static, str>>,
    ) -> Result<(), Error> {
        let owner = self.owner()?;
        let mut chain = owner.chain.lock().await;
        let record = chain.append(now_ms(), event, object, decision, by);
        self.0.services.store.enqueue(Batch { pid: Pid::KERNEL, changes: vec![Change::Audit(record)] }).await?;
        Ok(())
    }

    /// Returns when the kernel is being shut down, by whomever.
    pub async fn ended(&self) {
        const LOOK: std::time::Duration = std::time::Duration::from_millis(200);
        while self.0.owner.as_ref().is_some_and(|owner| !owner.closing.load(Ordering::SeqCst)) {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Stops all processes where they are (resumable), writes everything out, gives the lock back.
    pub async fn shutdown(&self) {
        if let Some(owner) = &self.0.owner {
            owner.closing.store(true, Ordering::SeqCst);
            drop(lock(&owner.swapper).take());
            owner.sleepers.close();
            owner.connections.close_idle(&owner.live).await;
            let all: Vec<_> = lock(&owner.live).values().cloned().collect();
            for live in all {
                live.task.kill().await;
                live.process.caller.close();
            }
            self.tell_of_itself(Hook::OnKernelStop).await;
            drop(lock(&owner.follower).take());
            self.0.services.models.stop().await;
            if let Err(e) = self.audit("kernel-stop", "", "allow", "kernel").await {
                tracing::warn!("the end of the kernel is not in the audit log: {e}");
            }
            self.0.services.store.close().await;
            owner.scheduler.shutdown();
            drop(lock(&owner.lock).take());
        } else {
            self.0.services.store.close().await;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these guard is whole at every instant: a map, an option.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
