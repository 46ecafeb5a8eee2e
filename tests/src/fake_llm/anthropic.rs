//! Anthropic's messages, with `tool_use` blocks.

use agent_os_kernel::llm::script::{Script, first_half, pieces};
use serde_json::{Value, json};

use super::{Asked, Said, Wire, content_text, event, list};

pub(super) struct Anthropic;

fn usage(said: &Said) -> Value {
    let u = said.usage;
    // On this wire `input_tokens` leaves out what the cache served.
    json!({
        "input_tokens": u.input.saturating_sub(u.cached),
        "cache_read_input_tokens": u.cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": u.output,
    })
}

fn stop(said: &Said) -> &'static str {
    if said.calls.is_empty() { "end_turn" } else { "tool_use" }
}

fn message(body: &Value, content: Value, stop_reason: Value, usage: Value) -> Value {
    json!({
        "id": "msg_fake", "type": "message", "role": "assistant", "model": body["model"],
        "content": content, "stop_reason": stop_reason, "stop_sequence": null, "usage": usage,
    })
}

impl Wire for Anthropic {
    fn ask(&self, body: &Value, _: &Script, _: &str) -> Asked {
        let messages = list(body, "messages");
        let results = messages
            .iter()
            .flat_map(|m| list(m, "content"))
            .filter(|b| b["type"] == "tool_result")
            .filter_map(|b| Some((b["tool_use_id"].as_str()?.to_owned(), content_text(&b["content"]))))
            .collect();
        Asked {
            replies: messages.iter().filter(|m| m["role"] == "assistant").count(),
            newest: messages.last().map(|m| content_text(&m["content"])).unwrap_or_default(),
            results,
            stream: body["stream"] == true,
        }
    }

    fn plain(&self, body: &Value, said: &Said) -> String {
        let mut content = Vec::new();
        if !said.text.is_empty() {
            content.push(json!({"type": "text", "text": said.text}));
        }
        content.extend(said.calls.iter().map(|c| {
            let input = serde_json::from_str(&c.arguments).unwrap_or_else(|_| Value::String(c.arguments.clone()));
            json!({"type": "tool_use", "id": c.id, "name": c.name, "input": input})
        }));
        message(body, Value::Array(content), json!(stop(said)), usage(said)).to_string()
    }

    fn events(&self, body: &Value, said: &Said) -> Vec<String> {
        let mut events: Vec<String> = Vec::new();
        let mut send = |name: &str, mut data: Value| {
            data["type"] = json!(name);
            events.push(event(Some(name), &data));
        };
        let mut started = usage(said);
        started["output_tokens"] = json!(1);
        send("message_start", json!({"message": message(body, json!([]), Value::Null, started)}));
        let mut index = 0;
        if !said.text.is_empty() {
            send("content_block_start", json!({"index": 0, "content_block": {"type": "text", "text": ""}}));
            for piece in pieces(&said.text) {
                send("content_block_delta", json!({"index": 0, "delta": {"type": "text_delta", "text": piece}}));
            }
            send("content_block_stop", json!({"index": 0}));
            index = 1;
        }
        for call in &said.calls {
            let block = json!({"type": "tool_use", "id": call.id, "name": call.name, "input": {}});
            send("content_block_start", json!({"index": index, "content_block": block}));
            let (head, tail) = call.arguments.split_at(first_half(&call.arguments).len());
            for part in [head, tail] {
                let delta = json!({"type": "input_json_delta", "partial_json": part});
                send("content_block_delta", json!({"index": index, "delta": delta}));
            }
            send("content_block_stop", json!({"index": index}));
            index += 1;
        }
        send(
            "message_delta",
            json!({"delta": {"stop_reason": stop(said), "stop_sequence": null}, "usage": {"output_tokens": said.usage.output}}),
        );
        send("message_stop", json!({}));
        events
    }

    fn error(&self, kind: &str, message: &str) -> Value {
        json!({"type": "error", "error": {"type": kind, "message": message}})
    }
}
