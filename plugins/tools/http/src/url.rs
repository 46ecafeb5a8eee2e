//! URLs: as many of them as requests need, in the form that goes on the wire.
//!
//! What a URL standard repairs (backslashes, tabs, an IP address written as one number) is refused here or by the
//! kernel: a host is taken as it is written, so that the one that is checked and the one that is meant are one.

use std::fmt;
use std::net::Ipv6Addr;

use agent_os_sdk::{Error, Result};

/// Longest URL, in bytes.
const MAX_URL: usize = 8 * 1024;

/// An absolute http or https URL without user name, password and fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Url {
    pub(crate) tls: bool,
    /// In lower case; an IPv6 address in brackets.
    pub(crate) host: String,
    /// Where it is not the scheme's own.
    port: Option<u16>,
    /// Path and query, from the first `/`.
    pub(crate) path: String,
}

impl Url {
    /// Reads an absolute URL.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let text = checked(text)?;
        let bad = |why: &str| Error::invalid(format!("the URL `{text}` {why}"));
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(bad("is not absolute; it begins with http:// or https://"));
        };
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => return Err(bad("is of another scheme than http and https")),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if authority.contains('@') {
            return Err(Error::invalid(
                "the URL has a user name or password in it; send an `authorization` header instead",
            ));
        }
        let (host, port) = match authority.rsplit_once(':').filter(|(_, port)| !port.contains(']')) {
            None | Some((_, "")) => (authority.trim_end_matches(':'), None),
            Some((host, port)) => match port.parse::<u16>() {
                Ok(number) if number > 0 && !port.starts_with('+') => (host, Some(number)),
                _ => return Err(bad("has a port that is no number from 1 to 65535")),
            },
        };
        let usual = if tls { 443 } else { 80 };
        Ok(Self {
            tls,
            host: self::host(host).ok_or_else(|| bad("has no host, or one that is no host name"))?,
            port: port.filter(|port| *port != usual),
            path: path_and_query(path),
        })
    }

    /// The URL that a reference in a response of this one leads to.
    pub(crate) fn join(&self, reference: &str) -> Result<Self> {
        let reference = checked(reference)?;
        let scheme = if self.tls { "https" } else { "http" };
        let path = self.path.split('?').next().unwrap_or("/");
        let path = if has_scheme(reference) {
            return Self::parse(reference);
        } else if reference.starts_with("//") {
            return Self::parse(&format!("{scheme}:{reference}"));
        } else if reference.is_empty() || reference.starts_with('#') {
            self.path.clone()
        } else if reference.starts_with('/') {
            path_and_query(reference)
        } else if reference.starts_with('?') {
            path_and_query(&format!("{path}{reference}"))
        } else {
            let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
            path_and_query(&format!("{folder}/{reference}"))
        };
        Ok(Self { path, ..self.clone() })
    }

    /// Host and port, the port only where it is not the scheme's own.
    pub(crate) fn authority(&self) -> String {
        match self.port {
            Some(port) => format!("{}:{port}", self.host),
            None => self.host.clone(),
        }
    }

    /// Whether both are of one scheme, host and port.
    pub(crate) fn same_origin(&self, other: &Self) -> bool {
        (self.tls, &self.host, self.port) == (other.tls, &other.host, other.port)
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.path)
    }
}

/// A text that may be a URL: of one line and not too long.
fn checked(text: &str) -> Result<&str> {
    let text = text.trim_matches(' ');
    if text.len() > MAX_URL {
        return Err(Error::invalid(format!("the URL has {} bytes, the most is {MAX_URL}", text.len())));
    }
    if text.chars().any(char::is_control) {
        return Err(Error::invalid(format!("the URL {text:?} has control characters or line breaks in it")));
    }
    Ok(text)
}

/// Whether a reference begins with `SCHEME:`.
fn has_scheme(reference: &str) -> bool {
    reference.split_once(':').is_some_and(|(scheme, _)| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
    })
}

fn host(text: &str) -> Option<String> {
    if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return inner.parse::<Ipv6Addr>().ok().map(|address| format!("[{address}]"));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (!text.is_empty() && text.chars().all(plain)).then(|| text.to_ascii_lowercase())
}

