//! Processes that left memory whole, and what brings them back.
//!
//! A process that waits for a message or a timer needs neither its instance nor its pages in memory: all of it is in the
//! store, and a replay brings it back. Swapped out, a process is a row of state W, and an entry here while the kernel
//! that swapped it out lives. It comes back when a message arrives, when its time is over, or when it is signalled.
//!
//! Order of a swap-out: the task is stopped, so that it does not run on; what it waits on is looked at again; the task
//! is dropped; the start of its wait is written down with its state, so that the time it has waited counts. A kernel
//! that is killed in between leaves a process that is resumed as any other.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Notify, watch};

use super::{End, Error, Inner, Kernel, Live, lock};
use crate::process::{Event, EventKind, Pid, ProcessState};
use crate::quota::{Account, Reservation};
use crate::scheduler::TaskState;
use crate::storage::{Batch, Change, ProcessRow};
use crate::syscall::{Dormant, now_ms};

/// Between two looks at who has been idle for long.
const LOOK: Duration = Duration::from_secs(1);

/// With less of the machine's memory free than one part in so many, idle processes go whatever their age.
const SCARCE: u64 = 10;

/// How many are swapped out in one look where memory is scarce.
const AT_ONCE: usize = 256;

/// Mappings of memory that a live agent takes, measured with the pool, and what is left for everything else.
const MAPPINGS: u64 = 5;
const OTHER_MAPPINGS: u64 = 5_000;

/// What this kernel keeps of a process that it swapped out.
#[derive(Debug)]
pub(super) struct Entry {
    /// Tells those who wait for its end.
    pub(super) end: Arc<watch::Sender<Option<End>>>,
    /// Its account; `None` for one that an earlier kernel swapped out.
    pub(super) account: Option<Arc<Account>>,
    /// What its spawner holds for it.
    pub(super) lease: Option<Reservation>,
    /// Those who follow its events.
    pub(super) watchers: Vec<UnboundedSender<Event>>,
    until_ms: Option<u64>,
}

/// The processes that are out, and when they want to be back.
#[derive(Debug, Default)]
pub(super) struct Sleepers {
    inner: Mutex<Table>,
    sooner: Notify,
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<Pid, Entry>,
    timers: BTreeSet<(u64, Pid)>,
}

impl Sleepers {
    /// Those that earlier kernels swapped out.
    pub(super) fn read(rows: &[ProcessRow]) -> Self {
        let sleepers = Self::default();
        for row in rows.iter().filter(|row| row.exit.is_none() && row.state == ProcessState::Swapped) {
            let until_ms = row.waiting_on.as_deref().and_then(until_of);
            let entry = Entry {
                end: Arc::new(watch::Sender::new(None)),
                account: None,
                lease: None,
                watchers: Vec::new(),
                until_ms,
            };
            sleepers.insert(row.spec.pid, entry);
        }
        sleepers
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.inner)
    }

    fn insert(&self, pid: Pid, entry: Entry) {
        let mut table = self.table();
        if let Some(until_ms) = entry.until_ms {
            table.timers.insert((until_ms, pid));
        }
        table.entries.insert(pid, entry);
        drop(table);
        self.sooner.notify_one();
    }

    /// Takes one out of the table: it comes back, or ends.
    pub(super) fn take(&self, pid: Pid) -> Option<Entry> {
        let mut table = self.table();
        let entry = table.entries.remove(&pid)?;
        if let Some(until_ms) = entry.until_ms {
            table.timers.remove(&(until_ms, pid));
        }
        Some(entry)
    }

    /// Whether it is out.
    pub(super) fn has(&self, pid: Pid) -> bool {
        self.table().entries.contains_key(&pid)
    }

    /// Who tells of its end.
    pub(super) fn end_of(&self, pid: Pid) -> Option<watch::Receiver<Option<End>>> {
        self.table().entries.get(&pid).map(|entry| entry.end.subscribe())
    }

    /// Tells everybody who waits for one of them that the kernel is no more.
    pub(super) fn close(&self) {
        let entries = std::mem::take(&mut *self.table()).entries;
        for entry in entries.into_values() {
            entry.end.send_replace(Some(End::Suspended("the kernel was shut down".to_owned())));
        }
    }

    fn next_timer(&self) -> Option<(u64, Pid)> {
        self.table().timers.first().copied()
    }

    /// Waits until the time of one of them is over.
    async fn due(&self) -> Pid {
        loop {
            let sooner = self.sooner.notified();
            match self.next_timer() {
                Some((until_ms, pid)) if until_ms <= now_ms() => return pid,
                Some((until_ms, _)) => {
                    let left = Duration::from_millis(until_ms.saturating_sub(now_ms()));
                    tokio::select! {
                        () = tokio::time::sleep(left) => {}
                        () = sooner => {}
                    }
                }
                None => sooner.await,
            }
        }
    }
}

