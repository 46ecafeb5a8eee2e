//! The agent role: the trait, its macro, and the syscalls that only agents have.

use crate::generated::agent as raw;

pub use raw::agent_os::agent::{context, process, tools};
pub use raw::exports::agent_os::agent::agent_entry::Task;

/// Requests to the model, made with the process's window as it stands.
pub mod llm {
    pub use super::raw::agent_os::agent::llm::{Finish, Options, Reply, TokenUsage, generate};

    impl Default for Options {
        /// The process's own model and tools, and the provider's settings.
        fn default() -> Self {
            Self { model: None, tools: None, temperature: None, max_tokens: None, response_schema: None }
        }
    }
}

/// One turn of the classic loop: window → model → tools → window.
pub mod step {
    pub use super::raw::agent_os::agent::step::{Called, Outcome, step};
}

/// An agent: a program that the kernel runs as a process.
pub trait Agent {
    /// Runs the agent to its end: the answer, or why there is none.
    ///
    /// # Errors
    /// The reason, as the person who gave the task should read it.
    fn run(task: Task) -> Result<String, String>;
}

/// Makes the crate an agent component of the given [`Agent`].
#[macro_export]
macro_rules! export_agent {
    ($agent:ty) => {
        #[allow(unsafe_code, reason = "the exported functions of the component")]
        const _: () = {
            struct Component;
            impl $crate::generated::agent::exports::agent_os::agent::agent_entry::Guest for Component {
                fn run(task: $crate::Task) -> ::std::result::Result<String, String> {
                    $crate::report_panics();
                    <$agent as $crate::Agent>::run(task)
                }
            }
    $crate::generated::agent::__export_agent_world!(Component with_types_in $crate::generated::agent);
        };
    };
}
