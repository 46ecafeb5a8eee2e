//! Signals to processes, and what they are without their end: stopped, going on, told to finish.

use std::pin::Pin;
use std::time::Duration;

use serde_json::json;

use super::life::set_aside;
use super::{End, Error, Kernel, Live};
use crate::audit::Chain;
use crate::hook::Hook;
use crate::hook::subject;
use crate::process::{EventKind, Exit, Pid, ProcessState, Signal};
use crate::storage::{Batch, Change, ProcessRow};
use crate::syscall::now_ms;

/// How long a process that is told to end may take, unless whoever tells it says otherwise.
pub const GRACE: Duration = Duration::from_secs(10);

/// What the store has a process wait on that was stopped by a signal: the next kernel does not resume it by itself.
pub(super) const STOPPED: &str = "signal CONT";

impl Kernel {
    /// Signals a process; `reason` is for its records. `grace` is for TERM.
    ///
    /// # Errors
    /// [`Error::UnknownProcess`]; [`Error::State`] if it has ended; a failing store.
    pub async fn signal(&self, pid: Pid, signal: Signal, reason: &str, grace: Option<Duration>) -> Result<(), Error> {
        self.owner()?;
        self.audit("signal", &format!("{} {pid}", signal.name()), "allow", reason.to_owned()).await?;
        let live = self.live(pid).filter(|l| !matches!(*l.process.end.borrow(), Some(End::Exit(_))));
        let Some(live) = live else { return self.signal_dormant(pid, signal, reason, grace).await };
        match signal {
            Signal::Kill => self.kill(pid, reason).await,
            Signal::Term => {
                self.tell_to_end(live, reason, grace.unwrap_or(GRACE)).await;
                Ok(())
            }
            Signal::Stop => {
                self.tell_signal(&live, signal, reason).await;
                live.task.stop();
                self.note_state(&live, ProcessState::Stopped, Some(STOPPED)).await
            }
            Signal::Cont if live.process.end.borrow().is_some() => self.resume_one(pid).await.map(drop),
            Signal::Cont => {
                self.tell_signal(&live, signal, reason).await;
                self.note_state(&live, ProcessState::Runnable, None).await?;
                live.task.cont();
                Ok(())
            }
        }
    }

    /// Tells a process to end, and ends it when its time for that is over.
    async fn tell_to_end(&self, live: Live, reason: &str, grace: Duration) {
        self.tell_signal(&live, Signal::Term, reason).await;
        live.process.caller.tell_to_end(u64::try_from(grace.as_millis()).unwrap_or(u64::MAX));
        let (kernel, reason) = (self.clone(), format!("{reason}, and it did not end within {} ms", grace.as_millis()));
        tokio::spawn(async move {
            let mut end = live.process.end.subscribe();
            let is_late = tokio::time::timeout(grace, end.wait_for(Option::is_some)).await.is_err();
            if is_late {
                kernel.kill_late(live.task.pid(), reason).await;
            }
        });
    }

