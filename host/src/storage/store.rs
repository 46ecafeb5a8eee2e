//! The handle that the kernel uses: group commit in front of a backend, and reads that run outside the
//! caller's stack.
//!
//! Protocol of a write:
//! 1. `enqueue` puts the batch behind all earlier ones and gives it the next ticket.
//! 2. The writer task takes everything that is queued and commits it as one group, while the next group
//!    gathers. It takes at once when somebody waits; otherwise it lets a burst gather for [`LINGER`].
//! 3. When the group is durable, its tickets are done, and whoever waits for them is woken.
//!
//! A process whose batch failed without its caller learning so is barred: what it had queued behind is
//! refused with the failure's publication, and everything later until `forgive`. Tickets are global and
//! groups are taken in order, so "all of a process's batches" is "up to its last ticket".
//!
//! The queue's lock is held for pushes and pops only, never while SQL runs or across an await.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::{
    Batch, Change, Durability, Error, JournalRecord, LogRecord, Memory, PageRecord, ProcessRow, Sqlite, Standing,
    StateEntry, Storage,
};
use crate::audit::{Head, Record as AuditRecord};
use crate::process::Pid;

/// The most batches that wait for the writer; one more waits for room.
const MAX_BATCHES: usize = 4096;
/// The most bytes that wait for the writer.
const MAX_BYTES: usize = 16 << 20;
/// How long a burst may gather while nobody waits.
const LINGER: Duration = Duration::from_millis(2);
/// As many batches are a group that gains nothing from more.
const FULL_GROUP: usize = 256;

/// A store with group commit; clones share it. The last clone's end stops the writer once it has
/// written what was queued. See the module's text.
#[derive(Clone)]
pub struct Store(Arc<Owner>);

/// Ends the writer task with the last handle.
struct Owner(Arc<Shared>);

struct Shared {
    storage: Arc<dyn Storage>,
    name: String,
    queue: Mutex<Queue>,
    /// Wakes the writer.
    work: Notify,
    /// Wakes those that wait for room, and those that wait for the writer's end.
    moved: Notify,
    healthy: AtomicBool,
}

#[derive(Default)]
struct Queue {
    entries: VecDeque<Entry>,
    bytes: usize,
    /// The last ticket given.
    last: u64,
    /// The last ticket that is durable or refused.
    done: u64,
    /// The last ticket that somebody waits for.
    wanted: u64,
    /// Processes with batches under way or barred.
    lanes: HashMap<Pid, Lane>,
    /// Those that wait until a ticket is done, whichever way.
    waiters: Vec<(u64, oneshot::Sender<()>)>,
    closed: bool,
    ended: bool,
}

/// What is under way for one process.
#[derive(Default)]
struct Lane {
    last: u64,
    under_way: usize,
    failed: Option<Error>,
}

struct Entry {
    batch: Batch,
    bytes: usize,
    reply: Option<oneshot::Sender<Result<(), Error>>>,
}

impl Entry {
    /// Whether somebody will learn the result from us.
    fn is_awaited(&self) -> bool {
        self.reply.as_ref().is_some_and(|reply| !reply.is_closed())
    }

    /// Whether a later batch of the process may only be committed once this one's result is known:
    /// the backend lets it pass after a conflict, which is right only if a caller handles that.
    fn ends_group(&self) -> bool {
        let conditional = |change: &Change| matches!(change, Change::StatePut { expected: Some(_), .. });
        !self.is_awaited() && self.batch.changes.iter().any(conditional)
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.0.0.name).finish()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl Store {
    /// Opens the store at `url`: `memory:` or `sqlite:PATH`. Must be called in a Tokio runtime, which
    /// from then on runs the writer.
    ///
    /// # Errors
    /// [`Error::Url`], and what opening the backend gives.
    pub async fn open(url: &str, durability: Durability) -> Result<Self, Error> {
        Ok(Self::with(match kind(url)? {
            Kind::Memory => Arc::new(Memory::new()),
            Kind::Sqlite(path) => Arc::new(Sqlite::open(path, durability).await?),
        }))
    }

    /// Opens a store that another process may be writing, to read it as it stands. Nothing is written
    /// or migrated, and commits fail. Where there is no store yet, it reads as an empty one.
    ///
    /// # Errors
    /// As [`Self::open`]; also for a store of an older schema.
    pub async fn open_read(url: &str) -> Result<Self, Error> {
        let storage: Arc<dyn Storage> = match kind(url)? {
            Kind::Memory => Arc::new(Memory::new()),
            Kind::Sqlite(path) => match Sqlite::open_read(path).await? {
                Some(sqlite) => Arc::new(sqlite),
                None => Arc::new(Memory::new()),
            },
        };
        Ok(Self::with(storage))
    }

    /// How the store at `url` stands to this aok, without opening it; `None` for one that is in memory only.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn standing(url: &str) -> Result<Option<Standing>, Error> {
        match kind(url)? {
            Kind::Memory => Ok(None),
            Kind::Sqlite(path) => Sqlite::standing(path).await.map(Some),
        }
    }

