//! Requests as a component makes them, against servers on this machine.

use std::sync::atomic::{AtomicUsize, Ordering};

use http_body_util::{Empty, Full};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
const WALL: Duration = Duration::from_secs(60);

/// A server that gives each connection to `serve` and counts them.
async fn server<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> (u16, Arc<AtomicUsize>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&count);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            seen.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(serve(stream));
        }
    });
    (port, count)
}

/// A server that reads a request's head and answers with these bytes.
async fn answers(bytes: &'static [u8]) -> (u16, Arc<AtomicUsize>) {
    server(move |mut stream| async move {
        head(&mut stream).await;
        stream.write_all(bytes).await.unwrap();
    })
    .await
}

async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

fn egress(hosts: &[String], wall: Duration, requests: u64) -> Egress {
    let hosts = hosts.iter().map(|h| h.parse().unwrap()).collect();
    Egress::new(Arc::default(), Network { hosts, plugin: None }, wall, requests)
}

fn empty() -> WasiBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

async fn send(egress: &mut Egress, method: &str, uri: &str, body: WasiBody) -> Result<Response<WasiBody>, Error> {
    let request = Request::builder().method(method).uri(uri).body(body).unwrap();
    let sent = Box::into_pin(egress.send_request(request, None, Box::new(async { Ok(()) })));
    sent.await.map(|(response, _)| response)
}

async fn get(egress: &mut Egress, uri: &str) -> Result<Bytes, Error> {
    send(egress, "GET", uri, empty()).await?.into_body().collect().await.map(http_body_util::Collected::to_bytes)
}

fn named(result: &Result<Bytes, Error>) -> String {
    match result {
        Ok(body) => format!("{body:?}"),
        Err(e) => format!("{e:?}"),
    }
}

fn refusals(egress: &Egress) -> Vec<String> {
    let mut session = Session::detached(1 << 20);
    egress.report(&mut session, &mut Ok(String::new()));
    session.end(false).lines.into_iter().map(|l| l.message).collect()
}

#[tokio::test]
async fn what_is_granted_is_reached_and_nothing_else_is() {
    let (port, seen) = answers(OK).await;
    let (other, unseen) = answers(OK).await;
    for (grant, uri, expected) in [
        (format!("127.0.0.1:{port}"), format!("http://127.0.0.1:{port}/a?b"), "b\"hi\""),
        ("127.0.0.0/8".to_owned() + &format!(":{port}"), format!("http://127.0.0.1:{port}"), "b\"hi\""),
        (format!("localhost:{port}"), format!("http://localhost:{port}/"), "b\"hi\""),
        (format!("localhost:{port}"), format!("http://LOCALHOST.:{port}/"), "b\"hi\""),
        (format!("127.0.0.1:{port}"), format!("http://127.0.0.1:{other}/"), "HttpRequestDenied"),
        (format!("127.0.0.1:{other}"), format!("http://localhost:{other}/"), "HttpRequestDenied"),
        (format!("localhost:{other}"), format!("http://127.0.0.1:{other}/"), "HttpRequestDenied"),
        ("127.0.0.1".to_owned(), format!("http://127.0.0.1:{other}/"), "HttpRequestDenied"),
        ("example.com".to_owned(), "http://169.254.169.254/latest".to_owned(), "HttpRequestDenied"),
    ] {
        let mut egress = egress(std::slice::from_ref(&grant), WALL, 10);
        assert_eq!(named(&get(&mut egress, &uri).await), expected, "{grant}, {uri}");
        let told = refusals(&egress);
        assert_eq!(told.len(), usize::from(expected.starts_with('H')), "{told:?}");
        assert!(told.iter().all(|line| line.contains("`--host ")), "{told:?}");
    }
    assert_eq!((seen.load(Ordering::SeqCst), unseen.load(Ordering::SeqCst)), (4, 0));
    assert_eq!(named(&get(&mut egress(&[], WALL, 10), &format!("http://127.0.0.1:{port}")).await), "HttpRequestDenied");
}

