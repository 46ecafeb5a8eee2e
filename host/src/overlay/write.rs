//! Changing a private copy: what is changed is in `upper` first.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, FileTimes, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustix::io::Errno;

use super::base::{Base, of_bytes, of_file};
use super::tree::{self, Dir, Kind, Own, Stat};
use super::view::{Cursor, Entry, Place};
use super::{Held, How, Opened, Overlay};

impl Overlay {
    /// Makes a new file.
    pub(super) fn create(&self, place: &Place, how: How) -> io::Result<(PathBuf, Opened)> {
        let (upper, name) = (self.alter(&place.dir)?, place.name()?);
        self.area.taking(0, 1, || upper.create(name, 0o666))?;
        let file = upper.reopen(name, how.read, false)?;
        self.opened(place, file)
    }

    fn opened(&self, place: &Place, file: File) -> io::Result<(PathBuf, Opened)> {
        let held = Held::new(&self.area, &file)?;
        Ok((place.path(), Opened::Upper(file, held)))
    }

    /// Opens a file to write, after it was copied.
    pub(super) fn open_to_write(&self, place: &Place, how: How) -> io::Result<(PathBuf, Opened)> {
        let name = place.name()?;
        if place.entry.upper.is_none()
            && let Some(lower) = &place.dir.lower
        {
            lower.may_write(name)?;
        }
        let upper = self.copy_up(place, !how.truncate)?;
        let file = upper.reopen(name, how.read, how.truncate)?;
        if how.truncate
            && let Some(old) = &place.entry.upper
        {
            self.area.give_back(old.size, 0);
        }
        self.opened(place, file)
    }

    pub(crate) fn make_dir_at(&self, base: &Path, path: &str) -> io::Result<()> {
        let _alone = self.area.change();
        let place = self.free(base, path)?;
        let upper = self.alter(&place.dir)?;
        let name = place.name()?;
        self.area.taking(0, 1, || upper.make_dir(name, 0o777))
    }

    pub(crate) fn make_link_at(&self, target: &str, base: &Path, path: &str) -> io::Result<()> {
        if target.starts_with('/') {
            return Err(Errno::PERM.into());
        }
        let _alone = self.area.change();
        let place = self.free(base, path)?;
        if place.as_directory {
            return Err(Errno::NOENT.into());
        }
        let upper = self.alter(&place.dir)?;
        let name = place.name()?;
        self.area.taking(target.len() as u64, 1, || upper.make_link(OsStr::new(target), name))
    }

    /// Gives what `path` is a second name.
    pub(crate) fn make_name_at(&self, base: &Path, path: &str, to: &Path, new: &str) -> io::Result<()> {
        let _alone = self.area.change();
        let place = self.resolve(base, path, false)?;
        let kind = place.stat()?.kind;
        let free = self.free(to, new)?;
        if kind == Kind::Directory {
            return Err(Errno::PERM.into());
        }
        if free.as_directory {
            return Err(Errno::NOENT.into());
        }
        let from = self.copy_up(&place, true)?;
        // Made again, since the copy may have made its upper directory.
        let upper = self.alter(&self.cursor(&free.dir.path)?)?;
        let (name, new) = (place.name()?, free.name()?);
        self.area.taking(0, 1, || from.make_name(name, &upper, new))
    }

    /// A place for something new.
    fn free(&self, base: &Path, path: &str) -> io::Result<Place> {
        let mut place = self.resolve(base, path.trim_end_matches('/'), false)?;
        place.as_directory |= path.ends_with('/');
        match place.entry.stat() {
            Some(_) => Err(Errno::EXIST.into()),
            None => Ok(place),
        }
    }

    pub(crate) fn remove_file_at(&self, base: &Path, path: &str) -> io::Result<()> {
        let _alone = self.area.change();
        let place = self.resolve(base, path, false)?;
        if place.stat()?.kind == Kind::Directory {
            return Err(Errno::ISDIR.into());
        }
        self.may_alter(&place.dir)?;
        self.forget_original(&place)?;
        if let Some((upper, stat)) = place.dir.upper.as_ref().zip(place.entry.upper.as_ref()) {
            upper.remove_file(place.name()?)?;
            self.area.removed(stat);
        }
        Ok(())
    }

