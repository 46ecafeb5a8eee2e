//! Model calls: a window that fits, the request, the model and those that stand in for it.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::{Done, about};
use crate::abi::{Errno, Error, Message, Reply, ToolSpec};
use crate::context::tokens::Counter;
use crate::hook::Hook;
use crate::llm::{self, Resolved as Asked};
use crate::process::EventKind;
use crate::quota::Resource;
use crate::storage::Change;
use crate::syscall::caller::{Activity, now_ms};
use crate::syscall::path::Act;
use crate::syscall::{Caller, Options, Outcome, Stop};

/// How often a window is made smaller for one model call.
const MOST_SHRINKS: u32 = 3;

/// With fewer tokens left than this the quota is passed to the provider as the reply's limit.
const QUOTA_IS_NEAR: u32 = 32_768;

/// A model call that is ready to be made.
pub(in crate::syscall) struct ModelCall {
    asked: Asked,
    tools: Vec<ToolSpec>,
    schema: Option<serde_json::Value>,
    /// Tokens kept free for the reply.
    reserve: u32,
    pub(super) fitted: Fitted,
}

/// A window that fits a model's, and what had to leave it.
#[derive(Clone)]
pub(super) struct Fitted {
    window: u32,
    /// The prompt in tokens as they are counted here.
    pub(super) prompt_tokens: u32,
    messages: Vec<Message>,
    evicted: Vec<Change>,
    /// Pages that hooks kept in it.
    pinned: Vec<Change>,
}

impl Caller {
    pub(super) async fn admit_model(&self, act: &Act, options: &Options) -> Result<ModelCall, Error> {
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

    /// On whose account it asks, and with whose urgency.
    fn claim(&self) -> llm::Claim {
        let spec = self.spec();
        llm::Claim { pid: spec.pid.0, program: spec.root().pid.0, standing: self.services().standing(self) }
    }

    /// Asks for a reply. Where the provider is at fault the process stops where it is: a person mends what is
    /// broken and resumes it, and nothing that it did is lost.
    pub(super) async fn ask_model(&self, act: &Act, options: &Options, call: &ModelCall) -> Result<Done, Stop> {
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
            let request = self.request(act, options, call, asked, fitted.messages).await?;
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
    ) -> Result<llm::Request, llm::Error> {
        let results = self.quoted_results(asked, act.ticket.request).await?;
        // What is held is this prompt's, and one token of the reply.
        let left = self.account().left(Resource::Tokens) + 1;
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
            claim: self.claim(),
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

struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
