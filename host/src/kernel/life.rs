//! A process's life: spawned, resumed, run, ended.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt as _;
use serde_json::json;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::watch;

use super::dormant::{self, Entry};
use super::request::{check_quota, check_request, system_text, user};
use super::{End, Error, Kernel, Live, Process, SpawnRequest, lock};
use crate::audit::{Chain, Head};
use crate::context::tokens::Counter;
use crate::context::{NewPage, PageManager};
use crate::engine::{AgentImage, Ended};
use crate::hook::Hook;
use crate::hook::subject;
use crate::process::{Event, EventKind, Exit, Input, Pid, ProcessSpec, ProcessState, Signal, Usage};
use crate::quota::{Account, Limits, OnQuota, Raise, Reservation, Resource};
use crate::registry::Agent;
use crate::scheduler::{self, Nice, TaskSpec};
use crate::storage::{Batch, Change, PageKind, ProcessRow};
use crate::syscall::{CLIENT, Caller, Life, now_ms};

/// Pages that a spawn makes: system, tools, task.
const HEAD_PAGES: u64 = 3;

/// How the store says that a process has used up a quota: the next kernel does not resume it by itself.
const QUOTA: &str = "quota ";

/// Between two looks at a process that is on its way.
const AGAIN: Duration = Duration::from_millis(2);

impl Kernel {
    /// Spawns a process; when this returns it is durable and runnable. The receiver gets all its
    /// events, `spawned` first and `exit` last.
    ///
    /// # Errors
    /// Unknown agent or model, arguments out of range, a hook's refusal, a failing store.
    pub async fn spawn(&self, request: SpawnRequest) -> Result<(Pid, UnboundedReceiver<Event>), Error> {
        let Prepared { pid, changes, life, image } = self.prepare(request, Input::default(), None).await?;
        self.0.services.store.commit(Batch { pid, changes }).await?;
        let Born { process, events } = self.born(life);
        process.caller.tell_spawned().await;
        self.run_agent(&process, image, false)?;
        Ok((pid, events))
    }

    /// Makes a process ready: all but writing it down and running it.
    pub(super) async fn prepare(
        &self,
        mut request: SpawnRequest,
        input: Input,
        spawner: Option<(&Caller, Reservation)>,
    ) -> Result<Prepared, Error> {
        let owner = self.owner()?;
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
        self.make_room().await?;
        let pid = Pid(owner.next_pid.fetch_add(1, Ordering::Relaxed));
        let (parent, lease) = spawner.unzip();
        let spec = ProcessSpec {
            pid,
            ppid: parent.map(|parent| parent.spec().pid),
            name: request.name.unwrap_or_else(|| agent.name.clone()),
            agent: agent.name.clone(),
            digest: image.digest().to_owned(),
            model: Some(model.name),
            group: request.group.unwrap_or_else(user),
            nice: request.nice,
            task: request.task,
            input,
            root: parent.map(|parent| parent.spec().root()),
            epoch: None,
            mounts: request.mounts,
            hosts: request.hosts,
            yes: request.yes,
            quota: request.quota,
            on_quota: request.on_quota,
            seed: rand::random(),
            created_ms: now_ms(),
        };
        let mut chain = Chain::resume(pid, None);
        let mut pages = PageManager::new(pid, window);
        pages.set_model(counter, window);
        let mut changes = vec![Change::Spawn(Box::new(spec.clone()))];
        changes.extend(self.head_pages(&spec, &mut pages)?);
        let by = parent.map_or_else(|| "policy".to_owned(), |parent| format!("process {}", parent.spec().pid));
        changes.push(Change::Audit(chain.append(spec.created_ms, "spawn", &spec.agent, "allow", by)));
        let account = owner.books.account(&spec, parent.map(|parent| Arc::clone(parent.account())));
        let (usage, journal) = (Usage::default(), Vec::new());
        let life = Life { spec, pages, first_page: HEAD_PAGES + 1, usage, chain, journal, account, lease };
        Ok(Prepared { pid, changes, life, image })
    }

    /// Sees to it that the machine has room for one process more.
    async fn make_room(&self) -> Result<(), Error> {
        let Some((most, mappings)) = dormant::room() else { return Ok(()) };
        let is_full = || self.live_count() as u64 >= most;
        if is_full() {
            self.swap_idle().await;
        }
        match is_full() {
            true => Err(Error::Crowded { live: self.live_count(), mappings }),
            false => Ok(()),
        }
    }

