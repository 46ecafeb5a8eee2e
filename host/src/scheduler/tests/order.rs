//! Order, preemption, slices and accounts on real workers.

use super::*;

#[test]
fn who_was_charged_waits_for_those_who_were_not() {
    let rt = runtime();
    let s = start(&rt, 1, ONE);
    let release = hold(&s);
    let (tell, told) = mpsc::channel();
    let tasks: Vec<_> = (1..=3).map(|i| tells(&s, &in_group(i, &format!("g{i}")), &tell)).collect();
    // Far apart in virtual time, so that the placing of wakes does not matter.
    tasks[0].charge(300_000_000);
    tasks[1].charge(100_000_000);
    release.send(()).unwrap();
    for task in &tasks {
        assert_eq!(rt.block_on(task.done()), End::Finished);
    }
    assert_eq!(told.try_iter().collect::<Vec<_>>(), [3, 2, 1]);
    assert_eq!((tasks[0].charged_ns(), tasks[2].charged_ns()), (300_000_000, 0));
}

#[test]
fn a_wake_makes_a_spinner_give_way() {
    let rt = runtime();
    let s = start(&rt, 1, LONG);
    let (go, gate) = oneshot::channel::<()>();
    let sleeper = s.add(&own(1), async { gate.await.unwrap() });
    until(|| sleeper.state() == TaskState::Blocked);
    // Its slice is an hour: only a wake can end it.
    let spinner = s.add(&own(2), spin());
    until(|| spinner.cpu_ns() > 20_000_000);
    assert_eq!(spinner.slices(), 1);
    go.send(()).unwrap();
    assert_eq!(rt.block_on(sleeper.done()), End::Finished);
    assert_eq!(s.load().wake_to_run.count(), 1);
    until(|| spinner.slices() == 2);
}

#[test]
fn round_robin_does_not_preempt() {
    let rt = runtime();
    let s = start_with(&rt, 1, LONG, PolicyKind::RoundRobin);
    let (go, gate) = oneshot::channel::<()>();
    let sleeper = s.add(&own(1), async { gate.await.unwrap() });
    until(|| sleeper.state() == TaskState::Blocked);
    let spinner = s.add(&own(2), spin());
    until(|| spinner.cpu_ns() > 1_000_000);
    go.send(()).unwrap();
    let cpu = spinner.cpu_ns();
    until(|| spinner.cpu_ns() > cpu + 20_000_000);
    assert_eq!((spinner.slices(), sleeper.state()), (1, TaskState::Runnable));
    assert_eq!((PolicyKind::named("fair"), PolicyKind::named("fifo")), (Some(PolicyKind::Fair), None));
    assert_eq!(PolicyKind::named("round-robin"), Some(PolicyKind::RoundRobin));
}

#[test]
fn the_slice_follows_the_number_of_runnable_tasks() {
    let rt = runtime();
    let s = Scheduler::start(Settings::new(1), rt.handle().clone()).unwrap();
    let first = s.add(&own(1), spin());
    until(|| first.cpu_ns() > 1_000_000);
    assert_eq!(s.load().slice_ns, [5_000_000]);
    let more: Vec<_> = (2..=4).map(|i| s.add(&own(i), spin())).collect();
    until(|| s.load().slice_ns == [2_500_000]);
    let many: Vec<_> = (5..=104).map(|i| s.add(&own(i), spin())).collect();
    until(|| s.load().slice_ns == [200_000]);
    for task in more.iter().chain(&many) {
        rt.block_on(task.kill());
    }
    until(|| s.load().slice_ns == [5_000_000]);
}

#[test]
fn the_load_lists_groups_and_drops_them_with_their_last_task() {
    let rt = runtime();
    let s = start(&rt, 2, ONE);
    s.set_group_weight("b", 2048);
    let (a, b) = (s.add(&in_group(1, "a"), spin()), s.add(&in_group(2, "b"), pending()));
    until(|| a.cpu_ns() > 2_000_000 && b.state() == TaskState::Blocked);
    b.charge(7);
    let groups = s.load().groups;
    assert_eq!(groups.iter().map(|g| &*g.name).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!((groups[0].weight, groups[0].tasks, groups[0].runnable, groups[0].charged_ns), (1024, 1, 1, 0));
    assert_eq!((groups[1].weight, groups[1].tasks, groups[1].runnable, groups[1].charged_ns), (2048, 1, 0, 7));
    assert!(groups[0].cpu_ns >= 1_000_000 && groups[0].cpu_ns <= a.cpu_ns());
    rt.block_on(a.kill());
    rt.block_on(b.kill());
    assert!(s.load().groups.is_empty());
}
