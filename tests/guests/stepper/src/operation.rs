//! The operations: their JSON, and the syscall that each makes.

use agent_os_sdk::context::{self, PageKind};
use agent_os_sdk::tools::ToolCall;
use agent_os_sdk::{Error, Result, llm, log, process, state, step, tools};
use serde::Deserialize;

use crate::peers::Peers;
use serde_json::{Value, json};

/// One syscall, or `fail`, which ends the agent.
#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Operation {
    Call {
        name: String,
        arguments: Value,
    },
    CallAll {
        calls: Vec<Call>,
    },
    Available {},
    Generate(Options),
    Step(Options),
    Sleep {
        ms: u64,
    },
    Pid {},
    Append {
        kind: Kind,
        text: String,
        importance: Option<f32>,
        pinned: Option<bool>,
    },
    Read {
        id: u64,
    },
    Pin {
        id: u64,
        pinned: bool,
    },
    SetImportance {
        id: u64,
        importance: f32,
    },
    Pages {},
    Usage {},
    StateGet {
        key: String,
    },
    StatePut {
        key: String,
        value: String,
        expected: Option<u64>,
    },
    StateDelete {
        key: String,
    },
    Log {
        message: String,
    },
    Flood {
        lines: u32,
        bytes: usize,
    },
    Spin {
        turns: u64,
    },
    Fail {
        message: String,
    },
    /// The bytes that came with the task, as text.
    Input {},
    #[serde(untagged)]
    Peers(Peers),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Call {
    id: String,
    name: String,
    arguments: Value,
}

#[derive(Default, Deserialize)]
pub(crate) struct Options {
    model: Option<String>,
    tools: Option<Vec<String>>,
    temperature: Option<f32>,
    max_tokens: Option<u32>,
    response_schema: Option<Value>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    System,
    Tools,
    Task,
    Note,
    User,
    Assistant,
    ToolCall,
    ToolResult,
    Recalled,
    Summary,
}

impl Operation {
    /// Makes the syscall and gives its result as JSON.
    pub(crate) fn run(self) -> Value {
        self.attempt().unwrap_or_else(|error| failure(&error))
    }

    fn attempt(self) -> Result<Value> {
        Ok(match self {
            Self::Call { name, arguments } => parsed(&tools::call(&name, &text_of(&arguments))?),
            Self::CallAll { calls } => {
                let calls: Vec<_> = calls.into_iter().map(Call::into_wit).collect();
                tools::call_all(&calls)
                    .iter()
                    .map(|it| json!({ "id": it.id, "content": content(&it.content) }))
                    .collect()
            }
            Self::Available {} => tools::available().into_iter().map(|spec| Value::String(spec.name)).collect(),
            Self::Generate(options) => reply(&llm::generate(&options.into_wit())?),
            Self::Step(options) => turn(&step::step(&options.into_wit())?),
            Self::Sleep { ms } => json!(process::sleep(ms)?),
            Self::Pid {} => json!(process::self_pid()),
            Self::Append { kind, text, importance, pinned } => {
                json!(context::append(kind.into_wit(), &text, importance, pinned.unwrap_or(false))?)
            }
            Self::Read { id } => json!(context::read(id)?),
            Self::Pin { id, pinned } => json!(context::pin(id, pinned)?),
            Self::SetImportance { id, importance } => json!(context::set_importance(id, importance)?),
            Self::Pages {} => context::pages().iter().map(page).collect(),
            Self::Usage {} => usage(&context::get_usage()),
            Self::StateGet { key } => json!(
                state::get(&key)?
                    .map(|entry| json!({ "value": String::from_utf8_lossy(&entry.value), "revision": entry.revision }))
            ),
            Self::StatePut { key, value, expected: None } => json!(state::put(&key, value.as_bytes())?),
            Self::StatePut { key, value, expected: Some(expected) } => {
                json!(state::compare_and_set(&key, value.as_bytes(), expected)?)
            }
            Self::StateDelete { key } => json!(state::delete(&key)?),
            Self::Log { message } => {
                log::info(&message);
                Value::Null
            }
            Self::Flood { lines, bytes } => {
                let line = "x".repeat(bytes);
                (0..lines).for_each(|_| log::info(&line));
                Value::Null
            }
            Self::Spin { turns } => json!((0..turns).fold(0_u64, |sum, _| std::hint::black_box(sum + 1))),
            Self::Peers(peers) => peers.attempt()?,
            // The interpreter does these itself.
            Self::Fail { message } => json!(message),
            Self::Input {} => Value::Null,
        })
    }
}

