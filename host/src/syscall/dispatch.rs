//! Stages 3 to 6 and what differs between calls: the only place that knows the subsystems.

mod model;
mod peers;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::path::Act;
use super::{Caller, Cost, Outcome, PageBrief, Stop, Syscall, UsageBrief, caller::Activity, caller::now_ms};
use crate::abi::{Effect, Errno, Error, Finish, ToolResult, ToolSpec};
use crate::capability::Rights;
use crate::context::{self, ContextPage, NewPage, Placement, Read};
use crate::hook::Hook;
use crate::hook::subject::Page;
use crate::process::EventKind;
use crate::quota::{Exceeded, Reservation, Resource};
use crate::storage::{Change, PageKind};
use crate::tool::{Client, Entry, LOG_LINE_OVERHEAD, LogLine, Lookup, conflict};
use model::ModelCall;

/// What the policy stage found for a call.
pub(super) enum Admitted {
    Plain,
    Tool(Arc<Entry>, Rights),
    Model(Box<ModelCall>),
}

impl Admitted {
    pub(super) fn effect(&self) -> Option<Effect> {
        match self {
            Self::Tool(entry, _) => Some(entry.spec.effect),
            Self::Plain | Self::Model(_) => None,
        }
    }
}

/// What a dispatched call gave.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) outcome: Outcome,
    pub(super) changes: Vec<Change>,
    pub(super) lines: Vec<LogLine>,
    pub(super) cost: Cost,
    /// What is to be done when all of it is on its way to the store.
    pub(super) after: After,
}

/// See [`Done`]. Dropped, it is not done.
#[derive(Default)]
pub(super) struct After(Option<Box<dyn FnOnce() + Send>>);

impl After {
    pub(super) fn run(self) {
        if let Some(after) = self.0 {
            after();
        }
    }
}

impl fmt::Debug for After {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "After" } else { "nothing" })
    }
}

impl Default for Done {
    fn default() -> Self {
        let (outcome, cost) = (Outcome::Done, Cost::default());
        Self { outcome, changes: Vec::new(), lines: Vec::new(), cost, after: After::default() }
    }
}

impl Done {
    pub(super) fn failed(error: Error) -> Self {
        Self::from(Outcome::Failed(error))
    }

    fn then(self, after: impl FnOnce() + Send + 'static) -> Self {
        Self { after: After(Some(Box::new(after))), ..self }
    }
}

impl From<Outcome> for Done {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, ..Self::default() }
    }
}

/// Longest sleep of one call.
const MAX_SLEEP_MS: u64 = 30 * 24 * 3_600_000;
/// Longest state key and largest state value, in bytes.
const MAX_KEY: usize = 512;
const MAX_VALUE: usize = 1 << 20;

