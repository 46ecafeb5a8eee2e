//! Calls between processes: children, signals, messages, locks, and becoming another agent.

use std::time::Duration;

use super::{Done, MAX_SLEEP_MS, context_error};
use crate::abi::{Errno, Error};
use crate::context::NewPage;
use crate::ipc::{self, Delivery, Filter, Lock, Mailboxes};
use crate::process::{Exit, Input, Message, Pid, Signal};
use crate::storage::{Change, PageKind};
use crate::syscall::caller::Activity;
use crate::syscall::path::Act;
use crate::syscall::peers::{Child, Family, Peer};
use crate::syscall::{Caller, Outcome, Syscall};

/// Longest topic and lock name, and longest message, in bytes.
const MAX_NAME: usize = 128;
const MAX_BODY: usize = 256 << 10;

impl Caller {
    /// Stage 3 of calls between processes.
    pub(super) async fn admit_peers(&self, syscall: &Syscall) -> Result<(), Error> {
        match syscall {
            Syscall::Wait { pid, timeout_ms } => {
                check_time(*timeout_ms)?;
                let peer = self.peer(*pid).await?;
                if *pid == self.spec().pid {
                    return Err(Error::new(Errno::Invalid, "a process cannot wait for itself"));
                }
                if peer.spec.root().pid != self.spec().root().pid {
                    return Err(denied(format!("process {pid} is of another tree: wait for what this tree spawned")));
                }
                Ok(())
            }
            Syscall::Signal { pid, signal } => self.may_signal(*pid, *signal).await,
            Syscall::Send { to, topic, body, .. } => {
                check_name("topic", topic)?;
                check_body(body)?;
                self.may_send(*to).await
            }
            Syscall::Publish { topic, body } => check_name("topic", topic).and_then(|()| check_body(body)),
            Syscall::Subscribe { topic, .. } => check_name("topic", topic),
            Syscall::Receive { timeout_ms, .. } => check_time(*timeout_ms),
            Syscall::Lock { name, timeout_ms } => check_name("lock", name).and_then(|()| check_time(*timeout_ms)),
            Syscall::Unlock { name } => check_name("lock", name),
            _ => Ok(()),
        }
    }

    async fn peer(&self, pid: Pid) -> Result<Peer, Error> {
        let family = self.family()?;
        let found = outside(async move { family.find(pid).await }).await?;
        found.ok_or_else(|| Error::new(Errno::NotFound, format!("there is no process {pid}")))
    }

    async fn may_send(&self, to: Pid) -> Result<(), Error> {
        let peer = self.peer(to).await?;
        if peer.spec.group != self.spec().group {
            return Err(denied(format!("process {to} is of another group: messages stay within a group")));
        }
        alive(&peer)
    }

    async fn may_signal(&self, to: Pid, signal: Signal) -> Result<(), Error> {
        let peer = self.peer(to).await?;
        let own = self.spec().pid;
        let mut above = peer.spec.ppid;
        while let Some(pid) = above.filter(|pid| *pid != own) {
            above = self.peer(pid).await?.spec.ppid;
        }
        if above.is_none() {
            let why = format!("process {to} does not descend from process {own}: {} is for descendants", signal.name());
            return Err(denied(why));
        }
        alive(&peer)
    }

    /// Stage 5 of calls between processes.
    pub(super) async fn peers(&self, act: &Act, syscall: &Syscall) -> Done {
        let done = match syscall {
            Syscall::Spawn(child) => self.spawn(child).await,
            Syscall::Wait { pid, timeout_ms } => self.wait_for(act, *pid, *timeout_ms).await,
            Syscall::Signal { pid, signal } => self.send_signal(*pid, *signal).await,
            Syscall::Send { to, topic, body, reply_to } => self.send(act, &[*to], topic, body, *reply_to).await,
            Syscall::Publish { topic, body } => self.publish(act, topic, body).await,
            Syscall::Subscribe { topic, on } => {
                let change = Mailboxes::subscribe(&self.spec().group, topic, self.spec().pid, *on);
                Ok(Done { changes: vec![change], ..Done::default() })
            }
            Syscall::Receive { filter, from, timeout_ms } => self.receive(act, filter, *from, *timeout_ms).await,
            Syscall::Lock { name, timeout_ms } => self.take_lock(act, name, *timeout_ms).await,
            Syscall::Unlock { name } => self.give_lock(name).await,
            Syscall::Exec { agent, task, input } => self.exec(act, agent, task, input).await,
            _ => Ok(Done::default()),
        };
        done.unwrap_or_else(Done::failed)
    }

