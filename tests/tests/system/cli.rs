//! The outside contract on the real binary: names, fields, order and exit codes that scripts rely on.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::contract::*;
use super::support::*;

const METRICS: [&str; 11] = [
    "aok_cpu_usage",
    "aok_memory_usage_bytes",
    "aok_context_hit_rate",
    "aok_swap_count_total",
    "aok_active_agents",
    "aok_tool_calls_per_second",
    "aok_gateway_latency_seconds",
    "aok_storage_health",
    "aok_scheduler_load",
    "aok_scheduler_wake_seconds",
    "aok_scheduler_queue_seconds",
];

/// A script of two tool calls and an answer, on a world with the file that they read.
fn two_calls(world: &World) -> String {
    fs::write(world.work().join("n.txt"), "40").unwrap();
    world.script(&[
        json!({"text": "I look. ", "tool_calls": [{"id": "a", "name": "fs__read", "arguments": {"path": "work/n.txt"}}],
               "usage": {"input": 100, "cached": 60, "output": 7}}),
        json!({"tool_calls": [{"id": "b", "name": "calc__eval", "arguments": {"expression": "{{a.text}}+2"}}], "expect": "40"}),
        json!({"text": "It is 42.", "expect": "42"}),
    ])
}

#[test]
fn run_prints_the_answer_alone_and_the_rest_on_stderr() {
    let world = World::new();
    let (model, work) = (two_calls(&world), world.work());
    let ran = world.run(&["run", "--task", "add", "--model", &model, "--dir", work.to_str().unwrap()]).exits(0);
    assert_eq!(ran.stdout, "It is 42.\n");
    assert!(ran.stderr.contains("→ fs__read") && ran.stderr.contains("← calc__eval"), "{}", ran.stderr);
    assert!(!ran.stderr.contains('\u{1b}'), "control sequences in a pipe: {}", ran.stderr);
}

#[test]
fn the_task_comes_from_standard_input_and_the_model_from_the_environment() {
    let world = World::new();
    let model = world.script(&[json!({"expect": "the task is here", "text": "seen"})]);
    let mut command = world.aok(&["run", "--task", "-"]);
    let mut child = command
        .env("AOK_MODEL", &model)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"the task is here\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"seen\n"[..]));
    // The configuration's default is the last resort.
    world.configure(&format!("[llm]\ndefault = \"{model}\"\n"));
    assert_eq!(world.run(&["run", "--task", "the task is here"]).exits(0).stdout, "seen\n");
}

#[test]
fn the_events_of_a_run_have_their_fields_and_their_order() {
    let world = World::new();
    let (model, work) = (two_calls(&world), world.work());
    let ran = world
        .run(&["run", "--task", "add", "--model", &model, "--dir", work.to_str().unwrap(), "--name", "adder", "--json"])
        .exits(0);
    let events = ran.lines();
    for event in &events {
        has(event, "type pid seq at_ms");
        assert_eq!(event["pid"], 1);
        assert!(event["at_ms"].as_u64().unwrap() > 1_600_000_000_000, "{event}");
        let fields = match event["type"].as_str().unwrap() {
            "spawned" => "agent model task",
            "state" => "state",
            "llm_start" => "model prompt_tokens",
            "text" => "delta",
            "llm_end" => "input cached output micro_usd finish",
            "tool_start" => "id name arguments",
            "tool_end" => "id name ok result duration_us",
            "page_out" | "page_in" => "page tokens",
            "exit" => "status answer usage",
            other => panic!("there is no event `{other}`"),
        };
        has(event, fields);
    }
    // Texts come in pieces, as many as the model likes.
    let mut order: Vec<&str> = events.iter().map(|e| e["type"].as_str().unwrap()).filter(|t| *t != "state").collect();
    order.dedup_by(|later, earlier| *later == "text" && later == earlier);
    let turn = ["llm_start", "text", "llm_end", "tool_start", "tool_end"];
    let silent = ["llm_start", "llm_end", "tool_start", "tool_end"];
    let expected = [&["spawned"][..], &turn, &silent, &["llm_start", "text", "llm_end", "exit"]].concat();
    assert_eq!(order, expected);
    let pieces = events.iter().filter(|e| e["type"] == "text").map(|e| e["delta"].as_str().unwrap());
    assert_eq!(pieces.collect::<String>(), "I look. It is 42.");

    let all = |kind: &str| events.iter().filter(|e| e["type"] == kind).cloned().collect::<Vec<_>>();
    let spawned = &all("spawned")[0];
    assert_eq!((&spawned["agent"], &spawned["task"]), (&json!("assistant"), &json!("add")));
    assert_eq!(spawned["model"], model);
    let first = &all("llm_end")[0];
    assert_eq!((&first["input"], &first["cached"], &first["output"]), (&json!(100), &json!(60), &json!(7)));
    assert_eq!((&first["micro_usd"], &first["finish"]), (&Value::Null, &json!("tool-calls")));
    let (start, end) = (&all("tool_start")[1], &all("tool_end")[1]);
    assert_eq!((&start["id"], &start["name"]), (&json!("b"), &json!("calc__eval")));
    assert_eq!(start["arguments"], json!({"expression": "40+2"}));
    assert_eq!((&end["id"], &end["ok"]), (&json!("b"), &json!(true)));
    assert_eq!(end["result"]["value"], 42, "{end}");
    let exit = &events.last().unwrap();
    assert_eq!((&exit["status"], &exit["answer"]), (&json!("success"), &json!("It is 42.")));
    assert_eq!((&exit["usage"]["tool_calls"], &exit["usage"]["micro_usd"]), (&json!(2), &Value::Null));
    assert!(exit["usage"]["fuel"].as_u64().unwrap() > 0);
    // Nothing else is on stderr.
    assert_eq!(ran.stderr, "");

    let ps = world.run(&["ps", "--json"]).exits(0).lines();
    assert_eq!(ps.len(), 1);
    has_exactly(&ps[0], PS);
    assert_eq!((&ps[0]["name"], &ps[0]["state"], &ps[0]["ppid"]), (&json!("adder"), &json!("Z"), &Value::Null));
    assert_eq!((&ps[0]["group"], &ps[0]["nice"]), (&json!("default"), &json!(0)));
    assert_eq!(ps[0]["exit"]["status"], "success");
}

