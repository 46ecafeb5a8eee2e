//! What the tests share: the built `aok`, a data directory, scripts, and plugins from the guests.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use system_tests::fake_llm::Recorded;
use tempfile::{NamedTempFile, TempDir};

include!(concat!(env!("OUT_DIR"), "/guests.rs"));

pub(crate) use foreach_guest;

/// How long a test waits for what must come. Only a hang takes as long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Looks again and again until `look` finds something.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A folder of compiled code that all worlds share: each plugin is compiled once per build and not
/// once per test. It is filled by `aok` itself.
fn compiled() -> &'static Path {
    static CACHE: OnceLock<PathBuf> = OnceLock::new();
    CACHE.get_or_init(|| {
        let data = Path::new(env!("CARGO_TARGET_TMPDIR")).join("warm");
        let components = Path::new(PROBE).parent().expect("a component is in a folder");
        let mut command = Command::new(aok_binary());
        command.arg("--data").arg(&data).arg("--plugins").arg(components).args(["plugin", "ls"]);
        let ran = Ran::of(command.output().expect("aok can be started"));
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        data.join("cache")
    })
}

/// The `aok` that is tested: AOK_BIN, else the one that was built beside this test.
pub(crate) fn aok_binary() -> PathBuf {
    if let Some(path) = std::env::var_os("AOK_BIN") {
        return path.into();
    }
    // This test is target/release/deps/system-HASH.
    let exe = std::env::current_exe().expect("a running test has a path");
    let path = exe.ancestors().nth(2).expect("a test stands two folders deep").join("aok");
    assert!(path.exists(), "{} is missing: run `cargo build --release` first, or set AOK_BIN", path.display());
    path
}

/// A script's line that asks for one tool call.
pub(crate) fn calls(id: &str, name: &str, arguments: &Value) -> Value {
    json!({"tool_calls": [{"id": id, "name": name, "arguments": arguments}]})
}

/// A kernel's world: a data directory, a folder of plugins, a folder `work` for the agent's files.
pub(crate) struct World {
    pub(crate) dir: TempDir,
}

/// What a finished `aok` gave.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).expect("aok prints UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("aok prints UTF-8"),
        }
    }

    /// Fails the test, with everything that was printed, unless the exit code is `code`.
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// The JSON lines of stdout.
    #[track_caller]
    pub(crate) fn lines(&self) -> Vec<Value> {
        let parse = |l: &str| serde_json::from_str(l).unwrap_or_else(|e| panic!("`{l}` is no JSON: {e}"));
        self.stdout.lines().map(parse).collect()
    }

    /// The one `{"error":{…}}` object of stderr.
    #[track_caller]
    pub(crate) fn error(&self) -> Value {
        let found = self
            .stderr
            .lines()
            .filter_map(|l| serde_json::from_str::<Value>(l).ok())
            .find(|v| v.get("error").is_some());
        found.unwrap_or_else(|| panic!("no error object in:\n{}", self.stderr))["error"].clone()
    }
}

impl Ran {
    /// The command must have failed so, with a way out and all of `words` in message or hint.
    #[track_caller]
    pub(crate) fn refused(self, exit: i32, code: &str, words: &[&str]) {
        let error = self.exits(exit).error();
        assert_eq!(error["code"], code, "{error}");
        let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
        let (message, hint) = (text("message"), text("hint"));
        assert!(!hint.is_empty(), "no way out: {error}");
        for word in words {
            assert!(message.contains(word) || hint.contains(word), "`{word}` is missing: {error}");
        }
    }
}

