//! Tool calls by constrained output: for every model whose server can hold its reply to a schema.
//!
//! The reply is one JSON object: `{"calls": [{"tool", "arguments"} …]}` or `{"answer": …}`. This file
//! makes the schema, explains the protocol to the model, renders the window as plain messages in it
//! and reads the reply. It knows no provider and no wire.
//!
//! What a 135M model taught (measured): told only the rules it answers at once, by guessing; shown
//! one exchange it calls. A list of calls in one reply works where one call per reply does not,
//! since the model copies the shape call, result, answer. The example's tool is not on offer, and
//! the schema makes it impossible to call it.

use serde_json::{Map, Value, json};

use super::{Error, shorten};
use crate::abi::{Effect, Message, ToolCall, ToolSpec};

/// Calls that one reply may ask for.
const MAX_CALLS: usize = 8;

/// How deep `$ref` is followed; a recursive schema ends in "anything" there.
const MAX_REF_DEPTH: usize = 8;

/// Who says a rendered message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    System,
    User,
    Assistant,
}

/// What a constrained reply says.
#[derive(Debug, PartialEq)]
pub(super) enum Said {
    Answer(String),
    Calls(Vec<ToolCall>),
}

/// The tools in the order in which the model is told of them: those that look come first, those that
/// change something last, since a small model takes what it saw first.
fn in_order(tools: &[ToolSpec]) -> Vec<&ToolSpec> {
    let mut tools: Vec<&ToolSpec> = tools.iter().collect();
    tools.sort_by_key(|t| match t.effect {
        Effect::ReadOnly => 0,
        Effect::Pure => 1,
        Effect::Idempotent | Effect::Destructive => 2,
    });
    tools
}

/// The schema of a reply: a list of calls of `tools`, or an answer.
pub(super) fn schema(tools: &[ToolSpec], answer: Option<&Value>) -> Value {
    let call = |t: &ToolSpec| {
        json!({
            "type": "object",
            "properties": {"tool": {"const": t.name}, "arguments": portable(&t.input_schema)},
            "required": ["tool", "arguments"],
            "additionalProperties": false,
        })
    };
    let answer = answer.map_or_else(|| json!({"type": "string"}), portable);
    json!({"anyOf": [
        {
            "type": "object",
            "properties": {"calls": {
                "type": "array",
                "items": {"anyOf": in_order(tools).into_iter().map(call).collect::<Vec<_>>()},
                "minItems": 1,
                "maxItems": MAX_CALLS,
            }},
            "required": ["calls"],
            "additionalProperties": false,
        },
        {
            "type": "object",
            "properties": {"answer": answer},
            "required": ["answer"],
            "additionalProperties": false,
        },
    ]})
}

/// The part of a JSON Schema that grammar converters understand, with local `$ref` written out.
/// What is dropped only widens what the model may say; the kernel checks arguments against the
/// whole schema.
pub(super) fn portable(schema: &Value) -> Value {
    simplify(schema, schema, 0)
}

fn simplify(schema: &Value, root: &Value, depth: usize) -> Value {
    let Value::Object(map) = schema else {
        return json!({});
    };
    if let Some(target) = map.get("$ref").and_then(Value::as_str) {
        let found = target.strip_prefix('#').and_then(|pointer| root.pointer(pointer));
        return match found {
            Some(found) if depth < MAX_REF_DEPTH => simplify(found, root, depth + 1),
            _ => json!({}),
        };
    }
    let mut out = Map::new();
    for (key, value) in map {
        let kept = match key.as_str() {
            "type" | "enum" | "const" | "required" | "minItems" | "maxItems" | "minLength" | "maxLength" => {
                value.clone()
            }
            "minimum" | "maximum" if map.get("type") == Some(&json!("integer")) => value.clone(),
            "properties" => match value {
                Value::Object(props) => {
                    Value::Object(props.iter().map(|(k, v)| (k.clone(), simplify(v, root, depth))).collect())
                }
                _ => continue,
            },
            "items" => simplify(value, root, depth),
            "additionalProperties" if value.is_object() => simplify(value, root, depth),
            "additionalProperties" => value.clone(),
            "anyOf" | "oneOf" | "prefixItems" => match value {
                Value::Array(all) => Value::Array(all.iter().map(|v| simplify(v, root, depth)).collect()),
                _ => continue,
            },
            _ => continue,
        };
        out.insert(key.clone(), kept);
    }
    Value::Object(out)
}

