//! Finds plugins: the bundled components inside the binary, and the files of the plugin directories.
//!
//! It reads names and dates; what a component is and whether it loads is the registry's business.

mod watch;

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use watch::{follow, load_once};

use crate::contract::Fault;
use crate::registry::{Calm, Candidate, Files, Origin, Stamp};

include!(concat!(env!("OUT_DIR"), "/bundled.rs"));

/// A component inside the binary.
#[derive(Debug)]
pub struct Bundled {
    /// Plugin name.
    pub name: &'static str,
    /// The component.
    pub component: &'static [u8],
    /// Its SHA-256, hex.
    pub digest: &'static str,
}

/// The components inside the binary.
#[must_use]
pub fn bundled() -> &'static [Bundled] {
    BUNDLED
}

/// A plugin inside the binary that is served only where somebody adds it.
#[derive(Debug)]
pub struct Example {
    /// Plugin name.
    pub name: &'static str,
    /// What its manifest says that it is for.
    pub description: &'static str,
    /// The manifest.
    pub manifest: &'static str,
    /// The component.
    pub component: &'static [u8],
}

/// What `aok plugin add --example` can add.
#[must_use]
pub fn examples() -> &'static [Example] {
    EXAMPLES
}

/// The guest that proves the limits: it misbehaves, and is no plugin.
pub(crate) fn proof() -> &'static Bundled {
    &PROOF
}

/// Files that have not changed for so long have been written.
const SETTLE: Duration = Duration::from_millis(100);

/// A file that has been changing for so long is not waited for.
const RESTLESS: Duration = Duration::from_secs(1);

/// Looks into the plugin directories, and remembers what it saw there.
#[derive(Debug)]
pub struct Finder {
    dirs: Vec<PathBuf>,
    seen: HashMap<PathBuf, Seen>,
}

#[derive(Debug)]
struct Seen {
    stamp: Stamp,
    /// When it came to look like that.
    since: Instant,
    /// When it last was at rest.
    rested: Instant,
    calm: Calm,
}

impl Finder {
    /// A finder for these directories, the first of a name coming before the others.
    #[must_use]
    pub fn new(dirs: Vec<PathBuf>) -> Self {
        Self { dirs, seen: HashMap::new() }
    }

    /// The directories.
    #[must_use]
    pub fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// Whether a file of the last look is still being written: look again soon.
    #[must_use]
    pub fn unsettled(&self) -> bool {
        self.seen.values().any(|s| s.calm != Calm::Settled)
    }

    /// Lists the bundled plugins, then those of the directories, by directory and by name. The first of
    /// a name has it; a missing directory holds nothing, and one that cannot be read is a plugin that
    /// is refused.
    pub fn look(&mut self) -> Vec<Candidate> {
        let mut taken: BTreeMap<String, String> =
            bundled().iter().map(|b| (b.name.to_owned(), "a bundled plugin".to_owned())).collect();
        let mut found: Vec<_> = bundled()
            .iter()
            .map(|b| Candidate::new(b.name, Origin::Bundled { bytes: b.component, digest: b.digest }))
            .collect();
        let mut seen = HashMap::new();
        for dir in &self.dirs {
            match group(dir) {
                Ok(groups) => {
                    for (name, group) in groups {
                        found.push(self.candidate(dir, &name, group, &mut taken, &mut seen));
                    }
                }
                Err(e) => found.push(unreadable(dir, &e)),
            }
        }
        self.seen = seen;
        found
    }

    fn candidate(
        &self,
        dir: &Path,
        name: &str,
        group: Group,
        taken: &mut BTreeMap<String, String>,
        seen: &mut HashMap<PathBuf, Seen>,
    ) -> Candidate {
        let at = |extension: &str| dir.join(format!("{name}.{extension}"));
        let path = at(group.extension());
        let (manifest, wit) = (group.manifest.then(|| at("toml")), group.wit.then(|| at("wit")));
        let files = Files { component: path.clone(), manifest, wit };
        let mut candidate = Candidate::new(name, Origin::Files(files.clone()));
        let checked = check_name(name).and_then(|()| group.check(name)).and_then(|()| files.stamp());
        candidate.fault = match (checked, taken.get(name)) {
            (Err(fault), _) => Some(fault),
            (Ok(_), Some(owner)) => Some(Fault {
                code: "name_taken",
                message: format!("the name `{name}` belongs to {owner}"),
                hint: "rename the file".into(),
            }),
            (Ok(stamp), None) => {
                taken.insert(name.to_owned(), path.display().to_string());
                let now = Seen::again(self.seen.get(&path), stamp, Instant::now());
                (candidate.stamp, candidate.calm) = (now.stamp.clone(), now.calm);
                seen.insert(path, now);
                None
            }
        };
        candidate
    }
}

