//! Hostile guests: each way to misbehave is stopped by the limit that names itself, and nobody else notices.

use std::fs;
use std::path::Path;

use agent_os_kernel::capability::Rights;
use agent_os_kernel::config::{Config, SchedulerConfig};
use agent_os_kernel::kernel::{Kernel, SpawnRequest};
use agent_os_kernel::process::{Exit, Pid};
use agent_os_kernel::quota::{Limits, MIB, ResourceQuota};
use serde_json::{Value, json};

use super::support::*;

/// So much fuel that time or something else ends a guest first.
const ENDLESS: u64 = 900_000_000_000_000;

/// The full name of a hostile tool.
fn full(tool: &str) -> String {
    let plugin = if tool == "grow_tables" { "tables" } else { "hostile" };
    format!("{plugin}__{tool}")
}

/// Calls a hostile tool under `[limits]`: `limit` must end it and say what was allowed.
#[track_caller]
fn stopped(tool: &str, limits: &str, limit: &str, allowed: &str) {
    let world = World::new();
    world.install(HOSTILE);
    world.install(TABLES);
    world.configure(&format!("[limits]\n{limits}\n"));
    let ran = world.run(&["tool", "call", tool, "--json"]).exits(4);
    let report = &ran.lines()[0];
    assert_eq!((&report["ok"], &report["error"]["limit"]), (&json!(false), &json!(limit)), "{report}");
    let message = report["error"]["message"].as_str().unwrap();
    assert!(message.contains(tool) && message.contains(allowed), "`{tool}` or `{allowed}` is missing: {message}");
    let error = ran.error();
    assert_eq!(error["code"], "quota", "{error}");
    let hint = error["hint"].as_str().unwrap();
    // The way out is a key that the configuration knows.
    let key = match limit {
        "wall" => "`wall_ms`",
        "host-calls" => "`host_calls`",
        "output" => "`host_call_bytes`",
        "stack" => "fixed",
        name => name,
    };
    assert!(hint.contains(key), "`{key}` is missing: {hint}");
    // What was stopped is in the books, and the store is whole.
    let last = world.run(&["ps", "--json"]).exits(0).lines().pop().unwrap();
    assert_eq!(last["exit"]["status"], "over-quota", "{last}");
    world.run(&["audit", "verify"]).exits(0);
}

#[test]
fn a_component_of_too_many_instances_is_stopped_by_that_limit() {
    let world = World::new();
    // Loaded once, so that what it has is known.
    world.run(&["tool", "ls"]).exits(0);
    world.configure("[limits]\ninstances = 1\n");
    let call = ["tool", "call", "calc__eval", r#"{"expression":"1"}"#, "--json"];
    let error = world.run(&call).exits(4).lines()[0]["error"].clone();
    assert_eq!(error["limit"], "instances", "{error}");
    assert!(error["message"].as_str().unwrap().contains("more than 1 instances"), "{error}");
    // One that was never loaded is refused with the same reason.
    fs::remove_dir_all(world.data().join("cache")).unwrap();
    let plugins = world.run(&["plugin", "ls", "--json"]).exits(0).lines();
    let diagnosis = plugins.iter().find(|p| p["name"] == "calc").unwrap()["diagnosis"].to_string();
    assert!(diagnosis.contains("more than 1 instances") && diagnosis.contains("`instances`"), "{diagnosis}");
    // The limits are those of tool calls: an agent runs.
    world.run(&["run", "--task", "x", "--model", &world.answers("yes")]).exits(0);
}

#[test]
fn a_tool_that_loops_is_stopped_by_its_fuel() {
    stopped("spin", "fuel = 300_000_000", "fuel", "300000000");
}

#[test]
fn a_tool_that_loops_with_much_fuel_is_stopped_by_its_wall_time() {
    stopped("spin", &format!("fuel = {ENDLESS}\nwall_ms = 500"), "wall", "500 ms");
}

#[test]
fn a_tool_that_fills_memory_is_stopped_by_its_fuel() {
    stopped("bulk", "fuel = 300_000_000", "fuel", "300000000");
}

#[test]
fn a_tool_that_fills_memory_with_much_fuel_is_stopped_by_its_wall_time() {
    stopped("bulk", &format!("fuel = {ENDLESS}\nwall_ms = 500"), "wall", "500 ms");
}

#[test]
fn a_tool_that_allocates_is_stopped_by_its_memory() {
    stopped("allocate", "memory = 33_554_432", "memory", "32 MiB");
}

#[test]
fn a_tool_that_grows_a_table_is_stopped_by_its_tables() {
    stopped("grow_tables", "", "tables", "20000");
    stopped("grow_tables", "tables = 5_000", "tables", "5000");
}

#[test]
fn a_tool_that_recurses_is_stopped_by_its_stack() {
    stopped("recurse", "", "stack", "512 KiB");
}

#[test]
fn a_tool_that_returns_a_hundred_megabytes_is_stopped_by_the_bytes_of_one_call() {
    stopped("giant", "memory = 1_073_741_824", "output", "8388608");
}

#[test]
fn a_tool_that_has_no_memory_for_its_giant_result_is_stopped_by_its_memory() {
    stopped("giant", "", "memory", "256 MiB");
}

#[test]
fn a_tool_that_floods_the_log_is_stopped_by_its_log() {
    stopped("logflood", "log = 10_000", "log", "10000");
}

#[test]
fn a_tool_that_calls_the_kernel_without_end_is_stopped_by_its_host_calls() {
    stopped("hostcalls", "host_calls = 500", "host-calls", "500");
}

#[test]
fn a_result_over_the_output_limit_is_refused_whole() {
    let world = World::new();
    world.install(PROBE);
    world.configure("[limits]\noutput = 1000\n");
    let call = |bytes: usize| {
        let arguments = json!({ "text": "x".repeat(bytes) }).to_string();
        world.run(&["tool", "call", "probe__echo", &arguments, "--json"])
    };
    call(900).exits(0);
    let ran = call(1_000).exits(4);
    let error = &ran.lines()[0]["error"];
    assert_eq!(error["limit"], "output", "{error}");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("probe__echo") && message.contains("1011") && message.contains("1000"), "{message}");
}