    fn family(&self) -> Result<Family, Error> {
        let family = self.services().peers();
        family.ok_or_else(|| Error::new(Errno::Io, "the kernel is ending"))
    }

    async fn spawn(&self, child: &Child) -> Result<Done, Error> {
        let (family, parent, child) = (self.family()?, self.clone(), child.clone());
        let newborn = outside(async move { family.prepare(parent, child).await }).await?;
        let outcome = Outcome::Number(newborn.pid.0);
        Ok(Done { outcome, changes: newborn.changes, ..Done::default() }.then(newborn.start))
    }

    async fn wait_for(&self, act: &Act, pid: Pid, timeout_ms: Option<u64>) -> Result<Done, Error> {
        let _wait = self.services().ipc.waits.begin(self.spec().pid, pid).map_err(|e| cycle(&e))?;
        let _activity = self.waits_on(act.ticket.seq, Activity::Process(pid));
        let family = self.family()?;
        let end = within(timeout_ms, outside(async move { family.ended(pid).await })).await;
        let exit: Exit = end.unwrap_or_else(|| {
            let ms = timeout_ms.unwrap_or_default();
            Err(Error::new(Errno::Timeout, format!("process {pid} has not ended within {ms} ms")))
        })?;
        Ok(Outcome::Exit(exit).into())
    }

    async fn send_signal(&self, to: Pid, signal: Signal) -> Result<Done, Error> {
        let (family, from) = (self.family()?, self.spec().pid);
        outside(async move { family.signal(from, to, signal).await }).await?;
        Ok(Done::default())
    }

    async fn send(
        &self,
        act: &Act,
        to: &[Pid],
        topic: &str,
        body: &Input,
        reply_to: Option<u64>,
    ) -> Result<Done, Error> {
        let sender = self.spec().pid;
        let id = Message::id(sender, act.ticket.seq)
            .ok_or_else(|| Error::new(Errno::Unsupported, "its journal is too long for more messages: use exec"))?;
        let mut changes = Vec::with_capacity(to.len());
        let mut deliveries: Vec<Delivery> = Vec::with_capacity(to.len());
        for pid in to {
            let message = Message { id, sender, topic: topic.to_owned(), body: body.clone(), reply_to };
            let sent = self.services().ipc.mail.send(*pid, message).await.map_err(store_error)?;
            let (change, delivery) = sent.ok_or_else(|| {
                Error::new(Errno::Again, format!("the mailbox of process {pid} is full: send when it has received"))
            })?;
            changes.push(change);
            deliveries.push(delivery);
        }
        let done = Done { outcome: Outcome::Number(id), changes, ..Done::default() };
        Ok(done.then(move || deliveries.into_iter().for_each(Delivery::arrive)))
    }

    async fn publish(&self, act: &Act, topic: &str, body: &Input) -> Result<Done, Error> {
        let (mail, own) = (&self.services().ipc.mail, self.spec().pid);
        let subscribed = mail.subscribers(&self.spec().group, topic).await.map_err(store_error)?;
        let (mut to, mut gone) = (Vec::new(), Vec::new());
        for pid in subscribed.into_iter().filter(|pid| *pid != own) {
            // One that ended without a word is no subscriber any more.
            match self.peer(pid).await {
                Ok(peer) if peer.exit.is_none() => to.push(pid),
                _ => gone.push(Mailboxes::subscribe(&self.spec().group, topic, pid, false)),
            }
        }
        let mut sent = self.send(act, &to, topic, body, None).await?;
        sent.changes.extend(gone);
        Ok(Done { outcome: Outcome::Number(to.len() as u64), ..sent })
    }