#[test]
fn a_failed_call_and_a_failed_run_say_so_in_their_events() {
    let world = World::new();
    let model = world.script(&[
        json!({"tool_calls": [{"id": "a", "name": "fs__read", "arguments": {"path": "work/absent"}}]}),
        json!({"error": {"status": 422}}),
    ]);
    let work = world.work();
    let run = ["run", "--task", "x", "--model", &model, "--dir", work.to_str().unwrap(), "--max-tokens", "100000"];
    let ran = world.run(&[&run[..], &["--json"]].concat()).exits(1);
    let events = ran.lines();
    let end = events.iter().find(|e| e["type"] == "tool_end").unwrap();
    has(end, "id name ok error duration_us");
    assert_eq!((&end["ok"], &end["error"]["code"]), (&json!(false), &json!("not-found")));
    let exit = events.last().unwrap();
    assert_eq!((&exit["type"], &exit["status"]), (&json!("exit"), &json!("failure")));
    has(exit, "message usage");
    assert_eq!(ran.error()["code"], "agent_failed");
}

#[test]
fn a_token_quota_ends_the_run_with_the_quotas_exit_code() {
    let world = World::new();
    let model = world.script(&[json!({"text": "no"})]);
    let ran = world.run(&["run", "--task", "x", "--model", &model, "--max-tokens", "10", "--json"]).exits(4);
    let exit = ran.lines().pop().unwrap();
    assert_eq!(exit["status"], "over-quota", "{exit}");
    assert!(exit["message"].as_str().unwrap().contains("--max-tokens"), "{exit}");
    assert_eq!(ran.error()["code"], "quota");
}

#[test]
fn tools_are_listed_and_shown_with_their_schemas() {
    let world = World::new();
    world.install(PROBE);
    let tools = world.run(&["tool", "ls", "--json"]).exits(0).lines();
    let names: Vec<&str> = tools.iter().map(|t| t["name"].as_str().unwrap()).collect();
    let bundled = ["calc__eval", "fs__append", "fs__list", "fs__read", "fs__search", "fs__write"];
    assert!(bundled.iter().all(|name| names.contains(name)), "{names:?}");
    for tool in &tools {
        has_exactly(tool, TOOL);
        assert_eq!(tool["state"], "ready");
        assert!(tool["input_schema"]["type"] == "object" && tool["description"] != "", "{tool}");
        let source = if tool["plugin"] == "probe" { "directory" } else { "bundled" };
        assert_eq!(tool["source"], source, "{tool}");
        let shown = world.run(&["tool", "show", tool["name"].as_str().unwrap(), "--json"]).exits(0).lines();
        assert_eq!(shown, std::slice::from_ref(tool));
    }
    let effect = |name: &str| tools.iter().find(|t| t["name"] == name).unwrap()["effect"].clone();
    for (name, expected) in [
        ("calc__eval", "pure"),
        ("fs__read", "read-only"),
        ("fs__write", "idempotent"),
        ("fs__append", "destructive"),
        ("probe__set", "idempotent"),
    ] {
        assert_eq!(effect(name), expected, "{name}");
    }
    let table = world.run(&["tool", "ls"]).exits(0).stdout;
    assert!(names.iter().all(|name| table.contains(name)), "{table}");
    let sheet = world.run(&["tool", "show", "eval"]).exits(0).stdout;
    assert!(sheet.contains("calc__eval") && sheet.contains("expression"), "{sheet}");
}

