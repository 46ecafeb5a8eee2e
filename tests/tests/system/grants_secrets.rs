//! Secrets of plugins: filled in on the way out, only for the hosts that both sides list, and found nowhere else.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde_json::{Value, json};

use crate::http::{Site, Trap};
use crate::support::{COURIER, Ran, STEPPER, World, calls};

/// The planted secret. What is searched for is its middle, which stands the same in URLs, JSON and HTML.
const CANARY: &str = "q/c4n4ryOf8Deeds91b5/d20+Z&\"=";
const MIDDLE: &str = "c4n4ryOf8Deeds91b5";

const MANIFEST: &str = "[permissions]\nhttp = [{ host = \"*\" }]\nsecrets = [{ name = \"CANARY\", hosts = [\"*\"] }]";

fn world(manifest: &str) -> World {
    let world = World::new();
    world.install(COURIER);
    world.install(STEPPER);
    fs::write(world.plugins().join("courier.toml"), manifest).unwrap();
    world
}

#[track_caller]
fn grant(world: &World, grants: &[&str]) {
    world.run(&[&["plugin", "grant", "courier"], grants].concat()).exits(0);
}

/// `aok` where the secret is set and everything is logged that can be.
fn aok(world: &World, args: &[&str]) -> Ran {
    let mut command = world.aok(&[args, &["-vv"]].concat());
    Ran::of(command.env("CANARY", CANARY).env("RUST_LOG", "trace").output().unwrap())
}

fn send(world: &World, arguments: &Value) -> Ran {
    aok(world, &["tool", "call", "courier__send", &arguments.to_string(), "--json"])
}

/// Every form in which the secret could lie somewhere.
fn forms() -> Vec<Vec<u8>> {
    let mut forms = vec![MIDDLE.as_bytes().to_vec(), MIDDLE.bytes().rev().collect()];
    for before in 0..3 {
        let text = [&[0; 2][..before], MIDDLE.as_bytes()].concat();
        let encoded = STANDARD_NO_PAD.encode(&text);
        forms.push(encoded.as_bytes()[4..text.len() * 8 / 6].to_vec());
    }
    forms.push(MIDDLE.bytes().flat_map(|b| format!("{b:02x}").into_bytes()).collect());
    forms
}

#[track_caller]
fn is_clean(what: &str, bytes: &[u8]) {
    for form in forms() {
        let found = bytes.windows(form.len()).position(|window| window == form);
        let around = found.map(|at| String::from_utf8_lossy(&bytes[at.saturating_sub(80)..at]).into_owned());
        assert_eq!(around, None, "{what} has the secret, after this");
    }
}

/// Looks into every file below; what are links lead to code that all tests share. How many bytes there were.
fn scan(dir: &Path) -> usize {
    let mut bytes = 0;
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            bytes += scan(&path);
        } else if kind.is_file() {
            let text = fs::read(&path).unwrap();
            is_clean(&path.display().to_string(), &text);
            bytes += text.len();
        }
    }
    bytes
}

#[track_caller]
fn ran_clean(ran: Ran) -> Ran {
    is_clean("stdout", ran.stdout.as_bytes());
    is_clean("stderr", ran.stderr.as_bytes());
    ran
}

#[test]
fn a_secret_is_where_it_belongs_and_nowhere_else_after_many_runs() {
    let (world, site, trap) = (world(MANIFEST), Site::open(), Trap::set());
    grant(&world, &[&format!("http={}", site.host()), &format!("secret=CANARY@{}", site.host())]);
    let elsewhere = format!("http://127.0.0.1:{}/", trap.port);
    let places = [
        json!({"url": site.url("/echo/200"), "headers": {"x-key": "Bearer $CANARY$"}}),
        json!({"url": site.url("/echo/200"), "headers": {"authorization": "Bearer $CANARY$"}}),
        json!({"url": site.url("/echo/500"), "basic": "user:$CANARY$"}),
        json!({"url": site.url("/echo/401?a=1&k=$CANARY$")}),
        json!({"url": site.url("/drip?k=$CANARY$"), "method": "POST", "body": "x$CANARY$$CANARY$y"}),
        json!({"url": site.url("/echo/200"), "method": "PUT", "headers": {"content-type": "application/json"},
            "body": "{\"k\":\"$CANARY$\"}"}),
        json!({"url": site.url(&format!("/to/302?{}?k=$CANARY$", site.url("/echo/200"))), "follow": 2}),
        // These do not leave.
        json!({"url": site.url(&format!("/to/307?{elsewhere}")), "headers": {"x": "$CANARY$"}, "follow": 2}),
        json!({"url": elsewhere, "headers": {"x": "$CANARY$"}}),
        json!({"url": site.url("/$CANARY$")}),
    ];
    let mut arrived = 0;
    for place in &places {
        for then in ["give", "fail", "log", "keep", "panic"] {
            let mut arguments = place.clone();
            arguments["then"] = json!(then);
            ran_clean(send(&world, &arguments));
            let asked = site.asked();
            arrived += asked.iter().filter(|a| format!("{a:?}").contains(MIDDLE)).count();
        }
    }
    trap.is_untouched();
    // In each round the five that hold it in clear, the redirect twice, the refused redirect's first step.
    assert_eq!(arrived, 5 * (5 + 2 + 1), "the requests that carried it");

    // An agent gets the placeholder too, whose journal, pages and audit are in the store.
    let model = world.script(&[calls("a", "courier__send", &places[4]), json!({"text": "{{a.body}}"})]);
    let ran = ran_clean(aok(&world, &["run", "--task", "send it", "--model", &model, "--json"])).exits(0);
    assert!(ran.stdout.contains("aoksecret"), "{}", ran.stdout);
    assert!(site.asked()[0].body.contains(CANARY));

    for args in [&["ps"][..], &["plugin", "ls", "--json"], &["plugin", "ls"], &["audit", "tail", "-n", "999", "--json"]]
    {
        ran_clean(aok(&world, args)).exits(0);
    }
    ran_clean(aok(&world, &["doctor", "--json"]));
    let pids = aok(&world, &["ps", "--json"]).lines();
    assert!(pids.len() > 50, "{} processes", pids.len());
    let mut logged = 0;
    for pid in pids {
        let logs = ran_clean(aok(&world, &["logs", &pid["pid"].to_string(), "--json"]));
        logged += logs.stdout.matches("aoksecret").count();
        ran_clean(aok(&world, &["context", &pid["pid"].to_string(), "--json"]));
    }
    assert!(logged > 10, "what was logged has the placeholder in its place: {logged}");
    assert!(scan(world.dir.path()) > 100_000);
    world.run(&["audit", "verify"]).exits(0);
}

