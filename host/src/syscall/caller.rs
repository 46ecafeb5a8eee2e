//! `Caller`: one process's side of the kernel. It owns what must be handed out in call order
//! (journal positions, page ids, request numbers) and the records of an earlier life to replay.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc::UnboundedSender;

use super::{Approvals, Stop, Syscall};
use crate::audit::Chain;
use crate::capability::Rights;
use crate::context::PageManager;
use crate::hook::HookChain;
use crate::llm::Models;
use crate::metrics::Metrics;
use crate::overlay::{Area, Areas};
use crate::process::{Event, EventKind, Mount, ProcessSpec, Seq, Usage};
use crate::storage::{JournalRecord, Store};
use crate::tool::{Entry, Kept, ToolExecutor, ToolRegistry, ToolSecurity};

/// The subsystems that the path leads to, shared by all processes.
#[derive(Debug)]
pub struct Services {
    /// The store.
    pub store: Store,
    /// Stage 2 and 7.
    pub hooks: Arc<HookChain>,
    /// Questions to people.
    pub approvals: Approvals,
    /// Which tools there are.
    pub tools: Arc<ToolRegistry>,
    /// Stage 3 for tools.
    pub security: Arc<ToolSecurity>,
    /// How one is called.
    pub executor: ToolExecutor,
    /// Where processes write that have private mounts.
    pub areas: Areas,
    /// Model providers.
    pub models: Models,
    /// Stage 9.
    pub metrics: Metrics,
}

/// The agent name of a process that makes tool calls for a client outside.
pub const CLIENT: &str = "client";

/// Wall-clock time in Unix milliseconds.
#[must_use]
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Positions and ids reserved for one call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    pub(super) seq: Seq,
    /// The page that the call may make.
    pub(super) page: u64,
    /// Which model request this is, from 1.
    pub(super) request: u64,
}

/// What a process waits on.
#[derive(Debug)]
pub(super) enum Activity {
    Timer,
    Model(String),
    Tool(Arc<Entry>),
    /// The answer to a question.
    Approval(u64),
}

/// What one call waits on, until this is dropped.
#[derive(Debug)]
pub(super) struct Waiting<'a> {
    caller: &'a Caller,
    seq: Seq,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        lock(&self.caller.0.activities).retain(|(seq, _)| *seq != self.seq);
    }
}

/// What is handed out in call order.
#[derive(Debug)]
struct Counters {
    seq: Seq,
    next_page: u64,
    requests: u64,
    usage: Usage,
    /// Fuel used up to the current host call, nested guests included.
    fuel: u64,
}

/// One process's side of the kernel. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Caller(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    spec: ProcessSpec,
    services: Arc<Services>,
    replay: BTreeMap<Seq, JournalRecord>,
    counters: Mutex<Counters>,
    pages: Mutex<PageManager>,
    chain: tokio::sync::Mutex<Chain>,
    /// The agent's clock: the instant of its last outcome.
    clock: Arc<AtomicU64>,
    subscribers: Mutex<Vec<UnboundedSender<Event>>>,
    activities: Mutex<Vec<(Seq, Activity)>>,
    stopping: OnceLock<Stop>,
    kept: Kept,
    area: Mutex<Option<Arc<Area>>>,
    started: Instant,
    wall_us_before: u64,
}

/// What a caller is made of.
#[derive(Debug)]
pub struct Life {
    /// The process.
    pub spec: ProcessSpec,
    /// Its pages.
    pub pages: PageManager,
    /// The first page id that a syscall may take.
    pub first_page: u64,
    /// What it has used in earlier lives.
    pub usage: Usage,
    /// Its audit chain.
    pub chain: Chain,
    /// Its journal of earlier lives.
    pub journal: Vec<JournalRecord>,
}

impl Caller {
    /// Makes the kernel's side of a process, new or resumed.
    #[must_use]
    pub fn new(services: Arc<Services>, life: Life) -> Self {
        let Life { spec, pages, first_page, usage, chain, journal } = life;
        Self(Arc::new(Inner {
            clock: Arc::new(AtomicU64::new(spec.created_ms)),
            spec,
            services,
            replay: journal.into_iter().map(|r| (r.seq, r)).collect(),
            counters: Mutex::new(Counters { seq: 0, next_page: first_page, requests: 0, usage, fuel: 0 }),
            pages: Mutex::new(pages),
            chain: tokio::sync::Mutex::new(chain),
            subscribers: Mutex::new(Vec::new()),
            activities: Mutex::default(),
            stopping: OnceLock::new(),
            kept: Kept::default(),
            area: Mutex::default(),
            started: Instant::now(),
            wall_us_before: usage.wall_us,
        }))
    }

    /// What was fixed when the process was spawned.
    #[must_use]
    pub fn spec(&self) -> &ProcessSpec {
        &self.0.spec
    }

    pub(super) fn services(&self) -> &Services {
        &self.0.services
    }

