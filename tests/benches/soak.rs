//! A thousand runs of one `aok` against a server of which one answer in twenty is a fault: each ends as it should,
//! the kernel's memory stays flat, and its key is in nothing that anybody wrote.
//!
//! Whole processes: one `aok run` that waits holds the kernel, with all that it can log; sixteen clients at a time
//! have runs done by it. The server is in this process.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use system_tests::figure::Figure;
use system_tests::stub::{Answer, Ask, Stub};

const RUNS: usize = 1_000;
const AT_ONCE: usize = 16;
/// Runs after which the kernel has all that it keeps for good: caches, pools, threads.
const WARM: usize = 200;
/// One answer in so many is a fault.
const ONE_IN: u64 = 20;
const KEY: &str = "sk-nobody-may-read-this-one";

/// A fault for the moment, each kind as likely, by an even spread over the requests.
fn fault(ask: &Ask<'_>, answer: Answer) -> Answer {
    // The golden ratio's multiples spread evenly and in no step with the runs.
    let spread = (ask.nth as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    if !spread.is_multiple_of(ONE_IN) {
        return answer;
    }
    match spread / ONE_IN % 5 {
        0 => Answer::busy(50),
        1 => Answer::error(500, "broken for the moment"),
        2 => match answer {
            Answer::Stream(mut pieces) => {
                pieces.truncate(pieces.len() / 2);
                Answer::Cut(pieces)
            }
            other => other,
        },
        3 => Answer::bytes("data: {nonsense\n\n"),
        _ => ask.says(""),
    }
}

fn answer(ask: &Ask<'_>) -> Answer {
    let good = match ask.replies() {
        0 => ask.calls("a", "calc__eval", r#"{"expression":"6*7"}"#),
        _ => ask.says("It is 42."),
    };
    fault(ask, good)
}

struct Lab {
    aok: PathBuf,
    dir: tempfile::TempDir,
}

impl Lab {
    fn new(url: &str) -> Result<Self> {
        let aok = std::env::var_os("AOK_BIN").context("AOK_BIN names the aok binary; run `cargo xtask bench soak`")?;
        let lab = Self { aok: aok.into(), dir: tempfile::tempdir()? };
        fs::create_dir_all(lab.dir.path().join("data"))?;
        fs::create_dir_all(lab.dir.path().join("said"))?;
        let config = format!(
            "[llm.providers.stub]\nkind = \"openai\"\nbase_url = \"{url}\"\nkey_env = \"SOAK_KEY\"\nnative_tools = true\nslots = {AT_ONCE}\n"
        );
        fs::write(lab.dir.path().join("data/aok.toml"), config)?;
        // A quarter of an hour: longer than all of this may take.
        fs::write(lab.dir.path().join("wait.jsonl"), "{\"text\":\"enough\",\"delay_ms\":900000}\n")?;
        Ok(lab)
    }

    fn said(&self, name: &str) -> PathBuf {
        self.dir.path().join("said").join(name)
    }

    /// A command whose output goes to files, as `NAME.out` and `NAME.err`.
    fn command(&self, name: &str, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(&self.aok);
        command.arg("--data").arg(self.dir.path().join("data")).args(args).env("SOAK_KEY", KEY).env_remove("RUST_LOG");
        command.stdin(Stdio::null());
        command.stdout(fs::File::create(self.said(&format!("{name}.out")))?);
        command.stderr(fs::File::create(self.said(&format!("{name}.err")))?);
        Ok(command)
    }

    /// The run that holds the kernel.
    fn hold(&self) -> Result<Holder> {
        let model = format!("script/{}", self.dir.path().join("wait.jsonl").display());
        let args = ["-vv", "--json", "run", "--task", "Wait.", "--model", &model];
        let mut holder = Holder(self.command("kernel", &args)?.spawn()?);
        let until = Instant::now() + Duration::from_secs(60);
        while !fs::read_to_string(self.said("kernel.out"))?.contains("llm_start") {
            ensure!(holder.0.try_wait()?.is_none(), "the kernel ended: {}", self.text("kernel.err"));
            ensure!(Instant::now() < until, "the kernel does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(holder)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.said(name)).unwrap_or_default()
    }

    /// One run; whether it ended as it should.
    fn run(&self, n: usize) -> Result<()> {
        let name = n.to_string();
        let args = ["--json", "run", "--task", "What is 6*7?", "--model", "stub/m"];
        let status = self.command(&name, &args)?.status()?;
        let (out, err) = (self.text(&format!("{name}.out")), self.text(&format!("{name}.err")));
        let last: Value = serde_json::from_str(out.lines().last().unwrap_or_default()).unwrap_or_default();
        ensure!(
            status.success() && last["status"] == "success" && last["answer"] == "It is 42.",
            "run {n} ended with {status}: {last} {err}"
        );
        ensure!(out.matches("\"tool_start\"").count() == 1, "run {n} did not call its tool once: {out}");
        Ok(())
    }

    /// Does the runs from `from` to `to`; what went wrong in the first that failed.
    fn runs(&self, from: usize, to: usize) -> Result<()> {
        let next = AtomicUsize::new(from);
        let failed = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(|| {
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if n >= to {
                            return;
                        }
                        if let Err(e) = self.run(n) {
                            next.store(to, Ordering::Relaxed);
                            failed.lock().map(|mut f| f.get_or_insert(e).to_string()).ok();
                            return;
                        }
                    }
                });
            }
        });
        failed.into_inner().map_err(|_| anyhow::anyhow!("a client panicked"))?.map_or(Ok(()), Err)
    }

    fn json(&self, args: &[&str]) -> Result<Vec<Value>> {
        let status = self.command("look", args)?.status()?;
        ensure!(status.success(), "`aok {}` failed: {}", args.join(" "), self.text("look.err"));
        Ok(self.text("look.out").lines().filter_map(|l| serde_json::from_str(l).ok()).collect())
    }
}

