//! OpenAI-compatible servers: OpenAI, llama.cpp, vLLM, Ollama, OpenRouter, any base URL.
//!
//! The wire is spoken by `genai`. Compared with `async-openai` 0.43: both are maintained and take any base URL;
//! genai keeps the headers of an error answer (`retry-after`), reads cached tokens in OpenAI's and
//! llama.cpp's spelling, also speaks Anthropic and Ollama, and takes our own HTTP client;
//! async-openai drops error headers and speaks OpenAI only. genai's own rewriting
//! of schemas is passed by: it makes every property required, so `response_format` goes in as it is.
//!
//! With tools on offer the reply is held to a schema (see [`super::constrained`]). Text streams
//! piece by piece where no tools are offered; a constrained answer is sent as one piece when it is
//! whole. A model that generates without end is stopped at an eighth of its window.
//!
//! It retries nothing. Dropping the future closes the connection, which makes a server stop.

use std::fmt;
use std::sync::Once;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use genai::adapter::AdapterKind;
use genai::chat::{ChatMessage, ChatOptions, ChatRequest, ChatStreamEvent, ReasoningEffort, StopReason, Usage};
use genai::resolver::{AuthData, Endpoint};
use genai::{Headers, ModelIden, ServiceTarget};
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedSender;

use super::constrained::{self, Role, Said};
use super::{Error, Provider, Request, shorten};
use crate::abi::{Finish, Reply, TokenUsage};

/// How long a server may be silent: a large prompt on a small machine takes minutes to its first token.
const SILENCE: Duration = Duration::from_secs(600);

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(10);

/// Characters of a provider's own error text that are passed on.
const ERROR_CHARS: usize = 300;

/// One OpenAI-compatible server.
pub struct OpenAi {
    name: String,
    base_url: String,
    key: Option<String>,
    window: u32,
    client: genai::Client,
}

impl fmt::Debug for OpenAi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenAi").field("name", &self.name).field("base_url", &self.base_url).finish_non_exhaustive()
    }
}

impl OpenAi {
    /// Makes a provider; connects to nothing yet. `key` is sent as a bearer token and shown nowhere.
    ///
    /// # Errors
    /// [`Error::UnknownModel`] when `base_url` is none; [`Error::Unreachable`] when this machine
    /// cannot do TLS.
    pub fn new(name: &str, base_url: &str, key: Option<String>, window: u32) -> Result<Self, Error> {
        let base_url = base_url.trim_end_matches('/').to_owned();
        let url =
            reqwest::Url::parse(&base_url).ok().filter(|u| matches!(u.scheme(), "http" | "https") && u.has_host());
        let Some(url) = url else {
            return Err(Error::UnknownModel {
                model: name.to_owned(),
                why: format!("its base URL `{base_url}` is none; give one like http://127.0.0.1:8080/v1"),
            });
        };
        let client = http_client(&url).map_err(|e| Error::Unreachable {
            provider: name.to_owned(),
            url: base_url.clone(),
            message: causes(&e),
        })?;
        let client = genai::Client::builder().with_reqwest(client).build().map_err(|e| Error::Unreachable {
            provider: name.to_owned(),
            url: base_url.clone(),
            message: e.to_string(),
        })?;
        Ok(Self { name: name.to_owned(), base_url, key, window, client })
    }

    fn target(&self, model: &str) -> ServiceTarget {
        let headers = match &self.key {
            Some(key) => Headers::from(("Authorization".to_owned(), format!("Bearer {key}"))),
            None => Headers::default(),
        };
        ServiceTarget {
            endpoint: Endpoint::from_owned(format!("{}/", self.base_url)),
            // Whole, because genai otherwise insists on a key, which local servers have not.
            auth: AuthData::RequestOverride { url: format!("{}/chat/completions", self.base_url), headers },
            model: ModelIden::new(AdapterKind::OpenAI, model.to_owned()),
        }
    }

    fn options(&self, request: &Request) -> ChatOptions {
        let mut options = ChatOptions::default()
            .with_capture_usage(true)
            // genai takes a name's ending (`-high`, `-low`) for a wish of effort and cuts it off; a
            // budget stops that and has no form on this wire.
            .with_reasoning_effort(ReasoningEffort::Budget(0));
        // A reply that a schema constrains is a choice among calls: sampling noise only makes it worse.
        let temperature = request.temperature.or_else(|| (!request.tools.is_empty()).then_some(0.0));
        if let Some(t) = temperature {
            options = options.with_temperature(f64::from(t));
        }
        let max = request.max_tokens.or_else(|| (!request.tools.is_empty()).then_some((self.window / 8).max(256)));
        if let Some(max) = max {
            options = options.with_max_tokens(max);
        }
        let schema = match &request.response_schema {
            schema if !request.tools.is_empty() => Some(constrained::schema(&request.tools, schema.as_ref())),
            Some(schema) => Some(constrained::portable(schema)),
            None => None,
        };
        let mut extra = json!({"model": request.model});
        if let Some(schema) = schema {
            extra["response_format"] =
                json!({"type": "json_schema", "json_schema": {"name": "reply", "schema": schema}});
        }
        options.with_extra_body(extra)
    }

    /// Text from outside without our key in it, shortened.
    fn safe(&self, text: &str) -> String {
        let text = match self.key.as_deref() {
            Some(key) if !key.is_empty() => text.replace(key, "[key]"),
            _ => text.to_owned(),
        };
        shorten(text.trim(), ERROR_CHARS)
    }

