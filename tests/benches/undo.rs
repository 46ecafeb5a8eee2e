//! A private copy of a directory of 10 000 files, beside `cp -r` of it: until a tool can write, what it costs to
//! write, to look through all of it, to see what changed, to apply it and to throw it away; and the bytes of both.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use agent_os_kernel::capability::Rights;
use agent_os_kernel::kernel::Kernel;
use agent_os_kernel::process::{Mount, Pid};
use anyhow::{Result, anyhow, ensure};
use serde_json::json;
use system_tests::figure::{Figure, timed};

const FILES: usize = 10_000;
const FOLDERS: usize = 200;
/// Files that the process changes: one in a hundred.
const CHANGED: usize = FILES / 100;

fn file(n: usize) -> String {
    format!("part{:03}/file{n:05}.rs", n % FOLDERS)
}

/// Lines of text, as long as source files are: 0.5 to 20 KiB.
fn content(n: usize) -> String {
    let lines = 10 + (n * 7_919) % 390;
    (0..lines).map(|line| format!("    let value_{line} = compute({n}, {line}); // and so on\n")).collect()
}

fn repository(dir: &Path) -> Result<()> {
    for n in 0..FOLDERS {
        fs::create_dir_all(dir.join(format!("part{n:03}")))?;
    }
    for n in 0..FILES {
        fs::write(dir.join(file(n)), content(n))?;
    }
    Ok(())
}

/// Bytes on the disk below a directory.
fn on_disk(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        bytes += meta.blocks() * 512;
        if meta.is_dir() {
            bytes += on_disk(&entry.path())?;
        }
    }
    Ok(bytes)
}

struct Side<'a> {
    kernel: &'a Kernel,
    pid: Pid,
}

impl Side<'_> {
    async fn call(&self, tool: &str, arguments: serde_json::Value) -> Result<()> {
        let report = self.kernel.call_on(self.pid, tool, &arguments.to_string()).await?;
        report.outcome.map(drop).map_err(|e| anyhow!("{tool}: {}", e.message))
    }

    /// Milliseconds of the first write, and of all.
    async fn writes(&self) -> Result<(f64, f64)> {
        let began = Instant::now();
        let mut first = None;
        for n in 0..CHANGED {
            let n = n * (FILES / CHANGED);
            let text = content(n).replacen("compute", "recompute", 3);
            self.call("fs__write", json!({"path": format!("w/{}", file(n)), "content": text})).await?;
            first.get_or_insert_with(|| millis(began));
        }
        Ok((first.unwrap_or_default(), millis(began)))
    }

    /// Milliseconds of a search of everything for what is nowhere.
    async fn search(&self) -> Result<f64> {
        let began = Instant::now();
        self.call("fs__search", json!({"path": "w", "pattern": "nowhere to be found"})).await?;
        Ok(millis(began))
    }
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

#[tokio::main]
async fn main() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (original, data) = (dir.path().join("w"), dir.path().join("data"));
    repository(&original)?;
    let copy = dir.path().join("copy");
    let cp = || Command::new("cp").arg("-r").arg(&original).arg(&copy).status();
    ensure!(cp()?.success(), "cp failed");
    fs::remove_dir_all(&copy)?;
    // The second time, when everything is in memory for both.
    let (took, status) = timed(cp);
    ensure!(status?.success(), "cp failed");
    let (cp_ms, cp_bytes) = (took.as_secs_f64() * 1e3, on_disk(&copy)?);
    let (took, removed) = timed(|| fs::remove_dir_all(&copy));
    removed?;
    let rm_ms = took.as_secs_f64() * 1e3;

    let kernel = Kernel::builder(&data).start().await?;
    let connect = async |host: PathBuf, private| {
        let mount = Mount { host, guest: "w".into(), writable: true, private };
        let connection = kernel.connect("bench", Rights { mounts: vec![mount], ..Rights::default() }).await?;
        anyhow::Ok((Side { kernel: &kernel, pid: connection.pid() }, connection))
    };
    repository(&copy)?;
    let (direct, _open) = connect(copy.clone(), false).await?;
    let (private, open) = connect(original.clone(), true).await?;
    let pid = private.pid;
    direct.search().await?;
    let (direct_search, private_search) = (direct.search().await?, private.search().await?);
    let (_, direct_writes) = direct.writes().await?;
    let (first, private_writes) = private.writes().await?;
    drop(open);
    kernel.wait(pid).await?;
    let bytes = on_disk(&data.join("private"))?;

    let began = Instant::now();
    let changes = kernel.diff(pid, true).await?;
    let diff_ms = millis(began);
    ensure!(changes.len() == CHANGED && changes.iter().all(|c| c.text.is_some()), "{} changes", changes.len());
    let began = Instant::now();
    ensure!(kernel.apply(pid, Vec::new()).await?.len() == CHANGED, "not everything was applied");
    let apply_ms = millis(began);
    let (again, open) = connect(original.clone(), true).await?;
    let pid = again.pid;
    again.writes().await?;
    again.call("fs__write", json!({"path": "w/new", "content": "x"})).await?;
    drop(open);
    kernel.wait(pid).await?;
    let began = Instant::now();
    kernel.discard(pid).await?;
    let discard_ms = millis(began);
    kernel.shutdown().await;

    let mega = |bytes: u64| bytes as f64 / 1e6;
    Figure::at_most("undo", "undo_bytes_ratio", mega(bytes) / mega(cp_bytes), "ratio", 0.05).print();
    Figure::plain("undo", "undo_bytes_mb", mega(bytes), "MB").beside(mega(cp_bytes)).print();
    Figure::plain("undo", "undo_first_write_ms", first, "ms").beside(cp_ms).print();
    Figure::plain("undo", "undo_writes_ms", private_writes, "ms").beside(direct_writes).print();
    Figure::plain("undo", "undo_search_ms", private_search, "ms").beside(direct_search).print();
    Figure::plain("undo", "undo_diff_ms", diff_ms, "ms").beside(cp_ms).print();
    Figure::plain("undo", "undo_apply_ms", apply_ms, "ms").beside(cp_ms).print();
    Figure::plain("undo", "undo_discard_ms", discard_ms, "ms").beside(rm_ms).print();
    Ok(())
}
