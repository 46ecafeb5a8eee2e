//! `read-only`: agents may look and not touch. Of the effects that a tool can have, `pure` and `read-only` pass.

use agent_os_sdk::{Event, Hook, Phase, Point, Result, Subscription, Verdict};
use serde::Deserialize;

struct ReadOnly;

#[derive(Deserialize)]
struct Call {
    name: String,
    /// What the tool, or its manifest, says of itself. There is none where there is no such tool.
    effect: Option<String>,
}

impl Hook for ReadOnly {
    fn subscriptions() -> Vec<Subscription> {
        vec![Subscription::at(Point::BeforeToolCall).phase(Phase::Authorize)]
    }

    fn on_event(event: Event) -> Result<Verdict> {
        let call: Call = event.read()?;
        Ok(match call.effect.as_deref() {
            Some("pure" | "read-only") => Verdict::Allow,
            Some(effect) => {
                Verdict::deny(format!("`{}` is {effect}; only tools that change nothing may be called", call.name))
            }
            None => Verdict::deny("there is no such tool, and only tools that change nothing may be called"),
        })
    }
}

agent_os_sdk::export_hook!(ReadOnly);

#[cfg(test)]
mod tests {
    use super::*;

    fn check(effect: &str, denied: Option<&str>) {
        let subject = format!(r#"{{"id":"1","name":"fs__write","arguments":{{"path":"a"}},"effect":{effect}}}"#);
        let event = Event { point: Point::BeforeToolCall, pid: Some(1), agent: None, at_ms: 0, subject };
        match (ReadOnly::on_event(event).unwrap(), denied) {
            (Verdict::Allow, None) => {}
            (Verdict::Deny(reason), Some(words)) => assert!(reason.contains(words), "{reason}"),
            (verdict, _) => panic!("{effect}: {verdict:?}"),
        }
    }

    #[test]
    fn only_what_changes_nothing_passes() {
        check(r#""pure""#, None);
        check(r#""read-only""#, None);
        check(r#""idempotent""#, Some("`fs__write` is idempotent"));
        check(r#""destructive""#, Some("`fs__write` is destructive"));
        // One that a later kernel may have: what is not known to be harmless is not.
        check(r#""harmless""#, Some("harmless"));
        check("null", Some("no such tool"));
    }
}
