//! A hook: it says which events it wants, and of each whether and how things go on.

use agent_os_sdk::{Event, Hook, Phase, Point, Result, Subscription, Verdict};
use serde::Deserialize;

/// Lets tools change things from 8 to 18 o'clock UTC only; what they only look at, they may at any time.
struct OfficeHours;

/// What this hook needs of the subject, which has more: the docs list the fields at each point.
#[derive(Deserialize)]
struct Call {
    name: String,
    /// What a call of the tool does: `pure`, `read-only`, `idempotent` or `destructive`.
    effect: Option<String>,
}

impl Hook for OfficeHours {
    fn subscriptions() -> Vec<Subscription> {
        // `.matching("fs__*")` would make it the calls of some tools only.
        vec![Subscription::at(Point::BeforeToolCall).phase(Phase::Authorize)]
    }

    /// An error denies too, so that nothing passes that this hook does not understand.
    fn on_event(event: Event) -> Result<Verdict> {
        let call: Call = event.read()?;
        let hour = event.at_ms / 3_600_000 % 24;
        if matches!(call.effect.as_deref(), Some("pure" | "read-only")) || (8..18).contains(&hour) {
            return Ok(Verdict::Allow);
        }
        // The agent reads the reason, so it says what to do instead.
        Ok(Verdict::deny(format!("`{}` may be called from 8 to 18 o'clock UTC; look, and leave the rest", call.name)))
    }
}

agent_os_sdk::export_hook!(OfficeHours);

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(effect: &str, hour: u64) -> Verdict {
        OfficeHours::on_event(Event {
            point: Point::BeforeToolCall,
            pid: Some(1),
            agent: Some("assistant".to_owned()),
            at_ms: hour * 3_600_000,
            subject: format!(r#"{{"id":"1","name":"fs__write","arguments":{{}},"effect":"{effect}"}}"#),
        })
        .unwrap()
    }

    #[test]
    fn only_office_hours_change_things() {
        assert!(matches!(decided("idempotent", 9), Verdict::Allow));
        assert!(matches!(decided("read-only", 3), Verdict::Allow));
        assert!(matches!(decided("idempotent", 3), Verdict::Deny(reason) if reason.contains("`fs__write`")));
    }
}
