//! Components that were built against another contract: each difference is named, and none is named in
//! the words of a linker.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::support::{MEDDLER, PROBE, WATCHER, World};

/// A component for a world of the contract after some edits of its text.
struct Drifted {
    name: &'static str,
    world: &'static str,
    /// What is replaced by what, wherever it stands in the three packages.
    edits: &'static [(&'static str, &'static str)],
    code: &'static str,
    /// What the diagnosis must say.
    says: &'static [&'static str],
}

const fn tool(
    name: &'static str,
    edits: &'static [(&'static str, &'static str)],
    says: &'static [&'static str],
) -> Drifted {
    Drifted { name, world: "tool", edits, code: "contract_drift", says }
}

const fn hook(
    name: &'static str,
    edits: &'static [(&'static str, &'static str)],
    says: &'static [&'static str],
) -> Drifted {
    Drifted { world: "hook", ..tool(name, edits, says) }
}

const fn agent(
    name: &'static str,
    edits: &'static [(&'static str, &'static str)],
    says: &'static [&'static str],
) -> Drifted {
    Drifted { world: "agent", ..tool(name, edits, says) }
}

const ALL: &[Drifted] = &[
    // Records.
    tool(
        "field-lost",
        &[("description: string,", "")],
        &["record `tool-spec`", "lacks the field `description: string`"],
    ),
    tool(
        "field-new",
        &[("effect: effect,", "effect: effect,\n    icon: string,")],
        &["record `tool-spec`", "a field `icon`"],
    ),
    tool(
        "field-type",
        &[("effect: effect,", "effect: string,")],
        &["field `effect` of record `tool-spec`", "is string", "enum effect"],
    ),
    tool(
        "field-optional",
        &[("description: string,", "description: option<string>,")],
        &["`description`", "option<string>"],
    ),
    tool(
        "field-order",
        &[("record error { code: errno, message: string }", "record error { message: string, code: errno }")],
        &["record `error` of `agent-os:types/types@0.1.0`", "in the order `message`, `code`"],
    ),
    tool(
        "field-renamed",
        &[("input-schema: json,", "parameters: json,")],
        &["lacks the field `input-schema", "a field `parameters`"],
    ),
    tool(
        "revision-narrow",
        &[("revision: u64 }", "revision: u32 }")],
        &["field `revision`", "is u32", "the contract's is u64"],
    ),
    // Enums and variants.
    tool(
        "case-lost",
        &[(", too-large, io }", ", io }")],
        &["enum `errno` of `agent-os:types/types@0.1.0`", "lacks the case `too-large`"],
    ),
    tool("case-new", &[("io }", "io, gone }")], &["enum `errno`", "a case `gone`, which the contract does not have"]),
    tool(
        "case-order",
        &[("trace, debug, info", "debug, trace, info")],
        &["enum `level`", "in the order `debug`, `trace`"],
    ),
    tool(
        "level-new",
        &[("warn, error }", "warn, error, fatal }")],
        &["enum `level` of `agent-os:plugin/log@0.1.0`", "`fatal`"],
    ),
    hook(
        "point-lost",
        &[("on-error, on-plugin-load", "on-plugin-load")],
        &["enum `point`", "lacks the case `on-error`"],
    ),
    hook(
        "payload-lost",
        &[("deny(string),", "deny,")],
        &["case `deny` of variant `verdict`", "carries nothing", "string"],
    ),
    hook(
        "payload-type",
        &[("rewrite(json),", "rewrite(list<u8>),")],
        &["case `rewrite` of variant `verdict`", "list<u8>"],
    ),
    hook("payload-new", &[("    allow,\n", "    allow(string),\n")], &["case `allow`", "carries string", "nothing"]),
    hook("verdict-short", &[("ask(string),", "")], &["variant `verdict`", "lacks the case `ask: string`"]),
    // Functions that the kernel calls.
    tool(
        "function-lost",
        &[("list-tools: func() -> list<tool-spec>;", "")],
        &["`agent-os:plugin/tool-provider@0.1.0`", "lacks the function `list-tools: func()"],
    ),
    tool("function-renamed", &[("call-tool: func", "invoke: func")], &["lacks the function `call-tool"]),
    tool(
        "parameter-lost",
        &[("arguments: json, context: call-context) ->", "arguments: json) ->")],
        &["function `call-tool`", "has no parameter `context: record call-context`"],
    ),
    tool(
        "parameter-new",
        &[("arguments: json, context: call-context) ->", "arguments: json, context: call-context, retry: bool) ->")],
        &["function `call-tool`", "a parameter `retry: bool`"],
    ),
    tool(
        "parameter-order",
        &[("call-tool: func(name: string, arguments: json", "call-tool: func(arguments: json, name: string")],
        &["function `call-tool`", "parameters in the order `arguments`, `name`"],
    ),
    tool(
        "parameter-type",
        &[("call-tool: func(name: string", "call-tool: func(name: u32")],
        &["parameter `name` of function `call-tool`", "is u32", "the contract's is string"],
    ),
    tool(
        "result-plain",
        &[("context: call-context) -> result<json, error>", "context: call-context) -> json")],
        &["the result of function `call-tool`", "is string", "result<string, record error>"],
    ),
    tool(
        "result-none",
        &[("list-tools: func() -> list<tool-spec>", "list-tools: func()")],
        &["function `list-tools`", "returns nothing"],
    ),
    hook(
        "event-lost",
        &[("on-event: func(event: event) -> verdict;", "")],
        &["`agent-os:plugin/hook-handler@0.1.0`", "lacks the function `on-event"],
    ),
    agent(
        "run-result",
        &[("run: func(task: task) -> result<string, string>", "run: func(task: task) -> string")],
        &["the result of function `run`"],
    ),
    agent(
        "task-field",
        &[("    input: list<u8>,\n  }\n  /// Runs", "    input: string,\n  }\n  /// Runs")],
        &["field `input` of record `task`", "list<u8>"],
    ),
    // Functions that the component calls.
    tool(
        "call-unknown",
        &[("log: func(level: level, message: string);", "log: func(level: level, message: string);\n  flush: func();")],
        &["calls the function `flush` of `agent-os:plugin/log@0.1.0`", "only `log`"],
    ),
    tool(
        "call-parameter",
        &[("log: func(level: level, message: string);", "log: func(level: level, message: string, tag: string);")],
        &["function `log`", "a parameter `tag: string`"],
    ),
    tool(
        "call-result",
        &[("delete: func(key: string) -> result<_, error>", "delete: func(key: string) -> bool")],
        &["the result of function `delete`", "is bool"],
    ),
    agent(
        "generate-type",
        &[("temperature: option<f32>", "temperature: option<f64>")],
        &["what is optional in field `temperature`", "f64"],
    ),
    agent(
        "interface-renamed",
        &[("interface step {", "interface turn {"), ("import step;", "import turn;")],
        &["it imports `agent-os:agent/turn@0.1.0`, which the contract does not have"],
    ),
    tool(
        "export-renamed",
        &[("interface tool-provider {", "interface tools {"), ("export tool-provider;", "export tools;")],
        &["exports `agent-os:plugin/tools@0.1.0`", "`agent-os:plugin/tool-provider@0.1.0`"],
    ),
    // Several at once: all of them.
    tool(
        "many",
        &[
            ("description: string,", ""),
            ("warn, error }", "error }"),
            ("key: string) -> result<option<entry>, error>", "name: string) -> result<option<entry>, error>"),
        ],
        &[
            "lacks the field `description",
            "lacks the case `warn`",
            "no parameter `key: string`",
            "a parameter `name: string`",
        ],
    ),
    // Other versions.
    Drifted {
        name: "version-later",
        world: "tool",
        edits: &[("@0.1.0", "@0.2.0")],
        code: "contract_version",
        says: &["`agent-os:plugin/tool-provider@0.2.0`", "serves 0.1.0"],
    },
    Drifted {
        name: "version-earlier",
        world: "agent",
        edits: &[("@0.1.0", "@0.0.9")],
        code: "contract_version",
        says: &["`agent-os:agent/agent-entry@0.0.9`", "serves 0.1.0"],
    },
];

