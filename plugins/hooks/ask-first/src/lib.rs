//! `ask-first`: a person decides about each destructive tool call, one that changes the world each time.

use agent_os_sdk::{Event, Hook, Point, Result, Subscription, Verdict};
use serde::Deserialize;
use serde_json::Value;

/// Most characters of the arguments that the question shows.
const SHOWN: usize = 600;

struct AskFirst;

#[derive(Deserialize)]
struct Call {
    name: String,
    arguments: Value,
    /// What the tool, or its manifest, says of itself. There is none where there is no such tool: nothing to decide.
    effect: Option<String>,
}

impl Hook for AskFirst {
    fn subscriptions() -> Vec<Subscription> {
        vec![Subscription::at(Point::BeforeToolCall)]
    }

    fn on_event(event: Event) -> Result<Verdict> {
        let call: Call = event.read()?;
        if call.effect.as_deref() != Some("destructive") {
            return Ok(Verdict::Allow);
        }
        Ok(Verdict::ask(format!("call `{}` with {}?", call.name, shown(&call.arguments.to_string()))))
    }
}

/// The beginning of a long text, and how much is left out: who decides should know that there is more.
fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}… ({} more characters)", &text[..end], text[end..].chars().count()),
        None => text.to_owned(),
    }
}

agent_os_sdk::export_hook!(AskFirst);

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn verdict(arguments: &Value, effect: &Value) -> Verdict {
        let subject = json!({ "id": "1", "name": "shop__buy", "arguments": arguments, "effect": effect }).to_string();
        AskFirst::on_event(Event { point: Point::BeforeToolCall, pid: Some(1), agent: None, at_ms: 0, subject })
            .unwrap()
    }

    #[test]
    fn only_a_destructive_call_is_asked_about() {
        let Verdict::Ask(question) = verdict(&json!({ "item": "mug", "count": 2 }), &json!("destructive")) else {
            panic!("not asked")
        };
        assert_eq!(question, r#"call `shop__buy` with {"count":2,"item":"mug"}?"#);
        for effect in [json!("pure"), json!("read-only"), json!("idempotent"), json!(null)] {
            assert!(matches!(verdict(&json!({}), &effect), Verdict::Allow), "{effect}");
        }
    }

    #[test]
    fn a_long_question_is_cut_and_says_so() {
        let Verdict::Ask(question) = verdict(&json!("ü".repeat(5_000)), &json!("destructive")) else {
            panic!("not asked")
        };
        assert!(question.ends_with("ü… (4402 more characters)?"), "{question}");
        assert!(question.chars().count() < 700);
    }
}
