//! `ToolExecutor`: checks a call's arguments and its result; runs it in between.

use std::sync::Arc;

use jsonschema::error::{TypeKind, ValidationErrorKind};
use jsonschema::{JsonType, ValidationError};
use serde_json::Value;

use super::{Entry, Invocation, Kept, Report, Session};
use crate::abi::{Errno, Error};
use crate::capability::Rights;
use crate::overlay::Area;
use crate::process::Pid;
use crate::storage::Store;

/// On whose behalf a call is made.
#[derive(Debug)]
pub struct Client<'a> {
    /// The process.
    pub pid: Pid,
    /// The same for each attempt of one call.
    pub idempotency_key: String,
    /// What the call may reach.
    pub rights: Rights,
    /// Where the changes of its private mounts are kept; `None` where it has none.
    pub area: Option<Arc<Area>>,
    /// The fuel that the process has left.
    pub fuel: u64,
    /// What its stateful plugins keep.
    pub kept: &'a Kept,
}

/// Runs tool calls inside their caller's future.
#[derive(Clone, Debug)]
pub struct ToolExecutor {
    store: Store,
}

impl ToolExecutor {
    /// An executor whose tools keep their state in `store`.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    /// Checks arguments against the tool's schema.
    ///
    /// # Errors
    /// `invalid`, naming the JSON pointer and what is expected there.
    pub fn check(&self, tool: &Entry, arguments: &str) -> Result<(), Error> {
        let name = &tool.spec.name;
        let value: Value = serde_json::from_str(arguments)
            .map_err(|e| Error::new(Errno::Invalid, format!("the arguments of `{name}` are not JSON: {e}")))?;
        if !value.is_object() {
            return Err(Error::new(Errno::Invalid, format!("the arguments of `{name}` must be a JSON object")));
        }
        if tool.validator.is_valid(&value) {
            return Ok(());
        }
        tool.validator.validate(&value).map_err(|e| {
            let e = cause(&e);
            let at = e.instance_path().to_string();
            let at = if at.is_empty() { "/" } else { &at };
            Error::new(
                Errno::Invalid,
                format!("the arguments of `{name}` are wrong at {at}: {e} (see `aok tool show {name}`)"),
            )
        })
    }

    /// Runs a checked call.
    pub async fn run(&self, tool: &Entry, arguments: String, client: Client<'_>) -> Report {
        let Client { pid: caller, idempotency_key, rights, area, fuel, kept } = client;
        let session = Session::new(self.store.clone(), caller, &tool.plugin, tool.limits.log);
        let call = Invocation {
            tool: tool.tool.clone(),
            arguments,
            caller,
            idempotency_key,
            rights,
            area,
            fuel: fuel.min(tool.limits.fuel),
            session,
            slot: tool.stateful.then(|| kept.slot(&tool.plugin)),
        };
        let mut report = tool.code.invoke(call).await;
        if let Ok(text) = &report.result
            && let Err(e) = check_result(tool, text)
        {
            report.result = Err(e);
            report.session.changes.clear();
        }
        report
    }
}

/// The error within a failed choice that its author meant: that of the branch whose tag is right or that is
/// not `null`, or else the one that lies deepest.
fn cause<'a>(error: &'a ValidationError<'a>) -> &'a ValidationError<'a> {
    let (ValidationErrorKind::AnyOf { context } | ValidationErrorKind::OneOfNotValid { context }) = error.kind() else {
        return error;
    };
    let depth = |e: &ValidationError<'_>| e.instance_path().as_str().matches('/').count();
    let is_tag = |e: &ValidationError<'_>| matches!(e.kind(), ValidationErrorKind::Constant { .. });
    let is_null = |e: &ValidationError<'_>| {
        depth(e) == depth(error)
            && matches!(e.kind(), ValidationErrorKind::Type { kind: TypeKind::Single(JsonType::Null) })
    };
    let meant: Vec<_> = context.iter().filter(|branch| !branch.iter().any(|e| is_tag(e) || is_null(e))).collect();
    if let [branch] = meant[..]
        && let [only] = &branch[..]
    {
        return cause(only);
    }
    let causes = meant.into_iter().flatten().map(cause);
    causes.max_by_key(|e| depth(e)).filter(|e| depth(e) > depth(error)).unwrap_or(error)
}

fn check_result(tool: &Entry, text: &str) -> Result<(), Error> {
    let name = &tool.spec.name;
    if text.len() as u64 > tool.limits.output {
        return Err(Error::limit(
            "output",
            format!("the result of `{name}` has {} bytes, its `output` limit is {}", text.len(), tool.limits.output),
        ));
    }
    serde_json::from_str::<serde::de::IgnoredAny>(text)
        .map(drop)
        .map_err(|e| Error::new(Errno::Invalid, format!("the result of `{name}` is not JSON: {e}")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_wrong_value_of_a_choice_is_told_as_what_was_meant() {
        let option = json!({ "anyOf": [{ "type": "integer" }, { "type": "null" }] });
        let record = json!({ "type": "object", "properties": { "n": option }, "additionalProperties": false });
        let nested = json!({ "anyOf": [record, { "type": "null" }] });
        let either = json!({ "anyOf": [{ "type": "integer" }, { "type": "boolean" }, { "type": "null" }] });
        for (schema, value, at, said) in [
            (&option, json!("x"), "", r#""x" is not of type "integer""#),
            (&nested, json!({ "n": "x" }), "/n", r#""x" is not of type "integer""#),
            (&nested, json!({ "m": 1 }), "", "Additional properties are not allowed ('m' was unexpected)"),
            // Nothing says which of two was meant.
            (&either, json!("x"), "", r#""x" is not valid under any of the schemas listed in the 'anyOf' keyword"#),
        ] {
            let validator = jsonschema::validator_for(schema).unwrap();
            let error = validator.validate(&value).unwrap_err();
            let error = cause(&error);
            assert_eq!((error.instance_path().as_str(), error.to_string().as_str()), (at, said));
        }
    }
}
