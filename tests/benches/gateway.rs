//! One call of a model through the gateway, beside a bare HTTP client that writes the same body as JSON, posts it to
//! the same server, reads the same stream to its end and parses each of its chunks: what slots, breaker, retries,
//! prices, tool calls and two wires cost where the network costs almost nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_os_kernel::abi::{Effect, Message, ToolCall, ToolSpec};
use agent_os_kernel::config::{ProviderKind, Traffic};
use agent_os_kernel::llm::gateway::Gateway;
use agent_os_kernel::llm::prices::Prices;
use agent_os_kernel::llm::remote::{Key, Remote, Settings};
use agent_os_kernel::llm::{Provider as _, Request};
use anyhow::{Context as _, Result, ensure};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use axum::serve::ListenerExt as _;
use futures_util::{StreamExt as _, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use system_tests::fake_llm::events;
use system_tests::figure::Figure;

/// As in `aok`, for both sides.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 300;
const CALLS: usize = 8;
/// Pieces of the answer; a few chunks more are around them.
const PIECES: usize = 40;
const KEY: &str = "sk-of-the-bench";

/// The server: nothing but a stream, so that what is compared are the clients. It keeps the last body.
#[derive(Clone)]
struct Server {
    chunks: Arc<Vec<Bytes>>,
    body: Arc<std::sync::Mutex<Bytes>>,
}

async fn answer(State(server): State<Server>, body: Bytes) -> Response {
    if let Ok(mut last) = server.body.lock() {
        *last = body;
    }
    let chunks = stream::unfold((server.chunks, 0), |(chunks, at)| async move {
        // Each piece leaves by itself, as a model's do.
        tokio::task::yield_now().await;
        let chunk = chunks.get(at)?.clone();
        Some((Ok::<_, std::io::Error>(chunk), (chunks, at + 1)))
    });
    ([("content-type", "text/event-stream")], Body::from_stream(chunks)).into_response()
}

/// Serves from a thread of its own; the base URL.
fn serve(server: Server) -> Result<String> {
    let (send, address) = std::sync::mpsc::channel();
    std::thread::spawn(move || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async move {
            let app = Router::new().route("/v1/chat/completions", post(answer)).with_state(server);
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
            send.send(listener.local_addr()?)?;
            let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
            Ok(axum::serve(listener, app).await?)
        })
    });
    Ok(format!("http://{}/v1", address.recv().context("the server did not start")?))
}

/// A window as it is in the middle of a run: instructions, a task, four turns with a tool, eight tools on offer.
fn request() -> Request {
    let mut messages = vec![
        Message::System { text: "Directories: work (read and write).".to_owned() },
        Message::User { text: "Find out what the shop has and write a summary of it. ".repeat(4) },
    ];
    for turn in 0..4 {
        let id = format!("call_{turn}");
        let call = ToolCall {
            id: id.clone(),
            name: "fs__read".to_owned(),
            arguments: format!("{{\"path\":\"work/{turn}.txt\"}}"),
        };
        messages.push(Message::Assistant { text: "I look.".to_owned(), tool_calls: vec![call] });
        let text = json!({"text": "mugs: 37, of 450 g each\n".repeat(40), "truncated": false}).to_string();
        messages.push(Message::Tool { call_id: id, name: "fs__read".to_owned(), text });
    }
    let tool = |n: usize| ToolSpec {
        name: format!("fs__tool_{n}"),
        description: "Reads a text file, or a part of a long one: the result says where to go on.".to_owned(),
        input_schema: json!({
            "type": "object",
            "properties": {"path": {"type": "string", "description": "The file."}, "offset": {"type": "integer"}},
            "required": ["path"],
            "additionalProperties": false,
        }),
        output_schema: None,
        effect: Effect::ReadOnly,
    };
    Request {
        model: "m".to_owned(),
        agent: "assistant".to_owned(),
        index: 5,
        messages,
        tools: (0..8).map(tool).collect(),
        temperature: None,
        max_tokens: None,
        response_schema: None,
        results: HashMap::new(),
        claim: agent_os_kernel::llm::Claim::default(),
    }
}

async fn ours(gateway: &Gateway, request: &Arc<Request>) -> Result<usize> {
    let (deltas, mut pieces) = tokio::sync::mpsc::unbounded_channel();
    let reply = gateway.generate(Arc::clone(request), deltas).await?;
    while pieces.recv().await.is_some() {}
    Ok(reply.text.len())
}

