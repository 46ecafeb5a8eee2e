//! The bundled `http` tool and the way out: what `--host` grants is reached, and nothing else is.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use agent_os_kernel::kernel::{Kernel, SpawnRequest};
use agent_os_kernel::process::Exit;
use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::support::{NETAGENT, PATIENCE, PROBE, Ran, STEPPER, World, calls};

/// What a site was asked.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    headers: HeaderMap,
    pub(crate) body: String,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// A web server of this test on 127.0.0.1.
pub(crate) struct Site {
    pub(crate) port: u16,
    asked: Arc<Mutex<Vec<Asked>>>,
    _runtime: tokio::runtime::Runtime,
}

impl Site {
    pub(crate) fn open() -> Self {
        let asked = Arc::default();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let app = axum::Router::new().fallback(serve).with_state(Arc::clone(&asked));
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        runtime.spawn(async move { axum::serve(listener, app).await });
        Self { port, asked, _runtime: runtime }
    }

    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.host())
    }

    /// Everything that it was asked since the last time.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

async fn serve(State(asked): State<Arc<Mutex<Vec<Asked>>>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, 1 << 24).await.unwrap();
    let path = parts.uri.to_string();
    let body = String::from_utf8(body.to_vec()).unwrap();
    let echo = format!("{} {path} {:?} {body} {}", parts.method, parts.headers, STANDARD.encode(&body));
    let authorization = parts.headers.get("authorization").cloned();
    asked.lock().unwrap().push(Asked {
        method: parts.method.to_string(),
        path: path.clone(),
        headers: parts.headers,
        body,
    });
    let (path, query) = path.split_once('?').unwrap_or((&path, ""));
    match path.split('/').skip(1).collect::<Vec<_>>()[..] {
        ["text"] => "hello, wörld".into_response(),
        ["bytes"] => vec![0xff, 0x00, 0xfe].into_response(),
        ["big"] => "€".repeat(1 << 20).into_response(),
        ["cookies"] => [(header::SET_COOKIE, "a=1"), (header::VARY, "x")].into_response(),
        ["status", status] => (StatusCode::from_bytes(status.as_bytes()).unwrap(), "so it is").into_response(),
        ["to", status] => {
            (StatusCode::from_bytes(status.as_bytes()).unwrap(), [(header::LOCATION, query)]).into_response()
        }
        // All that was sent, and in a header what is most secret of it.
        ["echo", status] => {
            let status = StatusCode::from_bytes(status.as_bytes()).unwrap();
            (status, [("x-echo", authorization.unwrap_or(HeaderValue::from_static("none")))], echo).into_response()
        }
        // The same, a few bytes at a time.
        ["drip"] => {
            let pieces: Vec<_> = echo.as_bytes().chunks(3).map(<[u8]>::to_vec).collect();
            let pieces = futures_util::stream::iter(pieces.into_iter().map(Ok::<_, std::io::Error>));
            axum::body::Body::from_stream(pieces).into_response()
        }
        ["loop"] => (StatusCode::FOUND, [(header::LOCATION, "/loop")]).into_response(),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

/// A server that accepts connections, counts them and says nothing until it is told to.
pub(crate) struct Trap {
    pub(crate) port: u16,
    connections: Arc<AtomicUsize>,
}

impl Trap {
    pub(crate) fn set() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        std::thread::spawn(move || {
            let mut kept = Vec::new();
            for stream in listener.incoming() {
                count.fetch_add(1, Ordering::SeqCst);
                kept.push(stream);
            }
        });
        Self { port, connections }
    }

    #[track_caller]
    pub(crate) fn is_untouched(&self) {
        assert_eq!(self.connections.load(Ordering::SeqCst), 0, "somebody connected");
    }
}

fn fetch(world: &World, arguments: &Value, hosts: &[&str]) -> Ran {
    let arguments = arguments.to_string();
    let hosts: Vec<&str> = hosts.iter().flat_map(|h| ["--host", h]).collect();
    world.run(&[&["tool", "call", "http__fetch", &arguments, "--json"], &hosts[..]].concat())
}

/// The result of a fetch that works.
#[track_caller]
fn fetched(world: &World, arguments: &Value, hosts: &[&str]) -> Value {
    fetch(world, arguments, hosts).exits(0).lines()[0]["result"].clone()
}

