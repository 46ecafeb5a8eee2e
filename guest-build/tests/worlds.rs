//! Every guest of the repository is a component of its world, and imports that and no more.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use guest_build::Build;
use wit_component::DecodedWasm;

const TYPES: &str = "agent-os:types/types";
const LOG: &str = "agent-os:plugin/log";
const STATE: &str = "agent-os:plugin/state";
const LLM: &str = "agent-os:agent/llm";
const STEP: &str = "agent-os:agent/step";
const CONTEXT: &str = "agent-os:agent/context";
const TOOLS: &str = "agent-os:agent/tools";
const PROCESS: &str = "agent-os:agent/process";

const TOOL: &str = "agent-os:plugin/tool-provider";
const AGENT: &str = "agent-os:agent/agent-entry";
const HOOK: &str = "agent-os:plugin/hook-handler";

/// Each guest: what it exports, and the interfaces of the contract and of WASI that it imports.
const GUESTS: &[(&str, &str, &[&str])] = &[
    ("ask-first", HOOK, &[TYPES, LOG]),
    ("assistant", AGENT, &[TYPES, LOG, LLM, STEP]),
    ("calc", TOOL, &[TYPES, LOG]),
    (
        "clocks",
        AGENT,
        &[
            TYPES,
            LOG,
            TOOLS,
            "wasi:io/poll",
            "wasi:clocks/monotonic-clock",
            "wasi:clocks/wall-clock",
            "wasi:random/random",
            "wasi:random/insecure",
            "wasi:random/insecure-seed",
        ],
    ),
    (
        "courier",
        TOOL,
        &[
            TYPES,
            LOG,
            STATE,
            "wasi:io/error",
            "wasi:io/poll",
            "wasi:io/streams",
            "wasi:http/types",
            "wasi:http/outgoing-handler",
            "wasi:cli/environment",
            "wasi:filesystem/types",
            "wasi:filesystem/preopens",
        ],
    ),
    (
        "fs",
        TOOL,
        &[
            TYPES,
            LOG,
            "wasi:io/error",
            "wasi:io/streams",
            "wasi:clocks/wall-clock",
            "wasi:filesystem/types",
            "wasi:filesystem/preopens",
        ],
    ),
    ("hog", AGENT, &[LOG]),
    ("hostile", TOOL, &[TYPES, LOG, STATE]),
    (
        "http",
        TOOL,
        &[
            TYPES,
            LOG,
            "wasi:io/error",
            "wasi:io/poll",
            "wasi:io/streams",
            "wasi:http/types",
            "wasi:http/outgoing-handler",
        ],
    ),
    ("herald", TOOL, &[TYPES, LOG]),
    ("kvagent", AGENT, &[TYPES, LOG, STATE]),
    ("mask-secrets", HOOK, &[TYPES, LOG]),
    (
        "meddler",
        HOOK,
        &[
            TYPES,
            LOG,
            STATE,
            "wasi:cli/environment",
            "wasi:io/poll",
            "wasi:clocks/monotonic-clock",
            "wasi:filesystem/types",
            "wasi:filesystem/preopens",
        ],
    ),
    ("probe", TOOL, &[TYPES, LOG, STATE]),
    ("read-only", HOOK, &[TYPES, LOG]),
    ("spinner", AGENT, &[LOG]),
    ("stepper", AGENT, &[TYPES, LOG, STATE, LLM, STEP, CONTEXT, TOOLS, PROCESS]),
    ("talker", AGENT, &[TYPES, LOG, STATE, CONTEXT, TOOLS]),
    ("tally", HOOK, &[TYPES, LOG, STATE]),
    ("tidy-paths", HOOK, &[TYPES, LOG]),
    ("watcher", HOOK, &[TYPES, LOG]),
];

#[test]
fn guests_import_and_export_what_their_world_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let build = Build {
        workspace: root.join("plugins"),
        packages: GUESTS.iter().map(|(name, ..)| (*name).to_owned()).collect(),
        target_dir: root.join("target/guests"),
        locked: true,
    };
    let guests = guest_build::build(&build).unwrap();
    assert_eq!(guests.len(), GUESTS.len());
    for (guest, (name, export, imports)) in guests.iter().zip(GUESTS) {
        assert_eq!(guest.name, *name);
        let (imported, exported) = interfaces(&fs::read(&guest.component).unwrap());
        assert_eq!(exported, BTreeSet::from([(*export).to_owned()]), "exports of {name}");
        let expected: BTreeSet<_> = imports.iter().map(|&import| import.to_owned()).collect();
        assert_eq!(imported, expected, "imports of {name}");
    }
}

#[test]
fn no_guest_is_left_out() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut found = BTreeSet::new();
    for folder in ["plugins/agents", "plugins/hooks", "plugins/tools", "tests/guests"] {
        for entry in fs::read_dir(root.join(folder)).unwrap() {
            let entry = entry.unwrap();
            // A guest that is one file of text is made by the tests' build script, not by this crate.
            if entry.file_type().unwrap().is_dir() {
                found.insert(entry.file_name().into_string().unwrap());
            }
        }
    }
    let listed: BTreeSet<_> = GUESTS.iter().map(|(name, ..)| (*name).to_owned()).collect();
    assert_eq!(found, listed, "a guest's folder and its line in GUESTS belong together");
}

/// The names of a component's imports and exports, without their versions.
fn interfaces(component: &[u8]) -> (BTreeSet<String>, BTreeSet<String>) {
    let DecodedWasm::Component(resolve, world) = wit_component::decode(component).unwrap() else {
        panic!("not a component")
    };
    let world = &resolve.worlds[world];
    let name = |key| {
        let name: String = resolve.name_world_key(key);
        name.split('@').next().unwrap_or_default().to_owned()
    };
    (world.imports.keys().map(name).collect(), world.exports.keys().map(name).collect())
}
