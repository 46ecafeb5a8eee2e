//! Interprets its task: a JSON array of operations, each one syscall, so that a test can drive any of them.
//!
//! The answer is a JSON array with each operation's result: the value, or `{"error": {"code", "message"}}`.
//! `{"op": "fail", "message"}` ends the agent with a failure.

mod operation;

use agent_os_sdk::{Agent, Task};
use operation::Operation;

struct Stepper;

impl Agent for Stepper {
    fn run(task: Task) -> Result<String, String> {
        let operations: Vec<Operation> = serde_json::from_str(&task.text)
            .map_err(|error| format!("the task is not a list of operations: {error}"))?;
        let mut results = Vec::new();
        for operation in operations {
            match operation {
                Operation::Fail { message } => return Err(message),
                operation => results.push(operation.run()),
            }
        }
        Ok(serde_json::Value::Array(results).to_string())
    }
}

agent_os_sdk::export_agent!(Stepper);
