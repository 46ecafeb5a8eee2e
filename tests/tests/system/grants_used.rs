//! Rights of plugins of directories: what their imports, their manifest and their grants have in common.

use std::fs;
use std::path::Path;

use agent_os_kernel::capability::{Permissions, Rights};
use agent_os_kernel::grants::Revocation;
use agent_os_kernel::kernel::Kernel;
use serde_json::{Value, json};

use crate::http::{Site, Trap};
use crate::support::{COURIER, PROBE, Ran, STEPPER, World};

/// The bundled component `from` as the plugin `name` with this manifest.
fn installed(from: &str, name: &str, manifest: &str) -> World {
    let world = World::new();
    install(&world, from, name, manifest);
    world
}

fn install(world: &World, from: &str, name: &str, manifest: &str) {
    let component = Path::new(PROBE).with_file_name(from).with_extension("wasm");
    fs::copy(component, world.plugins().join(format!("{name}.wasm"))).unwrap();
    fs::write(world.plugins().join(format!("{name}.toml")), manifest).unwrap();
}

#[track_caller]
fn grant(world: &World, name: &str, grants: &[&str]) {
    world.run(&[&["plugin", "grant", name], grants].concat()).exits(0);
}

fn call(world: &World, tool: &str, arguments: &Value) -> Ran {
    world.run(&["tool", "call", tool, &arguments.to_string(), "--json"])
}

#[track_caller]
fn result(ran: Ran) -> Value {
    ran.exits(0).lines()[0]["result"].clone()
}

#[test]
fn a_request_needs_both_sides_by_host_method_and_path() {
    let (site, trap) = (Site::open(), Trap::set());
    let world = installed("http", "web", "[permissions]\nhttp = [{ host = \"*\", methods = [\"GET\", \"PUT\"] }]");
    let fetch = |method: &str, url: &str| call(&world, "web__fetch", &json!({"url": url, "method": method}));
    let host = site.host();
    fetch("GET", &site.url("/text")).refused(3, "denied", &[&format!("`aok plugin grant web http={host}`")]);
    // The run's own hosts are not a plugin's.
    let arguments = json!({ "url": site.url("/text") }).to_string();
    let ran = world.run(&["tool", "call", "web__fetch", &arguments, "--host", &host, "--json"]);
    ran.refused(3, "denied", &["aok plugin grant web"]);

    grant(&world, "web", &[&format!("http=GET {host}/text"), &format!("http=GET,POST {host}/to/*")]);
    assert_eq!(result(fetch("GET", &site.url("/text")))["body"], "hello, wörld");
    // The same path; this site does not know it in that spelling.
    assert_eq!(result(fetch("GET", &site.url("/%74ext?q=/../x")))["status"], 404);
    for (method, path, word) in [
        ("PUT", "/text", format!("`aok plugin grant web \"http=PUT {host}/text\"`")),
        ("GET", "/status/200", format!("`aok plugin grant web \"http=GET {host}/status/200\"`")),
        ("GET", "/text/", "/text/".to_owned()),
        ("GET", "/to/../status/200", "/status/200".to_owned()),
        ("GET", "/to/%2e%2e/status/200", "/status/200".to_owned()),
        ("GET", "/to/..%2fstatus/200", format!("\"http=GET {host}\"")),
        ("GET", "/to/..;/status/200", format!("\"http=GET {host}\"")),
        ("GET", "/to/%252e%252e%252fstatus", format!("\"http=GET {host}\"")),
        // The manifest has no POST, whatever is granted.
        ("POST", "/to/302", "the manifest of `web`".to_owned()),
    ] {
        site.asked();
        fetch(method, &site.url(path)).refused(3, "denied", &[&word]);
        assert_eq!(site.asked().len(), 0, "{method} {path}: nothing leaves");
    }
    // Each step of a redirect is a request.
    assert_eq!(result(fetch("GET", &site.url("/to/302?/text")))["status"], 200);
    for target in ["/status/200".to_owned(), format!("http://127.0.0.1:{}/text", trap.port)] {
        fetch("GET", &site.url(&format!("/to/302?{target}"))).refused(3, "denied", &["aok plugin grant web"]);
    }
    trap.is_untouched();
    // What is denied is in the log of the call's process too.
    let pid = world.run(&["ps", "--json"]).exits(0).lines().pop().unwrap()["pid"].to_string();
    let log = world.run(&["logs", &pid, "--json"]).exits(0).stdout;
    assert!(log.contains("network: GET ") && log.contains("aok plugin grant web"), "{log}");
}

#[test]
fn a_manifest_that_asks_for_less_has_less() {
    let site = Site::open();
    let manifest = format!("[permissions]\nhttp = [{{ host = \"{}\", path = \"/text\" }}]", site.host());
    let world = installed("http", "web", &manifest);
    grant(&world, "web", &[&format!("http={}", site.host())]);
    let fetch = |path: &str| call(&world, "web__fetch", &json!({ "url": site.url(path) }));
    assert_eq!(result(fetch("/text"))["status"], 200);
    fetch("/status/200").refused(3, "denied", &["the manifest of `web`"]);
    // Without a manifest there is nothing.
    fs::remove_file(world.plugins().join("web.toml")).unwrap();
    fetch("/text").refused(3, "denied", &["the manifest of `web`"]);
    assert_eq!(site.asked().len(), 1);
}

