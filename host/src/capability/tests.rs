//! The policy by examples.

use super::*;

fn grants(texts: &[&str]) -> Vec<HostGrant> {
    texts.iter().map(|t| t.parse().unwrap()).collect()
}

fn to(url: &str) -> Destination {
    let (scheme, rest) = url.split_once("://").unwrap();
    let tls = scheme == "https";
    let (host, port) = match rest.rsplit_once(':').filter(|(host, _)| !open_bracket(host)) {
        Some((host, port)) => (host, port.parse().unwrap()),
        None => (rest, if tls { 443 } else { 80 }),
    };
    Destination { host: Host::of_url(host), port, tls }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_grant_is_written_as_it_is_read() {
    for (text, written) in [
        ("example.com", "example.com"),
        ("EXAMPLE.com.", "example.com"),
        ("example.com:8080", "example.com:8080"),
        ("*.example.com", "*.example.com"),
        ("*.example.com:8443", "*.example.com:8443"),
        ("localhost:3000", "localhost:3000"),
        ("my_host", "my_host"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("1.2.3.4", "1.2.3.4"),
        ("1.2.3.4:80", "1.2.3.4:80"),
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("[::1]:8080", "[::1]:8080"),
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.0.0.0/8:9000", "10.0.0.0/8:9000"),
        ("fd00::/8", "fd00::/8"),
        ("[fd00::]/8:9000", "[fd00::]/8:9000"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("::/0", "::/0"),
        ("192.0.2.7/32", "192.0.2.7/32"),
    ] {
        let grant: HostGrant = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(grant.to_string(), written, "{text}");
        assert_eq!(written.parse(), Ok(grant.clone()), "{text}");
        let json = serde_json::to_string(&grant).unwrap();
        assert_eq!((json.as_str(), serde_json::from_str(&json).unwrap()), (format!("{written:?}").as_str(), grant));
    }
}

#[test]
fn what_is_no_host_is_refused_with_the_reason() {
    for (text, word) in [
        ("", "no host name"),
        ("*", "no host name"),
        ("*.", "no host name"),
        ("a.*.com", "no host name"),
        ("http://example.com", "URL"),
        ("example.com/path", "no path"),
        ("example.com:", "no port"),
        ("example.com:0", "no port"),
        ("example.com:65536", "no port"),
        ("example.com:http", "no port"),
        ("example.com:+80", "no port"),
        (":80", "no host name"),
        ("user@example.com", "no host name"),
        ("exa mple.com", "no host name"),
        ("a..b", "no host name"),
        (".example.com", "no host name"),
        ("bücher.example", "xn--"),
        ("1.2.3", "usual spelling"),
        ("2130706433", "usual spelling"),
        ("0x7f.1", "usual spelling"),
        ("127.0.0.01", "usual spelling"),
        ("1.2.3.4.", "usual spelling"),
        ("[::1", "no host name"),
        ("[127.0.0.1]", "no host name"),
        ("fe80::1%eth0", "no host name"),
        ("10.0.0.0/33", "0 to 32"),
        ("10.0.0.0/+8", "0 to 32"),
        ("10.0.0.0/", "0 to 32"),
        ("fd00::/129", "0 to 128"),
        ("10.0.0.1/8", "10.0.0.0/8"),
        ("example.com/8", "no IP address"),
    ] {
        let error = text.parse::<HostGrant>().unwrap_err().to_string();
        assert!(error.contains(word) && error.contains("*.DOMAIN"), "{text}: {error}");
    }
}

#[test]
fn nothing_is_granted_by_nothing() {
    for url in ["http://example.com", "https://8.8.8.8", "http://localhost", "http://127.0.0.1:80"] {
        assert!(!may_ask(&[], &to(url)), "{url}");
    }
}

#[test]
fn a_grant_covers_its_host_and_port_and_no_other() {
    for (grant, url, expected) in [
        ("example.com", "http://example.com", true),
        ("example.com", "https://example.com", true),
        ("example.com", "https://example.com.", true),
        ("example.com", "http://example.com:443", false),
        ("example.com", "https://example.com:80", false),
        ("example.com", "http://example.com:8080", false),
        ("example.com", "http://www.example.com", false),
        ("example.com", "http://badexample.com", false),
        ("example.com:8080", "http://example.com:8080", true),
        ("example.com:8080", "https://example.com:8080", true),
        ("example.com:8080", "http://example.com", false),
        ("*.example.com", "http://www.example.com", true),
        ("*.example.com", "http://a.b.example.com", true),
        ("*.example.com", "http://example.com", false),
        ("*.example.com", "http://badexample.com", false),
        ("*.example.com", "http://.example.com", false),
        ("*.example.com:81", "http://a.example.com:81", true),
        ("*.example.com:81", "http://a.example.com", false),
        ("127.0.0.1:8080", "http://127.0.0.1:8080", true),
        ("127.0.0.1:8080", "http://127.0.0.1:8081", false),
        ("127.0.0.1:8080", "http://localhost:8080", false),
        ("127.0.0.1:8080", "http://[::ffff:127.0.0.1]:8080", false),
        ("127.0.0.1:8080", "http://[::1]:8080", false),
        ("[::1]:8080", "http://[::1]:8080", true),
        ("localhost:8080", "http://localhost:8080", true),
        ("localhost:8080", "http://127.0.0.1:8080", false),
        ("10.0.0.0/8", "http://10.255.0.1", true),
        ("10.0.0.0/8", "http://11.0.0.1", false),
        ("10.0.0.0/8", "http://10.0.0.1:8080", false),
        ("10.0.0.0/8:8080", "http://10.0.0.1:8080", true),
        ("10.0.0.0/8", "http://host.example", false),
        ("0.0.0.0/0", "http://127.0.0.1", true),
        ("0.0.0.0/0", "http://[::1]", false),
        ("::/0", "http://127.0.0.1", false),
        ("8.8.8.8", "https://8.8.8.8", true),
    ] {
        assert_eq!(may_ask(&grants(&[grant]), &to(url)), expected, "{grant} and {url}");
    }
}

#[test]
fn a_granted_name_leads_to_public_addresses_and_to_granted_ones() {
    let check = |given: &[&str], url: &str, address: &str, expected: bool| {
        assert_eq!(may_connect(&grants(given), &to(url), ip(address)), expected, "{given:?}, {url} at {address}");
    };
    check(&["example.com"], "http://example.com", "93.184.215.14", true);
    check(&["example.com"], "http://example.com", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", true);
    check(&["example.com"], "http://example.com", "127.0.0.1", false);
    check(&["example.com"], "http://example.com", "169.254.169.254", false);
    check(&["example.com"], "http://example.com", "::ffff:93.184.215.14", false);
    check(&["in.example", "10.0.0.7"], "http://in.example", "10.0.0.7", true);
    check(&["in.example", "10.0.0.7"], "http://in.example", "10.0.0.8", false);
    check(&["in.example", "10.0.0.0/8"], "http://in.example", "10.0.0.8", true);
    // The address is granted for the port that is asked for, or not at all.
    check(&["in.example:81", "10.0.0.7"], "http://in.example:81", "10.0.0.7", false);
    check(&["in.example:81", "10.0.0.7:81"], "http://in.example:81", "10.0.0.7", true);
    check(&["in.example", "10.0.0.7"], "http://in.example", "::ffff:10.0.0.7", false);
    check(&["in.example", "10.0.0.7"], "http://in.example", "64:ff9b::10.0.0.7", false);
    check(&["localhost"], "http://localhost", "127.0.0.1", true);
    check(&["localhost"], "http://localhost", "::1", true);
    check(&["localhost"], "http://localhost", "10.0.0.1", false);
    check(&["localhost"], "http://localhost:81", "127.0.0.1", false);
    check(&["localhost"], "http://other.example", "127.0.0.1", false);
    check(&["*.localhost"], "http://a.localhost", "127.0.0.1", false);
    check(&["127.0.0.1:81"], "http://127.0.0.1:81", "127.0.0.1", true);
}

const PUBLIC: &str = "1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.1 \
    169.253.0.1 172.15.255.255 172.32.0.0 192.0.1.1 192.167.255.255 198.17.255.255 198.20.0.0 \
    223.255.255.255 2001:4860:4860::8888 2606:4700::1 2a00:1450::1 2001:200::1 2002:808:808::1 \
    64:ff9b::8.8.8.8 3ffe::1";

const NOT_PUBLIC: &str = "0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 100.127.255.255 127.0.0.1 127.255.255.254 169.254.169.254 \
    172.16.0.1 172.31.255.255 192.0.0.1 192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.19.255.255 \
    198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255 :: ::1 ::127.0.0.1 \
    ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:8.8.8.8 64:ff9b::127.0.0.1 64:ff9b::10.0.0.1 \
    64:ff9b:1::8.8.8.8 64:ff9b::1:8.8.8.8 100::1 2001::1 2001:2::1 2001:10::1 2001:20::1 2001:db8::1 \
    2002:7f00:1::1 2002:a00:1::1 2002:c0a8:101:: 3fff::1 3fff:fff::1 4000::1 5f00::1 fc00::1 \
    fd12:3456::1 fe80::1 fec0::1 ff02::1";

#[test]
fn only_global_unicast_is_public() {
    for (addresses, expected) in [(PUBLIC, true), (NOT_PUBLIC, false)] {
        for address in addresses.split_whitespace() {
            assert_eq!(is_public(ip(address)), expected, "{address}");
        }
    }
}

#[test]
fn a_refusal_names_the_grant_that_would_do() {
    for (url, grant) in [
        ("http://example.com", "example.com"),
        ("https://example.com", "example.com"),
        ("http://example.com:443", "example.com:443"),
        ("http://127.0.0.1:8080", "127.0.0.1:8080"),
        ("http://[::1]:8080", "[::1]:8080"),
        ("http://[::1]", "::1"),
    ] {
        let destination = to(url);
        assert_eq!(destination.grant(), grant, "{url}");
        assert!(may_ask(&grants(&[&destination.grant()]), &destination), "{url}");
    }
    let leads = to("https://in.example:8443").resolved(ip("fd00::7"));
    assert_eq!((leads.grant().as_str(), leads.to_string().as_str()), ("[fd00::7]:8443", "[fd00::7]:8443"));
}
