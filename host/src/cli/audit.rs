//! `aok audit tail|verify`: who decided what, and whether the record of it is whole.

use futures_util::stream::StreamExt as _;

use super::error::Error;
use super::format::instant;
use super::out::{Column, Out};
use super::session::Session;
use crate::audit::Record;
use crate::kernel::info::AuditVerdict;
use crate::process::Pid;
use crate::server::Lines;
use crate::server::error::{ApiError, Code};
use crate::server::wire::Request;

/// Show and check the audit log
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show the last records, oldest first
    Tail {
        /// Of this process only; 0 is the kernel
        pid: Option<u64>,
        /// How many
        #[arg(short = 'n', long = "lines", value_name = "N", default_value_t = 20)]
        lines: u64,
    },
    /// Check every chain of records
    Verify,
}

const COLUMNS: [Column; 7] = [
    Column::Left("TIME"),
    Column::Right("PID"),
    Column::Right("SEQ"),
    Column::Left("EVENT"),
    Column::Left("DECISION"),
    Column::Left("BY"),
    Column::Left("OBJECT"),
];

pub(super) async fn run(args: Args, session: &Session, out: &mut Out) -> Result<(), Error> {
    match args.command {
        Command::Tail { pid, lines } => {
            let lines = session.look(Request::AuditTail { pid: pid.map(Pid), limit: lines }).await?;
            out.list(lines, &COLUMNS, row).await
        }
        Command::Verify => verdict(session.look(Request::AuditVerify {}).await?, out).await,
    }
}

fn row(r: &Record) -> Vec<String> {
    vec![
        instant(r.at_ms),
        r.pid.to_string(),
        r.seq.to_string(),
        r.event.to_string(),
        r.decision.to_string(),
        r.by.to_string(),
        r.object.clone(),
    ]
}

async fn verdict(mut lines: Lines, out: &mut Out) -> Result<(), Error> {
    let Some(line) = lines.next().await else {
        return Err(ApiError::internal("the check gave no verdict").into());
    };
    let line = line?;
    let verdict: AuditVerdict = serde_json::from_str(&line)?;
    if out.json {
        out.line(&line)?;
    }
    match verdict {
        AuditVerdict::Good { records, .. } if !out.json => out.line(&format!("{records} records, every chain holds.")),
        AuditVerdict::Good { .. } => Ok(()),
        AuditVerdict::Bad { pid, seq, why, .. } => Err(Error::Failed(ApiError::new(
            Code::AuditBroken,
            format!("the audit chain of process {pid} is {why} at record {seq}"),
            format!("someone changed the store; what stands before it holds: aok audit tail {pid}"),
        ))),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::super::out::tests::memory;
    use super::*;

    fn line(text: &str) -> Lines {
        stream::iter(vec![Ok(text.to_owned())]).boxed()
    }

    #[tokio::test]
    async fn a_verdict_has_its_exit() {
        let (mut out, stdout, _) = memory(false, None);
        verdict(line(r#"{"ok":true,"records":7}"#), &mut out).await.unwrap();
        assert_eq!(stdout.text(), "7 records, every chain holds.\n");
        let bad = r#"{"ok":false,"pid":3,"seq":5,"why":"missing"}"#;
        let (mut out, stdout, _) = memory(true, None);
        let error = verdict(line(bad), &mut out).await.unwrap_err();
        assert_eq!((error.exit(), stdout.text()), (1, format!("{bad}\n")));
        let told = error.report().unwrap();
        assert_eq!(told.code, Code::AuditBroken);
        assert!(told.message.contains("process 3 is missing at record 5"), "{told}");
    }

    #[test]
    fn a_row_has_the_columns() {
        let record = Record {
            seq: 2,
            pid: Pid(3),
            at_ms: 0,
            event: "tool-call".into(),
            object: "fs__read".into(),
            decision: "allow".into(),
            by: "policy".into(),
            prev: "".into(),
            hash: "".into(),
        };
        assert_eq!(row(&record).join(" "), "1970-01-01 00:00:00.000 3 2 tool-call allow policy fs__read");
        assert_eq!(row(&record).len(), COLUMNS.len());
    }
}
