//! Stages 3 to 6 and what differs between calls: the only place that knows the subsystems.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::mpsc;

use super::path::Act;
use super::{Caller, Cost, Options, Outcome, PageBrief, Stop, Syscall, UsageBrief, caller::Activity, caller::now_ms};
use crate::abi::{Effect, Errno, Error, Finish, Message, Reply, ToolResult, ToolSpec};
use crate::capability::Rights;
use crate::context::tokens::Counter;
use crate::context::{self, ContextPage, NewPage, Placement, Read};
use crate::hook::Hook;
use crate::hook::subject::Page;
use crate::llm::{self, Resolved as Asked};
use crate::process::EventKind;
use crate::storage::{Change, PageKind};
use crate::tool::{Client, Entry, LOG_LINE_OVERHEAD, LogLine, Lookup, conflict};

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

/// A model call that is ready to be made.
pub(super) struct ModelCall {
    asked: Asked,
    tools: Vec<ToolSpec>,
    schema: Option<serde_json::Value>,
    /// Tokens kept free for the reply.
    reserve: u32,
    fitted: Fitted,
}

/// A window that fits a model's, and what had to leave it.
#[derive(Clone)]
struct Fitted {
    window: u32,
    /// The prompt in tokens as they are counted here.
    prompt_tokens: u32,
    messages: Vec<Message>,
    evicted: Vec<Change>,
    /// Pages that hooks kept in it.
    pinned: Vec<Change>,
}

/// What a dispatched call gave.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) outcome: Outcome,
    pub(super) changes: Vec<Change>,
    pub(super) lines: Vec<LogLine>,
    pub(super) cost: Cost,
}

impl Default for Done {
    fn default() -> Self {
        Self { outcome: Outcome::Done, changes: Vec::new(), lines: Vec::new(), cost: Cost::default() }
    }
}

