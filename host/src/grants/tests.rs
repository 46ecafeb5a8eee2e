//! Grants as they are said, kept and taken back.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};

use super::*;
use crate::process::Mount;

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        for name in ["data", "a/x", "b/x", "a/y"] {
            fs::create_dir_all(place.at(name)).unwrap();
        }
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    fn open(&self, config: &str) -> Result<Grants, Error> {
        let config: BTreeMap<String, Permissions> = toml::from_str(config).unwrap();
        Grants::open(&config, Path::new("aok.toml"), &self.at("data"), &[self.at("b")])
    }
}

fn parse(text: &str) -> Permissions {
    toml::from_str(text).unwrap()
}

fn reads(paths: &[&PathBuf]) -> Permissions {
    Permissions { read: paths.iter().map(|p| (*p).clone()).collect(), ..Permissions::default() }
}

fn words(grants: &Grants, plugin: &str) -> Vec<String> {
    grants.of(plugin).map(|p| p.words()).unwrap_or_default()
}

fn says(result: Result<impl std::fmt::Debug, Error>) -> String {
    match result.unwrap_err() {
        Error::Refused { message, hint } => format!("{message} ({hint})"),
        other => other.to_string(),
    }
}

#[test]
fn both_sources_hold_and_the_file_lasts() {
    let place = Place::new();
    let config = format!("[p]\nread = [{:?}]\nhttp = [{{ host = \"h\" }}]", place.at("a/x"));
    let grants = place.open(&config).unwrap();
    let more = parse("env = [\"E\"]\nsecrets = [{ name = \"K\", hosts = [\"h\"] }]");
    grants.grant("p", &more).unwrap();
    grants.trust("p", &"0a".repeat(32)).unwrap();
    grants.grant("q", &reads(&[&place.at("b/x")])).unwrap();
    let expected =
        [format!("read={}", place.at("a/x").display()), "http=h".into(), "env=E".into(), "secret=K@h".into()];
    let file = place.at("data").join(FILE);
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
    for grants in [grants, place.open(&config).unwrap()] {
        assert_eq!(words(&grants, "p"), expected);
        assert_eq!(words(&grants, "q").len(), 1);
        assert!(grants.trusts("p", &"0a".repeat(32)));
        assert!(!grants.trusts("p", &"0b".repeat(32)) && !grants.trusts("q", &"0a".repeat(32)));
        assert!(grants.of("r").is_none());
    }
    assert_eq!(fs::read_dir(place.at("data")).unwrap().count(), 1, "nothing else is left there");
}

#[test]
fn a_file_that_is_wrong_is_not_taken_for_another() {
    let place = Place::new();
    let file = place.at("data").join(FILE);
    for (text, word) in [
        ("nonsense", "line 1"),
        ("[grant.p]", "grant"),
        ("[grants.p]\nraed = []", "raed"),
        ("[grants.p]\nread = [\"*\"]", "every directory"),
        ("[grants.p]\nhttp = [{ host = \"*\" }]", "every host"),
        ("[grants.p]\nread = \"unlimited\"", "unlimited"),
        ("[grants.p]\ntrust = \"yes\"", "SHA-256"),
    ] {
        fs::write(&file, text).unwrap();
        let error = says(place.open(""));
        assert!(error.contains(word) && error.contains("grants.toml"), "{text}: {error}");
    }
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    assert!(matches!(place.open(""), Err(Error::File { .. })));
}

#[test]
fn directories_are_real_and_each_has_a_name() {
    let place = Place::new();
    fs::write(place.at("a/file"), "").unwrap();
    symlink(place.at("a/x"), place.at("link")).unwrap();
    let grants = place.open("").unwrap();
    for (path, word) in [
        ("nowhere", "No such file"),
        ("a/file", "is no directory"),
        ("data", "aok's own data"),
        ("data/plugins", "cannot be granted"),
        ("", "aok's own data"),
    ] {
        let error = says(grants.grant("p", &reads(&[&place.at(path)])));
        assert!(error.contains(word), "{path}: {error}");
        let config = format!("[p]\nread = [{:?}]", place.at(path));
        let error = says(place.open(&config));
        assert!(error.contains(word) && error.contains("`[grants.p]`"), "{path}: {error}");
    }
    assert!(says(grants.grant("p", &parse("read = [\"/\"]"))).contains("aok's own data"));
    assert!(says(grants.grant("p", &parse("read = [\"*\"]"))).contains("every directory"));
    // Who writes there is another plugin.
    for (path, refused) in [("b", true), ("b/x", true), ("a", false)] {
        let write = Permissions { write: vec![place.at(path)], ..Permissions::default() };
        let granted = grants.grant("w", &write);
        assert_eq!(granted.is_err(), refused, "{path}: {granted:?}");
    }
    // A link is what it leads to.
    let said = grants.grant("p", &reads(&[&place.at("link")])).unwrap();
    assert_eq!(said, reads(&[&place.at("a/x")]));
    let error = says(grants.grant("p", &reads(&[&place.at("b/x")])));
    assert!(error.contains("would both be `x`") && error.contains("holds both"), "{error}");
    assert_eq!(words(&grants, "p").len(), 1, "a refusal changes nothing");
}

