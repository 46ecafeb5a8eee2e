//! The nine stages. Each syscall of each process goes through [`Caller::call`] and through nothing
//! else.
//!
//! Two rules hold here. What a syscall changes and its journal record are one [`Batch`], so one
//! transaction. And before an outward effect starts, its start record is durable, and with it
//! everything the process did before (the store keeps a process's batches in order).

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde_json::json;

use super::caller::{Ticket, now_ms};
use super::dispatch::Done;
use super::hooks::{Gate, Held};
use super::{Answer, Caller, Cost, Outcome, Recorded, Recording, Stop, Syscall, outward_effect};
use crate::abi::{Effect, Errno, Error};
use crate::process::Pid;
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
        let mut act = Act {
            ticket,
            name: syscall.name(),
            request,
            started_ms: now_ms(),
            began: Instant::now(),
            hook_fuel: AtomicU64::new(0),
            is_recorded: false,
        };
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
                act.is_recorded = true;
            }
            Replay::New => {}
        }
        let (syscall, decided) = match self.gate(&act, syscall).await {
            Gate::Open(syscall, by) => (syscall, by.map(|by| (by, "rewrite"))),
            Gate::Shut(syscall, error, by) => {
                return self.refuse(&act, &syscall, error, Decision::by(by, "deny")).await;
            }
            Gate::Ask(syscall, hook, question) => {
                match Box::pin(self.approval(&act, &syscall, hook, question)).await? {
                    Ok(by) => (syscall, Some((by.to_owned(), "allow"))),
                    Err(error) => return self.refuse(&act, &syscall, error, Decision::by("person", "deny")).await,
                }
            }
        };
        let admitted = match self.admit(&act, &syscall).await {
            Ok(admitted) => admitted,
            Err(error) => {
                let verb = if error.code == Errno::Denied { "deny" } else { "error" };
                return self.refuse(&act, &syscall, error, Decision::by("policy", verb)).await;
            }
        };
        let holds = self.quota_reserve(&syscall, &admitted)?;
        let effect = outward_effect(&syscall, admitted.effect());
        if effect.is_some() && !act.is_recorded {
            self.journal_start(&act, effect).await?;
        }
        let done = tokio::select! {
            biased;
            done = self.dispatch(&act, &syscall, &admitted) => done?,
            () = gone => Done::failed(Error::new(Errno::Interrupted, "its caller cancelled it")),
            grace_ms = self.told_to_end(&syscall) => Done::failed(Error::new(
                Errno::Interrupted,
                format!("the process was told to end (TERM): finish within {grace_ms} ms, then it is killed"),
            )),
        };
        self.quota_commit(&syscall, &done, holds);
        let (done, held) = self.told(&act, &syscall, done, false).await;
        let decision = match (held, decided) {
            (Some(Held { by, verb }), _) => Decision::by(by, verb),
            (None, Some((by, verb))) => Decision::by(by, verb),
            (None, None) => Decision::by("policy", "allow"),
        };
        self.finish(&act, &syscall, effect, done, decision).await
    }

    /// Stage 2, of no size and no cost where there are no hooks: a future that every call carries is copied with it.
    async fn gate(&self, act: &Act, syscall: Syscall) -> Gate {
        match self.services().hooks.is_empty() {
            true => Gate::Open(syscall, None),
            false => Box::pin(self.before_hooks(act, syscall)).await,
        }
    }

    /// Stage 7, likewise.
    async fn told(&self, act: &Act, syscall: &Syscall, done: Done, refused: bool) -> (Done, Option<Held>) {
        match self.services().hooks.is_empty() {
            true => (done, None),
            false => Box::pin(self.after_hooks(act, syscall, done, refused)).await,
        }
    }

    /// Ends a call that is not made.
    async fn refuse(&self, act: &Act, syscall: &Syscall, error: Error, decision: Decision) -> Result<Answer, Stop> {
        Box::pin(async {
            let (done, _) = self.told(act, syscall, Done::failed(error), true).await;
            self.finish(act, syscall, None, done, decision).await
        })
        .await
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

    /// The second half of stage 4: the start record, and everything before it, durable.
    async fn journal_start(&self, act: &Act, effect: Option<Effect>) -> Result<(), Stop> {
        let pid = self.spec().pid;
        let batch = Batch { pid, changes: vec![Change::Journal(Box::new(act.start(pid, effect)))] };
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
        done.cost.fuel += act.hook_fuel.load(Ordering::Relaxed);
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
        if !matches!(done.outcome, Outcome::Failed(_)) {
            done.after.run();
            if matches!(syscall, Syscall::Exec { .. }) {
                return Err(self.stop(Stop::Exec));
            }
        }
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
            (Outcome::Failed(e), "allow" | "rewrite") if e.code == Errno::Denied => "deny",
            (Outcome::Failed(_), "allow" | "rewrite") => "error",
            (_, verb) => verb,
        };
        let mut chain = self.chain().lock().await;
        let before = chain.head().cloned();
        changes.push(Change::Audit(chain.append(ended_ms, act.name, syscall.object(), verb, decision.by.clone())));
        let batch = Batch { pid, changes };
        self.charge_store(batch.size() as u64);
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
    /// Fuel of the hooks that it asked.
    pub(super) hook_fuel: AtomicU64,
    /// Whether the journal has its start.
    pub(super) is_recorded: bool,
}

impl Act {
    pub(super) fn cost(&self) -> Cost {
        Cost { duration_us: u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX), ..Cost::default() }
    }

    /// Its start, for the journal.
    pub(super) fn start(&self, pid: Pid, effect: Option<Effect>) -> JournalRecord {
        JournalRecord {
            pid,
            seq: self.ticket.seq,
            call: self.name.into(),
            request: self.request.clone(),
            effect,
            started_ms: self.started_ms,
            outcome: None,
            ended_ms: None,
        }
    }

    /// What is left of a time that began with it, in milliseconds, and when it is over. A clock that was set back
    /// makes it no longer.
    pub(super) fn left(&self, ms: u64) -> (u64, u64) {
        let until_ms = self.started_ms.saturating_add(ms);
        (until_ms.saturating_sub(now_ms()).min(ms), until_ms)
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