#[test]
fn a_granted_host_is_reached_and_its_answer_is_whole() {
    let (world, site) = (World::new(), Site::open());
    let get = |path: &str| fetched(&world, &json!({ "url": site.url(path) }), &[&site.host()]);
    let text = get("/text");
    assert_eq!(text["status"], 200);
    assert_eq!(text["url"], site.url("/text"));
    assert_eq!(text["body"], "hello, wörld");
    assert_eq!(text["truncated"], false);
    assert!(text["headers"]["content-type"].as_str().unwrap().starts_with("text/plain"), "{text}");
    let asked = site.asked();
    assert_eq!((asked.len(), asked[0].method.as_str(), asked[0].path.as_str()), (1, "GET", "/text"));
    assert_eq!(asked[0].header("host"), Some(site.host().as_str()));
    assert!(asked[0].header("user-agent").unwrap().starts_with("agent-os-kernel/"), "{asked:?}");

    // Any status is a result.
    let gone = get("/status/410");
    assert_eq!((&gone["status"], &gone["body"]), (&json!(410), &json!("so it is")));
    // What is no text comes as it is.
    let bytes = get("/bytes");
    assert_eq!((&bytes["body_base64"], bytes.get("body"), &bytes["truncated"]), (&json!("/wD+"), None, &json!(false)));
    // What is too long is cut between two characters.
    let big = get("/big");
    let body = big["body"].as_str().unwrap();
    assert_eq!((&big["truncated"], body.len()), (&json!(true), 256 * 1024 / 3 * 3));
    assert!(body.chars().all(|c| c == '€'));
    assert_eq!(get("/cookies")["headers"]["set-cookie"], "a=1");
    world.run(&["audit", "verify"]).exits(0);
}

