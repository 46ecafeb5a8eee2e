//! The one path by which a process reaches the world: each import of an agent is one value of
//! [`Syscall`], and [`Caller::call`] takes each through the nine stages of DESIGN.md §2.
//!
//! Only [`dispatch`] knows the subsystems. A new capability is a variant here, a WIT function with
//! its line in [`link`], and an arm there.

mod approval;
mod caller;
mod dispatch;
mod hooks;
pub(crate) mod link;
mod path;
mod peers;
mod step;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub use approval::{Answer as ApprovalAnswer, Approval, Approvals};
pub(crate) use caller::share;
pub use caller::{CLIENT, Caller, Dormant, Life, Services, now_ms};
pub use peers::{Child, Newborn, Peer, Peers};
pub use step::{Called, StepOutcome};

use crate::abi::{Effect, Error, Reply, ToolCall, ToolSpec};
use crate::ipc::Filter;
use crate::llm;
use crate::process::{Exit, Input, Message, Pid, Signal};
use crate::storage::PageKind;

/// Everything that an agent can do beyond computing.
#[derive(Clone, Debug, PartialEq)]
pub enum Syscall {
    /// Write a log line.
    Log {
        /// `trace` … `error`.
        level: &'static str,
        /// The line.
        message: String,
    },
    /// Read a state key.
    StateGet {
        /// The key.
        key: String,
    },
    /// Write a state key.
    StatePut {
        /// The key.
        key: String,
        /// The value.
        value: Vec<u8>,
        /// Compare-and-set against this revision.
        expected: Option<u64>,
    },
    /// Delete a state key.
    StateDelete {
        /// The key.
        key: String,
    },
    /// Append a page.
    Append {
        /// Its kind.
        kind: PageKind,
        /// Its text.
        text: String,
        /// Its importance; the kind's own when `None`.
        importance: Option<f32>,
        /// Whether it may be evicted.
        pinned: bool,
    },
    /// Read a page's exact text.
    Read {
        /// The page.
        page: u64,
    },
    /// Pin or unpin a page.
    Pin {
        /// The page.
        page: u64,
        /// Which.
        pinned: bool,
    },
    /// Set a page's importance.
    SetImportance {
        /// The page.
        page: u64,
        /// 0 to 1.
        importance: f32,
    },
    /// List the pages.
    Pages,
    /// Counters of the context.
    Usage,
    /// Ask the model.
    Generate(Options),
    /// List the tools that this process is offered.
    Available,
    /// Call a tool.
    Call {
        /// The call.
        call: ToolCall,
        /// Whether its result becomes a page.
        page: bool,
    },
    /// Enter a step: the model call and the tool calls in it are syscalls of their own.
    Step,
    /// Ask for the process's own PID.
    SelfPid,
    /// Sleep.
    Sleep {
        /// Milliseconds.
        ms: u64,
    },
    /// Spawn a child.
    Spawn(Box<Child>),
    /// Wait for the end of a process.
    Wait {
        /// Which.
        pid: Pid,
        /// Milliseconds; for ever when `None`.
        timeout_ms: Option<u64>,
    },
    /// Signal a descendant.
    Signal {
        /// Which.
        pid: Pid,
        /// The signal.
        signal: Signal,
    },
    /// Send a message.
    Send {
        /// To whom.
        to: Pid,
        /// What it is about.
        topic: String,
        /// What it says.
        body: Input,
        /// The message that it answers.
        reply_to: Option<u64>,
    },
    /// Send a message to the subscribers of a topic.
    Publish {
        /// The topic.
        topic: String,
        /// What it says.
        body: Input,
    },
    /// Subscribe to a topic, or no longer.
    Subscribe {
        /// The topic.
        topic: String,
        /// Which.
        on: bool,
    },
    /// Take a message.
    Receive {
        /// Which.
        filter: Filter,
        /// Who is to send it, where that is known.
        from: Option<Pid>,
        /// Milliseconds; for ever when `None`.
        timeout_ms: Option<u64>,
    },
    /// Take a lock.
    Lock {
        /// Its name.
        name: String,
        /// Milliseconds; for ever when `None`.
        timeout_ms: Option<u64>,
    },
    /// Give a lock.
    Unlock {
        /// Its name.
        name: String,
    },
    /// Become another agent.
    Exec {
        /// The agent.
        agent: String,
        /// Its task.
        task: String,
        /// Bytes for it.
        input: Input,
    },
}