fn component(drifted: &Drifted) -> Vec<u8> {
    let wit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../wit");
    let text = |package: &str| {
        let text = fs::read_to_string(wit.join(package).join(format!("{package}.wit"))).unwrap();
        drifted.edits.iter().fold(text, |text, (from, to)| text.replace(from, to))
    };
    let (types, plugin, agent) = (text("types"), text("plugin"), text("agent"));
    let mut packages = vec![("types.wit", types.as_str()), ("plugin.wit", plugin.as_str())];
    if drifted.world == "agent" {
        packages.push(("agent.wit", agent.as_str()));
    }
    guest_build::hollow(&packages, drifted.world).unwrap_or_else(|e| panic!("{}: {e:#}", drifted.name))
}

const UNDRIFTED: [Drifted; 3] =
    [tool("good-tool", &[], &[]), hook("good-hook", &[], &[]), agent("good-agent", &[], &[])];

#[test]
fn each_of_thirty_drifts_is_named_in_words() {
    let world = World::new();
    assert!(ALL.len() >= 30);
    for drifted in ALL {
        let file = world.work().join(format!("{}.wasm", drifted.name));
        fs::write(&file, component(drifted)).unwrap();
        let ran = world.run(&["plugin", "doctor", file.to_str().unwrap(), "--json"]).exits(2);
        let report = &ran.lines()[0];
        let said = format!("{} {}", report["drift"], report["diagnosis"]).replace("\\\"", "\"");
        assert_eq!(report["diagnosis"]["code"], drifted.code, "{}: {said}", drifted.name);
        for words in drifted.says {
            assert!(said.contains(words), "{}: `{words}` is missing: {said}", drifted.name);
        }
        for raw in ["linker", "matching implementation", "instance export", "type mismatch"] {
            assert!(!format!("{}{}", ran.stdout, ran.stderr).contains(raw), "{}: {said}", drifted.name);
        }
        assert_eq!(ran.error()["code"], "plugin_refused");
    }
}

