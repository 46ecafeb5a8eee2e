//! The hook role: the trait, its macro, and what an author does with events, subscriptions and verdicts.
//!
//! A hook is asked in the middle of a call, by a new instance each time: nothing here is done before it is needed, and
//! the subject stays text until the hook reads it.

use serde::Serialize;
use serde::de::Deserialize;

use crate::{Error, Result};

pub use crate::generated::hook::exports::agent_os::plugin::hook_handler::{Event, Phase, Point, Subscription, Verdict};

/// A hook: decides about, or watches, what processes are about to do and have done.
pub trait Hook {
    /// Which events it wants. Asked once, when the plugin is loaded.
    fn subscriptions() -> Vec<Subscription>;

    /// Answers one event.
    ///
    /// # Errors
    /// It could not tell. That denies, with the error's message as the reason, so `?` is the safe way out; where a
    /// verdict counts for nothing, the message is in the log and that is all.
    fn on_event(event: Event) -> Result<Verdict>;
}

impl Point {
    /// All points.
    pub const ALL: [Self; 24] = [
        Self::BeforeAgentSpawn,
        Self::AfterAgentSpawn,
        Self::BeforeStep,
        Self::AfterStep,
        Self::BeforeLlmCall,
        Self::AfterLlmCall,
        Self::BeforeToolCall,
        Self::AfterToolCall,
        Self::BeforePageOut,
        Self::AfterPageOut,
        Self::BeforePageIn,
        Self::AfterPageIn,
        Self::BeforeCheckpoint,
        Self::AfterCheckpoint,
        Self::OnMessage,
        Self::OnQuotaExceeded,
        Self::OnApproval,
        Self::OnSignal,
        Self::OnAgentExit,
        Self::OnError,
        Self::OnPluginLoad,
        Self::OnPluginUnload,
        Self::OnKernelStart,
        Self::OnKernelStop,
    ];

    /// The name that the command line and the documents use, as `BEFORE_TOOL_CALL`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::BeforeAgentSpawn => "BEFORE_AGENT_SPAWN",
            Self::AfterAgentSpawn => "AFTER_AGENT_SPAWN",
            Self::BeforeStep => "BEFORE_STEP",
            Self::AfterStep => "AFTER_STEP",
            Self::BeforeLlmCall => "BEFORE_LLM_CALL",
            Self::AfterLlmCall => "AFTER_LLM_CALL",
            Self::BeforeToolCall => "BEFORE_TOOL_CALL",
            Self::AfterToolCall => "AFTER_TOOL_CALL",
            Self::BeforePageOut => "BEFORE_PAGE_OUT",
            Self::AfterPageOut => "AFTER_PAGE_OUT",
            Self::BeforePageIn => "BEFORE_PAGE_IN",
            Self::AfterPageIn => "AFTER_PAGE_IN",
            Self::BeforeCheckpoint => "BEFORE_CHECKPOINT",
            Self::AfterCheckpoint => "AFTER_CHECKPOINT",
            Self::OnMessage => "ON_MESSAGE",
            Self::OnQuotaExceeded => "ON_QUOTA_EXCEEDED",
            Self::OnApproval => "ON_APPROVAL",
            Self::OnSignal => "ON_SIGNAL",
            Self::OnAgentExit => "ON_AGENT_EXIT",
            Self::OnError => "ON_ERROR",
            Self::OnPluginLoad => "ON_PLUGIN_LOAD",
            Self::OnPluginUnload => "ON_PLUGIN_UNLOAD",
            Self::OnKernelStart => "ON_KERNEL_START",
            Self::OnKernelStop => "ON_KERNEL_STOP",
        }
    }
}

impl Subscription {
    /// Every event at `point`, in the phase of policies, with priority 0.
    #[must_use]
    pub fn at(point: Point) -> Self {
        Self { point, phase: Phase::Policy, priority: 0, matcher: None }
    }

    /// In this phase.
    #[must_use]
    pub fn phase(self, phase: Phase) -> Self {
        Self { phase, ..self }
    }

    /// With this priority within the phase: lower ones are asked first.
    #[must_use]
    pub fn priority(self, priority: i32) -> Self {
        Self { priority, ..self }
    }

    /// Only where this glob matches the name of what the event is about: the agent, tool, model or signal.
    #[must_use]
    pub fn matching(self, glob: impl Into<String>) -> Self {
        Self { matcher: Some(glob.into()), ..self }
    }
}

impl Event {
    /// Reads the subject, or the part of it that `T` has: a field that `T` lacks is passed over.
    ///
    /// # Errors
    /// `invalid`, with the point and the place in the subject, when it is not what `T` takes.
    pub fn read<'a, T: Deserialize<'a>>(&'a self) -> Result<T> {
        serde_json::from_str(&self.subject)
            .map_err(|error| Error::invalid(format!("the subject at {} cannot be read: {error}", self.point.name())))
    }
}

