//! Directories by handle. Each step is one name in one open directory and follows no symbolic link, so whatever
//! is swapped meanwhile, nothing leads out.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::{Access, AtFlags, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A pipe, a socket, a device.
    Other,
}

impl From<FileType> for Kind {
    fn from(kind: FileType) -> Self {
        match kind {
            FileType::RegularFile => Self::File,
            FileType::Directory => Self::Directory,
            FileType::Symlink => Self::Link,
            _ => Self::Other,
        }
    }
}

/// What the file system tells of an entry, links not followed.
#[derive(Clone, Debug)]
pub struct Stat {
    /// What it is.
    pub kind: Kind,
    /// Bytes of a file; of a link's target.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Names that it has.
    pub links: u64,
    /// Last access, change of content, change of status; `None` before 1970.
    pub times: [Option<SystemTime>; 3],
    /// File system and number in it: together, which object it is.
    pub object: (u64, u64),
}

impl Stat {
    fn new(s: &rustix::fs::Stat) -> Self {
        let time = |seconds, nanoseconds| {
            let since = Duration::new(u64::try_from(seconds).ok()?, u32::try_from(nanoseconds).ok()?);
            SystemTime::UNIX_EPOCH.checked_add(since)
        };
        Self {
            kind: FileType::from_raw_mode(s.st_mode).into(),
            size: wide(s.st_size),
            mode: s.st_mode & 0o7777,
            links: wide(s.st_nlink),
            times: [
                time(s.st_atime, s.st_atime_nsec),
                time(s.st_mtime, s.st_mtime_nsec),
                time(s.st_ctime, s.st_ctime_nsec),
            ],
            object: (wide(s.st_dev), wide(s.st_ino)),
        }
    }

    /// What an open file is.
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        Ok(Self::new(&rustix::fs::fstat(file)?))
    }
}

/// The widths of these numbers differ from system to system.
fn wide<T>(number: T) -> u64
where
    u64: TryFrom<T>,
{
    u64::try_from(number).unwrap_or(0)
}

/// An open directory, to look at.
#[derive(Clone, Debug)]
pub(super) struct Dir(Arc<OwnedFd>);

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

impl Dir {
    /// The directory of a path that the operator chose: links in it are followed.
    pub(super) fn root(path: &Path) -> io::Result<Self> {
        Ok(Self(Arc::new(rustix::fs::open(path, DIRECTORY, Mode::empty())?)))
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&*self.0)?)
    }

    pub(super) fn dir(&self, name: &OsStr) -> io::Result<Self> {
        Ok(Self(Arc::new(rustix::fs::openat(&*self.0, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?)))
    }

    /// What a name is; `None` where there is nothing.
    pub(super) fn stat(&self, name: &OsStr) -> io::Result<Option<Stat>> {
        match rustix::fs::statat(&*self.0, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(Stat::new(&stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// What it is itself.
    pub(super) fn own_stat(&self) -> io::Result<Stat> {
        Ok(Stat::new(&rustix::fs::fstat(&*self.0)?))
    }

    /// Opens a regular file to read; waits for no pipe.
    pub(super) fn file(&self, name: &OsStr) -> io::Result<File> {
        self.open(name, OFlags::RDONLY)
    }

    fn open(&self, name: &OsStr, flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(&*self.0, name, flags, Mode::empty())?);
        match Stat::of(&file)?.kind {
            Kind::File => Ok(file),
            Kind::Directory => Err(Errno::ISDIR.into()),
            Kind::Link | Kind::Other => Err(Errno::OPNOTSUPP.into()),
        }
    }

    pub(super) fn link(&self, name: &OsStr) -> io::Result<OsString> {
        let target = rustix::fs::readlinkat(&*self.0, name, Vec::new())?;
        Ok(OsString::from_vec(target.into_bytes()))
    }

    /// Its entries, in no order.
    pub(super) fn names(&self) -> io::Result<Vec<(OsString, Kind)>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&*self.0)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => match self.stat(name)? {
                    Some(stat) => stat.kind,
                    None => continue,
                },
                known => known.into(),
            };
            names.push((name.to_owned(), kind));
        }
        Ok(names)
    }

    /// Whether the operating system lets this user add and remove entries.
    pub(super) fn may_change(&self) -> io::Result<()> {
        self.may(OsStr::new("."), Access::WRITE_OK | Access::EXEC_OK)
    }

    /// Whether the operating system lets this user write a file.
    pub(super) fn may_write(&self, name: &OsStr) -> io::Result<()> {
        self.may(name, Access::WRITE_OK)
    }

    fn may(&self, name: &OsStr, access: Access) -> io::Result<()> {
        match rustix::fs::accessat(&*self.0, name, access, AtFlags::EACCESS) {
            // A system that cannot say it. Who applies the change will find out.
            Err(Errno::NOSYS) => Ok(()),
            answer => Ok(answer?),
        }
    }
}

