//! A kernel that stays: `serve`, and what its clients do to its processes.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::support::*;

/// A world with a kernel in service.
fn serving(world: &World) -> Running {
    let server = world.start(&["serve"]);
    eventually("the socket", || world.data().join("aok.sock").exists().then_some(()));
    server
}

fn spawn(world: &World, model: &str, more: &[&str]) -> String {
    let ran = world.run(&[&["spawn", "--task", "x", "--model", model], more].concat()).exits(0);
    ran.stdout.trim().to_owned()
}

fn line(world: &World, pid: &str) -> Value {
    let lines = world.run(&["ps", "--json"]).exits(0).lines();
    lines.into_iter().find(|p| p["pid"] == pid.parse::<u64>().unwrap()).expect("it is listed")
}

fn is(world: &World, pid: &str, state: &str) {
    eventually(&format!("process {pid} in state {state}"), || (line(world, pid)["state"] == state).then_some(()));
}

#[test]
fn processes_of_a_server_are_spawned_watched_and_waited_for() {
    let world = World::new();
    let server = serving(&world);
    let quick = world.answers("quick");
    let pid = spawn(&world, &quick, &["--name", "one", "--group", "team"]);
    assert_eq!(pid, "1");
    assert_eq!(world.run(&["wait", &pid]).exits(0).stdout, "quick\n");
    let told = world.run(&["wait", &pid, "--json"]).exits(0).lines().remove(0);
    assert_eq!((&told["type"], &told["status"], &told["answer"]), (&json!("exit"), &json!("success"), &json!("quick")));
    assert_eq!((&line(&world, &pid)["group"], &line(&world, &pid)["name"]), (&json!("team"), &json!("one")));
    let json = world.run(&["spawn", "--task", "x", "--model", &quick, "--json"]).exits(0).lines().remove(0);
    assert_eq!(json, json!({ "pid": 2 }));

    let slow = spawn(&world, &world.slow(600_000), &[]);
    is(&world, &slow, "S");
    let mut attached = world.start(&["attach", &slow, "--json"]);
    std::thread::sleep(std::time::Duration::from_millis(300));
    attached.signal("INT");
    attached.end().exits(0);
    is(&world, &slow, "S");
    attached = world.start(&["attach", &slow]);
    std::thread::sleep(std::time::Duration::from_millis(300));
    world.run(&["kill", "-KILL", &slow]).exits(0);
    attached.end().exits(1);
    world.run(&["wait", &slow, "--json"]).refused(1, "killed", &["somebody sent KILL"]);
    world.run(&["attach", &slow, "--json"]).refused(2, "bad_state", &["not running"]);
    server.signal("TERM");
    server.end().exits(0);
    assert!(!world.data().join("aok.sock").exists());
}

#[test]
fn signals_and_nice_values_from_outside() {
    let world = World::new();
    let server = serving(&world);
    let slow = world.slow(600_000);
    let (a, b) = (spawn(&world, &slow, &[]), spawn(&world, &slow, &["--nice", "3"]));
    world.run(&["kill", "-STOP", &a, &b]).exits(0);
    is(&world, &a, "T");
    world.run(&["kill", "-CONT", &a]).exits(0);
    is(&world, &a, "S");
    world.run(&["nice", "-5", &a]).exits(0);
    assert_eq!((&line(&world, &a)["nice"], &line(&world, &a)["effective_nice"]), (&json!(-5), &json!(-5)));
    // The polite end is told, and comes at once where the agent waits.
    world.run(&["kill", "--grace", "60s", &a]).exits(0);
    is(&world, &a, "Z");
    for (args, code, words) in [
        (&["kill", "-HUP", "1"][..], "bad_usage", &["HUP", "CONT"][..]),
        (&["kill", "-9"], "bad_usage", &["PID"]),
        (&["kill", "x"], "bad_usage", &["x"]),
        (&["nice", "20", "1"], "bad_usage", &["20"]),
    ] {
        world.run(&[args, &["--json"]].concat()).refused(2, code, words);
    }
    world.run(&["kill", "-9", "77", "--json"]).refused(2, "unknown_process", &["77"]);
    world.run(&["kill", "-9", &a, "--json"]).refused(2, "bad_state", &["has ended"]);
    // It stays stopped over a restart; the others go on.
    let c = spawn(&world, &slow, &[]);
    is(&world, &c, "S");
    server.signal("INT");
    server.end().exits(0);
    let server = serving(&world);
    is(&world, &c, "S");
    is(&world, &b, "T");
    assert_eq!(line(&world, &b)["nice"], 3);
    server.signal("INT");
    server.end().exits(0);
}

#[test]
fn without_a_server_clients_say_so() {
    let world = World::new();
    let model = world.answers("quick");
    world.run(&["spawn", "--task", "x", "--model", &model, "--json"]).refused(
        5,
        "read_only",
        &["no kernel runs", "aok serve"],
    );
    world.run(&["attach", "1", "--json"]).refused(5, "read_only", &["no kernel runs"]);
    // What a killed server leaves is ended without one.
    let server = serving(&world);
    let slow = spawn(&world, &world.slow(600_000), &[]);
    is(&world, &slow, "S");
    server.signal("KILL");
    server.end();
    world.run(&["kill", "-KILL", &slow]).exits(0);
    assert_eq!(line(&world, &slow)["exit"]["status"], "killed");
    world.run(&["audit", "verify"]).exits(0);
}

#[test]
fn top_writes_snapshots() {
    let world = World::new();
    let server = serving(&world);
    let slow = spawn(&world, &world.slow(600_000), &["--name", "slowpoke"]);
    is(&world, &slow, "S");
    let shots = world.run(&["top", "--json", "-n", "2", "-d", "0.2"]).exits(0).lines();
    assert_eq!(shots.len(), 2);
    let processes = shots[1]["processes"].as_array().unwrap();
    assert!(processes.len() == 1 && processes[0]["name"] == "slowpoke", "{}", shots[1]);
    assert!(processes[0]["cpu_percent"].is_number(), "{}", shots[1]);
    let text = world.run(&["top", "--batch", "-n", "1", "-d", "0.2"]).exits(0).stdout;
    assert!(text.contains("slowpoke") && text.contains("model script/"), "{text}");
    let told = world.run(&["top"]).exits(2).stderr;
    assert!(told.contains("terminal") && told.contains("--batch"), "{told}");
    server.signal("INT");
    server.end().exits(0);
    let columns: BTreeSet<&str> = ["pid", "state", "waiting_on"].into();
    assert!(columns.iter().all(|c| processes[0].get(c).is_some()));
}
