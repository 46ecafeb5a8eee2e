//! The store: episodic memory, state, audit log and checkpoint journal behind one trait per role.
//!
//! Everything that changes goes through [`Storage::commit`]: a [`Batch`] is what one syscall changes
//! together with its journal and audit records, and it is applied whole or not at all. Reads are per
//! role. SQL lives in this module and nowhere else.

mod admission;
mod memory;
mod sqlite;
mod store;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod sample;

use std::borrow::Cow;
use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;

use crate::abi::{Effect, ToolCall};
use crate::audit::{Head, Record as AuditRecord};
pub use crate::config::Durability;
use crate::process::{Exit, Pid, ProcessSpec, ProcessState, Seq, Usage};

/// Why the store could not do it. Cheap to clone: one failure may concern many batches.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The URL names no backend.
    #[error("`{url}` is no store: use `memory:` or `sqlite:PATH`")]
    Url {
        /// What was given.
        url: String,
    },
    /// Another aok wrote it.
    #[error("the store {path} has schema version {found}, newer than this aok's {known}")]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest that this build knows.
        known: i64,
    },
    /// No space is left for the store.
    #[error("the store {store} cannot grow: the disk or its quota is full")]
    Full {
        /// The backend's name.
        store: String,
    },
    /// A compare-and-set found another revision.
    #[error("`{key}` has revision {found}, not {expected}")]
    Conflict {
        /// The state key.
        key: String,
        /// The expected revision, 0 = must not exist.
        expected: u64,
        /// The revision in the store, 0 = does not exist.
        found: u64,
    },
    /// A record that must not exist does, or the other way round.
    #[error("{what}")]
    Broken {
        /// Which record, and what is wrong.
        what: String,
    },
    /// An earlier batch of the process was refused, so a later one would leave a hole.
    #[error("an earlier write of process {pid} failed: {first}")]
    Refused {
        /// The process.
        pid: Pid,
        /// The first failure's text.
        first: String,
    },
    /// The backend failed.
    #[error("the store {store} failed")]
    Backend {
        /// The backend's name.
        store: String,
        /// Its own error.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
}

/// How a store stands to this aok, without being opened. One that is too new is an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is there.
    Current {
        /// Its schema version.
        version: i64,
    },
    /// It is there, and the next kernel brings its schema up to date.
    Older {
        /// Its schema version.
        found: i64,
        /// The newest that this build knows.
        known: i64,
    },
    /// There is none yet.
    Absent,
}

impl Error {
    /// Whether the backend itself failed, and not one batch by what it asked for.
    #[must_use]
    pub fn is_backend(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::Backend { .. } | Self::TooNew { .. } | Self::Url { .. })
    }

    fn backend(store: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Backend { store: store.to_owned(), source: Arc::from(source.into()) }
    }

    /// The message with its causes, for a place that keeps only text.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

pub use memory::Memory;
pub use sqlite::Sqlite;
pub use store::Store;

/// A process as it stands in the store.
#[derive(Clone, Debug, PartialEq)]
pub struct ProcessRow {
    /// What was fixed at its spawn.
    pub spec: ProcessSpec,
    /// Its last committed state.
    pub state: ProcessState,
    /// What it waits on, for people.
    pub waiting_on: Option<String>,
    /// What it has used.
    pub usage: Usage,
    /// How it ended, once it did.
    pub exit: Option<Exit>,
}

/// What a page is (DESIGN.md §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PageKind {
    /// Instructions.
    System,
    /// Tool schemas.
    Tools,
    /// The task.
    Task,
    /// A note of the agent.
    Note,
    /// A person's turn.
    User,
    /// The model's turn.
    Assistant,
    /// A tool call recorded alone.
    ToolCall,
    /// A tool call's result.
    ToolResult,
    /// A recalled page.
    Recalled,
    /// A summary or a stub of others.
    Summary,
}