impl Call {
    fn into_wit(self) -> ToolCall {
        ToolCall { id: self.id, name: self.name, arguments: text_of(&self.arguments) }
    }
}

impl Options {
    fn into_wit(self) -> llm::Options {
        llm::Options {
            model: self.model,
            tools: self.tools,
            temperature: self.temperature,
            max_tokens: self.max_tokens,
            response_schema: self.response_schema.map(|schema| schema.to_string()),
        }
    }
}

impl Kind {
    fn into_wit(self) -> PageKind {
        match self {
            Self::System => PageKind::System,
            Self::Tools => PageKind::Tools,
            Self::Task => PageKind::Task,
            Self::Note => PageKind::Note,
            Self::User => PageKind::User,
            Self::Assistant => PageKind::Assistant,
            Self::ToolCall => PageKind::ToolCall,
            Self::ToolResult => PageKind::ToolResult,
            Self::Recalled => PageKind::Recalled,
            Self::Summary => PageKind::Summary,
        }
    }
}

/// The arguments as sent: a string goes as it is, so that a test can send what is not JSON.
fn text_of(arguments: &Value) -> String {
    arguments.as_str().map_or_else(|| arguments.to_string(), str::to_owned)
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
}

fn content(result: &Result<String>) -> Value {
    match result {
        Ok(text) => parsed(text),
        Err(error) => failure(error),
    }
}

fn failure(error: &Error) -> Value {
    json!({ "error": { "code": error.code.name(), "message": error.message } })
}

fn call(call: &ToolCall) -> Value {
    json!({ "id": call.id, "name": call.name, "arguments": parsed(&call.arguments) })
}

fn reply(reply: &llm::Reply) -> Value {
    json!({
        "text": reply.text,
        "tool_calls": reply.tool_calls.iter().map(call).collect::<Value>(),
        "finish": match reply.finish {
            llm::Finish::Stop => "stop",
            llm::Finish::ToolCalls => "tool-calls",
            llm::Finish::Length => "length",
            llm::Finish::Refused => "refused",
        },
        "usage": {
            "input": reply.usage.input,
            "cached": reply.usage.cached,
            "output": reply.usage.output,
            "micro_usd": reply.usage.micro_usd,
        },
    })
}

fn turn(outcome: &step::Outcome) -> Value {
    match outcome {
        step::Outcome::Answered(text) => json!({ "answered": text }),
        step::Outcome::Continuing(called) => json!({
            "called": called
                .iter()
                .map(|it| json!({ "call": call(&it.call), "content": content(&it.content) }))
                .collect::<Value>(),
        }),
    }
}

fn page(page: &context::PageInfo) -> Value {
    json!({
        "id": page.id,
        "kind": format!("{:?}", page.kind).trim_start_matches("PageKind::").to_owned(),
        "tokens": page.tokens,
        "importance": page.importance,
        "pinned": page.pinned,
        "resident": page.resident,
        "preview": page.preview,
    })
}

fn usage(usage: &context::Usage) -> Value {
    json!({
        "window_tokens": usage.window_tokens,
        "resident_tokens": usage.resident_tokens,
        "resident_pages": usage.resident_pages,
        "swapped_pages": usage.swapped_pages,
        "faults": usage.faults,
        "hits": usage.hits,
        "evictions": usage.evictions,
    })
}
