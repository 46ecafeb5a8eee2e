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
use std::time::Instant;

use tokio::sync::SetOnce;

use super::queue::Reason;
use super::state::{Killed, Pended, State, Woken};
use super::stats::{WorkerStats, bump};
use super::{Runnable, Shared};
use crate::process::Pid;

/// How a task ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Its future returned.
    Finished,
    /// It was killed, or the scheduler shut down.
    Dropped,
    /// A poll panicked, with this message.
    Panicked(String),
}

pub(super) struct Task {
    pub(super) pid: Pid,
    /// The key under which [`Shared`] lists it.
    pub(super) key: u64,
    pub(super) state: State,
    /// The worker that polled it last: a woken task goes back there, where its memory may be warm.
    pub(super) home: AtomicUsize,
    slices: AtomicU64,
    cpu_ns: AtomicU64,
    /// Locked by the worker for a slice, and by whoever drops it. The state machine keeps these apart,
    /// so nobody waits here longer than the other needs to let go.
    body: Mutex<Option<Body>>,
    end: SetOnce<End>,
    shared: Arc<Shared>,
}

/// What is gone when the task is over. The waker holds the task, so it must go too: else the two would
/// keep each other alive.
struct Body {
    run: Pin<Box<dyn Runnable>>,
    /// Made once; polls borrow it.
    waker: Waker,
}

impl Task {
    pub(super) fn new(pid: Pid, key: u64, home: usize, run: Pin<Box<dyn Runnable>>, shared: Arc<Shared>) -> Arc<Self> {
        let task = Arc::new(Self {
            pid,
            key,
            state: State::queued(),
            home: AtomicUsize::new(home),
            slices: AtomicU64::new(0),
            cpu_ns: AtomicU64::new(0),
            body: Mutex::new(None),
            end: SetOnce::new(),
            shared,
        });
        let waker = Waker::from(Arc::clone(&task));
        *task.body.lock().unwrap_or_else(PoisonError::into_inner) = Some(Body { run, waker });
        task
    }

    /// Polls it for one slice. The caller took it from a queue and was told to poll.
    /// Returns whether it must go back into a queue.
    pub(super) fn run_slice(&self, worker: &WorkerStats) -> bool {
        let mut cell = self.body.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Body { run, waker }) = cell.as_mut() else {
            return false;
        };
        let mut cx = Context::from_waker(waker);
        let mut left = self.shared.intervals_per_slice;
        bump(&self.slices, 1);
        worker.slice();
        let mut since = Instant::now();
        let end = loop {
            let polled = catch_unwind(AssertUnwindSafe(|| run.as_mut().poll(&mut cx)));
            let now = Instant::now();
            let ns = u64::try_from((now - since).as_nanos()).unwrap_or(u64::MAX);
            since = now;
            bump(&self.cpu_ns, ns);
            worker.polled(ns);
            match polled {
                Ok(Poll::Pending) => {
                    left -= 1;
                    match self.state.pending(left > 0 && !self.shared.is_closing()) {
                        Pended::Again => {}
                        Pended::Requeue => return true,
                        Pended::Parked => return false,
                        Pended::Drop => break End::Dropped,
                    }
                }
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
        let body = cell.take();
        drop(cell);
        self.bury(body, end);
        false
    }

    pub(super) fn stop(&self) {
        self.state.stop();
    }

    pub(super) fn cont(self: &Arc<Self>) {
        if self.state.cont() == Woken::Enqueue {
            self.shared.push(Arc::clone(self), Reason::Woken);
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

    /// Drops the future, then tells those who wait. The state is Done already, so this runs once.
    fn bury(&self, body: Option<Body>, end: End) {
        if let End::Panicked(message) = &end {
            tracing::error!(pid = self.pid.0, message, "a task panicked and was ended");
        }
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(body))) {
            let message = panic_message(panic.as_ref());
            tracing::error!(pid = self.pid.0, message, "a task panicked while it was dropped");
        }
        self.shared.forget(self.key);
        if self.end.set(end).is_err() {
            tracing::error!(pid = self.pid.0, "a task ended twice; report this");
        }
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        if self.state.wake() == Woken::Enqueue {
            let shared = Arc::clone(&self.shared);
            shared.push(self, Reason::Woken);
        }
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.wake() == Woken::Enqueue {
            self.shared.push(Arc::clone(self), Reason::Woken);
        }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message").to_owned()
}
