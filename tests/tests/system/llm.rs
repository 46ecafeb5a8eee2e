//! Models over a real socket: the OpenAI-compatible provider, and the fake server on both its wires.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agent_os_kernel::abi::{Effect, Finish, Message, Reply, TokenUsage, ToolCall, ToolSpec};
use agent_os_kernel::config::{Price, ProviderKind};
use agent_os_kernel::llm::prices::Prices;
use agent_os_kernel::llm::remote::{Key, Remote, Settings};
use agent_os_kernel::llm::{Delta, Error, Provider as _, Request};
use serde_json::{Value, json};
use system_tests::fake_llm::FakeLlm;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const KEY: &str = "sk-very-secret";

fn script(lines: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("script.jsonl");
    std::fs::File::create(&path).unwrap().write_all(lines.as_bytes()).unwrap();
    (dir, path)
}

async fn serve(lines: &str) -> FakeLlm {
    let (_dir, path) = script(lines);
    FakeLlm::start(&path, "assistant").await.unwrap()
}

/// A provider that offers its tools by constrained output.
fn provider(url: &str) -> Remote {
    Remote::new(settings(url)).unwrap()
}

fn settings(url: &str) -> Settings {
    let price = Price { input: 3.0, cached: Some(0.3), cache_write: None, output: 15.0 };
    Settings {
        name: "fake".to_owned(),
        kind: ProviderKind::Openai,
        base_url: url.to_owned(),
        key: Some(Key::new(KEY.to_owned())),
        window: 8192,
        native_tools: Some(false),
        prices: Arc::new(Prices::new([("fake/priced".to_owned(), price)].into())),
    }
}

fn tool(name: &str, input_schema: Value) -> ToolSpec {
    ToolSpec {
        name: name.to_owned(),
        description: "Does it.".to_owned(),
        input_schema,
        output_schema: None,
        effect: Effect::Pure,
    }
}