#[test]
fn overlapping_directories_are_one_mount() {
    let paths = |list: &[&str]| list.iter().map(PathBuf::from).collect::<Vec<_>>();
    let check = |read: &[&str], write: &[&str]| {
        let mounts = mounts(&paths(read), &paths(write)).unwrap();
        let show = |m: &Mount| format!("{}={}{}", m.guest, m.host.display(), if m.writable { ":rw" } else { "" });
        mounts.iter().map(show).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(check(&["/s/a", "/s/a/b"], &[]), "a=/s/a");
    assert_eq!(check(&["/s/a"], &["/s/a"]), "a=/s/a:rw");
    assert_eq!(check(&["/s/a/b"], &["/s/a"]), "a=/s/a:rw");
    assert_eq!(check(&["/s/a"], &["/s/a/b"]), "b=/s/a/b:rw a=/s/a");
    assert_eq!(check(&["/s/ab", "/s/a"], &[]), "ab=/s/ab a=/s/a");
    // The deeper one of a name is seen in the other.
    assert_eq!(check(&["/s/x", "/s/x/x"], &[]), "x=/s/x");
    let clash = mounts(&paths(&["/a/x", "/b/x"]), &[]).unwrap_err();
    assert_eq!((clash.name.as_str(), &clash.paths[1]), ("x", &PathBuf::from("/b/x")));
}

#[test]
fn what_was_granted_is_taken_back_in_the_same_words() {
    let place = Place::new();
    let grants = place.open("[p]\nhttp = [{ host = \"fixed\" }]").unwrap();
    let all = parse(
        "env = [\"A\", \"B\"]\nhttp = [{ host = \"h\", methods = [\"GET\"] }]\n\
         secrets = [{ name = \"K\", hosts = [\"h\", \"i\"] }]",
    );
    grants.grant("p", &all).unwrap();
    grants.trust("p", &"0a".repeat(32)).unwrap();
    let entries = |text: &str| Revocation { entries: parse(text), keys: vec![] };
    let secret = |name: &str| Permissions {
        secrets: vec![SecretPermission { name: name.into(), hosts: vec![] }],
        ..Permissions::default()
    };
    for (less, word) in [
        (entries("env = [\"C\"]"), "`env=C` was not granted"),
        (entries("http = [{ host = \"h\" }]"), "http=GET h"),
        (entries("http = [{ host = \"fixed\" }]"), "aok.toml"),
        (Revocation { entries: secret("N"), keys: vec![] }, "`secret=N` was not granted"),
        (Revocation { keys: vec![Key::Read], ..Revocation::default() }, "`read` was not granted"),
    ] {
        let error = says(grants.revoke("p", &less));
        assert!(error.contains(word), "{less:?}: {error}");
    }
    assert!(says(grants.revoke("q", &Revocation::default())).contains("nothing was granted"));
    grants.revoke("p", &entries("env = [\"A\"]\nsecrets = [{ name = \"K\", hosts = [\"i\"] }]")).unwrap();
    assert_eq!(words(&grants, "p"), ["http=fixed", "http=GET h", "env=B", "secret=K@h"]);
    let keys = Revocation { keys: vec![Key::Secret, Key::Trust], ..Revocation::default() };
    grants.revoke("p", &keys).unwrap();
    assert_eq!(words(&grants, "p"), ["http=fixed", "http=GET h", "env=B"]);
    assert!(!grants.trusts("p", &"0a".repeat(32)));
    grants.revoke("p", &Revocation::default()).unwrap();
    assert_eq!(words(&place.open("").unwrap(), "p"), Vec::<String>::new());
    assert_eq!(words(&grants, "p"), ["http=fixed"]);
    let error = says(grants.revoke("p", &Revocation::default()));
    assert!(error.contains("aok.toml"), "{error}");
}

#[test]
fn a_variable_is_seen_or_secret() {
    let place = Place::new();
    let grants = place.open("[p]\nenv = [\"K\"]").unwrap();
    let error = says(grants.grant("p", &parse("secrets = [{ name = \"K\", hosts = [\"h\"] }]")));
    assert!(error.contains("`K`") && error.contains("or never"), "{error}");
    assert_eq!(words(&grants, "p"), ["env=K"]);
}
