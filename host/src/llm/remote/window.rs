//! The window as the wires of native tool calls have it.

use std::borrow::Cow;

use genai::chat::{ChatMessage, ContentPart, MessageContent, ToolResponse};
use serde_json::{Map, Value, json};

use super::super::Request;
use crate::abi::{Message, ToolCall, ToolSpec};
use crate::config::ProviderKind;

/// A part of the window as wires of native calls have it.
#[derive(Debug, PartialEq)]
pub(super) enum Turn<'a> {
    System(&'a str),
    User(Cow<'a, str>),
    Assistant(&'a str, &'a [ToolCall]),
    /// Ids of calls and what came of them, all those of one [`Turn::Assistant`].
    Results(Vec<(&'a str, &'a str)>),
}

/// What stands for a result that is not in the window.
const NO_RESULT: &str = "{\"error\":\"this call was not made\"}";

/// The window for a model that calls tools by itself. Each call has its result right behind it, since
/// providers refuse a window where one is missing.
pub(super) fn turns(kind: ProviderKind, messages: &[Message]) -> Vec<Turn<'_>> {
    let head = messages.iter().take_while(|m| matches!(m, Message::System { .. })).count();
    let mut out = Vec::with_capacity(messages.len());
    let mut open: Vec<&str> = Vec::new();
    let mut results: Vec<(&str, &str)> = Vec::new();
    for (at, message) in messages.iter().enumerate() {
        if let Message::Tool { call_id, text, .. } = message
            && let Some(found) = open.iter().position(|id| id == call_id)
        {
            open.remove(found);
            results.push((call_id, text));
            continue;
        }
        close(&mut out, &mut open, &mut results);
        out.push(match message {
            // Anthropic takes instructions at the head only; later ones are said in the conversation.
            Message::System { text } if at >= head && kind == ProviderKind::Anthropic => Turn::User(text.into()),
            Message::System { text } => Turn::System(text),
            Message::User { text } => Turn::User(text.into()),
            Message::Assistant { text, tool_calls } => {
                open.extend(tool_calls.iter().map(|c| c.id.as_str()));
                let nothing = text.is_empty() && tool_calls.is_empty();
                Turn::Assistant(if nothing { "(nothing)" } else { text }, tool_calls)
            }
            // A result whose call is not in the window.
            Message::Tool { name, text, .. } => Turn::User(format!("Result of {name}: {text}").into()),
        });
    }
    close(&mut out, &mut open, &mut results);
    if out.iter().all(|t| matches!(t, Turn::System(_))) {
        out.push(Turn::User("Begin.".into()));
    }
    out
}

/// Ends a turn's results.
fn close<'a>(out: &mut Vec<Turn<'a>>, open: &mut Vec<&'a str>, results: &mut Vec<(&'a str, &'a str)>) {
    results.extend(open.drain(..).map(|id| (id, NO_RESULT)));
    if !results.is_empty() {
        out.push(Turn::Results(std::mem::take(results)));
    }
}

/// The window for genai.
pub(super) fn chat(turns: Vec<Turn<'_>>) -> Vec<ChatMessage> {
    let mut out = Vec::with_capacity(turns.len());
    for turn in turns {
        out.push(match turn {
            Turn::System(text) => ChatMessage::system(text),
            Turn::User(text) => ChatMessage::user(text.into_owned()),
            Turn::Assistant(text, calls) => {
                let text = (!text.is_empty()).then(|| ContentPart::from_text(text));
                let calls = calls.iter().map(|call| {
                    ContentPart::ToolCall(genai::chat::ToolCall {
                        call_id: call.id.clone(),
                        fn_name: call.name.clone(),
                        fn_arguments: object(&call.arguments),
                        thought_signatures: None,
                    })
                });
                ChatMessage::assistant(MessageContent::from_parts(text.into_iter().chain(calls).collect::<Vec<_>>()))
            }
            Turn::Results(results) => {
                let result = |(id, text): (&str, &str)| ContentPart::ToolResponse(ToolResponse::new(id, text));
                ChatMessage::tool(MessageContent::from_parts(results.into_iter().map(result).collect::<Vec<_>>()))
            }
        });
    }
    out
}

