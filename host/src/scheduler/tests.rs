//! The scheduler as a whole: real threads, no sleeps; every test ends by an event, not by a clock.

use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use super::*;
use crate::process::Pid;

mod death;
mod loans;
mod order;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// Every slice is one interval.
const ONE: Duration = Duration::ZERO;
/// A few intervals.
const SHORT: Duration = Duration::from_micros(20);
/// A slice does not end by itself.
const LONG: Duration = Duration::from_secs(3600);

fn start(rt: &Runtime, workers: usize, slice: Duration) -> Scheduler {
    start_with(rt, workers, slice, PolicyKind::Fair)
}

fn start_with(rt: &Runtime, workers: usize, slice: Duration, policy: PolicyKind) -> Scheduler {
    let slice = SliceRule { target_latency: slice.max(Duration::from_millis(10)), floor: slice, ceiling: slice };
    Scheduler::start(Settings { workers, policy, slice }, rt.handle().clone()).unwrap()
}

/// A task that is a tree of its own in the default group.
fn own(pid: u64) -> TaskSpec {
    TaskSpec::new(Pid(pid))
}

/// A guest's fuel yield: pending once, woken during the poll.
async fn interval() {
    let mut yielded = false;
    poll_fn(|cx| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

async fn spin() {
    loop {
        interval().await;
    }
}

/// Keeps the only worker in a poll until the returned sender is used or dropped.
fn hold(s: &Scheduler) -> mpsc::Sender<()> {
    let (release, held) = mpsc::channel::<()>();
    let (at, entered) = mpsc::channel();
    let spec = TaskSpec { group: Arc::from("hold"), ..own(9_999) };
    s.add(&spec, async move {
        at.send(()).unwrap();
        held.recv().ok();
    });
    entered.recv().unwrap();
    release
}

/// A task that tells its PID when it is polled for the first time.
fn tells(s: &Scheduler, spec: &TaskSpec, tell: &mpsc::Sender<u64>) -> TaskHandle {
    let (tell, pid) = (tell.clone(), spec.pid.0);
    s.add(spec, async move { tell.send(pid).unwrap() })
}

fn in_group(pid: u64, group: &str) -> TaskSpec {
    TaskSpec { group: Arc::from(group), ..own(pid) }
}

/// Tells through a channel that it was dropped.
struct Dropped(mpsc::Sender<&'static str>, &'static str);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.send(self.1).unwrap();
    }
}

/// Spins this thread until `what` holds, which other threads must bring about.
fn until(what: impl Fn() -> bool) {
    while !what() {
        thread::yield_now();
    }
}

