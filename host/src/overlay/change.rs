//! What a process changed, and whether others changed the same meanwhile.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::base::{Base, same};
use super::tree::{Dir, Kind, Own};
use super::{Overlay, text};

/// What became of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It is new.
    Added,
    /// It has other content, or is something else now.
    Modified,
    /// It is gone.
    Deleted,
}

/// One difference between a private copy and what it began with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its path from the mount's root.
    pub path: PathBuf,
    /// What became of it.
    pub action: Action,
    /// What the original was when the process first touched it; `None` if there was none.
    pub base: Option<Base>,
    /// What the copy has; `None` if nothing.
    pub mine: Option<Base>,
    /// Why it cannot be applied.
    pub conflict: Option<String>,
    /// The original is by now what the copy has: there is nothing left to apply.
    pub done: bool,
}

/// What is outside, where a path of the copy is.
enum Outside {
    Directory(Dir),
    Nothing,
}

impl Outside {
    fn look(&self, name: &OsStr) -> io::Result<Option<Base>> {
        match self {
            Self::Directory(dir) => Base::look(dir, name),
            Self::Nothing => Ok(None),
        }
    }

    fn down(&self, name: &OsStr, now: Option<&Base>) -> io::Result<Self> {
        match (self, now) {
            (Self::Directory(dir), Some(now)) if now.kind == Kind::Directory => dir.dir(name).map(Self::Directory),
            _ => Ok(Self::Nothing),
        }
    }
}

