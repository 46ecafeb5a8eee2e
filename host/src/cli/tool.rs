//! `aok tool ls|show|call`: the tools, and one call from outside.

use futures_util::stream::StreamExt as _;

use super::error::Error;
use super::out::{Column, Out};
use super::session::{Session, Signals};
use super::{diff, input};
use crate::abi;
use crate::capability::HostGrant;
use crate::kernel::info::ToolInfo;
use crate::process::{Mount, Pid};
use crate::server::Lines;
use crate::server::error::{ApiError, Code};
use crate::server::wire::{CallLine, Request};

/// List, show and call tools
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List tools
    Ls,
    /// Show a tool with its schemas
    Show {
        /// Full name, or a bare one while it is unambiguous
        name: String,
    },
    /// Call a tool and write its result
    Call {
        /// Full name, or a bare one while it is unambiguous
        name: String,
        /// Arguments as JSON; `-` reads standard input, `@FILE` a file
        #[arg(value_name = "JSON|-|@FILE", default_value = "{}")]
        arguments: String,
        /// Directory that the tool may see, by its last name; read-only without `:rw`
        #[arg(long = "dir", value_name = "PATH[:rw]", value_parser = input::mount)]
        dirs: Vec<Mount>,
        /// Let what is written to directories with `:rw` go through to them, and not to a private copy
        #[arg(long, requires = "dirs")]
        direct: bool,
        /// Host that the tool may reach: HOST, HOST:PORT, *.DOMAIN, an IP address or a network
        #[arg(long = "host", value_name = "HOST")]
        hosts: Vec<HostGrant>,
    },
}

impl Args {
    /// Whether it may start a kernel.
    pub(super) fn acts(&self) -> bool {
        matches!(self.command, Command::Call { .. })
    }
}

const COLUMNS: [Column; 5] = [
    Column::Left("NAME"),
    Column::Left("EFFECT"),
    Column::Left("SOURCE"),
    Column::Left("STATE"),
    Column::Left("DESCRIPTION"),
];

pub(super) async fn run(args: Args, session: &Session, out: &mut Out) -> Result<(), Error> {
    match args.command {
        Command::Ls => {
            let lines = session.look(Request::ToolLs {}).await?;
            out.list(lines, &COLUMNS, row).await
        }
        Command::Show { name } => {
            let lines = session.look(Request::ToolShow { name }).await?;
            for tool in out.items::<ToolInfo>(lines).await? {
                out.guest_text(&sheet(&tool))?;
            }
            Ok(())
        }
        Command::Call { name, arguments, dirs, direct, hosts } => {
            let (arguments, mounts) = (input::json(arguments)?, input::mounts(dirs, direct)?);
            let request = Request::ToolCall { name, arguments, mounts, hosts, stop: false, connection: None };
            Box::pin(call(request, session, out)).await
        }
    }
}

fn row(tool: &ToolInfo) -> Vec<String> {
    vec![tool.name.clone(), tool.effect.to_string(), tool.source.clone(), tool.state.clone(), tool.description.clone()]
}

/// Everything about a tool, for people.
fn sheet(tool: &ToolInfo) -> String {
    let schema = |value: &serde_json::Value| serde_json::to_string_pretty(value).unwrap_or_else(|_| value.to_string());
    let result = tool.output_schema.as_ref().map_or_else(|| "any JSON".to_owned(), schema);
    format!(
        "{} ({}, {}, plugin {}, {})\n{}\n\narguments: {}\nresult: {result}",
        tool.name,
        tool.effect,
        tool.source,
        tool.plugin,
        tool.state,
        tool.description,
        schema(&tool.input_schema),
    )
}

async fn call(request: Request, session: &Session, out: &mut Out) -> Result<(), Error> {
    let may_change = matches!(&request, Request::ToolCall { mounts, .. } if mounts.iter().any(Mount::is_private));
    let mut pid = None;
    let mut signals = Signals::listen()?;
    let started = tokio::select! {
        started = session.act(request) => started?,
        signal = signals.next() => return Err(Error::Interrupted(signal, None)),
    };
    let end = match started.answer {
        Ok(lines) => tokio::select! {
            end = answer(lines, &mut pid, out) => end,
            signal = signals.next() => Err(Error::Interrupted(signal, None)),
        },
        Err(e) => Err(e.into()),
    };
    if let Some(pid) = pid.filter(|_| may_change) {
        diff::tell(pid, session, out).await;
    }
    match started.owner {
        Some(owner) if matches!(end, Err(Error::Interrupted(..))) => owner.stop(None, &mut signals, out).await,
        Some(owner) => owner.finish(None, &mut signals, out).await,
        None => {}
    }
    end
}

/// Shows the report; `pid` becomes known with it.
async fn answer(mut lines: Lines, pid: &mut Option<Pid>, out: &mut Out) -> Result<(), Error> {
    let Some(line) = lines.next().await else {
        return Err(ApiError::internal("a tool call gave no report").into());
    };
    let line = line?;
    let call: CallLine = serde_json::from_str(&line)?;
    *pid = Some(Pid(call.pid));
    if out.json {
        out.line(&line)?;
    } else if let Some(result) = &call.result {
        out.guest_text(result.get())?;
    }
    call.error.map_or(Ok(()), |e| Err(failed(&call.tool, call.pid, e.into())))
}

