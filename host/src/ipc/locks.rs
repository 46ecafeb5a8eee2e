//! Named locks. A lock is a group's; whoever holds one holds it over a restart too.
//!
//! Who holds what is a state entry each, written with the record of the syscall that takes or gives it. Those who wait
//! are served in the order in which they came. A waiter is in the line only while it waits: dropped, it is out.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, OnceCell};

use crate::process::Pid;
use crate::storage::{Change, Error, Store};

/// The scope of the locks. No guest's has such a name.
const SCOPE: &str = "kernel:locks";

/// Between the parts of a key; no name has one.
const BREAK: char = '\u{1f}';

/// A lock's group and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Lock {
    /// Whose it is.
    pub group: String,
    /// What its users call it.
    pub name: String,
}

impl Lock {
    fn key(&self) -> String {
        format!("{}{BREAK}{}", self.group, self.name)
    }

    /// What the taker commits.
    #[must_use]
    pub fn put(&self, holder: Pid) -> Change {
        let value = holder.to_string().into_bytes();
        Change::StatePut { scope: SCOPE.to_owned(), key: self.key(), value, expected: None }
    }

    /// What the giver commits.
    #[must_use]
    pub fn delete(&self) -> Change {
        Change::StateDelete { scope: SCOPE.to_owned(), key: self.key() }
    }
}

/// The locks that are held or wanted.
#[derive(Debug)]
pub struct Locks {
    store: Store,
    read: OnceCell<()>,
    table: Mutex<HashMap<Lock, State>>,
    next_ticket: std::sync::atomic::AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    holder: Option<Pid>,
    line: VecDeque<u64>,
    moved: Arc<Notify>,
}

/// A place in a lock's line.
#[derive(Debug)]
struct Place<'a> {
    locks: &'a Locks,
    lock: Lock,
    ticket: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut table = self.locks.table();
        if let Some(state) = table.get_mut(&self.lock) {
            state.line.retain(|t| *t != self.ticket);
            state.moved.notify_waiters();
            self.locks.tidy(&mut table, &self.lock);
        }
    }
}

impl Locks {
    pub(super) fn new(store: Store) -> Self {
        Self { store, read: OnceCell::new(), table: Mutex::default(), next_ticket: 0.into() }
    }

    fn table(&self) -> MutexGuard<'_, HashMap<Lock, State>> {
        // Whole at every instant.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads once what earlier kernels left.
    async fn read(&self) -> Result<(), Error> {
        let read = async || -> Result<(), Error> {
            let entries = self.store.states(SCOPE).await?;
            let mut table = self.table();
            for (key, entry) in entries {
                let holder = std::str::from_utf8(&entry.value).ok().and_then(|text| text.parse().ok()).map(Pid);
                if let (Some((group, name)), Some(holder)) = (key.split_once(BREAK), holder) {
                    let lock = Lock { group: group.to_owned(), name: name.to_owned() };
                    table.entry(lock).or_default().holder = Some(holder);
                }
            }
            Ok(())
        };
        self.read.get_or_try_init(read).await.copied()
    }

    /// Takes a lock for `pid` as soon as it is free and those who came before have had it. While another holds it,
    /// `blocked` is told by whom, and what it returns is kept until that changes. Taking what one holds already
    /// changes nothing.
    ///
    /// # Errors
    /// A failing store, or what `blocked` says.
    ///
    /// # Cancel safety
    /// Dropped before it returns, nothing is taken.
    pub async fn take<W, E: From<Error>>(
        &self,
        lock: &Lock,
        pid: Pid,
        mut blocked: impl FnMut(Pid) -> Result<W, E>,
    ) -> Result<(), E> {
        self.read().await?;
        let ticket = self.next_ticket.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.table().entry(lock.clone()).or_default().line.push_back(ticket);
        let _place = Place { locks: self, lock: lock.clone(), ticket };
        loop {
            let (notified, holder) = {
                let mut table = self.table();
                let state = table.entry(lock.clone()).or_default();
                let first = state.line.front() == Some(&ticket);
                if state.holder == Some(pid) || state.holder.is_none() && first {
                    state.holder = Some(pid);
                    return Ok(());
                }
                // Made under the lock: no change after this look is missed.
                (Arc::clone(&state.moved).notified_owned(), state.holder)
            };
            let _blocked = holder.map(&mut blocked).transpose()?;
            notified.await;
        }
    }

