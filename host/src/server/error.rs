//! The one border between the kernel's errors and everybody outside: a closed code, a message, a
//! hint and an exit status. The table of codes is `docs/errors.md`; a test compares the two.

use std::error::Error as StdError;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::abi::{self, Errno};
use crate::{config, grants, kernel, llm, overlay, process, storage};

/// Declares the closed list once, so that a code cannot lack its exit status or its place in `ALL`.
macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $exit:literal,)+) => {
        /// The closed list of error codes. On the wire and in `--json` each is its `snake_case` name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Code { $($(#[$doc])* $name,)+ }

        impl Code {
            /// Every code, in the order of `docs/errors.md`.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The exit status of a command that ends with it (CONTRACT §2).
            #[must_use]
            pub fn exit(self) -> u8 {
                match self { $(Self::$name => $exit,)+ }
            }
        }
    };
}

codes! {
    /// The command line or the request is not what the command takes.
    BadUsage = 2,
    /// A configuration file is unreadable or wrong.
    BadConfig = 2,
    /// A text that must be JSON is not.
    InvalidJson = 2,
    /// Arguments are malformed, out of range or against the tool's schema.
    InvalidArguments = 2,
    /// No agent of that name.
    UnknownAgent = 2,
    /// No tool of that name.
    UnknownTool = 2,
    /// Several tools answer to that bare name.
    AmbiguousTool = 2,
    /// No plugin of that name.
    UnknownPlugin = 2,
    /// A plugin cannot be used.
    PluginRefused = 2,
    /// No process of that PID.
    UnknownProcess = 2,
    /// The process is not in a state for it.
    BadState = 2,
    /// No question of that id.
    UnknownApproval = 2,
    /// The question has its answer already.
    Answered = 2,
    /// No model is chosen.
    NoModel = 2,
    /// The model's name leads nowhere.
    UnknownModel = 2,
    /// The agent ended without an answer.
    AgentFailed = 1,
    /// The tool gave an error instead of a result.
    ToolFailed = 1,
    /// The process was killed.
    Killed = 1,
    /// What a process changed was changed outside as well.
    Conflict = 1,
    /// An audit chain does not hold.
    AuditBroken = 1,
    /// A limit did not stop the guest that it must stop.
    LimitBroken = 1,
    /// A plugin's source does not become a component.
    BuildFailed = 1,
    /// The script expected another message.
    ScriptMismatch = 1,
    /// The script has no more replies.
    ScriptExhausted = 1,
    /// A grant, a hook or a policy refused it.
    Denied = 3,
    /// A hook wants a person to decide, and nobody could be asked.
    NeedsApproval = 3,
    /// A limit or a quota ended it.
    Quota = 4,
    /// The provider answered with an error.
    ProviderError = 5,
    /// The provider cannot be reached.
    ProviderUnreachable = 5,
    /// The provider's reply cannot be used.
    BadReply = 5,
    /// Another kernel holds the data directory and does not answer.
    Locked = 5,
    /// The kernel that served the command ended.
    KernelGone = 5,
    /// The kernel is about to end and did not take the request.
    KernelEnding = 5,
    /// The running kernel is of another version of aok.
    BadProtocol = 5,
    /// The process was stopped before its end and can be resumed.
    Stopped = 5,
    /// This needs a running kernel.
    ReadOnly = 5,
    /// The disk, or its quota, is full.
    StoreFull = 5,
    /// A newer aok wrote the store.
    StoreTooNew = 5,
    /// The store failed.
    StoreFailed = 5,
    /// A file or directory cannot be used.
    Io = 5,
    /// Something that aok needs does not work here.
    Unhealthy = 5,
    /// The engine could not be built.
    Engine = 70,
    /// A bug in aok.
    Internal = 70,
    /// A signal ended the command; what it ran can be resumed.
    Interrupted = 130,
}

impl Code {
    /// The code's name as users see it.
    #[must_use]
    pub fn name(self) -> String {
        // A unit variant always serialises to a string; the debug form stands in if that ever changes.
        match serde_json::to_value(self) {
            Ok(serde_json::Value::String(name)) => name,
            _ => format!("{self:?}"),
        }
    }

