//! `aok doctor`: it tells how things are, whatever state they are in, and shows no secret.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use super::contract::*;
use super::support::*;

/// A key that can be recognised wherever it turns up.
const KEY: &str = "sk-doctor-0123456789abcdef";

/// `aok doctor` on a data directory, with these variables and none of the user's own.
fn doctor(data: &Path, args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(aok_binary());
    for name in
        ["AOK_MODEL", "OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY", "OPENROUTER_API_KEY", "RUST_LOG"]
    {
        command.env_remove(name);
    }
    command.arg("doctor").args(args).arg("--data").arg(data).envs(env.iter().copied());
    command.output().unwrap()
}

/// The lines of a report that must end with `code`.
#[track_caller]
fn report(output: &Output, code: i32) -> Vec<Value> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    for line in &lines {
        has_exactly(line, "check state detail fix");
        let state = line["state"].as_str().unwrap();
        assert!(matches!(state, "ok" | "warn" | "fail"), "{line}");
        assert_eq!(state == "ok", line["fix"].is_null(), "a way out belongs to what does not work: {line}");
        assert!(!line["detail"].as_str().unwrap().is_empty(), "{line}");
    }
    let fails = lines.iter().any(|l| l["state"] == "fail");
    assert_eq!(fails, code == 5, "{text}");
    if fails {
        let error = String::from_utf8_lossy(&output.stderr);
        let error: Value = serde_json::from_str(error.lines().last().unwrap()).unwrap();
        assert_eq!(error["error"]["code"], "unhealthy", "{error}");
    }
    lines
}

#[track_caller]
fn of<'a>(lines: &'a [Value], check: &str) -> &'a Value {
    lines.iter().find(|l| l["check"] == check).unwrap_or_else(|| panic!("no `{check}` in {lines:?}"))
}

/// The check must have failed and name all of `words`.
#[track_caller]
fn fails(lines: &[Value], check: &str, words: &[&str]) {
    let line = of(lines, check);
    assert_eq!(line["state"], "fail", "{line}");
    for word in words {
        assert!(line.to_string().contains(word), "`{word}` is missing: {line}");
    }
}

#[test]
fn a_fresh_directory_is_well_and_is_not_made() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let lines = report(&doctor(&data, &["--json"], &[]), 0);
    for check in ["aok", "configuration", "data directory", "lock", "store", "code cache", "instance pool", "plugins"] {
        assert_eq!(of(&lines, check)["state"], "ok", "{lines:?}");
    }
    for check in ["default model", "environment", "local models", "rust", "python", "node"] {
        of(&lines, check);
    }
    assert!(of(&lines, "store")["detail"].as_str().unwrap().contains("not a power cut"), "{lines:?}");
    assert!(!data.exists());
    fs::create_dir(&data).unwrap();
    report(&doctor(&data, &["--json"], &[]), 0);
    assert_eq!(fs::read_dir(&data).unwrap().count(), 0, "something was left there");
}

#[test]
fn people_get_aligned_lines_with_each_way_out_below() {
    let dir = tempfile::tempdir().unwrap();
    let output = doctor(&dir.path().join("data"), &[], &[]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let at = lines[0].find("0.").unwrap();
    assert!(lines[0].starts_with("ok    aok  "), "{text}");
    for line in &lines {
        let state = line.split_whitespace().next().unwrap();
        assert!(matches!(state, "ok" | "warn" | "fail" | "→"), "{line}");
        assert!(line.is_char_boundary(at) && line[..at].ends_with("  "), "not aligned: {text}");
    }
    let none = lines.iter().position(|l| l.contains("default model")).unwrap();
    assert!(lines[none].starts_with("warn") && lines[none + 1].trim_start().starts_with("→ try"), "{text}");
}

#[test]
fn a_directory_that_cannot_be_used_is_one_line_and_not_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "mine").unwrap();
    for data in [file.clone(), file.join("below")] {
        let lines = report(&doctor(&data, &["--json"], &[]), 5);
        fails(&lines, "data directory", &[data.to_str().unwrap(), "--data"]);
        assert_eq!(lines.iter().filter(|l| l["state"] == "fail").count(), 1, "{lines:?}");
        assert_eq!(of(&lines, "plugins")["state"], "ok", "{lines:?}");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
    let sealed = dir.path().join("sealed");
    fs::create_dir(&sealed).unwrap();
    fs::set_permissions(&sealed, fs::Permissions::from_mode(0o500)).unwrap();
    // Root may write everywhere.
    if fs::write(sealed.join("x"), "").is_err() {
        let lines = report(&doctor(&sealed, &["--json"], &[]), 5);
        fails(&lines, "data directory", &[sealed.to_str().unwrap(), "chmod"]);
    }
}

#[test]
fn a_store_that_cannot_be_opened_is_named_and_left_alone() {
    let world = World::new();
    world.run(&["run", "--task", "x", "--model", &world.answers("fine")]).exits(0);
    let good = report(&doctor(&world.data(), &["--json"], &[]), 0);
    let detail = of(&good, "store")["detail"].as_str().unwrap();
    assert!(detail.contains("1 process, all ended"), "{detail}");

    world.sqlite("INSERT INTO _sqlx_migrations SELECT 9999, 'future', installed_on, 1, checksum, 0 FROM _sqlx_migrations LIMIT 1");
    let store = world.data().join("aok.db");
    let before = fs::read(&store).unwrap();
    let newer = report(&doctor(&world.data(), &["--json"], &[]), 5);
    fails(&newer, "store", &["aok.db", "9999", "--data"]);
    assert!(fs::read(&store).unwrap() == before, "the store was changed");

    fs::write(&store, "my diary, 1987\n".repeat(1000)).unwrap();
    fails(&report(&doctor(&world.data(), &["--json"], &[]), 5), "store", &["aok.db", "not a store"]);
    assert!(fs::read_to_string(&store).unwrap().starts_with("my diary"));
}

