//! One kernel per data directory: an advisory lock that the operating system drops with its holder.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::Error;

/// Who has the lock of a data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// Nobody; a kernel that ended left its id.
    Nobody(Option<u32>),
    /// The kernel of this operating-system process; 0 if it is not known yet.
    Process(u32),
}

/// The lock, held while this lives.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of a data directory. One whose holder died is free by itself.
    pub(super) fn take(data: &Path) -> Result<Self, Error> {
        let path = data.join("lock");
        let io = |source| Error::Io { what: "the lock", path: path.clone(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(io)?;
        match file.try_lock() {
            Ok(()) => {
                file.set_len(0).map_err(io)?;
                file.rewind().map_err(io)?;
                writeln!(file, "{}", std::process::id()).map_err(io)?;
                Ok(Self { _file: file })
            }
            Err(TryLockError::WouldBlock) => {
                // The holder may be writing it this moment: 0 then stands for "not known yet".
                let holder = written(&mut file).unwrap_or(0);
                Err(Error::Locked { path: data.to_owned(), holder })
            }
            Err(TryLockError::Error(source)) => Err(io(source)),
        }
    }

    /// Says who has it, and leaves it so.
    pub(super) fn holder(data: &Path) -> std::io::Result<Holder> {
        let mut file = match OpenOptions::new().read(true).write(true).open(data.join("lock")) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Holder::Nobody(None)),
            Err(e) => return Err(e),
        };
        // Shared: two that only look do not see each other. It is given back when `file` goes.
        match file.try_lock_shared() {
            Ok(()) => Ok(Holder::Nobody(written(&mut file))),
            Err(TryLockError::WouldBlock) => Ok(Holder::Process(written(&mut file).unwrap_or(0))),
            Err(TryLockError::Error(e)) => Err(e),
        }
    }
}

/// The process that the file names.
fn written(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}