impl Caller {
    /// Stage 3: whether this process may do this to that, and with what.
    pub(super) async fn admit(&self, act: &Act, syscall: &Syscall) -> Result<Admitted, Error> {
        match syscall {
            Syscall::Call { call, .. } => {
                let services = self.services();
                let entry = match services.tools.find(&call.name) {
                    Lookup::Found(entry) => entry,
                    Lookup::Ambiguous(names) => {
                        return Err(Error::new(
                            Errno::NotFound,
                            format!("`{}` is ambiguous: say one of {}", call.name, names.join(", ")),
                        ));
                    }
                    Lookup::Unknown => {
                        let names: Vec<_> = self.offered().into_iter().map(|s| s.name).collect();
                        return Err(Error::new(
                            Errno::NotFound,
                            format!("there is no tool `{}`; there are: {}", call.name, names.join(", ")),
                        ));
                    }
                };
                services.executor.check(&entry, &call.arguments)?;
                let rights = services.security.admit(self.spec(), &entry)?;
                Ok(Admitted::Tool(entry, rights))
            }
            Syscall::Generate(options) => {
                Box::pin(self.admit_model(act, options)).await.map(|m| Admitted::Model(Box::new(m)))
            }
            Syscall::Sleep { ms } if *ms > MAX_SLEEP_MS => {
                Err(Error::new(Errno::Invalid, format!("a sleep of {ms} ms is over the limit of {MAX_SLEEP_MS} ms")))
            }
            Syscall::StateGet { key } | Syscall::StateDelete { key } => check_key(key).map(|()| Admitted::Plain),
            Syscall::StatePut { key, value, .. } => {
                check_key(key)?;
                if value.len() > MAX_VALUE {
                    return Err(Error::new(
                        Errno::TooLarge,
                        format!("the value of `{key}` has {} bytes, the most is {MAX_VALUE}", value.len()),
                    ));
                }
                Ok(Admitted::Plain)
            }
            Syscall::Wait { .. }
            | Syscall::Signal { .. }
            | Syscall::Send { .. }
            | Syscall::Publish { .. }
            | Syscall::Subscribe { .. }
            | Syscall::Receive { .. }
            | Syscall::Lock { .. }
            | Syscall::Unlock { .. } => Box::pin(self.admit_peers(syscall)).await.map(|()| Admitted::Plain),
            _ => Ok(Admitted::Plain),
        }
    }

    /// A page that only the store has, as hooks are shown it.
    pub(super) fn swapped_page(&self, id: u64) -> Option<Page> {
        self.pages().page(id).filter(|page| !page.meta.resident).map(about)
    }

    /// The tools that this process is told of.
    pub(super) fn offered(&self) -> Vec<ToolSpec> {
        let services = self.services();
        let all = services.tools.all();
        all.iter().filter(|e| services.security.offers(self.spec(), e)).map(|e| e.spec.clone()).collect()
    }

    /// Stage 4: what the call may use at most must fit what is left, here and in every account above.
    pub(super) fn quota_reserve(&self, syscall: &Syscall, admitted: &Admitted) -> Result<Option<Reservation>, Stop> {
        let account = self.account();
        let over = |e: Exceeded| self.over_quota(e.resource.name(), quota_message(&e));
        for resource in [Resource::Fuel, Resource::StoreBytes] {
            account.exhausted(resource).map_or(Ok(()), |e| Err(over(e)))?;
        }
        match (syscall, admitted) {
            (Syscall::Call { .. }, _) => account.reserve(Resource::ToolCalls, 1).map(Some).map_err(over),
            (_, Admitted::Model(call)) => {
                account.exhausted(Resource::MicroUsd).map_or(Ok(()), |e| Err(over(e)))?;
                // The prompt, and at least one token of a reply.
                let tokens = u64::from(call.fitted.prompt_tokens) + 1;
                account.reserve(Resource::Tokens, tokens).map(Some).map_err(over)
            }
            _ => Ok(None),
        }
    }

    /// Whether it may go on computing.
    ///
    /// # Errors
    /// [`Stop::OverQuota`] where its fuel or that of an account above is used up.
    pub fn check_fuel(&self) -> Result<(), Stop> {
        match self.account().exhausted(Resource::Fuel) {
            None => Ok(()),
            Some(e) => Err(self.over_quota(e.resource.name(), quota_message(&e))),
        }
    }

    /// Ends the process for a quota.
    fn over_quota(&self, limit: &str, message: String) -> Stop {
        self.stop(Stop::OverQuota { limit: limit.to_owned(), message })
    }

