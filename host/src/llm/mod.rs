//! Model providers: one trait, a written script, and OpenAI-compatible servers.
//!
//! Streaming is the primitive: a provider sends text pieces while it works and returns the whole
//! reply at the end. It knows no process, no pages and no store.
//!
//! [`models`] finds who answers for a name, [`gateway`] decides when and how often a provider is
//! asked, [`device`] whose turn it is, [`remote`] makes one attempt over HTTP ([`http`]), [`constrained`] makes tool calls of plain text,
//! [`local`] keeps a llama.cpp server running, [`prices`] says what it cost.

pub mod constrained;
pub mod device;
pub mod gateway;
mod http;
pub mod local;
pub mod models;
pub mod prices;
pub mod remote;
pub mod script;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc::UnboundedSender;

use crate::abi::{Message, Reply, TokenUsage, ToolCall, ToolSpec};
pub use models::{Models, Resolved};

/// Why a model gave no reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No model was named anywhere.
    #[error("no model is chosen")]
    NoModel {
        /// What was found on this machine, and a command to copy.
        hint: String,
    },
    /// The model's name leads nowhere.
    #[error("`{model}` is no model: {why}")]
    UnknownModel {
        /// `provider/model`.
        model: String,
        /// What is missing.
        why: String,
    },
    /// The script's `expect` is not in the newest message.
    #[error("script_mismatch: script line {line} expects `{expect}`, the newest message is `{got}`")]
    ScriptMismatch {
        /// Line of the file, from 1.
        line: usize,
        /// The text expected.
        expect: String,
        /// The newest message, shortened.
        got: String,
    },
    /// The script has no line for this request.
    #[error("script_exhausted: the script {script} has {lines} replies, this is request {request}")]
    ScriptExhausted {
        /// The file.
        script: String,
        /// How many lines count for this agent.
        lines: usize,
        /// Which request, from 1.
        request: u64,
    },
    /// The provider answered with an error status.
    #[error("{provider} answered {status}: {message}")]
    Status {
        /// Provider's name.
        provider: String,
        /// HTTP status.
        status: u16,
        /// Its text, shortened, without secrets.
        message: String,
        /// How long it asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// The prompt is larger than the model's window.
    #[error("{provider} says that the prompt is too long: {message}")]
    TooLong {
        /// Provider's name.
        provider: String,
        /// The window in tokens, where it says so.
        limit: Option<u32>,
        /// Its text.
        message: String,
    },
    /// The provider failed so often in a row that it is left alone for a while.
    #[error("{provider} failed several times in a row and is not asked for a while: {last}")]
    Open {
        /// Provider's name.
        provider: String,
        /// The last failure.
        last: String,
    },
    /// The call took longer than the provider's `timeout_s`.
    #[error("{provider} did not answer within {seconds} s, its `timeout_s`")]
    Deadline {
        /// Provider's name.
        provider: String,
        /// Seconds.
        seconds: u64,
    },
    /// The local model's server could not be had.
    #[error("{message}")]
    Local {
        /// What happened, and what to do.
        message: String,
    },
    /// The provider could not be reached, or the connection broke.
    #[error("{provider} at {url} cannot be reached: {message}")]
    Unreachable {
        /// Provider's name.
        provider: String,
        /// Base URL.
        url: String,
        /// The cause.
        message: String,
    },
    /// The reply is empty or broken on the wire: the same request may well have a good one.
    #[error("{provider} sent a reply that cannot be used: {message}")]
    Garbled {
        /// Provider's name.
        provider: String,
        /// What is wrong with it.
        message: String,
    },
    /// The reply is not what the protocol or the schema says.
    #[error("{provider} sent a reply that cannot be used: {message}")]
    Malformed {
        /// Provider's name.
        provider: String,
        /// What is wrong with it.
        message: String,
    },
}