    /// The code of a tool call that ended with `error`.
    #[must_use]
    pub fn of_call(error: &abi::Error) -> Self {
        match error.code {
            Errno::Denied => Self::Denied,
            _ if error.limit.is_some() => Self::Quota,
            Errno::Quota => Self::Quota,
            Errno::Invalid => Self::InvalidArguments,
            _ => Self::ToolFailed,
        }
    }

    /// The code of a process that ended with `status` and `message` (the `exit` event's), `None` for a
    /// success. An agent that gives up because its script did says so in the script's words; every other
    /// failure is the agent's own.
    #[must_use]
    pub fn of_exit(status: &str, message: &str) -> Option<Self> {
        match status {
            "success" => None,
            "killed" => Some(Self::Killed),
            "over-quota" => Some(Self::Quota),
            _ if message.starts_with("script_mismatch: ") => Some(Self::ScriptMismatch),
            _ if message.starts_with("script_exhausted: ") => Some(Self::ScriptExhausted),
            _ => Some(Self::AgentFailed),
        }
    }
}

/// What went wrong, as users and clients see it: safe to show, complete in itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    /// The closed reason.
    pub code: Code,
    /// What happened, to what.
    pub message: String,
    /// What to do next.
    pub hint: String,
}

impl ApiError {
    /// Builds an error.
    pub fn new(code: Code, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: hint.into() }
    }

    /// The error of a bug: something that cannot happen did.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message, "this is a bug in aok; run it again with `-vv` and report what it prints")
    }

    /// The exit status of a command that ends with it.
    #[must_use]
    pub fn exit(&self) -> u8 {
        self.code.exit()
    }

    /// The error of a process that was stopped before its end.
    #[must_use]
    pub fn stopped(pid: process::Pid) -> Self {
        Self::new(Code::Stopped, format!("process {pid} was stopped before its end"), resume_hint(pid))
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for ApiError {}

/// The command that continues `pid`, as a hint.
#[must_use]
pub fn resume_hint(pid: process::Pid) -> String {
    format!("resume with: aok run --resume {pid}")
}

/// An error's text with those of its causes that it does not already quote.
pub(crate) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let part = e.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        cause = e.source();
    }
    text
}

impl From<kernel::Error> for ApiError {
    fn from(error: kernel::Error) -> Self {
        use kernel::Error as E;
        let message = chain(&error);
        let (code, hint) = match error {
            E::Locked { holder, .. } => (
                Code::Locked,
                format!("that kernel does not answer on its socket: end process {holder}, or use another `--data`"),
            ),
            E::Io { source, path, .. } => of_io(&source, &path.display().to_string()),
            E::Config(e) => return e.into(),
            E::Storage(e) => return e.into(),
            E::Model(e) => return e.into(),
            E::Plugin { fault, .. } => (Code::PluginRefused, format!("{} [{}]", fault.hint, fault.code)),
            E::UnknownAgent { known, .. } => (Code::UnknownAgent, listed("agents", &known, "aok agent ls")),
            E::UnknownTool { known, .. } => (Code::UnknownTool, listed("tools", &known, "aok tool ls")),
            E::AmbiguousTool { candidates, .. } => {
                (Code::AmbiguousTool, listed("say which", &candidates, "aok tool ls"))
            }
            E::UnknownPlugin { known, .. } => (Code::UnknownPlugin, listed("plugins", &known, "aok plugin ls")),
            E::Grants(e) => return e.into(),
            E::UnknownProcess { .. } => (Code::UnknownProcess, "`aok ps` lists the processes".to_owned()),
            E::State { pid, .. } => {
                (Code::BadState, format!("`aok ps` shows its state, `aok logs {pid}` what it wrote"))
            }
            E::Conflict { pid, .. } => (
                Code::Conflict,
                format!(
                    "nothing was applied; `aok diff {pid}` shows all, `aok apply {pid} FILE…` applies the others by \
                     name, `aok discard {pid}` gives up"
                ),
            ),
            E::Unchanged { pid, .. } => {
                (Code::InvalidArguments, format!("`aok diff {pid} --stat` lists what can be applied"))
            }
            E::Files { pid, source } => return of_files(message, pid, source),
            E::Suspended { pid, .. } => (Code::Stopped, resume_hint(pid)),
            E::Unanswered { pid, source } => {
                let Self { code, hint, .. } = (*source).into();
                (code, format!("{hint}; then {}", resume_hint(pid)))
            }
            E::UnknownApproval { pending, .. } => {
                let pending: Vec<_> = pending.iter().map(u64::to_string).collect();
                (Code::UnknownApproval, listed("waiting for an answer", &pending, "aok approvals"))
            }
            E::Answered { .. } => (Code::Answered, "`aok approvals --all` shows the answers".to_owned()),
            E::NeedsApproval { .. } => {
                (Code::NeedsApproval, "run it again with `--yes`, which says yes to all such questions".to_owned())
            }
            E::Invalid(_) => (Code::InvalidArguments, "correct the value and run the command again".to_owned()),
            E::Denied { by, .. } => (Code::Denied, format!("change the request, or the rule of `{by}`")),
            E::Engine(_) => {
                (Code::Engine, "run it again with `-vv`; if the machine has memory to spare, report it".to_owned())
            }
            E::Crowded { .. } => (
                Code::Unhealthy,
                "raise it (sysctl -w vm.max_map_count=262144), or spawn when some have ended".to_owned(),
            ),
            E::ReadOnly => (Code::ReadOnly, "start one with `aok run` on this data directory".to_owned()),
        };
        Self { code, message, hint }
    }
}