#[derive(Deserialize)]
struct Chunk {
    choices: Vec<Choice>,
    usage: Option<Used>,
}

#[derive(Deserialize)]
struct Choice {
    delta: Delta,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
    tool_calls: Option<Value>,
}

#[derive(Deserialize)]
struct Used {
    prompt_tokens: u32,
    completion_tokens: u32,
}

async fn bare(client: &reqwest::Client, url: &str, body: &Value) -> Result<usize> {
    let response = client.post(url).bearer_auth(KEY).json(body).send().await?.error_for_status()?;
    let mut stream = response.bytes_stream();
    let (mut buffer, mut text, mut ended) = (Vec::new(), String::new(), false);
    let mut used = 0;
    while let Some(bytes) = stream.next().await {
        buffer.extend_from_slice(&bytes?);
        let mut from = 0;
        while let Some(end) = buffer[from..].windows(2).position(|w| w == b"\n\n").map(|i| from + i) {
            let event = &buffer[from..end];
            from = end + 2;
            let Some(data) = event.strip_prefix(b"data: ") else { continue };
            if data == b"[DONE]" {
                ended = true;
                continue;
            }
            let chunk: Chunk = serde_json::from_slice(data)?;
            for choice in chunk.choices {
                text.push_str(choice.delta.content.as_deref().unwrap_or_default());
                ensure!(choice.delta.tool_calls.is_none(), "no tool was called");
                ended |= choice.finish_reason.is_some();
            }
            used += chunk.usage.map_or(0, |u| u.prompt_tokens + u.completion_tokens);
        }
        buffer.drain(..from);
    }
    ensure!(ended && used > 0, "the stream had no end");
    Ok(text.len())
}

/// Half of the calls took no longer.
fn p50(all: &mut [Duration]) -> f64 {
    all.sort();
    all[all.len() / 2].as_secs_f64() * 1e6
}

async fn measure(gateway: &Gateway, server: &Server, url: &str) -> Result<(f64, f64)> {
    let request = Arc::new(request());
    let client = reqwest::Client::builder().no_proxy().tcp_nodelay(true).tls_certs_only(std::iter::empty()).build()?;
    let said = ours(gateway, &request).await?;
    let body = server.body.lock().map_err(|_| anyhow::anyhow!("the server broke"))?.clone();
    let body: Value = serde_json::from_slice(&body)?;
    ensure!(bare(&client, url, &body).await? == said, "the two read different answers");
    let (mut by_us, mut by_it) = (Vec::new(), Vec::new());
    // Rounds alternate, so that a busy moment of the machine meets both.
    for _ in 0..ROUNDS {
        for _ in 0..CALLS {
            let start = Instant::now();
            ours(gateway, &request).await?;
            by_us.push(start.elapsed());
        }
        for _ in 0..CALLS {
            let start = Instant::now();
            bare(&client, url, &body).await?;
            by_it.push(start.elapsed());
        }
    }
    Ok((p50(&mut by_us), p50(&mut by_it)))
}

fn main() -> Result<()> {
    let answer = "word ".repeat(PIECES);
    let asked = json!({"model": "m", "stream_options": {"include_usage": true}});
    let chunks = events(false, &asked, &answer, Vec::new()).into_iter().map(Bytes::from).collect();
    let server = Server { chunks: Arc::new(chunks), body: Arc::default() };
    let url = serve(server.clone())?;
    let settings = Settings {
        name: "stub".to_owned(),
        kind: ProviderKind::Openai,
        base_url: url.clone(),
        key: Some(Key::new(KEY.to_owned())),
        window: 128_000,
        native_tools: Some(true),
        prices: Arc::new(Prices::new([].into())),
    };
    let gateway = Gateway::new("stub", Arc::new(Remote::new(settings)?), Traffic::default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (ours_us, bare_us) = runtime.block_on(measure(&gateway, &server, &format!("{url}/chat/completions")))?;
    let figure = Figure::at_most("gateway", "gateway_call_us", ours_us, "us", 0.0).beside(bare_us);
    Figure { ok: None, target: None, ..figure }.print();
    Figure::at_most("gateway", "gateway_overhead_ratio", ours_us / bare_us, "ratio", 1.2).print();
    Ok(())
}