impl Verdict {
    /// It does not happen, or its result is withheld, for this reason: the caller reads it.
    pub fn deny(reason: impl Into<String>) -> Self {
        Self::Deny(reason.into())
    }

    /// A person decides; the text tells what about. Only before something happens.
    pub fn ask(question: impl Into<String>) -> Self {
        Self::Ask(question.into())
    }

    /// Goes on with this subject instead: the whole of it, what stays as it was too. Only of hooks that the operator
    /// trusts.
    ///
    /// # Errors
    /// `invalid`, when it cannot be written as JSON.
    pub fn rewrite(subject: &impl Serialize) -> Result<Self> {
        serde_json::to_string(subject)
            .map(Self::Rewrite)
            .map_err(|error| Error::invalid(format!("the rewritten subject is not JSON: {error}")))
    }
}

/// What the kernel is told: a hook that could not tell denies.
#[doc(hidden)]
#[must_use]
pub fn verdict(answer: Result<Verdict>) -> Verdict {
    answer.unwrap_or_else(|error| {
        crate::log::error(&error.message);
        Verdict::Deny(error.message)
    })
}

/// Makes the crate a hook component of the given [`Hook`](crate::Hook).
#[macro_export]
macro_rules! export_hook {
    ($hook:ty) => {
        #[allow(unsafe_code, reason = "the exported functions of the component")]
        const _: () = {
            struct Component;
            impl $crate::generated::hook::exports::agent_os::plugin::hook_handler::Guest for Component {
                fn subscriptions() -> Vec<$crate::Subscription> {
                    $crate::report_panics();
                    <$hook as $crate::Hook>::subscriptions()
                }

                fn on_event(event: $crate::Event) -> $crate::Verdict {
                    $crate::report_panics();
                    $crate::verdict(<$hook as $crate::Hook>::on_event(event))
                }
            }
    $crate::generated::hook::__export_hook_world!(Component with_types_in $crate::generated::hook);
        };
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Errno;
    use serde::Deserialize;
    use serde_json::{Value, json};

    #[derive(Debug, PartialEq, Deserialize, Serialize)]
    struct Call {
        name: String,
        arguments: Value,
    }

    fn event(subject: &str) -> Event {
        Event {
            point: Point::BeforeToolCall,
            pid: Some(1),
            agent: Some("assistant".to_owned()),
            at_ms: 0,
            subject: subject.to_owned(),
        }
    }

    #[test]
    fn each_point_has_its_own_place_and_name() {
        for (i, point) in Point::ALL.into_iter().enumerate() {
            assert_eq!(point as usize, i);
            // As the contract has it: the generated name in the other spelling.
            let spelled: String =
                point.name().split('_').map(|word| word[..1].to_owned() + &word[1..].to_lowercase()).collect();
            assert_eq!(format!("{point:?}"), format!("Point::{spelled}"));
        }
    }

    #[test]
    fn a_subscription_says_what_was_asked_of_it() {
        let plain = Subscription::at(Point::OnAgentExit);
        assert_eq!((plain.point, plain.phase, plain.priority), (Point::OnAgentExit, Phase::Policy, 0));
        assert_eq!(plain.matcher, None);
        let full = Subscription::at(Point::BeforeToolCall).phase(Phase::Authorize).priority(-1).matching("fs__*");
        assert_eq!((full.point, full.phase, full.priority), (Point::BeforeToolCall, Phase::Authorize, -1));
        assert_eq!(full.matcher.as_deref(), Some("fs__*"));
    }

    #[test]
    fn a_subject_is_read_in_part_and_an_odd_one_is_told_by_its_point() {
        let read: Call =
            event(r#"{"id":"1","name":"fs__read","arguments":{"path":"a\"b"},"effect":null}"#).read().unwrap();
        assert_eq!(read, Call { name: "fs__read".to_owned(), arguments: json!({ "path": "a\"b" }) });
        let error = event(r#"{"name":3}"#).read::<Call>().unwrap_err();
        assert_eq!(error.code, Errno::Invalid);
        assert!(error.message.starts_with("the subject at BEFORE_TOOL_CALL cannot be read: "), "{}", error.message);
    }

    #[test]
    fn verdicts_are_made_of_texts_and_values() {
        assert!(matches!(Verdict::deny("no"), Verdict::Deny(reason) if reason == "no"));
        assert!(matches!(Verdict::ask("may it?"), Verdict::Ask(question) if question == "may it?"));
        let call = Call { name: "t".to_owned(), arguments: json!([]) };
        let Verdict::Rewrite(text) = Verdict::rewrite(&call).unwrap() else { panic!("not a rewrite") };
        assert_eq!(text, r#"{"name":"t","arguments":[]}"#);
        assert!(matches!(verdict(Ok(Verdict::Allow)), Verdict::Allow));
    }
}
