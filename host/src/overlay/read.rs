//! Looking at a private copy, and opening what is in it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::tree::{Kind, Stat};
use super::view::{Cursor, Place};
use super::{Held, Overlay};

/// How an entry is opened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct How {
    pub(crate) follow: bool,
    pub(crate) create: bool,
    pub(crate) exclusive: bool,
    pub(crate) truncate: bool,
    pub(crate) directory: bool,
    pub(crate) read: bool,
    pub(crate) write: bool,
}

impl How {
    fn changes(self) -> bool {
        self.write || self.create || self.truncate
    }
}

/// What was opened.
#[derive(Debug)]
pub(crate) enum Opened {
    /// A directory, by its path from the mount's root.
    Directory(PathBuf),
    /// An original, to read.
    Lower(File),
    /// A file of the private copy, to read or to write.
    Upper(File, Held),
}

impl Overlay {
    /// Opens what `path` leads to from the directory `base`, and says where it is.
    pub(crate) fn open_at(&self, base: &Path, path: &str, how: How) -> io::Result<(PathBuf, Opened)> {
        if how.directory && (how.create || how.exclusive || how.truncate) {
            return Err(Errno::INVAL.into());
        }
        let _alone = how.changes().then(|| self.area.change());
        let place = self.resolve(base, path, how.follow && !(how.create && how.exclusive))?;
        let Some(kind) = place.entry.kind() else {
            return match how {
                How { create: false, .. } => Err(Errno::NOENT.into()),
                _ if place.as_directory => Err(Errno::ISDIR.into()),
                _ => self.create(&place, how),
            };
        };
        if how.create && how.exclusive {
            return Err(Errno::EXIST.into());
        }
        let is_directory = kind == Kind::Directory;
        if !is_directory && (place.as_directory || how.directory) {
            return Err(Errno::NOTDIR.into());
        }
        match kind {
            Kind::Directory if how.changes() => Err(Errno::ISDIR.into()),
            Kind::Directory => Ok((place.path(), Opened::Directory(place.path()))),
            Kind::Link => Err(Errno::LOOP.into()),
            // Opening a pipe may wait for its other end, and a device is no part of a copy.
            Kind::Other => Err(Errno::OPNOTSUPP.into()),
            Kind::File if how.changes() => self.open_to_write(&place, how),
            Kind::File => self.open_to_read(&place),
        }
    }

    fn open_to_read(&self, place: &Place) -> io::Result<(PathBuf, Opened)> {
        let name = place.name()?;
        let opened = match (&place.dir.upper, &place.dir.lower) {
            (Some(upper), _) if place.entry.upper.is_some() => {
                let file = upper.file(name)?;
                let held = Held::new(&self.area, &file)?;
                Opened::Upper(file, held)
            }
            (_, Some(lower)) => Opened::Lower(lower.file(name)?),
            _ => return Err(Errno::NOENT.into()),
        };
        Ok((place.path(), opened))
    }

    /// What `path` leads to.
    pub(crate) fn stat_at(&self, base: &Path, path: &str, follow: bool) -> io::Result<Stat> {
        Ok(self.resolve(base, path, follow)?.stat()?.clone())
    }

    /// What the directory of a path without links is.
    pub(crate) fn stat_dir(&self, path: &Path) -> io::Result<Stat> {
        let dir = self.cursor(path)?;
        match (&dir.upper, &dir.lower) {
            (Some(upper), _) => upper.own_stat(),
            (None, Some(lower)) => lower.own_stat(),
            (None, None) => Err(Errno::NOENT.into()),
        }
    }

    /// What a link says.
    pub(crate) fn link_at(&self, base: &Path, path: &str) -> io::Result<OsString> {
        let place = self.resolve(base, path, false)?;
        match place.stat()?.kind {
            Kind::Link => self.target(&place.dir, place.name()?, &place.entry),
            _ => Err(Errno::INVAL.into()),
        }
    }

    /// The entries of the directory of a path without links, by name.
    pub(crate) fn list(&self, path: &Path) -> io::Result<BTreeMap<OsString, Kind>> {
        self.entries(&self.cursor(path)?)
    }

    pub(super) fn entries(&self, dir: &Cursor) -> io::Result<BTreeMap<OsString, Kind>> {
        let mut entries: BTreeMap<_, _> = match &dir.lower {
            Some(lower) => {
                let gone = self.gone.below(&dir.path)?;
                lower.names()?.into_iter().filter(|(name, _)| !gone.contains(name)).collect()
            }
            None => BTreeMap::new(),
        };
        if let Some(upper) = &dir.upper {
            entries.extend(upper.names()?);
        }
        Ok(entries)
    }

    /// Makes what was written to a directory durable.
    pub(crate) fn sync_dir(&self, path: &Path) -> io::Result<()> {
        match self.cursor(path)?.upper {
            Some(upper) => upper.sync(),
            None => Ok(()),
        }
    }
}
