//! The way out: `wasi:http` requests of tools. Each one is checked before a byte of it leaves, also when it
//! is the next step of a redirect: host, port, method and path against the call's grants, then every address
//! that the name leads to. The connection goes to the addresses that were checked; no name is looked up twice.
//! Then, where a placeholder stands for a secret, the secret takes its place, and what comes back has the
//! placeholder again ([`cloak`]).
//!
//! Who grants what, and which address is public, is `capability`'s to say.

mod cloak;
mod names;

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::{Body, Bytes, Frame};
use hyper::http::Uri;
use hyper::{Method, Request, Response};
use reqwest::Url;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep_until, timeout_at};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpHooks};

use crate::abi::ToolResult;
use crate::capability::{Asked, Destination, Host, Network, Refusal};
use crate::tool::Session;
use cloak::{Cloak, Seen};
use names::Names;

/// How long a connection may take to be made, its name's lookup included.
const CONNECT: Duration = Duration::from_secs(10);

/// How long the head of a response may take.
const FIRST_BYTE: Duration = Duration::from_secs(20);

/// How long a response's body may pause.
const BETWEEN_BYTES: Duration = Duration::from_secs(10);

/// Bytes of one request's body. It is buffered here, so that nothing leaves while its length is open.
const MAX_REQUEST: usize = 4 << 20;

/// Bytes of one response's body.
const MAX_RESPONSE: usize = 16 << 20;

/// Requests of one call at the same time, each until its response is dropped.
const AT_ONCE: usize = 8;

/// Bytes of one list of header fields that a guest builds; the kernel holds it.
const MAX_FIELDS: usize = 32 * 1024;

/// Refusals that a call leaves in its process's log.
const MAX_REPORTED: usize = 20;

/// What `wasi:http` keeps per store.
pub(super) fn context() -> WasiHttpCtx {
    let mut context = WasiHttpCtx::new();
    context.set_field_size_limit(MAX_FIELDS);
    context
}

/// The HTTP clients of an engine, made when they are first needed. Neither keeps a connection for a later
/// request: that one may be another process's, with other grants.
#[derive(Debug, Default)]
pub(super) struct Clients {
    plain: OnceCell<reqwest::Client>,
    tls: OnceCell<reqwest::Client>,
    names: Names,
}

impl Clients {
    async fn get(&self, tls: bool) -> Result<reqwest::Client, Error> {
        let cell = if tls { &self.tls } else { &self.plain };
        let make = || async {
            // Reading the machine's certificates takes some milliseconds of a thread.
            let made = tokio::task::spawn_blocking(move || client(tls)).await;
            made.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
        };
        cell.get_or_try_init(make).await.cloned().map_err(|why| {
            tracing::warn!("no HTTP client: {why}");
            Error::ConfigurationError
        })
    }
}

fn client(tls: bool) -> Result<reqwest::Client, reqwest::Error> {
    // An embedder may have installed another one, which then serves.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .pool_max_idle_per_host(0)
        .http1_only()
        .connect_timeout(CONNECT)
        .dns_resolver(Checked);
    // Without TLS it needs no certificates, and so works on a machine that has none.
    let builder = if tls { builder } else { builder.tls_certs_only(std::iter::empty()) };
    builder.build()
}

tokio::task_local! {
    /// The checked addresses of the request that this task makes.
    static ADDRESSES: Vec<SocketAddr>;
}

/// Resolves every name to the addresses that were checked, and none where none were.
struct Checked;

impl reqwest::dns::Resolve for Checked {
    fn resolve(&self, _: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let addresses = ADDRESSES.try_with(Clone::clone);
        Box::pin(async move {
            let addresses: reqwest::dns::Addrs = Box::new(addresses?.into_iter());
            Ok(addresses)
        })
    }
}

/// The network of one tool call. Costs nothing until a request is made.
pub(super) struct Egress {
    clients: Arc<Clients>,
    network: Network,
    /// When a request must have ended: before the call's wall limit, so that the tool can still say so.
    until: Instant,
    /// Requests that the call may still make.
    left: u64,
    gate: Option<Arc<Gate>>,
}

