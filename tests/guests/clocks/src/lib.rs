//! Reads WASI's clocks and random before and after a sleep of 500 ms on a WASI pollable: in an agent all of them
//! must be virtual. Answers with what it read, as JSON. In between it logs what it has read so far: a replay that reads
//! anything else makes another syscall than the journal has.

use agent_os_sdk::{Agent, Task, log, tools};
use serde_json::{Value, json};
use wasip2::clocks::{monotonic_clock, wall_clock};
use wasip2::random::{insecure, insecure_seed, random};

const SLEEP_NS: u64 = 500_000_000;

/// Lines that are logged between the sleeps.
const LINES: usize = 20;

struct Clocks;

impl Agent for Clocks {
    fn run(_: Task) -> Result<String, String> {
        let before = now();
        monotonic_clock::subscribe_duration(SLEEP_NS).block();
        let after = now();
        let drawn = random::get_random_u64();
        log::info(&json!({ "after": after, "drawn": drawn }).to_string());
        // Each outcome moves the clock, and a replay must move it to the very same instant. A call that waits for the
        // store shows it best; without the tool its error is an outcome too.
        for _ in 0..LINES {
            drop(tools::call("probe__counter", "{}"));
            log::info(&now().to_string());
        }
        let until = monotonic_clock::subscribe_instant(monotonic_clock::now() + SLEEP_NS);
        wasip2::io::poll::poll(&[&until]);
        let answer = json!({
            "before": before,
            "after": after,
            "after_poll": now(),
            "drawn": drawn,
            "random": [random::get_random_u64(), insecure::get_insecure_random_u64(), insecure_seed::insecure_seed().0],
            "random_bytes": random::get_random_bytes(16),
        });
        Ok(answer.to_string())
    }
}

fn now() -> Value {
    let wall = wall_clock::now();
    json!({
        "wall_ms": wall.seconds * 1000 + u64::from(wall.nanoseconds) / 1_000_000,
        "monotonic_ns": monotonic_clock::now(),
    })
}

agent_os_sdk::export_agent!(Clocks);
