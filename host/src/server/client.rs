//! The client's end of `aok.sock`: finds out whether a kernel answers, and asks it.

use std::io;
use std::path::Path;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::Lines;
use super::error::{ApiError, Code, chain};
use super::socket::{SOCKET, address, other_protocol};
use super::wire::{Failure, Hello, ORIGIN_HEADER, Origin, PROTOCOL, PROTOCOL_HEADER, Request};

/// How long a kernel may take to say hello. A living one answers in well under a millisecond; this
/// is for a machine that is out of breath.
const HELLO: Duration = Duration::from_secs(5);

/// What is behind the socket of a data directory.
#[derive(Debug)]
pub enum Found {
    /// A kernel that answers.
    Kernel(Client),
    /// Nobody.
    Nobody,
    /// A kernel on its way out; the lock will be free soon.
    Closing,
    /// Something that accepts connections and does not answer.
    Silent,
}

/// A connection to a running kernel, good for one request.
#[derive(Debug)]
pub struct Client {
    sender: SendRequest<Full<Bytes>>,
}

impl Client {
    /// Looks for the kernel of the data directory `dir`.
    ///
    /// # Errors
    /// The socket is there and may not be used, or the kernel speaks another protocol.
    pub async fn find(dir: &Path) -> Result<Found, ApiError> {
        let stream = match connect(dir).await {
            Ok(stream) => stream,
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                let path = dir.join(SOCKET);
                return Err(ApiError::new(
                    Code::Io,
                    format!("the running kernel's socket {} cannot be used: {e}", path.display()),
                    "only the user who started the kernel may use it; use another `--data`",
                ));
            }
            Err(_) => return Ok(Found::Nobody),
        };
        match tokio::time::timeout(HELLO, greet(stream)).await {
            Ok(Ok((_, hello))) if hello.protocol != PROTOCOL => {
                Err(other_protocol(&PROTOCOL.to_string(), &format!("{} (aok {})", hello.protocol, hello.version)))
            }
            Ok(Ok((_, hello))) if hello.closing => Ok(Found::Closing),
            Ok(Ok((sender, _))) => Ok(Found::Kernel(Self { sender })),
            // It ended between the two.
            Ok(Err(_)) => Ok(Found::Nobody),
            Err(_) => Ok(Found::Silent),
        }
    }

    /// Asks the kernel.
    ///
    /// # Errors
    /// What it refuses, with the same code as in its own process; `kernel_ending` if it did not take
    /// the request, `kernel_gone` if it ended and nobody knows how far it came.
    pub async fn call(mut self, request: &Request, origin: &Origin) -> Result<Lines, ApiError> {
        let (name, body) = encode(request)?;
        let origin = serde_json::to_string(origin).map_err(|e| {
            ApiError::new(
                Code::BadUsage,
                format!("a path of `--plugins` or `--config` cannot be sent: {e}"),
                "use a UTF-8 path",
            )
        })?;
        let request = hyper::Request::builder()
            .method(Method::POST)
            .uri(format!("/v1/{name}"))
            .header("host", "aok")
            .header("content-type", "application/json")
            .header(PROTOCOL_HEADER, PROTOCOL)
            .header(ORIGIN_HEADER, origin.as_bytes())
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| ApiError::internal(format!("a request cannot be built: {e}")))?;
        let response = self.sender.send_request(request).await.map_err(|e| gone(&e))?;
        let (status, body) = (response.status(), response.into_body());
        if status == StatusCode::OK {
            return Ok(lines(body, self.sender));
        }
        let bytes = body.collect().await.map_err(|e| gone(&e))?.to_bytes();
        Err(match serde_json::from_slice::<Failure>(&bytes) {
            Ok(failure) => failure.error,
            Err(_) => ApiError::internal(format!("the kernel answered {status} without a reason")),
        })
    }
}

async fn connect(dir: &Path) -> io::Result<UnixStream> {
    let (path, _open) = address(dir, SOCKET)?;
    UnixStream::connect(path).await
}

async fn greet(
    stream: UnixStream,
) -> Result<(SendRequest<Full<Bytes>>, Hello), Box<dyn std::error::Error + Send + Sync>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the sender; what breaks it is reported where the answer is read.
    tokio::spawn(connection);
    let request = hyper::Request::get("/v1/hello").header("host", "aok").body(Full::default())?;
    let bytes = sender.send_request(request).await?.into_body().collect().await?.to_bytes();
    sender.ready().await?;
    Ok((sender, serde_json::from_slice(&bytes)?))
}