    fn unreachable(&self, message: &str) -> Error {
        Error::Unreachable { provider: self.name.clone(), url: self.base_url.clone(), message: self.safe(message) }
    }

    fn malformed(&self, message: &str) -> Error {
        Error::Malformed { provider: self.name.clone(), message: self.safe(message) }
    }

    fn convert(&self, error: &genai::Error) -> Error {
        match error {
            genai::Error::HttpError { status, body, .. } => Error::Status {
                provider: self.name.clone(),
                status: status.as_u16(),
                message: self.safe(&error_text(body)),
            },
            genai::Error::WebStream { error, .. } => {
                if let Some(inner) = error.downcast_ref::<genai::Error>() {
                    return self.convert(inner);
                }
                match error.downcast_ref::<reqwest::Error>() {
                    Some(e) => self.unreachable(&causes(e)),
                    // Timeouts of the transport and bytes that are no UTF-8 come as their own types.
                    None if error.is::<std::str::Utf8Error>() || error.is::<std::string::FromUtf8Error>() => {
                        self.malformed("the stream is not UTF-8")
                    }
                    None => self.unreachable(&causes(error.as_ref())),
                }
            }
            genai::Error::StreamParse { serde_error, .. } => {
                self.malformed(&format!("a part of the stream is no JSON: {serde_error}"))
            }
            genai::Error::ChatResponse { body, .. } => {
                self.malformed(&format!("it broke off with an error: {}", error_text(&body.to_string())))
            }
            other => self.malformed(&other.to_string()),
        }
    }
}

/// The message in a provider's error body, or the body.
fn error_text(body: &str) -> String {
    let value = serde_json::from_str::<Value>(body).unwrap_or_default();
    let message = value.pointer("/error/message").or_else(|| value.get("message")).and_then(Value::as_str);
    message.map_or_else(|| body.to_owned(), str::to_owned)
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

fn http_client(url: &reqwest::Url) -> Result<reqwest::Client, reqwest::Error> {
    static RING: Once = Once::new();
    RING.call_once(|| {
        // An embedder may have installed another one, which then serves.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    let mut builder = reqwest::Client::builder()
        .connect_timeout(CONNECT)
        .read_timeout(SILENCE)
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

fn usage(reported: Option<&Usage>, estimated: TokenUsage) -> TokenUsage {
    let count = |n: Option<i32>| n.and_then(|n| u32::try_from(n).ok());
    let Some(reported) = reported else {
        return estimated;
    };
    TokenUsage {
        input: count(reported.prompt_tokens).unwrap_or(estimated.input),
        cached: count(reported.prompt_tokens_details.as_ref().and_then(|d| d.cached_tokens)).unwrap_or(0),
        output: count(reported.completion_tokens).unwrap_or(estimated.output),
        micro_usd: None,
    }
}

#[async_trait]
impl Provider for OpenAi {
    async fn generate(&self, request: Request, deltas: UnboundedSender<String>) -> Result<Reply, Error> {
        let constrains = !request.tools.is_empty();
        let messages = constrained::render(&request.messages, &request.tools)
            .into_iter()
            .map(|(role, text)| match role {
                Role::System => ChatMessage::system(text),
                Role::User => ChatMessage::user(text),
                Role::Assistant => ChatMessage::assistant(text),
            })
            .collect();
        let options = self.options(&request);
        let opened = self
            .client
            .exec_chat_stream(self.target(&request.model), ChatRequest::new(messages), Some(&options))
            .await
            .map_err(|e| self.convert(&e))?;
        let mut stream = opened.stream;
        let mut text = String::new();
        let mut end = None;
        while let Some(event) = stream.next().await {
            match event.map_err(|e| self.convert(&e))? {
                ChatStreamEvent::Chunk(piece) => {
                    text.push_str(&piece.content);
                    if !constrains {
                        // Nobody has to listen.
                        let _ = deltas.send(piece.content);
                    }
                }
                ChatStreamEvent::End(e) => {
                    end = Some(e);
                    break;
                }
                _ => {}
            }
        }
        let Some(end) = end else {
            return Err(self.unreachable("the connection ended before the reply did"));
        };
        let finish = match &end.captured_stop_reason {
            Some(StopReason::MaxTokens(_)) => Finish::Length,
            Some(StopReason::ContentFilter(_)) => Finish::Refused,
            _ => Finish::Stop,
        };
        let usage = usage(end.captured_usage.as_ref(), super::estimate_usage(&request.messages, &text, &[]));
        if !constrains {
            return Ok(Reply { text, tool_calls: Vec::new(), finish, usage });
        }
        match constrained::parse(&self.name, &text, request.index) {
            Ok(Said::Calls(tool_calls)) => {
                Ok(Reply { text: String::new(), tool_calls, finish: Finish::ToolCalls, usage })
            }
            Ok(Said::Answer(text)) => {
                let _ = deltas.send(text.clone());
                Ok(Reply { text, tool_calls: Vec::new(), finish, usage })
            }
            Err(Error::Malformed { message, .. }) if finish == Finish::Length => {
                Err(self.malformed(&format!("the limit of output tokens cut it; {message}")))
            }
            Err(Error::Malformed { message, .. }) => Err(self.malformed(&message)),
            Err(other) => Err(other),
        }
    }

    fn window(&self, _model: &str) -> u32 {
        self.window
    }
}
