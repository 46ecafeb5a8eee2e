//! Operations between processes.

use agent_os_sdk::Result;
use agent_os_sdk::process::{self, Exit, Message, SignalKind, SpawnOptions};
use serde::Deserialize;
use serde_json::{Value, json};

/// One syscall. A PID may be given as `"$N"`, the result of operation N.
#[derive(Deserialize)]
#[serde(tag = "peers", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Peers {
    Spawn(Box<Child>),
    Wait { pid: u64, timeout_ms: Option<u64> },
    Signal { pid: u64, kind: Kind },
    Send { to: u64, topic: String, body: String },
    Publish { topic: String, body: String },
    Subscribe { topic: String },
    Unsubscribe { topic: String },
    Receive { topic: Option<String>, timeout_ms: Option<u64> },
    Request { to: u64, topic: String, body: String, timeout_ms: Option<u64> },
    Reply { message: u64, body: String },
    Lock { name: String, timeout_ms: Option<u64> },
    Unlock { name: String },
    Exec { agent: String, task: Value, input: Option<String> },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Child {
    agent: String,
    task: Value,
    input: Option<String>,
    name: Option<String>,
    nice: Option<i8>,
    model: Option<String>,
    quota: Option<Value>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    Stop,
    Cont,
    Term,
    Kill,
}

/// A task of another stepper is a JSON array, that of another agent a text.
fn task(task: &Value) -> String {
    task.as_str().map_or_else(|| task.to_string(), str::to_owned)
}

fn bytes(input: Option<String>) -> Vec<u8> {
    input.unwrap_or_default().into_bytes()
}

impl Peers {
    pub(crate) fn attempt(self) -> Result<Value> {
        Ok(match self {
            Self::Spawn(child) => {
                let options = SpawnOptions {
                    agent: child.agent,
                    task: task(&child.task),
                    input: bytes(child.input),
                    name: child.name,
                    nice: child.nice,
                    model: child.model,
                    quota: child.quota.map(|quota| quota.to_string()),
                };
                json!(process::spawn(&options)?)
            }
            Self::Wait { pid, timeout_ms } => exit(process::wait(pid, timeout_ms)?),
            Self::Signal { pid, kind } => json!(process::signal(pid, kind.into_wit())?),
            Self::Send { to, topic, body } => json!(process::send(to, &topic, body.as_bytes())?),
            Self::Publish { topic, body } => json!(process::publish(&topic, body.as_bytes())?),
            Self::Subscribe { topic } => json!(process::subscribe(&topic)?),
            Self::Unsubscribe { topic } => json!(process::unsubscribe(&topic)?),
            Self::Receive { topic, timeout_ms } => {
                process::receive(topic.as_deref(), timeout_ms)?.map_or(Value::Null, message)
            }
            Self::Request { to, topic, body, timeout_ms } => {
                message(process::request(to, &topic, body.as_bytes(), timeout_ms)?)
            }
            Self::Reply { message, body } => json!(process::reply(message, body.as_bytes())?),
            Self::Lock { name, timeout_ms } => json!(process::lock(&name, timeout_ms)?),
            Self::Unlock { name } => json!(process::unlock(&name)?),
            Self::Exec { agent, task: next, input } => json!(process::exec(&agent, &task(&next), &bytes(input))?),
        })
    }
}

impl Kind {
    fn into_wit(self) -> SignalKind {
        match self {
            Self::Stop => SignalKind::Stop,
            Self::Cont => SignalKind::Cont,
            Self::Term => SignalKind::Term,
            Self::Kill => SignalKind::Kill,
        }
    }
}

fn exit(exit: Exit) -> Value {
    match exit {
        Exit::Success(text) => json!({ "success": text }),
        Exit::Failure(text) => json!({ "failure": text }),
        Exit::Killed(text) => json!({ "killed": text }),
        Exit::OverQuota(text) => json!({ "over-quota": text }),
    }
}

fn message(m: Message) -> Value {
    let body = String::from_utf8_lossy(&m.body).into_owned();
    json!({ "id": m.id, "sender": m.sender, "topic": m.topic, "body": body, "reply_to": m.reply_to })
}
