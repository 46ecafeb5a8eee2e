//! What a component is: which world it was built for, and what it asks for. Read from its type,
//! before anything of it runs.

use wasmtime::Engine;
use wasmtime::component::Component;

use crate::capability::Needs;
use crate::contract::Fault;

/// The role of a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Exports `agent-os:plugin/tool-provider`.
    Tool,
    /// Exports `agent-os:agent/agent-entry`.
    Agent,
}

/// Facts about a component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) role: Role,
    /// What it asks for.
    pub(crate) needs: Needs,
}

const TOOL: &str = "agent-os:plugin/tool-provider@0.1.0";
const AGENT: &str = "agent-os:agent/agent-entry@0.1.0";
const KNOWN: [&str; 3] = ["agent-os:", "wasi:io/", "wasi:cli/"];
const HTTP: &str = "wasi:http/";
const FILES: &str = "wasi:filesystem/";
const KNOWN_WASI: [&str; 5] = ["wasi:clocks/", FILES, "wasi:random/", "wasi:sockets/", HTTP];

/// Reads the facts of a component, or why it cannot be used.
pub(crate) fn facts(engine: &Engine, component: &Component) -> Result<Facts, Fault> {
    let ty = component.component_type();
    let exports: Vec<String> = ty.exports(engine).map(|(name, _)| name.to_owned()).collect();
    let imports: Vec<String> = ty.imports(engine).map(|(name, _)| name.to_owned()).collect();
    let role = if exports.iter().any(|e| e == TOOL) {
        Role::Tool
    } else if exports.iter().any(|e| e == AGENT) {
        Role::Agent
    } else {
        return Err(no_role(&exports));
    };
    if let Some(name) = imports.iter().find(|i| !is_known(i)) {
        return Err(Fault {
            code: "unknown_import",
            message: format!("it imports `{name}`, which this kernel does not offer"),
            hint: "build it against the `agent-os:plugin` or `agent-os:agent` world alone, plus WASI 0.2".into(),
        });
    }
    let asks_for = |package: &str| imports.iter().find(|i| i.starts_with(package));
    if let Some(name) = asks_for(HTTP).filter(|_| role == Role::Agent) {
        return Err(Fault {
            code: "unknown_import",
            message: format!("it is an agent and imports `{name}`; an agent must be a function of its journal"),
            hint: "let it call a tool for that".into(),
        });
    }
    Ok(Facts { role, needs: Needs { files: asks_for(FILES).is_some(), network: asks_for(HTTP).is_some() } })
}

fn is_known(import: &str) -> bool {
    let wasi = KNOWN_WASI.iter().chain(&KNOWN[1..]).any(|k| import.starts_with(k) && import.contains("@0.2."));
    wasi || (import.starts_with(KNOWN[0]) && import.ends_with("@0.1.0"))
}

fn no_role(exports: &[String]) -> Fault {
    let near = exports.iter().find(|e| e.starts_with("agent-os:"));
    match near {
        Some(other) => Fault {
            code: "contract_version",
            message: format!("it exports `{other}`; this kernel serves `{TOOL}` and `{AGENT}`"),
            hint: "rebuild it with the SDK of this aok's version".into(),
        },
        None => Fault {
            code: "no_role",
            message: format!("it exports neither `{TOOL}` nor `{AGENT}`, so it is neither a tool nor an agent"),
            hint: format!("it exports: {}", if exports.is_empty() { "nothing".to_owned() } else { exports.join(", ") }),
        },
    }
}

/// What is wrong with bytes that are no component.
pub(crate) fn diagnose(bytes: &[u8], error: &wasmtime::Error) -> Fault {
    const MAGIC: &[u8] = b"\0asm";
    let hint_build = "build it as a component (for Rust: `wit-component`, or a `wasm32-wasip2` target)".to_owned();
    if bytes.is_empty() {
        return Fault { code: "empty_file", message: "the file is empty".into(), hint: "copy it again".into() };
    }
    if !bytes.starts_with(MAGIC) {
        return Fault {
            code: "not_wasm",
            message: "the file is not WebAssembly: it does not start with `\\0asm`".into(),
            hint: hint_build,
        };
    }
    if bytes.get(4..8) == Some(&[1, 0, 0, 0]) {
        return Fault {
            code: "core_module",
            message: "the file is a core WebAssembly module, not a component".into(),
            hint: hint_build,
        };
    }
    let text = format!("{error:#}");
    let cut = ["unexpected end", "unexpected-eof"].iter().any(|words| text.contains(words));
    // The size that a section says reaches past the file.
    if cut || text.contains("section range") && text.contains("is out of bounds") {
        return Fault {
            code: "truncated",
            message: format!("the component ends too early, after {} bytes", bytes.len()),
            hint: "copy it again; write to another name and rename it".into(),
        };
    }
    Fault {
        code: "invalid_component",
        message: format!("the component is not valid: {}", error.root_cause()),
        hint: hint_build,
    }
}