    async fn receive(
        &self,
        act: &Act,
        filter: &Filter,
        from: Option<Pid>,
        timeout_ms: Option<u64>,
    ) -> Result<Done, Error> {
        let (ipc, own) = (&self.services().ipc, self.spec().pid);
        let _wait = from.map(|from| ipc.waits.begin(own, from)).transpose().map_err(|e| cycle(&e))?;
        let (left, until_ms) = timeout_ms.map(|ms| act.left(ms)).unzip();
        let _activity = match from {
            // Whom it waits for has its claim as long as it is here.
            Some(_) => self.waits_on(act.ticket.seq, Activity::Message),
            None => self.parks_on(act, Activity::Message, until_ms),
        };
        let message = async {
            let arrives = ipc.mail.next(own, filter);
            match from {
                None => arrives.await.map_err(store_error),
                // What has ended answers no more, but it may have.
                Some(from) => tokio::select! {
                    biased;
                    found = arrives => found.map_err(store_error),
                    ended = self.ended(from) => Err(ended),
                },
            }
        };
        let Some(found) = within(left, message).await else {
            return Ok(Outcome::Message(None).into());
        };
        let (number, message) = found?;
        let done = Done {
            outcome: Outcome::Message(Some(message)),
            changes: vec![Mailboxes::delete(own, number)],
            ..Done::default()
        };
        let caller = self.clone();
        Ok(done.then(move || caller.services().ipc.mail.taken(own, number)))
    }

    /// Returns when a process from which an answer is wanted has ended.
    async fn ended(&self, from: Pid) -> Error {
        let end = match self.family() {
            Ok(family) => outside(async move { family.ended(from).await }).await,
            Err(e) => return e,
        };
        match end {
            Ok(exit) => {
                Error::new(Errno::NotFound, format!("process {from} ended ({}) before it answered", exit.status()))
            }
            Err(e) => e,
        }
    }

    fn lock_named(&self, name: &str) -> Lock {
        Lock { group: self.spec().group.clone(), name: name.to_owned() }
    }

    async fn take_lock(&self, act: &Act, name: &str, timeout_ms: Option<u64>) -> Result<Done, Error> {
        let (ipc, own, lock) = (&self.services().ipc, self.spec().pid, self.lock_named(name));
        let _activity = self.waits_on(act.ticket.seq, Activity::Lock(name.to_owned()));
        let blocked = |holder| ipc.waits.begin(own, holder).map_err(Refused::Cycle);
        let taken = within(timeout_ms, ipc.locks.take(&lock, own, blocked)).await;
        match taken {
            Some(Ok(())) => Ok(Done { changes: vec![lock.put(own)], ..Done::default() }),
            Some(Err(Refused::Cycle(e))) => Err(cycle(&e)),
            Some(Err(Refused::Store(e))) => Err(store_error(e)),
            None => {
                let holder = ipc.locks.holder(&lock).map_or(String::new(), |pid| format!(": process {pid} holds it"));
                let ms = timeout_ms.unwrap_or_default();
                Err(Error::new(Errno::Timeout, format!("the lock `{name}` was not free within {ms} ms{holder}")))
            }
        }
    }

    async fn give_lock(&self, name: &str) -> Result<Done, Error> {
        let (own, lock) = (self.spec().pid, self.lock_named(name));
        if !self.services().ipc.locks.is_held_by(&lock, own).await.map_err(store_error)? {
            return Err(Error::new(Errno::Invalid, format!("this process does not hold the lock `{name}`")));
        }
        let caller = self.clone();
        let done = Done { changes: vec![lock.delete()], ..Done::default() };
        Ok(done.then(move || caller.services().ipc.locks.give(&lock, own)))
    }

