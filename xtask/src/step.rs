//! How every task talks and runs commands: each step says what it is, about how long it takes, and
//! how long it took. All of it goes to stderr, so that stdout carries results only.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// Runs `work` as a named step; `about` says how long a first run takes.
pub(crate) fn step<T>(what: &str, about: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("==> {what} ({about})");
    let start = Instant::now();
    let result = work();
    let seconds = start.elapsed().as_secs_f64();
    match &result {
        Ok(_) => eprintln!("    done in {seconds:.1} s"),
        Err(_) => eprintln!("    failed after {seconds:.1} s"),
    }
    result
}

/// Prints a line that belongs to the running step.
pub(crate) fn note(line: &str) {
    eprintln!("    {line}");
}

/// Runs `command` with this process's own stdout and stderr.
///
/// # Errors
/// When it cannot be started or does not exit with 0; the command line is in the message.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", line(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", line(command));
    }
    Ok(())
}

/// A command as a person would type it.
pub(crate) fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// The cargo that runs this task, in the repository's root.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}

/// The directory of release binaries: the one that this task's own binary lies in.
///
/// # Errors
/// When the operating system does not tell where this binary is.
pub(crate) fn release_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("the path of the running xtask is unknown")?;
    Ok(exe.parent().context("the running xtask lies in no directory")?.to_owned())
}

/// The kernel's binary.
///
/// # Errors
/// As [`release_dir`].
pub(crate) fn aok() -> Result<PathBuf> {
    Ok(release_dir()?.join("aok"))
}
