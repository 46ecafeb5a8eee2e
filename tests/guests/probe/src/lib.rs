//! Well-behaved tools for tests of the call path: one per effect, and one that fails on demand.

use std::hint::black_box;

use agent_os_sdk::{CallContext, Effect, Errno, Error, Result, Tool, state};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Gives its arguments back.
#[derive(Deserialize, JsonSchema)]
struct Echo {
    /// Anything.
    #[serde(flatten)]
    arguments: Map<String, Value>,
}

impl Tool for Echo {
    const NAME: &'static str = "echo";
    const EFFECT: Effect = Effect::Pure;
    type Output = Value;

    fn call(self, _: &CallContext) -> Result<Value> {
        Ok(Value::Object(self.arguments))
    }
}

/// Adds one to a counter in the plugin's state, and gives its new value.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Counter {
    /// The counter's name; `count` when absent.
    name: Option<String>,
}

impl Tool for Counter {
    const NAME: &'static str = "counter";
    const EFFECT: Effect = Effect::Destructive;
    type Output = u64;

    fn call(self, _: &CallContext) -> Result<u64> {
        let value = state::update(self.name.as_deref().unwrap_or("count"), |old| {
            Ok((number(old.unwrap_or(b"0"))? + 1).to_string().into_bytes())
        })?;
        number(&value)
    }
}

fn number(text: &[u8]) -> Result<u64> {
    let text = String::from_utf8_lossy(text);
    text.parse().map_err(|error| Error::invalid(format!("the counter holds `{text}`: {error}")))
}

/// Sets a key of the plugin's state.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Set {
    /// The key.
    key: String,
    /// Its value.
    value: String,
}

impl Tool for Set {
    const NAME: &'static str = "set";
    const EFFECT: Effect = Effect::Idempotent;
    type Output = u64;

    fn call(self, _: &CallContext) -> Result<u64> {
        state::put(&self.key, self.value.as_bytes())
    }
}

/// Computes for some turns of a loop, some fuel each, and gives the number back.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Slow {
    /// How many turns.
    turns: u64,
}

impl Tool for Slow {
    const NAME: &'static str = "slow";
    const EFFECT: Effect = Effect::ReadOnly;
    type Output = u64;

    fn call(self, _: &CallContext) -> Result<u64> {
        Ok((0..self.turns).fold(0, |sum, _| black_box(sum + 1)))
    }
}

/// Fails.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Fail {
    /// The error's code.
    code: Code,
    /// The error's message.
    message: String,
}

#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Code {
    Denied,
    NotFound,
    Invalid,
    Quota,
    Again,
    Interrupted,
    Timeout,
    Unsupported,
    TooLarge,
    Io,
}

impl Tool for Fail {
    const NAME: &'static str = "fail";
    const EFFECT: Effect = Effect::Pure;
    type Output = ();

    fn call(self, _: &CallContext) -> Result<()> {
        let code = match self.code {
            Code::Denied => Errno::Denied,
            Code::NotFound => Errno::NotFound,
            Code::Invalid => Errno::Invalid,
            Code::Quota => Errno::Quota,
            Code::Again => Errno::Again,
            Code::Interrupted => Errno::Interrupted,
            Code::Timeout => Errno::Timeout,
            Code::Unsupported => Errno::Unsupported,
            Code::TooLarge => Errno::TooLarge,
            Code::Io => Errno::Io,
        };
        Err(Error::new(code, self.message))
    }
}

/// Gives what the kernel says about the call.
#[derive(Deserialize, JsonSchema)]
struct Whoami {}

#[derive(Serialize, JsonSchema)]
struct Identity {
    caller: u64,
    deadline_ms: u64,
    idempotency_key: String,
}

impl Tool for Whoami {
    const NAME: &'static str = "whoami";
    const EFFECT: Effect = Effect::ReadOnly;
    type Output = Identity;

    fn call(self, context: &CallContext) -> Result<Identity> {
        Ok(Identity {
            caller: context.caller,
            deadline_ms: context.deadline_ms,
            idempotency_key: context.idempotency_key.clone(),
        })
    }
}

agent_os_sdk::export_tools!(Echo, Counter, Set, Slow, Fail, Whoami);