/// The window as plain messages in the protocol. Neighbours of one role become one message, since
/// some chat templates insist on turns.
pub(super) fn render(messages: &[Message], tools: &[ToolSpec]) -> Vec<(Role, String)> {
    let mut out: Vec<(Role, String)> = Vec::new();
    let head = messages.iter().take_while(|m| matches!(m, Message::System { .. })).count();
    for m in &messages[..head] {
        push(&mut out, Role::System, m.text());
    }
    if !tools.is_empty() {
        push(&mut out, Role::System, &instructions(tools));
        for (role, text) in example() {
            push(&mut out, role, &text);
        }
    }
    let mut arguments: std::collections::HashMap<&str, &str> = std::collections::HashMap::new();
    for m in &messages[head..] {
        match m {
            Message::System { text } => push(&mut out, Role::System, text),
            Message::User { text } => push(&mut out, Role::User, text),
            Message::Assistant { text, tool_calls } if tool_calls.is_empty() => {
                let said = if tools.is_empty() { text.clone() } else { json!({"answer": text}).to_string() };
                push(&mut out, Role::Assistant, &said);
            }
            Message::Assistant { tool_calls, .. } => {
                arguments.extend(tool_calls.iter().map(|c| (c.id.as_str(), c.arguments.as_str())));
                push(&mut out, Role::Assistant, &calls_text(tool_calls));
            }
            Message::Tool { call_id, name, text } => {
                let arguments = arguments.get(call_id.as_str()).copied().unwrap_or("{}");
                push(&mut out, Role::User, &result_text(name, arguments, text));
            }
        }
    }
    out
}

fn push(out: &mut Vec<(Role, String)>, role: Role, text: &str) {
    match out.last_mut() {
        Some((last, so_far)) if *last == role => {
            so_far.push('\n');
            so_far.push_str(text);
        }
        _ => out.push((role, text.to_owned())),
    }
}

fn calls_text(calls: &[ToolCall]) -> String {
    let calls: Vec<Value> = calls
        .iter()
        .map(|c| {
            let arguments = serde_json::from_str(&c.arguments).unwrap_or_else(|_| Value::String(c.arguments.clone()));
            json!({"tool": c.name, "arguments": arguments})
        })
        .collect();
    json!({"calls": calls}).to_string()
}

/// How a result is shown to the model.
#[must_use]
pub fn result_text(name: &str, arguments: &str, result: &str) -> String {
    format!("Result of {name} {arguments}: {result}")
}

fn instructions(tools: &[ToolSpec]) -> String {
    let mut text =
        "You work with tools. Reply in JSON only: either call one or more tools, or give the final answer.\nTools:\n"
            .to_owned();
    for tool in in_order(tools) {
        let names = tool.input_schema.get("properties").and_then(Value::as_object);
        let shape: Map<String, Value> =
            names.into_iter().flatten().map(|(name, _)| (name.clone(), json!("..."))).collect();
        text.push_str(&format!("{}{}: {}\n", tool.name, Value::Object(shape), gist(&tool.description)));
    }
    text.push_str(
        "To call: {\"calls\": [{\"tool\": NAME, \"arguments\": {...}}]}\n\
         To answer, when you have the results: {\"answer\": \"...\"}",
    );
    text
}

/// What a description says first, on one line: whole ones bury the protocol in a small window.
fn gist(description: &str) -> String {
    let line = description.split_whitespace().collect::<Vec<_>>().join(" ");
    let end =
        line.match_indices(' ').find(|(i, _)| line[..*i].ends_with(['.', ':', ';'])).map_or(line.len(), |(i, _)| i);
    line[..end].trim_end_matches([':', ';']).to_owned()
}

/// How many assistant messages [`example`] puts before the window's own.
pub const EXAMPLE_REPLIES: usize = 2;

/// One exchange with a tool that is not on offer.
fn example() -> [(Role, String); 4] {
    let call = |id: &str, path: &str| ToolCall {
        id: id.to_owned(),
        name: "fsys__search".to_owned(),
        arguments: json!({"path": path, "pattern": "chairs"}).to_string(),
    };
    let calls = [call("1", "hall/rooms.txt"), call("2", "hall/weights.txt")];
    let results =
        ["chairs: 16", "chairs: 5 kg"].map(|line| json!({"matches": [{"line": 2, "text": line}]}).to_string());
    let results: Vec<String> = calls.iter().zip(&results).map(|(c, r)| result_text(&c.name, &c.arguments, r)).collect();
    [
        (
            Role::User,
            "How many chairs are in hall/rooms.txt, and what does one chair weigh in hall/weights.txt?".to_owned(),
        ),
        (Role::Assistant, calls_text(&calls)),
        (Role::User, results.join("\n")),
        (Role::Assistant, json!({"answer": "There are 16 chairs. One chair weighs 5 kg."}).to_string()),
    ]
}

