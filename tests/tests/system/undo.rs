//! What a process writes to a private copy, shown, applied and thrown away; what others change meanwhile; and what is
//! left when the kernel is killed, in a run and in an `apply`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use super::support::{Ran, World, calls, eventually};

fn write(path: &str, content: &str) -> Value {
    calls("w", "fs__write", &json!({"path": path, "content": content}))
}

fn grant(world: &World) -> String {
    format!("{}:rw", world.work().display())
}

/// A world whose agent has done `replies`, as process 1.
fn after(world: &World, replies: &[Value]) -> Ran {
    let mut script = replies.to_vec();
    script.push(json!({"text": "done"}));
    let model = world.script(&script);
    let ran = world.run(&["run", "--task", "x", "--model", &model, "--dir", &grant(world)]);
    assert!(!ran.stderr.contains('✗'), "a call failed: {}", ran.stderr);
    ran.exits(0)
}

fn diff(world: &World) -> Vec<Value> {
    world.run(&["diff", "1", "--json"]).exits(0).lines()
}

/// Every file and link below a directory, with its content.
fn tree(dir: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(at) = open.pop() {
        for entry in fs::read_dir(at).unwrap() {
            let entry = entry.unwrap();
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            let name = path.strip_prefix(dir).unwrap().display().to_string();
            if kind.is_dir() {
                open.push(path);
            } else if kind.is_symlink() {
                found.insert(name, format!("-> {}", fs::read_link(path).unwrap().display()));
            } else {
                found.insert(name, String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned());
            }
        }
    }
    found
}

fn applied(world: &World) -> Vec<(String, String)> {
    let all = world.run(&["audit", "tail", "0", "-n", "1000", "--json"]).exits(0).lines();
    assert_eq!(world.run(&["audit", "verify", "--json"]).exits(0).lines()[0]["ok"], true);
    let of = |r: &Value, name: &str| r[name].as_str().unwrap().to_owned();
    let ours = all.iter().filter(|r| r["event"] == "apply" || r["event"] == "discard");
    ours.map(|r| (of(r, "event"), of(r, "decision"))).collect()
}

fn pair(event: &str, decision: &str) -> (String, String) {
    (event.to_owned(), decision.to_owned())
}

#[test]
fn a_run_changes_nothing_outside_until_it_is_applied() {
    let world = World::new();
    fs::write(world.work().join("a.txt"), "one\ntwo\n").unwrap();
    let before = tree(&world.work());
    let read = calls("r", "fs__read", &json!({"path": "work/a.txt"}));
    let told = after(
        &world,
        &[
            write("work/a.txt", "one\n2\n"),
            json!({"tool_calls": read["tool_calls"], "expect": "work/a.txt"}),
            json!({"tool_calls": write("work/new/b.txt", "b")["tool_calls"], "expect": "one\\n2\\n"}),
        ],
    );
    assert_eq!(tree(&world.work()), before);
    for command in ["aok diff 1", "aok apply 1", "aok discard 1", "3 files"] {
        assert!(told.stderr.contains(command), "{}", told.stderr);
    }
    let shown = world.run(&["diff", "1"]).exits(0).stdout;
    assert!(shown.contains("modified work/a.txt\n") && shown.contains("-two\n+2\n"), "{shown}");
    assert!(shown.contains("added directory work/new\n"), "{shown}");
    let stat = world.run(&["diff", "1", "--stat"]).exits(0).stdout;
    assert!(stat.contains("2 added, 1 modified, 0 deleted\n"), "{stat}");
    let [a, new, b] = &diff(&world)[..] else { panic!("three changes") };
    assert_eq!((&a["path"], &a["change"], &a["bytes"]), (&json!("work/a.txt"), &json!("modified"), &json!(6)));
    assert_eq!((&a["base"]["bytes"], &a["conflict"], a.get("text")), (&json!(8), &Value::Null, None));
    assert_eq!((&new["kind"], &b["base"], &b["kind"]), (&json!("directory"), &Value::Null, &json!("file")));

    let done = world.run(&["apply", "1"]).exits(0).stdout;
    assert_eq!(done, "modified work/a.txt\nadded directory work/new\nadded work/new/b.txt\n");
    let expected = BTreeMap::from([("a.txt".into(), "one\n2\n".into()), ("new/b.txt".into(), "b".into())]);
    assert_eq!(tree(&world.work()), expected);
    assert_eq!(diff(&world), Vec::<Value>::new());
    assert!(world.run(&["apply", "1"]).exits(0).stderr.contains("nothing"));
    assert_eq!(applied(&world), [pair("apply", "allow")]);
    assert!(!world.data().join("private/1").exists());
}

