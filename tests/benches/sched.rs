//! The scheduler in figures: dispatching, shares, latencies, priority inheritance and kills on the run queue with guests
//! that compute; the order of model calls on recorded programs in virtual time; and thousands of agents in one kernel.
//!
//! `AOK_SCHED_SECONDS` says how long the equal agents run (60); the other loads run a sixth of it.

#[path = "sched/cpu.rs"]
mod cpu;
#[path = "sched/fifo.rs"]
mod fifo;
#[path = "sched/guest.rs"]
mod guest;
#[path = "sched/kernel.rs"]
mod kernel;
#[path = "sched/llm.rs"]
mod llm;

use std::time::Duration;

use anyhow::{Context as _, Result};

const BENCH: &str = "sched";

#[allow(clippy::print_stderr, reason = "the table is for people; figures go to stdout")]
fn main() -> Result<()> {
    if let Ok(part) = std::env::var(kernel::PART) {
        return kernel::run_part(&part);
    }
    let seconds = match std::env::var("AOK_SCHED_SECONDS") {
        Ok(text) => text.parse().context("AOK_SCHED_SECONDS is a number of seconds")?,
        Err(_) => 60,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let cpu = cpu::Cpu { runtime: &runtime, guest: guest::Guest::new()?, time: Duration::from_secs(seconds) };
    cpu.run()?.iter().for_each(system_tests::figure::Figure::print);
    kernel::run()?.iter().for_each(system_tests::figure::Figure::print);
    let (figures, table) = llm::run()?;
    figures.iter().for_each(system_tests::figure::Figure::print);
    eprintln!("{table}");
    Ok(())
}
