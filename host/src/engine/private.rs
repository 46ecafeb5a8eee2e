//! `wasi:filesystem` over private copies, in front of wasmtime-wasi's own.
//!
//! A descriptor of a private mount is an entry of another type in the store's table. What has another type is
//! handed on to wasmtime-wasi, and wasmtime-wasi has no function, of WASI 0.2 or 0.3, that takes one of ours: it
//! would end the call. Bytes of open files are read and written by wasmtime-wasi, and so are streams.

mod descriptor;
mod stream;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::io::Errno;
use wasmtime::component::{HasData, Linker, Resource};
use wasmtime_wasi::filesystem::{Descriptor, File, WasiFilesystemCtxView};
use wasmtime_wasi::p2::bindings::clocks::wall_clock::Datetime;
use wasmtime_wasi::p2::bindings::filesystem::{preopens, types};
use wasmtime_wasi::p2::{FsError, FsResult};

use crate::capability::Rights;
use crate::overlay::{Area, Held, Kind, Overlay, Stat};
use crate::tool::Session;

/// The mounts of which a call sees a private copy.
#[derive(Debug, Default)]
pub(super) struct Private(Vec<Arc<Overlay>>);

impl Private {
    /// Opens the private mounts of a call.
    ///
    /// # Errors
    /// The directory that can no longer be opened.
    pub(super) fn open(rights: &Rights, area: Option<&Arc<Area>>) -> Result<Self, String> {
        let Some(area) = area else {
            // Whoever grants one gives its place, too: without it nothing is written anywhere.
            return match rights.mounts.iter().find(|mount| mount.is_private()) {
                Some(mount) => Err(format!("the directory {} has no place for its private copy", mount.host.display())),
                None => Ok(Self::default()),
            };
        };
        let opened = Overlay::all(area, &rights.mounts);
        let opened = opened.map_err(|(dir, e)| format!("the directory {} cannot be opened: {e}", dir.display()))?;
        Ok(Self(opened.into_iter().map(Arc::new).collect()))
    }

    /// Logs that there was no room, if there was none.
    pub(super) fn report(&self, session: &mut Session) {
        if let Some(line) = self.0.first().and_then(|overlay| overlay.area().refusal()) {
            // A call that used its log up has said enough.
            let _ = session.log("warn", line);
        }
    }
}

/// A store whose guest may have private mounts.
pub(super) trait PrivateView: Send {
    fn files(&mut self) -> Files<'_>;
}

/// A borrowed view of a store for its files.
pub(super) struct Files<'a> {
    wasi: WasiFilesystemCtxView<'a>,
    private: &'a Private,
}

impl<'a> Files<'a> {
    pub(super) fn new(wasi: WasiFilesystemCtxView<'a>, private: &'a Private) -> Self {
        Self { wasi, private }
    }
}

struct HasFiles;

impl HasData for HasFiles {
    type Data<'a> = Files<'a>;
}

/// Puts this in front of wasmtime-wasi's file system, which must be linked already.
pub(super) fn link<T: PrivateView + 'static>(linker: &mut Linker<T>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    types::add_to_linker::<T, HasFiles>(linker, T::files)?;
    preopens::add_to_linker::<T, HasFiles>(linker, T::files)?;
    linker.allow_shadowing(false);
    Ok(())
}

/// A descriptor of a private mount.
#[derive(Clone)]
enum Node {
    Directory(Directory),
    File(OpenFile),
}

#[derive(Clone)]
struct Directory {
    overlay: Arc<Overlay>,
    /// From the mount's root, without links.
    path: PathBuf,
    preopened: bool,
}

#[derive(Clone)]
struct OpenFile {
    overlay: Arc<Overlay>,
    path: PathBuf,
    file: File,
    /// Of a file in the copy; none of an original, which is open to be read.
    held: Option<Arc<Held>>,
}

impl Directory {
    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.overlay, &other.overlay)
    }
}

/// A resource of the table under the type that it really has.
fn retyped<T: 'static, U: 'static>(resource: &Resource<T>) -> Resource<U> {
    Resource::new_borrow(resource.rep())
}

fn owned<T: 'static, U: 'static>(resource: &Resource<T>) -> Resource<U> {
    Resource::new_own(resource.rep())
}