    /// Puts group commit in front of `storage`. Must be called in a Tokio runtime.
    #[must_use]
    pub fn with(storage: Arc<dyn Storage>) -> Self {
        let shared = Arc::new(Shared {
            name: storage.name(),
            storage,
            queue: Mutex::default(),
            work: Notify::new(),
            moved: Notify::new(),
            healthy: AtomicBool::new(true),
        });
        tokio::spawn(write_groups(EndsQueue(Arc::clone(&shared))));
        Self(Arc::new(Owner(shared)))
    }

    /// The backend's name, for messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared().name
    }

    /// Queues a batch behind all earlier ones and returns; it will be durable soon. Waits only while
    /// too much is queued.
    ///
    /// # Errors
    /// [`Error::Refused`] if an earlier batch of the process failed, and [`Error::Backend`] once closed.
    /// A failure of this batch bars the process: `sync` returns it.
    ///
    /// # Cancel safety
    /// Dropped while it waits for room, it has queued nothing.
    pub async fn enqueue(&self, batch: Batch) -> Result<(), Error> {
        self.shared().push(batch, None).await
    }

    /// Queues a batch and waits until it is durable.
    ///
    /// # Errors
    /// As [`Self::enqueue`], and the batch's own failure. [`Error::Conflict`] is the caller's to handle;
    /// every other failure bars the process.
    ///
    /// # Cancel safety
    /// Dropped, it either has queued nothing (it waited for room) or the batch is committed once.
    pub async fn commit(&self, batch: Batch) -> Result<(), Error> {
        let (reply, result) = oneshot::channel();
        self.shared().push(batch, Some(reply)).await?;
        result.await.unwrap_or_else(|_| Err(self.shared().closed()))
    }

    /// The output barrier: returns once everything that the process queued before is durable, at once
    /// where nothing is under way.
    ///
    /// # Errors
    /// The failure that barred the process.
    ///
    /// # Cancel safety
    /// Changes nothing.
    pub async fn sync(&self, pid: Pid) -> Result<(), Error> {
        let done = {
            let mut queue = self.shared().lock();
            let Some(lane) = queue.lanes.get(&pid) else {
                return Ok(());
            };
            if let Some(failed) = &lane.failed {
                return Err(failed.clone());
            }
            let ticket = lane.last;
            self.shared().wait_for(&mut queue, ticket)
        };
        if done.await.is_err() {
            return Err(self.shared().closed());
        }
        let queue = self.shared().lock();
        match queue.lanes.get(&pid).and_then(|lane| lane.failed.as_ref()) {
            Some(failed) => Err(failed.clone()),
            None => Ok(()),
        }
    }

    /// Returns once everything that anybody queued before is durable or refused.
    pub async fn sync_all(&self) {
        let done = {
            let mut queue = self.shared().lock();
            if queue.done == queue.last {
                return;
            }
            let ticket = queue.last;
            self.shared().wait_for(&mut queue, ticket)
        };
        // An error means that the writer has ended: nothing more will become durable.
        let _ = done.await;
    }

    /// Lets a barred process write again. The caller has thrown away what it believed of the process
    /// and rebuilt it from the store.
    pub fn forgive(&self, pid: Pid) {
        let mut queue = self.shared().lock();
        if let Some(lane) = queue.lanes.get_mut(&pid) {
            lane.failed = None;
            if lane.under_way == 0 {
                queue.lanes.remove(&pid);
            }
        }
    }

    /// Whether the backend's last commit succeeded. Batches that were refused by what they asked for
    /// do not count against it.
    #[must_use]
    pub fn healthy(&self) -> bool {
        self.shared().healthy.load(Ordering::Relaxed)
    }

    /// Batches that are queued or being committed.
    #[must_use]
    pub fn pending(&self) -> usize {
        let queue = self.shared().lock();
        usize::try_from(queue.last - queue.done).unwrap_or(usize::MAX)
    }

    /// Writes what is queued, then closes the backend. Later writes fail.
    pub async fn close(&self) {
        let shared = self.shared();
        shared.stop();
        loop {
            let moved = shared.moved.notified();
            if shared.lock().ended {
                break;
            }
            moved.await;
        }
        shared.storage.close().await;
    }

    /// All pages of a process by id, each with its text.
    ///
    /// # Errors
    /// When the backend fails; so for every read.
    pub async fn pages(&self, pid: Pid) -> Result<Vec<PageRecord>, Error> {
        self.read(move |s| async move { s.pages(pid).await }).await
    }

    /// One page, byte for byte.
    ///
    /// # Errors
    /// When the backend fails.
    pub async fn page(&self, pid: Pid, id: u64) -> Result<Option<PageRecord>, Error> {
        self.read(move |s| async move { s.page(pid, id).await }).await
    }

    /// All processes by PID.
    ///
    /// # Errors
    /// When the backend fails.
    pub async fn processes(&self) -> Result<Vec<ProcessRow>, Error> {
        self.read(|s| async move { s.processes().await }).await
    }

    /// One process.
    ///
    /// # Errors
    /// When the backend fails.
    pub async fn process(&self, pid: Pid) -> Result<Option<ProcessRow>, Error> {
        self.read(move |s| async move { s.process(pid).await }).await
    }

    /// The highest PID ever used, 0 for none.
    ///
    /// # Errors
    /// When the backend fails.
    pub async fn last_pid(&self) -> Result<u64, Error> {
        self.read(|s| async move { s.last_pid().await }).await
    }

    /// A state value.
    ///
    /// # Errors
    /// When the backend fails.
    pub async fn state(&self, scope: &str, key: &str) -> Result<Option<StateEntry>, Error> {
        let (scope, key) = (scope.to_owned(), key.to_owned());
        self.read(|s| async move { s.state(&scope, &key).await }).await
    }

    /// All state values of a scope, by key.
    ///
    /// # Errors
    /// When the backend fails.
    pub async fn states(&self, scope: &str) -> Result<Vec<(String, StateEntry)>, Error> {
        let scope = scope.to_owned();
        self.read(|s| async move { s.states(&scope).await }).await
    }

    /// A process's log lines in the order written, those after the `skip` first ones.
    ///
    /// # Errors
    /// When the backend fails.
    pub async fn logs(&self, pid: Pid, skip: u64) -> Result<Vec<LogRecord>, Error> {
        self.read(move |s| async move { s.logs(pid, skip).await }).await
    }

    /// All journal records of a process by position.
    ///
    /// # Errors
    /// When the backend fails.
    pub async fn journal(&self, pid: Pid) -> Result<Vec<JournalRecord>, Error> {
        self.read(move |s| async move { s.journal(pid).await }).await
    }

    /// The last `limit` audit records over all chains (or of one), oldest first.
    ///
    /// # Errors
    /// When the backend fails.
    pub async fn audit_tail(&self, pid: Option<Pid>, limit: u64) -> Result<Vec<AuditRecord>, Error> {
        self.read(move |s| async move { s.audit_tail(pid, limit).await }).await
    }

    /// A whole audit chain in the order it is stored in.
    ///
    /// # Errors
    /// When the backend fails.
    pub async fn audit_chain(&self, pid: Pid) -> Result<Vec<AuditRecord>, Error> {
        self.read(move |s| async move { s.audit_chain(pid).await }).await
    }

    /// The head of each audit chain, by pid.
    ///
    /// # Errors
    /// When the backend fails.
    pub async fn audit_heads(&self) -> Result<Vec<(Pid, Head)>, Error> {
        self.read(|s| async move { s.audit_heads().await }).await
    }

    fn shared(&self) -> &Shared {
        &self.0.0
    }

    /// Runs a read in a task of its own: callers are polled on a guest's small stack. Reads see what is
    /// durable; whoever must see a process's own writes calls `sync` first.
    async fn read<T, F>(&self, look: impl FnOnce(Arc<dyn Storage>) -> F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let mut task = AbortOnDrop(tokio::spawn(look(Arc::clone(&self.shared().storage))));
        match (&mut task.0).await {
            Ok(result) => result,
            Err(error) => Err(Error::backend(self.name(), error)),
        }
    }
}

