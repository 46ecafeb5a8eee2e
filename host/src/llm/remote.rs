//! One attempt at a model over HTTP: OpenAI's chat completions (OpenAI, llama.cpp, vLLM, Ollama,
//! OpenRouter, any base URL) and Anthropic's messages.
//!
//! Both wires are spoken by `genai`. Compared with `async-openai` 0.43: both are maintained and take
//! any base URL; genai keeps the headers of an error answer (`retry-after`), reads cached tokens in
//! each provider's spelling, also speaks Anthropic, and takes our own HTTP client; async-openai drops
//! error headers and speaks OpenAI only. genai's own rewriting of schemas is passed by: it makes every
//! property required, so a schema goes in as it is.
//!
//! Tools are called natively where the model can, else by constrained output (see
//! [`super::constrained`]): `native_tools` says which, and where it is not set each model is asked
//! once to call a tool. Text streams piece by piece; a constrained answer is sent as one piece when
//! it is whole. What a server refuses for a reason that has another spelling (`temperature`,
//! `max_tokens`, a schema) is asked for again in that spelling, and remembered.
//!
//! When and how often an attempt is made is the gateway's. Dropping the future closes the
//! connection, which makes a server stop.

mod calls;
mod refusal;
mod window;

use std::collections::HashMap;
use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use genai::adapter::AdapterKind;
use genai::chat::{
    ChatMessage, ChatOptions, ChatRequest, ChatStreamEvent, ReasoningEffort, StopReason, StreamEnd, Tool, Usage,
};
use genai::resolver::{AuthData, Endpoint};
use genai::{Headers, ModelIden, ServiceTarget};
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

use self::calls::{Calls, with_ids};
use self::refusal::{Quirk, error_text, is_too_long, retry_after, stated_limit};
use self::window::{chat, openai_body, turns};
use super::constrained::{self, Role, Said};
use super::http::{self, causes};
use super::prices::{Billed, Prices, cost};
use super::{Delta, Error, Provider, Request, shorten};
use crate::abi::{Finish, Message, Reply, TokenUsage, ToolCall, ToolSpec};
use crate::config::ProviderKind;

/// How long a server may be silent: a large prompt on a small machine takes minutes to its first token.
const SILENCE: Duration = Duration::from_secs(600);

/// Characters of a provider's own error text that are passed on.
const ERROR_CHARS: usize = 300;

/// Calls that one native reply may ask for.
const MAX_CALLS: usize = 64;

/// How often a model is told that its constrained reply cannot be used.
const SECOND_CHANCES: usize = 2;

/// The tool of the question whether a model calls tools by itself.
const PROBE_TOOL: &str = "aok_probe";

/// What a provider is made of.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its name, the part of a model's name before the slash.
    pub name: String,
    /// The wire that it speaks.
    pub kind: ProviderKind,
    /// For example `http://127.0.0.1:8080/v1`.
    pub base_url: String,
    /// Its key; shown nowhere.
    pub key: Option<Key>,
    /// Window of its models in tokens.
    pub window: u32,
    /// Whether its models call tools by themselves; each is asked when `None`.
    pub native_tools: Option<bool>,
    /// What its models cost.
    pub prices: Arc<Prices>,
}

/// A provider's key. It has no way to be shown.
#[derive(Clone)]
pub struct Key(String);

impl Key {
    /// Takes a key over.
    #[must_use]
    pub fn new(key: String) -> Self {
        Self(key)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[key]")
    }
}

/// One server.
pub struct Remote {
    settings: Settings,
    /// Its address, without secrets.
    shown: String,
    client: genai::Client,
    /// What the models have shown, by name.
    learned: Mutex<HashMap<String, Learned>>,
    /// One question at a time.
    probing: tokio::sync::Mutex<()>,
}

/// What a model has shown of itself.
#[derive(Clone, Copy, Debug, Default)]
struct Learned {
    native: Option<bool>,
    window: Option<u32>,
    no_temperature: bool,
    completion_tokens: bool,
    no_schema: bool,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("name", &self.settings.name).field("url", &self.shown).finish_non_exhaustive()
    }
}

/// How the tools of a request are offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// There are none.
    Plain,
    Native,
    Constrained,
}

