//! `http__fetch`: one HTTP request to a host that the operator granted with `--host`, redirects followed.
//!
//! The kernel is the boundary: it checks each request, so also each step of a redirect. What this plugin adds are
//! the rules of redirects, a result that a model can read, and errors that name the missing grant.

mod redirect;
mod send;
mod url;

use std::collections::BTreeMap;

use agent_os_sdk::{CallContext, Effect, Error, Result, Tool};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use redirect::Request;
use send::Response;
use url::Url;

/// Bytes of a response's body that are given; as JSON text they fit a result of 4 MiB in any case.
const MAX_BODY: usize = 256 * 1024;

/// Redirects that are followed.
const MAX_REDIRECTS: usize = 5;

/// Bytes of all request headers together.
const MAX_HEADERS: usize = 16 * 1024;

/// What the request says about who makes it, unless the headers do.
const USER_AGENT: &str = concat!("agent-os-kernel/", env!("CARGO_PKG_VERSION"));

/// Makes an HTTP request to a host that is granted and gives the response, whatever its status. Follows up to 5
/// redirects. Gives the first 256 KiB of the body.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Fetch {
    /// An absolute `http://` or `https://` URL, without user name and password.
    url: String,
    /// The method; GET when absent.
    method: Option<Method>,
    /// Request headers, value by name.
    headers: Option<BTreeMap<String, String>>,
    /// The body to send, not with GET or HEAD. Its `content-type` is `application/json` when it is JSON and
    /// `text/plain` otherwise, unless the headers say.
    body: Option<String>,
}

/// The methods of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
enum Method {
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
    Options,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Fetched {
    /// The status code.
    status: u16,
    /// Where the response is from, after all redirects.
    url: String,
    /// The response's headers by name, in lower case; several of one name are joined by `, `, and those of
    /// `set-cookie` by line breaks.
    headers: BTreeMap<String, String>,
    /// The body, where it is UTF-8 text.
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    /// The body in base64, where it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
    /// Whether the body goes on after what is given.
    truncated: bool,
}

impl Tool for Fetch {
    const NAME: &'static str = "fetch";
    // One tool has one effect. A GET would be read-only, but a POST that a crash cut off must not be made again.
    const EFFECT: Effect = Effect::Destructive;
    type Output = Fetched;

    fn call(self, _: &CallContext) -> Result<Fetched> {
        let mut request = self.request()?;
        let first = request.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let response = request.send().map_err(|error| {
                if request.url == first {
                    return error;
                }
                Error::new(error.code, format!("{first} redirects: {}", error.message))
            })?;
            match request.redirected(response.status, response.header("location").as_deref())? {
                Some(next) => request = next,
                None => return fetched(&request.url, response),
            }
        }
        Err(Error::io(format!("more than {MAX_REDIRECTS} redirects; the last one leads to {}", request.url)))
    }
}

agent_os_sdk::export_tools!(Fetch);

impl Fetch {
    fn request(self) -> Result<Request> {
        let url = Url::parse(&self.url)?;
        let method = self.method.unwrap_or(Method::Get);
        if self.body.is_some() && matches!(method, Method::Get | Method::Head) {
            return Err(Error::invalid(
                "a GET or HEAD request has no body; use another method, or put it into the URL",
            ));
        }
        let mut headers: Vec<(String, String)> = Vec::new();
        for (name, value) in self.headers.unwrap_or_default() {
            let name = name.to_ascii_lowercase();
            if headers.iter().any(|(other, _)| *other == name) {
                return Err(Error::invalid(format!("the header `{name}` is given twice")));
            }
            headers.push((name, value.trim().to_owned()));
        }
        let size: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        if size > MAX_HEADERS {
            return Err(Error::invalid(format!("the headers have {size} bytes, the most is {MAX_HEADERS}")));
        }
        let mut request = Request { method, url, headers, body: self.body };
        request.default_header("user-agent", USER_AGENT);
        if let Some(body) = &request.body {
            let json = serde_json::from_str::<serde::de::IgnoredAny>(body).is_ok();
            request.default_header("content-type", if json { "application/json" } else { "text/plain; charset=utf-8" });
        }
        Ok(request)
    }
}

fn fetched(url: &Url, response: Response) -> Result<Fetched> {
    let (status, headers) = (response.status, joined(&response.headers));
    let (bytes, truncated) = response.read(url, MAX_BODY)?;
    let (body, body_base64) = match text(bytes, truncated) {
        Ok(text) => (Some(text), None),
        Err(bytes) => (None, Some(STANDARD.encode(bytes))),
    };
    Ok(Fetched { status, url: url.to_string(), headers, body, body_base64, truncated })
}

