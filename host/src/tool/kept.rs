//! What stateful plugins keep between the calls of one process.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// What the stateful plugins of one process keep, a slot for each. It lasts as long as the process runs in this
/// kernel.
#[derive(Debug, Default)]
pub struct Kept(Mutex<HashMap<String, Slot>>);

/// What a plugin's runtime left there. Whoever holds the lock makes the process's only call of that plugin.
pub type Slot = Arc<tokio::sync::Mutex<Option<Box<dyn Any + Send>>>>;

impl Kept {
    /// The slot of a plugin.
    #[must_use]
    pub fn slot(&self, plugin: &str) -> Slot {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get(plugin) {
            return Arc::clone(slot);
        }
        Arc::clone(slots.entry(plugin.to_owned()).or_default())
    }

    /// Lets go of everything.
    pub fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