impl Remote {
    /// Makes a provider; connects to nothing yet.
    ///
    /// # Errors
    /// [`Error::UnknownModel`] when `base_url` is none; [`Error::Unreachable`] when this machine
    /// cannot do TLS.
    pub fn new(mut settings: Settings) -> Result<Self, Error> {
        settings.base_url.truncate(settings.base_url.trim_end_matches('/').len());
        let url = reqwest::Url::parse(&settings.base_url).ok();
        let Some(url) = url.filter(|u| matches!(u.scheme(), "http" | "https") && u.has_host()) else {
            return Err(Error::UnknownModel {
                why: format!(
                    "its base URL `{}` is none; give one like http://127.0.0.1:8080/v1",
                    settings.base_url.replace(|c: char| c.is_control(), " ")
                ),
                model: settings.name,
            });
        };
        let shown = http::shown(&url);
        let unreachable =
            |message: String| Error::Unreachable { provider: settings.name.clone(), url: shown.clone(), message };
        let client = http::client(&url).map_err(|e| unreachable(causes(&e)))?;
        let client = genai::Client::builder().with_reqwest(client).build().map_err(|e| unreachable(e.to_string()))?;
        Ok(Self { settings, shown, client, learned: Mutex::default(), probing: tokio::sync::Mutex::default() })
    }

    fn target(&self, model: &str) -> ServiceTarget {
        let Settings { kind, base_url, key, .. } = &self.settings;
        let key = key.as_ref().map(|k| k.0.as_str());
        let (adapter, path, headers) = match kind {
            ProviderKind::Openai => (
                AdapterKind::OpenAI,
                "chat/completions",
                key.map(|k| ("Authorization".to_owned(), format!("Bearer {k}"))).into_iter().collect::<Vec<_>>(),
            ),
            ProviderKind::Anthropic => (
                AdapterKind::Anthropic,
                "messages",
                key.map(|k| ("x-api-key".to_owned(), k.to_owned()))
                    .into_iter()
                    .chain([("anthropic-version".to_owned(), "2023-06-01".to_owned())])
                    .collect(),
            ),
        };
        ServiceTarget {
            endpoint: Endpoint::from_owned(format!("{base_url}/")),
            // Whole, because genai otherwise insists on a key, which local servers have not.
            auth: AuthData::RequestOverride { url: format!("{base_url}/{path}"), headers: Headers::from(headers) },
            model: ModelIden::new(adapter, model.to_owned()),
        }
    }

    fn options(&self, request: &Request, mode: Mode) -> ChatOptions {
        let learned = self.learned(&request.model);
        let mut options = ChatOptions::default().with_capture_usage(true);
        if self.settings.kind == ProviderKind::Openai {
            // genai takes a name's ending (`-high`, `-low`) for a wish of effort and cuts it off; a
            // budget stops that and has no form on this wire.
            options = options.with_reasoning_effort(ReasoningEffort::Budget(0));
        }
        let mut extra = json!({"model": request.model});
        if self.settings.kind == ProviderKind::Openai && mode != Mode::Constrained {
            let (messages, tools) = openai_body(request);
            extra["messages"] = Value::Array(messages);
            if let Some(tools) = tools {
                extra["tools"] = tools;
            }
        }
        // A reply that a schema constrains is a choice among calls: sampling noise only makes it worse.
        let temperature = request.temperature.or_else(|| (mode == Mode::Constrained).then_some(0.0));
        if let Some(t) = temperature.filter(|_| !learned.no_temperature) {
            options = options.with_temperature(f64::from(t));
        }
        // A model that generates without end is stopped at an eighth of its window where the wire or
        // the protocol does not stop it.
        let bound = mode == Mode::Constrained || self.settings.kind == ProviderKind::Anthropic;
        let bound = bound.then(|| (self.window(&request.model) / 8).max(256));
        if let Some(max) = request.max_tokens.or(bound) {
            if learned.completion_tokens {
                extra["max_completion_tokens"] = json!(max);
            } else {
                options = options.with_max_tokens(max);
            }
        }
        let schema = match &request.response_schema {
            schema if mode == Mode::Constrained => Some(constrained::schema(&request.tools, schema.as_ref())),
            schema => schema.as_ref().map(constrained::portable),
        };
        match schema.filter(|_| !learned.no_schema) {
            Some(schema) if self.settings.kind == ProviderKind::Openai => {
                extra["response_format"] =
                    json!({"type": "json_schema", "json_schema": {"name": "reply", "schema": schema}});
            }
            Some(schema) => extra["output_config"] = json!({"format": {"type": "json_schema", "schema": schema}}),
            None => {}
        }
        options.with_extra_body(extra)
    }

