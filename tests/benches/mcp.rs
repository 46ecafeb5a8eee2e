//! An echo tool over MCP on standard input and output, one call after the other: `aok mcp`, whose tool is a
//! sandboxed component and whose calls are journaled and audited, beside a server of the official Python SDK
//! (FastMCP, as its second version calls `MCPServer`), which does neither.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use system_tests::figure::Figure;

include!(concat!(env!("OUT_DIR"), "/guests.rs"));

const WARM: usize = 200;
const CALLS: usize = 2_000;

struct Server {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Server {
    fn start(command: &mut Command) -> Result<Self> {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().with_context(|| format!("{command:?} cannot be started"))?;
        let input = child.stdin.take().context("its input is piped")?;
        let output = BufReader::new(child.stdout.take().context("its output is piped")?);
        let mut server = Self { child, input, output };
        let hello = json!({
            "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}
        });
        server.ask("initialize", &hello)?;
        writeln!(server.input, "{}", json!({"jsonrpc": "2.0", "method": "notifications/initialized"}))?;
        Ok(server)
    }

    fn ask(&mut self, method: &str, params: &Value) -> Result<Value> {
        writeln!(self.input, "{}", json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}))?;
        loop {
            let mut line = String::new();
            ensure!(self.output.read_line(&mut line)? > 0, "the server left");
            let message: Value = serde_json::from_str(&line)?;
            if message["id"] == 1 {
                return Ok(message);
            }
        }
    }

    /// Microseconds of each call, sorted.
    fn calls(mut self, tool: &str) -> Result<Vec<f64>> {
        let call = json!({"name": tool, "arguments": {"message": "hello"}});
        let mut took = Vec::with_capacity(CALLS);
        for n in 0..WARM + CALLS {
            let began = Instant::now();
            let answer = self.ask("tools/call", &call)?;
            if n >= WARM {
                took.push(began.elapsed().as_secs_f64() * 1e6);
            }
            ensure!(answer["result"]["structuredContent"] == json!({"message": "hello"}), "it answered {answer}");
        }
        drop(self.input);
        self.child.wait()?;
        took.sort_by(f64::total_cmp);
        Ok(took)
    }
}

fn main() -> Result<()> {
    let variable =
        |name: &str| std::env::var_os(name).with_context(|| format!("{name} is not set: run `cargo xtask bench mcp`"));
    let (aok, packages) = (variable("AOK_BIN")?, variable("AOK_PYTHON_SDKS")?);
    let dir = tempfile::tempdir()?;
    let plugins = dir.path().join("data/plugins");
    fs::create_dir_all(&plugins)?;
    fs::copy(PROBE, plugins.join("probe.wasm"))?;
    let ours =
        Server::start(Command::new(aok).arg("--data").arg(dir.path().join("data")).arg("mcp"))?.calls("probe__echo")?;
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/mcp_echo.py");
    let theirs =
        Server::start(Command::new("python3").arg("-B").arg(program).env("PYTHONPATH", packages))?.calls("echo")?;
    let at = |took: &[f64], percent: usize| took[(took.len() - 1) * percent / 100];
    Figure::at_most("mcp", "mcp_echo_p50_ratio", at(&ours, 50) / at(&theirs, 50), "ratio", 0.08).print();
    Figure::plain("mcp", "mcp_echo_p50_us", at(&ours, 50), "us").beside(at(&theirs, 50)).print();
    Figure::plain("mcp", "mcp_echo_p99_us", at(&ours, 99), "us").beside(at(&theirs, 99)).print();
    Ok(())
}
