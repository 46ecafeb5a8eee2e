//! A fake paid LLM: OpenAI's and Anthropic's wire over a real loopback socket, from a script file.
//!
//! It has no memory of conversations: the k-th line of the script answers a request that holds k-1
//! replies of the model, so it may be restarted, and so may its client. It does remember every
//! request that it got, by a hash of the body: a crash test asserts on that. A request whose newest
//! message is not what the script expects, or for which there is no line, gets status 400 with
//! `script_mismatch` or `script_exhausted` in it.
//!
//! It says whether its model calls tools by itself when the kernel asks for that; the question is no
//! request of a conversation and is not remembered.

mod anthropic;
mod openai;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agent_os_kernel::abi::{TokenUsage, ToolCall};
use agent_os_kernel::llm::script::{Line, Script, first_half};
use anyhow::Context as _;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use futures_util::stream;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A request that the server got.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// Which line of the script it asked for, from 1.
    pub index: u64,
    /// SHA-256 of its body in hex.
    pub body_hash: String,
    /// The `authorization` or `x-api-key` header, as it came.
    pub key: Option<String>,
    /// Whether the whole answer was handed to the socket.
    pub completed: bool,
}

/// A running server; dropping it closes the socket.
#[derive(Debug)]
pub struct FakeLlm {
    address: std::net::SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    script: Script,
    agent: String,
    native: bool,
    pace: Duration,
    recorded: Mutex<Vec<Recorded>>,
}

/// What one wire reads in a request, and how it writes the reply.
struct Asked {
    /// Replies of the model that the request holds.
    replies: usize,
    /// Text of the newest message.
    newest: String,
    /// Results of earlier calls by the script's ids.
    results: HashMap<String, String>,
    stream: bool,
}

/// What a script line says, filled in.
struct Said {
    text: String,
    calls: Vec<ToolCall>,
    usage: TokenUsage,
}

trait Wire: Send + Sync + 'static {
    /// Reads a request.
    fn ask(&self, body: &Value, script: &Script, agent: &str) -> Asked;
    /// The whole answer as one body.
    fn plain(&self, body: &Value, said: &Said) -> String;
    /// The answer as server-sent events, each with its end.
    fn events(&self, body: &Value, said: &Said) -> Vec<String>;
    /// An error body.
    fn error(&self, kind: &str, message: &str) -> Value;
}

impl FakeLlm {
    /// Serves `script` on a free port of 127.0.0.1; lines for another agent than `agent` are left out.
    ///
    /// # Errors
    /// A wrong script, or no free port.
    pub async fn start(script: &Path, agent: &str) -> anyhow::Result<Self> {
        Self::start_as(script, agent, false).await
    }

    /// As [`Self::start`]; `native`: whether its model calls tools by itself.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_as(script: &Path, agent: &str, native: bool) -> anyhow::Result<Self> {
        Self::start_at_pace(script, agent, native, Duration::ZERO).await
    }

    /// As [`Self::start_as`], with so much time between the pieces of a streamed answer.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_at_pace(script: &Path, agent: &str, native: bool, pace: Duration) -> anyhow::Result<Self> {
        let script = Script::open(script)?;
        let shared = Arc::new(Shared { script, agent: agent.to_owned(), native, pace, recorded: Mutex::default() });
        let app = Router::new()
            .route("/v1/models", get(models))
            .route("/v1/chat/completions", post(chat))
            .route("/v1/messages", post(messages))
            .route("/recorded", get(recorded))
            .with_state(Arc::clone(&shared));
        let listener = TcpListener::bind("127.0.0.1:0").await.context("binding a port of 127.0.0.1")?;
        let address = listener.local_addr()?;
        let task = crate::serve(listener, app);
        Ok(Self { address, shared, task })
    }

    /// Base URL for clients of the OpenAI wire, with `/v1`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Every request so far, in the order of arrival.
    #[must_use]
    pub fn requests(&self) -> Vec<Recorded> {
        self.shared.lock().clone()
    }

    /// Serves until the process ends.
    pub async fn serve(mut self) {
        // The task ends only when the socket fails.
        let _ = (&mut self.task).await;
    }
}

impl Drop for FakeLlm {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Recorded>> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn complete(&self, at: usize) {
        if let Some(r) = self.lock().get_mut(at) {
            r.completed = true;
        }
    }
}

async fn models() -> Response {
    axum::Json(json!({"object": "list", "data": [{"id": "fake", "object": "model", "owned_by": "tests"}]}))
        .into_response()
}

async fn recorded(State(shared): State<Arc<Shared>>) -> Response {
    axum::Json(shared.lock().clone()).into_response()
}

async fn chat(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    answer(shared, &openai::OpenAi, &headers, &body).await
}

async fn messages(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    answer(shared, &anthropic::Anthropic, &headers, &body).await
}