    /// Text from outside without our key in it, shortened.
    fn safe(&self, text: &str) -> String {
        let text = match &self.settings.key {
            Some(Key(key)) if !key.is_empty() => text.replace(key, "[key]"),
            _ => text.to_owned(),
        };
        shorten(text.trim(), ERROR_CHARS)
    }

    fn unreachable(&self, message: &str) -> Error {
        let (provider, url) = (self.settings.name.clone(), self.shown.clone());
        Error::Unreachable { provider, url, message: self.safe(message) }
    }

    fn malformed(&self, message: &str) -> Error {
        Error::Malformed { provider: self.settings.name.clone(), message: self.safe(message) }
    }

    fn garbled(&self, message: &str) -> Error {
        Error::Garbled { provider: self.settings.name.clone(), message: self.safe(message) }
    }

    fn refused(&self, status: u16, body: &str, headers: &reqwest::header::HeaderMap) -> Error {
        let (provider, text) = (self.settings.name.clone(), error_text(body));
        let message = self.safe(&text);
        if matches!(status, 400 | 413 | 422) && is_too_long(body) {
            return Error::TooLong { provider, limit: stated_limit(body, &text), message };
        }
        Error::Status { provider, status, message, retry_after: retry_after(headers) }
    }

    fn convert(&self, error: &genai::Error) -> Error {
        match error {
            genai::Error::HttpError { status, body, headers, .. } => self.refused(status.as_u16(), body, headers),
            genai::Error::WebStream { error, .. } => {
                if let Some(inner) = error.downcast_ref::<genai::Error>() {
                    return self.convert(inner);
                }
                match error.downcast_ref::<reqwest::Error>() {
                    Some(e) => self.unreachable(&causes(e)),
                    // Timeouts of the transport and bytes that are no UTF-8 come as their own types.
                    None if error.is::<std::str::Utf8Error>() || error.is::<std::string::FromUtf8Error>() => {
                        self.garbled("the stream is not UTF-8")
                    }
                    None => self.unreachable(&causes(error.as_ref())),
                }
            }
            genai::Error::StreamParse { serde_error, .. } => {
                self.garbled(&format!("a part of the stream is no JSON: {serde_error}"))
            }
            genai::Error::ChatResponse { body, .. } => self.broke_off(body),
            other => self.malformed(&other.to_string()),
        }
    }

    /// An error that came within a stream, after its status had said that all was well.
    fn broke_off(&self, body: &Value) -> Error {
        let kind = body.pointer("/error/type").or_else(|| body.get("type")).and_then(Value::as_str);
        let code = body.pointer("/error/code").or_else(|| body.get("code")).and_then(Value::as_u64);
        let status = match (kind, code) {
            (Some("overloaded_error"), _) => Some(529),
            (Some("rate_limit_error"), _) => Some(429),
            (Some("api_error" | "server_error"), _) => Some(500),
            (_, Some(code)) => u16::try_from(code).ok().filter(|c| (400..600).contains(c)),
            _ => None,
        };
        let body = body.to_string();
        match status {
            Some(status) => self.refused(status, &body, &reqwest::header::HeaderMap::new()),
            None if is_too_long(&body) => self.refused(400, &body, &reqwest::header::HeaderMap::new()),
            None => self.malformed(&format!("it broke off with an error: {}", error_text(&body))),
        }
    }

