//! Questions to a person: written down before anybody waits for the answer, so that both outlast the kernel.
//!
//! A question is a state entry of the kernel's own scope. Its revision is 1 until it is answered, and the answer is a
//! compare-and-set, so that it is given once. Two more entries find it without a look at all others: that of the call,
//! for a process that is resumed, and that of an answer for always.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::oneshot;

use super::caller::{Activity, now_ms};
use super::path::Act;
use super::{Caller, Stop, Syscall};
use crate::abi::{Errno, Error};
use crate::hook::{Hook, subject};
use crate::process::{EventKind, Pid, ProcessState, Seq};
use crate::storage::{self, Batch, Change, StateEntry, Store};

/// The scope of the questions. No guest's has such a name.
const SCOPE: &str = "kernel:approvals";
/// By process, position and request: the question about that call.
const ASKED: &str = "kernel:approvals-asked";
/// By hook, agent, call and object: the question whose answer is for always.
const STANDING: &str = "kernel:approvals-standing";

/// A question to a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// Its id, from 1.
    pub id: u64,
    /// The process that waits, or that was refused for want of an answer.
    pub pid: Pid,
    /// The journal position of the call.
    pub seq: Seq,
    /// When it was asked, Unix milliseconds.
    pub at_ms: u64,
    /// The process's agent.
    pub agent: String,
    /// The syscall, as `call`.
    pub call: String,
    /// What it is about: a tool, a model.
    pub object: String,
    /// The whole call, as a replay tells it from others: an answer is for this call and no other one in its place.
    pub request: String,
    /// The hook that asks.
    pub hook: String,
    /// Its question.
    pub reason: String,
    /// The answer, once there is one.
    pub answer: Option<Answer>,
}

/// What a person decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Whether it may be done.
    pub approved: bool,
    /// Whether that holds for all such questions from now on: of the same hook, by the same agent, about the same thing.
    pub always: bool,
    /// Unix milliseconds.
    pub at_ms: u64,
}

impl Approval {
    /// `pending`, `approved` or `denied`.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match &self.answer {
            None => "pending",
            Some(Answer { approved: true, .. }) => "approved",
            Some(_) => "denied",
        }
    }

    /// Writes the question down.
    pub(crate) fn asked(&self) -> [Change; 2] {
        [self.put(SCOPE, key(self.id), Some(0)), self.put(ASKED, self.call_key(), None)]
    }

    /// Writes the answer down, if there is none yet.
    pub(crate) fn answered(&self) -> Vec<Change> {
        let mut changes = vec![self.put(SCOPE, key(self.id), Some(1)), self.put(ASKED, self.call_key(), None)];
        if self.answer.as_ref().is_some_and(|answer| answer.always) {
            changes.push(self.put(STANDING, self.kind_key(), None));
        }
        changes
    }

    fn put(&self, scope: &str, key: String, expected: Option<u64>) -> Change {
        // Plain data with string keys has a JSON form.
        let value = serde_json::to_vec(self).unwrap_or_default();
        Change::StatePut { scope: scope.to_owned(), key, value, expected }
    }

    fn call_key(&self) -> String {
        format!("{}/{}/{}", self.pid, self.seq, self.request)
    }

    /// What the questions have in common that an answer for always answers.
    fn kind_key(&self) -> String {
        json!([self.hook, self.agent, self.call, self.object]).to_string()
    }
}

/// Keys sort as their ids do.
fn key(id: u64) -> String {
    format!("{id:020}")
}

/// The questions of a kernel, and who waits for their answers.
#[derive(Debug)]
pub struct Approvals {
    store: Store,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Answer>>>,
}