#[test]
fn a_wrong_configuration_and_a_refused_plugin_are_told_apart() {
    let world = World::new();
    fs::write(world.plugins().join("broken.wasm"), "text").unwrap();
    let plugins = world.plugins();
    let args = ["--json", "--plugins", plugins.to_str().unwrap()];
    let lines = report(&doctor(&world.data(), &args, &[]), 0);
    let line = of(&lines, "plugins");
    assert!(line["state"] == "warn" && line["detail"].as_str().unwrap().contains("`broken`"), "{line}");
    world.configure("[limits]\nfule = 1\n");
    fails(&report(&doctor(&world.data(), &args, &[]), 5), "configuration", &["aok.toml", "fule"]);
}

#[test]
fn a_running_kernel_answers_for_itself_and_one_that_does_not_is_named() {
    let world = World::new();
    let first = world.waiting();
    let (id, model) = (first.id().to_string(), world.answers("fine"));
    let lines = report(&doctor(&world.data(), &["--json"], &[]), 0);
    // The model is the client's own choice, also beside a running kernel.
    let mine = report(&doctor(&world.data(), &["--json"], &[("AOK_MODEL", &model)]), 0);
    assert!(of(&mine, "default model").to_string().contains("from AOK_MODEL"), "{mine:?}");
    assert_eq!(of(&lines, "default model")["state"], "warn");
    let lock = of(&lines, "lock")["detail"].as_str().unwrap();
    assert!(lock.contains("running kernel") && lock.contains(&id), "{lock}");
    let store = of(&lines, "store")["detail"].as_str().unwrap();
    assert!(store.contains("1 process, 1 running;"), "{store}");

    fs::remove_file(world.data().join("aok.sock")).unwrap();
    fails(&report(&doctor(&world.data(), &["--json"], &[]), 5), "lock", &[&id, "--data"]);
    first.signal("INT");
    first.end().exits(130);
    let lines = report(&doctor(&world.data(), &["--json"], &[]), 0);
    assert!(of(&lines, "store")["detail"].as_str().unwrap().contains("1 unfinished"), "{lines:?}");
}

#[test]
fn providers_are_asked_for_nothing_that_costs_and_no_key_is_shown() {
    let world = World::new();
    let script = world.dir.path().join("replies.jsonl");
    fs::write(&script, "{\"text\":\"paid for\"}\n").unwrap();
    let server = ModelServer::start(&script, "assistant");
    let hidden = server.url.replace("http://", &format!("http://user:{KEY}@"));
    let provider = |name: &str, url: &str, key: &str| {
        format!("[llm.providers.{name}]\nkind = \"openai\"\nbase_url = \"{url}\"\nkey_env = \"{key}\"\n")
    };
    world.configure(
        &[
            provider("mine", &hidden, "MINE_KEY"),
            provider("gone", "http://127.0.0.1:1/v1", "MINE_KEY"),
            provider("unset", &server.url, "UNSET_KEY"),
        ]
        .concat(),
    );
    let env =
        [("MINE_KEY", KEY), ("ANTHROPIC_API_KEY", KEY), ("ANTHROPIC_BASE_URL", &server.url), ("AOK_MODEL", "mine/m")];
    let output = doctor(&world.data(), &["--json", "-vv"], &env);
    let lines = report(&output, 0);
    for (name, state, words) in [
        ("mine", "ok", "1 model"),
        ("anthropic", "ok", "answers"),
        ("gone", "warn", "refused"),
        ("unset", "warn", "UNSET_KEY"),
    ] {
        let line = of(&lines, &format!("provider {name}"));
        assert!(line["state"] == state && line["detail"].as_str().unwrap().contains(words), "{line}");
    }
    let model = of(&lines, "default model")["detail"].as_str().unwrap();
    assert!(model.contains("mine/m") && model.contains("AOK_MODEL"), "{model}");
    let names = of(&lines, "environment")["detail"].as_str().unwrap();
    assert!(names.contains("ANTHROPIC_API_KEY") && names.contains("MINE_KEY"), "{names}");
    assert_eq!(server.requests(), [], "a model was asked");

    let people = doctor(&world.data(), &["-vv"], &env);
    for bytes in [&output.stdout, &output.stderr, &people.stdout, &people.stderr] {
        assert!(!String::from_utf8_lossy(bytes).contains(KEY), "a key was shown");
    }
}

#[test]
fn every_limit_stops_its_guest_here_and_now() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let output = doctor(&data, &["--prove-limits", "--json"], &[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let proofs: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let limits: Vec<&str> = proofs.iter().map(|p| p["limit"].as_str().unwrap()).collect();
    assert_eq!(limits, ["fuel", "wall", "memory", "tables", "instances", "stack", "output", "log", "host-calls"]);
    for proof in &proofs {
        has(proof, "limit held declared observed");
        assert_eq!((&proof["held"], &proof["stopped_by"]), (&json!(true), &proof["limit"]), "{proof}");
        assert!(proof["declared"].as_u64().unwrap() > 0, "{proof}");
    }
    // Stopped at the limit, not long before it. What joins the guest to its imports has a table
    // element of its own.
    for (limit, observed) in
        [("fuel", 200_000_000), ("memory", (31 << 20) + 65_536), ("tables", 4_900), ("log", 9_976), ("host-calls", 500)]
    {
        let proof = proofs.iter().find(|p| p["limit"] == limit).unwrap();
        assert_eq!(proof["observed"], observed, "{proof}");
    }
    assert!(!data.exists(), "no data directory is needed");
}
