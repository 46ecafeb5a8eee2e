//! What the operator grants to plugins: `[grants.NAME]` of `aok.toml`, which people write, and
//! `grants.toml` of the data directory, which aok writes. The union of both holds, from the next call on.
//!
//! Who may use what of it is decided elsewhere (`tool::ToolSecurity`): this only knows what was said.

mod file;
mod mounts;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use serde::{Deserialize, Serialize};

use crate::capability::{Permissions, SecretPermission, Side};
use file::Kept;
pub use mounts::{Clash, mounts};

/// The file's name in the data directory.
pub const FILE: &str = "grants.toml";

/// Why a grant cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file says something that cannot be.
    #[error("the grants in {path} are wrong: {message}")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// What and why.
        message: String,
    },
    /// `grants.toml` cannot be read or written.
    #[error("the grants in {path} cannot be used: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// This is not to be granted, or not to be revoked.
    #[error("{message}")]
    Refused {
        /// What and why.
        message: String,
        /// What to do.
        hint: String,
    },
}

fn refused(message: impl Into<String>, hint: impl Into<String>) -> Error {
    Error::Refused { message: message.into(), hint: hint.into() }
}

/// What is to be revoked of a plugin: everything, where it names nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Revocation {
    /// Single grants; a secret without hosts is all of it.
    pub entries: Permissions,
    /// All grants of these keys.
    pub keys: Vec<Key>,
}

/// A kind of grant, by its name on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Key {
    /// Directories to read.
    Read,
    /// Directories to write.
    Write,
    /// Requests.
    Http,
    /// Environment variables.
    Env,
    /// Secrets.
    Secret,
    /// Kernel interfaces.
    Kernel,
    /// The trust in a component.
    Trust,
}

impl Key {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Read, Self::Write, Self::Http, Self::Env, Self::Secret, Self::Kernel, Self::Trust];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Http => "http",
            Self::Env => "env",
            Self::Secret => "secret",
            Self::Kernel => "kernel",
            Self::Trust => "trust",
        }
    }
}

/// The grants of all plugins. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Grants(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// What `aok.toml` says, with canonical paths.
    configured: BTreeMap<String, Permissions>,
    /// `grants.toml`; none where nothing is kept.
    file: Option<PathBuf>,
    own: Own,
    /// What `grants.toml` says.
    kept: Mutex<BTreeMap<String, Kept>>,
    /// The union of both, for the calls.
    effective: RwLock<BTreeMap<String, Arc<Permissions>>>,
}

/// Directories that no plugin gets, nor one that holds them.
#[derive(Debug, Default)]
struct Own {
    /// aok's data.
    data: PathBuf,
    /// Where plugins are looked for: not to be written, since a component keeps its predecessor's grants.
    plugins: Vec<PathBuf>,
}

impl Grants {
    /// The grants of a kernel on the data directory `data`: those that its configuration has, and those
    /// in its `grants.toml`. `plugins` are the directories that plugins come from.
    ///
    /// # Errors
    /// [`Error::Parse`]: a file has an unknown key, a directory that does not exist, or a grant without a
    /// limit. [`Error::File`]: `grants.toml` cannot be read.
    pub fn open(
        configured: &BTreeMap<String, Permissions>,
        config: &Path,
        data: &Path,
        plugins: &[PathBuf],
    ) -> Result<Self, Error> {
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let own = Own { data: real(data), plugins: plugins.iter().map(|dir| real(dir)).collect() };
        let wrong = |name: &str, message: String| Error::Parse {
            path: config.to_owned(),
            message: format!("in `[grants.{name}]`, {message}"),
        };
        let mut canonical = BTreeMap::new();
        for (name, permissions) in configured {
            let permissions = checked(permissions, &own).map_err(|e| wrong(name, e.to_string()))?;
            canonical.insert(name.clone(), permissions);
        }
        let file = data.join(FILE);
        let kept = file::read(&file)?;
        let shared = Shared { configured: canonical, file: Some(file), own, ..Shared::default() };
        let grants = Self(Arc::new(shared));
        *grants.effective_mut() = grants.union(&kept);
        *grants.kept() = kept;
        Ok(grants)
    }

    /// What a plugin is granted; `None` where that is nothing.
    #[must_use]
    pub fn of(&self, plugin: &str) -> Option<Arc<Permissions>> {
        self.0.effective.read().unwrap_or_else(PoisonError::into_inner).get(plugin).cloned()
    }

    /// What each plugin is granted that is granted anything.
    #[must_use]
    pub fn all(&self) -> BTreeMap<String, Arc<Permissions>> {
        self.0.effective.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the operator trusts this very component of a plugin.
    #[must_use]
    pub fn trusts(&self, plugin: &str, digest: &str) -> bool {
        self.kept().get(plugin).and_then(|kept| kept.trust.as_deref()) == Some(digest)
    }

    /// Grants more to a plugin. Paths are made canonical. Returns what was said, in canonical form.
    ///
    /// # Errors
    /// [`Error::Refused`]: a directory that is none or that no plugin gets, two directories of one last
    /// name, a grant without a limit. [`Error::File`]. Then nothing has changed.
    pub fn grant(&self, plugin: &str, more: &Permissions) -> Result<Permissions, Error> {
        let more = checked(more, &self.0.own)?;
        self.change(plugin, |kept| {
            kept.permissions.add(&more);
            Ok(())
        })?;
        Ok(more)
    }

    /// Trusts a component of a plugin, and no other one.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn trust(&self, plugin: &str, digest: &str) -> Result<(), Error> {
        self.change(plugin, |kept| {
            kept.trust = Some(digest.to_owned());
            Ok(())
        })
    }

