//! `aok top --batch` and `--json`: snapshots for a file, a pipe or another program.

use std::time::Duration;

use super::Source;
use super::columns::{COLUMNS, Column, Kind, clean};
use super::figures::{Meter, Reading};
use super::model::Sort;
use super::view::{used_text, who_text};
use crate::cli::error::Error;
use crate::cli::format::instant;
use crate::cli::out::{self, Out};

/// Writes snapshots, `n` of them or without end.
///
/// One more is taken first and not shown, so that each shown one has shares and rates.
pub(super) async fn run<S: Source>(source: &S, every: Duration, n: Option<u64>, out: &mut Out) -> Result<(), Error> {
    let mut meter = Meter::default();
    meter.read(source.snapshot().await?);
    let mut live = true;
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut left = n;
    while left != Some(0) {
        ticks.tick().await;
        let mut reading = meter.read(source.snapshot().await?);
        if live && !reading.live {
            out.notice("no kernel runs", "this is what the store has; shares and rates need a kernel");
        }
        live = reading.live;
        // As the live view begins: the busiest first.
        reading.rows.sort_by(|a, b| Sort::Cpu.compare(a, b).then(a.process.pid.cmp(&b.process.pid)));
        if out.json {
            out.line(&serde_json::to_string(&reading)?)?;
        } else {
            text(&reading, out)?;
        }
        left = left.map(|n| n - 1);
    }
    Ok(())
}

fn text(reading: &Reading, out: &mut Out) -> Result<(), Error> {
    let (at, who) = (instant(reading.at_ms), who_text(reading.live, &reading.totals));
    out.line(&format!("aok top · {at} · {who}"))?;
    out.line(&used_text(&reading.totals))?;
    let column = |c: &Column| match c.kind {
        Kind::Number => out::Column::Right(c.title),
        Kind::Word | Kind::Text => out::Column::Left(c.title),
    };
    let columns = COLUMNS.each_ref().map(column);
    let rows = reading.rows.iter().map(|row| COLUMNS.iter().map(|c| clean(&(c.cell)(row))).collect());
    out.table(&columns, &rows.collect::<Vec<_>>())?;
    out.line("")
}