#[test]
fn arguments_that_are_too_large_to_pass_are_refused_by_the_limit_that_names_itself() {
    let world = World::new();
    world.install(PROBE);
    world.configure("[limits]\nhost_call_bytes = 100_000\n");
    let file = world.dir.path().join("large.json");
    let call = |bytes: usize| {
        fs::write(&file, json!({ "text": "x".repeat(bytes) }).to_string()).unwrap();
        world.run(&["tool", "call", "probe__echo", &format!("@{}", file.display()), "--json"])
    };
    call(20_000).exits(0);
    call(200_000).refused(4, "quota", &["`echo`", "100000", "`host_call_bytes`"]);
}

#[test]
fn a_tool_that_breaks_is_a_failed_tool_and_no_limit() {
    let world = World::new();
    world.install(HOSTILE);
    for tool in ["trap", "panic"] {
        let ran = world.run(&["tool", "call", &format!("hostile__{tool}"), "--json"]).exits(1);
        let error = &ran.lines()[0]["error"];
        assert_eq!((&error["code"], &error["limit"]), (&json!("io"), &Value::Null), "{error}");
        assert!(error["message"].as_str().unwrap().contains(&format!("the tool `{tool}` broke")), "{error}");
        assert_eq!(ran.error()["code"], "tool_failed");
    }
    // The words of a panic are in the log of the process that called.
    let log = world.run(&["logs", "2", "--json"]).exits(0).lines();
    assert!(log.iter().any(|l| l["level"] == "error" && l["message"].to_string().contains("panicked")), "{log:?}");
}

#[test]
fn an_agent_is_told_which_limit_stopped_each_tool_and_goes_on() {
    let cases = [
        ("spin", "fuel"),
        ("allocate", "memory"),
        ("recurse", "stack"),
        ("giant", "memory"),
        ("logflood", "log"),
        ("hostcalls", "host-calls"),
        ("bulk", "fuel"),
        ("grow_tables", "tables"),
    ];
    let world = World::new();
    world.install(HOSTILE);
    world.install(TABLES);
    world.configure("[limits]\nfuel = 300_000_000\nmemory = 33_554_432\nlog = 10_000\nhost_calls = 500\n");
    let tools = cases.iter().map(|(tool, _)| *tool).chain(["trap", "panic"]);
    let mut script: Vec<Value> =
        tools.map(|tool| json!({"tool_calls": [{"id": tool, "name": full(tool), "arguments": {}}]})).collect();
    let calc = json!({"id": "sum", "name": "calc__eval", "arguments": {"expression": "6*7"}});
    script.push(json!({ "tool_calls": [calc] }));
    script.push(json!({"text": "{{sum}}"}));
    let ran = world.run(&["run", "--task", "try all", "--model", &world.script(&script), "--json"]).exits(0);
    let events = ran.lines();
    let end = |tool: &str| {
        let found = events.iter().find(|e| e["type"] == "tool_end" && e["id"] == tool);
        found.unwrap_or_else(|| panic!("no tool_end of {tool}"))
    };
    for (tool, limit) in cases {
        let error = &end(tool)["error"];
        assert_eq!((&error["code"], &error["limit"]), (&json!("quota"), &json!(limit)), "{tool}: {error}");
    }
    for tool in ["trap", "panic"] {
        let error = &end(tool)["error"];
        assert_eq!((&error["code"], &error["limit"]), (&json!("io"), &Value::Null), "{tool}: {error}");
    }
    assert_eq!(end("sum")["ok"], true);
    let answer = events.last().unwrap()["answer"].as_str().unwrap();
    assert!(answer.contains("42"), "{answer}");
    world.run(&["audit", "verify"]).exits(0);
}

