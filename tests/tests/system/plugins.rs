//! Plugin directories while a kernel runs: put in, replaced, removed, broken, and never half loaded.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use agent_os_kernel::abi::Effect;
use agent_os_kernel::capability::Rights;
use agent_os_kernel::config::Config;
use agent_os_kernel::kernel::info::PluginInfo;
use agent_os_kernel::kernel::{Error, Kernel};
use agent_os_kernel::quota::Limits;
use serde_json::{Value, json};
use system_tests::herald::{put, version};

use super::support::{HERALD, PATIENCE, PROBE, World};

/// A kernel that follows a world's plugin directory.
struct Lab {
    world: World,
    kernel: Kernel,
    herald: Vec<u8>,
}

impl Lab {
    async fn new() -> Self {
        Self::with(Config::default()).await
    }

    async fn with(config: Config) -> Self {
        let world = World::new();
        let builder = Kernel::builder(world.data()).plugin_dir(world.plugins()).config(config);
        let kernel = builder.start().await.expect("a kernel starts");
        Self { world, kernel, herald: fs::read(HERALD).expect("the guest is built") }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.world.plugins().join(file)
    }

    /// Puts version `n` of the herald there.
    fn put(&self, n: u16) {
        put(&self.path("herald.wasm"), &version(&self.herald, n)).expect("the plugin is written");
    }

    fn plugin(&self, name: &str) -> Option<PluginInfo> {
        self.kernel.plugins().into_iter().find(|p| p.name == name)
    }

    /// The plugin, once it is so.
    async fn becomes(&self, name: &str, is: impl Fn(&PluginInfo) -> bool) -> PluginInfo {
        self.until(&format!("`{name}`"), || self.plugin(name).filter(|p| is(p))).await
    }

    /// The diagnosis of a plugin that is refused.
    async fn refused(&self, name: &str) -> (String, String) {
        let plugin = self.becomes(name, |p| p.state == "refused").await;
        let diagnosis = plugin.diagnosis.expect("a refused plugin has a diagnosis");
        assert!(!diagnosis.hint.is_empty(), "{diagnosis:?}");
        (diagnosis.code, diagnosis.message)
    }

