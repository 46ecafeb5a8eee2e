//! A private copy beside a plain directory under wasmtime-wasi: whatever a guest does, it sees the same.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use tempfile::TempDir;
use wasmtime::component::ResourceTable;
use wasmtime_wasi::p2::bindings::filesystem::preopens::Host as _;
use wasmtime_wasi::p2::bindings::filesystem::types::{
    DescriptorFlags, ErrorCode, HostDescriptor as _, HostDirectoryEntryStream, NewTimestamp, OpenFlags, PathFlags,
};
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxBuilder};

use super::*;
use crate::overlay::{Areas, Plan};
use crate::process::{Mount, ProcessSpec};

fn spec(mounts: Vec<Mount>) -> ProcessSpec {
    ProcessSpec { mounts, ..ProcessSpec::sample(1) }
}

fn mount(host: &Path) -> Mount {
    Mount { host: host.to_owned(), guest: "w".into(), writable: true, private: true }
}

/// A guest's side of a directory.
struct Guest {
    ctx: WasiCtx,
    table: ResourceTable,
    private: Private,
    root: Resource<Descriptor>,
}

type Told = Result<String, ErrorCode>;

impl Guest {
    fn plain(dir: &Path) -> Self {
        let ctx = WasiCtxBuilder::new().preopened_dir(dir, "w", FsPerms::ReadWrite).unwrap().build();
        Self::new(ctx, Private::default())
    }

    fn private(area: &Arc<Area>, dir: &Path) -> Self {
        let rights = Rights { mounts: vec![mount(dir)], ..Rights::default() };
        Self::new(WasiCtxBuilder::new().build(), Private::open(&rights, Some(area)).unwrap())
    }

    fn new(ctx: WasiCtx, private: Private) -> Self {
        let mut guest = Self { ctx, table: ResourceTable::new(), private, root: Resource::new_own(0) };
        let mut all = guest.files().get_directories().unwrap();
        assert_eq!(all.len(), 1);
        guest.root = all.remove(0).0;
        guest
    }

    fn files(&mut self) -> Files<'_> {
        Files::new(WasiFilesystemCtxView { ctx: self.ctx.filesystem(), table: &mut self.table }, &self.private)
    }

    fn close(&mut self, fd: Resource<Descriptor>) {
        types::HostDescriptor::drop(&mut self.files(), fd).unwrap();
    }

    fn root(&self) -> Resource<Descriptor> {
        Resource::new_borrow(self.root.rep())
    }

    async fn open(
        &mut self,
        path: &str,
        follow: bool,
        open: OpenFlags,
        flags: DescriptorFlags,
    ) -> FsResult<Resource<Descriptor>> {
        let root = self.root();
        self.files().open_at(root, follows(follow), path.into(), open, flags).await
    }

    async fn act(&mut self, act: &Act) -> Told {
        self.attempt(act).await.map_err(|e| e.downcast().unwrap())
    }

    async fn attempt(&mut self, act: &Act) -> FsResult<String> {
        let root = self.root();
        let other = self.root();
        match act.clone() {
            Act::Write { path, follow, open, offset, text } => {
                let fd = self.open(&path, follow, open, DescriptorFlags::WRITE).await?;
                let written = self.files().write(retyped(&fd), text.into_bytes(), offset).await;
                self.close(fd);
                Ok(format!("{}", written?))
            }
            Act::Append { path, text } => {
                let fd = self.open(&path, true, OpenFlags::CREATE, DescriptorFlags::WRITE).await?;
                let stream = self.files().append_via_stream(retyped(&fd))?;
                let written = self.table.get_mut(&stream).unwrap().blocking_write_and_flush(text.into()).await;
                self.table.delete(stream).unwrap();
                self.close(fd);
                Ok(format!("{}", written.is_ok()))
            }
            Act::Resize { path, size } => {
                let fd = self.open(&path, true, OpenFlags::empty(), DescriptorFlags::WRITE).await?;
                let done = self.files().set_size(retyped(&fd), size).await;
                self.close(fd);
                done.map(|()| String::new())
            }
            Act::Read { path, follow } => {
                let fd = self.open(&path, follow, OpenFlags::empty(), DescriptorFlags::READ).await?;
                let read = self.files().read(retyped(&fd), 100, 1).await;
                self.close(fd);
                read.map(|(bytes, end)| format!("{} {end}", String::from_utf8_lossy(&bytes)))
            }
            Act::Stat { path, follow } => {
                let stat = self.files().stat_at(root, follows(follow), path).await?;
                let size = if stat.type_ == types::DescriptorType::Directory { 0 } else { stat.size };
                Ok(format!("{:?} {size}", stat.type_))
            }
            Act::List { path } => self.list(&path).await,
            Act::MakeDir { path } => self.files().create_directory_at(root, path).await.map(|()| String::new()),
            Act::RemoveDir { path } => self.files().remove_directory_at(root, path).await.map(|()| String::new()),
            Act::Remove { path } => self.files().unlink_file_at(root, path).await.map(|()| String::new()),
            Act::Rename { path, to } => self.files().rename_at(root, path, other, to).await.map(|()| String::new()),
            Act::Link { path, to } => {
                self.files().link_at(root, PathFlags::empty(), path, other, to).await.map(|()| String::new())
            }
            Act::Symlink { target, path } => self.files().symlink_at(root, target, path).await.map(|()| String::new()),
            Act::ReadLink { path } => self.files().readlink_at(root, path).await,
            Act::Touch { path, follow } => {
                let at = NewTimestamp::Timestamp(Datetime { seconds: 1_000_000, nanoseconds: 5 });
                self.files().set_times_at(root, follows(follow), path.clone(), at, at).await?;
                let stat = self.files().stat_at(other, follows(follow), path).await?;
                Ok(format!("{:?}", stat.data_modification_timestamp))
            }
        }
    }

    async fn list(&mut self, path: &str) -> FsResult<String> {
        let fd = self.open(path, true, OpenFlags::DIRECTORY, DescriptorFlags::READ).await?;
        let stream = self.files().read_directory(retyped(&fd)).await?;
        let mut names = Vec::new();
        while let Some(entry) = self.files().read_directory_entry(retyped(&stream)).await? {
            names.push(format!("{} {:?}", entry.name, entry.type_));
        }
        HostDirectoryEntryStream::drop(&mut self.files(), stream).unwrap();
        self.close(fd);
        names.sort();
        Ok(names.join(", "))
    }
}

