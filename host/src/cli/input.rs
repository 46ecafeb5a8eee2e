//! What people type: directories, durations, money, texts from a file or standard input. Each is
//! checked here, before anything starts.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::{Error, usage};
use crate::process::Mount;
use crate::server::error::{ApiError, Code};

/// Reads `PATH[:rw]`: an existing directory, seen by guests under its last name, private where it is written.
pub(super) fn mount(text: &str) -> Result<Mount, String> {
    let (path, writable) = match text.strip_suffix(":rw") {
        Some(path) => (path, true),
        None => (text, false),
    };
    let host = directory(path)?;
    // The name that was typed, since the task speaks of it; `.` and `..` have none of their own.
    let name = Path::new(path).file_name().or_else(|| host.file_name());
    let guest = match name.map(|n| n.to_str()) {
        Some(Some(name)) => name.to_owned(),
        Some(None) => return Err("its last name is not UTF-8".to_owned()),
        None => return Err("it has no last name under which guests could see it; give a directory in it".to_owned()),
    };
    Ok(Mount { host, guest, writable, private: writable })
}

/// Reads the path of an existing directory and makes it absolute.
pub(super) fn directory(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text).canonicalize().map_err(|e| e.to_string())?;
    if path.is_dir() { Ok(path) } else { Err("it is not a directory".to_owned()) }
}

/// The directories of a command, each with a name of its own; `direct`: written through and not to a private copy.
pub(super) fn mounts(dirs: Vec<Mount>, direct: bool) -> Result<Vec<Mount>, Error> {
    let dirs = dirs.into_iter().map(|mount| Mount { private: mount.writable && !direct, ..mount });
    distinct(dirs.collect())
}

/// Checks that each of the directories has a name of its own.
fn distinct(mounts: Vec<Mount>) -> Result<Vec<Mount>, Error> {
    for (i, mount) in mounts.iter().enumerate() {
        if let Some(other) = mounts[..i].iter().find(|o| o.guest == mount.guest) {
            return Err(usage(
                format!(
                    "{} and {} would both be `{}` to the agent",
                    other.host.display(),
                    mount.host.display(),
                    mount.guest
                ),
                "give the directory that holds both, or rename one",
            ));
        }
    }
    Ok(mounts)
}

/// Reads a duration such as `30s`, `5m`, `1h30m`, `500ms`, `2d`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    const HOW: &str = "give a number and a unit: 500ms, 30s, 5m, 1h30m, 2d";
    let mut rest = text;
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let unit_end = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |n| digits + n);
        let scale = match &rest[digits..unit_end] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(HOW.to_owned()),
        };
        let number: u64 = rest[..digits].parse().map_err(|_| HOW.to_owned())?;
        let part = number.checked_mul(scale).and_then(|n| total.checked_add(n));
        total = part.ok_or_else(|| "it is too long".to_owned())?;
        rest = &rest[unit_end..];
    }
    if total == 0 { Err(HOW.to_owned()) } else { Ok(Duration::from_millis(total)) }
}

/// Reads dollars such as `0.25` or `$3` as micro-USD.
pub(super) fn micro_usd(text: &str) -> Result<u64, String> {
    const HOW: &str = "give dollars with at most six decimals: 0.25";
    let number = text.strip_prefix('$').unwrap_or(text);
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(part) || part.len() > 6 {
        return Err(HOW.to_owned());
    }
    let whole: u64 = whole.parse().map_err(|_| "it is too much".to_owned())?;
    let part: u64 = format!("{part:0<6}").parse().map_err(|_| HOW.to_owned())?;
    whole.checked_mul(1_000_000).and_then(|n| n.checked_add(part)).ok_or_else(|| "it is too much".to_owned())
}

/// The model as every kernel understands it: a script's file is relative to where the user is, and
/// the kernel may be elsewhere.
pub(super) fn model(name: String) -> String {
    let Some(file) = name.strip_prefix("script/") else { return name };
    match Path::new(file).canonicalize().as_deref().map(Path::to_str) {
        Ok(Some(path)) => format!("script/{path}"),
        // The kernel says what is wrong with it.
        _ => name,
    }
}

/// A text given as itself, or as `-` for standard input.
pub(super) fn text_or_stdin(text: String, what: &str) -> Result<String, Error> {
    if text == "-" { stdin(what) } else { Ok(text) }
}

/// JSON text given as itself, as `-` for standard input, or as `@FILE`.
pub(super) fn json(text: String) -> Result<String, Error> {
    let text = match text.strip_prefix('@') {
        Some(file) => {
            let read = std::fs::read_to_string(file);
            read.map_err(|e| {
                usage(format!("the arguments file {file} cannot be read: {e}"), "check the path after `@`")
            })?
        }
        None => text_or_stdin(text, "the arguments")?,
    };
    match serde_json::from_str::<serde::de::IgnoredAny>(&text) {
        Ok(_) => Ok(text),
        Err(e) => Err(Error::Failed(ApiError::new(
            Code::InvalidJson,
            format!("the arguments are no JSON: {e}"),
            "give one JSON object, for example '{\"path\":\"notes\"}'",
        ))),
    }
}

