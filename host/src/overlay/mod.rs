//! Private copies of directories: a process writes, and the original stays as it is until somebody applies what
//! was written. Files, and no Wasm.
//!
//! For each private mount of a process there are three trees in its [`Area`]:
//! - `upper` has what was created or changed. A file is copied there when it is first opened to be written.
//! - `gone` has a note for each original that was removed. It hides the original and all that is below it, also
//!   when something new has its name: a directory that was made anew shows nothing of the old one.
//! - `base` has a note for each original that was copied or removed: what it was at that moment ([`Base`]). What is
//!   in `upper` or `gone` and has none was not there.
//!
//! **What a killed kernel leaves is whole at every instant**, in this order:
//! 1. A copy is made in `tmp`, whose content means nothing.
//! 2. The note in `base` is made in `tmp` and renamed. Without 3 it means nothing, and the next copy replaces it.
//! 3. The copy is renamed into `upper`, or the note of a removal into `gone`. This is the change.
//!
//! The original is held by [`tree::Dir`], which cannot change anything; only `apply` opens it to write.

mod apply;
mod area;
mod base;
mod change;
mod notes;
mod read;
mod rename;
mod text;
mod tree;
mod view;
mod write;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use apply::{Error, Plan, Step};
pub(crate) use area::Held;
pub use area::{Area, Areas, Room};
pub use base::Base;
pub use change::{Action, Change};
pub(crate) use read::{How, Opened};
pub use text::unified;
pub use tree::{Kind, Stat};

use crate::process::Mount;
use notes::Notes;
use tree::Dir;

/// One private mount of a process. Its functions may wait for the disk.
#[derive(Debug)]
pub struct Overlay {
    /// The name under which guests see it.
    guest: String,
    /// The original.
    host: PathBuf,
    lower: Dir,
    root: PathBuf,
    gone: Notes,
    base: Notes,
    area: Arc<Area>,
}

impl Overlay {
    /// The private copy of the `index`th mount of the process whose area it is.
    ///
    /// # Errors
    /// The original cannot be opened.
    pub fn open(area: &Arc<Area>, index: usize, mount: &Mount) -> io::Result<Self> {
        let root = area.dir().join(index.to_string());
        Ok(Self {
            guest: mount.guest.clone(),
            lower: Dir::root(&mount.host)?,
            host: mount.host.clone(),
            gone: Notes::new(root.join("gone")),
            base: Notes::new(root.join("base")),
            root,
            area: Arc::clone(area),
        })
    }

    /// The private copies of a process, of those of its mounts that have one.
    ///
    /// # Errors
    /// The mount whose original cannot be opened.
    pub fn all(area: &Arc<Area>, mounts: &[Mount]) -> Result<Vec<Self>, (PathBuf, io::Error)> {
        let private = mounts.iter().enumerate().filter(|(_, mount)| mount.is_private());
        private.map(|(index, mount)| Self::open(area, index, mount).map_err(|e| (mount.host.clone(), e))).collect()
    }

    /// The name under which guests see it.
    #[must_use]
    pub fn guest(&self) -> &str {
        &self.guest
    }

    pub(crate) fn area(&self) -> &Arc<Area> {
        &self.area
    }

    /// What an original was; `None` for what was not there.
    fn base(&self, path: &Path) -> io::Result<Option<Base>> {
        let Some(note) = self.base.read(path)? else { return Ok(None) };
        serde_json::from_slice(&note).map(Some).map_err(io::Error::other)
    }

    /// Notes what an original is, before it is copied or hidden.
    fn remember(&self, path: &Path, base: &Base) -> io::Result<()> {
        let note = serde_json::to_vec(base).map_err(io::Error::other)?;
        self.base.put(path, &note, &self.area.fresh_path()?)
    }

    /// Hides an original.
    fn hide(&self, path: &Path) -> io::Result<()> {
        if self.gone.has(path)? {
            return Ok(());
        }
        self.area.taking(0, 1, || self.gone.put(path, b"", &self.area.fresh_path()?))
    }
}

#[cfg(test)]
mod tests;