fn follows(follow: bool) -> PathFlags {
    if follow { PathFlags::SYMLINK_FOLLOW } else { PathFlags::empty() }
}

#[derive(Clone, Debug)]
enum Act {
    Write { path: String, follow: bool, open: OpenFlags, offset: u64, text: String },
    Append { path: String, text: String },
    Resize { path: String, size: u64 },
    Read { path: String, follow: bool },
    Stat { path: String, follow: bool },
    List { path: String },
    MakeDir { path: String },
    RemoveDir { path: String },
    Remove { path: String },
    Rename { path: String, to: String },
    Link { path: String, to: String },
    Symlink { target: String, path: String },
    ReadLink { path: String },
    Touch { path: String, follow: bool },
}

impl Act {
    fn name(&self) -> String {
        format!("{self:?}").split(' ').next().unwrap_or_default().to_owned()
    }
}

fn a_path(rng: &mut StdRng, known: &[String]) -> String {
    if rng.random_bool(0.6)
        && let Some(path) = known.choose(rng)
    {
        return path.trim_start_matches('/').to_owned();
    }
    let names = ["a", "b", "c", "d", "e"];
    let mut path = Vec::new();
    for _ in 0..rng.random_range(1..=3) {
        path.push(if rng.random_bool(0.04) { ".." } else { *names.choose(rng).unwrap() });
    }
    path.join("/")
}

fn an_act(rng: &mut StdRng, known: &[String]) -> Act {
    let (path, to, follow) = (a_path(rng, known), a_path(rng, &[]), rng.random_bool(0.7));
    let text = format!("text {}", rng.random_range(0..100));
    match rng.random_range(0..17) {
        0..3 => {
            let open = [
                OpenFlags::CREATE,
                OpenFlags::CREATE | OpenFlags::TRUNCATE,
                OpenFlags::CREATE | OpenFlags::EXCLUSIVE,
                OpenFlags::TRUNCATE,
                OpenFlags::empty(),
            ];
            Act::Write { path, follow, open: *open.choose(rng).unwrap(), offset: rng.random_range(0..3), text }
        }
        3 => Act::Append { path, text },
        4 => Act::Resize { path, size: rng.random_range(0..20) },
        5 => Act::Read { path, follow },
        6 => Act::Stat { path, follow },
        7 => Act::List { path: if follow { path } else { ".".into() } },
        8..10 => Act::MakeDir { path },
        10 => Act::RemoveDir { path },
        11 => Act::Remove { path },
        12..14 => Act::Rename { path, to },
        14 => Act::Link { path, to },
        15 => Act::Symlink { target: if rng.random_bool(0.2) { format!("../{to}") } else { to }, path },
        _ if follow => Act::ReadLink { path },
        _ => Act::Touch { path, follow: true },
    }
}

