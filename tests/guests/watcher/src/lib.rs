//! Logs every event as one line, the point's name and the subject: a test holds each subject against its schema.

use agent_os_sdk::{Event, Hook, Phase, Point, Result, Subscription, Verdict, log};

struct Watcher;

impl Hook for Watcher {
    fn subscriptions() -> Vec<Subscription> {
        Point::ALL.map(|point| Subscription::at(point).phase(Phase::Telemetry)).to_vec()
    }

    fn on_event(event: Event) -> Result<Verdict> {
        log::info(&format!("{} {}", event.point.name(), event.subject));
        Ok(Verdict::Allow)
    }
}

agent_os_sdk::export_hook!(Watcher);
