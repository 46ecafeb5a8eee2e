//! The private area of a process: where its changes are, and how much of the disk they may take.
//!
//! `DATA/private/PID/` has for each private mount, by its position among the process's mounts, the folders `upper`,
//! `gone` and `base`; beside them `tmp`, whose content means nothing, and `owner`, which says whose it is.

use std::collections::HashMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::io::Errno;

use super::tree::{Own, Stat};
use crate::process::{Pid, ProcessSpec};

/// The most that the private copies of one process may hold, all its mounts together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes of files, as long as they say they are.
    pub bytes: u64,
    /// Files, directories and links that it made, changed or removed.
    pub files: u64,
}

impl Room {
    /// What every process has: 4 GiB in 100 000 files.
    pub const STANDARD: Self = Self { bytes: 4 << 30, files: 100_000 };
}

/// The private areas of a data directory.
#[derive(Debug)]
pub struct Areas {
    root: PathBuf,
    open: Mutex<HashMap<Pid, Weak<Area>>>,
}

impl Areas {
    /// The areas below `root`, which need not exist.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self { root, open: Mutex::default() }
    }

    /// The area of a process's tree: the same for everybody who has it open. Nothing is written yet.
    ///
    /// # Errors
    /// What an earlier store left under this PID cannot be put aside.
    pub fn open(&self, spec: &ProcessSpec) -> io::Result<Arc<Area>> {
        let root = spec.root();
        let mut open = lock(&self.open);
        if let Some(area) = open.get(&root.pid).and_then(Weak::upgrade) {
            return Ok(area);
        }
        let owner = format!("{} {} {}", root.pid, root.created_ms, root.seed);
        let dir = self.root.join(root.pid.to_string());
        put_aside(&dir, &owner)?;
        let area = Arc::new(Area::new(dir, owner, Room::STANDARD));
        open.retain(|_, area| area.strong_count() > 0);
        open.insert(root.pid, Arc::downgrade(&area));
        Ok(area)
    }
}

/// Renames what belongs to another process of the same PID: a store that was begun anew counts from 1 again.
fn put_aside(dir: &Path, owner: &str) -> io::Result<()> {
    match fs::read_to_string(dir.join("owner")) {
        Ok(found) if found == owner => return Ok(()),
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Ok(_) => {}
        Err(e) => return Err(e),
    }
    if !dir.try_exists()? {
        return Ok(());
    }
    for n in 1.. {
        let aside = dir.with_extension(format!("old-{n}"));
        if !aside.try_exists()? {
            return fs::rename(dir, aside);
        }
    }
    Ok(())
}

/// The private area of one process. While a kernel runs, it is the only one for it.
#[derive(Debug)]
pub struct Area {
    dir: PathBuf,
    owner: String,
    room: Room,
    /// One change at a time: calls of a process may run side by side.
    changing: Mutex<()>,
    state: Mutex<State>,
    fresh: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    ready: bool,
    used: Option<Room>,
    /// Upper files that guests hold open.
    open: HashMap<(u64, u64), Open>,
    refused: bool,
}

#[derive(Debug, Default)]
struct Open {
    holders: usize,
    /// Its last name is gone: its bytes are free when it is closed.
    orphan: bool,
}

impl Area {
    pub(super) fn new(dir: PathBuf, owner: String, room: Room) -> Self {
        let state = Mutex::default();
        Self { dir, owner, room, changing: Mutex::default(), state, fresh: AtomicU64::new(0) }
    }

