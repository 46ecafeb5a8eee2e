//! A plugin's file is replaced while it and another plugin are called all the time: no call may fail, none
//! may be answered by an older version than the one before, and the other plugin's calls must not notice.
//! The other's tail is compared with the one before the first replacement.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use agent_os_kernel::capability::Rights;
use agent_os_kernel::kernel::Kernel;
use anyhow::{Result, ensure};
use system_tests::figure::Figure;
use system_tests::herald::{put, version};

include!(concat!(env!("OUT_DIR"), "/guests.rs"));

/// As in `aok`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Calls per second, of both plugins together.
const RATE: u32 = 1_000;
const CHANGES: u16 = 50;
const QUIET: Duration = Duration::from_secs(10);
const BUSY: Duration = Duration::from_secs(30);

/// What the calls of one tool gave.
#[derive(Default)]
struct Calls {
    failed: Vec<String>,
    answers: Vec<String>,
    /// When each began, since the first, and what it took.
    took: Vec<(Duration, Duration)>,
}

async fn call(kernel: Kernel, tool: &'static str, arguments: &'static str, stop: Arc<AtomicBool>) -> Calls {
    let mut calls = Calls::default();
    let mut ticks = tokio::time::interval(Duration::from_secs(1) * 2 / RATE);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    let begin = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        let at = begin.elapsed();
        match kernel.call_tool(tool, arguments, Rights::default()).await.map(|report| report.outcome) {
            Ok(Ok(answer)) => calls.answers.push(answer),
            Ok(Err(e)) => calls.failed.push(e.to_string()),
            Err(e) => calls.failed.push(e.to_string()),
        }
        calls.took.push((at, begin.elapsed().saturating_sub(at)));
    }
    calls
}

fn p99_us(took: impl Iterator<Item = Duration>) -> f64 {
    let mut all: Vec<_> = took.collect();
    all.sort_unstable();
    all.get(all.len().saturating_sub(1) * 99 / 100).map_or(f64::NAN, |t| t.as_secs_f64() * 1e6)
}

#[tokio::main]
async fn main() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let plugins: PathBuf = dir.path().join("plugins");
    fs::create_dir(&plugins)?;
    let (herald, file) = (fs::read(HERALD)?, plugins.join("herald.wasm"));
    put(&file, &version(&herald, 0))?;
    fs::copy(PROBE, plugins.join("probe.wasm"))?;
    let kernel = Kernel::builder(dir.path().join("data")).plugin_dir(&plugins).start().await?;
    let stop = Arc::new(AtomicBool::new(false));
    let spawn = |tool, arguments| tokio::spawn(call(kernel.clone(), tool, arguments, Arc::clone(&stop)));
    let (changed, other) = (spawn("herald__tell", "{}"), spawn("probe__echo", "{\"a\":1}"));
    tokio::time::sleep(QUIET).await;
    for n in 1..=CHANGES {
        put(&file, &version(&herald, n))?;
        tokio::time::sleep(BUSY / u32::from(CHANGES)).await;
    }
    stop.store(true, Ordering::Relaxed);
    let (changed, other) = (changed.await?, other.await?);
    kernel.shutdown().await;
    ensure!(changed.answers.is_sorted(), "an older version answered after a newer one");
    let mut versions = changed.answers.clone();
    versions.dedup();
    let failed = changed.failed.len() + other.failed.len();
    let (before, after): (Vec<_>, Vec<_>) = other.took.iter().partition(|(at, _)| *at < QUIET);
    let p99 = |part: &[&(Duration, Duration)]| p99_us(part.iter().map(|(_, took)| *took));
    let (before, after) = (p99(&before), p99(&after));
    let calls = changed.took.len() + other.took.len();
    Figure::plain("swap", "swap_calls", calls as f64, "calls").print();
    Figure::plain("swap", "swap_versions_seen", versions.len() as f64, "versions").print();
    Figure::at_most("swap", "swap_calls_failed", failed as f64, "calls", 0.0).print();
    Figure::at_most("swap", "swap_other_p99_ratio", after / before, "ratio", 2.0).print();
    Figure::plain("swap", "swap_other_p99_us", after, "us").beside(before).print();
    let why = changed.failed.first().or(other.failed.first());
    ensure!(failed == 0, "{failed} calls failed, the first: {why:?}");
    Ok(())
}
