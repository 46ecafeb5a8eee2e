//! `aok context`: the pages of a process.

use super::error::Error;
use super::out::{Column, Out};
use super::session::Session;
use crate::kernel::info::PageInfo;
use crate::process::Pid;
use crate::server::wire::Request;

/// Show the pages of a process's context, in window order
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The process
    pid: u64,
}

const COLUMNS: [Column; 8] = [
    Column::Right("PAGE"),
    Column::Left("KIND"),
    Column::Left("REGION"),
    Column::Right("TOKENS"),
    Column::Left("FLAGS"),
    Column::Right("IMPORTANCE"),
    Column::Right("READ"),
    Column::Left("WHY"),
];

pub(super) async fn run(args: Args, session: &Session, out: &mut Out) -> Result<(), Error> {
    let lines = session.look(Request::Context { pid: Pid(args.pid) }).await?;
    out.list(lines, &COLUMNS, row).await
}

fn row(p: &PageInfo) -> Vec<String> {
    let kind = serde_json::to_value(p.kind).ok().and_then(|k| k.as_str().map(str::to_owned)).unwrap_or_default();
    let flags = [(p.resident, 'r'), (p.pinned, 'p'), (p.cached == Some(true), 'c')];
    vec![
        p.id.to_string(),
        kind,
        p.region.clone(),
        // An upper bound is marked so.
        format!("{}{}", if p.exact { "" } else { "≤" }, p.tokens),
        flags.map(|(set, letter)| if set { letter } else { '-' }).iter().collect(),
        format!("{:.2}", p.importance),
        p.accesses.to_string(),
        p.why.clone(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::PageKind;

    #[test]
    fn a_row_marks_bounds_and_flags() {
        let page = PageInfo {
            id: 4,
            kind: PageKind::ToolResult,
            region: "history".into(),
            tokens: 120,
            exact: false,
            resident: true,
            pinned: false,
            importance: 0.5,
            accesses: 2,
            hash: String::new(),
            why: "recent".into(),
            cached: Some(true),
        };
        assert_eq!(row(&page).join(" "), "4 tool-result history ≤120 r-c 0.50 2 recent");
        assert_eq!(row(&page).len(), COLUMNS.len());
    }
}