    /// A kill whose future names no other: one that is late may be out by then, and what is out is told to end as this.
    fn kill_late(self, pid: Pid, reason: String) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            // It may have ended by itself in this moment.
            let _ = self.kill(pid, &reason).await;
        })
    }

    async fn note_state(&self, live: &Live, state: ProcessState, waiting_on: Option<&str>) -> Result<(), Error> {
        let caller = &live.process.caller;
        let pid = caller.spec().pid;
        let change = Change::State(state, waiting_on.map(str::to_owned));
        self.0.services.store.commit(Batch { pid, changes: vec![change] }).await?;
        caller.emit(caller.position(), EventKind::State { state });
        Ok(())
    }

    /// Tells the hooks of a signal.
    pub(super) async fn tell_signal(&self, live: &Live, signal: Signal, reason: &str) {
        let subject = || json!(subject::Signal { signal: signal.name().to_owned(), reason: reason.to_owned() });
        live.process.caller.tell_hooks(Hook::OnSignal, signal.name().to_owned(), subject).await;
    }

    /// Signals a process that no kernel runs.
    pub(super) async fn signal_dormant(
        &self,
        pid: Pid,
        signal: Signal,
        reason: &str,
        grace: Option<Duration>,
    ) -> Result<(), Error> {
        let owner = self.owner()?;
        if signal == Signal::Term && owner.sleepers.has(pid) {
            self.wake(pid).await;
            if let Some(live) = self.live(pid) {
                self.tell_to_end(live, reason, grace.unwrap_or(GRACE)).await;
                return Ok(());
            }
        }
        let store = &self.0.services.store;
        store.sync_all().await;
        let row = store.process(pid).await?.ok_or(Error::UnknownProcess { pid })?;
        if let Some(exit) = &row.exit {
            return Err(Error::State { pid, why: format!("has ended ({})", exit.status()) });
        }
        match signal {
            // It has nobody to tell.
            Signal::Kill | Signal::Term => {
                let exit = Exit::Killed(reason.to_owned());
                self.bury(&row, exit.clone()).await?;
                if let Some(entry) = owner.sleepers.take(pid) {
                    entry.end.send_replace(Some(End::Exit(exit)));
                }
                Ok(())
            }
            Signal::Stop => {
                drop(owner.sleepers.take(pid));
                let change = Change::State(ProcessState::Stopped, Some(STOPPED.to_owned()));
                Ok(store.commit(Batch { pid, changes: vec![change] }).await?)
            }
            Signal::Cont => self.resume_one(pid).await.map(drop),
        }
    }

    /// Writes the end of a process that no kernel runs.
    pub(super) async fn bury(&self, row: &ProcessRow, exit: Exit) -> Result<(), Error> {
        let (pid, services) = (row.spec.pid, &self.0.services);
        let mut chain = Chain::resume(pid, self.chain_head(pid).await?);
        let audit = chain.append(now_ms(), "exit", exit.status(), "allow", "kernel");
        let head = format!("{pid} {} {}", audit.seq, audit.hash);
        let status = exit.status();
        let (mut changes, held) = self.last_changes(pid).await?;
        changes.extend([Change::Exit(exit), Change::Audit(audit)]);
        services.store.commit(Batch { pid, changes }).await?;
        held.iter().for_each(|lock| services.ipc.locks.give(lock, pid));
        self.give_orphans(pid).await;
        if row.spec.root.is_none() {
            services.models.finished(pid.0);
        }
        self.audit("exit", &head, status, "kernel").await
    }

    /// What the last batch of a process deletes, and the locks that it gives back with that.
    pub(super) async fn last_changes(&self, pid: Pid) -> Result<(Vec<Change>, Vec<crate::ipc::Lock>), Error> {
        let ipc = &self.0.services.ipc;
        let mut changes = ipc.mail.close(pid);
        let locks = ipc.locks.of(pid).await?;
        changes.extend(locks.iter().map(crate::ipc::Lock::delete));
        Ok((changes, locks))
    }

    /// Stops a process where it is: no exit is written, its events end without one, and it can be
    /// resumed. Returns when everything that it did is durable.
    ///
    /// # Errors
    /// [`Error::UnknownProcess`]; [`Error::State`] if it does not run; a failing store.
    pub async fn suspend(&self, pid: Pid) -> Result<(), Error> {
        self.owner()?;
        let Some(live) = self.live(pid).filter(|l| l.process.end.borrow().is_none()) else {
            self.0.services.store.process(pid).await?.ok_or(Error::UnknownProcess { pid })?;
            return Err(Error::State { pid, why: "is not running".to_owned() });
        };
        self.tell_signal(&live, Signal::Stop, "").await;
        live.task.kill().await;
        // It may have come to its end on the way.
        if live.process.end.borrow().is_none() {
            set_aside(&live.process, End::Suspended("it was stopped by its user".to_owned()));
        }
        Ok(self.0.services.store.sync(pid).await?)
    }
}