    pub(crate) fn remove_dir_at(&self, base: &Path, path: &str) -> io::Result<()> {
        let _alone = self.area.change();
        let place = self.resolve(base, path, false)?;
        if place.stat()?.kind != Kind::Directory {
            return Err(Errno::NOTDIR.into());
        }
        let name = place.name()?;
        self.may_alter(&place.dir)?;
        self.require_empty(&place)?;
        self.forget_original(&place)?;
        if let Some(upper) = place.dir.upper.as_ref().filter(|_| place.entry.upper.is_some()) {
            upper.remove_dir(name)?;
            self.area.give_back(0, 1);
        }
        Ok(())
    }

    pub(super) fn require_empty(&self, place: &Place) -> io::Result<()> {
        let dir = self.down(&place.dir, place.name()?, &place.entry)?;
        if self.entries(&dir)?.is_empty() { Ok(()) } else { Err(Errno::NOTEMPTY.into()) }
    }

    /// Hides an original that is seen, and remembers it if it was not touched before.
    pub(super) fn forget_original(&self, place: &Place) -> io::Result<()> {
        let Some(lower) = place.dir.lower.as_ref().filter(|_| place.entry.lower.is_some()) else { return Ok(()) };
        self.remember_original(place, lower)?;
        self.hide(&place.path())
    }

    /// Remembers an original, unless it was touched before.
    pub(super) fn remember_original(&self, place: &Place, lower: &Dir) -> io::Result<()> {
        if place.entry.upper.is_none()
            && let Some(base) = Base::look(lower, place.name()?)?
        {
            self.remember(&place.path(), &base)?;
        }
        Ok(())
    }

    /// Sets access and change time; `None` leaves one as it is.
    pub(crate) fn set_times_at(
        &self,
        base: &Path,
        path: &str,
        follow: bool,
        times: [Option<SystemTime>; 2],
    ) -> io::Result<()> {
        let _alone = self.area.change();
        let place = self.resolve(base, path, follow)?;
        place.stat()?;
        match place.name.as_deref() {
            Some(name) => self.copy_up(&place, true)?.set_times(name, times),
            None => self.raise(&place.dir)?.set_times(OsStr::new("."), times),
        }
    }

    /// Whether the operating system lets this user change the original of a directory, where there is one.
    fn may_alter(&self, dir: &Cursor) -> io::Result<()> {
        dir.lower.as_ref().map_or(Ok(()), Dir::may_change)
    }

    /// The upper directory of a merged one, to add an entry to it.
    pub(super) fn alter(&self, dir: &Cursor) -> io::Result<Own> {
        self.may_alter(dir)?;
        self.raise(dir)
    }

    /// The upper directory of a merged one, made where it is missing, with those above it.
    pub(super) fn raise(&self, dir: &Cursor) -> io::Result<Own> {
        if let Some(upper) = &dir.upper {
            return Ok(upper.clone());
        }
        self.area.ready()?;
        fs::create_dir_all(self.root.join("upper"))?;
        let mut at = self.top()?;
        for name in &dir.path {
            let mut entry = self.entry(&at, name)?;
            if entry.upper.is_none() {
                self.raise_dir(&at, name, &entry)?;
                entry = self.entry(&at, name)?;
            }
            at = self.down(&at, name, &entry)?;
        }
        at.upper.ok_or_else(|| Errno::NOENT.into())
    }

    fn raise_dir(&self, at: &Cursor, name: &OsStr, entry: &Entry) -> io::Result<()> {
        let (Some(upper), Some(stat)) = (&at.upper, &entry.lower) else { return Err(Errno::NOENT.into()) };
        self.remember(&at.path.join(name), &Base::new(stat, None))?;
        // The kernel must get into it; what others may do does not matter in an area that only its owner enters.
        self.area.taking(0, 1, || upper.make_dir(name, stat.mode & 0o777 | 0o700))
    }

