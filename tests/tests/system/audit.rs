//! `aok audit verify` against a store that somebody changed behind the kernel's back.

use serde_json::{Value, json};

use super::support::*;

/// A world with two ended processes: a run with several syscalls (1), and a tool call from outside (2).
fn world() -> World {
    let world = World::new();
    std::fs::write(world.work().join("note.txt"), "seven\n").unwrap();
    let model = world.script(&[
        json!({"tool_calls": [{"id": "a", "name": "fs__read", "arguments": {"path": "work/note.txt"}}]}),
        json!({"tool_calls": [{"id": "b", "name": "calc__eval", "arguments": {"expression": "7*6"}}]}),
        json!({"text": "done"}),
    ]);
    let work = world.work();
    world.run(&["run", "--task", "read", "--model", &model, "--dir", work.to_str().unwrap()]).exits(0);
    world.run(&["tool", "call", "calc__eval", r#"{"expression":"1+1"}"#]).exits(0);
    world
}

/// The length of a chain.
fn length(world: &World, pid: u64) -> u64 {
    world.sqlite(&format!("SELECT count(*) FROM audit WHERE pid = {pid}"))[0][0].as_u64().unwrap()
}

#[track_caller]
fn holds(world: &World) -> u64 {
    let verdict = world.run(&["audit", "verify", "--json"]).exits(0).lines().pop().unwrap();
    assert_eq!(verdict["ok"], true, "{verdict}");
    verdict["records"].as_u64().unwrap()
}

/// The store must be found broken at `seq` of `pid`.
#[track_caller]
fn is_broken(world: &World, pid: u64, seq: u64, why: &str) {
    let ran = world.run(&["audit", "verify", "--json"]).exits(1);
    assert_eq!(ran.lines(), [json!({"ok": false, "pid": pid, "seq": seq, "why": why})]);
    let error = ran.error();
    assert_eq!(error["code"], "audit_broken");
    assert!(!error["hint"].as_str().unwrap().is_empty(), "{error}");
}

#[test]
fn an_untouched_store_holds_and_counts_its_records() {
    let world = world();
    let records = world.sqlite("SELECT count(*) FROM audit")[0][0].as_u64().unwrap();
    assert!(length(&world, 1) >= 6 && length(&world, 2) >= 3, "{records} records are fewer than what happened");
    assert_eq!(holds(&world), records);
    // The check itself writes nothing.
    assert_eq!(holds(&world), records);
    let text = world.run(&["audit", "verify"]).exits(0).stdout;
    assert!(text.contains(&records.to_string()), "{text}");
}

#[test]
fn every_changed_field_of_a_record_is_found() {
    let world = world();
    // The kernels are gone, so the store is this one file.
    let (store, honest) = (world.data().join("aok.db"), std::fs::read(world.data().join("aok.db")).unwrap());
    for (pid, field, new) in [
        (1, "at_ms", "at_ms + 1"),
        (1, "event", "event || 'x'"),
        (1, "object", "object || 'x'"),
        (1, "decision", "'deny'"),
        (1, "by", "'person'"),
        (1, "prev", "hash"),
        (1, "hash", "prev"),
        (2, "decision", "'deny'"),
        (0, "object", "object || 'x'"),
    ] {
        let seq = length(&world, pid) / 2 + 1;
        world.sqlite(&format!("UPDATE audit SET \"{field}\" = {new} WHERE pid = {pid} AND seq = {seq}"));
        is_broken(&world, pid, seq, "changed");
        std::fs::write(&store, &honest).unwrap();
    }
    holds(&world);
}

#[test]
fn a_removed_record_is_found_wherever_it_stood() {
    for (pid, place) in [(1, "first"), (1, "middle"), (1, "last"), (2, "last"), (0, "middle"), (0, "last")] {
        let world = world();
        let last = length(&world, pid);
        let (seq, why) = match place {
            "first" => (1, "missing"),
            "middle" => (last / 2 + 1, "missing"),
            _ => (last, "truncated"),
        };
        world.sqlite(&format!("DELETE FROM audit WHERE pid = {pid} AND seq = {seq}"));
        is_broken(&world, pid, seq, why);
    }
}

#[test]
fn a_removed_chain_is_found() {
    let world = world();
    world.sqlite("DELETE FROM audit WHERE pid = 2");
    is_broken(&world, 2, 1, "missing");
    // With its head too: the process is still there.
    world.sqlite("DELETE FROM audit_head WHERE pid = 2");
    is_broken(&world, 2, 1, "missing");
}

#[test]
fn a_chain_that_is_cut_together_with_its_head_does_not_fit_the_kernels_chain() {
    let world = world();
    let last = length(&world, 1);
    world.sqlite(&format!("DELETE FROM audit WHERE pid = 1 AND seq = {last}"));
    let hash = world.sqlite(&format!("SELECT hash FROM audit WHERE pid = 1 AND seq = {}", last - 1));
    let hash = hash[0][0].as_str().unwrap().to_owned();
    world.sqlite(&format!("UPDATE audit_head SET seq = {}, hash = '{hash}' WHERE pid = 1", last - 1));
    is_broken(&world, 1, last, "truncated");
}

#[test]
fn records_in_each_others_place_are_found() {
    for (pid, columns) in [
        // Whole rows, their places kept: `seq` goes along.
        (1, "seq, at_ms, event, object, decision, \"by\", prev, hash"),
        // All that a row says but its position.
        (1, "at_ms, event, object, decision, \"by\", prev, hash"),
        // What it is about, position and links kept.
        (1, "at_ms, event, object, decision, \"by\""),
        (0, "at_ms, event, object, decision, \"by\""),
    ] {
        let world = world();
        let rows = world
            .sqlite(&format!("SELECT rowid, {columns} FROM audit WHERE pid = {pid} AND seq IN (1, 3) ORDER BY seq"));
        let [first, third] = rows.as_slice() else { panic!("the chain is too short: {rows:?}") };
        for (to, from) in [(first, third), (third, first)] {
            let values: Vec<String> = from[1..].iter().map(sql).collect();
            world.sqlite(&format!("UPDATE audit SET ({columns}) = ({}) WHERE rowid = {}", values.join(", "), to[0]));
        }
        is_broken(&world, pid, 1, "reordered");
    }
}

fn sql(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), |text| format!("'{}'", text.replace('\'', "''")))
}

#[test]
fn a_live_kernel_finds_it_too() {
    let world = world();
    world.install(STEPPER);
    let task = json!([{"op": "sleep", "ms": 600_000}]).to_string();
    let model = world.script(&[]);
    let mut live = world.start(&["run", "stepper", "--task", &task, "--model", &model, "--json"]);
    live.event("spawned");
    holds(&world);
    world.sqlite("UPDATE audit SET decision = 'deny' WHERE pid = 1 AND seq = 2");
    is_broken(&world, 1, 2, "changed");
}
