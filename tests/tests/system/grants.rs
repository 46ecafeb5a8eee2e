//! What the operator grants to plugins, and what they can do with it.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};

use serde_json::{Value, json};

use crate::support::{PROBE, World};

/// The plugin `probe` with this manifest.
fn world(manifest: &str) -> World {
    let world = World::new();
    world.install(PROBE);
    fs::write(world.plugins().join("probe.toml"), manifest).unwrap();
    world
}

#[track_caller]
fn plugin(world: &World, name: &str) -> Value {
    let plugins = world.run(&["plugin", "ls", "--json"]).exits(0).lines();
    plugins.into_iter().find(|p| p["name"] == name).unwrap()
}

#[test]
fn grants_are_kept_shown_audited_and_taken_back() {
    let world = world(
        "[permissions]\nread = [\"*\"]\nhttp = [{ host = \"*\" }]\nsecrets = [{ name = \"KEY\", hosts = [\"*\"] }]",
    );
    let work = world.work().canonicalize().unwrap();
    world.configure("[grants.probe]\nenv = [\"LANG\"]\n");
    let read = format!("read={}", work.display());
    let grants = [&read[..], "http=GET,POST api.example.com/v1/*", "http=example.com", "secret=KEY@api.example.com"];
    let granted = world.run(&[&["plugin", "grant", "probe", "--json"], &grants[..]].concat()).exits(0).lines();
    let http =
        json!([{"host": "api.example.com", "methods": ["GET", "POST"], "path": ["/v1/*"]}, {"host": "example.com"}]);
    let expected = json!({"read": [work], "http": http, "env": ["LANG"],
        "secrets": [{"name": "KEY", "hosts": ["api.example.com"]}]});
    assert_eq!((&granted[0]["granted"], granted.len()), (&expected, 1), "{granted:?}");
    assert_eq!(plugin(&world, "probe")["granted"], expected);
    assert_eq!(plugin(&world, "probe")["trusted"], false);
    let file = world.data().join("grants.toml");
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
    assert!(!fs::read_to_string(&file).unwrap().contains("LANG"), "that is in aok.toml");
    let shown = world.run(&["plugin", "ls"]).exits(0).stdout;
    assert!(shown.contains("http=GET,POST api.example.com/v1/*") && shown.contains("not trusted"), "{shown}");

    world.run(&["plugin", "trust", "probe"]).exits(0);
    assert_eq!(plugin(&world, "probe")["trusted"], true);
    world.run(&["plugin", "revoke", "probe", "http=example.com", "secret=KEY", "read"]).exits(0);
    assert_eq!(plugin(&world, "probe")["granted"], json!({"http": [http[0]], "env": ["LANG"]}));
    world.run(&["plugin", "revoke", "probe", "trust"]).exits(0);
    assert_eq!(plugin(&world, "probe")["trusted"], false);
    world.run(&["plugin", "revoke", "probe"]).exits(0);
    assert_eq!(plugin(&world, "probe")["granted"], json!({"env": ["LANG"]}));

    let audit = world.run(&["audit", "tail", "0", "-n", "100", "--json"]).exits(0).lines();
    let of = |event: &str| -> Vec<&str> {
        audit.iter().filter(|r| r["event"] == event).filter_map(|r| r["object"].as_str()).collect()
    };
    assert_eq!(of("grant")[..2], [&format!("probe {read}")[..], "probe http=GET,POST api.example.com/v1/*"]);
    assert_eq!((of("grant").len(), of("trust").len()), (4, 1));
    assert_eq!(of("revoke")[3..], ["probe trust", "probe everything"]);
    world.run(&["audit", "verify"]).exits(0);
}

#[test]
fn another_component_keeps_the_grants_and_not_the_trust() {
    let world = world("[permissions]\nhttp = [{ host = \"*\" }]");
    world.run(&["plugin", "grant", "probe", "http=h"]).exits(0);
    world.run(&["plugin", "trust", "probe"]).exits(0);
    assert_eq!(plugin(&world, "probe")["trusted"], true);
    fs::copy(crate::support::KVAGENT, world.plugins().join("probe.wasm")).unwrap();
    let replaced = plugin(&world, "probe");
    assert_eq!((&replaced["trusted"], &replaced["granted"]), (&json!(false), &json!({"http": [{"host": "h"}]})));
    fs::copy(PROBE, world.plugins().join("probe.wasm")).unwrap();
    assert_eq!(plugin(&world, "probe")["trusted"], true);
    // A plugin that is gone has left its grants, and they can be taken back.
    fs::remove_file(world.plugins().join("probe.wasm")).unwrap();
    world.run(&["plugin", "revoke", "probe"]).exits(0);
    let text = fs::read_to_string(world.data().join("grants.toml")).unwrap();
    assert!(!text.contains("probe"), "{text}");
}

