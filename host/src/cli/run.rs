//! `aok run`: start or continue a process and follow it to its end.

use std::time::Duration;

use futures_util::stream::StreamExt as _;

use super::error::{Error, usage};
use super::out::Out;
use super::progress::Progress;
use super::session::{Session, Signals};
use super::{diff, input};
use crate::capability::HostGrant;
use crate::process::{Event, EventKind, Mount, Pid};
use crate::quota::{OnQuota, Raise, ResourceQuota};
use crate::server::Lines;
use crate::server::error::{ApiError, Code};
use crate::server::wire::{Request, Spawn, Spawned};

/// Run an agent on a task and follow it to its end
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["task", "resume"]))]
pub(super) struct Args {
    #[command(flatten)]
    spawn: SpawnArgs,
    /// Continue an unfinished process, with other limits where they are given; everything else about it is as it was
    #[arg(
        long,
        value_name = "PID",
        conflicts_with_all = ["agent", "task", "model", "dirs", "direct", "hosts", "name", "nice", "group", "on_quota"]
    )]
    resume: Option<u64>,
}

/// What a process is to be.
#[derive(Debug, clap::Args)]
pub(super) struct SpawnArgs {
    /// The agent
    #[arg(default_value = "assistant")]
    agent: String,
    /// What to do; `-` reads it from standard input
    #[arg(long, value_name = "TEXT|-")]
    task: Option<String>,
    /// Model, as PROVIDER/MODEL or script/FILE; else AOK_MODEL, else the configuration's
    #[arg(long, value_name = "P/M")]
    model: Option<String>,
    /// Directory for the agent's tools, by its last name; read-only without `:rw`
    #[arg(long = "dir", value_name = "PATH[:rw]", value_parser = input::mount)]
    dirs: Vec<Mount>,
    /// Let what is written to directories with `:rw` go through to them, and not to a private copy
    #[arg(long, requires = "dirs")]
    direct: bool,
    /// Host that the agent's tools may reach: HOST, HOST:PORT, *.DOMAIN, an IP address or a network
    #[arg(long = "host", value_name = "HOST")]
    hosts: Vec<HostGrant>,
    /// Name of the process, for people
    #[arg(long)]
    name: Option<String>,
    /// Share of the processor: -20 (most) to 19 (least)
    #[arg(long, default_value_t = 0, allow_hyphen_values = true, value_parser = clap::value_parser!(i8).range(-20..=19))]
    nice: i8,
    /// Scheduling group
    #[arg(long)]
    group: Option<String>,
    /// Most fuel (wasmtime instructions), its tools' included
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u64).range(1..))]
    max_fuel: Option<u64>,
    /// Most tokens, prompt and answer together
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u64).range(1..))]
    max_tokens: Option<u64>,
    /// Most dollars
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = input::micro_usd)]
    max_usd: Option<u64>,
    /// Most time alive: 30s, 5m, 1h30m
    #[arg(long, value_name = "TIME", value_parser = input::duration)]
    timeout: Option<Duration>,
    /// What becomes of it when a limit is used up; `suspend`: it goes on with `run --resume PID --max-… N`
    #[arg(long, value_name = "end|suspend", default_value = "end", value_parser = on_quota)]
    on_quota: OnQuota,
    /// Say yes to all that a hook asks a person about
    #[arg(long)]
    yes: bool,
}

fn on_quota(text: &str) -> Result<OnQuota, String> {
    match text {
        "end" => Ok(OnQuota::End),
        "suspend" => Ok(OnQuota::Suspend),
        _ => Err("`end` or `suspend` is needed".to_owned()),
    }
}

impl Args {
    fn request(self) -> Result<Request, Error> {
        match self.resume {
            Some(pid) => {
                let SpawnArgs { max_fuel: fuel, max_tokens: tokens, max_usd: micro_usd, timeout, .. } = self.spawn;
                let wall_ms = timeout.map(|t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX));
                Ok(Request::Resume { pid: Pid(pid), raise: Raise { fuel, tokens, micro_usd, wall_ms } })
            }
            None => self.spawn.spawn().map(Request::Run),
        }
    }
}

