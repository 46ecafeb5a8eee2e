//! `aok mcp` as its clients see it: over the wire, and through the official client.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use agent_os_kernel::capability::Rights;
use agent_os_kernel::config::Config;
use agent_os_kernel::kernel::{Error, Kernel};
use serde_json::{Value, json};
use system_tests::herald::{put, version};

use super::support::{HERALD, PATIENCE, PROBE, World, aok_binary, eventually};

/// A client that speaks JSON-RPC by itself.
struct Client {
    child: Child,
    input: Option<ChildStdin>,
    output: Receiver<String>,
    next: u64,
    /// Notifications that came while an answer was waited for.
    told: Vec<Value>,
}

impl Client {
    fn start(world: &World, arguments: &[&str]) -> Self {
        let mut aok = world.aok(&[&["mcp"], arguments].concat());
        let mut child = aok.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let (send, output) = channel();
        let reader = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || reader.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        let input = child.stdin.take();
        Self { child, input, output, next: 0, told: Vec::new() }
    }

    /// A client that has shaken hands.
    fn greeted(world: &World, arguments: &[&str]) -> Self {
        let mut client = Self::start(world, arguments);
        let hello = client.ask(
            "initialize",
            &json!({
                "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}
            }),
        );
        assert_eq!(hello["result"]["serverInfo"]["name"], "aok", "{hello}");
        assert_eq!(hello["result"]["capabilities"]["tools"]["listChanged"], true, "{hello}");
        client.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}));
        client
    }

    fn send(&mut self, message: &Value) {
        self.line(&message.to_string());
    }

    fn line(&mut self, line: &str) {
        let input = self.input.as_mut().expect("the input is open");
        writeln!(input, "{line}").expect("aok reads");
    }

    fn begin(&mut self, method: &str, params: &Value) -> u64 {
        self.next += 1;
        let id = self.next;
        self.send(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}));
        id
    }

    #[track_caller]
    fn ask(&mut self, method: &str, params: &Value) -> Value {
        let id = self.begin(method, params);
        self.answer(id)
    }

    #[track_caller]
    fn answer(&mut self, id: u64) -> Value {
        loop {
            let message = self.message();
            if message["id"] == id {
                return message;
            }
            self.told.push(message);
        }
    }

    #[track_caller]
    fn message(&mut self) -> Value {
        let line = self.output.recv_timeout(PATIENCE).expect("aok answers");
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("`{line}` is no JSON: {e}"))
    }

    #[track_caller]
    fn call(&mut self, name: &str, arguments: &Value) -> Value {
        self.ask("tools/call", &json!({"name": name, "arguments": arguments}))
    }

    #[track_caller]
    fn tools(&mut self) -> Vec<Value> {
        self.ask("tools/list", &json!({}))["result"]["tools"].as_array().expect("a list of tools").clone()
    }

    /// Closes the input and waits for the end.
    #[track_caller]
    fn end(mut self) -> Option<i32> {
        drop(self.input.take());
        eventually("the end of aok mcp", || self.child.try_wait().unwrap()).code()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Both fail where it has ended already, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Counts its calls in a global.
const TALLY: &str = r#"(component
    (core module $m
        (global $calls (mut i32) (i32.const 0))
        (func (export "next") (result i32)
            (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
            (global.get $calls)))
    (core instance $i (instantiate $m))
    (func (export "next") (result u32) (canon lift (core func $i "next"))))"#;

/// Turns that no test waits for.
const ENDLESS: u64 = u64::MAX / 8;

/// A world in which the herald's slow tool does not come to its end.
fn endless() -> World {
    let world = World::new();
    world.configure(&format!("[limits]\nfuel = {}\nwall_ms = 3600000", i64::MAX));
    world.install(HERALD);
    world
}

fn names(tools: &[Value]) -> Vec<&str> {
    tools.iter().map(|t| t["name"].as_str().unwrap()).collect()
}

#[test]
fn a_client_lists_the_tools_that_its_grants_allow_and_calls_them() {
    let world = World::new();
    world.install(PROBE);
    fs::write(world.work().join("a.txt"), "x").unwrap();
    let dir = world.work().display().to_string();
    let mut client = Client::greeted(&world, &["--dir", &dir]);
    let tools = client.tools();
    let names = names(&tools);
    assert!(names.contains(&"fs__read") && names.contains(&"probe__echo"), "{names:?}");
    assert!(!names.contains(&"fs__write") && !names.contains(&"http__fetch"), "no grant, no tool: {names:?}");
    let of = |name: &str| tools.iter().find(|t| t["name"] == name).unwrap();
    assert_eq!(of("calc__eval")["annotations"]["readOnlyHint"], true);
    assert_eq!(of("probe__counter")["annotations"]["destructiveHint"], true);
    assert!(tools.iter().all(|t| t["inputSchema"]["type"] == "object"));
    let echoed = client.call("probe__echo", &json!({"a": 1}));
    assert_eq!(echoed["result"]["structuredContent"], json!({"a": 1}), "{echoed}");
    assert_eq!(echoed["result"]["content"][0]["text"], "{\"a\":1}");
    let listed = client.call("fs__list", &json!({"path": "work"}));
    assert!(listed["result"]["content"][0]["text"].as_str().unwrap().contains("a.txt"), "{listed}");
    // What goes wrong inside a tool is for the model, what is wrong with the request is the client's.
    let wrong = client.call("calc__eval", &json!({"expression": 5}));
    assert_eq!(wrong["result"]["isError"], true, "{wrong}");
    assert!(wrong["result"]["content"][0]["text"].as_str().unwrap().contains("/expression"), "{wrong}");
    let unknown = client.call("nobody__nothing", &json!({}));
    assert_eq!(unknown["error"]["code"], -32602, "{unknown}");
    assert_eq!(client.end(), Some(0));
    // One process made the calls, in the audit log as any other, and it ended with the connection.
    let calls = world.run(&["audit", "tail", "-n", "1000", "--json"]).exits(0).lines();
    let tool = |name: &str| calls.iter().filter(|r| r["object"].as_str().is_some_and(|o| o.contains(name))).count();
    assert!(tool("probe__echo") > 0 && tool("fs__list") > 0, "{calls:#?}");
    let all = world.run(&["ps", "--json"]).exits(0).lines();
    let seen: Vec<_> = all.iter().map(|p| (&p["name"], &p["state"], &p["exit"]["status"])).collect();
    assert_eq!(seen, [(&json!("mcp"), &json!("Z"), &json!("success"))], "{all:?}");
    world.run(&["audit", "verify"]).exits(0);
}

#[test]
fn a_client_is_told_when_the_tools_change_also_by_a_running_kernel() {
    let herald = fs::read(HERALD).unwrap();
    for live in [true, false] {
        let world = World::new();
        let running = live.then(|| world.waiting());
        let mut client = Client::greeted(&world, &[]);
        assert!(!names(&client.tools()).contains(&"herald__tell"));
        put(&world.plugins().join("herald.wasm"), &version(&herald, 1)).unwrap();
        while client.message()["method"] != "notifications/tools/list_changed" {}
        assert!(names(&client.tools()).contains(&"herald__tell"));
        assert_eq!(client.call("herald__tell", &json!({}))["result"]["content"][0]["text"], "0001");
        assert_eq!(client.end(), Some(0));
        drop(running);
    }
}

#[test]
fn a_kernel_that_ends_does_not_wait_for_its_mcp_clients_and_leaves_them_served() {
    let world = World::new();
    let model = world.slow(1_500);
    let mut run = world.start(&["run", "--task", "wait", "--model", &model, "--json"]);
    run.event("tool_end");
    let mut client = Client::greeted(&world, &[]);
    let product = |client: &mut Client| client.call("calc__eval", &json!({"expression": "6*7"}));
    assert_eq!(product(&mut client)["result"]["structuredContent"]["value"], 42);
    run.end().exits(0);
    assert_eq!(product(&mut client)["result"]["structuredContent"]["value"], 42);
    // It has a kernel of its own now, which serves others.
    world.run(&["tool", "call", "calc__eval", "{\"expression\":\"1+1\"}"]).exits(0);
    assert_eq!(client.end(), Some(0));
}

#[test]
fn a_cancelled_call_stops_and_the_connection_goes_on() {
    let world = endless();
    let mut client = Client::greeted(&world, &[]);
    let slow = client.begin("tools/call", &json!({"name": "herald__slow", "arguments": {"turns": ENDLESS}}));
    // Another call is answered while it runs.
    assert_eq!(client.call("calc__eval", &json!({"expression": "6*7"}))["result"]["structuredContent"]["value"], 42);
    eventually("the slow call", || {
        let all = world.run(&["ps", "--json"]).exits(0).lines();
        all.into_iter().find(|p| p["name"] == "mcp" && p["waiting_on"].to_string().contains("herald__slow"))
    });
    client.send(&json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": slow}}));
    let ended = eventually("the end of the cancelled call", || {
        let all = world.run(&["audit", "tail", "-n", "1000", "--json"]).exits(0).lines();
        all.into_iter().find(|r| r["object"].to_string().contains("herald__slow"))
    });
    assert_eq!(ended["decision"], "error", "{ended}");
    assert!(client.call("herald__tell", &json!({}))["result"].is_object());
    assert_eq!(client.end(), Some(0));
}

#[test]
fn each_connection_has_one_process_for_all_its_calls() {
    let world = World::new();
    world.install(HERALD);
    fs::write(world.plugins().join("tally.wasm"), wat::parse_str(TALLY).unwrap()).unwrap();
    fs::write(world.plugins().join("tally.toml"), "stateful = true").unwrap();
    let (mut one, mut two) = (Client::greeted(&world, &[]), Client::greeted(&world, &[]));
    let next = |client: &mut Client| client.call("tally__next", &json!({}))["result"]["content"][0]["text"].clone();
    assert_eq!([next(&mut one), next(&mut one), next(&mut two), next(&mut one)], ["1", "2", "1", "3"]);
    let running = || {
        let all = world.run(&["ps", "--json"]).exits(0).lines();
        let mut pids: Vec<u64> = all
            .iter()
            .filter(|p| p["name"] == "mcp" && p["state"] != "Z")
            .map(|p| p["pid"].as_u64().unwrap())
            .collect();
        pids.sort_unstable();
        pids
    };
    assert_eq!(running().len(), 2);
    assert_eq!((one.end(), two.end()), (Some(0), Some(0)));
    assert!(running().is_empty());
    world.run(&["audit", "verify"]).exits(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_a_connection_run_side_by_side_and_end_with_who_waits_or_with_its_process() {
    let world = endless();
    let config = Config::load(&world.data().join("aok.toml"), true).unwrap();
    let builder = Kernel::builder(world.data()).plugin_dir(world.plugins()).config(config);
    let kernel = builder.start().await.unwrap();
    let connection = kernel.connect("test", Rights::default()).await.unwrap();
    let pid = connection.pid();
    assert!(kernel.running().is_empty(), "one that makes no call keeps no kernel");
    let slow = || {
        let (kernel, arguments) = (kernel.clone(), json!({ "turns": ENDLESS }).to_string());
        tokio::spawn(async move { kernel.call_on(pid, "herald__slow", &arguments).await })
    };
    let (given_up, kept) = (slow(), slow());
    let six = kernel.call_on(pid, "calc__eval", r#"{"expression": "6"}"#).await.unwrap();
    assert_eq!(six.outcome.unwrap(), r#"{"value":6}"#);
    assert_eq!(kernel.running(), [pid]);
    given_up.abort();
    let seven = kernel.call_on(pid, "calc__eval", r#"{"expression": "7"}"#).await.unwrap();
    assert_eq!(seven.pid, pid.0);
    let wrong = kernel.call_on(pid, "nobody__nothing", "{}").await.unwrap_err();
    assert!(matches!(wrong, Error::UnknownTool { .. }), "{wrong}");

    kernel.kill(pid, "the test has seen enough").await.unwrap();
    connection.ended().await;
    let cut = kept.await.unwrap().unwrap_err();
    assert!(matches!(cut, Error::Suspended { .. }), "{cut}");
    let late = kernel.call_on(pid, "calc__eval", r#"{"expression": "8"}"#).await.unwrap_err();
    assert!(matches!(late, Error::UnknownProcess { .. }), "{late}");
    kernel.shutdown().await;
    world.run(&["audit", "verify"]).exits(0);
}

#[test]
fn a_client_that_asks_for_it_is_told_that_its_call_runs() {
    let world = endless();
    let mut client = Client::greeted(&world, &[]);
    let slow = |token: Option<&str>| {
        let mut params = json!({"name": "herald__slow", "arguments": {"turns": ENDLESS}});
        if let Some(token) = token {
            params["_meta"] = json!({"progressToken": token});
        }
        params
    };
    client.begin("tools/call", &slow(None));
    client.begin("tools/call", &slow(Some("mine")));
    let mut before = 0.0;
    while before < 2.0 {
        let told = client.message();
        if told["method"] == "notifications/progress" {
            assert_eq!(told["params"]["progressToken"], "mine", "{told}");
            let now = told["params"]["progress"].as_f64().unwrap();
            assert!(now > before, "{told} after {before}");
            before = now;
        }
    }
    assert_eq!(client.end(), Some(0));
}

#[test]
fn no_input_of_a_client_hangs_or_breaks_it() {
    let world = endless();
    // It leaves without a word, or says nothing that it should.
    assert_eq!(Client::start(&world, &[]).end(), Some(0));
    let mut client = Client::start(&world, &[]);
    client.line("this is not JSON");
    client.line("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/list\"}");
    let code = client.end();
    assert!(matches!(code, Some(0 | 2)), "{code:?}");
    // Garbage in the middle, an unknown method, arguments that are none, and a line beyond every bound.
    let mut client = Client::greeted(&world, &[]);
    client.line("{\"jsonrpc\":");
    client.line(&"x".repeat(20 << 20));
    assert_eq!(client.ask("tools/frobnicate", &json!({}))["error"]["code"], -32601);
    assert!(client.ask("tools/call", &json!({"name": 5}))["error"]["code"].is_i64());
    assert_eq!(client.call("calc__eval", &json!({"expression": "1+1"}))["result"]["structuredContent"]["value"], 2);
    // It leaves in the middle of a call, which ends with it.
    client.begin("tools/call", &json!({"name": "herald__slow", "arguments": {"turns": ENDLESS}}));
    let code = client.end();
    assert_eq!(code, Some(0));
}

#[test]
fn the_official_client_lists_and_calls() {
    let Some(packages) = std::env::var_os("AOK_PYTHON_SDKS") else {
        assert!(std::env::var_os("AOK_TEST_ALL").is_none(), "AOK_PYTHON_SDKS does not say where the clients are");
        eprintln!("skipped: `cargo xtask test --all` installs the official clients");
        return;
    };
    let world = World::new();
    world.install(PROBE);
    fs::write(world.work().join("a.txt"), "x").unwrap();
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/mcp_client.py");
    let mut python = Command::new("python3");
    python.arg("-B").arg(program).env("PYTHONPATH", packages).arg(aok_binary()).arg("--data").arg(world.data());
    python.arg("--plugins").arg(world.plugins()).args(["mcp", "--dir"]).arg(world.work());
    let output = python.output().expect("python3 is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let seen: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(seen["server"], "aok");
    assert_eq!(seen["tools"]["calc__eval"]["annotations"]["readOnlyHint"], true, "{seen}");
    assert!(seen["tools"].get("fs__write").is_none());
    assert_eq!(seen["echo"], json!({"error": false, "text": ["{\"a\":1}"], "structured": {"a": 1}}));
    assert!(seen["list"]["text"][0].as_str().unwrap().contains("a.txt"));
    assert_eq!(seen["wrong"]["error"], true, "{seen}");
    assert_eq!(seen["unknown"]["refused"], -32602, "{seen}");
    let squares: Vec<_> =
        seen["at_once"].as_array().unwrap().iter().map(|r| r["structured"]["value"].as_i64()).collect();
    assert_eq!(squares, (0..20).map(|n| Some(n * n)).collect::<Vec<_>>());
}
