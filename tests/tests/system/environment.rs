//! A bad environment: a full disk, a store that is another's or damaged, a lock that is held or stale.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use super::support::*;

#[test]
fn a_store_of_a_newer_version_is_left_alone_byte_for_byte() {
    let world = World::new();
    let model = world.answers("fine");
    world.run(&["run", "--task", "x", "--model", &model]).exits(0);
    world.sqlite("INSERT INTO _sqlx_migrations SELECT 9999, 'future', installed_on, 1, checksum, 0 FROM _sqlx_migrations LIMIT 1");
    let files = || {
        let all = fs::read_dir(world.data()).unwrap().map(|e| e.unwrap().path());
        let mut store: Vec<_> = all.filter(|p| p.to_string_lossy().contains("aok.db")).collect();
        store.sort();
        store.into_iter().map(|p| (fs::read(&p).unwrap(), p)).collect::<Vec<_>>()
    };
    let before = files();
    assert_eq!(before.len(), 1, "the store is closed and one file");
    let commands: [&[&str]; 6] = [
        &["run", "--task", "x", "--model", &model],
        &["run", "--resume", "1"],
        &["ps"],
        &["logs", "1"],
        &["tool", "call", "calc__eval"],
        &["audit", "verify"],
    ];
    for command in commands {
        let ran = world.run(&[command, &["--json"]].concat());
        ran.refused(5, "store_too_new", &["aok.db", "9999", "--data"]);
        assert!(files() == before, "{command:?} changed the store");
    }
    world.sqlite("DELETE FROM _sqlx_migrations WHERE version = 9999");
    world.run(&["audit", "verify"]).exits(0);
}

#[test]
fn a_file_that_is_no_store_is_refused_and_kept() {
    let world = World::new();
    fs::write(world.data().join("aok.db"), "my diary, 1987\n".repeat(1000)).unwrap();
    for command in [&["ps"][..], &["tool", "call", "calc__eval"]] {
        let ran = world.run(&[command, &["--json"]].concat());
        ran.refused(5, "store_failed", &["aok.db", "not a store"]);
    }
    assert!(fs::read_to_string(world.data().join("aok.db")).unwrap().starts_with("my diary"));
}

#[test]
fn a_kernel_that_cannot_be_reached_keeps_its_lock_and_is_named() {
    let world = World::new();
    let first = world.waiting();
    fs::remove_file(world.data().join("aok.sock")).unwrap();
    let ran = world.run(&["run", "--task", "x", "--model", &world.answers("no"), "--json"]);
    let data = world.data();
    ran.refused(5, "locked", &[&first.id().to_string(), data.to_str().unwrap(), "--data"]);
    // The one that holds it is not disturbed.
    first.signal("INT");
    first.end().exits(130);
    let all = world.run(&["ps", "--json"]).exits(0).lines();
    assert_eq!((all.len(), &all[0]["state"]), (1, &json!("T")));
}

#[test]
fn what_a_killed_kernel_left_is_taken_over_and_can_be_resumed() {
    let world = World::new();
    let first = world.waiting();
    first.signal("KILL");
    first.end();
    assert!(world.data().join("lock").exists() && world.data().join("aok.sock").exists());
    let ran = world.run(&["run", "--task", "x", "--model", &world.answers("quick")]).exits(0);
    assert_eq!(ran.stdout, "quick\n");
    assert!(ran.stderr.contains("unfinished") && ran.stderr.contains("aok run --resume 1"), "{}", ran.stderr);
    world.slow(0);
    assert_eq!(world.run(&["run", "--resume", "1"]).exits(0).stdout, "It is 42.\n");
    world.run(&["run", "--resume", "1", "--json"]).refused(2, "bad_state", &["has ended", "aok ps"]);
    world.run(&["audit", "verify"]).exits(0);
}

