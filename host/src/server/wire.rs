//! The wire: what a client may ask, and the lines that come back.
//!
//! A request is one value of [`Request`]; its name is the path (`POST /v1/NAME`), its parameters the
//! JSON body. An answer is a stream of JSON lines: CONTRACT's own objects as they are, so a line of
//! `POST /v1/ps` is a line of `aok ps --json`. Only where the kernel's type is not such an object
//! does this file have one of its own.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::error::ApiError;
use crate::abi;
use crate::capability::{HostGrant, Permissions};
use crate::grants::Revocation;
use crate::kernel::SpawnRequest;
use crate::kernel::info::{CallReport, ToolInfo};
use crate::process::{Mount, Pid, Signal};
use crate::quota::{OnQuota, Raise, ResourceQuota};
use crate::storage::LogRecord;
use crate::syscall::Approval;

/// The protocol that this aok speaks. A change that an older client or kernel would misread is a new
/// number; a new command or field is not.
pub const PROTOCOL: u32 = 2;

/// Header of each request: the client's [`PROTOCOL`].
pub const PROTOCOL_HEADER: &str = "aok-protocol";

/// Header of a request: the client's [`Origin`], as JSON.
pub const ORIGIN_HEADER: &str = "aok-origin";

/// Everything that the kernel does for a client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", content = "parameters", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Starts a process and streams its events; the last is `exit`.
    Run(Spawn),
    /// Continues an unfinished process and streams its events; the last is `exit`.
    Resume {
        /// Which.
        pid: Pid,
        /// Limits that it gets anew.
        #[serde(default)]
        raise: Raise,
    },
    /// Stops a process where it is; it can be resumed. Answers nothing.
    Suspend {
        /// Which.
        pid: Pid,
    },
    /// Starts a process; one [`Spawned`], as soon as it is durable and runnable.
    Spawn(Spawn),
    /// Streams the events of a process from now on; the last is `exit`.
    Attach {
        /// Which.
        pid: Pid,
    },
    /// Waits for the end of a process: its `exit` event.
    Wait {
        /// Which.
        pid: Pid,
    },
    /// Signals a process. Answers nothing.
    Signal {
        /// Which.
        pid: Pid,
        /// The signal.
        signal: Signal,
        /// Milliseconds that TERM gives it; the kernel's usual time when absent.
        #[serde(default)]
        grace_ms: Option<u64>,
    },
    /// Sets a process's nice value. Answers nothing.
    Nice {
        /// Which.
        pid: Pid,
        /// −20…19.
        nice: i8,
    },
    /// Ends a process. Answers nothing, once its exit is durable.
    Kill {
        /// Which.
        pid: Pid,
        /// Why, for its exit and the audit log.
        reason: String,
    },
    /// All processes.
    Ps {},
    /// A process's log lines.
    Logs {
        /// Which.
        pid: Pid,
        /// Go on until the process no longer runs.
        #[serde(default)]
        follow: bool,
    },
    /// All tools.
    ToolLs {},
    /// One tool.
    ToolShow {
        /// Full or bare name.
        name: String,
    },
    /// Calls a tool as a client process; one [`CallLine`].
    ToolCall {
        /// Full or bare name.
        name: String,
        /// The arguments object as JSON text.
        arguments: String,
        /// Directories that the tool may see.
        #[serde(default)]
        mounts: Vec<Mount>,
        /// Hosts that the tool may reach.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        hosts: Vec<HostGrant>,
        /// Whether the call ends with whoever waits for its answer.
        #[serde(default)]
        stop: bool,
        /// The connection that makes the call; then its rights count, and the call ends with whoever waits.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        connection: Option<Pid>,
    },
    /// Opens a connection: one process for all calls of a client. A [`Connected`], and then nothing until the
    /// process ends; it ends when nobody reads this answer any more.
    Connect {
        /// What `ps` shows.
        name: String,
        /// Directories that its tools may see.
        #[serde(default)]
        mounts: Vec<Mount>,
        /// Hosts that its tools may reach.
        #[serde(default)]
        hosts: Vec<HostGrant>,
    },
    /// The tools that a client with these rights is offered; each an [`OfferedTool`].
    ToolsOffered {
        /// Directories.
        #[serde(default)]
        mounts: Vec<Mount>,
        /// Hosts.
        #[serde(default)]
        hosts: Vec<HostGrant>,
    },
    /// A line for each change of the tools from now on, without end.
    ToolChanges {},
    /// All plugins.
    PluginLs {},
    /// Grants more to a plugin; a [`GrantReport`](crate::kernel::info::GrantReport).
    PluginGrant {
        /// Which.
        name: String,
        /// What; absolute paths.
        permissions: Permissions,
    },
    /// Takes grants of a plugin back; a [`GrantReport`](crate::kernel::info::GrantReport).
    PluginRevoke {
        /// Which.
        name: String,
        /// What; everything when absent.
        #[serde(default)]
        what: Revocation,
    },
    /// Trusts the component that a plugin has; a [`GrantReport`](crate::kernel::info::GrantReport).
    PluginTrust {
        /// Which.
        name: String,
    },
    /// All agents.
    AgentLs {},
    /// The questions that wait for an answer, or all.
    Approvals {
        /// Answered ones too.
        #[serde(default)]
        all: bool,
    },
    /// Answers a question; one [`ApprovalLine`].
    Decide {
        /// Which.
        id: u64,
        /// Whether it may be done.
        approved: bool,
        /// Whether that holds for all such questions from now on.
        #[serde(default)]
        always: bool,
    },
    /// All hooks, by point and in the order in which they are asked.
    HookLs {},
    /// The pages of a process's context in window order, swapped ones after.
    Context {
        /// Which.
        pid: Pid,
    },
    /// What a process changed in its private copies, by path.
    Diff {
        /// Which.
        pid: Pid,
        /// With the changes of text files as unified diffs.
        #[serde(default)]
        text: bool,
    },
    /// Applies what a process changed to the originals; what was applied, or what cannot be and a failure.
    Apply {
        /// Which.
        pid: Pid,
        /// What; everything if there is none.
        #[serde(default)]
        files: Vec<String>,
    },
    /// Throws away what a process changed in its private copies; what it was.
    Discard {
        /// Which.
        pid: Pid,
    },
    /// The last audit records, oldest first.
    AuditTail {
        /// Of this process only.
        #[serde(default)]
        pid: Option<Pid>,
        /// How many.
        limit: u64,
    },
    /// Checks every audit chain; one verdict.
    AuditVerify {},
    /// One [`MetricsLine`].
    Metrics {},
    /// What works, as the kernel sees it.
    Doctor {
        /// The model that the client's runs ask for; the kernel's default when absent.
        #[serde(default)]
        model: Option<String>,
    },
}

