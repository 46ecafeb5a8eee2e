//! The command line: parse, ask, render. One file per command; what a command does is the API's.
//!
//! A command gets its arguments, a [`session::Session`] to ask and an [`out::Out`] to answer to. It
//! knows neither sockets nor stores, and can do nothing that a client of the API cannot.

mod agent;
mod apply;
mod approvals;
mod audit;
mod context;
mod diff;
mod doctor;
mod error;
mod format;
mod hook;
mod input;
mod logs;
mod mcp;
mod metrics;
mod out;
mod plugin;
mod progress;
mod ps;
mod run;
mod serve;
mod session;
mod signal;
mod tool;
mod top;

use std::ffi::OsString;
use std::io::{IsTerminal as _, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser as _;
use tokio::runtime::{Builder, Runtime};
use tracing_subscriber::EnvFilter;

use crate::server::error::{ApiError, Code};
use error::Error;
use out::Out;
use session::Session;

/// What bare `aok` says: at most ten lines.
const BRIEF: &str = "\
aok runs LLM agents as sandboxed, durable processes.

  aok run --task \"What is in notes?\" --dir ./notes   run an agent on a task; --resume PID continues one
  aok diff PID · apply PID · discard PID             what it changed in `--dir PATH:rw`
  aok ps · top · logs PID · context PID · approvals  look at processes; approve, deny ID
  aok serve · spawn · attach · wait · kill · nice    a kernel that stays, and its processes
  aok tool ls | show NAME | call NAME JSON · mcp     tools, also for MCP clients
  aok plugin ls · agent ls · hook ls · audit tail · metrics
  aok doctor                                         what works here, and the fix
  aok help [COMMAND]                                 every option
";

/// An operating-system kernel for LLM agents
#[derive(Debug, clap::Parser)]
#[command(name = "aok", version, subcommand_required = false, arg_required_else_help = false)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Options of every command.
#[derive(Debug, clap::Args)]
struct Globals {
    /// Data directory; the platform's own when absent
    #[arg(long, global = true, value_name = "DIR", env = "AOK_HOME")]
    data: Option<PathBuf>,
    /// Configuration; aok.toml of the data directory when absent
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory with more plugins
    #[arg(long, global = true, value_name = "DIR", value_parser = input::directory)]
    plugins: Vec<PathBuf>,
    /// Write JSON lines
    #[arg(long, global = true)]
    json: bool,
    /// Say more on stderr; twice for all
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Run(Box<run::Args>),
    Serve(serve::Args),
    Spawn(Box<run::Detached>),
    Attach(run::Attach),
    Wait(signal::Wait),
    Kill(signal::Kill),
    Nice(signal::Nice),
    Top(top::Args),
    Ps(ps::Args),
    Logs(logs::Args),
    Tool(tool::Args),
    Plugin(plugin::Args),
    Agent(agent::Args),
    Hook(hook::Args),
    Approvals(approvals::Args),
    /// Allow what a hook asked about
    Approve(approvals::Decision),
    /// Refuse what a hook asked about
    Deny(approvals::Decision),
    Context(context::Args),
    Diff(diff::Args),
    Apply(apply::Args),
    Discard(apply::DiscardArgs),
    Audit(audit::Args),
    Metrics(metrics::Args),
    Doctor(doctor::Args),
    Mcp(mcp::Args),
}

impl Command {
    /// Whether it may start a kernel of its own, which needs threads for its I/O.
    fn acts(&self) -> bool {
        match self {
            Self::Run(_) | Self::Mcp(_) | Self::Serve(_) | Self::Kill(_) | Self::Nice(_) => true,
            Self::Approve(_) | Self::Deny(_) | Self::Apply(_) | Self::Discard(_) => true,
            Self::Tool(args) => args.acts(),
            Self::Plugin(args) => args.acts(),
            _ => false,
        }
    }

    async fn run(self, session: &Session, out: &mut Out) -> Result<(), Error> {
        match self {
            // Its future is far larger than those of the others.
            Self::Run(args) => Box::pin(run::run(*args, session, out)).await,
            Self::Serve(args) => serve::run(args, session, out).await,
            Self::Spawn(args) => run::detached(*args, session, out).await,
            Self::Attach(args) => run::attach(args, session, out).await,
            Self::Wait(args) => signal::wait(args, session, out).await,
            Self::Kill(args) => signal::kill(args, session, out).await,
            Self::Nice(args) => signal::nice(args, session, out).await,
            Self::Top(args) => top::run(args, &top::Kernel(session), out).await,
            Self::Ps(args) => ps::run(args, session, out).await,
            Self::Logs(args) => logs::run(args, session, out).await,
            Self::Tool(args) => tool::run(args, session, out).await,
            Self::Plugin(args) => plugin::run(args, session, out).await,
            Self::Agent(args) => agent::run(args, session, out).await,
            Self::Hook(args) => hook::run(args, session, out).await,
            Self::Approvals(args) => approvals::run(args, session, out).await,
            Self::Approve(args) => approvals::decide(args, true, session, out).await,
            Self::Deny(args) => approvals::decide(args, false, session, out).await,
            Self::Context(args) => context::run(args, session, out).await,
            Self::Diff(args) => diff::run(args, session, out).await,
            Self::Apply(args) => apply::run(args, session, out).await,
            Self::Discard(args) => apply::discard(args, session, out).await,
            Self::Audit(args) => audit::run(args, session, out).await,
            Self::Metrics(args) => metrics::run(args, session, out).await,
            Self::Doctor(args) => doctor::run(args, session, out).await,
            Self::Mcp(args) => mcp::run(args, session, out).await,
        }
    }
}

/// Runs the command line of this process and returns its exit status.
#[must_use]
pub fn main() -> ExitCode {
    let args = signal::spelled_out(std::env::args_os().collect());
    let json = args.iter().take_while(|a| *a != "--").any(|a| a == "--json");
    // The streams are used as they are found, so nothing is left half changed by a panic.
    let status = catch_unwind(AssertUnwindSafe(|| run_args(args, json))).unwrap_or_else(|_| {
        let error = ApiError::internal("aok panicked; the text above says where");
        Out::new(json).error(&error);
        error.exit()
    });
    ExitCode::from(status)
}

fn run_args(args: Vec<OsString>, json: bool) -> u8 {
    let mut out = Out::new(json);
    let end = match Cli::try_parse_from(args) {
        Ok(Cli { command: None, .. }) => out.line(BRIEF.trim_end()),
        Ok(Cli { globals, command: Some(command) }) => execute(&globals, command, &mut out),
        Err(e) => return refuse_arguments(&e, &mut out),
    };
    let Err(error) = end else { return 0 };
    let status = error.exit();
    if let Some(error) = error.report() {
        out.error(&error);
    }
    status
}

fn execute(globals: &Globals, command: Command, out: &mut Out) -> Result<(), Error> {
    trace(globals.verbose);
    let session = Session::new(globals)?;
    let runtime = runtime(command.acts())?;
    let end = runtime.block_on(command.run(&session, out));
    // A second Ctrl-C leaves work behind that nobody waits for.
    runtime.shutdown_background();
    end
}

fn runtime(acts: bool) -> Result<Runtime, Error> {
    let mut builder = if acts { Builder::new_multi_thread() } else { Builder::new_current_thread() };
    builder.enable_all().build().map_err(|e| {
        let hint = "the machine has no threads or files left; end other programs and try again";
        Error::Failed(ApiError::new(Code::Io, format!("the I/O runtime cannot start: {e}"), hint))
    })
}

/// Logs to stderr: warnings, more with `-v`, or what `RUST_LOG` says.
fn trace(verbose: u8) {
    let level = match verbose {
        0 => "warn,genai=off",
        1 => "agent_os_kernel=info,warn,genai=off",
        _ => "agent_os_kernel=trace,info",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let ansi = std::io::stderr().is_terminal();
    // Fails only where an embedder has its own already, which is then the right one.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi).try_init();
}

/// Answers arguments that clap did not take: help and version on stdout, the rest as an error.
fn refuse_arguments(error: &clap::Error, out: &mut Out) -> u8 {
    let status = u8::try_from(error.exit_code()).unwrap_or(Code::BadUsage.exit());
    if status != 0 && out.json {
        let text = error.render().to_string();
        let (message, rest) = text.split_once('\n').unwrap_or((&text, ""));
        let message = message.strip_prefix("error: ").unwrap_or(message);
        // The rest is a tip and the usage; one line of it is enough beside the help.
        let hint = rest.lines().map(str::trim).find(|l| !l.is_empty() && *l != message).unwrap_or("aok help");
        out.error(&ApiError::new(Code::BadUsage, message, hint));
        return status;
    }
    match error.print().and_then(|()| std::io::stdout().flush()) {
        Err(e) if status == 0 => Error::from(e).exit(),
        _ => status,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::out::tests::memory;
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn bare_aok_is_brief() {
        assert!(BRIEF.lines().count() <= 10);
        assert!(Cli::try_parse_from(["aok"]).unwrap().command.is_none());
        for name in Cli::command().get_subcommands().map(|c| c.get_name().to_owned()) {
            assert!(BRIEF.contains(&name), "bare aok does not name `{name}`");
        }
    }

    #[test]
    fn global_options_stand_anywhere() {
        let cli = Cli::try_parse_from(["aok", "tool", "ls", "--json", "--data", "/d", "-vv"]).unwrap();
        assert!(cli.globals.json);
        assert_eq!((cli.globals.data.as_deref(), cli.globals.verbose), (Some(std::path::Path::new("/d")), 2));
        let cli = Cli::try_parse_from(["aok", "--json", "--plugins", ".", "ps"]).unwrap();
        assert!(cli.globals.json && cli.globals.plugins[0].is_absolute());
        assert!(Cli::try_parse_from(["aok", "--plugins", "/nowhere/at/all", "ps"]).is_err());
    }

    #[test]
    fn only_what_acts_starts_a_kernel() {
        let acts = |args: &[&str]| Cli::try_parse_from([&["aok"], args].concat()).unwrap().command.unwrap().acts();
        assert!(acts(&["run", "--task", "x"]));
        assert!(acts(&["tool", "call", "x"]));
        assert!(acts(&["apply", "1", "work/a"]) && acts(&["discard", "1"]));
        assert!(acts(&["plugin", "grant", "x", "http=h"]) && acts(&["plugin", "trust", "x"]));
        for args in [
            &["ps"][..],
            &["logs", "1", "--follow"],
            &["tool", "ls"],
            &["tool", "show", "x"],
            &["plugin", "ls"],
            &["agent", "ls"],
            &["hook", "ls"],
            &["context", "1"],
            &["diff", "1", "--stat"],
            &["audit", "tail", "1", "-n", "5"],
            &["audit", "verify"],
            &["metrics"],
            &["doctor"],
            &["doctor", "--prove-limits"],
        ] {
            assert!(!acts(args), "{args:?}");
        }
    }

    #[test]
    fn bad_usage_is_json_where_json_was_asked_for() {
        let (mut out, stdout, stderr) = memory(true, None);
        let error = Cli::try_parse_from(["aok", "tool", "lss"]).unwrap_err();
        assert_eq!(refuse_arguments(&error, &mut out), 2);
        let told: serde_json::Value = serde_json::from_str(&stderr.text()).unwrap();
        assert_eq!(told["error"]["code"], "bad_usage");
        assert!(told["error"]["message"].as_str().unwrap().contains("lss"), "{told}");
        assert!(!told["error"]["hint"].as_str().unwrap().is_empty(), "{told}");
        assert_eq!(stdout.text(), "");
    }
}
