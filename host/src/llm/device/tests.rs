//! The queue in virtual time, and what only futures can show.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::poll;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::expected::Expected;
use super::policy::{Fifo, by_name};
use super::*;

fn ticket(program: u64) -> Ticket {
    Ticket { pid: program, program, agent: "a".into(), standing: Standing::default(), prompt_tokens: 100 }
}

fn standing(group: &str, group_weight: u32, nice: i8) -> Standing {
    Standing { group: group.into(), group_weight, nice }
}

fn fifo(slots: usize) -> Queue {
    Queue::new(slots, Box::new(Fifo), Limits::default())
}

impl Queue {
    /// Joins now.
    fn join(&mut self, ticket: Ticket, now: f64) -> u64 {
        self.push(ticket, now, now)
    }

    /// Everything that gets a slot now.
    fn granted(&mut self, now: f64) -> Vec<u64> {
        std::iter::from_fn(|| match self.next(now) {
            Next::Grant(id) => Some(id),
            _ => None,
        })
        .collect()
    }

    /// The order in which those that wait go, each for a second.
    fn order(&mut self, mut now: f64) -> Vec<u64> {
        let mut order = Vec::new();
        while let [id, ..] = self.granted(now)[..] {
            now += 1.0;
            self.release(id, now, true);
            order.push(id);
        }
        order
    }
}

#[test]
fn no_slot_is_lost_and_never_is_one_too_many_whatever_happens() {
    for seed in 0..60 {
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let slots = rng.random_range(1..6);
        let name = policy::NAMES[rng.random_range(0..policy::NAMES.len())];
        let limits = Limits { requests: seed.is_multiple_of(2).then_some(600), tokens: Some(100_000) };
        let mut queue = Queue::new(slots, by_name(name).unwrap(), limits);
        let (mut waiting, mut running) = (BTreeSet::new(), BTreeSet::new());
        let mut now = 0.0;
        for _ in 0..2000 {
            now += rng.random::<f64>() * 0.1;
            let program = rng.random_range(0..20);
            let any = |of: &BTreeSet<u64>, rng: &mut StdRng| of.iter().min_by_key(|_| rng.random::<u32>()).copied();
            match rng.random_range(0..10) {
                0..=3 => {
                    let group = standing(["a", "b", "c"][rng.random_range(0..3)], 1024, rng.random_range(-20..20));
                    waiting.insert(queue.join(Ticket { standing: group, ..ticket(program) }, now));
                }
                4..=5 => {
                    if let Some(id) = any(&running, &mut rng) {
                        running.remove(&id);
                        match rng.random_range(0..3) {
                            0 => queue.return_unused(id, now),
                            n => queue.release(id, now, n == 1),
                        }
                    }
                }
                6 => {
                    if let Some(id) = any(&waiting, &mut rng) {
                        waiting.remove(&id);
                        queue.cancel(id);
                    }
                }
                7 => queue.raise(program, rng.random::<bool>().then(|| standing("d", 2048, -5)).as_ref()),
                8 => queue.finished(program),
                _ if rng.random_range(0..10) == 0 => queue.pause_until(now + rng.random::<f64>()),
                _ => queue.cancel(u64::MAX),
            }
            for id in queue.granted(now) {
                assert!(waiting.remove(&id) && running.insert(id));
            }
            assert!(running.len() <= slots);
            assert_eq!((queue.running(), queue.waiting()), (running.len(), waiting.len()));
        }
        for id in running {
            queue.release(id, now, true);
        }
        // Who is left gets a slot, one after the other, when pause and minute allow.
        while !waiting.is_empty() {
            match queue.next(now) {
                Next::Grant(id) => {
                    assert!(waiting.remove(&id));
                    queue.release(id, now, true);
                }
                Next::At(_, at) => now = at,
                Next::Nothing => panic!("{} wait for ever", waiting.len()),
            }
        }
        assert_eq!((queue.running(), queue.waiting()), (0, 0));
    }
}

#[test]
fn one_group_alone_goes_by_its_policy_and_nice() {
    let mut queue = fifo(1);
    let ids: Vec<u64> = (0..5).map(|n| queue.join(ticket(n), n as f64)).collect();
    assert_eq!(queue.order(10.0), ids);
    let nice = |nice| Ticket { standing: standing("default", 1024, nice), ..ticket(9) };
    let [last, middle, first] = [19, 0, -20].map(|n| queue.join(nice(n), 20.0));
    assert_eq!(queue.order(30.0), [first, middle, last]);
    // The wait is weighed, and so nobody waits for ever.
    let old = queue.join(nice(5), 100.0);
    let new = queue.join(nice(0), 180.0);
    assert_eq!(queue.order(190.0), [old, new]);
}

