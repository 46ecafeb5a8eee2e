//! The official Python clients of model providers and of MCP, for the tests that look at us through them: pinned,
//! each file checked against its hash by pip, installed beside everything else and never into the user's Python.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use sha2::{Digest as _, Sha256};

use crate::fetch::{cache_dir, hex};
use crate::step::{root, run, step};

/// The directory of the packages, installed unless an earlier run did. A directory of this name is always
/// complete: it is renamed into place last. Its name has what was asked for and for which Python.
///
/// # Errors
/// When Python or pip is missing, a download fails, or a hash is another one.
pub(crate) fn clients() -> Result<PathBuf> {
    let requirements = root().join("tests/python/requirements.txt");
    let wanted = fs::read(&requirements).with_context(|| format!("cannot read {}", requirements.display()))?;
    let which = ["-c", "import sys; print('%d.%d' % sys.version_info[:2])"];
    let version = Command::new("python3").args(which).output().context("python3 is needed for the official clients")?;
    let mut digest = Sha256::new();
    digest.update(&wanted);
    digest.update(&version.stdout);
    let cache = cache_dir()?;
    let place = cache.join(format!("python-clients-{}", &hex(&digest.finalize())[..16]));
    if place.is_dir() {
        return Ok(place);
    }
    let what = format!("Installing the official Python clients into {}", cache.display());
    step(&what, "about 30 MB, once; about half a minute on a fast line", || {
        fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
        // Two runs at once must not share a half-filled directory.
        let work = tempfile::tempdir_in(&cache).with_context(|| format!("cannot write in {}", cache.display()))?;
        let packages = work.path().join("packages");
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "--disable-pip-version-check", "install", "-q", "--progress-bar", "off"])
            .args([
                "--only-binary",
                ":all:",
                "--no-deps",
                "--require-hashes",
                "--root-user-action",
                "ignore",
                "--target",
            ])
            .arg(&packages)
            .arg("-r")
            .arg(&requirements);
        run(&mut pip).context(
            "python3 from 3.11 to 3.14 with pip is needed; on Debian: apt-get install -y --no-install-recommends python3-pip",
        )?;
        match fs::rename(&packages, &place) {
            Err(_) if place.is_dir() => Ok(()),
            other => other.with_context(|| format!("cannot move the packages to {}", place.display())),
        }
    })?;
    Ok(place)
}