/// What to start.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Spawn {
    /// Agent name; the bundled `assistant` when empty.
    pub agent: String,
    /// The task.
    pub task: String,
    /// `provider/model`; the kernel's default when absent.
    pub model: Option<String>,
    /// Name for people.
    pub name: Option<String>,
    /// Scheduling group.
    pub group: Option<String>,
    /// −20…19.
    pub nice: i8,
    /// Directories for its tools.
    pub mounts: Vec<Mount>,
    /// Hosts that its tools may reach.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<HostGrant>,
    /// Whether the client says yes to all that a hook asks a person about.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub yes: bool,
    /// Limits.
    pub quota: ResourceQuota,
    /// What becomes of it when one is used up.
    #[serde(skip_serializing_if = "OnQuota::is_usual")]
    pub on_quota: OnQuota,
}

impl From<Spawn> for SpawnRequest {
    fn from(s: Spawn) -> Self {
        Self {
            agent: s.agent,
            task: s.task,
            model: s.model,
            name: s.name,
            group: s.group,
            nice: s.nice,
            mounts: s.mounts,
            hosts: s.hosts,
            yes: s.yes,
            quota: s.quota,
            on_quota: s.on_quota,
        }
    }
}

/// A process that was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spawned {
    /// Its PID.
    pub pid: Pid,
}

