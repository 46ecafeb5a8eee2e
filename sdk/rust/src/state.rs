//! Small durable key-value state: of the process for an agent, of the plugin for a tool or a hook.

use crate::generated::agent::agent_os::plugin::state as raw;
use crate::{Errno, Result};

pub use raw::{Entry, delete, get};

/// Stores `value` whatever was there, and returns its revision.
///
/// # Errors
/// `quota` when the state is full, `io` when the store failed.
pub fn put(key: &str, value: &[u8]) -> Result<u64> {
    raw::put(key, value, None)
}

/// Stores `value` if the key's revision is still `expected` (0: the key does not exist yet), and returns the
/// new revision.
///
/// # Errors
/// `again` when another writer was first: read, decide and try again. Else as [`put`].
pub fn compare_and_set(key: &str, value: &[u8], expected: u64) -> Result<u64> {
    raw::put(key, value, Some(expected))
}

/// Replaces the value of `key` by `change` of it, again when another writer came between, and returns what it
/// stored. `change` gets `None` when the key does not exist.
///
/// # Errors
/// What `change` or the store answers.
pub fn update(key: &str, mut change: impl FnMut(Option<&[u8]>) -> Result<Vec<u8>>) -> Result<Vec<u8>> {
    loop {
        let entry = get(key)?;
        let value = change(entry.as_ref().map(|entry| entry.value.as_slice()))?;
        match compare_and_set(key, &value, entry.map_or(0, |entry| entry.revision)) {
            Ok(_) => return Ok(value),
            // Each retry is a charged syscall, so a key that is always contended ends by the call's limits.
            Err(error) if error.code == Errno::Again => {}
            Err(error) => return Err(error),
        }
    }
}
