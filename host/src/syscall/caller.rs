//! `Caller`: one process's side of the kernel. It owns what must be handed out in call order
//! (journal positions, page ids, request numbers) and the records of an earlier life to replay.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicI8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc::UnboundedSender;

use super::path::Act;
use super::peers::Family;
use super::{Approvals, Peers, Stop, Syscall};
use crate::audit::Chain;
use crate::capability::Rights;
use crate::config::GroupConfig;
use crate::context::PageManager;
use crate::hook::HookChain;
use crate::ipc::Ipc;
use crate::llm::Models;
use crate::llm::device::Standing;
use crate::metrics::Metrics;
use crate::overlay::{Area, Areas};
use crate::process::weight::NORMAL;
use crate::process::{Epoch, Event, EventKind, Mount, Pid, ProcessSpec, Seq, Usage};
use crate::quota::{Account, Reservation, Resource};
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
    /// Messages, locks, and who waits for whom.
    pub ipc: Ipc,
    /// Groups that the configuration says something of.
    pub groups: BTreeMap<String, GroupConfig>,
    /// The kernel, as far as processes ask it about each other.
    pub kernel: OnceLock<Weak<dyn Peers>>,
    /// Model providers.
    pub models: Models,
    /// Stage 9.
    pub metrics: Metrics,
}

impl Services {
    /// How urgent a process's model calls are: as its own nice value says, or that of one that waits for it.
    pub(crate) fn standing(&self, caller: &Caller) -> Standing {
        let group = &caller.spec().group;
        let weight = self.groups.get(group).map_or(GroupConfig::default().weight, |group| group.weight);
        Standing { group: group.as_str().into(), group_weight: share(weight), nice: caller.effective_nice() }
    }

    /// The other processes; `None` once the kernel is gone.
    pub(super) fn peers(&self) -> Option<Family> {
        self.kernel.get().and_then(Weak::upgrade)
    }
}

/// A group's weight, of which 100 is the usual one, in the unit of nice values.
#[must_use]
pub(crate) fn share(weight: u32) -> u32 {
    (weight.saturating_mul(NORMAL) / 100).max(1)
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
    /// The end of a process.
    Process(Pid),
    Message,
    Lock(String),
}

/// A process that only waits, and what it takes to go on with that in another life.
#[derive(Debug)]
pub struct Dormant {
    /// The start of its wait, for the journal; `None` where that has it.
    pub start: Option<JournalRecord>,
    /// When the wait is over by itself, Unix milliseconds.
    pub until_ms: Option<u64>,
    /// What it waits on, for people.
    pub what: &'static str,
    /// How long it has waited.
    pub since: Duration,
}

/// A wait that may be long.
#[derive(Debug)]
struct Park {
    start: Option<JournalRecord>,
    until_ms: Option<u64>,
    what: &'static str,
    began: Instant,
}

/// What a call at a position waits on, and how it can go on with that in another life.
type Doing = (Seq, Activity, Option<Box<Park>>);

/// What one call waits on, until this is dropped.
#[derive(Debug)]
pub(super) struct Waiting<'a> {
    caller: &'a Caller,
    seq: Seq,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        lock(&self.caller.0.activities).retain(|(seq, ..)| *seq != self.seq);
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
    /// Fuel that the account knows of.
    booked: u64,
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
    activities: Mutex<Vec<Doing>>,
    stopping: OnceLock<Stop>,
    kept: Kept,
    account: Arc<Account>,
    nice: AtomicI8,
    /// The nice value of the most urgent of those that wait for it, or its own.
    effective_nice: AtomicI8,
    /// What its spawner holds for it as long as it lives.
    lease: Mutex<Option<Reservation>>,
    term: Term,
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
    /// Its account, which knows `usage` already.
    pub account: Arc<Account>,
    /// What its spawner holds for it.
    pub lease: Option<Reservation>,
}

/// Whether the process is told to end.
#[derive(Debug, Default)]
struct Term {
    /// Milliseconds to finish in, once it is told; 0 = it is not, or has been.
    grace_ms: AtomicU64,
    told: tokio::sync::Notify,
}

