//! Misbehaves in every way that a limit must stop: each tool is one way.

#![allow(unconditional_recursion, unreachable_code, reason = "that is what these tools are for")]

use std::hint::black_box;

use agent_os_sdk::{CallContext, Effect, Result, Tool, log, state};
use schemars::JsonSchema;
use serde::Deserialize;

/// Declares a tool without arguments that does `$body`.
macro_rules! hostile {
    ($type:ident, $name:literal, $description:literal, $body:expr) => {
        #[doc = $description]
        #[derive(Deserialize, JsonSchema)]
        struct $type {}

        impl Tool for $type {
            const NAME: &'static str = $name;
            const EFFECT: Effect = Effect::Pure;
            type Output = String;

            fn call(self, _: &CallContext) -> Result<String> {
                $body
            }
        }
    };
}

hostile!(Spin, "spin", "Computes for ever.", {
    let mut turns = 0_u64;
    loop {
        turns = black_box(turns.wrapping_add(1));
    }
});

hostile!(Allocate, "allocate", "Allocates memory, and touches it, until there is none.", {
    let mut blocks: Vec<Vec<u8>> = Vec::new();
    loop {
        blocks.push(black_box(vec![1; 1 << 20]));
    }
});

hostile!(Recurse, "recurse", "Calls itself without end.", Ok(deeper(0).to_string()));

hostile!(Giant, "giant", "Returns a hundred megabytes.", Ok("x".repeat(100_000_000)));

hostile!(LogFlood, "logflood", "Logs without end.", {
    let line = "flood ".repeat(200);
    loop {
        log::info(&line);
    }
});

hostile!(Trap, "trap", "Executes an unreachable instruction.", {
    #[cfg(target_arch = "wasm32")]
    core::arch::wasm32::unreachable();
    #[cfg(not(target_arch = "wasm32"))]
    std::process::abort()
});

hostile!(Panic, "panic", "Panics.", panic!("the guest panicked on purpose"));

hostile!(HostCalls, "hostcalls", "Calls the host without end.", {
    loop {
        // Whatever it answers: the point is to ask.
        let _ = black_box(state::get("key"));
    }
});

hostile!(Bulk, "bulk", "Fills memory in instructions that each write many megabytes.", {
    let mut block = vec![0_u8; 8 << 20];
    let mut byte = 0_u8;
    loop {
        byte = byte.wrapping_add(1);
        block.fill(byte);
        black_box(&mut block);
    }
});

/// A frame that the compiler can neither drop nor turn into a loop: it is needed after the call.
fn deeper(depth: u64) -> u64 {
    let here = black_box(depth);
    let below = deeper(here + 1);
    black_box(here) ^ below
}

agent_os_sdk::export_tools!(Spin, Allocate, Recurse, Giant, LogFlood, Trap, Panic, HostCalls, Bulk);
