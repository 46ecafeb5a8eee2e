//! The default agent: asks, lets the kernel run the calls, and ends on an answer or on going in circles.

mod circles;

use agent_os_sdk::{Agent, Task, llm, log, step};
use circles::Circles;

/// Turns after which a task is given up even when no two of them are alike.
const MAX_STEPS: u32 = 200;

struct Assistant;

impl Agent for Assistant {
    fn run(_: Task) -> Result<String, String> {
        // The kernel has put the task and the instructions into the window already.
        let options = llm::Options::default();
        let mut circles = Circles::default();
        for _ in 0..MAX_STEPS {
            match step::step(&options).map_err(|error| error.message)? {
                step::Outcome::Answered(text) => return Ok(text),
                step::Outcome::Continuing(called) => {
                    if let Some(repeated) = circles.after(&called) {
                        let reason = format!("stopped: it repeated itself. {repeated}");
                        log::warn(&reason);
                        return Err(reason);
                    }
                }
            }
        }
        Err(format!("stopped: {MAX_STEPS} steps without an answer; give it a smaller task"))
    }
}

agent_os_sdk::export_agent!(Assistant);
