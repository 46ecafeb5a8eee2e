//! Computes for as many million turns of a loop as its task says, without a syscall, and answers with the number.

use std::hint::black_box;

use agent_os_sdk::{Agent, Task};

struct Spinner;

impl Agent for Spinner {
    fn run(task: Task) -> Result<String, String> {
        let millions: u64 = task.text.trim().parse().map_err(|_| format!("not a number: {}", task.text))?;
        let turns = (0..millions * 1_000_000).fold(0_u64, |sum, _| black_box(sum + 1));
        Ok(turns.to_string())
    }
}

agent_os_sdk::export_agent!(Spinner);