#[test]
fn a_tool_call_prints_the_result_as_json() {
    let world = World::new();
    let sum = r#"{"expression":"6*7"}"#;
    let plain = world.run(&["tool", "call", "calc__eval", sum]).exits(0).stdout;
    assert_eq!(serde_json::from_str::<Value>(&plain).unwrap()["value"], 42);
    // A bare name works while it is unambiguous.
    assert_eq!(world.run(&["tool", "call", "eval", sum]).exits(0).stdout, plain);
    let report = &world.run(&["tool", "call", "eval", sum, "--json"]).exits(0).lines()[0];
    has(report, "tool ok result fuel memory_bytes duration_us seq");
    assert_eq!(
        (&report["tool"], &report["ok"], &report["result"]["value"]),
        (&json!("calc__eval"), &json!(true), &json!(42))
    );
    for figure in ["fuel", "memory_bytes", "duration_us", "seq"] {
        assert!(report[figure].as_u64().unwrap() > 0, "{report}");
    }
    // It is journaled and audited as a client process.
    let ps = world.run(&["ps", "--json"]).exits(0).lines();
    assert!(ps.len() == 3 && ps.iter().all(|p| p["agent"] == "client" && p["state"] == "Z"), "{ps:?}");
    let tail = world.run(&["audit", "tail", &report["pid"].to_string(), "--json"]).exits(0).lines();
    assert!(tail.iter().any(|r| r["event"] == "call" && r["object"] == "calc__eval"), "{tail:?}");
}