#[test]
fn groups_share_by_weight_and_what_was_not_used_is_mostly_gone() {
    let mut queue = fifo(1);
    let join = |queue: &mut Queue, group: &str, weight, now| {
        queue.join(Ticket { standing: standing(group, weight, 0), ..ticket(1) }, now)
    };
    let light: BTreeSet<u64> = (0..400).map(|_| join(&mut queue, "light", 1024, 0.0)).collect();
    (0..400).for_each(|_| assert!(join(&mut queue, "heavy", 3072, 0.0) > 0));
    let mut now = 0.0;
    let mut went = Vec::new();
    for _ in 0..400 {
        let [id] = queue.granted(now)[..] else { panic!("one slot") };
        now += 1.0;
        queue.release(id, now, true);
        went.push(light.contains(&id));
    }
    let of_light = went.iter().filter(|l| **l).count();
    assert!((98..=102).contains(&of_light), "{of_light} of 400");
    // A group that comes back after a long time is before the others for a moment only.
    let idle = join(&mut queue, "idle", 1024, now);
    assert_eq!(queue.granted(now), [idle]);
    queue.release(idle, now + 1.0, true);
    now += 500.0;
    for id in queue.granted(now) {
        queue.release(id, now, true);
    }
    let back: BTreeSet<u64> = (0..200).map(|_| join(&mut queue, "idle", 1024, now)).collect();
    let order = queue.order(now);
    let before = order.iter().take_while(|id| back.contains(id)).count();
    assert!(before <= 11, "{before} calls in a row");
}

#[test]
fn a_raised_call_goes_as_the_one_that_waits_for_it_and_falls_back_afterwards() {
    let mut queue = fifo(1);
    let busy = queue.join(ticket(1), 0.0);
    assert_eq!(queue.granted(0.0), [busy]);
    let of = |pid, to: &Standing| Ticket { pid, standing: to.clone(), ..ticket(pid) };
    let (low, usual, high) = (standing("g", 1024, 19), standing("g", 1024, 0), standing("g", 1024, -10));
    let held = queue.join(of(2, &low), 1.0);
    let between: Vec<u64> = (0..3).map(|n| queue.join(of(10 + n, &usual), 1.0)).collect();
    queue.raise(2, Some(&high));
    queue.release(busy, 2.0, true);
    assert_eq!(queue.granted(2.0), [held], "it is as urgent as who waits for it");
    queue.release(held, 3.0, true);
    // A lower one does not lower it, and without one it is as before.
    let other = queue.join(of(3, &usual), 1.0);
    queue.raise(3, Some(&low));
    let again = queue.join(of(2, &low), 1.0);
    queue.raise(2, Some(&high));
    queue.raise(2, None);
    assert_eq!(queue.order(3.0), [between, vec![other, again]].concat());
}

#[test]
fn a_raised_call_is_on_the_account_of_the_group_that_waits_for_it() {
    let mut queue = fifo(1);
    let of = |program, group: &str| Ticket { standing: standing(group, 1024, 0), ..ticket(program) };
    let first = queue.join(of(1, "busy"), 0.0);
    assert_eq!(queue.granted(0.0), [first]);
    let flood: Vec<u64> = (0..50).map(|_| queue.join(of(1, "busy"), 0.0)).collect();
    let held = queue.join(Ticket { pid: 7, ..of(1, "busy") }, 0.0);
    queue.raise(7, Some(&standing("idle", 1024, 0)));
    queue.release(first, 30.0, true);
    assert_eq!(queue.order(30.0)[..2], [held, flood[0]]);
}

