//! Applying what a process changed to the originals: all of it is checked first, and then done one entry at a time.
//!
//! Each entry is made beside the original under another name and renamed, so an original is at every instant what it
//! was or what the copy has. A kernel that is killed in between has done some entries; the next time they are seen
//! to be what the copy has, and the rest is done.

use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::base::{Base, of_bytes, same};
use super::change::{Action, Change, outside_change, split};
use super::tree::{self, Kind, Own};
use super::{Area, Overlay};

/// Why nothing, or not everything, was applied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file was named that the process did not change.
    #[error("the process did not change `{0}`")]
    Unchanged(String),
    /// The original is not what it was.
    #[error("`{path}` cannot be applied: {why}")]
    Conflict {
        /// As guests see it.
        path: String,
        /// What others did.
        why: String,
    },
    /// The file system failed.
    #[error("`{path}` cannot be applied: {source}")]
    Io {
        /// As guests see it.
        path: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// A change and the mount that it is in.
#[derive(Debug)]
pub struct Step {
    overlay: Arc<Overlay>,
    change: Change,
}

impl Step {
    /// Its path as guests see it.
    #[must_use]
    pub fn path(&self) -> String {
        self.overlay.shown(&self.change.path)
    }

    /// The change.
    #[must_use]
    pub fn change(&self) -> &Change {
        &self.change
    }

    /// The change as text, as [`Overlay::unified`] has it.
    ///
    /// # Errors
    /// The file system's.
    pub fn unified(&self) -> Result<Option<String>, Error> {
        self.overlay.unified(&self.change).map_err(|e| self.failed(e))
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Io { path: self.path(), source }
    }
}

/// What is to be applied.
#[derive(Debug)]
pub struct Plan {
    area: Arc<Area>,
    steps: Vec<Step>,
    /// Whether it is all that the process changed.
    whole: bool,
}

impl Overlay {
    /// A path as guests see it.
    #[must_use]
    pub fn shown(&self, path: &Path) -> String {
        format!("{}/{}", self.guest, path.display())
    }

    /// Whether somebody who names `wanted` means `path`, or what is above it.
    fn means(&self, wanted: &str, path: &Path) -> bool {
        let within = |rest: &Path| path.starts_with(rest);
        let wanted = Path::new(wanted);
        match wanted.strip_prefix(&self.host) {
            Ok(rest) => within(rest),
            Err(_) => wanted.strip_prefix(".").unwrap_or(wanted).strip_prefix(&self.guest).is_ok_and(within),
        }
    }
}

impl Plan {
    /// Plans to apply what is `wanted`, everything if that is empty: paths as guests see them, or on the host. What
    /// is below a named directory is meant too, and so are new directories above.
    ///
    /// # Errors
    /// [`Error::Unchanged`]; the file system's.
    pub fn new(area: &Arc<Area>, overlays: Vec<Overlay>, wanted: &[String]) -> Result<Self, Error> {
        let mut steps = Vec::new();
        for overlay in overlays.into_iter().map(Arc::new) {
            let changes = overlay.changes().map_err(|source| Error::Io { path: overlay.guest.clone(), source })?;
            steps.extend(changes.into_iter().map(|change| Step { overlay: Arc::clone(&overlay), change }));
        }
        refuse_own_files(area, &mut steps);
        if let Some(unknown) =
            wanted.iter().find(|w| !steps.iter().any(|s| s.overlay.means(w.as_str(), &s.change.path)))
        {
            return Err(Error::Unchanged(unknown.clone()));
        }
        let whole = wanted.is_empty();
        if !whole {
            let meant = |s: &Step| wanted.iter().any(|w| s.overlay.means(w, &s.change.path));
            let chosen: Vec<(String, PathBuf)> =
                steps.iter().filter(|s| meant(s)).map(|s| (s.overlay.guest.clone(), s.change.path.clone())).collect();
            steps.retain(|s| meant(s) || s.is_new_directory_above(&chosen));
        }
        Ok(Self { area: Arc::clone(area), steps, whole })
    }

    /// What is to be done, by path. Some of it may be done already.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Does it. Whoever calls has looked for conflicts.
    ///
    /// # Errors
    /// What failed; what came before it is done.
    pub fn carry_out(&self) -> Result<(), Error> {
        let _alone = self.area.change();
        let (removals, others): (Vec<_>, Vec<_>) = self.steps.iter().partition(|s| s.change.action == Action::Deleted);
        // What is in a directory goes before it, and comes after it.
        for step in removals.into_iter().rev().chain(others) {
            step.carry_out()?;
        }
        drop(_alone);
        let settled = if self.whole {
            self.area.wipe()
        } else {
            self.area.recount();
            self.steps.iter().try_for_each(|s| s.overlay.settle(&s.change))
        };
        settled.map_err(|source| Error::Io { path: self.area.dir().display().to_string(), source })
    }
}

/// What a process wrote in a copy of aok's own data directory must not become its configuration, its plugins or its
/// store.
fn refuse_own_files(area: &Area, steps: &mut [Step]) {
    let Some(data) = area.dir().ancestors().nth(2).and_then(|data| data.canonicalize().ok()) else { return };
    let into_data = |step: &&mut Step| step.overlay.host.join(&step.change.path).starts_with(&data);
    for step in steps.iter_mut().filter(into_data) {
        step.change.conflict = Some("it is in aok's own data directory: change that yourself".to_owned());
        step.change.done = false;
    }
}

impl Step {
    fn is_new_directory_above(&self, chosen: &[(String, PathBuf)]) -> bool {
        let is_directory = self.change.mine.as_ref().is_some_and(|m| m.kind == Kind::Directory);
        is_directory && chosen.iter().any(|(g, p)| *g == self.overlay.guest && p.starts_with(&self.change.path))
    }

    fn carry_out(&self) -> Result<(), Error> {
        let Change { path, base, mine, .. } = &self.change;
        let failed = |e| self.failed(e);
        let (parent, name) = split(path);
        let root = Own::root(&self.overlay.host).map_err(failed)?;
        let dir = match parent.iter().try_fold(root, |dir, name| dir.own(name)) {
            // Removed outside, and what was to be removed with it.
            Err(e) if e.kind() == io::ErrorKind::NotFound && mine.is_none() => return Ok(()),
            dir => dir.map_err(failed)?,
        };
        // Once more: it may be long since everything was checked.
        let now = Base::look(&dir, name).map_err(failed)?;
        if same(now.as_ref(), mine.as_ref()) {
            return Ok(());
        }
        if let Some(why) = outside_change(base.as_ref(), now.as_ref()) {
            return Err(Error::Conflict { path: self.path(), why });
        }
        let was_directory = now.as_ref().is_some_and(|n| n.kind == Kind::Directory);
        let done = match mine.as_ref().map(|m| m.kind) {
            None if was_directory => dir.remove_dir(name),
            None => dir.remove_file(name),
            Some(Kind::Directory) => {
                let cleared = now.as_ref().map_or(Ok(()), |_| dir.remove_file(name));
                cleared.and_then(|()| dir.make_dir(name, 0o777))
            }
            Some(_) => {
                let cleared = if was_directory { dir.remove_dir(name) } else { Ok(()) };
                cleared.and_then(|()| self.put(&dir, name, now.as_ref().filter(|_| !was_directory)))
            }
        };
        done.map_err(failed)
    }

    /// Puts a file or link in the place of what is there.
    fn put(&self, dir: &Own, name: &OsStr, now: Option<&Base>) -> io::Result<()> {
        let (parent, own) = split(&self.change.path);
        let upper = self.overlay.upper_dir(parent)?.ok_or(io::ErrorKind::NotFound)?;
        let stat = upper.stat(own)?.ok_or(io::ErrorKind::NotFound)?;
        // The same at each attempt, so that a killed one leaves nothing for ever.
        let fresh = format!(".aok-{}.apply", &of_bytes(self.change.path.as_os_str().as_bytes())[..16]);
        let fresh = OsStr::new(&fresh);
        match dir.remove_file(fresh) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let made = match stat.kind {
            Kind::Link => dir.make_link(&upper.link(own)?, fresh),
            _ => {
                let mode = now.filter(|n| n.kind == Kind::File).map_or(stat.mode, |n| n.mode);
                copy(&mut upper.file(own)?, dir, fresh, mode & 0o777)
            }
        };
        let placed = made.and_then(|()| match now {
            Some(_) => dir.rename(fresh, dir, name),
            None => dir.rename_to_free(fresh, dir, name),
        });
        placed.inspect_err(|_| {
            // It is of no use any more, and the error that counts is the one before.
            let _ = dir.remove_file(fresh);
        })
    }
}

fn copy(from: &mut File, dir: &Own, name: &OsStr, mode: u32) -> io::Result<()> {
    let mut to = dir.create(name, 0o600)?;
    tree::copy(from, &mut to)?;
    to.set_permissions(Permissions::from_mode(mode))?;
    // An original must not be replaced by what a power cut could still take away.
    to.sync_all()
}

impl Overlay {
    /// Forgets a change that is applied: from now on the original shows. The note goes first, since a change without
    /// one that is what the original is means nothing.
    fn settle(&self, change: &Change) -> io::Result<()> {
        let (parent, name) = split(&change.path);
        self.base.remove(&change.path)?;
        self.gone.remove(&change.path)?;
        match &change.mine {
            Some(mine) if mine.kind != Kind::Directory => match self.upper_dir(parent)? {
                Some(upper) => upper.remove_file(name),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }
}