#[test]
fn what_others_change_meanwhile_is_a_conflict_and_is_not_overwritten() {
    let world = World::new();
    for name in ["a", "b", "c", "d"] {
        fs::write(world.work().join(name), "old").unwrap();
    }
    after(&world, &["a", "b", "c", "d", "new"].map(|name| write(&format!("work/{name}"), "the agent's")));
    fs::write(world.work().join("a"), "a person's").unwrap();
    fs::remove_file(world.work().join("b")).unwrap();
    // The same change is none that is lost.
    fs::write(world.work().join("c"), "the agent's").unwrap();
    fs::write(world.work().join("new"), "a person's").unwrap();
    let before = tree(&world.work());
    let all = diff(&world);
    let of = |name: &str| all.iter().find(|c| c["path"] == format!("work/{name}")).cloned();
    assert!(of("a").unwrap()["conflict"].as_str().unwrap().contains("changed outside"), "{all:?}");
    assert!(of("b").unwrap()["conflict"].as_str().unwrap().contains("removed outside"), "{all:?}");
    assert!(of("new").unwrap()["conflict"].as_str().unwrap().contains("made there outside"), "{all:?}");
    assert!(of("c").is_none() && of("d").unwrap()["conflict"].is_null(), "{all:?}");

    let refused = world.run(&["apply", "1", "--json"]);
    assert_eq!(refused.lines().len(), 3);
    refused.refused(1, "conflict", &["work/a", "work/b", "work/new", "aok discard 1", "aok apply 1 FILE"]);
    let listed = world.run(&["apply", "1"]).exits(1).stdout;
    assert!(listed.contains("conflict: modified work/a: it was changed outside\n"), "{listed}");
    assert_eq!(tree(&world.work()), before);
    world.run(&["apply", "1", "work/a", "work/d", "--json"]).refused(1, "conflict", &["work/a"]);
    assert_eq!(tree(&world.work()), before);
    // What has no conflict can be had by name, also by its path on the host.
    let path = world.work().canonicalize().unwrap().join("d");
    assert_eq!(world.run(&["apply", "1", path.to_str().unwrap()]).exits(0).stdout, "modified work/d\n");
    assert_eq!(fs::read_to_string(world.work().join("d")).unwrap(), "the agent's");
    assert_eq!(diff(&world).len(), 3);
    let discarded = world.run(&["discard", "1"]).exits(0).stdout;
    assert!(discarded.lines().count() == 4 && !discarded.contains("conflict"), "{discarded}");
    assert_eq!(diff(&world), Vec::<Value>::new());
    assert_eq!(fs::read_to_string(world.work().join("a")).unwrap(), "a person's");
    let deny = pair("apply", "deny");
    assert_eq!(applied(&world), [deny.clone(), deny.clone(), deny, pair("apply", "allow"), pair("discard", "allow")]);
}

#[test]
fn half_of_the_files_gone_is_told_file_by_file() {
    let world = World::new();
    let names: Vec<String> = (0..10).map(|n| format!("f{n}")).collect();
    names.iter().for_each(|name| fs::write(world.work().join(name), "old").unwrap());
    after(&world, &names.iter().map(|name| write(&format!("work/{name}"), "new")).collect::<Vec<_>>());
    names[..5].iter().for_each(|name| fs::remove_file(world.work().join(name)).unwrap());
    let refused = world.run(&["apply", "1", "--json"]);
    assert_eq!(refused.lines().len(), 5);
    refused.refused(1, "conflict", &["5 of what process 1 changed", "removed outside"]);
    let rest: Vec<String> = names[5..].iter().map(|name| format!("work/{name}")).collect();
    let args: Vec<&str> = ["apply", "1"].into_iter().chain(rest.iter().map(String::as_str)).collect();
    assert_eq!(world.run(&args).exits(0).stdout.lines().count(), 5);
    assert_eq!(tree(&world.work()).into_values().collect::<Vec<_>>(), vec!["new"; 5]);
    // The directory itself gone: nothing can be applied, and everything thrown away.
    fs::remove_dir_all(world.work()).unwrap();
    world.run(&["apply", "1", "--json"]).refused(5, "io", &["No such file"]);
    world.run(&["discard", "1"]).exits(0);
    assert!(!world.data().join("private/1").exists());
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let world = World::new();
    fs::write(world.work().join("same"), "same").unwrap();
    after(&world, &[write("work/a", "a"), write("work/same", "same")]);
    for command in ["diff", "apply", "discard"] {
        world.run(&[command, "77", "--json"]).refused(2, "unknown_process", &["77", "aok ps"]);
        world.run(&[command, "x"]).exits(2);
    }
    // Never changed, though it was written; not there at all; outside.
    for file in ["work/same", "work/nothing", "elsewhere/a", "/etc/passwd", "work/b/../a", ""] {
        world.run(&["apply", "1", file, "--json"]).refused(2, "invalid_arguments", &["did not change", "aok diff 1"]);
    }
    assert_eq!(tree(&world.work()), BTreeMap::from([("same".into(), "same".into())]));
    assert_eq!(diff(&world).len(), 1);
}

