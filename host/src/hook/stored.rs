//! A hook whose code has a log and a state of its own, as components have.

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;

use super::{Answer, Fall, Handler, HookEvent, Verdict};
use crate::process::Pid;
use crate::storage::{self, Batch, Change, LogRecord, Store};
use crate::tool::{LogLine, Session, SessionEnd};

/// How often a hook is asked again because another call changed its state meanwhile.
const ATTEMPTS: u32 = 5;

/// One event as a hook's runtime gets it.
#[derive(Debug)]
pub struct Question<'a> {
    /// The event.
    pub event: &'a HookEvent,
    /// The most fuel that the answer may use, if the caller has less left than the hook's limit.
    pub fuel: u64,
    /// Log and state of the hook.
    pub session: Session,
}

/// What a run of a hook's code gave.
#[derive(Debug)]
pub struct Report {
    /// The verdict.
    pub verdict: Result<Verdict, Fall>,
    /// Fuel used.
    pub fuel: u64,
    /// Log lines and state changes.
    pub session: SessionEnd,
}

/// Runs a hook's code: a Wasm component.
#[async_trait]
pub trait Run: Send + Sync + Debug {
    /// Answers one event inside the caller's future. Dropping the future stops it.
    async fn run(&self, question: Question<'_>) -> Report;
}

/// A plugin's hook. Its state is written when it has answered, before what it was asked about goes on: a call that a
/// crash cuts off after that asks its hooks again.
#[derive(Debug)]
pub struct Stored {
    /// The code.
    pub code: Arc<dyn Run>,
    /// Where its state is.
    pub store: Store,
    /// The plugin.
    pub plugin: String,
    /// Bytes of log lines in one answer.
    pub log_limit: u64,
}

impl Stored {
    /// Keeps what the hook leaves; whether that holds, which it does not if its state was changed since it read it.
    async fn keep(&self, event: &HookEvent, end: SessionEnd) -> Result<bool, storage::Error> {
        let SessionEnd { lines, mut changes } = end;
        let pid = event.pid.unwrap_or(Pid::KERNEL);
        let must_hold = !changes.is_empty();
        for LogLine { level, message } in lines {
            if event.pid.is_none() {
                tracing::info!(hook = self.plugin, level, "{message}");
                continue;
            }
            let source = self.plugin.clone();
            changes.push(Change::Log(LogRecord {
                pid,
                seq: event.seq,
                at_ms: event.at_ms,
                level: level.to_owned(),
                source,
                message,
            }));
        }
        if changes.is_empty() {
            return Ok(true);
        }
        let batch = Batch { pid, changes };
        if !must_hold {
            self.store.enqueue(batch).await?;
            return Ok(true);
        }
        match self.store.commit(batch).await {
            Ok(()) => Ok(true),
            Err(storage::Error::Conflict { .. }) => Ok(false),
            Err(e) => Err(e),
        }
    }
}

#[async_trait]
impl Handler for Stored {
    async fn on_event(&self, event: &HookEvent, fuel: u64) -> Answer {
        let mut used = 0;
        let elsewhere = |why: String, fuel| Answer { verdict: Err(Fall::Elsewhere(why)), fuel };
        for _ in 0..ATTEMPTS {
            let caller = event.pid.unwrap_or(Pid::KERNEL);
            let session = Session::new(self.store.clone(), caller, &self.plugin, self.log_limit);
            let report = self.code.run(Question { event, fuel: fuel.saturating_sub(used), session }).await;
            used += report.fuel;
            match self.keep(event, report.session).await {
                Ok(true) => return Answer { verdict: report.verdict, fuel: used },
                Ok(false) => {}
                Err(e) => return elsewhere(format!("its state cannot be kept: {}", e.chain()), used),
            }
        }
        elsewhere(format!("its state was changed by others {ATTEMPTS} times while it answered"), used)
    }
}