impl Egress {
    /// The network of a call with these grants, of so many requests.
    pub(super) fn new(clients: Arc<Clients>, network: Network, wall: Duration, requests: u64) -> Self {
        Self { clients, network, until: Instant::now() + wall * 9 / 10, left: requests, gate: None }
    }

    /// Leaves what was refused in the log of the call's process, and the first of it in the error of a call
    /// that failed. The guest is not told which address a name leads to; whoever may grant it is told here. No
    /// secret leaves in either, nor in the result.
    pub(super) fn report(&self, session: &mut Session, result: &mut ToolResult) {
        let Some(gate) = &self.gate else { return };
        if let Some(cloak) = &gate.cloak {
            cloak.hide.in_report(session, result);
        }
        let refused = std::mem::take(&mut *gate.refused.lock().unwrap_or_else(PoisonError::into_inner));
        let told = refused.iter().find(|refusal| refusal.open).filter(|_| gate.network.plugin.is_some());
        if let (Some(refusal), Err(error)) = (told, result) {
            error.message = format!("{}; {}", error.message, refusal.text);
        }
        for refusal in refused {
            // A call that used its log up has said enough.
            let _ = session.log("warn", refusal.text);
        }
    }

    fn gate(&mut self) -> Arc<Gate> {
        let make = || {
            Arc::new(Gate {
                clients: Arc::clone(&self.clients),
                cloak: self.network.plugin.as_ref().and_then(Cloak::of),
                network: std::mem::take(&mut self.network),
                until: self.until.into(),
                places: Arc::new(Semaphore::new(AT_ONCE)),
                refused: Mutex::default(),
            })
        };
        Arc::clone(self.gate.get_or_insert_with(make))
    }
}

type Sent = Box<dyn Future<Output = Result<(), Error>> + Send>;

impl WasiHttpHooks for Egress {
    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Sent,
    ) -> Box<dyn Future<Output = Result<(Response<WasiBody>, Sent), Error>> + Send> {
        let Some(left) = self.left.checked_sub(1) else {
            return Box::new(async { Err(Error::ConnectionLimitReached) });
        };
        self.left = left;
        let gate = self.gate();
        Box::new(async move {
            let response = gate.send(request, options.unwrap_or_default()).await?;
            let sent: Sent = Box::new(async { Ok(()) });
            Ok((response, sent))
        })
    }
}

/// What the requests of one call share.
struct Gate {
    clients: Arc<Clients>,
    network: Network,
    /// Where the call has secrets.
    cloak: Option<Cloak>,
    until: tokio::time::Instant,
    places: Arc<Semaphore>,
    refused: Mutex<Vec<Refusal>>,
}

impl Gate {
    async fn send(&self, request: Request<WasiBody>, options: RequestOptions) -> Result<Response<WasiBody>, Error> {
        let (parts, body) = request.into_parts();
        if matches!(parts.method, Method::CONNECT | Method::TRACE) {
            return Err(Error::HttpRequestMethodInvalid);
        }
        let (url, to) = self.target(&parts.uri)?;
        let asked = Asked { to: &to, method: parts.method.as_str(), path: url.path() };
        self.network.may_ask(&asked).map_err(|refusal| self.refuse(refusal, Error::HttpRequestDenied))?;
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| Error::ConnectionLimitReached)?;
        let connected = self.at_most(options.connect_timeout, CONNECT);
        let addresses = timeout_at(connected, self.addresses(&to)).await.map_err(|_| Error::DnsTimeout)??;
        let body = timeout_at(self.until, collect(body)).await.map_err(|_| Error::ConnectionWriteTimeout)??;
        let client = self.clients.get(to.tls).await?;

