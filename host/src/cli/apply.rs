//! `aok apply` and `aok discard`: what becomes of a process's private copies.

use futures_util::stream::StreamExt as _;

use super::diff::headline;
use super::error::Error;
use super::format::name;
use super::out::Out;
use super::session::{Session, Signals};
use crate::kernel::info::FileChange;
use crate::process::Pid;
use crate::server::Lines;
use crate::server::wire::Request;

/// Apply what a process changed in its private copies, unless it was changed outside as well
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The process
    pid: u64,
    /// Only these, as `aok diff` names them; of a directory, all that is in it
    #[arg(value_name = "FILE")]
    files: Vec<String>,
}

pub(super) async fn run(args: Args, session: &Session, out: &mut Out) -> Result<(), Error> {
    let request = Request::Apply { pid: Pid(args.pid), files: args.files };
    let nothing = format!("process {} has changed nothing in private copies that is not applied", args.pid);
    act(request, &nothing, session, out).await
}

/// Throw away what a process changed in its private copies
#[derive(Debug, clap::Args)]
pub(super) struct DiscardArgs {
    /// The process
    pid: u64,
}

pub(super) async fn discard(args: DiscardArgs, session: &Session, out: &mut Out) -> Result<(), Error> {
    let nothing = format!("process {} has no private copies", args.pid);
    act(Request::Discard { pid: Pid(args.pid) }, &nothing, session, out).await
}

async fn act(request: Request, nothing: &str, session: &Session, out: &mut Out) -> Result<(), Error> {
    let mut signals = Signals::listen()?;
    // Broken off in the middle, it goes on the next time where it stopped.
    let started = tokio::select! {
        started = session.act(request) => started?,
        signal = signals.next() => return Err(Error::Interrupted(signal, None)),
    };
    let end = match started.answer {
        Ok(lines) => tokio::select! {
            end = answer(lines, nothing, out) => end,
            signal = signals.next() => Err(Error::Interrupted(signal, None)),
        },
        Err(e) => Err(e.into()),
    };
    match started.owner {
        Some(owner) if matches!(end, Err(Error::Interrupted(..))) => owner.stop(None, &mut signals, out).await,
        Some(owner) => owner.finish(None, &mut signals, out).await,
        None => {}
    }
    end
}

async fn answer(mut lines: Lines, nothing: &str, out: &mut Out) -> Result<(), Error> {
    let mut any = false;
    while let Some(line) = lines.next().await {
        let line = line?;
        any = true;
        if out.json {
            out.line(&line)?;
            continue;
        }
        let change: FileChange = serde_json::from_str(&line)?;
        match &change.conflict {
            // A conflict is listed where it kept everything from being applied.
            Some(why) => out.guest_text(&format!("conflict: {}: {}", headline(&change), name(why)))?,
            None => out.guest_text(&headline(&change))?,
        }
    }
    if !any && !out.json {
        out.side(&format!("aok: {nothing}"));
    }
    Ok(())
}