/// Ends a read whose caller is gone.
struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

enum Kind<'a> {
    Memory,
    Sqlite(&'a Path),
}

/// The only place that knows which URL is which backend.
fn kind(url: &str) -> Result<Kind<'_>, Error> {
    match url.split_once(':') {
        Some(("memory", "")) => Ok(Kind::Memory),
        Some(("sqlite", path)) if !path.is_empty() => Ok(Kind::Sqlite(Path::new(path))),
        _ => Err(Error::Url { url: url.to_owned() }),
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing that runs under the lock can panic half-way through a change.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn closed(&self) -> Error {
        Error::backend(&self.name, "it is closed")
    }

    fn stop(&self) {
        self.lock().closed = true;
        self.work.notify_one();
        self.moved.notify_waiters();
    }

    async fn push(&self, batch: Batch, reply: Option<oneshot::Sender<Result<(), Error>>>) -> Result<(), Error> {
        let bytes = batch.size();
        let entry = Entry { batch, bytes, reply };
        loop {
            let moved = self.moved.notified();
            {
                let mut queue = self.lock();
                if queue.closed {
                    return Err(self.closed());
                }
                let pid = entry.batch.pid;
                if let Some(failed) = queue.lanes.get(&pid).and_then(|lane| lane.failed.as_ref()) {
                    return Err(Error::Refused { pid, first: failed.chain() });
                }
                if queue.entries.len() < MAX_BATCHES && queue.bytes < MAX_BYTES {
                    self.push_now(&mut queue, entry);
                    return Ok(());
                }
            }
            moved.await;
        }
    }

    fn push_now(&self, queue: &mut Queue, entry: Entry) {
        queue.last += 1;
        queue.bytes += entry.bytes;
        let lane = queue.lanes.entry(entry.batch.pid).or_default();
        lane.last = queue.last;
        lane.under_way += 1;
        let awaited = entry.reply.is_some();
        queue.entries.push_back(entry);
        if awaited {
            queue.wanted = queue.last;
        }
        // In between the writer sleeps or lingers, and need not hear of each batch.
        if awaited || queue.entries.len() == 1 || queue.entries.len() == FULL_GROUP {
            self.work.notify_one();
        }
    }

    /// Registers a waiter for a ticket and hurries the writer.
    fn wait_for(&self, queue: &mut Queue, ticket: u64) -> oneshot::Receiver<()> {
        let (waiter, done) = oneshot::channel();
        if queue.ended {
            return done;
        }
        if queue.done >= ticket {
            // Nothing to wait for. The receiver lives, so this cannot fail.
            let _ = waiter.send(());
            return done;
        }
        queue.waiters.push((ticket, waiter));
        queue.wanted = queue.wanted.max(ticket);
        self.work.notify_one();
        done
    }

    /// The next group, as soon as there is reason to write it; `None` once closed and empty.
    async fn next_group(&self) -> Option<Vec<Entry>> {
        let mut linger = None;
        loop {
            let work = self.work.notified();
            {
                let mut queue = self.lock();
                if queue.entries.is_empty() {
                    if queue.closed {
                        return None;
                    }
                } else {
                    let until = *linger.get_or_insert_with(|| Instant::now() + LINGER);
                    let hurry = queue.closed || queue.wanted > queue.done || queue.entries.len() >= FULL_GROUP;
                    if hurry || Instant::now() >= until {
                        return Some(queue.take_group());
                    }
                }
            }
            match linger {
                // Either way the queue is looked at again.
                Some(until) => drop(timeout_at(until, work).await),
                None => work.await,
            }
        }
    }

    /// Publishes how a group ended; `results` are of its entries in order.
    fn publish(&self, group: Vec<Finished>, results: Vec<Result<(), Error>>) {
        let backend_failed = results.iter().any(|result| result.as_ref().is_err_and(Error::is_backend));
        self.healthy.store(!backend_failed, Ordering::Relaxed);
        let woken = {
            let mut queue = self.lock();
            let mut results = results.into_iter();
            for finished in group {
                let result = results.next().unwrap_or_else(|| Err(self.closed()));
                queue.finish(finished, result);
            }
            let done = queue.done;
            let (woken, waiting) =
                std::mem::take(&mut queue.waiters).into_iter().partition::<Vec<_>, _>(|(ticket, _)| *ticket <= done);
            queue.waiters = waiting;
            woken
        };
        for (_, waiter) in woken {
            // A waiter that is gone needs no waking.
            let _ = waiter.send(());
        }
        self.moved.notify_waiters();
    }
}

