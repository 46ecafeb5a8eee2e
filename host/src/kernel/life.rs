//! A process's life: spawned, resumed, run, ended.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::watch;

use super::builder::head_of;
use super::{End, Error, Kernel, Live, Process, SpawnRequest, lock};
use crate::audit::Chain;
use crate::capability::HostGrant;
use crate::context::tokens::Counter;
use crate::context::{NewPage, PageManager};
use crate::engine::{AgentImage, Ended};
use crate::hook::Hook;
use crate::hook::subject::{self, Signal, Spawned};
use crate::process::{Event, EventKind, Exit, Mount, Pid, ProcessSpec, ProcessState, Usage};
use crate::quota::Limits;
use crate::registry::Agent;
use crate::storage::{Batch, Change, PageKind};
use crate::syscall::{CLIENT, Caller, Life, now_ms};

/// Pages that a spawn makes: system, tools, task.
const HEAD_PAGES: u64 = 3;

/// Longest task and name, in bytes.
const MAX_TASK: usize = 1 << 20;
const MAX_NAME: usize = 128;

/// Most hosts that are granted to a process; each request is held against all of them.
const MAX_HOSTS: usize = 1_000;

impl Kernel {
    /// Spawns a process; when this returns it is durable and runnable. The receiver gets all its
    /// events, `spawned` first and `exit` last.
    ///
    /// # Errors
    /// Unknown agent or model, arguments out of range, a hook's refusal, a failing store.
    pub async fn spawn(&self, request: SpawnRequest) -> Result<(Pid, UnboundedReceiver<Event>), Error> {
        let owner = self.owner()?;
        let mut request = request;
        if request.agent.is_empty() {
            request.agent = "assistant".to_owned();
        }
        let request = self.before_spawn(request).await?;
        let agent = self.find_agent(&request.agent).await?;
        check_request(&request)?;
        let services = &self.0.services;
        let model = services.models.resolve(request.model.as_deref())?;
        let (counter, window) = (counter(&model.name), model.provider.window(&model.model));
        let image =
            agent.image().await.map_err(|f| Error::Engine(format!("the agent `{}`: {}", agent.name, f.message)))?;
        let pid = Pid(owner.next_pid.fetch_add(1, Ordering::Relaxed));
        let spec = ProcessSpec {
            pid,
            ppid: None,
            name: request.name.unwrap_or_else(|| agent.name.clone()),
            agent: agent.name.clone(),
            digest: image.digest().to_owned(),
            model: Some(model.name),
            group: request.group.unwrap_or_else(|| "default".to_owned()),
            nice: request.nice,
            task: request.task,
            mounts: request.mounts,
            hosts: request.hosts,
            yes: request.yes,
            quota: request.quota,
            seed: rand::random(),
            created_ms: now_ms(),
        };
        let mut chain = Chain::resume(pid, None);
        let mut pages = PageManager::new(pid, window);
        pages.set_model(counter, window);
        let mut changes = vec![Change::Spawn(Box::new(spec.clone()))];
        changes.extend(self.head_pages(&spec, &mut pages)?);
        changes.push(Change::Audit(chain.append(spec.created_ms, "spawn", &spec.agent, "allow", "policy")));
        services.store.commit(Batch { pid, changes }).await?;
        let life =
            Life { spec, pages, first_page: HEAD_PAGES + 1, usage: Usage::default(), chain, journal: Vec::new() };
        let Born { process, events } = self.adopt(life);
        let (caller, spec) = (&process.caller, process.caller.spec());
        caller.emit(
            0,
            EventKind::Spawned { agent: spec.agent.clone(), model: spec.model.clone(), task: spec.task.clone() },
        );
        let spawned = || {
            let (name, task, model) = (spec.name.clone(), spec.task.clone(), spec.model.clone());
            json!(Spawned { name, task, model, group: spec.group.clone(), nice: spec.nice })
        };
        caller.tell_hooks(Hook::AfterAgentSpawn, spec.agent.clone(), spawned).await;
        self.run_agent(&process, image)?;
        Ok((pid, events))
    }

