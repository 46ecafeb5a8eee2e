//! The kernel as a library: processes that are stopped in the middle and go on in another kernel, limits and hooks
//! seen from end to end, the context through a whole run, and processes beside one that only computes.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use agent_os_kernel::capability::Rights;
use agent_os_kernel::config::{Config, SchedulerConfig};
use agent_os_kernel::hook::{Hook, HookEvent, Verdict};
use agent_os_kernel::kernel::{Error, Kernel, SpawnRequest};
use agent_os_kernel::process::{Event, EventKind, Exit, Pid};
use agent_os_kernel::quota::{Limits, ResourceQuota};
use serde_json::{Value, json};
use system_tests::fake_llm::FakeLlm;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::support::{CLOCKS, KVAGENT, ModelServer, PATIENCE, PROBE, SPINNER, STEPPER, TALKER, World};

/// A world with some guests, in which kernels come and go.
struct Lab {
    world: World,
    model: String,
}

impl Lab {
    fn new(guests: &[&str]) -> Self {
        let world = World::new();
        guests.iter().for_each(|g| world.install(g));
        let model = world.script(&[json!({ "text": "hello" })]);
        Self { world, model }
    }

    async fn kernel(&self) -> Kernel {
        self.kernel_with(Config::default()).await
    }

    async fn kernel_with(&self, config: Config) -> Kernel {
        let builder = Kernel::builder(self.world.data()).plugin_dir(self.world.plugins()).config(config);
        builder.start().await.expect("a kernel starts")
    }

    /// A kernel in which `probe__slow` does not return, so that a process can be stopped in the middle however
    /// fast or slow the machine is. The receiver tells each time that a call is held.
    async fn holding_kernel(&self, config: Config) -> (Kernel, UnboundedReceiver<()>) {
        let limits = Limits { fuel: u64::MAX / 2, wall_ms: 3_600_000, ..Limits::TOOL };
        let kernel = self.kernel_with(Config { limits, ..config }).await;
        let (send, held) = unbounded_channel();
        kernel.register_hook(Hook::BeforeToolCall, "hold", move |event| {
            if event.subject["name"] != "probe__slow" {
                return Verdict::Allow;
            }
            let mut subject = event.subject.clone();
            subject["arguments"]["turns"] = json!(u64::MAX / 2);
            // The test may have seen enough.
            let _ = send.send(());
            Verdict::Rewrite(subject)
        });
        (kernel, held)
    }

    fn request(&self, agent: &str, task: impl ToString) -> SpawnRequest {
        SpawnRequest {
            agent: agent.to_owned(),
            task: task.to_string(),
            model: Some(self.model.clone()),
            quota: ResourceQuota { fuel: u64::MAX / 4, ..ResourceQuota::STANDARD },
            ..SpawnRequest::default()
        }
    }
}

/// The answer of a process, which is JSON.
async fn answer(kernel: &Kernel, pid: Pid) -> Value {
    match in_time(kernel.wait(pid)).await.expect("it ends") {
        Exit::Success(answer) => serde_json::from_str(&answer).expect("the guests answer in JSON"),
        other => panic!("{other:?}"),
    }
}

async fn in_time<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("it takes moments unless it hangs")
}

/// Waits until an event of the process is what `is_it` looks for.
async fn event(events: &mut UnboundedReceiver<Event>, is_it: impl Fn(&EventKind) -> bool) -> Event {
    loop {
        let event = in_time(events.recv()).await.expect("the events go on");
        if is_it(&event.kind) {
            return event;
        }
    }
}

fn counter(name: &str) -> Value {
    json!({ "op": "call", "name": "probe__counter", "arguments": { "name": name } })
}

fn hold() -> Value {
    json!({ "op": "call", "name": "probe__slow", "arguments": { "turns": 3 } })
}

fn call(id: &str, name: &str, arguments: Value) -> Value {
    json!({ "id": id, "name": name, "arguments": arguments })
}

/// The names and decisions of a process's audited calls of one kind.
async fn audited(kernel: &Kernel, pid: Pid, event: &str) -> Vec<(String, String, String)> {
    let records = kernel.audit_tail(Some(pid), 10_000).await.unwrap();
    records
        .into_iter()
        .filter(|r| r.event == event)
        .map(|r| (r.object, r.decision.into_owned(), r.by.into_owned()))
        .collect()
}

// Replay.

