//! What a manifest asks for and what an operator grants: the same words on both sides, and what
//! holds of them where the two meet.

use std::borrow::Cow;
use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

use super::{BadGrant, Destination, HostGrant, url_path};

/// `[permissions]` of a manifest, and `[grants.NAME]` of an operator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Permissions {
    /// Directories to read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub read: Vec<PathBuf>,
    /// Directories to read and write.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub write: Vec<PathBuf>,
    /// Requests.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub http: Vec<HttpPermission>,
    /// Environment variables.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Secrets, each for its hosts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretPermission>,
    /// Kernel interfaces.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kernel: Vec<String>,
}

/// Requests to one host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpPermission {
    /// The host, as `--host` takes it; in a manifest also `*`.
    #[serde(deserialize_with = "pattern")]
    pub host: HostGrant,
    /// Methods; all when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "one_or_many")]
    pub methods: Vec<String>,
    /// Globs on the path; all when absent.
    #[serde(default, alias = "paths", skip_serializing_if = "Vec::is_empty", deserialize_with = "one_or_many")]
    pub path: Vec<String>,
}

/// A secret that is filled in for some hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretPermission {
    /// The environment variable of the kernel that holds it.
    pub name: String,
    /// The hosts that may get it.
    #[serde(deserialize_with = "patterns")]
    pub hosts: Vec<HostGrant>,
}

fn pattern<'de, D: Deserializer<'de>>(deserializer: D) -> Result<HostGrant, D::Error> {
    let text = String::deserialize(deserializer)?;
    HostGrant::pattern(&text).map_err(serde::de::Error::custom)
}

fn patterns<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<HostGrant>, D::Error> {
    let texts = one_or_many(deserializer)?;
    texts.iter().map(|text| HostGrant::pattern(text).map_err(serde::de::Error::custom)).collect()
}

/// A list of texts, or one text alone.
fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a text or a list of texts")]
    enum Texts {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Texts::deserialize(deserializer)? {
        Texts::One(text) => vec![text],
        Texts::Many(texts) => texts,
    })
}

/// Who says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A plugin's author, who knows neither the operator's directories nor always the hosts: `*` is
    /// whichever the operator names.
    Manifest,
    /// The operator, who names each.
    Grant,
}

impl Permissions {
    /// Whether it says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds what `other` has and this has not.
    pub fn add(&mut self, other: &Self) {
        union(&mut self.read, &other.read);
        union(&mut self.write, &other.write);
        union(&mut self.http, &other.http);
        union(&mut self.env, &other.env);
        union(&mut self.kernel, &other.kernel);
        for secret in &other.secrets {
            match self.secrets.iter_mut().find(|s| s.name == secret.name) {
                Some(own) => union(&mut own.hosts, &secret.hosts),
                None => self.secrets.push(secret.clone()),
            }
        }
    }

    /// Takes out what `other` has; a secret goes with its last host.
    pub fn remove(&mut self, other: &Self) {
        difference(&mut self.read, &other.read);
        difference(&mut self.write, &other.write);
        difference(&mut self.http, &other.http);
        difference(&mut self.env, &other.env);
        difference(&mut self.kernel, &other.kernel);
        for secret in &other.secrets {
            let Some(own) = self.secrets.iter_mut().find(|s| s.name == secret.name) else { continue };
            match secret.hosts.is_empty() {
                true => own.hosts.clear(),
                false => difference(&mut own.hosts, &secret.hosts),
            }
        }
        self.secrets.retain(|s| !s.hosts.is_empty());
    }

