//! Secrets on the way out and back. A guest knows placeholders: [`Cloak::reveal`] puts the secrets in their
//! places in a request, if all of them may go to its host, and [`Hide`] puts the placeholders back wherever
//! a secret stands in what a call gets and leaves behind: as it is, or as URLs, JSON and base64 write it.

use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use hyper::body::{Bytes, Frame};
use hyper::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue,
};
use wasmtime_wasi_http::Error;

use crate::abi::ToolResult;
use crate::capability::{Destination, PluginRights, Refusal, Secret};
use crate::tool::Session;

/// The shortest text that is taken for a form of a secret.
const MIN_FORM: usize = 8;

/// What begins the credentials of Basic authentication.
const BASIC: &str = "basic ";

/// The secrets of one call.
pub(super) struct Cloak {
    plugin: Arc<PluginRights>,
    /// Finds placeholders, in the order of the secrets.
    finder: AhoCorasick,
    pub(super) hide: Arc<Hide>,
}

/// How a secret is written where it takes a placeholder's place.
#[derive(Clone, Copy)]
enum Form {
    Plain,
    Url,
    Json,
}

impl Form {
    fn of_body(headers: &HeaderMap) -> Self {
        let kind = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default().to_ascii_lowercase();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        match kind {
            "application/x-www-form-urlencoded" => Self::Url,
            "application/json" => Self::Json,
            kind if kind.ends_with("+json") => Self::Json,
            _ => Self::Plain,
        }
    }

    fn write(self, value: &str) -> String {
        match self {
            Self::Plain => value.to_owned(),
            Self::Url => escaped(value),
            Self::Json => json(value),
        }
    }
}

/// A text as a part of a URL's query.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => escaped.push(char::from(byte)),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

/// A text within a JSON string.
fn json(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

impl Cloak {
    /// The cloak of a plugin's call; `None` where it has no secrets.
    pub(super) fn of(plugin: &Arc<PluginRights>) -> Option<Self> {
        if plugin.secrets.is_empty() {
            return None;
        }
        let finder = finder(plugin.secrets.iter().map(|s| s.placeholder.as_bytes()))?;
        Some(Self { plugin: Arc::clone(plugin), finder, hide: Arc::new(Hide::new(&plugin.secrets)?) })
    }

    /// Puts secrets in the places of their placeholders in a request to `to`; gives its body.
    ///
    /// # Errors
    /// One of them may not go there, or stands where none may.
    pub(super) fn reveal(
        &self,
        request: &mut reqwest::Request,
        body: Bytes,
        to: &Destination,
    ) -> Result<Bytes, Refusal> {
        // A compressed answer could not be searched.
        request.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(secret) = self.first_in(request.url().path().as_bytes()) {
            return Err(self.misplaced(secret, "in a path"));
        }
        if let Some(secret) = request.headers().keys().find_map(|name| self.first_in(name.as_str().as_bytes())) {
            return Err(self.misplaced(secret, "in the name of a header"));
        }
        if let Some(query) = request.url().query()
            && let Some(query) = self.replaced(query.as_bytes(), Form::Url, to)?
        {
            request.url_mut().set_query(Some(&String::from_utf8_lossy(&query)));
        }
        let form = Form::of_body(request.headers());
        let names: Vec<_> = request.headers().keys().cloned().collect();
        for name in names {
            let values: Vec<_> = request.headers().get_all(&name).iter().cloned().collect();
            let mut changed = Vec::with_capacity(values.len());
            for value in &values {
                let text = match name == AUTHORIZATION {
                    true => self.basic(value.as_bytes(), to)?,
                    false => None,
                };
                changed.push(match text {
                    Some(text) => Some(text),
                    None => self.replaced(value.as_bytes(), Form::Plain, to)?,
                });
            }
            if changed.iter().all(Option::is_none) {
                continue;
            }
            request.headers_mut().remove(&name);
            for (value, text) in values.into_iter().zip(changed) {
                let mut value = match text.map(|text| HeaderValue::from_bytes(&text)) {
                    None => value,
                    Some(Ok(value)) => value,
                    Some(Err(_)) => return Err(self.open("a secret with control characters cannot stand in a header")),
                };
                value.set_sensitive(true);
                request.headers_mut().append(&name, value);
            }
        }
        match self.replaced(&body, form, to)? {
            None => Ok(body),
            Some(body) => {
                // The client writes the length of what it sends.
                request.headers_mut().remove(CONTENT_LENGTH);
                Ok(body.into())
            }
        }
    }

    /// Credentials of Basic authentication with secrets in them.
    fn basic(&self, value: &[u8], to: &Destination) -> Result<Option<Vec<u8>>, Refusal> {
        let is_basic = value.len() > BASIC.len() && value[..BASIC.len()].eq_ignore_ascii_case(BASIC.as_bytes());
        if !is_basic {
            return Ok(None);
        }
        let text = value[BASIC.len()..].trim_ascii();
        let decoded = STANDARD.decode(text).or_else(|_| STANDARD_NO_PAD.decode(text));
        let Ok(decoded) = decoded else { return Ok(None) };
        let replaced = self.replaced(&decoded, Form::Plain, to)?;
        Ok(replaced.map(|text| format!("Basic {}", STANDARD.encode(text)).into_bytes()))
    }

    fn first_in(&self, text: &[u8]) -> Option<&Secret> {
        self.finder.find(text).map(|found| &self.plugin.secrets[found.pattern()])
    }

    /// `None` where there is nothing to replace.
    fn replaced(&self, text: &[u8], form: Form, to: &Destination) -> Result<Option<Vec<u8>>, Refusal> {
        let mut replaced = Vec::new();
        let mut at = 0;
        for found in self.finder.find_iter(text) {
            let secret = &self.plugin.secrets[found.pattern()];
            secret.may_go(&self.plugin.name, to)?;
            replaced.extend_from_slice(&text[at..found.start()]);
            replaced.extend_from_slice(form.write(secret.value.reveal()).as_bytes());
            at = found.end();
        }
        if at == 0 {
            return Ok(None);
        }
        replaced.extend_from_slice(&text[at..]);
        Ok(Some(replaced))
    }

    fn misplaced(&self, secret: &Secret, place: &str) -> Refusal {
        let name = &secret.name;
        self.open(&format!("the secret `{name}` stands {place}; it is filled in in header values, query and body"))
    }

    fn open(&self, why: &str) -> Refusal {
        Refusal { text: format!("secret: of the plugin `{}`, {why}", self.plugin.name), open: true }
    }
}

fn finder<'a>(patterns: impl IntoIterator<Item = &'a [u8]>) -> Option<AhoCorasick> {
    // It fails only where the patterns are larger than any secret may be.
    AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(patterns).ok()
}

