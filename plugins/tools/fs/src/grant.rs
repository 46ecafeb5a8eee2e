//! The granted directories, and what WASI says about them in words that a model can act on.
//!
//! The only file that knows `wasi:filesystem`, beside the writing of streams in `write`.

use agent_os_sdk::{Errno, Error, Result};
use schemars::JsonSchema;
use serde::Serialize;
use wasip2::filesystem::preopens::get_directories;
use wasip2::filesystem::types::{
    Descriptor, DescriptorFlags, DescriptorStat, DescriptorType, DirectoryEntry, ErrorCode, OpenFlags, PathFlags,
};

use crate::Entry;
use crate::path::Within;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    File,
    Directory,
    Link,
    Other,
}

impl From<DescriptorType> for Kind {
    fn from(kind: DescriptorType) -> Self {
        match kind {
            DescriptorType::RegularFile => Self::File,
            DescriptorType::Directory => Self::Directory,
            DescriptorType::SymbolicLink => Self::Link,
            _ => Self::Other,
        }
    }
}

/// The directories that this call may use.
pub(crate) struct Grants(Vec<Grant>);

/// One of them.
pub(crate) struct Grant {
    name: String,
    pub(crate) directory: Descriptor,
    /// The names of all, for errors.
    granted: String,
}

impl Grants {
    pub(crate) fn of_this_call() -> Self {
        let mut directories: Vec<_> = get_directories()
            .into_iter()
            .map(|(directory, name)| (name.trim_matches('/').to_owned(), directory))
            .collect();
        directories.sort_by(|(left, _), (right, _)| left.cmp(right));
        let names: Vec<_> = directories.iter().map(|(name, _)| name.as_str()).collect();
        let granted = names.join(", ");
        Self(
            directories
                .into_iter()
                .map(|(name, directory)| Grant { name, directory, granted: granted.clone() })
                .collect(),
        )
    }

    /// The granted directories as entries.
    pub(crate) fn list(&self) -> Result<Vec<Entry>> {
        self.require_any()?;
        let entry = |grant: &Grant| Entry {
            name: grant.name.clone(),
            kind: Kind::Directory,
            size: None,
            writable: grant.is_writable(),
        };
        Ok(self.0.iter().map(entry).collect())
    }

    /// The paths of all granted directories.
    pub(crate) fn paths(&self) -> Result<Vec<Within>> {
        self.require_any()?;
        Ok(self.0.iter().map(|grant| Within { grant: grant.name.clone(), rest: ".".to_owned() }).collect())
    }

    /// The granted directory that a path begins with.
    pub(crate) fn find(&self, path: &Within) -> Result<&Grant> {
        self.require_any()?;
        self.0.iter().find(|grant| grant.name == path.grant).ok_or_else(|| {
            Error::denied(format!(
                "`{path}` is outside the granted directories; a path begins with one of: {}",
                self.0[0].granted
            ))
        })
    }

    fn require_any(&self) -> Result<()> {
        if self.0.is_empty() {
            return Err(Error::denied(
                "no directory is granted; the operator grants one with `--dir PATH`, or `--dir PATH:rw` to write",
            ));
        }
        Ok(())
    }
}

impl Grant {
    /// Whether files may be changed; `None` where the host does not say.
    pub(crate) fn is_writable(&self) -> Option<bool> {
        self.directory.get_flags().ok().map(|flags| flags.contains(DescriptorFlags::MUTATE_DIRECTORY))
    }

    /// What `path` is, links followed.
    pub(crate) fn stat(&self, path: &Within) -> Result<DescriptorStat> {
        self.directory.stat_at(PathFlags::SYMLINK_FOLLOW, &path.rest).map_err(|code| self.explain(path, code))
    }

    /// Opens a regular file, links followed. What may block (a pipe, a device) is refused before it is opened.
    pub(crate) fn open(&self, path: &Within) -> Result<(Descriptor, u64)> {
        let stat = self.stat(path)?;
        match Kind::from(stat.type_) {
            Kind::File => {}
            Kind::Directory => return Err(self.explain(path, ErrorCode::IsDirectory)),
            Kind::Link | Kind::Other => {
                return Err(Error::invalid(format!("`{path}` is neither a file nor a directory")));
            }
        }
        let file = self
            .directory
            .open_at(PathFlags::SYMLINK_FOLLOW, &path.rest, OpenFlags::empty(), DescriptorFlags::READ)
            .map_err(|code| self.explain(path, code))?;
        Ok((file, stat.size))
    }