#[test]
fn a_request_is_sent_as_it_is_given() {
    let (world, site) = (World::new(), Site::open());
    for (method, body, kind) in [
        ("POST", r#"{"a": [1, 2]}"#, "application/json"),
        ("PUT", "zwölf", "text/plain; charset=utf-8"),
        ("PATCH", "", "text/plain; charset=utf-8"),
        ("DELETE", "x", "text/plain; charset=utf-8"),
    ] {
        let arguments = json!({"url": site.url("/text?q=%20ü"), "method": method, "body": body,
            "headers": {"X-Own": "yes", "Authorization": "Bearer t"}});
        assert_eq!(fetched(&world, &arguments, &[&site.host()])["status"], 200);
        let asked = site.asked().remove(0);
        assert_eq!((asked.method.as_str(), asked.body.as_str()), (method, body));
        assert_eq!(asked.path, "/text?q=%20%C3%BC");
        assert_eq!(asked.header("content-type"), Some(kind));
        assert_eq!((asked.header("x-own"), asked.header("authorization")), (Some("yes"), Some("Bearer t")));
        assert_eq!(asked.header("content-length").unwrap_or("0"), body.len().to_string());
    }
    let head = fetched(&world, &json!({"url": site.url("/text"), "method": "HEAD"}), &[&site.host()]);
    assert_eq!((&head["status"], &head["body"]), (&json!(200), &json!("")));
    // A body of many pieces.
    let long = "0123456789".repeat(100_000);
    let file = world.dir.path().join("arguments.json");
    std::fs::write(&file, json!({"url": site.url("/text"), "method": "POST", "body": long}).to_string()).unwrap();
    let arguments = format!("@{}", file.display());
    world.run(&["tool", "call", "http__fetch", &arguments, "--host", &site.host()]).exits(0);
    assert_eq!(site.asked().pop().unwrap().body, long);
}

#[test]
fn nothing_is_reachable_by_default_and_a_grant_covers_its_host_and_port_alone() {
    let (world, site, trap) = (World::new(), Site::open(), Trap::set());
    let url = |host: &str| json!({ "url": format!("http://{host}:{}/", trap.port) });
    let here = format!("127.0.0.1:{}", trap.port);
    let by_name = format!("localhost:{}", trap.port);
    for (arguments, hosts, word) in [
        (url("127.0.0.1"), &[][..], format!("`--host {here}`")),
        (url("127.0.0.1"), &[site.host().as_str()], format!("`--host {here}`")),
        (url("127.0.0.1"), &["127.0.0.1"], format!("`--host {here}`")),
        (url("127.0.0.1"), &[by_name.as_str()], format!("`--host {here}`")),
        (url("127.0.0.1"), &["10.0.0.0/8", "example.com", "*.com"], format!("`--host {here}`")),
        (url("localhost"), &[here.as_str()], format!("`--host {by_name}`")),
        (json!({"url": "https://example.com/x"}), &[here.as_str()], "`--host example.com`".to_owned()),
        (json!({"url": "http://169.254.169.254/latest/meta-data"}), &["example.com"], "169.254.169.254".to_owned()),
    ] {
        fetch(&world, &arguments, hosts).refused(3, "denied", &[&word]);
    }
    trap.is_untouched();
    // The name as such is granted, and with it this machine.
    let named = json!({ "url": format!("http://localhost:{}/text", site.port) });
    assert_eq!(fetched(&world, &named, &[&format!("localhost:{}", site.port)])["body"], "hello, wörld");
    let network = fetched(&world, &json!({"url": site.url("/text")}), &[&format!("127.0.0.0/8:{}", site.port)]);
    assert_eq!(network["status"], 200);
}

#[test]
fn an_address_in_another_spelling_is_not_the_granted_one() {
    let (world, trap) = (World::new(), Trap::set());
    let grant = format!("127.0.0.1:{}", trap.port);
    for host in [
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "127.1",
        "127.0.0.1.",
        "[::ffff:127.0.0.1]",
        "[::127.0.0.1]",
    ] {
        let arguments = json!({ "url": format!("http://{host}:{}/", trap.port) });
        fetch(&world, &arguments, &[&grant]).refused(3, "denied", &["--host"]);
        fetch(&world, &arguments, &[]).refused(3, "denied", &["--host"]);
    }
    trap.is_untouched();
}

/// A name of this machine's that leads to itself or its own network, other than `localhost`.
fn inner_name() -> Option<String> {
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    let names = hosts.lines().filter(|l| !l.starts_with('#')).flat_map(|l| l.split_whitespace().skip(1));
    names.map(str::to_owned).find(|name| !name.contains("localhost") || name == "ip6-localhost")
}

#[test]
fn a_granted_name_that_leads_inside_is_refused_at_its_address() {
    let (world, trap) = (World::new(), Trap::set());
    let Some(name) = inner_name() else {
        // The unit tests of the policy hold it against addresses of every kind.
        eprintln!("skipped: this machine's /etc/hosts has no name but localhost");
        return;
    };
    let arguments = json!({ "url": format!("http://{name}:{}/", trap.port) });
    let ran = fetch(&world, &arguments, &[&format!("{name}:{}", trap.port)]);
    ran.refused(3, "denied", &[&format!("`{name}`"), "not of the public network", "--host"]);
    trap.is_untouched();
    // The operator is told the address, and the grant that covers it.
    let pid = world.run(&["ps", "--json"]).exits(0).lines().pop().unwrap()["pid"].to_string();
    let log = world.run(&["logs", &pid, "--json"]).exits(0).stdout;
    assert!(log.contains("network: the address ") && log.contains("`--host "), "{log}");
}

#[test]
fn every_step_of_a_redirect_is_checked() {
    let (world, site, trap) = (World::new(), Site::open(), Trap::set());
    for target in [
        format!("http://127.0.0.1:{}/x", trap.port),
        format!("http://localhost:{}/x", trap.port),
        format!("http://localhost:{}/text", site.port),
        format!("http://[::ffff:127.0.0.1]:{}/", trap.port),
        format!("http://2130706433:{}/", site.port),
        "http://169.254.169.254/".to_owned(),
        "http://10.0.0.1/".to_owned(),
        format!("https://127.0.0.1:{}/", trap.port),
        "//example.com/".to_owned(),
    ] {
        let arguments = json!({"url": site.url(&format!("/to/302?{target}"))});
        fetch(&world, &arguments, &[&site.host()]).refused(3, "denied", &["--host", "redirects: "]);
        assert_eq!(site.asked().len(), 1, "{target}");
    }
    trap.is_untouched();
    for target in ["ftp://127.0.0.1/", "http://user:secret@127.0.0.1/", "file:///etc/passwd"] {
        let arguments = json!({"url": site.url(&format!("/to/301?{target}"))});
        fetch(&world, &arguments, &[&site.host()]).refused(2, "invalid_arguments", &["redirects to"]);
    }
}

#[test]
fn redirects_are_followed_as_browsers_do() {
    let (world, site, other) = (World::new(), Site::open(), Site::open());
    let hosts = [site.host(), other.host()];
    let hosts = [hosts[0].as_str(), hosts[1].as_str()];
    let post = |status: u16, target: &str| {
        let arguments = json!({"url": site.url(&format!("/to/{status}?{target}")), "method": "POST", "body": "b",
            "headers": {"authorization": "Bearer t", "cookie": "c=1", "x-own": "yes"}});
        fetched(&world, &arguments, &hosts)
    };
    for (status, method, body) in
        [(301, "GET", ""), (302, "GET", ""), (303, "GET", ""), (307, "POST", "b"), (308, "POST", "b")]
    {
        let result = post(status, "/text");
        assert_eq!((&result["status"], &result["url"]), (&json!(200), &json!(site.url("/text"))), "{status}");
        let asked = site.asked().pop().unwrap();
        assert_eq!((asked.method.as_str(), asked.body.as_str()), (method, body), "{status}");
        assert_eq!(asked.header("content-type").is_some(), method == "POST", "{status}");
        assert_eq!(asked.header("authorization"), Some("Bearer t"), "{status}: the same origin");
    }
    post(307, &other.url("/text"));
    let asked = other.asked().pop().unwrap();
    assert_eq!((asked.header("authorization"), asked.header("cookie")), (None, None), "another origin");
    assert_eq!((asked.header("x-own"), asked.body.as_str()), (Some("yes"), "b"));
    site.asked();
    fetch(&world, &json!({"url": site.url("/loop")}), &hosts).refused(1, "tool_failed", &["5 redirects"]);
    assert_eq!(site.asked().len(), 6);
}

#[test]
fn what_cannot_be_sent_is_refused_before_anything_is() {
    let (world, trap) = (World::new(), Trap::set());
    let here = format!("127.0.0.1:{}", trap.port);
    let url = format!("http://{here}/");
    for (arguments, word) in [
        (json!({ "url": format!("http://user:secret@{here}/") }), "authorization"),
        (json!({ "url": "ftp://example.com" }), "http"),
        (json!({ "url": "example.com" }), "not absolute"),
        (json!({ "url": format!("http://{here}/\r\nx: y") }), "line breaks"),
        (json!({ "url": url, "headers": {"x": "a\r\nhost: evil"} }), "line breaks"),
        (json!({ "url": url, "headers": {"x\r\ny": "a"} }), "line breaks"),
        (json!({ "url": url, "headers": {"Host": "evil"} }), "`host`"),
        (json!({ "url": url, "headers": {"Transfer-Encoding": "chunked"} }), "`transfer-encoding`"),
        (json!({ "url": url, "headers": {"content-length": "5"} }), "`content-length`"),
        (json!({ "url": url, "headers": {"x": "y".repeat(20_000)} }), "the most is"),
        (json!({ "url": url, "method": "CONNECT" }), "/method"),
        (json!({ "url": url, "body": "x" }), "no body"),
        (json!({ "uri": url }), "uri"),
    ] {
        let ran = fetch(&world, &arguments, &[&here]);
        assert!(!ran.stderr.contains("secret"), "{}", ran.stderr);
        ran.refused(2, "invalid_arguments", &[word]);
    }
    trap.is_untouched();
    for bad in ["", "http://example.com", "example.com:0", "10.0.0.1/8", "2130706433", "a b", "*"] {
        fetch(&world, &json!({ "url": url }), &[bad]).refused(2, "bad_usage", &["*.DOMAIN"]);
    }
}

#[test]
fn failures_say_what_happened() {
    let (world, trap) = (World::new(), Trap::set());
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let at = |port: u16| format!("127.0.0.1:{port}");
    let get = |host: &str| json!({ "url": format!("http://{host}/") });
    let refused = fetch(&world, &get(&closed.to_string()), &[&closed.to_string()]);
    refused.refused(1, "tool_failed", &["refuses the connection"]);
    let unknown = fetch(&world, &get("no-such-host.invalid"), &["no-such-host.invalid"]);
    unknown.refused(1, "tool_failed", &["`no-such-host.invalid`", "not known"]);

    // A server that never answers ends with the call's time, and the tool can still say which it was.
    world.configure("[limits]\nwall_ms = 2000\n");
    let silent = fetch(&world, &get(&at(trap.port)), &[&at(trap.port)]);
    let report = silent.lines()[0].clone();
    assert_eq!(report["error"]["code"], "timeout", "{report}");
    silent.refused(1, "tool_failed", &[&at(trap.port), "did not answer in time"]);
    // One that falls silent in the middle, likewise.
    let half = half_an_answer();
    fetch(&world, &get(&at(half)), &[&at(half)]).refused(1, "tool_failed", &["fell silent"]);
    world.run(&["audit", "verify"]).exits(0);
}

/// A server that begins an answer and leaves it there.
fn half_an_answer() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = [0; 1024];
            let _ = stream.read(&mut head).unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf").unwrap();
            kept.push(stream);
        }
    });
    port
}

