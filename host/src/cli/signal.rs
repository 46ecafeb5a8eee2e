//! `aok kill`, `aok nice` and `aok wait`: what a person does to a process, and its end.

use std::ffi::OsString;
use std::time::Duration;

use futures_util::stream::StreamExt as _;

use super::error::Error;
use super::input;
use super::out::Out;
use super::run::finished;
use super::session::Session;
use crate::process::{Event, EventKind, Pid, Signal};
use crate::server::error::{ApiError, Code};
use crate::server::wire::Request;

/// Signal processes: TERM unless another is named
#[derive(Debug, clap::Args)]
pub(super) struct Kill {
    /// TERM, KILL, STOP or CONT; also as -TERM, -KILL, -STOP, -CONT
    #[arg(long, short, value_name = "SIGNAL", default_value = "TERM", value_parser = named)]
    signal: Signal,
    /// The processes
    #[arg(required = true, value_name = "PID")]
    pids: Vec<u64>,
    /// How long TERM gives them to finish
    #[arg(long, value_name = "TIME", value_parser = input::duration)]
    grace: Option<Duration>,
}

/// Change a process's share of the processor and of the models
#[derive(Debug, clap::Args)]
pub(super) struct Nice {
    /// -20 (most) to 19 (least)
    #[arg(allow_hyphen_values = true, value_parser = clap::value_parser!(i8).range(-20..=19))]
    nice: i8,
    /// The processes
    #[arg(required = true)]
    pids: Vec<u64>,
}

/// Wait for the end of a process; ends as `run` does
#[derive(Debug, clap::Args)]
pub(super) struct Wait {
    /// The process
    pid: u64,
}

fn named(text: &str) -> Result<Signal, String> {
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let is = |signal: &Signal| signal.name() == name || signal.number().to_string() == name;
    Signal::ALL.into_iter().find(is).ok_or_else(|| {
        let names: Vec<_> = Signal::ALL.into_iter().map(Signal::name).collect();
        format!("there is no signal `{text}`; there are: {}", names.join(", "))
    })
}

/// `kill -KILL 7` as clap reads it: `kill --signal=KILL 7`.
pub(super) fn spelled_out(args: Vec<OsString>) -> Vec<OsString> {
    let Some(kill) = args.iter().position(|arg| arg == "kill") else { return args };
    let is_signal = |arg: &str| {
        arg.strip_prefix('-').is_some_and(|name| {
            let all = |of: fn(&u8) -> bool| name.bytes().all(|b| of(&b));
            name.len() > 2 && all(u8::is_ascii_uppercase) || !name.is_empty() && all(u8::is_ascii_digit)
        })
    };
    let spell = |(n, arg): (usize, OsString)| match arg.to_str() {
        Some(text) if n > kill && is_signal(text) => format!("--signal={}", &text[1..]).into(),
        _ => arg,
    };
    args.into_iter().enumerate().map(spell).collect()
}

/// Does it to each; the first failure is the command's, and the others are done all the same.
async fn each(pids: Vec<Pid>, session: &Session, out: &mut Out, request: impl Fn(Pid) -> Request) -> Result<(), Error> {
    let mut failure: Option<ApiError> = None;
    for pid in pids {
        if let Err(e) = session.do_it(request(pid), out).await {
            match (e, &failure) {
                (Error::Failed(e), None) => failure = Some(e),
                (Error::Failed(e), Some(_)) => out.error(&e),
                (e, _) => return Err(e),
            }
        }
    }
    failure.map_or(Ok(()), |e| Err(e.into()))
}

pub(super) async fn kill(args: Kill, session: &Session, out: &mut Out) -> Result<(), Error> {
    let Kill { signal, pids, grace } = args;
    let grace_ms = grace.map(|grace| u64::try_from(grace.as_millis()).unwrap_or(u64::MAX));
    each(pids.into_iter().map(Pid).collect(), session, out, |pid| Request::Signal { pid, signal, grace_ms }).await
}

pub(super) async fn nice(args: Nice, session: &Session, out: &mut Out) -> Result<(), Error> {
    let nice = args.nice;
    each(args.pids.into_iter().map(Pid).collect(), session, out, |pid| Request::Nice { pid, nice }).await
}

pub(super) async fn wait(args: Wait, session: &Session, out: &mut Out) -> Result<(), Error> {
    let pid = Pid(args.pid);
    let mut lines = session.look(Request::Wait { pid }).await?;
    let Some(line) = lines.next().await else {
        return Err(ApiError::new(Code::KernelGone, format!("process {pid} has not ended"), "`aok ps` shows it").into());
    };
    let line = line?;
    let event: Event = serde_json::from_str(&line)?;
    let EventKind::Exit { status, answer, message, .. } = event.kind else {
        return Err(ApiError::internal("a wait was answered with another event").into());
    };
    if out.json {
        out.line(&line)?;
    }
    finished(pid, &status, answer.as_deref(), message.as_deref(), out)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parse(args: &[&str]) -> Result<(Signal, Vec<u64>), clap::Error> {
        let args = ["aok"].iter().chain(args).map(OsString::from).collect();
        match Cli::try_parse_from(spelled_out(args))?.command {
            Some(Command::Kill(kill)) => Ok((kill.signal, kill.pids)),
            other => panic!("not a kill: {other:?}"),
        }
    }

    #[test]
    fn signals_are_named_as_people_do() {
        assert_eq!(parse(&["kill", "7"]).unwrap(), (Signal::Term, vec![7]));
        for args in [
            &["kill", "-KILL", "7", "8"][..],
            &["kill", "7", "-9", "8", "--json"],
            &["--json", "kill", "-SIGKILL", "7", "8"],
            &["kill", "-s", "kill", "7", "8"],
            &["kill", "--signal", "9", "7", "8"],
        ] {
            assert_eq!(parse(args).unwrap(), (Signal::Kill, vec![7, 8]), "{args:?}");
        }
        for bad in [&["kill", "-HUP", "7"][..], &["kill", "-KILL"], &["kill", "x"], &["kill"]] {
            assert_eq!(parse(bad).unwrap_err().exit_code(), 2, "{bad:?}");
        }
        assert!(Cli::try_parse_from(spelled_out(["aok", "logs", "-KILL"].map(OsString::from).into())).is_err());
    }
}
