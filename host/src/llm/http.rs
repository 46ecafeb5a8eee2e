//! The HTTP client of everything that talks to providers.

use std::sync::Once;
use std::time::Duration;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(10);

/// Makes sure that rustls has its cryptography. An embedder may have installed another one, which
/// then serves.
pub(crate) fn install_crypto() {
    static RING: Once = Once::new();
    RING.call_once(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

pub(super) fn client(url: &reqwest::Url) -> Result<reqwest::Client, reqwest::Error> {
    install_crypto();
    let mut builder = reqwest::Client::builder()
        .connect_timeout(CONNECT)
        // An answer is many small pieces.
        .tcp_nodelay(true)
        // A request with a key goes where it was sent, or nowhere.
        .redirect(reqwest::redirect::Policy::none());
    let local = url.host_str().is_some_and(|h| {
        let bare = h.trim_start_matches('[').trim_end_matches(']');
        h == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
    });
    if local {
        builder = builder.no_proxy();
    }
    if url.scheme() == "http" {
        // Needs no certificates, and so works on a machine that has none.
        builder = builder.tls_certs_only(std::iter::empty());
    }
    builder.build()
}

/// An address as it may be shown: without the user name and password that it may hold.
pub(super) fn shown(url: &reqwest::Url) -> String {
    let mut url = url.clone();
    // Fails only for addresses that can hold neither.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.as_str().trim_end_matches('/').to_owned()
}

/// An error with its causes: the outermost of a connection failure says nothing.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_without_its_secrets() {
        let shown = |url: &str| shown(&url.parse().unwrap());
        assert_eq!(shown("http://me:hidden@127.0.0.1:9/v1/"), "http://127.0.0.1:9/v1");
        assert_eq!(shown("https://host/v1"), "https://host/v1");
    }
}
