//! The kernel's end of `aok.sock`: HTTP over a Unix socket, for the data directory's owner only.
//!
//! Going out of service, in this order, so that no request is lost and no successor disturbed:
//! 1. [`Server::close_if_idle`] (or [`Server::refuse`]) sets `closing`: each later request is refused
//!    with `kernel_ending` before the kernel sees it, and its client looks for another kernel.
//! 2. [`Server::withdraw`] removes the socket file while the lock is still ours; afterwards the file
//!    may be the next kernel's.
//! 3. The owner shuts the kernel down; streams of stopped processes end and say so.
//! 4. [`Server::drain`] gives those last lines a moment to leave.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path as UrlPath, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use futures_util::stream::{Stream, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::error::{ApiError, Code};
use super::wire::{Failure, Hello, ORIGIN_HEADER, Origin, PROTOCOL, PROTOCOL_HEADER, Request};
use super::{Lines, handle};
use crate::kernel::Kernel;

/// The socket's name in the data directory.
pub const SOCKET: &str = "aok.sock";

/// The largest request body: the largest arguments that a tool takes, and room.
const BODY_LIMIT: usize = 16 << 20;

/// How long the last lines may take to leave.
const DRAIN: Duration = Duration::from_secs(1);

/// The longest socket path that every Unix accepts.
const SUN_PATH: usize = 100;

/// A path to `name` in `dir` that is short enough for a socket address. On Linux a long one goes
/// through a handle of the directory, which must stay open while the path is used.
pub(super) fn address(dir: &Path, name: &str) -> io::Result<(PathBuf, Option<fs::File>)> {
    use std::os::fd::AsRawFd as _;
    let path = dir.join(name);
    if path.as_os_str().len() <= SUN_PATH || !cfg!(target_os = "linux") {
        return Ok((path, None));
    }
    let handle = fs::File::open(dir)?;
    Ok((Path::new("/proc/self/fd").join(handle.as_raw_fd().to_string()).join(name), Some(handle)))
}

/// The commands of [`Request::ToolChanges`] and [`Request::Connect`], whose answers end with their client.
const WATCHES: [&str; 2] = ["tool-changes", "connect"];

/// How busy the server is, and whether it takes more.
#[derive(Debug, Default)]
struct Load {
    /// Requests whose answers are not finished.
    active: usize,
    closing: bool,
}

/// What every request sees.
#[derive(Debug)]
struct Shared {
    kernel: Kernel,
    origin: Origin,
    load: Mutex<Load>,
}

impl Shared {
    fn load(&self) -> MutexGuard<'_, Load> {
        // Two plain fields: a panic elsewhere cannot leave them half changed.
        self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The kernel's socket, in service until it is closed.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Server {
    /// Puts the socket of the data directory `dir` into service, in the place of one that a dead
    /// kernel left. The caller's `kernel` must hold the directory's lock.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn bind(dir: &Path, kernel: Kernel, origin: Origin) -> io::Result<Self> {
        // Made under another name and closed to others before it gets its own: nobody else can
        // connect meanwhile, and the rename replaces a stale socket at once.
        let fresh = format!(".{SOCKET}.{}", std::process::id());
        let _ = fs::remove_file(dir.join(&fresh));
        let (short, _open) = address(dir, &fresh)?;
        let listener = UnixListener::bind(short)?;
        fs::set_permissions(dir.join(&fresh), fs::Permissions::from_mode(0o600))?;
        let path = dir.join(SOCKET);
        fs::rename(dir.join(&fresh), &path)?;

        let shared = Arc::new(Shared { kernel, origin, load: Mutex::default() });
        let router = Router::new()
            .route("/v1/hello", get(hello))
            .route("/v1/{command}", post(command))
            .fallback(|| async { refusal(&ApiError::new(Code::BadUsage, "there is no such path", "POST /v1/COMMAND")) })
            .layer(DefaultBodyLimit::max(BODY_LIMIT))
            .with_state(Arc::clone(&shared));
        let (stop, mut stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            let until = async move {
                // An error means that the server was dropped: stop as well.
                let _ = stopped.wait_for(|s| *s).await;
            };
            if let Err(e) = axum::serve(listener, router).with_graceful_shutdown(until).await {
                tracing::error!("the socket is out of service: {e}");
            }
        });
        Ok(Self { path, shared, stop, task })
    }

    /// Takes no more requests if none is being answered; says whether it did.
    #[must_use]
    pub fn close_if_idle(&self) -> bool {
        let mut load = self.shared.load();
        load.closing |= load.active == 0;
        load.closing
    }

    /// Takes no more requests.
    pub fn refuse(&self) {
        self.shared.load().closing = true;
    }

    /// Removes the socket file. The lock must still be held.
    pub fn withdraw(&self) {
        if let Err(e) = fs::remove_file(&self.path) {
            tracing::debug!("{} is gone already: {e}", self.path.display());
        }
    }

    /// Lets the answers under way end, for a moment, and stops.
    pub async fn drain(self) {
        self.stop.send_replace(true);
        let abort = self.task.abort_handle();
        if tokio::time::timeout(DRAIN, self.task).await.is_err() {
            abort.abort();
        }
    }
}

