//! Requests through `wasi:http`, and what it says about failures in words that a model can act on.
//!
//! The only file that knows `wasi:http`.

use agent_os_sdk::{Errno, Error, Result};
use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    ErrorCode, Fields, HeaderError, IncomingBody, IncomingResponse, Method as WasiMethod, OutgoingBody,
    OutgoingRequest, Scheme,
};
use wasip2::io::streams::StreamError;

use crate::Method;
use crate::redirect::Request;
use crate::url::Url;

/// Bytes that `wasi:io` writes at once.
const WRITE: usize = 4096;

/// Bytes that are read at once.
const READ: u64 = 64 * 1024;

/// A response whose body is still to come.
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    incoming: IncomingResponse,
}

impl Request {
    /// Makes the request.
    pub(crate) fn send(&self) -> Result<Response> {
        let fields = Fields::new();
        for (name, value) in &self.headers {
            if name == "content-length" {
                return Err(Error::invalid("the header `content-length` cannot be set; it is the body's length"));
            }
            fields.append(name, value.as_bytes()).map_err(|error| match error {
                HeaderError::Forbidden => {
                    Error::invalid(format!("the header `{name}` cannot be set; the kernel sets it itself"))
                }
                _ => Error::invalid(format!(
                    "the header {name:?} is none: a name has no spaces, and a value neither line breaks nor control \
                     characters"
                )),
            })?;
        }
        let outgoing = OutgoingRequest::new(fields);
        let (authority, scheme) = (self.url.authority(), if self.url.tls { Scheme::Https } else { Scheme::Http });
        let set = outgoing
            .set_method(&self.method.wasi())
            .and_then(|()| outgoing.set_scheme(Some(&scheme)))
            .and_then(|()| outgoing.set_authority(Some(&authority)))
            .and_then(|()| outgoing.set_path_with_query(Some(&self.url.path)));
        set.map_err(|()| Error::invalid(format!("the URL {} cannot be asked for", self.url)))?;
        let body = match &self.body {
            Some(text) => {
                let body = outgoing.body().map_err(|()| Error::io("the request takes no body"))?;
                Some((body, text))
            }
            None => None,
        };
        let answer = outgoing_handler::handle(outgoing, None).map_err(|code| self.url.explain(&code))?;
        if let Some((body, text)) = body {
            write(body, text.as_bytes());
        }
        answer.subscribe().block();
        let incoming = match answer.get() {
            Some(Ok(Ok(incoming))) => incoming,
            Some(Ok(Err(code))) => return Err(self.url.explain(&code)),
            Some(Err(())) | None => return Err(Error::io(format!("{} gave no response", self.url))),
        };
        Ok(Response { status: incoming.status(), headers: incoming.headers().entries(), incoming })
    }
}

/// Sends a body. Where that fails the request does, and says why.
fn write(body: OutgoingBody, bytes: &[u8]) {
    if let Ok(stream) = body.write() {
        for chunk in bytes.chunks(WRITE) {
            if stream.blocking_write_and_flush(chunk).is_err() {
                break;
            }
        }
    }
    let _ = OutgoingBody::finish(body, None);
}

impl Response {
    /// The first value of a header, where it is text.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let (_, value) = self.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name))?;
        Some(String::from_utf8_lossy(value).into_owned())
    }

    /// The first bytes of the body, at most so many, and whether there are more.
    pub(crate) fn read(self, url: &Url, limit: usize) -> Result<(Vec<u8>, bool)> {
        let broken = |why: &str| Error::io(format!("the response of {url} broke off: {why}"));
        let body: IncomingBody = self.incoming.consume().map_err(|()| broken("it has no body"))?;
        let stream = body.stream().map_err(|()| broken("it has no body"))?;
        let mut bytes = Vec::new();
        loop {
            match stream.blocking_read(READ) {
                Ok(chunk) => bytes.extend_from_slice(&chunk),
                Err(StreamError::Closed) => return Ok((bytes, false)),
                Err(StreamError::LastOperationFailed(error)) => {
                    // The host tells it in words only.
                    let words = error.to_debug_string();
                    return Err(if words.contains("timeout") {
                        Error::new(Errno::Timeout, format!("{url} began to answer and then fell silent for too long"))
                    } else {
                        broken("the connection ended before it did")
                    });
                }
            }
            if bytes.len() > limit {
                bytes.truncate(limit);
                return Ok((bytes, true));
            }
        }
    }
}

