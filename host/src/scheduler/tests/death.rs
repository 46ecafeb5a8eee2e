//! Workers that die of an injected bug.

use super::*;

#[test]
fn a_dead_workers_tasks_go_on_elsewhere() {
    let rt = runtime();
    let s = start(&rt, 2, ONE);
    let spinners: Vec<_> = (1..=10).map(|i| s.add(&own(i), spin())).collect();
    let (go, gate) = oneshot::channel::<()>();
    let sleeper = s.add(&own(11), async { gate.await.unwrap() });
    until(|| sleeper.state() == TaskState::Blocked && spinners.iter().all(|t| t.slices() > 10));
    s.shared.crash_at.store(100, Ordering::SeqCst);
    let victim = s.add(&own(100), spin());
    let end = rt.block_on(victim.done());
    let dead = victim.0.home.load(Ordering::Relaxed);
    assert_eq!(end, End::Panicked(format!("worker {dead} died: told to crash")));
    until(|| s.load().workers_alive == 1);
    let seen: Vec<u64> = spinners.iter().map(TaskHandle::slices).collect();
    until(|| spinners.iter().zip(&seen).all(|(t, seen)| t.slices() > seen + 100));
    // Nothing goes to the dead one any more.
    sleeper.0.home.store(dead, Ordering::Relaxed);
    go.send(()).unwrap();
    assert_eq!(rt.block_on(sleeper.done()), End::Finished);
    let new = s.add(&own(12), interval());
    assert_eq!(rt.block_on(new.done()), End::Finished);
    rt.block_on(spinners[0].kill());
    s.shutdown();
    assert!(spinners[1..].iter().all(|t| rt.block_on(t.done()) == End::Dropped));
}

#[test]
fn the_death_of_the_last_worker_ends_everything_and_is_told() {
    let rt = runtime();
    let s = start(&rt, 2, ONE);
    let idle = s.add(&own(1), pending());
    let spinner = s.add(&own(2), spin());
    until(|| idle.state() == TaskState::Blocked && spinner.slices() > 10);
    for pid in [100, 101] {
        s.shared.crash_at.store(pid, Ordering::SeqCst);
        let victim = s.add(&own(pid), spin());
        assert!(matches!(rt.block_on(victim.done()), End::Panicked(_)));
    }
    rt.block_on(s.all_workers_died());
    assert_eq!(s.load().workers_alive, 0);
    assert_eq!((rt.block_on(idle.done()), rt.block_on(spinner.done())), (End::Dropped, End::Dropped));
    let late = s.add(&own(3), spin());
    assert_eq!(rt.block_on(late.done()), End::Dropped);
    s.shutdown();
}
