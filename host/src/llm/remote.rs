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

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::StreamExt as _;
use genai::adapter::AdapterKind;
use genai::chat::{
    ChatMessage, ChatOptions, ChatRequest, ChatStreamEvent, ContentPart, MessageContent, ReasoningEffort, StopReason,
    StreamEnd, Tool, ToolResponse, Usage,
};
use genai::resolver::{AuthData, Endpoint};
use genai::{Headers, ModelIden, ServiceTarget};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc::UnboundedSender;

use super::constrained::{self, Role, Said};
use super::prices::{Billed, Prices, cost};
use super::{Delta, Error, Provider, Request, shorten};
use crate::abi::{Finish, Message, Reply, TokenUsage, ToolCall, ToolSpec};
use crate::config::ProviderKind;

/// How long a server may be silent: a large prompt on a small machine takes minutes to its first token.
const SILENCE: Duration = Duration::from_secs(600);

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(10);

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

/// A reason for a refusal that has another spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quirk {
    NoTemperature,
    CompletionTokens,
    NoSchema,
    NoTools,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("settings", &self.settings).finish_non_exhaustive()
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
        let unreachable = |message: String| Error::Unreachable {
            provider: settings.name.clone(),
            url: settings.base_url.clone(),
            message,
        };
        let client = http_client(&url).map_err(|e| unreachable(causes(&e)))?;
        let client = genai::Client::builder().with_reqwest(client).build().map_err(|e| unreachable(e.to_string()))?;
        Ok(Self { settings, client, learned: Mutex::default(), probing: tokio::sync::Mutex::default() })
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
        let Settings { name, base_url, .. } = &self.settings;
        Error::Unreachable { provider: name.clone(), url: base_url.clone(), message: self.safe(message) }
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
        // One timer that is set anew only when it rings: reqwest's own is, for each piece.
        let mut heard_at = Instant::now();
        let mut silence = pin!(tokio::time::sleep(SILENCE));
        loop {
            let event = tokio::select! {
                biased;
                event = stream.next() => event,
                () = silence.as_mut() => {
                    if heard_at.elapsed() >= SILENCE {
                        return Err(self.unreachable(&format!("it was silent for {} s", SILENCE.as_secs())));
                    }
                    silence.as_mut().reset((heard_at + SILENCE).into());
                    continue;
                }
            };
            heard_at = Instant::now();
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

/// Puts streamed pieces of calls together. genai gives pieces of arguments on OpenAI's wire and the
/// arguments so far on Anthropic's.
struct Calls {
    kind: ProviderKind,
    made: Vec<ToolCall>,
}

impl Calls {
    fn new(kind: ProviderKind) -> Self {
        Self { kind, made: Vec::new() }
    }

    fn bytes(&self) -> usize {
        self.made.iter().map(|c| c.arguments.len() + c.name.len() + c.id.len()).sum()
    }

    fn add(&mut self, piece: genai::chat::ToolCall) {
        let arguments = match piece.fn_arguments {
            Value::String(text) => text,
            Value::Null => String::new(),
            other => other.to_string(),
        };
        let same_id = self.made.iter().rposition(|c| c.id == piece.call_id);
        if self.kind == ProviderKind::Anthropic {
            match same_id {
                Some(at) => self.made[at].arguments = arguments,
                None => self.made.push(ToolCall { id: piece.call_id, name: piece.fn_name, arguments }),
            }
            return;
        }
        let at = if piece.fn_name.is_empty() {
            // A later piece: it has its call's place, which genai spells `call_PLACE` where no id is given.
            let place = piece.call_id.strip_prefix("call_").and_then(|n| n.parse::<usize>().ok());
            same_id.or(place.filter(|p| *p < self.made.len())).or(self.made.len().checked_sub(1))
        } else {
            // Some servers repeat id and name with each piece, some give whole calls one id.
            same_id.filter(|at| serde_json::from_str::<Value>(&self.made[*at].arguments).is_err())
        };
        match at {
            Some(at) => self.made[at].arguments.push_str(&arguments),
            None => self.made.push(ToolCall { id: piece.call_id, name: piece.fn_name, arguments }),
        }
    }
}

/// Calls with an id each: one that is missing or stands twice is replaced. Empty arguments are `{}`.
fn with_ids(mut calls: Vec<ToolCall>, index: u64) -> Vec<ToolCall> {
    for at in 0..calls.len() {
        let (before, rest) = calls.split_at_mut(at);
        let call = &mut rest[0];
        if call.id.is_empty() || before.iter().any(|c| c.id == call.id) {
            call.id = format!("call_{index}_{}", at + 1);
        }
        if call.arguments.trim().is_empty() {
            call.arguments = "{}".to_owned();
        }
    }
    calls
}

/// A part of the window as wires of native calls have it.
#[derive(Debug, PartialEq)]
enum Turn<'a> {
    System(&'a str),
    User(Cow<'a, str>),
    Assistant(&'a str, &'a [ToolCall]),
    /// Ids of calls and what came of them, all those of one [`Turn::Assistant`].
    Results(Vec<(&'a str, &'a str)>),
}

/// What stands for a result that is not in the window.
const NO_RESULT: &str = "{\"error\":\"this call was not made\"}";

/// The window for a model that calls tools by itself. Each call has its result right behind it, since
/// providers refuse a window where one is missing.
fn turns(kind: ProviderKind, messages: &[Message]) -> Vec<Turn<'_>> {
    let head = messages.iter().take_while(|m| matches!(m, Message::System { .. })).count();
    let mut out = Vec::with_capacity(messages.len());
    let mut open: Vec<&str> = Vec::new();
    let mut results: Vec<(&str, &str)> = Vec::new();
    for (at, message) in messages.iter().enumerate() {
        if let Message::Tool { call_id, text, .. } = message
            && let Some(found) = open.iter().position(|id| id == call_id)
        {
            open.remove(found);
            results.push((call_id, text));
            continue;
        }
        close(&mut out, &mut open, &mut results);
        out.push(match message {
            // Anthropic takes instructions at the head only; later ones are said in the conversation.
            Message::System { text } if at >= head && kind == ProviderKind::Anthropic => Turn::User(text.into()),
            Message::System { text } => Turn::System(text),
            Message::User { text } => Turn::User(text.into()),
            Message::Assistant { text, tool_calls } => {
                open.extend(tool_calls.iter().map(|c| c.id.as_str()));
                let nothing = text.is_empty() && tool_calls.is_empty();
                Turn::Assistant(if nothing { "(nothing)" } else { text }, tool_calls)
            }
            // A result whose call is not in the window.
            Message::Tool { name, text, .. } => Turn::User(format!("Result of {name}: {text}").into()),
        });
    }
    close(&mut out, &mut open, &mut results);
    if out.iter().all(|t| matches!(t, Turn::System(_))) {
        out.push(Turn::User("Begin.".into()));
    }
    out
}

/// Ends a turn's results.
fn close<'a>(out: &mut Vec<Turn<'a>>, open: &mut Vec<&'a str>, results: &mut Vec<(&'a str, &'a str)>) {
    results.extend(open.drain(..).map(|id| (id, NO_RESULT)));
    if !results.is_empty() {
        out.push(Turn::Results(std::mem::take(results)));
    }
}