impl SpawnArgs {
    /// The spawn that they ask for.
    pub(super) fn spawn(self) -> Result<Spawn, Error> {
        let task = input::text_or_stdin(self.task.unwrap_or_default(), "the task")?;
        if task.trim().is_empty() {
            return Err(usage("the task is empty", "say what to do: aok run --task \"…\""));
        }
        let standard = ResourceQuota::STANDARD;
        let wall = self.timeout.map(|t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX));
        Ok(Spawn {
            agent: self.agent,
            task,
            model: self.model.filter(|m| !m.is_empty()).map(input::model).or_else(environment_model),
            name: self.name,
            group: self.group,
            nice: self.nice,
            mounts: input::mounts(self.dirs, self.direct)?,
            hosts: self.hosts,
            yes: self.yes,
            on_quota: self.on_quota,
            quota: ResourceQuota {
                fuel: self.max_fuel.unwrap_or(standard.fuel),
                tokens: self.max_tokens.unwrap_or(standard.tokens),
                micro_usd: self.max_usd.unwrap_or(standard.micro_usd),
                wall_ms: wall.unwrap_or(standard.wall_ms),
                ..standard
            },
        })
    }
}

/// The user's own choice of a model, which a live kernel's environment does not know. Not an `env` of
/// clap's: it would then conflict with `--resume` like the option.
pub(super) fn environment_model() -> Option<String> {
    std::env::var("AOK_MODEL").ok().filter(|m| !m.is_empty()).map(input::model)
}

pub(super) async fn run(args: Args, session: &Session, out: &mut Out) -> Result<(), Error> {
    let mut pid = args.resume.map(Pid);
    let yes = args.spawn.yes;
    let request = args.request()?;
    let may_change = match &request {
        Request::Run(spawn) => spawn.mounts.iter().any(Mount::is_private),
        _ => true,
    };
    let mut signals = Signals::listen()?;
    let started = tokio::select! {
        started = session.act(request) => started?,
        signal = signals.next() => return Err(Error::Interrupted(signal, pid)),
    };
    let mut end = match &started.owner {
        Some(owner) => owner.announce(out).await,
        None => Ok(()),
    };
    if end.is_ok() {
        end = match started.answer {
            Ok(lines) => follow(lines, &mut pid, &mut signals, &Judge { session, yes }, out).await,
            Err(e) => Err(e.into()),
        };
    }
    // A process of a live kernel goes on waiting for its person there; with our own it is stopped as it is.
    let parked = matches!(&end, Err(Error::Failed(e)) if e.code == Code::NeedsApproval);
    let cut_off = matches!(end, Err(Error::Interrupted(..) | Error::BrokenPipe)) || parked;
    if let Some(pid) = pid.filter(|_| may_change && !cut_off) {
        diff::tell(pid, session, out).await;
    }
    match (started.owner, pid) {
        (Some(owner), _) if cut_off => owner.stop(pid, &mut signals, out).await,
        (Some(owner), _) => owner.finish(pid, &mut signals, out).await,
        (None, Some(pid)) if cut_off && !parked => {
            if let Err(e) = session.suspend(pid).await {
                out.notice(&format!("process {pid} could not be stopped and may run on"), &e.message);
            }
        }
        (None, _) => {}
    }
    end
}

/// Who answers what hooks ask.
struct Judge<'a> {
    /// Where the answer goes.
    session: &'a Session,
    /// Whether it is yes to everything.
    yes: bool,
}

