//! Models that misbehave, from end to end: `aok` beside a server on a socket that refuses, breaks off, lies or
//! dies. Each fault has its stated outcome, nothing is lost by it, and the key is in nothing that is written.
//!
//! Where the provider is at fault the process is not failed but stopped: `run` exits with 5, and `run --resume`
//! asks again. What the model itself did wrong is told to it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use axum::body::Bytes;
use serde_json::{Value, json};
use system_tests::stub::{Answer, Ask, Asked, Stub};

use super::http::tls_server;
use super::support::{ModelServer, Ran, World, calls};

const KEY: &str = "sk-very-secret-key";

/// The environment of a run.
const WITH_KEY: (&str, &str) = ("FAKE_KEY", KEY);

/// A stub with a thread of its own; all its connections end with it.
struct Served {
    stub: Stub,
    _runtime: tokio::runtime::Runtime,
}

impl Served {
    fn new(answers: impl Fn(&Ask<'_>) -> Answer + Send + Sync + 'static) -> Self {
        Self::at(0, answers)
    }

    fn at(port: u16, answers: impl Fn(&Ask<'_>) -> Answer + Send + Sync + 'static) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let stub = runtime.block_on(Stub::start(port, true, answers)).unwrap();
        Self { stub, _runtime: runtime }
    }

    fn asked(&self) -> Vec<Asked> {
        self.stub.asked()
    }

    fn count(&self) -> usize {
        self.stub.count()
    }

    /// This server as the provider `fake`, with more lines for its table.
    fn config(&self, more: &str) -> String {
        provider("openai", &self.stub.url(), more)
    }
}

fn provider(kind: &str, url: &str, more: &str) -> String {
    format!(
        "[llm.providers.fake]\nkind = \"{kind}\"\nbase_url = \"{url}\"\nkey_env = \"FAKE_KEY\"\nnative_tools = true\n{more}\n"
    )
}

fn run(world: &World) -> Ran {
    let work = format!("{}:rw", world.work().display());
    let args = ["run", "--task", "Do it.", "--model", "fake/m", "--dir", &work, "--direct", "--json"];
    kept(world, world.run_with(&args, WITH_KEY))
}

fn resume(world: &World) -> Ran {
    kept(world, world.run_with(&["run", "--resume", "1", "--json"], WITH_KEY))
}

/// Nothing is lost and nothing given away.
#[track_caller]
fn kept(world: &World, ran: Ran) -> Ran {
    let verdict = world.run(&["audit", "verify", "--json"]).exits(0).lines();
    assert_eq!(verdict[0]["ok"], true, "{verdict:?}");
    assert!(!ran.stdout.contains(KEY) && !ran.stderr.contains(KEY), "{ran:?}");
    let mut bytes = 0;
    without_key(&world.data(), &mut bytes);
    assert!(bytes > 0, "nothing was looked at");
    ran
}

fn without_key(dir: &Path, bytes: &mut usize) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => without_key(&entry.path(), bytes),
            // Links lead to code that all tests share.
            kind if kind.is_file() => {
                let text = fs::read(entry.path()).unwrap();
                *bytes += text.len();
                assert!(!text.windows(KEY.len()).any(|w| w == KEY.as_bytes()), "the key is in {:?}", entry.path());
            }
            _ => {}
        }
    }
}

/// The process stopped where it was, resumable; no exit was made up for it.
#[track_caller]
fn stopped(world: &World, ran: Ran, code: &str, words: &[&str]) {
    let events = ran.lines();
    let last = events.last().expect("there are events");
    assert_eq!((&last["type"], &last["state"]), (&json!("state"), &json!("T")), "{last}");
    assert!(events.iter().all(|e| e["type"] != "exit"), "{events:?}");
    assert_eq!(ends(&events).last().map(String::as_str), Some("error"), "{events:?}");
    ran.refused(5, code, &[words, &["aok run --resume 1"]].concat());
    let ps = world.run(&["ps", "--json"]).exits(0).lines();
    assert_eq!((&ps[0]["state"], &ps[0]["exit"]), (&json!("T"), &Value::Null), "{ps:?}");
}

