//! The functions of `wasi:filesystem`: those of a private mount here, all others by wasmtime-wasi.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::Path;
use std::sync::Arc;
use std::vec;

use wasmtime::component::Resource;
use wasmtime_wasi::filesystem::{Descriptor, File};
use wasmtime_wasi::p2::bindings::filesystem::preopens;
use wasmtime_wasi::p2::bindings::filesystem::types::{
    self, DescriptorFlags, ErrorCode, HostDescriptor, HostDirectoryEntryStream, OpenFlags, PathFlags,
};
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, FsError, FsResult, ReaddirIterator};
use wasmtime_wasi::{FsPerms, OpenMode};

use super::stream::{Reading, Writing};
use super::{Directory, Files, Node, OpenFile, blocking, kind, owned, retyped, stat, timestamp};
use crate::overlay::{How, Opened, Stat};

/// The entries of a private directory that were not read yet.
struct Listing(vec::IntoIter<FsResult<types::DirectoryEntry>>);

impl preopens::Host for Files<'_> {
    fn get_directories(&mut self) -> wasmtime::Result<Vec<(Resource<Descriptor>, String)>> {
        let mut all = preopens::Host::get_directories(&mut self.wasi)?;
        for overlay in &self.private.0 {
            let root = Directory { overlay: Arc::clone(overlay), path: "".into(), preopened: true };
            let fd = self.wasi.table.push(Node::Directory(root))?;
            all.push((owned(&fd), overlay.guest().to_owned()));
        }
        Ok(all)
    }
}

impl types::Host for Files<'_> {
    fn convert_error_code(&mut self, err: FsError) -> wasmtime::Result<ErrorCode> {
        types::Host::convert_error_code(&mut self.wasi, err)
    }

    fn filesystem_error_code(&mut self, err: Resource<wasmtime::Error>) -> wasmtime::Result<Option<ErrorCode>> {
        types::Host::filesystem_error_code(&mut self.wasi, err)
    }
}

/// Lends an open file of a private mount to wasmtime-wasi as a descriptor of its own, for one call.
macro_rules! lent {
    ($self:ident, $file:expr, |$fd:ident| $call:expr) => {{
        let lent = $self.wasi.table.push(Descriptor::File($file))?;
        let $fd = retyped(&lent);
        let result = $call;
        $self.wasi.table.delete(lent)?;
        result
    }};
}

impl Files<'_> {
    /// The open file that a descriptor is; a directory is none.
    fn file(&self, fd: &Resource<Descriptor>) -> FsResult<Option<OpenFile>> {
        match self.node(fd) {
            None => Ok(None),
            Some(Node::File(file)) => Ok(Some(file.clone())),
            Some(Node::Directory(_)) => Err(ErrorCode::BadDescriptor.into()),
        }
    }

    fn output(&mut self, file: OpenFile, position: Option<u64>) -> FsResult<Resource<DynOutputStream>> {
        let stream = lent!(self, file.file.clone(), |fd| match position {
            Some(position) => self.wasi.write_via_stream(fd, position),
            None => self.wasi.append_via_stream(fd),
        })?;
        let Some(held) = file.held else { return Ok(stream) };
        let end = Stat::of(&file.file.file)?.size;
        let stream = self.wasi.table.delete(stream)?;
        let writing = Writing { stream, held, position: position.unwrap_or(end), end };
        Ok(self.wasi.table.push(Box::new(writing) as DynOutputStream)?)
    }
}