impl Done {
    pub(super) fn failed(error: Error) -> Self {
        Self::from(Outcome::Failed(error))
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
            _ => Ok(Admitted::Plain),
        }
    }

    async fn admit_model(&self, act: &Act, options: &Options) -> Result<ModelCall, Error> {
        let model = options.model.as_deref().or(self.spec().model.as_deref());
        let Asked { name, provider, model } = self.services().models.resolve(model).map_err(model_error)?;
        let mut tools = self.offered();
        if let Some(names) = &options.tools {
            if let Some(unknown) = names.iter().find(|n| !tools.iter().any(|t| t.name == **n)) {
                return Err(Error::new(
                    Errno::NotFound,
                    format!("the tool `{unknown}` is not offered to this process"),
                ));
            }
            tools.retain(|t| names.contains(&t.name));
        }
        let schema = options
            .response_schema
            .as_deref()
            .map(serde_json::from_str)
            .transpose()
            .map_err(|e| Error::new(Errno::Invalid, format!("`response-schema` is not JSON: {e}")))?;
        let reserve = options.max_tokens.unwrap_or(0);
        let fitted = self.fit(act, &name, provider.window(&model), reserve).await;
        Ok(ModelCall { asked: Asked { name, provider, model }, tools, schema, reserve, fitted })
    }

    /// Makes the window fit a model's, swapping out what has to go.
    async fn fit(&self, act: &Act, name: &str, window: u32, reserve: u32) -> Fitted {
        self.pages().set_model(Counter::of_model(name), window);
        let pinned = self.pin_kept_pages(act, reserve).await;
        let mut pages = self.pages();
        let evicted = pages.make_room(reserve, now_ms());
        Fitted {
            pinned,
            evicted: evicted.into_iter().map(|(id, meta)| Change::PageMeta(id, meta)).collect(),
            window,
            prompt_tokens: pages.resident_tokens(),
            messages: pages.window(),
        }
    }

    /// Pins the pages whose leaving a hook denies, so that others leave in their place.
    async fn pin_kept_pages(&self, act: &Act, reserve: u32) -> Vec<Change> {
        let mut pinned = Vec::new();
        if !self.services().hooks.listens(Hook::BeforePageOut) {
            return pinned;
        }
        let mut asked = BTreeSet::new();
        loop {
            let leaving: Vec<_> = {
                let mut pages = self.pages();
                let ids = pages.leaving(reserve);
                ids.into_iter().filter(|id| asked.insert(*id)).filter_map(|id| pages.page(id).map(about)).collect()
            };
            let kept = self.kept_pages(act, leaving).await;
            if kept.is_empty() {
                return pinned;
            }
            let mut pages = self.pages();
            pinned.extend(kept.into_iter().filter_map(|id| Some(Change::PageMeta(id, pages.pin(id, true).ok()?))));
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

    /// Stage 4: what the call may use at most must fit what is left.
    pub(super) fn quota_reserve(&self, syscall: &Syscall, admitted: &Admitted) -> Result<(), Stop> {
        let (usage, quota) = (self.used(), &self.spec().quota);
        let tokens = usage.tokens_in.saturating_add(usage.tokens_out);
        let exceeded = match (syscall, admitted) {
            (Syscall::Call { .. }, _) if usage.tool_calls >= quota.tool_calls => {
                Some(("tool-calls", format!("it has made {} tool calls, all that its quota allows", quota.tool_calls)))
            }
            (_, Admitted::Model(call))
                if tokens.saturating_add(u64::from(call.fitted.prompt_tokens)) >= quota.tokens =>
            {
                Some((
                    "tokens",
                    format!(
                        "{} of {} tokens are used and the next prompt takes up to {}; allow more with --max-tokens",
                        tokens, quota.tokens, call.fitted.prompt_tokens
                    ),
                ))
            }
            (_, Admitted::Model(_)) if usage.micro_usd.unwrap_or(0) >= quota.micro_usd => Some((
                "usd",
                format!(
                    "the models cost {} micro-USD, all that its quota allows; allow more with --max-usd",
                    quota.micro_usd
                ),
            )),
            _ => None,
        };
        match exceeded {
            None => Ok(()),
            Some((limit, message)) => Err(self.over_quota(limit, message)),
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
                let _waiting = self.waits_on(act.ticket.seq, Activity::Timer);
                tokio::time::sleep(Duration::from_millis(*ms)).await;
                Done::default()
            }
            (Syscall::Available, _) => Outcome::Tools(self.offered()).into(),
            (Syscall::SelfPid, _) => Outcome::Number(self.spec().pid.0).into(),
            (Syscall::Step, _) => Done::default(),
            _ => self.context(act, syscall).await,
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

    /// Asks for a reply. Where the provider is at fault the process stops where it is: a person mends what is
    /// broken and resumes it, and nothing that it did is lost.
    async fn ask_model(&self, act: &Act, options: &Options, call: &ModelCall) -> Result<Done, Stop> {
        let mut evicted = Vec::new();
        let reply = self.model_reply(act, options, call, &mut evicted).await;
        let outcome = match reply {
            Ok(reply) => Outcome::Reply(reply),
            Err(e) if e.is_of_the_provider() => {
                self.emit_failed(act);
                return Err(self.stop(Stop::Provider(Box::new(e))));
            }
            Err(e) => Outcome::Failed(model_error(e)),
        };
        Ok(Done { outcome, changes: evicted, ..Done::default() })
    }

    /// Asks the model, and those that stand in for it while it is out.
    async fn model_reply(
        &self,
        act: &Act,
        options: &Options,
        call: &ModelCall,
        evicted: &mut Vec<Change>,
    ) -> Result<Reply, llm::Error> {
        let mut error = match self.asked(act, options, call, &call.asked, call.fitted.clone(), evicted).await {
            Err(e) => e,
            done => return done,
        };
        if error.is_outage() {
            for other in self.services().models.fallbacks(&call.asked.name) {
                tracing::warn!(
                    pid = self.spec().pid.0,
                    "`{}` is out, `{}` is asked: {error}",
                    call.asked.name,
                    other.name
                );
                self.emit_failed(act);
                let fitted = self.fit(act, &other.name, other.provider.window(&other.model), call.reserve).await;
                match self.asked(act, options, call, &other, fitted, evicted).await {
                    Err(e) if e.is_outage() => error = e,
                    done => return done,
                }
            }
        }
        Err(error)
    }

    /// Asks one model; again in a smaller window when it says that the prompt is too long.
    async fn asked(
        &self,
        act: &Act,
        options: &Options,
        call: &ModelCall,
        asked: &Asked,
        mut fitted: Fitted,
        evicted: &mut Vec<Change>,
    ) -> Result<Reply, llm::Error> {
        let mut smaller = 0;
        loop {
            let prompt_tokens = fitted.prompt_tokens;
            self.emit(act.ticket.seq, EventKind::LlmStart { model: asked.name.clone(), prompt_tokens });
            self.announce_evictions(act, &fitted.evicted).await;
            evicted.append(&mut fitted.pinned);
            evicted.append(&mut fitted.evicted);
            let _waiting = self.waits_on(act.ticket.seq, Activity::Model(asked.name.clone()));
            let request = self.request(act, options, call, asked, fitted.messages, prompt_tokens).await?;
            match self.attempt(act, asked, request, prompt_tokens).await {
                Err(llm::Error::TooLong { .. }) if smaller < MOST_SHRINKS => {
                    smaller += 1;
                    self.emit_failed(act);
                    // The provider knows its window by now; where it is no smaller than what was sent, the
                    // count was wrong, and a part of it is tried.
                    let window = asked.provider.window(&asked.model).min(fitted.window - fitted.window / 4);
                    fitted = self.fit(act, &asked.name, window, call.reserve).await;
                }
                done => return done,
            }
        }
    }

    async fn request(
        &self,
        act: &Act,
        options: &Options,
        call: &ModelCall,
        asked: &Asked,
        messages: Vec<Message>,
        prompt_tokens: u32,
    ) -> Result<llm::Request, llm::Error> {
        let results = self.quoted_results(asked, act.ticket.request).await?;
        let usage = self.usage();
        let left =
            self.spec().quota.tokens.saturating_sub(usage.tokens_in + usage.tokens_out + u64::from(prompt_tokens));
        let left = u32::try_from(left).unwrap_or(u32::MAX);
        Ok(llm::Request {
            model: asked.model.clone(),
            agent: self.spec().agent.clone(),
            index: act.ticket.request,
            messages,
            tools: call.tools.clone(),
            temperature: options.temperature,
            // A quota that is nearly used up bounds the reply; one far away says nothing.
            max_tokens: options.max_tokens.map(|m| m.min(left)).or((left < QUOTA_IS_NEAR).then_some(left)),
            response_schema: call.schema.clone(),
            results,
        })
    }

    async fn attempt(
        &self,
        act: &Act,
        asked: &Asked,
        request: llm::Request,
        prompt_tokens: u32,
    ) -> Result<Reply, llm::Error> {
        let (deltas, mut pieces) = mpsc::unbounded_channel();
        let provider = Arc::clone(&asked.provider);
        // TLS and JSON of unknown depth run on a Tokio thread, not on the guest's stack.
        let mut work = AbortOnDrop(tokio::spawn(async move { provider.generate(Arc::new(request), deltas).await }));
        while let Some(delta) = pieces.recv().await {
            match delta {
                llm::Delta::Text(delta) => self.emit(act.ticket.seq, EventKind::Text { delta }),
                llm::Delta::Prompt { tokens } => self.pages().calibrate(prompt_tokens, tokens),
                llm::Delta::Restart { why } => {
                    tracing::info!(pid = self.spec().pid.0, model = asked.name, "asked again: {why}");
                    self.emit_failed(act);
                    self.emit(act.ticket.seq, EventKind::LlmStart { model: asked.name.clone(), prompt_tokens });
                }
            }
        }
        match (&mut work.0).await {
            Ok(reply) => reply,
            Err(e) => {
                let message = format!("the provider of `{}` broke: {e}", asked.name);
                Err(llm::Error::Malformed { provider: asked.name.clone(), message })
            }
        }
    }

    /// Tells those who watch that an attempt came to nothing, its text included.
    fn emit_failed(&self, act: &Act) {
        let finish = "error".to_owned();
        self.emit(act.ticket.seq, EventKind::LlmEnd { input: 0, cached: 0, output: 0, micro_usd: None, finish });
    }

    async fn announce_evictions(&self, act: &Act, evicted: &[Change]) {
        for change in evicted {
            let Change::PageMeta(page, meta) = change else { continue };
            self.emit(act.ticket.seq, EventKind::PageOut { page: *page, tokens: meta.tokens });
            if self.services().hooks.listens(Hook::AfterPageOut)
                && let Some(page) = self.swapped_page(*page)
            {
                self.tell_page(act, Hook::AfterPageOut, &page).await;
            }
        }
        self.services().metrics.observe_swap_out(evicted.len() as u64);
    }

    /// The results of earlier tool calls that the model's script quotes.
    async fn quoted_results(
        &self,
        asked: &Asked,
        request: u64,
    ) -> Result<std::collections::HashMap<String, String>, llm::Error> {
        let mut results = std::collections::HashMap::new();
        for id in asked.provider.references(&self.spec().agent, request) {
            let page = self.pages().tool_call_text(&id);
            if let Some(page) = page {
                let text = self.page_text(page).await.map_err(|e| llm::Error::Malformed {
                    provider: asked.name.clone(),
                    message: format!("the result of `{id}` that it quotes cannot be read: {e}"),
                })?;
                results.insert(id, text);
            }
        }
        Ok(results)
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
    pub(super) fn quota_commit(&self, syscall: &Syscall, done: &Done) {
        match (syscall, &done.outcome) {
            (Syscall::Call { .. }, _) => self.charge(|u| u.tool_calls += 1),
            (Syscall::Generate(_), Outcome::Reply(reply)) => self.charge(|u| {
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
            }),
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

/// How often a window is made smaller for one model call.
const MOST_SHRINKS: u32 = 3;

/// With fewer tokens left than this the quota is passed to the provider as the reply's limit.
const QUOTA_IS_NEAR: u32 = 32_768;

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

fn model_error(e: llm::Error) -> Error {
    let code = match &e {
        llm::Error::NoModel { .. } | llm::Error::UnknownModel { .. } => Errno::NotFound,
        llm::Error::ScriptMismatch { .. }
        | llm::Error::ScriptExhausted { .. }
        | llm::Error::Garbled { .. }
        | llm::Error::Malformed { .. } => Errno::Invalid,
        llm::Error::Status { status: 401 | 403, .. } => Errno::Denied,
        llm::Error::Status { status: 429 | 500..=599, .. } | llm::Error::Open { .. } => Errno::Again,
        llm::Error::Status { .. } => Errno::Invalid,
        llm::Error::TooLong { .. } => Errno::TooLarge,
        llm::Error::Deadline { .. } => Errno::Timeout,
        llm::Error::Unreachable { .. } | llm::Error::Local { .. } => Errno::Io,
    };
    Error::new(code, e.to_string())
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

struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