#[track_caller]
fn succeeded(ran: Ran, answer: &str) -> Vec<Value> {
    let events = ran.exits(0).lines();
    let exit = events.last().expect("there are events");
    assert_eq!((&exit["status"], &exit["answer"]), (&json!("success"), &json!(answer)), "{exit}");
    events
}

/// How the requests to the model ended.
fn ends(events: &[Value]) -> Vec<String> {
    let ends = events.iter().filter(|e| e["type"] == "llm_end");
    ends.map(|e| e["finish"].as_str().expect("it has a word for it").to_owned()).collect()
}

fn count(events: &[Value], kind: &str) -> usize {
    events.iter().filter(|e| e["type"] == kind).count()
}

/// The files of the folder that the agent works in.
fn files(world: &World) -> BTreeMap<String, String> {
    let entries = fs::read_dir(world.work()).unwrap().map(|e| e.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), fs::read_to_string(e.path()).unwrap())).collect()
}

const LINE: &str = r#"{"path":"work/log.txt","content":"a line\n"}"#;

/// Appends a line, then says that it is done.
fn appends(ask: &Ask<'_>) -> Answer {
    match ask.replies() {
        0 => ask.calls("a", "fs__append", LINE),
        _ => ask.says("It is done."),
    }
}

#[track_caller]
fn appended_once(world: &World) {
    assert_eq!(files(world), BTreeMap::from([("log.txt".to_owned(), "a line\n".to_owned())]));
}

#[test]
fn a_wrong_key_names_the_provider_and_where_its_key_comes_from_and_can_be_mended() {
    let refuse = |_: &Ask<'_>| Answer::error(401, &format!("Incorrect API key provided: {KEY}."));
    let (world, server) = (World::new(), Served::new(refuse));
    world.configure(&server.config(""));
    stopped(&world, run(&world), "provider_error", &["fake answered 401", "[key]", "key_env"]);
    assert_eq!(server.count(), 1, "a wrong key is not tried again");
    assert_eq!(server.asked()[0].headers["authorization"], format!("Bearer {KEY}"));
    // The known ones have a variable of their own.
    let args = ["run", "--task", "x", "--model", "anthropic/m", "--json"];
    let mut command = world.aok(&args);
    let url = server.stub.url();
    let output = command.env("ANTHROPIC_API_KEY", KEY).env("ANTHROPIC_BASE_URL", url).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(5) && text.contains("ANTHROPIC_API_KEY") && !text.contains(KEY), "{text}");
    let good = Served::new(appends);
    world.configure(&good.config(""));
    succeeded(resume(&world), "It is done.");
    appended_once(&world);
}

#[test]
fn without_its_key_nothing_starts_and_the_variable_is_named() {
    let (world, server) = (World::new(), Served::new(appends));
    world.configure(&server.config(""));
    let run = |model: &str| world.run(&["run", "--task", "x", "--model", model, "--json"]);
    run("fake/m").refused(2, "unknown_model", &["FAKE_KEY", "export"]);
    run("anthropic/m").refused(2, "unknown_model", &["ANTHROPIC_API_KEY", "export"]);
    assert!(world.run(&["ps", "--json"]).exits(0).lines().is_empty());
    assert_eq!(server.count(), 0);
}

#[test]
fn an_unknown_model_is_named_and_asked_for_once() {
    let refuse = |_: &Ask<'_>| Answer::error(404, "The model `m` does not exist or you do not have access to it.");
    let (world, server) = (World::new(), Served::new(refuse));
    world.configure(&server.config(""));
    stopped(&world, run(&world), "provider_error", &["fake answered 404", "`m`", "has this model"]);
    assert_eq!(server.count(), 1);
}

