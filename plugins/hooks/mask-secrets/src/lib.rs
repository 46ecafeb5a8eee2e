//! `mask-secrets`: what looks like a key or a token in the result of a tool, its error too, becomes `[masked]` before
//! the agent sees it. What a tool encodes or cuts in two passes: this keeps secrets from leaking by accident.
//!
//! The subject is not taken apart and put together again: only the texts that change are written anew, so that all else
//! stays as it was, to the last digit of a number.

mod secrets;
mod strings;

use std::borrow::Cow;

use agent_os_sdk::{Error, Event, Hook, Point, Result, Subscription, Verdict};

struct MaskSecrets;

impl Hook for MaskSecrets {
    fn subscriptions() -> Vec<Subscription> {
        vec![Subscription::at(Point::AfterToolCall)]
    }

    fn on_event(event: Event) -> Result<Verdict> {
        Ok(match masked(&event.subject)? {
            Some(subject) => Verdict::Rewrite(subject),
            None => Verdict::Allow,
        })
    }
}

/// The subject with the secrets in its outcome masked, if it has any.
fn masked(subject: &str) -> Result<Option<String>> {
    let mut written = String::new();
    let mut copied = 0;
    for literal in strings::values_of(subject, "outcome") {
        let text = read(&subject[literal.clone()])?;
        if let Some(masked) = secrets::mask(&text) {
            written.push_str(&subject[copied..literal.start]);
            written.push_str(&serde_json::Value::from(masked).to_string());
            copied = literal.end;
        }
    }
    if copied == 0 {
        return Ok(None);
    }
    written.push_str(&subject[copied..]);
    Ok(Some(written))
}

/// The text that a string of JSON stands for.
fn read(literal: &str) -> Result<Cow<'_, str>> {
    // Most have no escapes and are read where they are.
    if !literal.contains('\\') {
        return Ok(Cow::Borrowed(literal.trim_matches('"')));
    }
    serde_json::from_str(literal)
        .map(Cow::Owned)
        .map_err(|error| Error::invalid(format!("a text of the result cannot be read: {error}")))
}

agent_os_sdk::export_hook!(MaskSecrets);

#[cfg(test)]
mod tests {
    use super::*;

    /// What the agent gets of `outcome`: nothing where it is let through.
    fn rewritten(outcome: &str) -> Option<String> {
        // Fields in the kernel's order; a number that `serde_json::Value` writes with another last digit.
        let around = |outcome: &str| {
            format!(
                r#"{{"call":{{"arguments":{{"key":"{KEY}","x":0.9073038322028689}},"effect":null}},"duration_us":1,"fuel":2,"outcome":{outcome}}}"#
            )
        };
        let subject = around(outcome);
        let event = Event { point: Point::AfterToolCall, pid: Some(1), agent: None, at_ms: 0, subject };
        match MaskSecrets::on_event(event).unwrap() {
            Verdict::Rewrite(subject) => {
                let (before, after) = subject.split_once(r#""outcome":"#).unwrap();
                assert_eq!(around(after.strip_suffix('}').unwrap()), format!("{before}\"outcome\":{after}"));
                Some(after.strip_suffix('}').unwrap().to_owned())
            }
            Verdict::Allow => None,
            other => panic!("{other:?}"),
        }
    }

    const KEY: &str = "sk-abcdefghij0123456789";

    #[test]
    fn secrets_of_the_result_are_masked_and_all_else_stays() {
        for (outcome, expected) in [
            (format!(r#"{{"ok":"key {KEY}\n"}}"#), Some(r#"{"ok":"key [masked]\n"}"#)),
            (format!(r#"{{"ok":[1.10,{{"{KEY}":"{KEY}"}},"b"]}}"#), Some(r#"{"ok":[1.10,{"KEY":"[masked]"},"b"]}"#)),
            (
                format!(r#"{{"error":{{"code":"io","message":"no {KEY}"}}}}"#),
                Some(r#"{"error":{"code":"io","message":"no [masked]"}}"#),
            ),
            // Escaped, as no writer of JSON has to.
            (format!(r#"{{"ok":"\u0073{}"}}"#, &KEY[1..]), Some(r#"{"ok":"[masked]"}"#)),
            (r#"{"ok":{"text":"nothing to see, \u00fc"}}"#.to_owned(), None),
            (r#"{"ok":null}"#.to_owned(), None),
        ] {
            // Names of fields are not texts: whoever asked for them knows them.
            let expected = expected.map(|text| text.replace("KEY", KEY));
            assert_eq!(rewritten(&outcome), expected, "{outcome}");
        }
    }
}