/// An `aok` that ends with this.
struct Holder(Child);

impl Holder {
    /// Its resident memory in MB.
    fn rss_mb(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kb: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kb / 1024.0)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It may have ended; there is nothing to do about either.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Bytes of all files below `dir`; the key must be in none of them.
fn without_key(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            bytes += without_key(&path)?;
        } else if path.is_file() {
            let text = fs::read(&path)?;
            bytes += text.len() as u64;
            if text.windows(KEY.len()).any(|w| w == KEY.as_bytes()) {
                bail!("the key is in {}", path.display());
            }
        }
    }
    Ok(bytes)
}

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let server = runtime.block_on(Stub::start(0, false, answer))?;
    let lab = Lab::new(&server.url())?;
    let holder = lab.hold()?;
    let began = Instant::now();
    lab.runs(0, WARM)?;
    let warm = holder.rss_mb()?;
    lab.runs(WARM, RUNS)?;
    let (end, took) = (holder.rss_mb()?, began.elapsed());
    let verdict = lab.json(&["--json", "audit", "verify"])?;
    ensure!(verdict[0]["ok"] == true, "{verdict:?}");
    let ps = lab.json(&["--json", "ps"])?;
    let done = ps.iter().filter(|p| p["exit"]["status"] == "success").count();
    // While the kernel lives, so that its write-ahead log is there too.
    let bytes = without_key(lab.dir.path())?;
    drop(holder);
    without_key(lab.dir.path())?;
    let figure =
        |name, value, unit| Figure { ok: None, target: None, ..Figure::at_most("soak", name, value, unit, 0.0) };
    #[allow(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let (failed, faults) = ((RUNS - done) as f64, (server.count() - 2 * RUNS) as f64);
    Figure::at_most("soak", "soak_runs_failed", failed, "runs", 0.0).print();
    Figure::at_most("soak", "soak_rss_growth", end / warm, "ratio", 1.1).beside(1.0).print();
    figure("soak_rss_mb", end, "MB").beside(warm).print();
    figure("soak_faults", faults, "requests").print();
    #[allow(clippy::cast_precision_loss, reason = "as above")]
    figure("soak_scanned_mb", bytes as f64 / 1e6, "MB").print();
    figure("soak_s", took.as_secs_f64(), "s").print();
    Ok(())
}