#[test]
fn what_cannot_be_granted_is_refused_with_the_way_out() {
    let world = world("[permissions]\nread = [\"*\"]");
    let at = |name: &str| world.dir.path().canonicalize().unwrap().join(name);
    for name in ["a/x", "b/x"] {
        fs::create_dir_all(at(name)).unwrap();
    }
    fs::write(at("file"), "").unwrap();
    symlink(at("a/x"), at("link")).unwrap();
    let read = |name: &str| format!("read={}", at(name).display());
    for (grant, code, word) in [
        (read("nowhere"), "invalid_arguments", "No such file"),
        (read("file"), "invalid_arguments", "no directory"),
        (read("data"), "invalid_arguments", "aok's own data"),
        (read(""), "invalid_arguments", "aok's own data"),
        ("read=*".into(), "bad_usage", "name the directory"),
        ("read=".into(), "bad_usage", "no directory"),
        ("http=*".into(), "bad_usage", "host name"),
        ("http=https://example.com".into(), "bad_usage", "URL"),
        ("http=example.com/a/../b".into(), "bad_usage", "no `..`"),
        ("http=TRACE example.com".into(), "bad_usage", "TRACE"),
        ("secret=KEY".into(), "bad_usage", "NAME@HOST"),
        ("secret=KEY@*".into(), "bad_usage", "host name"),
        ("env=A B".into(), "invalid_arguments", "environment variable"),
        ("fuel=unlimited".into(), "bad_usage", "no kind of grant"),
        ("trust=yes".into(), "bad_usage", "aok plugin trust"),
        ("http".into(), "bad_usage", "KEY=VALUE"),
    ] {
        world.run(&["plugin", "grant", "probe", &grant, "--json"]).refused(2, code, &[word]);
    }
    for name in ["nobody", "fs"] {
        let ran = world.run(&["plugin", "grant", name, "http=h", "--json"]);
        let (code, word) = if name == "fs" { ("invalid_arguments", "--host") } else { ("unknown_plugin", "probe") };
        ran.refused(2, code, &[word]);
    }
    assert_eq!(plugin(&world, "probe")["granted"], json!({}));

    // A link is shown as what it leads to; two directories of one name are refused.
    world.run(&["plugin", "grant", "probe", &read("link")]).exits(0);
    assert_eq!(plugin(&world, "probe")["granted"], json!({"read": [at("a/x")]}));
    let ran = world.run(&["plugin", "grant", "probe", &read("b/x"), "--json"]);
    ran.refused(2, "invalid_arguments", &["would both be `x`", "holds both"]);
    world.run(&["plugin", "revoke", "probe", "http=h", "--json"]).refused(2, "invalid_arguments", &["read="]);
    // What its manifest does not ask for is said to have no effect.
    let noted = world.run(&["plugin", "grant", "probe", "http=h", "--json"]).exits(0).lines();
    assert!(noted[0]["notes"][0].as_str().unwrap().contains("no `http`"), "{noted:?}");
}

#[test]
fn a_wrong_file_of_grants_stops_aok_before_anything_runs() {
    let world = world("");
    for (text, word) in [
        ("[grants.probe]\nraed = []", "raed"),
        ("[grants.probe]\nread = [\"*\"]", "every directory"),
        ("[grants.probe]\nread = [\"/nowhere/at/all\"]", "/nowhere/at/all"),
        ("[grants.probe]\nhttp = \"unlimited\"", "unlimited"),
        ("[grants.probe]\nhttp = [{ host = \"*\" }]", "every host"),
    ] {
        world.configure(text);
        world.run(&["tool", "call", "calc__eval", "{}", "--json"]).refused(2, "bad_config", &[word, "aok.toml"]);
    }
    world.configure("");
    fs::write(world.data().join("grants.toml"), "[grants.probe]\nfuel = 0\n").unwrap();
    world.run(&["plugin", "ls", "--json"]).refused(2, "bad_config", &["fuel", "grants.toml"]);
}

#[test]
fn a_running_kernel_takes_grants_at_once() {
    let world = world("[permissions]\nhttp = [{ host = \"*\" }]");
    let run = world.waiting();
    world.run(&["plugin", "grant", "probe", "http=h"]).exits(0);
    assert_eq!(plugin(&world, "probe")["granted"], json!({"http": [{"host": "h"}]}));
    world.run(&["plugin", "trust", "probe"]).exits(0);
    world.run(&["plugin", "revoke", "probe", "http"]).exits(0);
    let now = plugin(&world, "probe");
    assert_eq!((&now["granted"], &now["trusted"]), (&json!({}), &json!(true)));
    run.signal("INT");
    run.end().exits(130);
    assert_eq!(plugin(&world, "probe")["trusted"], true, "it is kept");
}