    /// Runs a child that is on its way to the store.
    pub(super) fn begin(&self, life: Life, image: Arc<AgentImage>) -> Result<(), Error> {
        self.run_agent(&self.born(life).process, image, true)
    }

    fn born(&self, life: Life) -> Born {
        let born = self.adopt(life, None);
        let caller = &born.process.caller;
        let (agent, model, task) =
            (caller.spec().agent.clone(), caller.spec().model.clone(), caller.spec().task.clone());
        caller.emit(0, EventKind::Spawned { agent, model, task });
        born
    }

    /// Continues an unfinished process from its journal.
    ///
    /// # Errors
    /// [`Error::UnknownProcess`]; [`Error::State`] if it has ended, runs already, or its agent is
    /// another component now.
    pub async fn resume(&self, pid: Pid) -> Result<UnboundedReceiver<Event>, Error> {
        let events = self.resume_one(pid).await?;
        // What it spawned goes on with it.
        let rows = self.0.services.store.processes().await?;
        let mut tree = BTreeSet::from([pid]);
        for row in &rows {
            if row.spec.ppid.is_some_and(|ppid| tree.contains(&ppid)) && row.exit.is_none() {
                tree.insert(row.spec.pid);
                if let Err(e) = self.resume_one(row.spec.pid).await {
                    tracing::warn!(pid = row.spec.pid.0, "it was not resumed with process {pid}: {e}");
                }
            }
        }
        Ok(events)
    }

    /// Resumes every process that is unfinished and was not stopped by a signal; how many they are.
    ///
    /// # Errors
    /// A failing store. A process that cannot be resumed is a warning.
    pub async fn resume_all(&self) -> Result<usize, Error> {
        let owner = self.owner()?;
        let mut resumed = 0;
        for row in self.0.services.store.processes().await? {
            let left = row.exit.is_none() && row.spec.agent != CLIENT && self.live(row.spec.pid).is_none();
            // What is out comes back by itself.
            let waiting_on = row.waiting_on.as_deref().unwrap_or_default();
            let is_held = waiting_on == super::signal::STOPPED || waiting_on.starts_with(QUOTA);
            if !left || is_held || owner.sleepers.has(row.spec.pid) {
                continue;
            }
            match self.resume_one(row.spec.pid).await {
                Ok(_) => resumed += 1,
                Err(e) => tracing::warn!(pid = row.spec.pid.0, "it is not resumed: {e}"),
            }
        }
        Ok(resumed)
    }

    /// Gives an unfinished process that does not run other limits.
    ///
    /// # Errors
    /// [`Error::UnknownProcess`]; [`Error::State`] if it has ended or runs; [`Error::Invalid`] for a limit of 0; a
    /// failing store.
    pub async fn raise(&self, pid: Pid, raise: Raise) -> Result<(), Error> {
        if raise == Raise::default() {
            return Ok(());
        }
        let _respec = self.owner()?.respec.lock().await;
        let row = self.known(pid).await?;
        if let Some(exit) = &row.exit {
            return Err(Error::State { pid, why: format!("has ended ({}): spawn another", exit.status()) });
        }
        if self.live(pid).is_some_and(|live| live.process.end.borrow().is_none()) {
            return Err(Error::State { pid, why: "is running: its limits are what they are".to_owned() });
        }
        let spec = ProcessSpec { quota: raise.over(row.spec.quota), ..row.spec };
        check_quota(&spec.quota)?;
        let limits = serde_json::to_string(&raise).unwrap_or_default(); // plain data has a JSON form
        self.audit("quota", &format!("{pid} {limits}"), "allow", "operator").await?;
        if let Some(live) = self.live(pid) {
            live.process.caller.account().set_limits(&spec.quota);
        }
        Ok(self.0.services.store.commit(Batch { pid, changes: vec![Change::Respec(Box::new(spec))] }).await?)
    }

