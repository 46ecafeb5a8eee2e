//! The hook chain: what may look at, change or refuse a syscall, before and after it.
//!
//! It knows events and verdicts, not how a syscall is done. Native hooks run in the caller's turn
//! and must not block.

use std::fmt;
use std::sync::{Arc, RwLock};

use serde_json::Value;

use crate::process::Pid;

/// Where a hook can stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    /// Before a process exists; the subject is what it is asked to be.
    BeforeAgentSpawn,
    /// A process is durable and runnable.
    AfterAgentSpawn,
    /// An agent starts a turn.
    BeforeStep,
    /// The turn is over.
    AfterStep,
    /// A model is about to be asked.
    BeforeLlmCall,
    /// It replied, or failed.
    AfterLlmCall,
    /// A tool is about to be called.
    BeforeToolCall,
    /// It returned, or failed.
    AfterToolCall,
    /// A page left the window.
    AfterPageOut,
    /// A limit or a quota ended something.
    OnQuotaExceeded,
    /// A process ended.
    OnAgentExit,
    /// A syscall failed.
    OnError,
}

impl Hook {
    const ALL: [Self; 12] = [
        Self::BeforeAgentSpawn,
        Self::AfterAgentSpawn,
        Self::BeforeStep,
        Self::AfterStep,
        Self::BeforeLlmCall,
        Self::AfterLlmCall,
        Self::BeforeToolCall,
        Self::AfterToolCall,
        Self::AfterPageOut,
        Self::OnQuotaExceeded,
        Self::OnAgentExit,
        Self::OnError,
    ];

    /// The point's name in the CLI and the documents, as `BEFORE_AGENT_SPAWN`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::BeforeAgentSpawn => "BEFORE_AGENT_SPAWN",
            Self::AfterAgentSpawn => "AFTER_AGENT_SPAWN",
            Self::BeforeStep => "BEFORE_STEP",
            Self::AfterStep => "AFTER_STEP",
            Self::BeforeLlmCall => "BEFORE_LLM_CALL",
            Self::AfterLlmCall => "AFTER_LLM_CALL",
            Self::BeforeToolCall => "BEFORE_TOOL_CALL",
            Self::AfterToolCall => "AFTER_TOOL_CALL",
            Self::AfterPageOut => "AFTER_PAGE_OUT",
            Self::OnQuotaExceeded => "ON_QUOTA_EXCEEDED",
            Self::OnAgentExit => "ON_AGENT_EXIT",
            Self::OnError => "ON_ERROR",
        }
    }

    fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a hook is shown.
#[derive(Clone, Debug)]
pub struct HookEvent {
    /// Where.
    pub point: Hook,
    /// The process; none before it has a PID.
    pub pid: Option<Pid>,
    /// Its agent.
    pub agent: String,
    /// Unix milliseconds.
    pub at_ms: u64,
    /// The subject: what is asked before, the whole of it with its result after.
    pub subject: Value,
}

/// What a hook says. At an `After…` or `On…` point only `Rewrite` has an effect.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Go on.
    Allow,
    /// Go on with this subject instead; it is checked as if the caller had sent it.
    Rewrite(Value),
    /// Refuse, with a reason for the caller.
    Deny(String),
}

/// What the chain as a whole says.
#[derive(Debug, PartialEq)]
pub enum Outcome {
    /// No hook objected; the subject may have been rewritten.
    Pass {
        /// Whether a hook rewrote it.
        rewritten: bool,
        /// The subject as the last hook left it.
        subject: Value,
    },
    /// A hook refused.
    Denied {
        /// Its name.
        by: String,
        /// Its reason.
        reason: String,
    },
}

type Callback = Arc<dyn Fn(&HookEvent) -> Verdict + Send + Sync>;

struct Entry {
    name: String,
    callback: Callback,
}

/// All registered hooks, by point, in the order of registration.
#[derive(Default)]
pub struct HookChain {
    points: RwLock<[Vec<Arc<Entry>>; Hook::ALL.len()]>,
}

impl fmt::Debug for HookChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HookChain").finish_non_exhaustive()
    }
}

impl HookChain {
    /// Adds a native hook. `name` is what a refused caller is told.
    pub fn register(
        &self,
        point: Hook,
        name: impl Into<String>,
        callback: impl Fn(&HookEvent) -> Verdict + Send + Sync + 'static,
    ) {
        let entry = Arc::new(Entry { name: name.into(), callback: Arc::new(callback) });
        self.points.write().unwrap_or_else(std::sync::PoisonError::into_inner)[point.index()].push(entry);
    }

    /// Whether anybody listens at `point`; the subject need not be built otherwise.
    #[must_use]
    pub fn listens(&self, point: Hook) -> bool {
        !self.points.read().unwrap_or_else(std::sync::PoisonError::into_inner)[point.index()].is_empty()
    }

    /// Asks the hooks of `event.point` in order until one denies.
    pub fn ask(&self, mut event: HookEvent) -> Outcome {
        let entries =
            self.points.read().unwrap_or_else(std::sync::PoisonError::into_inner)[event.point.index()].clone();
        let mut rewritten = false;
        for entry in entries {
            match (entry.callback)(&event) {
                Verdict::Allow => {}
                Verdict::Rewrite(subject) => {
                    rewritten = true;
                    event.subject = subject;
                }
                Verdict::Deny(reason) => return Outcome::Denied { by: entry.name.clone(), reason },
            }
        }
        Outcome::Pass { rewritten, subject: event.subject }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(subject: Value) -> HookEvent {
        HookEvent { point: Hook::BeforeToolCall, pid: Some(Pid(1)), agent: "a".into(), at_ms: 0, subject }
    }

    #[test]
    fn hooks_run_in_order_and_see_what_the_one_before_wrote() {
        let chain = HookChain::default();
        assert!(!chain.listens(Hook::BeforeToolCall));
        chain.register(Hook::BeforeToolCall, "one", |e| {
            Verdict::Rewrite(format!("{}1", e.subject.as_str().unwrap()).into())
        });
        chain.register(Hook::BeforeToolCall, "two", |e| {
            Verdict::Rewrite(format!("{}2", e.subject.as_str().unwrap()).into())
        });
        assert!(chain.listens(Hook::BeforeToolCall) && !chain.listens(Hook::AfterToolCall));
        assert_eq!(chain.ask(event("x".into())), Outcome::Pass { rewritten: true, subject: "x12".into() });
    }

    #[test]
    fn the_first_denial_ends_the_chain_and_is_named() {
        let chain = HookChain::default();
        chain.register(Hook::BeforeToolCall, "guard", |_| Verdict::Deny("no".into()));
        chain.register(Hook::BeforeToolCall, "later", |_| panic!("asked after a denial"));
        assert_eq!(chain.ask(event(Value::Null)), Outcome::Denied { by: "guard".into(), reason: "no".into() });
    }

    #[test]
    fn each_point_has_its_own_place() {
        for (i, point) in Hook::ALL.iter().enumerate() {
            assert_eq!(point.index(), i);
        }
    }
}
