//! The bindings of the contract in `wit/`. Hidden: the modules beside it say what an author may use.

#![allow(missing_docs, unsafe_code, unreachable_pub, clippy::all, reason = "generated from wit/, which holds the docs")]

/// World `agent-os:agent/agent`: the widest, so the shared interfaces are generated here.
pub mod agent {
    wit_bindgen::generate!({
        path: ["../../wit/types", "../../wit/plugin", "../../wit/agent"],
        world: "agent-os:agent/agent",
        generate_all,
        pub_export_macro: true,
        export_macro_name: "__export_agent_world",
        default_bindings_module: "agent_os_sdk::generated::agent",
    });
}

/// World `agent-os:plugin/tool`.
pub mod plugin {
    wit_bindgen::generate!({
        path: ["../../wit/types", "../../wit/plugin"],
        world: "agent-os:plugin/tool",
        with: {
            "agent-os:types/types@0.1.0": crate::generated::agent::agent_os::types::types,
            "agent-os:plugin/log@0.1.0": crate::generated::agent::agent_os::plugin::log,
            "agent-os:plugin/state@0.1.0": crate::generated::agent::agent_os::plugin::state,
        },
        generate_all,
        pub_export_macro: true,
        export_macro_name: "__export_tool_world",
        default_bindings_module: "agent_os_sdk::generated::plugin",
    });
}

/// World `agent-os:plugin/hook`.
pub mod hook {
    wit_bindgen::generate!({
        path: ["../../wit/types", "../../wit/plugin"],
        world: "agent-os:plugin/hook",
        with: {
            "agent-os:types/types@0.1.0": crate::generated::agent::agent_os::types::types,
            "agent-os:plugin/log@0.1.0": crate::generated::agent::agent_os::plugin::log,
            "agent-os:plugin/state@0.1.0": crate::generated::agent::agent_os::plugin::state,
        },
        generate_all,
        pub_export_macro: true,
        export_macro_name: "__export_hook_world",
        default_bindings_module: "agent_os_sdk::generated::hook",
    });
}