/// Finds secrets in every form that they are expected in.
pub(super) struct Hide {
    finder: AhoCorasick,
    /// The forms, and what is put in the place of each.
    forms: Vec<(Vec<u8>, String)>,
}

impl Hide {
    fn new(secrets: &[Secret]) -> Option<Self> {
        let mut forms: Vec<(Vec<u8>, String)> = Vec::new();
        for secret in secrets {
            for form in forms_of(secret.value.reveal()) {
                if form.len() >= MIN_FORM && !forms.iter().any(|(other, _)| *other == form) {
                    forms.push((form, secret.placeholder.clone()));
                }
            }
        }
        let finder = finder(forms.iter().map(|(form, _)| &form[..]))?;
        Some(Self { finder, forms })
    }

    /// A text without secrets; `None` where it has none.
    fn clean(&self, text: &[u8]) -> Option<Vec<u8>> {
        self.finder.is_match(text).then(|| {
            let mut clean = Vec::with_capacity(text.len());
            let mut at = 0;
            for found in self.finder.find_iter(text) {
                clean.extend_from_slice(&text[at..found.start()]);
                clean.extend_from_slice(self.forms[found.pattern()].1.as_bytes());
                at = found.end();
            }
            clean.extend_from_slice(&text[at..]);
            clean
        })
    }

    fn clean_text(&self, text: &mut String) {
        if let Some(clean) = self.clean(text.as_bytes()) {
            *text = String::from_utf8_lossy(&clean).into_owned();
        }
    }

    /// Hides secrets in the head of a response.
    ///
    /// # Errors
    /// Its body is compressed, and so could not be searched.
    pub(super) fn in_head(&self, headers: &mut HeaderMap) -> Result<(), Error> {
        let coding = headers.get(CONTENT_ENCODING).filter(|v| !v.as_bytes().eq_ignore_ascii_case(b"identity"));
        if let Some(coding) = coding {
            let coding = String::from_utf8_lossy(coding.as_bytes()).into_owned();
            return Err(Error::HttpResponseContentCoding(Some(coding)));
        }
        // A secret in it makes the body another length.
        headers.remove(CONTENT_LENGTH);
        self.in_headers(headers);
        Ok(())
    }

    fn in_headers(&self, headers: &mut HeaderMap) {
        for value in headers.values_mut() {
            if let Some(clean) = self.clean(value.as_bytes()) {
                *value = HeaderValue::from_bytes(&clean).unwrap_or(HeaderValue::from_static(""));
            }
        }
        let named: Vec<_> =
            headers.keys().filter(|name| self.clean(name.as_str().as_bytes()).is_some()).cloned().collect();
        for name in named {
            headers.remove(name);
        }
    }