/// A new seed each time, printed; `AOK_TEST_SEED=N` repeats a run.
#[allow(clippy::print_stderr, reason = "a failing random test must be repeatable")]
pub(super) fn seed() -> u64 {
    let seed = std::env::var("AOK_TEST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random);
    eprintln!("AOK_TEST_SEED={seed}");
    seed
}

#[test]
fn a_slice_is_its_time_in_whole_intervals_and_a_block_ends_it() {
    let rt = runtime();
    // Eight intervals, a poll that finds the gate closed, one interval more and the end.
    for (slice, until_blocked, in_all) in [(ONE, 9, 11), (LONG, 1, 2)] {
        let s = start(&rt, 1, slice);
        let (go, gate) = oneshot::channel::<()>();
        let task = s.add(&own(1), async {
            for _ in 0..8 {
                interval().await;
            }
            gate.await.unwrap();
            interval().await;
        });
        until(|| task.state() == TaskState::Blocked);
        assert_eq!(task.slices(), until_blocked);
        go.send(()).unwrap();
        assert_eq!(rt.block_on(task.done()), End::Finished);
        assert_eq!((task.slices(), task.state()), (in_all, TaskState::Done));
    }
}

#[test]
fn a_blocked_task_uses_no_slice() {
    let rt = runtime();
    let s = start(&rt, 1, ONE);
    let blocked = s.add(&own(1), pending());
    until(|| blocked.state() == TaskState::Blocked);
    let cpu = blocked.cpu_ns();
    let spinner = s.add(&own(2), spin());
    until(|| spinner.slices() > 1000);
    assert_eq!((blocked.slices(), blocked.cpu_ns()), (1, cpu));
    let load = s.load();
    assert_eq!((load.blocked, load.runnable + load.running, load.stopped), (1, 1, 0));
    assert!(load.slices > 1000 && load.busy_ns[0] >= spinner.cpu_ns() / 2);
}

#[test]
fn round_robin_is_fair_to_the_slice() {
    const N: usize = 64;
    let rt = runtime();
    let s = start_with(&rt, 1, ONE, PolicyKind::RoundRobin);
    let counts: Arc<Vec<AtomicU64>> = Arc::new((0..N).map(|_| AtomicU64::new(0)).collect());
    let (open, gate) = tokio::sync::watch::channel(false);
    let worst = Arc::new(AtomicU64::new(0));
    // The gate opens for one after the other, and on a busy machine some have run for long before the last
    // comes in: what counts is how far each has come since then.
    let base: Arc<OnceLock<Vec<u64>>> = Arc::default();
    let tasks: Vec<_> = (0..N)
        .map(|i| {
            let (counts, worst, base) = (Arc::clone(&counts), Arc::clone(&worst), Arc::clone(&base));
            let mut gate = gate.clone();
            s.add(&own(i as u64 + 1), async move {
                gate.wait_for(|open| *open).await.unwrap();
                loop {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                    // Only one task runs at a time, so what it sees of the others is exact.
                    let now: Vec<u64> = counts.iter().map(|c| c.load(Ordering::Relaxed)).collect();
                    if now.iter().all(|count| *count > 0) {
                        let base = base.get_or_init(|| now.clone());
                        let least = now.iter().zip(base).map(|(count, base)| count - base).min().unwrap();
                        worst.fetch_max(now[i] - base[i] - least, Ordering::Relaxed);
                    }
                    interval().await;
                }
            })
        })
        .collect();
    until(|| tasks.iter().all(|t| t.state() == TaskState::Blocked));
    open.send(true).unwrap();
    until(|| base.get().is_some_and(|base| counts[0].load(Ordering::Relaxed) > base[0] + 3000));
    // Two slices of one interval: nobody is further ahead than that.
    let worst = worst.load(Ordering::Relaxed);
    assert!(worst > 0 && worst <= 2, "a task was {worst} intervals ahead of another");
}

#[test]
fn more_tasks_than_workers_share_both_workers() {
    let rt = runtime();
    let s = start(&rt, 2, ONE);
    // Three on two: one worker has two of them. Only if they mix does nobody stay at half a worker.
    let tasks: Vec<_> = (1..=3).map(|i| s.add(&own(i), spin())).collect();
    for task in &tasks {
        let first = task.0.home.load(Ordering::Relaxed);
        until(|| task.0.home.load(Ordering::Relaxed) != first);
        until(|| task.0.home.load(Ordering::Relaxed) == first);
    }
}

#[test]
fn an_idle_worker_steals_from_a_busy_one() {
    let rt = runtime();
    let s = start(&rt, 2, ONE);
    let (release, held) = mpsc::channel::<()>();
    let (at, entered) = mpsc::channel();
    // One poll that does not end: whatever is queued behind it can only run elsewhere.
    let hog = s.add(&own(1), async move {
        at.send(thread::current().name().map(str::to_owned)).unwrap();
        held.recv().unwrap();
    });
    let hog_at = entered.recv().unwrap();
    let hog_home = hog.0.home.load(Ordering::Relaxed);
    let (tell, told) = mpsc::channel();
    let stolen: Vec<_> = (2..10)
        .map(|i| {
            let tell = tell.clone();
            let (go, gate) = oneshot::channel::<()>();
            let task = s.add(&own(i), async move {
                gate.await.unwrap();
                tell.send(thread::current().name().map(str::to_owned)).unwrap();
            });
            until(|| task.state() == TaskState::Blocked);
            // Send it home to the busy worker.
            task.0.home.store(hog_home, Ordering::Relaxed);
            go.send(()).unwrap();
            task
        })
        .collect();
    for task in &stolen {
        assert_eq!(rt.block_on(task.done()), End::Finished);
        assert_ne!(told.recv().unwrap(), hog_at);
    }
    release.send(()).unwrap();
    rt.block_on(hog.done());
}

/// Wakers that other threads fire at random; each wake must lead to a poll that sees its event.
#[test]
fn no_wake_is_lost_under_random_wakes() {
    const TASKS: usize = 32;
    const EVENTS: u64 = 4_000;
    struct Inbox {
        sent: AtomicU64,
        waker: Mutex<Option<Waker>>,
    }
    let seed = seed();
    let rt = runtime();
    let s = start(&rt, 2, SHORT);
    let inboxes: Arc<Vec<Inbox>> =
        Arc::new((0..TASKS).map(|_| Inbox { sent: AtomicU64::new(0), waker: Mutex::new(None) }).collect());
    let tasks: Vec<_> = (0..TASKS)
        .map(|i| {
            let inboxes = Arc::clone(&inboxes);
            let mut rng = StdRng::seed_from_u64(seed ^ i as u64);
            s.add(&own(i as u64 + 1), async move {
                let inbox = &inboxes[i];
                let mut seen = 0;
                while seen < EVENTS {
                    seen = poll_fn(|cx| {
                        *inbox.waker.lock().unwrap() = Some(cx.waker().clone());
                        let sent = inbox.sent.load(Ordering::SeqCst);
                        if sent > seen { Poll::Ready(sent) } else { Poll::Pending }
                    })
                    .await;
                    if rng.random_bool(0.3) {
                        interval().await;
                    }
                }
            })
        })
        .collect();
    let senders: Vec<_> = (0..2u64)
        .map(|n| {
            let (inboxes, tasks) = (Arc::clone(&inboxes), tasks.clone());
            let mut rng = StdRng::seed_from_u64(seed.wrapping_add(n));
            thread::spawn(move || {
                let mut left: Vec<usize> = (0..TASKS).flat_map(|i| vec![i; EVENTS as usize / 2]).collect();
                while !left.is_empty() {
                    let i = left.swap_remove(rng.random_range(0..left.len()));
                    inboxes[i].sent.fetch_add(1, Ordering::SeqCst);
                    let waker = if rng.random_bool(0.5) {
                        inboxes[i].waker.lock().unwrap().take()
                    } else {
                        inboxes[i].waker.lock().unwrap().clone()
                    };
                    if let Some(waker) = waker {
                        waker.wake();
                    }
                    match rng.random_range(0..200) {
                        0 => tasks[i].stop(),
                        1..20 => tasks[i].cont(),
                        _ => {}
                    }
                }
            })
        })
        .collect();
    for sender in senders {
        sender.join().unwrap();
    }
    tasks.iter().for_each(TaskHandle::cont);
    for task in &tasks {
        assert_eq!(rt.block_on(task.done()), End::Finished);
    }
    let load = s.load();
    assert_eq!((load.runnable, load.running, load.blocked, load.stopped), (0, 0, 0, 0));
    assert_eq!((load.groups, load.workers_alive), (Vec::new(), 2));
    // Each event came by a wake, though several may have come in one.
    assert!(load.wake_to_run.count() > 0 && load.queue_wait.count() >= load.wake_to_run.count());
}

#[test]
fn a_waker_outlives_its_task_and_does_nothing() {
    let rt = runtime();
    let s = start(&rt, 1, ONE);
    let (tx, rx) = mpsc::channel();
    let task = s.add(
        &own(1),
        poll_fn(move |cx| {
            tx.send(cx.waker().clone()).unwrap();
            Poll::Pending
        }),
    );
    let waker = rx.recv().unwrap();
    rt.block_on(task.kill());
    waker.wake_by_ref();
    assert_eq!((task.state(), task.slices()), (TaskState::Done, 1));
    drop(s);
    waker.wake();
}

#[test]
fn stop_holds_in_each_state_and_cont_brings_back() {
    let rt = runtime();
    let s = start(&rt, 1, SHORT);

    // Running, runnable.
    let spinner = s.add(&own(1), spin());
    until(|| spinner.slices() > 10);
    spinner.stop();
    until(|| spinner.state() == TaskState::Stopped);
    let slices = spinner.slices();
    let other = s.add(&own(2), spin());
    until(|| other.slices() > 100);
    assert_eq!(spinner.slices(), slices);
    spinner.cont();
    until(|| spinner.slices() > slices + 10);
    rt.block_on(spinner.kill());

    // Blocked, and woken while stopped.
    let (go, gate) = oneshot::channel::<()>();
    let blocked = s.add(&own(3), async { gate.await.unwrap() });
    until(|| blocked.state() == TaskState::Blocked);
    blocked.stop();
    go.send(()).unwrap();
    let seen = other.slices();
    until(|| other.slices() > seen + 100);
    assert_eq!((blocked.state(), blocked.slices()), (TaskState::Stopped, 1));
    assert_eq!(s.load().stopped, 1);
    blocked.cont();
    assert_eq!(rt.block_on(blocked.done()), End::Finished);

    // Stopped and continued while blocked: still blocked.
    let idle = s.add(&own(4), pending());
    until(|| idle.state() == TaskState::Blocked);
    idle.stop();
    idle.cont();
    assert_eq!(idle.state(), TaskState::Blocked);

    // Over: nothing happens.
    blocked.stop();
    blocked.cont();
    assert_eq!(blocked.state(), TaskState::Done);
}

#[test]
fn kill_drops_the_future_in_each_state() {
    let rt = runtime();
    let s = start(&rt, 1, SHORT);
    let (tx, rx) = mpsc::channel();
    let kill = |task: &TaskHandle, name: &str| {
        rt.block_on(task.kill());
        // Dropped before `kill` returns.
        assert_eq!(rx.try_recv().unwrap(), name);
        assert_eq!(task.state(), TaskState::Done);
        assert_eq!(rt.block_on(task.done()), End::Dropped);
        rt.block_on(task.kill());
    };
    let guard = |name| Dropped(tx.clone(), name);

    let g = guard("blocked");
    let blocked = s.add(&own(1), async move {
        let _g = g;
        pending::<()>().await;
    });
    until(|| blocked.state() == TaskState::Blocked);
    kill(&blocked, "blocked");

    let g = guard("spinning");
    let spinning = s.add(&own(2), async move {
        let _g = g;
        spin().await;
    });
    until(|| spinning.slices() > 3);
    kill(&spinning, "spinning");

    let g = guard("held");
    let held = s.add(&own(3), async move {
        let _g = g;
        spin().await;
    });
    held.stop();
    until(|| held.state() == TaskState::Stopped);
    kill(&held, "held");

    // Queued behind a poll that does not end.
    let (release, block) = mpsc::channel::<()>();
    let (at, entered) = mpsc::channel();
    let hog = s.add(&own(4), async move {
        at.send(()).unwrap();
        block.recv().unwrap();
    });
    entered.recv().unwrap();
    let g = guard("queued");
    let queued = s.add(&own(5), async move {
        let _g = g;
        panic!("a killed task is not polled");
    });
    assert_eq!(queued.state(), TaskState::Runnable);
    kill(&queued, "queued");
    release.send(()).unwrap();
    assert_eq!(rt.block_on(hog.done()), End::Finished);
}

#[test]
fn kill_while_running_waits_for_the_interval_only() {
    let rt = runtime();
    let s = start(&rt, 1, LONG);
    let (tx, dropped) = mpsc::channel();
    let (release, block) = mpsc::channel::<()>();
    let (at, entered) = mpsc::channel();
    let g = Dropped(tx, "running");
    let running = s.add(&own(1), async move {
        let _g = g;
        at.send(()).unwrap();
        block.recv().unwrap();
        spin().await;
    });
    entered.recv().unwrap();
    let mut kill = std::pin::pin!(running.kill());
    let mut cx = Context::from_waker(Waker::noop());
    assert!(kill.as_mut().poll(&mut cx).is_pending());
    assert_eq!(running.state(), TaskState::Running);
    assert!(dropped.try_recv().is_err(), "never dropped under a poll");
    release.send(()).unwrap();
    rt.block_on(kill);
    assert_eq!(dropped.try_recv().unwrap(), "running");
    assert_eq!(running.slices(), 1);
}

#[test]
fn a_task_can_kill_itself_and_another() {
    let rt = runtime();
    let s = start(&rt, 1, SHORT);
    let victim = s.add(&own(1), spin());
    let slot: Arc<Mutex<Option<TaskHandle>>> = Arc::default();
    let (go, gate) = oneshot::channel::<()>();
    let killer = s.add(&own(2), {
        let (slot, victim) = (Arc::clone(&slot), victim.clone());
        async move {
            gate.await.unwrap();
            victim.kill().await;
            let me = slot.lock().unwrap().take().unwrap();
            me.kill().await;
            unreachable!("it is not polled again");
        }
    });
    *slot.lock().unwrap() = Some(killer.clone());
    go.send(()).unwrap();
    assert_eq!(rt.block_on(killer.done()), End::Dropped);
    assert_eq!(rt.block_on(victim.done()), End::Dropped);
}

#[test]
fn a_panic_ends_its_task_alone() {
    struct PanicsInDrop;
    impl Drop for PanicsInDrop {
        fn drop(&mut self) {
            panic!("in drop");
        }
    }
    let rt = runtime();
    let s = start(&rt, 1, SHORT);
    let spinner = s.add(&own(1), spin());
    let panicking = s.add(&own(2), async {
        interval().await;
        panic!("page {} is on fire", 7);
    });
    assert_eq!(rt.block_on(panicking.done()), End::Panicked("page 7 is on fire".to_owned()));
    let bad_drop = s.add(&own(3), async {
        let _p = PanicsInDrop;
        pending::<()>().await;
    });
    until(|| bad_drop.state() == TaskState::Blocked);
    rt.block_on(bad_drop.kill());
    let seen = spinner.slices();
    until(|| spinner.slices() > seen + 100);
    // Looked at once: between two looks the spinner may go from running to runnable.
    let load = s.load();
    assert_eq!(load.running + load.runnable, 1);
}

#[test]
fn tokio_timers_and_spawns_work_on_a_worker() {
    let rt = runtime();
    let s = start(&rt, 2, SHORT);
    let task = s.add(&own(1), async {
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert_eq!(tokio::task::spawn_blocking(|| 6 * 7).await.unwrap(), 42);
        tokio::time::timeout(Duration::from_millis(1), pending::<()>()).await.unwrap_err();
    });
    assert_eq!(rt.block_on(task.done()), End::Finished);
}

#[test]
fn shutdown_drops_blocked_queued_running_and_stopped_tasks() {
    let rt = runtime();
    let s = start(&rt, 2, SHORT);
    let (tx, rx) = mpsc::channel();
    let with = |name, run: Pin<Box<dyn Runnable>>| {
        let g = Dropped(tx.clone(), name);
        async move {
            let _g = g;
            run.await;
        }
    };
    let mut tasks = vec![s.add(&own(1), with("blocked", Box::pin(pending())))];
    until(|| tasks[0].state() == TaskState::Blocked);
    for i in 2..10 {
        tasks.push(s.add(&own(i), with("spinning", Box::pin(spin()))));
    }
    tasks.push(s.add(&own(10), with("stopped", Box::pin(spin()))));
    tasks[9].stop();
    until(|| tasks[9].state() == TaskState::Stopped && tasks[5].slices() > 10);
    s.shutdown();
    let mut dropped: Vec<_> = rx.try_iter().collect();
    dropped.sort_unstable();
    assert_eq!(dropped.len(), 10);
    assert_eq!((dropped[0], dropped[1], dropped[9]), ("blocked", "spinning", "stopped"));
    for task in &tasks {
        assert_eq!((task.state(), rt.block_on(task.done())), (TaskState::Done, End::Dropped));
    }

    let late = s.add(&own(11), with("late", Box::pin(spin())));
    assert_eq!(rt.block_on(late.done()), End::Dropped);
    assert_eq!((rx.try_recv(), late.slices()), (Ok("late"), 0));
    s.shutdown();
}

#[test]
fn a_task_may_shut_its_own_scheduler_down() {
    let rt = runtime();
    let s = Arc::new(start(&rt, 2, ONE));
    let spinner = s.add(&own(1), spin());
    let task = s.add(&own(2), {
        let s = Arc::clone(&s);
        async move { s.shutdown() }
    });
    rt.block_on(task.done());
    assert_eq!(rt.block_on(spinner.done()), End::Dropped);
}

#[test]
fn nothing_is_kept_alive_after_the_end() {
    let rt = runtime();
    let s = start(&rt, 2, ONE);
    let shared = Arc::downgrade(&s.shared);
    let handles: Vec<_> = (1..20).map(|i| s.add(&own(i), spin())).collect();
    let tasks: Vec<_> = handles.iter().map(|h| Arc::downgrade(&h.0)).collect();
    for handle in &handles[..10] {
        rt.block_on(handle.kill());
    }
    drop((handles, s));
    assert!(tasks.iter().all(|t| t.upgrade().is_none()) && shared.upgrade().is_none());
}

/// Many short-lived tasks that wake each other while others are killed: the counts must add up.
#[test]
fn churn_ends_every_task_exactly_once() {
    let seed = seed();
    let mut rng = StdRng::seed_from_u64(seed);
    let rt = runtime();
    let s = start(&rt, 2, SHORT);
    let drops = Arc::new(AtomicUsize::new(0));
    let stop_all = Arc::new(AtomicBool::new(false));
    struct Count(Arc<AtomicUsize>);
    impl Drop for Count {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let mut handles = Vec::new();
    for i in 0..2_000u64 {
        let count = Count(Arc::clone(&drops));
        let rounds = rng.random_range(0..20);
        let shut = Arc::clone(&stop_all);
        handles.push(s.add(&own(i), async move {
            let _count = count;
            for _ in 0..rounds {
                if shut.load(Ordering::Relaxed) {
                    return;
                }
                tokio::task::yield_now().await;
                interval().await;
            }
        }));
        let victim = &handles[rng.random_range(0..handles.len())];
        match rng.random_range(0..4) {
            0 => rt.block_on(victim.kill()),
            1 => victim.stop(),
            _ => victim.cont(),
        }
    }
    handles.iter().for_each(TaskHandle::cont);
    for handle in &handles {
        let end = rt.block_on(handle.done());
        assert!(matches!(end, End::Finished | End::Dropped), "{end:?}");
    }
    assert_eq!(drops.load(Ordering::SeqCst), 2_000);
}