    /// Leaves a process where it is that has used up a quota, until it is resumed with more.
    async fn park(&self, process: &Process, why: String) {
        let pid = process.caller.spec().pid;
        let usage = process.caller.usage();
        let changes = vec![Change::Usage(usage), Change::State(ProcessState::Stopped, Some(format!("{QUOTA}{why}")))];
        if let Err(e) = self.0.services.store.commit(Batch { pid, changes }).await {
            tracing::warn!(pid = pid.0, "the store does not tell why it was stopped: {e}");
        }
        let raise = "resume it with more, as `aok run --resume PID --max-tokens N`";
        set_aside(process, End::Suspended(format!("its quota is used up ({why}); {raise}")));
    }

    /// [`Self::resume`] without its children.
    pub(super) async fn resume_one(&self, pid: Pid) -> Result<UnboundedReceiver<Event>, Error> {
        let owner = self.owner()?;
        let refuse = |why: String| Err(Error::State { pid, why });
        if !lock(&owner.resuming).insert(pid) {
            return refuse("is being resumed at this moment: try again".to_owned());
        }
        let _resuming = Resuming { kernel: self, pid };
        let store = &self.0.services.store;
        let row = store.process(pid).await?.ok_or(Error::UnknownProcess { pid })?;
        if let Some(exit) = &row.exit {
            return refuse(format!("has ended ({}): there is nothing to resume", exit.status()));
        }
        let known = self.live(pid);
        if known.as_ref().is_some_and(|l| l.process.end.borrow().is_none()) {
            return refuse("is running: follow it with `aok logs`".to_owned());
        }
        if row.spec.agent == CLIENT {
            return refuse("made the tool calls of a client outside: make the call again".to_owned());
        }
        let image = self.same_image(&row.spec).await?;
        store.forgive(pid);
        let slept = owner.sleepers.take(pid);
        let (account, lease, end, watchers) = match (known, slept) {
            (None, Some(Entry { account: Some(account), lease, watchers, end, .. })) => {
                (account, lease, Some(end), watchers)
            }
            (known, slept) => {
                let (account, lease) = self.accounts_of(&row.spec, known.as_ref())?;
                (account, lease, slept.map(|entry| entry.end), Vec::new())
            }
        };
        let head = self.chain_head(pid).await?;
        let was_out = row.state != ProcessState::Runnable;
        let life = self.life_of(row, Chain::resume(pid, head), account, lease).await?;
        let Born { process, events } = self.adopt(life, end);
        watchers.into_iter().for_each(|to| process.caller.subscribe(to));
        self.audit("resume", &pid.to_string(), "allow", "kernel").await?;
        if was_out {
            let change = Change::State(ProcessState::Runnable, None);
            store.enqueue(Batch { pid, changes: vec![change] }).await?;
        }
        process.caller.emit(0, EventKind::State { state: ProcessState::Runnable });
        self.run_agent(&process, image, false)?;
        Ok(events)
    }

    /// Where a process's audit chain ends. The store refuses what does not follow its own head.
    pub(super) async fn chain_head(&self, pid: Pid) -> Result<Option<Head>, Error> {
        let last = self.0.services.store.audit_tail(Some(pid), 1).await?.pop();
        Ok(last.map(|record| Head { seq: record.seq, hash: record.hash }))
    }

    /// The account of a process that is resumed, and what its spawner holds for it.
    fn accounts_of(
        &self,
        spec: &ProcessSpec,
        known: Option<&Live>,
    ) -> Result<(Arc<Account>, Option<Reservation>), Error> {
        Ok(match known {
            // This kernel's own books know it.
            Some(live) => (Arc::clone(live.process.caller.account()), live.process.caller.leave().1),
            None => {
                let spawner = spec.ppid.and_then(|ppid| self.live(ppid));
                let spawner = spawner.map(|l| Arc::clone(l.process.caller.account()));
                // It lives already: the limit is for those that would come.
                let lease = spawner.as_ref().and_then(|account| account.reserve(Resource::Children, 1).ok());
                (self.owner()?.books.account(spec, spawner), lease)
            }
        })
    }

    /// The image that a process was spawned with.
    async fn same_image(&self, spec: &ProcessSpec) -> Result<Arc<AgentImage>, Error> {
        let agent = self.find_agent(&spec.agent).await?;
        if agent.digest != spec.digest {
            let why = format!(
                "was spawned with another version of the agent `{}` ({}, now {}): put that component back to resume it",
                agent.name, spec.digest, agent.digest
            );
            return Err(Error::State { pid: spec.pid, why });
        }
        agent.image().await.map_err(|f| Error::Engine(format!("the agent `{}`: {}", agent.name, f.message)))
    }