/// Names up to ten things that exist, and the command that lists them all.
fn listed(what: &str, names: &[String], command: &str) -> String {
    const SHOWN: usize = 10;
    match names.len() {
        0 => format!("`{command}` lists what there is"),
        n if n <= SHOWN => format!("{what}: {}", names.join(", ")),
        n => format!("{what}: {} … and {} more (`{command}`)", names[..SHOWN].join(", "), n - SHOWN),
    }
}

/// Why a private copy cannot be shown or applied.
fn of_files(message: String, pid: process::Pid, error: overlay::Error) -> ApiError {
    let again = format!("`aok apply {pid}` then goes on where it stopped");
    let (code, hint) = match error {
        overlay::Error::Io { source, path } => {
            let (code, hint) = of_io(&source, &path);
            (code, format!("{hint}; {again}"))
        }
        overlay::Error::Conflict { .. } => {
            (Code::Conflict, format!("it was changed at this moment; `aok diff {pid}` shows what is left to apply"))
        }
        overlay::Error::Unchanged(_) => (Code::InvalidArguments, format!("`aok diff {pid} --stat` lists what can be")),
    };
    ApiError { code, message, hint }
}

fn of_io(source: &std::io::Error, path: &str) -> (Code, String) {
    use std::io::ErrorKind as K;
    match source.kind() {
        K::StorageFull | K::QuotaExceeded => (Code::StoreFull, format!("free some space for {path}")),
        K::PermissionDenied => (Code::Io, format!("give yourself access to {path}, or use another `--data`")),
        _ => (Code::Io, format!("check {path}, or use another `--data`")),
    }
}

impl From<config::Error> for ApiError {
    fn from(error: config::Error) -> Self {
        let (config::Error::Read { path, .. } | config::Error::Parse { path, .. }) = &error;
        let hint = format!("correct {}, or name another file with `--config`", path.display());
        Self { code: Code::BadConfig, message: chain(&error), hint }
    }
}

impl From<grants::Error> for ApiError {
    fn from(error: grants::Error) -> Self {
        use grants::Error as E;
        let message = chain(&error);
        let (code, hint) = match error {
            E::Parse { path, .. } => (Code::BadConfig, format!("correct {}", path.display())),
            E::File { source, path } => of_io(&source, &path.display().to_string()),
            E::Refused { hint, .. } => (Code::InvalidArguments, hint),
        };
        Self { code, message, hint }
    }
}