impl Seen {
    /// What is to be thought of files that look like `stamp` now.
    fn again(before: Option<&Self>, stamp: Stamp, now: Instant) -> Self {
        let Some(before) = before else {
            // Never seen: the file system's clock tells how long they have been so.
            let calm = if stamp.age().is_some_and(|age| age >= SETTLE) { Calm::Settled } else { Calm::Changing };
            return Self { stamp, since: now, rested: now, calm };
        };
        if before.stamp == stamp {
            let calm = match before.calm {
                Calm::Settled => Calm::Settled,
                other if now.duration_since(before.since) < SETTLE => other,
                _ => Calm::Settled,
            };
            let rested = if calm == Calm::Settled { now } else { before.rested };
            return Self { stamp, since: before.since, rested, calm };
        }
        let rested = if before.calm == Calm::Settled { now } else { before.rested };
        let calm = match now.duration_since(rested) {
            short if short < RESTLESS => Calm::Changing,
            // Whole files take each other's place: one of them can be taken, if it can be read in one piece.
            _ if stamp.was_replaced(&before.stamp) => Calm::Replaced,
            _ => Calm::Restless,
        };
        Self { stamp, since: now, rested, calm }
    }
}

/// The files of one name.
#[derive(Debug, Default)]
struct Group {
    component: bool,
    manifest: bool,
    wit: bool,
    script: Option<&'static str>,
}

impl Group {
    /// The extension of the file that the plugin is known by.
    fn extension(&self) -> &'static str {
        match self.script {
            _ if self.component => "wasm",
            Some(script) => script,
            None => "toml",
        }
    }

    fn check(&self, name: &str) -> Result<(), Fault> {
        match self.script {
            _ if self.component => Ok(()),
            Some(script) => Err(Fault {
                code: "no_interpreter",
                message: format!("{name}.{script} is a script, and this aok runs components only"),
                hint: "build a component of it and put that here".into(),
            }),
            None => Err(Fault {
                code: "no_component",
                message: format!("there is a manifest {name}.toml and no {name}.wasm beside it"),
                hint: format!("put the component there as {name}.wasm"),
            }),
        }
    }
}

/// The plugin files of a directory by name.
fn group(dir: &Path) -> io::Result<BTreeMap<String, Group>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(e) => return Err(e),
    };
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    for entry in entries {
        let file = PathBuf::from(entry?.file_name());
        let (Some(stem), Some(extension)) = (file.file_stem(), file.extension().and_then(OsStr::to_str)) else {
            continue;
        };
        let stem = stem.to_string_lossy();
        // What is being copied often has such a name for as long as that takes.
        if stem.starts_with('.') {
            continue;
        }
        let mut of = |set: fn(&mut Group)| set(groups.entry(stem.clone().into_owned()).or_default());
        match extension {
            "wasm" => of(|g| g.component = true),
            "toml" => of(|g| g.manifest = true),
            "wit" => of(|g| g.wit = true),
            "py" => of(|g| g.script = Some("py")),
            "js" => of(|g| g.script = Some("js")),
            _ => {}
        }
    }
    // WIT alone speaks of nothing that anybody wants to run.
    groups.retain(|_, g| g.component || g.manifest || g.script.is_some());
    Ok(groups)
}

fn unreadable(dir: &Path, error: &io::Error) -> Candidate {
    let name = dir.file_name().unwrap_or(dir.as_os_str()).to_string_lossy();
    let files = Files { component: dir.to_owned(), ..Files::default() };
    let mut candidate = Candidate::new(&name, Origin::Files(files));
    candidate.fault = Some(Fault {
        code: "unreadable_directory",
        message: format!("the plugin directory {} cannot be read: {error}", dir.display()),
        hint: "check its permissions".into(),
    });
    candidate
}