fn failed(tool: &str, pid: u64, error: abi::Error) -> Error {
    let code = Code::of_call(&error);
    let hint = match (code, &error.limit) {
        (Code::Denied, _) if error.message.contains("aok plugin ") => {
            "the plugin's rights are its manifest's and its grants': `aok plugin ls` shows both".to_owned()
        }
        (Code::Denied, _) => {
            "grant it: a directory with `--dir PATH` or `--dir PATH:rw`, a host with `--host HOST`".to_owned()
        }
        (Code::Quota, Some(limit)) => more_of(limit),
        (Code::InvalidArguments, _) => format!("`aok tool show {tool}` has the schema"),
        _ => format!("`aok logs {pid}` and `aok audit tail {pid}` show what it did"),
    };
    Error::Failed(ApiError::new(code, format!("{tool}: {}", error.message), hint))
}

/// How to give a tool more of `limit`: the key of `[limits]` is not always the limit's name.
fn more_of(limit: &str) -> String {
    let keys = match limit {
        "stack" => return "the stack's size is fixed; the tool must recurse less deeply".to_owned(),
        "wall" => "wall_ms",
        "host-calls" => "host_calls",
        // Of a result, or of one call's arguments and result on their way; the message says which.
        "output" => "output` or `host_call_bytes",
        key => key,
    };
    format!("ask for less, or raise `{keys}` under `[limits]` in aok.toml")
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use serde_json::json;

    use super::super::out::tests::memory;
    use super::*;
    use crate::abi::{Effect, Errno};
    use crate::kernel::info::CallReport;

    fn lines(outcome: Result<String, abi::Error>) -> Lines {
        let report =
            CallReport { tool: "calc__eval".into(), pid: 9, outcome, fuel: 1, memory_bytes: 2, duration_us: 3, seq: 4 };
        let line = serde_json::to_string(&CallLine::from(report)).unwrap();
        stream::iter(vec![Ok(line)]).boxed()
    }

    #[tokio::test]
    async fn the_result_alone_is_on_stdout() {
        let (mut out, stdout, stderr) = memory(false, None);
        answer(lines(Ok("{\"value\": 1.50}".into())), &mut None, &mut out).await.unwrap();
        assert_eq!((stdout.text().as_str(), stderr.text().as_str()), ("{\"value\": 1.50}\n", ""));
        let (mut out, stdout, _) = memory(true, None);
        answer(lines(Ok("1".into())), &mut None, &mut out).await.unwrap();
        let report: serde_json::Value = serde_json::from_str(&stdout.text()).unwrap();
        let expected = json!({"tool": "calc__eval", "ok": true, "result": 1, "pid": 9, "fuel": 1, "memory_bytes": 2, "duration_us": 3, "seq": 4});
        assert_eq!(report, expected);
    }

    #[tokio::test]
    async fn errors_exit_by_their_kind_and_name_the_way_out() {
        for (error, exit, word) in [
            (abi::Error::new(Errno::Denied, "m"), 3, "--dir"),
            (abi::Error::new(Errno::Denied, "m"), 3, "--host"),
            (abi::Error::new(Errno::Denied, "`aok plugin grant p http=h` grants it"), 3, "aok plugin ls"),
            (abi::Error::limit("fuel", "m"), 4, "`fuel` under `[limits]`"),
            (abi::Error::limit("wall", "m"), 4, "`wall_ms`"),
            (abi::Error::new(Errno::Invalid, "m"), 2, "aok tool show calc__eval"),
            (abi::Error::new(Errno::Io, "m"), 1, "aok logs 9"),
        ] {
            let (mut out, stdout, _) = memory(false, None);
            let end = answer(lines(Err(error)), &mut None, &mut out).await.unwrap_err();
            assert_eq!((end.exit(), stdout.text().as_str()), (exit, ""));
            let hint = end.report().unwrap().hint;
            assert!(hint.contains(word), "{hint}");
        }
        let (mut out, stdout, _) = memory(true, None);
        assert!(answer(lines(Err(abi::Error::new(Errno::Denied, "m"))), &mut None, &mut out).await.is_err());
        assert!(stdout.text().contains(r#""ok":false,"error":{"code":"denied","message":"m","limit":null}"#));
    }

    #[test]
    fn a_tool_is_a_row_and_a_sheet() {
        let tool = ToolInfo {
            name: "fs__read".into(),
            plugin: "fs".into(),
            tool: "read".into(),
            description: "Reads a file.".into(),
            effect: Effect::ReadOnly,
            input_schema: json!({"type": "object"}),
            output_schema: None,
            source: "bundled".into(),
            state: "ready".into(),
        };
        assert_eq!(row(&tool).join(" "), "fs__read read-only bundled ready Reads a file.");
        assert_eq!(row(&tool).len(), COLUMNS.len());
        let sheet = sheet(&tool);
        assert!(sheet.contains("\"type\": \"object\"") && sheet.ends_with("result: any JSON"), "{sheet}");
    }
}