/// Options of a model call.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// `provider/model`; the process's own when `None`.
    pub model: Option<String>,
    /// Full tool names; all on offer when `None`.
    pub tools: Option<Vec<String>>,
    /// Sampling temperature.
    pub temperature: Option<f32>,
    /// Output token limit.
    pub max_tokens: Option<u32>,
    /// JSON Schema of the answer's text, as JSON text.
    pub response_schema: Option<String>,
}

/// What a syscall gives back; journaled as it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Nothing but that it happened.
    Done,
    /// A number: a page id, a revision, a PID.
    Number(u64),
    /// A page's text, or a tool's result as JSON.
    Text(String),
    /// A state entry.
    Entry(Option<(Vec<u8>, u64)>),
    /// The pages of the context.
    Pages(Vec<PageBrief>),
    /// Counters of the context.
    Usage(UsageBrief),
    /// The model's reply.
    Reply(Reply),
    /// Tools on offer.
    Tools(Vec<ToolSpec>),
    /// How a process ended.
    Exit(Exit),
    /// A message, if there was one.
    Message(Option<Message>),
    /// Why it failed; the process goes on.
    Failed(Error),
}

/// A page as its agent sees it in a listing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PageBrief {
    /// Page id.
    pub id: u64,
    /// Kind.
    pub kind: PageKind,
    /// Tokens.
    pub tokens: u32,
    /// 0 to 1.
    pub importance: f32,
    /// Never evicted.
    pub pinned: bool,
    /// In the window.
    pub resident: bool,
    /// The first characters.
    pub preview: String,
}

/// Counters of a context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageBrief {
    /// Size of the window.
    pub window_tokens: u32,
    /// Tokens in it.
    pub resident_tokens: u32,
    /// Pages in it.
    pub resident_pages: u32,
    /// Pages in the store only.
    pub swapped_pages: u64,
    /// Reads that went to the store.
    pub faults: u64,
    /// Reads that did not.
    pub hits: u64,
    /// Pages put out.
    pub evictions: u64,
}

/// What a syscall cost its process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Fuel of a guest that it ran.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub fuel: u64,
    /// Peak memory of that guest in bytes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub memory_bytes: u64,
    /// Microseconds from start to end.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub duration_us: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// An outcome with its journal position and cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Journal position.
    pub seq: u64,
    /// What the guest gets.
    pub outcome: Outcome,
    /// What it cost.
    pub cost: Cost,
}

/// A syscall's outcome as the journal keeps it.
#[derive(Debug, Deserialize)]
struct Recorded {
    outcome: Outcome,
    #[serde(default)]
    cost: Cost,
}

/// A [`Recorded`] that is being written.
#[derive(Debug, Serialize)]
struct Recording<'a> {
    outcome: &'a Outcome,
    cost: Cost,
}

/// Why a process cannot go on. Raised through the guest as a trap.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    /// A limit or a quota is used up.
    #[error("{message}")]
    OverQuota {
        /// Which.
        limit: String,
        /// Used, allowed, and how to raise it.
        message: String,
    },
    /// The guest made another call than its journal says.
    #[error("{0}")]
    Diverged(String),
    /// The store failed: the process stays as it was last committed and can be resumed.
    #[error("{0}")]
    Store(String),
    /// It becomes another agent; what it was is in the store.
    #[error("it becomes another agent")]
    Exec,
    /// No model answered: the process stays as it was last committed and can be resumed, which asks again.
    #[error("{0}")]
    Provider(Box<llm::Error>),
}