/// The window for genai.
fn chat(turns: Vec<Turn<'_>>) -> Vec<ChatMessage> {
    let mut out = Vec::with_capacity(turns.len());
    for turn in turns {
        out.push(match turn {
            Turn::System(text) => ChatMessage::system(text),
            Turn::User(text) => ChatMessage::user(text.into_owned()),
            Turn::Assistant(text, calls) => {
                let text = (!text.is_empty()).then(|| ContentPart::from_text(text));
                let calls = calls.iter().map(|call| {
                    ContentPart::ToolCall(genai::chat::ToolCall {
                        call_id: call.id.clone(),
                        fn_name: call.name.clone(),
                        fn_arguments: object(&call.arguments),
                        thought_signatures: None,
                    })
                });
                ChatMessage::assistant(MessageContent::from_parts(text.into_iter().chain(calls).collect::<Vec<_>>()))
            }
            Turn::Results(results) => {
                let result = |(id, text): (&str, &str)| ContentPart::ToolResponse(ToolResponse::new(id, text));
                ChatMessage::tool(MessageContent::from_parts(results.into_iter().map(result).collect::<Vec<_>>()))
            }
        });
    }
    out
}

/// The window and the tools as OpenAI's wire has them. genai makes the same of its own types, but copies a
/// request four times on the way, which is most of what a call costs beside the network.
fn openai_body(request: &Request) -> (Vec<Value>, Option<Value>) {
    let text = |text: &str| Value::String(text.to_owned());
    let said =
        |role: &str, said: &str| Map::from_iter([("role".to_owned(), text(role)), ("content".to_owned(), text(said))]);
    let mut messages = Vec::with_capacity(request.messages.len());
    for turn in turns(ProviderKind::Openai, &request.messages) {
        match turn {
            Turn::System(text) => messages.push(Value::Object(said("system", text))),
            Turn::User(text) => messages.push(Value::Object(said("user", &text))),
            Turn::Assistant(text, []) => messages.push(Value::Object(said("assistant", text))),
            Turn::Assistant(words, calls) => {
                let mut message = said("assistant", words);
                let call = |c: &ToolCall| {
                    // Whole objects go as the model wrote them.
                    let whole = c.arguments.trim_start().starts_with('{')
                        && serde_json::from_str::<serde::de::IgnoredAny>(&c.arguments).is_ok();
                    let arguments = if whole { c.arguments.clone() } else { object(&c.arguments).to_string() };
                    let function = Map::from_iter([
                        ("name".to_owned(), text(&c.name)),
                        ("arguments".to_owned(), arguments.into()),
                    ]);
                    Value::Object(Map::from_iter([
                        ("type".to_owned(), text("function")),
                        ("id".to_owned(), text(&c.id)),
                        ("function".to_owned(), Value::Object(function)),
                    ]))
                };
                message.insert("tool_calls".to_owned(), calls.iter().map(call).collect());
                messages.push(Value::Object(message));
            }
            Turn::Results(results) => messages.extend(results.into_iter().map(|(id, result)| {
                let mut message = said("tool", result);
                message.insert("tool_call_id".to_owned(), text(id));
                Value::Object(message)
            })),
        }
    }
    let tool = |t: &ToolSpec| {
        let function = Map::from_iter([
            ("name".to_owned(), text(&t.name)),
            ("description".to_owned(), text(&t.description)),
            ("parameters".to_owned(), t.input_schema.clone()),
        ]);
        let parts = [("type".to_owned(), text("function")), ("function".to_owned(), Value::Object(function))];
        Value::Object(Map::from_iter(parts))
    };
    (messages, (!request.tools.is_empty()).then(|| request.tools.iter().map(tool).collect()))
}

