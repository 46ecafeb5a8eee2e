//! Bad input: each gets its error with the way out, and nothing else is disturbed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use super::support::*;

#[test]
fn unknown_names_are_refused_with_those_that_exist() {
    let world = World::new();
    let model = world.answers("no");
    let run = |args: &[&str]| world.run(&[args, &["--json"]].concat());
    run(&["run", "asistant", "--task", "x", "--model", &model]).refused(
        2,
        "unknown_agent",
        &["`asistant`", "assistant"],
    );
    run(&["tool", "call", "fs__raed"]).refused(2, "unknown_tool", &["`fs__raed`", "fs__read"]);
    run(&["tool", "show", "raed"]).refused(2, "unknown_tool", &["`raed`", "fs__read"]);
    for command in [&["logs", "77"][..], &["context", "77"], &["run", "--resume", "77"]] {
        run(command).refused(2, "unknown_process", &["77", "aok ps"]);
    }
    run(&["run", "--tsak", "x"]).refused(2, "bad_usage", &["--tsak"]);
    run(&["tool", "lss"]).refused(2, "bad_usage", &["lss"]);
    run(&["frobnicate"]).refused(2, "bad_usage", &["frobnicate"]);
    // Nothing was begun.
    assert!(run(&["ps"]).exits(0).lines().is_empty());
}

#[test]
fn malformed_json_is_refused_with_its_place() {
    let world = World::new();
    world.run(&["tool", "call", "calc__eval", "{\"expression\":\n 1,}", "--json"]).refused(
        2,
        "invalid_json",
        &["line 2"],
    );
    fs::write(world.work().join("a.json"), "{\"expression\"").unwrap();
    let file = format!("@{}", world.work().join("a.json").display());
    world.run(&["tool", "call", "calc__eval", &file, "--json"]).refused(2, "invalid_json", &["line 1"]);
    world.run(&["tool", "call", "calc__eval", "@/nowhere/a.json", "--json"]).refused(
        2,
        "bad_usage",
        &["/nowhere/a.json"],
    );
}

