//! `grants.toml`: written whole, beside itself, and renamed, so that there is always one that is whole.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Error, Key};
use crate::capability::{HttpPermission, Permissions, SecretPermission, Side};

/// What the file says of one plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Table", into = "Table")]
pub(super) struct Kept {
    pub(super) permissions: Permissions,
    /// SHA-256 of the component that is trusted, hex.
    pub(super) trust: Option<String>,
}

impl Kept {
    /// Takes out all of one kind; whether there was any.
    pub(super) fn clear(&mut self, key: Key) -> bool {
        fn clear<T>(list: &mut Vec<T>) -> bool {
            !std::mem::take(list).is_empty()
        }
        let p = &mut self.permissions;
        match key {
            Key::Read => clear(&mut p.read),
            Key::Write => clear(&mut p.write),
            Key::Http => clear(&mut p.http),
            Key::Env => clear(&mut p.env),
            Key::Secret => clear(&mut p.secrets),
            Key::Kernel => clear(&mut p.kernel),
            Key::Trust => self.trust.take().is_some(),
        }
    }

    /// In the words of the command line.
    pub(super) fn words(&self) -> Vec<String> {
        let mut words = self.permissions.words();
        words.extend(self.trust.as_ref().map(|_| Key::Trust.name().to_owned()));
        words
    }
}

/// The file as it is written: serde cannot both flatten and refuse unknown keys.
#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    grants: BTreeMap<String, Kept>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Table {
    #[serde(skip_serializing_if = "Option::is_none")]
    trust: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    read: Vec<PathBuf>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    write: Vec<PathBuf>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    env: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kernel: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    http: Vec<HttpPermission>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    secrets: Vec<SecretPermission>,
}

impl From<Table> for Kept {
    fn from(Table { trust, read, write, env, kernel, http, secrets }: Table) -> Self {
        Self { permissions: Permissions { read, write, http, env, secrets, kernel }, trust }
    }
}

impl From<Kept> for Table {
    fn from(Kept { permissions, trust }: Kept) -> Self {
        let Permissions { read, write, http, env, secrets, kernel } = permissions;
        Self { trust, read, write, env, kernel, http, secrets }
    }
}

/// Reads the file. One that is not there says nothing.
pub(super) fn read(path: &Path) -> Result<BTreeMap<String, Kept>, Error> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(BTreeMap::new());
        }
        Err(source) => return Err(Error::File { path: path.to_owned(), source }),
    };
    let wrong = |message: String| Error::Parse { path: path.to_owned(), message };
    let file: File = toml::from_str(&text).map_err(|e| wrong(e.to_string().trim_end().to_owned()))?;
    for (name, kept) in &file.grants {
        let found = kept.permissions.check(Side::Grant);
        found.map_err(|why| wrong(format!("in `[grants.{name}]`, {why}")))?;
        if let Some(trust) = kept.trust.as_ref().filter(|t| !is_digest(t)) {
            return Err(wrong(format!("in `[grants.{name}]`, `{trust}` is no SHA-256 of a component")));
        }
    }
    Ok(file.grants)
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Writes the file, for its owner alone.
pub(super) fn write(path: &Path, grants: &BTreeMap<String, Kept>) -> Result<(), Error> {
    const HEAD: &str = "# Written by `aok plugin grant`, `revoke` and `trust`. Your own grants go into aok.toml.\n\n";
    let failed = |source| Error::File { path: path.to_owned(), source };
    let text = toml::to_string(&File { grants: grants.clone() }).map_err(|e| failed(io::Error::other(e)))?;
    let partial = path.with_extension(format!("{}.part", std::process::id()));
    // One of an earlier process of this number may be anybody's.
    let _ = fs::remove_file(&partial);
    let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial).and_then(|mut file| {
        file.write_all(HEAD.as_bytes())?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.and_then(|()| fs::rename(&partial, path)).map_err(|e| {
        let _ = fs::remove_file(&partial);
        failed(e)
    })
}