impl Method {
    fn wasi(self) -> WasiMethod {
        match self {
            Self::Get => WasiMethod::Get,
            Self::Head => WasiMethod::Head,
            Self::Post => WasiMethod::Post,
            Self::Put => WasiMethod::Put,
            Self::Patch => WasiMethod::Patch,
            Self::Delete => WasiMethod::Delete,
            Self::Options => WasiMethod::Options,
        }
    }
}

impl Url {
    /// Says what `code` means for a request of this URL, and what to do about it.
    fn explain(&self, code: &ErrorCode) -> Error {
        let authority = self.authority();
        match code {
            ErrorCode::HttpRequestDenied if self.is_disguised() => Error::denied(format!(
                "the host `{}` of {self} is an IP address in an unusual spelling; it is written like 127.0.0.1",
                self.host
            )),
            ErrorCode::HttpRequestDenied => Error::denied(format!(
                "the host `{authority}` is not granted, so {self} cannot be reached; `--host {authority}` allows it"
            )),
            ErrorCode::DestinationIpProhibited => Error::denied(format!(
                "the name `{}` leads to an address that is not of the public network (private, loopback, link-local or \
                 reserved), so {self} cannot be reached; the operator's log (`aok logs`) has the address, and \
                 `--host ADDRESS` beside the name's own grant allows it",
                self.host
            )),
            ErrorCode::DnsError(_) | ErrorCode::DestinationNotFound => {
                Error::not_found(format!("the host `{}` is not known; check the name", self.host))
            }
            ErrorCode::ConnectionRefused => {
                Error::io(format!("`{authority}` refuses the connection; nothing seems to listen there"))
            }
            ErrorCode::DestinationUnavailable | ErrorCode::DestinationIpUnroutable => {
                Error::io(format!("`{authority}` cannot be reached from this machine"))
            }
            ErrorCode::DnsTimeout | ErrorCode::ConnectionTimeout => {
                Error::new(Errno::Timeout, format!("`{authority}` could not be reached in time; it may work later"))
            }
            ErrorCode::HttpResponseTimeout | ErrorCode::ConnectionReadTimeout | ErrorCode::ConnectionWriteTimeout => {
                Error::new(Errno::Timeout, format!("{self} did not answer in time; it may work later"))
            }
            ErrorCode::TlsCertificateError => Error::io(format!(
                "`{authority}` cannot be trusted: its certificate is not valid for it, or not known to this machine"
            )),
            ErrorCode::TlsProtocolError | ErrorCode::TlsAlertReceived(_) => {
                Error::io(format!("`{authority}` does not speak TLS as it should; is it an http:// address?"))
            }
            ErrorCode::HttpRequestBodySize(Some(most)) => {
                Error::too_large(format!("the body is too large to be sent; the most is {most} bytes"))
            }
            ErrorCode::HttpRequestBodySize(None) => Error::too_large("the body is too large to be sent"),
            ErrorCode::HttpRequestUriInvalid => Error::invalid(format!("the URL {self} is not valid")),
            ErrorCode::ConnectionTerminated | ErrorCode::HttpResponseIncomplete => {
                Error::io(format!("`{authority}` ended the connection before it answered"))
            }
            ErrorCode::HttpProtocolError => Error::io(format!(
                "`{authority}` gave something that is no HTTP response; is it https or another port?"
            )),
            ErrorCode::ConfigurationError => Error::io(
                "this machine cannot make such requests; for https it needs a set of root certificates (ca-certificates)",
            ),
            code => Error::io(format!("the request of {self} failed: {code:?}")),
        }
    }

    /// Whether the host is a number that the kernel would have to decipher.
    fn is_disguised(&self) -> bool {
        let last = self.host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
        let number = last.bytes().all(|b| b.is_ascii_digit()) || last.starts_with("0x");
        number && !self.host.starts_with('[') && self.host.parse::<std::net::Ipv4Addr>().is_err()
    }
}