/// What was there before: nested directories, and links that are good, dangling, circular and forbidden.
fn populate(dir: &Path, rng: &mut StdRng) {
    for path in ["a", "a/b", "b", "b/c", "b/c/d"] {
        if rng.random_bool(0.8) {
            let _ = fs::create_dir(dir.join(path));
        }
    }
    for path in ["a/a", "a/b/c", "b/a", "b/c/e", "c", "a/c"] {
        if rng.random_bool(0.7) {
            let _ = fs::write(dir.join(path), format!("old {path}"));
        }
    }
    for (target, path) in
        [("a", "d"), ("b/c", "a/d"), ("../b", "a/e"), ("e", "e"), ("/etc", "b/e"), ("../../x", "b/d"), ("no", "b/b")]
    {
        if rng.random_bool(0.3) {
            let _ = symlink(target, dir.join(path));
        }
    }
}

/// Every entry below a directory, with its content.
fn tree(dir: &Path) -> BTreeMap<String, String> {
    fn below(dir: &Path, path: &str, found: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let path = format!("{path}/{}", entry.file_name().to_str().unwrap());
            let kind = entry.file_type().unwrap();
            let what = if kind.is_dir() {
                below(&entry.path(), &path, found);
                "directory".to_owned()
            } else if kind.is_symlink() {
                format!("-> {}", fs::read_link(entry.path()).unwrap().display())
            } else {
                fs::read_to_string(entry.path()).unwrap()
            };
            found.insert(path, what);
        }
    }
    let mut found = BTreeMap::new();
    below(dir, "", &mut found);
    found
}

/// What a guest sees below a directory.
async fn seen(guest: &mut Guest) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![".".to_owned()];
    while let Some(dir) = open.pop() {
        let list = guest.list(&dir).await.unwrap();
        for entry in list.split(", ").filter(|e| !e.is_empty()) {
            let (name, kind) = entry.split_once(' ').unwrap();
            let path = format!("{dir}/{name}");
            let what = match kind {
                "DescriptorType::Directory" => {
                    open.push(path.clone());
                    "directory".to_owned()
                }
                "DescriptorType::SymbolicLink" => match guest.act(&Act::ReadLink { path: path.clone() }).await {
                    Ok(target) => format!("-> {target}"),
                    Err(code) => format!("-> {code:?}"),
                },
                _ => {
                    let fd = guest.open(&path, false, OpenFlags::empty(), DescriptorFlags::READ).await.unwrap();
                    let (bytes, _) = guest.files().read(retyped(&fd), 4096, 0).await.unwrap();
                    guest.close(fd);
                    String::from_utf8(bytes).unwrap()
                }
            };
            found.insert(path, what);
        }
    }
    found
}

/// What was reached.
#[derive(Debug, Default)]
struct Tally {
    /// Acts that were done alike.
    alike: usize,
    /// Renames that were told to copy.
    across: usize,
    /// Copies that were applied.
    applied: usize,
    /// Refusals for another reason.
    other: BTreeMap<String, usize>,
}