/// Reads a reply. Ids are the same each time: `call_INDEX` for the first call of request INDEX,
/// `call_INDEX_2` for its second.
///
/// A server may ignore the schema: text without any call in it is then the answer.
///
/// # Errors
/// [`Error::Malformed`] for a call that is not whole, quoting what came.
pub(super) fn parse(provider: &str, text: &str, index: u64) -> Result<Said, Error> {
    let trimmed = text.trim();
    // A model that says it twice is taken at its first word.
    let first = serde_json::Deserializer::from_str(trimmed).into_iter::<Value>().next().and_then(Result::ok);
    let value = first.filter(Value::is_object).or_else(|| {
        // Wrapped in prose or a code fence.
        let (open, close) = (trimmed.find('{')?, trimmed.rfind('}')?);
        serde_json::from_str(trimmed.get(open..=close)?).ok()
    });
    let malformed = |why: &str| Error::Malformed {
        provider: provider.to_owned(),
        message: format!("{why}: `{}`", shorten(trimmed, 200)),
    };
    let Some(Value::Object(mut object)) = value else {
        let looks_like_json = trimmed.starts_with('{')
            || (trimmed.contains('{') && (trimmed.contains("\"calls\"") || trimmed.contains("\"tool\"")));
        return if looks_like_json {
            Err(malformed("the JSON of the call or answer is not whole"))
        } else {
            Ok(Said::Answer(trimmed.to_owned()))
        };
    };
    if let Some(answer) = object.remove("answer") {
        return Ok(Said::Answer(match answer {
            Value::String(text) => text,
            other => other.to_string(),
        }));
    }
    let calls = match object.remove("calls") {
        Some(Value::Array(calls)) => calls,
        Some(_) => return Err(malformed("`calls` is no list")),
        // One bare call, from a server that ignores the schema.
        None if object.contains_key("tool") => vec![Value::Object(object)],
        None => return Ok(Said::Answer(trimmed.to_owned())),
    };
    let mut out: Vec<ToolCall> = Vec::with_capacity(calls.len());
    for mut call in calls {
        let name = call.get("tool").and_then(Value::as_str).map(str::to_owned);
        let arguments = call.get_mut("arguments").map(Value::take);
        let (Some(name), Some(arguments @ Value::Object(_))) = (name, arguments) else {
            return Err(malformed("a call lacks its `tool` or its `arguments` object"));
        };
        let n = out.len() + 1;
        let id = if n == 1 { format!("call_{index}") } else { format!("call_{index}_{n}") };
        let call = ToolCall { id, name, arguments: arguments.to_string() };
        // Small models say things twice; the second would only cost.
        if !out.iter().any(|c| c.name == call.name && c.arguments == call.arguments) {
            out.push(call);
        }
    }
    if out.is_empty() { Err(malformed("`calls` is empty")) } else { Ok(Said::Calls(out)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(name: &str, input_schema: Value) -> ToolSpec {
        ToolSpec {
            name: name.to_owned(),
            description: "Does it.".to_owned(),
            input_schema,
            output_schema: None,
            effect: Effect::Pure,
        }
    }

    fn read(text: &str) -> Result<Said, String> {
        parse("p", text, 3).map_err(|e| e.to_string())
    }

    #[test]
    fn replies_are_calls_answers_or_a_named_mistake() {
        let calls = read(r#"{"calls":[{"tool":"a__b","arguments":{"x":1}},{"tool":"a__c","arguments":{}}]}"#).unwrap();
        let Said::Calls(calls) = calls else { panic!("no calls") };
        assert_eq!(calls.iter().map(|c| c.id.as_str()).collect::<Vec<_>>(), ["call_3", "call_3_2"]);
        assert_eq!((calls[0].name.as_str(), calls[0].arguments.as_str()), ("a__b", r#"{"x":1}"#));
        let answer = |text: &str| Ok(Said::Answer(text.to_owned()));
        assert_eq!(read(r#" {"answer": "42"} "#), answer("42"));
        assert_eq!(read(r#"{"answer": {"n": 1}}"#), answer(r#"{"n":1}"#));
        assert_eq!(read("just prose"), answer("just prose"));
        assert_eq!(read(""), answer(""));
        assert_eq!(read("a set {x} of prose"), answer("a set {x} of prose"));
        assert_eq!(read(r#"{"answer":"a"}{"answer":"b"}"#), answer("a"));
        assert!(matches!(read("```json\n{\"tool\":\"t\",\"arguments\":{}}\n```"), Ok(Said::Calls(c)) if c.len() == 1));
        for (broken, part) in [
            (r#"{"calls":[{"tool":"a__b","argum"#, "not whole"),
            (r#"{"answer": "it is"#, "not whole"),
            (r#"{"calls":[{"tool":"a__b"}]}"#, "lacks"),
            (r#"{"calls":[{"tool":"a","arguments":"x"}]}"#, "lacks"),
            (r#"{"calls":[]}"#, "empty"),
            (r#"{"calls":7}"#, "no list"),
        ] {
            let why = read(broken).unwrap_err();
            assert!(why.contains(part), "{broken}: {why}");
        }
    }

    #[test]
    fn a_description_is_cut_to_what_it_says_first() {
        assert_eq!(gist("Reads a file,\nor a part: the result says. More."), "Reads a file, or a part");
        assert_eq!(gist("Adds 1.5 to it. And more."), "Adds 1.5 to it.");
        assert_eq!(gist("Does it"), "Does it");
    }

    #[test]
    fn an_identical_call_in_one_reply_is_made_once() {
        let said = read(r#"{"calls":[{"tool":"a","arguments":{}},{"tool":"a","arguments":{}}]}"#).unwrap();
        assert!(matches!(said, Said::Calls(c) if c.len() == 1));
    }

    #[test]
    fn schemas_are_cut_to_what_grammars_know() {
        let input = json!({
            "$schema": "x", "title": "T", "type": "object", "required": ["p"],
            "properties": {"p": {"$ref": "#/$defs/P"}, "n": {"type": "integer", "minimum": 0, "format": "uint32"}},
            "$defs": {"P": {"type": "string", "description": "d", "pattern": "a"}},
        });
        let expected = json!({
            "type": "object", "required": ["p"],
            "properties": {"p": {"type": "string"}, "n": {"type": "integer", "minimum": 0}},
        });
        assert_eq!(portable(&input), expected);
        let recursive = json!({"$defs": {"L": {"type": "array", "items": {"$ref": "#/$defs/L"}}}, "$ref": "#/$defs/L"});
        assert!(portable(&recursive).to_string().len() < 1000);
        let whole = schema(&[tool("t", input)], None);
        assert_eq!(whole["anyOf"][0]["properties"]["calls"]["items"]["anyOf"][0]["properties"]["arguments"], expected);
    }

    #[test]
    fn the_window_is_rendered_in_turns_with_results_beside_their_calls() {
        let call = |id: &str| ToolCall { id: id.to_owned(), name: "t".to_owned(), arguments: r#"{"x":1}"#.to_owned() };
        let result = |id: &str| Message::Tool { call_id: id.to_owned(), name: "t".to_owned(), text: "42".to_owned() };
        let window = [
            Message::System { text: "Be brief.".to_owned() },
            Message::User { text: "Go.".to_owned() },
            Message::Assistant { text: String::new(), tool_calls: vec![call("a"), call("b")] },
            result("a"),
            result("b"),
        ];
        let out = render(&window, &[tool("t", json!({"type": "object", "properties": {"x": {}}}))]);
        let roles: Vec<Role> = out.iter().map(|(r, _)| *r).collect();
        assert_eq!(roles[0], Role::System);
        assert!(roles.windows(2).all(|w| w[0] != w[1]), "{roles:?}");
        assert!(
            out[0].1.starts_with("Be brief.\nYou work with tools.") && out[0].1.contains(r#"t{"x":"..."}: Does it."#)
        );
        let last = &out[out.len() - 1].1;
        assert_eq!(last, "Result of t {\"x\":1}: 42\nResult of t {\"x\":1}: 42");
        let plain = render(&window[..2], &[]);
        assert_eq!(plain, [(Role::System, "Be brief.".to_owned()), (Role::User, "Go.".to_owned())]);
    }
}