impl Approvals {
    /// The questions in a store.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store, next: AtomicU64::new(1), waiting: Mutex::default() }
    }

    /// Goes on counting where the store's last question was.
    ///
    /// # Errors
    /// The store's.
    pub async fn resume(&self) -> Result<(), storage::Error> {
        let last = self.all().await?.last().map_or(0, |a| a.id);
        self.next.store(last + 1, Ordering::Relaxed);
        Ok(())
    }

    /// All questions by id.
    ///
    /// # Errors
    /// The store's.
    pub async fn all(&self) -> Result<Vec<Approval>, storage::Error> {
        let entries = self.store.states(SCOPE).await?;
        Ok(entries.into_iter().filter_map(|(_, entry)| read(entry)).collect())
    }

    /// One question.
    ///
    /// # Errors
    /// The store's.
    pub async fn get(&self, id: u64) -> Result<Option<Approval>, storage::Error> {
        Ok(self.store.state(SCOPE, &key(id)).await?.and_then(read))
    }

    pub(crate) fn next_id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// This question, if it was asked before the kernel was stopped, and the one whose answer holds for all such.
    pub(crate) async fn before(&self, new: &Approval) -> Result<(Option<Approval>, Option<Approval>), storage::Error> {
        let own = self.store.state(ASKED, &new.call_key()).await?.and_then(read);
        let standing = self.store.state(STANDING, &new.kind_key()).await?.and_then(read);
        Ok((own, standing))
    }

    /// Waits for the answer to a question, from now on.
    pub(crate) fn wait(&self, id: u64) -> oneshot::Receiver<Answer> {
        let (send, receive) = oneshot::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(id, send);
        receive
    }

    /// Hands an answer, which is written down, to whoever waits.
    pub(crate) fn hand_over(&self, id: u64, answer: Answer) {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        if let Some(waiting) = waiting {
            // A process that was stopped meanwhile finds it in the store.
            let _ = waiting.send(answer);
        }
    }
}

fn read(entry: StateEntry) -> Option<Approval> {
    serde_json::from_slice(&entry.value).ok()
}

/// Who let a call through that a hook asked about.
pub(super) type By = &'static str;

impl Caller {
    /// Has a person decide about a call: by an answer that was given for always, by one that was given before the kernel
    /// was stopped, or by waiting for one. The process is parked meanwhile. The inner result is who allowed it, or the
    /// refusal.
    pub(super) async fn approval(
        &self,
        act: &Act,
        syscall: &Syscall,
        hook: String,
        reason: String,
    ) -> Result<Result<By, Error>, Stop> {
        let spec = self.spec();
        if spec.yes {
            return Ok(Ok("--yes"));
        }
        let approvals = &self.services().approvals;
        let new = Approval {
            id: 0,
            pid: spec.pid,
            seq: act.ticket.seq,
            at_ms: now_ms(),
            agent: spec.agent.clone(),
            call: syscall.name().to_owned(),
            object: syscall.object(),
            request: syscall.request(),
            hook,
            reason,
            answer: None,
        };
        let (own, standing) = approvals.before(&new).await.map_err(|e| self.store_failed(&e))?;
        let given = own.as_ref().and_then(|a| a.answer.clone());
        if let Some(answer) = given.or_else(|| standing.and_then(|a| a.answer)) {
            return Ok(told(&new, answer.approved));
        }
        let is_new = own.is_none();
        let asked = own.unwrap_or_else(|| Approval { id: approvals.next_id(), ..new });
        self.park(act, &asked, is_new).await?;
        if self.is_client() {
            let message = format!(
                "the hook `{}` wants a person to decide: {}; `aok approve {} --always` allows such calls from now on",
                asked.hook, asked.reason, asked.id
            );
            return Ok(Err(Error::new(Errno::Denied, message)));
        }
        let _waiting = self.waits_on(act.ticket.seq, Activity::Approval(asked.id));
        // From here on an answer is handed over; one that was given before is in the store.
        let answer = approvals.wait(asked.id);
        let before = approvals.get(asked.id).await.map_err(|e| self.store_failed(&e))?.and_then(|a| a.answer);
        let approved = match before {
            Some(answer) => answer.approved,
            // The kernel that would answer lives as long as its processes.
            None => answer.await.is_ok_and(|answer| answer.approved),
        };
        let changes = vec![Change::State(ProcessState::Runnable, None)];
        let batch = Batch { pid: spec.pid, changes };
        self.services().store.enqueue(batch).await.map_err(|e| self.store_failed(&e))?;
        self.emit(act.ticket.seq, EventKind::State { state: ProcessState::Runnable });
        Ok(told(&asked, approved))
    }