impl Files<'_> {
    /// What a descriptor is, if it is one of a private mount.
    fn node(&self, fd: &Resource<Descriptor>) -> Option<&Node> {
        if self.private.0.is_empty() {
            return None;
        }
        self.wasi.table.get(&retyped::<_, Node>(fd)).ok()
    }

    /// The same of one that must be a directory.
    fn directory(&self, fd: &Resource<Descriptor>) -> FsResult<Option<Directory>> {
        match self.node(fd) {
            None => Ok(None),
            Some(Node::Directory(directory)) => Ok(Some(directory.clone())),
            Some(Node::File(_)) => Err(types::ErrorCode::NotDirectory.into()),
        }
    }

    /// The two directories of an operation on both. One mount's entries cannot get into another.
    fn both(
        &self,
        one: &Resource<Descriptor>,
        other: &Resource<Descriptor>,
    ) -> FsResult<Option<(Directory, Directory)>> {
        match (self.directory(one)?, self.directory(other)?) {
            (None, None) => Ok(None),
            (Some(one), Some(other)) if one.is(&other) => Ok(Some((one, other))),
            _ => Err(types::ErrorCode::CrossDevice.into()),
        }
    }

    /// Tells open directories that one above them has another name.
    fn moved(&mut self, overlay: &Arc<Overlay>, from: &Path, to: &Path) {
        let nodes = self.wasi.table.iter_mut().filter_map(|entry| (entry as &mut dyn std::any::Any).downcast_mut());
        for node in nodes {
            let (of, path) = match node {
                Node::Directory(directory) => (&directory.overlay, &mut directory.path),
                Node::File(file) => (&file.overlay, &mut file.path),
            };
            if Arc::ptr_eq(of, overlay)
                && let Ok(rest) = path.strip_prefix(from)
            {
                *path = if rest.as_os_str().is_empty() { to.to_owned() } else { to.join(rest) };
            }
        }
    }
}

/// Does what may wait for the disk on a thread where that holds nobody up.
async fn blocking<R: Send + 'static>(work: impl FnOnce() -> io::Result<R> + Send + 'static) -> FsResult<R> {
    wasmtime_wasi::runtime::spawn_blocking(work).await.map_err(code)
}

/// wasmtime-wasi takes for `io` what only we answer.
fn code(error: io::Error) -> FsError {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::XDEV) => types::ErrorCode::CrossDevice.into(),
        Some(Errno::ROFS) => types::ErrorCode::ReadOnly.into(),
        Some(Errno::DQUOT) => types::ErrorCode::Quota.into(),
        _ => error.into(),
    }
}

fn kind(kind: Kind) -> types::DescriptorType {
    match kind {
        Kind::File => types::DescriptorType::RegularFile,
        Kind::Directory => types::DescriptorType::Directory,
        Kind::Link => types::DescriptorType::SymbolicLink,
        Kind::Other => types::DescriptorType::Unknown,
    }
}

fn stat(stat: &Stat) -> types::DescriptorStat {
    let [accessed, modified, changed] = stat.times.map(|time| time.and_then(datetime));
    types::DescriptorStat {
        type_: kind(stat.kind),
        link_count: stat.links,
        size: stat.size,
        data_access_timestamp: accessed,
        data_modification_timestamp: modified,
        status_change_timestamp: changed,
    }
}

fn datetime(time: SystemTime) -> Option<Datetime> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(Datetime { seconds: since.as_secs(), nanoseconds: since.subsec_nanos() })
}

fn timestamp(time: types::NewTimestamp) -> FsResult<Option<SystemTime>> {
    match time {
        types::NewTimestamp::NoChange => Ok(None),
        types::NewTimestamp::Now => Ok(Some(SystemTime::now())),
        types::NewTimestamp::Timestamp(Datetime { seconds, nanoseconds }) => {
            let since = Duration::from_secs(seconds).checked_add(Duration::from_nanos(nanoseconds.into()));
            let time = since.and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since));
            time.map(Some).ok_or_else(|| types::ErrorCode::Overflow.into())
        }
    }
}

#[cfg(test)]
mod tests;