/// A question to a person, as `aok approvals` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalLine {
    /// Its id.
    pub approval: u64,
    /// The process.
    pub pid: Pid,
    /// The journal position of the call.
    pub seq: u64,
    /// Unix milliseconds.
    pub at_ms: u64,
    /// The process's agent.
    pub agent: String,
    /// The syscall.
    pub call: String,
    /// What it is about.
    pub object: String,
    /// The hook that asks.
    pub hook: String,
    /// Its question.
    pub reason: String,
    /// `pending`, `approved` or `denied`.
    pub state: String,
    /// Whether the answer holds for all such questions.
    pub always: bool,
}

impl From<Approval> for ApprovalLine {
    fn from(a: Approval) -> Self {
        let state = a.state().to_owned();
        let always = a.answer.is_some_and(|answer| answer.always);
        let Approval { id, pid, seq, at_ms, agent, call, object, hook, reason, .. } = a;
        Self { approval: id, pid, seq, at_ms, agent, call, object, hook, reason, state, always }
    }
}

/// What a client's command line says about how a kernel is started. A running kernel cannot take it
/// over, so it refuses a client whose wishes it was not started with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// `--plugins`, absolute.
    pub plugins: Vec<PathBuf>,
    /// `--config`, absolute, where it was given.
    pub config: Option<PathBuf>,
}

impl Origin {
    /// Whether a kernel started as `self` serves a client that was started as `client`.
    ///
    /// # Errors
    /// Names the option that the kernel was not started with.
    pub fn serves(&self, client: &Self) -> Result<(), String> {
        if let Some(dir) = client.plugins.iter().find(|d| !self.plugins.contains(d)) {
            return Err(format!("`--plugins {}`", dir.display()));
        }
        match &client.config {
            Some(path) if self.config.as_ref() != Some(path) => Err(format!("`--config {}`", path.display())),
            _ => Ok(()),
        }
    }
}

/// Who answers on the socket (`GET /v1/hello`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Its protocol.
    pub protocol: u32,
    /// The aok version, for people.
    pub version: String,
    /// Operating-system process id of the kernel.
    pub pid: u32,
    /// It takes no more requests: it is about to give the data directory back.
    pub closing: bool,
}

/// A failure on the wire: the body of a refused request, and the last line of a stream that broke
/// off. No line of an answer has these two fields alone, so the two cannot be confused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// What went wrong.
    pub error: ApiError,
    /// The exit status of a command that ends with it.
    pub exit: u8,
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self { exit: error.exit(), error }
    }
}

/// A line of `logs`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Whose.
    pub pid: Pid,
    /// The journal position that wrote it.
    pub seq: u64,
    /// Unix milliseconds.
    pub at_ms: u64,
    /// `trace`, `debug`, `info`, `warn` or `error`.
    pub level: String,
    /// The agent's or the tool's name.
    pub source: String,
    /// The line.
    pub message: String,
}

impl From<LogRecord> for LogLine {
    fn from(r: LogRecord) -> Self {
        Self { pid: r.pid, seq: r.seq, at_ms: r.at_ms, level: r.level, source: r.source, message: r.message }
    }
}

/// A tool that a client may call.
#[derive(Debug, Serialize, Deserialize)]
pub struct OfferedTool {
    /// The tool.
    #[serde(flatten)]
    pub tool: ToolInfo,
    /// Whether it may ask the network.
    pub network: bool,
}

/// `tool call --json` (CONTRACT §3). The result is the tool's own JSON text, byte for byte.
#[derive(Debug, Serialize, Deserialize)]
pub struct CallLine {
    /// Full tool name.
    pub tool: String,
    /// Whether there is a result.
    pub ok: bool,
    /// The result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Box<RawValue>>,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<CallError>,
    /// The client process that made the call.
    pub pid: u64,
    /// Fuel of the call.
    pub fuel: u64,
    /// Peak bytes of the tool's memories.
    pub memory_bytes: u64,
    /// Microseconds.
    pub duration_us: u64,
    /// Journal position.
    pub seq: u64,
}