/// The window and the tools as OpenAI's wire has them. genai makes the same of its own types, but copies a
/// request four times on the way, which is most of what a call costs beside the network.
pub(super) fn openai_body(request: &Request) -> (Vec<Value>, Option<Value>) {
    let text = |text: &str| Value::String(text.to_owned());
    let said =
        |role: &str, said: &str| Map::from_iter([("role".to_owned(), text(role)), ("content".to_owned(), text(said))]);
    let mut messages = Vec::with_capacity(request.messages.len());
    for turn in turns(ProviderKind::Openai, &request.messages) {
        match turn {
            Turn::System(text) => messages.push(Value::Object(said("system", text))),
            Turn::User(text) => messages.push(Value::Object(said("user", &text))),
            Turn::Assistant(text, []) => messages.push(Value::Object(said("assistant", text))),
            Turn::Assistant(words, calls) => {
                let mut message = said("assistant", words);
                let call = |c: &ToolCall| {
                    // Whole objects go as the model wrote them.
                    let whole = c.arguments.trim_start().starts_with('{')
                        && serde_json::from_str::<serde::de::IgnoredAny>(&c.arguments).is_ok();
                    let arguments = if whole { c.arguments.clone() } else { object(&c.arguments).to_string() };
                    let function = Map::from_iter([
                        ("name".to_owned(), text(&c.name)),
                        ("arguments".to_owned(), arguments.into()),
                    ]);
                    Value::Object(Map::from_iter([
                        ("type".to_owned(), text("function")),
                        ("id".to_owned(), text(&c.id)),
                        ("function".to_owned(), Value::Object(function)),
                    ]))
                };
                message.insert("tool_calls".to_owned(), calls.iter().map(call).collect());
                messages.push(Value::Object(message));
            }
            Turn::Results(results) => messages.extend(results.into_iter().map(|(id, result)| {
                let mut message = said("tool", result);
                message.insert("tool_call_id".to_owned(), text(id));
                Value::Object(message)
            })),
        }
    }
    let tool = |t: &ToolSpec| {
        let function = Map::from_iter([
            ("name".to_owned(), text(&t.name)),
            ("description".to_owned(), text(&t.description)),
            ("parameters".to_owned(), t.input_schema.clone()),
        ]);
        let parts = [("type".to_owned(), text("function")), ("function".to_owned(), Value::Object(function))];
        Value::Object(Map::from_iter(parts))
    };
    (messages, (!request.tools.is_empty()).then(|| request.tools.iter().map(tool).collect()))
}

/// Arguments as the wires want them: an object, whatever the model once said.
fn object(arguments: &str) -> Value {
    match serde_json::from_str(arguments) {
        Ok(object @ Value::Object(_)) => object,
        _ => json!({ "malformed": arguments }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn each_call_in_the_window_has_its_result_behind_it() {
        let calls = vec![
            ToolCall { id: "a".into(), name: "t".into(), arguments: "{\"x\":1}".into() },
            ToolCall { id: "b".into(), name: "t".into(), arguments: "{\"x\"".into() },
        ];
        let result = |id: &str| Message::Tool { call_id: id.into(), name: "t".into(), text: "42".into() };
        let window = [
            Message::System { text: "s".into() },
            Message::Assistant { text: String::new(), tool_calls: calls },
            result("b"),
            Message::System { text: "note".into() },
            result("gone"),
        ];
        for (kind, note) in [(ProviderKind::Openai, "System"), (ProviderKind::Anthropic, "User")] {
            let out = chat(turns(kind, &window));
            let roles: Vec<String> = out.iter().map(|m| format!("{:?}", m.role)).collect();
            assert_eq!(roles, ["System", "Assistant", "Tool", note, "User"]);
            let results: Vec<&str> = out[2].content.tool_responses().iter().map(|r| r.call_id.as_str()).collect();
            assert_eq!(results, ["b", "a"]);
            assert_eq!(out[1].content.tool_calls()[1].fn_arguments, json!({"malformed": "{\"x\""}));
        }
        assert_eq!(turns(ProviderKind::Anthropic, &window[..1]), [Turn::System("s"), Turn::User("Begin.".into())]);
        let tool = ToolSpec {
            name: "t".into(),
            description: "Does.".into(),
            input_schema: json!({"type": "object"}),
            output_schema: None,
            effect: crate::abi::Effect::Pure,
        };
        let mut request = Request {
            model: "m".into(),
            agent: "a".into(),
            index: 1,
            messages: window.to_vec(),
            tools: vec![tool],
            temperature: None,
            max_tokens: None,
            response_schema: None,
            results: HashMap::new(),
            claim: crate::llm::Claim::default(),
        };
        let call = |id: &str, arguments: &str| json!({"type": "function", "id": id, "function": {"name": "t", "arguments": arguments}});
        let (messages, tools) = openai_body(&request);
        assert_eq!(
            Value::Array(messages),
            json!([
                {"role": "system", "content": "s"},
                {"role": "assistant", "content": "",
                 "tool_calls": [call("a", "{\"x\":1}"), call("b", "{\"malformed\":\"{\\\"x\\\"\"}")]},
                {"role": "tool", "content": "42", "tool_call_id": "b"},
                {"role": "tool", "content": NO_RESULT, "tool_call_id": "a"},
                {"role": "system", "content": "note"},
                {"role": "user", "content": "Result of t: 42"},
            ])
        );
        let function = json!({"name": "t", "description": "Does.", "parameters": {"type": "object"}});
        assert_eq!(tools, Some(json!([{"type": "function", "function": function}])));
        request.tools.clear();
        assert_eq!(openai_body(&request).1, None);
    }
}