#[test]
fn https_needs_a_certificate_that_this_machine_knows() {
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let world = World::new();
    let authority = world.dir.path().join("authority.pem");
    std::fs::write(&authority, pem(certified.cert.der())).unwrap();
    let port = tls_server(certified);
    let grant = format!("localhost:{port}");
    let arguments = json!({ "url": format!("https://{grant}/") }).to_string();
    let mut command = world.aok(&["tool", "call", "http__fetch", &arguments, "--host", &grant]);
    let known = command.env("SSL_CERT_FILE", &authority).env_remove("SSL_CERT_DIR").output().unwrap();
    let text = String::from_utf8_lossy(&known.stdout).into_owned() + &String::from_utf8_lossy(&known.stderr);
    assert!(known.status.success() && text.contains(r#""body":"secret""#), "{text}");
    let unknown = world.run(&["tool", "call", "http__fetch", &arguments, "--host", &grant, "--json"]);
    unknown.refused(1, "tool_failed", &["certificate"]);
    // Without the right name it is no certificate for it.
    let address = format!("127.0.0.1:{port}");
    let arguments = json!({ "url": format!("https://{address}/") }).to_string();
    let mut command = world.aok(&["tool", "call", "http__fetch", &arguments, "--host", &address]);
    let other = command.env("SSL_CERT_FILE", &authority).env_remove("SSL_CERT_DIR").output().unwrap();
    assert!(!other.status.success() && String::from_utf8_lossy(&other.stderr).contains("certificate"), "{other:?}");
}

/// A TLS server that answers each request with `secret`.
pub(crate) fn tls_server(certified: rcgen::CertifiedKey<rcgen::KeyPair>) -> u16 {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::crypto::ring;
    use tokio_rustls::rustls::pki_types::PrivateKeyDer;

    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            listener.set_nonblocking(true).unwrap();
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                // A client that does not trust us hangs up.
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let mut head = [0; 1024];
                if stream.read(&mut head).await.is_ok() {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecret").await;
                    let _ = stream.shutdown().await;
                }
            }
        });
    });
    port
}

