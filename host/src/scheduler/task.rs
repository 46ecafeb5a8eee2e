//! One task: its future, its waker, its account, and how it ends.
//!
//! It owns the future's life: polled by one worker at a time, dropped exactly once. It must not know
//! which queue or thread comes next: the state machine says what to do, `Shared` does it.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use tokio::sync::SetOnce;

use super::loan::Loans;
use super::meter::{Meter, thread_cpu_ns};
use super::queue::{Entry, Reason};
use super::share::{Claim, Purse};
use super::state::{Killed, Pended, State, Woken};
use super::stats::bump;
use super::{Runnable, Shared};
use crate::process::Pid;

/// A slice's charges are made at its end, and within it after this many nanoseconds: often enough for
/// those who compare, and seldom enough for intervals of a microsecond.
pub(super) const CHARGE_EVERY_NS: u64 = 50_000;

/// How a task ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Its future returned.
    Finished,
    /// It was killed, or the scheduler shut down.
    Dropped,
    /// A poll panicked, with this message; or its worker did.
    Panicked(String),
}

pub(super) struct Task {
    pub(super) pid: Pid,
    /// The key under which [`Shared`] lists it.
    pub(super) key: u64,
    pub(super) state: State,
    /// The worker that polled it last: a woken task goes back there, where its memory may be warm.
    pub(super) home: AtomicUsize,
    /// Its own; while it has loans it may run under another one.
    pub(super) claim: Arc<Claim>,
    pub(super) loans: Loans,
    /// Of its newest entry; older entries are void.
    ticket: AtomicU64,
    /// When it last became runnable.
    runnable_ns: AtomicU64,
    slices: AtomicU64,
    cpu_ns: AtomicU64,
    charged_ns: AtomicU64,
    /// Locked by the worker for a slice, and by whoever drops it. The state machine keeps these apart,
    /// so nobody waits here longer than the other needs to let go.
    body: Mutex<Option<Body>>,
    end: SetOnce<End>,
    pub(super) shared: Arc<Shared>,
}

/// A worker's turn with a task.
pub(super) struct Turn<'a> {
    pub(super) shared: &'a Shared,
    pub(super) worker: usize,
    /// Who pays.
    pub(super) claim: &'a Claim,
    /// When the worker last looked at the clock. What passed since then, which is the switch, is the
    /// task's first expense.
    pub(super) now_ns: &'a mut u64,
    pub(super) meter: &'a mut Meter,
    pub(super) purse: &'a mut Purse,
}

/// What is gone when the task is over. The waker holds the task, so it must go too: else the two would
/// keep each other alive.
struct Body {
    run: Pin<Box<dyn Runnable>>,
    /// Made once; polls borrow it.
    waker: Waker,
}

impl Task {
    pub(super) fn new(
        pid: Pid,
        key: u64,
        home: usize,
        claim: Arc<Claim>,
        run: Pin<Box<dyn Runnable>>,
        shared: Arc<Shared>,
    ) -> Arc<Self> {
        let task = Arc::new(Self {
            pid,
            key,
            state: State::queued(),
            home: AtomicUsize::new(home),
            claim,
            loans: Loans::default(),
            ticket: AtomicU64::new(0),
            runnable_ns: AtomicU64::new(0),
            slices: AtomicU64::new(0),
            cpu_ns: AtomicU64::new(0),
            charged_ns: AtomicU64::new(0),
            body: Mutex::new(None),
            end: SetOnce::new(),
            shared,
        });
        let waker = Waker::from(Arc::clone(&task));
        *task.body.lock().unwrap_or_else(PoisonError::into_inner) = Some(Body { run, waker });
        task
    }

    /// Its newest entry, under the best claim that it has now. Whoever makes one must queue it.
    pub(super) fn entry(self: Arc<Self>, reason: Reason, now_ns: u64) -> Entry<Arc<Self>> {
        let ticket = self.ticket.fetch_add(1, Ordering::Relaxed) + 1;
        self.runnable_ns.store(now_ns, Ordering::Relaxed);
        Entry { claim: self.best_claim(), ticket, since_ns: now_ns, reason, item: self }
    }

    /// Makes the entry of a task that goes on its newest one again.
    pub(super) fn renew(mut entry: Entry<Arc<Self>>, now_ns: u64) -> Entry<Arc<Self>> {
        let task = &entry.item;
        entry.ticket = task.ticket.fetch_add(1, Ordering::Relaxed) + 1;
        task.runnable_ns.store(now_ns, Ordering::Relaxed);
        if task.loans.any() || !Arc::ptr_eq(&entry.claim, &task.claim) {
            entry.claim = task.best_claim();
        }
        Entry { since_ns: now_ns, reason: Reason::SliceUsed, ..entry }
    }

    /// Whether this entry is the one that counts.
    pub(super) fn is_newest(&self, entry: &Entry<Arc<Self>>) -> bool {
        entry.ticket == self.ticket.load(Ordering::Relaxed)
    }

    /// Queues it once more if it is queued: its claim is better now, or its queue is gone.
    pub(super) fn refile(self: &Arc<Self>) {
        if self.state.is_queued() {
            let since = self.runnable_ns.load(Ordering::Relaxed);
            self.shared.push(Arc::clone(self), Reason::SliceUsed, since);
        }
    }

