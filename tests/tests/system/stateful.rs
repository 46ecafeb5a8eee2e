//! `stateful = true`: one instance of a plugin for all calls of a process.

use std::fs;

use serde_json::{Value, json};

use super::support::{World, calls};

/// Counts its calls in a global, and has functions that run into limits.
const COUNTER: &str = r#"(component
    (core module $m
        (global $calls (mut i32) (i32.const 0))
        (memory 1)
        (func (export "next") (result i32)
            (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
            (global.get $calls))
        (func (export "break") (result i32) unreachable)
        ;; Takes eight MiB more and keeps them.
        (func (export "grow") (result i32) (memory.grow (i32.const 128)))
        ;; Uses about n fuel.
        (func (export "work") (param $n i32) (result i32)
            (loop $again
                (local.set $n (i32.sub (local.get $n) (i32.const 6)))
                (br_if $again (i32.gt_s (local.get $n) (i32.const 0))))
            (i32.const 0)))
    (core instance $i (instantiate $m))
    (func (export "next") (result u32) (canon lift (core func $i "next")))
    (func (export "break") (result u32) (canon lift (core func $i "break")))
    (func (export "grow") (result u32) (canon lift (core func $i "grow")))
    (func (export "work") (param "n" u32) (result u32) (canon lift (core func $i "work"))))"#;

/// A world with the counter under `manifest`.
fn world(manifest: &str) -> World {
    let world = World::new();
    fs::write(world.plugins().join("counter.wasm"), wat::parse_str(COUNTER).unwrap()).unwrap();
    fs::write(world.plugins().join("counter.toml"), manifest).unwrap();
    world
}

/// What one process's calls of the counter gave, in order; `null` for one that failed.
fn results(world: &World, tools: &[(&str, Value)]) -> Vec<Value> {
    let call = |(n, (tool, arguments)): (usize, &(&str, Value))| {
        calls(&format!("c{n}"), &format!("counter__{tool}"), arguments)
    };
    let mut script: Vec<Value> = tools.iter().enumerate().map(call).collect();
    script.push(json!({ "text": "done" }));
    let model = world.script(&script);
    let events = world.run(&["run", "--task", "count", "--model", &model, "--json"]).exits(0).lines();
    events.into_iter().filter(|e| e["type"] == "tool_end").map(|e| e["result"].clone()).collect()
}

fn counted(results: &[Value]) -> Vec<Option<u64>> {
    // A result is the tool's JSON as text.
    results.iter().map(|r| r.as_u64().or_else(|| r.as_str()?.parse().ok())).collect()
}

fn call(tool: &str) -> (&str, Value) {
    (tool, json!({}))
}

#[test]
fn a_process_has_one_instance_that_no_other_sees_and_a_broken_one_is_replaced() {
    let next = || call("next");
    // The assistant ends a run that repeats itself three times.
    let calls = [next(), next(), call("break"), next(), next()];
    let stateful = world("stateful = true");
    for _ in 0..2 {
        let seen = counted(&results(&stateful, &calls));
        assert_eq!(seen, [Some(1), Some(2), None, Some(1), Some(2)]);
    }
    for _ in 0..2 {
        assert_eq!(stateful.run(&["tool", "call", "counter__next"]).exits(0).stdout.trim(), "1");
    }
    let plain = world("");
    assert_eq!(counted(&results(&plain, &calls)), [Some(1), Some(1), None, Some(1), Some(1)]);
}

#[test]
fn each_call_has_its_own_fuel_and_what_an_instance_holds_counts_on() {
    let work = |n| ("work", json!({ "n": n }));
    let world = world("stateful = true\n[limits]\nfuel = 1000000\nmemory = \"20MiB\"");
    let seen = counted(&results(&world, &[work(600_000), work(600_006), work(600_012), call("next")]));
    assert_eq!(seen, [Some(0), Some(0), Some(0), Some(1)]);
    let seen = counted(&results(&world, &[call("next"), call("grow"), call("grow"), call("grow"), call("next")]));
    // The third time it would hold more than 20 MiB: it is stopped, and the next instance is new.
    assert_eq!((seen[0], seen[1].is_some(), seen[2].is_some()), (Some(1), true, true));
    assert_eq!((seen[3], seen[4]), (None, Some(1)));
}