impl Caller {
    /// Makes the kernel's side of a process, new or resumed.
    #[must_use]
    pub fn new(services: Arc<Services>, life: Life) -> Self {
        let Life { spec, pages, first_page, usage, chain, journal, account, lease } = life;
        let at = spec.epoch.unwrap_or(Epoch { page: first_page, clock_ms: spec.created_ms, ..Epoch::default() });
        let counters = Counters {
            seq: at.seq,
            next_page: at.page,
            requests: at.requests,
            usage,
            fuel: at.fuel,
            booked: usage.fuel,
        };
        Self(Arc::new(Inner {
            clock: Arc::new(AtomicU64::new(at.clock_ms)),
            nice: AtomicI8::new(spec.nice),
            effective_nice: AtomicI8::new(spec.nice),
            spec,
            services,
            replay: journal.into_iter().map(|r| (r.seq, r)).collect(),
            counters: Mutex::new(counters),
            pages: Mutex::new(pages),
            chain: tokio::sync::Mutex::new(chain),
            subscribers: Mutex::new(Vec::new()),
            activities: Mutex::default(),
            stopping: OnceLock::new(),
            kept: Kept::default(),
            account,
            lease: Mutex::new(lease),
            term: Term::default(),
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
        drop(lock(&self.0.lease).take());
    }

    /// Where it stands, for what it becomes by an `exec` at its last position.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        let counters = lock(&self.0.counters);
        Epoch {
            seq: counters.seq,
            page: counters.next_page,
            requests: counters.requests,
            fuel: counters.fuel,
            clock_ms: self.0.clock.load(Ordering::Relaxed),
        }
    }

    /// Hands those who watch, and what its spawner holds for it, to what it becomes.
    #[must_use]
    pub fn leave(&self) -> (Vec<UnboundedSender<Event>>, Option<Reservation>) {
        self.0.kept.clear();
        (std::mem::take(&mut *lock(&self.0.subscribers)), lock(&self.0.lease).take())
    }

    /// Its nice value, which may have changed since its spawn.
    #[must_use]
    pub fn nice(&self) -> i8 {
        self.0.nice.load(Ordering::Relaxed)
    }

    /// The nice value of the most urgent of those that wait for it, or its own.
    #[must_use]
    pub fn effective_nice(&self) -> i8 {
        self.0.effective_nice.load(Ordering::Relaxed)
    }

    /// Sets both; what is effective is no higher than its own.
    pub fn set_nice(&self, own: i8, effective: i8) {
        self.0.nice.store(own, Ordering::Relaxed);
        self.0.effective_nice.store(effective.min(own), Ordering::Relaxed);
    }

    /// Its account.
    #[must_use]
    pub fn account(&self) -> &Arc<Account> {
        &self.0.account
    }

    /// Tells the process to end within so many milliseconds: what it waits on next, or now, is given up with that.
    pub fn tell_to_end(&self, grace_ms: u64) {
        self.0.term.grace_ms.store(grace_ms.max(1), Ordering::SeqCst);
        self.0.term.told.notify_waiters();
    }

    /// Returns when a wait is to be given up, with the milliseconds that are left; once for each time that it is told.
    pub(super) async fn told_to_end(&self, syscall: &Syscall) -> u64 {
        if !syscall.is_a_wait() {
            std::future::pending::<()>().await;
        }
        loop {
            let told = self.0.term.told.notified();
            match self.0.term.grace_ms.swap(0, Ordering::SeqCst) {
                0 => told.await,
                grace_ms => return grace_ms,
            }
        }
    }

    /// Notes bytes that it had the store write.
    pub(super) fn charge_store(&self, bytes: u64) {
        self.charge(|u| u.store_bytes += bytes);
        self.0.account.charge(Resource::StoreBytes, bytes);
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
            Activity::Process(pid) => format!("process {pid}"),
            Activity::Message => "message".to_owned(),
            Activity::Lock(name) => format!("lock {name}"),
        };
        let names: Vec<_> = lock(&self.0.activities).iter().map(|(_, what, _)| name(what)).collect();
        (!names.is_empty()).then(|| names.join(", "))
    }

    /// Whether it waits for a person.
    #[must_use]
    pub fn is_parked(&self) -> bool {
        lock(&self.0.activities).iter().any(|(_, what, _)| matches!(what, Activity::Approval(_)))
    }

    /// Whether it makes calls for a client outside, whom nobody resumes.
    pub(super) fn is_client(&self) -> bool {
        self.0.spec.agent == CLIENT
    }

    /// Says what call `seq` waits on, until the answer is dropped.
    pub(super) fn waits_on(&self, seq: Seq, what: Activity) -> Waiting<'_> {
        lock(&self.0.activities).push((seq, what, None));
        Waiting { caller: self, seq }
    }

    /// As [`Self::waits_on`], for a wait that the process need not be in memory for: it ends by itself at `until_ms`.
    pub(super) fn parks_on(&self, act: &Act, what: Activity, until_ms: Option<u64>) -> Waiting<'_> {
        let name = match &what {
            Activity::Timer => "timer",
            _ => "message",
        };
        let start = (!act.is_recorded).then(|| act.start(self.0.spec.pid, None));
        let park = Park { start, until_ms, what: name, began: Instant::now() };
        lock(&self.0.activities).push((act.ticket.seq, what, Some(Box::new(park))));
        Waiting { caller: self, seq: act.ticket.seq }
    }

    /// What the process waits on, where it only waits and can leave memory meanwhile.
    #[must_use]
    pub fn dormant(&self) -> Option<Dormant> {
        if self.stopping().is_some() || self.is_client() {
            return None;
        }
        match &lock(&self.0.activities)[..] {
            [(_, _, Some(park))] => Some(Dormant {
                start: park.start.clone(),
                until_ms: park.until_ms,
                what: park.what,
                since: park.began.elapsed(),
            }),
            _ => None,
        }
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
        let mut counters = lock(&self.0.counters);
        counters.fuel = used;
        self.book(&mut counters);
    }

    /// Tells the account of fuel that it has not heard of. A replay uses again what is known.
    fn book(&self, counters: &mut Counters) {
        if let Some(new) = counters.fuel.checked_sub(counters.booked).filter(|new| *new > 0) {
            counters.booked = counters.fuel;
            self.0.account.charge(Resource::Fuel, new);
        }
    }

    /// Adds a nested guest's fuel to what [`Self::note_fuel`] said.
    pub(super) fn add_fuel(&self, nested: u64) {
        let mut counters = lock(&self.0.counters);
        counters.fuel = counters.fuel.saturating_add(nested);
        self.book(&mut counters);
    }

    /// Fuel that the process may still use.
    pub(super) fn fuel_left(&self) -> u64 {
        let own = self.0.spec.quota.fuel.saturating_sub(lock(&self.0.counters).fuel);
        own.min(self.0.account.left(Resource::Fuel))
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
