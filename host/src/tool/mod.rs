//! Tools: which there are, who may call them with what, and how one is called.
//!
//! It knows specifications, schemas and rights; how a tool's code runs is behind [`Invoke`].

mod executor;
mod kept;
mod registry;
mod secrets;
mod security;
mod session;

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;

use crate::abi::ToolResult;
use crate::capability::Rights;
use crate::overlay::Area;
use crate::process::Pid;

pub use executor::{Client, ToolExecutor};
pub use kept::{Kept, Slot};
pub use registry::{Entry, Lookup, Source, ToolRegistry, full_name};
pub use secrets::Secrets;
pub use security::{Claim, ToolSecurity};
pub(crate) use session::{LOG_LINE_OVERHEAD, conflict};
pub use session::{LogLine, Session, SessionEnd};

/// One call as the tool's runtime gets it.
#[derive(Debug)]
pub struct Invocation {
    /// The tool's name within its plugin.
    pub tool: String,
    /// The arguments object as JSON, already checked against the schema.
    pub arguments: String,
    /// The calling process.
    pub caller: Pid,
    /// The same for each attempt of one call.
    pub idempotency_key: String,
    /// What the call may reach.
    pub rights: Rights,
    /// The most fuel that the call may use, if the caller has less left than the tool's limit.
    pub fuel: u64,
    /// Log and plugin state of the call.
    pub session: Session,
    /// Where the changes of its private mounts are kept.
    pub area: Option<Arc<Area>>,
    /// Where a stateful plugin's instance is from one call of the process to the next.
    pub slot: Option<Slot>,
}

/// What a call gave and what it cost.
#[derive(Debug)]
pub struct Report {
    /// The result, or why there is none.
    pub result: ToolResult,
    /// Fuel used.
    pub fuel: u64,
    /// Peak bytes of the instance's memories.
    pub memory_bytes: u64,
    /// Log lines and state changes, for the caller's transaction.
    pub session: SessionEnd,
}

/// Runs a tool's code: a Wasm component, or (later) a server elsewhere.
#[async_trait]
pub trait Invoke: Send + Sync + Debug {
    /// Runs one call inside the caller's future. A failing tool is a report, not an error of this
    /// function. Dropping the future stops the tool.
    async fn invoke(&self, call: Invocation) -> Report;
}
