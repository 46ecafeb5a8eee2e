//! `aok plugin inspect NAME|FILE`: what a component imports, exports and asks for.

use std::path::Path;

use serde_json::json;

use super::doctor;
use crate::cli::error::Error;
use crate::cli::format::{bytes, one_line, optional};
use crate::cli::out::Out;
use crate::cli::session::Session;
use crate::contract::Item;
use crate::kernel::info::{PluginInfo, PluginReport};
use crate::kernel::{report_bundled, report_file};
use crate::server::error::{ApiError, Code};
use crate::server::wire::Request;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A plugin's name, or a component file
    #[arg(value_name = "NAME|FILE")]
    what: String,
}

pub(super) async fn run(args: &Args, session: &Session, out: &mut Out) -> Result<(), Error> {
    let plugin = if args.what.contains(['/', '.']) { None } else { Some(registered(&args.what, session).await?) };
    let report = match &plugin {
        None => report_file(Path::new(&args.what), None, session.wasi03()?),
        Some(PluginInfo { file: Some(file), .. }) => report_file(Path::new(file), None, session.wasi03()?),
        Some(PluginInfo { name, .. }) => report_bundled(name).unwrap_or_default(),
    };
    if out.json {
        let mut object = json!(report);
        object["plugin"] = json!(plugin);
        out.line(&object.to_string())?;
    } else {
        for line in text(&report, plugin.as_ref()) {
            out.line(&one_line(&line))?;
        }
    }
    // A plugin is shown whatever its file is; a file that was named must be one.
    if plugin.is_some() { Ok(()) } else { doctor::verdict(report) }
}

async fn registered(name: &str, session: &Session) -> Result<PluginInfo, Error> {
    let mut lines = session.look(Request::PluginLs {}).await?;
    let mut known = Vec::new();
    while let Some(line) = futures_util::StreamExt::next(&mut lines).await {
        let plugin: PluginInfo = serde_json::from_str(&line?)?;
        if plugin.name == name {
            return Ok(plugin);
        }
        known.push(plugin.name);
    }
    let hint = format!("plugins: {}; a file is given with its path", known.join(" "));
    Err(ApiError::new(Code::UnknownPlugin, format!("there is no plugin `{name}`"), hint).into())
}

fn text(report: &PluginReport, plugin: Option<&PluginInfo>) -> Vec<String> {
    let mut lines = doctor::text(report);
    lines.push(format!("size     {}", bytes(report.bytes)));
    lines.push(format!("digest   {}", optional(report.digest.as_ref())));
    if let Some(version) = &report.version {
        lines.push(format!("version  {version}"));
    }
    if let Some(plugin) = plugin {
        lines.push(format!("state    {}, {} calls, {} failed", plugin.state, plugin.calls, plugin.errors));
        lines.push(format!("tools    {}", optional(Some(plugin.tools.join(" ")).filter(|t| !t.is_empty()))));
    }
    border("imports", &report.imports, &mut lines);
    border("exports", &report.exports, &mut lines);
    lines
}

fn border(title: &str, items: &[Item], lines: &mut Vec<String>) {
    lines.push(if items.is_empty() { format!("{title}: none") } else { format!("{title}:") });
    for item in items {
        lines.push(format!("  {}", item.name));
        lines.extend(item.functions.iter().map(|function| format!("    {function}")));
    }
}