#[test]
fn what_did_not_drift_is_good() {
    let world = World::new();
    for (good, kind) in UNDRIFTED.iter().zip(["tool", "hook", "agent"]) {
        let file = world.work().join(format!("{}.wasm", good.name));
        fs::write(&file, component(good)).unwrap();
        let report = world.run(&["plugin", "doctor", file.to_str().unwrap(), "--json"]).exits(0).lines().remove(0);
        assert_eq!(
            (&report["ok"], &report["kind"], &report["contract"]),
            (&json!(true), &json!(kind), &json!("0.1.0"))
        );
    }
}

#[test]
fn a_hook_of_the_sdk_is_a_good_hook() {
    let world = World::new();
    for file in [MEDDLER, WATCHER] {
        let report = world.run(&["plugin", "doctor", file, "--json"]).exits(0).lines().remove(0);
        assert_eq!((&report["kind"], &report["contract"]), (&json!("hook"), &json!("0.1.0")), "{report}");
    }
}

#[test]
fn the_directory_tells_the_same_and_the_plugin_beside_serves() {
    let world = World::new();
    world.install(PROBE);
    let some: Vec<_> = ALL.iter().step_by(7).collect();
    for drifted in &some {
        fs::write(world.plugins().join(format!("{}.wasm", drifted.name)), component(drifted)).unwrap();
    }
    let plugins = world.run(&["plugin", "ls", "--json"]).exits(0).lines();
    for drifted in some {
        let listed = plugins.iter().find(|p| p["name"] == drifted.name).unwrap();
        let file = world.plugins().join(format!("{}.wasm", drifted.name));
        let report = world.run(&["plugin", "doctor", file.to_str().unwrap(), "--json"]).exits(2).lines().remove(0);
        assert_eq!(listed["diagnosis"], report["diagnosis"]);
        assert_eq!(listed["state"], "refused");
    }
    world.run(&["tool", "call", "probe__echo", "{\"a\":1}"]).exits(0);
}

/// A tool that also imports an interface of WASI, or of nobody.
fn importing(package: &str, interface: &str, function: &str) -> Vec<u8> {
    let wit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../wit");
    let ours = |package: &str| fs::read_to_string(wit.join(package).join(format!("{package}.wit"))).unwrap();
    let (name, version) = package.split_once('@').unwrap();
    let theirs = format!("package {package};\ninterface {interface} {{ {function} }}");
    let world = format!(
        "package test:plugin;\nworld w {{ include agent-os:plugin/tool@0.1.0; import {name}/{interface}@{version}; }}"
    );
    let (types, plugin) = (ours("types"), ours("plugin"));
    let packages = [("types.wit", &types), ("plugin.wit", &plugin), ("theirs.wit", &theirs), ("world.wit", &world)];
    guest_build::hollow(&packages.map(|(name, text)| (name, text.as_str())), "w").unwrap()
}