fn calc() -> ToolSpec {
    tool(
        "calc__eval",
        json!({"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]}),
    )
}

fn request(index: u64, messages: Vec<Message>, tools: Vec<ToolSpec>) -> Request {
    Request {
        model: "m".to_owned(),
        agent: "assistant".to_owned(),
        index,
        messages,
        tools,
        temperature: Some(0.0),
        max_tokens: None,
        response_schema: None,
        results: std::collections::HashMap::new(),
        claim: agent_os_kernel::llm::Claim::default(),
    }
}

fn user(text: &str) -> Message {
    Message::User { text: text.to_owned() }
}

/// Appends a reply with calls and what `run` gives for each.
fn answer_calls(window: &mut Vec<Message>, reply: &Reply, run: impl Fn(&ToolCall) -> String) {
    window.push(Message::Assistant { text: reply.text.clone(), tool_calls: reply.tool_calls.clone() });
    window.extend(reply.tool_calls.iter().map(|c| Message::Tool {
        call_id: c.id.clone(),
        name: c.name.clone(),
        text: run(c),
    }));
}

async fn ask(p: &Remote, r: Request) -> (Result<Reply, Error>, Vec<String>) {
    let (tx, mut rx) = tokio::sync::mpsc::unbounded_channel();
    let reply = p.generate(Arc::new(r), tx).await;
    let mut pieces = Vec::new();
    while let Some(delta) = rx.recv().await {
        if let Delta::Text(piece) = delta {
            pieces.push(piece);
        }
    }
    (reply, pieces)
}

const CALL_THEN_ANSWER: &str = concat!(
    r#"{"expect":"six","tool_calls":[{"id":"c1","name":"calc__eval","arguments":{"expression":"2*3"}}],"usage":{"input":50,"cached":40,"output":9}}"#,
    "\n",
    r#"{"expect":"6","text":"It is {{c1.value}}, they say."}"#,
    "\n",
);

#[tokio::test]
async fn a_constrained_conversation_calls_a_tool_and_answers_from_its_result() {
    let server = serve(CALL_THEN_ANSWER).await;
    let p = provider(&server.url());
    let mut window = vec![Message::System { text: "Be brief.".to_owned() }, user("What is six?")];
    let (reply, pieces) = ask(&p, request(1, window.clone(), vec![calc()])).await;
    let reply = reply.unwrap();
    assert_eq!(reply.finish, Finish::ToolCalls);
    assert_eq!(reply.usage, TokenUsage { input: 50, cached: 40, output: 9, micro_usd: None });
    let expected =
        ToolCall { id: "call_1".into(), name: "calc__eval".into(), arguments: r#"{"expression":"2*3"}"#.into() };
    assert_eq!((reply.tool_calls.as_slice(), pieces.len()), ([expected].as_slice(), 0));
    answer_calls(&mut window, &reply, |_| r#"{"value":6}"#.to_owned());
    let (reply, pieces) = ask(&p, request(2, window.clone(), vec![calc()])).await;
    let reply = reply.unwrap();
    assert_eq!((reply.text.as_str(), reply.finish), ("It is 6, they say.", Finish::Stop));
    assert_eq!(pieces.join(""), reply.text);
    // The same request again, as after a crash, is the same body.
    ask(&p, request(2, window, vec![calc()])).await.0.unwrap();
    let seen = server.requests();
    assert_eq!(seen.iter().map(|r| (r.index, r.completed)).collect::<Vec<_>>(), [(1, true), (2, true), (2, true)]);
    assert!(seen[1].body_hash == seen[2].body_hash && seen[0].body_hash != seen[1].body_hash);
    assert_eq!(seen[0].key.as_deref(), Some("Bearer sk-very-secret"));
}

#[tokio::test]
async fn plain_text_streams_and_a_schema_goes_as_it_is() {
    let server = serve("{\"text\":\"one two three\"}\n{\"text\":\"{\\\"n\\\": 1}\"}\n").await;
    let p = provider(&server.url());
    let (reply, pieces) = ask(&p, request(1, vec![user("count")], vec![])).await;
    let reply = reply.unwrap();
    assert_eq!(
        (reply.text.as_str(), pieces.as_slice()),
        ("one two three", ["one ", "two ", "three"].map(String::from).as_slice())
    );
    assert!(reply.usage.input > 0 && reply.usage.micro_usd.is_none());
    let said = Message::Assistant { text: reply.text, tool_calls: vec![] };
    let mut r = request(2, vec![user("count"), said, user("as JSON")], vec![]);
    r.response_schema = Some(json!({"type": "object", "properties": {"n": {"type": "integer"}}}));
    assert_eq!(ask(&p, r).await.0.unwrap().text, "{\"n\": 1}");
}

#[tokio::test]
async fn each_failure_of_a_server_is_told_apart() {
    let first = |line: &'static str| async move {
        let server = serve(line).await;
        ask(&provider(&server.url()), request(1, vec![user("x")], vec![calc()])).await.0
    };
    let limited = first("{\"error\":{\"status\":429,\"retry_after_ms\":10}}").await;
    assert!(
        matches!(&limited, Err(Error::Status { status: 429, message, .. }) if message == "the script says so"),
        "{limited:?}"
    );
    assert!(matches!(first("{\"error\":{\"status\":503}}").await, Err(Error::Status { status: 503, .. })));
    assert!(matches!(first("{\"text\":\"a b c d e f\",\"stream_cut\":true}").await, Err(Error::Unreachable { .. })));
    assert!(matches!(first("{\"raw\":\"data: {nonsense\\n\\n\"}").await, Err(Error::Garbled { .. })));
    assert!(matches!(first("{\"raw\":\"\"}").await, Err(Error::Unreachable { .. })));
    let mismatch = first("{\"expect\":\"apples\",\"text\":\"x\"}").await.unwrap_err().to_string();
    assert!(mismatch.contains("400") && mismatch.contains("apples"), "{mismatch}");
    let exhausted = first("").await.unwrap_err().to_string();
    assert!(exhausted.contains("0 replies"), "{exhausted}");
}

/// A constrained reply that ends in the middle of a call, as a line of a script.
const CUT_CALL: &str = r#"{"raw":"data: {\"choices\":[{\"delta\":{\"content\":\"{\\\"calls\\\": [{\\\"tool\\\"\"}}]}\n\ndata: {\"choices\":[{\"delta\":{},\"finish_reason\":\"length\"}]}\n\ndata: [DONE]\n\n"}"#;

#[tokio::test]
async fn a_reply_that_cannot_be_used_goes_back_to_the_model() {
    let twice = |line: &str, last: &str| format!("{line}\n{line}\n{last}\n");
    let server = serve(&twice(CUT_CALL, r#"{"expect":"cannot be used","text":"better"}"#)).await;
    let reply = ask(&provider(&server.url()), request(1, vec![user("x")], vec![calc()])).await.0.unwrap();
    assert_eq!((reply.text.as_str(), reply.finish, server.requests().len()), ("better", Finish::Stop, 3));
    // Each attempt was paid for.
    assert!(reply.usage.input > server.requests().len() as u32 * 10);
    let server = serve(&twice(CUT_CALL, CUT_CALL)).await;
    let why = ask(&provider(&server.url()), request(1, vec![user("x")], vec![calc()])).await.0.unwrap_err();
    assert!(matches!(&why, Error::Malformed { message, .. } if message.contains("limit of output tokens")), "{why:?}");
    assert_eq!(server.requests().len(), 3);
}

/// A conversation with a tool, by the model's own calls.
async fn native_conversation(server: &FakeLlm, p: &Remote) -> (Reply, Reply) {
    let mut window = vec![Message::System { text: "Be brief.".to_owned() }, user("What is six?")];
    let ask_it = |window: &Vec<Message>, index| Request {
        model: "priced".to_owned(),
        ..request(index, window.clone(), vec![calc()])
    };
    let first = ask(p, ask_it(&window, 1)).await.0.unwrap();
    answer_calls(&mut window, &first, |_| r#"{"value":6}"#.to_owned());
    let (second, pieces) = ask(p, ask_it(&window, 2)).await;
    let second = second.unwrap();
    assert_eq!((pieces.join(""), pieces.len() > 1), (second.text.clone(), true), "the answer streams");
    assert_eq!(server.requests().iter().map(|r| (r.index, r.completed)).collect::<Vec<_>>(), [(1, true), (2, true)]);
    (first, second)
}

#[tokio::test]
async fn native_calls_are_made_on_both_wires_and_priced() {
    for (kind, header) in [(ProviderKind::Openai, format!("Bearer {KEY}")), (ProviderKind::Anthropic, KEY.to_owned())] {
        let server = serve(CALL_THEN_ANSWER).await;
        let p = Remote::new(Settings { kind, native_tools: Some(true), ..settings(&server.url()) }).unwrap();
        let (first, second) = native_conversation(&server, &p).await;
        let call = ToolCall { id: "c1".into(), name: "calc__eval".into(), arguments: r#"{"expression":"2*3"}"#.into() };
        assert_eq!((first.tool_calls.as_slice(), first.finish), ([call].as_slice(), Finish::ToolCalls), "{kind:?}");
        assert_eq!(first.usage, TokenUsage { input: 50, cached: 40, output: 9, micro_usd: Some(30 + 12 + 135) });
        assert_eq!((second.text.as_str(), second.finish), ("It is 6, they say.", Finish::Stop));
        assert_eq!(server.requests()[0].key.as_deref(), Some(header.as_str()));
    }
}

#[tokio::test]
async fn a_model_that_nobody_has_spoken_of_is_asked_whether_it_calls_tools() {
    for native in [true, false] {
        let (_dir, path) = script(CALL_THEN_ANSWER);
        let server = FakeLlm::start_as(&path, "assistant", native).await.unwrap();
        let p = Remote::new(Settings { native_tools: None, ..settings(&server.url()) }).unwrap();
        let reply = ask(&p, request(1, vec![user("What is six?")], vec![calc()])).await.0.unwrap();
        // The script's own id on the wire of native calls, one made up for a constrained one.
        assert_eq!(reply.tool_calls[0].id, if native { "c1" } else { "call_1" });
        assert_eq!(server.requests().len(), 1);
    }
}

/// A server that refuses what `refuse` names, and else streams the answer `yes`. It tells what it was sent.
async fn picky(refuse: fn(&Value) -> Option<(u16, Value)>) -> (String, Arc<std::sync::Mutex<Vec<Value>>>) {
    use axum::response::IntoResponse as _;
    let seen: Arc<std::sync::Mutex<Vec<Value>>> = Arc::default();
    let log = Arc::clone(&seen);
    let answer = move |axum::Json(body): axum::Json<Value>| {
        let log = Arc::clone(&log);
        async move {
            log.lock().unwrap().push(body.clone());
            if let Some((status, error)) = refuse(&body) {
                return (axum::http::StatusCode::from_u16(status).unwrap(), axum::Json(error)).into_response();
            }
            let constrained = body.pointer("/response_format").is_some();
            let text = if constrained { r#"{\"answer\":\"yes\"}"# } else { "yes" };
            let chunk = format!(
                "data: {{\"choices\":[{{\"delta\":{{\"content\":\"{text}\"}},\"finish_reason\":\"stop\"}}]}}\n\ndata: [DONE]\n\n"
            );
            ([("content-type", "text/event-stream")], chunk).into_response()
        }
    };
    let app = axum::Router::new().route("/v1/chat/completions", axum::routing::post(answer));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    (url, seen)
}

fn complaint(message: &str) -> Value {
    json!({"error": {"message": message, "type": "invalid_request_error"}})
}

#[tokio::test]
async fn what_a_server_refuses_by_one_spelling_is_asked_in_another_and_remembered() {
    let (url, seen) = picky(|body| {
        let has = |key: &str| body.get(key).is_some();
        let no = |message: &str| Some((400, complaint(message)));
        if has("temperature") {
            no("Unsupported value: 'temperature' does not support 0.0 with this model.")
        } else if has("max_tokens") {
            no("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        } else if has("response_format") {
            no("response_format json_schema is not supported by this model")
        } else {
            None
        }
    })
    .await;
    let p = provider(&url);
    for asked in [4, 5] {
        let reply = ask(&p, request(1, vec![user("x")], vec![calc()])).await.0.unwrap();
        assert_eq!((reply.text.as_str(), seen.lock().unwrap().len()), ("yes", asked));
    }
    assert!(seen.lock().unwrap()[4]["max_completion_tokens"].is_u64());
}

#[tokio::test]
async fn a_prompt_that_is_too_long_is_told_apart_and_the_window_is_learned() {
    let (url, _) = picky(|_| {
        Some((400, complaint("This model's maximum context length is 3000 tokens. However, you requested 9000.")))
    })
    .await;
    let p = provider(&url);
    let why = ask(&p, request(1, vec![user("x")], vec![])).await.0.unwrap_err();
    assert!(matches!(why, Error::TooLong { limit: Some(3000), .. }), "{why:?}");
    assert_eq!((p.window("m"), p.window("another")), (3000, 8192));
}

#[tokio::test]
async fn an_answer_beyond_what_the_window_can_hold_is_cut() {
    let text = "word ".repeat(100_000);
    let server = serve(&format!("{}\n", json!({"text": text}))).await;
    let reply = ask(&provider(&server.url()), request(1, vec![user("x")], vec![])).await.0.unwrap();
    assert_eq!(reply.finish, Finish::Length);
    assert!(reply.text.len() < 80_000 && text.starts_with(&reply.text), "{}", reply.text.len());
}

#[tokio::test]
async fn an_empty_answer_and_two_answers_have_a_stated_outcome() {
    let raw = |content: &str| {
        let chunk = json!({"choices": [{"delta": {"content": content}, "finish_reason": "stop"}]});
        format!("{}\n", json!({"raw": format!("data: {chunk}\n\ndata: [DONE]\n\n")}))
    };
    let server = serve(&raw("  ")).await;
    let why = ask(&provider(&server.url()), request(1, vec![user("x")], vec![])).await.0.unwrap_err();
    assert!(matches!(&why, Error::Garbled { message, .. } if message.contains("empty")), "{why:?}");
    let server = serve(&raw(r#"{"answer":"one"} {"answer":"two"}"#)).await;
    let reply = ask(&provider(&server.url()), request(1, vec![user("x")], vec![calc()])).await.0.unwrap();
    assert_eq!(reply.text, "one");
}

/// Answers one connection with these bytes.
async fn answer_once(bytes: Vec<u8>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut seen = Vec::new();
        let mut buffer = [0; 4096];
        // The request's body is JSON and ends the request.
        while !seen.ends_with(b"}") {
            let n = socket.read(&mut buffer).await.unwrap();
            seen.extend_from_slice(&buffer[..n]);
        }
        socket.write_all(&bytes).await.unwrap();
        socket.shutdown().await.unwrap();
    });
    url
}

#[tokio::test]
async fn odd_answers_name_the_server_and_never_the_key() {
    let body = format!("{{\"error\":{{\"message\":\"Incorrect API key {KEY} {}\"}}}}", "x".repeat(2000));
    let unauthorised =
        format!("HTTP/1.1 401 Unauthorized\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes();
    let mut not_utf8 = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: ".to_vec();
    not_utf8.extend_from_slice(&[0xff, 0xfe, b'\n', b'\n']);
    let redirect =
        b"HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n".to_vec();
    for (bytes, expected) in [
        (unauthorised, "answered 401: Incorrect API key [key]"),
        (not_utf8, "not UTF-8"),
        (redirect, "answered 307"),
        (b"nonsense\r\n\r\n".to_vec(), "cannot be reached"),
    ] {
        let url = answer_once(bytes).await;
        let why = ask(&provider(&url), request(1, vec![user("x")], vec![])).await.0.unwrap_err();
        let text = format!("{why} {why:?}");
        assert!(text.contains(expected) && !text.contains(KEY) && text.len() < 1200, "{expected}: {text}");
    }
    let refused = ask(&provider("http://127.0.0.1:1/v1"), request(1, vec![user("x")], vec![])).await.0.unwrap_err();
    assert!(
        matches!(&refused, Error::Unreachable { url, message, .. } if url == "http://127.0.0.1:1/v1" && message.contains("refused")),
        "{refused}"
    );
}

#[tokio::test]
async fn dropping_the_request_closes_it() {
    let server = serve("{\"text\":\"late\",\"delay_ms\":600000}").await;
    let p = provider(&server.url());
    let (tx, _rx) = tokio::sync::mpsc::unbounded_channel();
    let mut asking = p.generate(Arc::new(request(1, vec![user("x")], vec![])), tx);
    // Polled until the server has the request, then dropped.
    while server.requests().is_empty() {
        let waited = tokio::time::timeout(Duration::from_millis(5), &mut asking).await;
        assert!(waited.is_err(), "it answered before its delay");
    }
    drop(asking);
    assert!(!server.requests()[0].completed);
}

async fn post(url: &str, body: Value) -> (u16, reqwest::header::HeaderMap, String) {
    let r = reqwest::Client::builder().no_proxy().tls_certs_only(std::iter::empty()).build().unwrap();
    let r = r.post(url).json(&body).send().await.unwrap();
    (r.status().as_u16(), r.headers().clone(), r.text().await.unwrap())
}

fn events(text: &str) -> Vec<Value> {
    text.lines().filter_map(|l| l.strip_prefix("data: ")).filter_map(|d| serde_json::from_str(d).ok()).collect()
}

#[tokio::test]
async fn the_fake_server_speaks_openai_with_native_calls() {
    let server = serve(CALL_THEN_ANSWER).await;
    let url = format!("{}/chat/completions", server.url());
    let tools = json!([{"type": "function", "function": {"name": "calc__eval", "parameters": {}}}]);
    let first = json!({"model": "m", "tools": tools, "messages": [{"role": "user", "content": "six?"}]});
    let plain: Value = serde_json::from_str(&post(&url, first.clone()).await.2).unwrap();
    let call = &plain["choices"][0]["message"]["tool_calls"][0];
    assert_eq!((&call["id"], &call["function"]["arguments"]), (&json!("c1"), &json!(r#"{"expression":"2*3"}"#)));
    assert_eq!(plain["usage"]["prompt_tokens_details"]["cached_tokens"], 40);
    let mut streamed = first.clone();
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({"include_usage": true});
    let (_, headers, text) = post(&url, streamed).await;
    assert_eq!(headers["content-type"], "text/event-stream");
    assert!(text.ends_with("data: [DONE]\n\n"));
    let events = events(&text);
    let arguments: String =
        events.iter().filter_map(|e| e.pointer("/choices/0/delta/tool_calls/0/function/arguments")?.as_str()).collect();
    assert_eq!(arguments, r#"{"expression":"2*3"}"#);
    assert_eq!(events.last().unwrap()["usage"]["prompt_tokens"], 50);
    let second = json!({"model": "m", "tools": tools, "messages": [
        {"role": "user", "content": "six?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "{\"value\":6}"},
    ]});
    let answer: Value = serde_json::from_str(&post(&url, second).await.2).unwrap();
    assert_eq!(answer["choices"][0]["message"]["content"], "It is 6, they say.");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn the_fake_server_speaks_anthropic_with_tool_use() {
    let server = serve(CALL_THEN_ANSWER).await;
    let url = format!("{}/messages", server.url());
    let first = json!({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": [{"type": "text", "text": "six?"}]}]});
    let plain: Value = serde_json::from_str(&post(&url, first.clone()).await.2).unwrap();
    assert_eq!(
        plain["content"][0],
        json!({"type": "tool_use", "id": "c1", "name": "calc__eval", "input": {"expression": "2*3"}})
    );
    assert_eq!((&plain["stop_reason"], &plain["usage"]["cache_read_input_tokens"]), (&json!("tool_use"), &json!(40)));
    let mut streamed = first;
    streamed["stream"] = json!(true);
    let (_, _, text) = post(&url, streamed).await;
    let seen = events(&text);
    let kinds: Vec<&str> = seen.iter().map(|e| e["type"].as_str().unwrap()).collect();
    assert_eq!((kinds[0], *kinds.last().unwrap()), ("message_start", "message_stop"));
    let partial: String = seen.iter().filter_map(|e| e.pointer("/delta/partial_json")?.as_str()).collect();
    assert_eq!(partial, r#"{"expression":"2*3"}"#);
    let second = json!({"model": "m", "max_tokens": 9, "messages": [
        {"role": "user", "content": "six?"},
        {"role": "assistant", "content": plain["content"]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "{\"value\":6}"}]},
    ]});
    let answer: Value = serde_json::from_str(&post(&url, second).await.2).unwrap();
    assert_eq!(answer["content"][0]["text"], "It is 6, they say.");
}

#[tokio::test]
async fn the_fake_server_sends_errors_with_their_headers() {
    let server = serve("{\"error\":{\"status\":429,\"retry_after_ms\":1500}}").await;
    for path in ["chat/completions", "messages"] {
        let (status, headers, text) = post(&format!("{}/{path}", server.url()), json!({"messages": []})).await;
        assert_eq!(
            (status, &headers["retry-after"], &headers["retry-after-ms"]),
            (429, &"2".parse().unwrap(), &"1500".parse().unwrap())
        );
        assert!(text.contains("rate_limit_error"));
    }
    let (status, _, text) = post(&format!("{}/chat/completions", server.url()), json!("x")).await;
    assert_eq!(status, 429, "{text}");
}

#[test]
fn the_demos_script_is_whole() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../demo/script.jsonl");
    let lines = agent_os_kernel::llm::script::Script::open(&path).unwrap().lines("assistant").count();
    assert_eq!(lines, 7);
}

/// What the kernel's `fs` tools give for these calls, over the demo's own folder.
fn look(call: &ToolCall) -> String {
    let arguments: Value = serde_json::from_str(&call.arguments).unwrap_or_default();
    let path = arguments["path"].as_str().unwrap_or_default();
    let inside = path == "shop" || (path.starts_with("shop/") && !path.contains(".."));
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../demo/files").join(path);
    let read = || std::fs::read_to_string(&file).ok().filter(|_| inside);
    let missing = || format!("not-found: there is no file `{path}`");
    match call.name.as_str() {
        "fs__read" => read().map_or_else(missing, |text| {
            json!({"text": text, "offset": 0, "bytes": text.len(), "size": text.len(), "truncated": false}).to_string()
        }),
        "fs__search" => read().map_or_else(missing, |text| {
            let pattern = arguments["pattern"].as_str().unwrap_or_default();
            let lines = text.lines().enumerate().filter(|(_, l)| l.contains(pattern));
            let found: Vec<Value> = lines.map(|(i, l)| json!({"path": path, "line": i + 1, "text": l})).collect();
            json!({"matches": found, "files_searched": 1, "truncated": false}).to_string()
        }),
        _ => "not-found: only files here".to_owned(),
    }
}

/// Runs only where `AOK_REAL_LLM_URL` names a server, for example a llama.cpp with SmolLM2-135M:
/// the model looks both figures up with the tools, and the answer repeats what they returned.
#[tokio::test]
async fn a_real_model_answers_the_demos_question_from_two_tool_calls() {
    let Ok(url) = std::env::var("AOK_REAL_LLM_URL") else { return };
    let model = Remote::new(Settings { key: None, ..settings(&url) }).unwrap();
    // All bundled tools, as the kernel offers them.
    let text = json!({"type": "string"});
    let file = json!({"path": text, "content": text});
    let part = json!({"path": text, "offset": {"type": "integer"}, "limit": {"type": "integer"}});
    let pattern = json!({"path": text, "pattern": text});
    let eval = "Evaluates an arithmetic expression exactly as written, for example `(17 + 4) * 3 / 2` or `round(sqrt(2) * 100)`.";
    let append = "Adds text to the end of a file; creates it, and the directories above it, when it does not exist.";
    let search = "Searches the lines of a file, or of all files below a directory, for a regular expression.";
    let write = "Writes a text file: creates it, and the directories above it, or replaces all that is in it.";
    let read = "Reads a text file, or a part of a long one: the result says where to go on.";
    let list = "Lists a directory: name, kind and size of each entry, sorted by name.";
    let tools = vec![
        described("calc__eval", eval, json!({"expression": text}), Effect::Pure),
        described("fs__append", append, file.clone(), Effect::Destructive),
        described("fs__list", list, json!({"path": text}), Effect::ReadOnly),
        described("fs__read", read, part, Effect::ReadOnly),
        described("fs__search", search, pattern, Effect::ReadOnly),
        described("fs__write", write, file, Effect::Idempotent),
    ];
    let task =
        std::fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../demo/real-task.txt")).unwrap();
    let mut window = vec![user(task.trim())];
    let mut results: Vec<String> = Vec::new();
    for index in 1..=5 {
        let reply = ask(&model, request(index, window.clone(), tools.clone())).await.0.unwrap();
        if reply.tool_calls.is_empty() {
            let good: Vec<&String> = results.iter().filter(|r| r.contains("mugs: ")).collect();
            assert!(good.len() >= 2, "{results:?} {reply:?}");
            assert!(reply.text.contains("37") && reply.text.contains("450"), "{reply:?}");
            return;
        }
        results.extend(reply.tool_calls.iter().map(look));
        answer_calls(&mut window, &reply, look);
    }
    panic!("no answer: {window:?}");
}

fn described(name: &str, description: &str, properties: Value, effect: Effect) -> ToolSpec {
    let required: Vec<&String> =
        properties.as_object().unwrap().keys().filter(|k| !matches!(k.as_str(), "offset" | "limit")).collect();
    let mut spec = tool(name, json!({"type": "object", "required": required, "properties": properties}));
    spec.description = description.to_owned();
    spec.effect = effect;
    spec
}
