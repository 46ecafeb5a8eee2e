//! Finds plugins: the bundled components inside the binary, and the files of the plugin directories.
//!
//! It reads names and bytes; what a component is and whether it loads is the registry's business.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::contract::Fault;
use crate::registry::{Candidate, Component};
use crate::tool::Source;

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

/// The guest that proves the limits: it misbehaves, and is no plugin.
pub(crate) fn proof() -> &'static Bundled {
    &PROOF
}

/// The largest component file that is read, in bytes.
const MAX_COMPONENT: u64 = 256 << 20;

/// Lists the bundled plugins, then the `.wasm` files of the directories, by directory and by name.
/// The first of a name has it; a missing directory holds nothing.
///
/// # Errors
/// The directory that exists and cannot be read.
pub fn scan(dirs: &[PathBuf]) -> Result<Vec<Candidate>, (PathBuf, std::io::Error)> {
    let mut taken: BTreeMap<String, String> =
        bundled().iter().map(|b| (b.name.to_owned(), "a bundled plugin".to_owned())).collect();
    let inside = |b: &'static Bundled| Candidate {
        name: b.name.to_owned(),
        file: None,
        source: Source::Bundled,
        component: Ok(Component::Bundled { bytes: b.component, digest: b.digest }),
    };
    let mut found: Vec<_> = bundled().iter().map(inside).collect();
    for dir in dirs {
        for file in components(dir).map_err(|e| (dir.clone(), e))? {
            let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let component = match (check_name(&name), taken.get(&name)) {
                (Err(fault), _) => Err(fault),
                (Ok(()), Some(owner)) => Err(Fault {
                    code: "name_taken",
                    message: format!("the name `{name}` belongs to {owner}"),
                    hint: "rename the file".into(),
                }),
                (Ok(()), None) => {
                    taken.insert(name.clone(), file.display().to_string());
                    read(&file).map(|bytes| Component::File(bytes.into()))
                }
            };
            found.push(Candidate { name, file: Some(file), source: Source::Directory, component });
        }
    }
    Ok(found)
}

fn components(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "wasm") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read(file: &Path) -> Result<Vec<u8>, Fault> {
    let unreadable = |e: &std::io::Error| Fault {
        code: "unreadable",
        message: format!("the file cannot be read: {e}"),
        hint: "check its permissions".into(),
    };
    let meta = fs::metadata(file).map_err(|e| unreadable(&e))?;
    if !meta.is_file() {
        return Err(Fault {
            code: "unreadable",
            message: "it is not a file".into(),
            hint: "put the component itself there".into(),
        });
    }
    if meta.len() > MAX_COMPONENT {
        return Err(Fault {
            code: "too_large",
            message: format!("the file has {} MiB, the most is {}", meta.len() >> 20, MAX_COMPONENT >> 20),
            hint: "strip its debug information".into(),
        });
    }
    fs::read(file).map_err(|e| unreadable(&e))
}

fn check_name(name: &str) -> Result<(), Fault> {
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

    #[test]
    fn the_first_file_of_a_name_has_it_and_bundled_names_are_taken() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (dir, file) in [(&one, "x.wasm"), (&one, "readme.txt"), (&one, "fs.wasm"), (&two, "x.wasm")] {
            fs::write(dir.path().join(file), b"\0asm").unwrap();
        }
        let found = scan(&[one.path().to_owned(), PathBuf::from("/nowhere"), two.path().to_owned()]).unwrap();
        let told: Vec<_> = found
            .iter()
            .filter(|c| c.source == Source::Directory)
            .map(|c| (c.name.as_str(), c.component.as_ref().map_err(|f| f.code).map(|_| ())))
            .collect();
        assert_eq!(told, [("fs", Err("name_taken")), ("x", Ok(())), ("x", Err("name_taken"))]);
    }
}
