//! What a hook is shown at each point: one type for each, and the JSON Schema that follows from it.
//!
//! A rewritten subject is held against the same schema before anybody reads it.

use std::sync::LazyLock;

use jsonschema::Validator;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Hook;
use crate::abi::{Effect, Reply};
use crate::process::Usage;
use crate::quota::ResourceQuota;

/// A directory of a process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Directory {
    /// The name that guests see.
    pub name: String,
    /// The path on the host.
    pub path: String,
    /// Whether its tools may write there.
    pub writable: bool,
}

/// What a process is asked to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SpawnAsked {
    /// The agent.
    pub agent: String,
    /// What it is to do.
    pub task: String,
    /// `provider/model`; the configuration's default when null.
    pub model: Option<String>,
    /// Its name for people; the agent's when null.
    pub name: Option<String>,
    /// Its scheduling group.
    pub group: Option<String>,
    /// −20 (most) to 19 (least).
    pub nice: i8,
    /// Its limits.
    pub quota: ResourceQuota,
    /// Directories for its tools. A rewrite leaves them as they are.
    pub dirs: Vec<Directory>,
    /// Hosts that its tools may reach. A rewrite leaves them as they are.
    pub hosts: Vec<String>,
}

/// A process that now exists.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Spawned {
    /// Its name.
    pub name: String,
    /// What it is to do.
    pub task: String,
    /// `provider/model`.
    pub model: Option<String>,
    /// Its scheduling group.
    pub group: String,
    /// −20 (most) to 19 (least).
    pub nice: i8,
}

/// A turn that begins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StepBegun {
    /// What the process has used before it.
    pub usage: Usage,
}

/// A turn that is over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StepDone {
    /// Tool calls that it made; 0 for an answer.
    pub tool_calls: u64,
    /// What the process has used, this turn included.
    pub usage: Usage,
}

/// A model call. What the model reads has passed other points: the task at BEFORE_AGENT_SPAWN, results of tools at
/// AFTER_TOOL_CALL, earlier replies at AFTER_LLM_CALL.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LlmCall {
    /// `provider/model`.
    pub model: Option<String>,
    /// Full names of the tools on offer; all that the process may call when null.
    pub tools: Option<Vec<String>>,
    /// Sampling temperature.
    pub temperature: Option<f32>,
    /// Output token limit.
    pub max_tokens: Option<u32>,
    /// JSON Schema of the answer's text, as JSON text.
    pub response_schema: Option<String>,
}

/// A model call that is over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LlmDone {
    /// What was asked.
    pub call: LlmCall,
    /// What came of it: all that counts of a rewrite.
    pub outcome: LlmOutcome,
}

/// What came of a model call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum LlmOutcome {
    /// The model's reply.
    Reply(Reply),
    /// Why there is none.
    Error(Failure),
}

/// A tool call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ToolCalled {
    /// The caller's id of the call. A rewrite leaves it as it is.
    pub id: String,
    /// The tool's name, as the caller gave it.
    pub name: String,
    /// The arguments; a text where they are not JSON.
    pub arguments: Value,
    /// What a repeated call of the tool does; null where there is no such tool. What a rewrite says of it counts for nothing.
    pub effect: Option<Effect>,
}

/// A tool call that is over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ToolDone {
    /// What was called.
    pub call: ToolCalled,
    /// What came of it: all that counts of a rewrite.
    pub outcome: ToolOutcome,
    /// Fuel of the tool.
    pub fuel: u64,
    /// Microseconds.
    pub duration_us: u64,
}

/// What came of a tool call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum ToolOutcome {
    /// The result.
    Ok(Value),
    /// Why there is none.
    Error(Failure),
}

/// Why something failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// The closed reason.
    pub code: crate::abi::Errno,
    /// What happened, and what to do.
    pub message: String,
    /// The limit that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
}

impl From<&crate::abi::Error> for Failure {
    fn from(e: &crate::abi::Error) -> Self {
        Self { code: e.code, message: e.message.clone(), limit: e.limit.clone() }
    }
}

impl From<Failure> for crate::abi::Error {
    fn from(f: Failure) -> Self {
        Self { code: f.code, message: f.message, limit: f.limit, data: None }
    }
}

/// A page of a process's context.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Page {
    /// Its id.
    pub page: u64,
    /// What it is.
    pub kind: crate::storage::PageKind,
    /// Its size.
    pub tokens: u32,
}

/// A message that a process sends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sent {
    /// The receiver's PID; null for all that subscribe to the topic. A rewrite leaves it as it is.
    pub to: Option<u64>,
    /// What it is about.
    pub topic: String,
    /// What it says; null where that is no text, which a rewrite leaves as it is.
    pub text: Option<String>,
    /// Bytes of what it says. What a rewrite says of it counts for nothing.
    pub bytes: u64,
    /// The message that it answers. A rewrite leaves it as it is.
    pub reply_to: Option<u64>,
}

/// A limit or quota that ended something.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QuotaExceeded {
    /// Which.
    pub limit: String,
    /// Used, allowed, and how to raise it.
    pub message: String,
}

/// A question to a person.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    /// Its id.
    pub approval: u64,
    /// The syscall that waits, as `call`.
    pub call: String,
    /// What it is about: a tool, a model.
    pub object: String,
    /// The hook that asks.
    pub hook: String,
    /// Its question.
    pub reason: String,
    /// `asked`, `approved` or `denied`.
    pub state: String,
}

