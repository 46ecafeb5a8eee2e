//! Walks through the state interface: put, get, compare-and-set that holds and one that does not, delete.
//! Answers with what each said, as JSON; a second run of the same process would find its key gone.

use agent_os_sdk::{Agent, Error, Task, state};
use serde_json::{Value, json};

const KEY: &str = "key";

struct KvAgent;

impl Agent for KvAgent {
    fn run(_: Task) -> Result<String, String> {
        let revision = state::put(KEY, b"one").map_err(|error| error.message)?;
        let steps = [
            read(),
            said(state::compare_and_set(KEY, b"two", revision)),
            said(state::compare_and_set(KEY, b"lost", revision)),
            said(state::compare_and_set(KEY, b"lost", 0)),
            read(),
            said(state::delete(KEY).map(|()| 0)),
            read(),
            said(state::compare_and_set(KEY, b"anew", 0)),
            said(state::delete(KEY).map(|()| 0)),
        ];
        Ok(json!(steps).to_string())
    }
}

fn read() -> Value {
    match state::get(KEY) {
        Ok(entry) => json!(entry.map(|entry| String::from_utf8_lossy(&entry.value).into_owned())),
        Err(error) => failure(&error),
    }
}

/// Revisions are the store's business; that there is one is what counts.
fn said(result: agent_os_sdk::Result<u64>) -> Value {
    result.map_or_else(|error| failure(&error), |_| json!("done"))
}

fn failure(error: &Error) -> Value {
    json!({ "error": error.code.name() })
}

agent_os_sdk::export_agent!(KvAgent);
