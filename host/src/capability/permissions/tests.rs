//! Both sides' words.

use super::*;

fn rule(text: &str) -> HttpPermission {
    text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}

#[test]
fn a_rule_reads_as_it_is_written() {
    for (text, host, methods, path) in [
        ("example.com", "example.com", "", ""),
        ("example.com:8080/v1/*", "example.com:8080", "", "/v1/*"),
        ("GET example.com", "example.com", "GET", ""),
        ("get,POST  *.example.com/a,/b", "*.example.com", "GET,POST", "/a,/b"),
        ("10.0.0.0/8", "10.0.0.0/8", "", ""),
        ("10.0.0.0/8:8080/x", "10.0.0.0/8:8080", "", "/x"),
        ("10.0.0.7/x", "10.0.0.7", "", "/x"),
        ("127.0.0.1:80/8", "127.0.0.1:80", "", "/8"),
        ("[::1]:8080/v1", "[::1]:8080", "", "/v1"),
        ("fd00::/8/v1", "fd00::/8", "", "/v1"),
    ] {
        let rule = rule(text);
        let got = (rule.host.to_string(), rule.methods.join(","), rule.path.join(","));
        assert_eq!(got, (host.to_owned(), methods.to_owned(), path.to_owned()), "{text}");
        assert_eq!(rule.to_string().parse::<HttpPermission>().unwrap(), rule, "{text}");
    }
    for (text, says) in [
        ("", "host name"),
        ("*", "host name"),
        ("https://example.com", "URL"),
        ("GET https://example.com/x", "URL"),
        ("G!T example.com", "no method"),
        ("CONNECT example.com", "CONNECT"),
        ("example.com/a/../b", "no `..`"),
    ] {
        let error = text.parse::<HttpPermission>().unwrap_err().to_string();
        assert!(error.contains(says), "{text}: {error}");
    }
}

#[test]
fn a_rule_covers_its_host_methods_and_paths() {
    let to = Destination { host: super::super::Host::Name("api.example.com".into()), port: 443, tls: true };
    let covers = |text: &str, method: &str, path: &str| rule(text).covers(&Asked { to: &to, method, path });
    for (text, method, path, expected) in [
        ("api.example.com", "DELETE", "/any/%2e%2e/thing", true),
        ("GET api.example.com", "GET", "/x", true),
        ("GET api.example.com", "POST", "/x", false),
        ("GET api.example.com", "get", "/x", false),
        ("api.example.com:8443", "GET", "/x", false),
        ("example.com", "GET", "/x", false),
        ("api.example.com/v1/*", "GET", "/v1/", true),
        ("api.example.com/v1/*", "GET", "/v1/a/b", true),
        ("api.example.com/v1/*", "GET", "/%761/a", true),
        ("api.example.com/v1/*", "GET", "/v1", false),
        ("api.example.com/v1/*", "GET", "/V1/a", false),
        ("api.example.com/v1/*", "GET", "/v2/a", false),
        ("api.example.com/v1/*", "GET", "//v1/a", false),
        ("api.example.com/v1/*", "GET", "/v1/%2e%2e/admin", false),
        ("api.example.com/v1/*", "GET", "/v1/..%2fadmin", false),
        ("api.example.com/v1/*", "GET", "/v1/..;/admin", false),
        ("api.example.com/a,/b?", "GET", "/bc", true),
        ("api.example.com/a,/b?", "GET", "/b", false),
    ] {
        assert_eq!(covers(text, method, path), expected, "{text}: {method} {path}");
    }
    let any = HttpPermission::to(HostGrant::pattern("*").unwrap());
    assert!(any.covers(&Asked { to: &to, method: "GET", path: "/x" }));
}

#[test]
fn a_table_is_read_as_both_sides_write_it() {
    let text = r#"
        read = ["*"]
        http = [
            { host = "*" },
            { host = "api.example.com", methods = ["GET"], path = "/v1/*" },
            { host = "h", methods = "GET", paths = ["/a", "/b"] },
        ]
        secrets = [{ name = "KEY", hosts = ["api.example.com"] }]
    "#;
    let p: Permissions = toml::from_str(text).unwrap();
    assert_eq!(p.check(Side::Manifest), Ok(()));
    assert!(p.check(Side::Grant).unwrap_err().contains("every directory"));
    assert_eq!(
        p.words(),
        ["read=*", "http=*", "http=GET api.example.com/v1/*", "http=GET h/a,/b", "secret=KEY@api.example.com"]
    );
    assert_eq!(toml::from_str::<Permissions>(&toml::to_string(&p).unwrap()).unwrap(), p);
    assert!(toml::from_str::<Permissions>("http = [{ hots = \"h\" }]").unwrap_err().to_string().contains("hots"));
    assert!(toml::from_str::<Permissions>("raed = []").unwrap_err().to_string().contains("raed"));
}

#[test]
fn what_is_wrong_with_an_entry_is_said() {
    for (text, side, says) in [
        ("read = [\"data\"]", Side::Manifest, "absolute"),
        ("read = [\"/srv/../etc\"]", Side::Grant, "absolute"),
        ("write = [\"/\"]", Side::Grant, "every directory"),
        ("write = [\"*\"]", Side::Grant, "every directory"),
        ("http = [{ host = \"*\" }]", Side::Grant, "every host"),
        ("http = [{ host = \"h\", methods = [\"get\"] }]", Side::Manifest, "no method"),
        ("http = [{ host = \"h\", path = \"v1\" }]", Side::Manifest, "begins with `/`"),
        ("secrets = [{ name = \"KEY\", hosts = [] }]", Side::Manifest, "no host"),
        ("secrets = [{ name = \"KEY\", hosts = [\"*\"] }]", Side::Grant, "every host"),
        ("secrets = [{ name = \"a-b\", hosts = [\"h\"] }]", Side::Manifest, "environment variable"),
        ("env = [\"\"]", Side::Grant, "environment variable"),
        ("env = [\"*\"]", Side::Grant, "environment variable"),
        ("env = [\"K\"]\nsecrets = [{ name = \"K\", hosts = [\"h\"] }]", Side::Grant, "or never"),
        ("kernel = [\"\"]", Side::Grant, "kernel interface"),
    ] {
        let error = toml::from_str::<Permissions>(text).unwrap().check(side).unwrap_err();
        assert!(error.contains(says), "{text}: {error}");
    }
}

#[test]
fn what_is_added_can_be_taken_out() {
    let parse = |text: &str| toml::from_str::<Permissions>(text).unwrap();
    let mut p = parse("read = [\"/a\"]\nsecrets = [{ name = \"K\", hosts = [\"h\"] }]");
    let more = parse("read = [\"/a\", \"/b\"]\nenv = [\"E\"]\nsecrets = [{ name = \"K\", hosts = [\"i\"] }]");
    p.add(&more);
    assert_eq!(p.words(), ["read=/a", "read=/b", "env=E", "secret=K@h,i"]);
    p.remove(&parse("read = [\"/a\"]\nsecrets = [{ name = \"K\", hosts = [\"h\"] }]"));
    assert_eq!(p.words(), ["read=/b", "env=E", "secret=K@i"]);
    p.remove(&more);
    assert!(p.is_empty());
}