/// An open directory that is ours to change. The originals of private mounts are never held by one, except while
/// an operator applies changes to them.
#[derive(Clone, Debug)]
pub(super) struct Own(Dir);

impl Deref for Own {
    type Target = Dir;

    fn deref(&self) -> &Dir {
        &self.0
    }
}

impl Own {
    pub(super) fn root(path: &Path) -> io::Result<Self> {
        Dir::root(path).map(Self)
    }

    pub(super) fn own(&self, name: &OsStr) -> io::Result<Self> {
        self.dir(name).map(Self)
    }

    pub(super) fn make_dir(&self, name: &OsStr, mode: u32) -> io::Result<()> {
        Ok(rustix::fs::mkdirat(&*self.0.0, name, Mode::from_raw_mode(mode))?)
    }

    /// Makes a file that is not there yet.
    pub(super) fn create(&self, name: &OsStr, mode: u32) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::openat(&*self.0.0, name, flags, Mode::from_raw_mode(mode))?))
    }

    /// Opens a file that is there.
    pub(super) fn reopen(&self, name: &OsStr, read: bool, truncate: bool) -> io::Result<File> {
        let mut flags = if read { OFlags::RDWR } else { OFlags::WRONLY };
        flags.set(OFlags::TRUNC, truncate);
        self.open(name, flags)
    }

    pub(super) fn make_link(&self, target: &OsStr, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::symlinkat(target, &*self.0.0, name)?)
    }

    /// Gives an entry a second name.
    pub(super) fn make_name(&self, name: &OsStr, to: &Self, new: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::linkat(&*self.0.0, name, &*to.0.0, new, AtFlags::empty())?)
    }

    pub(super) fn remove_file(&self, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&*self.0.0, name, AtFlags::empty())?)
    }

    pub(super) fn remove_dir(&self, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&*self.0.0, name, AtFlags::REMOVEDIR)?)
    }

    /// Moves an entry, over what has the new name.
    pub(super) fn rename(&self, name: &OsStr, to: &Self, new: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::renameat(&*self.0.0, name, &*to.0.0, new)?)
    }

    /// Moves an entry to a name that is free, and else fails.
    pub(super) fn rename_to_free(&self, name: &OsStr, to: &Self, new: &OsStr) -> io::Result<()> {
        match rustix::fs::renameat_with(&*self.0.0, name, &*to.0.0, new, RenameFlags::NOREPLACE) {
            // A file system that cannot do it in one step.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => match to.stat(new)? {
                Some(_) => Err(Errno::EXIST.into()),
                None => self.rename(name, to, new),
            },
            done => Ok(done?),
        }
    }

    /// Sets access and change time of an entry; `None` leaves one as it is.
    pub(super) fn set_times(&self, name: &OsStr, times: [Option<SystemTime>; 2]) -> io::Result<()> {
        Ok(rustix::fs::utimensat(&*self.0.0, name, &timestamps(times), AtFlags::SYMLINK_NOFOLLOW)?)
    }
}

fn timestamps([access, change]: [Option<SystemTime>; 2]) -> Timestamps {
    let spec = |time: Option<SystemTime>| match time.map(|t| t.duration_since(SystemTime::UNIX_EPOCH)) {
        Some(Ok(since)) => Timespec {
            tv_sec: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: since.subsec_nanos().into(),
        },
        Some(Err(before)) => {
            let seconds = i64::try_from(before.duration().as_secs()).unwrap_or(i64::MAX);
            Timespec { tv_sec: -seconds, tv_nsec: 0 }
        }
        None => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
    };
    Timestamps { last_access: spec(access), last_modification: spec(change) }
}

/// Copies a file's content, by reference where the file system can.
pub(super) fn copy(from: &mut File, to: &mut File) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    if rustix::fs::ioctl_ficlone(&to, &from).is_ok() {
        return Ok(());
    }
    io::copy(from, to).map(drop)
}