    /// What is said, each in the words of `aok plugin grant`.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        let paths = |key: &'static str, paths: &[PathBuf]| -> Vec<String> {
            paths.iter().map(|path| format!("{key}={}", path.display())).collect()
        };
        let texts = |key: &'static str, texts: &[String]| -> Vec<String> {
            texts.iter().map(|text| format!("{key}={text}")).collect()
        };
        [
            paths("read", &self.read),
            paths("write", &self.write),
            self.http.iter().map(|rule| format!("http={rule}")).collect(),
            texts("env", &self.env),
            self.secrets.iter().map(|secret| format!("secret={secret}")).collect(),
            texts("kernel", &self.kernel),
        ]
        .concat()
    }

    /// Checks what no type can.
    ///
    /// # Errors
    /// The entry that is wrong, and why.
    pub fn check(&self, side: Side) -> Result<(), String> {
        for path in self.read.iter().chain(&self.write) {
            check_directory(path, side)?;
        }
        for rule in &self.http {
            rule.check(side)?;
        }
        for secret in &self.secrets {
            check_variable(&secret.name)?;
            if secret.hosts.is_empty() {
                return Err(format!("the secret `{}` is for no host: name those that may get it", secret.name));
            }
            if side == Side::Grant && secret.hosts.iter().any(HostGrant::is_any) {
                return Err(format!("the secret `{}` for `*` would go to every host: name them", secret.name));
            }
            if self.env.contains(&secret.name) {
                return Err(format!(
                    "`{0}` is among `env` and `secrets`: a plugin sees a variable or never",
                    secret.name
                ));
            }
        }
        self.env.iter().try_for_each(|name| check_variable(name))?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_:/.@".contains(c);
        match self.kernel.iter().find(|name| name.is_empty() || !name.chars().all(plain)) {
            Some(name) => Err(format!("`{name}` is no name of a kernel interface")),
            None => Ok(()),
        }
    }
}

fn union<T: PartialEq + Clone>(own: &mut Vec<T>, other: &[T]) {
    for item in other {
        if !own.contains(item) {
            own.push(item.clone());
        }
    }
}

fn difference<T: PartialEq>(own: &mut Vec<T>, other: &[T]) {
    own.retain(|item| !other.contains(item));
}

/// A path in a manifest that stands for whichever directories the operator names.
pub const ANY: &str = "*";

fn check_directory(path: &Path, side: Side) -> Result<(), String> {
    if path == Path::new(ANY) {
        return match side {
            Side::Manifest => Ok(()),
            Side::Grant => Err("the directory `*` would be every directory: name them".to_owned()),
        };
    }
    let plain = path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    if !path.is_absolute() || !plain {
        return Err(format!("the directory `{}` is no absolute path without `..`", path.display()));
    }
    match path.file_name().map(|name| name.to_str()) {
        Some(Some(_)) => Ok(()),
        Some(None) => Err(format!("the last name of `{}` is not UTF-8, so no guest can see it", path.display())),
        None => Err("the directory `/` would be every directory, and has no name for the guest".to_owned()),
    }
}

fn check_variable(name: &str) -> Result<(), String> {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    match first && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        true => Ok(()),
        false => Err(format!("`{name}` is no name of an environment variable: it has letters, digits and `_`")),
    }
}

/// A request as rules see it.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Where to.
    pub to: &'a Destination,
    /// The method.
    pub method: &'a str,
    /// The URL's path as it is sent.
    pub path: &'a str,
}

impl HttpPermission {
    /// All requests to a host.
    #[must_use]
    pub fn to(host: HostGrant) -> Self {
        Self { host, methods: Vec::new(), path: Vec::new() }
    }

    /// Whether it covers a request. A path that hides another one ([`url_path`]) is covered only
    /// where every path is.
    #[must_use]
    pub fn covers(&self, asked: &Asked<'_>) -> bool {
        let method = self.methods.is_empty() || self.methods.iter().any(|m| m == asked.method);
        let path = || {
            self.path.is_empty() || url_path(asked.path).is_some_and(|path| self.path.iter().any(|g| glob(g, &path)))
        };
        method && self.host.covers(asked.to) && path()
    }

