//! `tally`: counts the calls and the denials of each tool in the plugin's state, and logs the counts when a process
//! ends. The counts are those of all processes since the plugin's state began.

use std::collections::BTreeMap;

use agent_os_sdk::{Error, Event, Hook, Phase, Point, Result, Subscription, Verdict, log, state};
use serde::Deserialize;

/// The key in the state: a line for each tool, its name, calls and denials.
const KEY: &str = "tally";

/// What is called and does not exist is counted together: such names are a model's invention, and without end.
const UNKNOWN: &str = "(no such tool)";

struct Tally;

#[derive(Deserialize)]
struct Call {
    name: String,
    effect: Option<String>,
    decision: Decision,
}

/// What was decided about the call, which only hooks of the telemetry phase are told.
#[derive(Deserialize)]
struct Decision {
    verdict: String,
}

#[derive(Default)]
struct Count {
    calls: u64,
    denied: u64,
}

impl Hook for Tally {
    fn subscriptions() -> Vec<Subscription> {
        [Point::BeforeToolCall, Point::OnAgentExit]
            .map(|point| Subscription::at(point).phase(Phase::Telemetry))
            .to_vec()
    }

    fn on_event(event: Event) -> Result<Verdict> {
        if event.point == Point::OnAgentExit {
            let counts = read(state::get(KEY)?.as_ref().map(|entry| entry.value.as_slice()))?;
            log::info(&line(&counts));
        } else {
            let call: Call = event.read()?;
            state::update(KEY, |counts| counted(counts, &call))?;
        }
        Ok(Verdict::Allow)
    }
}

/// The state after one more call.
fn counted(counts: Option<&[u8]>, call: &Call) -> Result<Vec<u8>> {
    let mut counts = read(counts)?;
    let name = if call.effect.is_some() { &call.name } else { UNKNOWN };
    let count = counts.entry(name.to_owned()).or_default();
    count.calls += 1;
    count.denied += u64::from(call.decision.verdict == "deny");
    let lines = counts.iter().map(|(name, count)| format!("{name}\t{}\t{}\n", count.calls, count.denied));
    Ok(lines.collect::<String>().into_bytes())
}

fn read(counts: Option<&[u8]>) -> Result<BTreeMap<String, Count>> {
    let text = String::from_utf8_lossy(counts.unwrap_or_default());
    let count = |line: &str| {
        let mut fields = line.split('\t');
        let name = fields.next()?.to_owned();
        let calls = fields.next()?.parse().ok()?;
        let denied = fields.next()?.parse().ok()?;
        Some((name, Count { calls, denied }))
    };
    text.lines()
        .map(|line| count(line).ok_or_else(|| Error::invalid(format!("`{KEY}` in the state has the line {line:?}"))))
        .collect()
}

fn line(counts: &BTreeMap<String, Count>) -> String {
    if counts.is_empty() {
        return "no tool was called so far".to_owned();
    }
    let tools = counts.iter().map(|(name, count)| match count.denied {
        0 => format!("{name} {}", count.calls),
        denied => format!("{name} {} ({denied} denied)", count.calls),
    });
    format!("tool calls so far: {}", tools.collect::<Vec<_>>().join(", "))
}

agent_os_sdk::export_hook!(Tally);

#[cfg(test)]
mod tests {
    use super::*;

    fn call(name: &str, effect: &str, verdict: &str) -> Call {
        let subject = format!(
            r#"{{"id":"1","name":"{name}","arguments":{{}},"effect":{effect},
                "decision":{{"verdict":"{verdict}","by":null,"reason":null}}}}"#
        );
        Event { point: Point::BeforeToolCall, pid: Some(1), agent: None, at_ms: 0, subject }.read().unwrap()
    }

    #[test]
    fn calls_and_denials_are_counted_by_tool() {
        let mut counts = None;
        for (name, effect, verdict) in [
            ("fs__write", r#""idempotent""#, "deny"),
            ("calc__eval", r#""pure""#, "allow"),
            ("fs__write", r#""idempotent""#, "rewrite"),
            ("one_thing", "null", "allow"),
            ("another", "null", "deny"),
        ] {
            counts = Some(counted(counts.as_deref(), &call(name, effect, verdict)).unwrap());
        }
        assert_eq!(
            line(&read(counts.as_deref()).unwrap()),
            "tool calls so far: (no such tool) 2 (1 denied), calc__eval 1, fs__write 2 (1 denied)"
        );
        assert_eq!(line(&read(None).unwrap()), "no tool was called so far");
    }

    #[test]
    fn a_state_that_is_not_its_own_is_told_and_left_alone() {
        let Err(error) = counted(Some(b"fs__write\tmany"), &call("t", "null", "allow")) else { panic!("counted") };
        assert!(error.message.contains("fs__write\\tmany"), "{}", error.message);
    }
}