/// Arguments as the wires want them: an object, whatever the model once said.
fn object(arguments: &str) -> Value {
    match serde_json::from_str(arguments) {
        Ok(object @ Value::Object(_)) => object,
        _ => json!({ "malformed": arguments }),
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

impl Quirk {
    fn of(error: &Error) -> Option<Self> {
        let Error::Status { status: 400 | 404 | 422 | 501, message, .. } = error else { return None };
        let says = |part: &str| message.contains(part);
        if says("max_completion_tokens") {
            Some(Self::CompletionTokens)
        } else if says("temperature") {
            Some(Self::NoTemperature)
        } else if says("response_format") || says("json_schema") || says("output_config") {
            Some(Self::NoSchema)
        } else if says("support tools") || says("support tool") || says("tool choice") || says("tool_choice") {
            Some(Self::NoTools)
        } else {
            None
        }
    }
}

/// Whether a refusal is about the size of the prompt. Each provider has its own words.
fn is_too_long(body: &str) -> bool {
    [
        "context_length_exceeded",
        "exceed_context_size",
        "maximum context length",
        "context window",
        "prompt is too long",
        "available context size",
        "input length and `max_tokens` exceed",
    ]
    .iter()
    .any(|words| body.contains(words))
}

/// The window that a refusal states, in tokens.
fn stated_limit(body: &str, text: &str) -> Option<u32> {
    let value = serde_json::from_str::<Value>(body).unwrap_or_default();
    if let Some(n) = value.pointer("/error/n_ctx").or_else(|| value.get("n_ctx")).and_then(Value::as_u64) {
        return u32::try_from(n).ok();
    }
    let number = |text: &str| {
        let digits: String = text.trim_start().chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u32>().ok()
    };
    let after = |words: &str| text.split_once(words).and_then(|(_, rest)| number(rest));
    // OpenAI and vLLM: "maximum context length is 8192 tokens"; Anthropic: "210000 tokens > 200000 maximum".
    after("maximum context length is").or_else(|| after("tokens >")).or_else(|| after("context size ("))
}

/// What `retry-after-ms` or `retry-after` asks for. A date is not understood and says nothing.
fn retry_after(headers: &reqwest::header::HeaderMap) -> Option<Duration> {
    let number = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<f64>().ok();
    let seconds = number("retry-after-ms").map(|ms| ms / 1000.0).or_else(|| number("retry-after"))?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// The message in a provider's error body, or the body.
fn error_text(body: &str) -> String {
    let value = serde_json::from_str::<Value>(body).unwrap_or_default();
    let message = value.pointer("/error/message").or_else(|| value.get("message")).or_else(|| value.get("error"));
    message.and_then(Value::as_str).map_or_else(|| body.to_owned(), str::to_owned)
}

/// An error with its causes: the outermost of a connection failure says nothing.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// Makes sure that rustls has its cryptography. An embedder may have installed another one, which
/// then serves.
pub(crate) fn install_crypto() {
    static RING: Once = Once::new();
    RING.call_once(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

fn http_client(url: &reqwest::Url) -> Result<reqwest::Client, reqwest::Error> {
    install_crypto();
    let mut builder = reqwest::Client::builder()
        .connect_timeout(CONNECT)
        // An answer is many small pieces.
        .tcp_nodelay(true)
        // A request with a key goes where it was sent, or nowhere.
        .redirect(reqwest::redirect::Policy::none());
    let local = url.host_str().is_some_and(|h| {
        let bare = h.trim_start_matches('[').trim_end_matches(']');
        h == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
    });
    if local {
        builder = builder.no_proxy();
    }
    if url.scheme() == "http" {
        // Needs no certificates, and so works on a machine that has none.
        builder = builder.tls_certs_only(std::iter::empty());
    }
    builder.build()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(id: &str, name: &str, arguments: &str) -> genai::chat::ToolCall {
        genai::chat::ToolCall {
            call_id: id.to_owned(),
            fn_name: name.to_owned(),
            fn_arguments: Value::String(arguments.to_owned()),
            thought_signatures: None,
        }
    }

    fn put_together(kind: ProviderKind, pieces: &[(&str, &str, &str)]) -> Vec<(String, String, String)> {
        let mut calls = Calls::new(kind);
        pieces.iter().for_each(|(id, name, arguments)| calls.add(piece(id, name, arguments)));
        with_ids(calls.made, 3).into_iter().map(|c| (c.id, c.name, c.arguments)).collect()
    }

    fn call(id: &str, name: &str, arguments: &str) -> (String, String, String) {
        (id.to_owned(), name.to_owned(), arguments.to_owned())
    }

    #[test]
    fn pieces_of_calls_find_each_other() {
        use ProviderKind::{Anthropic, Openai};
        let two = [("x", "a", "{\"n\""), ("call_0", "", ":1}"), ("y", "b", ""), ("call_1", "", "{}")];
        assert_eq!(put_together(Openai, &two), [call("x", "a", "{\"n\":1}"), call("y", "b", "{}")]);
        let interleaved = [("x", "a", ""), ("y", "b", ""), ("call_1", "", "{\"k\":2}"), ("call_0", "", "{}")];
        assert_eq!(put_together(Openai, &interleaved), [call("x", "a", "{}"), call("y", "b", "{\"k\":2}")]);
        let repeated = [("x", "a", "{\"n\""), ("x", "a", ":1}")];
        assert_eq!(put_together(Openai, &repeated), [call("x", "a", "{\"n\":1}")]);
        let one_id = [("call_0", "a", "{\"n\":1}"), ("call_0", "a", "{\"n\":2}")];
        assert_eq!(
            put_together(Openai, &one_id),
            [call("call_0", "a", "{\"n\":1}"), call("call_3_2", "a", "{\"n\":2}")]
        );
        let nameless = [("call_9", "", "{}")];
        assert_eq!(put_together(Openai, &nameless), [call("call_9", "", "{}")]);
        let so_far = [("x", "a", ""), ("x", "a", "{\"n\""), ("x", "a", "{\"n\":1}"), ("y", "b", "")];
        assert_eq!(put_together(Anthropic, &so_far), [call("x", "a", "{\"n\":1}"), call("y", "b", "{}")]);
    }

    #[test]
    fn each_call_in_the_window_has_its_result_behind_it() {
        let calls = vec![
            ToolCall { id: "a".into(), name: "t".into(), arguments: "{\"x\":1}".into() },
            ToolCall { id: "b".into(), name: "t".into(), arguments: "{\"x\"".into() },
        ];
        let result = |id: &str| Message::Tool { call_id: id.into(), name: "t".into(), text: "42".into() };
        let window = [
            Message::System { text: "s".into() },
            Message::Assistant { text: String::new(), tool_calls: calls },
            result("b"),
            Message::System { text: "note".into() },
            result("gone"),
        ];
        for (kind, note) in [(ProviderKind::Openai, "System"), (ProviderKind::Anthropic, "User")] {
            let out = chat(turns(kind, &window));
            let roles: Vec<String> = out.iter().map(|m| format!("{:?}", m.role)).collect();
            assert_eq!(roles, ["System", "Assistant", "Tool", note, "User"]);
            let results: Vec<&str> = out[2].content.tool_responses().iter().map(|r| r.call_id.as_str()).collect();
            assert_eq!(results, ["b", "a"]);
            assert_eq!(out[1].content.tool_calls()[1].fn_arguments, json!({"malformed": "{\"x\""}));
        }
        assert_eq!(turns(ProviderKind::Anthropic, &window[..1]), [Turn::System("s"), Turn::User("Begin.".into())]);
        let tool = ToolSpec {
            name: "t".into(),
            description: "Does.".into(),
            input_schema: json!({"type": "object"}),
            output_schema: None,
            effect: crate::abi::Effect::Pure,
        };
        let mut request = Request {
            model: "m".into(),
            agent: "a".into(),
            index: 1,
            messages: window.to_vec(),
            tools: vec![tool],
            temperature: None,
            max_tokens: None,
            response_schema: None,
            results: HashMap::new(),
        };
        let call = |id: &str, arguments: &str| json!({"type": "function", "id": id, "function": {"name": "t", "arguments": arguments}});
        let (messages, tools) = openai_body(&request);
        assert_eq!(
            Value::Array(messages),
            json!([
                {"role": "system", "content": "s"},
                {"role": "assistant", "content": "",
                 "tool_calls": [call("a", "{\"x\":1}"), call("b", "{\"malformed\":\"{\\\"x\\\"\"}")]},
                {"role": "tool", "content": "42", "tool_call_id": "b"},
                {"role": "tool", "content": NO_RESULT, "tool_call_id": "a"},
                {"role": "system", "content": "note"},
                {"role": "user", "content": "Result of t: 42"},
            ])
        );
        let function = json!({"name": "t", "description": "Does.", "parameters": {"type": "object"}});
        assert_eq!(tools, Some(json!([{"type": "function", "function": function}])));
        request.tools.clear();
        assert_eq!(openai_body(&request).1, None);
    }

    #[test]
    fn a_refusal_for_size_is_told_from_others_and_its_window_is_read() {
        for (body, limit) in [
            (
                r#"{"error":{"message":"This model's maximum context length is 8192 tokens. However, you requested 9000 tokens","code":"context_length_exceeded"}}"#,
                Some(8192),
            ),
            (
                r#"{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 210000 tokens > 200000 maximum"}}"#,
                Some(200_000),
            ),
            (
                r#"{"error":{"code":400,"message":"the request exceeds the available context size, try increasing it","type":"exceed_context_size_error","n_prompt_tokens":9000,"n_ctx":4096}}"#,
                Some(4096),
            ),
            (r#"{"error":{"message":"input is larger than the context window"}}"#, None),
        ] {
            assert!(is_too_long(body), "{body}");
            assert_eq!(stated_limit(body, &error_text(body)), limit, "{body}");
        }
        assert!(!is_too_long(r#"{"error":{"message":"temperature must be 1"}}"#));
    }

    #[test]
    fn the_time_to_wait_is_read_in_both_spellings() {
        let headers = |pairs: &[(&'static str, &str)]| {
            pairs.iter().map(|(k, v)| ((*k).parse().unwrap(), v.parse().unwrap())).collect()
        };
        let wait = |pairs: &[(&'static str, &str)]| retry_after(&headers(pairs));
        assert_eq!(wait(&[("retry-after", "3")]), Some(Duration::from_secs(3)));
        assert_eq!(wait(&[("retry-after", "9"), ("retry-after-ms", "250")]), Some(Duration::from_millis(250)));
        for odd in ["Wed, 21 Oct 2026 07:28:00 GMT", "-1", "NaN", "1e400", ""] {
            assert_eq!(wait(&[("retry-after", odd)]), None, "{odd}");
        }
    }
}
