//! Hooks around processes and the kernel itself; those around a syscall are asked on its path.

use serde_json::{Value, json};

use super::info::HookInfo;
use super::{Error, Kernel, SpawnRequest};
use crate::hook::subject::{Directory, KernelLife, PluginGone, PluginLoaded, SpawnAsked};
use crate::hook::{self, Hook, HookChain, HookEvent, Subscription, Verdict};
use crate::registry::{Happened, Notice};
use crate::syscall::now_ms;

/// Fuel of the hooks that no process pays for; each has a limit of its own below it.
const KERNEL_FUEL: u64 = u64::MAX;

impl Kernel {
    /// Registers a native hook at the usual place of its point; `name` is what a refused caller is told. It is
    /// trusted, runs in the caller's turn and must not block.
    pub fn register_hook(
        &self,
        point: Hook,
        name: impl Into<String>,
        callback: impl Fn(&HookEvent) -> Verdict + Send + Sync + 'static,
    ) {
        self.register_hook_at(Subscription::at(point), name, callback);
    }

    /// As [`Self::register_hook`], with a phase, a priority and a matcher.
    pub fn register_hook_at(
        &self,
        at: Subscription,
        name: impl Into<String>,
        callback: impl Fn(&HookEvent) -> Verdict + Send + Sync + 'static,
    ) {
        self.0.services.hooks.register(at, name, callback);
    }

    /// The chain itself, for a program that has something of its own to ask it about.
    #[must_use]
    pub fn hook_chain(&self) -> &HookChain {
        &self.0.services.hooks
    }

    /// All hooks, by point and in the order in which they are asked.
    #[must_use]
    pub fn hooks(&self) -> Vec<HookInfo> {
        self.0.services.hooks.standings().into_iter().map(HookInfo::from).collect()
    }

    /// Asks the hooks whether a process may come into being, and as what.
    pub(super) async fn before_spawn(&self, request: SpawnRequest) -> Result<SpawnRequest, Error> {
        let hooks = &self.0.services.hooks;
        if !hooks.listens(Hook::BeforeAgentSpawn) {
            return Ok(request);
        }
        let shown = asked(&request);
        let subject = json!(shown);
        let point = Hook::BeforeAgentSpawn;
        let hook::Asked { outcome, subject, rewritten_by, .. } = hooks
            .ask(HookEvent { agent: request.agent.clone(), ..event(point, &request.agent, subject) }, KERNEL_FUEL)
            .await;
        let refuse = async |by: String, reason: String| {
            // There is no process whose chain could hold it.
            self.audit("spawn", &request.agent, "deny", by.clone()).await?;
            Err(Error::Denied { by, reason })
        };
        match outcome {
            hook::Outcome::Denied { by, reason } => return refuse(by, reason).await,
            hook::Outcome::Asks { by, reason } if !request.yes => {
                self.audit("spawn", &request.agent, "deny", by.clone()).await?;
                return Err(Error::NeedsApproval { by, reason });
            }
            hook::Outcome::Asks { by, .. } => {
                self.audit("spawn", &request.agent, "allow", format!("--yes to {by}")).await?;
            }
            hook::Outcome::Pass => {}
        }
        if rewritten_by.is_empty() {
            return Ok(request);
        }
        let by = rewritten_by.join(", ");
        match rewritten(&shown, subject) {
            Ok(new) => {
                self.audit("spawn", &request.agent, "rewrite", by).await?;
                let SpawnAsked { agent, task, model, name, group, nice, quota, .. } = new;
                Ok(SpawnRequest { agent, task, model, name, group, nice, quota, ..request })
            }
            Err(why) => refuse(by, format!("it rewrote the spawn into what cannot be: {why}")).await,
        }
    }

    /// Tells those who watch about what is of no process.
    pub(super) async fn tell_kernel(&self, point: Hook, object: &str, subject: impl FnOnce() -> Value) {
        let hooks = &self.0.services.hooks;
        if hooks.listens(point) {
            hooks.ask(event(point, object, subject()), KERNEL_FUEL).await;
        }
    }

    /// Tells that the kernel began or is about to end.
    pub(super) async fn tell_of_itself(&self, point: Hook) {
        let version = env!("CARGO_PKG_VERSION");
        self.tell_kernel(point, version, || json!(KernelLife { version: version.to_owned() })).await;
    }

    /// Tells what happened to a plugin.
    pub(super) async fn tell_of_plugin(&self, Notice { plugin, what }: &Notice) {
        let loaded = |digest: Option<&str>, refused: Option<&str>| {
            let (digest, refused) = (digest.map(str::to_owned), refused.map(str::to_owned));
            json!(PluginLoaded { plugin: plugin.clone(), digest, refused })
        };
        match what {
            Happened::Loaded { digest, .. } => {
                self.tell_kernel(Hook::OnPluginLoad, plugin, || loaded(Some(digest), None)).await;
            }
            Happened::Refused(code) => {
                self.tell_kernel(Hook::OnPluginLoad, plugin, || loaded(None, Some(code))).await;
            }
            Happened::Unloaded => {
                let gone = || json!(PluginGone { plugin: plugin.clone() });
                self.tell_kernel(Hook::OnPluginUnload, plugin, gone).await;
            }
            Happened::Barred(_) => {}
        }
    }
}

fn event(point: Hook, object: &str, subject: Value) -> HookEvent {
    HookEvent { point, pid: None, seq: 0, agent: String::new(), object: object.to_owned(), at_ms: now_ms(), subject }
}

fn asked(request: &SpawnRequest) -> SpawnAsked {
    let directory = |m: &crate::process::Mount| Directory {
        name: m.guest.clone(),
        path: m.host.display().to_string(),
        writable: m.writable,
    };
    SpawnAsked {
        agent: request.agent.clone(),
        task: request.task.clone(),
        model: request.model.clone(),
        name: request.name.clone(),
        group: request.group.clone(),
        nice: request.nice,
        quota: request.quota,
        dirs: request.mounts.iter().map(directory).collect(),
        hosts: request.hosts.iter().map(ToString::to_string).collect(),
    }
}

fn rewritten(shown: &SpawnAsked, subject: Value) -> Result<SpawnAsked, String> {
    let new: SpawnAsked = serde_json::from_value(subject).map_err(|e| e.to_string())?;
    match (new.dirs == shown.dirs, new.hosts == shown.hosts) {
        (true, true) => Ok(new),
        (false, _) => Err("`dirs` must stay as they are".to_owned()),
        (_, false) => Err("`hosts` must stay as they are".to_owned()),
    }
}
