//! Loans on real workers: who runs first, when a loan ends, and that nobody is lost over it.

use std::collections::VecDeque;

use super::*;

#[test]
fn a_loan_moves_its_holder_to_the_lenders_place() {
    let rt = runtime();
    // Transitively or directly, before or after the holder is queued.
    for (chain, after) in [(false, false), (false, true), (true, false), (true, true)] {
        let s = start(&rt, 1, ONE);
        let high = s.add(&in_group(1, "high"), pending());
        let middle = s.add(&in_group(2, "middle"), pending());
        until(|| high.state() == TaskState::Blocked && middle.state() == TaskState::Blocked);
        high.set_nice(Nice::new(-5).unwrap());
        let release = hold(&s);
        let (tell, told) = mpsc::channel();
        let low = tells(&s, &in_group(3, "low"), &tell);
        low.charge(500_000_000);
        let other = tells(&s, &in_group(4, "other"), &tell);
        other.charge(100_000_000);
        assert_eq!((low.effective_nice().get(), low.inherits_from()), (0, None));
        let loans = if chain && after {
            let last = middle.lend_to(&low);
            vec![high.lend_to(&middle), last]
        } else if chain {
            vec![high.lend_to(&middle), middle.lend_to(&low)]
        } else {
            vec![high.lend_to(&low)]
        };
        assert_eq!(low.effective_nice().get(), -5);
        assert!(low.inherits_from().is_some());
        if !after && !chain {
            assert_eq!(low.inherits_from(), Some(Pid(1)));
        }
        release.send(()).unwrap();
        rt.block_on(other.done());
        rt.block_on(low.done());
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [3, 4], "chain {chain}, after {after}");
        drop(loans);
    }
}

#[test]
fn a_loan_ends_with_its_drop_even_for_a_queued_holder() {
    let rt = runtime();
    let s = start(&rt, 1, ONE);
    let high = s.add(&in_group(1, "high"), pending());
    until(|| high.state() == TaskState::Blocked);
    let release = hold(&s);
    let (tell, told) = mpsc::channel();
    let low = tells(&s, &in_group(3, "low"), &tell);
    low.charge(500_000_000);
    let other = tells(&s, &in_group(4, "other"), &tell);
    other.charge(100_000_000);
    drop(high.lend_to(&low));
    assert_eq!((low.inherits_from(), low.effective_nice()), (None, Nice::default()));
    release.send(()).unwrap();
    rt.block_on(low.done());
    assert_eq!(told.try_iter().collect::<Vec<_>>(), [4, 3]);
}

#[test]
fn cycles_of_loans_and_loans_of_the_dead_are_harmless() {
    let rt = runtime();
    let s = start(&rt, 2, ONE);
    let tasks: Vec<_> = (1..=3).map(|i| s.add(&own(i), spin())).collect();
    let weak = Arc::downgrade(&tasks[0].0);
    let mut loans: Vec<_> = (0..3).map(|i| tasks[i].lend_to(&tasks[(i + 1) % 3])).collect();
    loans.push(tasks[0].lend_to(&tasks[0]));
    let seen: Vec<u64> = tasks.iter().map(TaskHandle::slices).collect();
    until(|| tasks.iter().zip(&seen).all(|(t, seen)| t.slices() > seen + 100));
    tasks[2].set_nice(Nice::MIN);
    assert!(tasks.iter().all(|t| t.effective_nice() == Nice::MIN));
    rt.block_on(tasks[2].kill());
    assert!(tasks[..2].iter().all(|t| t.effective_nice() == Nice::default()));
    assert_eq!(tasks[0].inherits_from(), None);
    drop(loans);
    assert_eq!(tasks[1].inherits_from(), None);
    for task in &tasks {
        rt.block_on(task.kill());
    }
    drop((tasks, s));
    assert!(weak.upgrade().is_none());
}

/// Loans come and go between tasks that run, block, stop and die; everybody must still get there.
#[test]
fn no_task_is_lost_under_random_loans() {
    let seed = seed();
    let mut rng = StdRng::seed_from_u64(seed);
    let rt = runtime();
    let s = start(&rt, 2, ONE);
    let goal = Arc::new(AtomicBool::new(false));
    let tasks: Vec<_> = (0..24)
        .map(|i| {
            let goal = Arc::clone(&goal);
            s.add(&TaskSpec { tree: i % 5, ..in_group(i, &format!("g{}", i % 3)) }, async move {
                while !goal.load(Ordering::Relaxed) {
                    interval().await;
                    if i % 4 == 0 {
                        tokio::task::yield_now().await;
                    }
                }
            })
        })
        .collect();
    let mut loans = VecDeque::new();
    for _ in 0..20_000 {
        let (a, b) = (&tasks[rng.random_range(0..24)], &tasks[rng.random_range(0..24)]);
        match rng.random_range(0..40) {
            0 => a.stop(),
            1..4 => a.cont(),
            4 => a.set_nice(Nice::new(rng.random_range(-20..=19)).unwrap()),
            5 => a.charge(rng.random_range(0..100_000)),
            _ => loans.push_back(a.lend_to(b)),
        }
        if loans.len() > 12 {
            loans.pop_front();
        }
    }
    drop(loans);
    goal.store(true, Ordering::Relaxed);
    tasks.iter().for_each(TaskHandle::cont);
    for task in &tasks {
        assert_eq!(rt.block_on(task.done()), End::Finished);
        assert_eq!(task.inherits_from(), None);
    }
}
