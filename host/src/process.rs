//! What a process is: its identity, its states, how it ends, and what it has used. Pure, no I/O.

pub mod weight;

use std::fmt;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::capability::HostGrant;
use crate::quota::{OnQuota, ResourceQuota};

/// A process id. They start at 1 and are never reused; 0 is the kernel itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pid(pub u64);

impl Pid {
    /// The kernel, as the author of its own audit records.
    pub const KERNEL: Self = Self(0);
}

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A process's journal position, from 1.
pub type Seq = u64;

/// A directory that a process's tools may see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path on the host.
    pub host: PathBuf,
    /// The name under which guests see it: the path's last component.
    pub guest: String,
    /// Whether guests may write.
    pub writable: bool,
    /// Whether what guests write goes to a private copy, and not through to the host. Absent in a record that an
    /// older aok wrote, whose processes wrote through.
    #[serde(default)]
    pub private: bool,
}

impl Mount {
    /// Whether guests write to a private copy of it.
    #[must_use]
    pub fn is_private(&self) -> bool {
        self.writable && self.private
    }
}

/// Where the tree of a process that was spawned by another began: what its members have in common is kept under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// The process that a person started.
    pub pid: Pid,
    /// Its own `created_ms`.
    pub created_ms: u64,
    /// Its own `seed`.
    pub seed: u64,
}

/// Where a process stood when `exec` made it another agent: its journal begins there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoch {
    /// The journal position of the `exec`.
    pub seq: Seq,
    /// The first page id that it may use.
    pub page: u64,
    /// Model requests made before.
    pub requests: u64,
    /// Fuel used before.
    pub fuel: u64,
    /// The agent's clock, Unix milliseconds.
    pub clock_ms: u64,
}

/// What a spawn or an `exec` passes on to the agent, as text in a record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Input(pub Vec<u8>);

impl Serialize for Input {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use base64::Engine as _;
        serializer.serialize_str(&base64::engine::general_purpose::STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use base64::Engine as _;
        let text = <std::borrow::Cow<'_, str>>::deserialize(deserializer)?;
        base64::engine::general_purpose::STANDARD.decode(&*text).map(Self).map_err(serde::de::Error::custom)
    }
}

impl Input {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What a process is. It is fixed when it is spawned, but for `nice`, `quota`, `ppid` and what `exec` changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// Its id.
    pub pid: Pid,
    /// The process that spawned it; `None` for one that a person started.
    pub ppid: Option<Pid>,
    /// A name for people; the agent's name unless given.
    pub name: String,
    /// The agent image's name, or `client` for a tool call from outside.
    pub agent: String,
    /// SHA-256 of the agent component in hex; empty for clients.
    pub digest: String,
    /// `provider/model`; `None` for clients.
    pub model: Option<String>,
    /// Scheduling group.
    pub group: String,
    /// −20 (most) to 19 (least).
    pub nice: i8,
    /// What it was asked to do.
    pub task: String,
    /// Bytes that it was given beside.
    #[serde(default, skip_serializing_if = "Input::is_empty")]
    pub input: Input,
    /// Where its tree began; `None` for one that a person started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<Root>,
    /// Where its journal begins; `None` for one that was never another agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<Epoch>,
    /// The directories that its tools may see.
    pub mounts: Vec<Mount>,
    /// The hosts that its tools may reach; none in a record that an older aok wrote.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<HostGrant>,
    /// Whether whoever started it has said yes to all that a hook asks a person about.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub yes: bool,
    /// Its limits.
    pub quota: ResourceQuota,
    /// What becomes of it when one is used up.
    #[serde(default, skip_serializing_if = "OnQuota::is_usual")]
    pub on_quota: OnQuota,
    /// Seed of its random sources.
    pub seed: u64,
    /// Unix milliseconds.
    pub created_ms: u64,
}

impl ProcessSpec {
    /// Where its tree began: it itself, if a person started it.
    #[must_use]
    pub fn root(&self) -> Root {
        self.root.unwrap_or(Root { pid: self.pid, created_ms: self.created_ms, seed: self.seed })
    }
}

