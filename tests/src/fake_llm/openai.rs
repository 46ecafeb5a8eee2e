//! OpenAI's chat completions, with native tool calls, or in the kernel's constrained protocol when
//! the request's schema asks for it.

use std::collections::HashMap;

use agent_os_kernel::llm::constrained::{EXAMPLE_REPLIES, result_text};
use agent_os_kernel::llm::script::{Script, pieces};
use serde_json::{Value, json};

use super::{Asked, Said, Wire, content_text, event, list};

pub(super) struct OpenAi;

/// Whether the reply must be an object of calls or an answer.
fn is_constrained(body: &Value) -> bool {
    body.pointer("/response_format/json_schema/schema/anyOf/0/properties/calls").is_some()
}

/// The content and the native calls of the reply.
fn content(body: &Value, said: &Said) -> (String, Vec<Value>) {
    if !is_constrained(body) {
        let calls = said.calls.iter().enumerate().map(|(i, c)| {
            json!({"index": i, "id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}})
        });
        return (said.text.clone(), calls.collect());
    }
    if said.calls.is_empty() {
        return (json!({"answer": said.text}).to_string(), Vec::new());
    }
    let calls: Vec<Value> = said
        .calls
        .iter()
        .map(|c| {
            let arguments = serde_json::from_str(&c.arguments).unwrap_or_else(|_| Value::String(c.arguments.clone()));
            json!({"tool": c.name, "arguments": arguments})
        })
        .collect();
    (json!({"calls": calls}).to_string(), Vec::new())
}

fn usage(said: &Said) -> Value {
    let u = said.usage;
    json!({
        "prompt_tokens": u.input,
        "completion_tokens": u.output,
        "total_tokens": u64::from(u.input) + u64::from(u.output),
        "prompt_tokens_details": {"cached_tokens": u.cached},
    })
}

fn finish(calls: &[Value]) -> &'static str {
    if calls.is_empty() { "stop" } else { "tool_calls" }
}

/// Results of a constrained conversation: the protocol has no ids, so they are found by the call
/// that the script's earlier lines made.
fn constrained_results(turns: &[Value], script: &Script, agent: &str) -> HashMap<String, String> {
    let mut results = HashMap::new();
    for (line, pair) in script.lines(agent).zip(turns.chunk_by(|_, next| next["role"] != "assistant")) {
        let Ok((_, calls)) = line.fill(&results) else {
            break;
        };
        let told: Vec<String> = pair.iter().skip(1).map(|m| content_text(&m["content"])).collect();
        let told = told.join("\n");
        for call in calls {
            let label = result_text(&call.name, &call.arguments, "");
            if let Some(from) = told.find(&label).map(|i| i + label.len()) {
                let end = told[from..].find("\nResult of ").map_or(told.len(), |i| from + i);
                results.insert(call.id, told[from..end].to_owned());
            }
        }
    }
    results
}

impl Wire for OpenAi {
    fn ask(&self, body: &Value, script: &Script, agent: &str) -> Asked {
        let messages = list(body, "messages");
        let mut replies = messages.iter().filter(|m| m["role"] == "assistant").count();
        let mut results: HashMap<String, String> = messages
            .iter()
            .filter(|m| m["role"] == "tool")
            .filter_map(|m| Some((m["tool_call_id"].as_str()?.to_owned(), content_text(&m["content"]))))
            .collect();
        if is_constrained(body) {
            let at: Vec<usize> =
                (0..messages.len()).filter(|i| messages[*i]["role"] == "assistant").skip(EXAMPLE_REPLIES).collect();
            replies = at.len();
            if let Some(first) = at.first() {
                results.extend(constrained_results(&messages[*first..], script, agent));
            }
        }
        Asked {
            replies,
            newest: messages.last().map(|m| content_text(&m["content"])).unwrap_or_default(),
            results,
            stream: body["stream"] == true,
        }
    }

    fn plain(&self, body: &Value, said: &Said) -> String {
        let (text, calls) = content(body, said);
        let mut message = json!({"role": "assistant", "content": text});
        let reason = finish(&calls);
        if !calls.is_empty() {
            message["tool_calls"] = Value::Array(calls);
        }
        json!({
            "id": "chatcmpl-fake", "object": "chat.completion", "created": 0, "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
            "usage": usage(said),
        })
        .to_string()
    }

    fn events(&self, body: &Value, said: &Said) -> Vec<String> {
        let chunk = |choices: Value, usage: Value| {
            let mut chunk = json!({
                "id": "chatcmpl-fake", "object": "chat.completion.chunk", "created": 0, "model": body["model"],
                "choices": choices,
            });
            if !usage.is_null() {
                chunk["usage"] = usage;
            }
            event(None, &chunk)
        };
        let delta = |d: Value| chunk(json!([{"index": 0, "delta": d, "finish_reason": null}]), Value::Null);
        let (text, calls) = content(body, said);
        let mut events = vec![delta(json!({"role": "assistant", "content": ""}))];
        events.extend(pieces(&text).map(|p| delta(json!({"content": p}))));
        for call in &calls {
            let arguments = call["function"]["arguments"].as_str().unwrap_or_default();
            let (head, tail) = arguments.split_at(agent_os_kernel::llm::script::first_half(arguments).len());
            let mut first = call.clone();
            first["function"]["arguments"] = json!(head);
            events.push(delta(json!({"tool_calls": [first]})));
            events.push(delta(json!({"tool_calls": [{"index": call["index"], "function": {"arguments": tail}}]})));
        }
        events.push(chunk(json!([{"index": 0, "delta": {}, "finish_reason": finish(&calls)}]), Value::Null));
        if body.pointer("/stream_options/include_usage") == Some(&json!(true)) {
            events.push(chunk(json!([]), usage(said)));
        }
        events.push("data: [DONE]\n\n".to_owned());
        events
    }

    fn error(&self, kind: &str, message: &str) -> Value {
        json!({"error": {"message": message, "type": kind, "param": null, "code": kind}})
    }
}