async fn answer(shared: Arc<Shared>, wire: &dyn Wire, headers: &HeaderMap, bytes: &[u8]) -> Response {
    let refuse =
        |kind: &str, message: &str| (StatusCode::BAD_REQUEST, axum::Json(wire.error(kind, message))).into_response();
    let body: Value = match serde_json::from_slice(bytes) {
        Ok(body) => body,
        Err(e) => {
            return refuse("invalid_request_error", &format!("the body is no JSON: {e}"));
        }
    };
    if let Some(probe) = probe(&body, shared.native) {
        let parts = wire.events(&body, &probe);
        return ([("content-type", "text/event-stream")], parts.concat()).into_response();
    }
    let asked = wire.ask(&body, &shared.script, &shared.agent);
    let index = asked.replies as u64 + 1;
    let header = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let at = {
        let mut recorded = shared.lock();
        recorded.push(Recorded {
            index,
            body_hash: Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect(),
            key: header("authorization").or_else(|| header("x-api-key")),
            completed: false,
        });
        recorded.len() - 1
    };
    let line = match shared.script.line(&shared.agent, index) {
        Ok(line) => line.clone(),
        Err(e) => return refuse("script_exhausted", &e.to_string()),
    };
    if let Err(e) = line.check_newest(&asked.newest) {
        return refuse("script_mismatch", &e.to_string());
    }
    if !line.delay.is_zero() {
        tokio::time::sleep(line.delay).await;
    }
    if let Some(e) = line.error {
        return error(&shared, wire, at, e.status, e.retry_after_ms);
    }
    let kind = if asked.stream { "text/event-stream" } else { "application/json" };
    let parts = match parts(wire, &body, &line, &asked) {
        Ok(parts) => parts,
        Err(e) => return refuse("script_mismatch", &e.to_string()),
    };
    ([("content-type", kind)], sending(shared, at, parts, line.stream_cut)).into_response()
}

/// The reply to the question whether the model calls tools.
fn probe(body: &Value, native: bool) -> Option<Said> {
    const NAME: &str = "aok_probe";
    let tools = list(body, "tools");
    tools.iter().find(|t| t["name"] == NAME || t["function"]["name"] == NAME)?;
    let call = ToolCall { id: "probe".to_owned(), name: NAME.to_owned(), arguments: "{\"word\":\"ready\"}".to_owned() };
    Some(Said {
        text: if native { String::new() } else { "I am ready.".to_owned() },
        calls: if native { vec![call] } else { Vec::new() },
        usage: TokenUsage::default(),
    })
}

fn error(shared: &Shared, wire: &dyn Wire, at: usize, status: u16, retry_after_ms: Option<u64>) -> Response {
    shared.complete(at);
    let kind = if status == 429 { "rate_limit_error" } else { "api_error" };
    let code = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = (code, axum::Json(wire.error(kind, "the script says so"))).into_response();
    if let Some(ms) = retry_after_ms {
        response.headers_mut().insert("retry-after", ms.div_ceil(1000).into());
        response.headers_mut().insert("retry-after-ms", ms.into());
    }
    response
}

/// The pieces in which an answer is sent.
fn parts(wire: &dyn Wire, body: &Value, line: &Line, asked: &Asked) -> anyhow::Result<Vec<String>> {
    if let Some(raw) = &line.raw {
        return Ok(vec![raw.clone()]);
    }
    let (text, calls) = line.fill(&asked.results)?;
    let usage = line.usage.unwrap_or_else(|| {
        let tokens = |bytes: usize| u32::try_from(bytes.div_ceil(4)).unwrap_or(u32::MAX);
        TokenUsage { input: tokens(body.to_string().len()), cached: 0, output: tokens(text.len()), micro_usd: None }
    });
    let said = Said { text, calls, usage };
    Ok(if asked.stream { wire.events(body, &said) } else { vec![wire.plain(body, &said)] })
}

/// A body that tells when it was handed over whole, or that breaks in the middle.
fn sending(shared: Arc<Shared>, at: usize, mut parts: Vec<String>, cut: bool) -> Body {
    if cut {
        match parts.len() {
            0 | 1 => parts.iter_mut().for_each(|p| *p = first_half(p).to_owned()),
            n => parts.truncate(n / 2),
        }
    }
    let pieces = parts.into_iter();
    Body::from_stream(stream::unfold((pieces, shared), move |(mut pieces, shared)| async move {
        match pieces.next() {
            Some(piece) => {
                // Piece by piece, as a model does; without it hyper would see one buffer.
                tokio::task::yield_now().await;
                if !shared.pace.is_zero() {
                    tokio::time::sleep(shared.pace).await;
                }
                Some((Ok::<_, std::io::Error>(Bytes::from(piece)), (pieces, shared)))
            }
            None if cut => Some((Err(std::io::Error::other("the script cuts the stream")), (pieces, shared))),
            None => {
                shared.complete(at);
                None
            }
        }
    }))
}

/// The server-sent events in which a text and calls are told on Anthropic's wire, else on OpenAI's.
#[must_use]
pub fn events(anthropic: bool, body: &Value, text: &str, calls: Vec<ToolCall>) -> Vec<String> {
    let usage = TokenUsage { input: 100, cached: 0, output: 20, micro_usd: None };
    let said = Said { text: text.to_owned(), calls, usage };
    if anthropic { anthropic::Anthropic.events(body, &said) } else { openai::OpenAi.events(body, &said) }
}

/// A server-sent event.
fn event(name: Option<&str>, data: &Value) -> String {
    match name {
        Some(name) => format!("event: {name}\ndata: {data}\n\n"),
        None => format!("data: {data}\n\n"),
    }
}

/// The text of a message's `content`, be it a string or blocks.
fn content_text(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(blocks) => {
            let texts: Vec<String> = blocks
                .iter()
                .map(|b| {
                    b.get("text").and_then(Value::as_str).map_or_else(|| content_text(&b["content"]), str::to_owned)
                })
                .collect();
            texts.join("\n")
        }
        _ => String::new(),
    }
}

fn list<'a>(body: &'a Value, key: &str) -> &'a [Value] {
    body.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}
