//! The nine stages. Each syscall of each process goes through [`Caller::call`] and through nothing
//! else.
//!
//! Two rules hold here. What a syscall changes and its journal record are one [`Batch`], so one
//! transaction. And before an outward effect starts, its start record is durable, and with it
//! everything the process did before (the store keeps a process's batches in order).

use std::borrow::Cow;
use std::time::Instant;

use serde_json::{Value, json};

use super::caller::{Ticket, now_ms};
use super::dispatch::Done;
use super::{Answer, Caller, Cost, Outcome, Recorded, Recording, Stop, Syscall, outward_effect};
use crate::abi::{Effect, Errno, Error, ToolCall};
use crate::hook::{self, Hook, HookEvent};
use crate::storage::{self, Batch, Change, JournalRecord, LogRecord};

/// What stage 1 found.
enum Replay {
    /// The call has an outcome from an earlier life.
    Done(Answer),
    /// A crash cut it off after its start, and it may not be made again.
    Interrupted(u64),
    /// A crash cut it off after its start, and it may be made again.
    Again(u64),
    /// It is new.
    New,
}

impl Caller {
    /// Does one syscall. A failure that the guest may handle is an [`Outcome::Failed`].
    ///
    /// # Errors
    /// [`Stop`] when the process cannot go on.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the call as a crash would: with a start and no outcome, or unmade.
    pub async fn call(&self, syscall: Syscall) -> Result<Answer, Stop> {
        let ticket = self.reserve(&syscall);
        self.run(ticket, syscall).await
    }

