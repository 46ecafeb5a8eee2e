//! What is on the disk: the data directory, its lock, the store, the cache of compiled code.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::super::info::Check;
use super::super::lock::{Holder, Lock};
use super::{count, text};
use crate::config::Durability;
use crate::engine;
use crate::storage::{self, Standing, Store};

const OTHER_DATA: &str = "or use another `--data`";

pub(super) fn data_directory(data: &Path) -> Check {
    const CHECK: &str = "data directory";
    let shown = data.display();
    let failed = |what: String, e: &io::Error| Check::fail(CHECK, format!("{what}: {e}"), access(e, data));
    match std::fs::metadata(data) {
        Ok(meta) if !meta.is_dir() => {
            Check::fail(CHECK, format!("{shown} is no directory"), format!("move it away, {OTHER_DATA}"))
        }
        Ok(_) => match writable(data) {
            Ok(()) => Check::ok(CHECK, shown.to_string()),
            Err(e) => failed(format!("{shown} cannot be written"), &e),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let there = data.ancestors().skip(1).find(|dir| dir.exists()).unwrap_or(Path::new("/"));
            match writable(there) {
                Ok(()) => Check::ok(CHECK, format!("{shown} is not there yet: the first run makes it")),
                Err(e) => failed(format!("{shown} is not there and cannot be made in {}", there.display()), &e),
            }
        }
        Err(e) => failed(format!("{shown} cannot be used"), &e),
    }
}

/// Whether a file can be made in `dir` and has room for a little; it is removed again.
fn writable(dir: &Path) -> io::Result<()> {
    let probe = dir.join(format!(".aok-doctor-{}", std::process::id()));
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).open(&probe)?;
    let written = file.write_all(&[0; 4096]).and_then(|()| file.sync_all());
    std::fs::remove_file(&probe).and(written)
}

/// What to do about a directory or file that cannot be used.
pub(super) fn access(e: &io::Error, path: &Path) -> String {
    use io::ErrorKind as K;
    let path = path.display();
    match e.kind() {
        K::PermissionDenied => format!("give yourself access: chmod u+rwX {path} (or chown), {OTHER_DATA}"),
        K::ReadOnlyFilesystem => format!("{path} is on a disk that cannot be written: use another `--data`"),
        K::StorageFull | K::QuotaExceeded => format!("free some space for {path}, {OTHER_DATA}"),
        _ => format!("check {path}, {OTHER_DATA}"),
    }
}

pub(super) fn lock(data: &Path) -> Check {
    let holder = match Lock::holder(data) {
        Ok(holder) => holder,
        Err(e) => {
            let path = data.join("lock");
            return Check::fail("lock", format!("{} cannot be used: {e}", path.display()), access(&e, &path));
        }
    };
    match holder {
        Holder::Nobody(None) => Check::ok("lock", "free"),
        Holder::Nobody(Some(pid)) => Check::ok("lock", format!("free; process {pid} had it last")),
        Holder::Process(pid) => {
            let who = if pid == 0 { "a process".to_owned() } else { format!("process {pid}") };
            Check::fail(
                "lock",
                format!("held by {who}, which does not answer on its socket"),
                format!("if it is starting, try again in a moment; else end {who}, {OTHER_DATA}"),
            )
        }
    }
}

/// A store that no kernel of ours has open.
pub(super) async fn store(url: &str, durability: Durability) -> Check {
    let survives = survives(url, durability);
    let standing = match Store::standing(url).await {
        Ok(standing) => standing,
        Err(e) => return store_failed(url, &e),
    };
    if let Some(path) = url.strip_prefix("sqlite:").map(Path::new)
        && let Err((path, e)) = can_write(path)
    {
        return Check::fail("store", format!("{} cannot be written: {e}", path.display()), access(&e, &path));
    }
    match standing {
        None => Check::warn(
            "store",
            survives,
            "leave `[storage] url` out of aok.toml to keep processes in the data directory",
        ),
        Some(Standing::Absent) => Check::ok("store", format!("{url} is not there yet; {survives}")),
        Some(Standing::Older { found, known }) => {
            let what = format!("{url} has schema {found}: the next run brings it to {known}; {survives}");
            Check::ok("store", what)
        }
        Some(Standing::Current { version }) => match read(url).await {
            Ok((all, left)) => {
                let what = processes(all, 0, left);
                Check::ok("store", format!("{url}, schema {version}, {what}; {survives}"))
            }
            Err(e) => store_failed(url, &e),
        },
    }
}

