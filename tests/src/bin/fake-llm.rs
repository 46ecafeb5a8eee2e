//! The fake model server as a process of its own, for tests that kill its client: prints its base
//! URL on the first line of stdout and serves until it is killed.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use system_tests::fake_llm::FakeLlm;

/// Serve a script as an OpenAI and Anthropic server on 127.0.0.1.
#[derive(Parser)]
struct Args {
    /// The script (JSON Lines).
    script: PathBuf,
    /// The agent that it is played for.
    #[arg(long, default_value = "assistant")]
    agent: String,
    /// Say that the model calls tools by itself.
    #[arg(long)]
    native: bool,
    /// Milliseconds between the pieces of a streamed answer.
    #[arg(long, default_value_t = 0)]
    pace_ms: u64,
}

#[tokio::main]
#[allow(clippy::print_stdout, reason = "the URL is this program's output")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let server =
        FakeLlm::start_at_pace(&args.script, &args.agent, args.native, Duration::from_millis(args.pace_ms)).await?;
    println!("{}", server.url());
    server.serve().await;
    Ok(())
}