/// An entry whose batch has gone to the backend.
struct Finished {
    pid: Pid,
    reply: Option<oneshot::Sender<Result<(), Error>>>,
}

impl Queue {
    fn take_group(&mut self) -> Vec<Entry> {
        let end = self.entries.iter().position(Entry::ends_group).map_or(self.entries.len(), |last| last + 1);
        let group: Vec<Entry> = self.entries.drain(..end).collect();
        self.bytes -= group.iter().map(|entry| entry.bytes).sum::<usize>();
        group
    }

    /// Closes the books on one batch: tells its caller, and bars the process if nobody else will.
    fn finish(&mut self, finished: Finished, result: Result<(), Error>) {
        let Finished { pid, reply } = finished;
        self.done += 1;
        let conflict = matches!(result, Err(Error::Conflict { .. }));
        let failure = result.as_ref().err().cloned();
        let told = reply.is_some_and(|reply| reply.send(result).is_ok());
        let Some(lane) = self.lanes.get_mut(&pid) else {
            return;
        };
        lane.under_way -= 1;
        match failure {
            Some(error) if !(conflict && told) => {
                let error = lane.failed.get_or_insert(error).clone();
                self.refuse_queued(pid, &error);
            }
            _ if lane.under_way == 0 && lane.failed.is_none() => {
                self.lanes.remove(&pid);
            }
            _ => {}
        }
    }