    /// Puts a copy of an original into its upper directory, unless it is there, and gives that directory.
    pub(super) fn copy_up(&self, place: &Place, content: bool) -> io::Result<Own> {
        let (upper, name) = (self.raise(&place.dir)?, place.name()?);
        if place.entry.upper.is_some() {
            return Ok(upper);
        }
        let (Some(lower), Some(stat)) = (&place.dir.lower, &place.entry.lower) else {
            return Err(Errno::NOENT.into());
        };
        match stat.kind {
            Kind::Directory => {
                let at = Cursor { upper: Some(upper.clone()), ..place.dir.clone() };
                self.raise_dir(&at, name, &place.entry)?;
                upper.set_times(name, [stat.times[0], stat.times[1]])?;
            }
            Kind::File => self.copy_file(lower, name, stat, content)?.put(self, place, &upper)?,
            Kind::Link => self.copy_link(lower.link(name)?, stat)?.put(self, place, &upper)?,
            Kind::Other => return Err(Errno::PERM.into()),
        }
        Ok(upper)
    }

    fn copy_file(&self, lower: &Dir, name: &OsStr, stat: &Stat, content: bool) -> io::Result<Copied> {
        let mut from = lower.file(name)?;
        let copied = self.begin_copy(if content { stat.size } else { 0 })?;
        let mut to = copied.tmp.create(OsStr::new(&copied.name), 0o600)?;
        let sha256 = if content {
            tree::copy(&mut from, &mut to)?;
            // What was copied, and not what the original is by now.
            io::Seek::rewind(&mut to)?;
            of_file(&mut to)?
        } else {
            of_file(&mut from)?
        };
        let size = to.metadata()?.len();
        self.area.charge(size.saturating_sub(copied.bytes), 0)?;
        to.set_permissions(Permissions::from_mode(stat.mode & 0o777))?;
        if let [Some(accessed), Some(modified), _] = stat.times {
            to.set_times(FileTimes::new().set_accessed(accessed).set_modified(modified))?;
        }
        let bytes = if content { size } else { stat.size };
        Ok(copied.of(Base { bytes, ..Base::new(stat, Some(sha256)) }))
    }

    fn copy_link(&self, target: OsString, stat: &Stat) -> io::Result<Copied> {
        use std::os::unix::ffi::OsStrExt as _;
        let copied = self.begin_copy(target.len() as u64)?;
        copied.tmp.make_link(&target, OsStr::new(&copied.name))?;
        let sha256 = of_bytes(target.as_bytes());
        Ok(copied.of(Base::new(stat, Some(sha256))))
    }

    fn begin_copy(&self, bytes: u64) -> io::Result<Copied> {
        let (tmp, name) = self.area.fresh()?;
        self.area.charge(bytes, 1)?;
        Ok(Copied { area: Arc::clone(&self.area), tmp, name, bytes, base: None })
    }
}

/// A copy in `tmp`. Unless it is put into its place, it gives its room back.
struct Copied {
    area: Arc<super::Area>,
    tmp: Own,
    name: String,
    bytes: u64,
    /// What was copied, once it was.
    base: Option<Base>,
}

impl Copied {
    fn of(mut self, base: Base) -> Self {
        self.base = Some(base);
        self
    }

    fn put(mut self, overlay: &Overlay, place: &Place, upper: &Own) -> io::Result<()> {
        if let Some(base) = &self.base {
            overlay.remember(&place.path(), base)?;
        }
        self.tmp.rename(OsStr::new(&self.name), upper, place.name()?)?;
        self.name.clear();
        Ok(())
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        if !self.name.is_empty() {
            // What stays there means nothing.
            let _ = self.tmp.remove_file(OsStr::new(&self.name));
            self.area.give_back(self.bytes, 1);
        }
    }
}