/// A page of a process's context, with its text.
#[derive(Clone, Debug, PartialEq)]
pub struct PageRecord {
    /// Whose.
    pub pid: Pid,
    /// Its id, unique in the process, ascending in window order.
    pub id: u64,
    /// The journal position that made it; 0 = at spawn.
    pub seq: Seq,
    /// What it is.
    pub kind: PageKind,
    /// The exact text.
    pub text: String,
    /// An assistant page's tool calls.
    pub tool_calls: Vec<ToolCall>,
    /// A tool result's `(call id, tool name)`.
    pub answers: Option<(String, String)>,
    /// What changes during its life.
    pub meta: PageMeta,
    /// SHA-256 of the text, hex.
    pub hash: String,
    /// Unix milliseconds.
    pub created_ms: u64,
}

/// The part of a page that changes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PageMeta {
    /// Size in tokens.
    pub tokens: u32,
    /// Whether `tokens` is exact or an upper bound.
    pub exact: bool,
    /// 0 (least) to 1 (most).
    pub importance: f32,
    /// Never evicted.
    pub pinned: bool,
    /// In the window.
    pub resident: bool,
    /// Unix milliseconds of the last access.
    pub accessed_ms: u64,
    /// How often it was read or faulted.
    pub accesses: u32,
}

/// One journal position: a syscall, and its outcome once it has one.
#[derive(Clone, Debug, PartialEq)]
pub struct JournalRecord {
    /// Whose.
    pub pid: Pid,
    /// The position.
    pub seq: Seq,
    /// The syscall's name, as `tool-call`.
    pub call: Cow<'static, str>,
    /// What identifies the call: its arguments as JSON, long texts by digest. A replay compares it.
    pub request: String,
    /// The repeated-call class, for calls that reach outside.
    pub effect: Option<Effect>,
    /// Unix milliseconds at the start.
    pub started_ms: u64,
    /// The outcome as JSON; `None` = started, not ended.
    pub outcome: Option<String>,
    /// Unix milliseconds of the outcome; the agent's clock after the call.
    pub ended_ms: Option<u64>,
}

/// One line of a process's log.
#[derive(Clone, Debug, PartialEq)]
pub struct LogRecord {
    /// Whose.
    pub pid: Pid,
    /// The journal position that wrote it.
    pub seq: Seq,
    /// Unix milliseconds.
    pub at_ms: u64,
    /// `trace`, `debug`, `info`, `warn` or `error`.
    pub level: String,
    /// The agent's or the tool's name.
    pub source: String,
    /// The line.
    pub message: String,
}

/// A state value with its revision, which starts at 1 and grows by 1 with each put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateEntry {
    /// The value.
    pub value: Vec<u8>,
    /// Its revision.
    pub revision: u64,
}

/// One change of the store.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A new process, runnable. Fails if the PID exists.
    Spawn(Box<ProcessSpec>),
    /// Replaces what the batch's process has used. Fails if there is no such process.
    Usage(Usage),
    /// Sets its state and what it waits on. Fails if there is no such process.
    State(ProcessState, Option<String>),
    /// Ends it: state Z, waiting on nothing, and the exit status. Fails if it has ended already.
    Exit(Exit),
    /// Replaces what a process is. Fails if there is no such process.
    Respec(Box<ProcessSpec>),
    /// Forgets the journal of the batch's process before this position.
    Forget(Seq),
    /// A journal record: inserted, or (where the position holds a start without an outcome) ended.
    /// Fails where the position has an outcome, or holds the start of another call.
    Journal(Box<JournalRecord>),
    /// A new page. Fails if the id exists.
    Page(Box<PageRecord>),
    /// Replaces what changes of a page. Fails if there is no such page.
    PageMeta(u64, PageMeta),
    /// Sets a state key, revision + 1; with `expected` only if the stored revision is that
    /// (0 = none), else [`Error::Conflict`].
    StatePut {
        /// `pid:N`, `plugin:NAME`, or one of the kernel's own.
        scope: String,
        /// The key.
        key: String,
        /// The value.
        value: Vec<u8>,
        /// The revision to find.
        expected: Option<u64>,
    },
    /// Deletes a state key if it is there.
    StateDelete {
        /// `pid:N` or `plugin:NAME`.
        scope: String,
        /// The key.
        key: String,
    },
    /// A log line.
    Log(LogRecord),
    /// An audit record; also moves its chain's [`Head`]. Fails where it does not follow that head,
    /// by position and by hash.
    Audit(AuditRecord),
}