    /// Continues an unfinished process from its journal.
    ///
    /// # Errors
    /// [`Error::UnknownProcess`]; [`Error::State`] if it has ended, runs already, or its agent is
    /// another component now.
    pub async fn resume(&self, pid: Pid) -> Result<UnboundedReceiver<Event>, Error> {
        self.owner()?;
        let store = &self.0.services.store;
        let row = store.process(pid).await?.ok_or(Error::UnknownProcess { pid })?;
        let refuse = |why: String| Err(Error::State { pid, why });
        if let Some(exit) = &row.exit {
            return refuse(format!("has ended ({}): there is nothing to resume", exit.status()));
        }
        if self.live(pid).is_some_and(|l| l.process.end.borrow().is_none()) {
            return refuse("is running: follow it with `aok logs`".to_owned());
        }
        if row.spec.agent == CLIENT {
            return refuse("made the tool calls of a client outside: make the call again".to_owned());
        }
        let agent = self.find_agent(&row.spec.agent).await?;
        if agent.digest != row.spec.digest {
            return refuse(format!(
                "was spawned with another version of the agent `{}` ({}, now {}): put that component back to resume it",
                agent.name, row.spec.digest, agent.digest
            ));
        }
        let image =
            agent.image().await.map_err(|f| Error::Engine(format!("the agent `{}`: {}", agent.name, f.message)))?;
        let model = self.0.services.models.resolve(row.spec.model.as_deref())?;
        store.forgive(pid);
        let journal = store.journal(pid).await?;
        let (counter, window) = (counter(&model.name), model.provider.window(&model.model));
        let mut pages = PageManager::restore(pid, window, store.pages(pid).await?);
        pages.set_model(counter, window);
        let head = head_of(&store.audit_heads().await?, pid);
        let chain = Chain::resume(pid, head);
        let life = Life { spec: row.spec, pages, first_page: HEAD_PAGES + 1, usage: row.usage, chain, journal };
        let Born { process, events } = self.adopt(life);
        self.audit("resume", &pid.to_string(), "allow", "kernel").await?;
        process.caller.emit(0, EventKind::State { state: ProcessState::Runnable });
        self.run_agent(&process, image)?;
        Ok(events)
    }

    /// Waits for the end of a process.
    ///
    /// # Errors
    /// [`Error::UnknownProcess`]; [`Error::State`] if it runs under no kernel; [`Error::Suspended`].
    pub async fn wait(&self, pid: Pid) -> Result<Exit, Error> {
        let Some(live) = self.live(pid) else {
            let row = self.0.services.store.process(pid).await?.ok_or(Error::UnknownProcess { pid })?;
            return row.exit.ok_or_else(|| Error::State { pid, why: "is not running: resume it first".to_owned() });
        };
        let mut end = live.process.end.subscribe();
        // A task that is dropped by a shutdown ends without saying so.
        tokio::select! {
            _ = end.wait_for(Option::is_some) => {}
            _ = live.task.done() => {}
        }
        let end = live.process.end.borrow().clone();
        match end {
            Some(End::Exit(exit)) => Ok(exit),
            Some(End::Suspended(why)) => Err(Error::Suspended { pid, why }),
            Some(End::Unanswered(source)) => Err(Error::Unanswered { pid, source }),
            None => Err(Error::Suspended { pid, why: "the kernel was shut down".to_owned() }),
        }
    }