        let mut outgoing = reqwest::Request::new(parts.method, url);
        *outgoing.headers_mut() = parts.headers;
        let body = match &self.cloak {
            Some(cloak) => cloak
                .reveal(&mut outgoing, body, &to)
                .map_err(|refusal| self.refuse(refusal, Error::HttpRequestDenied))?,
            None => body,
        };
        if !body.is_empty() {
            *outgoing.body_mut() = Some(body.into());
        }
        let answered = self.at_most(options.first_byte_timeout, FIRST_BYTE);
        let answer = ADDRESSES.scope(addresses, client.execute(outgoing));
        let response = match timeout_at(answered, answer).await {
            Ok(Ok(response)) => Response::<reqwest::Body>::from(response),
            Ok(Err(e)) => return Err(outcome(&e)),
            Err(_) => return Err(Error::HttpResponseTimeout),
        };
        let quiet = options.between_bytes_timeout.map_or(BETWEEN_BYTES, |wish| wish.min(BETWEEN_BYTES));
        self.received(response, quiet, place)
    }

    /// What the guest gets of a response.
    fn received(
        &self,
        response: Response<reqwest::Body>,
        quiet: Duration,
        place: OwnedSemaphorePermit,
    ) -> Result<Response<WasiBody>, Error> {
        let (mut parts, body) = response.into_parts();
        let hide = self.cloak.as_ref().map(|cloak| Arc::clone(&cloak.hide));
        if let Some(hide) = &hide {
            hide.in_head(&mut parts.headers)?;
        }
        let mut body = Incoming {
            body: Limited::new(body, MAX_RESPONSE),
            hide: hide.map(Seen::new),
            quiet,
            until: self.until,
            timer: Box::pin(sleep_until(self.until)),
            _place: place,
        };
        body.wind_up();
        Ok(Response::from_parts(parts, body.boxed_unsync()))
    }

    /// Now and the guest's wish for a time limit, or ours where that is shorter.
    fn at_most(&self, wish: Option<Duration>, ours: Duration) -> tokio::time::Instant {
        self.until.min(tokio::time::Instant::now() + wish.map_or(ours, |wish| wish.min(ours)))
    }

    /// Where a request goes. The URL is brought into its normal form first, so that what is checked is what
    /// is connected to; a host in another form than the normal one is a disguise and refused.
    fn target(&self, uri: &Uri) -> Result<(Url, Destination), Error> {
        let spelled = match uri.authority() {
            Some(authority) if !authority.as_str().contains('@') => authority.host(),
            _ => return Err(Error::HttpRequestUriInvalid),
        };
        let url = Url::parse(&uri.to_string()).map_err(|_| Error::HttpRequestUriInvalid)?;
        let tls = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return Err(Error::HttpRequestUriInvalid),
        };
        let (Some(host), Some(port)) = (url.host_str().map(Host::of_url), url.port_or_known_default()) else {
            return Err(Error::HttpRequestUriInvalid);
        };
        let to = Destination { host, port, tls };
        if Host::of_url(spelled) != to.host {
            let refusal = self.network.refusal(&format!("the host {spelled:?} in this spelling"), &to);
            return Err(self.refuse(refusal, Error::HttpRequestDenied));
        }
        Ok((url, to))
    }

    /// The addresses of the destination: all are permitted, or there are none.
    async fn addresses(&self, to: &Destination) -> Result<Vec<SocketAddr>, Error> {
        let found: Vec<SocketAddr> = match &to.host {
            Host::Address(address) => vec![SocketAddr::new(*address, to.port)],
            Host::Name(name) => match self.clients.names.look_up(name, to.port).await {
                Ok(found) => found,
                Err(_) => return Err(Error::DnsError { rcode: None, info_code: None }),
            },
        };
        if found.is_empty() {
            return Err(Error::DestinationNotFound);
        }
        for address in &found {
            let zone = matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0);
            let allowed = self.network.may_connect(to, address.ip());
            let allowed = allowed.and_then(|()| match zone {
                true => Err(self.network.refusal(&format!("the address {address} with its zone"), to)),
                false => Ok(()),
            });
            allowed
                .map_err(|refusal| self.refuse(Refusal { open: false, ..refusal }, Error::DestinationIpProhibited))?;
        }
        Ok(found)
    }

    /// Notes a refusal; what the guest gets is `error`.
    fn refuse(&self, refusal: Refusal, error: Error) -> Error {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.len() < MAX_REPORTED {
            refused.push(refusal);
        }
        error
    }
}

