//! Tells its version, which whoever makes another version of it writes over in the component's bytes.

use std::hint::black_box;

use agent_os_sdk::{CallContext, Effect, Result, Tool};
use schemars::JsonSchema;
use serde::Deserialize;

/// Found and written over by `system_tests::herald`.
static VERSION: [u8; 12] = *b"version-0000";

fn version() -> String {
    let bytes = black_box(&VERSION);
    String::from_utf8_lossy(&bytes[8..]).into_owned()
}

/// Tells its version.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Tell {}

impl Tool for Tell {
    const NAME: &'static str = "tell";
    const EFFECT: Effect = Effect::Pure;
    type Output = String;

    fn call(self, _: &CallContext) -> Result<String> {
        Ok(version())
    }
}

/// Computes for so many turns of a loop, then tells its version.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Slow {
    /// Turns.
    turns: u64,
}

impl Tool for Slow {
    const NAME: &'static str = "slow";
    const EFFECT: Effect = Effect::Pure;
    type Output = String;

    fn call(self, _: &CallContext) -> Result<String> {
        black_box((0..self.turns).fold(0_u64, |sum, _| black_box(sum + 1)));
        Ok(version())
    }
}

agent_os_sdk::export_tools!(Tell, Slow);
