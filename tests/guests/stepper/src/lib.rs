//! Interprets its task: a JSON array of operations, each one syscall, so that a test can drive any of them.
//!
//! The answer is a JSON array with each operation's result: the value, or `{"error": {"code", "message"}}`.
//! `{"op": "fail", "message"}` ends the agent with a failure. A string `"$N"` stands for the result of operation N,
//! `"$N.key"` for a part of it.

mod operation;
mod peers;

use agent_os_sdk::{Agent, Task};
use operation::Operation;
use serde_json::Value;

struct Stepper;

impl Agent for Stepper {
    fn run(task: Task) -> Result<String, String> {
        let operations: Vec<Value> = serde_json::from_str(&task.text)
            .map_err(|error| format!("the task is not a list of operations: {error}"))?;
        let mut results = Vec::new();
        for operation in operations {
            let text = operation.to_string();
            let operation = serde_json::from_value(filled(operation, &results))
                .map_err(|error| format!("{text} is no operation: {error}"))?;
            match operation {
                Operation::Fail { message } => return Err(message),
                Operation::Input {} => results.push(String::from_utf8_lossy(&task.input).into()),
                operation => results.push(operation.run()),
            }
        }
        Ok(serde_json::Value::Array(results).to_string())
    }
}

/// An operation with what stands for results. A child's task is its own.
fn filled(operation: Value, results: &[Value]) -> Value {
    match operation {
        Value::String(text) => found(&text, results).unwrap_or(Value::String(text)),
        Value::Object(fields) => fields
            .into_iter()
            .map(|(key, value)| {
                let value = if key == "task" { value } else { filled(value, results) };
                (key, value)
            })
            .collect(),
        other => other,
    }
}

fn found(text: &str, results: &[Value]) -> Option<Value> {
    let (number, key) = text.strip_prefix('$')?.split_once('.').unwrap_or((&text[1..], ""));
    let result = results.get(number.parse::<usize>().ok()?)?;
    if key.is_empty() { Some(result.clone()) } else { result.get(key).cloned() }
}

agent_os_sdk::export_agent!(Stepper);
