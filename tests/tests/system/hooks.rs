//! Hooks as components that are dropped into a directory: what they are shown, what they can do, and what becomes of
//! those that misbehave.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex};

use agent_os_kernel::capability::Rights;
use agent_os_kernel::config::Config;
use agent_os_kernel::hook::{Hook, HookEvent, Phase, Subscription, Verdict, subject};
use agent_os_kernel::kernel::{Kernel, SpawnRequest};
use agent_os_kernel::process::{Exit, Pid};
use agent_os_kernel::quota::ResourceQuota;
use agent_os_kernel::storage::{Durability, Store};
use serde_json::{Value, json};

use super::support::*;

/// A world with the guests, where a hook that does not end is stopped soon.
fn world(guests: &[&str]) -> World {
    let world = World::new();
    guests.iter().for_each(|guest| world.install(guest));
    world.configure("[limits]\nfuel = 300_000_000\nwall_ms = 4_000\n");
    world
}

/// Writes the manifest beside an installed guest.
fn manifest(world: &World, name: &str, toml: &str) {
    std::fs::write(world.plugins().join(format!("{name}.toml")), toml).unwrap();
}

/// Calls the tool that gives its arguments back.
fn echo(world: &World, said: &str) -> Ran {
    world.run(&["--json", "tool", "call", "probe__echo", &json!({ "a": said }).to_string()])
}

async fn kernel(world: &World) -> Kernel {
    let config = Config::load(&world.data().join("aok.toml"), false).unwrap();
    Kernel::builder(world.data()).plugin_dir(world.plugins()).config(config).start().await.unwrap()
}

async fn ended(kernel: &Kernel, request: SpawnRequest) -> (Pid, Exit) {
    let (pid, _events) = kernel.spawn(request).await.unwrap();
    (pid, tokio::time::timeout(PATIENCE, kernel.wait(pid)).await.expect("it ends").unwrap())
}

/// A model with a window that two dozen pages do not fit into.
fn small_model(world: &World) -> ModelServer {
    let script = world.script(&vec![json!({ "text": "hello" }); 4]);
    let server = ModelServer::start(Path::new(script.trim_start_matches("script/")), "stepper");
    world.configure(&server.config(8192));
    server
}

/// Appends `count` pages of over a thousand tokens each.
fn pages(count: usize) -> Vec<Value> {
    let page = |n: usize| {
        let text: String = (0..120).map(|i| format!("page {n} line {i}: the quick brown fox\n")).collect();
        json!({ "op": "append", "kind": "user", "text": text })
    };
    (0..count).map(page).collect()
}