impl HostDescriptor for Files<'_> {
    async fn advise(
        &mut self,
        fd: Resource<Descriptor>,
        offset: types::Filesize,
        len: types::Filesize,
        advice: types::Advice,
    ) -> FsResult<()> {
        match self.file(&fd)? {
            Some(file) => lent!(self, file.file, |fd| self.wasi.advise(fd, offset, len, advice).await),
            None => self.wasi.advise(fd, offset, len, advice).await,
        }
    }

    async fn sync_data(&mut self, fd: Resource<Descriptor>) -> FsResult<()> {
        match self.node(&fd).cloned() {
            Some(Node::Directory(dir)) => blocking(move || dir.overlay.sync_dir(&dir.path)).await,
            Some(Node::File(file)) => lent!(self, file.file, |fd| self.wasi.sync_data(fd).await),
            None => self.wasi.sync_data(fd).await,
        }
    }

    async fn sync(&mut self, fd: Resource<Descriptor>) -> FsResult<()> {
        match self.node(&fd).cloned() {
            Some(Node::Directory(dir)) => blocking(move || dir.overlay.sync_dir(&dir.path)).await,
            Some(Node::File(file)) => lent!(self, file.file, |fd| self.wasi.sync(fd).await),
            None => self.wasi.sync(fd).await,
        }
    }

    async fn get_flags(&mut self, fd: Resource<Descriptor>) -> FsResult<DescriptorFlags> {
        match self.node(&fd).cloned() {
            Some(Node::Directory(Directory { preopened: true, .. })) => {
                Ok(DescriptorFlags::READ | DescriptorFlags::MUTATE_DIRECTORY)
            }
            Some(Node::Directory(_)) => Ok(DescriptorFlags::READ),
            Some(Node::File(file)) => lent!(self, file.file, |fd| self.wasi.get_flags(fd).await),
            None => self.wasi.get_flags(fd).await,
        }
    }

    async fn get_type(&mut self, fd: Resource<Descriptor>) -> FsResult<types::DescriptorType> {
        match self.node(&fd) {
            Some(Node::Directory(_)) => Ok(types::DescriptorType::Directory),
            Some(Node::File(_)) => Ok(types::DescriptorType::RegularFile),
            None => self.wasi.get_type(fd).await,
        }
    }

    async fn set_size(&mut self, fd: Resource<Descriptor>, size: types::Filesize) -> FsResult<()> {
        let Some(file) = self.file(&fd)? else { return self.wasi.set_size(fd, size).await };
        let Some(held) = file.held else { return lent!(self, file.file, |fd| self.wasi.set_size(fd, size).await) };
        let old = Stat::of(&file.file.file)?.size;
        held.area().charge(size.saturating_sub(old), 0)?;
        let done = lent!(self, file.file, |fd| self.wasi.set_size(fd, size).await);
        let (less, more) = (old.saturating_sub(size), size.saturating_sub(old));
        held.area().give_back(if done.is_ok() { less } else { more }, 0);
        done
    }

    async fn set_times(
        &mut self,
        fd: Resource<Descriptor>,
        accessed: types::NewTimestamp,
        modified: types::NewTimestamp,
    ) -> FsResult<()> {
        let (overlay, path) = match self.node(&fd).cloned() {
            None => return self.wasi.set_times(fd, accessed, modified).await,
            Some(Node::File(OpenFile { file, held: Some(_), .. })) => {
                return lent!(self, file, |fd| self.wasi.set_times(fd, accessed, modified).await);
            }
            // An original: it is copied for that.
            Some(Node::File(OpenFile { overlay, path, .. }) | Node::Directory(Directory { overlay, path, .. })) => {
                (overlay, path)
            }
        };
        let times = [timestamp(accessed)?, timestamp(modified)?];
        blocking(move || {
            let path = path.to_str().filter(|p| !p.is_empty()).unwrap_or(".");
            overlay.set_times_at(Path::new(""), path, false, times)
        })
        .await
    }

    async fn read(
        &mut self,
        fd: Resource<Descriptor>,
        len: types::Filesize,
        offset: types::Filesize,
    ) -> FsResult<(Vec<u8>, bool)> {
        match self.file(&fd)? {
            Some(file) => lent!(self, file.file, |fd| self.wasi.read(fd, len, offset).await),
            None => self.wasi.read(fd, len, offset).await,
        }
    }

    async fn write(
        &mut self,
        fd: Resource<Descriptor>,
        buf: Vec<u8>,
        offset: types::Filesize,
    ) -> FsResult<types::Filesize> {
        let Some(file) = self.file(&fd)? else { return self.wasi.write(fd, buf, offset).await };
        let Some(held) = file.held else { return lent!(self, file.file, |fd| self.wasi.write(fd, buf, offset).await) };
        let old = Stat::of(&file.file.file)?.size;
        let more = offset.saturating_add(buf.len() as u64).saturating_sub(old);
        held.area().charge(more, 0)?;
        let done = lent!(self, file.file.clone(), |fd| self.wasi.write(fd, buf, offset).await);
        let grown = Stat::of(&file.file.file)?.size.saturating_sub(old);
        held.area().give_back(more.saturating_sub(grown), 0);
        done
    }

    async fn read_directory(&mut self, fd: Resource<Descriptor>) -> FsResult<Resource<ReaddirIterator>> {
        let Some(dir) = self.directory(&fd)? else { return self.wasi.read_directory(fd).await };
        let entries = blocking(move || dir.overlay.list(&dir.path)).await?;
        let entry = |(name, of): (std::ffi::OsString, _)| match name.into_string() {
            Ok(name) => Ok(types::DirectoryEntry { type_: kind(of), name }),
            Err(_) => Err(ErrorCode::IllegalByteSequence.into()),
        };
        let entries: Vec<_> = entries.into_iter().map(entry).collect();
        Ok(owned(&self.wasi.table.push(Listing(entries.into_iter()))?))
    }

    async fn create_directory_at(&mut self, fd: Resource<Descriptor>, path: String) -> FsResult<()> {
        match self.directory(&fd)? {
            Some(dir) => blocking(move || dir.overlay.make_dir_at(&dir.path, &path)).await,
            None => self.wasi.create_directory_at(fd, path).await,
        }
    }

    async fn stat(&mut self, fd: Resource<Descriptor>) -> FsResult<types::DescriptorStat> {
        match self.node(&fd).cloned() {
            Some(Node::Directory(dir)) => Ok(stat(&blocking(move || dir.overlay.stat_dir(&dir.path)).await?)),
            Some(Node::File(file)) => lent!(self, file.file, |fd| self.wasi.stat(fd).await),
            None => self.wasi.stat(fd).await,
        }
    }

    async fn stat_at(
        &mut self,
        fd: Resource<Descriptor>,
        flags: PathFlags,
        path: String,
    ) -> FsResult<types::DescriptorStat> {
        let Some(dir) = self.directory(&fd)? else { return self.wasi.stat_at(fd, flags, path).await };
        let follow = flags.contains(PathFlags::SYMLINK_FOLLOW);
        Ok(stat(&blocking(move || dir.overlay.stat_at(&dir.path, &path, follow)).await?))
    }

    async fn set_times_at(
        &mut self,
        fd: Resource<Descriptor>,
        flags: PathFlags,
        path: String,
        accessed: types::NewTimestamp,
        modified: types::NewTimestamp,
    ) -> FsResult<()> {
        let Some(dir) = self.directory(&fd)? else {
            return self.wasi.set_times_at(fd, flags, path, accessed, modified).await;
        };
        let (follow, times) = (flags.contains(PathFlags::SYMLINK_FOLLOW), [timestamp(accessed)?, timestamp(modified)?]);
        blocking(move || dir.overlay.set_times_at(&dir.path, &path, follow, times)).await
    }

    async fn link_at(
        &mut self,
        fd: Resource<Descriptor>,
        flags: PathFlags,
        path: String,
        to: Resource<Descriptor>,
        new: String,
    ) -> FsResult<()> {
        let Some((dir, into)) = self.both(&fd, &to)? else { return self.wasi.link_at(fd, flags, path, to, new).await };
        if flags.contains(PathFlags::SYMLINK_FOLLOW) {
            return Err(ErrorCode::Invalid.into());
        }
        blocking(move || dir.overlay.make_name_at(&dir.path, &path, &into.path, &new)).await
    }

    async fn open_at(
        &mut self,
        fd: Resource<Descriptor>,
        path_flags: PathFlags,
        path: String,
        open: OpenFlags,
        flags: DescriptorFlags,
    ) -> FsResult<Resource<Descriptor>> {
        let sync = DescriptorFlags::FILE_INTEGRITY_SYNC
            | DescriptorFlags::DATA_INTEGRITY_SYNC
            | DescriptorFlags::REQUESTED_WRITE_SYNC;
        let Some(dir) = self.directory(&fd)? else {
            return self.wasi.open_at(fd, path_flags, path, open, flags).await;
        };
        if flags.intersects(sync) {
            return Err(ErrorCode::Unsupported.into());
        }
        let how = how(path_flags, open, flags);
        let Directory { overlay, path: base, .. } = dir;
        let of = Arc::clone(&overlay);
        let (path, opened) = blocking(move || of.open_at(&base, &path, how)).await?;
        let node = match opened {
            Opened::Directory(path) => Node::Directory(Directory { overlay, path, preopened: false }),
            Opened::Lower(file) => {
                let file = File::new(file, FsPerms::ReadOnly, OpenMode::READ, false);
                Node::File(OpenFile { overlay, path, file, held: None })
            }
            Opened::Upper(file, held) => {
                let mut mode = OpenMode::empty();
                mode.set(OpenMode::READ, how.read);
                mode.set(OpenMode::WRITE, how.write || how.create || how.truncate);
                let file = File::new(file, FsPerms::ReadWrite, mode, false);
                let held = Some(held.by(&file.file));
                Node::File(OpenFile { overlay, path, file, held })
            }
        };
        Ok(owned(&self.wasi.table.push(node)?))
    }

    fn drop(&mut self, fd: Resource<Descriptor>) -> wasmtime::Result<()> {
        if self.node(&fd).is_some() {
            self.wasi.table.delete(owned::<_, Node>(&fd))?;
            return Ok(());
        }
        HostDescriptor::drop(&mut self.wasi, fd)
    }

    async fn readlink_at(&mut self, fd: Resource<Descriptor>, path: String) -> FsResult<String> {
        let Some(dir) = self.directory(&fd)? else { return self.wasi.readlink_at(fd, path).await };
        let target = blocking(move || dir.overlay.link_at(&dir.path, &path)).await?;
        if target.as_encoded_bytes().starts_with(b"/") {
            return Err(ErrorCode::NotPermitted.into());
        }
        target.into_string().map_err(|_| ErrorCode::IllegalByteSequence.into())
    }

    async fn remove_directory_at(&mut self, fd: Resource<Descriptor>, path: String) -> FsResult<()> {
        match self.directory(&fd)? {
            Some(dir) => blocking(move || dir.overlay.remove_dir_at(&dir.path, &path)).await,
            None => self.wasi.remove_directory_at(fd, path).await,
        }
    }

    async fn rename_at(
        &mut self,
        fd: Resource<Descriptor>,
        path: String,
        to: Resource<Descriptor>,
        new: String,
    ) -> FsResult<()> {
        let Some((dir, into)) = self.both(&fd, &to)? else { return self.wasi.rename_at(fd, path, to, new).await };
        let overlay = Arc::clone(&dir.overlay);
        let (from, to) = blocking(move || dir.overlay.rename_at(&dir.path, &path, &into.path, &new)).await?;
        self.moved(&overlay, &from, &to);
        Ok(())
    }

    async fn symlink_at(&mut self, fd: Resource<Descriptor>, target: String, path: String) -> FsResult<()> {
        match self.directory(&fd)? {
            Some(dir) => blocking(move || dir.overlay.make_link_at(&target, &dir.path, &path)).await,
            None => self.wasi.symlink_at(fd, target, path).await,
        }
    }

    async fn unlink_file_at(&mut self, fd: Resource<Descriptor>, path: String) -> FsResult<()> {
        match self.directory(&fd)? {
            Some(dir) => blocking(move || dir.overlay.remove_file_at(&dir.path, &path)).await,
            None => self.wasi.unlink_file_at(fd, path).await,
        }
    }

    fn read_via_stream(
        &mut self,
        fd: Resource<Descriptor>,
        offset: types::Filesize,
    ) -> FsResult<Resource<DynInputStream>> {
        let file = match self.node(&fd).cloned() {
            None => return self.wasi.read_via_stream(fd, offset),
            Some(Node::Directory(_)) => return Err(ErrorCode::IsDirectory.into()),
            Some(Node::File(file)) => file,
        };
        let stream = lent!(self, file.file, |fd| self.wasi.read_via_stream(fd, offset))?;
        let Some(held) = file.held else { return Ok(stream) };
        let stream = self.wasi.table.delete(stream)?;
        Ok(self.wasi.table.push(Box::new(Reading { stream, _held: held }) as DynInputStream)?)
    }

    fn write_via_stream(
        &mut self,
        fd: Resource<Descriptor>,
        offset: types::Filesize,
    ) -> FsResult<Resource<DynOutputStream>> {
        match self.file(&fd)? {
            Some(file) => self.output(file, Some(offset)),
            None => self.wasi.write_via_stream(fd, offset),
        }
    }

    fn append_via_stream(&mut self, fd: Resource<Descriptor>) -> FsResult<Resource<DynOutputStream>> {
        match self.file(&fd)? {
            Some(file) => self.output(file, None),
            None => self.wasi.append_via_stream(fd),
        }
    }

    async fn is_same_object(
        &mut self,
        one: Resource<Descriptor>,
        other: Resource<Descriptor>,
    ) -> wasmtime::Result<bool> {
        match (self.node(&one), self.node(&other)) {
            (None, None) => self.wasi.is_same_object(one, other).await,
            (Some(Node::Directory(one)), Some(Node::Directory(other))) => Ok(one.is(other) && one.path == other.path),
            (Some(Node::File(one)), Some(Node::File(other))) => {
                Ok(Stat::of(&one.file.file)?.object == Stat::of(&other.file.file)?.object)
            }
            _ => Ok(false),
        }
    }

    async fn metadata_hash(&mut self, fd: Resource<Descriptor>) -> FsResult<types::MetadataHashValue> {
        match self.node(&fd).cloned() {
            Some(Node::Directory(dir)) => Ok(hash(&blocking(move || dir.overlay.stat_dir(&dir.path)).await?)),
            Some(Node::File(file)) => Ok(hash(&Stat::of(&file.file.file)?)),
            None => self.wasi.metadata_hash(fd).await,
        }
    }

    async fn metadata_hash_at(
        &mut self,
        fd: Resource<Descriptor>,
        flags: PathFlags,
        path: String,
    ) -> FsResult<types::MetadataHashValue> {
        let Some(dir) = self.directory(&fd)? else { return self.wasi.metadata_hash_at(fd, flags, path).await };
        let follow = flags.contains(PathFlags::SYMLINK_FOLLOW);
        Ok(hash(&blocking(move || dir.overlay.stat_at(&dir.path, &path, follow)).await?))
    }
}

