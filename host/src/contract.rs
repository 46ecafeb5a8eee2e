//! What a component file is, told from its bytes before any of it is compiled or run.

/// Why a plugin is refused, for its author.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Closed code (`docs/plugins.md`).
    pub code: &'static str,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: String,
}
