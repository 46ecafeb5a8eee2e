//! `aok doctor`: what works here, what does not, and what to do about it.

use futures_util::stream::StreamExt as _;

use super::error::Error;
use super::format::{one_line, optional};
use super::out::{Column, Out};
use super::run::environment_model;
use super::session::Session;
use crate::kernel::Kernel;
use crate::kernel::info::{Check, Health, Proof};
use crate::server::error::{ApiError, Code};

/// Say what works here, and what to do about what does not
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Run a hostile guest for each limit instead, and say what stopped it
    #[arg(long)]
    prove_limits: bool,
}

const PROOFS: [Column; 6] = [
    Column::Left("LIMIT"),
    Column::Left("HELD"),
    Column::Right("DECLARED"),
    Column::Right("OBSERVED"),
    Column::Left("UNIT"),
    Column::Left("WHAT THE CALLER IS TOLD"),
];

pub(super) async fn run(args: Args, session: &Session, out: &mut Out) -> Result<(), Error> {
    if args.prove_limits { prove(out).await } else { examine(session, out).await }
}

async fn examine(session: &Session, out: &mut Out) -> Result<(), Error> {
    let mut lines = session.examine(environment_model()).await?;
    let mut checks: Vec<Check> = Vec::new();
    while let Some(line) = lines.next().await {
        let line = line?;
        if out.json {
            out.line(&line)?;
        }
        checks.push(serde_json::from_str(&line)?);
    }
    if !out.json {
        for line in text(&checks) {
            out.line(&line)?;
        }
    }
    let broken: Vec<&str> = checks.iter().filter(|c| c.state == Health::Fail).map(|c| c.check.as_str()).collect();
    if broken.is_empty() {
        return Ok(());
    }
    let message = format!("what aok needs is broken: {}", broken.join(", "));
    Err(ApiError::new(Code::Unhealthy, message, "do what the report says, then run `aok doctor` again").into())
}

/// The report for people: state and names aligned, each way out below its line.
fn text(checks: &[Check]) -> Vec<String> {
    let width = checks.iter().map(|c| console::measure_text_width(&c.check)).max().unwrap_or(0);
    let lines = checks.iter().flat_map(|c| {
        let pad = " ".repeat(width.saturating_sub(console::measure_text_width(&c.check)));
        let line = format!("{:<4}  {}{pad}  {}", c.state.name(), c.check, c.detail);
        let fix = c.fix.as_ref().map(|fix| format!("      {}  → {fix}", " ".repeat(width)));
        std::iter::once(line).chain(fix)
    });
    lines.map(|line| one_line(&line)).collect()
}

async fn prove(out: &mut Out) -> Result<(), Error> {
    let proofs = Kernel::prove_limits().await.map_err(ApiError::from)?;
    if out.json {
        for proof in &proofs {
            out.line(&serde_json::to_string(proof)?)?;
        }
    } else {
        out.table(&PROOFS, &proofs.iter().map(row).collect::<Vec<_>>())?;
    }
    let broken: Vec<&str> = proofs.iter().filter(|p| !p.held).map(|p| p.limit.as_str()).collect();
    if broken.is_empty() {
        return Ok(());
    }
    let message = format!("these limits did not hold: {}", broken.join(", "));
    Err(ApiError::new(Code::LimitBroken, message, "run no guest that you do not trust; report it as a bug").into())
}

fn row(p: &Proof) -> Vec<String> {
    vec![
        p.limit.clone(),
        if p.held { "yes" } else { "NO" }.to_owned(),
        p.declared.to_string(),
        optional(p.observed),
        p.unit.clone(),
        p.message.clone(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_aligned_and_a_way_out_is_below_its_line() {
        let checks = [
            Check::ok("lock", "free"),
            Check::warn("größe", "a\u{1b}[2Jb", "do this"),
            Check::fail("data directory", "gone", "do that"),
        ];
        assert_eq!(
            text(&checks),
            [
                "ok    lock            free",
                "warn  größe           a [2Jb",
                "                      → do this",
                "fail  data directory  gone",
                "                      → do that",
            ]
        );
    }

    #[test]
    fn a_limit_that_did_not_hold_is_seen() {
        let proof = |held| Proof {
            limit: "stack".into(),
            held,
            declared: 5,
            observed: None,
            unit: "bytes".into(),
            stopped_by: None,
            message: "m".into(),
        };
        assert_eq!(row(&proof(true)), ["stack", "yes", "5", "-", "bytes", "m"]);
        assert_eq!(row(&proof(false))[1], "NO");
    }
}