    /// As [`Self::call`], given up when `gone` ends first: its outcome is then that it was interrupted.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn call_until(&self, syscall: Syscall, gone: impl Future<Output = ()> + Send) -> Result<Answer, Stop> {
        let ticket = self.reserve(&syscall);
        self.run_until(ticket, syscall, gone).await
    }

    pub(super) async fn run(&self, ticket: Ticket, syscall: Syscall) -> Result<Answer, Stop> {
        self.run_until(ticket, syscall, std::future::pending()).await
    }

    #[tracing::instrument(level = "debug", name = "syscall", skip_all,
        fields(pid = self.spec().pid.0, seq = ticket.seq, call = syscall.name()))]
    async fn run_until(
        &self,
        ticket: Ticket,
        syscall: Syscall,
        gone: impl Future<Output = ()> + Send,
    ) -> Result<Answer, Stop> {
        if let Some(stop) = self.stopping() {
            return Err(stop.clone());
        }
        let request = syscall.request();
        let mut act = Act { ticket, name: syscall.name(), request, started_ms: now_ms(), began: Instant::now() };
        let mut start_is_durable = false;
        match self.replay(&act)? {
            Replay::Done(answer) => return Ok(answer),
            Replay::Interrupted(started_ms) => {
                act.started_ms = started_ms;
                let what = syscall.object();
                let error = Error::new(
                    Errno::Interrupted,
                    format!(
                        "the kernel stopped while `{what}` ran; whether it took effect is not known: check before you call it again"
                    ),
                );
                return self
                    .finish(&act, &syscall, None, Done::failed(error), Decision::by("journal", "interrupted"))
                    .await;
            }
            Replay::Again(started_ms) => {
                act.started_ms = started_ms;
                start_is_durable = true;
            }
            Replay::New => {}
        }
        let syscall = match self.before_hooks(syscall) {
            Ok(syscall) => syscall,
            Err(refused) => {
                let (syscall, error, by) = *refused;
                return self.finish(&act, &syscall, None, Done::failed(error), Decision::by(by, "deny")).await;
            }
        };
        let admitted = match self.admit(&syscall) {
            Ok(admitted) => admitted,
            Err(error) => {
                let verb = if error.code == Errno::Denied { "deny" } else { "error" };
                return self.finish(&act, &syscall, None, Done::failed(error), Decision::by("policy", verb)).await;
            }
        };
        self.quota_reserve(&syscall, &admitted)?;
        let effect = outward_effect(&syscall, admitted.effect());
        if effect.is_some() && !start_is_durable {
            self.journal_start(&act, effect).await?;
        }
        let done = tokio::select! {
            biased;
            done = self.dispatch(&act, &syscall, &admitted) => done?,
            () = gone => Done::failed(Error::new(Errno::Interrupted, "its caller cancelled it")),
        };
        self.quota_commit(&syscall, &done);
        let done = self.after_hooks(&syscall, done);
        self.finish(&act, &syscall, effect, done, Decision::by("policy", "allow")).await
    }

    /// Stage 1.
    fn replay(&self, act: &Act) -> Result<Replay, Stop> {
        let Some(record) = self.recorded(act.ticket.seq) else { return Ok(Replay::New) };
        if record.call != act.name || record.request != act.request {
            return Err(self.stop(Stop::Diverged(format!(
                "journal position {} of process {} holds `{} {}`, the agent now made `{} {}`: it is not deterministic or its code changed",
                act.ticket.seq, self.spec().pid, record.call, record.request, act.name, act.request
            ))));
        }
        let Some(outcome) = &record.outcome else {
            let may_repeat = record.effect.is_none_or(Effect::is_repeatable);
            return Ok(if may_repeat {
                Replay::Again(record.started_ms)
            } else {
                Replay::Interrupted(record.started_ms)
            });
        };
        let recorded: Recorded = serde_json::from_str(outcome).map_err(|e| {
            self.stop(Stop::Store(format!(
                "journal position {} of process {} cannot be read: {e}",
                act.ticket.seq,
                self.spec().pid
            )))
        })?;
        self.advance_clock(record.ended_ms.unwrap_or(record.started_ms));
        self.add_fuel(recorded.cost.fuel);
        Ok(Replay::Done(Answer { seq: act.ticket.seq, outcome: recorded.outcome, cost: recorded.cost }))
    }

    /// Stage 2. A denial gives the syscall back with the error and the hook's name.
    fn before_hooks(&self, syscall: Syscall) -> Result<Syscall, Box<(Syscall, Error, String)>> {
        let (point, subject) = match &syscall {
            Syscall::Call { call, .. } if self.services().hooks.listens(Hook::BeforeToolCall) => {
                (Hook::BeforeToolCall, call_subject(call))
            }
            Syscall::Generate(options) if self.services().hooks.listens(Hook::BeforeLlmCall) => {
                (Hook::BeforeLlmCall, json!(options))
            }
            Syscall::Step if self.services().hooks.listens(Hook::BeforeStep) => (Hook::BeforeStep, Value::Null),
            _ => return Ok(syscall),
        };
        match self.services().hooks.ask(self.hook_event(point, subject)) {
            hook::Outcome::Pass { rewritten: false, .. } => Ok(syscall),
            hook::Outcome::Pass { rewritten: true, subject } => match rewrite(&syscall, subject) {
                Ok(new) => Ok(new),
                Err(why) => {
                    let error = Error::new(
                        Errno::Invalid,
                        format!("a hook at {point} rewrote the call into an invalid one: {why}"),
                    );
                    Err(Box::new((syscall, error, point.name().to_owned())))
                }
            },
            hook::Outcome::Denied { by, reason } => {
                let error = Error::new(Errno::Denied, format!("the hook `{by}` refused it: {reason}"));
                Err(Box::new((syscall, error, by)))
            }
        }
    }

    /// Stage 7.
    fn after_hooks(&self, syscall: &Syscall, mut done: Done) -> Done {
        let hooks = &self.services().hooks;
        if let Outcome::Failed(error) = &done.outcome
            && hooks.listens(Hook::OnError)
        {
            hooks.ask(self.hook_event(
                Hook::OnError,
                json!({ "call": syscall.name(), "object": syscall.object(), "error": error }),
            ));
        }
        let point = match syscall {
            Syscall::Call { .. } => Hook::AfterToolCall,
            Syscall::Generate(_) => Hook::AfterLlmCall,
            _ => return done,
        };
        if !hooks.listens(point) {
            return done;
        }
        let subject = json!({ "call": syscall.object(), "request": request_subject(syscall), "outcome": done.outcome });
        if let hook::Outcome::Pass { rewritten: true, subject } = hooks.ask(self.hook_event(point, subject)) {
            done.outcome = match subject.get("outcome").cloned().map(serde_json::from_value::<Outcome>) {
                Some(Ok(outcome)) => outcome,
                _ => Outcome::Failed(Error::new(
                    Errno::Invalid,
                    format!("a hook at {point} rewrote the result into an invalid one"),
                )),
            };
        }
        done
    }

    pub(super) fn hook_event(&self, point: Hook, subject: Value) -> HookEvent {
        HookEvent { point, pid: Some(self.spec().pid), agent: self.spec().agent.clone(), at_ms: now_ms(), subject }
    }

    /// The second half of stage 4: the start record, and everything before it, durable.
    async fn journal_start(&self, act: &Act, effect: Option<Effect>) -> Result<(), Stop> {
        let record = JournalRecord {
            pid: self.spec().pid,
            seq: act.ticket.seq,
            call: act.name.into(),
            request: act.request.clone(),
            effect,
            started_ms: act.started_ms,
            outcome: None,
            ended_ms: None,
        };
        let batch = Batch { pid: self.spec().pid, changes: vec![Change::Journal(Box::new(record))] };
        self.services().store.commit(batch).await.map_err(|e| self.store_failed(&e))
    }

    /// Stages 8 and 9: the outcome and what the call changed, in one batch; then the world is told.
    async fn finish(
        &self,
        act: &Act,
        syscall: &Syscall,
        effect: Option<Effect>,
        mut done: Done,
        decision: Decision,
    ) -> Result<Answer, Stop> {
        self.settle_pages(act, syscall, &mut done);
        let must_hold = done.changes.iter().any(|c| matches!(c, Change::StatePut { expected: Some(_), .. }));
        let ended_ms = match self.write(act, syscall, effect, &mut done, &decision, must_hold).await {
            Err(storage::Error::Conflict { key, expected, found }) => {
                // Another process changed the plugin's state since the tool read it: nothing of this call
                // was kept, and that is what its caller is told.
                self.retract_page(act, syscall);
                let outcome = Outcome::Failed(crate::tool::conflict(&key, expected, found));
                done = Done { outcome, cost: done.cost, lines: done.lines, ..Done::default() };
                self.settle_pages(act, syscall, &mut done);
                self.write(act, syscall, effect, &mut done, &decision, false).await
            }
            result => result,
        }
        .map_err(|e| self.store_failed(&e))?;
        // The journaled instant and no other: a replay must move the agent's clock to the same one.
        self.advance_clock(ended_ms);
        self.announce(act, syscall, &done);
        Ok(Answer { seq: act.ticket.seq, outcome: done.outcome, cost: done.cost })
    }

    /// Writes the outcome down, which takes the changes out of `done`; the instant that the journal has
    /// for its end.
    async fn write(
        &self,
        act: &Act,
        syscall: &Syscall,
        effect: Option<Effect>,
        done: &mut Done,
        decision: &Decision,
        must_hold: bool,
    ) -> Result<u64, storage::Error> {
        let pid = self.spec().pid;
        let ended_ms = now_ms();
        // A Recorded is plain data with string keys: it always has a JSON form.
        let recorded =
            serde_json::to_string(&Recording { outcome: &done.outcome, cost: done.cost }).unwrap_or_else(|e| {
                json!({ "outcome": { "failed": { "code": "io", "message": e.to_string() } } }).to_string()
            });
        let mut changes = std::mem::take(&mut done.changes);
        changes.reserve(done.lines.len() + 3);
        changes.extend(done.lines.iter().map(|line| {
            Change::Log(LogRecord {
                pid,
                seq: act.ticket.seq,
                at_ms: ended_ms,
                level: line.level.to_owned(),
                source: match syscall {
                    Syscall::Call { call, .. } => call.name.clone(),
                    _ => self.spec().agent.clone(),
                },
                message: line.message.clone(),
            })
        }));
        changes.push(Change::Journal(Box::new(JournalRecord {
            pid,
            seq: act.ticket.seq,
            call: act.name.into(),
            request: act.request.clone(),
            effect,
            started_ms: act.started_ms,
            outcome: Some(recorded),
            ended_ms: Some(ended_ms),
        })));
        changes.push(Change::Usage(self.usage()));
        let verb = match (&done.outcome, decision.verb) {
            // A right that was checked inside the call: a file outside its directories, a host that was not granted.
            (Outcome::Failed(e), "allow") if e.code == Errno::Denied => "deny",
            (Outcome::Failed(_), "allow") => "error",
            (_, verb) => verb,
        };
        let mut chain = self.chain().lock().await;
        let before = chain.head().cloned();
        changes.push(Change::Audit(chain.append(ended_ms, act.name, syscall.object(), verb, decision.by.clone())));
        let batch = Batch { pid, changes };
        if must_hold {
            let result = self.services().store.commit(batch).await;
            if result.is_err() {
                *chain = crate::audit::Chain::resume(pid, before);
            }
            result?;
        } else {
            self.services().store.enqueue(batch).await?;
        }
        Ok(ended_ms)
    }

    /// Waits until all that the process did is durable.
    ///
    /// # Errors
    /// [`Stop::Store`].
    pub async fn settled(&self) -> Result<(), Stop> {
        self.services().store.sync(self.spec().pid).await.map_err(|e| self.store_failed(&e))
    }

    pub(super) fn store_failed(&self, error: &storage::Error) -> Stop {
        self.stop(Stop::Store(error.chain()))
    }
}

