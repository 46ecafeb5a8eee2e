//! `aok hook`: which hooks stand where, which points there are, and what a hook is shown at one.

use super::error::Error;
use super::out::{Column, Out};
use super::session::Session;
use crate::hook::{Hook, Power, subject};
use crate::kernel::info::HookInfo;
use crate::server::error::{ApiError, Code};
use crate::server::wire::Request;

/// List hooks, and what they are shown
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List hooks, by point and in the order in which they are asked
    Ls,
    /// List the points where a hook can stand
    Points,
    /// Show the JSON Schema of what a hook is shown at a point
    Schema {
        /// The point, for example BEFORE_TOOL_CALL
        point: String,
    },
}

const COLUMNS: [Column; 9] = [
    Column::Left("POINT"),
    Column::Left("HOOK"),
    Column::Left("PHASE"),
    Column::Right("PRIORITY"),
    Column::Left("MATCH"),
    Column::Left("MAY"),
    Column::Left("STATE"),
    Column::Right("CALLS"),
    Column::Right("DENIED"),
];

pub(super) async fn run(args: Args, session: &Session, out: &mut Out) -> Result<(), Error> {
    match args.command {
        Command::Ls => out.list(session.look(Request::HookLs {}).await?, &COLUMNS, row).await,
        Command::Points => points(out),
        Command::Schema { point } => match Hook::from_name(&point.to_ascii_uppercase().replace('-', "_")) {
            Some(point) => out.line(&format!("{:#}", subject::schema(point))),
            None => {
                let message = format!("there is no point `{point}`");
                Err(Error::Failed(ApiError::new(Code::BadUsage, message, "`aok hook points` lists them")))
            }
        },
    }
}

fn points(out: &mut Out) -> Result<(), Error> {
    for point in Hook::ALL {
        let state = if point.is_active() { "active" } else { "inactive" };
        let may = match point.power() {
            Power::Gate => "allow, rewrite, deny, ask",
            Power::Filter => "allow, rewrite, deny",
            Power::Observe => "look",
        };
        let line = match out.json {
            true => serde_json::json!({ "point": point.name(), "state": state, "verdicts": may }).to_string(),
            false => format!("{:<20}{state:<10}{may}", point.name()),
        };
        out.line(&line)?;
    }
    Ok(())
}

fn row(hook: &HookInfo) -> Vec<String> {
    let may = if hook.trusted { "rewrite" } else { "restrict" };
    let state = match &hook.reason {
        Some(reason) => format!("{}: {reason}", hook.state),
        None => hook.state.clone(),
    };
    vec![
        hook.point.clone(),
        hook.plugin.clone(),
        hook.phase.clone(),
        hook.priority.to_string(),
        hook.matcher.clone().unwrap_or_else(|| "*".to_owned()),
        may.to_owned(),
        state,
        hook.calls.to_string(),
        hook.denied.to_string(),
    ]
}
