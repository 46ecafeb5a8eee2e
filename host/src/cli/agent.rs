//! `aok agent ls`: the agents that `run` can start.

use super::error::Error;
use super::out::{Column, Out};
use super::session::Session;
use crate::kernel::info::AgentInfo;
use crate::server::wire::Request;

/// List agents
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List agents
    Ls,
}

const COLUMNS: [Column; 4] =
    [Column::Left("NAME"), Column::Left("PLUGIN"), Column::Left("SOURCE"), Column::Left("DIGEST")];

pub(super) async fn run(args: Args, session: &Session, out: &mut Out) -> Result<(), Error> {
    let Command::Ls = args.command;
    let lines = session.look(Request::AgentLs {}).await?;
    out.list(lines, &COLUMNS, row).await
}

fn row(agent: &AgentInfo) -> Vec<String> {
    // Twelve digits tell components apart; `--json` has them all.
    let digest = agent.digest.chars().take(12).collect();
    vec![agent.name.clone(), agent.plugin.clone(), agent.source.clone(), digest]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_a_short_digest() {
        let agent = AgentInfo {
            name: "assistant".into(),
            plugin: "assistant".into(),
            digest: "0123456789abcdef".into(),
            source: "bundled".into(),
        };
        assert_eq!(row(&agent).join(" "), "assistant assistant bundled 0123456789ab");
    }
}
