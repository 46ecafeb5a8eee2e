//! A kernel that starts with 100 plugins whose code is in the cache, beside one that starts with none; and
//! the first call of each, the last one's beside the first one's.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use agent_os_kernel::capability::Rights;
use agent_os_kernel::kernel::Kernel;
use anyhow::{Result, ensure};
use system_tests::figure::{Figure, median, timed};
use system_tests::herald::version;
use tokio::runtime::Runtime;

include!(concat!(env!("OUT_DIR"), "/guests.rs"));

/// As in `aok`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PLUGINS: u16 = 100;
const ROUNDS: usize = 9;
const CALLS: usize = 41;

/// How long a kernel takes from nothing until every plugin of `plugins` is listed with its tools, in ms.
fn ready_ms(runtime: &Runtime, data: &Path, plugins: Option<&Path>, count: usize) -> Result<f64> {
    runtime.block_on(async {
        let builder = Kernel::builder(data);
        let builder = plugins.into_iter().fold(builder, |b, dir| b.plugin_dir(dir));
        let began = Instant::now();
        let kernel = builder.start().await?;
        let took = began.elapsed();
        let loaded = kernel.plugins().iter().filter(|p| p.state == "loaded" && p.file.is_some()).count();
        kernel.shutdown().await;
        ensure!(loaded == count, "{loaded} of {count} plugins are loaded");
        Ok(took.as_secs_f64() * 1e3)
    })
}

/// Microseconds of a call of each plugin, in their order. A round calls each once, so that what changes
/// with time is no difference between them.
fn calls_us(runtime: &Runtime, data: &Path, plugins: &Path) -> Result<Vec<f64>> {
    runtime.block_on(async {
        let kernel = Kernel::builder(data).plugin_dir(plugins).start().await?;
        let mut all = vec![Vec::new(); usize::from(PLUGINS)];
        for round in 0..=CALLS {
            for (n, took) in (0..PLUGINS).zip(&mut all) {
                let name = format!("p{n:03}__tell");
                let began = Instant::now();
                let report = kernel.call_tool(&name, "{}", Rights::default()).await?;
                // The first call makes the image; the later ones are what the hundredth must not pay more for.
                if round > 0 {
                    took.push(began.elapsed().as_secs_f64() * 1e6);
                }
                ensure!(report.outcome == Ok(format!("\"{n:04}\"")), "{name} answered {:?}", report.outcome);
            }
        }
        kernel.shutdown().await;
        Ok(all.into_iter().map(middle).collect())
    })
}

fn middle(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn main() -> Result<()> {
    let runtime = Runtime::new()?;
    let dir = tempfile::tempdir()?;
    let (data, plugins) = (dir.path().join("data"), dir.path().join("plugins"));
    fs::create_dir(&plugins)?;
    let herald = fs::read(HERALD)?;
    for n in 0..PLUGINS {
        fs::write(plugins.join(format!("p{n:03}.wasm")), version(&herald, n))?;
    }
    // Files that were written a moment ago are waited for; these are meant to lie there.
    std::thread::sleep(Duration::from_millis(300));
    let (cold, filled) = timed(|| ready_ms(&runtime, &data, Some(&plugins), usize::from(PLUGINS)));
    filled?;
    let mut failed = None;
    let mut measure = |plugins: Option<&Path>, count| {
        median(ROUNDS, || {
            ready_ms(&runtime, &data, plugins, count).unwrap_or_else(|e| {
                failed = Some(e);
                f64::NAN
            })
        })
    };
    let none = measure(None, 0);
    let ready = measure(Some(&plugins), usize::from(PLUGINS));
    if let Some(e) = failed {
        return Err(e);
    }
    let calls = calls_us(&runtime, &data, &plugins)?;
    let part = usize::from(PLUGINS) / 10;
    let mean = |us: &[f64]| us.iter().sum::<f64>() / us.len() as f64;
    let (first, last) = (mean(&calls[..part]), mean(&calls[calls.len() - part..]));
    Figure::at_most("load", "plugins100_ready_ms", ready, "ms", 200.0).beside(none).print();
    Figure::at_most("load", "call_last_over_first", last / first, "ratio", 1.2).print();
    Figure::plain("load", "plugins100_cold_ms", cold.as_secs_f64() * 1e3, "ms").print();
    Ok(())
}