#[test]
fn a_process_that_runs_is_shown_and_not_touched() {
    let world = World::new();
    let mut script = vec![write("work/a", "a")];
    script.push(json!({"text": "done", "delay_ms": 600_000}));
    let model = world.script(&script);
    let mut run = world.start(&["run", "--task", "x", "--model", &model, "--dir", &grant(&world), "--json"]);
    run.event("tool_end");
    // Through the running kernel.
    assert_eq!(diff(&world)[0]["path"], "work/a");
    for command in ["apply", "discard"] {
        world.run(&[command, "1", "--json"]).refused(2, "bad_state", &["is running", "Ctrl-C"]);
    }
    // Another process of the same kernel is at rest.
    let call =
        ["tool", "call", "fs__write", "{\"path\":\"work/b\",\"content\":\"b\"}", "--dir", &grant(&world), "--json"];
    let ran = world.run(&call).exits(0);
    assert!(ran.stderr.contains("aok apply 2"), "{}", ran.stderr);
    assert_eq!(world.run(&["apply", "2"]).exits(0).stdout, "added work/b\n");
    assert_eq!(tree(&world.work()), BTreeMap::from([("b".into(), "b".into())]));
    run.signal("INT");
    run.end().exits(130);
    // Stopped, it can be resumed; what it wrote can be applied before that or after.
    assert_eq!(world.run(&["apply", "1"]).exits(0).stdout, "added work/a\n");
    assert_eq!(tree(&world.work()).len(), 2);
}

#[test]
fn direct_writes_through() {
    let world = World::new();
    let model = world.script(&[write("work/a", "a"), json!({"text": "done"})]);
    let ran = world.run(&["run", "--task", "x", "--model", &model, "--dir", &grant(&world), "--direct"]).exits(0);
    assert!(!ran.stderr.contains("private"), "{}", ran.stderr);
    let call =
        ["tool", "call", "fs__append", "{\"path\":\"work/a\",\"content\":\"b\"}", "--dir", &grant(&world), "--direct"];
    assert!(!world.run(&call).exits(0).stderr.contains("private"));
    assert_eq!(fs::read_to_string(world.work().join("a")).unwrap(), "ab");
    assert_eq!(diff(&world), Vec::<Value>::new());
    assert!(world.run(&["discard", "1"]).exits(0).stderr.contains("no private copies"));
    assert!(!world.data().join("private").exists());
    world.run(&["run", "--task", "x", "--direct"]).exits(2);
}

#[test]
fn an_agent_is_told_that_its_changes_are_private() {
    let world = World::new();
    let model = world.script(&[json!({"text": "done"})]);
    for (more, told) in [(&[][..], true), (&["--direct"], false)] {
        let args = ["run", "--task", "x", "--model", &model, "--dir", &grant(&world)];
        world.run(&[&args[..], more].concat()).exits(0);
        let pages = world.sqlite("select text from page where kind = 'system' order by pid desc limit 1");
        assert_eq!(pages[0][0].as_str().unwrap().contains("private copy"), told, "{pages:?}");
    }
}

