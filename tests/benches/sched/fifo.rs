//! The baseline of dispatching: one queue behind one mutex, first come, first served, and no accounts.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Wake, Waker};

pub(crate) type Run = Pin<Box<dyn Future<Output = ()> + Send>>;

const BLOCKED: u8 = 0;
const QUEUED: u8 = 1;
const POLLED: u8 = 2;
const POLLED_AND_WOKEN: u8 = 3;

struct Task {
    state: AtomicU8,
    run: Mutex<Run>,
    queue: Arc<Queue>,
}

/// The queue with its threads. Dropped, they end.
pub(crate) struct Fifo {
    queue: Arc<Queue>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Queue {
    tasks: Mutex<VecDeque<Arc<Task>>>,
    more: Condvar,
    slices: AtomicU64,
    closing: AtomicBool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Task>>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        while !self.closing.load(Ordering::Relaxed) {
            let mut tasks = self.lock();
            let task = loop {
                if self.closing.load(Ordering::Relaxed) {
                    return;
                }
                match tasks.pop_front() {
                    Some(task) => break task,
                    None => tasks = self.more.wait(tasks).unwrap_or_else(PoisonError::into_inner),
                }
            };
            drop(tasks);
            task.state.store(POLLED, Ordering::Release);
            self.slices.fetch_add(1, Ordering::Relaxed);
            let waker = Waker::from(Arc::clone(&task));
            let mut run = task.run.lock().unwrap_or_else(PoisonError::into_inner);
            let pending = run.as_mut().poll(&mut Context::from_waker(&waker)).is_pending();
            drop(run);
            let parked = task.state.compare_exchange(POLLED, BLOCKED, Ordering::AcqRel, Ordering::Acquire).is_ok();
            if pending && !parked {
                task.state.store(QUEUED, Ordering::Release);
                self.lock().push_back(task);
            }
        }
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let step = |state| match state {
            BLOCKED => Some(QUEUED),
            POLLED => Some(POLLED_AND_WOKEN),
            _ => None,
        };
        if self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, step) == Ok(BLOCKED) {
            self.queue.lock().push_back(Arc::clone(self));
            self.queue.more.notify_one();
        }
    }
}

impl Fifo {
    pub(crate) fn start(workers: usize, runs: Vec<Run>) -> Self {
        let queue: Arc<Queue> = Arc::default();
        queue.lock().extend(runs.into_iter().map(|run| {
            Arc::new(Task { state: AtomicU8::new(QUEUED), run: Mutex::new(run), queue: Arc::clone(&queue) })
        }));
        let threads = (0..workers).map(|_| Arc::clone(&queue)).map(|q| std::thread::spawn(move || q.work())).collect();
        Self { queue, threads }
    }

    pub(crate) fn slices(&self) -> u64 {
        self.queue.slices.load(Ordering::Relaxed)
    }
}

impl Drop for Fifo {
    fn drop(&mut self) {
        self.queue.closing.store(true, Ordering::Relaxed);
        self.queue.more.notify_all();
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
        self.queue.lock().clear();
    }
}