    /// Stage 5.
    ///
    /// # Errors
    /// [`Stop::Provider`]: the call has no outcome.
    pub(super) async fn dispatch(&self, act: &Act, syscall: &Syscall, admitted: &Admitted) -> Result<Done, Stop> {
        let done = match (syscall, admitted) {
            (Syscall::Call { call, .. }, Admitted::Tool(entry, rights)) => {
                self.call_tool(act, &call.id, &call.arguments, entry, rights).await
            }
            (Syscall::Generate(options), Admitted::Model(model)) => {
                Box::pin(self.ask_model(act, options, model)).await?
            }
            (Syscall::Log { level, message }, _) => self.write_log(level, message),
            (Syscall::StateGet { .. } | Syscall::StatePut { .. } | Syscall::StateDelete { .. }, _) => {
                self.state(syscall).await
            }
            (Syscall::Sleep { ms }, _) => {
                // The time that an earlier life waited counts.
                let (left, until_ms) = act.left(*ms);
                let _waiting = self.parks_on(act, Activity::Timer, Some(until_ms));
                tokio::time::sleep(Duration::from_millis(left)).await;
                Done::default()
            }
            (Syscall::Available, _) => Outcome::Tools(self.offered()).into(),
            (Syscall::SelfPid, _) => Outcome::Number(self.spec().pid.0).into(),
            (Syscall::Step, _) => Done::default(),
            (
                Syscall::Append { .. }
                | Syscall::Read { .. }
                | Syscall::Pin { .. }
                | Syscall::SetImportance { .. }
                | Syscall::Pages
                | Syscall::Usage,
                _,
            ) => self.context(act, syscall).await,
            _ => Box::pin(self.peers(act, syscall)).await,
        };
        let mut cost = act.cost();
        cost.fuel = done.cost.fuel;
        cost.memory_bytes = done.cost.memory_bytes;
        Ok(Done { cost, ..done })
    }

    async fn call_tool(&self, act: &Act, id: &str, arguments: &str, entry: &Arc<Entry>, rights: &Rights) -> Done {
        if self.has_subscribers() {
            let arguments = serde_json::from_str(arguments).unwrap_or_default();
            self.emit(
                act.ticket.seq,
                EventKind::ToolStart { id: id.to_owned(), name: entry.spec.name.clone(), arguments },
            );
        }
        let waiting = self.waits_on(act.ticket.seq, Activity::Tool(Arc::clone(entry)));
        let area = match self.area(rights) {
            Ok(area) => area,
            Err(e) => return Outcome::Failed(Error::new(Errno::Io, format!("the private copy: {e}"))).into(),
        };
        let client = Client {
            pid: self.spec().pid,
            idempotency_key: format!("{:016x}-{}-{}", self.spec().seed, self.spec().pid, act.ticket.seq),
            rights: rights.clone(),
            area,
            fuel: self.fuel_left(),
            kept: self.kept(),
        };
        let report = self.services().executor.run(entry, arguments.to_owned(), client).await;
        drop(waiting);
        self.add_fuel(report.fuel);
        let outcome = match report.result {
            Ok(text) => Outcome::Text(text),
            Err(e) => Outcome::Failed(self.advised(entry, e)),
        };
        Done {
            outcome,
            changes: report.session.changes,
            lines: report.session.lines,
            cost: Cost { fuel: report.fuel, memory_bytes: report.memory_bytes, duration_us: 0 },
            after: After::default(),
        }
    }

    /// What a tool was denied, with the grant that its plugin lacks.
    fn advised(&self, tool: &Entry, mut error: Error) -> Error {
        const GRANT: &str = "aok plugin grant";
        if error.code == Errno::Denied
            && !error.message.contains(GRANT)
            && let Some(advice) = self.services().security.advice(tool)
        {
            error.message = format!("{}; {advice}", error.message);
        }
        error
    }

    fn write_log(&self, level: &'static str, message: &str) -> Done {
        let bytes = message.len() as u64 + LOG_LINE_OVERHEAD;
        let limit = crate::quota::Limits::AGENT.log;
        if self.usage().log_bytes + bytes > limit {
            let stop = self.over_quota("log", format!("it logged more than {limit} bytes"));
            return Done::failed(Error::limit("log", stop.to_string()));
        }
        self.charge(|u| u.log_bytes += bytes);
        Done { lines: vec![LogLine { level, message: message.to_owned() }], ..Done::default() }
    }