    /// Ends a process; returns when its exit is durable.
    ///
    /// # Errors
    /// [`Error::UnknownProcess`]; [`Error::State`] if it has ended; a failing store.
    pub async fn kill(&self, pid: Pid, reason: &str) -> Result<(), Error> {
        self.owner()?;
        let Some(live) = self.live(pid) else {
            let row = self.0.services.store.process(pid).await?.ok_or(Error::UnknownProcess { pid })?;
            let why = if row.exit.is_some() { "has ended" } else { "is not running: resume it first" };
            return Err(Error::State { pid, why: why.to_owned() });
        };
        signal(&live, "KILL", reason).await;
        live.task.kill().await;
        if live.process.end.borrow().is_some() {
            return Err(Error::State { pid, why: "has ended".to_owned() });
        }
        match self.conclude(&live.process, Exit::Killed(reason.to_owned())).await {
            End::Exit(_) => Ok(()),
            End::Suspended(why) => Err(Error::Suspended { pid, why }),
            End::Unanswered(source) => Err(Error::Unanswered { pid, source }),
        }
    }

    /// Stops a process where it is: no exit is written, its events end without one, and it can be
    /// resumed. Returns when everything that it did is durable.
    ///
    /// # Errors
    /// [`Error::UnknownProcess`]; [`Error::State`] if it does not run; a failing store.
    pub async fn suspend(&self, pid: Pid) -> Result<(), Error> {
        self.owner()?;
        let Some(live) = self.live(pid).filter(|l| l.process.end.borrow().is_none()) else {
            self.0.services.store.process(pid).await?.ok_or(Error::UnknownProcess { pid })?;
            return Err(Error::State { pid, why: "is not running".to_owned() });
        };
        signal(&live, "STOP", "").await;
        live.task.kill().await;
        // It may have come to its end on the way.
        if live.process.end.borrow().is_none() {
            set_aside(&live.process, End::Suspended("it was stopped by its user".to_owned()));
        }
        Ok(self.0.services.store.sync(pid).await?)
    }

    async fn find_agent(&self, name: &str) -> Result<Agent, Error> {
        self.0.registry.ready_for(name).await;
        self.0.registry.agent(name).ok_or_else(|| Error::UnknownAgent {
            name: name.to_owned(),
            known: self.0.registry.agents().into_iter().map(|a| a.name).collect(),
        })
    }

    /// The pinned head of the window.
    fn head_pages(&self, spec: &ProcessSpec, pages: &mut PageManager) -> Result<Vec<Change>, Error> {
        let services = &self.0.services;
        let offered: Vec<_> = services
            .tools
            .all()
            .into_iter()
            .filter(|e| services.security.offers(spec, e))
            .map(|e| e.spec.clone())
            .collect();
        let tools = serde_json::to_string(&offered).map_err(|e| Error::Engine(e.to_string()))?;
        let head = [
            (PageKind::System, system_text(&spec.mounts, &spec.hosts)),
            (PageKind::Tools, tools),
            (PageKind::Task, spec.task.clone()),
        ];
        let mut changes = Vec::new();
        for (id, (kind, text)) in (1..=HEAD_PAGES).zip(head) {
            let page = NewPage {
                id,
                seq: 0,
                kind,
                text,
                tool_calls: Vec::new(),
                answers: None,
                importance: Some(1.0),
                pinned: true,
                now_ms: spec.created_ms,
            };
            let record = pages.append(page).map_err(|e| Error::Invalid(e.to_string()))?;
            changes.push(Change::Page(Box::new(record)));
        }
        Ok(changes)
    }

    pub(super) fn adopt(&self, life: Life) -> Born {
        let caller = Caller::new(Arc::clone(&self.0.services), life);
        let (send, events) = unbounded_channel();
        caller.subscribe(send);
        Born { process: Process { caller, end: Arc::new(watch::Sender::new(None)) }, events }
    }