#[test]
fn arguments_against_the_schema_are_refused_with_the_pointer_before_the_guest_starts() {
    let world = World::new();
    world.install(PROBE);
    for (arguments, words) in [
        (json!({"name": 5}), ["/name", "string"]),
        (json!({"nome": "x"}), ["nome", "tool show"]),
        (json!([]), ["object", "probe__counter"]),
    ] {
        let ran = world.run(&["tool", "call", "probe__counter", &arguments.to_string(), "--json"]);
        let report = ran.lines().pop();
        assert_eq!(report.as_ref().map(|r| &r["fuel"]), Some(&json!(0)), "the guest was started: {report:?}");
        ran.refused(2, "invalid_arguments", &words);
    }
    world.run(&["tool", "call", "probe__set", r#"{"key":"k"}"#, "--json"]).refused(2, "invalid_arguments", &["value"]);
    // The counter was never counted up.
    assert_eq!(world.run(&["tool", "call", "probe__counter"]).exits(0).stdout, "1\n");
}

#[test]
fn an_agent_is_told_what_is_wrong_with_its_calls_and_goes_on() {
    let world = World::new();
    let model = world.script(&[
        calls("unknown", "fs__raed", &json!({})),
        calls("schema", "calc__eval", &json!({"expression": 5})),
        calls("json", "calc__eval", &json!("{\"expression\":")),
        calls("good", "calc__eval", &json!({"expression": "2+3"})),
        json!({"text": "{{good}}"}),
    ]);
    let ran = world.run(&["run", "--task", "x", "--model", &model, "--json"]).exits(0);
    let events = ran.lines();
    let error = |id: &str| {
        let end = events.iter().find(|e| e["type"] == "tool_end" && e["id"] == id);
        end.unwrap_or_else(|| panic!("no tool_end of {id}"))["error"].clone()
    };
    for (id, code, words) in [
        ("unknown", "not-found", ["fs__raed", "calc__eval"]),
        ("schema", "invalid", ["/expression", "calc__eval"]),
        ("json", "invalid", ["not JSON", "calc__eval"]),
    ] {
        let error = error(id);
        assert_eq!(error["code"], code, "{error}");
        let message = error["message"].as_str().unwrap();
        assert!(words.iter().all(|w| message.contains(w)), "{words:?} is missing: {message}");
    }
    assert!(events.last().unwrap()["answer"].as_str().unwrap().contains('5'));
}

#[test]
fn files_that_are_no_plugins_are_shown_with_a_diagnosis_and_disturb_nobody() {
    let world = World::new();
    world.install(PROBE);
    let component = fs::read(PROBE).unwrap();
    let put = |name: &str, bytes: &[u8]| fs::write(world.plugins().join(name), bytes).unwrap();
    put("core.wasm", b"\0asm\x01\0\0\0");
    put("cut.wasm", &component[..component.len() / 2]);
    put("garbage.wasm", b"#!/bin/sh\necho hello\n");
    put("empty.wasm", b"");
    put("Bad Name.wasm", &component);
    put("9lives.wasm", &component);
    put("fs.wasm", &component);
    put("ignored.txt", b"not a plugin");
    fs::create_dir(world.plugins().join("folder.wasm")).unwrap();
    symlink("/nowhere/at/all", world.plugins().join("dangling.wasm")).unwrap();
    // The data directory's own folder comes first, so `probe` is taken there.
    fs::create_dir(world.data().join("plugins")).unwrap();
    fs::write(world.data().join("plugins/probe.wasm"), &component).unwrap();

    let ran = world.run(&["plugin", "ls", "--json"]).exits(0);
    let plugins = ran.lines();
    let of = |name: &str, file: &Path| {
        let found = plugins.iter().find(|p| p["name"] == name && p["file"] == file.to_str().unwrap());
        found.unwrap_or_else(|| panic!("{name} of {} is not listed:\n{}", file.display(), ran.stdout))
    };
    for (name, code, word) in [
        ("core", "core_module", "core WebAssembly module"),
        ("cut", "truncated", "too early"),
        ("garbage", "not_wasm", "not WebAssembly"),
        ("empty", "empty_file", "empty"),
        ("Bad Name", "invalid_name", "`Bad Name`"),
        ("9lives", "invalid_name", "`9lives`"),
        ("fs", "name_taken", "bundled"),
        ("folder", "unreadable", "not a file"),
        ("dangling", "symlink", "symbolic link"),
        ("probe", "name_taken", "probe.wasm"),
    ] {
        let plugin = of(name, &world.plugins().join(format!("{name}.wasm")));
        let diagnosis = &plugin["diagnosis"];
        assert_eq!((&plugin["state"], &diagnosis["code"]), (&json!("refused"), &json!(code)), "{plugin}");
        assert!(diagnosis["message"].as_str().unwrap().contains(word), "`{word}` is missing: {diagnosis}");
        assert!(!diagnosis["hint"].as_str().unwrap().is_empty(), "no way out: {diagnosis}");
        assert_eq!(plugin["tools"], json!([]), "{plugin}");
    }
    assert!(!ran.stdout.contains("ignored"));
    let probe = of("probe", &world.data().join("plugins/probe.wasm"));
    assert_eq!((&probe["state"], &probe["diagnosis"]), (&json!("loaded"), &Value::Null));
    // People see the same.
    let table = world.run(&["plugin", "ls"]).exits(0).stdout;
    assert!(table.contains("core_module") && table.contains("name_taken"), "{table}");

    // The others work, and the bundled `fs` is the bundled one.
    assert_eq!(world.run(&["tool", "call", "probe__echo", r#"{"a":1}"#]).exits(0).stdout, "{\"a\":1}\n");
    fs::write(world.work().join("x.txt"), "text").unwrap();
    let work = world.work();
    let read = world.run(&["tool", "call", "fs__read", r#"{"path":"work/x.txt"}"#, "--dir", work.to_str().unwrap()]);
    assert!(read.exits(0).stdout.contains("text"));
    world.run(&["run", "--task", "x", "--model", &world.answers("fine")]).exits(0);
}

#[test]
fn a_component_cut_or_damaged_anywhere_is_refused_or_works_and_never_takes_the_kernel_with_it() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
    let world = World::new();
    let component = fs::read(PROBE).unwrap();
    for n in 0..6 {
        let cut = rng.random_range(1..component.len());
        fs::write(world.plugins().join(format!("cut{n}.wasm")), &component[..cut]).unwrap();
    }
    for n in 0..3 {
        let mut damaged = component.clone();
        for _ in 0..20 {
            let at = rng.random_range(0..damaged.len());
            damaged[at] = rng.random();
        }
        fs::write(world.plugins().join(format!("damaged{n}.wasm")), damaged).unwrap();
    }
    let plugins = world.run(&["plugin", "ls", "--json"]).exits(0).lines();
    let of =
        |prefix: &str| plugins.iter().filter(|p| p["name"].as_str().unwrap().starts_with(prefix)).collect::<Vec<_>>();
    assert_eq!((of("cut").len(), of("damaged").len()), (6, 3));
    for plugin in of("cut") {
        assert_eq!(plugin["state"], "refused", "{plugin}");
        assert!(!plugin["diagnosis"]["message"].as_str().unwrap().is_empty(), "{plugin}");
    }
    world.run(&["tool", "call", "calc__eval", r#"{"expression":"1+1"}"#]).exits(0);
}

/// A folder outside of what is granted, with a secret, and links to it from the inside.
fn with_a_secret(world: &World) -> PathBuf {
    let outside = world.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret.txt"), "the secret").unwrap();
    fs::write(world.work().join("inside.txt"), "inside").unwrap();
    symlink(outside.join("secret.txt"), world.work().join("file-link")).unwrap();
    symlink(&outside, world.work().join("dir-link")).unwrap();
    symlink("../outside/secret.txt", world.work().join("relative-link")).unwrap();
    symlink("../outside/new.txt", world.work().join("new-link")).unwrap();
    outside
}

/// The folder is as it was made.
#[track_caller]
fn untouched(outside: &Path) {
    let names: Vec<_> = fs::read_dir(outside).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["secret.txt"]);
    assert_eq!(fs::read_to_string(outside.join("secret.txt")).unwrap(), "the secret");
}

const WAYS_OUT: [&str; 9] = [
    "outside/secret.txt",
    "../outside/secret.txt",
    "work/../../outside/secret.txt",
    "work/../outside/secret.txt",
    "/etc/passwd",
    "work/file-link",
    "work/relative-link",
    "work/dir-link/secret.txt",
    "work/dir-link/../outside/secret.txt",
];

#[test]
fn no_path_leads_out_of_the_granted_directory() {
    let world = World::new();
    let outside = with_a_secret(&world);
    let grant = format!("{}:rw", world.work().display());
    // To a private copy, and through to the directory.
    for more in [&[][..], &["--direct"]] {
        leads_nowhere(&outside, |tool, arguments| {
            let arguments = arguments.to_string();
            world.run(&[&["tool", "call", tool, &arguments, "--dir", &grant, "--json"], more].concat())
        });
    }
}

fn leads_nowhere(outside: &Path, call: impl Fn(&str, &Value) -> Ran) {
    for path in WAYS_OUT {
        // What is textually inside and not there may be told so, but never more.
        let inside = path == "work/dir-link/../outside/secret.txt";
        for (tool, arguments) in [
            ("fs__read", json!({ "path": path })),
            ("fs__write", json!({"path": path, "content": "overwritten"})),
            ("fs__append", json!({"path": path, "content": "more"})),
        ] {
            if inside && tool != "fs__read" {
                continue;
            }
            let ran = call(tool, &arguments);
            assert!(!ran.stdout.contains("the secret"), "{tool} {path}: {}", ran.stdout);
            if inside {
                ran.exits(1);
            } else {
                ran.refused(3, "denied", &["--dir", "granted"]);
            }
            untouched(outside);
        }
    }
    for path in ["work/dir-link/new.txt", "work/new-link", "work/dir-link/a/b/new.txt"] {
        for tool in ["fs__write", "fs__append"] {
            call(tool, &json!({"path": path, "content": "x"})).refused(3, "denied", &["--dir"]);
            untouched(outside);
        }
    }
    call("fs__list", &json!({"path": "work/dir-link"})).refused(3, "denied", &["--dir"]);
    let found = call("fs__search", &json!({"path": ".", "pattern": "the secret"}));
    assert!(!found.exits(0).stdout.contains("secret.txt"));
    // What is inside works.
    assert!(call("fs__read", &json!({"path": "work/inside.txt"})).exits(0).stdout.contains("inside"));
}

#[test]
fn a_read_only_directory_is_not_written_and_the_error_says_how_to_grant_it() {
    let world = World::new();
    fs::write(world.work().join("inside.txt"), "inside").unwrap();
    let work = world.work();
    for tool in ["fs__write", "fs__append"] {
        for path in ["work/inside.txt", "work/new.txt", "work/a/b/new.txt"] {
            let arguments = json!({"path": path, "content": "x"}).to_string();
            let ran = world.run(&["tool", "call", tool, &arguments, "--dir", work.to_str().unwrap(), "--json"]);
            ran.refused(3, "denied", &["read-only", ":rw"]);
        }
    }
    assert_eq!(fs::read_dir(&work).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(work.join("inside.txt")).unwrap(), "inside");
}

#[test]
fn without_a_directory_nothing_is_reached_and_the_error_says_how_to_grant_one() {
    let world = World::new();
    for (tool, arguments) in [
        ("fs__list", json!({"path": "."})),
        ("fs__read", json!({"path": "etc/passwd"})),
        ("fs__search", json!({"path": ".", "pattern": "root"})),
        ("fs__write", json!({"path": "x", "content": ""})),
        ("fs__append", json!({"path": "work/x", "content": ""})),
    ] {
        let ran = world.run(&["tool", "call", tool, &arguments.to_string(), "--json"]);
        ran.refused(3, "denied", &["no directory is granted", "--dir"]);
    }
}

#[test]
fn an_agent_that_tries_to_get_out_is_denied_and_goes_on() {
    let world = World::new();
    let outside = with_a_secret(&world);
    let denied = &WAYS_OUT[..8];
    let mut script: Vec<Value> = Vec::new();
    for (i, path) in denied.iter().enumerate() {
        script.push(calls(&format!("r{i}"), "fs__read", &json!({ "path": path })));
        script.push(calls(&format!("w{i}"), "fs__write", &json!({"path": path, "content": "overwritten"})));
    }
    script.push(calls("good", "fs__write", &json!({"path": "work/out.txt", "content": "done"})));
    script.push(json!({"text": "finished"}));
    let model = world.script(&script);
    let grant = format!("{}:rw", world.work().display());
    let args = ["run", "--task", "x", "--model", &model, "--dir", &grant, "--direct", "--json"];
    let ran = world.run(&args).exits(0);
    let ends: Vec<Value> = ran.lines().into_iter().filter(|e| e["type"] == "tool_end").collect();
    let refusals = ends.iter().filter(|e| e["error"]["code"] == "denied").count();
    assert_eq!((ends.len(), refusals), (2 * denied.len() + 1, 2 * denied.len()), "{}", ran.stdout);
    assert!(!ran.stdout.contains("the secret"));
    untouched(&outside);
    assert_eq!(fs::read_to_string(world.work().join("out.txt")).unwrap(), "done");
}

#[test]
fn directories_that_cannot_be_granted_are_refused_before_anything_starts() {
    let world = World::new();
    let model = world.answers("no");
    fs::create_dir_all(world.dir.path().join("other/work")).unwrap();
    fs::write(world.dir.path().join("file"), "").unwrap();
    let path = |name: &str| world.dir.path().join(name).display().to_string();
    let run = |dirs: &[&str]| {
        let dirs: Vec<&str> = dirs.iter().flat_map(|d| ["--dir", d]).collect();
        world.run(&[&["run", "--task", "x", "--model", &model, "--json"], &dirs[..]].concat())
    };
    run(&[&path("work"), &path("other/work")]).refused(2, "bad_usage", &["other/work", "`work`"]);
    run(&[&path("file")]).refused(2, "bad_usage", &["file", "not a directory"]);
    run(&[&path("absent")]).refused(2, "bad_usage", &["absent", "No such file"]);
    run(&["/"]).refused(2, "bad_usage", &["no last name"]);
    assert!(world.run(&["ps", "--json"]).exits(0).lines().is_empty());
}

#[test]
fn an_empty_task_and_a_nice_out_of_range_are_refused() {
    let world = World::new();
    let model = world.answers("no");
    let run = |args: &[&str]| world.run(&[&["run", "--model", &model, "--json"], args].concat());
    run(&["--task", ""]).refused(2, "bad_usage", &["task", "empty"]);
    run(&["--task", " \n"]).refused(2, "bad_usage", &["task", "empty"]);
    run(&["--task", "-"]).refused(2, "bad_usage", &["task", "empty"]);
    run(&[]).refused(2, "bad_usage", &["--task"]);
    for nice in ["20", "-21", "many"] {
        run(&["--task", "x", "--nice", nice]).refused(2, "bad_usage", &[nice, "nice"]);
    }
    for (option, value) in [("--max-fuel", "0"), ("--max-tokens", "-1"), ("--max-usd", "much"), ("--timeout", "5")] {
        run(&["--task", "x", option, value]).refused(2, "bad_usage", &[option, value]);
    }
    run(&["--task", "x", "--nice", "-20"]).exits(0);
}

#[test]
fn a_bad_configuration_is_named_by_every_command() {
    let world = World::new();
    let model = world.answers("no");
    for (toml, word) in [
        ("[limits]\nfule = 5\n", "fule"),
        ("[limits]\nfuel = 0\n", "limits.fuel"),
        ("[limits]\nfuel = \"much\"\n", "fuel"),
        ("[storrage]\nurl = \"memory:\"\n", "storrage"),
        ("[scheduler]\nworkers = 0\n", "scheduler.workers"),
        ("this is no toml", "line 1"),
    ] {
        world.configure(toml);
        for command in [&["run", "--task", "x", "--model", &model][..], &["ps"], &["tool", "call", "calc__eval"]] {
            let ran = world.run(&[command, &["--json"]].concat());
            ran.refused(2, "bad_config", &["aok.toml", word, "--config"]);
        }
    }
    world.configure("[storage]\nurl = \"postgres://nowhere\"\n");
    world.run(&["ps", "--json"]).refused(2, "bad_config", &["postgres://nowhere", "sqlite:"]);
    fs::remove_file(world.data().join("aok.toml")).unwrap();
    let ran = world.run(&["ps", "--config", "/nowhere/aok.toml", "--json"]);
    ran.refused(2, "bad_config", &["/nowhere/aok.toml"]);
}

#[test]
fn without_a_model_the_hint_says_what_was_found() {
    let world = World::new();
    let ran = world.aok(&["run", "--task", "x", "--json"]).env("OPENAI_API_KEY", "sk-very-secret").output().unwrap();
    let text = String::from_utf8(ran.stderr).unwrap();
    assert_eq!(ran.status.code(), Some(2), "{text}");
    let error: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(error["error"]["code"], "no_model");
    let hint = error["error"]["hint"].as_str().unwrap();
    assert!(hint.contains("OPENAI_API_KEY") && hint.contains("--model"), "{hint}");
    assert!(!text.contains("sk-very-secret"));
    world.run(&["run", "--task", "x", "--json"]).refused(2, "no_model", &["AOK_MODEL", "--model"]);
    for (model, word) in [("nothing", "provider/model"), ("nope/x", "nope"), ("openai/x", "OPENAI_API_KEY")] {
        world.run(&["run", "--task", "x", "--model", model, "--json"]).refused(2, "unknown_model", &[word]);
    }
    assert!(world.run(&["ps", "--json"]).exits(0).lines().is_empty());
}

#[test]
fn a_bad_script_is_named_with_its_line_before_anything_starts() {
    let world = World::new();
    let script = world.dir.path().join("bad.jsonl");
    let run = || world.run(&["run", "--task", "x", "--model", &format!("script/{}", script.display()), "--json"]);
    run().refused(2, "unknown_model", &["bad.jsonl", "cannot be read"]);
    for (line, word) in [
        ("{\"text\":", "EOF"),
        ("{\"txt\":\"x\"}", "txt"),
        ("{\"text\":\"{{nothing}}\"}", "nothing"),
        ("{\"error\":{\"status\":200}}", "200"),
        ("[]", "line 2"),
    ] {
        fs::write(&script, format!("{{\"text\":\"fine\"}}\n{line}\n")).unwrap();
        run().refused(2, "unknown_model", &["bad.jsonl", "line 2", word]);
    }
    assert!(world.run(&["ps", "--json"]).exits(0).lines().is_empty());
}

#[test]
fn a_script_that_ends_early_or_expects_something_else_fails_the_agent_by_name() {
    let world = World::new();
    let sum = calls("a", "calc__eval", &json!({"expression": "1+1"}));
    let model = world.script(std::slice::from_ref(&sum));
    let ran = world.run(&["run", "--task", "x", "--model", &model, "--json"]).exits(1);
    let exit = ran.lines().pop().unwrap();
    assert_eq!((&exit["type"], &exit["status"]), (&json!("exit"), &json!("failure")), "{exit}");
    ran.refused(1, "script_exhausted", &["script.jsonl", "1 repl", "request 2", "add a reply"]);

    let model = world.script(&[sum, json!({"expect": "three", "text": "no"})]);
    let ran = world.run(&["run", "--task", "x", "--model", &model, "--json"]).exits(1);
    let exit = ran.lines().pop().unwrap();
    assert_eq!((&exit["type"], &exit["status"]), (&json!("exit"), &json!("failure")), "{exit}");
    ran.refused(1, "script_mismatch", &["line 2", "`three`"]);
    // People are told the same.
    let model = world.script(&[]);
    let ran = world.run(&["run", "--task", "x", "--model", &model]).exits(1);
    assert!(ran.stdout.is_empty() && ran.stderr.contains("error[script_exhausted]"), "{}", ran.stderr);
}
