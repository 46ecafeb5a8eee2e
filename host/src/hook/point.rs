//! Where a hook can stand, and in which order hooks are asked there.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A point on the way of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Hook {
    /// Before a process exists; the subject is what it is asked to be.
    BeforeAgentSpawn,
    /// A process is durable and runnable.
    AfterAgentSpawn,
    /// An agent starts a turn.
    BeforeStep,
    /// The turn is over.
    AfterStep,
    /// A model is about to be asked.
    BeforeLlmCall,
    /// It replied, or failed.
    AfterLlmCall,
    /// A tool is about to be called.
    BeforeToolCall,
    /// It returned, or failed.
    AfterToolCall,
    /// A page is about to leave the window.
    BeforePageOut,
    /// It left.
    AfterPageOut,
    /// A swapped page is about to be read from the store.
    BeforePageIn,
    /// It was read.
    AfterPageIn,
    /// A checkpoint is about to be taken.
    BeforeCheckpoint,
    /// It was taken.
    AfterCheckpoint,
    /// A process sends a message.
    OnMessage,
    /// A limit or a quota ended something.
    OnQuotaExceeded,
    /// A person is asked, or has decided.
    OnApproval,
    /// Somebody ends or stops a process.
    OnSignal,
    /// A process ended.
    OnAgentExit,
    /// A syscall failed or was refused.
    OnError,
    /// A plugin serves, or its file was refused.
    OnPluginLoad,
    /// A plugin serves no more.
    OnPluginUnload,
    /// The kernel began.
    OnKernelStart,
    /// It is about to end.
    OnKernelStop,
}

/// What a hook at a point can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// Let it happen, change it, refuse it, or have a person decide.
    Gate,
    /// Let the result through, change it or withhold it.
    Filter,
    /// Look.
    Observe,
}

impl Hook {
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

    /// The point's name in the CLI and the documents, as `BEFORE_AGENT_SPAWN`.
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

    /// The point of a name, as [`Self::name`] writes it.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.name() == name)
    }

    /// Whether this kernel has what the point is about. At the others nothing ever happens.
    #[must_use]
    pub fn is_active(self) -> bool {
        !matches!(self, Self::BeforeCheckpoint | Self::AfterCheckpoint)
    }

    /// What hooks can do there.
    #[must_use]
    pub fn power(self) -> Power {
        match self {
            Self::BeforeAgentSpawn
            | Self::BeforeStep
            | Self::BeforeLlmCall
            | Self::BeforeToolCall
            | Self::BeforePageOut
            | Self::BeforePageIn
            | Self::BeforeCheckpoint
            | Self::OnMessage => Power::Gate,
            Self::AfterLlmCall | Self::AfterToolCall => Power::Filter,
            _ => Power::Observe,
        }
    }

    pub(super) fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The order of hooks at one point, before their priorities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Is the subject well formed?
    Validate,
    /// May this process do it?
    Authorize,
    /// Should it be done, and in this way?
    #[default]
    Policy,
    /// Told what was decided, a denial too; its verdict counts for nothing.
    Telemetry,
}

impl Phase {
    /// All phases in their order.
    pub const ALL: [Self; 4] = [Self::Validate, Self::Authorize, Self::Policy, Self::Telemetry];

    /// The word in `hook ls` and in a manifest.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Validate => "validate",
            Self::Authorize => "authorize",
            Self::Policy => "policy",
            Self::Telemetry => "telemetry",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_point_has_its_own_place_and_name() {
        for (i, point) in Hook::ALL.into_iter().enumerate() {
            assert_eq!(point.index(), i);
            assert_eq!(Hook::from_name(point.name()), Some(point));
            assert_eq!(serde_json::to_value(point).unwrap(), point.name());
        }
        assert_eq!(Hook::from_name("before-step"), None);
    }
}