    /// The entries of a directory, sorted by name, with the sizes of files.
    pub(crate) fn entries(&self, path: &Within) -> Result<Vec<Entry>> {
        let directory = self
            .directory
            .open_at(PathFlags::SYMLINK_FOLLOW, &path.rest, OpenFlags::DIRECTORY, DescriptorFlags::READ)
            .map_err(|code| match code {
                ErrorCode::NotDirectory => {
                    Error::invalid(format!("`{path}` is not a directory; fs__read reads a file"))
                }
                code => self.explain(path, code),
            })?;
        let stream = directory.read_directory().map_err(|code| self.explain(path, code))?;
        let mut entries = Vec::new();
        while let Some(DirectoryEntry { type_, name }) =
            stream.read_directory_entry().map_err(|code| self.explain(path, code))?
        {
            let kind = Kind::from(type_);
            // A file that has gone since is listed without a size.
            let stat = (kind == Kind::File).then(|| directory.stat_at(PathFlags::empty(), &name));
            entries.push(Entry { name, kind, size: stat.and_then(|stat| Some(stat.ok()?.size)), writable: None });
        }
        entries.sort_by(|left, right| left.name.cmp(&right.name));
        Ok(entries)
    }

    /// Reads up to `length` bytes of a file from `offset`; fewer only at its end.
    pub(crate) fn read(&self, path: &Within, file: &Descriptor, offset: u64, length: u64) -> Result<Vec<u8>> {
        /// Small beside every memory limit, large beside the cost of a call.
        const CHUNK: u64 = 256 * 1024;
        let mut bytes = Vec::new();
        loop {
            let have = bytes.len() as u64;
            let wanted = (length - have).min(CHUNK);
            if wanted == 0 {
                return Ok(bytes);
            }
            let (chunk, end) = file.read(wanted, offset + have).map_err(|code| self.explain(path, code))?;
            bytes.extend_from_slice(&chunk);
            if end || chunk.is_empty() {
                return Ok(bytes);
            }
        }
    }

    /// Says what `code` means for `path`, and what to do about it.
    pub(crate) fn explain(&self, path: &Within, code: ErrorCode) -> Error {
        match code {
            ErrorCode::NoEntry => {
                Error::not_found(format!("`{path}` does not exist; fs__list shows what is in a directory"))
            }
            ErrorCode::IsDirectory => {
                Error::invalid(format!("`{path}` is a directory; fs__list lists it, fs__search searches it"))
            }
            ErrorCode::NotDirectory => Error::invalid(format!("a part of `{path}` is a file and not a directory")),
            ErrorCode::NotPermitted => Error::denied(format!(
                "`{path}` leads outside the granted directories, by a symbolic link; granted are: {}",
                self.granted
            )),
            ErrorCode::Access => {
                Error::denied(format!("the operating system refuses access to `{path}`: its permissions forbid it"))
            }
            ErrorCode::ReadOnly => Error::denied(format!("`{path}` is on a read-only file system")),
            ErrorCode::InsufficientSpace | ErrorCode::Quota => {
                Error::io(format!("no space left to write `{path}`; it is unchanged"))
            }
            ErrorCode::FileTooLarge => Error::too_large(format!("`{path}` would be too large for its file system")),
            ErrorCode::NameTooLong => Error::invalid(format!("a name in `{path}` is too long")),
            ErrorCode::Loop => Error::invalid(format!("the symbolic links of `{path}` lead in a circle")),
            ErrorCode::IllegalByteSequence => Error::invalid(format!("`{path}` has a name that is not valid text")),
            ErrorCode::Busy | ErrorCode::WouldBlock | ErrorCode::TextFileBusy => {
                Error::new(Errno::Again, format!("`{path}` is in use; the same call may work later"))
            }
            code => Error::io(format!("`{path}`: the file system answered `{}`", code.name())),
        }
    }

    /// As `explain`, for a call that writes: the usual reason there is a read-only grant.
    pub(crate) fn explain_write(&self, path: &Within, code: ErrorCode) -> Error {
        if code == ErrorCode::NotPermitted && self.is_writable() == Some(false) {
            let name = &self.name;
            return Error::denied(format!(
                "`{name}` is granted read-only, so `{path}` cannot be written; the operator grants it with \
                 `--dir PATH_OF_{name}:rw`"
            ));
        }
        self.explain(path, code)
    }
}