#[test]
fn links_lead_nowhere_neither_for_the_agent_nor_for_apply() {
    let world = World::new();
    let outside = world.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("f"), "secret").unwrap();
    fs::create_dir(world.work().join("d")).unwrap();
    fs::write(world.work().join("d/f"), "old").unwrap();
    symlink("d/f", world.work().join("good")).unwrap();
    symlink(&outside, world.work().join("absolute")).unwrap();
    symlink("../outside", world.work().join("relative")).unwrap();
    let call = |path: &str| {
        let arguments = json!({"path": path, "content": "x"}).to_string();
        world.run(&["tool", "call", "fs__write", &arguments, "--dir", &grant(&world), "--json"])
    };
    for path in ["work/absolute/f", "work/relative/f", "work/../outside/f", "work/d/../../outside/f", "/etc/x"] {
        assert_eq!(call(path).exits(3).error()["code"], "denied", "{path}");
    }
    // A link within is followed, to the file that it means.
    after_pid(&world, call("work/good").exits(0), "work/d/f");
    // Its directory is swapped for a link before it is applied: nothing is written where that leads.
    after_pid(&world, call("work/d/f").exits(0), "work/d/f");
    let pid = world.run(&["ps", "--json"]).exits(0).lines().last().unwrap()["pid"].to_string();
    fs::remove_dir_all(world.work().join("d")).unwrap();
    symlink(&outside, world.work().join("d")).unwrap();
    world.run(&["apply", &pid, "--json"]).refused(1, "conflict", &["work/d/f", "removed outside"]);
    assert_eq!(tree(&outside), BTreeMap::from([("f".into(), "secret".into())]));
}

/// The last process changed this one file.
#[track_caller]
fn after_pid(world: &World, ran: Ran, path: &str) {
    let report = &ran.lines()[0];
    let changes = world.run(&["diff", &report["pid"].to_string(), "--json"]).exits(0).lines();
    let paths: Vec<&Value> = changes.iter().map(|c| &c["path"]).collect();
    assert_eq!(paths, [path]);
}

#[test]
fn names_do_not_steer_and_modes_are_kept() {
    let world = World::new();
    let script = world.work().join("run.sh");
    fs::write(&script, "old").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o750)).unwrap();
    after(&world, &[write("work/run.sh", "new"), write("work/a\u{1b}[2J\nadded work/b", "x")]);
    let shown = world.run(&["diff", "1"]).exits(0).stdout;
    assert!(shown.contains("added work/a\\u{1b}[2J\\nadded work/b\n") && !shown.contains('\u{1b}'), "{shown}");
    world.run(&["apply", "1"]).exits(0);
    assert_eq!(fs::read_to_string(&script).unwrap(), "new");
    assert_eq!(fs::metadata(&script).unwrap().permissions().mode() & 0o777, 0o750);
    assert!(world.work().join("a\u{1b}[2J\nadded work/b").exists());
}

#[test]
fn what_an_earlier_store_left_under_a_pid_is_not_another_processs() {
    let world = World::new();
    after(&world, &[write("work/a", "a")]);
    assert_eq!(diff(&world).len(), 1);
    for entry in fs::read_dir(world.data()).unwrap().map(|e| e.unwrap().path()) {
        if entry.file_name().unwrap().to_str().unwrap().starts_with("aok.db") {
            fs::remove_file(entry).unwrap();
        }
    }
    after(&world, &[write("work/b", "b")]);
    let [only] = &diff(&world)[..] else { panic!("one change") };
    assert_eq!(only["path"], "work/b");
    assert!(world.data().join("private/1.old-1").exists());
}

#[test]
fn a_killed_kernel_leaves_every_change_and_no_original_touched() {
    const FILES: usize = 40;
    let world = World::new();
    let names: Vec<String> = (0..FILES).map(|n| format!("f{n:02}")).collect();
    names.iter().for_each(|name| fs::write(world.work().join(name), format!("old {name}")).unwrap());
    let before = tree(&world.work());
    let mut script: Vec<Value> = names.iter().map(|name| write(&format!("work/{name}"), "new")).collect();
    script.push(json!({"text": "done"}));
    let model = world.script(&script);
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
    let mut args = vec!["run", "--task", "x", "--model", &model, "--json", "--dir"];
    let work = grant(&world);
    args.push(&work);
    for kill in 0..6 {
        let mut run = world.start(&args);
        if kill == 0 {
            run.event("tool_end");
        }
        std::thread::sleep(Duration::from_millis(rng.random_range(0..120)));
        run.signal("KILL");
        run.end();
        args = vec!["run", "--resume", "1", "--json"];
        // Without a kernel: what is there is whole.
        let changes = diff(&world);
        assert!(!changes.is_empty() && changes.iter().all(|c| c["conflict"].is_null()), "{changes:?}");
        let part = |c: &Value| c["path"].as_str().unwrap().contains(".partial");
        assert!(changes.iter().all(|c| c["change"] == "modified" || part(c)), "{changes:?}");
        assert_eq!(tree(&world.work()), before);
    }
    let ended = world.run(&["run", "--resume", "1", "--json"]);
    assert!(ended.code == Some(0) || ended.stderr.contains("has ended"), "{ended:?}");
    assert_eq!(diff(&world).len(), FILES);
    assert_eq!(tree(&world.work()), before);
    world.run(&["apply", "1"]).exits(0);
    assert!(tree(&world.work()).values().all(|content| content == "new"));
}

