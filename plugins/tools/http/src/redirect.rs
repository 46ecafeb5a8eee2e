//! A request, and what a redirect makes of it.

use agent_os_sdk::{Error, Result};

use crate::Method;
use crate::url::Url;

/// Headers that are for one origin alone.
const CREDENTIALS: [&str; 2] = ["authorization", "cookie"];

/// Headers that describe a body, and go with it.
const OF_THE_BODY: [&str; 5] =
    ["content-type", "content-encoding", "content-language", "content-location", "content-length"];

/// One request of a call.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) url: Url,
    /// Names in lower case, each once.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Option<String>,
}

impl Request {
    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// Adds a header unless it is there.
    pub(crate) fn default_header(&mut self, name: &str, value: &str) {
        if self.header(name).is_none() {
            self.headers.push((name.to_owned(), value.to_owned()));
        }
    }

    /// The next request, if this response asks for one. The rules are those of browsers: 303 asks for a GET, so
    /// do 301 and 302 after a POST, and 307 and 308 repeat the request.
    pub(crate) fn redirected(&self, status: u16, location: Option<&str>) -> Result<Option<Self>> {
        let becomes_get = match status {
            301 | 302 => self.method == Method::Post,
            303 => !matches!(self.method, Method::Get | Method::Head),
            307 | 308 => false,
            _ => return Ok(None),
        };
        let Some(location) = location else { return Ok(None) };
        let url = self.url.join(location).map_err(|error| {
            Error::new(error.code, format!("{} redirects to `{location}`: {}", self.url, error.message))
        })?;
        let mut next = Self { url, ..self.clone() };
        if becomes_get {
            next.method = Method::Get;
            next.body = None;
            next.headers.retain(|(name, _)| !OF_THE_BODY.contains(&name.as_str()));
        }
        if !next.url.same_origin(&self.url) {
            next.headers.retain(|(name, _)| !CREDENTIALS.contains(&name.as_str()));
        }
        Ok(Some(next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_os_sdk::Errno;

    fn request(method: Method, url: &str) -> Request {
        let header = |name: &str| (name.to_owned(), "v".to_owned());
        let body = (!matches!(method, Method::Get | Method::Head)).then(|| "b".to_owned());
        let headers = ["authorization", "cookie", "content-type", "accept"].map(header).to_vec();
        Request { method, url: Url::parse(url).unwrap(), headers, body }
    }

    fn names(request: &Request) -> String {
        request.headers.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn methods_change_as_in_browsers() {
        use Method::{Delete, Get, Head, Post, Put};
        for (status, method, expected) in [
            (301, Get, Get),
            (301, Head, Head),
            (301, Post, Get),
            (301, Put, Put),
            (302, Post, Get),
            (302, Delete, Delete),
            (303, Get, Get),
            (303, Head, Head),
            (303, Post, Get),
            (303, Put, Get),
            (307, Post, Post),
            (308, Put, Put),
        ] {
            let next = request(method, "http://h/a").redirected(status, Some("/b")).unwrap().unwrap();
            assert_eq!((next.method, next.url.to_string().as_str()), (expected, "http://h/b"), "{status} {method:?}");
            let keeps = expected == method && !matches!(method, Get | Head);
            assert_eq!(next.body.is_some(), keeps, "{status} {method:?}");
            assert_eq!(names(&next).contains("content-type"), expected == method, "{status} {method:?}");
        }
    }

    #[test]
    fn other_responses_are_results() {
        let get = request(Method::Get, "http://h/a");
        for status in [200, 204, 300, 304, 305, 306, 404, 500] {
            assert!(get.redirected(status, Some("/b")).unwrap().is_none(), "{status}");
        }
        assert!(get.redirected(302, None).unwrap().is_none());
    }

    #[test]
    fn credentials_stay_with_their_origin() {
        for (location, kept) in [
            ("/b", true),
            ("http://h/b", true),
            ("http://H:80/b", true),
            ("http://h:81/b", false),
            ("https://h/b", false),
            ("http://other/b", false),
            ("//other/b", false),
        ] {
            let next = request(Method::Get, "http://h/a").redirected(302, Some(location)).unwrap().unwrap();
            let expected = if kept { "authorization cookie content-type accept" } else { "content-type accept" };
            assert_eq!(names(&next), expected, "{location}");
        }
    }

    #[test]
    fn a_redirect_to_nowhere_is_an_error_that_names_both_ends() {
        for location in ["ftp://h/x", "http://user:pw@h/", "http://", "http://h:99999/"] {
            let error = request(Method::Get, "http://h/a").redirected(302, Some(location)).unwrap_err();
            assert_eq!(error.code, Errno::Invalid);
            assert!(error.message.contains("http://h/a") && error.message.contains(location), "{error:?}");
        }
    }
}