impl Error {
    /// Whether the same request may well succeed a moment later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status, 408 | 409 | 425 | 429 | 500..=599),
            Self::Unreachable { .. } | Self::Garbled { .. } => true,
            _ => false,
        }
    }

    /// Whether the provider itself is out, so that another one may be asked in its place. A wrong key
    /// or an unknown model is not: that is for a person to know.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        self.is_transient() || matches!(self, Self::Open { .. } | Self::Deadline { .. } | Self::Local { .. })
    }

    /// Whether it is for a person to mend (a key, a server, a model), and then the same request is worth
    /// making again. The others are about the request itself, and so the agent's to know.
    #[must_use]
    pub fn is_of_the_provider(&self) -> bool {
        match self {
            Self::Status { status, .. } => !matches!(status, 400 | 413 | 422),
            Self::Malformed { .. } => true,
            _ => self.is_outage(),
        }
    }
}

/// What comes while a provider works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delta {
    /// The next piece of the reply's text.
    Text(String),
    /// The provider counted the prompt.
    Prompt {
        /// Its tokens.
        tokens: u32,
    },
    /// The attempt failed and another one is made: the text so far counts for nothing.
    Restart {
        /// Why it failed.
        why: String,
    },
}

/// On whose account a request is made: what the [`device`] orders calls by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// The process.
    pub pid: u64,
    /// The root of its process tree; [`Provider::finished`] ends it.
    pub program: u64,
    /// Its group and nice value, or those that it was raised to.
    pub standing: device::Standing,
}

/// One request: the window as messages, and what may be called.
#[derive(Clone, Debug)]
pub struct Request {
    /// The model part of `provider/model`.
    pub model: String,
    /// The agent's name: a script line may count for one agent only.
    pub agent: String,
    /// Which request of its process this is, from 1; the same again after a resume.
    pub index: u64,
    /// The window, oldest first.
    pub messages: Vec<Message>,
    /// The tools on offer.
    pub tools: Vec<ToolSpec>,
    /// Sampling temperature; the provider's default when `None`.
    pub temperature: Option<f32>,
    /// Output token limit; the provider's default when `None`.
    pub max_tokens: Option<u32>,
    /// JSON Schema for the answer's text.
    pub response_schema: Option<serde_json::Value>,
    /// Results of earlier tool calls by call id, for those that [`Provider::references`] named.
    pub results: std::collections::HashMap<String, String>,
    /// On whose account.
    pub claim: Claim,
}

/// A model provider.
#[async_trait]
pub trait Provider: Send + Sync + std::fmt::Debug {
    /// Asks the model. Text goes to `deltas` as it comes (a closed receiver is no error); the reply
    /// holds the whole of it. Dropping the future cancels the request.
    ///
    /// # Errors
    /// See [`Error`].
    async fn generate(&self, request: Arc<Request>, deltas: UnboundedSender<Delta>) -> Result<Reply, Error>;

    /// Ids of tool calls whose results the `index`-th reply to `agent` will quote. Only scripts do.
    fn references(&self, agent: &str, index: u64) -> Vec<String> {
        let _ = (agent, index);
        Vec::new()
    }

    /// Size of the model's window in tokens, as far as it is known.
    fn window(&self, model: &str) -> u32;

    /// Raises the requests of a process that wait for their turn to the standing of one that waits for it;
    /// `None` when that one does so no longer.
    fn raise(&self, pid: u64, to: Option<&device::Standing>) {
        let _ = (pid, to);
    }

    /// A process tree ended. It makes no request any more, and what it used is learned from.
    fn finished(&self, program: u64) {
        let _ = program;
    }

    /// Stops what runs on this machine for the provider.
    async fn stop(&self) {}
}

/// What a call is taken to have used where nobody says: four bytes a token, nothing cached, no price.
fn estimate_usage(messages: &[Message], text: &str, calls: &[ToolCall]) -> TokenUsage {
    let tokens = |bytes: usize| u32::try_from(bytes.div_ceil(4)).unwrap_or(u32::MAX);
    let asked = messages.iter().map(|m| m.text().len()).sum();
    let said = text.len() + calls.iter().map(|c| c.name.len() + c.arguments.len()).sum::<usize>();
    TokenUsage { input: tokens(asked), cached: 0, output: tokens(said), micro_usd: None }
}

/// The first `max` characters of a text, marked where it goes on.
fn shorten(text: &str, max: usize) -> String {
    match text.char_indices().nth(max) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text.to_owned(),
    }
}