impl World {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for name in ["plugins", "work"] {
            std::fs::create_dir(dir.path().join(name)).expect("a folder in it");
        }
        let world = Self { dir };
        world.warm();
        world
    }

    /// Makes the data directory, with links to the compiled code of all test guests.
    pub(crate) fn warm(&self) {
        let cache = self.data().join("cache");
        std::fs::create_dir_all(&cache).expect("the data directory");
        for entry in std::fs::read_dir(compiled()).expect("the compiled code") {
            let file = entry.expect("its entries").path();
            let link = cache.join(file.file_name().expect("a file has a name"));
            std::os::unix::fs::symlink(file, link).expect("a link to compiled code");
        }
    }

    /// Writes the data directory's `aok.toml`.
    pub(crate) fn configure(&self, toml: &str) {
        std::fs::write(self.data().join("aok.toml"), toml).expect("aok.toml is written");
    }

    /// Starts `aok` beside the test.
    pub(crate) fn start(&self, args: &[&str]) -> Running {
        self.spawn(&mut self.aok(args))
    }

    fn spawn(&self, command: &mut Command) -> Running {
        let file = || NamedTempFile::new_in(self.dir.path()).expect("a file for its output");
        let (stdout, stderr) = (file(), file());
        let open = |file: &NamedTempFile| file.reopen().expect("the file is there");
        let child = command.stdout(open(&stdout)).stderr(open(&stderr)).spawn().expect("aok can be started");
        Running { child, stdout, stderr }
    }

    /// Executes one SQL statement on the store, past `aok`, and gives its rows.
    #[track_caller]
    pub(crate) fn sqlite(&self, statement: &str) -> Vec<Vec<Value>> {
        const CODE: &str = "import json, sqlite3, sys\n\
            db = sqlite3.connect(sys.argv[1])\n\
            rows = db.execute(sys.argv[2]).fetchall()\n\
            db.commit()\n\
            db.close()\n\
            print(json.dumps(rows))";
        let mut python = Command::new("python3");
        python.args(["-c", CODE]).arg(self.data().join("aok.db")).arg(statement);
        let output = python.output().expect("python3 is installed");
        let ran = Ran::of(output).exits(0);
        serde_json::from_str(&ran.stdout).expect("rows")
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The folder that runs with `--dir` see as `work`.
    pub(crate) fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    pub(crate) fn plugins(&self) -> PathBuf {
        self.dir.path().join("plugins")
    }

    /// Installs a guest of `tests/guests` under its own name.
    pub(crate) fn install(&self, component: &str) {
        let name = Path::new(component).file_name().expect("a component is a file");
        std::fs::copy(component, self.plugins().join(name)).expect("the plugin is copied");
    }

    /// Writes a script of model replies; the model's full name.
    pub(crate) fn script(&self, lines: &[Value]) -> String {
        let path = self.dir.path().join("script.jsonl");
        let text: String = lines.iter().map(|l| format!("{l}\n")).collect();
        std::fs::write(&path, text).expect("the script is written");
        format!("script/{}", path.display())
    }

    /// A model that answers at once.
    pub(crate) fn answers(&self, text: &str) -> String {
        self.script(&[json!({ "text": text })])
    }

    /// A model that has a product computed and then takes its time to tell it. It is a file of its own,
    /// which may be written anew while a process waits: then a resumed one is answered sooner.
    pub(crate) fn slow(&self, delay_ms: u64) -> String {
        let path = self.dir.path().join("slow.jsonl");
        let call = json!({"id": "a", "name": "calc__eval", "arguments": {"expression": "6*7"}});
        let lines = [
            json!({ "tool_calls": [call] }).to_string(),
            json!({"text": "It is {{a.value}}.", "delay_ms": delay_ms}).to_string(),
        ];
        std::fs::write(&path, lines.join("\n")).expect("the script is written");
        format!("script/{}", path.display())
    }

    /// Starts a run that has made its tool call and waits for its model, for ten minutes.
    pub(crate) fn waiting(&self) -> Running {
        self.waiting_with(("AOK_NOTHING", ""))
    }

    /// As [`Self::waiting`], with one more variable in its environment.
    pub(crate) fn waiting_with(&self, variable: (&str, &str)) -> Running {
        let model = self.slow(600_000);
        let args = ["run", "--task", "wait", "--model", &model, "--json"];
        let mut run = self.spawn(self.aok(&args).env(variable.0, variable.1));
        run.event("tool_end");
        run
    }

    /// `aok` on this world's data directory and plugins, without the user's own environment.
    pub(crate) fn aok(&self, args: &[&str]) -> Command {
        let mut command = Command::new(aok_binary());
        command.arg("--data").arg(self.data()).arg("--plugins").arg(self.plugins()).args(args);
        for name in ["AOK_HOME", "AOK_MODEL", "OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY", "RUST_LOG"] {
            command.env_remove(name);
        }
        command.stdin(Stdio::null());
        command
    }

    /// Runs `aok` to its end with one more variable in its environment.
    pub(crate) fn run_with(&self, args: &[&str], variable: (&str, &str)) -> Ran {
        Ran::of(self.aok(args).env(variable.0, variable.1).output().expect("aok can be started"))
    }

    /// Runs `aok` to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        Ran::of(self.aok(args).output().expect("aok can be started"))
    }
}

