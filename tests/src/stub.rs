//! A model server that answers by a function of the request: faults that a script cannot tell, because
//! they pass, and answers to the byte.
//!
//! Unlike the fake server it knows no conversation: which request is answered how is its caller's to say.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use agent_os_kernel::abi::ToolCall;
use anyhow::Context as _;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::fake_llm::events;

/// A request that the server got.
#[derive(Clone, Debug)]
pub struct Asked {
    /// When.
    pub at: Instant,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Value,
}

/// A request that is to be answered.
#[derive(Debug)]
pub struct Ask<'a> {
    /// How many came before it.
    pub nth: usize,
    /// Whether it is on Anthropic's wire, else on OpenAI's.
    pub anthropic: bool,
    /// Its body.
    pub body: &'a Value,
}

/// What is answered.
#[derive(Clone, Debug)]
pub enum Answer {
    /// A status with headers and a body.
    Status(u16, Vec<(&'static str, String)>, String),
    /// A stream of events, piece by piece, to its end.
    Stream(Vec<Bytes>),
    /// A stream that breaks after these pieces.
    Cut(Vec<Bytes>),
}

impl Answer {
    /// A stream of just these bytes.
    #[must_use]
    pub fn bytes(bytes: impl Into<Bytes>) -> Self {
        Self::Stream(vec![bytes.into()])
    }

    /// An error as providers send it.
    #[must_use]
    pub fn error(status: u16, message: &str) -> Self {
        let body = json!({"type": "error", "error": {"type": "error", "message": message}});
        Self::Status(status, Vec::new(), body.to_string())
    }

    /// Too many requests; asks to be left alone for so long.
    #[must_use]
    pub fn busy(retry_after_ms: u64) -> Self {
        let wait = vec![("retry-after-ms", retry_after_ms.to_string())];
        Self::Status(429, wait, json!({"error": {"message": "slow down"}}).to_string())
    }
}

impl Ask<'_> {
    /// Replies of the model that the request holds.
    #[must_use]
    pub fn replies(&self) -> usize {
        let messages = self.body["messages"].as_array().map_or(&[][..], Vec::as_slice);
        messages.iter().filter(|m| m["role"] == "assistant").count()
    }

    /// A reply of this text and these calls: id, name, arguments as they are written.
    #[must_use]
    pub fn reply(&self, text: &str, calls: &[(&str, &str, &str)]) -> Vec<Bytes> {
        let call = |(id, name, arguments): &(&str, &str, &str)| ToolCall {
            id: (*id).to_owned(),
            name: (*name).to_owned(),
            arguments: (*arguments).to_owned(),
        };
        let calls: Vec<ToolCall> = calls.iter().map(call).collect();
        events(self.anthropic, self.body, text, calls).into_iter().map(Bytes::from).collect()
    }

    /// A reply of a text.
    #[must_use]
    pub fn says(&self, text: &str) -> Answer {
        Answer::Stream(self.reply(text, &[]))
    }

    /// A reply of one call.
    #[must_use]
    pub fn calls(&self, id: &str, name: &str, arguments: &str) -> Answer {
        Answer::Stream(self.reply("", &[(id, name, arguments)]))
    }

    /// As [`Self::calls`], but the connection breaks in the middle of the arguments.
    #[must_use]
    pub fn cut_call(&self, id: &str, name: &str, arguments: &str) -> Answer {
        let mut pieces = self.reply("", &[(id, name, arguments)]);
        // The first piece that has arguments in it has the first half of them.
        let half = pieces.iter().rposition(|p| p.windows(12).any(|w| w == b"partial_json" || w == b"\"arguments\":"));
        pieces.truncate(half.unwrap_or(1));
        Answer::Cut(pieces)
    }
}

type Answers = dyn Fn(&Ask<'_>) -> Answer + Send + Sync;

struct Shared {
    answers: Box<Answers>,
    remembers: bool,
    count: std::sync::atomic::AtomicUsize,
    asked: Mutex<Vec<Asked>>,
}

/// A running server; dropping it closes the socket.
pub struct Stub {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl std::fmt::Debug for Stub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stub").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Stub {
    /// Serves on a port of 127.0.0.1, a free one for 0. `remembers`: whether requests are kept.
    ///
    /// # Errors
    /// The port is taken.
    pub async fn start(
        port: u16,
        remembers: bool,
        answers: impl Fn(&Ask<'_>) -> Answer + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        let shared =
            Arc::new(Shared { answers: Box::new(answers), remembers, count: 0.into(), asked: Mutex::default() });
        let app = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let listener = TcpListener::bind(("127.0.0.1", port))
            .await
            .with_context(|| format!("binding port {port} of 127.0.0.1"))?;
        let address = listener.local_addr()?;
        let task = crate::serve(listener, app);
        Ok(Self { address, shared, task })
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Base URL, with `/v1`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// How many requests it got.
    #[must_use]
    pub fn count(&self) -> usize {
        self.shared.count.load(std::sync::atomic::Ordering::SeqCst)
    }

    /// Every request so far, in the order of arrival, if it remembers them.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(State(shared): State<Arc<Shared>>, uri: Uri, headers: HeaderMap, bytes: Bytes) -> Response {
    let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let nth = shared.count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    let given = (shared.answers)(&Ask { nth, anthropic: uri.path().ends_with("/messages"), body: &body });
    if shared.remembers {
        let asked = Asked { at: Instant::now(), headers, body };
        shared.asked.lock().unwrap_or_else(PoisonError::into_inner).push(asked);
    }
    match given {
        Answer::Status(status, headers, body) => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let mut response = (status, body).into_response();
            for (name, value) in headers {
                if let Ok(value) = value.parse() {
                    response.headers_mut().insert(name, value);
                }
            }
            response
        }
        Answer::Stream(pieces) => streamed(pieces, false),
        Answer::Cut(pieces) => streamed(pieces, true),
    }
}

fn streamed(pieces: Vec<Bytes>, cut: bool) -> Response {
    let pieces = stream::unfold(pieces.into_iter(), move |mut pieces| async move {
        // Piece by piece, as a model does; without it they would leave as one.
        tokio::task::yield_now().await;
        match pieces.next() {
            Some(piece) => Some((Ok(piece), pieces)),
            None if cut => Some((Err(std::io::Error::other("cut")), pieces)),
            None => None,
        }
    });
    ([("content-type", "text/event-stream")], Body::from_stream(pieces)).into_response()
}
