//! How urgent processes are: what people set, and what those that wait lend to those that they wait for.

use std::sync::Weak;

use super::{Error, Inner, Kernel, lock};
use crate::process::{Pid, ProcessSpec};
use crate::scheduler::Nice;
use crate::storage::{Batch, Change};
use crate::syscall::now_ms;

impl Kernel {
    /// Sets a process's nice value, −20 (most) to 19 (least), from now on and over restarts.
    ///
    /// # Errors
    /// [`Error::Invalid`] out of range; [`Error::UnknownProcess`]; [`Error::State`] if it has ended; a failing store.
    pub async fn nice(&self, pid: Pid, nice: i8) -> Result<(), Error> {
        self.owner()?;
        if !(-20..=19).contains(&nice) {
            return Err(Error::Invalid(format!("nice is -20 to 19, not {nice}")));
        }
        let _respec = self.owner()?.respec.lock().await;
        let row = self.known(pid).await?;
        if let Some(exit) = &row.exit {
            return Err(Error::State { pid, why: format!("has ended ({})", exit.status()) });
        }
        let spec = ProcessSpec { nice, ..row.spec };
        let live = self.live(pid);
        let respec = Change::Respec(Box::new(spec));
        let changes = match &live {
            Some(live) => {
                let mut audit = None;
                live.process
                    .caller
                    .with_chain(|chain| {
                        audit = Some(chain.append(now_ms(), "nice", nice.to_string(), "allow", "operator"));
                    })
                    .await;
                std::iter::once(respec).chain(audit.map(Change::Audit)).collect()
            }
            None => {
                self.audit("nice", &format!("{pid} {nice}"), "allow", "operator").await?;
                vec![respec]
            }
        };
        self.0.services.store.commit(Batch { pid, changes }).await?;
        if let Some(live) = live {
            live.process.caller.set_nice(nice, nice);
            live.task.set_nice(Nice::new(i64::from(nice)).unwrap_or_default());
            urge(&self.0, pid);
        }
        Ok(())
    }
}

/// Has a process, and all that it waits for, be as urgent as the most urgent of those that wait for it.
fn urge(inner: &Inner, pid: Pid) {
    let Some(owner) = &inner.owner else { return };
    let waits = &inner.services.ipc.waits;
    for pid in std::iter::once(pid).chain(waits.awaited(pid)) {
        let (caller, waiters) = {
            let live = lock(&owner.live);
            let Some(caller) = live.get(&pid).map(|l| l.process.caller.clone()) else { continue };
            let nice = |waiter: Pid| live.get(&waiter).map(|l| l.process.caller.nice());
            (caller, waits.waiters(pid).into_iter().filter_map(nice).min())
        };
        let (own, before) = (caller.nice(), caller.effective_nice());
        caller.set_nice(own, waiters.unwrap_or(own));
        if caller.effective_nice() != before {
            let standing = inner.services.standing(&caller);
            let raised = (standing.nice < own).then_some(&standing);
            inner.services.models.raise(pid.0, raised);
        }
    }
}

/// A claim that is lent, on the processor and at the models.
struct Loan {
    inner: Weak<Inner>,
    on: Pid,
    _cpu: Option<crate::scheduler::Loan>,
}

impl Drop for Loan {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.upgrade() {
            urge(&inner, self.on);
        }
    }
}

/// Lends the claim of the first to the second.
pub(super) fn lend(inner: &Weak<Inner>, waiter: Pid, on: Pid) -> Option<Box<dyn Send>> {
    let kernel = inner.upgrade()?;
    let task = |pid| kernel.owner.as_ref().and_then(|o| lock(&o.live).get(&pid).map(|l| l.task.clone()));
    let _cpu = task(waiter).zip(task(on)).map(|(waiter, on)| waiter.lend_to(&on));
    urge(&kernel, on);
    Some(Box::new(Loan { inner: inner.clone(), on, _cpu }))
}
