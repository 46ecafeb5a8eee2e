//! `aok diff`: what a process changed in its private copies.

use futures_util::stream::StreamExt as _;

use super::error::Error;
use super::format::{bytes, name};
use super::out::{Column, Out};
use super::session::Session;
use crate::kernel::info::FileChange;
use crate::overlay::{Action, Kind};
use crate::process::Pid;
use crate::server::error::ApiError;
use crate::server::wire::Request;

/// Show what a process changed in its private copies
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The process
    pid: u64,
    /// A line for each file, and a sum
    #[arg(long)]
    stat: bool,
}

const COLUMNS: [Column; 4] =
    [Column::Left("CHANGE"), Column::Right("SIZE"), Column::Left("PATH"), Column::Left("CONFLICT")];

pub(super) async fn run(args: Args, session: &Session, out: &mut Out) -> Result<(), Error> {
    let text = !args.stat && !out.json;
    let lines = session.look(Request::Diff { pid: Pid(args.pid), text }).await?;
    let changes: Vec<FileChange> = out.items(lines).await?;
    if out.json {
        return Ok(());
    }
    if changes.is_empty() {
        out.side(&format!("aok: process {} has changed nothing in private copies that is not applied", args.pid));
    } else if args.stat {
        out.table(&COLUMNS, &changes.iter().map(row).collect::<Vec<_>>())?;
        out.line(&sum(&changes))?;
    } else {
        for change in &changes {
            out.guest_text(&shown(change))?;
        }
    }
    Ok(())
}

fn verb(action: Action) -> &'static str {
    match action {
        Action::Added => "added",
        Action::Modified => "modified",
        Action::Deleted => "deleted",
    }
}

fn noun(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Directory => "directory",
        Kind::Link => "link",
        Kind::Other => "special file",
    }
}

/// What became of it: `modified work/a.txt`, `added directory work/d`.
pub(super) fn headline(change: &FileChange) -> String {
    let kind = if change.kind == Kind::File { String::new() } else { format!("{} ", noun(change.kind)) };
    format!("{} {kind}{}", verb(change.change), name(&change.path))
}

fn row(change: &FileChange) -> Vec<String> {
    let size = change.bytes.filter(|_| change.kind != Kind::Directory).map_or_else(|| "-".to_owned(), bytes);
    let path = if change.kind == Kind::Directory { format!("{}/", change.path) } else { change.path.clone() };
    vec![verb(change.change).to_owned(), size, name(&path), change.conflict.clone().unwrap_or_default()]
}

fn shown(change: &FileChange) -> String {
    let mut text = headline(change);
    if let Some(why) = &change.conflict {
        text.push_str(&format!("\n! conflict: {}", name(why)));
    }
    match &change.text {
        Some(diff) => text.push_str(&format!("\n{}", diff.trim_end_matches('\n'))),
        None if change.kind == Kind::Directory => {}
        None => {
            let size = |n: Option<u64>| n.map_or_else(|| "nothing".to_owned(), bytes);
            let old = change.base.as_ref().map(|base| base.bytes);
            text.push_str(&format!("\nno text, or too long to show: {} became {}", size(old), size(change.bytes)));
        }
    }
    text
}

fn sum(changes: &[FileChange]) -> String {
    let count = |action| changes.iter().filter(|c| c.change == action).count();
    let conflicts = changes.iter().filter(|c| c.conflict.is_some()).count();
    let conflicts = if conflicts == 0 { String::new() } else { format!(", {conflicts} in conflict") };
    let (added, modified, deleted) = (count(Action::Added), count(Action::Modified), count(Action::Deleted));
    format!("{added} added, {modified} modified, {deleted} deleted{conflicts}")
}

/// Says after a command what its process changed, if it did, and what can be done with it.
pub(super) async fn tell(pid: Pid, session: &Session, out: &mut Out) {
    let hint = format!("aok diff {pid} · aok apply {pid} · aok discard {pid}");
    let message = match count(pid, session).await {
        Ok(0) => return,
        Ok(1) => format!("process {pid} changed 1 file, in a private copy: outside nothing is changed yet"),
        Ok(n) => format!("process {pid} changed {n} files, in a private copy: outside nothing is changed yet"),
        Err(e) => format!("what process {pid} changed in a private copy cannot be counted: {e}"),
    };
    out.notice(&message, &hint);
}

async fn count(pid: Pid, session: &Session) -> Result<usize, ApiError> {
    let mut lines = session.look(Request::Diff { pid, text: false }).await?;
    let mut count = 0;
    while let Some(line) = lines.next().await {
        line?;
        count += 1;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::info::FileBase;

    fn change(path: &str, action: Action, kind: Kind) -> FileChange {
        FileChange {
            path: path.into(),
            change: action,
            kind,
            base: Some(FileBase { bytes: 2_000, sha256: None }),
            bytes: Some(5),
            conflict: None,
            text: None,
        }
    }

    #[test]
    fn a_change_is_told_by_its_text_or_its_sizes() {
        let mut text = change("w/a", Action::Modified, Kind::File);
        text.text = Some("--- a/w/a\n+++ b/w/a\n@@ -1 +1 @@\n-x\n+y\n".into());
        assert_eq!(shown(&text), "modified w/a\n--- a/w/a\n+++ b/w/a\n@@ -1 +1 @@\n-x\n+y");
        let mut binary = change("w/\u{1b}[2J\nb", Action::Deleted, Kind::File);
        binary.bytes = None;
        binary.conflict = Some("it was changed outside".into());
        let expected = "deleted w/\\u{1b}[2J\\nb\n! conflict: it was changed outside\n\
                        no text, or too long to show: 2.0 kB became nothing";
        assert_eq!(shown(&binary), expected);
        let directory = change("w/d", Action::Added, Kind::Directory);
        assert_eq!(shown(&directory), "added directory w/d");
        assert_eq!(row(&directory).join("|"), "added|-|w/d/|");
        assert_eq!(sum(&[text, binary, directory]), "1 added, 1 modified, 1 deleted, 1 in conflict");
    }
}