#[test]
fn a_refused_connection_names_the_address_and_the_run_goes_on_when_somebody_listens() {
    let world = World::new();
    let port = Served::new(appends).stub.port();
    world.configure(&provider("openai", &format!("http://127.0.0.1:{port}/v1"), "retries = 1"));
    let ran = run(&world);
    assert_eq!(count(&ran.lines(), "llm_start"), 2, "it was tried again");
    stopped(&world, ran, "provider_unreachable", &["fake", &format!("127.0.0.1:{port}"), "refused"]);
    let _server = Served::at(port, appends);
    succeeded(resume(&world), "It is done.");
    appended_once(&world);
}

#[test]
fn a_failing_tls_handshake_says_why_and_gives_no_key_away() {
    let (world, plain) = (World::new(), Served::new(appends));
    world.configure(&provider("openai", &format!("https://127.0.0.1:{}/v1", plain.stub.port()), "retries = 0"));
    stopped(&world, run(&world), "provider_unreachable", &["https://127.0.0.1", "its base URL"]);
    assert_eq!(plain.count(), 0);
    let world = World::new();
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let url = format!("https://localhost:{}/v1", tls_server(certified));
    world.configure(&provider("openai", &url, "retries = 0"));
    stopped(&world, run(&world), "provider_unreachable", &["https://localhost", "certificate"]);
}

#[test]
fn a_429_storm_that_ends_is_waited_out_as_long_as_the_server_asks() {
    const ASKED: Duration = Duration::from_millis(1500);
    let server = Served::new(|ask| match ask.nth {
        0 => Answer::busy(1500),
        1 => Answer::busy(1),
        _ => appends(ask),
    });
    let world = World::new();
    world.configure(&server.config(""));
    let events = succeeded(run(&world), "It is done.");
    assert_eq!(ends(&events), ["error", "error", "tool-calls", "stop"]);
    assert_eq!(count(&events, "llm_start"), 4);
    let asked = server.asked();
    // A lower bound: a slow machine only makes it longer.
    assert!(asked[1].at.duration_since(asked[0].at) >= ASKED, "retry-after-ms was not kept");
    assert!(asked[..3].iter().all(|a| a.body == asked[0].body), "another request was made");
    appended_once(&world);
}

#[test]
fn a_429_storm_that_does_not_end_stops_the_process_and_says_wait() {
    let world = World::new();
    let model = world.script(&[
        calls("a", "fs__append", &serde_json::from_str(LINE).unwrap()),
        json!({"error": {"status": 429, "retry_after_ms": 10}}),
    ]);
    let server = ModelServer::start_with(Path::new(model.trim_start_matches("script/")), &["--native"]);
    world.configure(&provider("openai", &server.url, "retries = 2"));
    let ran = run(&world);
    assert_eq!(ends(&ran.lines()), ["tool-calls", "error", "error", "error"]);
    stopped(&world, ran, "provider_error", &["fake answered 429", "wait"]);
    assert_eq!(server.requests().len(), 4);
    // What was done before is kept: it is not done again.
    let good = Served::new(appends);
    world.configure(&good.config(""));
    succeeded(resume(&world), "It is done.");
    assert_eq!(good.count(), 1);
    appended_once(&world);
}

#[test]
fn errors_of_the_server_are_asked_again_and_stop_the_process_when_they_stay() {
    for status in [500, 502, 503, 529] {
        let server = Served::new(move |ask| match ask.nth {
            0 => Answer::error(status, "overloaded"),
            _ => appends(ask),
        });
        let world = World::new();
        world.configure(&server.config("retries = 1"));
        let events = succeeded(run(&world), "It is done.");
        assert_eq!(ends(&events), ["error", "tool-calls", "stop"]);
        appended_once(&world);
    }
    let (world, server) = (World::new(), Served::new(|_| Answer::error(500, "broken for good")));
    world.configure(&server.config("retries = 1"));
    stopped(&world, run(&world), "provider_error", &["fake answered 500", "broken for good"]);
    assert_eq!(server.count(), 2);
}