/// Whether a file may have this name, without its extension.
///
/// # Errors
/// `invalid_name`.
pub fn check_name(name: &str) -> Result<(), Fault> {
    let mut chars = name.chars();
    let first = chars.next().is_some_and(|c| c.is_ascii_lowercase());
    let rest = chars.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-');
    if first && rest && name.len() <= 32 {
        return Ok(());
    }
    Err(Fault {
        code: "invalid_name",
        message: format!("`{name}` is no plugin name"),
        hint: "name the file with a-z, 0-9, `_` and `-`, starting with a letter, at most 32 characters".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_no_names_are_refused() {
        for (name, ok) in [("fs", true), ("a-b_1", true), ("", false), ("1a", false), ("A", false), ("ä", false)] {
            assert_eq!(check_name(name).is_ok(), ok, "{name}");
        }
        assert!(check_name(&"a".repeat(33)).is_err());
    }

    fn told(found: &[Candidate]) -> Vec<(&str, Result<Calm, &'static str>)> {
        let files = found.iter().filter(|c| matches!(c.origin, Origin::Files(_)));
        files.map(|c| (c.name.as_str(), c.fault.as_ref().map_or(Ok(c.calm), |f| Err(f.code)))).collect()
    }

    #[test]
    fn the_first_file_of_a_name_has_it_and_bundled_names_are_taken() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (dir, file) in [
            (&one, "x.wasm"),
            (&one, "x.toml"),
            (&one, "readme.txt"),
            (&one, ".x.wasm"),
            (&one, "fs.wasm"),
            (&one, "lost.toml"),
            (&one, "s.py"),
            (&two, "x.wasm"),
        ] {
            fs::write(dir.path().join(file), b"\0asm").unwrap();
        }
        let mut finder = Finder::new(vec![one.path().to_owned(), "/nowhere".into(), two.path().to_owned()]);
        finder.look();
        std::thread::sleep(SETTLE);
        let found = finder.look();
        assert_eq!(
            told(&found),
            [
                ("fs", Err("name_taken")),
                ("lost", Err("no_component")),
                ("s", Err("no_interpreter")),
                ("x", Ok(Calm::Settled)),
                ("x", Err("name_taken"))
            ]
        );
        fs::remove_file(one.path().join("x.wasm")).unwrap();
        let found = finder.look();
        assert_eq!(told(&found)[3..], [("x", Err("no_component")), ("x", Ok(Calm::Settled))]);
    }

    #[test]
    fn a_directory_that_is_none_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("plugins");
        fs::write(&file, "").unwrap();
        assert_eq!(told(&Finder::new(vec![file]).look()), [("plugins", Err("unreadable_directory"))]);
    }

    #[test]
    fn what_is_being_written_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let at = |n: u32| {
            let path = dir.path().join(n.to_string());
            fs::write(&path, "a").unwrap();
            Files { component: path, ..Files::default() }.stamp().unwrap()
        };
        let (a, b, c) = (at(1), at(2), at(3));
        let begin = Instant::now();
        let later = |ms: u64| begin + Duration::from_millis(ms);
        let new = Seen::again(None, a.clone(), begin);
        assert_eq!(new.calm, Calm::Changing);
        assert_eq!(Seen::again(Some(&new), a.clone(), later(99)).calm, Calm::Changing);
        let rested = Seen::again(Some(&new), a.clone(), later(100));
        assert_eq!(rested.calm, Calm::Settled);
        assert_eq!(Seen::again(Some(&rested), a.clone(), later(101)).calm, Calm::Settled);
        let touched = Seen::again(Some(&rested), b.clone(), later(200));
        assert_eq!(touched.calm, Calm::Changing);
        let still = Seen::again(Some(&touched), c, later(1_199));
        assert_eq!(still.calm, Calm::Changing);
        assert_eq!(Seen::again(Some(&still), b, later(1_200)).calm, Calm::Replaced);
    }
}
