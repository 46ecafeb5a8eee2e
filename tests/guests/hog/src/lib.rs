//! Exhausts one resource, which its task names: `spin`, `allocate`, `recurse` or `panic`.

use std::hint::black_box;

use agent_os_sdk::{Agent, Task};

struct Hog;

impl Agent for Hog {
    fn run(task: Task) -> Result<String, String> {
        match task.text.trim() {
            "spin" => {
                let mut turns = 0_u64;
                loop {
                    turns = black_box(turns.wrapping_add(1));
                }
            }
            "allocate" => {
                let mut blocks: Vec<Vec<u8>> = Vec::new();
                loop {
                    blocks.push(black_box(vec![1; 1 << 20]));
                }
            }
            "recurse" => Ok(deeper(0).to_string()),
            "panic" => panic!("the agent panicked on purpose"),
            other => Err(format!("the task is `spin`, `allocate`, `recurse` or `panic`, not `{other}`")),
        }
    }
}

/// A frame that the compiler can neither drop nor turn into a loop: it is needed after the call.
#[allow(unconditional_recursion, reason = "that is what it is for")]
fn deeper(depth: u64) -> u64 {
    let here = black_box(depth);
    let below = deeper(here + 1);
    black_box(here) ^ below
}

agent_os_sdk::export_agent!(Hog);