    async fn state(&self, syscall: &Syscall) -> Done {
        match self.state_result(syscall).await {
            Ok(done) => done,
            Err(error) => Done::failed(error),
        }
    }

    async fn state_result(&self, syscall: &Syscall) -> Result<Done, Error> {
        let pid = self.spec().pid;
        let scope = format!("pid:{pid}");
        let store = &self.services().store;
        let failed = |e: crate::storage::Error| Error::new(Errno::Io, format!("the process's state: {e}"));
        let read = async |key: &str| {
            store.sync(pid).await.map_err(failed)?;
            store.state(&scope, key).await.map_err(failed)
        };
        Ok(match syscall {
            Syscall::StateGet { key } => Outcome::Entry(read(key).await?.map(|e| (e.value, e.revision))).into(),
            Syscall::StatePut { key, value, expected } => {
                let found = read(key).await?.map_or(0, |e| e.revision);
                if let Some(expected) = expected.filter(|e| *e != found) {
                    return Err(conflict(key, expected, found));
                }
                // Only this process writes its scope, so what was read holds until the batch commits.
                let put = Change::StatePut { scope, key: key.clone(), value: value.clone(), expected: None };
                Done { outcome: Outcome::Number(found + 1), changes: vec![put], ..Done::default() }
            }
            Syscall::StateDelete { key } => {
                Done { changes: vec![Change::StateDelete { scope, key: key.clone() }], ..Done::default() }
            }
            _ => Done::default(),
        })
    }

    async fn context(&self, act: &Act, syscall: &Syscall) -> Done {
        match self.context_result(act, syscall).await {
            Ok(done) => done,
            Err(error) => Done::failed(error),
        }
    }

    async fn context_result(&self, act: &Act, syscall: &Syscall) -> Result<Done, Error> {
        let changed = |id: u64, meta| Done { changes: vec![Change::PageMeta(id, meta)], ..Done::default() };
        Ok(match syscall {
            Syscall::Append { kind, text, importance, pinned } => {
                let page =
                    NewPage { importance: *importance, pinned: *pinned, ..self.new_page(act, *kind, text.clone()) };
                let record = self.pages().append(page).map_err(context_error)?;
                Done {
                    outcome: Outcome::Number(record.id),
                    changes: vec![Change::Page(Box::new(record))],
                    ..Done::default()
                }
            }
            Syscall::Read { page } => {
                let was_swapped = self.swapped_page(*page);
                let text = self.page_text(*page).await?;
                if let Some(page) = was_swapped {
                    self.tell_page(act, Hook::AfterPageIn, &page).await;
                }
                let meta = self.pages().page(*page).map(|p| p.meta);
                let changes = meta.map(|meta| Change::PageMeta(*page, meta)).into_iter().collect();
                Done { outcome: Outcome::Text(text), changes, ..Done::default() }
            }
            Syscall::Pin { page, pinned } => changed(*page, self.pages().pin(*page, *pinned).map_err(context_error)?),
            Syscall::SetImportance { page, importance } => {
                changed(*page, self.pages().set_importance(*page, *importance).map_err(context_error)?)
            }
            Syscall::Pages => Outcome::Pages(self.page_briefs()).into(),
            _ => {
                let u = self.pages().usage();
                Outcome::Usage(UsageBrief {
                    window_tokens: u.window_tokens,
                    resident_tokens: u.resident_tokens,
                    resident_pages: u.resident_pages,
                    swapped_pages: u.swapped_pages,
                    faults: u.faults,
                    hits: u.hits,
                    evictions: u.evictions,
                })
                .into()
            }
        })
    }

    fn page_briefs(&self) -> Vec<PageBrief> {
        self.pages()
            .pages()
            .map(|Placement { page, .. }| PageBrief {
                id: page.id,
                kind: page.kind,
                tokens: page.meta.tokens,
                importance: page.meta.importance,
                pinned: page.meta.pinned,
                resident: page.meta.resident,
                preview: page.preview.clone(),
            })
            .collect()
    }