#[test]
fn a_stream_cut_in_the_middle_of_a_call_makes_the_call_once_on_both_wires() {
    for kind in ["openai", "anthropic"] {
        let server = Served::new(|ask| match ask.nth {
            0 => ask.cut_call("a", "fs__append", LINE),
            _ => appends(ask),
        });
        let world = World::new();
        world.configure(&provider(kind, &server.stub.url(), "retries = 1"));
        let events = succeeded(run(&world), "It is done.");
        assert_eq!(ends(&events), ["error", "tool-calls", "stop"], "{kind}");
        assert_eq!((count(&events, "tool_start"), server.count()), (1, 3), "{kind}");
        appended_once(&world);
    }
}

#[test]
fn a_reply_that_is_not_utf8_or_no_json_is_asked_for_again_and_stops_the_process_when_it_stays() {
    for (bytes, word) in [
        (&b"data: {\"choices\":[{\"delta\":{\"content\":\"\xff\xfe\"}}]}\n\n"[..], "not UTF-8"),
        (b"data: {nonsense\n\n", "no JSON"),
    ] {
        let server = Served::new(move |ask| match ask.nth {
            0..=2 => Answer::bytes(Bytes::from_static(bytes)),
            _ => appends(ask),
        });
        let world = World::new();
        world.configure(&server.config("retries = 1"));
        stopped(&world, run(&world), "bad_reply", &["fake sent a reply that cannot be used", word]);
        let events = succeeded(resume(&world), "It is done.");
        assert_eq!(ends(&events), ["error", "tool-calls", "stop"], "{word}");
        appended_once(&world);
    }
}

#[test]
fn an_empty_answer_is_asked_for_again_and_stops_the_process_when_it_stays() {
    for kind in ["openai", "anthropic"] {
        let server = Served::new(|ask| match ask.nth {
            0..=2 => ask.says(""),
            _ => appends(ask),
        });
        let world = World::new();
        world.configure(&provider(kind, &server.stub.url(), "retries = 1"));
        stopped(&world, run(&world), "bad_reply", &["fake sent a reply", "empty"]);
        assert_eq!(ends(&succeeded(resume(&world), "It is done.")), ["error", "tool-calls", "stop"]);
    }
}

#[test]
fn of_two_answers_the_first_counts() {
    fn choice(index: u64, text: &str) -> Value {
        json!({"index": index, "delta": {"content": text}, "finish_reason": "stop"})
    }
    let answer = |choices: &[Value]| format!("data: {}\n\ndata: [DONE]\n\n", json!({ "choices": choices }));
    let two = answer(&[choice(0, "one"), choice(1, "two")]);
    let server = Served::new(move |_| Answer::bytes(two.clone()));
    let world = World::new();
    world.configure(&server.config(""));
    succeeded(run(&world), "one");
    // The constrained protocol: two objects, with and without something in between.
    for text in [r#"{"answer":"one"}{"answer":"two"}"#, "{\"answer\":\"one\"}\n```\n{\"answer\":\"two\"}"] {
        let said = answer(&[choice(0, text)]);
        let server = Served::new(move |_| Answer::bytes(said.clone()));
        let world = World::new();
        world.configure(&server.config("").replace("native_tools = true", "native_tools = false"));
        succeeded(run(&world), "one");
    }
}