#[tokio::test]
async fn an_address_in_disguise_is_refused_even_where_it_is_granted() {
    let (port, seen) = answers(OK).await;
    for host in [
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "127.1",
        "127.0.0.1.",
        "127.0.0.01",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "user@127.0.0.1",
        "user:secret@127.0.0.1",
    ] {
        let mut egress = egress(&[format!("127.0.0.1:{port}")], WALL, 10);
        let uri = format!("http://{host}:{port}/");
        let ended = named(&get(&mut egress, &uri).await);
        assert!(matches!(ended.as_str(), "HttpRequestDenied" | "HttpRequestUriInvalid"), "{uri}: {ended}");
    }
    assert_eq!(seen.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn every_address_of_a_name_is_checked() {
    let (port, seen) = answers(OK).await;
    let to = |name: &str| Destination { host: Host::Name(name.into()), port, tls: false };
    let mut none = egress(&[], WALL, 1);
    let gate = none.gate();
    let ended = gate.addresses(&to("localhost")).await;
    assert!(matches!(ended, Err(Error::DestinationIpProhibited)), "{ended:?}");
    let told = refusals(&none).join("\n");
    assert!(told.contains("localhost") && told.contains("`--host "), "{told}");
    // The addresses of another name may be granted one by one.
    let hosts = [format!("127.0.0.1:{port}"), format!("[::1]:{port}")];
    let found = egress(&hosts, WALL, 1).gate().addresses(&to("localhost")).await.unwrap();
    assert!(found.iter().all(|a| a.ip().is_loopback() && a.port() == port), "{found:?}");
    let ended = gate.addresses(&to("no-such-host.invalid")).await;
    assert!(matches!(ended, Err(Error::DnsError { .. } | Error::DestinationNotFound)), "{ended:?}");
    assert_eq!(seen.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_name_that_changes_its_address_is_looked_up_once() {
    let (port, seen) = answers(OK).await;
    let inner = ["127.0.0.1".parse().unwrap()].to_vec();
    let public = ["93.184.215.14".parse().unwrap()].to_vec();
    let clients = Arc::new(Clients::default());
    let write = |answers: &[&Vec<std::net::IpAddr>]| {
        *clients.names.answers.lock().unwrap() = answers.iter().copied().cloned().collect();
    };
    let egress = |hosts: &[String]| {
        let hosts = hosts.iter().map(|h| h.parse().unwrap()).collect();
        let network = Network { hosts, plugin: None };
        Egress::new(Arc::clone(&clients), network, Duration::from_secs(2), 10)
    };
    let name = format!("rebind.example:{port}");
    let uri = format!("http://{name}/");
    // Public when it is checked and inside when it is connected to: the connection goes to the public one.
    write(&[&public, &inner]);
    let ended = named(&get(&mut egress(std::slice::from_ref(&name)), &uri).await);
    assert!(!ended.contains("hi"), "{ended}");
    assert_eq!(clients.names.answers.lock().unwrap().len(), 1, "nobody asked a second time");
    // Inside when it is checked: refused, whatever it is later. So is one among several.
    for answer in [inner.clone(), [public.clone(), inner.clone()].concat()] {
        write(&[&answer, &public]);
        assert_eq!(named(&get(&mut egress(std::slice::from_ref(&name)), &uri).await), "DestinationIpProhibited");
    }
    assert_eq!(seen.load(Ordering::SeqCst), 0);
    // Checked and granted: that very address is connected to, the later one is not.
    write(&[&inner, &public]);
    let granted = [name, format!("127.0.0.1:{port}")];
    assert_eq!(named(&get(&mut egress(&granted), &uri).await), "b\"hi\"");
    assert_eq!((seen.load(Ordering::SeqCst), clients.names.answers.lock().unwrap().len()), (1, 1));
}

#[tokio::test]
async fn a_client_resolves_nothing_by_itself() {
    let (port, seen) = answers(OK).await;
    let client = Clients::default().get(false).await.unwrap();
    let error = client.get(format!("http://localhost:{port}/")).send().await.unwrap_err();
    assert!(error.is_connect(), "{error:?}");
    assert_eq!(seen.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_redirect_is_the_guests_to_follow() {
    let (port, _) = answers(b"HTTP/1.1 302 Found\r\nlocation: /next\r\ncontent-length: 0\r\n\r\n").await;
    let mut egress = egress(&[format!("127.0.0.1:{port}")], WALL, 1);
    let response = send(&mut egress, "GET", &format!("http://127.0.0.1:{port}/"), empty()).await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["location"]), (302, &"/next".parse().unwrap()));
}

#[tokio::test]
async fn bodies_are_bounded_both_ways() {
    let (port, seen) = server(|mut stream| async move {
        head(&mut stream).await;
        let begun = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        let chunk = vec![b'x'; 1 << 20];
        // The other side goes away in the middle.
        while begun.is_ok() && stream.write_all(&chunk).await.is_ok() {}
    })
    .await;
    let mut egress = egress(&[format!("127.0.0.1:{port}")], WALL, 10);
    let uri = format!("http://127.0.0.1:{port}/");
    let body = |bytes: usize| Full::new(Bytes::from(vec![0; bytes])).map_err(|never| match never {}).boxed_unsync();
    let ended = send(&mut egress, "POST", &uri, body(MAX_REQUEST + 1)).await;
    assert!(matches!(ended, Err(Error::HttpRequestBodySize(_))), "{ended:?}");
    assert_eq!(seen.load(Ordering::SeqCst), 0, "nothing of it was sent");
    let ended = named(&get(&mut egress, &uri).await);
    assert!(ended.starts_with("HttpResponseBodySize"), "{ended}");
}

#[tokio::test]
async fn a_silent_server_is_waited_for_no_longer_than_the_call_may_last() {
    let (port, _) = server(|stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let silent = format!("http://127.0.0.1:{port}/");
    let ended = named(&get(&mut egress(&[format!("127.0.0.1:{port}")], Duration::from_millis(300), 1), &silent).await);
    assert_eq!(ended, "HttpResponseTimeout");
    let (port, _) = server(|mut stream| async move {
        head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf").await.unwrap();
        std::future::pending::<()>().await;
    })
    .await;
    let half = format!("http://127.0.0.1:{port}/");
    let ended = named(&get(&mut egress(&[format!("127.0.0.1:{port}")], Duration::from_millis(300), 1), &half).await);
    assert_eq!(ended, "ConnectionReadTimeout");
}

#[tokio::test]
async fn failures_have_their_own_names() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let (hangs_up, _) = server(|mut stream| async move { drop(head(&mut stream).await) }).await;
    let (cut, _) = answers(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf").await;
    let (greets, _) = server(|mut stream| async move {
        stream.write_all(b"220 smtp.example ESMTP\r\n\r\n").await.unwrap();
        std::future::pending::<()>().await;
    })
    .await;
    let (nonsense, _) = answers(b"220 smtp.example ESMTP\r\n\r\n").await;
    for (scheme, port, expected) in [
        ("http", closed, &["ConnectionRefused"][..]),
        ("http", hangs_up, &["HttpResponseIncomplete", "ConnectionTerminated"]),
        ("http", cut, &["HttpResponseIncomplete", "ConnectionTerminated"]),
        ("http", nonsense, &["HttpProtocolError"]),
        ("https", greets, &["TlsProtocolError", "ConnectionTerminated", "ConfigurationError"]),
    ] {
        let mut egress = egress(&[format!("127.0.0.1:{port}")], WALL, 1);
        let ended = named(&get(&mut egress, &format!("{scheme}://127.0.0.1:{port}/")).await);
        // A machine without certificates has no https.
        assert!(expected.contains(&ended.as_str()), "{scheme}, {expected:?}: {ended}");
    }
    for method in ["CONNECT", "TRACE"] {
        let ended = send(&mut egress(&["127.0.0.1".into()], WALL, 1), method, "http://127.0.0.1/", empty()).await;
        assert!(matches!(ended, Err(Error::HttpRequestMethodInvalid)), "{method}: {ended:?}");
    }
}

#[tokio::test]
async fn requests_are_counted_and_few_are_open_at_once() {
    let (port, seen) = answers(OK).await;
    let uri = format!("http://127.0.0.1:{port}/");
    let mut egress = egress(&[format!("127.0.0.1:{port}")], WALL, AT_ONCE as u64 + 2);
    let mut open = Vec::new();
    for _ in 0..AT_ONCE {
        open.push(send(&mut egress, "GET", &uri, empty()).await.unwrap());
    }
    assert_eq!(named(&get(&mut egress, &uri).await), "ConnectionLimitReached");
    open.clear();
    assert_eq!(named(&get(&mut egress, &uri).await), "b\"hi\"");
    assert_eq!(named(&get(&mut egress, &uri).await), "ConnectionLimitReached", "the call has made all its requests");
    assert_eq!(seen.load(Ordering::SeqCst), AT_ONCE + 1, "each had a connection of its own");
}
