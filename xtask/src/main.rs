//! The repository's tasks: build, demo, test, bench. Each runs from nothing, says every step and how
//! long it takes, and installs what it needs or says exactly what to install.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "talking to a person on a terminal is this program's job"
)]

mod bench;
mod build;
mod check;
mod demo;
mod fetch;
mod local_model;
mod step;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds, shows, tests and measures the Agent OS Kernel.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what guests need to compile, and nothing else
    Toolchain,
    /// Build the bundled guests and the kernel
    Build,
    /// Show an agent at work on real files: a scripted model first, then a real one
    Demo(demo::Options),
    /// Run the tests
    Test {
        /// Also fetch and start what some tests need, a real model included; nothing is skipped
        #[arg(long)]
        all: bool,
    },
    /// Run a bench and compare its figures with their targets
    Bench {
        /// The bench's name, or `all`
        name: String,
        /// Print one JSON object per figure
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Toolchain => build::toolchain().map(|()| true),
        Task::Build => build::build().map(|()| true),
        Task::Demo(options) => demo::demo(&options).map(|()| true),
        Task::Test { all } => test::test(all),
        Task::Bench { name, json } => bench::bench(&name, json),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
