//! Puts a kernel together, lowest part first.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedReceiver;

use super::books::Books;
use super::dormant::{self, Sleepers};
use super::lock::Lock;
use super::tree::Tree;
use super::{Error, Follower, Inner, Kernel, Owner, lock, peers, urgency};
use crate::audit::{Chain, Head};
use crate::config::{Config, RunOrder};
use crate::grants::{self, Grants};
use crate::hook::{Hook, HookChain};
use crate::ipc::Ipc;
use crate::llm::Models;
use crate::llm::local::Places;
use crate::metrics::Metrics;
use crate::overlay::Areas;
use crate::plugin;
use crate::process::{Exit, Pid};
use crate::registry::{Loader, Notice, Registry, Served};
use crate::scheduler::{PolicyKind, Scheduler, Settings, SliceRule};
use crate::storage::{ProcessRow, Store};
use crate::syscall::{Approvals, Services, share};
use crate::tool::{Secrets, ToolExecutor, ToolSecurity};

/// How a kernel is opened.
#[derive(Clone, Debug)]
pub struct Builder {
    pub(super) data: PathBuf,
    pub(super) config: Config,
    plugins: Vec<PathBuf>,
}

impl Builder {
    pub(super) fn new(data: PathBuf) -> Self {
        Self { data, config: Config::default(), plugins: Vec::new() }
    }

    /// Uses this configuration instead of the default one.
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Looks for plugins in `dir` too.
    #[must_use]
    pub fn plugin_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.plugins.push(dir.into());
        self
    }

    /// Takes the data directory's lock and starts: everything works.
    ///
    /// # Errors
    /// [`Error::Locked`] if another kernel holds it; store, configuration and engine errors.
    pub async fn start(self) -> Result<Kernel, Error> {
        create_private(&self.data)?;
        let lock = Lock::take(&self.data)?;
        let store = Store::open(&self.store_url(), self.config.storage.durability).await?;
        let heads = store.audit_heads().await?;
        let rows = store.processes().await?;
        let owner = Owner {
            scheduler: self.scheduler()?,
            live: Mutex::default(),
            settling: Mutex::default(),
            resuming: Mutex::default(),
            tree: Tree::default(),
            sleepers: Sleepers::read(&rows),
            books: Books::read(&rows, self.config.groups.clone()),
            connections: super::client::Connections::default(),
            respec: tokio::sync::Mutex::default(),
            closing: AtomicBool::new(false),
            next_pid: AtomicU64::new(store.last_pid().await? + 1),
            chain: tokio::sync::Mutex::new(Chain::resume(Pid::KERNEL, head_of(&heads, Pid::KERNEL))),
            lock: Mutex::new(Some(lock)),
            follower: Mutex::default(),
            watch: Mutex::default(),
            swapper: Mutex::default(),
        };
        create_private(&self.data.join("plugins"))?;
        let (dirs, grants) = (self.plugin_dirs(), self.grants()?);
        let (kernel, notices) = self.assemble(store, grants, Some(owner));
        kernel.0.services.approvals.resume().await?;
        kernel.audit("kernel-start", env!("CARGO_PKG_VERSION"), "allow", "kernel").await?;
        kernel.watch_workers();
        kernel.watch_sleepers();
        kernel.bury_clients(&rows).await?;
        kernel.follow_plugins(dirs, notices).await;
        kernel.tell_of_itself(Hook::OnKernelStart).await;
        Ok(kernel)
    }

    /// Opens the store for reading, without the lock: the listing calls work, the others are
    /// [`Error::ReadOnly`].
    ///
    /// # Errors
    /// Store and configuration errors.
    pub async fn read(self) -> Result<Kernel, Error> {
        let store = Store::open_read(&self.store_url()).await?;
        let (dirs, grants) = (self.plugin_dirs(), self.grants()?);
        let (kernel, _) = self.assemble(store, grants, None);
        plugin::load_once(dirs, &kernel.0.registry).await;
        Ok(kernel)
    }

    /// What plugins are granted.
    pub(super) fn grants(&self) -> Result<Grants, grants::Error> {
        Grants::open(&self.config.grants, Path::new("aok.toml"), &self.data, &self.plugin_dirs())
    }

    fn assemble(self, store: Store, grants: Grants, owner: Option<Owner>) -> (Kernel, UnboundedReceiver<Notice>) {
        let models = self.models();
        let services = Services {
            hooks: Arc::new(HookChain::default()),
            approvals: Approvals::new(store.clone()),
            tools: Arc::default(),
            security: Arc::new(ToolSecurity::new(grants.clone(), Secrets::new(|name| std::env::var_os(name)))),
            areas: Areas::new(self.data.join("private")),
            executor: ToolExecutor::new(store.clone()),
            models,
            metrics: Metrics::new(Instant::now()),
            ipc: Ipc::new(store.clone()),
            groups: self.config.groups.clone(),
            kernel: OnceLock::new(),
            store,
        };
        let loader = Arc::new(Loader::new(Some(self.data.join("cache")), self.config.plugins.wasi03));
        let served = Served {
            tools: Arc::clone(&services.tools),
            hooks: Arc::clone(&services.hooks),
            security: Arc::clone(&services.security),
            store: services.store.clone(),
        };
        let (registry, notices) = Registry::new(loader, self.config.limits, served);
        let (services, started) = (Arc::new(services), Instant::now());
        let household = OnceLock::new();
        let inner = Arc::new(Inner { setup: self, services, registry, grants, owner, household, started });
        // Once, since it was just made.
        let _ = inner.services.kernel.set(peers::household(&inner));
        let own = Arc::downgrade(&inner);
        inner.services.ipc.waits.set_lend(Box::new(move |waiter, on| urgency::lend(&own, waiter, on)));
        (Kernel(inner), notices)
    }

    /// The models that can be named, with the keys that are in the environment now.
    pub(super) fn models(&self) -> Models {
        let places = Places { models: self.data.join("models"), cache: self.data.join("cache") };
        Models::new(self.config.llm.clone(), Some(places), |name| std::env::var(name).ok())
    }

    /// Where plugins are looked for, in order.
    pub(super) fn plugin_dirs(&self) -> Vec<PathBuf> {
        let configured = self.config.plugins.dirs.iter().chain(&self.plugins).cloned();
        std::iter::once(self.data.join("plugins")).chain(configured).collect()
    }

    pub(super) fn store_url(&self) -> String {
        let default = || format!("sqlite:{}", self.data.join("aok.db").display());
        self.config.storage.url.clone().unwrap_or_else(default)
    }

    /// Seconds that a process only waits before it leaves memory.
    pub(super) fn swap_after_s(&self) -> u64 {
        self.config.scheduler.swap_after_s.unwrap_or(300)
    }

    fn scheduler(&self) -> Result<Arc<Scheduler>, Error> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let config = &self.config.scheduler;
        let usual = SliceRule::default();
        let settings = Settings {
            workers: config.workers.unwrap_or(cores),
            policy: match config.policy {
                RunOrder::Fair => PolicyKind::Fair,
                RunOrder::RoundRobin => PolicyKind::RoundRobin,
            },
            slice: SliceRule {
                target_latency: config.target_latency.map_or(usual.target_latency, Duration::from_micros),
                ..usual
            },
        };
        let runtime = tokio::runtime::Handle::current();
        let scheduler = Scheduler::start(settings, runtime)
            .map_err(|e| Error::Engine(format!("the run queue's threads cannot be started: {e}")))?;
        for (name, group) in &self.config.groups {
            scheduler.set_group_weight(name, share(group.weight));
        }
        Ok(Arc::new(scheduler))
    }
}

