//! `fs__write` and `fs__append`.
//!
//! A write goes to a file beside the target and is renamed over it once it is on the disk, so neither a crash nor a
//! full disk leaves half a file or loses the old one. The replaced file gets default permissions; WASI knows none.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use agent_os_sdk::{CallContext, Effect, Error, Result, Tool};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wasip2::filesystem::types::{Descriptor, DescriptorFlags, ErrorCode, OpenFlags, PathFlags};
use wasip2::io::streams::StreamError;

use crate::grant::{Grant, Grants, Kind};
use crate::path::{GrantPath, Within};

/// Writes a text file: creates it, and the directories above it, or replaces all that is in it.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Write {
    /// The file, for example `docs/notes.md`; it begins with the name of a granted directory.
    path: String,
    /// The whole new content.
    content: String,
}

/// Adds text to the end of a file; creates it, and the directories above it, when it does not exist.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Append {
    /// The file, for example `docs/log.md`; it begins with the name of a granted directory.
    path: String,
    /// The text to add; nothing is put between it and what is there.
    content: String,
}

/// What was written.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Written {
    path: String,
    /// Bytes that this call wrote.
    bytes: usize,
}

impl Tool for Write {
    const NAME: &'static str = "write";
    const EFFECT: Effect = Effect::Idempotent;
    type Output = Written;

    fn call(self, context: &CallContext) -> Result<Written> {
        let path = GrantPath::parse_within(&self.path)?;
        let grants = Grants::of_this_call();
        let grant = grants.find(&path)?;
        if prepare(grant, &path)? == Some(Kind::Link) {
            // A rename would put a file in the link's place.
            write_through(grant, &path, &self.content)?;
        } else {
            replace(grant, &path, &self.content, &context.idempotency_key)?;
        }
        Ok(Written { path: path.to_string(), bytes: self.content.len() })
    }
}

impl Tool for Append {
    const NAME: &'static str = "append";
    const EFFECT: Effect = Effect::Destructive;
    type Output = Written;

    fn call(self, _: &CallContext) -> Result<Written> {
        let path = GrantPath::parse_within(&self.path)?;
        let grants = Grants::of_this_call();
        let grant = grants.find(&path)?;
        prepare(grant, &path)?;
        append(grant, &path, &self.content)?;
        Ok(Written { path: path.to_string(), bytes: self.content.len() })
    }
}

/// Makes sure that `path` can be a file, creates the directories above it, and says what is there now.
fn prepare(grant: &Grant, path: &Within) -> Result<Option<Kind>> {
    if path.rest == "." {
        return Err(grant.explain(path, ErrorCode::IsDirectory));
    }
    if grant.is_writable() == Some(false) {
        return Err(grant.explain_write(path, ErrorCode::NotPermitted));
    }
    match grant.directory.stat_at(PathFlags::empty(), &path.rest) {
        Ok(stat) => match Kind::from(stat.type_) {
            Kind::Directory => Err(grant.explain(path, ErrorCode::IsDirectory)),
            Kind::Other => Err(Error::invalid(format!("`{path}` is neither a file nor a directory"))),
            kind => Ok(Some(kind)),
        },
        Err(ErrorCode::NoEntry) => {
            for parent in path.parents() {
                match grant.directory.create_directory_at(parent) {
                    Ok(()) | Err(ErrorCode::Exist) => {}
                    Err(code) => return Err(grant.explain_write(path, code)),
                }
            }
            Ok(None)
        }
        Err(code) => Err(grant.explain_write(path, code)),
    }
}

/// Puts a file with `content` in the place of `path`.
fn replace(grant: &Grant, path: &Within, content: &str, key: &str) -> Result<()> {
    let partial = partial_name(&path.rest, key);
    let written = open_to_write(grant, &partial, OpenFlags::CREATE | OpenFlags::TRUNCATE)
        .and_then(|file| write_all(&file, content.as_bytes()))
        .and_then(|()| grant.directory.rename_at(&partial, &grant.directory, &path.rest));
    written.map_err(|code| {
        // What is left of it is of no use to anyone; that it cannot be removed changes nothing of the failure.
        let _ = grant.directory.unlink_file_at(&partial);
        grant.explain_write(path, code)
    })
}

/// A name beside `rest`: the same for each attempt of one call, so that none is left behind by a crash and a
/// repeat; another for any other call, so that two writers do not share it.
fn partial_name(rest: &str, key: &str) -> String {
    let mut hasher = DefaultHasher::new();
    (rest, key).hash(&mut hasher);
    let name = format!(".aok-{:016x}.partial", hasher.finish());
    match rest.rsplit_once('/') {
        Some((folder, _)) => format!("{folder}/{name}"),
        None => name,
    }
}

fn write_through(grant: &Grant, path: &Within, content: &str) -> Result<()> {
    open_to_write(grant, &path.rest, OpenFlags::CREATE | OpenFlags::TRUNCATE)
        .and_then(|file| write_all(&file, content.as_bytes()))
        .map_err(|code| grant.explain_write(path, code))
}

fn open_to_write(grant: &Grant, rest: &str, flags: OpenFlags) -> Result<Descriptor, ErrorCode> {
    grant.directory.open_at(PathFlags::SYMLINK_FOLLOW, rest, flags, DescriptorFlags::WRITE)
}

fn write_all(file: &Descriptor, bytes: &[u8]) -> Result<(), ErrorCode> {
    /// Small beside every limit on what one host call may carry.
    const CHUNK: usize = 256 * 1024;
    let mut done = 0;
    while done < bytes.len() {
        let end = (done + CHUNK).min(bytes.len());
        let written = file.write(&bytes[done..end], done as u64)?;
        if written == 0 {
            return Err(ErrorCode::InsufficientSpace);
        }
        done += usize::try_from(written).map_err(|_| ErrorCode::Overflow)?;
    }
    file.sync()
}

/// Appends by the host's own append, so that two processes that append to one file do not overwrite each other.
fn append(grant: &Grant, path: &Within, content: &str) -> Result<()> {
    /// The most that `blocking-write-and-flush` takes.
    const CHUNK: usize = 4096;
    let explain = |code| grant.explain_write(path, code);
    let file = open_to_write(grant, &path.rest, OpenFlags::CREATE).map_err(explain)?;
    let stream = file.append_via_stream().map_err(explain)?;
    for (index, chunk) in content.as_bytes().chunks(CHUNK).enumerate() {
        stream.blocking_write_and_flush(chunk).map_err(|error| {
            let reason = match error {
                StreamError::Closed => "the stream was closed".to_owned(),
                StreamError::LastOperationFailed(error) => error.to_debug_string(),
            };
            let done = index * CHUNK;
            Error::io(format!("appending to `{path}` stopped after {done} of {} bytes: {reason}", content.len()))
        })?;
    }
    drop(stream);
    file.sync().map_err(explain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partial_file_is_beside_its_target_and_named_by_the_call() {
        let name = partial_name("a/b.md", "1");
        assert!(name.starts_with("a/.aok-") && name.ends_with(".partial"), "{name}");
        assert_eq!(name, partial_name("a/b.md", "1"));
        assert_ne!(name, partial_name("a/b.md", "2"));
        assert!(!partial_name("b.md", "1").contains('/'));
    }
}