/// What the store has a swapped process wait on.
fn waiting_on(what: &str, until_ms: Option<u64>) -> String {
    match until_ms {
        Some(until_ms) => format!("{what} until {until_ms}"),
        None => what.to_owned(),
    }
}

fn until_of(waiting_on: &str) -> Option<u64> {
    waiting_on.rsplit_once(" until ")?.1.parse().ok()
}

/// The most agents that may live at once here, and the setting that says so; `None` where the system has none.
pub(super) fn room() -> Option<(u64, u64)> {
    let mappings: u64 = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok()?.trim().parse().ok()?;
    Some((mappings.saturating_sub(OTHER_MAPPINGS) / MAPPINGS, mappings))
}

/// Whether the machine's memory is nearly used up; false where that cannot be told.
fn memory_is_scarce() -> bool {
    let Ok(text) = std::fs::read_to_string("/proc/meminfo") else { return false };
    let of = |name: &str| -> Option<u64> {
        text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
    };
    matches!((of("MemAvailable:"), of("MemTotal:")), (Some(free), Some(all)) if free < all / SCARCE)
}

impl Kernel {
    /// Keeps idle processes out of memory, and brings back those whose time is over. It ends with the kernel.
    pub(super) async fn keep_swapping(inner: std::sync::Weak<Inner>) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let Some(kernel) = inner.upgrade().map(Kernel) else { return };
            let Some(owner) = &kernel.0.owner else { return };
            let due = tokio::select! {
                pid = owner.sleepers.due() => Some(pid),
                _ = look.tick() => None,
            };
            match due {
                Some(pid) => {
                    kernel.wake(pid).await;
                    // One that is on its way out at this moment is due until it is.
                    tokio::task::yield_now().await;
                }
                None => kernel.swap_idle().await,
            }
        }
    }

    pub(super) async fn swap_idle(&self) {
        let age = Duration::from_secs(self.0.setup.swap_after_s());
        let mut idle = self.idle();
        let crowded = room().is_some_and(|(most, _)| self.live_count() as u64 > most / 10 * 9);
        if crowded || memory_is_scarce() {
            idle.truncate(AT_ONCE);
        } else {
            idle.retain(|(since, _)| *since >= age);
        }
        for (_, pid) in idle {
            if let Err(e) = self.swap_out(pid).await {
                tracing::warn!(pid = pid.0, "it was not swapped out: {e}");
            }
        }
    }

    pub(super) fn live_count(&self) -> usize {
        self.0.owner.as_ref().map_or(0, |owner| lock(&owner.live).len())
    }

    /// Processes that only wait, the longest first.
    fn idle(&self) -> Vec<(Duration, Pid)> {
        let Some(owner) = &self.0.owner else { return Vec::new() };
        let live: Vec<Live> = lock(&owner.live).values().cloned().collect();
        let idle = live.iter().filter(|live| live.task.state() == TaskState::Blocked);
        let mut idle: Vec<_> =
            idle.filter_map(|live| live.process.caller.dormant().map(|d| (d.since, live.task.pid()))).collect();
        idle.sort_unstable_by(|a, b| b.cmp(a));
        idle
    }

    /// Takes a process out of memory; nothing where it does more than to wait.
    ///
    /// # Errors
    /// [`Error::UnknownProcess`] where it is not here; a failing store: then it can be resumed.
    pub async fn swap_out(&self, pid: Pid) -> Result<bool, Error> {
        let owner = self.owner()?;
        let live = self.live(pid).ok_or(Error::UnknownProcess { pid })?;
        let caller = &live.process.caller;
        if caller.dormant().is_none() {
            return Ok(false);
        }
        live.task.stop();
        // What runs at this moment ends its interval first; a process that got on is left alone.
        let still = match live.task.state() {
            TaskState::Blocked | TaskState::Stopped => caller.dormant(),
            TaskState::Runnable | TaskState::Running | TaskState::Done => None,
        };
        let Some(Dormant { start, until_ms, what, .. }) = still.filter(|_| live.process.end.borrow().is_none()) else {
            live.task.cont();
            return Ok(false);
        };
        live.task.kill().await;
        let usage = crate::process::Usage { slices: caller.usage().slices + live.task.slices(), ..caller.usage() };
        let on = waiting_on(what, until_ms);
        let mut changes: Vec<_> = start.map(|start| Change::Journal(Box::new(start))).into_iter().collect();
        changes.extend([Change::Usage(usage), Change::State(ProcessState::Swapped, Some(on))]);
        if let Err(e) = self.0.services.store.commit(Batch { pid, changes }).await {
            super::life::set_aside(&live.process, End::Suspended(e.chain()));
            return Err(e.into());
        }
        caller.emit(caller.position(), EventKind::State { state: ProcessState::Swapped });
        let (watchers, lease) = caller.leave();
        let account = Some(Arc::clone(caller.account()));
        let entry = Entry { end: Arc::clone(&live.process.end), account, lease, watchers, until_ms };
        // In this order it is never nowhere.
        owner.sleepers.insert(pid, entry);
        lock(&owner.live).remove(&pid);
        if live.process.end.borrow().is_some() {
            // Somebody killed it meanwhile.
            drop(owner.sleepers.take(pid));
            return Ok(false);
        }
        // What came between the look and the entry woke nobody.
        if self.0.services.ipc.mail.has_any(pid).await? {
            self.wake(pid).await;
        }
        Ok(true)
    }

    /// Brings a process back that is out. One that cannot be is a warning, and stays where it is.
    pub(super) async fn wake(&self, pid: Pid) {
        match self.resume_one(pid).await {
            Ok(events) => drop(events),
            Err(Error::State { .. }) => {}
            Err(e) => {
                tracing::warn!(pid = pid.0, "it is not brought back: {e}; resume it with `aok run --resume {pid}`");
                if let Some(owner) = &self.0.owner {
                    drop(owner.sleepers.take(pid));
                }
            }
        }
    }
}