    /// What the store knows of a process, for another life of it.
    async fn life_of(
        &self,
        row: ProcessRow,
        chain: Chain,
        account: Arc<Account>,
        lease: Option<Reservation>,
    ) -> Result<Life, Error> {
        let (pid, store) = (row.spec.pid, &self.0.services.store);
        let model = self.0.services.models.resolve(row.spec.model.as_deref())?;
        let journal = store.journal(pid).await?;
        let (counter, window) = (counter(&model.name), model.provider.window(&model.model));
        let mut pages = PageManager::restore(pid, window, store.pages(pid).await?);
        pages.set_model(counter, window);
        let (spec, usage) = (row.spec, row.usage);
        Ok(Life { spec, pages, first_page: HEAD_PAGES + 1, usage, chain, journal, account, lease })
    }

    /// A process as the agent that it became by `exec`.
    async fn reborn(&self, old: &Process) -> Result<(Process, Arc<AgentImage>), Error> {
        let (owner, store, pid) = (self.owner()?, &self.0.services.store, old.caller.spec().pid);
        store.sync(pid).await?;
        let row = store.process(pid).await?.ok_or(Error::UnknownProcess { pid })?;
        let row = ProcessRow { usage: old.caller.usage(), ..row };
        let image = self.same_image(&row.spec).await?;
        let chain = old.caller.with_chain(|chain| chain.clone()).await;
        let (watchers, lease) = old.caller.leave();
        let life = self.life_of(row, chain, Arc::clone(old.caller.account()), lease).await?;
        let caller = Caller::new(Arc::clone(&self.0.services), life);
        watchers.into_iter().for_each(|to| caller.subscribe(to));
        let process = Process { caller, end: Arc::clone(&old.end) };
        if let Some(live) = lock(&owner.live).get_mut(&pid) {
            live.process = process.clone();
        }
        Ok((process, image))
    }

    /// Waits for the end of a process.
    ///
    /// # Errors
    /// [`Error::UnknownProcess`]; [`Error::State`] if it runs under no kernel; [`Error::Suspended`].
    pub async fn wait(&self, pid: Pid) -> Result<Exit, Error> {
        // One that comes back is out, then on its way, then live; looked for in that order it is not missed.
        let live = loop {
            if let Some(mut end) = self.0.owner.as_ref().and_then(|owner| owner.sleepers.end_of(pid)) {
                // It comes back and ends, or the kernel does.
                let end = end.wait_for(Option::is_some).await.ok().and_then(|end| end.clone());
                return ending(pid, end);
            }
            let is_coming = self.0.owner.as_ref().is_some_and(|owner| lock(&owner.resuming).contains(&pid));
            if let Some(live) = self.live(pid) {
                break live;
            }
            if !is_coming {
                let row = self.0.services.store.process(pid).await?.ok_or(Error::UnknownProcess { pid })?;
                return row.exit.ok_or_else(|| Error::State { pid, why: "is not running: resume it first".to_owned() });
            }
            tokio::time::sleep(AGAIN).await;
        };
        let mut end = live.process.end.subscribe();
        let over = tokio::select! {
            _ = end.wait_for(Option::is_some) => None,
            over = live.task.done() => Some(over),
        };
        let is_closing = || self.0.owner.as_ref().is_none_or(|owner| owner.closing.load(Ordering::SeqCst));
        match over {
            // Whoever killed it writes its end. A shutdown does not.
            Some(scheduler::End::Dropped) if !is_closing() => drop(end.wait_for(Option::is_some).await),
            _ => {}
        }
        let end = live.process.end.borrow().clone();
        ending(pid, end)
    }

    /// The events of a process that runs, from now on.
    ///
    /// # Errors
    /// [`Error::State`] where it is not running here.
    pub fn attach(&self, pid: Pid) -> Result<UnboundedReceiver<Event>, Error> {
        let runs = |live: &Live| live.process.end.borrow().is_none();
        let live = self.live(pid).filter(runs).ok_or_else(|| {
            let why = "is not running here: `aok wait` tells how it ended, `aok run --resume` continues it";
            Error::State { pid, why: why.to_owned() }
        })?;
        let (send, events) = unbounded_channel();
        live.process.caller.subscribe(send);
        Ok(events)
    }