    fn run_agent(&self, process: &Process, image: Arc<AgentImage>) -> Result<(), Error> {
        let (kernel, own) = (self.clone(), process.clone());
        self.start(process, async move {
            let caller = &own.caller;
            let wall = Duration::from_millis(caller.spec().quota.wall_ms)
                .saturating_sub(Duration::from_micros(caller.usage().wall_us));
            let ended = match tokio::time::timeout(wall, image.run(caller.clone(), Limits::AGENT)).await {
                Ok(ended) => ended,
                Err(_) => {
                    let allowed = caller.spec().quota.wall_ms;
                    Ended::Limit(
                        "wall".to_owned(),
                        format!("it ran longer than its {allowed} ms; allow more with --timeout"),
                    )
                }
            };
            if let Ended::Limit(limit, message) = &ended {
                caller.tell_quota(limit, message).await;
            }
            match exit_of(ended) {
                End::Exit(exit) => drop(kernel.conclude(&own, exit).await),
                aside => set_aside(&own, aside),
            }
        })
    }

    /// Puts a process on the run queue.
    pub(super) fn start(&self, process: &Process, run: impl Future<Output = ()> + Send + 'static) -> Result<(), Error> {
        let owner = self.owner()?;
        let pid = process.caller.spec().pid;
        // Held over both, so that whoever sees the process end also finds it in the table.
        let mut live = lock(&owner.live);
        if lock(&owner.settling).contains(&pid) {
            let why = "has its private copies applied or discarded at this moment: try again".to_owned();
            return Err(Error::State { pid, why });
        }
        let task = owner.scheduler.add(pid, run);
        live.insert(pid, Live { process: process.clone(), task });
        Ok(())
    }

    /// Makes an exit durable, then tells everybody. Only the first exit of a process counts.
    pub(super) async fn conclude(&self, process: &Process, exit: Exit) -> End {
        let caller = &process.caller;
        let pid = caller.spec().pid;
        let mut usage = caller.usage();
        usage.slices += self.live(pid).map_or(0, |l| l.task.slices());
        let (audit, head) = caller
            .with_chain(|chain| {
                let audit = chain.append(now_ms(), "exit", exit.status(), "allow", "kernel");
                let head = format!("{pid} {} {}", audit.seq, audit.hash);
                (audit, head)
            })
            .await;
        let changes = vec![Change::Usage(usage), Change::Exit(exit.clone()), Change::Audit(audit)];
        if let Err(e) = self.0.services.store.commit(Batch { pid, changes }).await {
            let why = e.chain();
            set_aside(process, End::Suspended(why.clone()));
            return End::Suspended(why);
        }
        // The head of each ended chain stands in the kernel's chain too: a chain that is cut or made
        // anew later does not fit it.
        if let Err(e) = self.audit("exit", &head, exit.status(), "kernel").await {
            tracing::warn!("the exit of process {pid} is not in the kernel's audit chain: {e}");
        }
        let ended =
            || json!(subject::Ended { status: exit.status().to_owned(), message: exit.message().to_owned(), usage });
        caller.tell_hooks(Hook::OnAgentExit, caller.spec().agent.clone(), ended).await;
        let (answer, message) = match &exit {
            Exit::Success(answer) => (Some(answer.clone()), None),
            other => (None, Some(other.message().to_owned())),
        };
        caller.emit(caller.position(), EventKind::Exit { status: exit.status().to_owned(), answer, message, usage });
        process.end.send_replace(Some(End::Exit(exit.clone())));
        caller.close();
        // From here on the store tells of it.
        if let Some(owner) = &self.0.owner {
            lock(&owner.live).remove(&pid);
            owner.connections.remove(pid);
        }
        End::Exit(exit)
    }
}

/// Tells the hooks that somebody ends or stops a process.
async fn signal(live: &Live, signal: &str, reason: &str) {
    let subject = || json!(Signal { signal: signal.to_owned(), reason: reason.to_owned() });
    live.process.caller.tell_hooks(Hook::OnSignal, signal.to_owned(), subject).await;
}

/// Notes that a process left the run queue without an end, and ends its events.
pub(super) fn set_aside(process: &Process, end: End) {
    let pid = process.caller.spec().pid;
    let why = match &end {
        End::Suspended(why) => why.clone(),
        End::Unanswered(error) => error.to_string(),
        End::Exit(exit) => exit.message().to_owned(),
    };
    tracing::warn!(pid = pid.0, "process suspended: {why}; resume it with `aok run --resume {pid}`");
    process.caller.emit(process.caller.position(), EventKind::State { state: ProcessState::Stopped });
    process.end.send_replace(Some(end));
    process.caller.close();
}

