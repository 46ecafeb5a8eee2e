//! Why the kernel could not do it: the façade's one error type.

use std::path::PathBuf;

use super::info::FileChange;
use crate::contract::Fault;
use crate::process::Pid;
use crate::{config, grants, llm, overlay, storage};

/// The CLI and the API turn each variant into one code, hint and exit status.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another kernel owns the data directory.
    #[error("the data directory {path} is in use by the kernel with pid {holder}")]
    Locked {
        /// Data directory.
        path: PathBuf,
        /// Operating-system process id; 0 if it is not known yet.
        holder: u32,
    },
    /// A directory or file of the kernel's own cannot be used.
    #[error("{what} {path} cannot be used: {source}")]
    Io {
        /// What it is for.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Bad configuration.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// The model was not found or not named.
    #[error(transparent)]
    Model(#[from] llm::Error),
    /// No agent of that name.
    #[error("there is no agent `{name}`")]
    UnknownAgent {
        /// What was asked for.
        name: String,
        /// The names that exist.
        known: Vec<String>,
    },
    /// No tool of that name.
    #[error("there is no tool `{name}`")]
    UnknownTool {
        /// What was asked for.
        name: String,
        /// Similar or all names.
        known: Vec<String>,
    },
    /// A bare tool name that several plugins serve.
    #[error("`{name}` is ambiguous")]
    AmbiguousTool {
        /// What was asked for.
        name: String,
        /// The full names.
        candidates: Vec<String>,
    },
    /// No plugin of that name.
    #[error("there is no plugin `{name}`")]
    UnknownPlugin {
        /// What was asked for.
        name: String,
        /// The names that exist.
        known: Vec<String>,
    },
    /// A grant cannot be had.
    #[error(transparent)]
    Grants(#[from] grants::Error),
    /// No process of that PID.
    #[error("there is no process {pid}")]
    UnknownProcess {
        /// What was asked for.
        pid: Pid,
    },
    /// A plugin was refused.
    #[error("the plugin `{name}` is refused: {}", fault.message)]
    Plugin {
        /// Which.
        name: String,
        /// Why.
        fault: Fault,
    },
    /// The process is not in a state for it.
    #[error("process {pid} {why}")]
    State {
        /// Which.
        pid: Pid,
        /// For example `has ended`.
        why: String,
    },
    /// What a process changed was changed outside as well. Nothing was applied.
    #[error("{} of what process {pid} changed cannot be applied: {}", conflicts.len(), listed(conflicts))]
    Conflict {
        /// Which.
        pid: Pid,
        /// What cannot be applied, each with its reason.
        conflicts: Vec<FileChange>,
    },
    /// A file was named that the process did not change.
    #[error("process {pid} did not change `{file}`")]
    Unchanged {
        /// Which.
        pid: Pid,
        /// As it was named.
        file: String,
    },
    /// A private copy, or an original of one, cannot be used.
    #[error("the private copy of process {pid}: {source}")]
    Files {
        /// Which.
        pid: Pid,
        /// The cause.
        #[source]
        source: overlay::Error,
    },
    /// The process stopped without an end and can be resumed.
    #[error("process {pid} was suspended: {why}")]
    Suspended {
        /// Which.
        pid: Pid,
        /// What the environment did.
        why: String,
    },
    /// The process stopped without an end because no model answered it, and can be resumed.
    #[error("process {pid} has no reply")]
    Unanswered {
        /// Which.
        pid: Pid,
        /// Why.
        #[source]
        source: Box<llm::Error>,
    },
    /// No question of that id.
    #[error("there is no approval {id}")]
    UnknownApproval {
        /// What was asked for.
        id: u64,
        /// Those that wait for an answer.
        pending: Vec<u64>,
    },
    /// The question has its answer.
    #[error("approval {id} has its answer already: {state}")]
    Answered {
        /// Which.
        id: u64,
        /// `approved` or `denied`.
        state: &'static str,
    },
    /// A hook wants a person to decide about a spawn, and nobody could be asked.
    #[error("the hook `{by}` wants a person to decide: {reason}")]
    NeedsApproval {
        /// The hook.
        by: String,
        /// Its question.
        reason: String,
    },
    /// An argument is out of range or malformed.
    #[error("{0}")]
    Invalid(String),
    /// A hook refused the spawn.
    #[error("{by} refused it: {reason}")]
    Denied {
        /// The hook.
        by: String,
        /// Its reason.
        reason: String,
    },
    /// No more agents fit into the machine's memory map.
    #[error("{live} processes live, and there is no room for another (vm.max_map_count is {mappings})")]
    Crowded {
        /// How many live.
        live: usize,
        /// The setting.
        mappings: u64,
    },
    /// The engine could not be built, or refused a component.
    #[error("the engine failed: {0}")]
    Engine(String),
    /// This handle reads the store of a directory and runs nothing.
    #[error("this needs a running kernel")]
    ReadOnly,
}

/// The first of the paths that cannot be applied, with the reasons.
fn listed(conflicts: &[FileChange]) -> String {
    const SHOWN: usize = 5;
    let told = |c: &FileChange| format!("{} ({})", c.path, c.conflict.as_deref().unwrap_or("it is another by now"));
    let mut text = conflicts.iter().take(SHOWN).map(told).collect::<Vec<_>>().join(", ");
    if conflicts.len() > SHOWN {
        text.push_str(&format!(" and {} more", conflicts.len() - SHOWN));
    }
    text
}