#[test]
fn what_the_kernel_does_not_have_is_named_without_a_linkers_words() {
    let world = World::new();
    let random = "get-random-u64: func() -> string;";
    for (name, component, code, says) in [
        ("preview", importing("wasi:random@0.3.0", "random", random), "wasi03_off", "`wasi:random/random@0.3.0`"),
        ("alien", importing("acme:disk@1.0.0", "disk", "spin: func();"), "unknown_import", "`acme:disk/disk@1.0.0`"),
        // Its name is WASI 0.2's and its type is not: only what links it can tell.
        (
            "shape",
            importing("wasi:random@0.2.0", "random", random),
            "contract_mismatch",
            "`get-random-u64` of `wasi:random/random@0.2.0`",
        ),
    ] {
        fs::write(world.plugins().join(format!("{name}.wasm")), component).unwrap();
        let plugins = world.run(&["plugin", "ls", "--json"]).exits(0).lines();
        let diagnosis = &plugins.iter().find(|p| p["name"] == name).unwrap()["diagnosis"];
        assert_eq!(diagnosis["code"], code, "{diagnosis}");
        assert!(diagnosis["message"].as_str().unwrap().contains(says), "{diagnosis}");
        assert!(!diagnosis.to_string().contains("linker"), "{diagnosis}");
        if code != "contract_mismatch" {
            let file = world.plugins().join(format!("{name}.wasm"));
            let report = world.run(&["plugin", "doctor", file.to_str().unwrap(), "--json"]).exits(2).lines().remove(0);
            assert_eq!(report["diagnosis"], *diagnosis);
        }
    }
}

#[test]
fn doctor_and_inspect_tell_what_a_file_is() {
    let world = World::new();
    let doctor = |file: &Path| world.run(&["plugin", "doctor", file.to_str().unwrap(), "--json"]);
    let text = doctor(Path::new(PROBE)).exits(0).lines().remove(0);
    assert_eq!((&text["kind"], &text["needs"]["files"]), (&json!("tool"), &json!(false)));
    let at = |name: &str, bytes: &[u8]| {
        let path = world.work().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let good = fs::read(PROBE).unwrap();
    for (path, code) in [
        (at("text.wasm", b"hello"), "not_wasm"),
        (at("cut.wasm", &good[..good.len() / 2]), "truncated"),
        (at("Bad.wasm", &good), "invalid_name"),
        (world.work().join("nowhere.wasm"), "unreadable"),
        (world.work().join("note.txt"), "no_interpreter"),
    ] {
        let ran = doctor(&path).exits(2);
        assert_eq!(ran.lines()[0]["diagnosis"]["code"], code, "{}", ran.stdout);
    }
    at("odd.toml", b"[limits]\nfule = 1");
    let ran = doctor(&at("odd.wasm", &good)).exits(2);
    assert_eq!(ran.lines()[0]["diagnosis"]["code"], "invalid_manifest");
    let shown = world.run(&["plugin", "inspect", "fs", "--json"]).exits(0).lines().remove(0);
    assert_eq!(shown["plugin"]["name"], "fs");
    let exports = shown["exports"].as_array().unwrap();
    let signature = |e: &Value| {
        e["functions"].as_array().unwrap().iter().any(|f| f.as_str().unwrap().starts_with("call-tool: func("))
    };
    assert!(exports.iter().any(signature), "{shown}");
    world.run(&["plugin", "inspect", "./nowhere.wasm", "--json"]).refused(2, "plugin_refused", &["nowhere.wasm"]);
    world.run(&["plugin", "inspect", "nobody", "--json"]).refused(2, "unknown_plugin", &["`nobody`", "fs"]);
    let people = world.run(&["plugin", "inspect", PROBE]).exits(0).stdout;
    assert!(people.contains("agent-os:plugin/log@0.1.0") && people.contains("log: func("), "{people}");
}
