//! What processes ask of the kernel about each other: children, ends, signals, becoming another agent.

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;

use super::life::Prepared;
use super::request::check_task;
use super::{Error, Inner, Kernel, SpawnRequest};
use crate::abi::{self, Errno};
use crate::process::{Exit, Input, Pid, ProcessSpec, Signal};
use crate::quota::{Resource, ResourceQuota};
use crate::syscall::{CLIENT, Caller, Child, Newborn, Peer, Peers};

/// Between two looks at a process that somebody else is resuming.
const AGAIN: Duration = Duration::from_millis(5);

/// How often that is looked at.
const LOOKS: u32 = 2_000;

/// The kernel as its processes see it. It does not keep the kernel alive.
#[derive(Debug)]
pub(super) struct Household(pub(super) Weak<Inner>);

impl Household {
    fn kernel(&self) -> Result<Kernel, abi::Error> {
        self.0.upgrade().map(Kernel).ok_or_else(|| abi::Error::new(Errno::Io, "the kernel is ending"))
    }
}

/// A façade's error as an agent reads it.
fn told(e: Error) -> abi::Error {
    let code = match &e {
        Error::UnknownAgent { .. } | Error::UnknownProcess { .. } => Errno::NotFound,
        Error::Denied { .. } | Error::NeedsApproval { .. } => Errno::Denied,
        Error::Invalid(_) | Error::Model(_) => Errno::Invalid,
        Error::State { .. } | Error::Suspended { .. } | Error::Unanswered { .. } | Error::Crowded { .. } => {
            Errno::Again
        }
        _ => Errno::Io,
    };
    let known = match &e {
        Error::UnknownAgent { known, .. } => format!("; there are: {}", known.join(", ")),
        _ => String::new(),
    };
    let mut message = e.to_string();
    let mut cause = std::error::Error::source(&e);
    while let Some(error) = cause {
        message = format!("{message}: {error}");
        cause = error.source();
    }
    abi::Error::new(code, message + &known)
}

#[async_trait]
impl Peers for Household {
    async fn find(&self, pid: Pid) -> Result<Option<Peer>, abi::Error> {
        self.kernel()?.find_peer(pid).await.map_err(told)
    }

    async fn prepare(&self, parent: Caller, child: Child) -> Result<Newborn, abi::Error> {
        let kernel = self.kernel()?;
        let spec = parent.spec();
        let own = parent.nice();
        let nice = child.nice.unwrap_or(own);
        if nice < own {
            let why = format!("a child's nice is no lower than its spawner's: {nice} is below {own}");
            return Err(abi::Error::new(Errno::Denied, why));
        }
        let quota = child.quota.as_deref().map_or(Ok(ResourceQuota::STANDARD), quota_of);
        let quota = quota.map_err(|why| abi::Error::new(Errno::Invalid, format!("`quota` {why}")))?;
        let lease = parent.account().reserve(Resource::Children, 1).map_err(|e| {
            let message = format!("{e}: spawn when one of them has ended");
            abi::Error { limit: Some("children".to_owned()), ..abi::Error::new(Errno::Quota, message) }
        })?;
        let request = SpawnRequest {
            agent: child.agent,
            task: child.task,
            model: child.model.or_else(|| spec.model.clone()),
            name: child.name,
            group: Some(spec.group.clone()),
            nice,
            mounts: spec.mounts.clone(),
            hosts: spec.hosts.clone(),
            yes: spec.yes,
            quota,
            on_quota: spec.on_quota,
        };
        let prepared = kernel.prepare(request, child.input, Some((&parent, lease))).await.map_err(told)?;
        let Prepared { pid, changes, life, image } = prepared;
        let start = Box::new(move || {
            if let Err(e) = kernel.begin(life, image) {
                // It is in the store: the next kernel, or who waits for it, resumes it.
                tracing::warn!(pid = pid.0, "a child was not started: {e}");
            }
        });
        Ok(Newborn { pid, changes, start })
    }

    async fn ended(&self, pid: Pid) -> Result<Exit, abi::Error> {
        let kernel = self.kernel()?;
        for _ in 0..LOOKS {
            let is_out = kernel.0.owner.as_ref().is_some_and(|owner| owner.sleepers.has(pid));
            if kernel.live(pid).is_none() && !is_out {
                let row = kernel.0.services.store.process(pid).await.map_err(|e| told(e.into()))?;
                let row = row.ok_or_else(|| told(Error::UnknownProcess { pid }))?;
                if let Some(exit) = row.exit {
                    return Ok(exit);
                }
                if row.waiting_on.as_deref() == Some(super::signal::STOPPED) {
                    let why = format!("process {pid} was stopped by a signal: send CONT first");
                    return Err(abi::Error::new(Errno::Again, why));
                }
                match kernel.resume_one(pid).await {
                    Ok(events) => drop(events),
                    // Somebody else resumes it.
                    Err(Error::State { .. }) => tokio::time::sleep(AGAIN).await,
                    Err(e) => return Err(told(e)),
                }
                continue;
            }
            match kernel.wait(pid).await {
                Err(Error::State { .. }) => {}
                end => return end.map_err(told),
            }
        }
        Err(abi::Error::new(Errno::Again, format!("process {pid} neither runs nor can be resumed")))
    }