/// Brings a process back to whom a message came, if it is out.
pub(super) fn on_message(inner: &std::sync::Weak<Inner>, to: Pid) {
    let Some(kernel) = inner.upgrade().map(Kernel) else { return };
    if kernel.0.owner.as_ref().is_some_and(|owner| owner.sleepers.has(to)) {
        tokio::spawn(async move { kernel.wake(to).await });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_waits_on_tells_until_when() {
        assert_eq!(until_of(&waiting_on("timer", Some(5))), Some(5));
        assert_eq!(until_of(&waiting_on("message", None)), None);
        assert_eq!(until_of("message until tomorrow"), None);
    }

    #[tokio::test]
    async fn the_soonest_is_due_first() {
        let sleepers = Sleepers::default();
        let entry = |until_ms| Entry {
            end: Arc::new(watch::Sender::new(None)),
            account: None,
            lease: None,
            watchers: Vec::new(),
            until_ms,
        };
        let now = now_ms();
        sleepers.insert(Pid(1), entry(Some(now + 600_000)));
        sleepers.insert(Pid(2), entry(None));
        sleepers.insert(Pid(3), entry(Some(now + 5)));
        assert_eq!(sleepers.due().await, Pid(3));
        assert!(sleepers.take(Pid(3)).is_some() && sleepers.take(Pid(3)).is_none());
        let late = tokio::time::timeout(Duration::from_millis(20), sleepers.due()).await;
        assert!(late.is_err());
        sleepers.insert(Pid(4), entry(Some(0)));
        assert_eq!(sleepers.due().await, Pid(4));
        let end = sleepers.end_of(Pid(2)).unwrap();
        sleepers.close();
        assert!(matches!(*end.borrow(), Some(End::Suspended(_))) && !sleepers.has(Pid(1)));
    }
}
