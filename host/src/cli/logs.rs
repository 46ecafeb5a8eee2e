//! `aok logs`: what a process wrote.

use futures_util::stream::StreamExt as _;

use super::error::Error;
use super::format::{instant, one_line};
use super::out::Out;
use super::session::Session;
use crate::process::Pid;
use crate::server::wire::{LogLine, Request};

/// Show what a process and its tools logged
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The process
    pid: u64,
    /// Go on until the process no longer runs
    #[arg(long, short)]
    follow: bool,
}

pub(super) async fn run(args: Args, session: &Session, out: &mut Out) -> Result<(), Error> {
    let mut lines = session.look(Request::Logs { pid: Pid(args.pid), follow: args.follow }).await?;
    while let Some(line) = lines.next().await {
        let line = line?;
        if out.json {
            out.line(&line)?;
        } else {
            out.line(&text(&serde_json::from_str(&line)?))?;
        }
    }
    Ok(())
}

fn text(line: &LogLine) -> String {
    one_line(&format!("{} {:5} {}: {}", instant(line.at_ms), line.level.to_uppercase(), line.source, line.message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line() {
        let line = LogLine {
            pid: Pid(1),
            seq: 2,
            at_ms: 0,
            level: "warn".into(),
            source: "fs".into(),
            message: "a\n\u{1b}[31mb".into(),
        };
        assert_eq!(text(&line), "1970-01-01 00:00:00.000 WARN  fs: a  [31mb");
    }
}
