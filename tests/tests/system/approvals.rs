//! What a hook asks a person: asked at the terminal, or written down until somebody answers, across a killed kernel.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::support::*;

/// A world in which a hook asks about each call of a tool whose arguments say so.
fn world() -> World {
    let world = World::new();
    [STEPPER, PROBE, MEDDLER].iter().for_each(|guest| world.install(guest));
    let manifest = "[hook]\npoints = [\"BEFORE_TOOL_CALL\"]\n";
    std::fs::write(world.plugins().join("meddler.toml"), manifest).unwrap();
    world
}

fn call(said: &str) -> Value {
    json!({ "op": "call", "name": "probe__counter", "arguments": { "name": said } })
}

/// Starts an agent that makes one call that is asked about, and another that is not.
fn start(world: &World, options: &[&str]) -> Ran {
    let script = world.script(&[json!({ "text": "hello" })]);
    let task = json!([call("meddle:ask"), call("n")]).to_string();
    world.run(&[&["--json", "run", "stepper", "--task", &task, "--model", &script], options].concat())
}

fn answer(ran: &Ran) -> Value {
    let events = ran.lines();
    serde_json::from_str(events.last().unwrap()["answer"].as_str().unwrap()).unwrap()
}

fn state(world: &World, pid: u64) -> Value {
    let processes = world.run(&["--json", "ps"]).exits(0).lines();
    let process = processes.into_iter().find(|p| p["pid"] == pid).unwrap();
    json!([process["state"], process["waiting_on"]])
}

#[test]
fn without_a_terminal_the_process_waits_until_somebody_answers() {
    let world = world();
    let ran = start(&world, &[]);
    let events = ran.lines();
    let ask = events.iter().find(|e| e["type"] == "ask").unwrap();
    assert_eq!((&ask["approval"], &ask["reason"]), (&json!(1), &json!("meddler asks")));
    ran.refused(3, "needs_approval", &["aok approve 1", "aok run --resume 1", "meddler asks"]);
    assert_eq!(state(&world, 1), json!(["A", "approval 1"]), "it waits in the store");
    let asked = world.run(&["--json", "approvals"]).exits(0).lines();
    assert_eq!(asked.len(), 1);
    assert_eq!(
        (&asked[0]["hook"], &asked[0]["object"], &asked[0]["state"]),
        (&json!("meddler"), &json!("probe__counter"), &json!("pending"))
    );
    // Still nobody: it asks the same question again, and no second one.
    world.run(&["--json", "run", "--resume", "1"]).refused(3, "needs_approval", &["aok approve 1"]);
    world.run(&["--json", "approve", "7"]).refused(2, "unknown_approval", &["7", "waiting for an answer: 1"]);
    let told = world.run(&["approve", "1"]).exits(0);
    assert!(
        told.stdout.contains("approved: call probe__counter of process 1") && told.stdout.contains("--resume 1"),
        "{}",
        told.stdout
    );
    for command in ["approve", "deny"] {
        world.run(&["--json", command, "1"]).refused(2, "answered", &["approved"]);
    }
    let ran = world.run(&["--json", "run", "--resume", "1"]).exits(0);
    assert_eq!(answer(&ran), json!([1, 1]));
    assert!(world.run(&["--json", "approvals"]).exits(0).lines().is_empty());
    let all = world.run(&["--json", "approvals", "--all"]).exits(0).lines();
    assert_eq!((all.len(), &all[0]["state"], &all[0]["always"]), (1, &json!("approved"), &json!(false)));
    // Who asked, who decided, and on whose word the call was made.
    let audit = world.run(&["--json", "audit", "tail", "-n", "100"]).exits(0).lines();
    let of = |event: &str| {
        audit
            .iter()
            .filter(|r| r["event"] == event)
            .map(|r| json!([r["pid"], r["decision"], r["by"]]))
            .collect::<Vec<_>>()
    };
    assert_eq!(of("ask"), [json!([1, "ask", "meddler"])]);
    assert_eq!(of("approve"), [json!([0, "allow", "person"])]);
    assert_eq!(of("call"), [json!([1, "allow", "person"]), json!([1, "allow", "policy"])]);
    world.run(&["audit", "verify"]).exits(0);
    // It has ended now.
    world.run(&["--json", "run", "--resume", "1"]).refused(2, "bad_state", &["has ended"]);
}

#[test]
fn a_refusal_is_an_error_to_the_agent_which_goes_on() {
    let world = world();
    start(&world, &[]).exits(3);
    world.run(&["deny", "1"]).exits(0);
    let ran = world.run(&["--json", "run", "--resume", "1"]).exits(0);
    let said = answer(&ran);
    assert_eq!((&said[0]["error"]["code"], &said[1]), (&json!("denied"), &json!(1)));
    assert!(said[0]["error"]["message"].as_str().unwrap().contains("a person refused it"), "{said}");
}