impl Judge<'_> {
    /// Answers a question: with `--yes`, or as the person at the terminal says.
    async fn decide(&self, pid: Pid, id: u64, reason: &str, signals: &mut Signals, out: &mut Out) -> Result<(), Error> {
        let (approved, always) = if self.yes {
            (true, false)
        } else if out.asks() {
            out.side("  [y]es, [n]o, [a]lways, ne[v]er?");
            tokio::select! {
                answer = ask() => answer?,
                signal = signals.next() => return Err(Error::Interrupted(signal, Some(pid))),
            }
        } else {
            let message = format!("process {pid} waits for a person: {reason}");
            let hint =
                format!("`aok approve {id}` or `aok deny {id}`, then {}", crate::server::error::resume_hint(pid));
            return Err(ApiError::new(Code::NeedsApproval, message, hint).into());
        };
        let answered = self.session.act(Request::Decide { id, approved, always }).await?.answer;
        match answered {
            // Somebody else was faster.
            Err(e) if e.code == Code::Answered => Ok(()),
            answered => Ok(answered.map(drop)?),
        }
    }
}

/// Reads what the person at the terminal says: whether, and whether for always.
async fn ask() -> Result<(bool, bool), Error> {
    let asked = tokio::task::spawn_blocking(|| {
        loop {
            let mut line = String::new();
            // The end of the input is no yes.
            if std::io::stdin().read_line(&mut line)? == 0 {
                return Ok((false, false));
            }
            match line.trim().to_ascii_lowercase().as_str() {
                "y" | "yes" => return Ok((true, false)),
                "n" | "no" => return Ok((false, false)),
                "a" | "always" => return Ok((true, true)),
                "v" | "never" => return Ok((false, true)),
                _ => {}
            }
        }
    });
    let answer: std::io::Result<_> = asked.await.unwrap_or_else(|e| Err(std::io::Error::other(e)));
    answer.map_err(|e| ApiError::new(Code::Io, format!("the answer cannot be read: {e}"), "use `aok approve`").into())
}

/// Start a process on a running kernel and leave it to that
#[derive(Debug, clap::Args)]
pub(super) struct Detached {
    #[command(flatten)]
    spawn: SpawnArgs,
}

pub(super) async fn detached(args: Detached, session: &Session, out: &mut Out) -> Result<(), Error> {
    let mut lines = session.ask(Request::Spawn(args.spawn.spawn()?)).await?;
    let Some(line) = lines.next().await else {
        return Err(ApiError::internal("a spawn was not answered").into());
    };
    let line = line?;
    let Spawned { pid } = serde_json::from_str(&line)?;
    if out.json { out.line(&line) } else { out.line(&pid.to_string()) }
}

/// Follow a process that a running kernel has; Ctrl-C leaves it running
#[derive(Debug, clap::Args)]
pub(super) struct Attach {
    /// The process
    pid: u64,
    /// Say yes to all that a hook asks a person about
    #[arg(long)]
    yes: bool,
}

pub(super) async fn attach(args: Attach, session: &Session, out: &mut Out) -> Result<(), Error> {
    let mut signals = Signals::listen()?;
    let mut pid = Some(Pid(args.pid));
    let lines = session.ask(Request::Attach { pid: Pid(args.pid) }).await?;
    let judge = Judge { session, yes: args.yes };
    match follow(lines, &mut pid, &mut signals, &judge, out).await {
        Err(Error::Interrupted(..)) => {
            out.notice(&format!("process {} runs on", args.pid), &format!("aok attach {}", args.pid));
            Ok(())
        }
        end => end,
    }
}

/// Shows a process's events up to its exit; `pid` becomes known with the first.
async fn follow(
    mut lines: Lines,
    pid: &mut Option<Pid>,
    signals: &mut Signals,
    judge: &Judge<'_>,
    out: &mut Out,
) -> Result<(), Error> {
    let mut progress = Progress::new(out);
    loop {
        let line = tokio::select! {
            line = lines.next() => line,
            signal = signals.next() => return Err(Error::Interrupted(signal, *pid)),
        };
        let Some(line) = line else {
            return Err(ApiError::internal("the events ended without an exit").into());
        };
        let line = line.map_err(|e| resumable(e, *pid))?;
        let event: Event = serde_json::from_str(&line)?;
        *pid = Some(event.pid);
        if out.json {
            out.line(&line)?;
        } else {
            progress.show(&event, out);
        }
        if let EventKind::Ask { approval, reason } = &event.kind {
            progress.clear();
            judge.decide(event.pid, *approval, reason, signals, out).await?;
            progress = Progress::new(out);
        }
        if let EventKind::Exit { status, answer, message, .. } = event.kind {
            progress.clear();
            return finished(event.pid, &status, answer.as_deref(), message.as_deref(), out);
        }
    }
}

