//! `cargo xtask test`: everything that is tested, in one profile, with one closing line.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::local_model::LocalModel;
use crate::step::{aok, cargo, line, release_dir, root, run, step};

/// How many tests ran, as the test binaries themselves report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Counts {
    fn add(&mut self, more: Self) {
        self.passed += more.passed;
        self.failed += more.failed;
        self.ignored += more.ignored;
    }
}

/// Runs the tests. With `all`, what they need beside Rust is installed and started, and a test that
/// would skip fails. Whether everything passed.
///
/// # Errors
/// When something that is needed cannot be had, or cargo cannot be started.
pub(crate) fn test(all: bool) -> Result<bool> {
    let start = Instant::now();
    crate::build::toolchain()?;
    step("Building the kernel and the tests", "about 15 minutes from nothing, seconds after that", || {
        run(cargo().args(["build", "--release", "--workspace"]))?;
        run(cargo().args(["test", "--release", "--workspace", "--no-run", "--quiet"]))
    })?;
    let mut command = cargo();
    // `--no-fail-fast`: one run shows every failure, not the first crate's.
    command.args(["test", "--release", "--workspace", "--no-fail-fast"]).env("AOK_BIN", aok()?);
    let model = if all {
        // Twice the time that the slowest machine needed for the whole run.
        let model = LocalModel::start(Duration::from_secs(60 * 60), &release_dir()?.join("model-server.log"))?;
        command.env("AOK_TEST_ALL", "1").env("AOK_REAL_LLM_URL", model.base_url());
        command.env("AOK_REAL_LLM_NAME", crate::local_model::NAME);
        let files = crate::local_model::files()?;
        command.env("AOK_LLAMA_SERVER", files.server).env("AOK_WEIGHTS", files.weights);
        command.env("AOK_PYTHON_SDKS", crate::python::clients()?);
        Some(model)
    } else {
        None
    };
    let mut outcome = None;
    step("Running the tests", "a few minutes", || {
        outcome = Some(run_counting(&mut command)?);
        Ok(())
    })?;
    drop(model);
    let (mut counts, mut success) = outcome.context("the test run left no outcome")?;
    // What is tested of guests and their SDK without a sandbox, compiled for this machine.
    let mut guests = cargo();
    guests.current_dir(root().join("plugins")).args(["test", "--workspace", "--locked", "--no-fail-fast"]);
    guests.arg("--target-dir").arg(release_dir()?.with_file_name("plugins-native"));
    step("Running the unit tests of the SDK and the bundled plugins", "a minute from nothing, then seconds", || {
        let (more, good) = run_counting(&mut guests)?;
        counts.add(more);
        success &= good;
        Ok(())
    })?;
    // A run that tested nothing must not look like one that passed.
    let good = success && counts.failed == 0 && counts.passed > 0;
    if !success && counts.failed == 0 {
        println!("cargo itself failed: a test did not compile, or a test binary ended before its report");
    }
    println!(
        "{} passed, {} failed, {} ignored in {} s{}",
        counts.passed,
        counts.failed,
        counts.ignored,
        start.elapsed().as_secs(),
        if all { "" } else { " (without the real model: cargo xtask test --all)" }
    );
    Ok(good)
}

/// Runs a test command, passes its output through, and adds up the result lines.
fn run_counting(command: &mut Command) -> Result<(Counts, bool)> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {}", line(command)))?;
    let stdout = child.stdout.take().context("the tests' output was not piped")?;
    let mut counts = Counts::default();
    for text in BufReader::new(stdout).split(b'\n') {
        let text = text.context("the tests' output cannot be read")?;
        let text = String::from_utf8_lossy(&text);
        println!("{text}");
        if let Some(more) = parse(&text) {
            counts.add(more);
        }
    }
    Ok((counts, child.wait()?.success()))
}

/// The counts of a `test result: ok. 3 passed; 0 failed; 1 ignored; …` line.
fn parse(line: &str) -> Option<Counts> {
    let rest = line.strip_prefix("test result: ")?;
    let of = |what: &str| -> Option<u64> {
        let words: Vec<&str> = rest.split_whitespace().map(|word| word.trim_end_matches([';', '.'])).collect();
        let at = words.iter().position(|word| *word == what)?;
        words.get(at.checked_sub(1)?)?.parse().ok()
    };
    Some(Counts { passed: of("passed")?, failed: of("failed")?, ignored: of("ignored")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_counted_and_others_are_not() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.02s";
        assert_eq!(parse(line), Some(Counts { passed: 12, failed: 3, ignored: 1 }));
        assert_eq!(parse("test result_lines ... ok"), None);
        assert_eq!(parse("test result: nonsense"), None);
    }

    #[test]
    fn a_failing_command_is_reported_with_its_counts() {
        let script = "echo 'test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured'; exit 101";
        let (counts, success) = run_counting(Command::new("sh").args(["-c", script])).unwrap();
        assert_eq!((counts.passed, success), (2, false));
    }
}