impl Kernel {
    /// Keeps idle processes out of memory from now on, and brings them back.
    fn watch_sleepers(&self) {
        let Some(owner) = &self.0.owner else { return };
        let own = Arc::downgrade(&self.0);
        let arrived = Arc::downgrade(&self.0);
        self.0.services.ipc.mail.on_arrival(Box::new(move |to| dormant::on_message(&arrived, to)));
        let swapper = tokio::spawn(Self::keep_swapping(own));
        *lock(&owner.swapper) = Some(Follower(swapper.abort_handle()));
    }

    /// Ends the kernel, loudly, when nobody is left to run processes. That is a bug; what is journaled is safe.
    fn watch_workers(&self) {
        let Some(owner) = &self.0.owner else { return };
        let (scheduler, inner) = (Arc::clone(&owner.scheduler), Arc::downgrade(&self.0));
        let watch = tokio::spawn(async move {
            scheduler.all_workers_died().await;
            tracing::error!(
                "every worker of the run queue died of a bug: the kernel ends, and its processes can be resumed"
            );
            if let Some(inner) = inner.upgrade() {
                Box::pin(Self(inner).shutdown()).await;
            }
        });
        *lock(&owner.watch) = Some(Follower(watch.abort_handle()));
    }

    /// Ends the client processes that a killed kernel left behind: their caller is gone, so nobody
    /// will resume them.
    async fn bury_clients(&self, rows: &[ProcessRow]) -> Result<(), Error> {
        for row in rows.iter().filter(|row| row.exit.is_none() && row.spec.agent == crate::syscall::CLIENT) {
            self.bury(row, Exit::Killed("its kernel was stopped while it served a client".to_owned())).await?;
        }
        Ok(())
    }
}

/// The head of one chain.
fn head_of(heads: &[(Pid, Head)], pid: Pid) -> Option<Head> {
    heads.iter().find(|(p, _)| *p == pid).map(|(_, head)| head.clone())
}

fn create_private(dir: &Path) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt as _;
    let created = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    created.map_err(|source| Error::Io { what: "the data directory", path: dir.to_owned(), source })
}