    fn learned(&self, model: &str) -> Learned {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner).get(model).copied().unwrap_or_default()
    }

    fn learn<R>(&self, model: &str, note: impl FnOnce(&mut Learned) -> R) -> R {
        let mut learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        note(learned.entry(model.to_owned()).or_default())
    }

    /// Remembers why a request was refused, if that is news.
    fn learn_from(&self, model: &str, error: &Error) -> bool {
        if let Error::TooLong { limit, .. } = error {
            let now = self.window(model);
            let window = limit.filter(|l| *l < now).unwrap_or(now - now / 4);
            self.learn(model, |l| l.window = Some(window.max(256)));
            return false;
        }
        let Some(quirk) = Quirk::of(error) else { return false };
        let settled = self.settings.native_tools.is_some();
        self.learn(model, |l| {
            let before = match quirk {
                Quirk::NoTemperature => std::mem::replace(&mut l.no_temperature, true),
                Quirk::CompletionTokens => std::mem::replace(&mut l.completion_tokens, true),
                Quirk::NoSchema => std::mem::replace(&mut l.no_schema, true),
                Quirk::NoTools => settled || l.native.replace(false) == Some(false),
            };
            !before
        })
    }

    /// How to offer tools to a model. A model that nobody has said anything about is asked to call one.
    async fn mode(&self, request: &Request) -> Result<Mode, Error> {
        let known = || match self.settings.native_tools {
            None if self.settings.kind == ProviderKind::Anthropic => Some(true),
            None => self.learned(&request.model).native,
            said => said,
        };
        let native = match known() {
            _ if request.tools.is_empty() => return Ok(Mode::Plain),
            Some(native) => native,
            None => {
                let _one = self.probing.lock().await;
                match known() {
                    Some(native) => native,
                    None => {
                        let native = self.probe(request).await?;
                        self.learn(&request.model, |l| *l.native.get_or_insert(native))
                    }
                }
            }
        };
        Ok(if native { Mode::Native } else { Mode::Constrained })
    }

    /// Asks a model to call a tool. Only a whole call of it counts.
    async fn probe(&self, about: &Request) -> Result<bool, Error> {
        let probe = Request {
            model: about.model.clone(),
            agent: about.agent.clone(),
            index: 0,
            messages: vec![Message::User {
                text: format!("Call the tool {PROBE_TOOL} with the word \"ready\". Say nothing else."),
            }],
            tools: vec![ToolSpec {
                name: PROBE_TOOL.to_owned(),
                description: "Tells that tools can be called.".to_owned(),
                input_schema: json!({
                    "type": "object",
                    "properties": {"word": {"type": "string"}},
                    "required": ["word"],
                }),
                output_schema: None,
                effect: crate::abi::Effect::Pure,
            }],
            temperature: None,
            max_tokens: Some(256),
            response_schema: None,
            results: HashMap::new(),
            claim: about.claim.clone(),
        };
        let (deltas, _) = tokio::sync::mpsc::unbounded_channel();
        loop {
            match self.native(&probe, &deltas).await {
                Ok(reply) => {
                    let called = |c: &ToolCall| {
                        c.name == PROBE_TOOL
                            && serde_json::from_str::<Value>(&c.arguments).is_ok_and(|a| a["word"].is_string())
                    };
                    let native = reply.tool_calls.iter().any(called);
                    tracing::info!(provider = self.settings.name, model = about.model, native, "asked to call a tool");
                    return Ok(native);
                }
                Err(e) if e.is_transient() => return Err(e),
                Err(Error::Status { status: status @ (401 | 403 | 404), message, retry_after, provider }) => {
                    return Err(Error::Status { provider, status, message, retry_after });
                }
                Err(e) if Quirk::of(&e) != Some(Quirk::NoTools) && self.learn_from(&about.model, &e) => {}
                Err(_) => return Ok(false),
            }
        }
    }

    /// One request and its reply as it is on the wire.
    async fn exchange(
        &self,
        request: &Request,
        chat: ChatRequest,
        mode: Mode,
        deltas: Option<&UnboundedSender<Delta>>,
    ) -> Result<Heard, Error> {
        let options = self.options(request, mode);
        let opened = self
            .client
            .exec_chat_stream(self.target(&request.model), chat, Some(&options))
            .await
            .map_err(|e| self.convert(&e))?;
        let mut stream = opened.stream;
        // Twice what the largest answer of this window can be, and enough for any small one.
        let most = (self.window(&request.model) as usize).saturating_mul(8).clamp(64 << 10, 8 << 20);
        let mut heard = Heard::default();
        let mut calls = Calls::new(self.settings.kind);
        // One timer that is set anew only when it rings: reqwest's own is, for each piece. So a silence is
        // noticed after its time, and at the latest after twice that.
        let mut spoke = false;
        let mut silence = pin!(tokio::time::sleep(SILENCE));
        loop {
            let event = tokio::select! {
                biased;
                event = stream.next() => event,
                () = silence.as_mut() => {
                    if !std::mem::take(&mut spoke) {
                        return Err(self.unreachable(&format!("it was silent for over {} s", SILENCE.as_secs())));
                    }
                    silence.as_mut().reset(Instant::now() + SILENCE);
                    continue;
                }
            };
            spoke = true;
            let Some(event) = event else { break };
            match event.map_err(|e| self.convert(&e))? {
                ChatStreamEvent::Chunk(piece) => {
                    heard.text.push_str(&piece.content);
                    if let Some(deltas) = deltas {
                        // Nobody has to listen.
                        let _ = deltas.send(Delta::Text(piece.content));
                    }
                }
                ChatStreamEvent::ToolCallChunk(piece) => calls.add(piece.tool_call),
                ChatStreamEvent::End(end) => {
                    heard.end = Some(end);
                    break;
                }
                _ => {}
            }
            if heard.text.len() + calls.bytes() > most || calls.made.len() > MAX_CALLS {
                heard.overlong = true;
                break;
            }
        }
        if heard.end.is_none() && !heard.overlong {
            return Err(self.unreachable("the connection ended before the reply did"));
        }
        heard.calls = calls.made;
        Ok(heard)
    }

    fn usage(&self, request: &Request, heard: &Heard, deltas: &UnboundedSender<Delta>) -> TokenUsage {
        let estimated = super::estimate_usage(&request.messages, &heard.text, &heard.calls);
        let count = |n: Option<i32>| n.and_then(|n| u32::try_from(n).ok());
        let reported: Option<&Usage> = heard.end.as_ref().and_then(|e| e.captured_usage.as_ref());
        let Some(reported) = reported else { return estimated };
        let details = reported.prompt_tokens_details.as_ref();
        let billed = Billed {
            input: count(reported.prompt_tokens).unwrap_or(estimated.input),
            cached: count(details.and_then(|d| d.cached_tokens)).unwrap_or(0),
            cache_write: count(details.and_then(|d| d.cache_creation_tokens)).unwrap_or(0),
            output: count(reported.completion_tokens).unwrap_or(estimated.output),
        };
        if let Some(tokens) = count(reported.prompt_tokens) {
            let _ = deltas.send(Delta::Prompt { tokens }); // nobody has to listen
        }
        let price = self.settings.prices.of(&format!("{}/{}", self.settings.name, request.model));
        TokenUsage {
            input: billed.input,
            cached: billed.cached,
            output: billed.output,
            micro_usd: price.map(|p| cost(p, billed)),
        }
    }

    /// A reply whose tool calls are the model's own, or that has none.
    async fn native(&self, request: &Request, deltas: &UnboundedSender<Delta>) -> Result<Reply, Error> {
        let mode = if request.tools.is_empty() { Mode::Plain } else { Mode::Native };
        let mut chat = ChatRequest::default();
        // On OpenAI's wire both stand in the options.
        if self.settings.kind == ProviderKind::Anthropic {
            chat = ChatRequest::new(self::chat(turns(self.settings.kind, &request.messages)));
        }
        if self.settings.kind == ProviderKind::Anthropic && mode == Mode::Native {
            let tool = |t: &ToolSpec| {
                Tool::new(t.name.clone()).with_description(t.description.clone()).with_schema(t.input_schema.clone())
            };
            chat = chat.with_tools(request.tools.iter().map(tool).collect::<Vec<_>>());
        }
        let heard = self.exchange(request, chat, mode, Some(deltas)).await?;
        let finish = heard.finish();
        let usage = self.usage(request, &heard, deltas);
        let Heard { text, calls, .. } = heard;
        let tool_calls = with_ids(calls, request.index);
        if text.trim().is_empty() && tool_calls.is_empty() && finish == Finish::Stop {
            return Err(self.garbled("it is empty: neither text nor a tool call"));
        }
        let finish = if tool_calls.is_empty() { finish } else { Finish::ToolCalls };
        Ok(Reply { text, tool_calls, finish, usage })
    }

    /// A reply in the constrained protocol. One that cannot be used goes back to the model with the
    /// reason.
    async fn constrained(&self, request: &Request, deltas: &UnboundedSender<Delta>) -> Result<Reply, Error> {
        let name = &self.settings.name;
        let mut messages = constrained::render(&request.messages, &request.tools);
        let mut spent = TokenUsage::default();
        for chance in 0..=SECOND_CHANCES {
            let chat = messages.iter().map(|(role, text)| match role {
                Role::System => ChatMessage::system(text),
                Role::User => ChatMessage::user(text),
                Role::Assistant => ChatMessage::assistant(text),
            });
            let chat = ChatRequest::new(chat.collect());
            let heard = self.exchange(request, chat, Mode::Constrained, None).await?;
            let usage = plus(spent, self.usage(request, &heard, deltas), chance == 0);
            let finish = heard.finish();
            let why = match constrained::parse(name, &heard.text, request.index) {
                Ok(Said::Calls(tool_calls)) => {
                    return Ok(Reply { text: String::new(), tool_calls, finish: Finish::ToolCalls, usage });
                }
                Ok(Said::Answer(text)) if !text.trim().is_empty() || finish != Finish::Stop => {
                    let _ = deltas.send(Delta::Text(text.clone())); // nobody has to listen
                    return Ok(Reply { text, tool_calls: Vec::new(), finish, usage });
                }
                Ok(Said::Answer(_)) => "the answer is empty".to_owned(),
                Err(Error::Malformed { message, .. }) if finish == Finish::Length => {
                    format!("the limit of output tokens cut it; {message}")
                }
                Err(Error::Malformed { message, .. }) => message,
                Err(other) => return Err(other),
            };
            if chance == SECOND_CHANCES {
                return Err(self.malformed(&why));
            }
            tracing::debug!(provider = name, model = request.model, why, "a reply goes back to its model");
            spent = usage;
            let said = shorten(heard.text.trim(), ERROR_CHARS);
            messages.push((Role::Assistant, if said.is_empty() { "{}".to_owned() } else { said }));
            let ask = "That reply cannot be used. Reply again with one whole JSON object, and keep it short.";
            messages.push((Role::User, ask.to_owned()));
        }
        Err(self.malformed("it could not be used"))
    }
}

