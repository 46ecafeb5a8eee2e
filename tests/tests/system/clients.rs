//! A live kernel and its clients: who does the work, who stops whose processes, what a broken one leaves.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};

use super::contract::*;
use super::support::*;

#[test]
fn a_second_run_is_a_client_of_the_first() {
    let world = World::new();
    let first = world.waiting();
    let second = world.run(&["run", "--task", "x", "--model", &world.answers("quick")]).exits(0);
    assert_eq!(second.stdout, "quick\n");
    let lock = fs::read_to_string(world.data().join("lock")).unwrap();
    assert_eq!(lock.trim(), first.id().to_string());
    let ps = world.run(&["ps", "--json"]).exits(0).lines();
    assert_eq!((&ps[0]["state"], &ps[1]["state"]), (&json!("S"), &json!("Z")));
}

#[test]
fn commands_that_start_at_the_same_moment_share_one_kernel() {
    let world = World::new();
    let model = world.answers("quick");
    let run = ["run", "--task", "x", "--model", &model, "--json"];
    let call = ["tool", "call", "calc__eval", r#"{"expression":"1"}"#, "--json"];
    let all: Vec<Running> = (0..6).map(|i| world.start(if i % 2 == 0 { &run[..] } else { &call })).collect();
    for one in all {
        one.end().exits(0);
    }
    let ps = world.run(&["ps", "--json"]).exits(0).lines();
    let pids: BTreeSet<u64> = ps.iter().map(|p| p["pid"].as_u64().unwrap()).collect();
    assert!(ps.len() == 6 && pids.len() == 6 && ps.iter().all(|p| p["exit"]["status"] == "success"), "{ps:?}");
    world.run(&["audit", "verify"]).exits(0);
}

#[test]
fn a_process_runs_on_when_its_client_is_killed() {
    let world = World::new();
    let owner = world.waiting();
    let client = world.waiting();
    client.signal("KILL");
    client.end();
    let ps = world.run(&["ps", "--json"]).exits(0).lines();
    assert_eq!((&ps[1]["pid"], &ps[1]["state"]), (&json!(2), &json!("S")));
    owner.signal("INT");
    owner.end().exits(130);
    world.slow(0);
    assert_eq!(world.run(&["run", "--resume", "2"]).exits(0).stdout, "It is 42.\n");
}

#[test]
fn ctrl_c_of_the_owner_stops_the_processes_of_its_clients_resumable() {
    let world = World::new();
    let owner = world.waiting();
    let client = world.waiting();
    owner.signal("INT");
    owner.end().exits(130);
    let error = client.end().exits(5).error();
    assert_eq!((&error["code"], &error["hint"]), (&json!("stopped"), &json!("resume with: aok run --resume 2")));
    world.slow(0);
    for pid in ["1", "2"] {
        assert_eq!(world.run(&["run", "--resume", pid]).exits(0).stdout, "It is 42.\n");
    }
    world.run(&["audit", "verify"]).exits(0);
}

#[test]
fn a_client_of_a_kernel_that_is_killed_says_how_to_go_on() {
    let world = World::new();
    let owner = world.waiting();
    let client = world.waiting();
    owner.signal("KILL");
    owner.end();
    let error = client.end().exits(5).error();
    assert_eq!((&error["code"], &error["hint"]), (&json!("kernel_gone"), &json!("resume with: aok run --resume 2")));
    world.slow(0);
    assert_eq!(world.run(&["run", "--resume", "2"]).exits(0).stdout, "It is 42.\n");
}

#[test]
fn an_owner_that_is_done_serves_until_its_clients_processes_end() {
    let world = World::new();
    world.install(STEPPER);
    let model = world.script(&[]);
    let nap = json!([{"op": "sleep", "ms": 1_500}, {"op": "pid"}]).to_string();
    let mut owner = world.start(&["run", "stepper", "--task", &nap, "--model", &model, "--json"]);
    owner.event("spawned");
    let client = world.waiting();
    eventually("the owner's process to end", || {
        let ps = world.run(&["ps", "--json"]).exits(0).lines();
        (ps[0]["state"] == "Z").then_some(())
    });
    assert!(world.data().join("aok.sock").exists());
    client.signal("INT");
    client.end().exits(130);
    let ended = owner.end().exits(0);
    assert_eq!(ended.lines().pop().unwrap()["answer"], "[null,1]");
    assert!(!world.data().join("aok.sock").exists());
}

#[test]
fn beside_a_run_every_other_command_is_its_client() {
    use std::os::unix::fs::PermissionsExt as _;
    let world = World::new();
    world.install(STEPPER);
    let model = world.slow(600_000);
    let mut live = world.start(&["run", "--task", "wait", "--model", &model, "--json"]);
    live.event("tool_end");
    let process = eventually("the process to wait for its model", || {
        let ps = world.run(&["ps", "--json"]).exits(0).lines();
        has_exactly(&ps[0], PS);
        (ps[0]["state"] == "S").then(|| ps[0].clone())
    });
    assert_eq!(process["waiting_on"], format!("model {model}"), "{process}");
    assert_eq!((&process["exit"], &process["tool_calls"]), (&Value::Null, &json!(1)));
    assert!(process["pages_resident"].as_u64().unwrap() >= 3, "{process}");
    let mode = fs::metadata(world.data().join("aok.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    for (command, fields) in [
        (&["tool", "ls"][..], TOOL),
        (&["tool", "show", "fs__read"], TOOL),
        (&["plugin", "ls"], PLUGIN),
        (&["agent", "ls"], "name plugin digest source"),
        (&["context", "1"], PAGE),
        (&["audit", "tail"], AUDIT),
        (&["audit", "verify"], "ok records"),
        (&["metrics"], "prometheus"),
    ] {
        let lines = world.run(&[command, &["--json"]].concat()).exits(0).lines();
        assert!(!lines.is_empty(), "{command:?} gave nothing");
        lines.iter().for_each(|line| has(line, fields));
    }
    let metrics = world.run(&["metrics"]).exits(0).stdout;
    assert!(metrics.contains("aok_active_agents 1\n") && metrics.contains("aok_storage_health 1\n"), "{metrics}");
    world.run(&["logs", "1"]).exits(0);
    // What acts is done by the live kernel, whose process ids go on.
    let report = world.run(&["tool", "call", "calc__eval", r#"{"expression":"2*3"}"#, "--json"]).exits(0).lines();
    assert_eq!((&report[0]["pid"], &report[0]["result"]["value"]), (&json!(2), &json!(6)));
    let task = json!([{"op": "pid"}]).to_string();
    assert_eq!(world.run(&["run", "stepper", "--task", &task, "--model", &model]).exits(0).stdout, "[3]\n");
    let busy = world.run(&["run", "--resume", "1", "--json"]).exits(2).error();
    assert_eq!(busy["code"], "bad_state");
    // An option that the live kernel was not started with cannot be honoured.
    let other = tempfile::tempdir().unwrap();
    let error = world.run(&["ps", "--plugins", other.path().to_str().unwrap(), "--json"]).exits(2).error();
    assert!(error["message"].as_str().unwrap().contains("--plugins"), "{error}");

    live.signal("INT");
    live.end().exits(130);
    assert!(!world.data().join("aok.sock").exists());
}

#[test]
fn ctrl_c_stops_a_run_and_resume_finishes_it() {
    for signal in ["INT", "TERM"] {
        let world = World::new();
        let model = world.slow(600_000);
        let mut live = world.start(&["run", "--task", "wait", "--model", &model, "--json"]);
        live.event("tool_end");
        live.signal(signal);
        let ran = live.end().exits(if signal == "INT" { 130 } else { 143 });
        let error = ran.error();
        assert_eq!(
            (&error["code"], &error["hint"]),
            (&json!("interrupted"), &json!("resume with: aok run --resume 1"))
        );
        assert!(ran.lines().iter().all(|e| e["type"] != "exit"), "{}", ran.stdout);
        let ps = world.run(&["ps", "--json"]).exits(0).lines();
        assert_eq!((&ps[0]["state"], &ps[0]["exit"]), (&json!("T"), &Value::Null));

        world.slow(0);
        let resumed = world.run(&["run", "--resume", "1", "--json"]).exits(0).lines();
        assert!(resumed.iter().all(|e| e["type"] != "tool_start"), "a call was made twice: {resumed:?}");
        assert_eq!(resumed.last().unwrap()["answer"], "It is 42.");
        let ps = world.run(&["ps", "--json"]).exits(0).lines();
        assert_eq!((&ps[0]["tool_calls"], &ps[0]["exit"]["status"]), (&json!(1), &json!("success")));
        world.run(&["audit", "verify"]).exits(0);
    }
}

#[test]
fn ctrl_c_of_a_client_stops_its_own_process_only() {
    let world = World::new();
    let model = world.slow(600_000);
    let start = || {
        let mut run = world.start(&["run", "--task", "wait", "--model", &model, "--json"]);
        run.event("tool_end");
        run
    };
    let owner = start();
    let client = start();
    client.signal("INT");
    let ran = client.end().exits(130);
    assert_eq!(ran.error()["hint"], "resume with: aok run --resume 2");
    let ps = world.run(&["ps", "--json"]).exits(0).lines();
    assert_eq!((&ps[0]["state"], &ps[1]["state"]), (&json!("S"), &json!("T")));
    owner.signal("INT");
    owner.end().exits(130);
}

#[test]
fn logs_follow_a_process_to_its_end() {
    let world = World::new();
    world.install(STEPPER);
    let task = json!([{"op": "log", "message": "first"}, {"op": "sleep", "ms": 700}, {"op": "log", "message": "last"}]);
    let model = world.script(&[]);
    let mut live = world.start(&["run", "stepper", "--task", &task.to_string(), "--model", &model, "--json"]);
    live.event("spawned");
    let followed = world.run(&["logs", "1", "--follow", "--json"]).exits(0).lines();
    let messages: Vec<&str> = followed.iter().map(|l| l["message"].as_str().unwrap()).collect();
    assert_eq!(messages, ["first", "last"]);
    live.end().exits(0);
}

/// Sends bytes to the live kernel and reads what it answers until it hangs up; `whole` says that they
/// are a request, so that the kernel is the one to hang up.
fn send(world: &World, bytes: &[u8], whole: bool) -> String {
    let mut stream = UnixStream::connect(world.data().join("aok.sock")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(bytes).unwrap();
    if !whole {
        stream.shutdown(std::net::Shutdown::Write).unwrap();
    }
    let mut answer = String::new();
    // A connection that is reset has been refused too.
    let _ = stream.read_to_string(&mut answer);
    answer
}

#[test]
fn bad_requests_on_the_socket_are_refused_by_name_and_the_kernel_lives_on() {
    let world = World::new();
    let live = world.waiting();
    let post = |name: &str, headers: &str, body: &str| {
        let head = format!("POST /v1/{name} HTTP/1.1\r\nhost: aok\r\nconnection: close\r\n{headers}");
        send(&world, format!("{head}content-length: {}\r\n\r\n{body}", body.len()).as_bytes(), true)
    };
    const PROTOCOL: &str = "aok-protocol: 2\r\n";
    for (name, headers, body, code) in [
        ("ps", PROTOCOL, "{", "invalid_json"),
        ("ps", PROTOCOL, "{\"verbose\":true}", "bad_usage"),
        ("frobnicate", PROTOCOL, "{}", "bad_usage"),
        ("ps", "", "{}", "bad_protocol"),
        ("ps", "aok-protocol: 9\r\n", "{}", "bad_protocol"),
        ("run", PROTOCOL, "{\"task\":\"x\",\"tusk\":1}", "bad_usage"),
        ("run", PROTOCOL, "{\"task\":\" \",\"model\":\"script/SLOW\"}", "invalid_arguments"),
        ("run", PROTOCOL, "{\"task\":\"x\",\"nice\":99,\"model\":\"script/SLOW\"}", "invalid_arguments"),
        ("run", PROTOCOL, "{\"task\":\"x\",\"model\":\"nothing\"}", "unknown_model"),
        ("logs", PROTOCOL, "{\"pid\":-1}", "bad_usage"),
        ("logs", PROTOCOL, "{\"pid\":77}", "unknown_process"),
        ("kill", PROTOCOL, "{\"pid\":77,\"reason\":\"no\"}", "unknown_process"),
        ("suspend", PROTOCOL, "{\"pid\":77}", "unknown_process"),
        ("tool-call", PROTOCOL, "{\"name\":\"nothing\",\"arguments\":\"{}\"}", "unknown_tool"),
    ] {
        let slow = world.dir.path().join("slow.jsonl");
        let answer = post(name, headers, &body.replace("SLOW", slow.to_str().unwrap()));
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{name} {body}: {answer:?}"));
        assert!(head.starts_with("HTTP/1.1 4"), "{name} {body}: {head}");
        let refused: Value = serde_json::from_str(body).unwrap_or_else(|e| panic!("{name}: {e}: {body}"));
        assert_eq!(refused["error"]["code"], code, "{name} {body}");
        assert!(refused["exit"].is_u64() && refused["error"]["hint"] != "", "{refused}");
    }
    for noise in
        [&b"\0\xff\x16\x03\x01 hello"[..], b"GET", b"", b"POST /v1/ps HTTP/1.1\r\ncontent-length: 99999999999\r\n\r\n"]
    {
        let answer = send(&world, noise, false);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{noise:?}: {answer}");
    }
    // Nothing of it was begun, and the kernel serves on.
    let ps = world.run(&["ps", "--json"]).exits(0).lines();
    assert_eq!((ps.len(), &ps[0]["state"]), (1, &json!("S")));
    live.signal("INT");
    live.end().exits(130);
}
