//! An operating-system kernel for LLM agents.
//!
//! Agents and tools are WebAssembly components. An agent is a process: it computes in a sandbox with
//! fuel and memory limits, and everything else that it does is a [`syscall::Syscall`] on one path,
//! journaled in the store, so that a killed kernel resumes it exactly where it was.
//!
//! ```
//! use agent_os_kernel::kernel::{Kernel, SpawnRequest};
//! use agent_os_kernel::process::{Exit, Mount};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! let dir = tempfile::tempdir()?;
//! std::fs::write(dir.path().join("notes.txt"), "The parcel weighs 12 kg.")?;
//!
//! // A written script stands in for the model: its k-th line is the k-th reply.
//! let script = dir.path().join("script.jsonl");
//! std::fs::write(
//!     &script,
//!     r#"{"tool_calls":[{"id":"a","name":"fs__read","arguments":{"path":"files/notes.txt"}}]}
//! {"text":"The parcel weighs 12 kg.","expect":"12 kg"}"#,
//! )?;
//!
//! let kernel = Kernel::builder(dir.path().join("data")).start().await?;
//! let (pid, _events) = kernel
//!     .spawn(SpawnRequest {
//!         task: "How heavy is the parcel?".into(),
//!         model: Some(format!("script/{}", script.display())),
//!         mounts: vec![Mount { host: dir.path().into(), guest: "files".into(), writable: false, private: false }],
//!         ..SpawnRequest::default()
//!     })
//!     .await?;
//! assert_eq!(kernel.wait(pid).await?, Exit::Success("The parcel weighs 12 kg.".into()));
//! kernel.shutdown().await;
//! # Ok(()) })
//! # }
//! ```

// Reading order: words, store, services, call, run, root, edge.
pub mod abi;
pub mod audit;
pub mod capability;
pub mod config;
pub mod contract;
pub mod grants;
pub mod manifest;
pub mod metrics;
pub mod process;
pub mod quota;

pub mod overlay;
pub mod storage;

pub mod context;
pub mod ipc;
pub mod llm;
pub mod tool;

pub(crate) mod bindings;
pub mod hook;
pub mod syscall;

pub mod engine;
pub mod plugin;
pub mod registry;
pub mod scheduler;

pub mod kernel;

pub mod cli;
pub mod server;