    /// Waits for the end of a process; its `exit` event.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub async fn last_event(&self, pid: Pid) -> Result<Event, Error> {
        let exit = self.wait(pid).await?;
        let row = self.known(pid).await?;
        let seq = self.0.services.store.journal(pid).await?.last().map_or(0, |record| record.seq);
        Ok(Event { pid, seq, at_ms: now_ms(), kind: exit_event(&exit, row.usage) })
    }

    /// Ends a process; returns when its exit is durable. One that no kernel runs is ended where it stands.
    ///
    /// # Errors
    /// [`Error::UnknownProcess`]; [`Error::State`] if it has ended; a failing store.
    pub async fn kill(&self, pid: Pid, reason: &str) -> Result<(), Error> {
        self.owner()?;
        let Some(live) = self.live(pid) else {
            return self.signal_dormant(pid, Signal::Kill, reason, None).await;
        };
        self.tell_signal(&live, Signal::Kill, reason).await;
        live.task.kill().await;
        if matches!(*live.process.end.borrow(), Some(End::Exit(_))) {
            return Err(Error::State { pid, why: "has ended".to_owned() });
        }
        // Whatever process it became meanwhile.
        let process = self.live(pid).map_or(live.process, |live| live.process);
        self.0.services.store.forgive(pid);
        match self.conclude(&process, Exit::Killed(reason.to_owned())).await {
            End::Exit(_) => Ok(()),
            End::Suspended(why) => Err(Error::Suspended { pid, why }),
            End::Unanswered(source) => Err(Error::Unanswered { pid, source }),
        }
    }

    pub(super) async fn find_agent(&self, name: &str) -> Result<Agent, Error> {
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

    /// `end`: who tells of its end, where somebody waits for that already.
    pub(super) fn adopt(&self, life: Life, end: Option<Arc<watch::Sender<Option<End>>>>) -> Born {
        let caller = Caller::new(Arc::clone(&self.0.services), life);
        let (send, events) = unbounded_channel();
        caller.subscribe(send);
        let end = end.unwrap_or_else(|| Arc::new(watch::Sender::new(None)));
        Born { process: Process { caller, end }, events }
    }

    /// `is_new`: the hooks have not been told of it.
    fn run_agent(&self, process: &Process, image: Arc<AgentImage>, is_new: bool) -> Result<(), Error> {
        let (kernel, own) = (self.clone(), process.clone());
        self.start(process, async move {
            if is_new {
                own.caller.tell_spawned().await;
            }
            let (mut own, mut image) = (own, image);
            let ended = loop {
                match run_once(&own.caller, &image).await {
                    Ended::Exec => match Box::pin(kernel.reborn(&own)).await {
                        Ok(new) => (own, image) = new,
                        Err(e) => break Ended::Suspended(e.to_string()),
                    },
                    ended => break ended,
                }
            };
            if let Ended::Limit(limit, message) = &ended {
                own.caller.tell_quota(limit, message).await;
            }
            match exit_of(ended) {
                End::Exit(Exit::OverQuota(why)) if own.caller.spec().on_quota == OnQuota::Suspend => {
                    kernel.park(&own, why).await;
                }
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
        if lock(&owner.settling).contains(&process.caller.spec().root().pid) {
            let why = "has its private copies applied or discarded at this moment: try again".to_owned();
            return Err(Error::State { pid, why });
        }
        let spec = process.caller.spec();
        let (own, run) = (process.clone(), AssertUnwindSafe(run).catch_unwind());
        let run = async move {
            if run.await.is_err() {
                // What it panicked with is in the log already.
                set_aside(&own, End::Suspended("the kernel failed while it ran it: report this".to_owned()));
            }
        };
        let task = owner.scheduler.add(
            &TaskSpec {
                pid,
                group: spec.group.as_str().into(),
                tree: spec.root().pid.0,
                nice: Nice::new(i64::from(spec.nice)).unwrap_or_default(),
            },
            run,
        );
        owner.tree.add(pid, process.caller.spec().ppid);
        live.insert(pid, Live { process: process.clone(), task });
        Ok(())
    }

    /// Gives the children that a process leaves behind to its spawner.
    pub(super) async fn give_orphans(&self, pid: Pid) {
        let Some(owner) = &self.0.owner else { return };
        let (orphans, heir) = owner.tree.remove(pid);
        for orphan in orphans {
            let store = &self.0.services.store;
            let _respec = owner.respec.lock().await;
            let given = async {
                store.sync_all().await;
                let Some(row) = store.process(orphan).await? else { return Ok(()) };
                let spec = ProcessSpec { ppid: heir, ..row.spec };
                store.enqueue(Batch { pid: orphan, changes: vec![Change::Respec(Box::new(spec))] }).await
            };
            if let Err(e) = given.await {
                tracing::warn!(pid = orphan.0, "its record still names process {pid}, which has ended: {e}");
            }
        }
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
        let (mut changes, locks) = match self.last_changes(pid).await {
            Ok(last) => last,
            Err(e) => {
                let why = e.to_string();
                set_aside(process, End::Suspended(why.clone()));
                return End::Suspended(why);
            }
        };
        changes.extend([Change::Usage(usage), Change::Exit(exit.clone()), Change::Audit(audit)]);
        if let Err(e) = self.0.services.store.commit(Batch { pid, changes }).await {
            let why = e.chain();
            set_aside(process, End::Suspended(why.clone()));
            return End::Suspended(why);
        }
        locks.iter().for_each(|lock| self.0.services.ipc.locks.give(lock, pid));
        self.give_orphans(pid).await;
        if caller.spec().root.is_none() {
            self.0.services.models.finished(pid.0);
        }
        // The head of each ended chain stands in the kernel's chain too: a chain that is cut or made
        // anew later does not fit it.
        if let Err(e) = self.audit("exit", &head, exit.status(), "kernel").await {
            tracing::warn!("the exit of process {pid} is not in the kernel's audit chain: {e}");
        }
        let ended =
            || json!(subject::Ended { status: exit.status().to_owned(), message: exit.message().to_owned(), usage });
        caller.tell_hooks(Hook::OnAgentExit, caller.spec().agent.clone(), ended).await;
        caller.emit(caller.position(), exit_event(&exit, usage));
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

fn ending(pid: Pid, end: Option<End>) -> Result<Exit, Error> {
    match end {
        Some(End::Exit(exit)) => Ok(exit),
        Some(End::Suspended(why)) => Err(Error::Suspended { pid, why }),
        Some(End::Unanswered(source)) => Err(Error::Unanswered { pid, source }),
        None => Err(Error::Suspended { pid, why: "the kernel was shut down".to_owned() }),
    }
}

fn exit_event(exit: &Exit, usage: Usage) -> EventKind {
    let (answer, message) = match exit {
        Exit::Success(answer) => (Some(answer.clone()), None),
        other => (None, Some(other.message().to_owned())),
    };
    EventKind::Exit { status: exit.status().to_owned(), answer, message, usage }
}

/// Runs an agent from its beginning to its end, or to its time's.
async fn run_once(caller: &Caller, image: &AgentImage) -> Ended {
    let wall = Duration::from_millis(caller.spec().quota.wall_ms)
        .saturating_sub(Duration::from_micros(caller.usage().wall_us));
    match tokio::time::timeout(wall, image.run(caller.clone(), Limits::AGENT)).await {
        Ok(ended) => ended,
        Err(_) => {
            let allowed = caller.spec().quota.wall_ms;
            Ended::Limit("wall".to_owned(), format!("it ran longer than its {allowed} ms; allow more with --timeout"))
        }
    }
}

/// A process that is about to be resumed, by one only.
struct Resuming<'a> {
    kernel: &'a Kernel,
    pid: Pid,
}

impl Drop for Resuming<'_> {
    fn drop(&mut self) {
        if let Some(owner) = &self.kernel.0.owner {
            lock(&owner.resuming).remove(&self.pid);
        }
    }
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

/// A process that is ready: what makes it durable, and what runs it then.
pub(super) struct Prepared {
    pub(super) pid: Pid,
    pub(super) changes: Vec<Change>,
    pub(super) life: Life,
    pub(super) image: Arc<AgentImage>,
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
        // Whoever runs it makes it that first.
        Ended::Exec => return End::Suspended("it is another agent now".to_owned()),
        Ended::Unanswered(error) => return End::Unanswered(error),
    })
}

/// How a model's tokens are counted. The vocabulary is read here, and not on a guest's small stack.
fn counter(model: &str) -> Counter {
    let counter = Counter::of_model(model);
    let _ = counter.text("");
    counter
}
