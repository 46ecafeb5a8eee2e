//! `aok.toml` (CONTRACT §8): typed sections, unknown keys refused, each part handed its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::quota::Limits;

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file was named and cannot be read.
    #[error("the configuration {path} cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// It is not what this aok understands.
    #[error("the configuration {path} is wrong: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, key and what is expected there.
        message: String,
    },
}

/// The whole file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the kernel keeps everything.
    pub storage: StorageConfig,
    /// Where plugins are looked for beside the data directory's own `plugins/`.
    pub plugins: PluginsConfig,
    /// Models.
    pub llm: LlmConfig,
    /// Limits of one tool call.
    pub limits: Limits,
    /// The run queue.
    pub scheduler: SchedulerConfig,
}

/// `[storage]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StorageConfig {
    /// `memory:` or `sqlite:PATH`; `aok.db` of the data directory when absent.
    pub url: Option<String>,
    /// What a commit survives.
    pub durability: Durability,
}

/// How much a commit survives; chosen once per store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// A crash or kill of the process loses nothing that was committed.
    #[default]
    Process,
    /// Neither does a power cut.
    Power,
}

/// `[plugins]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PluginsConfig {
    /// More directories.
    pub dirs: Vec<PathBuf>,
}

/// `[llm]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LlmConfig {
    /// `provider/model` when neither `--model` nor `AOK_MODEL` names one.
    pub default: Option<String>,
    /// Providers by name.
    pub providers: BTreeMap<String, ProviderConfig>,
}

/// `[llm.providers.NAME]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProviderConfig {
    /// The wire that it speaks.
    pub kind: ProviderKind,
    /// For example `http://127.0.0.1:8080/v1`.
    pub base_url: String,
    /// Environment variable that holds the key; none is sent when absent.
    pub key_env: Option<String>,
    /// The window in tokens, where the default of 8192 is not right.
    #[serde(default = "default_window")]
    pub window: u32,
}

fn default_window() -> u32 {
    8192
}

/// The wire of a provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProviderKind {
    /// OpenAI's chat completions.
    Openai,
}

/// `[scheduler]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SchedulerConfig {
    /// Worker threads; the machine's cores when absent.
    pub workers: Option<usize>,
}

impl Config {
    /// Reads `path`; a missing file is the default configuration unless `required`.
    ///
    /// # Errors
    /// [`Error::Read`] and [`Error::Parse`].
    pub fn load(path: &Path, required: bool) -> Result<Self, Error> {
        use std::io::ErrorKind::{NotADirectory, NotFound};
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            // A data directory that is none is reported by whoever uses it, and not as a wrong configuration.
            Err(e) if !required && matches!(e.kind(), NotFound | NotADirectory) => return Ok(Self::default()),
            Err(source) => return Err(Error::Read { path: path.to_owned(), source }),
        };
        let config: Self =
            toml::from_str(&text).map_err(|e| Error::Parse { path: path.to_owned(), message: e.to_string() })?;
        config.check().map_err(|message| Error::Parse { path: path.to_owned(), message })?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        let l = &self.limits;
        for (name, value) in [
            ("fuel", l.fuel),
            ("memory", l.memory),
            ("tables", l.tables),
            ("instances", u64::from(l.instances)),
            ("wall_ms", l.wall_ms),
            ("output", l.output),
            ("log", l.log),
            ("host_calls", l.host_calls),
            ("host_call_bytes", l.host_call_bytes),
        ] {
            if value == 0 {
                return Err(format!("`limits.{name}` is 0; give a positive number"));
            }
        }
        if self.scheduler.workers == Some(0) {
            return Err("`scheduler.workers` is 0; give a positive number or leave it out".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(toml: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("aok.toml");
        std::fs::write(&path, toml).unwrap();
        Config::load(&path, true).map_err(|e| e.to_string())
    }

    #[test]
    fn sections_are_read_and_the_rest_is_default() {
        let c =
            check("[limits]\nfuel = 5\n[llm.providers.x]\nkind = \"openai\"\nbase_url = \"http://127.0.0.1:1/v1\"\n")
                .unwrap();
        assert_eq!((c.limits.fuel, c.limits.memory), (5, Limits::TOOL.memory));
        assert_eq!(c.llm.providers["x"].window, 8192);
    }

    #[test]
    fn unknown_keys_and_zero_limits_are_named() {
        assert!(check("[limits]\nfule = 5\n").unwrap_err().contains("fule"));
        assert!(check("[limits]\nwall_ms = 0\n").unwrap_err().contains("limits.wall_ms"));
        assert!(check("[scheduler]\nworkers = 0\n").unwrap_err().contains("scheduler.workers"));
        assert!(check("nonsense").unwrap_err().contains("aok.toml"));
    }

    #[test]
    fn a_missing_file_is_an_error_only_when_it_was_named() {
        let path = Path::new("/nowhere/aok.toml");
        assert!(Config::load(path, false).is_ok());
        assert!(Config::load(path, true).unwrap_err().to_string().contains("/nowhere/aok.toml"));
    }
}
