//! `tidy-paths`: a path in a tool's arguments is relative and stays below where it begins.
//!
//! The sandbox keeps tools within their directories whatever they are told. This is for tools whose paths mean
//! something elsewhere, on a server perhaps, and for a refusal that a model understands at once.

use agent_os_sdk::{Event, Hook, Phase, Point, Result, Subscription, Verdict};
use serde::Deserialize;
use serde_json::Value;

/// The arguments that are paths, at any depth.
const PATHS: [&str; 3] = ["path", "file", "dir"];

/// Most characters of a path that a refusal repeats.
const SHOWN: usize = 80;

struct TidyPaths;

#[derive(Deserialize)]
struct Call {
    arguments: Value,
}

impl Hook for TidyPaths {
    fn subscriptions() -> Vec<Subscription> {
        vec![Subscription::at(Point::BeforeToolCall).phase(Phase::Validate)]
    }

    fn on_event(event: Event) -> Result<Verdict> {
        let call: Call = event.read()?;
        Ok(untidy(&call.arguments, None).map_or(Verdict::Allow, Verdict::Deny))
    }
}

/// Why an argument is refused: the first path that is not tidy. `name` is the argument's, where it is a path's.
fn untidy(argument: &Value, name: Option<&str>) -> Option<String> {
    match argument {
        Value::String(path) => {
            let name = name?;
            let fault = fault(path)?;
            let shown: String = path.chars().take(SHOWN).collect();
            Some(format!("`{name}` {fault}: {shown:?}; give a relative path without `..`"))
        }
        Value::Array(items) => items.iter().find_map(|item| untidy(item, name)),
        Value::Object(fields) => fields.iter().find_map(|(key, value)| {
            let name = PATHS.into_iter().find(|path| key.eq_ignore_ascii_case(path));
            untidy(value, name)
        }),
        _ => None,
    }
}

fn fault(path: &str) -> Option<&'static str> {
    let is_separator = |c: char| matches!(c, '/' | '\\');
    let on_drive = |path: &str| path.as_bytes().get(1) == Some(&b':') && path[2..].starts_with(is_separator);
    if path.contains('\0') {
        return Some("has a zero byte");
    }
    if path.starts_with(is_separator) || on_drive(path) {
        return Some("is absolute");
    }
    path.split(is_separator).any(|part| part == "..").then_some("leads out of its directory")
}

agent_os_sdk::export_hook!(TidyPaths);

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(arguments: &Value, denied: Option<&str>) {
        let subject = json!({ "id": "1", "name": "t", "arguments": arguments, "effect": null }).to_string();
        let event = Event { point: Point::BeforeToolCall, pid: Some(1), agent: None, at_ms: 0, subject };
        match (TidyPaths::on_event(event).unwrap(), denied) {
            (Verdict::Allow, None) => {}
            (Verdict::Deny(reason), Some(words)) => assert!(reason.contains(words), "{reason}"),
            (verdict, _) => panic!("{arguments}: {verdict:?}"),
        }
    }

    #[test]
    fn a_tidy_path_passes_and_so_does_what_is_no_path() {
        for arguments in [
            json!({ "path": "docs/a..b/readme.md", "file": ".", "dir": "" }),
            json!({ "path": "C:x", "file": "ä:/x", "dir": "é" }),
            json!({ "text": "/etc/passwd or ../x", "pattern": ".." }),
            json!({ "path": 5, "file": null }),
            json!("../not json"),
            json!(null),
        ] {
            check(&arguments, None);
        }
    }

    #[test]
    fn a_path_that_is_not_is_refused_wherever_it_is() {
        for (arguments, words) in [
            (json!({ "path": "/etc/passwd" }), "`path` is absolute: \"/etc/passwd\""),
            (json!({ "file": "\\\\server\\share" }), "`file` is absolute"),
            (json!({ "dir": "C:\\Windows" }), "`dir` is absolute"),
            (json!({ "path": "a/../../b" }), "`path` leads out of its directory"),
            (json!({ "path": "a\\..\\b" }), "leads out"),
            (json!({ "path": ".." }), "leads out"),
            (json!({ "path": "a\0b" }), "has a zero byte: \"a\\0b\""),
            (json!({ "Path": "/x" }), "`path` is absolute"),
            (json!({ "edits": [{ "text": "x" }, { "path": "../x" }] }), "leads out"),
            (json!({ "file": ["a", "/b"] }), "`file` is absolute: \"/b\""),
        ] {
            check(&arguments, Some(words));
        }
        let long = format!("/{}", "x".repeat(10_000));
        assert!(untidy(&json!({ "path": long }), None).unwrap().len() < 200);
    }
}