#[test]
fn the_minute_holds_at_the_head_and_takes_no_slot() {
    let limits = Limits { requests: Some(6), tokens: None };
    let mut queue = Queue::new(4, Box::new(Fifo), limits);
    let ids: Vec<u64> = (0..3).map(|n| queue.join(ticket(n), 0.0)).collect();
    let mut went = Vec::new();
    let mut now = 0.0;
    while went.len() < 3 {
        match queue.next(now) {
            Next::Grant(id) => {
                queue.release(id, now, true);
                went.push((id, now.round() as u32));
            }
            Next::At(id, at) => {
                assert_eq!((id, queue.running()), (ids[went.len()], 0));
                now = at;
            }
            Next::Nothing => panic!("it lost one"),
        }
    }
    assert_eq!(went, [(ids[0], 0), (ids[1], 10), (ids[2], 20)]);
    // A small prompt does not pass a large one that waits for its tokens.
    let mut queue = Queue::new(4, Box::new(Fifo), Limits { requests: None, tokens: Some(600) });
    let prompt = |prompt_tokens| Ticket { prompt_tokens, ..ticket(1) };
    let [first, large, small] = [600, 500, 1].map(|tokens| queue.join(prompt(tokens), 0.0));
    assert_eq!(queue.granted(0.0), [first]);
    let Next::At(id, at) = queue.next(0.0) else { panic!("no tokens are left") };
    assert!(id == large && (at - 50.0).abs() < 0.01, "{at}");
    queue.cancel(large);
    assert_eq!(queue.granted(1.0), [small]);
}

#[test]
fn a_pause_stops_everybody_until_its_end() {
    let mut queue = fifo(2);
    let [a, b] = [1, 2].map(|n| queue.join(ticket(n), 0.0));
    assert_eq!(queue.granted(0.0), [a, b]);
    let c = queue.join(ticket(3), 0.0);
    queue.pause_until(50.0);
    queue.pause_until(20.0);
    queue.release(a, 1.0, true);
    assert_eq!((queue.next(1.0), queue.running()), (Next::At(c, 50.0), 1));
    assert_eq!(queue.next(50.0), Next::Grant(c));
}

#[test]
fn nobody_starves_however_many_come_that_are_shorter() {
    for (name, starves) in [("expected", false), ("fifo", false), ("attained-service", true)] {
        let mut policy = by_name(name).unwrap();
        let course = |calls: usize| (1..=calls).map(|n| n as f32).collect::<Vec<_>>();
        for n in 0..200 {
            let (agent, calls) = if n % 2 == 0 { ("long", 60) } else { ("short", 1) };
            let program = policy::Program {
                id: n,
                agent: agent.into(),
                arrived: 0.0,
                served: calls as f64,
                waited: 1.0,
                turns: 1,
                course: course(calls),
            };
            policy.finished(&program);
        }
        let mut queue = Queue::new(1, policy, Limits::default());
        let mut now = 0.0;
        let long = queue.join(Ticket { agent: "long".into(), ..ticket(0) }, now);
        // It has had a call already; from then on a new program of one call comes each second.
        assert_eq!(queue.granted(now), [long]);
        queue.release(long, 1.0, true);
        let long = queue.join(Ticket { agent: "long".into(), ..ticket(0) }, 1.0);
        let mut waited = None;
        for program in 1..5000 {
            now = f64::from(program);
            let program = u64::try_from(program).unwrap();
            queue.join(Ticket { agent: "short".into(), ..ticket(program) }, now);
            for id in queue.granted(now) {
                if id == long {
                    waited = waited.or(Some(now));
                }
                queue.release(id, now + 1.0, true);
                queue.finished(program);
            }
        }
        println!("{name}: after {waited:?} s");
        // Twenty seconds for each of the sixty that it has to go.
        assert_eq!(waited.is_none_or(|w| w > 20.0 * 60.0 + 60.0), starves, "{name}: {waited:?}");
    }
}

#[test]
fn a_tree_is_learned_from_once_its_last_call_is_over() {
    #[derive(Debug)]
    struct Told(Arc<Mutex<Vec<policy::Program>>>);
    impl Policy for Told {
        fn rank(&self, _: &policy::Call, program: &policy::Program) -> policy::Rank {
            policy::Rank::fixed(program.served)
        }
        fn finished(&mut self, program: &policy::Program) {
            self.0.lock().unwrap().push(program.clone());
        }
    }
    let told = Arc::new(Mutex::new(Vec::new()));
    let mut queue = Queue::new(2, Box::new(Told(Arc::clone(&told))), Limits::default());
    let [a, b, c] =
        ["root", "child", "child"].map(|agent| queue.push(Ticket { agent: agent.into(), ..ticket(4) }, 0.0, 1.0));
    assert_eq!(queue.granted(3.0), [a, b]);
    queue.release(a, 5.0, true);
    queue.finished(4);
    queue.cancel(c);
    assert!(told.lock().unwrap().is_empty());
    queue.release(b, 6.0, false);
    let told = told.lock().unwrap();
    let [program] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!((&*program.agent, program.arrived, program.waited), ("root", 0.0, 4.0));
    // The failed one is time that it had, and no call of its.
    assert_eq!((program.served, program.turns, program.course.as_slice()), (5.0, 2, [2.0].as_slice()));
    queue.finished(4);
}