/// One run of the path: what it is about, for its records.
#[derive(Debug)]
pub(super) struct Act {
    pub(super) ticket: Ticket,
    pub(super) name: &'static str,
    pub(super) request: String,
    pub(super) started_ms: u64,
    pub(super) began: Instant,
}

impl Act {
    pub(super) fn cost(&self) -> Cost {
        Cost { duration_us: u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX), ..Cost::default() }
    }
}

/// Who decided what, for the audit record.
struct Decision {
    by: Cow<'static, str>,
    verb: &'static str,
}

impl Decision {
    fn by(by: impl Into<Cow<'static, str>>, verb: &'static str) -> Self {
        Self { by: by.into(), verb }
    }
}

fn call_subject(call: &ToolCall) -> Value {
    let arguments = serde_json::from_str(&call.arguments).unwrap_or_else(|_| Value::from(call.arguments.as_str()));
    json!({ "id": call.id, "name": call.name, "arguments": arguments })
}

fn request_subject(syscall: &Syscall) -> Value {
    match syscall {
        Syscall::Call { call, .. } => call_subject(call),
        Syscall::Generate(options) => json!(options),
        _ => Value::Null,
    }
}

/// The syscall that a hook's rewritten subject stands for.
fn rewrite(syscall: &Syscall, subject: Value) -> Result<Syscall, String> {
    match syscall {
        Syscall::Call { call, page } => {
            let text = |key: &str| {
                subject
                    .get(key)
                    .and_then(Value::as_str)
                    .map(str::to_owned)
                    .ok_or_else(|| format!("`{key}` is no string"))
            };
            let arguments = subject.get("arguments").ok_or("`arguments` is missing")?.to_string();
            let (id, name) = (text("id")?, text("name")?);
            if id != call.id {
                return Err("`id` must stay as it is".to_owned());
            }
            Ok(Syscall::Call { call: ToolCall { id, name, arguments }, page: *page })
        }
        Syscall::Generate(_) => serde_json::from_value(subject).map(Syscall::Generate).map_err(|e| e.to_string()),
        other => Ok(other.clone()),
    }
}