    /// Who holds it.
    #[must_use]
    pub fn holder(&self, lock: &Lock) -> Option<Pid> {
        self.table().get(lock).and_then(|state| state.holder)
    }

    /// Whether `pid` holds it, an earlier kernel's records included.
    ///
    /// # Errors
    /// A failing store.
    pub async fn is_held_by(&self, lock: &Lock, pid: Pid) -> Result<bool, Error> {
        self.read().await?;
        Ok(self.holder(lock) == Some(pid))
    }

    /// Gives it to whoever waits. Call it when the record that gives it is on its way to the store.
    pub fn give(&self, lock: &Lock, pid: Pid) {
        let mut table = self.table();
        if let Some(state) = table.get_mut(lock).filter(|state| state.holder == Some(pid)) {
            state.holder = None;
            state.moved.notify_waiters();
            self.tidy(&mut table, lock);
        }
    }

    /// The locks that a process holds.
    ///
    /// # Errors
    /// A failing store.
    pub async fn of(&self, pid: Pid) -> Result<Vec<Lock>, Error> {
        self.read().await?;
        let table = self.table();
        Ok(table.iter().filter(|(_, state)| state.holder == Some(pid)).map(|(lock, _)| lock.clone()).collect())
    }

    fn tidy(&self, table: &mut HashMap<Lock, State>, lock: &Lock) {
        if table.get(lock).is_some_and(|state| state.holder.is_none() && state.line.is_empty()) {
            table.remove(lock);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Batch, Durability};

    fn the(name: &str) -> Lock {
        Lock { group: "g".into(), name: name.into() }
    }

    async fn take(locks: &Locks, pid: u64) -> Result<(), Error> {
        locks.take(&the("a"), Pid(pid), |_| Ok::<(), Error>(())).await
    }

    #[tokio::test]
    async fn a_lock_goes_from_hand_to_hand_in_order() {
        let locks = Arc::new(Locks::new(Store::open("memory:", Durability::Process).await.unwrap()));
        take(&locks, 1).await.unwrap();
        take(&locks, 1).await.unwrap();
        let (send, mut order) = tokio::sync::mpsc::unbounded_channel();
        let mut waiters = Vec::new();
        for pid in 2..6 {
            let (locks, send) = (Arc::clone(&locks), send.clone());
            waiters.push(tokio::spawn(async move {
                take(&locks, pid).await.unwrap();
                send.send(pid).unwrap();
            }));
            tokio::task::yield_now().await;
        }
        // One that gives up is out of the line.
        waiters.remove(1).abort();
        tokio::task::yield_now().await;
        locks.give(&the("a"), Pid(9));
        assert_eq!(locks.holder(&the("a")), Some(Pid(1)), "only its holder gives it");
        for (giver, taker) in [(1, 2), (2, 4), (4, 5)] {
            locks.give(&the("a"), Pid(giver));
            assert_eq!(order.recv().await, Some(taker));
        }
        locks.give(&the("a"), Pid(5));
        assert!(locks.table().is_empty());
    }

    #[tokio::test]
    async fn a_waiter_is_told_of_each_holder_and_may_refuse() {
        let locks = Arc::new(Locks::new(Store::open("memory:", Durability::Process).await.unwrap()));
        take(&locks, 1).await.unwrap();
        let refused = locks.take(&the("a"), Pid(2), |holder| Err::<(), _>(Refused(Some(holder)))).await;
        assert_eq!(refused.unwrap_err().0, Some(Pid(1)));
        struct Refused(Option<Pid>);
        impl std::fmt::Debug for Refused {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
        impl From<Error> for Refused {
            fn from(_: Error) -> Self {
                Self(None)
            }
        }
    }

    #[tokio::test]
    async fn a_lock_is_held_over_a_restart() {
        let store = Store::open("memory:", Durability::Process).await.unwrap();
        store.commit(Batch { pid: Pid(1), changes: vec![the("a").put(Pid(1)), the("b").put(Pid(2))] }).await.unwrap();
        let locks = Locks::new(store);
        assert_eq!(locks.of(Pid(1)).await.unwrap(), [the("a")]);
        assert!(locks.is_held_by(&the("b"), Pid(2)).await.unwrap());
        let waits = tokio::time::timeout(std::time::Duration::from_millis(20), take(&locks, 3)).await;
        assert!(waits.is_err());
        locks.give(&the("a"), Pid(1));
        take(&locks, 3).await.unwrap();
    }
}
