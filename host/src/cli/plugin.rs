//! `aok plugin`: what was found in the plugin directories and what is wrong with it, and what a component
//! file is.

mod doctor;
mod files;
mod grants;
mod inspect;
mod project;

use super::error::Error;
use super::format::optional;
use super::out::{Column, Out};
use super::session::Session;
use crate::capability::Permissions;
use crate::kernel::info::PluginInfo;
use crate::server::wire::Request;

/// List plugins, and look at components
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List plugins, refused ones with the reason
    Ls,
    /// Say whether a component file can be loaded, and if not, each thing that is wrong with it
    Doctor(doctor::Args),
    /// Show what a component imports, exports and asks for
    Inspect(inspect::Args),
    /// Check a component, or take an example, and put it into the data directory's `plugins/`
    Add(files::Add),
    /// Take a plugin out of the data directory's `plugins/`
    Rm(files::Rm),
    /// Grant a plugin of a directory what its manifest asks for
    Grant(grants::Grant),
    /// Take grants back
    Revoke(grants::Revoke),
    /// Trust the component that a plugin has now: its hooks may then rewrite
    Trust(grants::Trust),
    /// Begin a plugin: a directory with a tool or a hook, and all that is needed to build it
    New(project::New),
    /// Make a component of a plugin's source
    Build(project::Make),
}

impl Args {
    /// Whether it may start a kernel.
    pub(super) fn acts(&self) -> bool {
        matches!(self.command, Command::Grant(_) | Command::Revoke(_) | Command::Trust(_))
    }
}

const COLUMNS: [Column; 7] = [
    Column::Left("NAME"),
    Column::Left("STATE"),
    Column::Left("KIND"),
    Column::Left("VERSION"),
    Column::Right("CALLS"),
    Column::Right("ERRORS"),
    Column::Left("SERVES"),
];

pub(super) async fn run(args: Args, session: &Session, out: &mut Out) -> Result<(), Error> {
    match args.command {
        Command::Ls => list(session, out).await,
        Command::Doctor(args) => doctor::run(&args, session, out),
        Command::Inspect(args) => inspect::run(&args, session, out).await,
        Command::Add(args) => files::add(&args, session, out),
        Command::Rm(args) => files::rm(&args, session, out),
        Command::Grant(args) => grants::grant(args, session, out).await,
        Command::Revoke(args) => grants::revoke(args, session, out).await,
        Command::Trust(args) => grants::trust(args, session, out).await,
        Command::New(args) => project::new(&args, out),
        Command::Build(args) => project::build(&args, session, out),
    }
}

async fn list(session: &Session, out: &mut Out) -> Result<(), Error> {
    let lines = session.look(Request::PluginLs {}).await?;
    let plugins: Vec<PluginInfo> = out.items(lines).await?;
    if out.json {
        return Ok(());
    }
    out.table(&COLUMNS, &plugins.iter().map(row).collect::<Vec<_>>())?;
    for plugin in &plugins {
        for text in [reason(plugin), rights(plugin)].into_iter().flatten() {
            out.guest_text(&text)?;
        }
    }
    Ok(())
}

fn row(p: &PluginInfo) -> Vec<String> {
    let serves: Vec<&str> = [&p.tools, &p.hooks, &p.agents].into_iter().flatten().map(String::as_str).collect();
    vec![
        p.name.clone(),
        p.state.clone(),
        p.kind.join(","),
        optional(p.version.as_ref()),
        p.calls.to_string(),
        p.errors.to_string(),
        serves.join(" "),
    ]
}

/// Why a plugin is refused, under the table.
fn reason(p: &PluginInfo) -> Option<String> {
    let why = p.diagnosis.as_ref()?;
    let file = p.file.as_ref().map(|f| format!(" ({f})")).unwrap_or_default();
    Some(format!("\n{}{file}: {} [{}]\n  {}", p.name, why.message, why.code, why.hint))
}

/// What a plugin of a directory asks for and is granted, under the table.
fn rights(p: &PluginInfo) -> Option<String> {
    p.file.as_ref()?;
    let trust = if p.trusted { "trusted" } else { "not trusted" };
    let words = |p: &Permissions| match p.words() {
        none if none.is_empty() => "nothing".to_owned(),
        words => words.join("  "),
    };
    if p.requested.is_empty() && p.granted.is_empty() && !p.trusted {
        return None;
    }
    Some(format!("\n{}: {trust}\n  asks for: {}\n  granted:  {}", p.name, words(&p.requested), words(&p.granted)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::info::Diagnosis;

    #[test]
    fn a_refused_plugin_tells_why() {
        let mut p = PluginInfo {
            name: "x".into(),
            file: Some("/p/x.wasm".into()),
            kind: vec!["tool".into()],
            state: "loaded".into(),
            requested: Permissions::default(),
            granted: Permissions::default(),
            trusted: false,
            version: None,
            digest: None,
            contract: None,
            tools: vec!["x__a".into(), "x__b".into()],
            hooks: vec![],
            agents: vec![],
            calls: 2,
            errors: 1,
            diagnosis: None,
        };
        assert_eq!(row(&p).join(" "), "x loaded tool - 2 1 x__a x__b");
        assert_eq!((reason(&p), rights(&p)), (None, None));
        p.diagnosis = Some(Diagnosis { code: "core_module".into(), message: "m".into(), hint: "h".into() });
        assert_eq!(reason(&p).unwrap(), "\nx (/p/x.wasm): m [core_module]\n  h");
        p.granted.http.push("GET h/v1/*".parse().unwrap());
        p.trusted = true;
        let shown = rights(&p).unwrap();
        assert_eq!(shown, "\nx: trusted\n  asks for: nothing\n  granted:  http=GET h/v1/*");
    }
}