#[test]
fn an_apply_that_is_killed_goes_on_where_it_stopped() {
    const FILES: usize = 300;
    let world = World::new();
    let names: Vec<String> = (0..FILES).map(|n| format!("d{}/f{n:03}", n % 7)).collect();
    for name in &names {
        fs::create_dir_all(world.work().join(name).parent().unwrap()).unwrap();
        fs::write(world.work().join(name), "old").unwrap();
    }
    let all: Vec<Value> = names
        .iter()
        .map(|name| write(&format!("work/{name}"), "new")["tool_calls"][0].clone())
        .enumerate()
        .map(|(n, mut call)| {
            call["id"] = format!("w{n}").into();
            call
        })
        .collect();
    let turns: Vec<Value> = all.chunks(50).map(|turn| json!({"tool_calls": turn})).collect();
    after(&world, &turns);
    assert_eq!(diff(&world).len(), FILES);
    let mut halves = 0;
    for n in [10, 60, 120, 200, 280] {
        let mut child = world.aok(&["apply", "1"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // The files are applied in the order of their names.
        let mut ordered = names.clone();
        ordered.sort();
        eventually("that file to be applied", || {
            (fs::read_to_string(world.work().join(&ordered[n])).unwrap() == "new").then_some(())
        });
        let _ = child.kill();
        child.wait().unwrap();
        let now = tree(&world.work());
        let new = now.values().filter(|content| *content == "new").count();
        halves += usize::from(new > 0 && new < FILES);
        // Each original is what it was, or what it is to be; a half-made copy has another name.
        for name in &names {
            assert!(["old", "new"].contains(&now[name].as_str()), "{name}: {}", now[name]);
        }
        assert_eq!(diff(&world).iter().filter(|c| !c["conflict"].is_null()).count(), 0);
    }
    assert!(halves > 1, "{halves} of 5 kills came in the middle");
    world.run(&["apply", "1"]).exits(0);
    let end = tree(&world.work());
    assert!(end.len() == FILES && end.values().all(|content| content == "new"), "{end:?}");
    assert_eq!(diff(&world), Vec::<Value>::new());
}

#[test]
fn an_mcp_client_writes_to_a_private_copy_too() {
    let world = World::new();
    let mut mcp = world.aok(&["mcp", "--dir", &grant(&world)]);
    let mut child = mcp.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let hello =
        json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}});
    let call = json!({"name": "fs__write", "arguments": {"path": "work/a", "content": "a"}});
    let messages = [
        json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}),
        json!({"jsonrpc": "2.0", "method": "notifications/initialized"}),
        json!({"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": call}),
    ];
    use std::io::Write as _;
    let input = child.stdin.as_mut().unwrap();
    messages.iter().for_each(|message| writeln!(input, "{message}").unwrap());
    eventually("the file in the copy", || world.data().join("private/1/0/upper/a").exists().then_some(()));
    eventually("the end of its call", || {
        let calls = world.run(&["audit", "tail", "1", "--json"]).exits(0).lines();
        calls.iter().any(|r| r["event"] == "call").then_some(())
    });
    drop(child.stdin.take());
    let ran = Ran::of(child.wait_with_output().unwrap()).exits(0);
    assert!(ran.stderr.contains("aok apply 1"), "{}", ran.stderr);
    assert!(tree(&world.work()).is_empty());
    world.run(&["apply", "1"]).exits(0);
    assert_eq!(tree(&world.work()).len(), 1);
}