#[test]
fn a_secret_is_sent_as_the_place_wants_it() {
    let (world, site) = (world(MANIFEST), Site::open());
    grant(&world, &[&format!("http={}", site.host()), &format!("secret=CANARY@{}", site.host())]);
    let asked = |arguments: Value| {
        send(&world, &arguments).exits(0);
        site.asked().remove(0)
    };
    let head = asked(json!({"url": site.url("/text"), "headers": {"x-key": "k=$CANARY$"}}));
    assert_eq!(head.header("x-key"), Some(format!("k={CANARY}").as_str()));
    let query = asked(json!({"url": site.url("/text?k=$CANARY$&l=2")}));
    assert_eq!(query.path, "/text?k=q%2Fc4n4ryOf8Deeds91b5%2Fd20%2BZ%26%22%3D&l=2");
    let body = asked(json!({"url": site.url("/text"), "method": "POST", "body": "[$CANARY$]"}));
    assert_eq!(body.body, format!("[{CANARY}]"));
    assert_eq!(body.header("content-length"), Some((CANARY.len() + 2).to_string().as_str()));
    let form = json!({"content-type": "application/json"});
    let body = asked(json!({"url": site.url("/text"), "method": "POST", "headers": form, "body": "[\"$CANARY$\"]"}));
    assert_eq!(serde_json::from_str::<Value>(&body.body).unwrap(), json!([CANARY]));
    let basic = asked(json!({"url": site.url("/text"), "basic": "me:$CANARY$"}));
    let encoded = basic.header("authorization").unwrap().strip_prefix("Basic ").unwrap().to_owned();
    let decoded = base64::engine::general_purpose::STANDARD.decode(encoded).unwrap();
    assert_eq!(decoded, format!("me:{CANARY}").into_bytes());
}

#[test]
fn a_secret_that_may_not_go_there_stays_and_the_denial_says_why() {
    let (site, other) = (Site::open(), Site::open());
    let manifest = format!(
        "[permissions]\nhttp = [{{ host = \"*\" }}]\nsecrets = [{{ name = \"CANARY\", hosts = [\"{}\", \"{}\"] }}]",
        site.host(),
        other.host()
    );
    let world = world(&manifest);
    let to = |site: &Site| json!({"url": site.url("/text"), "headers": {"x-key": "$CANARY$"}});
    let (http, elsewhere) = (format!("http={}", site.host()), format!("http={}", other.host()));
    grant(&world, &[&http, &elsewhere]);
    // Not granted, it is not even seen.
    send(&world, &to(&site)).exits(0);
    assert_eq!(site.asked()[0].header("x-key"), Some("$CANARY$"));

    let secret = format!("secret=CANARY@{}", site.host());
    grant(&world, &[&secret]);
    send(&world, &to(&site)).exits(0);
    assert_eq!(site.asked()[0].header("x-key"), Some(CANARY));
    let said = |ran: Ran, word: &str| {
        let error = ran_clean(ran).exits(1).lines()[0]["error"]["message"].to_string();
        assert!(error.contains(word), "{error}");
    };
    said(send(&world, &to(&other)), &format!("aok plugin grant courier secret=CANARY@{}", other.host()));
    assert!(other.asked().is_empty(), "nothing of the request leaves");
    // Both sides list it then, and only then.
    world.run(&["plugin", "grant", "courier", &format!("secret=CANARY@{}", other.host())]).exits(0);
    send(&world, &to(&other)).exits(0);
    fs::write(world.plugins().join("courier.toml"), manifest.replace(&other.host(), "example.com")).unwrap();
    said(send(&world, &to(&other)), "the manifest of `courier` does not ask");

    // One that is not there is said at the call.
    let ran = world.run(&["tool", "call", "courier__look", "--json"]);
    ran.refused(3, "denied", &["no variable CANARY", "aok plugin revoke courier secret=CANARY"]);
    let short = world.run_with(&["tool", "call", "courier__look", "--json"], ("CANARY", "short"));
    short.refused(3, "denied", &["8 to"]);
    let checks = world.run(&["doctor", "--json"]).lines();
    let check = checks.iter().find(|c| c["check"] == "grants").unwrap();
    assert!(check["detail"].as_str().unwrap().contains("CANARY of `courier`"), "{check}");
    world.run(&["plugin", "revoke", "courier", "secret=CANARY"]).exits(0);
    world.run(&["tool", "call", "courier__look", "--json"]).exits(0);
}