/// What one syscall changes, applied whole or not at all.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// The process that the changes belong to; [`Pid::KERNEL`] for the kernel's own.
    pub pid: Pid,
    /// The changes, applied in this order.
    pub changes: Vec<Change>,
}

/// Pages: what the context of a process holds and held.
#[async_trait]
pub trait EpisodicMemory: Send + Sync {
    /// All pages of a process by id, each with its text.
    async fn pages(&self, pid: Pid) -> Result<Vec<PageRecord>, Error>;
    /// One page, byte for byte.
    async fn page(&self, pid: Pid, id: u64) -> Result<Option<PageRecord>, Error>;
}

/// Processes, their logs, and key-value state.
#[async_trait]
pub trait StateStore: Send + Sync {
    /// All processes by PID.
    async fn processes(&self) -> Result<Vec<ProcessRow>, Error>;
    /// One process.
    async fn process(&self, pid: Pid) -> Result<Option<ProcessRow>, Error>;
    /// The highest PID ever used, 0 for none.
    async fn last_pid(&self) -> Result<u64, Error>;
    /// A state value.
    async fn state(&self, scope: &str, key: &str) -> Result<Option<StateEntry>, Error>;
    /// All state values of a scope, by key.
    async fn states(&self, scope: &str) -> Result<Vec<(String, StateEntry)>, Error>;
    /// A process's log lines in the order written, those after the `skip` first ones.
    async fn logs(&self, pid: Pid, skip: u64) -> Result<Vec<LogRecord>, Error>;
}

/// The audit log: a hash chain per process and one of the kernel (pid 0).
#[async_trait]
pub trait AuditLog: Send + Sync {
    /// The last `limit` records over all chains (or of one), oldest first, by time then chain then
    /// position.
    async fn audit_tail(&self, pid: Option<Pid>, limit: u64) -> Result<Vec<AuditRecord>, Error>;
    /// A whole chain in the order it is stored in, whatever its positions say.
    async fn audit_chain(&self, pid: Pid) -> Result<Vec<AuditRecord>, Error>;
    /// The head of each chain, by pid: what the chain's last record must be.
    async fn audit_heads(&self) -> Result<Vec<(Pid, Head)>, Error>;
}

/// The journal that a process is replayed from.
#[async_trait]
pub trait CheckpointJournal: Send + Sync {
    /// All records of a process by position.
    async fn journal(&self, pid: Pid) -> Result<Vec<JournalRecord>, Error>;
}

/// The four roles in one, and the one way to write.
#[async_trait]
pub trait Storage: EpisodicMemory + StateStore + AuditLog + CheckpointJournal + Debug {
    /// Applies the batches in order. Each is atomic: one that fails changes nothing and its error
    /// stands at its index; the others are applied and durable when this returns. A failure of the
    /// backend itself (disk full, I/O) fails every batch with nothing applied.
    ///
    /// Once a batch has failed with anything but [`Error::Conflict`], the later ones of the same
    /// process in the same call fail with [`Error::Refused`], so that no history gets a hole.
    async fn commit(&self, batches: Vec<Batch>) -> Vec<Result<(), Error>>;
    /// `memory` or `sqlite:PATH`, for messages.
    fn name(&self) -> String;
    /// Writes everything out and closes. Later calls fail.
    async fn close(&self);
}