/// The path without `.` and `..` and the query, with everything escaped that the wire does not carry.
fn path_and_query(text: &str) -> String {
    let text = text.split('#').next().unwrap_or_default();
    let (path, query) = text.split_once('?').map_or((text, None), |(path, query)| (path, Some(query)));
    let mut parts: Vec<&str> = Vec::new();
    let mut segments = path.strip_prefix('/').unwrap_or(path).split('/').peekable();
    while let Some(segment) = segments.next() {
        match segment {
            "." | ".." => {
                if segment == ".." {
                    parts.pop();
                }
                // What ends in a dot segment is a folder.
                if segments.peek().is_none() {
                    parts.push("");
                }
            }
            segment => parts.push(segment),
        }
    }
    let mut out = format!("/{}", escaped(&parts.join("/")));
    if let Some(query) = query {
        out.push('?');
        out.push_str(&escaped(query));
    }
    out
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' => out.push_str(&format!("%{byte:02X}")),
            0x21..=0x7e => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_brought_into_one_form() {
        for (text, expected) in [
            ("http://example.com", "http://example.com/"),
            ("HTTP://Example.COM:80/", "http://example.com/"),
            ("https://example.com:443/a", "https://example.com/a"),
            ("https://example.com:80/a", "https://example.com:80/a"),
            ("http://example.com:", "http://example.com/"),
            ("http://h?q=1", "http://h/?q=1"),
            ("http://h#frag", "http://h/"),
            ("http://h/a b?c d#e", "http://h/a%20b?c%20d"),
            ("http://h/ü?€", "http://h/%C3%BC?%E2%82%AC"),
            ("http://h/%20%zz", "http://h/%20%zz"),
            ("http://h/a/../b/./c/..", "http://h/b/"),
            ("http://h/../../x", "http://h/x"),
            ("http://h/a\\b", "http://h/a%5Cb"),
            ("http://h/?u=http://x/../y", "http://h/?u=http://x/../y"),
            ("http://[::1]:8080/x", "http://[::1]:8080/x"),
            ("http://[0:0::0001]/", "http://[::1]/"),
            ("http://127.0.0.1:1/", "http://127.0.0.1:1/"),
            ("http://2130706433/", "http://2130706433/"),
            (" http://h ", "http://h/"),
        ] {
            let url = Url::parse(text).unwrap_or_else(|e| panic!("{text}: {e:?}"));
            assert_eq!(url.to_string(), expected, "{text}");
            assert_eq!(Url::parse(&url.to_string()).unwrap(), url, "{text}");
        }
    }

    #[test]
    fn what_is_no_url_is_refused() {
        for (text, word) in [
            ("", "not absolute"),
            ("example.com", "not absolute"),
            ("/path", "not absolute"),
            ("mailto:x@y", "not absolute"),
            ("ftp://h", "another scheme"),
            ("file:///etc/passwd", "another scheme"),
            ("http://", "no host"),
            ("http:///path", "no host"),
            ("http://:80", "no host"),
            ("http://h:0", "port"),
            ("http://h:65536", "port"),
            ("http://h:+80", "port"),
            ("http://h:8 0", "port"),
            ("http://a b/", "no host"),
            ("http://bücher.example/", "no host"),
            ("http://h\\@evil/", "user name"),
            ("http://h\\.evil/", "no host"),
            ("http://h%2eevil/", "no host"),
            ("http://[::1", "no host"),
            ("http://[fe80::1%25eth0]/", "no host"),
            ("http://user@h/", "user name"),
            ("http://user:pw@h/", "user name"),
            ("http://h/\r\nx", "control"),
            ("http://h\t/", "control"),
            ("http://h/\0", "control"),
        ] {
            let error = Url::parse(text).unwrap_err();
            assert!(error.message.contains(word), "{text}: {}", error.message);
            assert!(!error.message.contains("pw"), "a password is not repeated: {}", error.message);
        }
        assert!(Url::parse(&format!("http://h/{}", "x".repeat(MAX_URL))).unwrap_err().message.contains("the most is"));
    }

    #[test]
    fn references_are_resolved() {
        let base = Url::parse("http://h:81/a/b?q").unwrap();
        for (reference, expected) in [
            ("c", "http://h:81/a/c"),
            ("./c/", "http://h:81/a/c/"),
            ("../c?x", "http://h:81/c?x"),
            ("/c", "http://h:81/c"),
            ("?x", "http://h:81/a/b?x"),
            ("", "http://h:81/a/b?q"),
            ("#f", "http://h:81/a/b?q"),
            ("//other/x", "http://other/x"),
            ("https://other", "https://other/"),
            ("c:d/e", ""),
            ("c/d:e", "http://h:81/a/c/d:e"),
        ] {
            match base.join(reference) {
                Ok(url) => assert_eq!(url.to_string(), expected, "{reference}"),
                Err(error) => assert!(expected.is_empty(), "{reference}: {error:?}"),
            }
        }
    }
}