fn stepper(world: &World, operations: &Value) -> SpawnRequest {
    let replies = vec![json!({ "text": "hello" }); 4];
    SpawnRequest {
        agent: "stepper".into(),
        task: operations.to_string(),
        model: Some(world.script(&replies)),
        quota: ResourceQuota { fuel: u64::MAX / 4, ..ResourceQuota::STANDARD },
        ..SpawnRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_active_point_fires_and_each_subject_fits_its_schema() {
    let world = world(&[STEPPER, PROBE, WATCHER]);
    let _server = small_model(&world);
    let kernel = kernel(&world).await;
    let seen: Arc<Mutex<Vec<(Hook, Value)>>> = Arc::default();
    for point in Hook::ALL {
        let seen = Arc::clone(&seen);
        let at = Subscription { phase: Phase::Telemetry, ..Subscription::at(point) };
        kernel.register_hook_at(at, "all", move |event: &HookEvent| {
            seen.lock().unwrap().push((event.point, event.subject.clone()));
            Verdict::Allow
        });
    }
    let call = |name: &str, arguments: Value| json!({ "op": "call", "name": name, "arguments": arguments });
    let mut operations = pages(24);
    operations.extend([json!({ "op": "step" }), json!({ "op": "read", "id": 4 })]);
    operations.extend([call("probe__echo", json!({ "a": 1 })), call("probe__nothing", json!({}))]);
    let request = SpawnRequest { model: Some("fake/m".to_owned()), ..stepper(&world, &json!(operations)) };
    let (pid, exit) = ended(&kernel, request).await;
    assert!(matches!(exit, Exit::Success(_)), "{exit:?}");
    let (killed, _events) = kernel.spawn(stepper(&world, &json!([{ "op": "sleep", "ms": 600_000 }]))).await.unwrap();
    kernel.kill(killed, "enough").await.unwrap();
    let news = json!([{ "peers": "publish", "topic": "news", "body": "hello" }]);
    ended(&kernel, stepper(&world, &news)).await;
    let quota = ResourceQuota { tool_calls: 1, ..ResourceQuota::STANDARD };
    let twice = json!([call("probe__echo", json!({})), call("probe__echo", json!({}))]);
    let (_, exit) = ended(&kernel, SpawnRequest { quota, ..stepper(&world, &twice) }).await;
    assert!(matches!(exit, Exit::OverQuota(_)), "{exit:?}");
    kernel.register_hook(Hook::BeforeToolCall, "careful", |event: &HookEvent| match event.agent.as_str() {
        "stepper" => Verdict::Ask("sure?".to_owned()),
        _ => Verdict::Allow,
    });
    let (asking, _events) = kernel.spawn(stepper(&world, &json!([call("probe__echo", json!({}))]))).await.unwrap();
    let asked = async || kernel.approvals().await.unwrap().pop();
    let approval = loop {
        if let Some(approval) = asked().await {
            break approval;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    };
    kernel.decide(approval.id, true, false).await.unwrap();
    let exit = tokio::time::timeout(PATIENCE, kernel.wait(asking)).await.expect("it ends").unwrap();
    assert!(matches!(exit, Exit::Success(_)), "{exit:?}");
    std::fs::write(world.plugins().join("broken.wasm"), "no component").unwrap();
    eventually("a refused plugin", || {
        kernel.plugins().iter().any(|p| p.name == "broken" && p.diagnosis.is_some()).then_some(())
    });
    std::fs::remove_file(world.plugins().join("probe.wasm")).unwrap();
    eventually("a plugin that is gone", || (!kernel.plugins().iter().any(|p| p.name == "probe")).then_some(()));
    let told = || seen.lock().unwrap().iter().map(|(point, _)| *point).collect::<HashSet<_>>();
    eventually("the news of it", || told().contains(&Hook::OnPluginUnload).then_some(()));
    let mut lines = kernel.logs(pid, 0).await.unwrap();
    // The task of the first is larger than a hook's log may be.
    lines.extend(kernel.logs(killed, 0).await.unwrap());
    let starts = kernel.hooks().into_iter().find(|h| h.point == "ON_KERNEL_START" && h.plugin == "watcher").unwrap();
    assert_eq!(starts.calls, 1, "{starts:?}");
    kernel.shutdown().await;

    for (point, subject) in seen.lock().unwrap().iter() {
        subject::check(*point, subject).unwrap_or_else(|why| panic!("{point}: {why}: {subject}"));
    }
    // It began before anybody could be told: the component above was.
    let not_here = [Hook::OnKernelStart];
    let missing: Vec<Hook> =
        Hook::ALL.into_iter().filter(|p| p.is_active() && !not_here.contains(p) && !told().contains(p)).collect();
    assert!(missing.is_empty(), "{missing:?} never fired");
    assert!(told().iter().all(|p| p.is_active()), "{:?}", told());
    let seen = seen.lock().unwrap().clone();
    let approvals: Vec<_> =
        seen.iter().filter(|(point, _)| *point == Hook::OnApproval).map(|(_, s)| &s["state"]).collect();
    assert_eq!(approvals, ["asked", "approved"]);

    // The component was shown the same, as JSON.
    let mut by_component = BTreeMap::new();
    for line in lines.iter().filter(|l| l.source == "watcher") {
        let (point, subject) = line.message.split_once(' ').unwrap();
        let point = Hook::from_name(point).unwrap();
        let subject: Value = serde_json::from_str(subject).unwrap();
        subject::check(point, &subject).unwrap_or_else(|why| panic!("{point}: {why}: {subject}"));
        by_component.insert(point.name(), subject);
    }
    for point in ["AFTER_AGENT_SPAWN", "BEFORE_TOOL_CALL", "AFTER_TOOL_CALL", "AFTER_LLM_CALL", "ON_AGENT_EXIT"] {
        assert!(by_component.contains_key(point), "{point}: {:?}", by_component.keys());
    }
    assert_eq!(by_component["BEFORE_TOOL_CALL"]["decision"]["verdict"], "allow");
}

#[test]
fn a_dropped_component_refuses_a_spawn_and_withholds_a_result() {
    let world = world(&[STEPPER, PROBE, MEDDLER]);
    let script = world.script(&[json!({ "text": "hello" })]);
    let run = |task: &str| world.run(&["--json", "run", "stepper", "--task", task, "--model", &script]);
    run("meddle:deny").refused(3, "denied", &["meddler", "meddler says no"]);
    assert!(world.run(&["--json", "ps"]).exits(0).lines().is_empty(), "what was refused is no process");
    run(r#"[{"op":"pid"}]"#).exits(0);
    // At one point alone, where the result is what it sees.
    manifest(&world, "meddler", "[hook]\npoints = [\"AFTER_TOOL_CALL\"]\nmatch = \"probe__*\"\n");
    let withheld = echo(&world, "meddle:deny").exits(3);
    let error = &withheld.lines()[0]["error"];
    assert_eq!(error["code"], "denied");
    assert!(error["message"].as_str().unwrap().contains("`meddler` withheld the result"), "{error}");
    let calls = world.run(&["--json", "audit", "tail", "-n", "100"]).exits(0).lines();
    let call = calls.iter().find(|r| r["event"] == "call").unwrap();
    assert_eq!((&call["decision"], &call["by"]), (&json!("withhold"), &json!("meddler")));
    let other = world.run(&["--json", "tool", "call", "calc__eval", r#"{"expression":"1 + 1"}"#]);
    assert_eq!(other.exits(0).lines()[0]["result"]["value"], 2);
    let listed = world.run(&["--json", "hook", "ls"]).exits(0).lines();
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!(
        (&listed[0]["point"], &listed[0]["matcher"], &listed[0]["state"], &listed[0]["trusted"]),
        (&json!("AFTER_TOOL_CALL"), &json!("probe__*"), &json!("active"), &json!(false))
    );
}

#[test]
fn a_component_that_is_not_trusted_cannot_rewrite() {
    let world = world(&[PROBE, MEDDLER]);
    let refused = echo(&world, "meddle:rewrite").exits(3);
    let message = refused.lines()[0]["error"]["message"].to_string();
    assert!(message.contains("aok plugin trust meddler"), "{message}");
}

#[test]
fn a_trusted_component_rewrites_what_comes_and_what_came_until_it_is_another() {
    let world = world(&[STEPPER, PROBE, MEDDLER]);
    world.run(&["plugin", "trust", "meddler"]).exits(0);
    let listed = world.run(&["--json", "hook", "ls"]).exits(0).lines();
    assert!(listed.iter().all(|h| h["trusted"] == true), "{listed:?}");
    // What comes: the guest of the tool sees what the hook wrote.
    assert_eq!(echo(&world, "x meddle:rewrite").exits(0).lines()[0]["result"], json!({ "a": "x meddled" }));
    let calls = world.run(&["--json", "audit", "tail", "-n", "100"]).exits(0).lines();
    let call = calls.iter().find(|r| r["event"] == "call").unwrap();
    assert_eq!((&call["decision"], &call["by"]), (&json!("rewrite"), &json!("meddler")));
    let invalid = echo(&world, "meddle:rewrite-invalid").exits(3);
    let message = invalid.lines()[0]["error"]["message"].to_string();
    assert!(message.contains("does not fit BEFORE_TOOL_CALL"), "{message}");
    // A spawn, from the component as it lies in the directory.
    let script = world.script(&[json!({ "text": "hello" })]);
    let task = json!([{ "op": "log", "message": "meddle:rewrite" }]).to_string();
    let ran = world.run(&["--json", "run", "stepper", "--task", &task, "--model", &script]).exits(0);
    let pid = ran.lines()[0]["pid"].to_string();
    assert!(ran.lines()[0]["task"].as_str().unwrap().contains("meddled"), "{}", ran.stdout);
    assert!(world.run(&["logs", &pid]).exits(0).stdout.contains("meddled"));
    // What came.
    manifest(&world, "meddler", "[hook]\npoints = [\"AFTER_TOOL_CALL\"]\n");
    assert_eq!(echo(&world, "y meddle:rewrite").exits(0).lines()[0]["result"], json!({ "a": "y meddled" }));
    // Another component in its place is not trusted, nor is this one any more when the trust is taken back.
    world.run(&["plugin", "revoke", "meddler", "trust"]).exits(0);
    let refused = echo(&world, "meddle:rewrite").exits(3);
    assert!(refused.lines()[0]["error"]["message"].to_string().contains("aok plugin trust meddler"));
}

/// Each way to misbehave, and words of what the caller is told.
const MISBEHAVIOURS: [(&str, &str); 9] = [
    ("loop", "fuel: it used up its"),
    ("trap", "it trapped"),
    ("recurse", "stack: it recursed"),
    ("memory", "memory: it needs"),
    ("flood", "log: it logged"),
    ("host-loop", "host-calls: it made more than 1000"),
    ("big", "output"),
    ("rewrite-invalid", "aok plugin trust"),
    ("rewrite-nojson", "no JSON"),
];

#[test]
fn whatever_a_gate_does_it_refuses_and_the_others_go_on() {
    let world = world(&[PROBE, MEDDLER]);
    manifest(&world, "meddler", "[hook]\npoints = [\"BEFORE_TOOL_CALL\"]\n");
    for (word, says) in MISBEHAVIOURS {
        let ran = echo(&world, &format!("meddle:{word}")).exits(3);
        let message = ran.lines()[0]["error"]["message"].to_string();
        assert!(message.contains("`meddler` refused it: it failed") && message.contains(says), "{word}: {message}");
        echo(&world, "fine").exits(0);
    }
    // One that waits for ever meets its deadline.
    let ran = echo(&world, "meddle:sleep").exits(3);
    let message = ran.lines()[0]["error"]["message"].to_string();
    assert!(message.contains("wall: it ran longer than its `wall` limit of 2000 ms"), "{message}");
    for word in ["files", "env"] {
        let ran = echo(&world, &format!("meddle:{word}")).exits(3);
        let message = ran.lines()[0]["error"]["message"].to_string();
        assert!(message.contains("[]"), "a hook has neither files nor variables: {message}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_that_fails_three_times_in_a_row_is_barred_until_it_is_replaced() {
    let world = world(&[PROBE, MEDDLER]);
    manifest(&world, "meddler", "[hook]\npoints = [\"BEFORE_TOOL_CALL\"]\n");
    let kernel = kernel(&world).await;
    let echo = async |said: &str| {
        let arguments = json!({ "a": said }).to_string();
        let report = kernel.call_tool("probe__echo", &arguments, Rights::default()).await.unwrap();
        report.outcome.map_err(|e| e.message)
    };
    for _ in 0..2 {
        echo("meddle:trap").await.unwrap_err();
    }
    echo("fine").await.unwrap();
    for _ in 0..3 {
        let why = echo("meddle:trap").await.unwrap_err();
        assert!(why.contains("it failed"), "{why}");
    }
    let why = echo("fine").await.unwrap_err();
    assert!(why.contains("`meddler` refused it: it is barred (3 failures in a row"), "{why}");
    let hook = kernel.hooks().remove(0);
    assert_eq!((hook.state.as_str(), hook.failures), ("barred", 5), "{hook:?}");
    assert!(hook.reason.is_some_and(|why| why.contains("BEFORE_TOOL_CALL") && why.contains("trapped")));
    let audited = async || {
        let records = kernel.audit_tail(Some(Pid::KERNEL), 100).await.unwrap();
        records.into_iter().any(|r| r.event == "hook-barred" && r.object.starts_with("meddler"))
    };
    while !audited().await {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    // Another manifest is another load.
    manifest(&world, "meddler", "[hook]\npoints = [\"BEFORE_TOOL_CALL\"]\npriority = 3\n");
    eventually("the hook anew", || kernel.hooks().iter().any(|h| h.priority == 3 && h.state == "active").then_some(()));
    echo("fine").await.unwrap();
    kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hooks_state_counts_each_event_however_many_come_at_once() {
    const CALLS: usize = 40;
    let world = world(&[PROBE, MEDDLER]);
    manifest(&world, "meddler", "[hook]\npoints = [\"BEFORE_TOOL_CALL\"]\n");
    let kernel = kernel(&world).await;
    let call = || kernel.call_tool("probe__echo", r#"{"a":"meddle:count"}"#, Rights::default());
    let outcomes = futures_util::future::join_all((0..CALLS).map(|_| call())).await;
    let passed = outcomes.into_iter().filter(|o| o.as_ref().is_ok_and(|report| report.outcome.is_ok())).count();
    let hook = kernel.hooks().remove(0);
    assert!(passed > 0 && hook.state == "active", "{hook:?}");
    kernel.shutdown().await;
    let store =
        Store::open(&format!("sqlite:{}", world.data().join("aok.db").display()), Durability::Process).await.unwrap();
    let entry = store.state("plugin:meddler", "count").await.unwrap().expect("it counted");
    assert_eq!(String::from_utf8(entry.value).unwrap(), passed.to_string(), "of {CALLS}");
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_process_pays_for_its_hooks() {
    let operations = json!([
        { "op": "call", "name": "probe__echo", "arguments": { "a": "meddle:log" } }, { "op": "pid" },
    ]);
    let fuel = async |guests: &[&str]| {
        let world = world(guests);
        if guests.contains(&MEDDLER) {
            manifest(&world, "meddler", "[hook]\npoints = [\"BEFORE_TOOL_CALL\", \"AFTER_TOOL_CALL\"]\n");
        }
        let kernel = kernel(&world).await;
        let (pid, exit) = ended(&kernel, stepper(&world, &operations)).await;
        assert!(matches!(exit, Exit::Success(_)), "{exit:?}");
        let process = kernel.ps().await.unwrap().into_iter().find(|p| p.pid == pid.0).unwrap();
        let lines = kernel.logs(pid, 0).await.unwrap();
        kernel.shutdown().await;
        (process.fuel, lines.into_iter().filter(|l| l.source == "meddler").count())
    };
    let (without, _) = fuel(&[STEPPER, PROBE]).await;
    let (with, lines) = fuel(&[STEPPER, PROBE, MEDDLER]).await;
    assert_eq!(lines, 2, "once before, once after");
    assert!(with > without + 10_000, "{with} is not more than {without}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_whose_leaving_is_denied_stays_in_the_window() {
    let world = world(&[STEPPER]);
    let _server = small_model(&world);
    let kernel = kernel(&world).await;
    kernel.register_hook(Hook::BeforePageOut, "keep", |event: &HookEvent| match event.subject["page"].as_u64() {
        Some(4) => Verdict::Deny("it is needed".to_owned()),
        _ => Verdict::Allow,
    });
    kernel.register_hook(Hook::BeforePageIn, "shut", |event: &HookEvent| match event.subject["page"].as_u64() {
        Some(5) => Verdict::Deny("not now".to_owned()),
        _ => Verdict::Allow,
    });
    let mut operations = pages(24);
    operations.extend([
        json!({ "op": "generate" }),
        json!({ "op": "read", "id": 5 }),
        json!({ "op": "read", "id": 6 }),
    ]);
    let request = SpawnRequest { model: Some("fake/m".to_owned()), ..stepper(&world, &json!(operations)) };
    let (pid, exit) = ended(&kernel, request).await;
    let Exit::Success(said) = exit else { panic!("{exit:?}") };
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said[25]["error"]["code"], "denied");
    assert!(said[26].as_str().is_some_and(|text| text.starts_with("page 2 ")));
    let pages = kernel.context(pid).await.unwrap();
    let resident = |id: u64| pages.iter().find(|p| p.id == id).unwrap().resident;
    assert!(resident(4) && !resident(5), "{pages:?}");
    kernel.shutdown().await;
}

#[test]
fn what_is_wrong_with_a_hooks_manifest_is_said() {
    let world = world(&[MEDDLER]);
    for (toml, words) in [
        ("[hook]\npoints = [\"BEFORE_TOOLCALL\"]\n", ["`BEFORE_TOOLCALL`", "BEFORE_TOOL_CALL"]),
        ("[hook]\nphase = \"later\"\n", ["`later`", "telemetry"]),
        ("[hook]\nprio = 3\n", ["prio", "docs/plugins.md"]),
        ("stateful = true\n", ["`stateful`", "`state`"]),
        ("[limits]\nfuel = 0\n", ["`fuel` is zero", ""]),
        ("[tools.x]\neffect = \"pure\"\n", ["`x`", "no tools"]),
    ] {
        manifest(&world, "meddler", toml);
        let plugins = world.run(&["--json", "plugin", "ls"]).exits(0).lines();
        let meddler = plugins.iter().find(|p| p["name"] == "meddler").unwrap();
        let diagnosis = meddler["diagnosis"].to_string();
        assert!(meddler["state"] == "refused" && words.iter().all(|w| diagnosis.contains(w)), "{toml}: {meddler}");
    }
    std::fs::remove_file(world.plugins().join("meddler.toml")).unwrap();
    let plugins = world.run(&["--json", "plugin", "ls"]).exits(0).lines();
    let meddler = plugins.iter().find(|p| p["name"] == "meddler").unwrap();
    assert_eq!(
        (&meddler["state"], &meddler["kind"], meddler["hooks"].as_array().map(Vec::len)),
        (&json!("loaded"), &json!(["hook"]), Some(24))
    );
    // Points whose subsystem is not there yet.
    let listed = world.run(&["--json", "hook", "ls"]).exits(0).lines();
    let state = |point: &str| listed.iter().find(|h| h["point"] == point).unwrap()["state"].clone();
    assert_eq!((state("BEFORE_CHECKPOINT"), state("ON_ERROR")), (json!("inactive"), json!("active")));
    let schema = world.run(&["hook", "schema", "before-tool-call"]).exits(0);
    let schema: Value = serde_json::from_str(&schema.stdout).unwrap();
    assert_eq!(schema["properties"]["name"]["type"], "string");
    world.run(&["--json", "hook", "schema", "before-lunch"]).refused(2, "bad_usage", &["before-lunch", "hook points"]);
}

#[test]
fn a_hook_sees_what_its_manifest_asks_for_and_its_operator_grants() {
    let world = world(&[PROBE, MEDDLER]);
    std::fs::write(world.work().join("a.txt"), "a").unwrap();
    let points = "[hook]\npoints = [\"BEFORE_TOOL_CALL\"]\n";
    manifest(&world, "meddler", &format!("{points}[permissions]\nread = [\"*\"]\n"));
    let seen = || {
        let ran = echo(&world, "meddle:files").exits(3);
        ran.lines()[0]["error"]["message"].as_str().unwrap().to_owned()
    };
    assert!(seen().contains("directories: []"), "{}", seen());
    let read = format!("read={}", world.work().display());
    world.run(&["plugin", "grant", "meddler", &read]).exits(0);
    assert!(seen().contains("work: ") && seen().contains("a.txt Ok("), "{}", seen());
    world.run(&["plugin", "revoke", "meddler"]).exits(0);
    assert!(seen().contains("directories: []"), "{}", seen());
    // Granted and not asked for is nothing either.
    world.run(&["plugin", "grant", "meddler", &read]).exits(0);
    manifest(&world, "meddler", points);
    assert!(seen().contains("directories: []"), "{}", seen());
}

#[test]
fn the_examples_inside_aok_do_what_they_say() {
    let world = world(&[PROBE]);
    std::fs::write(world.work().join("a.txt"), "a").unwrap();
    let work = format!("{}:rw", world.work().display());
    let call = |tool: &str, arguments: Value| {
        world.run(&["--json", "tool", "call", tool, &arguments.to_string(), "--dir", &work])
    };
    let denied = |ran: Ran, by: &str, words: &str| {
        let message = ran.exits(3).lines()[0]["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains(&format!("`{by}`")) && message.contains(words), "{message}");
    };
    let add = |name: &str| world.run(&["plugin", "add", "--example", name]).exits(0);
    let remove = |name: &str| world.run(&["plugin", "rm", name]).exits(0);
    let write = || call("fs__write", json!({ "path": "work/b.txt", "content": "b" }));
    let append = || call("fs__append", json!({ "path": "work/a.txt", "content": "b" }));

    add("tidy-paths");
    denied(call("fs__read", json!({ "path": "work/sub/../a.txt" })), "tidy-paths", "..");
    call("fs__read", json!({ "path": "work/a.txt" })).exits(0);
    remove("tidy-paths");

    add("read-only");
    denied(write(), "read-only", "idempotent");
    call("fs__read", json!({ "path": "work/a.txt" })).exits(0);
    remove("read-only");

    add("ask-first");
    write().exits(0);
    denied(append(), "ask-first", "aok approve 1 --always");
    world.run(&["approve", "1", "--always"]).exits(0);
    append().exits(0);
    remove("ask-first");

    add("mask-secrets");
    let key = "sk-abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKL";
    denied(echo(&world, key), "mask-secrets", "aok plugin trust mask-secrets");
    world.run(&["plugin", "trust", "mask-secrets"]).exits(0);
    let masked = echo(&world, &format!("the key is {key}, keep it")).exits(0);
    assert_eq!(masked.lines()[0]["result"], json!({ "a": "the key is [masked], keep it" }));
    remove("mask-secrets");

    add("tally");
    write().exits(0);
    let pids = world.run(&["--json", "ps"]).exits(0).lines();
    let last = pids.iter().map(|p| p["pid"].as_u64().unwrap()).max().unwrap().to_string();
    let lines = world.run(&["--json", "logs", &last]).exits(0).lines();
    let told = lines.iter().find(|l| l["source"] == "tally").unwrap_or_else(|| panic!("{lines:?}"));
    assert!(told["message"].as_str().unwrap().contains("fs__write"), "{told}");
}

#[test]
fn a_gate_that_denies_everything_is_named_and_can_be_taken_out() {
    let world = world(&[STEPPER, PROBE, MEDDLER]);
    let script = world.script(&[json!({ "text": "hello" })]);
    // Every event of this run has the word in it.
    let task = json!([{ "op": "call", "name": "probe__echo", "arguments": { "a": "meddle:deny" } }]).to_string();
    let run = || world.run(&["--json", "run", "stepper", "--task", &task, "--model", &script]);
    run().refused(3, "denied", &["meddler"]);
    world.run(&["--json", "plugin", "ls"]).exits(0);
    std::fs::remove_file(world.plugins().join("meddler.wasm")).unwrap();
    run().exits(0);
}
