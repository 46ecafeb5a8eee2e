//! The merged view: an upper entry, else a lower one that no note says is gone.
//!
//! A path is resolved one name at a time, and links are followed here and not by the operating system. So what a
//! link means is decided in the merged view, and a name that is swapped for a link meanwhile is an error.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::io::Errno;

use super::Overlay;
use super::tree::{Dir, Kind, Own, Stat};

/// Most links on the way to one entry.
const MAX_LINKS: usize = 40;

/// Most directories that are opened on the way to one entry: links and `..` must not make it long.
const MAX_STEPS: usize = 4_096;

/// The deepest and longest path in a private mount: notes about it must have a path, too.
const MAX_DEPTH: usize = 128;
const MAX_PATH: usize = 2_048;

/// A directory of the merged view.
#[derive(Clone, Debug)]
pub(super) struct Cursor {
    pub(super) path: PathBuf,
    pub(super) upper: Option<Own>,
    /// The original, where it is not hidden.
    pub(super) lower: Option<Dir>,
}

/// What a name in a merged directory is.
#[derive(Clone, Debug, Default)]
pub(super) struct Entry {
    pub(super) upper: Option<Stat>,
    /// The original, where no note says that it is gone.
    pub(super) lower: Option<Stat>,
}

impl Entry {
    /// What counts.
    pub(super) fn stat(&self) -> Option<&Stat> {
        self.upper.as_ref().or(self.lower.as_ref())
    }

    pub(super) fn kind(&self) -> Option<Kind> {
        self.stat().map(|s| s.kind)
    }
}

/// Where a path leads.
#[derive(Debug)]
pub(super) struct Place {
    /// The directory that it is in; of the root, the root.
    pub(super) dir: Cursor,
    /// Its name there; `None` for the root.
    pub(super) name: Option<OsString>,
    pub(super) entry: Entry,
    /// It was written as a directory, with a slash or a dot at its end.
    pub(super) as_directory: bool,
}

impl Place {
    /// What is there.
    pub(super) fn stat(&self) -> io::Result<&Stat> {
        let stat = self.entry.stat().ok_or(Errno::NOENT)?;
        if self.as_directory && stat.kind != Kind::Directory {
            return Err(Errno::NOTDIR.into());
        }
        Ok(stat)
    }

    /// Its name, for what cannot be done to the root.
    pub(super) fn name(&self) -> io::Result<&OsStr> {
        Ok(self.name.as_deref().ok_or(Errno::BUSY)?)
    }

    /// Its path from the mount's root, without links.
    pub(super) fn path(&self) -> PathBuf {
        self.name.as_ref().map_or_else(PathBuf::new, |name| self.dir.path.join(name))
    }
}

