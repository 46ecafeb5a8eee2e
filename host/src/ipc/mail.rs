//! Durable mailboxes, and who subscribes to which topic.
//!
//! A message is a state entry of its receiver's scope, under an arrival number. It is written with the record of the
//! syscall that sends it, shown to the receiver after that, and deleted with the record of the syscall that takes it:
//! so it is sent once and taken once, whatever is killed in between. Memory holds what the store holds: a mailbox is
//! read once, when somebody first has to do with it, and follows every change from then on.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::{Notify, OnceCell};

use crate::process::{Message, Pid};
use crate::storage::{Change, Error, Store};

/// The most messages that wait in one mailbox, and the most bytes of their bodies.
const MAX_MESSAGES: usize = 10_000;
const MAX_BYTES: usize = 64 << 20;

/// Which message a receiver wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// The oldest.
    Any,
    /// The oldest of a topic.
    Topic(String),
    /// The answer to the message of this id.
    ReplyTo(u64),
}

impl Filter {
    fn lets(&self, message: &Message) -> bool {
        match self {
            Self::Any => true,
            Self::Topic(topic) => message.topic == *topic,
            Self::ReplyTo(id) => message.reply_to == Some(*id),
        }
    }
}

/// The mailboxes that this kernel has had to do with.
#[derive(Debug)]
pub struct Mailboxes {
    store: Store,
    arrival: Arc<Arrival>,
    boxes: Mutex<HashMap<Pid, Arc<Mailbox>>>,
}

/// What is told of each message that arrives.
#[derive(Default)]
struct Arrival(OnceLock<Box<dyn Fn(Pid) + Send + Sync>>);

impl fmt::Debug for Arrival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Arrival")
    }
}

#[derive(Debug, Default)]
struct Mailbox {
    read: OnceCell<()>,
    held: Mutex<Held>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Held {
    next: u64,
    /// By arrival number.
    messages: BTreeMap<u64, Message>,
    /// Numbers given out whose messages are not shown yet.
    promised: usize,
    bytes: usize,
}

/// A message that is being sent. Shown to its receiver by [`Self::arrive`]; dropped, it was never sent.
#[derive(Debug)]
pub struct Delivery {
    to: Pid,
    arrival: Arc<Arrival>,
    mailbox: Arc<Mailbox>,
    number: u64,
    message: Option<Message>,
}

impl Delivery {
    /// Shows the message to its receiver. Call it when the record that sends it is on its way to the store.
    pub fn arrive(mut self) {
        if let Some(message) = self.message.take() {
            let mut held = lock(&self.mailbox.held);
            held.promised -= 1;
            held.messages.insert(self.number, message);
            drop(held);
            self.mailbox.arrived.notify_waiters();
            if let Some(tell) = self.arrival.0.get() {
                tell(self.to);
            }
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if let Some(message) = self.message.take() {
            let mut held = lock(&self.mailbox.held);
            held.promised -= 1;
            held.bytes -= message.body.0.len();
        }
    }
}

/// A number that sorts as text.
fn key(number: u64) -> String {
    format!("{number:020}")
}

fn scope(pid: Pid) -> String {
    format!("kernel:mail:{pid}")
}

fn topic_scope(group: &str, topic: &str) -> String {
    format!("kernel:topic:{group}:{topic}")
}

impl Mailboxes {
    pub(super) fn new(store: Store) -> Self {
        Self { store, arrival: Arc::default(), boxes: Mutex::default() }
    }

    /// Has each arrival told. The first one to ask stays.
    pub fn on_arrival(&self, tell: Box<dyn Fn(Pid) + Send + Sync>) {
        // A kernel has one set of mailboxes.
        let _ = self.arrival.0.set(tell);
    }

    /// Whether messages wait for a process.
    ///
    /// # Errors
    /// A failing store.
    pub async fn has_any(&self, pid: Pid) -> Result<bool, Error> {
        let mailbox = self.open(pid).await?;
        Ok(!lock(&mailbox.held).messages.is_empty())
    }

