//! Compiled code on disk, by the component's digest and the engine's compatibility hash.
//!
//! Loading native code is the one unsafe act of this crate: the files are written by this program
//! into a directory that only its owner can enter, and each is checked against a digest stored with
//! it before it is loaded.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash as _, Hasher as _};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use sha2::{Digest as _, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

use crate::syscall::hex;

/// The cache directory, or none: then everything is compiled each time.
#[derive(Clone, Debug)]
pub(crate) struct CodeCache {
    dir: Option<PathBuf>,
    engine_key: u64,
}

/// The niceness of a thread that compiles: a quarter of a busy core, so that a first start on a busy machine
/// still comes to its end.
const COMPILER_NICE: i32 = 5;

/// Bytes of stack of a thread that compiles.
const COMPILER_STACK: usize = 16 << 20;

const DIGEST_BYTES: usize = 32;

impl CodeCache {
    /// Opens `dir`, creating it for its owner alone. A directory that others may write is refused.
    pub(crate) fn open(engine: &Engine, dir: Option<&Path>) -> io::Result<Self> {
        if let Some(dir) = dir {
            create_private(dir)?;
        }
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        Ok(Self { dir: dir.map(Path::to_owned), engine_key: hasher.finish() })
    }

    /// The component of `bytes`, from the cache or compiled and kept.
    pub(crate) fn component(&self, engine: &Engine, digest: &str, bytes: &[u8]) -> wasmtime::Result<Component> {
        let path = self.dir.as_ref().map(|d| d.join(format!("{digest}-{:016x}.cwasm", self.engine_key)));
        if let Some(component) = path.as_deref().and_then(|p| load(engine, p)) {
            return Ok(component);
        }
        let component = compilers()
            .map_or_else(|| Component::new(engine, bytes), |pool| pool.install(|| Component::new(engine, bytes)))?;
        if let Some(path) = path
            && let Err(e) = store(&path, &component.serialize()?)
        {
            tracing::warn!(path = %path.display(), "the compiled code cannot be cached: {e}");
        }
        Ok(component)
    }
}

/// The threads that compile: of a low priority, and one fewer than there are cores, so that however much there is to
/// compile, what runs already goes on at its speed. A low priority alone is not enough: who wakes up waits for the end of
/// a compiler's turn on the core where it is. `None` where the system has no more threads.
fn compilers() -> Option<&'static rayon::ThreadPool> {
    static POOL: OnceLock<Option<rayon::ThreadPool>> = OnceLock::new();
    let pool = POOL.get_or_init(|| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(cores.saturating_sub(1).max(1))
            // While one compile waits for its parts, its thread may begin another on top of it.
            .stack_size(COMPILER_STACK)
            .thread_name(|n| format!("aok-compile-{n}"))
            .start_handler(|_| {
                // On Linux this is about the calling thread alone. One that keeps its priority compiles as well.
                let _ = rustix::process::setpriority_process(None, COMPILER_NICE);
            })
            .build();
        pool.map_err(|e| tracing::warn!("compiling has no threads of its own: {e}")).ok()
    });
    pool.as_ref()
}

fn load(engine: &Engine, path: &Path) -> Option<Component> {
    let file = fs::read(path).ok()?;
    let (digest, code) = file.split_at_checked(DIGEST_BYTES)?;
    if Sha256::digest(code)[..] != *digest {
        tracing::warn!(path = %path.display(), "a damaged file of the code cache is ignored and written again");
        return None;
    }
    // SAFETY: the bytes are an artefact of `Component::serialize` that `store` below wrote whole: the
    // directory admits its owner only (`create_private` checks), and the digest in front of the code
    // matches. wasmtime itself refuses artefacts of another version or configuration.
    #[expect(unsafe_code, reason = "wasmtime marks loading of native code unsafe; argued above")]
    let component = unsafe { Component::deserialize(engine, code) };
    component.map_err(|e| tracing::warn!(path = %path.display(), "cached code is not used: {e}")).ok()
}

/// Writes digest and code to a file of its own and renames it, so that no reader sees half of it.
fn store(path: &Path, code: &[u8]) -> io::Result<()> {
    let partial = path.with_extension(format!("{}.part", std::process::id()));
    let mut bytes = Vec::with_capacity(DIGEST_BYTES + code.len());
    bytes.extend_from_slice(&Sha256::digest(code));
    bytes.extend_from_slice(code);
    fs::write(&partial, bytes)?;
    fs::rename(&partial, path)
}

/// Creates `dir` for its owner alone, or checks that it is so.
fn create_private(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let meta = owned(dir)?;
    if meta.permissions().mode() & 0o077 != 0 {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Checks that `dir` is a directory of the same owner as the one that it is in.
fn owned(dir: &Path) -> io::Result<fs::Metadata> {
    use std::os::unix::fs::MetadataExt as _;
    let meta = fs::symlink_metadata(dir)?;
    if !meta.is_dir() {
        return Err(io::Error::other(format!("{} is no directory", dir.display())));
    }
    let parent_owner = dir.parent().and_then(|p| fs::metadata(p).ok()).map(|m| m.uid());
    if parent_owner.is_some_and(|uid| uid != meta.uid()) {
        return Err(io::Error::other(format!("{} belongs to another user than the directory it is in", dir.display())));
    }
    Ok(meta)
}

/// Compiled components in `dir`, and their bytes; `None` where it does not exist.
pub(super) fn contents(dir: &Path) -> io::Result<Option<(u64, u64)>> {
    match owned(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut sum = (0, 0);
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "cwasm") {
            // One that is gone by now does not count.
            let bytes = fs::metadata(&path).map_or(0, |m| m.len());
            sum = (sum.0 + 1, sum.1 + bytes);
        }
    }
    Ok(Some(sum))
}

/// SHA-256 of a component, hex.
pub(crate) fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}