fn stdin(what: &str) -> Result<String, Error> {
    let mut text = String::new();
    match std::io::stdin().lock().read_to_string(&mut text) {
        Ok(_) => Ok(text),
        Err(e) => Err(usage(format!("{what} cannot be read from standard input: {e}"), "pipe UTF-8 text into aok")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_keeps_its_name_and_gets_its_absolute_path() {
        let root = tempfile::tempdir().unwrap();
        let real = root.path().canonicalize().unwrap();
        std::fs::create_dir(real.join("data")).unwrap();
        std::fs::write(real.join("file"), "").unwrap();
        std::os::unix::fs::symlink(real.join("data"), real.join("link")).unwrap();
        let check = |path: &str, guest: &str, writable: bool| {
            let mount = mount(&format!("{}/{path}", real.display())).unwrap();
            assert_eq!(
                mount,
                Mount { host: real.join("data"), guest: guest.into(), writable, private: writable },
                "{path}"
            );
        };
        check("data", "data", false);
        check("data/", "data", false);
        check("data:rw", "data", true);
        check("data/../data/.", "data", false);
        check("link:rw", "link", true);
        let fails = |path: &str| mount(&format!("{}/{path}", real.display())).unwrap_err();
        assert!(fails("file").contains("not a directory"));
        assert!(fails("absent").contains("No such file"));
        assert!(fails("data:ro").contains("No such file"));
        assert!(mount("/").unwrap_err().contains("no last name"));
        assert_eq!(mount(".").unwrap().host, std::env::current_dir().unwrap().canonicalize().unwrap());
    }

    #[test]
    fn two_directories_of_one_name_are_both_named() {
        let mount = |host: &str| Mount { host: host.into(), guest: "data".into(), writable: false, private: false };
        let error = distinct(vec![mount("/a/data"), mount("/b/data")]).unwrap_err();
        assert_eq!(error.exit(), 2);
        let message = error.report().unwrap().message;
        assert!(message.contains("/a/data") && message.contains("/b/data"), "{message}");
        assert_eq!(distinct(vec![mount("/a/data")]).unwrap().len(), 1);
    }

    #[test]
    fn durations_have_units() {
        let ms = |text| duration(text).map(|d| d.as_millis());
        assert_eq!(ms("500ms"), Ok(500));
        assert_eq!(ms("30s"), Ok(30_000));
        assert_eq!(ms("5m"), Ok(300_000));
        assert_eq!(ms("1h30m"), Ok(5_400_000));
        assert_eq!(ms("2d"), Ok(172_800_000));
        for bad in ["", "5", "s", "0s", "-5s", "5 s", "1.5h", "5w", "5mm", "é", "5é", "99999999999999999999s"] {
            assert!(duration(bad).unwrap_err().contains("30s"), "{bad}");
        }
        assert!(duration("999999999999999999d").unwrap_err().contains("too long"));
    }

    #[test]
    fn dollars_are_exact() {
        assert_eq!(micro_usd("1"), Ok(1_000_000));
        assert_eq!(micro_usd("$0.25"), Ok(250_000));
        assert_eq!(micro_usd("0.000001"), Ok(1));
        assert_eq!(micro_usd("0"), Ok(0));
        for bad in ["", "$", ".", "1.", ".5", "-1", "1e3", "0.0000001", "1,5", "NaN", "é"] {
            assert!(micro_usd(bad).is_err(), "{bad}");
        }
        assert!(micro_usd("99999999999999999").unwrap_err().contains("too much"));
    }

    #[test]
    fn a_script_is_found_from_anywhere() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().canonicalize().unwrap().join("s.jsonl");
        std::fs::write(&file, "").unwrap();
        let given =
            format!("script/{}/../{}/s.jsonl", dir.path().display(), dir.path().file_name().unwrap().to_str().unwrap());
        assert_eq!(model(given), format!("script/{}", file.display()));
        assert_eq!(model("script/nowhere.jsonl".into()), "script/nowhere.jsonl");
        assert_eq!(model("openai/x".into()), "openai/x");
    }

    #[test]
    fn arguments_are_json_or_name_the_place() {
        assert_eq!(json("{\"a\": 1.50}".into()).unwrap(), "{\"a\": 1.50}");
        let error = json("{\"a\":\n 1,}".into()).unwrap_err().report().unwrap();
        assert_eq!(error.code, Code::InvalidJson);
        assert!(error.message.contains("line 2"), "{error}");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.json");
        std::fs::write(&file, "{}").unwrap();
        assert_eq!(json(format!("@{}", file.display())).unwrap(), "{}");
        assert!(json("@/nowhere.json".into()).unwrap_err().report().unwrap().message.contains("/nowhere.json"));
    }
}
