//! The reference of hook points in `docs/hooks.md`, written from the types.

use std::fmt::Write as _;

use serde_json::Value;

use super::{Hook, Power, subject};

/// All points as Markdown: what hooks can do at each, and its subject's fields.
fn reference() -> String {
    let mut out = String::new();
    for point in Hook::ALL {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "### {point}\n\n{} {}\n", when(point), power(point));
        if point.is_active() {
            let _ = writeln!(out, "| field | type | |\n|---|---|---|");
            fields(&mut out, "", subject::schema(point));
            out.push('\n');
        }
    }
    out
}

fn power(point: Hook) -> &'static str {
    if !point.is_active() {
        return "**Inactive:** nothing happens there in this version.";
    }
    match point.power() {
        Power::Gate => "Hooks may allow, rewrite, deny or ask.",
        Power::Filter => "Hooks may let the result through, rewrite it, or deny: then it is withheld.",
        Power::Observe => "Hooks look; their verdict counts for nothing.",
    }
}

fn when(point: Hook) -> &'static str {
    match point {
        Hook::BeforeAgentSpawn => "Before a process exists. Matchers are held against the agent's name.",
        Hook::AfterAgentSpawn => "A process is durable and about to run. Matchers: the agent.",
        Hook::BeforeStep => "An agent begins a turn. There is nothing to rewrite. Matchers: the agent.",
        Hook::AfterStep => "A turn is over. Matchers: the agent.",
        Hook::BeforeLlmCall => "A model is about to be asked. Matchers: the model's name.",
        Hook::AfterLlmCall => "A model replied, or the call failed or was refused. Matchers: the model's name.",
        Hook::BeforeToolCall => "A tool is about to be called. Matchers: the tool's name.",
        Hook::AfterToolCall => "A tool returned, or the call failed or was refused. Matchers: the tool's name.",
        Hook::BeforePageOut => {
            "A page is about to leave the window for the store. A page whose leaving is denied is pinned. There is nothing to \
             rewrite. Matchers: the page's kind."
        }
        Hook::AfterPageOut => "A page left the window. Matchers: the page's kind.",
        Hook::BeforePageIn => {
            "An agent wants to read a page that only the store has. There is nothing to rewrite. Matchers: the page's kind."
        }
        Hook::AfterPageIn => "Such a page was read. Matchers: the page's kind.",
        Hook::BeforeCheckpoint | Hook::AfterCheckpoint => "Around a checkpoint.",
        Hook::OnMessage => "A process sends a message; refused, it is not sent.",
        Hook::OnQuotaExceeded => "A limit or a quota ends a process. Matchers: the limit.",
        Hook::OnApproval => "A person is asked, or has decided. Matchers: what it is about, a tool for example.",
        Hook::OnSignal => "Somebody ends or stops a process. Matchers: the signal.",
        Hook::OnAgentExit => "A process has ended; its exit is durable. Matchers: the agent.",
        Hook::OnError => "A syscall failed, or a hook, a grant or a policy refused it. Matchers: what it was about.",
        Hook::OnPluginLoad => "A plugin serves, or its file was refused. Matchers: the plugin.",
        Hook::OnPluginUnload => "A plugin serves no more. Matchers: the plugin.",
        Hook::OnKernelStart => "The kernel began; its plugins are loaded.",
        Hook::OnKernelStop => "The kernel is about to end; its processes were stopped where they were.",
    }
}

/// A line for each property, those of objects within it below it.
fn fields(out: &mut String, within: &str, schema: &Value) {
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{within}{name}");
        let text = property["description"].as_str().unwrap_or_default().replace('\n', " ");
        let _ = writeln!(out, "| `{path}` | {} | {text} |", kind(property));
        fields(out, &format!("{path}."), property);
        for choice in property["oneOf"].as_array().into_iter().flatten() {
            fields(out, &format!("{path}."), choice);
        }
    }
}

fn kind(schema: &Value) -> String {
    let words =
        |v: &Value| v.as_array().map(|all| all.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" or "));
    if let Some(choices) = words(&schema["enum"]) {
        return choices;
    }
    for key in ["oneOf", "anyOf"] {
        if let Some(choices) = schema[key].as_array() {
            let mut names: Vec<_> =
                choices.iter().map(|c| c["const"].as_str().map_or_else(|| kind(c), str::to_owned)).collect();
            names.dedup();
            return names.join(" or ");
        }
    }
    match &schema["type"] {
        Value::String(kind) if kind == "array" => format!("array of {}", self::kind(&schema["items"])),
        Value::String(kind) => kind.clone(),
        kinds => words(kinds).unwrap_or_else(|| "any".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGIN: &str = "<!-- The rest is written by the kernel's test `the_reference_is_what_the_code_says`. -->\n\n";

    #[test]
    fn the_reference_is_what_the_code_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/hooks.md");
        let text = std::fs::read_to_string(path).unwrap();
        let (head, rest) = text.split_once(BEGIN).expect("docs/hooks.md has the mark");
        if std::env::var_os("AOK_WRITE_DOCS").is_some() {
            std::fs::write(path, format!("{head}{BEGIN}{}", reference())).unwrap();
        } else {
            assert!(rest == reference(), "docs/hooks.md differs: run this test with AOK_WRITE_DOCS=1");
        }
    }
}