#[test]
fn many_programs_that_nobody_ends_are_forgotten() {
    let mut queue = Queue::new(1, Box::new(Expected::default()), Limits::default());
    for program in 0..70_000 {
        let id = queue.join(ticket(program), program as f64);
        assert_eq!(queue.granted(program as f64), [id]);
        queue.release(id, program as f64, true);
    }
    assert!(queue.programs() < 66_000, "{}", queue.programs());
}

fn device(slots: usize) -> Device {
    Device::new(slots, Box::new(Fifo), Limits::default())
}

#[tokio::test]
async fn a_slot_that_its_call_never_saw_goes_to_the_next() {
    let device = device(1);
    let slot = device.acquire(ticket(1), Instant::now()).await;
    let mut second = Box::pin(device.acquire(ticket(2), Instant::now()));
    let mut third = pin!(device.acquire(ticket(3), Instant::now()));
    assert!(poll!(&mut second).is_pending() && poll!(&mut third).is_pending());
    slot.done();
    assert_eq!(device.load(), Load { running: 1, waiting: 1 });
    drop(second);
    let slot = third.await;
    assert_eq!(device.load(), Load { running: 1, waiting: 0 });
    slot.unused();
    assert_eq!(device.load(), Load { running: 0, waiting: 0 });
}

#[tokio::test]
async fn whoever_leaves_takes_neither_slot_nor_alarm_along() {
    let device = device(1);
    let began = Instant::now();
    device.pause_until(began + Duration::from_millis(60));
    let mut first = Box::pin(device.acquire(ticket(1), began));
    let mut second = pin!(device.acquire(ticket(2), began));
    assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
    // It is the one that was to wake up at the end of the pause.
    drop(first);
    drop(second.await);
    assert!(began.elapsed() >= Duration::from_millis(60), "{:?}", began.elapsed());
    assert_eq!(device.load(), Load { running: 0, waiting: 0 });
}

#[tokio::test]
async fn random_cancels_lose_nothing() {
    for seed in 0..8 {
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let device = device(3);
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let tasks: Vec<_> = (0..200)
            .map(|n| {
                let (device, running, most) = (device.clone(), Arc::clone(&running), Arc::clone(&most));
                let steps = rng.random_range(0..4);
                tokio::spawn(async move {
                    struct Runs(Arc<AtomicUsize>);
                    impl Drop for Runs {
                        fn drop(&mut self) {
                            self.0.fetch_sub(1, Ordering::SeqCst);
                        }
                    }
                    let slot = device.acquire(ticket(n), Instant::now()).await;
                    most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    let runs = Runs(running);
                    for _ in 0..steps {
                        tokio::task::yield_now().await;
                    }
                    drop(runs);
                    slot.done();
                })
            })
            .collect();
        for _ in 0..40 {
            tokio::task::yield_now().await;
            tasks[rng.random_range(0..tasks.len())].abort();
        }
        for task in tasks {
            let _ = task.await; // aborted or not
        }
        assert_eq!((device.load(), most.load(Ordering::SeqCst)), (Load { running: 0, waiting: 0 }, 3));
        // All three can be had at once.
        let all = [1, 2, 3].map(|n| device.acquire(ticket(n), Instant::now()));
        assert_eq!(futures_util::future::join_all(all).await.len(), 3);
    }
}

#[tokio::test]
async fn the_minute_lets_the_next_one_go_by_itself() {
    let device = Device::new(8, Box::new(Fifo), Limits { requests: Some(1200), tokens: None });
    let began = Instant::now();
    // 200 at once, then one in 50 ms.
    for n in 0..202 {
        device.acquire(ticket(n), Instant::now()).await.done();
    }
    assert!(began.elapsed() >= Duration::from_millis(80), "{:?}", began.elapsed());
}