/// Lines that `clocks` logs after its first.
const CLOCK_LINES: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agents_clocks_and_random_are_the_kernels() {
    let lab = Lab::new(&[CLOCKS]);
    let kernel = lab.kernel().await;
    let began = Instant::now();
    let (pid, _events) = kernel.spawn(lab.request("clocks", "go")).await.unwrap();
    let said = answer(&kernel, pid).await;
    assert!(began.elapsed() >= Duration::from_secs(1), "two sleeps of 500 ms took {:?}", began.elapsed());
    let moved = |from: &str, to: &str, what: &str| {
        said[to][what].as_u64().unwrap().checked_sub(said[from][what].as_u64().unwrap()).expect("no clock goes back")
    };
    for (from, to) in [("before", "after"), ("after", "after_poll")] {
        assert!(moved(from, to, "wall_ms") >= 500, "{said}");
        assert!(moved(from, to, "monotonic_ns") >= 500_000_000, "{said}");
    }
    let all: std::collections::BTreeSet<String> =
        said["random"].as_array().unwrap().iter().chain([&said["drawn"]]).map(Value::to_string).collect();
    assert_eq!(all.len(), 4, "the sources are not told apart: {said}");
    let (other, _events) = kernel.spawn(lab.request("clocks", "go")).await.unwrap();
    let other = answer(&kernel, other).await;
    assert!(other["drawn"] != said["drawn"] && other["random_bytes"] != said["random_bytes"], "{said} {other}");
    kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_stopped_in_its_sleep_reads_the_same_clocks_and_random_again() {
    let lab = Lab::new(&[CLOCKS, PROBE]);
    // It may get to its end before it is caught in its second sleep: then another one is tried.
    for _ in 0..20 {
        let kernel = lab.kernel().await;
        let (pid, _events) = kernel.spawn(lab.request("clocks", "go")).await.unwrap();
        let logged = in_time(async {
            loop {
                let lines = kernel.logs(pid, 0).await.unwrap();
                if lines.len() > CLOCK_LINES {
                    return lines[0].message.clone();
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
        kernel.shutdown().await;
        let kernel = lab.kernel().await;
        if kernel.unfinished().await.unwrap() != [pid] {
            kernel.shutdown().await;
            continue;
        }
        let began = Instant::now();
        kernel.resume(pid).await.unwrap();
        let said = answer(&kernel, pid).await;
        let logged: Value = serde_json::from_str(&logged).unwrap();
        assert_eq!((&said["after"], &said["drawn"]), (&logged["after"], &logged["drawn"]));
        assert!(began.elapsed() >= Duration::from_millis(500), "the second sleep was not slept");
        assert_eq!(audited(&kernel, pid, "sleep").await.len(), 2, "the first sleep was slept again");
        assert_eq!(kernel.logs(pid, 0).await.unwrap().len(), 1 + CLOCK_LINES);
        kernel.shutdown().await;
        return;
    }
    panic!("it was never caught in its sleep");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resumed_process_asks_nothing_twice() {
    let mut lab = Lab::new(&[STEPPER, PROBE]);
    let script = lab.world.dir.path().join("model.jsonl");
    std::fs::write(&script, "{\"text\":\"one\"}\n{\"text\":\"two\",\"expect\":\"and?\"}\n").unwrap();
    let server = FakeLlm::start(&script, "stepper").await.unwrap();
    lab.model = "fake/m".to_owned();
    let toml = format!("[llm.providers.fake]\nkind = \"openai\"\nbase_url = \"{}\"\n", server.url());
    let path = lab.world.dir.path().join("aok.toml");
    std::fs::write(&path, toml).unwrap();
    let llm = Config::load(&path, true).unwrap().llm;
    let operations = json!([
        counter("n"), { "op": "generate" }, counter("n"), { "op": "state_put", "key": "k", "value": "v" },
        { "op": "log", "message": "half way" }, hold(), counter("n"), { "op": "state_get", "key": "k" },
        { "op": "append", "kind": "user", "text": "and?" }, { "op": "generate" }, { "op": "pages" },
    ]);
    let (kernel, mut held) = lab.holding_kernel(Config { llm: llm.clone(), ..Config::default() }).await;
    let (pid, _events) = kernel.spawn(lab.request("stepper", &operations)).await.unwrap();
    in_time(held.recv()).await.unwrap();
    kernel.shutdown().await;
    assert!(matches!(in_time(kernel.wait(pid)).await, Err(Error::Suspended { .. })));
    let kernel = lab.kernel_with(Config { llm, ..Config::default() }).await;
    let mut events = kernel.resume(pid).await.unwrap();
    let said = answer(&kernel, pid).await;
    assert_eq!((&said[0], &said[2], &said[5], &said[6]), (&json!(1), &json!(2), &json!(3), &json!(3)), "{said}");
    assert_eq!((&said[1]["text"], &said[9]["text"]), (&json!("one"), &json!("two")), "{said}");
    assert_eq!(said[7], json!({ "value": "v", "revision": 1 }));
    assert_eq!(server.requests().iter().map(|r| r.index).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(kernel.logs(pid, 0).await.unwrap().len(), 1);
    // The window is the one of an undisturbed run: head, reply, what was appended, reply.
    let ids: Vec<_> = said[10].as_array().unwrap().iter().map(|p| p["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, [1, 2, 3, 4, 5, 6]);
    // Only what really happened is an event: the calls of the first life are not in these.
    let mut started = Vec::new();
    while let Ok(event) = events.try_recv() {
        if let EventKind::ToolStart { name, .. } = event.kind {
            started.push(name);
        }
    }
    assert_eq!(started, ["probe__slow", "probe__counter"]);
    let count = kernel.call_tool("probe__counter", r#"{"name":"n"}"#, Rights::default()).await.unwrap();
    assert_eq!(count.outcome.as_deref(), Ok("4"));
    kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_goes_on_only_with_the_component_that_it_was_spawned_with() {
    let lab = Lab::new(&[PROBE]);
    let file = lab.world.plugins().join("worker.wasm");
    std::fs::copy(STEPPER, &file).unwrap();
    let (kernel, mut held) = lab.holding_kernel(Config::default()).await;
    let (pid, _events) = kernel.spawn(lab.request("worker", json!([counter("n"), hold()]))).await.unwrap();
    in_time(held.recv()).await.unwrap();
    let was = digest(&kernel, "worker");
    kernel.shutdown().await;
    std::fs::copy(TALKER, &file).unwrap();
    let kernel = lab.kernel().await;
    let is = digest(&kernel, "worker");
    let refused = kernel.resume(pid).await.unwrap_err();
    let text = refused.to_string();
    assert!(matches!(refused, Error::State { pid: p, .. } if p == pid), "{text}");
    assert!(was != is && text.contains(&was) && text.contains(&is) && text.contains("worker"), "{text}");
    kernel.shutdown().await;
    std::fs::copy(STEPPER, &file).unwrap();
    let kernel = lab.kernel().await;
    kernel.resume(pid).await.unwrap();
    assert_eq!(answer(&kernel, pid).await, json!([1, 3]));
    kernel.shutdown().await;
}

fn digest(kernel: &Kernel, agent: &str) -> String {
    kernel.agents().into_iter().find(|a| a.name == agent).expect("it is installed").digest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_that_leaves_the_journal_ends_with_a_report_of_both_calls() {
    let lab = Lab::new(&[STEPPER, PROBE]);
    let (kernel, mut held) = lab.holding_kernel(Config::default()).await;
    let operations = json!([counter("n"), { "op": "state_put", "key": "mine", "value": "v" }, counter("n"), hold()]);
    let (pid, _events) = kernel.spawn(lab.request("stepper", &operations)).await.unwrap();
    in_time(held.recv()).await.unwrap();
    kernel.shutdown().await;
    let journal = format!("SELECT seq, call, request, outcome FROM journal WHERE pid = {pid} ORDER BY seq");
    let changed = lab.world.sqlite(&format!(
        "UPDATE journal SET request = replace(request, 'mine', 'other') WHERE pid = {pid} AND call = 'state-put' RETURNING seq"
    ));
    let seq = changed[0][0].as_u64().expect("the put is in the journal");
    let before = lab.world.sqlite(&journal);
    let kernel = lab.kernel().await;
    kernel.resume(pid).await.unwrap();
    let exit = in_time(kernel.wait(pid)).await.unwrap();
    let Exit::Failure(why) = &exit else { panic!("{exit:?}") };
    assert!(why.contains(&format!("position {seq} ")), "{why}");
    assert!(why.contains(r#""key":"other""#) && why.contains(r#""key":"mine""#), "{why}");
    assert_eq!(why.matches("state-put").count(), 2, "{why}");
    assert!(matches!(kernel.resume(pid).await, Err(Error::State { .. })), "it has ended");
    let count = kernel.call_tool("probe__counter", r#"{"name":"n"}"#, Rights::default()).await.unwrap();
    assert_eq!(count.outcome.as_deref(), Ok("3"), "calls past the divergence were made again");
    kernel.shutdown().await;
    assert_eq!(lab.world.sqlite(&journal), before, "the journal stays as it was");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agents_state_keeps_its_revisions_over_a_resume() {
    let lab = Lab::new(&[KVAGENT, STEPPER, PROBE]);
    let (kernel, mut held) = lab.holding_kernel(Config::default()).await;
    let (pid, _events) = kernel.spawn(lab.request("kvagent", "go")).await.unwrap();
    let again = json!({ "error": "again" });
    let walked = json!(["one", "done", again, again, "two", "done", null, "done", "done"]);
    assert_eq!(answer(&kernel, pid).await, walked);
    let put =
        |value: &str, expected: u64| json!({ "op": "state_put", "key": "k", "value": value, "expected": expected });
    let operations =
        json!([put("a", 0), put("b", 1), hold(), put("lost", 1), put("c", 2), { "op": "state_get", "key": "k" }]);
    let (pid, _events) = kernel.spawn(lab.request("stepper", &operations)).await.unwrap();
    in_time(held.recv()).await.unwrap();
    kernel.shutdown().await;
    let kernel = lab.kernel().await;
    kernel.resume(pid).await.unwrap();
    let said = answer(&kernel, pid).await;
    assert_eq!((&said[0], &said[1], &said[4]), (&json!(1), &json!(2), &json!(3)), "{said}");
    assert_eq!(said[3]["error"]["code"], "again");
    assert_eq!(said[5], json!({ "value": "c", "revision": 3 }));
    kernel.shutdown().await;
}

// call_all.

/// Pure and slow calls, then ones with effects, then a pure one; counters named `name`.
fn mixed_calls(name: &str) -> Value {
    let set = |value: &str| json!({ "key": format!("{name}-key"), "value": value });
    json!([{ "op": "call_all", "calls": [
        call("a", "probe__echo", json!({ "n": 1 })),
        call("b", "probe__slow", json!({ "turns": 2_000_000 })),
        call("c", "probe__slow", json!({ "turns": 1_000_000 })),
        call("d", "probe__echo", json!({ "n": 4 })),
        call("e", "probe__counter", json!({ "name": name })),
        call("f", "probe__set", set("x")),
        call("g", "probe__nothing", json!({})),
        call("h", "probe__counter", json!({ "name": name })),
    ] }, { "op": "append", "kind": "note", "text": "after them" }])
}

const CALL_IDS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

/// Results in call order; pages and the one after them where they were reserved.
fn check_mixed(said: &Value) {
    let results = said[0].as_array().unwrap();
    assert_eq!(results.iter().map(|r| r["id"].as_str().unwrap()).collect::<Vec<_>>(), CALL_IDS);
    let content: Vec<&Value> = results.iter().map(|r| &r["content"]).collect();
    assert_eq!((content[0], content[3]), (&json!({ "n": 1 }), &json!({ "n": 4 })));
    assert_eq!((content[1], content[2]), (&json!(2_000_000), &json!(1_000_000)));
    assert_eq!((content[4], content[5], content[7]), (&json!(1), &json!(1), &json!(2)));
    assert_eq!(content[6]["error"]["code"], "not-found");
    assert_eq!(said[1], 12, "three pages of the head, one for each call, then the note");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn call_all_runs_what_it_may_at_once_and_what_has_effects_in_order() {
    let lab = Lab::new(&[STEPPER, PROBE]);
    let kernel = lab.kernel().await;
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    for (point, word) in [(Hook::BeforeToolCall, "start"), (Hook::AfterToolCall, "end")] {
        let seen = Arc::clone(&seen);
        kernel.register_hook(point, word, move |event| {
            let id = event.subject.get("id").or_else(|| event.subject.pointer("/call/id"));
            seen.lock().unwrap().push(format!("{word} {}", id.and_then(Value::as_str).expect("a call has an id")));
            Verdict::Allow
        });
    }
    let (pid, mut events) = kernel.spawn(lab.request("stepper", mixed_calls("m"))).await.unwrap();
    check_mixed(&answer(&kernel, pid).await);
    let seen = seen.lock().unwrap().clone();
    let at = |what: &str| seen.iter().position(|s| s == what).unwrap_or_else(|| panic!("no `{what}` in {seen:?}"));
    // The slow ones use many slices each, so the second starts long before the first can end.
    assert!(at("start c") < at("end b") && at("start b") < at("end c"), "one waited for the other: {seen:?}");
    for pair in [("end b", "start e"), ("end d", "start e"), ("end e", "start f"), ("end f", "start h")] {
        assert!(at(pair.0) < at(pair.1), "{pair:?} in {seen:?}");
    }
    let mut positions = Vec::new();
    while let Ok(event) = events.try_recv() {
        if let EventKind::ToolEnd { id, .. } = event.kind {
            positions.push((id, event.seq));
        }
    }
    positions.sort();
    let expected: Vec<_> = CALL_IDS.iter().zip(1..).map(|(id, seq)| ((*id).to_owned(), seq)).collect();
    assert_eq!(positions, expected, "positions are in call order");
    kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn call_all_gives_the_same_after_a_stop_in_its_middle() {
    let lab = Lab::new(&[STEPPER, PROBE]);
    let kernel = lab.kernel().await;
    let (whole, _events) = kernel.spawn(lab.request("stepper", mixed_calls("whole"))).await.unwrap();
    check_mixed(&answer(&kernel, whole).await);
    kernel.shutdown().await;
    let (kernel, _held) = lab.holding_kernel(Config::default()).await;
    let (pid, mut events) = kernel.spawn(lab.request("stepper", mixed_calls("cut"))).await.unwrap();
    // Both quick ones are done, the first as well as the last of the group; both slow ones are under way.
    for _ in 0..2 {
        event(&mut events, |e| matches!(e, EventKind::ToolEnd { .. })).await;
    }
    kernel.shutdown().await;
    let kernel = lab.kernel().await;
    let mut events = kernel.resume(pid).await.unwrap();
    check_mixed(&answer(&kernel, pid).await);
    let started = event(&mut events, |e| matches!(e, EventKind::ToolStart { .. })).await;
    assert_eq!(started.seq, 2, "the first call was made again");
    let pages = |pages: Vec<agent_os_kernel::kernel::info::PageInfo>| -> Vec<_> {
        // The task names its counter, so the task's page differs.
        pages.into_iter().filter(|p| p.id != 3).map(|p| (p.id, p.hash)).collect()
    };
    let (a, b) = (kernel.context(whole).await.unwrap(), kernel.context(pid).await.unwrap());
    assert_eq!(pages(a), pages(b));
    assert_eq!(audited(&kernel, pid, "call").await.len(), 8, "one record for each call");
    kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_loses_its_plugins_state_to_another_process_leaves_nothing_but_its_error() {
    let lab = Lab::new(&[STEPPER, PROBE]);
    let scheduler = SchedulerConfig { workers: Some(2), ..SchedulerConfig::default() };
    let kernel = lab.kernel_with(Config { scheduler, ..Config::default() }).await;
    // The first call is held between its end and its commit, while another process's call comes and goes.
    let (at_it, mut waiting) = unbounded_channel();
    let (go_on, gate) = std::sync::mpsc::channel::<()>();
    let gate = Mutex::new(Some(gate));
    kernel.register_hook(Hook::AfterToolCall, "gate", move |_| {
        let first = gate.lock().unwrap().take();
        if let Some(gate) = first {
            let _ = at_it.send(());
            // A test that has failed lets go of the other end.
            let _ = gate.recv_timeout(PATIENCE);
        }
        Verdict::Allow
    });
    let calls = [call("a", "probe__counter", json!({})), call("b", "probe__counter", json!({}))];
    let operations =
        json!([{ "op": "call_all", "calls": calls }, { "op": "read", "id": 4 }, { "op": "read", "id": 5 }]);
    let (pid, _events) = kernel.spawn(lab.request("stepper", &operations)).await.unwrap();
    in_time(waiting.recv()).await.unwrap();
    let other = in_time(kernel.call_tool("probe__counter", "{}", Rights::default())).await.unwrap();
    assert_eq!(other.outcome.as_deref(), Ok("1"));
    go_on.send(()).unwrap();
    let said = answer(&kernel, pid).await;
    let lost = &said[0][0]["content"];
    assert_eq!(lost["error"]["code"], "again", "{said}");
    assert_eq!(said[0][1]["content"], 2, "{said}");
    assert_eq!(
        serde_json::from_str::<Value>(said[1].as_str().unwrap()).unwrap(),
        *lost,
        "the window tells something else"
    );
    assert_eq!(said[2], "2");
    kernel.shutdown().await;
    let rows =
        lab.world.sqlite(&format!("SELECT outcome FROM journal WHERE pid = {pid} AND call = 'call' ORDER BY seq"));
    let journaled: Value = serde_json::from_str(rows[0][0].as_str().unwrap()).unwrap();
    assert_eq!(
        journaled["outcome"]["failed"]["message"], lost["error"]["message"],
        "a replay would tell something else"
    );
}

// Quotas.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_used_up_its_tool_calls_ends_over_quota() {
    let lab = Lab::new(&[TALKER]);
    let kernel = lab.kernel().await;
    let told: Arc<Mutex<Vec<Value>>> = Arc::default();
    let sink = Arc::clone(&told);
    kernel.register_hook(Hook::OnQuotaExceeded, "watch", move |event| {
        sink.lock().unwrap().push(event.subject.clone());
        Verdict::Allow
    });
    let quota = ResourceQuota { tool_calls: 3, ..ResourceQuota::STANDARD };
    let request = |n: u64| SpawnRequest { quota, ..lab.request("talker", format!("call {n}")) };
    let (pid, _events) = kernel.spawn(request(3)).await.unwrap();
    assert_eq!(answer(&kernel, pid).await, 3, "as many as it may are allowed");
    let (pid, _events) = kernel.spawn(request(4)).await.unwrap();
    let exit = in_time(kernel.wait(pid)).await.unwrap();
    assert!(matches!(&exit, Exit::OverQuota(why) if why.contains("tool-calls") && why.contains('3')), "{exit:?}");
    assert_eq!(audited(&kernel, pid, "call").await.len(), 3);
    assert_eq!(told.lock().unwrap().iter().map(|t| t["limit"].clone()).collect::<Vec<_>>(), ["tool-calls"]);
    assert!(matches!(kernel.resume(pid).await, Err(Error::State { .. })));
    kernel.shutdown().await;
}

/// Runs `aok` into a limit: it says which, on both streams, and the process is over.
#[track_caller]
fn runs_into(world: &World, limit: &str, args: &[&str]) -> Vec<Value> {
    let ran = world.run(&[&["--json", "run"], args].concat()).exits(4);
    let events = ran.lines();
    let exit = events.last().expect("there are events");
    assert_eq!((&exit["type"], &exit["status"]), (&json!("exit"), &json!("over-quota")), "{exit}");
    let message = exit["message"].as_str().expect("a message");
    assert!(message.starts_with(&format!("{limit}: ")), "`{limit}` is not what this names: {message}");
    let error = ran.error();
    assert_eq!(error["code"], "quota", "{error}");
    assert!(error["message"].as_str().is_some_and(|m| m.contains(message)), "{error}");
    let again = world.run(&["--json", "run", "--resume", &exit["pid"].to_string()]).exits(2);
    assert_eq!(again.error()["code"], "bad_state");
    assert!(again.stdout.is_empty(), "{}", again.stdout);
    events
}

#[test]
fn fuel_tokens_and_time_end_a_run_with_status_4() {
    let world = World::new();
    world.install(SPINNER);
    let eval = |usage: u64| {
        let calls = [call("c", "calc__eval", json!({ "expression": "1" }))];
        json!({ "tool_calls": calls, "usage": { "input": usage, "output": 10 } })
    };
    let model = world.script(&[eval(19_990), eval(1), json!({ "text": "done" })]);
    let spin = ["spinner", "--task", "1000000000", "--model", &model];
    runs_into(&world, "fuel", &[&spin[..], &["--max-fuel", "50000000"]].concat());
    runs_into(&world, "wall", &[&spin[..], &["--timeout", "1s", "--max-fuel", "1000000000000000"]].concat());
    let events = runs_into(&world, "tokens", &["--task", "count", "--model", &model, "--max-tokens", "20000"]);
    let asked = events.iter().filter(|e| e["type"] == "llm_start").count();
    assert_eq!(asked, 1, "the second request would not have fitted, and was made");
    let ps = world.run(&["--json", "ps"]).exits(0).lines();
    assert!(ps.len() == 3 && ps.iter().all(|p| p["exit"]["status"] == "over-quota"), "{ps:?}");
}

// Hooks.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_denies_and_rewrites_tool_calls() {
    let lab = Lab::new(&[STEPPER, PROBE]);
    let (kernel, mut held) = lab.holding_kernel(Config::default()).await;
    kernel.register_hook(Hook::BeforeToolCall, "guard", |event| match event.subject["name"].as_str() {
        Some("probe__set") => Verdict::Deny("keys are mine".to_owned()),
        Some("probe__echo") if event.subject["arguments"]["n"] == 1 => {
            let mut subject = event.subject.clone();
            subject["arguments"] = json!({ "n": 2 });
            Verdict::Rewrite(subject)
        }
        Some("probe__whoami") => {
            let mut subject = event.subject.clone();
            subject["arguments"] = json!("no object");
            Verdict::Rewrite(subject)
        }
        _ => Verdict::Allow,
    });
    kernel.register_hook(Hook::AfterToolCall, "veil", |event| {
        if event.subject.pointer("/call/arguments/secret").is_none() {
            return Verdict::Allow;
        }
        let mut subject = event.subject.clone();
        subject["outcome"] = json!({ "ok": "veiled" });
        Verdict::Rewrite(subject)
    });
    let echo = |arguments: Value| json!({ "op": "call", "name": "probe__echo", "arguments": arguments });
    let set = json!({ "op": "call", "name": "probe__set", "arguments": { "key": "k", "value": "v" } });
    let whoami = json!({ "op": "call", "name": "probe__whoami", "arguments": {} });
    let operations = json!([echo(json!({ "n": 1 })), set, echo(json!({ "secret": 7 })), whoami, hold()]);
    let (pid, _events) = kernel.spawn(lab.request("stepper", &operations)).await.unwrap();
    in_time(held.recv()).await.unwrap();
    kernel.shutdown().await;
    // The next kernel has none of the hooks: what they decided is in the journal.
    let kernel = lab.kernel().await;
    kernel.resume(pid).await.unwrap();
    let said = answer(&kernel, pid).await;
    assert_eq!((&said[0], &said[2]), (&json!({ "n": 2 }), &json!("veiled")), "{said}");
    assert_eq!(said[1]["error"]["code"], "denied");
    let message = said[1]["error"]["message"].as_str().unwrap();
    assert!(message.contains("`guard`") && message.contains("keys are mine"), "{message}");
    assert_eq!(said[3]["error"]["code"], "invalid", "what a hook writes is checked like what an agent sends");
    let calls = audited(&kernel, pid, "call").await;
    let record = |tool: &str, decision: &str, by: &str| (tool.to_owned(), decision.to_owned(), by.to_owned());
    assert_eq!(calls[1], record("probe__set", "deny", "guard"));
    assert_eq!(calls[0], record("probe__echo", "rewrite", "guard"));
    assert_eq!(calls[2], record("probe__echo", "rewrite", "veil"));
    kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_floods_its_log_is_ended_by_that_limit() {
    let lab = Lab::new(&[STEPPER]);
    let kernel = lab.kernel().await;
    let flood = |lines: u32| lab.request("stepper", json!([{"op": "flood", "lines": lines, "bytes": 1 << 20}]));
    let (pid, _events) = kernel.spawn(flood(2)).await.unwrap();
    assert_eq!(answer(&kernel, pid).await, json!([null]));
    let (pid, _events) = kernel.spawn(flood(40)).await.unwrap();
    let exit = in_time(kernel.wait(pid)).await.unwrap();
    assert!(matches!(&exit, Exit::OverQuota(why) if why.contains("logged more than")), "{exit:?}");
    kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_models_cost_ends_a_process_that_has_spent_its_money() {
    let mut lab = Lab::new(&[STEPPER]);
    let script = lab.world.dir.path().join("priced.jsonl");
    let line = r#"{"text":"x","usage":{"input":10,"cached":4,"output":1}}"#;
    std::fs::write(&script, format!("{line}\n{line}\n{line}\n")).unwrap();
    let server = FakeLlm::start(&script, "stepper").await.unwrap();
    lab.model = "fake/m".to_owned();
    let price = "[llm.prices.\"fake/m\"]\ninput = 2\ncached = 0.5\noutput = 10\n";
    let toml = format!(
        "[llm.providers.fake]\nkind = \"openai\"\nbase_url = \"{}\"\nnative_tools = true\n{price}",
        server.url()
    );
    let path = lab.world.dir.path().join("aok.toml");
    std::fs::write(&path, toml).unwrap();
    let kernel = lab.kernel_with(Config::load(&path, true).unwrap()).await;
    // One call costs 6 * 2 + 4 * 0.5 + 10 micro-USD.
    let asks = json!([{"op": "generate"}, {"op": "generate"}, {"op": "generate"}]);
    let mut request = lab.request("stepper", asks);
    request.quota.micro_usd = 40;
    let (pid, _events) = kernel.spawn(request).await.unwrap();
    let exit = in_time(kernel.wait(pid)).await.unwrap();
    assert!(matches!(&exit, Exit::OverQuota(why) if why.contains("--max-usd")), "{exit:?}");
    let process = kernel.ps().await.unwrap().into_iter().find(|p| p.pid == pid.0).unwrap();
    assert_eq!((process.micro_usd, server.requests().len()), (Some(48), 2), "the third call is not made");
    kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_denies_and_rewrites_a_spawn() {
    let lab = Lab::new(&[STEPPER]);
    let kernel = lab.kernel().await;
    kernel.register_hook(Hook::BeforeAgentSpawn, "gate", |event: &HookEvent| {
        assert_eq!((event.pid, event.point), (None, Hook::BeforeAgentSpawn));
        let mut subject = event.subject.clone();
        match subject["name"].as_str() {
            Some("bad") => return Verdict::Deny("not on my machine".to_owned()),
            Some("broken") => subject["nice"] = json!("very"),
            Some("unknown") => subject["agent"] = json!("nobody"),
            _ => subject["task"] = json!(r#"[{"op":"pid"}]"#),
        }
        Verdict::Rewrite(subject)
    });
    let named = |name: &str| SpawnRequest { name: Some(name.to_owned()), ..lab.request("stepper", "not even JSON") };
    match kernel.spawn(named("bad")).await {
        Err(Error::Denied { by, reason }) => assert_eq!((by.as_str(), reason.as_str()), ("gate", "not on my machine")),
        other => panic!("{other:?}"),
    }
    match kernel.spawn(named("broken")).await {
        Err(Error::Denied { by, reason }) => {
            assert!(by == "gate" && reason.contains("BEFORE_AGENT_SPAWN") && reason.contains("/nice"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(kernel.spawn(named("unknown")).await, Err(Error::UnknownAgent { name, .. }) if name == "nobody"));
    let (pid, _events) = kernel.spawn(named("good")).await.unwrap();
    assert_eq!(answer(&kernel, pid).await, json!([pid.0]));
    assert_eq!(kernel.ps().await.unwrap().len(), 1, "what was refused is not a process");
    let spawns = audited(&kernel, Pid::KERNEL, "spawn").await;
    let record = |decision: &str| ("stepper".to_owned(), decision.to_owned(), "gate".to_owned());
    assert_eq!(spawns, ["deny", "deny", "rewrite", "rewrite"].map(record), "what it did is in the kernel's chain");
    kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_denies_and_rewrites_model_calls_and_sees_a_process_to_its_end() {
    let lab = Lab::new(&[STEPPER]);
    let other = lab.world.dir.path().join("other.jsonl");
    std::fs::write(&other, "{\"text\":\"from the other\"}\n{\"text\":\"again\"}\n").unwrap();
    let other = format!("script/{}", other.display());
    let kernel = lab.kernel().await;
    kernel.register_hook(Hook::BeforeLlmCall, "router", move |event| {
        let mut subject = event.subject.clone();
        if subject["max_tokens"] == 13 {
            return Verdict::Deny("thirteen".to_owned());
        }
        subject["model"] = json!(other);
        Verdict::Rewrite(subject)
    });
    let seen: Arc<Mutex<Vec<(Hook, Value)>>> = Arc::default();
    for point in
        [Hook::AfterAgentSpawn, Hook::BeforeStep, Hook::AfterStep, Hook::AfterLlmCall, Hook::OnError, Hook::OnAgentExit]
    {
        let seen = Arc::clone(&seen);
        kernel.register_hook(point, "watch", move |event| {
            seen.lock().unwrap().push((event.point, event.subject.clone()));
            Verdict::Allow
        });
    }
    let operations = json!([
        { "op": "generate", "max_tokens": 13 }, { "op": "step" }, { "op": "read", "id": 999 },
        { "op": "fail", "message": "enough" },
    ]);
    let (pid, _events) = kernel.spawn(lab.request("stepper", &operations)).await.unwrap();
    let exit = in_time(kernel.wait(pid)).await.unwrap();
    assert_eq!(exit, Exit::Failure("enough".to_owned()));
    let seen = seen.lock().unwrap().clone();
    let points: Vec<Hook> = seen.iter().map(|(point, _)| *point).collect();
    use Hook::{AfterAgentSpawn, AfterLlmCall, AfterStep, BeforeStep, OnAgentExit, OnError};
    assert_eq!(
        points,
        [AfterAgentSpawn, OnError, BeforeStep, AfterLlmCall, AfterStep, OnError, OnAgentExit],
        "{seen:?}"
    );
    assert_eq!(seen[1].1["error"]["code"], "denied");
    assert!(seen[3].1["outcome"]["reply"]["text"].as_str().is_some_and(|t| !t.is_empty()), "{:?}", seen[3]);
    assert_eq!((&seen[6].1["status"], &seen[6].1["message"]), (&json!("failure"), &json!("enough")));
    let asked = audited(&kernel, pid, "generate").await;
    assert_eq!((asked[0].1.as_str(), asked[0].2.as_str()), ("deny", "router"));
    assert!(asked[1].0.ends_with("other.jsonl") && asked[1].1 == "rewrite", "{asked:?}");
    // A denied model call is the assistant's end, with the hook's name and reason.
    kernel.register_hook(Hook::BeforeLlmCall, "closed", |_| Verdict::Deny("after hours".to_owned()));
    let (pid, _events) = kernel.spawn(lab.request("", "say hello")).await.unwrap();
    let exit = in_time(kernel.wait(pid)).await.unwrap();
    assert!(matches!(&exit, Exit::Failure(why) if why.contains("`closed`") && why.contains("after hours")), "{exit:?}");
    kernel.shutdown().await;
}

// Context.

/// A page of a few thousand bytes that no other equals.
fn large(n: usize) -> String {
    (0..120).map(|i| format!("page {n} line {i}: the quick brown fox\n")).collect()
}

#[test]
fn a_run_far_larger_than_its_window_loses_nothing() {
    const PAGES: usize = 24;
    const WINDOW: u32 = 8192;
    let world = World::new();
    world.install(STEPPER);
    // The server counts the replies that it is shown, and here they are swapped out: all lines say the same.
    let reply = json!({ "text": "I see.", "expect": "the quick brown fox" });
    let script = world.script(&vec![reply; PAGES + 1]);
    let server = ModelServer::start(Path::new(script.trim_start_matches("script/")), "stepper");
    world.configure(&server.config(WINDOW));
    let huge = "the quick brown fox, and on and on. ".repeat(3_000);
    let texts: Vec<String> = (0..PAGES).map(large).chain([huge]).collect();
    let mut operations = Vec::new();
    for text in &texts {
        operations.push(json!({ "op": "append", "kind": "note", "text": text }));
        operations.push(json!({ "op": "generate" }));
    }
    // Three pages of the head, then note and reply in turns.
    let id_of = |n: usize| 4 + 2 * n;
    operations.extend((0..texts.len()).map(|n| json!({ "op": "read", "id": id_of(n) })));
    operations.push(json!({ "op": "usage" }));
    let task = Value::from(operations).to_string();
    let task_file = world.dir.path().join("task.json");
    std::fs::write(&task_file, task).unwrap();
    let mut command = world.aok(&["--json", "run", "stepper", "--task", "-", "--model", "fake/m"]);
    let output = command.stdin(std::fs::File::open(&task_file).unwrap()).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    let events: Vec<Value> = stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let exit = events.last().unwrap();
    let said: Value = serde_json::from_str(exit["answer"].as_str().unwrap()).unwrap();
    for n in 0..texts.len() {
        assert_eq!((&said[2 * n], &said[2 * n + 1]["text"]), (&json!(id_of(n)), &json!("I see.")), "turn {n}");
        assert!(said[2 * texts.len() + n] == texts[n].as_str(), "page {} is not what was appended", id_of(n));
    }
    let out: Vec<u64> =
        events.iter().filter(|e| e["type"] == "page_out").map(|e| e["page"].as_u64().unwrap()).collect();
    let usage = said.as_array().unwrap().last().unwrap();
    assert!(
        out.len() > PAGES && usage["swapped_pages"] == out.len() && usage["evictions"] == out.len(),
        "{out:?} {usage}"
    );
    assert!(usage["faults"].as_u64() > Some(0), "{usage}");
    for start in events.iter().filter(|e| e["type"] == "llm_start") {
        assert!(start["prompt_tokens"].as_u64() <= Some(u64::from(WINDOW)), "{start}");
    }
    let pages = world.run(&["--json", "context", &exit["pid"].to_string()]).exits(0).lines();
    assert_eq!(pages.len(), 3 + 2 * texts.len());
    let swapped: Vec<u64> =
        pages.iter().filter(|p| p["resident"] == false).map(|p| p["id"].as_u64().unwrap()).collect();
    assert_eq!(swapped, out, "oldest first, and none came back by itself");
    assert!(pages.iter().all(|p| (p["region"] == "swapped") == (p["resident"] == false)));
    assert!(pages[pages.len() - swapped.len()..].iter().all(|p| p["resident"] == false), "swapped ones stand last");
}

// The run queue.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_make_progress_beside_one_that_only_computes() {
    let lab = Lab::new(&[SPINNER, TALKER]);
    let scheduler = SchedulerConfig { workers: Some(1), ..SchedulerConfig::default() };
    let kernel = lab.kernel_with(Config { scheduler, ..Config::default() }).await;
    let (spinner, mut spins) = kernel.spawn(lab.request("spinner", 1_000_000_000_u64)).await.unwrap();
    let (one, _events) = kernel.spawn(lab.request("talker", "append 100")).await.unwrap();
    let (two, _events) = kernel.spawn(lab.request("talker", "put 100")).await.unwrap();
    assert_eq!(answer(&kernel, one).await, 100);
    assert_eq!(answer(&kernel, two).await, 100);
    let all = kernel.ps().await.unwrap();
    let row = all.iter().find(|p| p.pid == spinner.0).unwrap();
    assert!(row.exit.is_none() && row.slices > 1 && row.fuel > 0, "{row:?}");
    kernel.kill(spinner, "enough").await.unwrap();
    assert_eq!(kernel.wait(spinner).await.unwrap(), Exit::Killed("enough".to_owned()));
    let last = event(&mut spins, |e| matches!(e, EventKind::Exit { .. })).await;
    assert!(matches!(last.kind, EventKind::Exit { status, .. } if status == "killed"));
    kernel.shutdown().await;
}