impl Syscall {
    /// The name in journal, audit and traces.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Log { .. } => "log",
            Self::StateGet { .. } => "state-get",
            Self::StatePut { .. } => "state-put",
            Self::StateDelete { .. } => "state-delete",
            Self::Append { .. } => "append",
            Self::Read { .. } => "read",
            Self::Pin { .. } => "pin",
            Self::SetImportance { .. } => "set-importance",
            Self::Pages => "pages",
            Self::Usage => "usage",
            Self::Generate(_) => "generate",
            Self::Available => "available",
            Self::Call { .. } => "call",
            Self::Step => "step",
            Self::SelfPid => "self-pid",
            Self::Sleep { .. } => "sleep",
            Self::Spawn(_) => "spawn",
            Self::Wait { .. } => "wait",
            Self::Signal { .. } => "signal",
            Self::Send { .. } => "send",
            Self::Publish { .. } => "publish",
            Self::Subscribe { .. } => "subscribe",
            Self::Receive { .. } => "receive",
            Self::Lock { .. } => "lock",
            Self::Unlock { .. } => "unlock",
            Self::Exec { .. } => "exec",
        }
    }

    /// What identifies the call for a replay: its arguments, long texts by digest.
    #[must_use]
    pub fn request(&self) -> String {
        let value = match self {
            Self::Log { level, message } => json!({ "level": level, "message": brief(message.as_bytes()) }),
            Self::StateGet { key } | Self::StateDelete { key } => json!({ "key": key }),
            Self::StatePut { key, value, expected } => {
                json!({ "key": key, "value": brief(value), "expected": expected })
            }
            Self::Append { kind, text, importance, pinned } => {
                json!({ "kind": kind, "text": brief(text.as_bytes()), "importance": importance, "pinned": pinned })
            }
            Self::Read { page } => json!({ "page": page }),
            Self::Pin { page, pinned } => json!({ "page": page, "pinned": pinned }),
            Self::SetImportance { page, importance } => json!({ "page": page, "importance": importance }),
            Self::Generate(options) => json!(options),
            // The commonest call, so it is written without a tree of values in between.
            Self::Call { call, page } => {
                let arguments = brief(call.arguments.as_bytes());
                let request = CallRequest { id: &call.id, name: &call.name, arguments, page: *page };
                return serde_json::to_string(&request).unwrap_or_default(); // plain data has a JSON form
            }
            Self::Sleep { ms } => json!({ "ms": ms }),
            Self::Pages | Self::Usage | Self::Available | Self::Step | Self::SelfPid => return String::new(),
            _ => self.peers_request(),
        };
        value.to_string()
    }

    /// [`Self::request`] of calls between processes.
    fn peers_request(&self) -> Value {
        match self {
            Self::Spawn(child) => {
                let Child { agent, task, input, name, nice, model, quota } = &**child;
                json!({
                    "agent": agent, "task": brief(task.as_bytes()), "input": brief(&input.0), "name": name,
                    "nice": nice, "model": model, "quota": quota,
                })
            }
            Self::Wait { pid, timeout_ms } => json!({ "pid": pid, "timeout_ms": timeout_ms }),
            Self::Signal { pid, signal } => json!({ "pid": pid, "signal": signal }),
            Self::Send { to, topic, body, reply_to } => {
                json!({ "to": to, "topic": topic, "body": brief(&body.0), "reply_to": reply_to })
            }
            Self::Publish { topic, body } => json!({ "topic": topic, "body": brief(&body.0) }),
            Self::Subscribe { topic, on } => json!({ "topic": topic, "on": on }),
            Self::Receive { filter, from, timeout_ms } => {
                let (topic, reply_to) = match filter {
                    Filter::Any => (None, None),
                    Filter::Topic(topic) => (Some(topic), None),
                    Filter::ReplyTo(id) => (None, Some(id)),
                };
                json!({ "topic": topic, "reply_to": reply_to, "from": from, "timeout_ms": timeout_ms })
            }
            Self::Lock { name, timeout_ms } => json!({ "name": name, "timeout_ms": timeout_ms }),
            Self::Unlock { name } => json!({ "name": name }),
            Self::Exec { agent, task, input } => {
                json!({ "agent": agent, "task": brief(task.as_bytes()), "input": brief(&input.0) })
            }
            _ => Value::Null,
        }
    }

    /// Whether it waits for something that may be long in coming, and gives up where the process is told to end.
    fn is_a_wait(&self) -> bool {
        matches!(
            self,
            Self::Generate(_) | Self::Sleep { .. } | Self::Wait { .. } | Self::Receive { .. } | Self::Lock { .. }
        )
    }

    /// What the call is about, for the audit record: a tool, a model, a key, a page.
    #[must_use]
    pub fn object(&self) -> String {
        match self {
            Self::Call { call, .. } => call.name.clone(),
            Self::Generate(options) => options.model.clone().unwrap_or_default(),
            Self::StateGet { key } | Self::StatePut { key, .. } | Self::StateDelete { key } => key.clone(),
            Self::Read { page } | Self::Pin { page, .. } | Self::SetImportance { page, .. } => page.to_string(),
            Self::Append { kind, .. } => format!("{kind:?}").to_lowercase(),
            Self::Spawn(child) => child.agent.clone(),
            Self::Wait { pid, .. } => pid.to_string(),
            Self::Signal { pid, signal } => format!("{} {pid}", signal.name()),
            Self::Send { to, topic, .. } => format!("{to} {topic}"),
            Self::Publish { topic, .. } | Self::Subscribe { topic, .. } => topic.clone(),
            Self::Lock { name, .. } | Self::Unlock { name } => name.clone(),
            Self::Exec { agent, .. } => agent.clone(),
            _ => String::new(),
        }
    }

    /// How many page ids the call may use. Fixed by the call alone, so that a replay hands out the
    /// same ids whatever the calls beside it did.
    fn page_ids(&self) -> u64 {
        match self {
            Self::Append { .. } | Self::Generate(_) | Self::Exec { .. } => 1,
            Self::Call { page, .. } => u64::from(*page),
            _ => 0,
        }
    }
}