/// The command's name and the JSON text of its parameters.
fn encode(request: &Request) -> Result<(String, String), ApiError> {
    let bug = |e: &dyn std::fmt::Display| ApiError::internal(format!("a request is no JSON: {e}"));
    let value = serde_json::to_value(request).map_err(|e| {
        // The one value that JSON cannot hold is a path that is not UTF-8.
        ApiError::new(
            Code::BadUsage,
            format!("the request cannot be sent: {e}"),
            "use UTF-8 paths beside a running kernel",
        )
    })?;
    let name = value["command"].as_str().ok_or_else(|| bug(&"no command"))?.to_owned();
    Ok((name, serde_json::to_string(&value["parameters"]).map_err(|e| bug(&e))?))
}

fn gone(cause: &(dyn std::error::Error + 'static)) -> ApiError {
    ApiError::new(
        Code::KernelGone,
        format!("the running kernel ended before it had answered: {}", chain(cause)),
        "`aok ps` shows what it left, `aok run --resume PID` continues it",
    )
}

/// An answer on its way in.
struct Reading {
    body: Incoming,
    /// Bytes that hold no whole line yet.
    rest: Vec<u8>,
    /// Keeps the connection open.
    _sender: SendRequest<Full<Bytes>>,
}

fn lines(body: Incoming, sender: SendRequest<Full<Bytes>>) -> Lines {
    let start = Reading { body, rest: Vec::new(), _sender: sender };
    stream::unfold(Some(start), |reading| async move {
        let mut reading = reading?;
        match reading.body.frame().await {
            Some(Ok(frame)) => {
                let new = frame.into_data().unwrap_or_default();
                let lines = split(&mut reading.rest, &new);
                Some((lines, Some(reading)))
            }
            Some(Err(e)) => Some((vec![Err(gone(&e))], None)),
            None if reading.rest.is_empty() => None,
            None => Some((vec![decode(&reading.rest)], None)),
        }
    })
    .flat_map(stream::iter)
    .boxed()
}

/// Adds `new` to `rest` and takes the whole lines out of it.
fn split(rest: &mut Vec<u8>, new: &[u8]) -> Vec<Result<String, ApiError>> {
    let mut lines = Vec::new();
    let mut new = new;
    while let Some(end) = new.iter().position(|b| *b == b'\n') {
        rest.extend_from_slice(&new[..end]);
        lines.push(decode(rest));
        rest.clear();
        new = &new[end + 1..];
    }
    rest.extend_from_slice(new);
    lines
}

fn decode(line: &[u8]) -> Result<String, ApiError> {
    let text = std::str::from_utf8(line).map_err(|e| ApiError::internal(format!("the kernel sent a bad line: {e}")))?;
    // A failure begins with its error; no line of an answer does, but only the whole of it decides.
    if text.starts_with("{\"error\":")
        && let Ok(failure) = serde_json::from_str::<Failure>(text)
    {
        return Err(failure.error);
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Pid;

    #[test]
    fn lines_are_whole_whatever_the_frames() {
        let text = "{\"a\":\"größe\"}\n{\"b\":2}\n{\"error\":{\"code\":\"stopped\",\"message\":\"m\",\"hint\":\"h\"},\"exit\":5}\n";
        for size in 1..text.len() {
            let mut rest = Vec::new();
            let got: Vec<_> = text.as_bytes().chunks(size).flat_map(|c| split(&mut rest, c)).collect();
            assert_eq!(got.len(), 3, "frames of {size}");
            assert_eq!(got[0].as_deref().unwrap(), "{\"a\":\"größe\"}");
            assert_eq!(got[1].as_deref().unwrap(), "{\"b\":2}");
            assert_eq!(got[2].as_ref().unwrap_err().code, Code::Stopped);
            assert!(rest.is_empty());
        }
    }

    #[test]
    fn the_path_is_the_command_and_the_body_its_parameters() {
        let (name, body) = encode(&Request::Logs { pid: Pid(2), follow: true }).unwrap();
        assert_eq!((name.as_str(), body.as_str()), ("logs", r#"{"pid":2,"follow":true}"#));
        assert_eq!(encode(&Request::Ps {}).unwrap(), ("ps".to_owned(), "{}".to_owned()));
    }

    #[tokio::test]
    async fn nobody_is_found_where_nobody_is() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Client::find(dir.path()).await.unwrap(), Found::Nobody));
        assert!(matches!(Client::find(Path::new("/nowhere/at/all")).await.unwrap(), Found::Nobody));
        // What a kernel that was killed leaves behind: a file that nobody listens on.
        drop(std::os::unix::net::UnixListener::bind(dir.path().join(SOCKET)).unwrap());
        assert!(dir.path().join(SOCKET).exists());
        assert!(matches!(Client::find(dir.path()).await.unwrap(), Found::Nobody));
    }
}