    /// Takes grants back.
    ///
    /// # Errors
    /// [`Error::Refused`]: it was not granted, or it is in `aok.toml`. [`Error::File`].
    pub fn revoke(&self, plugin: &str, less: &Revocation) -> Result<(), Error> {
        let fixed = self.0.configured.get(plugin);
        self.change(plugin, |kept| {
            if less.entries.is_empty() && less.keys.is_empty() {
                if *kept == Kept::default() {
                    return Err(nothing(plugin, fixed));
                }
                *kept = Kept::default();
                return Ok(());
            }
            for key in &less.keys {
                kept.clear(*key).then_some(()).ok_or_else(|| not_granted(plugin, key.name(), kept, fixed))?;
            }
            let had = kept.permissions.clone();
            kept.permissions.remove(&less.entries);
            // What is left of it was not granted in these words.
            let mut absent = less.entries.clone();
            absent.remove(&had);
            let unknown =
                |s: &&SecretPermission| s.hosts.is_empty() && !had.secrets.iter().any(|own| own.name == s.name);
            let secret = less.entries.secrets.iter().find(unknown).map(|s| format!("secret={}", s.name));
            match secret.or_else(|| absent.words().into_iter().next()) {
                Some(word) => Err(not_granted(plugin, &word, kept, fixed)),
                None => Ok(()),
            }
        })
    }

    /// Changes what is kept for a plugin: in the file first, and for the calls when it is there.
    fn change(&self, plugin: &str, change: impl FnOnce(&mut Kept) -> Result<(), Error>) -> Result<(), Error> {
        let mut kept = self.kept();
        let mut next = kept.clone();
        let own = next.entry(plugin.to_owned()).or_default();
        change(own)?;
        if *own == Kept::default() {
            next.remove(plugin);
        }
        let effective = self.union(&next);
        if let Some(permissions) = effective.get(plugin) {
            permissions.check(Side::Grant).map_err(|why| refused(why, "leave one of the two out"))?;
            mounts(&permissions.read, &permissions.write).map_err(|clash| clash.refusal())?;
        }
        if let Some(file) = &self.0.file {
            file::write(file, &next)?;
        }
        *self.effective_mut() = effective;
        *kept = next;
        Ok(())
    }

    fn union(&self, kept: &BTreeMap<String, Kept>) -> BTreeMap<String, Arc<Permissions>> {
        let mut union = self.0.configured.clone();
        for (name, kept) in kept {
            union.entry(name.clone()).or_default().add(&kept.permissions);
        }
        union.into_iter().filter(|(_, p)| !p.is_empty()).map(|(name, p)| (name, Arc::new(p))).collect()
    }

    fn kept(&self) -> MutexGuard<'_, BTreeMap<String, Kept>> {
        // It is replaced whole.
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn effective_mut(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<String, Arc<Permissions>>> {
        self.0.effective.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn nothing(plugin: &str, fixed: Option<&Permissions>) -> Error {
    let message = format!("nothing was granted to `{plugin}` by `aok plugin grant`");
    let hint = match fixed {
        Some(_) => format!("what it has is in aok.toml: take `[grants.{plugin}]` out there and start aok again"),
        None => "`aok plugin ls` shows what is granted".to_owned(),
    };
    refused(message, hint)
}

fn not_granted(plugin: &str, word: &str, kept: &Kept, fixed: Option<&Permissions>) -> Error {
    let message = format!("`{word}` was not granted to `{plugin}` by `aok plugin grant`");
    if fixed.is_some_and(|p| p.words().iter().any(|w| w == word || w.starts_with(&format!("{word}=")))) {
        return refused(message, format!("it is in `[grants.{plugin}]` of aok.toml: take it out there"));
    }
    match kept.words() {
        none if none.is_empty() => refused(message, "nothing is granted to it: `aok plugin ls` shows all"),
        words => refused(message, format!("granted are: {}", words.join("  "))),
    }
}

/// A grant with canonical paths.
fn checked(permissions: &Permissions, own: &Own) -> Result<Permissions, Error> {
    let mut permissions = permissions.clone();
    let Permissions { read, write, .. } = &mut permissions;
    for (path, writable) in read.iter_mut().map(|p| (p, false)).chain(write.iter_mut().map(|p| (p, true))) {
        // `*` and the like are refused in the operator's own words.
        if path.is_absolute() {
            *path = directory(path, writable, own)?;
        }
    }
    permissions.check(Side::Grant).map_err(|why| refused(why, "docs/plugins.md has what can be granted"))?;
    mounts(&permissions.read, &permissions.write).map_err(|clash| clash.refusal())?;
    Ok(permissions)
}

fn directory(path: &Path, writable: bool, own: &Own) -> Result<PathBuf, Error> {
    let shown = path.display();
    let real = path.canonicalize().map_err(|e| {
        refused(format!("the directory {shown} cannot be granted: {e}"), "make it first, or check the path")
    })?;
    if !real.is_dir() {
        return Err(refused(format!("{shown} is no directory"), "grant the directory that holds it"));
    }
    let reaches = |own: &&PathBuf| real.starts_with(own) || own.starts_with(&real);
    let what = match Some(&own.data).filter(reaches) {
        Some(data) => Some(("aok's own data", data)),
        None => own.plugins.iter().filter(|_| writable).find(reaches).map(|dir| ("a directory of plugins", dir)),
    };
    match what {
        Some((what, own)) => Err(refused(
            format!("{shown} reaches into {what}, {}: a plugin could grant itself anything", own.display()),
            "grant a directory beside it",
        )),
        None => Ok(real),
    }
}

#[cfg(test)]
mod tests;
