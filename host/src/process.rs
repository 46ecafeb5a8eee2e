//! What a process is: its identity, its states, how it ends, and what it has used. Pure, no I/O.

use std::fmt;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::capability::HostGrant;
use crate::quota::ResourceQuota;

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

/// Everything about a process that is fixed when it is spawned.
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
    /// Seed of its random sources.
    pub seed: u64,
    /// Unix milliseconds.
    pub created_ms: u64,
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
            mounts: Vec::new(),
            hosts: Vec::new(),
            yes: false,
            quota: ResourceQuota::STANDARD,
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
