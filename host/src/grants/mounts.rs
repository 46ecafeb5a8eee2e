//! What a guest sees of the directories that it is granted.

use std::fmt;
use std::path::PathBuf;

use super::{Error, refused};
use crate::process::Mount;

/// Two directories that a guest would see under one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clash {
    /// The name.
    pub name: String,
    /// The directories.
    pub paths: [PathBuf; 2],
}

impl Clash {
    pub(super) fn refusal(&self) -> Error {
        refused(self.to_string(), "grant the directory that holds both, or rename one of them")
    }
}

impl fmt::Display for Clash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [one, two] = &self.paths;
        write!(f, "{} and {} would both be `{}` to the plugin", one.display(), two.display(), self.name)
    }
}

/// What a guest sees of directories that it may read, and read and write: each under its last name. One
/// that lies in another which allows as much is seen there alone.
///
/// # Errors
/// Two of one name.
pub fn mounts(read: &[PathBuf], write: &[PathBuf]) -> Result<Vec<Mount>, Clash> {
    let all = || write.iter().map(|p| (p, true)).chain(read.iter().map(|p| (p, false)));
    let mut mounts: Vec<Mount> = Vec::new();
    for (path, writable) in all() {
        let covered = |(other, other_writable): (&PathBuf, bool)| {
            path.starts_with(other) && (other_writable || !writable) && (path != other || other_writable != writable)
        };
        if all().any(covered) || mounts.iter().any(|m| m.host == *path) {
            continue;
        }
        let Some(guest) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if let Some(other) = mounts.iter().find(|m| m.guest == guest) {
            return Err(Clash { name: guest.to_owned(), paths: [other.host.clone(), path.clone()] });
        }
        mounts.push(Mount { host: path.clone(), guest: guest.to_owned(), writable, private: false });
    }
    Ok(mounts)
}