    /// Makes a question, and that the process waits for its answer, durable, and tells who watches.
    async fn park(&self, act: &Act, asked: &Approval, is_new: bool) -> Result<(), Stop> {
        let pid = self.spec().pid;
        let mut changes = vec![Change::State(ProcessState::Approval, Some(format!("approval {}", asked.id)))];
        let mut chain = self.chain().lock().await;
        let before = chain.head().cloned();
        if is_new {
            changes.extend(asked.asked());
            let object = format!("approval {}: {} {}", asked.id, asked.call, asked.object);
            changes.push(Change::Audit(chain.append(asked.at_ms, "ask", object, "ask", asked.hook.clone())));
        }
        let result = self.services().store.commit(Batch { pid, changes }).await;
        if result.is_err() {
            *chain = crate::audit::Chain::resume(pid, before);
        }
        drop(chain);
        result.map_err(|e| self.store_failed(&e))?;
        let (approval, reason) = (asked.id, asked.reason.clone());
        self.emit(act.ticket.seq, EventKind::State { state: ProcessState::Approval });
        self.emit(act.ticket.seq, EventKind::Ask { approval, reason });
        if is_new {
            self.tell_hooks(Hook::OnApproval, asked.object.clone(), || json!(asked.subject("asked"))).await;
        }
        Ok(())
    }
}

impl Approval {
    /// What hooks are shown of it.
    pub(crate) fn subject(&self, state: &str) -> subject::Approval {
        subject::Approval {
            approval: self.id,
            call: self.call.clone(),
            object: self.object.clone(),
            hook: self.hook.clone(),
            reason: self.reason.clone(),
            state: state.to_owned(),
        }
    }
}

fn told(asked: &Approval, approved: bool) -> Result<By, Error> {
    if approved {
        return Ok("person");
    }
    let message = format!("a person refused it, whom the hook `{}` had asked: {}", asked.hook, asked.reason);
    Err(Error::new(Errno::Denied, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Memory;

    #[tokio::test]
    async fn an_answer_is_for_its_own_call_unless_it_is_for_always() {
        let store = Store::with(std::sync::Arc::new(Memory::new()));
        let approvals = Approvals::new(store.clone());
        approvals.resume().await.unwrap();
        let ask = |seq, object: &str, request: &str| Approval {
            id: approvals.next_id(),
            pid: Pid(1),
            seq,
            at_ms: 1,
            agent: "a".into(),
            call: "call".into(),
            object: object.into(),
            request: request.into(),
            hook: "h".into(),
            reason: "?".into(),
            answer: None,
        };
        let keep = async |changes: Vec<Change>| store.commit(Batch { pid: Pid::KERNEL, changes }).await;
        let mut asked = ask(7, "fs__append", "bread");
        keep(asked.asked().into()).await.unwrap();
        asked.answer = Some(Answer { approved: true, always: false, at_ms: 2 });
        keep(asked.answered()).await.unwrap();
        assert!(keep(asked.answered()).await.is_err(), "it is answered once");
        let found = async |new: Approval| {
            let (own, standing) = approvals.before(&new).await.unwrap();
            (own.is_some(), standing.is_some())
        };
        assert_eq!(found(ask(7, "fs__append", "bread")).await, (true, false));
        // Another call in its place, or the same one elsewhere, has no answer.
        assert_eq!(found(ask(7, "fs__append", "poison")).await, (false, false));
        assert_eq!(found(ask(8, "fs__append", "bread")).await, (false, false));
        let mut standing = ask(9, "fs__append", "butter");
        keep(standing.asked().into()).await.unwrap();
        standing.answer = Some(Answer { approved: false, always: true, at_ms: 3 });
        keep(standing.answered()).await.unwrap();
        assert_eq!(found(ask(8, "fs__append", "bread")).await, (false, true));
        assert_eq!(found(ask(8, "fs__write", "bread")).await, (false, false));
    }
}
