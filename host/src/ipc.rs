//! What processes have to do with each other: mailboxes, named locks, and who waits for whom.
//!
//! It owns what the kernel's memory holds of them; what lasts is in the store, as state of the kernel's own scopes, and
//! changes in the transaction of the syscall that changes it. It must not know processes' code or the run queue.

mod locks;
mod mail;
mod waits;

pub use locks::{Lock, Locks};
pub use mail::{Delivery, Filter, Mailboxes};
pub use waits::{Cycle, Lend, Wait, Waits};

use crate::storage::Store;

/// All of it, for one kernel.
#[derive(Debug)]
pub struct Ipc {
    /// Messages on their way.
    pub mail: Mailboxes,
    /// Named locks.
    pub locks: Locks,
    /// Who waits for whom.
    pub waits: Waits,
}

impl Ipc {
    /// Nothing yet but what the store holds.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { mail: Mailboxes::new(store.clone()), locks: Locks::new(store), waits: Waits::default() }
    }
}