/// A small file system on a world's data directory, gone with it.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` where this user may not mount.
    fn on(world: &World) -> Option<Self> {
        let data = world.data();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=24m,mode=700", "tmpfs"]).arg(&data);
        let mounted = mount.output().is_ok_and(|o| o.status.success());
        mounted.then(|| {
            world.warm();
            Self(data)
        })
    }

    /// Fills it but for `room` bytes.
    fn fill(&self, room: u64) {
        use std::io::Write as _;
        let mut file = fs::File::create(self.filler()).unwrap();
        let mut bytes = 0_u64;
        while let Ok(n) = file.write(&[0; 4096]) {
            bytes += n as u64;
        }
        file.set_len(bytes - room).unwrap();
    }

    fn empty(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a kernel that the test still runs must not keep it.
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[test]
fn a_full_disk_stops_the_run_where_it_is_and_it_finishes_once_there_is_space() {
    const TURNS: usize = 40;
    let world = World::new();
    world.install(PROBE);
    let Some(disk) = SmallDisk::on(&world) else {
        assert!(std::env::var_os("AOK_TEST_ALL").is_none(), "no disk can be filled here: run the tests as root");
        eprintln!("skipped: only root may mount a small file system");
        return;
    };
    let mut script: Vec<Value> = (0..TURNS)
        .map(|i| calls(&format!("c{i}"), "probe__set", &json!({"key": format!("k{i}"), "value": "v".repeat(40_000)})))
        .collect();
    script.push(calls("sum", "calc__eval", &json!({"expression": "6*7"})));
    script.push(json!({"text": "set {{c39}}, {{sum}}"}));
    let model = world.script(&script);
    let run = ["run", "--task", "fill it", "--model", &model, "--json"];

    // The store is there before the disk is full.
    world.run(&["ps"]).exits(0);
    world.run(&["tool", "call", "calc__eval", r#"{"expression":"1"}"#]).exits(0);
    disk.fill(1 << 20);
    let ran = world.run(&run).exits(5);
    let error = ran.error();
    let text = error.to_string();
    assert!(text.contains("aok.db") && text.contains("full") && text.contains("aok run --resume 2"), "{text}");
    assert!(ran.lines().iter().all(|e| e["type"] != "exit"), "it has not ended: {}", ran.stdout);

    // Still full: it can be looked at, and does not get on.
    let all = world.run(&["ps", "--json"]).exits(0).lines();
    assert_eq!((&all[1]["pid"], &all[1]["state"], &all[1]["exit"]), (&json!(2), &json!("T"), &Value::Null));

    disk.empty();
    world.run(&["audit", "verify"]).exits(0);
    let resumed = world.run(&["run", "--resume", "2"]).exits(0);
    assert_eq!(world.sqlite("SELECT count(*) FROM state WHERE scope = 'plugin:probe'")[0][0], TURNS);
    world.run(&["audit", "verify"]).exits(0);

    // The answer is that of a run that nothing disturbed.
    let undisturbed = World::new();
    undisturbed.install(PROBE);
    assert_eq!(undisturbed.run(&run[..5]).exits(0).stdout, resumed.stdout);
}

#[test]
fn a_damaged_store_is_an_error_or_works_and_never_a_crash() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
    let world = World::new();
    let model = world.answers("fine");
    for _ in 0..3 {
        world.run(&["run", "--task", "x", "--model", &model]).exits(0);
    }
    let store = world.data().join("aok.db");
    let honest = fs::read(&store).unwrap();
    for round in 0..6 {
        let mut damaged = honest.clone();
        if round == 0 {
            damaged.truncate(rng.random_range(1..honest.len()));
        } else {
            let at = rng.random_range(0..honest.len() - 600);
            rng.fill(&mut damaged[at..at + 600]);
        }
        fs::write(&store, &damaged).unwrap();
        for command in
            [&["ps"][..], &["audit", "verify"], &["context", "2"], &["run", "--task", "x", "--model", &model]]
        {
            let ran = world.run(&[command, &["--json"]].concat());
            assert!(matches!(ran.code, Some(0 | 1 | 2 | 5)), "round {round}, {command:?}: {ran:?}");
            if ran.code != Some(0) {
                assert!(!ran.error()["hint"].as_str().unwrap().is_empty(), "{ran:?}");
            }
        }
        for name in ["aok.db-wal", "aok.db-shm"] {
            let _ = fs::remove_file(world.data().join(name));
        }
    }
    fs::write(&store, &honest).unwrap();
    world.run(&["audit", "verify"]).exits(0);
}

#[test]
fn damaged_compiled_code_is_compiled_again() {
    let world = World::new();
    let cache = world.data().join("cache");
    // What is in the cache are links to the code of all tests.
    fs::remove_dir_all(&cache).unwrap();
    let sum = ["tool", "call", "calc__eval", r#"{"expression":"6*7"}"#];
    let first = world.run(&sum).exits(0);
    let mut files = 0;
    for entry in fs::read_dir(&cache).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        bytes.truncate(bytes.len() - 1);
        fs::write(&path, bytes).unwrap();
        files += 1;
    }
    assert!(files >= 3, "the cache holds {files} files");
    let again = world.run(&sum).exits(0);
    assert_eq!(again.stdout, first.stdout);
    assert!(again.stderr.contains("damaged"), "nothing was said of it: {}", again.stderr);
    assert_eq!(world.run(&sum).exits(0).stderr, "");
}

#[test]
fn a_data_directory_that_cannot_be_one_is_named() {
    let world = World::new();
    let file = world.dir.path().join("file");
    fs::write(&file, "").unwrap();
    let model = world.answers("no");
    for command in [&["run", "--task", "x", "--model", &model][..], &["ps"], &["tool", "call", "calc__eval"]] {
        let data = ["--data", file.to_str().unwrap(), "--json"];
        let output = Command::new(aok_binary()).args(command).args(data).output().unwrap();
        assert_eq!(output.status.code(), Some(5), "{command:?}: {output:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        let error: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert!(error["error"]["message"].as_str().unwrap().contains(file.to_str().unwrap()), "{error}");
    }
    fs::create_dir(world.data().join("lock")).unwrap();
    let ran = world.run(&["run", "--task", "x", "--model", &model, "--json"]);
    ran.refused(5, "io", &["lock", "--data"]);
}
