//! Renaming within a private copy.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::Overlay;
use super::tree::{Kind, Stat};
use super::view::Place;

impl Overlay {
    /// Moves an entry, over what has the new name. A directory that has something of the original in it would have
    /// to be copied as a whole, and is told to be on another file system instead, as Linux's overlayfs does. The old
    /// and the new path, without links.
    pub(crate) fn rename_at(&self, base: &Path, path: &str, to: &Path, new: &str) -> io::Result<(PathBuf, PathBuf)> {
        let _alone = self.area.change();
        let (from, onto) = (self.resolve(base, path, false)?, self.resolve(to, new, false)?);
        let stat = from.stat()?.clone();
        let paths = (from.path(), onto.path());
        if self.stays(&from, &stat, &onto)? {
            return Ok(paths);
        }
        for dir in [&from.dir, &onto.dir] {
            dir.lower.as_ref().map_or(Ok(()), super::Dir::may_change)?;
        }
        let target = self.raise(&onto.dir)?;
        let source = self.copy_up(&from, true)?;
        let replaced = onto.dir.lower.as_ref().filter(|_| onto.entry.lower.is_some());
        if let Some(lower) = replaced {
            self.remember_original(&onto, lower)?;
        }
        if from.entry.lower.is_some() {
            self.hide(&from.path())?;
        }
        source.rename(from.name()?, &target, onto.name()?)?;
        if replaced.is_some() && stat.kind == Kind::Directory {
            self.hide(&onto.path())?;
        }
        match &onto.entry.upper {
            Some(old) if old.kind == Kind::Directory => self.area.give_back(0, 1),
            Some(old) => self.area.removed(old),
            None => {}
        }
        Ok(paths)
    }

    /// Whether there is nothing to do, if the entry may get that name at all.
    fn stays(&self, from: &Place, stat: &Stat, onto: &Place) -> io::Result<bool> {
        let is_dir = stat.kind == Kind::Directory;
        from.name()?;
        onto.name()?;
        let (path, new) = (from.path(), onto.path());
        if path == new {
            return Ok(true);
        }
        if is_dir && new.starts_with(&path) {
            return Err(Errno::INVAL.into());
        }
        if path.starts_with(&new) {
            return Err(Errno::NOTEMPTY.into());
        }
        if onto.as_directory && !is_dir {
            return Err(Errno::NOTDIR.into());
        }
        match onto.entry.stat() {
            // Two names of one file: so it is with rename(2).
            Some(old) if old.object == stat.object => return Ok(true),
            Some(old) if old.kind == Kind::Directory && !is_dir => return Err(Errno::ISDIR.into()),
            Some(old) if old.kind != Kind::Directory && is_dir => return Err(Errno::NOTDIR.into()),
            Some(_) if is_dir => self.require_empty(onto)?,
            _ => {}
        }
        if is_dir && from.entry.lower.is_some() {
            return Err(Errno::XDEV.into());
        }
        Ok(false)
    }
}