    /// Hides secrets in what a call leaves behind. A guest cannot have one unless a host helped it.
    pub(super) fn in_report(&self, session: &mut Session, result: &mut ToolResult) {
        session.rewrite_lines(|line| self.clean_text(line));
        match result {
            Ok(text) => self.clean_text(text),
            Err(error) => {
                self.clean_text(&mut error.message);
                if let Some(data) = &mut error.data
                    && let Some(clean) = self.clean(data.to_string().as_bytes())
                {
                    **data = serde_json::from_slice(&clean).unwrap_or_default();
                }
            }
        }
    }
}

/// How a secret may be written in what comes back: as text, and as base64 of any text that has it so.
fn forms_of(value: &str) -> Vec<Vec<u8>> {
    let (url, json) = (escaped(value), json(value));
    let html = value.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let texts = [
        value.to_owned(),
        url.replace("%20", "+"),
        lower_escapes(&url),
        url,
        json.replace('/', "\\/"),
        json.replace('&', "\\u0026").replace('<', "\\u003c").replace('>', "\\u003e"),
        json,
        html.replace('"', "&quot;").replace('\'', "&#39;"),
    ];
    let mut forms = Vec::new();
    for text in texts {
        for before in 0..3 {
            let text = [&[0; 2][..before], text.as_bytes()].concat();
            // Its first and last characters depend on what stands beside the secret.
            let (first, last) = ((before * 8).div_ceil(6), text.len() * 8 / 6);
            let encoded = [STANDARD_NO_PAD.encode(&text), URL_SAFE_NO_PAD.encode(&text)];
            forms.extend(encoded.map(|whole| whole.as_bytes()[first..last].to_vec()));
        }
        forms.push(text.into_bytes());
    }
    forms
}

/// `%AB` as `%ab`.
fn lower_escapes(url: &str) -> String {
    let mut parts = url.split('%');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| format!("{text}%{}{}", part[..2].to_ascii_lowercase(), &part[2..]))
}

/// A body on its way in: what may be the beginning of a secret is held back until more is there.
pub(super) struct Seen {
    hide: Arc<Hide>,
    held: Vec<u8>,
}

impl Seen {
    pub(super) fn new(hide: Arc<Hide>) -> Self {
        Self { hide, held: Vec::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// What can be given of a frame; `None` where all of it is held back.
    pub(super) fn frame(&mut self, frame: Frame<Bytes>) -> Option<Frame<Bytes>> {
        match frame.into_data() {
            Ok(data) => {
                self.held.extend_from_slice(&data);
                let begun = self.begun();
                Some(self.give(begun)).filter(|data| !data.is_empty()).map(Frame::data)
            }
            Err(frame) => {
                let mut trailers = frame.into_trailers().unwrap_or_default();
                self.hide.in_headers(&mut trailers);
                // Trailers end a body; nothing held back can go before them in one frame.
                (!trailers.is_empty() && self.held.is_empty()).then(|| Frame::trailers(trailers))
            }
        }
    }

    /// What is left at the end.
    pub(super) fn rest(&mut self) -> Option<Bytes> {
        Some(self.give(0)).filter(|rest| !rest.is_empty())
    }

    /// How many bytes at the end may be the beginning of a secret.
    fn begun(&self) -> usize {
        let longest = self.hide.forms.iter().map(|(form, _)| form.len()).max().unwrap_or(0);
        let most = longest.saturating_sub(1).min(self.held.len());
        let is_begun = |n: &usize| {
            let end = &self.held[self.held.len() - n..];
            self.hide.forms.iter().any(|(form, _)| form.len() > *n && form.starts_with(end))
        };
        (1..=most).rev().find(is_begun).unwrap_or(0)
    }

    /// Gives what is held, but for so many last bytes, with placeholders in the places of secrets.
    fn give(&mut self, keep: usize) -> Bytes {
        let end = self.held.len() - keep;
        let mut given = Vec::with_capacity(end);
        let mut at = 0;
        // A match that begins before the end is whole: what could make it longer would be begun there.
        for found in self.hide.finder.find_iter(&self.held).take_while(|found| found.start() < end) {
            given.extend_from_slice(&self.held[at..found.start()]);
            given.extend_from_slice(self.hide.forms[found.pattern()].1.as_bytes());
            at = found.end();
        }
        if at < end {
            given.extend_from_slice(&self.held[at..end]);
        }
        self.held.drain(..at.max(end));
        given.into()
    }
}

#[cfg(test)]
mod tests;