#[cfg(test)]
impl ProcessSpec {
    /// A process for tests, with nothing special about it.
    pub(crate) fn sample(pid: u64) -> Self {
        Self {
            pid: Pid(pid),
            ppid: None,
            name: "n".into(),
            agent: "a".into(),
            digest: String::new(),
            model: None,
            group: "default".into(),
            nice: 0,
            task: "t".into(),
            input: Input::default(),
            root: None,
            epoch: None,
            mounts: Vec::new(),
            hosts: Vec::new(),
            yes: false,
            quota: ResourceQuota::STANDARD,
            on_quota: OnQuota::End,
            seed: 1,
            created_ms: 1,
        }
    }
}

/// The state letters of `ps` (CONTRACT §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProcessState {
    /// Runnable or running.
    #[serde(rename = "R")]
    Runnable,
    /// Waiting: model, tool, timer.
    #[serde(rename = "S")]
    Waiting,
    /// Stopped by a signal, or left behind by a kernel that is no more.
    #[serde(rename = "T")]
    Stopped,
    /// Waiting for a person's approval.
    #[serde(rename = "A")]
    Approval,
    /// Ended and not yet waited for.
    #[serde(rename = "Z")]
    Zombie,
    /// Swapped out whole.
    #[serde(rename = "W")]
    Swapped,
}

impl ProcessState {
    /// The state's letter.
    #[must_use]
    pub fn letter(self) -> &'static str {
        match self {
            Self::Runnable => "R",
            Self::Waiting => "S",
            Self::Stopped => "T",
            Self::Approval => "A",
            Self::Zombie => "Z",
            Self::Swapped => "W",
        }
    }

    /// The state of a letter that [`Self::letter`] gave.
    #[must_use]
    pub fn from_letter(letter: &str) -> Option<Self> {
        [Self::Runnable, Self::Waiting, Self::Stopped, Self::Approval, Self::Zombie, Self::Swapped]
            .into_iter()
            .find(|s| s.letter() == letter)
    }
}

/// How a process ended. A guest's failure is data, not an `Err` of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "status", content = "message")]
pub enum Exit {
    /// The agent's answer.
    Success(String),
    /// The agent said that it failed, or trapped.
    Failure(String),
    /// A signal or a person ended it.
    Killed(String),
    /// A limit or a quota ended it; the text names which.
    OverQuota(String),
}

impl Exit {
    /// `success`, `failure`, `killed` or `over-quota`.
    #[must_use]
    pub fn status(&self) -> &'static str {
        match self {
            Self::Success(_) => "success",
            Self::Failure(_) => "failure",
            Self::Killed(_) => "killed",
            Self::OverQuota(_) => "over-quota",
        }
    }

    /// The answer, or why there is none.
    #[must_use]
    pub fn message(&self) -> &str {
        match self {
            Self::Success(m) | Self::Failure(m) | Self::Killed(m) | Self::OverQuota(m) => m,
        }
    }
}

/// A signal to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Signal {
    /// It is not run until CONT.
    Stop,
    /// It goes on.
    Cont,
    /// It is told to finish and is killed when the time for that is over.
    Term,
    /// It ends now.
    Kill,
}

impl Signal {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Stop, Self::Cont, Self::Term, Self::Kill];

    /// `STOP`, `CONT`, `TERM` or `KILL`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "STOP",
            Self::Cont => "CONT",
            Self::Term => "TERM",
            Self::Kill => "KILL",
        }
    }

    /// Its number on Linux, for exit codes of 128 + n.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Kill => 9,
            Self::Term => 15,
            Self::Cont => 18,
            Self::Stop => 19,
        }
    }
}

/// A message between processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Its id, from the sender's PID and journal position: the same in a replay.
    pub id: u64,
    /// Who sent it.
    pub sender: Pid,
    /// What it is about.
    pub topic: String,
    /// What it says.
    pub body: Input,
    /// The message that it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<u64>,
}

impl Message {
    /// The id of the message that `sender` sends at `seq`; `None` where the two have no room in one number.
    #[must_use]
    pub fn id(sender: Pid, seq: Seq) -> Option<u64> {
        let (pid, seq) = (u32::try_from(sender.0).ok()?, u32::try_from(seq).ok()?);
        Some(u64::from(pid) << 32 | u64::from(seq))
    }

    /// Who sent the message of an id.
    #[must_use]
    pub fn sender_of(id: u64) -> Pid {
        Pid(id >> 32)
    }
}