/// The bytes as text, if they are text; a cut one ends before the character that the cut is in.
fn text(bytes: Vec<u8>, cut: bool) -> Result<String, Vec<u8>> {
    String::from_utf8(bytes).or_else(|error| {
        let (end, amid_character) = (error.utf8_error().valid_up_to(), error.utf8_error().error_len().is_none());
        let mut bytes = error.into_bytes();
        if cut && amid_character {
            bytes.truncate(end);
        }
        String::from_utf8(bytes).map_err(std::string::FromUtf8Error::into_bytes)
    })
}

/// One value per name. Values are bytes on the wire; each is taken for a Latin-1 character where they are no UTF-8.
fn joined(headers: &[(String, Vec<u8>)]) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for (name, value) in headers {
        let value = match std::str::from_utf8(value) {
            Ok(text) => text.to_owned(),
            Err(_) => value.iter().map(|byte| char::from(*byte)).collect(),
        };
        let separator = if name == "set-cookie" { "\n" } else { ", " };
        all.entry(name.to_ascii_lowercase())
            .and_modify(|all: &mut String| {
                all.push_str(separator);
                all.push_str(&value);
            })
            .or_insert(value);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_os_sdk::Errno;

    fn request(json: &str) -> Result<Request> {
        serde_json::from_str::<Fetch>(json).unwrap().request()
    }

    #[test]
    fn a_request_says_what_it_is() {
        let plain = request(r#"{"url":"http://example.com"}"#).unwrap();
        assert_eq!((plain.method, plain.headers.len(), plain.body), (Method::Get, 1, None));
        assert!(plain.headers[0].1.starts_with("agent-os-kernel/"));
        for (body, kind) in
            [("{}", "application/json"), ("[1]", "application/json"), ("a=b", "text/plain; charset=utf-8")]
        {
            let sent = request(&format!(r#"{{"url":"http://h","method":"POST","body":{body:?}}}"#)).unwrap();
            assert_eq!(sent.header("content-type"), Some(kind), "{body}");
        }
        let own =
            r#"{"url":"http://h","method":"PUT","body":"{}","headers":{"Content-Type":"a/b ","USER-AGENT":"me"}}"#;
        let own = request(own).unwrap();
        assert_eq!((own.header("content-type"), own.header("user-agent")), (Some("a/b"), Some("me")));
        assert_eq!(own.headers.len(), 2);
    }

    #[test]
    fn what_cannot_be_sent_is_invalid() {
        for (json, word) in [
            (r#"{"url":"ftp://h"}"#.to_owned(), "http"),
            (r#"{"url":"http://h","body":"x"}"#.to_owned(), "no body"),
            (r#"{"url":"http://h","headers":{"A":"1","a":"2"}}"#.to_owned(), "twice"),
            (format!(r#"{{"url":"http://h","headers":{{"a":"{}"}}}}"#, "x".repeat(MAX_HEADERS)), "the most is"),
        ] {
            let error = request(&json).unwrap_err();
            assert_eq!(error.code, Errno::Invalid);
            assert!(error.message.contains(word), "{word}: {error:?}");
        }
        assert!(serde_json::from_str::<Fetch>(r#"{"url":"http://h","method":"CONNECT"}"#).is_err());
    }

    #[test]
    fn a_body_is_given_without_loss() {
        assert_eq!(text("añ€".into(), false).unwrap(), "añ€");
        assert_eq!(text(b"\xff\0".to_vec(), false).unwrap_err(), b"\xff\0");
        let mut cut = "añ€".as_bytes().to_vec();
        cut.pop();
        assert_eq!(text(cut.clone(), true).unwrap(), "añ");
        assert_eq!(text(cut.clone(), false).unwrap_err(), cut, "not cut by us, so it is no text");
        assert_eq!(text(b"\xffabc\xe2".to_vec(), true).unwrap_err(), b"\xffabc\xe2");
    }

    #[test]
    fn headers_of_one_name_are_joined() {
        let header = |name: &str, value: &[u8]| (name.to_owned(), value.to_vec());
        let all = joined(&[
            header("Vary", b"a"),
            header("vary", b"b"),
            header("set-cookie", b"x=1, 2"),
            header("set-cookie", b"y"),
            header("x", b"caf\xe9"),
        ]);
        assert_eq!(
            (all["vary"].as_str(), all["set-cookie"].as_str(), all["x"].as_str()),
            ("a, b", "x=1, 2\ny", "café")
        );
    }
}