/// A kernel with one worker: whoever does not yield would stop everybody.
async fn kernel(world: &World, limits: Limits) -> Kernel {
    for guest in [HOSTILE, TABLES, HOG, TALKER, STEPPER] {
        world.install(guest);
    }
    let config = Config {
        limits,
        scheduler: SchedulerConfig { workers: Some(1), ..SchedulerConfig::default() },
        ..Config::default()
    };
    Kernel::builder(world.data()).config(config).plugin_dir(world.plugins()).start().await.unwrap()
}

async fn spawn(kernel: &Kernel, world: &World, agent: &str, task: &str) -> Pid {
    let request = SpawnRequest {
        agent: agent.to_owned(),
        task: task.to_owned(),
        model: Some(world.script(&[])),
        quota: ResourceQuota { fuel: ENDLESS, ..ResourceQuota::STANDARD },
        ..SpawnRequest::default()
    };
    kernel.spawn(request).await.unwrap().0
}

/// A stepper's task: the hostile call, and a good one after it.
fn call_and_go_on(tool: &str) -> String {
    json!([
        {"op": "call", "name": full(tool), "arguments": {}},
        {"op": "call", "name": "calc__eval", "arguments": {"expression": "6*7"}},
    ])
    .to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_hostile_tool_leaves_a_second_agent_and_the_kernel_alone() {
    let world = World::new();
    let limits = Limits { fuel: 300_000_000, memory: 32 * MIB, log: 10_000, host_calls: 500, ..Limits::TOOL };
    let kernel = kernel(&world, limits).await;
    for tool in
        ["spin", "allocate", "recurse", "giant", "logflood", "trap", "panic", "hostcalls", "bulk", "grow_tables"]
    {
        let hostile = spawn(&kernel, &world, "stepper", &call_and_go_on(tool)).await;
        let other = spawn(&kernel, &world, "talker", "call 20").await;
        assert_eq!(kernel.wait(other).await.unwrap(), Exit::Success("20".into()), "beside {tool}");
        let Exit::Success(answer) = kernel.wait(hostile).await.unwrap() else { panic!("{tool} ended its agent") };
        let results: Value = serde_json::from_str(&answer).unwrap();
        let code = if matches!(tool, "trap" | "panic") { "io" } else { "quota" };
        assert_eq!(results[0]["error"]["code"], code, "{tool}: {answer}");
        assert!(results[1].to_string().contains("42"), "after {tool}: {answer}");
    }
    let report = kernel.call_tool("calc__eval", r#"{"expression":"6*7"}"#, Rights::default()).await.unwrap();
    assert!(report.outcome.unwrap().contains("42"));
    kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_whose_tool_ran_out_of_time_goes_on() {
    let world = World::new();
    let kernel = kernel(&world, Limits { fuel: ENDLESS, wall_ms: 2_000, ..Limits::TOOL }).await;
    let agent = spawn(&kernel, &world, "stepper", &call_and_go_on("spin")).await;
    let Exit::Success(answer) = kernel.wait(agent).await.unwrap() else { panic!("the tool ended its agent") };
    let results: Value = serde_json::from_str(&answer).unwrap();
    let message = results[0]["error"]["message"].as_str().unwrap();
    assert!(message.contains("`spin`") && message.contains("2000 ms"), "{answer}");
    assert!(results[1].to_string().contains("42"), "{answer}");
    kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_makes_progress_beside_tools_and_agents_that_never_yield_by_themselves() {
    let world = World::new();
    let limits = Limits { fuel: ENDLESS, wall_ms: 3_600_000, ..Limits::TOOL };
    let kernel = kernel(&world, limits).await;
    let hostile = [
        spawn(&kernel, &world, "stepper", &call_and_go_on("spin")).await,
        spawn(&kernel, &world, "stepper", &call_and_go_on("bulk")).await,
        spawn(&kernel, &world, "hog", "spin").await,
    ];
    let other = spawn(&kernel, &world, "talker", "call 10").await;
    assert_eq!(kernel.wait(other).await.unwrap(), Exit::Success("10".into()));
    for pid in hostile {
        assert!(kernel.running().contains(&pid), "process {pid} was to run for ever");
        kernel.kill(pid, "the test is over").await.unwrap();
        assert_eq!(kernel.wait(pid).await.unwrap(), Exit::Killed("the test is over".into()));
    }
    kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_hostile_agent_leaves_a_second_agent_alone() {
    let world = World::new();
    let kernel = kernel(&world, Limits::TOOL).await;
    for (task, expected) in [("allocate", "memory: "), ("recurse", "stack: "), ("panic", "the agent broke: ")] {
        let hog = spawn(&kernel, &world, "hog", task).await;
        let other = spawn(&kernel, &world, "talker", "call 20").await;
        assert_eq!(kernel.wait(other).await.unwrap(), Exit::Success("20".into()), "beside {task}");
        let exit = kernel.wait(hog).await.unwrap();
        assert!(exit.message().starts_with(expected), "{task}: {exit:?}");
    }
    kernel.shutdown().await;
}

#[test]
fn a_hostile_agent_is_stopped_by_the_limit_that_names_itself() {
    for (task, options, code, status, expected) in [
        ("spin", &["--max-fuel", "300000000"][..], 4, "over-quota", "fuel: it used up its 300000000 fuel"),
        ("spin", &["--timeout", "500ms"], 4, "over-quota", "wall: it ran longer than its 500 ms"),
        ("allocate", &[], 4, "over-quota", "256 MiB"),
        ("recurse", &[], 4, "over-quota", "512 KiB"),
        ("panic", &[], 1, "failure", "the agent broke"),
    ] {
        let world = World::new();
        world.install(HOG);
        let model = world.script(&[]);
        let run = ["run", "hog", "--task", task, "--model", &model, "--json"];
        let ran = world.run(&[&run[..], options].concat()).exits(code);
        let exit = ran.lines().pop().unwrap();
        assert_eq!((&exit["type"], &exit["status"]), (&json!("exit"), &json!(status)), "{task} {options:?}: {exit}");
        let message = exit["message"].as_str().unwrap();
        assert!(message.contains(expected), "{task} {options:?}: {message}");
        assert!(ran.error()["message"].as_str().unwrap().contains(expected));
        world.run(&["audit", "verify"]).exits(0);
    }
}

#[test]
fn a_process_gets_no_more_fuel_for_its_tools_than_it_has() {
    let world = World::new();
    world.install(HOSTILE);
    world.install(STEPPER);
    let run = ["run", "stepper", "--task", &call_and_go_on("spin"), "--model", &world.script(&[]), "--json"];
    let ran = world.run(&[&run[..], &["--max-fuel", "200000000"]].concat()).exits(4);
    let exit = ran.lines().pop().unwrap();
    assert_eq!(exit["status"], "over-quota", "{exit}");
    assert!(exit["message"].as_str().unwrap().starts_with("fuel: "), "{exit}");
    let fuel = exit["usage"]["fuel"].as_u64().unwrap();
    // Right to within one interval of the engine.
    assert!((200_000_000..200_200_000).contains(&fuel), "{exit}");
}

/// A guest that no test uses is dead code, or a test that somebody forgot to write.
#[test]
fn every_test_guest_is_used_by_a_test() {
    macro_rules! constants {
        ($($name:ident)*) => { [$(stringify!($name).to_uppercase()),*] };
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/system");
    let mut words = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "rs") || path.ends_with("support.rs") {
            continue;
        }
        let source = fs::read_to_string(path).unwrap();
        let code = source.lines().map(|line| line.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n");
        words.extend(code.split(|c: char| !c.is_alphanumeric() && c != '_').map(str::to_owned));
    }
    let orphans: Vec<String> = foreach_guest!(constants).into_iter().filter(|name| !words.contains(name)).collect();
    assert!(orphans.is_empty(), "no test uses the guests {orphans:?} of tests/guests");
}