    fn check(&self, side: Side) -> Result<(), String> {
        if side == Side::Grant && self.host.is_any() {
            return Err("the host `*` would be every host: name them".to_owned());
        }
        let token = |m: &String| !m.is_empty() && m.bytes().all(|b| b.is_ascii_uppercase() || b == b'-');
        if let Some(method) = self.methods.iter().find(|m| !token(m)) {
            return Err(format!("`{method}` is no method: methods are written like GET"));
        }
        if let Some(method) = self.methods.iter().find(|m| matches!(m.as_str(), "CONNECT" | "TRACE")) {
            return Err(format!("the method {method} is no plugin's to use"));
        }
        let plain = |glob: &String| glob.starts_with('/') && url_path(&glob.replace('%', "%25")).is_some();
        match self.path.iter().find(|glob| !plain(glob)) {
            Some(glob) => Err(format!(
                "the path `{glob}` can cover nothing: it begins with `/`, is written without %-escapes, and has no `..`"
            )),
            None => Ok(()),
        }
    }
}

/// Whether a glob covers a text: `*` is any text, `/` included, and `?` one character.
fn glob(pattern: &str, text: &str) -> bool {
    wildmatch::WildMatch::new(pattern).matches(text)
}

impl fmt::Display for HttpPermission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.methods.is_empty() {
            write!(f, "{} ", self.methods.join(","))?;
        }
        write!(f, "{}{}", self.host, self.path.join(","))
    }
}

impl FromStr for HttpPermission {
    type Err = BadGrant;

    /// Reads `HOST`, `HOST/PATH`, `METHODS HOST/PATH`; methods, and paths, stand with commas between.
    fn from_str(text: &str) -> Result<Self, BadGrant> {
        let (methods, target) = match text.trim().split_once(char::is_whitespace) {
            Some((methods, target)) => (methods.split(',').map(str::to_uppercase).collect(), target.trim_start()),
            None => (Vec::new(), text.trim()),
        };
        let (host, path) = target.split_at(end_of_host(target));
        // A URL has its scheme in the place of the host.
        let host = if path.starts_with("//") { Cow::Owned(format!("{host}//")) } else { Cow::Borrowed(host) };
        let path = path.split(",/").enumerate().map(|(i, p)| if i == 0 { p.to_owned() } else { format!("/{p}") });
        let rule = Self { host: host.parse()?, methods, path: path.filter(|p| !p.is_empty()).collect() };
        rule.check(Side::Grant).map_err(BadGrant)?;
        Ok(rule)
    }
}

/// Where the path begins: at the first `/`, unless that is a network's, as in `10.0.0.0/8`.
fn end_of_host(target: &str) -> usize {
    let slash = target.find('/').unwrap_or(target.len());
    let Some(rest) = target.get(slash + 1..).filter(|_| super::address(&target[..slash]).is_some()) else {
        return slash;
    };
    let end = rest.find('/').unwrap_or(rest.len());
    let (bits, port) = rest[..end].split_once(':').unwrap_or((&rest[..end], "0"));
    let number = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if number(bits) && number(port) { slash + 1 + end } else { slash }
}

impl fmt::Display for SecretPermission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<String> = self.hosts.iter().map(ToString::to_string).collect();
        write!(f, "{}@{}", self.name, hosts.join(","))
    }
}

impl FromStr for SecretPermission {
    type Err = BadGrant;

    /// Reads `NAME@HOST[,HOST]`.
    fn from_str(text: &str) -> Result<Self, BadGrant> {
        let Some((name, hosts)) = text.split_once('@') else {
            return Err(BadGrant(format!("`{text}` names no host: a secret is written NAME@HOST[,HOST]")));
        };
        let hosts = hosts.split(',').map(str::parse).collect::<Result<_, _>>()?;
        let secret = Self { name: name.to_owned(), hosts };
        check_variable(&secret.name).map_err(BadGrant)?;
        Ok(secret)
    }
}

#[cfg(test)]
mod tests;