async fn collect(body: WasiBody) -> Result<Bytes, Error> {
    match Limited::new(body, MAX_REQUEST).collect().await {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(e) if e.is::<LengthLimitError>() => Err(Error::HttpRequestBodySize(Some(MAX_REQUEST as u64))),
        Err(e) => Err(e.downcast::<Error>().map_or(Error::HttpProtocolError, |e| *e)),
    }
}

/// The body of a response: bounded in size, in its pauses and in time.
struct Incoming {
    body: Limited<reqwest::Body>,
    /// Where the call has secrets: what is held back of the body until it is known to have none.
    hide: Option<Seen>,
    quiet: Duration,
    until: tokio::time::Instant,
    timer: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl Incoming {
    fn wind_up(&mut self) {
        self.timer.as_mut().reset(self.until.min(tokio::time::Instant::now() + self.quiet));
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming").finish_non_exhaustive()
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        loop {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    self.wind_up();
                    let Some(hide) = &mut self.hide else { return Poll::Ready(Some(Ok(frame))) };
                    match hide.frame(frame) {
                        Some(frame) => return Poll::Ready(Some(Ok(frame))),
                        // All of it is held back.
                        None => continue,
                    }
                }
                Poll::Ready(Some(Err(e))) => {
                    return Poll::Ready(Some(Err(match e.downcast_ref::<reqwest::Error>() {
                        Some(e) => outcome(e),
                        None => Error::HttpResponseBodySize(Some(MAX_RESPONSE as u64)),
                    })));
                }
                Poll::Ready(None) => {
                    let rest = self.hide.as_mut().and_then(Seen::rest);
                    return Poll::Ready(rest.map(|rest| Ok(Frame::data(rest))));
                }
                Poll::Pending => {
                    return self.timer.as_mut().poll(cx).map(|()| Some(Err(Error::ConnectionReadTimeout)));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream() && self.hide.as_ref().is_none_or(Seen::is_empty)
    }
}

/// What became of a request, in `wasi:http`'s words and without the client's own, which name addresses.
fn outcome(error: &reqwest::Error) -> Error {
    if error.is_timeout() {
        return if error.is_connect() { Error::ConnectionTimeout } else { Error::ConnectionReadTimeout };
    }
    match cause(error) {
        Some(cause) => cause,
        None if error.is_connect() => Error::DestinationUnavailable,
        None => Error::HttpProtocolError,
    }
}

fn cause(error: &(dyn StdError + 'static)) -> Option<Error> {
    let mut found = None;
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(tls_outcome(tls));
        }
        if let Some(io) = error.downcast_ref::<io::Error>() {
            // What an I/O error wraps is not among its sources.
            let inner = io.get_ref().and_then(|inner| cause(inner));
            return inner.or_else(|| io_outcome(io.kind())).or(found);
        }
        if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_incomplete_message) {
            found = Some(Error::HttpResponseIncomplete);
        }
        next = error.source();
    }
    found
}

fn io_outcome(kind: io::ErrorKind) -> Option<Error> {
    match kind {
        io::ErrorKind::ConnectionRefused => Some(Error::ConnectionRefused),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Some(Error::DestinationUnavailable),
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::UnexpectedEof => Some(Error::ConnectionTerminated),
        io::ErrorKind::TimedOut => Some(Error::ConnectionTimeout),
        _ => None,
    }
}

fn tls_outcome(error: &rustls::Error) -> Error {
    match error {
        rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => Error::TlsCertificateError,
        rustls::Error::AlertReceived(alert) => Error::TlsAlertReceived {
            alert_id: Some(u8::from(*alert)),
            alert_message: alert.as_str().map(str::to_owned),
        },
        _ => Error::TlsProtocolError,
    }
}

#[cfg(test)]
mod tests;
