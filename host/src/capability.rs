//! What a guest may reach. Pure.

use crate::process::Mount;

/// The rights of one tool call. The default is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// Directories, each by the name the guest sees.
    pub mounts: Vec<Mount>,
}
