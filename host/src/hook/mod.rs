//! The hook chain: what may look at, change or refuse what processes do, before and after it.
//!
//! It knows events and verdicts, not how a syscall is done and not how a hook's code runs ([`Run`]). A gate that fails
//! refuses, an observer that fails is passed over, and one that fails again and again is barred.

mod chain;
#[cfg(test)]
mod docs;
mod point;
mod stored;
pub mod subject;

use std::fmt::Debug;

use async_trait::async_trait;
use serde_json::Value;

pub use chain::{Asked, HookChain, Outcome, Standing, Subscription};
pub use point::{Hook, Phase, Power};
pub use stored::{Question, Report, Run, Stored};

use crate::process::{Pid, Seq};

/// What a hook is shown.
#[derive(Clone, Debug)]
pub struct HookEvent {
    /// Where.
    pub point: Hook,
    /// The process; none before it has a PID, and none where it is about the kernel.
    pub pid: Option<Pid>,
    /// The journal position that it happens at; 0 where there is none.
    pub seq: Seq,
    /// The process's agent; empty where there is no process.
    pub agent: String,
    /// The name of what it is about, which a matcher is held against: an agent, tool, model or signal.
    pub object: String,
    /// Unix milliseconds.
    pub at_ms: u64,
    /// The subject: see [`subject`] for the type at each point.
    pub subject: Value,
}

/// What a hook says.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Go on.
    Allow,
    /// Go on with this subject instead; it is checked as if the caller had sent it. Only of trusted hooks.
    Rewrite(Value),
    /// Refuse, or withhold the result, with a reason for the caller.
    Deny(String),
    /// A person decides; the text tells what about. Only before something happens.
    Ask(String),
}

/// What a hook gave, and what it cost.
#[derive(Debug)]
pub struct Answer {
    /// Its verdict.
    pub verdict: Result<Verdict, Fall>,
    /// Fuel used.
    pub fuel: u64,
}

/// Why a hook gave no verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fall {
    /// By its own fault.
    Own(String),
    /// For want of something that is not its own: its caller's fuel, room to run, the store.
    Elsewhere(String),
}

impl Fall {
    fn why(&self) -> &str {
        match self {
            Self::Own(why) | Self::Elsewhere(why) => why,
        }
    }
}

/// A hook: native, or a component.
#[async_trait]
pub trait Handler: Send + Sync + Debug {
    /// Answers one event inside the caller's future, with at most so much fuel. Dropping the future stops it.
    async fn on_event(&self, event: &HookEvent, fuel: u64) -> Answer;
}
