//! Versions of the guest `herald`: the same component with another number in it.

use std::fs;
use std::io;
use std::path::Path;

/// The component of `herald` as version `n`.
///
/// # Panics
/// Where the component has no version in it, or more than one: then the guest was built in another way.
#[must_use]
pub fn version(component: &[u8], n: u16) -> Vec<u8> {
    const MARK: &[u8] = b"version-0000";
    let found: Vec<usize> = (0..component.len()).filter(|at| component[*at..].starts_with(MARK)).collect();
    let [at] = found[..] else { panic!("`version-0000` stands {} times in the component", found.len()) };
    let mut bytes = component.to_vec();
    bytes[at..at + MARK.len()].copy_from_slice(format!("version-{n:04}").as_bytes());
    bytes
}

/// Puts `bytes` at `path` in one step, as an installer does.
///
/// # Errors
/// The file system's.
pub fn put(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let partial = path.with_extension("partial");
    fs::write(&partial, bytes)?;
    fs::rename(&partial, path)
}