fn pem(der: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in der.chunks(3) {
        let bits = three.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for place in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * place)) as usize & 63];
            text.push(if place > three.len() { '=' } else { char::from(digit) });
        }
    }
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

#[test]
fn an_agent_is_offered_the_tool_only_where_it_has_a_host() {
    let (world, site) = (World::new(), Site::open());
    world.install(STEPPER);
    let model = world.script(&[]);
    let operations = json!([
        {"op": "available"},
        {"op": "call", "name": "http__fetch", "arguments": {"url": site.url("/text")}},
    ]);
    let run = |hosts: &[&str]| -> Value {
        let args = ["run", "stepper", "--task", &operations.to_string(), "--model", &model];
        let ran = world.run(&[&args[..], hosts].concat()).exits(0);
        serde_json::from_str(&ran.stdout).unwrap()
    };
    let without = run(&[]);
    assert!(!without[0].to_string().contains("http__fetch"), "{without}");
    assert_eq!(without[1]["error"]["code"], "denied", "{without}");
    assert!(site.asked().is_empty());
    let with = run(&["--host", &site.host()]);
    assert!(with[0].to_string().contains("http__fetch"), "{with}");
    assert_eq!(with[1]["body"], "hello, wörld", "{with}");
    // The model is told what it may reach.
    let pid = world.run(&["ps", "--json"]).exits(0).lines().pop().unwrap()["pid"].to_string();
    let pages = world.sqlite(&format!("SELECT text FROM page WHERE pid = {pid} AND id = 1"));
    assert!(pages[0][0].as_str().unwrap().contains(&format!("Hosts: {}.", site.host())), "{pages:?}");
}

