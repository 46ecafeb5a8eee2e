//! The only `bindgen!`: Rust types of the WIT contract, one module per world, the shared interfaces
//! generated once by the widest world.
//!
//! Imports are not linked through the generated traits: `syscall::link` binds each import to one
//! value of `Syscall`, with the store at hand, so that fuel is exact at every host call.

#![allow(missing_docs, reason = "the documentation is in wit/, the code is generated")]

pub(crate) mod agent {
    wasmtime::component::bindgen!({
        path: ["../wit/types", "../wit/plugin", "../wit/agent"],
        world: "agent-os:agent/agent",
        imports: { default: async | trappable },
        exports: { default: async },
    });
}

pub(crate) mod tool {
    wasmtime::component::bindgen!({
        path: ["../wit/types", "../wit/plugin"],
        world: "agent-os:plugin/tool",
        imports: { default: async | trappable },
        exports: { default: async },
        with: {
            "agent-os:types/types": super::agent::agent_os::types::types,
            "agent-os:plugin/log": super::agent::agent_os::plugin::log,
            "agent-os:plugin/state": super::agent::agent_os::plugin::state,
        },
    });
}

pub(crate) mod hook {
    wasmtime::component::bindgen!({
        path: ["../wit/types", "../wit/plugin"],
        world: "agent-os:plugin/hook",
        imports: { default: async | trappable },
        exports: { default: async },
        with: {
            "agent-os:types/types": super::agent::agent_os::types::types,
            "agent-os:plugin/log": super::agent::agent_os::plugin::log,
            "agent-os:plugin/state": super::agent::agent_os::plugin::state,
        },
    });
}

pub(crate) use agent::agent_os::agent as sys;
pub(crate) use agent::agent_os::plugin;
pub(crate) use agent::agent_os::types::types;

use crate::abi;
use crate::storage::PageKind;

impl From<abi::Errno> for types::Errno {
    fn from(e: abi::Errno) -> Self {
        match e {
            abi::Errno::Denied => Self::Denied,
            abi::Errno::NotFound => Self::NotFound,
            abi::Errno::Invalid => Self::Invalid,
            abi::Errno::Quota => Self::Quota,
            abi::Errno::Again => Self::Again,
            abi::Errno::Interrupted => Self::Interrupted,
            abi::Errno::Timeout => Self::Timeout,
            abi::Errno::Unsupported => Self::Unsupported,
            abi::Errno::TooLarge => Self::TooLarge,
            abi::Errno::Io => Self::Io,
        }
    }
}

impl From<types::Errno> for abi::Errno {
    fn from(e: types::Errno) -> Self {
        match e {
            types::Errno::Denied => Self::Denied,
            types::Errno::NotFound => Self::NotFound,
            types::Errno::Invalid => Self::Invalid,
            types::Errno::Quota => Self::Quota,
            types::Errno::Again => Self::Again,
            types::Errno::Interrupted => Self::Interrupted,
            types::Errno::Timeout => Self::Timeout,
            types::Errno::Unsupported => Self::Unsupported,
            types::Errno::TooLarge => Self::TooLarge,
            types::Errno::Io => Self::Io,
        }
    }
}

impl From<abi::Error> for types::Error {
    fn from(e: abi::Error) -> Self {
        Self { code: e.code.into(), message: e.message }
    }
}

impl From<types::Error> for abi::Error {
    fn from(e: types::Error) -> Self {
        Self::new(e.code.into(), e.message)
    }
}

impl From<abi::Effect> for types::Effect {
    fn from(e: abi::Effect) -> Self {
        match e {
            abi::Effect::Pure => Self::Pure,
            abi::Effect::ReadOnly => Self::ReadOnly,
            abi::Effect::Idempotent => Self::Idempotent,
            abi::Effect::Destructive => Self::Destructive,
        }
    }
}

impl From<types::Effect> for abi::Effect {
    fn from(e: types::Effect) -> Self {
        match e {
            types::Effect::Pure => Self::Pure,
            types::Effect::ReadOnly => Self::ReadOnly,
            types::Effect::Idempotent => Self::Idempotent,
            types::Effect::Destructive => Self::Destructive,
        }
    }
}

impl From<abi::ToolSpec> for types::ToolSpec {
    fn from(s: abi::ToolSpec) -> Self {
        Self {
            name: s.name,
            description: s.description,
            input_schema: s.input_schema.to_string(),
            output_schema: s.output_schema.map(|s| s.to_string()),
            effect: s.effect.into(),
        }
    }
}

impl From<abi::ToolCall> for types::ToolCall {
    fn from(c: abi::ToolCall) -> Self {
        Self { id: c.id, name: c.name, arguments: c.arguments }
    }
}

impl From<types::ToolCall> for abi::ToolCall {
    fn from(c: types::ToolCall) -> Self {
        Self { id: c.id, name: c.name, arguments: c.arguments }
    }
}

impl From<sys::context::PageKind> for PageKind {
    fn from(k: sys::context::PageKind) -> Self {
        use sys::context::PageKind as K;
        match k {
            K::System => Self::System,
            K::Tools => Self::Tools,
            K::Task => Self::Task,
            K::Note => Self::Note,
            K::User => Self::User,
            K::Assistant => Self::Assistant,
            K::ToolCall => Self::ToolCall,
            K::ToolResult => Self::ToolResult,
            K::Recalled => Self::Recalled,
            K::Summary => Self::Summary,
        }
    }
}

impl From<PageKind> for sys::context::PageKind {
    fn from(k: PageKind) -> Self {
        match k {
            PageKind::System => Self::System,
            PageKind::Tools => Self::Tools,
            PageKind::Task => Self::Task,
            PageKind::Note => Self::Note,
            PageKind::User => Self::User,
            PageKind::Assistant => Self::Assistant,
            PageKind::ToolCall => Self::ToolCall,
            PageKind::ToolResult => Self::ToolResult,
            PageKind::Recalled => Self::Recalled,
            PageKind::Summary => Self::Summary,
        }
    }
}

impl From<abi::Reply> for sys::llm::Reply {
    fn from(r: abi::Reply) -> Self {
        Self {
            text: r.text,
            tool_calls: r.tool_calls.into_iter().map(Into::into).collect(),
            finish: match r.finish {
                abi::Finish::Stop => sys::llm::Finish::Stop,
                abi::Finish::ToolCalls => sys::llm::Finish::ToolCalls,
                abi::Finish::Length => sys::llm::Finish::Length,
                abi::Finish::Refused => sys::llm::Finish::Refused,
            },
            usage: sys::llm::TokenUsage {
                input: r.usage.input,
                cached: r.usage.cached,
                output: r.usage.output,
                micro_usd: r.usage.micro_usd,
            },
        }
    }
}