/// What identifies a tool call.
#[derive(Serialize)]
struct CallRequest<'a> {
    id: &'a str,
    name: &'a str,
    arguments: Brief<'a>,
    page: bool,
}

/// A text as it stands in a request.
#[derive(Serialize)]
#[serde(untagged)]
enum Brief<'a> {
    Whole(&'a str),
    Digest { sha256: String, bytes: usize },
}

/// Texts up to this many bytes stand in a request as they are, longer ones by digest.
const BRIEF_BYTES: usize = 512;

fn brief(bytes: &[u8]) -> Brief<'_> {
    match std::str::from_utf8(bytes) {
        Ok(text) if bytes.len() <= BRIEF_BYTES => Brief::Whole(text),
        _ => Brief::Digest { sha256: hex(&Sha256::digest(bytes)), bytes: bytes.len() },
    }
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, b| {
        let _ = write!(out, "{b:02x}"); // writing to a String cannot fail
        out
    })
}

/// The class of a call that reaches outside, `None` for one that does not.
fn outward_effect(syscall: &Syscall, tool: Option<Effect>) -> Option<Effect> {
    match syscall {
        // Asking a model costs money but changes nothing: a request that a crash cut off is made again.
        Syscall::Generate(_) => Some(Effect::Idempotent),
        // A second STOP, CONT, TERM or KILL changes nothing.
        Syscall::Signal { .. } => Some(Effect::Idempotent),
        Syscall::Call { .. } => tool.filter(|e| e.is_outward()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_tell_calls_apart_and_stay_short() {
        let call = |arguments: &str| Syscall::Call {
            call: ToolCall { id: "1".into(), name: "t".into(), arguments: arguments.into() },
            page: true,
        };
        assert_ne!(call("{\"a\":1}").request(), call("{\"a\":2}").request());
        let long = |c: char| call(&c.to_string().repeat(100_000)).request();
        assert_ne!(long('a'), long('b'));
        assert!(long('a').len() < 256);
    }

    #[test]
    fn outcomes_survive_the_journal() {
        for outcome in [
            Outcome::Done,
            Outcome::Number(u64::MAX),
            Outcome::Entry(Some((vec![0, 255], 3))),
            Outcome::Failed(Error::limit("fuel", "used up")),
        ] {
            let text = serde_json::to_string(&Recording { outcome: &outcome, cost: Cost::default() }).unwrap();
            assert_eq!(serde_json::from_str::<Recorded>(&text).unwrap().outcome, outcome);
        }
    }
}