#[test]
fn a_plugin_of_a_directory_reaches_nothing() {
    let (world, trap) = (World::new(), Trap::set());
    let component = Path::new(PROBE).with_file_name("http.wasm");
    std::fs::copy(component, world.plugins().join("web.wasm")).unwrap();
    let here = format!("127.0.0.1:{}", trap.port);
    let arguments = json!({ "url": format!("http://{here}/") }).to_string();
    let ran = world.run(&["tool", "call", "web__fetch", &arguments, "--host", &here, "--json"]);
    ran.refused(3, "denied", &[&here]);
    trap.is_untouched();
}

#[test]
fn an_agent_that_asks_for_the_network_itself_is_refused() {
    let world = World::new();
    world.install(NETAGENT);
    let plugins = world.run(&["plugin", "ls", "--json"]).exits(0).lines();
    let plugin = plugins.iter().find(|p| p["name"] == "netagent").unwrap();
    assert_eq!(plugin["diagnosis"]["code"], "unknown_import", "{plugin}");
    assert!(plugin["diagnosis"]["message"].as_str().unwrap().contains("wasi:http/"), "{plugin}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_hangs_up() {
    let world = World::new();
    world.install(STEPPER);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let here = listener.local_addr().unwrap().to_string();
    let kernel = Kernel::builder(world.data()).plugin_dir(world.plugins()).start().await.unwrap();
    let arguments = json!({ "url": format!("http://{here}/") });
    let request = SpawnRequest {
        agent: "stepper".into(),
        task: json!([{"op": "call", "name": "http__fetch", "arguments": arguments}]).to_string(),
        model: Some(world.script(&[])),
        hosts: vec![here.parse().unwrap()],
        ..SpawnRequest::default()
    };
    let (pid, _events) = kernel.spawn(request).await.unwrap();
    let served = tokio::task::spawn_blocking(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut head = [0; 1024];
        let read = stream.read(&mut head).unwrap();
        (stream, String::from_utf8_lossy(&head[..read]).into_owned())
    });
    let (mut stream, head) = served.await.unwrap();
    assert!(head.starts_with("GET / HTTP/1.1\r\n"), "{head}");
    kernel.kill(pid, "the test wants it").await.unwrap();
    assert_eq!(kernel.wait(pid).await.unwrap(), Exit::Killed("the test wants it".into()));
    let rest = tokio::task::spawn_blocking(move || stream.read(&mut [0; 1024]).map_err(|e| e.kind()));
    assert!(matches!(rest.await.unwrap(), Ok(0) | Err(ErrorKind::ConnectionReset)), "the connection is open");
    kernel.shutdown().await;
}

#[test]
fn a_resumed_process_keeps_its_hosts() {
    let (world, site) = (World::new(), Site::open());
    let look = |id: &str| calls(id, "http__fetch", &json!({ "url": site.url("/text") }));
    let model = world.script(&[look("a"), json!({"text": "too late", "delay_ms": 600_000})]);
    let mut run = world.start(&["run", "--task", "x", "--model", &model, "--host", &site.host(), "--json"]);
    let pid = run.event("tool_end")["pid"].to_string();
    run.signal("KILL");
    run.end();
    assert_eq!(site.asked().len(), 1);
    world.script(&[look("a"), look("b"), json!({"text": "{{b.body}}"})]);
    assert_eq!(world.run(&["run", "--resume", &pid]).exits(0).stdout, "hello, wörld\n");
    assert_eq!(site.asked().len(), 1, "the first call is not made again");
}
