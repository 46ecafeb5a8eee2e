//! Makes as many syscalls as its task says, `put N`, `append N` or `call N`, and answers with the number.

use agent_os_sdk::{Agent, Task, context, state, tools};

struct Talker;

impl Agent for Talker {
    fn run(task: Task) -> Result<String, String> {
        let usage = || format!("the task is `put N`, `append N` or `call N`, not `{}`", task.text);
        let (what, count) = task.text.trim().split_once(' ').ok_or_else(usage)?;
        let count: u64 = count.parse().map_err(|_| usage())?;
        for turn in 0..count {
            let text = turn.to_string();
            match what {
                "put" => state::put("turn", text.as_bytes()).map(drop),
                "append" => context::append(context::PageKind::Note, &text, None, false).map(drop),
                "call" => tools::call("calc__eval", r#"{"expression":"12*(3+4)/2"}"#).map(drop),
                _ => return Err(usage()),
            }
            .map_err(|error| error.message)?;
        }
        Ok(count.to_string())
    }
}

agent_os_sdk::export_agent!(Talker);