/// What came on the wire.
#[derive(Debug, Default)]
struct Heard {
    text: String,
    calls: Vec<ToolCall>,
    end: Option<StreamEnd>,
    /// It went on beyond anything that the window could hold, and was cut.
    overlong: bool,
}

impl Heard {
    fn finish(&self) -> Finish {
        match self.end.as_ref().and_then(|e| e.captured_stop_reason.as_ref()) {
            _ if self.overlong => Finish::Length,
            Some(StopReason::MaxTokens(_)) => Finish::Length,
            Some(StopReason::ContentFilter(_)) => Finish::Refused,
            _ => Finish::Stop,
        }
    }
}

/// Usage of two attempts. A price that is not known stays so.
fn plus(a: TokenUsage, b: TokenUsage, first: bool) -> TokenUsage {
    if first {
        return b;
    }
    TokenUsage {
        input: a.input.saturating_add(b.input),
        cached: a.cached.saturating_add(b.cached),
        output: a.output.saturating_add(b.output),
        micro_usd: a.micro_usd.zip(b.micro_usd).map(|(a, b)| a.saturating_add(b)),
    }
}

#[async_trait]
impl Provider for Remote {
    async fn generate(&self, request: Arc<Request>, deltas: UnboundedSender<Delta>) -> Result<Reply, Error> {
        loop {
            let attempt = match self.mode(&request).await? {
                Mode::Plain | Mode::Native => self.native(&request, &deltas).await,
                Mode::Constrained => self.constrained(&request, &deltas).await,
            };
            match attempt {
                // Each reason is news once, so this ends.
                Err(e) if self.learn_from(&request.model, &e) => {
                    tracing::debug!(provider = self.settings.name, model = request.model, "asked again: {e}");
                }
                other => return other,
            }
        }
    }

    fn window(&self, model: &str) -> u32 {
        self.learned(model).window.unwrap_or(self.settings.window)
    }
}
