//! A plugin's files: what they look like from outside, and their contents as of one instant.

use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::contract::Fault;

/// The largest component that is read, in bytes.
const MAX_COMPONENT: u64 = 256 << 20;

/// The largest manifest that is read, in bytes.
const MAX_TEXT: u64 = 1 << 20;

/// The component of a plugin and what lies beside it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// `NAME.wasm`.
    pub component: PathBuf,
    /// `NAME.toml`.
    pub manifest: Option<PathBuf>,
    /// `NAME.wit`.
    pub wit: Option<PathBuf>,
}

/// What tells one state of a plugin's files from another without reading them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stamp([Option<FileStamp>; 3]);

#[derive(Clone, Debug, PartialEq, Eq)]
struct FileStamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileStamp {
    fn of(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            bytes: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

impl Stamp {
    /// How long ago the newest of the files was touched; none where the clock says that it is yet to come.
    #[must_use]
    pub fn age(&self) -> Option<Duration> {
        let changed = self.0.iter().flatten().map(|f| f.changed.max(f.modified)).max()?;
        let (seconds, nanos) = (u64::try_from(changed.0).ok()?, u32::try_from(changed.1).ok()?);
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos)).ok()
    }

    /// Whether the component is another file than in `earlier`, not the same one with other contents.
    #[must_use]
    pub fn was_replaced(&self, earlier: &Self) -> bool {
        let id = |s: &Self| s.0[0].as_ref().map(|f| (f.device, f.inode));
        id(self) != id(earlier)
    }
}

/// The contents of a plugin's files.
#[derive(Debug, Default)]
pub struct Contents {
    /// The component's bytes.
    pub component: Vec<u8>,
    /// The manifest's text.
    pub manifest: Option<String>,
    /// The text of its WIT.
    pub wit: Option<String>,
}

/// Why there are no contents.
#[derive(Debug)]
pub(super) enum Unread {
    /// They changed while they were read: look again.
    Changing,
    /// They cannot be read as they are.
    Fault(Fault),
}

impl Files {
    fn paths(&self) -> [Option<&Path>; 3] {
        [Some(&self.component), self.manifest.as_deref(), self.wit.as_deref()]
    }

    /// What the files look like now. One that is gone by now has no part in it.
    ///
    /// # Errors
    /// One of them is a symbolic link, or no file.
    pub fn stamp(&self) -> Result<Stamp, Fault> {
        let mut stamp = Stamp::default();
        for (slot, path) in stamp.0.iter_mut().zip(self.paths()) {
            let Some(path) = path else { continue };
            let Ok(meta) = fs::symlink_metadata(path) else { continue };
            if meta.is_symlink() {
                return Err(Fault {
                    code: "symlink",
                    message: format!("{} is a symbolic link: what it leads to can change unseen", path.display()),
                    hint: "copy the file itself there, or use `aok plugin add FILE`".into(),
                });
            }
            if !meta.is_file() {
                return Err(Fault {
                    code: "unreadable",
                    message: format!("{} is not a file", path.display()),
                    hint: "put the component itself there".into(),
                });
            }
            *slot = Some(FileStamp::of(&meta));
        }
        Ok(stamp)
    }

    /// Reads all of them, as they were at one instant, for those who do not look again.
    ///
    /// # Errors
    /// Why they cannot be read.
    pub fn contents(&self) -> Result<Contents, Fault> {
        self.read().map_err(|e| match e {
            Unread::Fault(fault) => fault,
            Unread::Changing => Fault {
                code: "unreadable",
                message: format!("{} is not there, or changes while it is read", self.component.display()),
                hint: "check the path, and wait until it has been written".into(),
            },
        })
    }

    /// Reads all of them, as they were at one instant.
    pub(super) fn read(&self) -> Result<Contents, Unread> {
        let before = self.stamp().map_err(Unread::Fault)?;
        let contents = Contents {
            component: read_bytes(&self.component, MAX_COMPONENT, "strip its debug information")?,
            manifest: self.manifest.as_deref().map(read_text).transpose()?,
            wit: self.wit.as_deref().map(read_text).transpose()?,
        };
        match self.stamp() {
            Ok(after) if after == before => Ok(contents),
            _ => Err(Unread::Changing),
        }
    }
}

fn read_bytes(path: &Path, most: u64, advice: &str) -> Result<Vec<u8>, Unread> {
    let failed = |e: io::Error| match e.kind() {
        // It was there a moment ago.
        io::ErrorKind::NotFound => Unread::Changing,
        _ => Unread::Fault(Fault {
            code: "unreadable",
            message: format!("{} cannot be read: {e}", path.display()),
            hint: "check its permissions".into(),
        }),
    };
    let file = File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    let mut bytes = Vec::with_capacity(usize::try_from(size.min(most)).unwrap_or(0));
    file.take(most + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > most {
        return Err(Unread::Fault(Fault {
            code: "too_large",
            message: format!("{} has {} MiB, the most is {}", path.display(), size >> 20, most >> 20),
            hint: advice.into(),
        }));
    }
    Ok(bytes)
}

fn read_text(path: &Path) -> Result<String, Unread> {
    let bytes = read_bytes(path, MAX_TEXT, "make it shorter")?;
    String::from_utf8(bytes).map_err(|_| {
        Unread::Fault(Fault {
            code: "unreadable",
            message: format!("{} is not UTF-8 text", path.display()),
            hint: "write it anew".into(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_changes_with_each_file() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let files = Files { component: at("x.wasm"), manifest: Some(at("x.toml")), wit: None };
        fs::write(&files.component, "a").unwrap();
        let alone = files.stamp().unwrap();
        assert!(alone.age().unwrap() < Duration::from_secs(60));
        fs::write(at("x.toml"), "").unwrap();
        let both = files.stamp().unwrap();
        assert!(alone != both && !both.was_replaced(&alone));
        fs::write(at("new"), "b").unwrap();
        fs::rename(at("new"), &files.component).unwrap();
        assert!(files.stamp().unwrap().was_replaced(&both));
    }

    #[test]
    fn what_is_no_plain_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("real"), "a").unwrap();
        std::os::unix::fs::symlink(at("real"), at("x.wasm")).unwrap();
        let alone = |name: &str| Files { component: at(name), ..Files::default() };
        assert_eq!(alone("x.wasm").contents().unwrap_err().code, "symlink");
        fs::create_dir(at("d.wasm")).unwrap();
        assert_eq!(alone("d.wasm").contents().unwrap_err().code, "unreadable");
        assert_eq!(alone("nowhere.wasm").contents().unwrap_err().code, "unreadable");
        let files = Files { component: at("real"), manifest: Some(at("real.toml")), wit: None };
        fs::write(at("real.toml"), [0xff, 0xfe]).unwrap();
        assert!(matches!(files.read(), Err(Unread::Fault(f)) if f.message.contains("UTF-8")));
    }
}