/// A kernel that went away leaves the process resumable, so say which.
fn resumable(error: ApiError, pid: Option<Pid>) -> ApiError {
    match (error.code, pid) {
        (Code::KernelGone, Some(pid)) => ApiError { hint: crate::server::error::resume_hint(pid), ..error },
        _ => error,
    }
}

/// The answer, or why there is none.
pub(super) fn finished(
    pid: Pid,
    status: &str,
    answer: Option<&str>,
    message: Option<&str>,
    out: &mut Out,
) -> Result<(), Error> {
    let why = message.unwrap_or("no reason was given");
    let Some(code) = Code::of_exit(status, why) else {
        return if out.json { Ok(()) } else { out.guest_text(answer.unwrap_or_default()) };
    };
    let hint = match code {
        Code::ScriptExhausted => "add a reply to the script".to_owned(),
        Code::ScriptMismatch => "correct the script's line, or what the agent was asked".to_owned(),
        Code::Quota => "give a larger `--max-…` or `--timeout` and run it again, or `--on-quota suspend`".to_owned(),
        _ => format!("`aok logs {pid}` and `aok audit tail {pid}` show what it did"),
    };
    Err(ApiError::new(code, format!("process {pid} ended with {status}: {why}"), hint).into())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use futures_util::stream;

    use super::super::out::tests::memory;
    use super::*;
    use crate::cli::{Cli, Command};
    use crate::process::Usage;

    fn parse(args: &[&str]) -> Result<Args, clap::Error> {
        match Cli::try_parse_from([&["aok", "run"], args].concat())?.command {
            Some(Command::Run(args)) => Ok(*args),
            other => panic!("not a run: {other:?}"),
        }
    }

    fn spawn(args: &[&str]) -> Spawn {
        match parse(args).unwrap().request().unwrap() {
            Request::Run(spawn) => spawn,
            other => panic!("not a spawn: {other:?}"),
        }
    }

    #[test]
    fn options_become_the_request() {
        let s = spawn(&[
            "helper",
            "--task",
            "do",
            "--model",
            "p/m",
            "--name",
            "n",
            "--nice",
            "-5",
            "--group",
            "g",
            "--max-fuel",
            "7",
            "--max-tokens",
            "8",
            "--max-usd",
            "0.5",
            "--timeout",
            "2s",
            "--host",
            "example.com",
            "--host",
            "[::1]:80",
        ]);
        let quota = ResourceQuota { fuel: 7, tokens: 8, micro_usd: 500_000, wall_ms: 2_000, ..ResourceQuota::STANDARD };
        let expected = Spawn {
            agent: "helper".into(),
            task: "do".into(),
            model: Some("p/m".into()),
            name: Some("n".into()),
            group: Some("g".into()),
            nice: -5,
            mounts: vec![],
            hosts: vec!["example.com".parse().unwrap(), "[::1]:80".parse().unwrap()],
            yes: false,
            on_quota: OnQuota::End,
            quota,
        };
        assert_eq!(s, expected);
        let s = spawn(&["--task", "do"]);
        assert_eq!((s.agent.as_str(), s.quota), ("assistant", ResourceQuota::STANDARD));
    }

    #[test]
    fn bad_options_are_refused_before_anything_starts() {
        for bad in [
            &["--tsk", "x"][..],
            &[],
            &["--task", "x", "--nice", "20"],
            &["--task", "x", "--max-fuel", "0"],
            &["--task", "x", "--timeout", "5"],
            &["--task", "x", "--max-usd", "-1"],
            &["--task", "x", "--dir", "/nowhere/at/all"],
            &["--task", "x", "--host", "http://example.com"],
            &["--resume", "3", "--host", "example.com"],
            &["--task", "x", "--resume", "3"],
            &["--resume", "3", "--nice", "1"],
            &["helper", "--resume", "3"],
            &["--resume", "x"],
        ] {
            assert_eq!(parse(bad).unwrap_err().exit_code(), 2, "{bad:?}");
        }
        let twice = parse(&["--task", "x", "--dir", ".", "--dir", ".:rw"]).unwrap().request().unwrap_err();
        assert_eq!(twice.exit(), 2);
        assert_eq!(parse(&["--task", "  "]).unwrap().request().unwrap_err().exit(), 2);
        assert_eq!(
            parse(&["--resume", "3"]).unwrap().request().unwrap(),
            Request::Resume { pid: Pid(3), raise: Raise::default() }
        );
        let more = parse(&["--resume", "3", "--max-tokens", "9"]).unwrap().request().unwrap();
        assert_eq!(more, Request::Resume { pid: Pid(3), raise: Raise { tokens: Some(9), ..Raise::default() } });
    }

    fn exit(status: &str, answer: Option<&str>, message: Option<&str>) -> String {
        let kind = EventKind::Exit {
            status: status.into(),
            answer: answer.map(Into::into),
            message: message.map(Into::into),
            usage: Usage::default(),
        };
        serde_json::to_string(&Event { pid: Pid(3), seq: 0, at_ms: 0, kind }).unwrap()
    }

    async fn ends(json: bool, last: Result<String, ApiError>) -> (Result<(), Error>, String, Option<Pid>) {
        let first = r#"{"pid":3,"seq":1,"at_ms":2,"type":"text","delta":"4"}"#.to_owned();
        let (mut out, stdout, _) = memory(json, None);
        let mut pid = None;
        let lines = stream::iter(vec![Ok(first), last]).boxed();
        let session = Session::new(&Cli::try_parse_from(["aok", "--data", "/nowhere", "ps"]).unwrap().globals).unwrap();
        let judge = Judge { session: &session, yes: false };
        let end = follow(lines, &mut pid, &mut Signals::listen().unwrap(), &judge, &mut out).await;
        (end, stdout.text(), pid)
    }

    #[tokio::test]
    async fn the_answer_alone_is_on_stdout() {
        let (end, stdout, pid) = ends(false, Ok(exit("success", Some("42"), None))).await;
        assert_eq!((end.is_ok(), stdout.as_str(), pid), (true, "42\n", Some(Pid(3))));
        let (end, stdout, _) = ends(true, Ok(exit("success", Some("42"), None))).await;
        assert!(end.is_ok());
        assert_eq!(stdout.lines().count(), 2);
        assert!(stdout.ends_with(&(exit("success", Some("42"), None) + "\n")));
    }

    #[tokio::test]
    async fn other_ends_have_their_status() {
        for (status, code) in [("failure", 1), ("killed", 1), ("over-quota", 4)] {
            let (end, stdout, _) = ends(false, Ok(exit(status, None, Some("because")))).await;
            let error = end.unwrap_err();
            assert_eq!((error.exit(), stdout.as_str()), (code, ""), "{status}");
            assert!(error.report().unwrap().message.contains("because"));
        }
    }

    #[tokio::test]
    async fn a_kernel_that_goes_away_leaves_the_way_back() {
        let gone = ApiError::new(Code::KernelGone, "m", "h");
        let (end, _, _) = ends(false, Err(gone)).await;
        let error = end.unwrap_err();
        assert_eq!(error.exit(), 5);
        assert_eq!(error.report().unwrap().hint, "resume with: aok run --resume 3");
    }
}