/// How many processes a store has, and how many of them are unfinished.
async fn read(url: &str) -> Result<(usize, usize), storage::Error> {
    let store = Store::open_read(url).await?;
    let rows = store.processes().await;
    store.close().await;
    let rows = rows?;
    let left = rows.iter().filter(|row| row.exit.is_none()).count();
    Ok((rows.len(), left))
}

/// Whether a store's file, where there is one, and the directory that it is in can be written.
fn can_write(file: &Path) -> Result<(), (PathBuf, io::Error)> {
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match std::fs::OpenOptions::new().write(true).open(file) {
        Ok(_) => writable(dir).map_err(|e| (dir.to_owned(), e)),
        // Whether it can be made is the data directory's check; another directory must be there.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err((file.to_owned(), e)),
    }
}

pub(super) fn processes(all: usize, running: usize, left: usize) -> String {
    let what = count(all, "process");
    match (all, running, left) {
        (0, ..) => "no processes yet".to_owned(),
        (_, 0, 0) => format!("{what}, all ended"),
        (_, _, 0) => format!("{what}, {running} running"),
        (_, 0, _) => format!("{what}, {left} unfinished (`aok ps`, `aok run --resume PID`)"),
        _ => format!("{what}, {running} running and {left} unfinished (`aok ps`, `aok run --resume PID`)"),
    }
}

/// What a commit survives, in words.
pub(super) fn survives(url: &str, durability: Durability) -> String {
    match durability {
        _ if url == "memory:" => "kept in memory: it ends with aok, and nothing can be resumed".to_owned(),
        Durability::Process => {
            "what is committed survives a crash or kill of aok, not a power cut (durability = \"process\")".to_owned()
        }
        Durability::Power => {
            "what is committed survives a crash, a kill and a power cut (durability = \"power\")".to_owned()
        }
    }
}

pub(super) fn store_failed(name: &str, error: &storage::Error) -> Check {
    use storage::Error as E;
    let fix = match error {
        E::Url { .. } => "correct `[storage] url` in aok.toml".to_owned(),
        E::TooNew { path, .. } => format!("use the aok that wrote {}, {OTHER_DATA}", path.display()),
        E::Full { .. } => "free some space".to_owned(),
        _ => format!("check the disk and move the file away if it is no store, {OTHER_DATA}"),
    };
    let what = text(error);
    let what = if what.contains(name) { what } else { format!("{name}: {what}") };
    Check::fail("store", what, fix)
}

pub(super) fn code_cache(dir: &Path) -> Check {
    let shown = dir.display();
    match engine::cached(dir) {
        Ok(None) => Check::ok("code cache", format!("{shown} is not there yet: the first run fills it")),
        Ok(Some((files, bytes))) => {
            let what = format!("{shown}: compiled code of {files} components, {:.1} MB", mega(bytes));
            match writable(dir) {
                Ok(()) => Check::ok("code cache", what),
                Err(e) => Check::warn(
                    "code cache",
                    format!("{what}; it cannot be written ({e}), so what is not in it is compiled each time"),
                    access(&e, dir),
                ),
            }
        }
        Err(e) => {
            let fix = format!("remove {shown}: it is made anew");
            Check::fail("code cache", format!("{shown} cannot be used: {e}"), fix)
        }
    }
}

fn mega(bytes: u64) -> f64 {
    // Bytes of a disk fit well into the 53 bits that are exact.
    #[allow(clippy::cast_precision_loss, reason = "see above; it is shown with one decimal")]
    let bytes = bytes as f64;
    bytes / 1e6
}