/// What a process has used, exact to its last committed syscall.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// Fuel of its own code and of the tools that it called.
    pub fuel: u64,
    /// Fuel slices that the scheduler gave it.
    pub slices: u64,
    /// Prompt tokens, cached ones included.
    pub tokens_in: u64,
    /// Prompt tokens that a prefix cache served.
    pub tokens_cached: u64,
    /// Generated tokens.
    pub tokens_out: u64,
    /// Price in micro-USD; `None` once any part of it is unknown, or nothing was priced yet.
    pub micro_usd: Option<u64>,
    /// Calls to models.
    pub llm_calls: u64,
    /// Calls to tools.
    pub tool_calls: u64,
    /// Bytes written to its log.
    pub log_bytes: u64,
    /// Bytes that it had the store write, its log's included.
    #[serde(default)]
    pub store_bytes: u64,
    /// Microseconds that it has been alive under a kernel.
    pub wall_us: u64,
}

/// One line of `aok run --json` (CONTRACT §4). Only what really happens is an event: replayed
/// syscalls are silent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// The process.
    pub pid: Pid,
    /// Its journal position, 0 where the event belongs to none.
    pub seq: Seq,
    /// Unix milliseconds.
    pub at_ms: u64,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened to a process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum EventKind {
    /// It exists: durable before this is sent.
    Spawned {
        /// Agent image.
        agent: String,
        /// `provider/model`.
        model: Option<String>,
        /// The task.
        task: String,
    },
    /// It changed state.
    State {
        /// The new state's letter.
        state: ProcessState,
    },
    /// A model is being asked.
    LlmStart {
        /// `provider/model`.
        model: String,
        /// The prompt's size as the kernel counts it.
        prompt_tokens: u32,
    },
    /// A piece of the model's text.
    Text {
        /// The piece.
        delta: String,
    },
    /// The model is done.
    LlmEnd {
        /// Prompt tokens.
        input: u32,
        /// Of them cached.
        cached: u32,
        /// Generated tokens.
        output: u32,
        /// Price; `None` if unknown.
        micro_usd: Option<u64>,
        /// Why it stopped, or `error`.
        finish: String,
    },
    /// A tool call begins.
    ToolStart {
        /// The call's id.
        id: String,
        /// Full tool name.
        name: String,
        /// The arguments object.
        arguments: Value,
    },
    /// A tool call ended.
    ToolEnd {
        /// The call's id.
        id: String,
        /// Full tool name.
        name: String,
        /// Whether there is a result.
        ok: bool,
        /// The result.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        result: Option<Value>,
        /// Or the error, as `{"code","message","limit"}`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<Value>,
        /// Microseconds.
        duration_us: u64,
    },
    /// A page left the window.
    PageOut {
        /// Its id.
        page: u64,
        /// Its size.
        tokens: u32,
    },
    /// A page came back.
    PageIn {
        /// Its id.
        page: u64,
        /// Its size.
        tokens: u32,
    },
    /// A person is to decide, and the process waits.
    Ask {
        /// The question's id, for `aok approve`.
        approval: u64,
        /// The question.
        reason: String,
    },
    /// The last event, always.
    Exit {
        /// `success`, `failure`, `killed` or `over-quota`.
        status: String,
        /// The answer of a success.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        answer: Option<String>,
        /// Why there is none, otherwise.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<String>,
        /// What the process used.
        usage: Usage,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_of_an_older_aok_grants_no_host() {
        let old = r#"{"pid":1,"ppid":null,"name":"n","agent":"a","digest":"","model":null,"group":"default","nice":0,
            "task":"t","mounts":[],"quota":{"fuel":1,"tokens":1,"micro_usd":1,"tool_calls":1,"wall_ms":1},"seed":1,
            "created_ms":1}"#;
        let spec: ProcessSpec = serde_json::from_str(old).unwrap();
        assert!(spec.hosts.is_empty());
        let granted = ProcessSpec { hosts: vec!["[::1]:80".parse().unwrap(), "*.a.example".parse().unwrap()], ..spec };
        let text = serde_json::to_string(&granted).unwrap();
        assert!(text.contains(r#""hosts":["[::1]:80","*.a.example"]"#), "{text}");
        assert_eq!(serde_json::from_str::<ProcessSpec>(&text).unwrap(), granted);
    }
}