#[test]
fn directories_are_those_of_both_sides() {
    let world = installed("fs", "files", "[permissions]\nread = [\"*\"]\nwrite = [\"*\"]");
    fs::create_dir_all(world.work().join("sub")).unwrap();
    fs::write(world.work().join("a.txt"), "outer").unwrap();
    fs::write(world.work().join("sub/b.txt"), "inner").unwrap();
    let read = |path: &str| call(&world, "files__read", &json!({ "path": path }));
    let write = |path: &str| call(&world, "files__write", &json!({ "path": path, "content": "x" }));
    read("work/a.txt").refused(3, "denied", &["`aok plugin grant files write=DIRECTORY read=DIRECTORY`"]);
    let dir = world.work().display().to_string();
    let ran = world.run(&["tool", "call", "files__read", "{\"path\":\"work/a.txt\"}", "--dir", &dir, "--json"]);
    ran.refused(3, "denied", &["aok plugin grant files"]);

    grant(&world, "files", &[&format!("read={dir}")]);
    assert!(result(read("work/a.txt")).to_string().contains("outer"));
    write("work/c.txt").refused(3, "denied", &["aok plugin grant files write=DIRECTORY"]);
    // One mount of a name, with the greater right.
    grant(&world, "files", &[&format!("write={dir}"), &format!("read={dir}/sub")]);
    result(write("work/c.txt"));
    let roots = result(call(&world, "files__list", &json!({ "path": "." }))).to_string();
    assert!(roots.contains("work") && !roots.contains("\"sub\""), "{roots}");

    // The manifest names a part of it.
    let manifest = format!("[permissions]\nread = [\"{}/sub\"]", world.work().canonicalize().unwrap().display());
    install(&world, "fs", "files", &manifest);
    assert!(result(read("sub/b.txt")).to_string().contains("inner"));
    read("work/a.txt").refused(3, "denied", &["work/a.txt"]);
    write("sub/c.txt").exits(3);
    read("sub/../a.txt").exits(3);

    // One that is gone, or is a link now, is said to be so.
    install(&world, "fs", "files", "[permissions]\nread = [\"*\"]");
    fs::rename(world.work(), world.dir.path().join("elsewhere")).unwrap();
    read("work/a.txt").refused(3, "denied", &["not there any more", "aok plugin revoke files"]);
    std::os::unix::fs::symlink("/etc", world.work()).unwrap();
    read("work/passwd").refused(3, "denied", &["leads elsewhere", "aok plugin revoke files"]);
    fs::remove_file(world.work()).unwrap();
    fs::rename(world.dir.path().join("elsewhere"), world.work()).unwrap();
    assert!(result(read("work/a.txt")).to_string().contains("outer"));
}

#[test]
fn variables_are_those_that_both_sides_name() {
    let world = World::new();
    world.install(COURIER);
    let look = || {
        let mut aok = world.aok(&["tool", "call", "courier__look", "--json"]);
        result(Ran::of(aok.env("GREETING", "hello").env("OTHER", "x").output().unwrap()))
    };
    assert_eq!(look(), json!({"variables": {}, "directories": []}));
    world.run(&["plugin", "grant", "courier", "env=GREETING", "env=OTHER"]).exits(0);
    assert_eq!(look()["variables"], json!({}), "its manifest asks for none");
    fs::write(world.plugins().join("courier.toml"), "[permissions]\nenv = [\"GREETING\", \"HOME\"]").unwrap();
    assert_eq!(look()["variables"], json!({"GREETING": "hello"}));
    world.run(&["plugin", "revoke", "courier", "env=GREETING"]).exits(0);
    assert_eq!(look()["variables"], json!({}));
}

#[test]
fn an_agent_is_offered_a_plugin_once_it_is_granted_what_it_asks_for() {
    let site = Site::open();
    let world = installed("http", "web", "[permissions]\nhttp = [{ host = \"*\" }]");
    world.install(STEPPER);
    let model = world.script(&[]);
    let operations = json!([
        {"op": "available"},
        {"op": "call", "name": "web__fetch", "arguments": {"url": site.url("/text")}},
    ]);
    let run = || -> Value {
        let ran = world.run(&["run", "stepper", "--task", &operations.to_string(), "--model", &model]).exits(0);
        serde_json::from_str(&ran.stdout).unwrap()
    };
    let without = run();
    assert!(!without[0].to_string().contains("web__fetch"), "{without}");
    assert_eq!(without[1]["error"]["code"], "denied", "{without}");
    grant(&world, "web", &[&format!("http={}", site.host())]);
    let with = run();
    assert!(with[0].to_string().contains("web__fetch"), "{with}");
    assert_eq!(with[1]["body"], "hello, wörld", "{with}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_is_in_force_for_the_next_call_of_an_instance_that_lives_on() {
    let world = World::new();
    world.install(COURIER);
    let manifest = "stateful = true\n[permissions]\nread = [\"*\"]\nhttp = [{ host = \"*\" }]";
    fs::write(world.plugins().join("courier.toml"), manifest).unwrap();
    let kernel = Kernel::builder(world.data()).plugin_dir(world.plugins()).start().await.unwrap();
    let connection = kernel.connect("test", Rights::default()).await.unwrap();
    let look = || async {
        let report = kernel.call_on(connection.pid(), "courier__look", "{}").await.unwrap();
        let seen: Value = serde_json::from_str(&report.outcome.unwrap()).unwrap();
        seen["directories"].clone()
    };
    assert_eq!(look().await, json!([]));
    let work = Permissions { read: vec![world.work()], ..Permissions::default() };
    kernel.grant("courier", &work).await.unwrap();
    assert_eq!(look().await, json!(["work"]));
    assert_eq!(look().await, json!(["work"]));
    kernel.revoke("courier", &Revocation::default()).await.unwrap();
    assert_eq!(look().await, json!([]));
    drop(connection);
    kernel.shutdown().await;
}