/// A tool call's error; `limit` is there always, `null` where no limit ended the call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallError {
    /// The errno's name.
    pub code: abi::Errno,
    /// What happened.
    pub message: String,
    /// The limit that ended it.
    pub limit: Option<String>,
    /// What the tool said of it, where it said it in more than words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Box<Value>>,
}

impl From<CallError> for abi::Error {
    fn from(CallError { code, message, limit, data }: CallError) -> Self {
        Self { code, message, limit, data }
    }
}

impl From<CallReport> for CallLine {
    fn from(report: CallReport) -> Self {
        let (result, error) = match report.outcome {
            // A tool's result is JSON text; what is not (a tool that broke its word) travels as a string.
            Ok(text) => {
                (RawValue::from_string(text.clone()).or_else(|_| serde_json::value::to_raw_value(&text)).ok(), None)
            }
            Err(abi::Error { code, message, limit, data }) => (None, Some(CallError { code, message, limit, data })),
        };
        Self {
            tool: report.tool,
            ok: error.is_none(),
            result,
            error,
            pid: report.pid,
            fuel: report.fuel,
            memory_bytes: report.memory_bytes,
            duration_us: report.duration_us,
            seq: report.seq,
        }
    }
}

/// The first line of the answer of `connect`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connected {
    /// The process.
    pub pid: Pid,
}

