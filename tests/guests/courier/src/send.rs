//! One request through `wasi:http`.

use agent_os_sdk::{Error, Result};
use wasip2::http::outgoing_handler;
use wasip2::http::types::{Fields, Method, OutgoingBody, OutgoingRequest, Scheme};
use wasip2::io::streams::StreamError;

use crate::Answer;

pub(crate) fn request(method: &str, url: &str, headers: &[(String, String)], body: Option<&str>) -> Result<Answer> {
    let bad = |what: &str| Error::invalid(format!("{url}: {what}"));
    let (scheme, rest) = url.split_once("://").ok_or_else(|| bad("no URL"))?;
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let fields = Fields::new();
    for (name, value) in headers {
        fields.append(name, value.as_bytes()).map_err(|e| bad(&format!("the header {name}: {e:?}")))?;
    }
    let outgoing = OutgoingRequest::new(fields);
    let scheme = if scheme == "https" { Scheme::Https } else { Scheme::Http };
    let set = outgoing
        .set_method(&if method == "GET" { Method::Get } else { Method::Other(method.to_owned()) })
        .and_then(|()| outgoing.set_scheme(Some(&scheme)))
        .and_then(|()| outgoing.set_authority(Some(authority)))
        .and_then(|()| outgoing.set_path_with_query(Some(path)));
    set.map_err(|()| bad("cannot be asked for"))?;
    let sink = match body {
        Some(text) => Some((outgoing.body().map_err(|()| bad("takes no body"))?, text)),
        None => None,
    };
    let answer = outgoing_handler::handle(outgoing, None).map_err(|code| refused(url, &code))?;
    if let Some((sink, text)) = sink {
        if let Ok(stream) = sink.write() {
            let _ = text.as_bytes().chunks(4096).try_for_each(|chunk| stream.blocking_write_and_flush(chunk));
        }
        let _ = OutgoingBody::finish(sink, None);
    }
    answer.subscribe().block();
    let incoming = match answer.get() {
        Some(Ok(Ok(incoming))) => incoming,
        Some(Ok(Err(code))) => return Err(refused(url, &code)),
        _ => return Err(Error::io(format!("{url} gave no response"))),
    };
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let headers = incoming.headers().entries().into_iter().map(|(name, value)| (name, text(value))).collect();
    let status = incoming.status();
    let stream = incoming.consume().and_then(|body| body.stream().map(|stream| (body, stream)));
    let (_body, stream) = stream.map_err(|()| bad("has no body"))?;
    let mut bytes = Vec::new();
    loop {
        match stream.blocking_read(1 << 16) {
            Ok(chunk) => bytes.extend_from_slice(&chunk),
            Err(StreamError::Closed) => break,
            Err(StreamError::LastOperationFailed(e)) => return Err(bad(&e.to_debug_string())),
        }
    }
    Ok(Answer { status, headers, body: text(bytes) })
}

fn refused(url: &str, code: &wasip2::http::types::ErrorCode) -> Error {
    Error::io(format!("{url} was not reached: {code:?}"))
}