/// A process that was just put together.
pub(super) struct Born {
    pub(super) process: Process,
    events: UnboundedReceiver<Event>,
}

fn exit_of(ended: Ended) -> End {
    End::Exit(match ended {
        Ended::Returned(Ok(answer)) => Exit::Success(answer),
        Ended::Returned(Err(why)) => Exit::Failure(why),
        Ended::Limit(limit, why) => Exit::OverQuota(format!("{limit}: {why}")),
        Ended::Trapped(why) => Exit::Failure(format!("the agent broke: {why}")),
        Ended::Diverged(why) => Exit::Failure(why),
        Ended::Suspended(why) => return End::Suspended(why),
        Ended::Unanswered(error) => return End::Unanswered(error),
    })
}

/// How a model's tokens are counted. The vocabulary is read here, and not on a guest's small stack.
fn counter(model: &str) -> Counter {
    let counter = Counter::of_model(model);
    let _ = counter.text("");
    counter
}

fn check_request(request: &SpawnRequest) -> Result<(), Error> {
    let invalid = |message: String| Err(Error::Invalid(message));
    if request.task.trim().is_empty() {
        return invalid("the task is empty: say what is to be done".to_owned());
    }
    if request.task.len() > MAX_TASK {
        return invalid(format!(
            "the task has {} bytes, the most is {MAX_TASK}: put it into a file",
            request.task.len()
        ));
    }
    for (what, name) in [("name", &request.name), ("group", &request.group)] {
        if name.as_ref().is_some_and(|n| n.is_empty() || n.len() > MAX_NAME || n.chars().any(char::is_control)) {
            return invalid(format!("a {what} has 1 to {MAX_NAME} bytes and no control characters"));
        }
    }
    if !(-20..=19).contains(&request.nice) {
        return invalid(format!("nice is -20 to 19, not {}", request.nice));
    }
    let q = &request.quota;
    for (name, value) in [
        ("fuel", q.fuel),
        ("tokens", q.tokens),
        ("usd", q.micro_usd),
        ("tool calls", q.tool_calls),
        ("timeout", q.wall_ms),
    ] {
        if value == 0 {
            return invalid(format!("a limit of 0 {name} allows nothing: give a positive number"));
        }
    }
    if request.hosts.len() > MAX_HOSTS {
        return invalid(format!(
            "{} hosts are granted, the most is {MAX_HOSTS}: grant a network or `*.DOMAIN`",
            request.hosts.len()
        ));
    }
    let mut names = BTreeMap::new();
    for mount in &request.mounts {
        if let Some(other) = names.insert(&mount.guest, &mount.host) {
            return invalid(format!(
                "{} and {} would both be called `{}`: rename one or give their parent",
                other.display(),
                mount.host.display(),
                mount.guest
            ));
        }
        if !mount.host.is_dir() {
            return invalid(format!("{} is no directory", mount.host.display()));
        }
    }
    Ok(())
}

/// What opens every agent's window: what the kernel knows and the model cannot. How to call tools is
/// the provider's to say, and a small model follows a short head better.
fn system_text(mounts: &[Mount], hosts: &[HostGrant]) -> String {
    let list = |names: Vec<String>| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let mode = |m: &Mount| match m.writable {
        false => "read-only",
        true if m.private => "read and write, in a private copy that is applied after you are done",
        true => "read and write",
    };
    let mut text =
        format!("Directories: {}.", list(mounts.iter().map(|m| format!("{} ({})", m.guest, mode(m))).collect()));
    if !hosts.is_empty() {
        text.push_str(&format!("\nHosts: {}.", list(hosts.iter().map(ToString::to_string).collect())));
    }
    text
}
