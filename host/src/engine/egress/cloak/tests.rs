//! Secrets put into requests and taken out of responses.

use super::*;
use crate::capability::{Hidden, Host, HostGrant};

const VALUE: &str = "s3cr3t/va+lue&\"x\"=";
const OTHER: &str = "another-plain-value";

fn plugin() -> Arc<PluginRights> {
    let hosts = |texts: &[&str]| texts.iter().map(|h| h.parse::<HostGrant>().unwrap()).collect::<Vec<_>>();
    let secret = |name: &str, value: &str| Secret {
        name: name.into(),
        placeholder: format!("aoksecret{}", name.to_lowercase()),
        value: Hidden::new(value.into()),
        asked: hosts(&["h", "i"]),
        granted: hosts(&["h"]),
    };
    let secrets = vec![secret("ONE", VALUE), secret("TWO", OTHER)];
    Arc::new(PluginRights { name: "p".into(), secrets, ..PluginRights::default() })
}

fn cloak() -> Cloak {
    Cloak::of(&plugin()).unwrap()
}

fn to(host: &str, tls: bool) -> Destination {
    Destination { host: Host::Name(host.into()), port: if tls { 443 } else { 80 }, tls }
}

fn request(url: &str, headers: &[(&str, &str)]) -> reqwest::Request {
    let mut request = reqwest::Request::new(hyper::Method::POST, url.parse().unwrap());
    for (name, value) in headers {
        let name: hyper::header::HeaderName = name.parse().unwrap();
        request.headers_mut().append(name, value.parse().unwrap());
    }
    request
}

fn reveal(request: &mut reqwest::Request, body: &str, to: &Destination) -> Result<String, String> {
    let body = cloak().reveal(request, Bytes::copy_from_slice(body.as_bytes()), to);
    body.map(|body| String::from_utf8(body.to_vec()).unwrap()).map_err(|refusal| refusal.text)
}

