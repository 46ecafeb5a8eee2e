//! What an original was when a process first touched it, so that a change that others make meanwhile is seen.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::tree::{Dir, Kind, Stat};

/// What an entry is, to compare it with what it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// What it is.
    pub kind: Kind,
    /// Bytes of a file, or of a link's target; 0 for a directory.
    pub bytes: u64,
    /// Permission bits.
    pub mode: u32,
    /// Last change of the content, Unix nanoseconds as text; empty where unknown.
    pub mtime: String,
    /// SHA-256 of the content or of a link's target, in hex; `None` for what has none, or may not be read.
    pub sha256: Option<String>,
}

impl Base {
    /// What `name` in `dir` is now; `None` where there is nothing.
    pub(super) fn look(dir: &Dir, name: &OsStr) -> io::Result<Option<Self>> {
        let Some(stat) = dir.stat(name)? else { return Ok(None) };
        let sha256 = match stat.kind {
            Kind::File => match dir.file(name) {
                Ok(mut file) => Some(of_file(&mut file)?),
                // Removing a file does not need the right to read it.
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => None,
                Err(e) => return Err(e),
            },
            Kind::Link => Some(of_bytes(dir.link(name)?.as_bytes())),
            Kind::Directory | Kind::Other => None,
        };
        Ok(Some(Self::new(&stat, sha256)))
    }

    pub(super) fn new(stat: &Stat, sha256: Option<String>) -> Self {
        let since = stat.times[1].and_then(|t| t.duration_since(SystemTime::UNIX_EPOCH).ok());
        Self {
            kind: stat.kind,
            bytes: if stat.kind == Kind::Directory { 0 } else { stat.size },
            mode: stat.mode,
            mtime: since.map(|s| s.as_nanos().to_string()).unwrap_or_default(),
            sha256,
        }
    }

    /// Whether two are the same to whoever reads them. Permissions are not compared: processes cannot change them.
    pub(super) fn same(&self, other: &Self) -> bool {
        self.kind == other.kind
            && match (self.kind, &self.sha256, &other.sha256) {
                (Kind::Directory, ..) => true,
                (_, Some(ours), Some(theirs)) => ours == theirs,
                _ => self.bytes == other.bytes && self.mtime == other.mtime,
            }
    }
}

/// Whether two may be absent, and are the same.
pub(super) fn same(one: Option<&Base>, other: Option<&Base>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one.same(other),
        (None, None) => true,
        _ => false,
    }
}

/// SHA-256 of what is left to read of a file.
pub(super) fn of_file(file: &mut File) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

pub(super) fn of_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