#[test]
fn the_arguments_of_a_tool_call_come_from_the_line_a_file_or_standard_input() {
    let world = World::new();
    world.install(PROBE);
    let arguments = r#"{"a":"größe","n":1.50}"#;
    let file = world.dir.path().join("arguments.json");
    fs::write(&file, arguments).unwrap();
    let echo = world.run(&["tool", "call", "probe__echo", arguments]).exits(0).stdout;
    assert_eq!(serde_json::from_str::<Value>(&echo).unwrap(), json!({"a": "größe", "n": 1.5}));
    assert_eq!(world.run(&["tool", "call", "probe__echo", &format!("@{}", file.display())]).exits(0).stdout, echo);
    let mut command = world.aok(&["tool", "call", "probe__echo", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(arguments.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8(output.stdout).unwrap()), (Some(0), echo));
    // Without arguments there are none.
    assert_eq!(world.run(&["tool", "call", "probe__echo"]).exits(0).stdout, "{}\n");
}

#[test]
fn a_tool_call_fails_by_its_kind() {
    let world = World::new();
    world.install(PROBE);
    for (code, exit, reported) in
        [("denied", 3, "denied"), ("not-found", 1, "tool_failed"), ("quota", 4, "quota"), ("io", 1, "tool_failed")]
    {
        let arguments = json!({"code": code, "message": "because I say so"}).to_string();
        let ran = world.run(&["tool", "call", "probe__fail", &arguments, "--json"]).exits(exit);
        let report = &ran.lines()[0];
        has(report, "tool ok error");
        has_exactly(&report["error"], "code message limit");
        assert_eq!((&report["ok"], &report["error"]["code"]), (&json!(false), &json!(code)), "{report}");
        assert_eq!(ran.error()["code"], reported);
        let plain = world.run(&["tool", "call", "probe__fail", &arguments]).exits(exit);
        assert!(plain.stdout.is_empty() && plain.stderr.contains("because I say so"), "{plain:?}");
    }
}

#[test]
fn a_bare_name_that_two_plugins_serve_is_ambiguous() {
    let world = World::new();
    world.install(PROBE);
    fs::copy(PROBE, world.plugins().join("twin-1.wasm")).unwrap();
    for command in [&["tool", "call", "echo"][..], &["tool", "show", "echo"]] {
        let error = world.run(&[command, &["--json"]].concat()).exits(2).error();
        assert_eq!(error["code"], "ambiguous_tool");
        let hint = error["hint"].as_str().unwrap();
        assert!(hint.contains("probe__echo") && hint.contains("twin_1__echo"), "{hint}");
    }
    // Each is itself, and has a state of its own.
    for name in ["probe__counter", "twin_1__counter"] {
        assert_eq!(world.run(&["tool", "call", name]).exits(0).stdout, "1\n", "{name}");
    }
}

#[test]
fn a_plugin_with_one_tool_of_its_own_name_is_just_that_name() {
    let world = World::new();
    let tools = world.run(&["tool", "ls", "--json"]).exits(0).lines();
    for tool in &tools {
        let (name, plugin, own) = (&tool["name"], tool["plugin"].as_str().unwrap(), tool["tool"].as_str().unwrap());
        let expected = if plugin == own { plugin.to_owned() } else { format!("{plugin}__{own}") };
        assert_eq!(name, &expected, "{tool}");
    }
}

#[test]
fn plugins_and_agents_are_listed() {
    let world = World::new();
    for guest in [PROBE, STEPPER] {
        world.install(guest);
    }
    let plugins = world.run(&["plugin", "ls", "--json"]).exits(0).lines();
    for plugin in &plugins {
        has(plugin, PLUGIN);
        assert_eq!((&plugin["state"], &plugin["diagnosis"]), (&json!("loaded"), &Value::Null), "{plugin}");
        assert_eq!(plugin["digest"].as_str().map(str::len), Some(64), "{plugin}");
    }
    let of = |name: &str| plugins.iter().find(|p| p["name"] == name).unwrap();
    for (name, kind) in
        [("fs", "tool"), ("calc", "tool"), ("probe", "tool"), ("assistant", "agent"), ("stepper", "agent")]
    {
        assert_eq!(of(name)["kind"], json!([kind]));
    }
    assert_eq!((&of("fs")["file"], &of("stepper")["agents"]), (&Value::Null, &json!(["stepper"])));
    assert!(of("probe")["file"].as_str().unwrap().ends_with("probe.wasm"));
    assert_eq!(of("calc")["tools"], json!(["calc__eval"]));

    let agents = world.run(&["agent", "ls", "--json"]).exits(0).lines();
    let names: Vec<&str> = agents.iter().map(|a| a["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["assistant", "stepper"]);
    let table = world.run(&["agent", "ls"]).exits(0).stdout;
    assert!(table.contains("assistant") && table.contains("stepper"), "{table}");
}

#[test]
fn context_logs_and_audit_show_what_a_process_did() {
    let world = World::new();
    world.install(STEPPER);
    let task = json!([
        {"op": "log", "message": "hello from the agent"},
        {"op": "append", "kind": "note", "text": "a note to keep", "importance": 0.5},
        {"op": "call", "name": "calc__eval", "arguments": {"expression": "1+1"}},
    ]);
    let model = world.script(&[]);
    world.run(&["run", "stepper", "--task", &task.to_string(), "--model", &model]).exits(0);

    let pages = world.run(&["context", "1", "--json"]).exits(0).lines();
    for page in &pages {
        has_exactly(page, PAGE);
    }
    let kinds: Vec<&str> = pages.iter().map(|p| p["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["system", "tools", "task", "note"]);
    assert!(pages[..3].iter().all(|p| p["pinned"] == true && p["resident"] == true), "{pages:?}");
    assert_eq!((&pages[3]["pinned"], &pages[3]["importance"]), (&json!(false), &json!(0.5)));
    assert!(world.run(&["context", "1"]).exits(0).stdout.contains("note"));

    let logs = world.run(&["logs", "1", "--json"]).exits(0).lines();
    assert_eq!(logs.len(), 1);
    has_exactly(&logs[0], LOG);
    assert_eq!((&logs[0]["message"], &logs[0]["level"]), (&json!("hello from the agent"), &json!("info")));
    assert!(world.run(&["logs", "1"]).exits(0).stdout.contains("hello from the agent"));

    let records = world.run(&["audit", "tail", "1", "--json"]).exits(0).lines();
    for (i, record) in records.iter().enumerate() {
        has_exactly(record, AUDIT);
        assert_eq!((&record["pid"], &record["seq"]), (&json!(1), &json!(i + 1)), "oldest first, without a gap");
    }
    let events: Vec<&str> = records.iter().map(|r| r["event"].as_str().unwrap()).collect();
    assert_eq!(events, ["spawn", "log", "append", "call", "exit"]);
    let two = world.run(&["audit", "tail", "1", "-n", "2", "--json"]).exits(0).lines();
    assert_eq!(two, records[3..]);
    assert!(!world.run(&["audit", "tail", "0", "--json"]).exits(0).lines().is_empty());
    let verdict = world.run(&["audit", "verify", "--json"]).exits(0).lines().pop().unwrap();
    has_exactly(&verdict, "ok records");
}

#[test]
fn the_metrics_are_prometheus_text() {
    let world = World::new();
    let text = world.run(&["metrics"]).exits(0).stdout;
    for name in METRICS {
        assert!(text.contains(&format!("# TYPE {name} ")), "{name} is missing:\n{text}");
    }
    assert_eq!(text.matches("# TYPE ").count(), METRICS.len(), "{text}");
    let json = world.run(&["metrics", "--json"]).exits(0).lines().pop().unwrap();
    assert!(METRICS.iter().all(|name| json["prometheus"].as_str().unwrap().contains(name)), "{json}");
    let promtool =
        Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let Ok(mut promtool) = promtool else {
        eprintln!("promtool is not installed; the text was not checked by it");
        return;
    };
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn bare_aok_and_help_are_there() {
    let world = World::new();
    let brief = world.run(&[]).exits(0).stdout;
    assert!((1..=10).contains(&brief.lines().count()) && brief.contains("aok run"), "{brief}");
    let bare = Command::new(aok_binary()).output().unwrap();
    assert_eq!((bare.status.code(), String::from_utf8(bare.stdout).unwrap()), (Some(0), brief));
    for command in [
        &[][..],
        &["run"],
        &["ps"],
        &["logs"],
        &["tool"],
        &["tool", "ls"],
        &["tool", "show"],
        &["tool", "call"],
        &["plugin", "ls"],
        &["agent", "ls"],
        &["context"],
        &["audit", "tail"],
        &["audit", "verify"],
        &["metrics"],
    ] {
        let help = world.run(&[command, &["--help"]].concat()).exits(0);
        assert!(help.stdout.contains("Usage: aok") && help.stdout.contains("--json"), "{command:?}: {}", help.stdout);
        assert!(help.stdout.lines().next().is_some_and(|line| line.len() > 5), "{command:?} says nothing of itself");
        assert_eq!(help.stderr, "");
    }
    let run = world.run(&["run", "--help"]).exits(0).stdout;
    for option in [
        "--task",
        "--model",
        "--dir",
        "--name",
        "--nice",
        "--group",
        "--max-fuel",
        "--max-tokens",
        "--max-usd",
        "--timeout",
        "--resume",
        "--plugins",
    ] {
        assert!(run.contains(option), "`{option}` is missing:\n{run}");
    }
    assert!(world.run(&["--version"]).exits(0).stdout.starts_with("aok "));
}

#[test]
fn the_data_directory_is_named_by_the_option_or_the_environment_and_is_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let world = World::new();
    let home = world.dir.path().join("elsewhere/data");
    let call = || {
        let mut command = Command::new(aok_binary());
        command.args(["tool", "call", "calc__eval", r#"{"expression":"1"}"#]).env("AOK_HOME", &home);
        command
    };
    assert!(call().output().unwrap().status.success());
    let mode = |name: &str| fs::metadata(home.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(""), mode("aok.db"), mode("lock")), (0o700, 0o600, 0o600));
    assert!(!home.join("aok.sock").exists(), "an ended kernel leaves no socket");
    // The option wins.
    assert!(call().arg("--data").arg(world.data()).output().unwrap().status.success());
    assert!(world.data().join("aok.db").exists());
    assert_eq!(world.run(&["ps", "--json"]).exits(0).lines().len(), 1);
}

#[test]
fn looking_at_a_directory_without_a_store_makes_none() {
    let world = World::new();
    for command in [&["ps"][..], &["plugin", "ls"], &["audit", "tail"], &["audit", "verify"], &["metrics"]] {
        world.run(command).exits(0);
    }
    assert!(!world.data().join("aok.db").exists() && !world.data().join("lock").exists());
}

#[test]
fn a_reader_that_goes_away_ends_a_listing_in_silence() {
    let world = World::new();
    let mut child = world.aok(&["tool", "ls", "--json"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(141), &b""[..]));
}
