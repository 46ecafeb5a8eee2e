//! Secrets and environment variables of plugins: where their values come from, and what a guest sees in
//! the place of a secret.

use std::ffi::OsString;
use std::fmt;

use rand::RngExt as _;
use sha2::{Digest as _, Sha256};

use crate::abi::{Errno, Error};
use crate::capability::{Hidden, HostGrant, Secret};

/// What a placeholder begins with, so that a person knows it for what it is.
const PREFIX: &str = "aoksecret";

/// The shortest secret: what comes back is searched for it, and a shorter text stands anywhere.
const MIN_SECRET: usize = 8;

/// The longest secret.
const MAX_SECRET: usize = 16 * 1024;

type Environment = fn(&str) -> Option<OsString>;

/// Where secrets are read, at each call that has one. Nothing of them is kept.
pub struct Secrets {
    environment: Environment,
    /// Makes this kernel's placeholders other than any other's.
    key: [u8; 32],
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets").finish_non_exhaustive()
    }
}

impl Default for Secrets {
    fn default() -> Self {
        Self::new(|_| None)
    }
}

impl Secrets {
    /// Secrets of this environment.
    #[must_use]
    pub fn new(environment: Environment) -> Self {
        Self { environment, key: rand::rng().random() }
    }

    /// The value of a variable, where it is text.
    pub(super) fn variable(&self, name: &str) -> Option<String> {
        (self.environment)(name)?.into_string().ok()
    }

    /// The secret `name` of a plugin, for hosts of both sides.
    ///
    /// # Errors
    /// `denied`: there is no such variable, or its value is no secret. The value is never told.
    pub(super) fn get(
        &self,
        plugin: &str,
        name: &str,
        asked: &[HostGrant],
        granted: &[HostGrant],
    ) -> Result<Secret, Error> {
        let denied = |why: String| {
            Error::new(
                Errno::Denied,
                format!(
                    "the secret `{name}` of the plugin `{plugin}` cannot be used: {why}; set the variable where aok is \
                     started, or take it back with `aok plugin revoke {plugin} secret={name}`"
                ),
            )
        };
        let Some(value) = (self.environment)(name) else {
            return Err(denied(format!("the environment of the kernel has no variable {name}")));
        };
        let Ok(value) = value.into_string() else { return Err(denied("its value is not UTF-8".to_owned())) };
        if !(MIN_SECRET..=MAX_SECRET).contains(&value.len()) {
            return Err(denied(format!("its value must have {MIN_SECRET} to {MAX_SECRET} bytes")));
        }
        if value.trim() != value {
            return Err(denied("its value begins or ends with white space".to_owned()));
        }
        Ok(Secret {
            name: name.to_owned(),
            placeholder: self.placeholder(plugin, name),
            value: Hidden::new(value),
            asked: asked.to_vec(),
            granted: granted.to_vec(),
        })
    }

    /// The same for all calls of a plugin in this kernel, since its instance may live on; another for each
    /// plugin and secret, and after a restart.
    fn placeholder(&self, plugin: &str, name: &str) -> String {
        let mut hash = Sha256::new();
        hash.update(self.key);
        // No name has a zero byte.
        hash.update([plugin.as_bytes(), name.as_bytes()].join(&0));
        let digest: String = hash.finalize()[..20].iter().map(|b| format!("{b:02x}")).collect();
        format!("{PREFIX}{digest}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets() -> Secrets {
        Secrets::new(|name| match name {
            "KEY" => Some("correct horse".into()),
            "SHORT" => Some("short".into()),
            "BLANK" => Some("a key of a file\n".into()),
            _ => None,
        })
    }

    #[test]
    fn a_placeholder_is_of_one_plugin_secret_and_kernel() {
        let (kernel, other) = (secrets(), secrets());
        let of = |s: &Secrets, plugin: &str| s.get(plugin, "KEY", &[], &[]).unwrap().placeholder;
        assert_eq!(of(&kernel, "p"), of(&kernel, "p"));
        assert_ne!(of(&kernel, "p"), of(&kernel, "q"));
        assert_ne!(of(&kernel, "p"), of(&other, "p"));
        assert!(of(&kernel, "p").bytes().all(|b| b.is_ascii_alphanumeric()));
        assert!(!format!("{kernel:?}{:?}", kernel.get("p", "KEY", &[], &[])).contains("horse"));
    }

    #[test]
    fn what_is_no_secret_is_refused_without_being_told() {
        for (name, word) in [("NONE", "no variable NONE"), ("SHORT", "8 to"), ("BLANK", "white space")] {
            let error = secrets().get("p", name, &[], &[]).unwrap_err();
            assert_eq!(error.code, Errno::Denied);
            assert!(error.message.contains(word) && error.message.contains("aok plugin revoke p"), "{error:?}");
            assert!(!error.message.contains("short;") && !error.message.contains("a key of a file"), "{error:?}");
        }
    }
}