impl Overlay {
    pub(super) fn top(&self) -> io::Result<Cursor> {
        let upper = match Own::root(&self.root.join("upper")) {
            Ok(upper) => Some(upper),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
        Ok(Cursor { path: PathBuf::new(), upper, lower: Some(self.lower.clone()) })
    }

    pub(super) fn entry(&self, dir: &Cursor, name: &OsStr) -> io::Result<Entry> {
        let upper = dir.upper.as_ref().map(|d| d.stat(name)).transpose()?.flatten();
        let lower = match &dir.lower {
            Some(lower) if !self.gone.has(&dir.path.join(name))? => lower.stat(name)?,
            _ => None,
        };
        Ok(Entry { upper, lower })
    }

    pub(super) fn down(&self, dir: &Cursor, name: &OsStr, entry: &Entry) -> io::Result<Cursor> {
        let is_dir = |stat: &Option<Stat>| stat.as_ref().map(|s| s.kind == Kind::Directory);
        let (upper, lower) = (is_dir(&entry.upper), is_dir(&entry.lower));
        let path = dir.path.join(name);
        if path.as_os_str().len() > MAX_PATH || path.iter().count() > MAX_DEPTH {
            return Err(Errno::NAMETOOLONG.into());
        }
        if upper.or(lower) != Some(true) {
            return Err(if upper.or(lower).is_some() { Errno::NOTDIR } else { Errno::NOENT }.into());
        }
        let opened = dir.upper.as_ref().filter(|_| upper == Some(true)).map(|d| d.own(name)).transpose()?;
        // Beside an upper file or link, a lower directory does not count.
        let below = dir.lower.as_ref().filter(|_| lower == Some(true)).map(|d| d.dir(name)).transpose()?;
        Ok(Cursor { path, upper: opened, lower: below })
    }

    /// The directory of a path that has no links and no dots.
    pub(super) fn cursor(&self, path: &Path) -> io::Result<Cursor> {
        let mut dir = self.top()?;
        for name in path {
            let entry = self.entry(&dir, name)?;
            dir = self.down(&dir, name, &entry)?;
        }
        Ok(dir)
    }

    /// Finds where `path` leads from the directory `base`; a link at its end is followed if `follow`.
    pub(super) fn resolve(&self, base: &Path, path: &str, follow: bool) -> io::Result<Place> {
        let mut queue = VecDeque::new();
        let mut as_directory = enqueue(OsStr::new(path), &mut queue)?;
        let mut dir = self.cursor(base)?;
        let (mut links, mut steps) = (0, 0);
        while let Some(name) = queue.pop_front() {
            steps += if name == ".." { dir.path.iter().count() } else { 1 };
            if steps > MAX_STEPS {
                return Err(Errno::LOOP.into());
            }
            if name == ".." {
                let Some(parent) = dir.path.parent() else { return Err(Errno::PERM.into()) };
                dir = self.cursor(parent)?;
                continue;
            }
            let entry = self.entry(&dir, &name)?;
            let last = queue.is_empty();
            if entry.kind() == Some(Kind::Link) && (!last || follow || as_directory) {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP.into());
                }
                as_directory |= enqueue(&self.target(&dir, &name, &entry)?, &mut queue)? && last;
                continue;
            }
            if last {
                if dir.path.as_os_str().len() + name.len() >= MAX_PATH {
                    return Err(Errno::NAMETOOLONG.into());
                }
                return Ok(Place { dir, name: Some(name), entry, as_directory });
            }
            dir = self.down(&dir, &name, &entry)?;
        }
        self.place_of(dir)
    }

    /// A directory as a place in its parent.
    fn place_of(&self, dir: Cursor) -> io::Result<Place> {
        let Some((parent, name)) = dir.path.parent().zip(dir.path.file_name()) else {
            let upper = dir.upper.as_ref().map(|d| d.own_stat()).transpose()?;
            let lower = dir.lower.as_ref().map(Dir::own_stat).transpose()?;
            return Ok(Place { dir, name: None, entry: Entry { upper, lower }, as_directory: true });
        };
        let (parent, name) = (self.cursor(parent)?, name.to_owned());
        let entry = self.entry(&parent, &name)?;
        Ok(Place { dir: parent, name: Some(name), entry, as_directory: true })
    }

    /// What a link of the merged view says.
    pub(super) fn target(&self, dir: &Cursor, name: &OsStr, entry: &Entry) -> io::Result<OsString> {
        match (&dir.upper, &dir.lower) {
            (Some(upper), _) if entry.upper.is_some() => upper.link(name),
            (_, Some(lower)) if entry.lower.is_some() => lower.link(name),
            _ => Err(Errno::NOENT.into()),
        }
    }
}

/// Puts the names of a path before what is in the queue. Whether it must be a directory, by how it ends.
fn enqueue(path: &OsStr, queue: &mut VecDeque<OsString>) -> io::Result<bool> {
    if path.is_empty() {
        return Err(Errno::NOENT.into());
    }
    let mut names = Vec::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => names.push(name.to_owned()),
            Component::ParentDir => names.push("..".into()),
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return Err(Errno::PERM.into()),
        }
    }
    if names.len() + queue.len() > 4 * MAX_DEPTH {
        return Err(Errno::NAMETOOLONG.into());
    }
    names.into_iter().rev().for_each(|name| queue.push_front(name));
    let bytes = path.as_bytes();
    Ok(bytes.ends_with(b"/") || bytes.ends_with(b"/.") || bytes == b".")
}