impl From<storage::Error> for ApiError {
    fn from(error: storage::Error) -> Self {
        use storage::Error as E;
        let message = chain(&error);
        let (code, hint) = match error {
            E::Url { .. } => (Code::BadConfig, "correct `[storage] url` in aok.toml".to_owned()),
            E::TooNew { path, .. } => (
                Code::StoreTooNew,
                format!("use the aok that wrote {}, or another `--data`; nothing was changed", path.display()),
            ),
            E::Full { .. } => (Code::StoreFull, "free some space; unfinished processes can then be resumed".to_owned()),
            E::Refused { pid, .. } => (Code::StoreFailed, resume_hint(pid)),
            E::Conflict { .. } => (Code::StoreFailed, "read the value again and repeat the change".to_owned()),
            E::Broken { .. } | E::Backend { .. } => (
                Code::StoreFailed,
                "check the disk and the data directory; `aok audit verify` checks the records".to_owned(),
            ),
        };
        Self { code, message, hint }
    }
}

impl From<llm::Error> for ApiError {
    fn from(error: llm::Error) -> Self {
        use llm::Error as E;
        let message = chain(&error);
        let (code, hint) = match error {
            E::NoModel { hint } => (Code::NoModel, hint),
            E::UnknownModel { .. } => (
                Code::UnknownModel,
                "name it `provider/model`, with a provider of `[llm.providers]` in aok.toml, or `script/FILE`"
                    .to_owned(),
            ),
            E::ScriptMismatch { line, .. } => {
                (Code::ScriptMismatch, format!("correct line {line} of the script, or what the agent was asked"))
            }
            E::ScriptExhausted { script, .. } => (Code::ScriptExhausted, format!("add a reply to {script}")),
            E::Status { status: 401 | 403, provider, .. } => {
                let own = format!("{}_API_KEY", provider.to_uppercase());
                let hint =
                    format!("check its key: {own}, or the variable that `[llm.providers.{provider}] key_env` names");
                (Code::ProviderError, hint)
            }
            E::Status { status: 404, .. } => {
                (Code::ProviderError, "check that the provider has this model, and its base URL".to_owned())
            }
            E::Status { status: 429, .. } => (Code::ProviderError, "wait a while".to_owned()),
            E::Status { .. } => (Code::ProviderError, "wait until the provider works".to_owned()),
            E::TooLong { .. } => {
                (Code::ProviderError, "give it a smaller task, or a model with a larger window".to_owned())
            }
            E::Open { .. } => (Code::ProviderError, "wait a minute".to_owned()),
            E::Deadline { provider, .. } => {
                (Code::ProviderError, format!("wait, or raise `timeout_s` of [llm.providers.{provider}] in aok.toml"))
            }
            E::Local { .. } => (Code::ProviderUnreachable, "see `aok doctor`".to_owned()),
            E::Unreachable { .. } => (Code::ProviderUnreachable, "check that it runs, and its base URL".to_owned()),
            E::Garbled { .. } | E::Malformed { .. } => (Code::BadReply, "try again, or another model".to_owned()),
        };
        Self { code, message, hint }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::PathBuf;

    use super::*;
    use crate::process::Pid;

    fn check(error: impl Into<ApiError>, code: Code, exit: u8, words: &[&str]) {
        let error = error.into();
        assert_eq!((error.code, error.exit()), (code, exit), "{error:?}");
        assert!(!error.hint.is_empty(), "{error:?} has no way out");
        let all = format!("{} {}", error.message, error.hint);
        for word in words {
            assert!(all.contains(word), "`{word}` is missing in: {all}");
        }
    }

    #[test]
    fn every_kernel_error_has_its_code_exit_and_way_out() {
        use kernel::Error as E;
        let data = PathBuf::from("/data");
        let pid = Pid(7);
        check(E::Locked { path: data.clone(), holder: 42 }, Code::Locked, 5, &["/data", "42", "--data"]);
        let io = |kind: io::ErrorKind| E::Io { what: "the lock", path: "/data/lock".into(), source: kind.into() };
        check(io(io::ErrorKind::PermissionDenied), Code::Io, 5, &["/data/lock", "the lock", "access"]);
        check(io(io::ErrorKind::StorageFull), Code::StoreFull, 5, &["free some space"]);
        check(io(io::ErrorKind::NotADirectory), Code::Io, 5, &["--data"]);
        let known = vec!["assistant".to_owned()];
        check(E::UnknownAgent { name: "x".into(), known: known.clone() }, Code::UnknownAgent, 2, &["`x`", "assistant"]);
        check(E::UnknownTool { name: "x".into(), known: vec![] }, Code::UnknownTool, 2, &["aok tool ls"]);
        let many: Vec<String> = (0..12).map(|n| format!("t{n}")).collect();
        check(E::UnknownTool { name: "x".into(), known: many }, Code::UnknownTool, 2, &["t9 … and 2 more"]);
        let candidates = vec!["a__read".to_owned(), "b__read".to_owned()];
        check(E::AmbiguousTool { name: "read".into(), candidates }, Code::AmbiguousTool, 2, &["a__read, b__read"]);
        check(E::UnknownProcess { pid }, Code::UnknownProcess, 2, &["7", "aok ps"]);
        check(E::State { pid, why: "has ended".into() }, Code::BadState, 2, &["has ended", "aok logs 7"]);
        check(E::Invalid("nice is 99".into()), Code::InvalidArguments, 2, &["nice is 99"]);
        check(E::Denied { by: "guard".into(), reason: "no".into() }, Code::Denied, 3, &["guard", "no"]);
        check(E::Engine("x".into()), Code::Engine, 70, &["-vv"]);
        check(E::Crowded { live: 9, mappings: 65_530 }, Code::Unhealthy, 5, &["9 processes", "sysctl", "65530"]);
        check(E::ReadOnly, Code::ReadOnly, 5, &["aok run"]);
        let parse = config::Error::Parse { path: "/data/aok.toml".into(), message: "fule".into() };
        check(E::Config(parse), Code::BadConfig, 2, &["/data/aok.toml", "fule"]);
        let read = config::Error::Read { path: "/c.toml".into(), source: io::ErrorKind::NotFound.into() };
        check(E::Config(read), Code::BadConfig, 2, &["/c.toml", "not found"]);
    }

    #[test]
    fn every_store_error_has_its_code() {
        use storage::Error as E;
        let store = || "sqlite:/data/aok.db".to_owned();
        check(E::Url { url: "x:".into() }, Code::BadConfig, 2, &["x:", "[storage] url"]);
        check(E::TooNew { path: "/d".into(), found: 9, known: 1 }, Code::StoreTooNew, 5, &["9", "nothing was changed"]);
        check(E::Full { store: store() }, Code::StoreFull, 5, &["aok.db"]);
        check(E::Conflict { key: "k".into(), expected: 1, found: 2 }, Code::StoreFailed, 5, &["`k`"]);
        check(E::Broken { what: "page 3 exists".into() }, Code::StoreFailed, 5, &["page 3 exists"]);
        check(E::Refused { pid: Pid(3), first: "full".into() }, Code::StoreFailed, 5, &["--resume 3"]);
        let source = std::sync::Arc::new(io::Error::other("disk I/O error"));
        let wrapped = kernel::Error::Storage(E::Backend { store: store(), source });
        check(wrapped, Code::StoreFailed, 5, &["aok.db", "disk I/O error"]);
    }

    #[test]
    fn every_model_error_has_its_code() {
        use llm::Error as E;
        let provider = || "local".to_owned();
        let message = || "why".to_owned();
        let status = |status| E::Status { provider: provider(), status, message: message(), retry_after: None };
        check(E::NoModel { hint: "set AOK_MODEL".into() }, Code::NoModel, 2, &["set AOK_MODEL"]);
        check(E::UnknownModel { model: "x/y".into(), why: message() }, Code::UnknownModel, 2, &["x/y"]);
        let mismatch = E::ScriptMismatch { line: 3, expect: "a".into(), got: "b".into() };
        check(mismatch, Code::ScriptMismatch, 1, &["line 3"]);
        let exhausted = E::ScriptExhausted { script: "s.jsonl".into(), lines: 2, request: 3 };
        check(exhausted, Code::ScriptExhausted, 1, &["s.jsonl"]);
        check(status(401), Code::ProviderError, 5, &["key_env"]);
        check(status(429), Code::ProviderError, 5, &["wait"]);
        check(status(500), Code::ProviderError, 5, &["500"]);
        let url = "http://127.0.0.1:1".to_owned();
        check(
            E::Unreachable { provider: provider(), url, message: message() },
            Code::ProviderUnreachable,
            5,
            &["127.0.0.1"],
        );
        let too_long = E::TooLong { provider: provider(), limit: Some(1), message: message() };
        check(too_long, Code::ProviderError, 5, &["larger window"]);
        check(E::Open { provider: provider(), last: message() }, Code::ProviderError, 5, &["wait", "why"]);
        check(E::Deadline { provider: provider(), seconds: 9 }, Code::ProviderError, 5, &["9 s", "timeout_s"]);
        check(E::Local { message: message() }, Code::ProviderUnreachable, 5, &["why", "aok doctor"]);
        let malformed = E::Malformed { provider: provider(), message: message() };
        check(kernel::Error::Model(malformed), Code::BadReply, 5, &["why"]);
        let garbled = Box::new(E::Garbled { provider: provider(), message: message() });
        check(kernel::Error::Unanswered { pid: Pid(7), source: garbled }, Code::BadReply, 5, &["why", "--resume 7"]);
    }

    #[test]
    fn a_cause_is_told_once() {
        let source = io::Error::other("no such thing");
        let error = kernel::Error::Io { what: "the lock", path: "/l".into(), source };
        assert_eq!(chain(&error).matches("no such thing").count(), 1);
    }

    #[test]
    fn tool_call_errors_exit_as_promised() {
        let exit = |e: &abi::Error| Code::of_call(e).exit();
        assert_eq!(exit(&abi::Error::new(Errno::Denied, "x")), 3);
        assert_eq!(exit(&abi::Error::limit("fuel", "x")), 4);
        assert_eq!(exit(&abi::Error { limit: Some("output".into()), ..abi::Error::new(Errno::TooLarge, "x") }), 4);
        assert_eq!(exit(&abi::Error::new(Errno::Quota, "x")), 4);
        assert_eq!(exit(&abi::Error::new(Errno::Invalid, "x")), 2);
        assert_eq!(exit(&abi::Error::new(Errno::NotFound, "x")), 1);
        assert_eq!(exit(&abi::Error::new(Errno::Interrupted, "x")), 1);
    }

    #[test]
    fn process_exits_have_their_codes() {
        let exit = |e: process::Exit| Code::of_exit(e.status(), e.message()).map_or(0, Code::exit);
        assert_eq!(exit(process::Exit::Success(String::new())), 0);
        assert_eq!(exit(process::Exit::Failure(String::new())), 1);
        assert_eq!(exit(process::Exit::Killed(String::new())), 1);
        assert_eq!(exit(process::Exit::OverQuota(String::new())), 4);
    }

    /// `docs/errors.md` has one row per code, in the enum's order, with the enum's exit status.
    #[test]
    fn the_documented_table_is_the_closed_list() {
        let docs = include_str!("../../../docs/errors.md");
        let rows: Vec<(String, String)> = docs
            .lines()
            .filter_map(|line| line.strip_prefix("| `"))
            .map(|row| {
                let (name, rest) = row.split_once("` |").expect("a row names its code");
                let cells: Vec<&str> = rest.split('|').map(str::trim).collect();
                assert!(
                    cells.len() >= 3 && cells[1..3].iter().all(|c| !c.is_empty()),
                    "{name} lacks a meaning or a way out"
                );
                (name.to_owned(), cells[0].to_owned())
            })
            .collect();
        let list: Vec<(String, String)> = Code::ALL.iter().map(|c| (c.name(), c.exit().to_string())).collect();
        assert_eq!(rows, list);
    }
}
