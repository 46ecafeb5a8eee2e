//! `aok plugin new` and `aok plugin build`: an author begins with nothing but aok and a compiler.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::support::{Ran, World};

fn author(world: &World, args: &[&str]) -> Ran {
    Ran::of(world.aok(args).current_dir(world.work()).output().expect("aok can be started"))
}

/// Has the project compile what it depends on once per build of these tests.
fn share_target(project: &Path) {
    let compiled = Path::new(env!("CARGO_TARGET_TMPDIR")).join("project");
    fs::create_dir_all(&compiled).unwrap();
    std::os::unix::fs::symlink(compiled, project.join("target")).unwrap();
}

#[test]
fn a_new_plugin_is_built_added_and_called_and_what_does_not_compile_is_told() {
    let world = World::new();
    author(&world, &["plugin", "new", "--lang", "rust", "my-words"]).exits(0);
    let project = world.work().join("my-words");
    share_target(&project);

    let built = author(&world, &["plugin", "build", "my-words", "--json"]).exits(0).lines().remove(0);
    assert_eq!(built, json!({ "file": "my-words/my-words.wasm", "done": "built" }));
    author(&world, &["plugin", "add", "my-words/my-words.wasm"]).exits(0);
    let counted = author(&world, &["tool", "call", "my_words__count_words", r#"{"text":"To be or not to be"}"#]);
    assert_eq!(counted.exits(0).lines().remove(0), json!({ "words": 6, "most_frequent": "be" }));
    let wrong = author(&world, &["tool", "call", "my_words__count_words", r#"{"txet":""}"#]);
    assert!(wrong.exits(2).stderr.contains("txet"));
    let listed = world.run(&["plugin", "ls", "--json"]).exits(0).lines();
    let plugin = listed.iter().find(|p| p["name"] == "my-words").unwrap();
    assert_eq!((&plugin["version"], &plugin["diagnosis"]), (&json!("0.1.0"), &json!(null)));

    // The comments of the project's WIT, where it has some, go into the component.
    fs::create_dir(project.join("wit")).unwrap();
    fs::write(project.join("wit/words.wit"), "package my:words; world words { /// Of no use.\n export f: func(); }")
        .unwrap();
    author(&world, &["plugin", "build", "my-words"]).exits(0);
    let component = fs::read(project.join("my-words.wasm")).unwrap();
    assert!(component.windows(10).any(|w| w == b"Of no use."));
    fs::write(project.join("wit/words.wit"), "package my:words; world {").unwrap();
    let wrong = author(&world, &["plugin", "build", "my-words"]).exits(1);
    assert!(wrong.stderr.contains("error[build_failed]") && wrong.stderr.contains("words.wit:1"), "{}", wrong.stderr);

    fs::remove_dir_all(project.join("wit")).unwrap();

    let source = project.join("src/lib.rs");
    let text = fs::read_to_string(&source).unwrap();
    fs::write(&source, text.replace("self.text", "self.txet")).unwrap();
    let refused = author(&world, &["plugin", "build", "my-words"]).exits(1);
    assert!(refused.stderr.contains("error[build_failed]") && refused.stderr.contains("no field `txet`"));
    // A crate that exports nothing is no plugin.
    fs::write(&source, "").unwrap();
    let empty = author(&world, &["plugin", "build", "my-words"]).exits(2);
    assert!(empty.stderr.contains("[no_role]"), "{}", empty.stderr);
}

#[test]
fn a_new_hook_is_built_as_a_tool_is() {
    let world = World::new();
    let new = author(&world, &["plugin", "new", "--lang", "rust", "--kind", "hook", "office-hours"]).exits(0);
    assert!(new.stdout.contains("has a hook to begin with"), "{}", new.stdout);
    let project = world.work().join("office-hours");
    assert!(fs::read_to_string(project.join("src/lib.rs")).unwrap().contains("export_hook!"));
    share_target(&project);

    let built = author(&world, &["plugin", "build", "office-hours"]).exits(0);
    assert!(built.stdout.contains("a hook for contract 0.1.0"), "{}", built.stdout);
    let report = author(&world, &["plugin", "doctor", "office-hours/office-hours.wasm", "--json"]);
    let report = report.exits(0).lines().remove(0);
    assert_eq!((&report["name"], &report["kind"]), (&json!("office-hours"), &json!("hook")));
    assert_eq!((&report["version"], &report["requested"]), (&json!("0.1.0"), &json!({})));

    author(&world, &["plugin", "new", "--lang", "rust", "--kind", "hat", "x", "--json"]).refused(
        2,
        "bad_usage",
        &["hat", "hook"],
    );
    assert!(!world.work().join("x").exists());
}

#[test]
fn a_project_is_made_only_where_there_is_none_under_a_name_that_a_plugin_may_have() {
    let world = World::new();
    let new = |name: &str| author(&world, &["plugin", "new", "--lang", "rust", name]);
    fs::write(world.work().join("taken"), "mine").unwrap();
    for (name, why) in
        [("taken", "already"), ("Shop", "no plugin name"), ("fs", "bundled"), ("../up", "no plugin name")]
    {
        let refused = new(name).exits(2);
        assert!(refused.stderr.contains(why), "{name}: {}", refused.stderr);
    }
    assert_eq!(fs::read_to_string(world.work().join("taken")).unwrap(), "mine");
    let lost = author(&world, &["plugin", "build", "nowhere"]).exits(2);
    assert!(lost.stderr.contains("aok plugin new"), "{}", lost.stderr);
    fs::create_dir(world.work().join("odd")).unwrap();
    for manifest in ["", "[package", "[package]\nname = 5"] {
        fs::write(world.work().join("odd/Cargo.toml"), manifest).unwrap();
        assert!(author(&world, &["plugin", "build", "odd"]).exits(2).stderr.contains("odd/Cargo.toml"));
    }
}