impl HostDirectoryEntryStream for Files<'_> {
    async fn read_directory_entry(
        &mut self,
        stream: Resource<ReaddirIterator>,
    ) -> FsResult<Option<types::DirectoryEntry>> {
        if let Ok(listing) = self.wasi.table.get_mut(&retyped::<_, Listing>(&stream)) {
            return listing.0.next().transpose();
        }
        self.wasi.read_directory_entry(stream).await
    }

    fn drop(&mut self, stream: Resource<ReaddirIterator>) -> wasmtime::Result<()> {
        if self.wasi.table.get(&retyped::<_, Listing>(&stream)).is_ok() {
            self.wasi.table.delete(owned::<_, Listing>(&stream))?;
            return Ok(());
        }
        HostDirectoryEntryStream::drop(&mut self.wasi, stream)
    }
}

fn how(path: PathFlags, open: OpenFlags, flags: DescriptorFlags) -> How {
    let write = flags.contains(DescriptorFlags::WRITE);
    How {
        follow: path.contains(PathFlags::SYMLINK_FOLLOW),
        create: open.contains(OpenFlags::CREATE),
        exclusive: open.contains(OpenFlags::EXCLUSIVE),
        truncate: open.contains(OpenFlags::TRUNCATE),
        directory: open.contains(OpenFlags::DIRECTORY),
        // As wasmtime-wasi has it: what is not opened to be written can be read.
        read: flags.contains(DescriptorFlags::READ) || !write,
        write,
    }
}

/// Which object it is, as wasmtime-wasi tells it.
fn hash(stat: &Stat) -> types::MetadataHashValue {
    let mut hasher = DefaultHasher::new();
    stat.object.hash(&mut hasher);
    let lower = hasher.finish();
    types::MetadataHashValue { lower, upper: lower ^ 4_614_256_656_552_045_848 }
}
