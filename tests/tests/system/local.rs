//! A real llama.cpp server with real weights, started, watched and stopped by the kernel. They are not in
//! the repository: `cargo xtask test --all` fetches them and says where they are.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_os_kernel::abi::{Finish, Message, Reply};
use agent_os_kernel::config::{LlmConfig, LocalConfig, ProviderKind};
use agent_os_kernel::llm::local::Places;
use agent_os_kernel::llm::prices::Prices;
use agent_os_kernel::llm::remote::{Remote, Settings};
use agent_os_kernel::llm::{Error, Models, Provider, Request};
use serde_json::Value;

use crate::support::{World, eventually};

/// The server and the weights; `None` where they are not to be had and need not be.
#[allow(
    clippy::print_stderr,
    reason = "a test that is left out says so; clippy does not see that this is one's helper"
)]
fn files() -> Option<(PathBuf, PathBuf)> {
    let path = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let found = path("AOK_LLAMA_SERVER").zip(path("AOK_WEIGHTS"));
    if found.is_none() {
        assert!(std::env::var_os("AOK_TEST_ALL").is_none(), "AOK_LLAMA_SERVER and AOK_WEIGHTS must name them");
        eprintln!("not run: no local model (cargo xtask test --all)");
    }
    found
}

fn models(places: &Places, server: &Path) -> Models {
    let local = LocalConfig {
        server: Some(server.to_owned()),
        window: 2048,
        native_tools: Some(false),
        ..LocalConfig::default()
    };
    Models::new(LlmConfig { local, ..LlmConfig::default() }, Some(places.clone()), |_| None)
}

fn places(dir: &Path) -> Places {
    Places { models: dir.join("models"), cache: dir.join("cache") }
}

async fn ask(provider: &dyn Provider, text: &str) -> Result<Reply, Error> {
    let request = Request {
        model: "m".to_owned(),
        agent: "assistant".to_owned(),
        index: 1,
        messages: vec![Message::User { text: text.to_owned() }],
        tools: vec![],
        temperature: Some(0.0),
        max_tokens: Some(8),
        response_schema: None,
        results: std::collections::HashMap::new(),
        claim: agent_os_kernel::llm::Claim::default(),
    };
    let (deltas, _) = tokio::sync::mpsc::unbounded_channel();
    provider.generate(Arc::new(request), deltas).await
}

/// PIDs of the servers that are on record.
fn recorded(places: &Places) -> Vec<u32> {
    let files = std::fs::read_dir(&places.cache).into_iter().flatten().flatten();
    let texts = files.filter_map(|f| std::fs::read(f.path()).ok());
    texts.filter_map(|t| u32::try_from(serde_json::from_slice::<Value>(&t).ok()?["pid"].as_u64()?).ok()).collect()
}

fn runs(pid: u32) -> bool {
    // One that has ended and that nobody has waited for has no command line.
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

fn kill(pid: u32) {
    assert!(std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
}

#[tokio::test]
async fn the_server_starts_with_the_first_request_is_started_again_and_stopped() {
    let Some((server, weights)) = files() else { return };
    let dir = tempfile::tempdir().unwrap();
    let places = places(dir.path());
    let models = models(&places, &server);
    let name = format!("local/{}", weights.display());
    let found = models.resolve(Some(&name)).unwrap();
    assert!(recorded(&places).is_empty(), "resolving a name starts nothing");
    let reply = ask(&*found.provider, "Say hello.").await.unwrap();
    assert!(!reply.text.is_empty() && reply.usage.input > 0 && reply.usage.micro_usd.is_none(), "{reply:?}");
    let first = recorded(&places)[0];
    ask(&*found.provider, "Say hello.").await.unwrap();
    assert_eq!(recorded(&places), [first], "one server serves all requests");
    kill(first);
    eventually("the server to be gone", || (!runs(first)).then_some(()));
    ask(&*found.provider, "Say hello.").await.unwrap();
    let second = recorded(&places)[0];
    assert!(first != second && runs(second));
    models.stop().await;
    assert!(!runs(second) && recorded(&places).is_empty());
}

#[tokio::test]
async fn a_server_that_a_killed_kernel_left_behind_is_stopped() {
    let Some((server, weights)) = files() else { return };
    let dir = tempfile::tempdir().unwrap();
    let places = places(dir.path());
    let name = format!("local/{}", weights.display());
    let killed = models(&places, &server);
    ask(&*killed.resolve(Some(&name)).unwrap().provider, "Say hello.").await.unwrap();
    let left = recorded(&places)[0];
    // As a kill leaves it: nothing of this kernel's own end runs.
    std::mem::forget(killed);
    let next = models(&places, &server);
    ask(&*next.resolve(Some(&name)).unwrap().provider, "Say hello.").await.unwrap();
    assert!(!runs(left), "two servers run");
    next.stop().await;
}

#[tokio::test]
async fn weights_that_are_none_are_told_with_the_servers_own_words() {
    let Some((server, _)) = files() else { return };
    let dir = tempfile::tempdir().unwrap();
    let places = places(dir.path());
    std::fs::create_dir(&places.models).unwrap();
    std::fs::write(places.models.join("bad.gguf"), "no weights").unwrap();
    let models = models(&places, &server);
    let why = ask(&*models.resolve(Some("local/bad.gguf")).unwrap().provider, "x").await.unwrap_err();
    let text = why.to_string();
    assert!(matches!(why, Error::Local { .. }) && text.contains("bad.gguf") && text.contains("it said: "), "{text}");
}

#[test]
fn a_run_with_tools_answers_from_the_demos_files() {
    let Some((server, weights)) = files() else { return };
    let world = World::new();
    let quoted = Value::from(server.display().to_string());
    world.configure(&format!("[llm.local]\nserver = {quoted}\nnative_tools = false\n"));
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let task = std::fs::read_to_string(repository.join("demo/real-task.txt")).unwrap();
    let shop = repository.join("demo/files/shop");
    let model = format!("local/{}", weights.display());
    let ran = world
        .run(&["--json", "run", "--task", task.trim(), "--model", &model, "--dir", &shop.display().to_string()])
        .exits(0);
    let events = ran.lines();
    let good = |e: &&Value| e["type"] == "tool_end" && e["ok"] == true;
    assert!(events.iter().filter(good).count() >= 2, "{events:?}");
    let answer = events.last().unwrap()["answer"].as_str().unwrap();
    assert!(answer.contains("37") && answer.contains("450"), "{answer}");
    let places = Places { models: PathBuf::new(), cache: world.data().join("cache") };
    assert!(recorded(&places).is_empty(), "the server was not stopped with the kernel");
}

/// llama.cpp's server also speaks Anthropic's protocol.
#[tokio::test]
async fn a_real_model_answers_through_the_anthropic_protocol() {
    let Ok(url) = std::env::var("AOK_REAL_LLM_URL") else {
        assert!(std::env::var_os("AOK_TEST_ALL").is_none(), "AOK_REAL_LLM_URL must name a server");
        return;
    };
    let remote = Remote::new(Settings {
        name: "real".to_owned(),
        kind: ProviderKind::Anthropic,
        base_url: url,
        key: None,
        window: 8192,
        native_tools: Some(false),
        prices: Arc::new(Prices::new([].into())),
    })
    .unwrap();
    let reply = ask(&remote, "What is the capital of France?").await.unwrap();
    assert!(!reply.text.trim().is_empty() && reply.usage.input > 0 && reply.usage.output > 0, "{reply:?}");
    assert!(matches!(reply.finish, Finish::Stop | Finish::Length));
}