    async fn open(&self, pid: Pid) -> Result<Arc<Mailbox>, Error> {
        let mailbox = Arc::clone(lock(&self.boxes).entry(pid).or_default());
        let read = async || -> Result<(), Error> {
            let entries = self.store.states(&scope(pid)).await?;
            let mut held = lock(&mailbox.held);
            for (key, entry) in entries {
                // What is no message was written by nobody of ours.
                let (Ok(number), Ok(message)) = (key.parse::<u64>(), serde_json::from_slice::<Message>(&entry.value))
                else {
                    continue;
                };
                held.next = held.next.max(number + 1);
                held.bytes += message.body.0.len();
                held.messages.insert(number, message);
            }
            Ok(())
        };
        mailbox.read.get_or_try_init(read).await?;
        Ok(mailbox)
    }

    /// Makes room for a message to `to`: what its sender must commit, and what is to be done after that. `None` where
    /// the mailbox is full.
    ///
    /// # Errors
    /// A failing store.
    pub async fn send(&self, to: Pid, message: Message) -> Result<Option<(Change, Delivery)>, Error> {
        let mailbox = self.open(to).await?;
        let number = {
            let mut held = lock(&mailbox.held);
            let bytes = held.bytes + message.body.0.len();
            if held.messages.len() + held.promised >= MAX_MESSAGES || bytes > MAX_BYTES {
                return Ok(None);
            }
            held.bytes = bytes;
            held.promised += 1;
            held.next += 1;
            held.next - 1
        };
        // Plain data with string keys has a JSON form.
        let value = serde_json::to_vec(&message).unwrap_or_default();
        let change = Change::StatePut { scope: scope(to), key: key(number), value, expected: None };
        let arrival = Arc::clone(&self.arrival);
        Ok(Some((change, Delivery { to, arrival, mailbox, number, message: Some(message) })))
    }

    /// Waits for a message that the filter lets through: its arrival number, itself. It stays until it is taken.
    ///
    /// # Errors
    /// A failing store.
    ///
    /// # Cancel safety
    /// Waiting changes nothing.
    pub async fn next(&self, pid: Pid, filter: &Filter) -> Result<(u64, Message), Error> {
        let mailbox = self.open(pid).await?;
        loop {
            let arrived = mailbox.arrived.notified();
            let found = {
                let held = lock(&mailbox.held);
                held.messages.iter().find(|(_, m)| filter.lets(m)).map(|(n, m)| (*n, m.clone()))
            };
            match found {
                Some(found) => return Ok(found),
                None => arrived.await,
            }
        }
    }

    /// What the receiver commits with the record of the syscall that takes the message of an arrival number.
    #[must_use]
    pub fn delete(pid: Pid, number: u64) -> Change {
        Change::StateDelete { scope: scope(pid), key: key(number) }
    }

    /// Takes it out of memory too. Call it when that record is on its way to the store.
    pub fn taken(&self, pid: Pid, number: u64) {
        let mailbox = lock(&self.boxes).get(&pid).cloned();
        if let Some(mailbox) = mailbox {
            let mut held = lock(&mailbox.held);
            if let Some(message) = held.messages.remove(&number) {
                held.bytes -= message.body.0.len();
            }
        }
    }

    /// Closes the mailbox of a process that ends: what its last batch deletes.
    pub fn close(&self, pid: Pid) -> Vec<Change> {
        let mailbox = lock(&self.boxes).remove(&pid);
        let held = mailbox.iter().flat_map(|mailbox| lock(&mailbox.held).messages.keys().copied().collect::<Vec<_>>());
        held.map(|number| Self::delete(pid, number)).collect()
    }

    /// Those of a group that subscribe to a topic.
    ///
    /// # Errors
    /// A failing store.
    pub async fn subscribers(&self, group: &str, topic: &str) -> Result<Vec<Pid>, Error> {
        self.store.sync_all().await;
        let entries = self.store.states(&topic_scope(group, topic)).await?;
        Ok(entries.into_iter().filter_map(|(key, _)| key.parse().ok().map(Pid)).collect())
    }