async fn one_life(seed: u64, acts: usize, tally: &mut Tally) {
    let mut rng = StdRng::seed_from_u64(seed);
    let dir = TempDir::new().unwrap();
    let (original, plain, data) = (dir.path().join("o"), dir.path().join("p"), dir.path().join("data"));
    for side in [&original, &plain] {
        fs::create_dir(side).unwrap();
        populate(side, &mut StdRng::seed_from_u64(seed));
    }
    let before = tree(&original);
    let area = Areas::new(data.join("private")).open(&spec(vec![mount(&original)])).unwrap();
    let (mut ours, mut theirs) = (Guest::private(&area, &original), Guest::plain(&plain));
    let (mut log, mut known) = (Vec::new(), Vec::new());
    for n in 0..acts {
        if n % 4 == 0 {
            known = tree(&plain).into_keys().collect();
        }
        let act = an_act(&mut rng, &known);
        log.push(format!("{act:?}"));
        let got = ours.act(&act).await;
        if matches!((&act, &got), (Act::Rename { .. }, Err(ErrorCode::CrossDevice))) {
            tally.across += 1;
            continue;
        }
        let expected = theirs.act(&act).await;
        let told = || format!("seed {seed}, act {n}: {act:?}\n{}\n{before:#?}", log.join("\n"));
        match (&got, &expected) {
            // Of two things that are wrong, either may be told.
            (Err(ours), Err(theirs)) => {
                if ours != theirs {
                    *tally
                        .other
                        .entry(format!("{} for {} of {}", ours.name(), theirs.name(), act.name()))
                        .or_default() += 1;
                }
            }
            _ => assert_eq!(got, expected, "{}", told()),
        }
        tally.alike += usize::from(got.is_ok());
        if n % 16 == 0 || n + 1 == acts {
            assert_eq!(seen(&mut ours).await, seen(&mut theirs).await, "seed {seed}, act {n}\n{}", log.join("\n"));
        }
        // As each call of a tool, from what is on the disk.
        if rng.random_bool(0.1) {
            ours = Guest::private(&area, &original);
        }
    }
    assert_eq!(tree(&original), before, "seed {seed}: the original changed");
    let overlays = crate::overlay::Overlay::all(&area, &[mount(&original)]).unwrap();
    let plan = Plan::new(&area, overlays, &[]).unwrap();
    let refused: Vec<_> = plan.steps().iter().filter_map(|s| s.change().conflict.clone()).collect();
    if !refused.is_empty() {
        assert!(refused.iter().all(|why| why.contains("leads out")), "seed {seed}: {refused:?}\n{}", log.join("\n"));
        return;
    }
    plan.carry_out().unwrap_or_else(|e| panic!("seed {seed}: {e}\n{}\n{before:#?}", log.join("\n")));
    assert_eq!(tree(&original), tree(&plain), "seed {seed}\n{}", log.join("\n"));
    assert!(!area.dir().exists(), "seed {seed}: what is applied is still kept");
    tally.applied += 1;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(clippy::print_stderr, reason = "the seed and what was reached are the figures of this test")]
