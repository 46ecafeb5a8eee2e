//! Notes about paths: a tree of small files that only the kernel writes. In the folder of a path's parent, `f/NAME`
//! is the note about it and `d/NAME` the folder for what is below it, so every name has room for both.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// The notes of one kind.
#[derive(Clone, Debug)]
pub(super) struct Notes(PathBuf);

impl Notes {
    pub(super) fn new(root: PathBuf) -> Self {
        Self(root)
    }

    fn place(&self, path: &Path) -> PathBuf {
        let mut place = self.0.clone();
        let mut names = path.iter().peekable();
        while let Some(name) = names.next() {
            place.push(if names.peek().is_some() { "d" } else { "f" });
            place.push(name);
        }
        place
    }

    pub(super) fn has(&self, path: &Path) -> io::Result<bool> {
        match fs::symlink_metadata(self.place(path)) {
            Ok(_) => Ok(true),
            Err(e) if is_missing(&e) => Ok(false),
            Err(e) => Err(e),
        }
    }

    pub(super) fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        match fs::read(self.place(path)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if is_missing(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Writes a note as a whole: it is made as `fresh`, and then put in its place.
    pub(super) fn put(&self, path: &Path, note: &[u8], fresh: &Path) -> io::Result<()> {
        let place = self.place(path);
        fs::create_dir_all(place.parent().unwrap_or(&self.0))?;
        fs::write(fresh, note)?;
        fs::rename(fresh, place)
    }

    pub(super) fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(self.place(path)) {
            Err(e) if !is_missing(&e) => Err(e),
            _ => Ok(()),
        }
    }

    /// The names in a directory that have a note.
    pub(super) fn below(&self, path: &Path) -> io::Result<HashSet<OsString>> {
        let mut folder = self.0.clone();
        for name in path {
            folder.extend([Path::new("d"), Path::new(name)]);
        }
        Ok(names(&folder.join("f"))?.into_iter().collect())
    }

    /// Every path that has a note; those below a directory come after it.
    pub(super) fn all(&self) -> io::Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        let mut folders = vec![(self.0.clone(), PathBuf::new())];
        while let Some((folder, path)) = folders.pop() {
            for name in names(&folder.join("f"))? {
                paths.push(path.join(name));
            }
            for name in names(&folder.join("d"))? {
                folders.push((folder.join("d").join(&name), path.join(&name)));
            }
        }
        paths.sort();
        Ok(paths)
    }
}

fn names(folder: &Path) -> io::Result<Vec<OsString>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| entry.map(|e| e.file_name())).collect(),
        Err(e) if is_missing(&e) => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_and_what_is_below_it_have_notes_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let (notes, fresh) = (Notes::new(dir.path().join("n")), dir.path().join("fresh"));
        assert_eq!(notes.all().unwrap(), Vec::<PathBuf>::new());
        for path in ["a/b/c", "a", "f/d", "d"] {
            assert!(!notes.has(Path::new(path)).unwrap(), "{path}");
            notes.put(Path::new(path), path.as_bytes(), &fresh).unwrap();
            assert_eq!(notes.read(Path::new(path)).unwrap().unwrap(), path.as_bytes());
        }
        assert!(!notes.has(Path::new("a/b")).unwrap());
        assert_eq!(notes.all().unwrap(), ["a", "a/b/c", "d", "f/d"].map(PathBuf::from));
        notes.remove(Path::new("a")).unwrap();
        notes.remove(Path::new("never")).unwrap();
        assert!(notes.has(Path::new("a/b/c")).unwrap() && !notes.has(Path::new("a")).unwrap());
    }
}
