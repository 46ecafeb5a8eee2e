//! `aok approvals`, `aok approve`, `aok deny`: what hooks ask a person, and the answers.

use super::error::Error;
use super::out::{Column, Out};
use super::session::{Session, Signals};
use crate::server::Lines;
use crate::server::error::resume_hint;
use crate::server::wire::{ApprovalLine, Request};

/// List what waits for a person's decision
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// List what was decided too
    #[arg(long)]
    all: bool,
}

/// Decide what a hook asked
#[derive(Debug, clap::Args)]
pub(super) struct Decision {
    /// The question's id, as `aok approvals` lists it
    id: u64,
    /// Decide all such questions so from now on: of the same hook, by the same agent, about the same thing
    #[arg(long)]
    always: bool,
}

const COLUMNS: [Column; 7] = [
    Column::Right("ID"),
    Column::Right("PID"),
    Column::Left("STATE"),
    Column::Left("HOOK"),
    Column::Left("CALL"),
    Column::Left("OBJECT"),
    Column::Left("QUESTION"),
];

pub(super) async fn run(args: Args, session: &Session, out: &mut Out) -> Result<(), Error> {
    out.list(session.look(Request::Approvals { all: args.all }).await?, &COLUMNS, row).await
}

fn row(a: &ApprovalLine) -> Vec<String> {
    let state = if a.always { format!("{}, always", a.state) } else { a.state.clone() };
    let (hook, call) = (a.hook.clone(), a.call.clone());
    vec![a.approval.to_string(), a.pid.to_string(), state, hook, call, a.object.clone(), a.reason.clone()]
}

/// Answers a question; a kernel of our own only writes the answer down.
pub(super) async fn decide(args: Decision, approved: bool, session: &Session, out: &mut Out) -> Result<(), Error> {
    let mut signals = Signals::listen()?;
    let Decision { id, always } = args;
    let started = session.act(Request::Decide { id, approved, always }).await?;
    let waits_here = started.owner.is_none();
    let end = match started.answer {
        Ok(lines) => show(lines, waits_here, out).await,
        Err(e) => Err(e.into()),
    };
    if let Some(owner) = started.owner {
        owner.finish(None, &mut signals, out).await;
    }
    end
}

async fn show(lines: Lines, waits_here: bool, out: &mut Out) -> Result<(), Error> {
    for approval in out.items::<ApprovalLine>(lines).await? {
        out.line(&told(&approval, waits_here))?;
    }
    Ok(())
}

fn told(a: &ApprovalLine, waits_here: bool) -> String {
    let what = format!("{}: {} {} of process {}", a.state, a.call, a.object, a.pid);
    match (a.always, waits_here || a.agent == crate::syscall::CLIENT) {
        (true, true) => format!("{what}, and all like it"),
        (false, true) => what,
        (true, false) => format!("{what}, and all like it; {}", resume_hint(a.pid)),
        (false, false) => format!("{what}; {}", resume_hint(a.pid)),
    }
}
