//! Limits: what one guest instance may use (`Limits`) and what a whole process may (`ResourceQuota`).
//!
//! There is no value that means "unlimited" and no limit without a number. Pure arithmetic; who
//! enforces each is written beside it.

mod account;

pub use account::{Account, Exceeded, Reservation, Resource};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Bytes in a MiB.
pub const MIB: u64 = 1 << 20;

/// The limits of one guest instance, taken by every lane: agents, tools, plugin inspection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Instructions, in wasmtime fuel. Enforced by the store's fuel.
    pub fuel: u64,
    /// Bytes over all linear memories of the instance. Enforced by the store's limiter.
    pub memory: u64,
    /// Elements over all tables. Enforced by the store's limiter.
    pub tables: u64,
    /// Core instances in a component. Enforced by the store's limiter.
    pub instances: u32,
    /// Wall time of one call in milliseconds. Enforced by a timer and the epoch ticker.
    pub wall_ms: u64,
    /// Bytes of one result. Checked on return, and bounds what is copied out of the guest.
    pub output: u64,
    /// Bytes of log lines in one call. Enforced where the line arrives.
    pub log: u64,
    /// Calls into the kernel in one call of the guest. Enforced where the call arrives.
    pub host_calls: u64,
    /// Bytes copied between guest and kernel in one host call. Enforced by the store.
    pub host_call_bytes: u64,
}

impl Limits {
    /// The limits of one tool call unless the operator's `[limits]` say otherwise.
    pub const TOOL: Self = Self {
        fuel: 20_000_000_000,
        memory: 256 * MIB,
        tables: 20_000,
        instances: 64,
        wall_ms: 30_000,
        output: 4 * MIB,
        log: 256 * 1024,
        host_calls: 100_000,
        host_call_bytes: 8 * MIB,
    };

    /// The limits of one answer of a hook, each under the operator's `[limits]`: a hook stands in the way of others.
    pub const HOOK: Self = Self {
        fuel: 2_000_000_000,
        memory: 128 * MIB,
        tables: 20_000,
        instances: 64,
        wall_ms: 2_000,
        output: 4 * MIB,
        log: 64 * 1024,
        host_calls: 1_000,
        host_call_bytes: 8 * MIB,
    };

    /// The limits of an agent's instance; its fuel and wall time come from its [`ResourceQuota`].
    pub const AGENT: Self = Self {
        fuel: ResourceQuota::STANDARD.fuel,
        memory: 256 * MIB,
        tables: 20_000,
        instances: 64,
        wall_ms: ResourceQuota::STANDARD.wall_ms,
        output: 4 * MIB,
        log: 16 * MIB,
        host_calls: 10_000_000,
        host_call_bytes: 32 * MIB,
    };
}

impl Limits {
    /// The smaller of each.
    #[must_use]
    pub fn both(self, other: Self) -> Self {
        Self {
            fuel: self.fuel.min(other.fuel),
            memory: self.memory.min(other.memory),
            tables: self.tables.min(other.tables),
            instances: self.instances.min(other.instances),
            wall_ms: self.wall_ms.min(other.wall_ms),
            output: self.output.min(other.output),
            log: self.log.min(other.log),
            host_calls: self.host_calls.min(other.host_calls),
            host_call_bytes: self.host_call_bytes.min(other.host_call_bytes),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::TOOL
    }
}

/// What a process may use in its whole life, with all that descend from it; or a group, with all of its processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResourceQuota {
    /// Fuel, its tools' included.
    pub fuel: u64,
    /// Tokens, prompt and generated together.
    pub tokens: u64,
    /// Micro-USD. Counts what has a known price.
    pub micro_usd: u64,
    /// Tool calls.
    pub tool_calls: u64,
    /// Milliseconds alive. Each process has its own.
    pub wall_ms: u64,
    /// Bytes of linear memory of the agents' instances at once.
    #[serde(default = "standard::memory")]
    pub memory: u64,
    /// Living descendants at once.
    #[serde(default = "standard::children")]
    pub children: u64,
    /// Bytes written to the store.
    #[serde(default = "standard::store_bytes")]
    pub store_bytes: u64,
}

/// What becomes of a process that has used up a quota.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnQuota {
    /// It ends, with the status `over-quota`.
    #[default]
    End,
    /// It stops where it is, and goes on when it is resumed with more.
    Suspend,
}

impl OnQuota {
    /// Whether it is what happens where nothing else is said.
    #[must_use]
    pub fn is_usual(&self) -> bool {
        *self == Self::End
    }
}

/// Limits of a process that is resumed; those that are `None` stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Raise {
    /// Fuel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fuel: Option<u64>,
    /// Tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Micro-USD.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro_usd: Option<u64>,
    /// Milliseconds alive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wall_ms: Option<u64>,
}

impl Raise {
    /// The limits that `quota` becomes.
    #[must_use]
    pub fn over(self, quota: ResourceQuota) -> ResourceQuota {
        ResourceQuota {
            fuel: self.fuel.unwrap_or(quota.fuel),
            tokens: self.tokens.unwrap_or(quota.tokens),
            micro_usd: self.micro_usd.unwrap_or(quota.micro_usd),
            wall_ms: self.wall_ms.unwrap_or(quota.wall_ms),
            ..quota
        }
    }
}

/// For records that an older aok wrote.
mod standard {
    use super::ResourceQuota;

    pub(super) fn memory() -> u64 {
        ResourceQuota::STANDARD.memory
    }

    pub(super) fn children() -> u64 {
        ResourceQuota::STANDARD.children
    }

    pub(super) fn store_bytes() -> u64 {
        ResourceQuota::STANDARD.store_bytes
    }
}

impl ResourceQuota {
    /// What a process gets unless it is told otherwise.
    pub const STANDARD: Self = Self {
        fuel: 1_000_000_000_000,
        tokens: 20_000_000,
        micro_usd: 50_000_000,
        tool_calls: 100_000,
        wall_ms: 24 * 3_600_000,
        memory: 1024 * MIB,
        children: 256,
        store_bytes: 4096 * MIB,
    };

    /// What a group gets unless `[groups.NAME]` says otherwise: far more than one machine does in a day, so that a
    /// mistake ends somewhere.
    pub const GROUP: Self = Self {
        fuel: 1_000 * Self::STANDARD.fuel,
        tokens: 1_000 * Self::STANDARD.tokens,
        micro_usd: 1_000 * Self::STANDARD.micro_usd,
        tool_calls: 1_000 * Self::STANDARD.tool_calls,
        wall_ms: Self::STANDARD.wall_ms,
        memory: 64 * Self::STANDARD.memory,
        children: 200_000,
        store_bytes: 1_000 * Self::STANDARD.store_bytes,
    };
}

impl ResourceQuota {
    /// The first limit that allows nothing, in words.
    #[must_use]
    pub fn zero(&self) -> Option<&'static str> {
        let all = [
            ("fuel", self.fuel),
            ("tokens", self.tokens),
            ("usd", self.micro_usd),
            ("tool calls", self.tool_calls),
            ("timeout", self.wall_ms),
            ("memory", self.memory),
            ("children", self.children),
            ("store bytes", self.store_bytes),
        ];
        all.into_iter().find(|(_, value)| *value == 0).map(|(name, _)| name)
    }
}

impl Default for ResourceQuota {
    fn default() -> Self {
        Self::STANDARD
    }
}