/// An `aok` that runs beside the test, and ends with it.
pub(crate) struct Running {
    child: Child,
    stdout: NamedTempFile,
    stderr: NamedTempFile,
}

impl Running {
    /// The operating system's id of the process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, `INT` or `KILL` for example.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.id().to_string()]).status();
        assert!(status.expect("kill can be started").success(), "no signal was sent to {}", self.id());
    }

    /// Waits for an event of `run --json`.
    #[track_caller]
    pub(crate) fn event(&mut self, kind: &str) -> Value {
        eventually(&format!("the event `{kind}`"), || {
            let ended = self.child.try_wait().expect("the child is ours").is_some();
            let text = read(&self.stdout);
            let whole = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
            let mut events = whole.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok());
            let found = events.find(|e| e["type"] == kind);
            assert!(found.is_some() || !ended, "no `{kind}` in:\n{text}\n{}", read(&self.stderr));
            found
        })
    }

    /// Waits for the end.
    #[track_caller]
    pub(crate) fn end(mut self) -> Ran {
        let status = eventually("the end of aok", || self.child.try_wait().expect("the child is ours"));
        Ran { code: status.code(), stdout: read(&self.stdout), stderr: read(&self.stderr) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail where it has ended already, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read(file: &NamedTempFile) -> String {
    std::fs::read_to_string(file.path()).expect("aok prints UTF-8")
}

/// The fake model server as a process of its own, which outlives the kernels that ask it.
pub(crate) struct ModelServer {
    child: Child,
    /// Base URL, with `/v1`.
    pub(crate) url: String,
}

impl ModelServer {
    /// Serves a script for `agent`.
    pub(crate) fn start(script: &Path, agent: &str) -> Self {
        Self::start_with(script, &["--agent", agent])
    }

    /// Serves a script with more options of `fake-llm`.
    pub(crate) fn start_with(script: &Path, options: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fake-llm"));
        command.arg(script).args(options).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the fake model server can be started");
        let mut url = String::new();
        let stdout = child.stdout.take().expect("its stdout is a pipe");
        BufReader::new(stdout).read_line(&mut url).expect("it says its URL");
        Self { child, url: url.trim().to_owned() }
    }

    /// Every request so far, in the order of arrival.
    pub(crate) fn requests(&self) -> Vec<Recorded> {
        let address = self.url.trim_start_matches("http://").trim_end_matches("/v1");
        let mut stream = TcpStream::connect(address).expect("the server listens");
        // HTTP 1.0: the answer ends where the connection does.
        write!(stream, "GET /recorded HTTP/1.0\r\n\r\n").expect("the server reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("the server answers");
        let body = answer.split_once("\r\n\r\n").expect("an answer has a head").1;
        serde_json::from_str(body).expect("the records are JSON")
    }

    /// An `aok.toml` whose provider `fake` is this server, with a window of so many tokens.
    pub(crate) fn config(&self, window: u32) -> String {
        format!("[llm.providers.fake]\nkind = \"openai\"\nbase_url = \"{}\"\nwindow = {window}\n", self.url)
    }
}

impl Drop for ModelServer {
    fn drop(&mut self) {
        // It may be gone already; there is nothing to do about either.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
