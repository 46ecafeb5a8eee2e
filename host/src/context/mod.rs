//! Context as virtual memory: the page table of a process, its window, and what is swapped out.
//!
//! It owns which pages are in the window and how the window looks. It knows neither processes' rights
//! nor SQL: what has to be stored is returned to the caller, who commits it with the syscall that
//! caused it. It does no I/O; a swapped page's text is fetched by the caller.
//!
//! Today's replacement is a stop-gap: append only, the oldest unpinned whole turns go in one batch,
//! nothing is recalled by itself. No page is ever lost: a swapped one is in the store byte for byte.

mod layout;
mod manager;
mod page;
mod swap;
#[cfg(test)]
mod tests;
pub mod tokens;

pub use layout::KvCacheOptimizer;
pub use manager::{PageManager, Placement, Read, Region, Usage};
pub use page::{ContextPage, NewPage};
pub use swap::SwapManager;

/// Why a page operation failed.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// No page of that id.
    #[error("there is no page {id}; `context.pages` lists the ids")]
    NoPage {
        /// What was asked for.
        id: u64,
    },
    /// The id is taken.
    #[error("page {id} exists already; a new page needs an unused id")]
    Taken {
        /// What was given.
        id: u64,
    },
    /// Importance is out of range.
    #[error("importance {value} is not between 0 and 1")]
    Importance {
        /// What was given.
        value: f32,
    },
}