    /// Takes a barred process's queued batches away from the writer. Their places stay, empty, so that
    /// tickets stay a count.
    fn refuse_queued(&mut self, pid: Pid, first: &Error) {
        for entry in self.entries.iter_mut().filter(|entry| entry.batch.pid == pid && entry.bytes > 0) {
            entry.batch.changes.clear();
            self.bytes -= std::mem::take(&mut entry.bytes);
            if let Some(reply) = entry.reply.take() {
                // A caller that is gone needs no answer.
                let _ = reply.send(Err(Error::Refused { pid, first: first.chain() }));
            }
        }
    }
}

/// Held by the writer task: when it ends, however it ends, nobody waits for it any more.
struct EndsQueue(Arc<Shared>);

impl Drop for EndsQueue {
    fn drop(&mut self) {
        let shared = &self.0;
        let (entries, waiters) = {
            let mut queue = shared.lock();
            (queue.closed, queue.ended) = (true, true);
            (std::mem::take(&mut queue.entries), std::mem::take(&mut queue.waiters))
        };
        // Their receivers learn of it by the senders' end.
        drop((entries, waiters));
        shared.moved.notify_waiters();
    }
}

async fn write_groups(owner: EndsQueue) {
    let shared = &owner.0;
    while let Some(group) = shared.next_group().await {
        let mut batches = Vec::with_capacity(group.len());
        let mut finished = Vec::with_capacity(group.len());
        for entry in group {
            finished.push(Finished { pid: entry.batch.pid, reply: entry.reply });
            batches.push(entry.batch);
        }
        let results = shared.storage.commit(batches).await;
        shared.publish(finished, results);
    }
}

#[cfg(test)]
mod tests;