    /// Its directory, which exists once something was changed.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Waits until no change is under way, and keeps others from beginning one.
    pub(super) fn change(&self) -> MutexGuard<'_, ()> {
        lock(&self.changing)
    }

    /// Makes its directory, in one step, and empties `tmp`.
    pub(super) fn ready(&self) -> io::Result<()> {
        let mut state = lock(&self.state);
        if state.ready {
            return Ok(());
        }
        if !self.dir.try_exists()? {
            let fresh = self.dir.with_extension("new");
            remove_tree(&fresh)?;
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&fresh)?;
            fs::write(fresh.join("owner"), &self.owner)?;
            fs::rename(&fresh, &self.dir)?;
        }
        let tmp = self.dir.join("tmp");
        remove_tree(&tmp)?;
        fs::create_dir(&tmp)?;
        state.ready = true;
        Ok(())
    }

    /// A name in `tmp` that nobody has, with the folder opened.
    pub(super) fn fresh(&self) -> io::Result<(Own, String)> {
        self.ready()?;
        let name = self.fresh.fetch_add(1, Ordering::Relaxed).to_string();
        Ok((Own::root(&self.dir.join("tmp"))?, name))
    }

    /// Its path in `tmp`.
    pub(super) fn fresh_path(&self) -> io::Result<PathBuf> {
        let (_, name) = self.fresh()?;
        Ok(self.dir.join("tmp").join(name))
    }

    /// Takes room, or is refused with the error of a full disk.
    pub(crate) fn charge(&self, bytes: u64, files: u64) -> io::Result<()> {
        let mut state = lock(&self.state);
        let used = match state.used {
            Some(used) => used,
            None => self.count()?,
        };
        let more = Room { bytes: used.bytes.saturating_add(bytes), files: used.files.saturating_add(files) };
        let fits = (bytes == 0 || more.bytes <= self.room.bytes) && (files == 0 || more.files <= self.room.files);
        state.used = Some(if fits { more } else { used });
        if fits {
            return Ok(());
        }
        state.refused = true;
        Err(Errno::NOSPC.into())
    }

    /// Does what takes room, and gives the room back if it fails.
    pub(super) fn taking<T>(&self, bytes: u64, files: u64, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.charge(bytes, files)?;
        work().inspect_err(|_| self.give_back(bytes, files))
    }

    pub(crate) fn give_back(&self, bytes: u64, files: u64) {
        if let Some(used) = &mut lock(&self.state).used {
            used.bytes = used.bytes.saturating_sub(bytes);
            used.files = used.files.saturating_sub(files);
        }
    }

    /// Counts anew at the next change.
    pub(super) fn recount(&self) {
        lock(&self.state).used = None;
    }

    /// What to tell of a refusal since the last time that this was asked.
    pub(crate) fn refusal(&self) -> Option<String> {
        let refused = std::mem::take(&mut lock(&self.state).refused);
        let Room { bytes, files } = self.room;
        refused.then(|| {
            format!(
                "the private copies of a process hold at most {} MiB in {files} files: apply or discard some, or \
                 grant the directory with --direct",
                bytes >> 20
            )
        })
    }

    fn count(&self) -> io::Result<Room> {
        let mut used = Room { bytes: 0, files: 0 };
        for mount in fs::read_dir(&self.dir).into_iter().flatten() {
            let mount = mount?.path();
            count_below(&mount.join("upper"), false, &mut used)?;
            count_below(&mount.join("gone"), true, &mut used)?;
        }
        Ok(used)
    }

    /// Notes that the last name of an upper file is gone.
    pub(super) fn removed(&self, stat: &Stat) {
        if stat.links > 1 {
            return self.give_back(0, 1);
        }
        let mut state = lock(&self.state);
        if let Some(open) = state.open.get_mut(&stat.object) {
            open.orphan = true;
            drop(state);
            return self.give_back(0, 1);
        }
        drop(state);
        self.give_back(stat.size, 1);
    }

    /// Removes it with everything in it, in one step for whoever looks.
    ///
    /// # Errors
    /// The file system's.
    pub fn wipe(&self) -> io::Result<()> {
        let _alone = self.change();
        let end = self.dir.with_extension("end");
        remove_tree(&end)?;
        match fs::rename(&self.dir, &end) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        *lock(&self.state) = State::default();
        remove_tree(&end)
    }
}

fn count_below(dir: &Path, files_only: bool, used: &mut Room) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(()),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let entry = entry?;
        let is_dir = entry.file_type()?.is_dir();
        used.files += u64::from(!(is_dir && files_only));
        if is_dir {
            count_below(&entry.path(), files_only, used)?;
        } else {
            used.bytes += entry.metadata()?.len();
        }
    }
    Ok(())
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// An upper file that a guest holds open. It takes room until it is closed, whatever becomes of its name.
#[derive(Debug)]
pub(crate) struct Held {
    area: Arc<Area>,
    object: (u64, u64),
    /// To see how long it is when it is closed.
    file: Option<Arc<fs::File>>,
}

impl Held {
    pub(super) fn new(area: &Arc<Area>, file: &fs::File) -> io::Result<Self> {
        let object = Stat::of(file)?.object;
        lock(&area.state).open.entry(object).or_default().holders += 1;
        Ok(Self { area: Arc::clone(area), object, file: None })
    }

    /// The same, told of the handle that is open.
    pub(crate) fn by(self, file: &Arc<fs::File>) -> Arc<Self> {
        let mut held = self;
        held.file = Some(Arc::clone(file));
        Arc::new(held)
    }

    pub(crate) fn area(&self) -> &Area {
        &self.area
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = lock(&self.area.state);
        let Some(open) = state.open.get_mut(&self.object) else { return };
        open.holders -= 1;
        if open.holders > 0 {
            return;
        }
        let orphan = open.orphan;
        state.open.remove(&self.object);
        drop(state);
        if orphan && let Some(Ok(stat)) = self.file.as_deref().map(Stat::of) {
            self.area.give_back(stat.size, 0);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these guard is whole at every instant.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