impl Overlay {
    /// Everything that the process changed, by path. Each changed file is read, here and outside.
    ///
    /// # Errors
    /// The file system's.
    pub fn changes(&self) -> io::Result<Vec<Change>> {
        let mut changes = Vec::new();
        let gone = self.gone.all()?;
        let removed: BTreeSet<&Path> = gone.iter().map(PathBuf::as_path).collect();
        match Own::root(&self.root.join("upper")) {
            Ok(upper) => {
                let at = (Outside::Directory(self.lower.clone()), true);
                self.below(Path::new(""), &upper, at, &removed, &mut changes)?;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        for path in &gone {
            changes.extend(self.removal(path, &removed)?);
        }
        changes.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(changes)
    }

    /// The changes in an upper directory. `outside` is what is there, and whether an entry could be made in it.
    fn below(
        &self,
        path: &Path,
        upper: &Own,
        (outside, has_room): (Outside, bool),
        removed: &BTreeSet<&Path>,
        changes: &mut Vec<Change>,
    ) -> io::Result<()> {
        for (name, kind) in upper.names()? {
            let path = path.join(&name);
            let Some(mine) = Base::look(upper, &name)? else { continue };
            let (base, now) = (self.base(&path)?, outside.look(&name)?);
            let is_container = kind == Kind::Directory && base.is_none() && now.as_ref().is_some_and(|n| n.same(&mine));
            let changed = !is_container && !same(base.as_ref(), Some(&mine));
            let below = outside.down(&name, now.as_ref())?;
            let room_below = changed || matches!(below, Outside::Directory(_));
            if changed {
                let done = same(now.as_ref(), Some(&mine));
                let conflict = || -> io::Result<Option<String>> {
                    Ok(match outside_change(base.as_ref(), now.as_ref()) {
                        Some(why) => Some(why),
                        None if !has_room => Some("the directory that it is in was removed outside".to_owned()),
                        None if mine.kind == Kind::Link && leads_out(&path, &upper.link(&name)?) => Some(
                            "it is a link that leads out of the directory: make it yourself if you want it".to_owned(),
                        ),
                        None => strangers(&path, &below, removed)?,
                    })
                };
                let conflict = if done { None } else { conflict()? };
                let action = if base.is_some() { Action::Modified } else { Action::Added };
                changes.push(Change { path: path.clone(), action, base, mine: Some(mine), conflict, done });
            }
            if kind == Kind::Directory {
                self.below(&path, &upper.own(&name)?, (below, room_below), removed, changes)?;
            }
        }
        Ok(())
    }

    /// The removal of an original, if it was one and the copy has nothing in its place.
    fn removal(&self, path: &Path, removed: &BTreeSet<&Path>) -> io::Result<Option<Change>> {
        let Some(base) = self.base(path)? else { return Ok(None) };
        if self.in_upper(path)? {
            return Ok(None);
        }
        let (parent, name) = split(path);
        let mut outside = Outside::Directory(self.lower.clone());
        for step in parent {
            let now = outside.look(step)?;
            outside = outside.down(step, now.as_ref())?;
        }
        let now = outside.look(name)?;
        let conflict = match outside_change(Some(&base), now.as_ref()) {
            _ if now.is_none() => None,
            Some(why) => Some(why),
            None => strangers(path, &outside.down(name, now.as_ref())?, removed)?,
        };
        let done = now.is_none();
        Ok(Some(Change {
            path: path.to_owned(),
            action: Action::Deleted,
            base: Some(base),
            mine: None,
            conflict,
            done,
        }))
    }

    fn in_upper(&self, path: &Path) -> io::Result<bool> {
        let (parent, name) = split(path);
        match self.upper_dir(parent)? {
            Some(upper) => Ok(upper.stat(name)?.is_some()),
            None => Ok(false),
        }
    }

    /// The upper directory of a path; `None` where there is none.
    pub(super) fn upper_dir(&self, path: &Path) -> io::Result<Option<Own>> {
        let open = || path.iter().try_fold(Own::root(&self.root.join("upper"))?, |dir, name| dir.own(name));
        match open() {
            Ok(dir) => Ok(Some(dir)),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The change of a file or link as a unified diff against what is outside now; `None` for what is no text, or
    /// too long to be compared.
    ///
    /// # Errors
    /// The file system's.
    pub fn unified(&self, change: &Change) -> io::Result<Option<String>> {
        let (parent, name) = split(&change.path);
        let upper = match &change.mine {
            Some(_) => self.upper_dir(parent)?,
            None => None,
        };
        let new = content(upper.as_deref(), name)?;
        let lower = parent.iter().try_fold(self.lower.clone(), |dir, name| dir.dir(name));
        let old = content(lower.ok().as_ref(), name)?;
        let shown = text::plain(&self.shown(&change.path));
        Ok(old.zip(new).and_then(|(old, new)| text::unified(&shown, &old, &new)))
    }
}

/// The text of a file or link, of nothing where there is none; `None` for what is too long, or has no text.
fn content(dir: Option<&Dir>, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
    let Some((dir, stat)) = dir.zip(dir.map(|d| d.stat(name)).transpose()?.flatten()) else {
        return Ok(Some(Vec::new()));
    };
    match stat.kind {
        Kind::Link => Ok(Some(dir.link(name)?.into_encoded_bytes())),
        Kind::File if stat.size <= text::MAX_BYTES => {
            let mut bytes = Vec::new();
            dir.file(name)?.take(text::MAX_BYTES).read_to_end(&mut bytes)?;
            Ok(Some(bytes))
        }
        _ => Ok(None),
    }
}

/// The directory that a path is in, and its name.
pub(super) fn split(path: &Path) -> (&Path, &OsStr) {
    (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default())
}

/// What others made of an original since the process touched it.
pub(super) fn outside_change(base: Option<&Base>, now: Option<&Base>) -> Option<String> {
    let why = match (base, now) {
        _ if same(base, now) => return None,
        (Some(_), None) => "it was removed outside",
        (None, _) => "something was made there outside",
        (Some(base), Some(now)) if base.kind != now.kind => "it was replaced outside by something else",
        _ => "it was changed outside",
    };
    Some(why.to_owned())
}

/// What a directory that is to go has and the process did not remove.
fn strangers(path: &Path, outside: &Outside, removed: &BTreeSet<&Path>) -> io::Result<Option<String>> {
    let Outside::Directory(dir) = outside else { return Ok(None) };
    let mut names: Vec<OsString> = dir.names()?.into_iter().map(|(name, _)| name).collect();
    names.retain(|name| !removed.contains(path.join(name).as_path()));
    names.sort();
    Ok(names.first().map(|name| format!("something was made in it outside: {}", name.display())))
}

/// Whether a link at `path` leads out of its mount, by what is written in it.
fn leads_out(path: &Path, target: &OsStr) -> bool {
    if target.as_bytes().starts_with(b"/") {
        return true;
    }
    let mut depth = path.iter().count().saturating_sub(1);
    for component in Path::new(target).components() {
        match component {
            Component::ParentDir if depth == 0 => return true,
            Component::ParentDir => depth -= 1,
            Component::Normal(_) => depth += 1,
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_leads_out_is_told_by_its_text() {
        let check = |path: &str, target: &str, out: bool| {
            assert_eq!(leads_out(Path::new(path), OsStr::new(target)), out, "{path} -> {target}");
        };
        check("l", "a", false);
        check("l", "..", true);
        check("d/l", "../a", false);
        check("d/l", "../../a", true);
        check("d/l", "x/../../../a", true);
        check("l", "/etc", true);
        check("l", "a/../b", false);
    }
}
