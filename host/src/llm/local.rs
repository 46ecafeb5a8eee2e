//! `local/FILE.gguf`: weights on this machine behind a llama.cpp `llama-server` that the kernel finds,
//! starts on loopback, watches and stops.
//!
//! The server starts with the first request for a file and serves all processes. It is started again
//! when it has died, and stopped with the kernel. A kernel that was killed leaves its server behind:
//! a record in the data directory says so to the next one, which stops it before it starts its own.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

use super::remote::{Remote, Settings};
use super::{Delta, Error, Provider, Request};
use crate::abi::Reply;
use crate::config::{LocalConfig, ProviderKind};

/// How long weights may take to load.
const LOADING: Duration = Duration::from_secs(300);

/// How often a loading server is asked whether it is ready.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// How long a server may take to end when it is asked to.
const ENDING: Duration = Duration::from_secs(5);

/// Last lines of a server's output that are kept for an error.
const TAIL: usize = 8;

/// The program that is looked for.
const PROGRAM: &str = "llama-server";

/// Where local models and their server are.
#[derive(Clone, Debug)]
pub struct Places {
    /// Weights by name.
    pub models: PathBuf,
    /// Records of running servers.
    pub cache: PathBuf,
}

/// The server that would be started: that of the configuration, else the one in `path` (as `PATH` is
/// written).
#[must_use]
pub fn find_server(config: &LocalConfig, path: Option<&str>) -> Option<PathBuf> {
    match &config.server {
        Some(server) => Some(server.clone()),
        None => std::env::split_paths(path?).map(|dir| dir.join(PROGRAM)).find(|file| is_program(file)),
    }
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// Names of the weights in the models directory, sorted.
#[must_use]
pub fn weights(places: &Places) -> Vec<String> {
    let names = std::fs::read_dir(&places.models).into_iter().flatten().flatten();
    let mut names: Vec<String> = names
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| Path::new(name).extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")))
        .collect();
    names.sort();
    names
}

/// One file of weights and its server.
pub struct Local {
    file: PathBuf,
    program: PathBuf,
    config: LocalConfig,
    record: PathBuf,
    settings: Settings,
    running: tokio::sync::Mutex<Option<Running>>,
    /// The server's provider, for what can be asked without waiting.
    remote: Mutex<Option<Arc<Remote>>>,
}

struct Running {
    child: Child,
    remote: Arc<Remote>,
    output: Arc<Mutex<Vec<String>>>,
}

/// A server that was started, for a kernel that comes after.
#[derive(Serialize, Deserialize)]
struct Record {
    pid: u32,
    program: PathBuf,
}

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Local").field("file", &self.file).field("program", &self.program).finish_non_exhaustive()
    }
}

impl Local {
    /// Finds the weights `name`: a file of the models directory, or a path. Starts nothing yet.
    ///
    /// # Errors
    /// A sentence that says what is missing and how to get it.
    pub fn find(
        name: &str,
        places: &Places,
        config: &LocalConfig,
        path: Option<&str>,
        settings: Settings,
    ) -> Result<Self, String> {
        let file = [places.models.join(name), PathBuf::from(name)].into_iter().find(|f| f.is_file());
        let Some(file) = file.and_then(|f| std::path::absolute(f).ok()) else {
            let there = weights(places);
            let there = if there.is_empty() { "nothing".to_owned() } else { there.join(", ") };
            return Err(format!(
                "there is no such file of weights; {} holds {there}: copy a .gguf file there, or name one by its path",
                places.models.display()
            ));
        };
        let Some(program) = find_server(config, path) else {
            return Err(format!(
                "no `{PROGRAM}` is in PATH; install llama.cpp, or name its server in aok.toml: [llm.local] server = \"/path/to/{PROGRAM}\""
            ));
        };
        if !is_program(&program) {
            return Err(format!(
                "{} is no program; set `server` of [llm.local] in aok.toml to a llama.cpp `{PROGRAM}`",
                program.display()
            ));
        }
        let key = format!("{:x}", Sha256::digest(file.as_os_str().as_encoded_bytes()));
        Ok(Self {
            record: places.cache.join(format!("local-{}.json", &key[..16])),
            file,
            program,
            config: config.clone(),
            settings,
            running: tokio::sync::Mutex::default(),
            remote: Mutex::default(),
        })
    }

    fn failed(&self, what: &str, output: &Arc<Mutex<Vec<String>>>) -> Error {
        let tail = output.lock().unwrap_or_else(PoisonError::into_inner).join(" | ");
        let tail = if tail.is_empty() { String::new() } else { format!("; it said: {}", super::shorten(&tail, 600)) };
        Error::Local { message: format!("{} for {} {what}{tail}", self.program.display(), self.file.display()) }
    }