async fn whatever_a_guest_does_it_sees_what_a_plain_directory_would_show() {
    let first: u64 = std::env::var("AOK_TEST_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    let mut tally = Tally::default();
    for seed in (0..100).map(|n| first.wrapping_add(n)) {
        one_life(seed, 80, &mut tally).await;
    }
    eprintln!("AOK_TEST_SEED={first}: {tally:?}");
    assert!(tally.alike > 1_000 && tally.applied > 40, "seed {first}: too little was done to prove anything");
    let other: usize = tally.other.values().sum();
    assert!(other < tally.alike / 50, "seed {first}: {:?}", tally.other);
}

/// A directory with a file `f` in a folder `d`, and a guest that sees a private copy of it.
fn lab() -> (TempDir, Guest) {
    let dir = TempDir::new().unwrap();
    let original = dir.path().join("o");
    fs::create_dir_all(original.join("d")).unwrap();
    fs::write(original.join("d/f"), "old").unwrap();
    let area = Areas::new(dir.path().join("data/private")).open(&spec(vec![mount(&original)])).unwrap();
    let guest = Guest::private(&area, &original);
    (dir, guest)
}

fn told<T: std::fmt::Debug>(result: FsResult<T>) -> ErrorCode {
    result.unwrap_err().downcast().unwrap()
}

#[tokio::test]
async fn no_guest_fills_the_disk() {
    const TOO_MUCH: u64 = (4 << 30) + 1;
    let (dir, mut guest) = lab();
    let fd = guest.open("d/f", true, OpenFlags::empty(), DescriptorFlags::WRITE).await.unwrap();
    let full = |code: ErrorCode| assert_eq!(code, ErrorCode::InsufficientSpace);
    full(told(guest.files().set_size(retyped(&fd), TOO_MUCH).await));
    full(told(guest.files().write(retyped(&fd), vec![1], TOO_MUCH).await));
    full(told(guest.files().write(retyped(&fd), vec![1], u64::MAX - 1).await));
    let stream = guest.files().write_via_stream(retyped(&fd), TOO_MUCH).unwrap();
    let written = guest.table.get_mut(&stream).unwrap().write(vec![1].into());
    let wasmtime_wasi::p2::StreamError::LastOperationFailed(error) = written.unwrap_err() else { panic!("no reason") };
    let error = guest.table.push(error).unwrap();
    let code = types::Host::filesystem_error_code(&mut guest.files(), error).unwrap();
    assert_eq!(code, Some(ErrorCode::InsufficientSpace));
    // What fits is written as if nothing had been asked.
    assert_eq!(guest.files().write(retyped(&fd), b"new".to_vec(), 0).await.unwrap(), 3);
    let upper = fs::metadata(dir.path().join("data/private/1/0/upper/d/f")).unwrap();
    assert_eq!(upper.len(), 3);
    let mut session = Session::detached(1_000);
    guest.private.report(&mut session);
    let lines = session.end(true).lines;
    assert!(lines.len() == 1 && lines[0].message.contains("4096 MiB in 100000 files"), "{lines:?}");
}

#[tokio::test]
async fn wasmtime_wasi_takes_no_descriptor_of_a_private_mount() {
    let (dir, mut guest) = lab();
    let fd = guest.open("d/f", true, OpenFlags::empty(), DescriptorFlags::READ).await.unwrap();
    let root = guest.root();
    let mut wasi = WasiFilesystemCtxView { ctx: guest.ctx.filesystem(), table: &mut guest.table };
    for fd in [root, retyped(&fd)] {
        // Not an error that a guest could read, but the end of its call.
        assert!(wasi.stat(retyped(&fd)).await.unwrap_err().downcast().is_err());
        assert!(wasi.unlink_file_at(fd, "d/f".into()).await.unwrap_err().downcast().is_err());
    }
    assert!(dir.path().join("o/d/f").exists());
}

#[tokio::test]
async fn an_open_original_is_never_written() {
    let (dir, mut guest) = lab();
    let fd = guest.open("d/f", true, OpenFlags::empty(), DescriptorFlags::READ).await.unwrap();
    let at = NewTimestamp::Timestamp(Datetime { seconds: 7, nanoseconds: 0 });
    let before = fs::metadata(dir.path().join("o/d/f")).unwrap().modified().unwrap();
    assert_eq!(told(guest.files().write(retyped(&fd), b"new".to_vec(), 0).await), ErrorCode::NotPermitted);
    assert_eq!(told(guest.files().set_size(retyped(&fd), 0).await), ErrorCode::NotPermitted);
    assert!(guest.files().write_via_stream(retyped(&fd), 0).is_err());
    assert!(guest.files().append_via_stream(retyped(&fd)).is_err());
    guest.files().set_times(retyped(&fd), at, at).await.unwrap();
    let root = guest.root();
    guest.files().set_times(root, at, at).await.unwrap();
    assert_eq!(fs::metadata(dir.path().join("o/d/f")).unwrap().modified().unwrap(), before);
    let stat = guest.act(&Act::Touch { path: "d/f".into(), follow: true }).await.unwrap();
    assert!(stat.contains("1000000"), "{stat}");
}

#[tokio::test]
async fn an_open_directory_goes_along_when_it_is_renamed() {
    let (_dir, mut guest) = lab();
    for path in ["new", "new/sub"] {
        guest.act(&Act::MakeDir { path: path.into() }).await.unwrap();
    }
    let sub = guest.open("new/sub", true, OpenFlags::DIRECTORY, DescriptorFlags::READ).await.unwrap();
    guest.act(&Act::Rename { path: "new".into(), to: "d/moved".into() }).await.unwrap();
    guest.files().create_directory_at(retyped(&sub), "x".into()).await.unwrap();
    assert_eq!(guest.list("d/moved/sub").await.unwrap(), "x DescriptorType::Directory");
    let again = guest.open("d/moved/sub", true, OpenFlags::DIRECTORY, DescriptorFlags::READ).await.unwrap();
    assert!(guest.files().is_same_object(retyped(&sub), retyped(&again)).await.unwrap());
    let hash = guest.files().metadata_hash(retyped(&sub)).await.unwrap();
    let root = guest.root();
    let at = guest.files().metadata_hash_at(root, PathFlags::empty(), "d/moved/sub".into()).await.unwrap();
    assert_eq!((hash.lower, hash.upper), (at.lower, at.upper));
}