    async fn signal(&self, from: Pid, to: Pid, signal: Signal) -> Result<(), abi::Error> {
        let kernel = self.kernel()?;
        // Once begun it is not cut off with who asked for it.
        let work = tokio::spawn(async move {
            kernel.signal(to, signal, &format!("process {from} sent {}", signal.name()), None).await
        });
        match work.await {
            Ok(done) => done.map_err(told),
            Err(e) => Err(abi::Error::new(Errno::Io, format!("the kernel failed: {e}"))),
        }
    }

    async fn become_agent(
        &self,
        caller: Caller,
        agent: String,
        task: String,
        input: Input,
    ) -> Result<ProcessSpec, abi::Error> {
        self.kernel()?.respec_as(&caller, &agent, task, input).await.map_err(told)
    }

    fn charge(&self, pid: Pid, ns: u64) {
        if let Some(live) = self.kernel().ok().and_then(|kernel| kernel.live(pid)) {
            live.task.charge(ns);
        }
    }
}

/// Limits as an agent writes them: some keys of [`ResourceQuota`], the others standard.
fn quota_of(json: &str) -> Result<ResourceQuota, String> {
    let asked: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(json).map_err(|e| format!("is no JSON object: {e}"))?;
    let Ok(serde_json::Value::Object(mut all)) = serde_json::to_value(ResourceQuota::STANDARD) else {
        return Err("cannot be read".to_owned());
    };
    for (key, value) in asked {
        if !all.contains_key(&key) {
            let known: Vec<_> = all.keys().cloned().collect();
            return Err(format!("has no `{key}`; it has: {}", known.join(", ")));
        }
        if value.as_u64().is_none_or(|n| n == 0) {
            return Err(format!("needs a positive whole number for `{key}`, not {value}"));
        }
        all.insert(key, value);
    }
    serde_json::from_value(all.into()).map_err(|e| e.to_string())
}

impl Kernel {
    async fn find_peer(&self, pid: Pid) -> Result<Option<Peer>, Error> {
        if let Some(live) = self.live(pid).filter(|l| l.process.end.borrow().is_none()) {
            let mut spec = live.process.caller.spec().clone();
            spec.ppid = self.owner()?.tree.above(pid);
            return Ok(Some(Peer { spec, exit: None }));
        }
        let store = &self.0.services.store;
        store.sync_all().await;
        Ok(store.process(pid).await?.map(|row| Peer { spec: row.spec, exit: row.exit }))
    }

    /// What a process is as another agent.
    async fn respec_as(&self, caller: &Caller, agent: &str, task: String, input: Input) -> Result<ProcessSpec, Error> {
        let pid = caller.spec().pid;
        if caller.spec().agent == CLIENT {
            return Err(Error::State { pid, why: "makes calls for a client: it is no agent".to_owned() });
        }
        check_task(&task)?;
        // Whoever may refuse an agent's spawn may refuse that a process becomes it.
        let spec = caller.spec();
        let asked = SpawnRequest {
            agent: agent.to_owned(),
            task,
            model: spec.model.clone(),
            name: Some(spec.name.clone()),
            group: Some(spec.group.clone()),
            nice: caller.nice(),
            mounts: spec.mounts.clone(),
            hosts: spec.hosts.clone(),
            yes: spec.yes,
            quota: spec.quota,
            on_quota: spec.on_quota,
        };
        let SpawnRequest { agent, task, .. } = self.before_spawn(asked).await?;
        let agent = self.find_agent(&agent).await?;
        let image =
            agent.image().await.map_err(|f| Error::Engine(format!("the agent `{}`: {}", agent.name, f.message)))?;
        let store = &self.0.services.store;
        store.sync(pid).await?;
        let row = store.process(pid).await?.ok_or(Error::UnknownProcess { pid })?;
        let digest = image.digest().to_owned();
        Ok(ProcessSpec { agent: agent.name, digest, task, input, epoch: Some(caller.epoch()), ..row.spec })
    }
}

/// The kernel, for the path.
pub(super) fn household(inner: &Arc<Inner>) -> Weak<dyn Peers> {
    let household: Arc<dyn Peers> = Arc::new(Household(Arc::downgrade(inner)));
    let weak = Arc::downgrade(&household);
    // It lives as long as the kernel.
    drop(inner.household.set(household));
    weak
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_a_child_are_read_or_named() {
        let q = quota_of(r#"{"tokens": 5}"#).unwrap();
        assert_eq!(q, ResourceQuota { tokens: 5, ..ResourceQuota::STANDARD });
        for (json, what) in [
            ("[]", "no JSON object"),
            (r#"{"tokns": 5}"#, "tool_calls"),
            (r#"{"tokens": 0}"#, "`tokens`, not 0"),
            (r#"{"tokens": -1}"#, "`tokens`, not -1"),
            (r#"{"tokens": "5"}"#, "positive whole number"),
        ] {
            let why = quota_of(json).unwrap_err();
            assert!(why.contains(what), "{json}: {why}");
        }
    }
}
