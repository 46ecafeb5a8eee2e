//! `aok plugin doctor FILE`: whether a component can be loaded, and each thing that is wrong with it.

use std::path::PathBuf;

use crate::cli::error::Error;
use crate::cli::format::one_line;
use crate::cli::out::Out;
use crate::cli::session::Session;
use crate::contract::FOREIGN;
use crate::kernel::info::PluginReport;
use crate::kernel::report_file;
use crate::server::error::{ApiError, Code};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The component; the manifest beside it is looked at too
    file: PathBuf,
}

pub(super) fn run(args: &Args, session: &Session, out: &mut Out) -> Result<(), Error> {
    let report = report_file(&args.file, None, session.wasi03()?);
    if out.json {
        out.line(&serde_json::to_string(&report)?)?;
    } else {
        for line in text(&report) {
            out.line(&one_line(&line))?;
        }
    }
    verdict(report)
}

/// Whether the file that was looked at can be a plugin.
pub(super) fn verdict(report: PluginReport) -> Result<(), Error> {
    let Some(why) = report.diagnosis else { return Ok(()) };
    let file = report.file.unwrap_or(report.name);
    let message = format!("{file} cannot be a plugin: {}", why.message);
    Err(ApiError::new(Code::PluginRefused, message, format!("{} [{}]", why.hint, why.code)).into())
}

/// The report for people.
pub(super) fn text(report: &PluginReport) -> Vec<String> {
    let name = report.file.as_ref().unwrap_or(&report.name);
    let kind = report.kind.as_deref().unwrap_or("component");
    let Some(why) = &report.diagnosis else {
        let contract = report.contract.as_deref().unwrap_or("unknown");
        let needs = match (report.needs.files, report.needs.network) {
            (false, false) => "neither files nor the network",
            (true, false) => "files",
            (false, true) => "the network",
            (true, true) => "files and the network",
        };
        let written = if contract == FOREIGN {
            "that was not written for the contract: its functions are tools".to_owned()
        } else {
            format!("for contract {contract}")
        };
        let mut lines = vec![format!("{name}: a {kind} {written}; it asks for {needs}")];
        lines.extend(report.left_out.iter().map(|sentence| format!("  - {sentence}")));
        return lines;
    };
    let mut lines = vec![format!("{name}: refused [{}]", why.code)];
    if report.drift.is_empty() {
        lines.push(format!("  - {}", why.message));
    }
    lines.extend(report.drift.iter().map(|sentence| format!("  - {sentence}")));
    lines.push(format!("  → {}", why.hint));
    lines
}