#[test]
fn a_model_is_told_of_its_wrong_calls_in_its_own_protocol_and_goes_on() {
    let wrong = [
        ("unknown", "fs__raed", "{}", "not-found", "fs__read"),
        ("schema", "calc__eval", r#"{"expression":5}"#, "invalid", "/expression"),
        ("json", "calc__eval", r#"{"expression":"#, "invalid", "not JSON"),
        ("list", "calc__eval", "[]", "invalid", "object"),
    ];
    for kind in ["openai", "anthropic"] {
        let server = Served::new(move |ask| match wrong.get(ask.replies()) {
            Some((id, name, arguments, ..)) => ask.calls(id, name, arguments),
            None if ask.replies() == wrong.len() => ask.calls("good", "calc__eval", r#"{"expression":"2+3"}"#),
            None => ask.says("It is 5."),
        });
        let world = World::new();
        world.configure(&provider(kind, &server.stub.url(), ""));
        let events = succeeded(run(&world), "It is 5.");
        for (id, _, _, code, word) in wrong {
            let end = events.iter().find(|e| e["type"] == "tool_end" && e["id"] == id);
            let error = &end.unwrap_or_else(|| panic!("{kind}: no end of {id}"))["error"];
            assert_eq!(error["code"], code, "{kind} {id}: {error}");
            assert!(error["message"].as_str().unwrap().contains(word), "{kind} {id}: `{word}` is missing: {error}");
        }
        // What a wire refuses is not sent back to it: arguments that are no object, a call without its result.
        let last = server.asked().pop().unwrap().body;
        let (made, answered) = conversation(kind, &last);
        assert_eq!(made, ["unknown", "schema", "json", "list", "good"], "{kind}");
        assert_eq!(made, answered, "{kind}");
    }
}

/// The ids of the calls in a request, whose arguments must be objects, and of the results.
fn conversation(kind: &str, body: &Value) -> (Vec<String>, Vec<String>) {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let id = |value: &Value| value.as_str().expect("an id is text").to_owned();
    let messages = list(&body["messages"]);
    if kind == "openai" {
        let made = messages.iter().flat_map(|m| list(&m["tool_calls"]));
        let made = made.map(|c| {
            let arguments: Value = serde_json::from_str(c["function"]["arguments"].as_str().unwrap()).unwrap();
            assert!(arguments.is_object(), "{c}");
            id(&c["id"])
        });
        let answered = messages.iter().filter(|m| m["role"] == "tool").map(|m| id(&m["tool_call_id"]));
        return (made.collect(), answered.collect());
    }
    let blocks: Vec<Value> = messages.iter().flat_map(|m| list(&m["content"])).collect();
    let made = blocks.iter().filter(|b| b["type"] == "tool_use").map(|b| {
        assert!(b["input"].is_object(), "{b}");
        id(&b["id"])
    });
    let answered = blocks.iter().filter(|b| b["type"] == "tool_result").map(|b| id(&b["tool_use_id"]));
    (made.collect(), answered.collect())
}

#[test]
fn an_answer_larger_than_the_window_is_cut_and_says_so() {
    let server = Served::new(|ask| ask.says(&"word ".repeat(60_000)));
    let world = World::new();
    world.configure(&server.config("window = 8192"));
    let ran = run(&world).exits(0);
    let events = ran.lines();
    assert_eq!(ends(&events), ["length"]);
    let answer = events.last().unwrap()["answer"].as_str().unwrap();
    assert!((60_000..80_000).contains(&answer.len()) && "word ".repeat(60_000).starts_with(answer));
    assert_eq!(server.count(), 1);
}

#[test]
fn a_server_that_dies_in_the_middle_of_a_run_loses_nothing() {
    for kind in ["openai", "anthropic"] {
        let world = World::new();
        // It answers once; then it is gone, in the middle of its second answer.
        let server = Served::new(|ask| match ask.nth {
            0 => appends(ask),
            _ => {
                let mut pieces = ask.reply("It is done.", &[]);
                pieces.truncate(pieces.len() / 2);
                Answer::Cut(pieces)
            }
        });
        let port = server.stub.port();
        world.configure(&provider(kind, &server.stub.url(), "retries = 0"));
        stopped(&world, run(&world), "provider_unreachable", &[&format!("127.0.0.1:{port}")]);
        appended_once(&world);
        let before = server.asked();
        drop(server);
        stopped(&world, resume(&world), "provider_unreachable", &["refused"]);
        let server = Served::at(port, appends);
        let events = succeeded(resume(&world), "It is done.");
        assert_eq!((ends(&events).join(" "), count(&events, "tool_start")), ("stop".to_owned(), 0), "{kind}");
        // The journal answered for what was there, and the lost request was made again as it was.
        assert_eq!((before.len(), server.count()), (2, 1), "{kind}");
        assert_eq!(server.asked()[0].body, before[1].body, "{kind}");
        appended_once(&world);
    }
}

#[test]
fn another_model_stands_in_while_a_provider_is_out_but_not_for_a_wrong_key() {
    let world = World::new();
    let spare = Served::new(appends);
    let table = format!("[llm.providers.spare]\nkind = \"anthropic\"\nbase_url = \"{}\"\n", spare.stub.url());
    let configure = |server: &Served| {
        world.configure(&format!("[llm]\nfallback = [\"spare/n\"]\n{}{table}", server.config("retries = 0")));
    };
    let down = Served::new(|_| Answer::error(503, "down"));
    configure(&down);
    let events = succeeded(run(&world), "It is done.");
    let starts = events.iter().filter(|e| e["type"] == "llm_start").map(|e| e["model"].as_str().unwrap());
    assert_eq!(starts.collect::<Vec<_>>(), ["fake/m", "spare/n", "fake/m", "spare/n"]);
    assert_eq!(ends(&events), ["error", "tool-calls", "error", "stop"]);
    let asked = spare.asked();
    assert!(asked.iter().all(|a| a.body["model"] == "n" && !a.headers.contains_key("authorization")), "{asked:?}");
    appended_once(&world);
    let locked = Served::new(|_| Answer::error(401, "no"));
    configure(&locked);
    run(&world).refused(5, "provider_error", &["fake answered 401"]);
    assert_eq!((locked.count(), spare.count()), (1, 2));
}

#[test]
fn a_prompt_that_is_too_long_shrinks_the_window_and_nothing_is_lost() {
    const LIMIT: usize = 24_000;
    let world = World::new();
    for n in 1..=6 {
        fs::write(world.work().join(format!("{n}.txt")), format!("start of {n}. {}", "some text ".repeat(500)))
            .unwrap();
    }
    // The model has a far smaller window than the configuration says.
    let server = Served::new(|ask| {
        if ask.body.to_string().len() > LIMIT {
            return Answer::error(
                400,
                "This model's maximum context length is 5000 tokens. However, you requested more.",
            );
        }
        // The last file that was read stands in the window; stubs do not tell how many there were.
        let text = ask.body["messages"].to_string();
        let read = (1..=6).rev().find(|n| text.contains(&format!("start of {n}."))).unwrap_or(0);
        match read {
            6 => ask.says("All is read."),
            n => {
                let path = json!({"path": format!("work/{}.txt", n + 1)}).to_string();
                ask.calls(&format!("r{}", n + 1), "fs__read", &path)
            }
        }
    });
    world.configure(&server.config("window = 100000"));
    let events = succeeded(run(&world), "All is read.");
    assert!(ends(&events).contains(&"error".to_owned()) && count(&events, "page_out") > 0, "{events:?}");
    assert_eq!(count(&events, "tool_end"), 6);
    let pages = world.run(&["context", "1", "--json"]).exits(0).lines();
    let swapped: Vec<&Value> = pages.iter().filter(|p| p["resident"] == false).collect();
    assert!(!swapped.is_empty(), "{pages:?}");
    let stored = world.sqlite("SELECT text FROM page WHERE pid = 1");
    for n in 1..=6 {
        let start = format!("start of {n}.");
        assert!(stored.iter().any(|row| row[0].as_str().is_some_and(|t| t.contains(&start))), "{start} is lost");
    }
}

#[test]
fn a_provider_that_stays_down_is_left_alone_and_that_is_said() {
    let world = World::new();
    let server = Served::new(|_| Answer::error(500, "down for good"));
    world.configure(&server.config("retries = 0"));
    // One kernel for all: it counts what its processes met.
    let kernel = world.waiting_with(WITH_KEY);
    let run = || world.run_with(&["run", "--task", "x", "--model", "fake/m", "--json"], WITH_KEY);
    for _ in 0..8 {
        run().refused(5, "provider_error", &["fake answered 500"]);
    }
    run().refused(5, "provider_error", &["not asked for a while", "down for good", "wait a minute"]);
    assert_eq!(server.count(), 8);
    drop(kernel);
}