    /// The running server; starts it where there is none.
    async fn server(&self) -> Result<Arc<Remote>, Error> {
        let mut running = self.running.lock().await;
        if let Some(r) = running.as_mut() {
            match r.child.try_wait() {
                Ok(None) => return Ok(Arc::clone(&r.remote)),
                ended => {
                    tracing::warn!(file = %self.file.display(), ?ended, "the local model's server ended; it is started again");
                    *running = None;
                }
            }
        }
        let started = self.start().await?;
        let remote = Arc::clone(&started.remote);
        *self.remote.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&remote));
        *running = Some(started);
        Ok(remote)
    }

    async fn start(&self) -> Result<Running, Error> {
        end_leftover(&self.record).await;
        let output = Arc::default();
        let port = free_port().await.map_err(|e| self.failed(&format!("has no port of 127.0.0.1: {e}"), &output))?;
        let slots = self.config.slots.max(1);
        let mut child = Command::new(&self.program)
            .arg("--model")
            .arg(&self.file)
            .args(["--host", "127.0.0.1", "--port", &port.to_string(), "--jinja"])
            // The window is shared among the slots.
            .args(["--ctx-size", &(u64::from(self.config.window) * slots as u64).to_string()])
            .args(["--parallel", &slots.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| self.failed(&format!("cannot be started: {e}"), &output))?;
        if let Some(pid) = child.id() {
            self.note(pid);
        }
        keep_tail(child.stdout.take(), &output);
        keep_tail(child.stderr.take(), &output);
        let base_url = format!("http://127.0.0.1:{port}");
        self.ready(&mut child, &base_url, &output).await?;
        let settings = Settings { base_url: format!("{base_url}/v1"), ..self.settings.clone() };
        Ok(Running { child, remote: Arc::new(Remote::new(settings)?), output })
    }

    /// Waits until the server says that it can work.
    async fn ready(&self, child: &mut Child, base_url: &str, output: &Arc<Mutex<Vec<String>>>) -> Result<(), Error> {
        super::http::install_crypto();
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(5))
            .tls_certs_only(std::iter::empty())
            .build()
            .map_err(|e| self.failed(&format!("cannot be asked: {e}"), output))?;
        let until = Instant::now() + LOADING;
        loop {
            if let Ok(Some(status)) = child.try_wait() {
                // Its last words may still be on their way.
                tokio::time::sleep(ASK_EVERY).await;
                return Err(self.failed(&format!("ended while it loaded ({status})"), output));
            }
            let answer = client.get(format!("{base_url}/health")).send().await;
            if answer.is_ok_and(|a| a.status().is_success()) {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(self.failed(&format!("was not ready within {} s", LOADING.as_secs()), output));
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    fn note(&self, pid: u32) {
        let record = Record { pid, program: self.program.clone() };
        // Without the record a killed kernel leaves its server running: worth a word, not a failure.
        let written = serde_json::to_vec(&record).map_err(std::io::Error::from).and_then(|text| {
            std::fs::create_dir_all(self.record.parent().unwrap_or(Path::new(".")))?;
            std::fs::write(&self.record, text)
        });
        if let Err(e) = written {
            tracing::warn!("{} cannot be written: {e}", self.record.display());
        }
    }
}

/// Stops the server that a killed kernel left behind. A PID that another program has by now is let be.
async fn end_leftover(record: &Path) {
    let Ok(text) = std::fs::read(record) else { return };
    if let Ok(Record { pid, program }) = serde_json::from_slice::<Record>(&text) {
        let is_it = || {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let name = program.to_string_lossy().into_owned();
            line.split(|b| *b == 0).any(|part| part == name.as_bytes())
        };
        if is_it() {
            tracing::info!(pid, "stops the model server that an earlier kernel left behind");
            let _ = Command::new("kill").arg(pid.to_string()).status().await;
            let until = Instant::now() + ENDING;
            while is_it() && Instant::now() < until {
                tokio::time::sleep(ASK_EVERY).await;
            }
            if is_it() {
                let _ = Command::new("kill").args(["-9", &pid.to_string()]).status().await;
            }
        }
    }
    let _ = std::fs::remove_file(record); // read again next time, and then of a PID that is gone
}

/// A port that is free now. Another program may take it before the server does: then the server ends
/// with an error, and the next request tries again.
async fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port())
}

/// Reads a stream of the server to its end, keeping its last lines.
fn keep_tail(stream: Option<impl AsyncRead + Send + Unpin + 'static>, tail: &Arc<Mutex<Vec<String>>>) {
    let Some(stream) = stream else { return };
    let tail = Arc::clone(tail);
    tokio::spawn(async move {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).await.is_ok_and(|n| n > 0) {
            let text = super::shorten(String::from_utf8_lossy(&line).trim(), 200);
            line.clear();
            if !text.is_empty() {
                let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
                if tail.len() == TAIL {
                    tail.remove(0);
                }
                tail.push(text);
            }
        }
    });
}

#[async_trait]
impl Provider for Local {
    async fn generate(&self, request: Arc<Request>, deltas: UnboundedSender<Delta>) -> Result<Reply, Error> {
        let server = self.server().await?;
        let reply = server.generate(request, deltas).await;
        if let Err(Error::Unreachable { message, .. }) = &reply {
            let mut running = self.running.lock().await;
            if let Some(r) = running.as_mut()
                && let Ok(Some(status)) = r.child.try_wait()
            {
                let why = self.failed(&format!("ended in the middle of a request ({status}; {message})"), &r.output);
                tracing::warn!("{why}");
            }
        }
        reply
    }

    fn window(&self, model: &str) -> u32 {
        let remote = self.remote.lock().unwrap_or_else(PoisonError::into_inner);
        remote.as_ref().map_or(self.settings.window, |r| r.window(model))
    }

    async fn stop(&self) {
        if let Some(mut r) = self.running.lock().await.take() {
            // It has nothing to save; what is left of it is its memory.
            let _ = r.child.start_kill();
            let _ = tokio::time::timeout(ENDING, r.child.wait()).await;
            let _ = std::fs::remove_file(&self.record);
        }
    }
}

/// The settings of a local server's provider but for its address.
pub(super) fn settings(config: &LocalConfig, prices: Arc<super::prices::Prices>) -> Settings {
    Settings {
        name: "local".to_owned(),
        kind: ProviderKind::Openai,
        base_url: String::new(),
        key: None,
        window: config.window,
        native_tools: config.native_tools,
        prices,
    }
}