#[test]
fn a_secret_takes_its_placeholders_place() {
    let headers = [("x-key", "Bearer aoksecretone"), ("x-key", "plain"), ("content-length", "3")];
    let mut r = request("https://h/p?a=aoksecretone&b=aoksecrettwo#f", &headers);
    let body = reveal(&mut r, "-aoksecrettwo-aoksecretone-", &to("h", true)).unwrap();
    assert_eq!(body, format!("-{OTHER}-{VALUE}-"));
    assert_eq!(r.url().query(), Some(format!("a=s3cr3t%2Fva%2Blue%26%22x%22%3D&b={OTHER}").as_str()));
    let values: Vec<_> = r.headers().get_all("x-key").iter().collect();
    assert_eq!(values, [&format!("Bearer {VALUE}")[..], "plain"]);
    assert!(values[0].is_sensitive());
    assert_eq!(
        (r.headers().get("content-length"), &r.headers()["accept-encoding"]),
        (None, &"identity".parse().unwrap())
    );

    for (kind, expected) in [
        ("application/json; charset=utf-8", r#"{"k":"s3cr3t/va+lue&\"x\"="}"#.to_owned()),
        ("application/problem+json", r#"{"k":"s3cr3t/va+lue&\"x\"="}"#.to_owned()),
        ("application/x-www-form-urlencoded", r#"{"k":"s3cr3t%2Fva%2Blue%26%22x%22%3D"}"#.to_owned()),
        ("text/plain", format!(r#"{{"k":"{VALUE}"}}"#)),
    ] {
        let mut r = request("https://h/", &[("content-type", kind)]);
        assert_eq!(reveal(&mut r, r#"{"k":"aoksecretone"}"#, &to("h", true)).unwrap(), expected, "{kind}");
    }
    let basic = format!("bAsIc {}", STANDARD.encode("user:aoksecretone"));
    let mut r = request("https://h/", &[("authorization", &basic)]);
    reveal(&mut r, "", &to("h", true)).unwrap();
    assert_eq!(r.headers()["authorization"], format!("Basic {}", STANDARD.encode(format!("user:{VALUE}"))));
    // What has no placeholder is sent as it is.
    let mut r = request("https://other/?q=%20x", &[("authorization", "Basic !!"), ("content-length", "4")]);
    assert_eq!(reveal(&mut r, "body", &to("other", true)).unwrap(), "body");
    assert_eq!((r.url().query(), r.headers().len()), (Some("q=%20x"), 3));
}

#[test]
fn a_secret_for_another_host_stays() {
    let basic = format!("Basic {}", STANDARD.encode("aoksecretone:"));
    for (url, header, body, host, tls, word) in [
        ("https://i/?aoksecretone", "x", "", "i", true, "aok plugin grant p secret=ONE@i"),
        ("https://i/", "aoksecretone", "", "i", true, "aok plugin grant p secret=ONE@i"),
        ("https://i/", &basic, "", "i", true, "aok plugin grant p secret=ONE@i"),
        ("https://i/", "x", "aoksecrettwo", "i", true, "aok plugin grant p secret=TWO@i"),
        ("https://j/", "x", "aoksecrettwo", "j", true, "the manifest of `p`"),
        ("http://h/", "x", "aoksecrettwo", "h", false, "in clear"),
        ("https://h/aoksecretone", "x", "", "h", true, "in a path"),
    ] {
        let mut r = request(url, &[("authorization", header)]);
        let refusal = reveal(&mut r, body, &to(host, tls)).unwrap_err();
        assert!(refusal.contains(word), "{refusal}");
        assert!(!refusal.contains(VALUE) && !refusal.contains(OTHER), "{refusal}");
    }
    let mut r = request("https://h/", &[("aoksecretone", "x")]);
    assert!(reveal(&mut r, "", &to("h", true)).unwrap_err().contains("name of a header"));
}

fn read(pieces: &[&[u8]]) -> String {
    let mut seen = Seen::new(Arc::clone(&cloak().hide));
    let mut got = Vec::new();
    for piece in pieces {
        if let Some(frame) = seen.frame(Frame::data(Bytes::copy_from_slice(piece))) {
            got.extend_from_slice(&frame.into_data().unwrap());
        }
    }
    got.extend_from_slice(&seen.rest().unwrap_or_default());
    assert!(seen.is_empty());
    String::from_utf8(got).unwrap()
}

#[test]
fn an_echo_has_the_placeholder_in_every_form_and_across_every_border() {
    let url = escaped(VALUE);
    let forms = [
        VALUE.to_owned(),
        url.clone(),
        lower_escapes(&url),
        json(VALUE),
        json(VALUE).replace('/', "\\/"),
        VALUE.replace('&', "&amp;").replace('"', "&quot;"),
    ];
    for form in forms {
        let text = format!("a={form}|{OTHER}|{form}{form}.");
        let bytes = text.as_bytes();
        let whole = "a=aoksecretone|aoksecrettwo|aoksecretoneaoksecretone.";
        for cut in 0..bytes.len() {
            assert_eq!(read(&[&bytes[..cut], &bytes[cut..]]), whole, "{form} cut at {cut}");
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(read(&single), whole, "{form} byte by byte");
    }
    for before in ["", "u", "us", "user:"] {
        for engine in [&STANDARD, &base64::engine::general_purpose::URL_SAFE] {
            for form in [VALUE.to_owned(), json(VALUE), escaped(VALUE)] {
                let encoded = engine.encode(format!("{before}{form} and more"));
                let got = read(&[encoded.as_bytes()]);
                assert!(got.contains("aoksecretone"), "{before}: {got}");
                let rest = got.replace("aoksecretone", "");
                assert!(rest.len() < encoded.len() - 16, "{before}: {rest}");
            }
        }
    }
}

#[test]
fn what_is_no_secret_is_not_held_back() {
    let mut seen = Seen::new(Arc::clone(&cloak().hide));
    let mut data = |text: &str| {
        let frame = seen.frame(Frame::data(Bytes::copy_from_slice(text.as_bytes())));
        frame.map(|f| String::from_utf8(f.into_data().unwrap().to_vec()).unwrap())
    };
    assert_eq!(data("data: 1\n\n").as_deref(), Some("data: 1\n\n"));
    assert_eq!(data("x another-pl").as_deref(), Some("x "));
    assert_eq!(data("an").as_deref(), Some("another-pl"));
    assert_eq!(data("other-plain-valu"), None);
    assert_eq!(data("e!").as_deref(), Some("aoksecrettwo!"));
}

#[test]
fn heads_reports_and_compressed_bodies() {
    let hide = cloak().hide;
    let mut head = HeaderMap::new();
    head.insert("location", format!("/?k={}", escaped(VALUE)).parse().unwrap());
    head.insert("x-another-plain-value", "x".parse().unwrap());
    head.insert(CONTENT_LENGTH, "5".parse().unwrap());
    hide.in_head(&mut head).unwrap();
    assert_eq!((head.len(), &head["location"]), (1, &"/?k=aoksecretone".parse().unwrap()));
    head.insert(CONTENT_ENCODING, "gzip".parse().unwrap());
    assert!(matches!(hide.in_head(&mut head), Err(Error::HttpResponseContentCoding(_))));

    let mut session = Session::detached(1 << 20);
    session.log("info", format!("it is {OTHER}")).unwrap();
    let mut error = crate::abi::Error::new(crate::abi::Errno::Io, format!("bad: {VALUE}"));
    error.data = Some(Box::new(serde_json::json!({ "k": [VALUE] })));
    let mut result = Err(error);
    hide.in_report(&mut session, &mut result);
    let error = result.unwrap_err();
    assert_eq!(
        (error.message.as_str(), *error.data.unwrap()),
        ("bad: aoksecretone", serde_json::json!({"k": ["aoksecretone"]}))
    );
    assert_eq!(session.end(false).lines[0].message, "it is aoksecrettwo");
}