    async fn page_text(&self, id: u64) -> Result<String, Error> {
        let pid = self.spec().pid;
        let read = self.pages().read(id, now_ms()).map_err(context_error)?;
        self.services().metrics.observe_page_read(matches!(read, Read::Resident(_)));
        match read {
            Read::Resident(text) => Ok(text),
            Read::Swapped => {
                let store = &self.services().store;
                let failed = |e: crate::storage::Error| Error::new(Errno::Io, format!("page {id}: {e}"));
                store.sync(pid).await.map_err(failed)?;
                let page = store.page(pid, id).await.map_err(failed)?;
                let page = page.ok_or_else(|| Error::new(Errno::Io, format!("page {id} is not in the store")))?;
                self.pages().note_fault(id, now_ms());
                Ok(page.text)
            }
        }
    }

    fn new_page(&self, act: &Act, kind: PageKind, text: String) -> NewPage {
        NewPage {
            id: act.ticket.page,
            seq: act.ticket.seq,
            kind,
            text,
            tool_calls: Vec::new(),
            answers: None,
            importance: None,
            pinned: false,
            now_ms: now_ms(),
        }
    }

    /// Stage 6.
    pub(super) fn quota_commit(&self, syscall: &Syscall, done: &Done, hold: Option<Reservation>) {
        let settle = |used: u64| hold.into_iter().for_each(|hold| hold.settle(used));
        match (syscall, &done.outcome) {
            (Syscall::Call { .. }, _) => {
                settle(1);
                self.charge(|u| u.tool_calls += 1);
            }
            (Syscall::Generate(_), Outcome::Reply(reply)) => {
                settle(u64::from(reply.usage.input) + u64::from(reply.usage.output));
                self.account().charge(Resource::MicroUsd, reply.usage.micro_usd.unwrap_or(0));
                if let Some(family) = self.services().peers() {
                    family.charge(self.spec().pid, token_ns(reply.usage));
                }
                self.charge(|u| {
                    let tokens = reply.usage;
                    u.micro_usd = match (u.llm_calls, u.micro_usd, tokens.micro_usd) {
                        (0, _, first) => first,
                        (_, Some(sum), Some(price)) => Some(sum.saturating_add(price)),
                        _ => None,
                    };
                    u.llm_calls += 1;
                    u.tokens_in += u64::from(tokens.input);
                    u.tokens_cached += u64::from(tokens.cached);
                    u.tokens_out += u64::from(tokens.output);
                });
            }
            // A hold of a call that came to nothing is given back.
            _ => {}
        }
    }

    /// Makes the page that a finished call leaves in the window, as the hooks left the outcome.
    pub(super) fn settle_pages(&self, act: &Act, syscall: &Syscall, done: &mut Done) {
        let page = match (syscall, &done.outcome) {
            (Syscall::Generate(_), Outcome::Reply(reply)) => NewPage {
                tool_calls: reply.tool_calls.clone(),
                ..self.new_page(act, PageKind::Assistant, reply.text.clone())
            },
            (Syscall::Call { call, page: true }, outcome) => NewPage {
                answers: Some((call.id.clone(), call.name.clone())),
                ..self.new_page(act, PageKind::ToolResult, result_text(outcome))
            },
            _ => return,
        };
        match self.pages().append(page) {
            Ok(record) => done.changes.push(Change::Page(Box::new(record))),
            Err(e) => done.outcome = Outcome::Failed(context_error(e)),
        }
    }

    /// Takes back what [`Self::settle_pages`] made of a tool call that the store refused. Without a page of its own
    /// the ticket's is another call's.
    pub(super) fn retract_page(&self, act: &Act, syscall: &Syscall) {
        if matches!(syscall, Syscall::Call { page: true, .. }) {
            self.pages().retract(act.ticket.page);
        }
    }