    /// Polls it for one slice. The caller took it from a queue and was told to poll.
    /// Returns whether it must go back into a queue.
    pub(super) fn run_slice(&self, mut turn: Turn<'_>) -> bool {
        let mut cell = self.body.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Body { run, waker }) = cell.as_mut() else {
            return false;
        };
        let mut cx = Context::from_waker(waker);
        let Turn { shared, worker, .. } = turn;
        let stats = &shared.stats[worker];
        let (mut used_ns, mut unpaid_ns) = (0, 0);
        bump(&self.slices, 1);
        stats.slice();
        let end = loop {
            let polled = catch_unwind(AssertUnwindSafe(|| run.as_mut().poll(&mut cx)));
            let now = shared.now_ns();
            let ns = now.saturating_sub(*turn.now_ns).saturating_sub(turn.meter.lost_ns(now, thread_cpu_ns));
            *turn.now_ns = now;
            used_ns += ns;
            unpaid_ns += ns;
            bump(&self.cpu_ns, ns);
            stats.polled(ns);
            let more = shared.board.goes_on(worker, used_ns) && !shared.is_closing();
            if !more || unpaid_ns >= CHARGE_EVERY_NS {
                self.pay(&mut turn, &mut unpaid_ns);
                if more {
                    shared.board.seats[worker].runs(turn.claim);
                }
            }
            match polled {
                Ok(Poll::Pending) => match self.state.pending(more) {
                    Pended::Again => {}
                    after => {
                        self.pay(&mut turn, &mut unpaid_ns);
                        match after {
                            Pended::Drop => break End::Dropped,
                            Pended::Requeue => return true,
                            Pended::Again | Pended::Parked => return false,
                        }
                    }
                },
                Ok(Poll::Ready(())) => {
                    self.state.finished();
                    break End::Finished;
                }
                Err(panic) => {
                    self.state.finished();
                    break End::Panicked(panic_message(panic.as_ref()));
                }
            }
        };
        self.pay(&mut turn, &mut unpaid_ns);
        let body = cell.take();
        drop(cell);
        self.bury(body, end);
        false
    }

    /// The claim that it runs under pays with its place; the use is counted where the task belongs.
    fn pay(&self, turn: &mut Turn<'_>, unpaid_ns: &mut u64) {
        let ns = std::mem::take(unpaid_ns);
        if ns > 0 {
            turn.purse.pay(turn.claim, &self.claim, ns);
        }
    }

    pub(super) fn charge(&self, ns: u64) {
        self.shared.board.shares.charge(&self.claim, ns);
        self.charged_ns.fetch_add(ns, Ordering::Relaxed);
        self.claim.group.charged_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// Its worker died while it polled this task: nobody else will end it.
    pub(super) fn fail(&self, message: String) {
        if self.state.fail() {
            let body = self.body.lock().unwrap_or_else(PoisonError::into_inner).take();
            self.bury(body, End::Panicked(message));
        }
    }

    pub(super) fn stop(&self) {
        self.state.stop();
    }

    pub(super) fn cont(self: &Arc<Self>) {
        if self.state.cont() == Woken::Enqueue {
            self.shared.push(Arc::clone(self), Reason::Woken, self.shared.now_ns());
        }
    }

    /// Drops the future here if no worker polls it, else leaves that to the worker.
    pub(super) fn kill(&self) {
        if self.state.kill() == Killed::Drop {
            let body = self.body.lock().unwrap_or_else(PoisonError::into_inner).take();
            // The future was polled inside the runtime, so it is dropped inside it too.
            let _tokio = self.shared.runtime.enter();
            self.bury(body, End::Dropped);
        }
    }

    pub(super) async fn wait(&self) -> End {
        self.end.wait().await.clone()
    }

    pub(super) fn slices(&self) -> u64 {
        self.slices.load(Ordering::Relaxed)
    }

    pub(super) fn cpu_ns(&self) -> u64 {
        self.cpu_ns.load(Ordering::Relaxed)
    }

    pub(super) fn charged_ns(&self) -> u64 {
        self.charged_ns.load(Ordering::Relaxed)
    }

    /// Drops the future, then tells those who wait. The state is Done already, so this runs once.
    fn bury(&self, body: Option<Body>, end: End) {
        if let End::Panicked(message) = &end {
            tracing::error!(pid = self.pid.0, message, "a task panicked and was ended");
        }
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(body))) {
            let message = panic_message(panic.as_ref());
            tracing::error!(pid = self.pid.0, message, "a task panicked while it was dropped");
        }
        self.shared.forget(self);
        if self.end.set(end).is_err() {
            tracing::error!(pid = self.pid.0, "a task ended twice; report this");
        }
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        if self.state.wake() == Woken::Enqueue {
            let shared = Arc::clone(&self.shared);
            let now = shared.now_ns();
            shared.push(self, Reason::Woken, now);
        }
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.wake() == Woken::Enqueue {
            self.shared.push(Arc::clone(self), Reason::Woken, self.shared.now_ns());
        }
    }
}

/// What a caught panic said.
pub(super) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message").to_owned()
}