/// Somebody ends or stops a process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Signal {
    /// `STOP`, `CONT`, `TERM` or `KILL`.
    pub signal: String,
    /// Why.
    pub reason: String,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ended {
    /// `success`, `failure`, `killed` or `over-quota`.
    pub status: String,
    /// The answer, or why there is none.
    pub message: String,
    /// What it used.
    pub usage: Usage,
}

/// A syscall that failed or was refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Failed {
    /// The syscall, as `call`.
    pub call: String,
    /// What it was about: a tool, a model, a page.
    pub object: String,
    /// Why.
    pub error: Failure,
}

/// A plugin that serves, or whose file was refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PluginLoaded {
    /// Its name.
    pub plugin: String,
    /// SHA-256 of the component, hex; null where it was refused.
    pub digest: Option<String>,
    /// The diagnosis's code, where it was refused.
    pub refused: Option<String>,
}

/// A plugin that serves no more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PluginGone {
    /// Its name.
    pub plugin: String,
}

/// The kernel itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KernelLife {
    /// Its version.
    pub version: String,
}

/// What a telemetry hook is told at a `BEFORE_…` point, as `decision` within the subject.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Decision {
    /// `allow`, `rewrite`, `deny` or `ask`.
    pub verdict: String,
    /// The hook, where one decided.
    pub by: Option<String>,
    /// Its reason.
    pub reason: Option<String>,
}

/// The JSON Schema of a point's subject (draft 2020-12).
#[must_use]
pub fn schema(point: Hook) -> &'static Value {
    &SCHEMAS[point.index()].0
}

/// Holds a subject against the schema of its point.
///
/// # Errors
/// Where it differs first, by JSON pointer.
pub fn check(point: Hook, subject: &Value) -> Result<(), String> {
    let validator = &SCHEMAS[point.index()].1;
    validator.validate(subject).map_err(|e| {
        let at = e.instance_path().to_string();
        format!("{} at {}", e, if at.is_empty() { "/" } else { &at })
    })
}

static SCHEMAS: LazyLock<Vec<(Value, Validator)>> = LazyLock::new(|| {
    let compiled = |point| {
        let schema = of_point(point);
        // It comes from our own types, and a test compiles each.
        let validator = jsonschema::validator_for(&schema).expect("a derived schema is a schema");
        (schema, validator)
    };
    Hook::ALL.into_iter().map(compiled).collect()
});

fn of_point(point: Hook) -> Value {
    let mut schema = match point {
        Hook::BeforeAgentSpawn => derived::<SpawnAsked>(),
        Hook::AfterAgentSpawn => derived::<Spawned>(),
        Hook::BeforeStep => derived::<StepBegun>(),
        Hook::AfterStep => derived::<StepDone>(),
        Hook::BeforeLlmCall => derived::<LlmCall>(),
        Hook::AfterLlmCall => derived::<LlmDone>(),
        Hook::BeforeToolCall => derived::<ToolCalled>(),
        Hook::AfterToolCall => derived::<ToolDone>(),
        Hook::BeforePageOut | Hook::AfterPageOut | Hook::BeforePageIn | Hook::AfterPageIn => derived::<Page>(),
        Hook::OnMessage => derived::<Sent>(),
        Hook::OnQuotaExceeded => derived::<QuotaExceeded>(),
        Hook::OnApproval => derived::<Approval>(),
        Hook::OnSignal => derived::<Signal>(),
        Hook::OnAgentExit => derived::<Ended>(),
        Hook::OnError => derived::<Failed>(),
        Hook::OnPluginLoad => derived::<PluginLoaded>(),
        Hook::OnPluginUnload => derived::<PluginGone>(),
        Hook::OnKernelStart | Hook::OnKernelStop => derived::<KernelLife>(),
        // What they will be about is not there yet.
        Hook::BeforeCheckpoint | Hook::AfterCheckpoint => return Value::Bool(false),
    };
    if point.power() == super::Power::Gate {
        let decision = derived::<Decision>();
        if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
            properties.insert("decision".to_owned(), decision.into());
        }
    }
    schema.into()
}

fn derived<T: JsonSchema>() -> Schema {
    SchemaSettings::draft2020_12().with(|s| s.inline_subschemas = true).into_generator().into_root_schema_for::<T>()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_active_point_has_a_schema_of_an_object() {
        for point in Hook::ALL {
            let schema = schema(point);
            assert_eq!(schema.get("type") == Some(&json!("object")), point.is_active(), "{point}: {schema}");
        }
    }

    #[test]
    fn a_subject_that_does_not_fit_is_told_by_its_place() {
        let good = json!({ "id": "1", "name": "t", "arguments": { "a": 1 }, "effect": "pure" });
        assert_eq!(check(Hook::BeforeToolCall, &good), Ok(()));
        for (change, at) in [
            (json!({ "name": 3 }), "/name"),
            (json!({ "effect": "harmless" }), "/effect"),
            (json!({ "nmae": "x" }), "/"),
        ] {
            let mut bad = good.clone();
            bad.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            let why = check(Hook::BeforeToolCall, &bad).unwrap_err();
            assert!(why.ends_with(&format!("at {at}")), "{why}");
        }
    }
}