#[test]
fn yes_says_yes_to_everything() {
    let world = world();
    let ran = start(&world, &["--yes"]).exits(0);
    assert_eq!(answer(&ran), json!([1, 1]));
    // Also for a process that was started without.
    start(&world, &[]).exits(3);
    let ran = world.run(&["--json", "run", "--resume", "2", "--yes"]).exits(0);
    assert_eq!(answer(&ran), json!([2, 2]));
}

#[test]
fn always_answers_what_is_asked_later() {
    let world = world();
    start(&world, &[]).exits(3);
    world.run(&["approve", "1", "--always"]).exits(0);
    let ran = start(&world, &[]).exits(0);
    assert_eq!(answer(&ran), json!([1, 1]), "the same question of another process is answered");
    // A client outside is another agent, and has nobody who could wait.
    let echo = || world.run(&["--json", "tool", "call", "probe__echo", r#"{"a":"meddle:ask"}"#]);
    let refused = echo().exits(3);
    let message = refused.lines()[0]["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("aok approve 2 --always"), "{message}");
    world.run(&["--json", "approve", "2"]).refused(2, "bad_state", &["has ended", "--always"]);
    world.run(&["approve", "2", "--always"]).exits(0);
    echo().exits(0);
    // The last word holds.
    start(&world, &["--yes"]).exits(0);
    let listed = world.run(&["--json", "approvals", "--all"]).exits(0).lines();
    assert!(listed.iter().all(|a| a["state"] == "approved" && a["always"] == true), "{listed:?}");
}

#[test]
fn a_question_outlives_a_killed_kernel() {
    let world = world();
    let script = world.script(&[json!({ "text": "hello" })]);
    let task = json!([call("meddle:ask"), call("n")]).to_string();
    // A program that embeds the kernel waits; `aok run` does too where it has a terminal.
    let aok = aok_binary();
    let mut shell = Command::new("script");
    let inner = format!(
        "{} --data {} --plugins {} run stepper --task '{task}' --model {script}",
        aok.display(),
        world.data().display(),
        world.plugins().display()
    );
    shell.args(["-qefc", &inner, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = shell.spawn().expect("script is installed");
    eventually("the process to wait", || {
        let processes = world.run(&["--json", "ps"]).exits(0).lines();
        processes.iter().any(|p| p["state"] == "A").then_some(())
    });
    let holder = std::fs::read_to_string(world.data().join("lock")).unwrap();
    let holder = holder.split_whitespace().next().unwrap().to_owned();
    assert!(Command::new("kill").args(["-9", &holder]).status().unwrap().success());
    let _ = child.wait();
    assert_eq!(state(&world, 1), json!(["A", "approval 1"]));
    world.run(&["approve", "1"]).exits(0);
    let ran = world.run(&["--json", "run", "--resume", "1"]).exits(0);
    assert_eq!(answer(&ran), json!([1, 1]));
}

#[test]
fn at_a_terminal_the_person_is_asked_there() {
    for (typed, first) in [("what?\ny\n", json!(1)), ("n\n", Value::Null)] {
        let world = world();
        let script = world.script(&[json!({ "text": "hello" })]);
        let task = json!([call("meddle:ask")]).to_string();
        let inner = format!(
            "{} --data {} --plugins {} run stepper --task '{task}' --model {script}",
            aok_binary().display(),
            world.data().display(),
            world.plugins().display()
        );
        let mut shell = Command::new("script");
        shell.args(["-qefc", &inner, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = shell.spawn().expect("script is installed");
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), typed.as_bytes()).unwrap();
        let ran = Ran::of(child.wait_with_output().unwrap()).exits(0);
        assert!(ran.stdout.contains("approval 1: meddler asks") && ran.stdout.contains("[a]lways"), "{}", ran.stdout);
        // Answer and progress share the terminal.
        let said = ran.stdout.lines().rev().find_map(|line| {
            let shown = line.trim().rsplit("\u{1b}[2K").next().unwrap_or_default();
            serde_json::from_str::<Value>(shown).ok()
        });
        let last = said.unwrap_or_else(|| panic!("no answer in {:?}", ran.stdout));
        match first {
            Value::Null => assert_eq!(last[0]["error"]["code"], "denied"),
            first => assert_eq!(last[0], first),
        }
    }
}

#[test]
fn a_spawn_that_a_hook_asks_about_needs_a_yes() {
    let world = World::new();
    [STEPPER, MEDDLER].iter().for_each(|guest| world.install(guest));
    let script = world.script(&[json!({ "text": "hello" })]);
    let run = |options: &[&str]| {
        let task = json!([{ "op": "pid" }, { "op": "log", "message": "meddle:ask" }]).to_string();
        world.run(&[&["--json", "run", "stepper", "--task", &task, "--model", &script], options].concat())
    };
    run(&[]).refused(3, "needs_approval", &["meddler asks", "--yes"]);
    assert!(world.run(&["--json", "ps"]).exits(0).lines().is_empty());
    run(&["--yes"]).exits(0);
}
