//! A model provider as a device with slots: which waiting call gets the next free one.
//!
//! It owns the queue in front of one provider. It knows no requests, no HTTP and no processes: a call is a
//! [`Ticket`], and what a call does with its slot is its own affair.
//!
//! [`policy`] has the order and its alternatives, [`expected`] the default one, `history` what it learns;
//! `shares` divides the slots between groups, `minute` keeps the limits per minute; [`queue`] puts them
//! together in a state without threads or clocks, which [`sim`] drives in virtual time and this file by the
//! machine's.
//!
//! # Protocol
//! 1. [`Device::acquire`] joins the queue. Whatever changes the queue then *pumps* it, under the one lock:
//!    while a slot is free and the call that is next may go, it is marked and rung.
//! 2. A call that is next and held up by a pause or by the minute is rung too, and told until when: it sleeps
//!    so long and pumps. There is no task in the background. When another call is next meanwhile, its pump
//!    rings that one; an alarm that is no longer needed finds nothing to do.
//! 3. A call that is rung and marked takes its slot. Dropped before, it hands it back, unused; dropped while
//!    it waits, it leaves the queue; both pump, so that no slot and no alarm is lost with it.
//! 4. Dropping the [`Slot`] gives it back, charges its time, and pumps.
//!
//! Nobody holds a slot while it waits for a limit. The lock is never held across an await.

pub mod expected;
mod history;
mod minute;
pub mod policy;
pub mod queue;
mod shares;
pub mod sim;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

pub use minute::Limits;
pub use policy::Policy;
use queue::{Next, Queue};
pub use queue::{Standing, Ticket};

/// A call in the queue, as its future sees it.
#[derive(Debug, Default)]
struct Bell {
    rung: Arc<Notify>,
    granted: bool,
    /// Until when it holds up the queue, in seconds of the device's clock.
    alarm: Option<f64>,
}

#[derive(Debug)]
struct State {
    queue: Queue,
    bells: HashMap<u64, Bell>,
}

impl State {
    /// Gives slots out for as long as there is one and somebody may have it.
    fn pump(&mut self, now: f64) {
        loop {
            match self.queue.next(now) {
                Next::Grant(id) => {
                    if let Some(bell) = self.bells.get_mut(&id) {
                        bell.granted = true;
                        bell.rung.notify_one();
                    }
                }
                Next::At(id, at) => {
                    if let Some(bell) = self.bells.get_mut(&id).filter(|bell| bell.alarm != Some(at)) {
                        bell.alarm = Some(at);
                        bell.rung.notify_one();
                    }
                    return;
                }
                Next::Nothing => return,
            }
        }
    }
}

/// The queue in front of one provider. A clone is the same device.
#[derive(Clone)]
pub struct Device {
    /// Second 0 of its clock.
    began: Instant,
    state: Arc<Mutex<State>>,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let load = self.load();
        f.debug_struct("Device").field("running", &load.running).field("waiting", &load.waiting).finish_non_exhaustive()
    }
}

/// How busy a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Calls that have a slot.
    pub running: usize,
    /// Calls that wait for one.
    pub waiting: usize,
}

impl Device {
    /// A device of at least one slot, in the order of `policy`, within `limits`.
    #[must_use]
    pub fn new(slots: usize, policy: Box<dyn Policy>, limits: Limits) -> Self {
        let state = State { queue: Queue::new(slots, policy, limits), bells: HashMap::new() };
        Self { began: Instant::now(), state: Arc::new(Mutex::new(state)) }
    }

    fn seconds(&self, at: Instant) -> f64 {
        at.saturating_duration_since(self.began).as_secs_f64()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change of the state is whole before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the queue, then gives out what slots are free.
    fn change<T>(&self, change: impl FnOnce(&mut State, f64) -> T) -> T {
        let mut state = self.lock();
        // Taken under the lock, so that the queue's time never falls.
        let now = self.seconds(Instant::now());
        let done = change(&mut state, now);
        state.pump(now);
        done
    }

    /// Waits for a slot. `since` is when the call was made: an attempt that is made again keeps its wait.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the queue; a slot that it was given and had not seen goes to the next. A
    /// future that is neither polled nor dropped may hold up the others.
    pub async fn acquire(&self, ticket: Ticket, since: Instant) -> Slot {
        let since = self.seconds(since);
        let (id, rung) = self.change(|state, now| {
            let id = state.queue.push(ticket, since.min(now), now);
            let bell = Bell::default();
            let rung = Arc::clone(&bell.rung);
            state.bells.insert(id, bell);
            (id, rung)
        });
        let mut place = Place { device: self, id, taken: false };
        loop {
            let alarm = match self.lock().bells.get(&id) {
                Some(Bell { granted: false, alarm, .. }) => *alarm,
                _ => break,
            };
            let due = tokio::select! {
                () = rung.notified() => false,
                () = self.until(alarm) => true,
            };
            if due {
                self.change(|state, _| state.bells.get_mut(&id).and_then(|bell| bell.alarm.take()));
            }
        }
        place.taken = true;
        self.lock().bells.remove(&id);
        Slot { device: self.clone(), id, was: Use::Failed }
    }

    /// Waits until then, in seconds of the device's clock; for ever when there is no such time.
    async fn until(&self, at: Option<f64>) {
        let at = at.and_then(|at| Duration::try_from_secs_f64(at).ok()).and_then(|at| self.began.checked_add(at));
        match at {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    /// Gives nobody a slot until then: the provider asked to be left alone. Those under way are not touched;
    /// a shorter pause than the one that holds changes nothing.
    pub fn pause_until(&self, at: Instant) {
        let at = self.seconds(at);
        self.change(|state, _| state.queue.pause_until(at));
    }

    /// Raises the waiting calls of a process to the standing of one that waits for it; `None` when that one
    /// does so no longer. Calls that it makes afterwards bring their own.
    pub fn raise(&self, pid: u64, to: Option<&Standing>) {
        self.change(|state, _| state.queue.raise(pid, to));
    }

    /// A process tree ended: what it used is learned from.
    pub fn finished(&self, program: u64) {
        self.change(|state, _| state.queue.finished(program));
    }

    /// How busy it is.
    #[must_use]
    pub fn load(&self) -> Load {
        let state = self.lock();
        Load { running: state.queue.running(), waiting: state.queue.waiting() }
    }
}

/// A call's place in the queue until it has its slot.
struct Place<'a> {
    device: &'a Device,
    id: u64,
    taken: bool,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        self.device.change(|state, now| match state.bells.remove(&self.id) {
            Some(Bell { granted: true, .. }) => state.queue.return_unused(self.id, now),
            _ => state.queue.cancel(self.id),
        });
    }
}

/// What came of a slot.
#[derive(Clone, Copy, Debug)]
enum Use {
    Done,
    Failed,
    Unused,
}

/// A slot, until it is dropped.
#[derive(Debug)]
#[must_use = "dropping it gives the slot back"]
pub struct Slot {
    device: Device,
    id: u64,
    was: Use,
}

impl Slot {
    /// Gives it back after a call that came to its end. One that is only dropped is charged for its time, and
    /// is not one of its program's calls in the history: it failed, or was given up.
    pub fn done(mut self) {
        self.was = Use::Done;
    }

    /// Gives it back; nobody was asked, and so it does not count for the minute.
    pub fn unused(mut self) {
        self.was = Use::Unused;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.device.change(|state, now| match self.was {
            Use::Done => state.queue.release(self.id, now, true),
            Use::Failed => state.queue.release(self.id, now, false),
            Use::Unused => state.queue.return_unused(self.id, now),
        });
    }
}

#[cfg(test)]
mod tests;