    /// Stage 9 for those who watch.
    pub(super) fn announce(&self, act: &Act, syscall: &Syscall, done: &Done) {
        let metrics = &self.services().metrics;
        match (syscall, &done.outcome) {
            (Syscall::Call { call, .. }, outcome) => {
                metrics.observe_tool_call(act.began);
                if !self.has_subscribers() {
                    return;
                }
                let (result, error) = match outcome {
                    Outcome::Text(text) => (serde_json::from_str(text).ok(), None),
                    Outcome::Failed(e) => (None, Some(json!(e))),
                    _ => (None, None),
                };
                self.emit(
                    act.ticket.seq,
                    EventKind::ToolEnd {
                        id: call.id.clone(),
                        name: call.name.clone(),
                        ok: error.is_none(),
                        result,
                        error,
                        duration_us: done.cost.duration_us,
                    },
                );
            }
            (Syscall::Generate(_), outcome) => {
                metrics.observe_gateway(Duration::from_micros(done.cost.duration_us));
                let (usage, finish) = match outcome {
                    Outcome::Reply(r) => (r.usage, finish_name(r.finish)),
                    _ => (crate::abi::TokenUsage::default(), "error"),
                };
                self.emit(
                    act.ticket.seq,
                    EventKind::LlmEnd {
                        input: usage.input,
                        cached: usage.cached,
                        output: usage.output,
                        micro_usd: usage.micro_usd,
                        finish: finish.to_owned(),
                    },
                );
            }
            _ => {}
        }
    }
}

/// The text of a tool-result page.
fn result_text(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Text(text) => text.clone(),
        Outcome::Failed(e) => json!({ "error": { "code": e.code.name(), "message": e.message } }).to_string(),
        _ => "null".to_owned(),
    }
}

/// What a tool call's outcome is for its caller.
pub(super) fn tool_result(outcome: Outcome) -> ToolResult {
    match outcome {
        Outcome::Text(text) => Ok(text),
        Outcome::Failed(e) => Err(e),
        other => Err(Error::new(Errno::Io, format!("a tool call gave {other:?}"))),
    }
}

/// What tokens count as on the processor, beside fuel: so of two processes the one that uses fewer goes first. One µs for
/// each that was read anew, four for each that was generated, as providers' prices are to each other.
fn token_ns(usage: crate::abi::TokenUsage) -> u64 {
    let read = u64::from(usage.input.saturating_sub(usage.cached));
    (read + 4 * u64::from(usage.output)) * 1_000
}

fn quota_message(e: &Exceeded) -> String {
    let option = match e.resource {
        Resource::Fuel => Some("--max-fuel"),
        Resource::Tokens => Some("--max-tokens"),
        Resource::MicroUsd => Some("--max-usd"),
        _ => None,
    };
    let advice = match option {
        _ if e.owner.starts_with("group") => "; the operator raises it in [groups] of aok.toml".to_owned(),
        Some(option) => format!("; allow more with {option}"),
        None => String::new(),
    };
    format!("{e}{advice}")
}

fn finish_name(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::ToolCalls => "tool-calls",
        Finish::Length => "length",
        Finish::Refused => "refused",
    }
}

fn check_key(key: &str) -> Result<(), Error> {
    if key.is_empty() || key.len() > MAX_KEY {
        return Err(Error::new(
            Errno::Invalid,
            format!("a state key has 1 to {MAX_KEY} bytes, this one {}", key.len()),
        ));
    }
    Ok(())
}

fn context_error(e: context::Error) -> Error {
    let code = match &e {
        context::Error::NoPage { .. } => Errno::NotFound,
        context::Error::Taken { .. } | context::Error::Importance { .. } => Errno::Invalid,
    };
    Error::new(code, e.to_string())
}

/// A page as hooks are shown it.
fn about(page: &ContextPage) -> Page {
    Page { page: page.id, kind: page.kind, tokens: page.meta.tokens }
}