    async fn exec(&self, act: &Act, agent: &str, task: &str, input: &Input) -> Result<Done, Error> {
        let (family, caller) = (self.family()?, self.clone());
        let (agent, task, input) = (agent.to_owned(), task.to_owned(), input.clone());
        let spec = outside(async move { family.become_agent(caller, agent, task, input).await }).await?;
        let mut changes = vec![Change::Forget(act.ticket.seq)];
        let mut pages = self.pages();
        let old: Vec<u64> =
            pages.pages().filter(|p| p.page.kind == PageKind::Task && p.page.meta.pinned).map(|p| p.page.id).collect();
        for id in old {
            changes.push(Change::PageMeta(id, pages.pin(id, false).map_err(context_error)?));
        }
        let task =
            NewPage { pinned: true, importance: Some(1.0), ..self.new_page(act, PageKind::Task, spec.task.clone()) };
        changes.push(Change::Page(Box::new(pages.append(task).map_err(context_error)?)));
        changes.push(Change::Respec(Box::new(spec)));
        drop(pages);
        Ok(Done { changes, ..Done::default() })
    }
}

/// Why a lock was not taken.
enum Refused {
    Cycle(ipc::Cycle),
    Store(crate::storage::Error),
}

impl From<crate::storage::Error> for Refused {
    fn from(e: crate::storage::Error) -> Self {
        Self::Store(e)
    }
}

/// Runs what needs a deep stack outside of the guest's, which is small.
async fn outside<T: Send + 'static>(work: impl Future<Output = Result<T, Error>> + Send + 'static) -> Result<T, Error> {
    let task = AbortOnDrop(tokio::spawn(work));
    let mut task = task;
    (&mut task.0).await.unwrap_or_else(|e| Err(Error::new(Errno::Io, format!("the kernel failed: {e}"))))
}

/// A task that ends with who waits for it.
struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// `None` when the time is over first.
async fn within<T>(timeout_ms: Option<u64>, work: impl Future<Output = T>) -> Option<T> {
    match timeout_ms {
        None => Some(work.await),
        Some(ms) => tokio::time::timeout(Duration::from_millis(ms), work).await.ok(),
    }
}

fn alive(peer: &Peer) -> Result<(), Error> {
    match &peer.exit {
        None => Ok(()),
        Some(exit) => {
            let why = format!("process {} has ended ({})", peer.spec.pid, exit.status());
            Err(Error::new(Errno::NotFound, why))
        }
    }
}

fn check_name(what: &str, name: &str) -> Result<(), Error> {
    if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
        let why = format!("the name of a {what} has 1 to {MAX_NAME} bytes and no control characters");
        return Err(Error::new(Errno::Invalid, why));
    }
    Ok(())
}

fn check_body(body: &Input) -> Result<(), Error> {
    if body.0.len() > MAX_BODY {
        let why = format!("the message has {} bytes, the most is {MAX_BODY}: put it into a file", body.0.len());
        return Err(Error::new(Errno::TooLarge, why));
    }
    Ok(())
}

fn check_time(timeout_ms: Option<u64>) -> Result<(), Error> {
    match timeout_ms {
        Some(ms) if ms > MAX_SLEEP_MS => {
            Err(Error::new(Errno::Invalid, format!("a wait of {ms} ms is over the limit of {MAX_SLEEP_MS} ms")))
        }
        _ => Ok(()),
    }
}

fn cycle(e: &ipc::Cycle) -> Error {
    Error::new(Errno::Invalid, e.to_string())
}

fn denied(message: String) -> Error {
    Error::new(Errno::Denied, message)
}

#[allow(clippy::needless_pass_by_value, reason = "it is what `map_err` gives")]
fn store_error(e: crate::storage::Error) -> Error {
    Error::new(Errno::Io, format!("the store: {}", e.chain()))
}