async fn hello(State(shared): State<Arc<Shared>>) -> Response {
    let closing = shared.load().closing;
    let version = env!("CARGO_PKG_VERSION").to_owned();
    axum::Json(Hello { protocol: PROTOCOL, version, pid: std::process::id(), closing }).into_response()
}

async fn command(
    State(shared): State<Arc<Shared>>,
    UrlPath(name): UrlPath<String>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let Some(busy) = Busy::enter(&shared) else {
        return refusal(&ApiError::new(Code::KernelEnding, "the kernel is about to end", "run the command again"));
    };
    // Who only watches for changes keeps no kernel alive.
    let waits = !WATCHES.contains(&name.as_str());
    // A task of its own: a client that goes away must not cut off what its request has begun.
    let work = tokio::spawn(async move { (accept(&shared, &name, &headers, body).await, busy) });
    match work.await {
        Ok((Ok(lines), busy)) => {
            let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
            let busy = waits.then_some(busy);
            (kind, Body::from_stream(Answer { lines, _busy: busy })).into_response()
        }
        Ok((Err(e), _)) => refusal(&e),
        Err(e) => refusal(&ApiError::internal(format!("a request panicked: {e}"))),
    }
}

async fn accept(
    shared: &Shared,
    name: &str,
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Lines, ApiError> {
    check_protocol(headers)?;
    check_origin(&shared.origin, headers)?;
    let body = body.map_err(|e| {
        let hint = format!("a request has at most {} MiB", BODY_LIMIT >> 20);
        ApiError::new(Code::BadUsage, format!("the request cannot be read: {e}"), hint)
    })?;
    handle(&shared.kernel, parse(name, &body)?).await
}

fn check_protocol(headers: &HeaderMap) -> Result<(), ApiError> {
    let theirs = headers.get(PROTOCOL_HEADER).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
    match theirs.as_deref().map(str::parse::<u32>) {
        Some(Ok(PROTOCOL)) => Ok(()),
        _ => Err(other_protocol(&theirs.unwrap_or_else(|| "none".to_owned()), &PROTOCOL.to_string())),
    }
}

/// The error of a client and a kernel that do not speak the same protocol.
pub(super) fn other_protocol(client: &str, kernel: &str) -> ApiError {
    ApiError::new(
        Code::BadProtocol,
        format!("the client speaks protocol {client}, the running kernel protocol {kernel}"),
        format!("use the same aok for both, or end the running kernel (header `{PROTOCOL_HEADER}`)"),
    )
}

fn check_origin(ours: &Origin, headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(value) = headers.get(ORIGIN_HEADER) else { return Ok(()) };
    let theirs: Origin = serde_json::from_slice(value.as_bytes()).map_err(|e| {
        ApiError::new(Code::BadUsage, format!("the header `{ORIGIN_HEADER}` is wrong: {e}"), "leave it out")
    })?;
    ours.serves(&theirs).map_err(|option| {
        ApiError::new(
            Code::BadUsage,
            format!("the running kernel (process {}) was started without {option}", std::process::id()),
            "leave the option out, wait until that kernel ends, or use another `--data`",
        )
    })
}

fn parse(name: &str, body: &[u8]) -> Result<Request, ApiError> {
    let parameters: Value = if body.is_empty() {
        json!({})
    } else {
        serde_json::from_slice(body).map_err(|e| {
            ApiError::new(
                Code::InvalidJson,
                format!("the body is no JSON: {e}"),
                "send the parameters as one JSON object",
            )
        })?
    };
    serde_json::from_value(json!({ "command": name, "parameters": parameters })).map_err(|e| {
        ApiError::new(Code::BadUsage, format!("`{name}` is refused: {e}"), "docs/cli.md lists commands and parameters")
    })
}

fn refusal(error: &ApiError) -> Response {
    let status = match error.code {
        Code::UnknownAgent | Code::UnknownTool | Code::UnknownPlugin | Code::UnknownProcess => StatusCode::NOT_FOUND,
        Code::BadState | Code::AmbiguousTool => StatusCode::CONFLICT,
        Code::Denied => StatusCode::FORBIDDEN,
        Code::Quota => StatusCode::TOO_MANY_REQUESTS,
        Code::KernelEnding => StatusCode::SERVICE_UNAVAILABLE,
        Code::StoreFull => StatusCode::INSUFFICIENT_STORAGE,
        c if c.exit() == 2 => StatusCode::BAD_REQUEST,
        Code::BadProtocol => StatusCode::BAD_REQUEST,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (status, axum::Json(Failure::from(error.clone()))).into_response()
}

/// Counts one request as long as it lives.
#[derive(Debug)]
struct Busy(Arc<Shared>);

impl Busy {
    fn enter(shared: &Arc<Shared>) -> Option<Self> {
        let mut load = shared.load();
        if load.closing {
            return None;
        }
        load.active += 1;
        Some(Self(Arc::clone(shared)))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.load().active -= 1;
    }
}

/// The body of an answer: its lines, each with its end, and a failure as the last of them. It goes
/// away with the connection, and its request is no longer counted then.
struct Answer {
    lines: Lines,
    _busy: Option<Busy>,
}

impl Stream for Answer {
    type Item = Result<String, serde_json::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.lines.poll_next_unpin(cx).map(|line| {
            let text = match line? {
                Ok(text) => Ok(text),
                Err(error) => serde_json::to_string(&Failure::from(error)),
            };
            Some(text.map(|t| t + "\n"))
        })
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(
            header::HeaderName::from_static(name),
            HeaderValue::from_bytes(value.as_bytes()).unwrap(),
        )])
    }

    #[test]
    fn a_body_is_the_parameters_of_the_path() {
        assert_eq!(parse("ps", b"").unwrap(), Request::Ps {});
        assert_eq!(parse("ps", b"{}").unwrap(), Request::Ps {});
        assert_eq!(parse("tool-show", br#"{"name":"x"}"#).unwrap(), Request::ToolShow { name: "x".into() });
        let code = |name, body: &[u8]| parse(name, body).unwrap_err().code;
        assert_eq!(code("ps", b"{"), Code::InvalidJson);
        assert_eq!(code("fly", b"{}"), Code::BadUsage);
        assert_eq!(code("tool-show", b"{}"), Code::BadUsage);
        assert_eq!(code("tool-show", b"[1]"), Code::BadUsage);
        assert!(parse("fly", b"").unwrap_err().message.contains("`fly`"));
    }

    #[test]
    fn another_protocol_is_named() {
        assert!(check_protocol(&headers(PROTOCOL_HEADER, "2")).is_ok());
        let error = check_protocol(&headers(PROTOCOL_HEADER, "99")).unwrap_err();
        assert_eq!(error.code, Code::BadProtocol);
        assert!(error.message.contains("99"), "{error}");
        assert_eq!(check_protocol(&HeaderMap::new()).unwrap_err().code, Code::BadProtocol);
    }

    #[test]
    fn an_origin_outside_ascii_is_understood() {
        let ours = Origin { plugins: vec!["/pläne".into()], config: None };
        let same = headers(ORIGIN_HEADER, &serde_json::to_string(&ours).unwrap());
        assert!(check_origin(&ours, &same).is_ok());
        let other = headers(ORIGIN_HEADER, r#"{"plugins":["/x"],"config":null}"#);
        let error = check_origin(&ours, &other).unwrap_err();
        assert!(error.message.contains("--plugins /x"), "{error}");
        assert_eq!(check_origin(&ours, &headers(ORIGIN_HEADER, "{")).unwrap_err().code, Code::BadUsage);
    }

    #[test]
    fn a_long_directory_still_has_an_address() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        fs::create_dir(&deep).unwrap();
        let (path, open) = address(&deep, SOCKET).unwrap();
        if cfg!(target_os = "linux") {
            assert!(path.as_os_str().len() <= SUN_PATH && open.is_some());
            std::os::unix::net::UnixListener::bind(&path).unwrap();
            assert!(deep.join(SOCKET).exists());
        }
        assert_eq!(address(dir.path(), SOCKET).unwrap().0, dir.path().join(SOCKET));
    }
}
