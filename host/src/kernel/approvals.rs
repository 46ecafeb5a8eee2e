//! Questions to people, and their answers.

use serde_json::json;

use super::{Error, Kernel};
use crate::hook::Hook;
use crate::process::Pid;
use crate::storage::{self, Batch, Change};
use crate::syscall::{Approval, ApprovalAnswer, now_ms};

impl Kernel {
    /// All questions by id, answered ones included.
    ///
    /// # Errors
    /// A failing store.
    pub async fn approvals(&self) -> Result<Vec<Approval>, Error> {
        self.0.services.store.sync_all().await;
        Ok(self.0.services.approvals.all().await?)
    }

    /// Answers a question. The process that waits for it goes on; one whose kernel was stopped finds the answer when it
    /// is resumed. With `always` the answer holds for all such questions from now on. Durable and audited when this
    /// returns.
    ///
    /// # Errors
    /// [`Error::UnknownApproval`]; [`Error::Answered`]; [`Error::State`] if its process has ended, so that the answer
    /// would be for nothing, unless it is for always.
    pub async fn decide(&self, id: u64, approved: bool, always: bool) -> Result<Approval, Error> {
        let owner = self.owner()?;
        let services = &self.0.services;
        let Some(mut approval) = services.approvals.get(id).await? else {
            let pending = services.approvals.all().await?.into_iter().filter(|a| a.answer.is_none());
            return Err(Error::UnknownApproval { id, pending: pending.map(|a| a.id).collect() });
        };
        if approval.answer.is_some() {
            return Err(Error::Answered { id, state: approval.state() });
        }
        let pid = approval.pid;
        let ended = services.store.process(pid).await?.is_none_or(|row| row.exit.is_some());
        if ended && !always {
            let why =
                format!("has ended: nothing waits for the answer to approval {id}, which can only be for --always");
            return Err(Error::State { pid, why });
        }
        let answer = ApprovalAnswer { approved, always, at_ms: now_ms() };
        approval.answer = Some(answer.clone());
        let mut chain = owner.chain.lock().await;
        let before = chain.head().cloned();
        let object = format!("approval {id} of process {pid}: {} {}", approval.call, approval.object);
        let (event, decision) = if approved { ("approve", "allow") } else { ("deny", "deny") };
        let by = if always { "person, always" } else { "person" };
        let audit = chain.append(answer.at_ms, event, object, decision, by);
        let mut changes = approval.answered();
        changes.push(Change::Audit(audit));
        if let Err(e) = services.store.commit(Batch { pid: Pid::KERNEL, changes }).await {
            *chain = crate::audit::Chain::resume(Pid::KERNEL, before);
            return Err(match e {
                storage::Error::Conflict { .. } => Error::Answered { id, state: "answered" },
                e => e.into(),
            });
        }
        drop(chain);
        services.approvals.hand_over(id, answer);
        let subject = || json!(approval.subject(approval.state()));
        self.tell_kernel(Hook::OnApproval, &approval.object, subject).await;
        Ok(approval)
    }
}
