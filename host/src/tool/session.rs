//! What a running tool may do to the kernel: log lines, and its plugin's key-value state. Both are
//! held back until the call ends and then join the caller's transaction.

use std::collections::HashMap;

use crate::abi::{Errno, Error};
use crate::process::Pid;
use crate::storage::{Change, StateEntry, Store};

/// A line that a tool logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// `trace` … `error`.
    pub level: &'static str,
    /// The line.
    pub message: String,
}

/// A running call's side of the kernel.
#[derive(Debug)]
pub struct Session {
    /// None while a plugin is only asked what it has.
    store: Option<Store>,
    caller: Pid,
    scope: String,
    log_limit: u64,
    log_bytes: u64,
    lines: Vec<LogLine>,
    changes: Vec<Change>,
    seen: HashMap<String, Option<StateEntry>>,
}

/// What a finished call leaves for the caller's transaction.
#[derive(Debug, Default)]
pub struct SessionEnd {
    /// Log lines, oldest first.
    pub lines: Vec<LogLine>,
    /// Changes of the plugin's state.
    pub changes: Vec<Change>,
}

impl Session {
    /// A session of `plugin`'s state for one call by `caller`.
    #[must_use]
    pub fn new(store: Store, caller: Pid, plugin: &str, log_limit: u64) -> Self {
        Self {
            store: Some(store),
            caller,
            scope: format!("plugin:{plugin}"),
            log_limit,
            log_bytes: 0,
            lines: Vec::new(),
            changes: Vec::new(),
            seen: HashMap::new(),
        }
    }

    /// A session without a store, for a plugin that is only asked which tools it has.
    #[must_use]
    pub fn detached(log_limit: u64) -> Self {
        Self {
            store: None,
            caller: Pid::KERNEL,
            scope: String::new(),
            log_limit,
            log_bytes: 0,
            lines: Vec::new(),
            changes: Vec::new(),
            seen: HashMap::new(),
        }
    }

    /// Adds a log line.
    ///
    /// # Errors
    /// The `log` limit is used up; the call must be stopped.
    pub fn log(&mut self, level: &'static str, message: String) -> Result<(), Error> {
        self.log_bytes += message.len() as u64 + LOG_LINE_OVERHEAD;
        if self.log_bytes > self.log_limit {
            return Err(Error::limit("log", format!("it logged more than {} bytes in one call", self.log_limit)));
        }
        self.lines.push(LogLine { level, message });
        Ok(())
    }

    /// Changes every line that was logged so far.
    pub(crate) fn rewrite_lines(&mut self, change: impl Fn(&mut String)) {
        self.lines.iter_mut().for_each(|line| change(&mut line.message));
    }

    /// Reads a key: this call's own writes first, then the store.
    ///
    /// # Errors
    /// `io` if the store fails.
    pub async fn get(&mut self, key: String) -> Result<Option<StateEntry>, Error> {
        if let Some(entry) = self.seen.get(&key) {
            return Ok(entry.clone());
        }
        let entry = self.read(&key).await?;
        self.seen.insert(key, entry.clone());
        Ok(entry)
    }

    /// Writes a key; see the WIT for `expected`. It is in the store once the call has ended.
    ///
    /// # Errors
    /// `again` if the revision is not the expected one, `io` if the store fails.
    pub async fn put(&mut self, key: String, value: Vec<u8>, expected: Option<u64>) -> Result<u64, Error> {
        let found = self.get(key.clone()).await?.map_or(0, |e| e.revision);
        if let Some(expected) = expected.filter(|e| *e != found) {
            return Err(conflict(&key, expected, found));
        }
        let revision = found + 1;
        // The revision that this call saw is checked again in the transaction: another process's
        // call may have written in between.
        self.changes.push(Change::StatePut {
            scope: self.scope.clone(),
            key: key.clone(),
            value: value.clone(),
            expected: Some(found),
        });
        self.seen.insert(key, Some(StateEntry { value, revision }));
        Ok(revision)
    }

    /// Deletes a key if it is there.
    pub fn delete(&mut self, key: String) {
        self.changes.push(Change::StateDelete { scope: self.scope.clone(), key: key.clone() });
        self.seen.insert(key, None);
    }

    /// Ends the session. A call that failed leaves its log lines and none of its state changes.
    #[must_use]
    pub fn end(self, ok: bool) -> SessionEnd {
        SessionEnd { lines: self.lines, changes: if ok { self.changes } else { Vec::new() } }
    }

    async fn read(&self, key: &str) -> Result<Option<StateEntry>, Error> {
        let failed = |e: crate::storage::Error| Error::new(Errno::Io, format!("the state key `{key}`: {e}"));
        let Some(store) = &self.store else {
            return Err(Error::new(Errno::Denied, "a plugin has no state while it is asked which tools it has"));
        };
        store.sync(self.caller).await.map_err(failed)?;
        store.state(&self.scope, key).await.map_err(failed)
    }
}

/// Bytes that a log line costs beside its text.
pub(crate) const LOG_LINE_OVERHEAD: u64 = 16;

/// The error of a lost compare-and-set.
pub(crate) fn conflict(key: &str, expected: u64, found: u64) -> Error {
    Error::new(
        Errno::Again,
        format!("state key `{key}` has revision {found}, not {expected}: read it again and repeat the change"),
    )
}
