//! Write agents, tools and hooks for the Agent OS Kernel in Rust.
//!
//! A plugin is a `cdylib` crate for `wasm32-unknown-unknown` that implements one role and exports it with one
//! macro. Its rights come from the operator: what is not granted is not linked or answers `denied`.
//!
//! # A tool
//!
//! A tool is one struct: its fields are the arguments, its doc comments are what a model reads.
//!
//! ```
//! use agent_os_sdk::{CallContext, Effect, Result, Tool};
//!
//! /// Adds two numbers.
//! #[derive(serde::Deserialize, schemars::JsonSchema)]
//! #[serde(deny_unknown_fields)]
//! struct Add {
//!     /// The first number.
//!     a: f64,
//!     /// The second number.
//!     b: f64,
//! }
//!
//! impl Tool for Add {
//!     const NAME: &str = "add";
//!     const EFFECT: Effect = Effect::Pure;
//!     type Output = f64;
//!
//!     fn call(self, _: &CallContext) -> Result<f64> {
//!         Ok(self.a + self.b)
//!     }
//! }
//!
//! agent_os_sdk::export_tools!(Add);
//! # fn main() {}
//! ```
//!
//! # An agent
//!
//! ```
//! use agent_os_sdk::{Agent, Task, context, llm, step};
//!
//! struct Plain;
//!
//! impl Agent for Plain {
//!     fn run(task: Task) -> Result<String, String> {
//!         agent_os_sdk::log::info(&format!("working on: {}", task.text));
//!         loop {
//!             match step::step(&llm::Options::default()) {
//!                 Ok(step::Outcome::Answered(text)) => return Ok(text),
//!                 Ok(step::Outcome::Continuing(_)) => {}
//!                 Err(error) => return Err(error.message),
//!             }
//!         }
//!     }
//! }
//!
//! agent_os_sdk::export_agent!(Plain);
//! # fn main() {}
//! ```
//!
//! # A hook
//!
//! A hook reads of an event's subject what it needs, and says what is to happen.
//!
//! ```
//! use agent_os_sdk::{Event, Hook, Phase, Point, Result, Subscription, Verdict};
//!
//! /// Lets tools change things from 8 to 18 o'clock UTC only.
//! struct OfficeHours;
//!
//! #[derive(serde::Deserialize)]
//! struct Call {
//!     name: String,
//!     effect: Option<String>,
//! }
//!
//! impl Hook for OfficeHours {
//!     fn subscriptions() -> Vec<Subscription> {
//!         vec![Subscription::at(Point::BeforeToolCall).phase(Phase::Authorize)]
//!     }
//!
//!     fn on_event(event: Event) -> Result<Verdict> {
//!         let call: Call = event.read()?;
//!         let hour = event.at_ms / 3_600_000 % 24;
//!         if matches!(call.effect.as_deref(), Some("pure" | "read-only")) || (8..18).contains(&hour) {
//!             return Ok(Verdict::Allow);
//!         }
//!         Ok(Verdict::deny(format!("`{}` may be called from 8 to 18 o'clock UTC", call.name)))
//!     }
//! }
//!
//! agent_os_sdk::export_hook!(OfficeHours);
//! # fn main() {}
//! ```
//!
//! Every function of [`context`], [`llm`], [`tools`], [`process`], [`step`], [`state`] and [`log`] is a syscall:
//! it is checked, charged, journaled and audited. An agent is replayed after a crash, so it must be a function
//! of what its syscalls return. The kernel gives it a virtual clock and seeded random, so that ordinary code is.

mod agent;
mod error;
#[doc(hidden)]
pub mod generated;
mod hook;
pub mod log;
#[cfg(target_arch = "wasm32")]
mod memory;
mod panic;
pub mod state;
mod tool;

pub use agent::{Agent, Task, context, llm, process, step, tools};
pub use error::{Errno, Error, Result};
pub use hook::{Event, Hook, Phase, Point, Subscription, Verdict};
pub use tool::{CallContext, Effect, Tool, ToolSpec};

#[doc(hidden)]
pub use hook::verdict;
#[doc(hidden)]
pub use panic::report_panics;
#[doc(hidden)]
pub use tool::{dispatch, spec};
