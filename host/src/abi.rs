//! The Rust side of `agent-os:types`: the words that guests, tools, models and the kernel share.
//!
//! Pure data. It knows neither Wasm bindings nor any provider's wire format.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Why a syscall failed, as the guest sees it. Closed; the message carries the detail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Errno {
    /// A grant, a hook or a policy refused it.
    Denied,
    /// No such object.
    NotFound,
    /// Malformed or out of range.
    Invalid,
    /// A limit or a quota is used up; the message names it.
    Quota,
    /// Temporarily impossible; the same call may work later.
    Again,
    /// A crash cut the call off and it may or may not have happened.
    Interrupted,
    /// A deadline passed.
    Timeout,
    /// This kernel cannot do it.
    Unsupported,
    /// An argument or a result is over its size limit.
    TooLarge,
    /// The environment failed: store, network, file system.
    Io,
}

impl Errno {
    /// The kebab-case name that the WIT enum and JSON output use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::NotFound => "not-found",
            Self::Invalid => "invalid",
            Self::Quota => "quota",
            Self::Again => "again",
            Self::Interrupted => "interrupted",
            Self::Timeout => "timeout",
            Self::Unsupported => "unsupported",
            Self::TooLarge => "too-large",
            Self::Io => "io",
        }
    }
}

/// A failure that crosses to a guest or to a model: safe to show, journaled as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// The closed reason.
    pub code: Errno,
    /// What happened, to what, and what to do next.
    pub message: String,
    /// The limit that ended the call (`fuel`, `memory`, `wall` …), where one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
    /// What the tool said of it, where it said it in more than words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Box<Value>>,
}

impl Error {
    /// Builds an error without a limit.
    pub fn new(code: Errno, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), limit: None, data: None }
    }

    /// Builds the error of a call that `limit` ended.
    pub fn limit(limit: &str, message: impl Into<String>) -> Self {
        Self { code: Errno::Quota, message: message.into(), limit: Some(limit.to_owned()), data: None }
    }
}

/// What a repeated call of a tool does: decides replay after a crash and parallel execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// A function of its arguments alone.
    Pure,
    /// Looks at the world and leaves it as it was.
    ReadOnly,
    /// Changes the world; a second identical call changes nothing more.
    Idempotent,
    /// Changes the world each time; never repeated by the kernel.
    Destructive,
}

impl Effect {
    /// Whether the call reaches outside, so that its start must be durable first.
    #[must_use]
    pub fn is_outward(self) -> bool {
        matches!(self, Self::Idempotent | Self::Destructive)
    }

    /// Whether a call that a crash cut off may be made again.
    #[must_use]
    pub fn is_repeatable(self) -> bool {
        self != Self::Destructive
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pure => "pure",
            Self::ReadOnly => "read-only",
            Self::Idempotent => "idempotent",
            Self::Destructive => "destructive",
        })
    }
}

/// A tool as an agent or a model sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolSpec {
    /// Full name, `plugin__tool` (CONTRACT §3).
    pub name: String,
    /// One or two sentences for the model.
    pub description: String,
    /// JSON Schema of the arguments object.
    pub input_schema: Value,
    /// JSON Schema of the result, where it is known.
    pub output_schema: Option<Value>,
    /// What a repeated call does.
    pub effect: Effect,
}

/// One call that a model or an agent asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ToolCall {
    /// The model's id of the call; results are matched by it.
    pub id: String,
    /// Full tool name.
    pub name: String,
    /// The arguments object as JSON text, kept byte for byte as it was given.
    pub arguments: String,
}

/// What a finished tool call gave: the result as JSON text, or why there is none.
pub type ToolResult = Result<String, Error>;

/// One message of the window in the providers' common shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "role")]
pub enum Message {
    /// Instructions: the pinned head and notes.
    System {
        /// The instructions.
        text: String,
    },
    /// The person, or the task.
    User {
        /// What was said.
        text: String,
    },
    /// The model's own turn.
    Assistant {
        /// Its text; may be empty beside tool calls.
        text: String,
        /// The calls that it asked for.
        tool_calls: Vec<ToolCall>,
    },
    /// The result of one call.
    Tool {
        /// Which call.
        call_id: String,
        /// Which tool.
        name: String,
        /// The result, or the error as text.
        text: String,
    },
}

impl Message {
    /// The message's text, whatever its role.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::System { text } | Self::User { text } | Self::Assistant { text, .. } | Self::Tool { text, .. } => {
                text
            }
        }
    }
}

/// Why the model stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Finish {
    /// It was done.
    Stop,
    /// It wants tools called.
    ToolCalls,
    /// It ran out of output tokens.
    Length,
    /// The provider or the model refused.
    Refused,
}

/// Tokens of one model call. `input` counts all prompt tokens, the cached ones included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TokenUsage {
    /// Prompt tokens.
    pub input: u32,
    /// Those of them that the provider's prefix cache served.
    pub cached: u32,
    /// Generated tokens.
    pub output: u32,
    /// Price in micro-USD; unknown prices are `None`, never 0.
    pub micro_usd: Option<u64>,
}

/// A model's whole reply.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Reply {
    /// Its text.
    pub text: String,
    /// The calls that it asks for.
    pub tool_calls: Vec<ToolCall>,
    /// Why it stopped.
    pub finish: Finish,
    /// What it used.
    pub usage: TokenUsage,
}