    /// What a subscriber commits.
    #[must_use]
    pub fn subscribe(group: &str, topic: &str, pid: Pid, on: bool) -> Change {
        let (scope, key) = (topic_scope(group, topic), key(pid.0));
        match on {
            true => Change::StatePut { scope, key, value: Vec::new(), expected: None },
            false => Change::StateDelete { scope, key },
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // What these guard is whole at every instant.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Input;
    use crate::storage::{Batch, Durability};

    fn message(id: u64, topic: &str) -> Message {
        Message { id, sender: Pid(1), topic: topic.into(), body: Input(vec![0, 255]), reply_to: (id == 3).then_some(9) }
    }

    async fn commit(store: &Store, change: Change) {
        store.commit(Batch { pid: Pid(2), changes: vec![change] }).await.unwrap();
    }

    async fn send(mail: &Mailboxes, store: &Store, id: u64, topic: &str) {
        let (change, delivery) = mail.send(Pid(2), message(id, topic)).await.unwrap().unwrap();
        commit(store, change).await;
        delivery.arrive();
    }

    #[tokio::test]
    async fn messages_outlast_the_kernel_and_are_taken_once() {
        let store = Store::open("memory:", Durability::Process).await.unwrap();
        let mail = Mailboxes::new(store.clone());
        send(&mail, &store, 1, "a").await;
        send(&mail, &store, 2, "b").await;
        send(&mail, &store, 3, "a").await;
        // One that was never sent leaves nothing.
        drop(mail.send(Pid(2), message(4, "a")).await.unwrap());
        let next = async |mail: &Mailboxes, filter| mail.next(Pid(2), &filter).await.unwrap();
        assert_eq!(next(&mail, Filter::Topic("b".into())).await, (1, message(2, "b")));
        assert_eq!(next(&mail, Filter::ReplyTo(9)).await.1.id, 3);
        commit(&store, Mailboxes::delete(Pid(2), 0)).await;
        mail.taken(Pid(2), 0);
        assert_eq!(next(&mail, Filter::Any).await.1.id, 2);
        let later = Mailboxes::new(store.clone());
        assert_eq!(next(&later, Filter::Any).await, (1, message(2, "b")));
        send(&later, &store, 5, "c").await;
        assert_eq!(next(&later, Filter::Topic("c".into())).await.0, 3, "numbers go on");
        for change in later.close(Pid(2)) {
            commit(&store, change).await;
        }
        assert!(store.states("kernel:mail:2").await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_receiver_wakes_up_and_a_full_mailbox_takes_no_more() {
        let store = Store::open("memory:", Durability::Process).await.unwrap();
        let mail = Arc::new(Mailboxes::new(store.clone()));
        let receiver = tokio::spawn({
            let mail = Arc::clone(&mail);
            async move { mail.next(Pid(2), &Filter::Topic("late".into())).await.unwrap().1.id }
        });
        tokio::task::yield_now().await;
        send(&mail, &store, 6, "early").await;
        send(&mail, &store, 7, "late").await;
        assert_eq!(receiver.await.unwrap(), 7);
        let mut open = Vec::new();
        while let Some((_, delivery)) = mail.send(Pid(3), message(1, "x")).await.unwrap() {
            open.push(delivery);
        }
        assert_eq!(open.len(), MAX_MESSAGES);
        open.clear();
        assert!(mail.send(Pid(3), message(1, "x")).await.unwrap().is_some());
        let large = Message { body: Input(vec![0; MAX_BYTES + 1]), ..message(1, "x") };
        assert!(mail.send(Pid(3), large).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn topics_are_of_a_group() {
        let store = Store::open("memory:", Durability::Process).await.unwrap();
        let mail = Mailboxes::new(store.clone());
        for (group, pid, on) in [("g", 4, true), ("g", 5, true), ("h", 6, true), ("g", 4, false)] {
            commit(&store, Mailboxes::subscribe(group, "news", Pid(pid), on)).await;
        }
        assert_eq!(mail.subscribers("g", "news").await.unwrap(), [Pid(5)]);
        assert_eq!(mail.subscribers("g", "old").await.unwrap(), []);
    }
}
