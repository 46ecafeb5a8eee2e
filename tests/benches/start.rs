//! `aok tool ls` from a warm cache, as a whole process, beside the same binary printing its version.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use system_tests::figure::{Figure, median, timed};

const ROUNDS: usize = 21;

fn ms(aok: &str, data: &Path, args: &[&str]) -> Result<f64> {
    let mut command = Command::new(aok);
    command.arg("--data").arg(data).args(args).stdout(Stdio::null());
    let (took, status) = timed(|| command.status());
    ensure!(status.with_context(|| format!("{aok} cannot be started"))?.success(), "`aok {}` failed", args.join(" "));
    Ok(took.as_secs_f64() * 1e3)
}

fn main() -> Result<()> {
    let aok =
        std::env::var("AOK_BIN").context("AOK_BIN names the aok binary; run this by `cargo xtask bench start`")?;
    let dir = tempfile::tempdir()?;
    ms(&aok, dir.path(), &["tool", "ls"])?;
    let baseline = median(ROUNDS, || ms(&aok, dir.path(), &["--version"]).unwrap_or(f64::NAN));
    let ours = median(ROUNDS, || ms(&aok, dir.path(), &["tool", "ls"]).unwrap_or(f64::NAN));
    Figure::at_most("start", "tool_ls_ms", ours, "ms", 50.0).beside(baseline).print();
    Ok(())
}