/// The answer of `metrics`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricsLine {
    /// Prometheus text.
    pub prometheus: String,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::error::Code;
    use super::*;
    use crate::grants::Key;

    fn every_request() -> Vec<Request> {
        let pid = Pid(3);
        let mounts =
            vec![Mount { host: "/srv/größe".into(), guest: "größe".into(), writable: true, private: true }];
        let hosts = vec!["[::1]:8080".parse().unwrap(), "*.example.com".parse().unwrap()];
        vec![
            Request::Run(Spawn {
                task: "t".into(),
                nice: -5,
                mounts: mounts.clone(),
                hosts: hosts.clone(),
                ..Spawn::default()
            }),
            Request::Resume { pid, raise: Raise { tokens: Some(5), ..Raise::default() } },
            Request::Suspend { pid },
            Request::Kill { pid, reason: "r".into() },
            Request::Ps {},
            Request::Logs { pid, follow: true },
            Request::ToolLs {},
            Request::ToolShow { name: "read".into() },
            Request::ToolCall {
                name: "read".into(),
                arguments: "{\"a\": 1}".into(),
                mounts,
                hosts,
                stop: true,
                connection: Some(pid),
            },
            Request::Connect { name: "x".into(), mounts: vec![], hosts: vec![] },
            Request::PluginLs {},
            Request::PluginGrant {
                name: "p".into(),
                permissions: Permissions {
                    read: vec!["/srv".into()],
                    http: vec!["GET h/v1/*".parse().unwrap()],
                    secrets: vec!["K@h".parse().unwrap()],
                    ..Permissions::default()
                },
            },
            Request::PluginRevoke {
                name: "p".into(),
                what: Revocation { keys: Key::ALL.to_vec(), ..Revocation::default() },
            },
            Request::PluginTrust { name: "p".into() },
            Request::AgentLs {},
            Request::HookLs {},
            Request::Approvals { all: true },
            Request::Decide { id: 3, approved: true, always: false },
            Request::Context { pid },
            Request::Diff { pid, text: true },
            Request::Apply { pid, files: vec!["a/b".into()] },
            Request::Discard { pid },
            Request::AuditTail { pid: None, limit: 5 },
            Request::AuditVerify {},
            Request::Metrics {},
            Request::Doctor { model: Some("p/m".into()) },
        ]
    }

    #[test]
    fn every_request_survives_the_wire() {
        for request in every_request() {
            let text = serde_json::to_string(&request).unwrap();
            assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), request, "{text}");
            let value: Value = serde_json::from_str(&text).unwrap();
            assert!(value["command"].is_string() && value["parameters"].is_object(), "{text}");
        }
    }

    #[test]
    fn unknown_commands_and_parameters_are_refused_by_name() {
        let parse = |v: Value| serde_json::from_value::<Request>(v).unwrap_err().to_string();
        assert!(parse(json!({"command": "fly", "parameters": {}})).contains("fly"));
        assert!(parse(json!({"command": "ps", "parameters": {"al": 1}})).contains("al"));
        assert!(parse(json!({"command": "run", "parameters": {"tsk": "x"}})).contains("tsk"));
        assert!(parse(json!({"command": "logs", "parameters": {"pid": "x"}})).contains("invalid type"));
    }

    #[test]
    fn omitted_parameters_have_their_defaults() {
        let run: Request = serde_json::from_value(json!({"command": "run", "parameters": {"task": "x"}})).unwrap();
        assert_eq!(run, Request::Run(Spawn { task: "x".into(), ..Spawn::default() }));
        let Request::Run(spawn) = run else { panic!("a run") };
        assert_eq!(SpawnRequest::from(spawn).quota, ResourceQuota::STANDARD);
    }

    #[test]
    fn a_failure_is_told_from_every_other_line() {
        let failure = Failure::from(ApiError::new(Code::Denied, "m", "h"));
        let text = serde_json::to_string(&failure).unwrap();
        assert_eq!(text, r#"{"error":{"code":"denied","message":"m","hint":"h"},"exit":3}"#);
        assert_eq!(serde_json::from_str::<Failure>(&text).unwrap(), failure);
        let event = r#"{"pid":1,"seq":2,"at_ms":3,"type":"tool_end","error":{"code":"denied","message":"m","hint":"h"},"exit":3}"#;
        assert!(serde_json::from_str::<Failure>(event).is_err());
    }

    #[test]
    fn a_result_keeps_its_bytes() {
        let report = |outcome| CallReport {
            tool: "calc__eval".into(),
            pid: 9,
            outcome,
            fuel: 1,
            memory_bytes: 2,
            duration_us: 3,
            seq: 4,
        };
        let odd = "{\"b\": 1.50,\"a\":12345678901234567890123}";
        let text = serde_json::to_string(&CallLine::from(report(Ok(odd.into())))).unwrap();
        assert!(text.contains(odd), "{text}");
        let line: CallLine = serde_json::from_str(&text).unwrap();
        assert_eq!((line.ok, line.result.unwrap().get()), (true, odd));
        let broken = CallLine::from(report(Ok("not json".into())));
        assert_eq!(broken.result.unwrap().get(), "\"not json\"");
        let failed =
            serde_json::to_value(CallLine::from(report(Err(abi::Error::new(abi::Errno::Denied, "no"))))).unwrap();
        assert_eq!(failed["error"], json!({"code": "denied", "message": "no", "limit": null}));
        assert_eq!((failed["ok"].as_bool(), failed.get("result")), (Some(false), None));
    }

    #[test]
    fn a_kernel_serves_those_who_ask_for_no_more_than_it_has() {
        let kernel = Origin { plugins: vec!["/p".into(), "/q".into()], config: Some("/c.toml".into()) };
        let client = |plugins: &[&str], config: Option<&str>| Origin {
            plugins: plugins.iter().map(PathBuf::from).collect(),
            config: config.map(PathBuf::from),
        };
        assert_eq!(kernel.serves(&client(&[], None)), Ok(()));
        assert_eq!(kernel.serves(&client(&["/q"], Some("/c.toml"))), Ok(()));
        assert_eq!(kernel.serves(&client(&["/r"], None)), Err("`--plugins /r`".into()));
        assert_eq!(kernel.serves(&client(&[], Some("/d.toml"))), Err("`--config /d.toml`".into()));
    }
}
