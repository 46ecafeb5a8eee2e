//! `aok ps`: the processes.

use super::error::Error;
use super::format::{count, optional, usd};
use super::out::{Column, Out};
use super::session::Session;
use crate::kernel::info::ProcessInfo;
use crate::server::wire::Request;

/// List processes, ended ones included
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

const COLUMNS: [Column; 12] = [
    Column::Right("PID"),
    Column::Right("PPID"),
    Column::Left("S"),
    Column::Left("NAME"),
    Column::Left("AGENT"),
    Column::Right("NICE"),
    Column::Right("FUEL"),
    Column::Right("TOKENS"),
    Column::Right("COST"),
    Column::Right("TOOLS"),
    Column::Left("MODEL"),
    Column::Left("STATUS"),
];

pub(super) async fn run(_: Args, session: &Session, out: &mut Out) -> Result<(), Error> {
    let lines = session.look(Request::Ps {}).await?;
    out.list(lines, &COLUMNS, row).await
}

fn row(p: &ProcessInfo) -> Vec<String> {
    // How it ended, or what keeps it from going on.
    let status = p.exit.as_ref().map_or_else(
        || optional(p.waiting_on.as_ref()),
        |exit| match exit {
            crate::process::Exit::Success(_) => exit.status().to_owned(),
            _ => format!("{}: {}", exit.status(), exit.message()),
        },
    );
    vec![
        p.pid.to_string(),
        optional(p.ppid),
        p.state.letter().to_owned(),
        p.name.clone(),
        p.agent.clone(),
        nice(p),
        count(p.fuel),
        count(p.tokens_in.saturating_add(p.tokens_out)),
        usd(p.micro_usd),
        p.tool_calls.to_string(),
        optional(p.model.as_ref()),
        status,
    ]
}

/// The nice value; with a star the one that it runs at, lent by one that waits for it.
fn nice(p: &ProcessInfo) -> String {
    match p.effective_nice.filter(|effective| *effective != p.nice) {
        Some(lent) => format!("{lent}*"),
        None => p.nice.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{Exit, ProcessState};

    #[test]
    fn a_row_tells_state_use_and_end() {
        let mut p = ProcessInfo {
            pid: 3,
            ppid: None,
            name: "n".into(),
            agent: "assistant".into(),
            model: Some("p/m".into()),
            group: "g".into(),
            state: ProcessState::Waiting,
            waiting_on: Some("model".into()),
            nice: -5,
            fuel: 1_200_000,
            slices: 4,
            tokens_in: 900,
            tokens_cached: 0,
            tokens_out: 100,
            micro_usd: None,
            tool_calls: 2,
            pages_resident: None,
            pages_swapped: None,
            exit: None,
            task: "t".into(),
            tree: 1,
            cpu_us: None,
            slice_us: None,
            effective_nice: None,
            inherits_from: None,
        };
        assert_eq!(row(&p).join(" "), "3 - S n assistant -5 1.2M 1000 - 2 p/m model");
        p.effective_nice = Some(-9);
        assert_eq!(row(&p)[5], "-9*");
        p.exit = Some(Exit::OverQuota("fuel".into()));
        assert_eq!(row(&p)[11], "over-quota: fuel");
        p.exit = Some(Exit::Success("a long answer".into()));
        assert_eq!(row(&p)[11], "success");
        assert_eq!(row(&p).len(), COLUMNS.len());
    }
}