    async fn until<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let seek = async {
            loop {
                if let Some(found) = look() {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        match tokio::time::timeout(PATIENCE, seek).await {
            Ok(found) => found,
            Err(_) => panic!("waited in vain for {what}; there are: {:#?}", self.kernel.plugins()),
        }
    }

    async fn tell(&self) -> Result<String, String> {
        call(&self.kernel, "herald__tell", &json!({})).await
    }

    async fn tells(&self, n: u16) {
        let wanted = format!("\"{n:04}\"");
        while self.tell().await.as_ref() != Ok(&wanted) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn call(kernel: &Kernel, tool: &str, arguments: &Value) -> Result<String, String> {
    match kernel.call_tool(tool, &arguments.to_string(), Rights::default()).await {
        Ok(report) => report.outcome.map_err(|e| e.message),
        Err(e) => Err(e.to_string()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_is_put_in_replaced_and_removed_while_the_kernel_runs() {
    let lab = Lab::new().await;
    assert!(lab.tell().await.unwrap_err().contains("there is no tool"));
    let mut changes = 0;
    lab.put(1);
    let first = lab.becomes("herald", |p| p.state == "loaded").await;
    assert_eq!((first.kind.as_slice(), first.tools.len()), (&["tool".to_owned()][..], 2));
    assert_eq!(lab.tell().await.unwrap(), "\"0001\"");
    changes += 1;
    lab.put(2);
    lab.tells(2).await;
    let second = lab.plugin("herald").unwrap();
    assert_ne!(first.digest, second.digest);
    assert!(second.calls > first.calls, "the count goes on over a change of the file");
    changes += 1;
    fs::remove_file(lab.path("herald.wasm")).unwrap();
    lab.until("the plugin to go", || lab.plugin("herald").is_none().then_some(())).await;
    assert!(lab.tell().await.unwrap_err().contains("there is no tool"));
    lab.kernel.shutdown().await;
    let events = lab.world.run(&["audit", "tail", "-n", "1000", "--json"]).exits(0).lines();
    let of = |event: &str| events.iter().filter(|e| e["event"] == event).count();
    assert_eq!((of("plugin-load"), of("plugin-unload")), (changes, 1), "{events:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_under_way_ends_on_the_image_that_it_began_on() {
    let limits = Limits { fuel: u64::MAX / 2, wall_ms: 3_600_000, ..Limits::TOOL };
    let lab = Lab::with(Config { limits, ..Config::default() }).await;
    lab.put(1);
    lab.becomes("herald", |p| p.state == "loaded").await;
    // The call must last longer than the change, however fast or busy the machine is.
    let mut turns: u64 = 100_000_000;
    for n in 1..100 {
        let (kernel, calls) = (lab.kernel.clone(), lab.plugin("herald").unwrap().calls);
        let slow = tokio::spawn(async move { call(&kernel, "herald__slow", &json!({ "turns": turns })).await });
        lab.becomes("herald", |p| p.calls > calls).await;
        lab.put(n + 1);
        lab.tells(n + 1).await;
        let outlasted = !slow.is_finished();
        assert_eq!(slow.await.unwrap().unwrap(), format!("\"{n:04}\""));
        if outlasted {
            return lab.kernel.shutdown().await;
        }
        turns *= 3;
    }
    panic!("no call lasted longer than a change");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_file_is_replaced_no_call_fails_and_each_is_answered_by_a_whole_image() {
    const CHANGES: u16 = 12;
    let lab = Lab::new().await;
    fs::copy(PROBE, lab.path("probe.wasm")).unwrap();
    lab.put(0);
    lab.becomes("herald", |p| p.state == "loaded").await;
    lab.becomes("probe", |p| p.state == "loaded").await;
    let stop = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = [("herald__tell", json!({})), ("probe__echo", json!({ "a": 1 }))]
        .into_iter()
        .map(|(tool, arguments)| {
            let (kernel, stop) = (lab.kernel.clone(), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut answers = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    answers.push(call(&kernel, tool, &arguments).await.unwrap_or_else(|e| panic!("{tool}: {e}")));
                }
                answers
            })
        })
        .collect();
    for n in 1..=CHANGES {
        let bytes = version(&lab.herald, n);
        if n % 2 == 0 {
            // As `cp` does: in place, so that the file is not whole for a while.
            let (head, tail) = bytes.split_at(bytes.len() / 2);
            fs::write(lab.path("herald.wasm"), head).unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            let mut file = fs::OpenOptions::new().append(true).open(lab.path("herald.wasm")).unwrap();
            std::io::Write::write_all(&mut file, tail).unwrap();
        } else {
            lab.put(n);
        }
        lab.tells(n).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut answers = Vec::new();
    for caller in callers {
        answers.push(caller.await.unwrap());
    }
    assert!(answers[0].is_sorted(), "an older version answered after a newer one: {:?}", answers[0]);
    let seen: BTreeSet<_> = answers[0].iter().collect();
    assert!(seen.len() > usize::from(CHANGES) / 2, "the calls saw few of the changes: {seen:?}");
    assert!(answers[1].iter().all(|a| a == "{\"a\":1}"));
    lab.kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_file_takes_no_place_and_disturbs_nobody() {
    let lab = Lab::new().await;
    lab.put(1);
    let good = lab.becomes("herald", |p| p.state == "loaded").await;
    let whole = version(&lab.herald, 2);
    fs::write(lab.path("herald.wasm"), &whole[..whole.len() / 2]).unwrap();
    let (code, message) = lab.refused("herald").await;
    assert_eq!(code, "truncated", "{message}");
    let kept = lab.plugin("herald").unwrap();
    assert_eq!((kept.digest, kept.tools), (good.digest, good.tools), "it goes on serving what it served");
    assert_eq!(lab.tell().await.unwrap(), "\"0001\"");
    lab.put(3);
    lab.tells(3).await;
    assert!(lab.plugin("herald").unwrap().diagnosis.is_none());
    lab.kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_bad_file_gets_its_diagnosis_while_the_others_serve() {
    let lab = Lab::new().await;
    let herald = lab.herald.clone();
    lab.put(1);
    fs::write(lab.path("text.wasm"), "hello").unwrap();
    fs::write(lab.path("empty.wasm"), "").unwrap();
    fs::write(lab.path("core.wasm"), b"\0asm\x01\0\0\0").unwrap();
    fs::write(lab.path("cut.wasm"), &herald[..herald.len() - 7]).unwrap();
    fs::write(lab.path("Loud.wasm"), &herald).unwrap();
    fs::write(lab.path("fs.wasm"), &herald).unwrap();
    fs::write(lab.path("lost.toml"), "version = \"1\"").unwrap();
    fs::write(lab.path("script.py"), "class Tool: pass").unwrap();
    symlink(HERALD, lab.path("link.wasm")).unwrap();
    fs::create_dir(lab.path("folder.wasm")).unwrap();
    for (name, manifest) in [
        ("typo", "verion = \"1\""),
        ("greedy", "[limits]\nmemory = \"64GiB\""),
        ("zero", "[limits]\nfuel = 0"),
        ("ghost", "[tools.nothing]\neffect = \"pure\""),
        ("other", "name = \"another\""),
    ] {
        fs::write(lab.path(&format!("{name}.wasm")), &herald).unwrap();
        fs::write(lab.path(&format!("{name}.toml")), manifest).unwrap();
    }
    for (name, code, word) in [
        ("text", "not_wasm", "WebAssembly"),
        ("empty", "empty_file", "empty"),
        ("core", "core_module", "core"),
        ("cut", "truncated", "too early"),
        ("Loud", "invalid_name", "`Loud`"),
        ("lost", "no_component", "lost.wasm"),
        ("script", "no_interpreter", "script.py"),
        ("link", "symlink", "symbolic link"),
        ("folder", "unreadable", "not a file"),
        ("typo", "invalid_manifest", "verion"),
        ("greedy", "limit_too_high", "memory"),
        ("zero", "invalid_manifest", "zero"),
        ("ghost", "unknown_tool", "`nothing`"),
        ("other", "invalid_manifest", "`another`"),
    ] {
        let (got, message) = lab.refused(name).await;
        assert_eq!(got, code, "{name}: {message}");
        assert!(message.contains(word), "{name}: {message}");
    }
    let taken = |p: &PluginInfo| p.name == "fs" && p.diagnosis.as_ref().is_some_and(|d| d.code == "name_taken");
    assert!(lab.kernel.plugins().iter().any(taken));
    lab.tells(1).await;
    lab.kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_sets_limits_effect_and_description_and_is_followed_too() {
    let lab = Lab::new().await;
    lab.put(1);
    let manifest = "version = \"1.2\"\n[limits]\nfuel = 1_000_000\n[permissions]\nread = [\"/srv\"]\n\
        [tools.tell]\neffect = \"idempotent\"\ndescription = \"Says a number.\"";
    put(&lab.path("herald.toml"), manifest.as_bytes()).unwrap();
    let plugin = lab.becomes("herald", |p| p.version.as_deref() == Some("1.2")).await;
    assert_eq!(serde_json::to_value(&plugin.requested).unwrap(), json!({ "read": ["/srv"] }));
    let tool = lab.kernel.tool("herald__tell").unwrap();
    assert_eq!((tool.effect, tool.description.as_str()), (Effect::Idempotent, "Says a number."));
    let error = call(&lab.kernel, "herald__slow", &json!({ "turns": 100_000_000 })).await.unwrap_err();
    assert!(error.contains("1000000 fuel"), "{error}");
    fs::remove_file(lab.path("herald.toml")).unwrap();
    lab.becomes("herald", |p| p.version.is_none()).await;
    assert_eq!(lab.kernel.tool("herald__tell").unwrap().effect, Effect::Pure);
    lab.kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_plugins_with_one_name_the_second_waits_for_the_first_to_go() {
    let world = World::new();
    let second = world.dir.path().join("second");
    fs::create_dir(&second).unwrap();
    let herald = fs::read(HERALD).unwrap();
    put(&world.plugins().join("herald.wasm"), &version(&herald, 1)).unwrap();
    put(&second.join("herald.wasm"), &version(&herald, 2)).unwrap();
    let builder = Kernel::builder(world.data()).plugin_dir(world.plugins()).plugin_dir(&second);
    let lab = Lab { kernel: builder.start().await.unwrap(), herald, world };
    lab.tells(1).await;
    let refused = |p: &PluginInfo| p.name == "herald" && p.state == "refused";
    let loser = lab.kernel.plugins().into_iter().find(refused).expect("the second is refused");
    assert!(loser.diagnosis.unwrap().message.contains(&lab.world.plugins().display().to_string()));
    // The full names of another plugin's tools are in the way too, until they are gone.
    put(&lab.path("a-b.wasm"), &lab.herald).unwrap();
    lab.becomes("a-b", |p| p.state == "loaded").await;
    put(&lab.path("a_b.wasm"), &lab.herald).unwrap();
    assert_eq!(lab.refused("a_b").await.0, "tool_name_taken");
    fs::remove_file(lab.path("a-b.wasm")).unwrap();
    lab.becomes("a_b", |p| p.state == "loaded").await;
    fs::remove_file(lab.path("herald.wasm")).unwrap();
    lab.tells(2).await;
    lab.kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_replaced_without_end_is_caught_up_with() {
    let lab = Lab::new().await;
    lab.put(0);
    lab.becomes("herald", |p| p.state == "loaded").await;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (stop, path, herald) = (Arc::clone(&stop), lab.path("herald.wasm"), lab.herald.clone());
        std::thread::spawn(move || {
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) && n < 9_999 {
                n += 1;
                put(&path, &version(&herald, n)).unwrap();
                std::thread::sleep(Duration::from_millis(10));
            }
            n
        })
    };
    lab.until("a version of the many", || lab.plugin("herald").filter(|p| p.digest.is_some() && p.calls < 1)).await;
    let mut last = "\"0000\"".to_owned();
    let mut versions = 0;
    while versions < 2 {
        let now = lab.tell().await.expect("no call fails");
        assert!(now >= last, "{now} after {last}");
        versions += usize::from(now != last);
        last = now;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.store(true, Ordering::Relaxed);
    let n = writer.join().unwrap();
    lab.tells(n).await;
    lab.kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_files_are_told_apart_and_the_one_plugin_serves() {
    let world = World::new();
    for n in 0..5_000 {
        fs::write(world.plugins().join(format!("note{n}.txt")), "x").unwrap();
        fs::write(world.plugins().join(format!("junk{n}.wasm")), "x").unwrap();
    }
    fs::copy(PROBE, world.plugins().join("probe.wasm")).unwrap();
    let kernel = Kernel::builder(world.data()).plugin_dir(world.plugins()).start().await.unwrap();
    assert_eq!(call(&kernel, "probe__echo", &json!({})).await.unwrap(), "{}");
    let refused = kernel.plugins().iter().filter(|p| p.state == "refused").count();
    assert_eq!(refused, 5_000);
    kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_may_come_later_go_and_be_unreadable() {
    let world = World::new();
    let late = world.dir.path().join("late");
    let kernel = Kernel::builder(world.data()).plugin_dir(&late).start().await.unwrap();
    let lab = Lab { kernel, herald: fs::read(HERALD).unwrap(), world };
    let path = late.join("herald.wasm");
    for n in 1..=2 {
        fs::create_dir(&late).unwrap();
        put(&path, &version(&lab.herald, n)).unwrap();
        lab.tells(n).await;
        fs::remove_dir_all(&late).unwrap();
        lab.until("the plugin to go", || lab.plugin("herald").is_none().then_some(())).await;
    }
    fs::write(&late, "no directory").unwrap();
    assert_eq!(lab.refused("late").await.0, "unreadable_directory");
    assert_eq!(call(&lab.kernel, "calc__eval", &json!({ "expression": "1+1" })).await.unwrap(), "{\"value\":2}");
    fs::remove_file(&late).unwrap();
    if nix_user_is_not_root() {
        fs::create_dir(&late).unwrap();
        fs::set_permissions(&late, fs::Permissions::from_mode(0o0)).unwrap();
        assert_eq!(lab.refused("late").await.0, "unreadable_directory");
    }
    lab.kernel.shutdown().await;
}

/// Root reads every directory, whatever its mode.
fn nix_user_is_not_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() != 0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_is_registered_by_a_call() {
    let lab = Lab::new().await;
    let elsewhere = lab.world.work().join("herald.wasm");
    let register = async |path: &Path| lab.kernel.register_plugin(path).await;
    put(&elsewhere, &version(&lab.herald, 1)).unwrap();
    let plugin = register(&elsewhere).await.unwrap();
    assert_eq!((plugin.state.as_str(), plugin.tools.len()), ("loaded", 2));
    assert_eq!(lab.tell().await.unwrap(), "\"0001\"");
    put(&elsewhere, &version(&lab.herald, 2)).unwrap();
    assert_eq!(lab.tell().await.unwrap(), "\"0001\"", "the file is not watched");
    register(&elsewhere).await.unwrap();
    assert_eq!(lab.tell().await.unwrap(), "\"0002\"");
    put(&elsewhere, b"broken").unwrap();
    let error = register(&elsewhere).await.unwrap_err();
    assert!(matches!(&error, Error::Plugin { fault, .. } if fault.code == "not_wasm"), "{error}");
    assert_eq!(lab.tell().await.unwrap(), "\"0002\"");
    // What a directory holds under the same name is refused while it is there, and the other way round.
    fs::copy(PROBE, lab.path("probe.wasm")).unwrap();
    lab.becomes("probe", |p| p.state == "loaded").await;
    let other = lab.world.work().join("probe.wasm");
    fs::copy(PROBE, &other).unwrap();
    let error = register(&other).await.unwrap_err();
    assert!(matches!(&error, Error::Plugin { fault, .. } if fault.code == "name_taken"), "{error}");
    let error = register(&lab.world.work().join("my_plugin.py")).await.unwrap_err();
    assert!(matches!(&error, Error::Plugin { fault, .. } if fault.code == "no_interpreter"), "{error}");
    put(&lab.path("herald.wasm"), &version(&lab.herald, 3)).unwrap();
    let taken = |p: &PluginInfo| p.diagnosis.as_ref().is_some_and(|d| d.code == "name_taken");
    lab.until("the refusal of the second herald", || lab.kernel.plugins().into_iter().find(taken)).await;
    assert_eq!(lab.tell().await.unwrap(), "\"0002\"");
    lab.kernel.unregister_plugin("herald").unwrap();
    lab.tells(3).await;
    fs::remove_file(lab.path("herald.wasm")).unwrap();
    lab.until("the plugin to go", || lab.plugin("herald").is_none().then_some(())).await;
    assert!(lab.kernel.unregister_plugin("herald").is_err());
    lab.kernel.shutdown().await;
}

#[test]
fn a_component_is_added_called_replaced_and_removed_from_the_command_line() {
    let world = World::new();
    let herald = fs::read(HERALD).unwrap();
    let file = world.work().join("herald.wasm");
    put(&file, &version(&herald, 1)).unwrap();
    fs::write(world.work().join("herald.toml"), "name = \"herald\"\nversion = \"0.9\"").unwrap();
    let add = |more: &[&str]| world.run(&[&["plugin", "add", file.to_str().unwrap()], more, &["--json"]].concat());
    add(&[]).exits(0);
    let tell = |tool: &str| world.run(&["tool", "call", tool]).exits(0).stdout;
    assert_eq!(tell("herald__tell").trim(), "\"0001\"");
    let listed = world.run(&["plugin", "ls", "--json"]).exits(0).lines();
    assert!(listed.iter().any(|p| p["name"] == "herald" && p["version"] == "0.9"), "{listed:?}");
    put(&file, &version(&herald, 2)).unwrap();
    add(&[]).refused(2, "bad_usage", &["`herald`", "--replace"]);
    add(&["--replace"]).exits(0);
    assert_eq!(tell("herald__tell").trim(), "\"0002\"");
    add(&["--name", "crier"]).refused(2, "plugin_refused", &["`crier`", "herald"]);
    fs::remove_file(world.work().join("herald.toml")).unwrap();
    add(&["--name", "crier"]).exits(0);
    assert_eq!(tell("crier__tell").trim(), "\"0002\"");
    add(&["--name", "fs"]).refused(2, "bad_usage", &["bundled"]);
    add(&["--name", "Loud"]).refused(2, "plugin_refused", &["`Loud`"]);
    fs::write(&file, "broken").unwrap();
    add(&["--replace"]).refused(2, "plugin_refused", &["not WebAssembly"]);
    assert_eq!(tell("herald__tell").trim(), "\"0002\"", "a broken file takes no place");
    let rm = |name: &str| world.run(&["plugin", "rm", name, "--json"]);
    assert_eq!(rm("herald").exits(0).lines().len(), 2);
    rm("herald").refused(2, "unknown_plugin", &["`herald`"]);
    rm("fs").refused(2, "bad_usage", &["bundled"]);
    rm("../fs").refused(2, "bad_usage", &["plugin name"]);
    assert_eq!(fs::read_dir(world.data().join("plugins")).unwrap().count(), 1);
}

#[test]
fn an_example_is_added_by_its_name() {
    let world = World::new();
    let help = world.run(&["plugin", "add", "--help"]).exits(0).stdout;
    let add = |more: &[&str]| world.run(&[&["plugin", "add"], more, &["--json"]].concat());
    let report = |name: &str| {
        let file = world.data().join(format!("plugins/{name}.wasm"));
        world.run(&["plugin", "doctor", file.to_str().unwrap(), "--json"]).exits(0).lines().remove(0)
    };
    let examples = ["tidy-paths", "read-only", "ask-first", "mask-secrets", "tally"];
    for name in examples {
        assert!(help.contains(name), "{help}");
        assert_eq!(add(&["--example", name]).exits(0).lines().remove(0)["done"], "added");
        let report = report(name);
        assert_eq!(
            (&report["kind"], &report["contract"], &report["version"], &report["requested"]),
            (&json!("hook"), &json!("0.1.0"), &json!("0.1.0"), &json!({}))
        );
    }
    assert_eq!(fs::read_dir(world.data().join("plugins")).unwrap().count(), 2 * examples.len());
    add(&["--example", "nothing"]).refused(2, "bad_usage", &["nothing", "tidy-paths", "tally"]);
    add(&[]).refused(2, "bad_usage", &["<FILE"]);
    add(&["--example", "tally", HERALD]).refused(2, "bad_usage", &["--example"]);
    // A name is taken, and given, as that of a file's plugin is.
    add(&["--example", "tally"]).refused(2, "bad_usage", &["`tally`", "--replace"]);
    let file = world.data().join("plugins/tally.wasm");
    fs::write(&file, "broken").unwrap();
    fs::write(file.with_extension("wit"), "package an:older; world one {}").unwrap();
    add(&["--example", "tally", "--replace"]).exits(0);
    assert_eq!(report("tally")["kind"], "hook");
    assert!(!file.with_extension("wit").exists(), "it is not of this plugin");
    add(&["--example", "tally", "--name", "count"]).exits(0);
    assert_eq!(report("count")["kind"], "hook");
    add(&["--example", "tally", "--name", "fs"]).refused(2, "bad_usage", &["bundled"]);
    add(&["--example", "tally", "--name", "../up"]).refused(2, "bad_usage", &["plugin name"]);
}