    /// The agent's clock, in Unix milliseconds: moves with each outcome, never in between.
    #[must_use]
    pub fn clock(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.0.clock)
    }

    pub(super) fn advance_clock(&self, to_ms: u64) {
        self.0.clock.fetch_max(to_ms, Ordering::Relaxed);
    }

    /// Moves the agent's clock to a timer's instant, once a journaled sleep has passed it.
    pub(crate) fn reach(&self, to_ms: u64) {
        self.advance_clock(to_ms);
    }

    /// Sends the process's events to `to` from now on.
    pub fn subscribe(&self, to: UnboundedSender<Event>) {
        lock(&self.0.subscribers).push(to);
    }

    /// What the process's stateful plugins keep.
    pub(super) fn kept(&self) -> &Kept {
        &self.0.kept
    }

    /// Where the changes of its private mounts are kept, where a call with these rights has one.
    pub(super) fn area(&self, rights: &Rights) -> io::Result<Option<Arc<Area>>> {
        if !rights.mounts.iter().any(Mount::is_private) {
            return Ok(None);
        }
        let mut area = lock(&self.0.area);
        if area.is_none() {
            *area = Some(self.0.services.areas.open(&self.0.spec)?);
        }
        Ok(area.clone())
    }

    /// Ends the events of everybody who watches, and what its plugins kept: the process runs no more.
    pub fn close(&self) {
        lock(&self.0.subscribers).clear();
        self.0.kept.clear();
    }

    /// Tells the subscribers; those that are gone are forgotten.
    pub fn emit(&self, seq: Seq, kind: EventKind) {
        let mut subscribers = lock(&self.0.subscribers);
        if subscribers.is_empty() {
            return;
        }
        let event = Event { pid: self.0.spec.pid, seq, at_ms: now_ms(), kind };
        subscribers.retain(|s| s.send(event.clone()).is_ok());
    }

    pub(super) fn has_subscribers(&self) -> bool {
        !lock(&self.0.subscribers).is_empty()
    }

    /// What the process waits on right now, for people.
    #[must_use]
    pub fn activity(&self) -> Option<String> {
        let name = |what: &Activity| match what {
            Activity::Timer => "timer".to_owned(),
            Activity::Model(name) => format!("model {name}"),
            Activity::Tool(entry) => format!("tool {}", entry.spec.name),
            Activity::Approval(id) => format!("approval {id}"),
        };
        let names: Vec<_> = lock(&self.0.activities).iter().map(|(_, what)| name(what)).collect();
        (!names.is_empty()).then(|| names.join(", "))
    }

    /// Whether it waits for a person.
    #[must_use]
    pub fn is_parked(&self) -> bool {
        lock(&self.0.activities).iter().any(|(_, what)| matches!(what, Activity::Approval(_)))
    }

    /// Whether it makes calls for a client outside, whom nobody resumes.
    pub(super) fn is_client(&self) -> bool {
        self.0.spec.agent == CLIENT
    }

    /// Says what call `seq` waits on, until the answer is dropped.
    pub(super) fn waits_on(&self, seq: Seq, what: Activity) -> Waiting<'_> {
        lock(&self.0.activities).push((seq, what));
        Waiting { caller: self, seq }
    }

    /// The pages. Never held across an await.
    pub fn pages(&self) -> MutexGuard<'_, PageManager> {
        lock(&self.0.pages)
    }

    pub(super) fn chain(&self) -> &tokio::sync::Mutex<Chain> {
        &self.0.chain
    }

    /// Hands the audit chain out for the process's last records.
    pub async fn with_chain<R>(&self, f: impl FnOnce(&mut Chain) -> R) -> R {
        f(&mut *self.0.chain.lock().await)
    }

    /// Makes the process stop at its next host call or epoch tick. The first reason holds.
    pub fn stop(&self, reason: Stop) -> Stop {
        self.0.stopping.get_or_init(|| reason).clone()
    }

    /// Why the process must stop, if it must.
    #[must_use]
    pub fn stopping(&self) -> Option<&Stop> {
        self.0.stopping.get()
    }

    /// What the process has used up to now but for the time, which takes a look at the clock.
    pub(super) fn used(&self) -> Usage {
        let counters = lock(&self.0.counters);
        // A replay starts from 0 and has not yet used again what an earlier life did.
        Usage { fuel: counters.usage.fuel.max(counters.fuel), ..counters.usage }
    }

    /// What the process has used up to now.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let wall = u64::try_from(self.0.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        Usage { wall_us: self.0.wall_us_before.saturating_add(wall), ..self.used() }
    }

    pub(super) fn charge(&self, f: impl FnOnce(&mut Usage)) {
        f(&mut lock(&self.0.counters).usage);
    }

    /// Notes the exact fuel that the process's own code and its tools have used so far.
    pub fn note_fuel(&self, used: u64) {
        lock(&self.0.counters).fuel = used;
    }

    /// Adds a nested guest's fuel to what [`Self::note_fuel`] said.
    pub(super) fn add_fuel(&self, nested: u64) {
        let mut counters = lock(&self.0.counters);
        counters.fuel = counters.fuel.saturating_add(nested);
    }

    /// Fuel that the process may still use.
    pub(super) fn fuel_left(&self) -> u64 {
        self.0.spec.quota.fuel.saturating_sub(lock(&self.0.counters).fuel)
    }

    pub(super) fn reserve(&self, syscall: &Syscall) -> Ticket {
        let mut counters = lock(&self.0.counters);
        counters.seq += 1;
        let page = counters.next_page;
        counters.next_page += syscall.page_ids();
        if matches!(syscall, Syscall::Generate(_)) {
            counters.requests += 1;
        }
        Ticket { seq: counters.seq, page, request: counters.requests }
    }

    /// The record of an earlier life at `seq`.
    pub(super) fn recorded(&self, seq: Seq) -> Option<&JournalRecord> {
        self.0.replay.get(&seq)
    }

    /// The last journal position handed out.
    #[must_use]
    pub fn position(&self) -> Seq {
        lock(&self.0.counters).seq
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while one of these is held leaves plain numbers and lists, all still valid.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
