//! `aok.toml` (CONTRACT §8): typed sections, unknown keys refused, each part handed its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::capability::{Permissions, Side};
use crate::quota::{Limits, ResourceQuota};

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
    /// Groups of processes by name.
    pub groups: BTreeMap<String, GroupConfig>,
    /// What plugins are granted, beside what `grants.toml` has.
    pub grants: BTreeMap<String, Permissions>,
}

/// `[groups.NAME]`: its share, and limits for all of its processes together.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GroupConfig {
    /// Its share against other groups', 1 to 10 000. As `cpu.weight` of Linux' control groups.
    pub weight: u32,
    /// Fuel.
    pub fuel: u64,
    /// Tokens.
    pub tokens: u64,
    /// US dollars.
    pub usd: f64,
    /// Tool calls.
    pub tool_calls: u64,
    /// Bytes of agents' memory at once.
    pub memory: u64,
    /// Living processes that others of the group spawned, at once.
    pub children: u64,
    /// Bytes written to the store.
    pub store_bytes: u64,
}

impl Default for GroupConfig {
    fn default() -> Self {
        let all = ResourceQuota::GROUP;
        Self {
            weight: 100,
            fuel: all.fuel,
            tokens: all.tokens,
            usd: all.micro_usd as f64 / 1e6,
            tool_calls: all.tool_calls,
            memory: all.memory,
            children: all.children,
            store_bytes: all.store_bytes,
        }
    }
}

impl GroupConfig {
    /// Its limits.
    #[must_use]
    pub fn quota(&self) -> ResourceQuota {
        ResourceQuota {
            fuel: self.fuel,
            tokens: self.tokens,
            // Checked when the file was read: a positive number.
            micro_usd: (self.usd * 1e6) as u64,
            tool_calls: self.tool_calls,
            memory: self.memory,
            children: self.children,
            store_bytes: self.store_bytes,
            ..ResourceQuota::GROUP
        }
    }

    fn check(&self) -> Result<(), String> {
        if !(1..=10_000).contains(&self.weight) {
            return Err(format!("`weight` is 1 to 10000, not {}", self.weight));
        }
        if let Some(name) = self.quota().zero() {
            return Err(format!("a limit of 0 {name} allows nothing: give a positive number"));
        }
        Ok(())
    }
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
    /// Whether tools may import WASI 0.3, which wasmtime has as an experiment, without its promise of fixes.
    pub wasi03: bool,
}

/// `[llm]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LlmConfig {
    /// `provider/model` when neither `--model` nor `AOK_MODEL` names one.
    pub default: Option<String>,
    /// `provider/model`s to ask, in this order, when the one that was named is out.
    pub fallback: Vec<String>,
    /// The order of waiting model calls.
    pub policy: CallOrder,
    /// Providers by name.
    pub providers: BTreeMap<String, ProviderConfig>,
    /// Prices by `provider/model`; they come before those that the kernel knows.
    pub prices: BTreeMap<String, Price>,
    /// The llama.cpp server of `local/FILE.gguf`.
    pub local: LocalConfig,
}

/// In which order model calls get their turn. The names are those of the device's policies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CallOrder {
    /// The least work expected first.
    #[default]
    Expected,
    /// First come, first served.
    Fifo,
    /// Process trees in turn.
    RoundRobin,
    /// The oldest process tree first.
    ProgramOrder,
    /// The tree that was served least first.
    AttainedService,
}

impl CallOrder {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Expected, Self::Fifo, Self::RoundRobin, Self::ProgramOrder, Self::AttainedService];

    /// The policy's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Expected => "expected",
            Self::Fifo => "fifo",
            Self::RoundRobin => "round-robin",
            Self::ProgramOrder => "program-order",
            Self::AttainedService => "attained-service",
        }
    }
}

/// `[llm.providers.NAME]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "ProviderTable")]
pub struct ProviderConfig {
    /// The wire that it speaks.
    pub kind: ProviderKind,
    /// For example `http://127.0.0.1:8080/v1`.
    pub base_url: String,
    /// Environment variable that holds the key; none is sent when absent.
    pub key_env: Option<String>,
    /// The window in tokens, where the default of 8192 is not right.
    pub window: u32,
    /// Whether its models call tools by themselves. Each model is asked once when absent.
    pub native_tools: Option<bool>,
    /// How it is asked: keys of the same table.
    pub traffic: Traffic,
}

/// The table as it is written: serde cannot both flatten and refuse unknown keys.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProviderTable {
    kind: ProviderKind,
    base_url: String,
    key_env: Option<String>,
    window: Option<u32>,
    native_tools: Option<bool>,
    slots: Option<usize>,
    requests_per_minute: Option<u32>,
    tokens_per_minute: Option<u32>,
    retries: Option<usize>,
    timeout_s: Option<u64>,
}

impl From<ProviderTable> for ProviderConfig {
    fn from(t: ProviderTable) -> Self {
        let usual = Traffic::default();
        Self {
            kind: t.kind,
            base_url: t.base_url,
            key_env: t.key_env,
            window: t.window.unwrap_or(DEFAULT_WINDOW),
            native_tools: t.native_tools,
            traffic: Traffic {
                slots: t.slots.unwrap_or(usual.slots),
                requests_per_minute: t.requests_per_minute,
                tokens_per_minute: t.tokens_per_minute,
                retries: t.retries.unwrap_or(usual.retries),
                timeout_s: t.timeout_s.unwrap_or(usual.timeout_s),
            },
        }
    }
}

/// How a provider is asked: what the gateway keeps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// Requests under way at once.
    pub slots: usize,
    /// Requests started per minute; no limit when absent.
    pub requests_per_minute: Option<u32>,
    /// Prompt tokens per minute; no limit when absent.
    pub tokens_per_minute: Option<u32>,
    /// How often a request that failed for the moment is made again.
    pub retries: usize,
    /// Seconds that one call may take, its waits and retries included.
    pub timeout_s: u64,
}

impl Default for Traffic {
    fn default() -> Self {
        Self { slots: 8, requests_per_minute: None, tokens_per_minute: None, retries: 4, timeout_s: 1800 }
    }
}

/// Price of a model in USD per million tokens.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// Prompt tokens.
    pub input: f64,
    /// Prompt tokens that the provider's cache served; as `input` when absent.
    pub cached: Option<f64>,
    /// Prompt tokens that went into the provider's cache; as `input` when absent.
    pub cache_write: Option<f64>,
    /// Generated tokens.
    pub output: f64,
}

/// `[llm.local]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LocalConfig {
    /// The `llama-server` to start; the one in `PATH` when absent.
    pub server: Option<PathBuf>,
    /// The window that it is started with, in tokens.
    pub window: u32,
    /// Requests that it works on at once; each has a window of its own.
    pub slots: usize,
    /// As for a provider.
    pub native_tools: Option<bool>,
}

impl Default for LocalConfig {
    fn default() -> Self {
        Self { server: None, window: DEFAULT_WINDOW, slots: 1, native_tools: None }
    }
}

/// Tokens of a window that nobody has stated: what most local servers start with.
pub const DEFAULT_WINDOW: u32 = 8192;

/// The wire of a provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProviderKind {
    /// OpenAI's chat completions.
    Openai,
    /// Anthropic's messages.
    Anthropic,
}

/// `[scheduler]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SchedulerConfig {
    /// Worker threads; the machine's cores when absent.
    pub workers: Option<usize>,
    /// Microseconds in which each runnable process should get a turn; 10 000 when absent. Slices follow from it.
    pub target_latency: Option<u64>,
    /// Seconds after which a process that only waits leaves memory; 300 when absent.
    pub swap_after_s: Option<u64>,
    /// The order of runnable processes.
    pub policy: RunOrder,
}

/// In which order runnable processes get their turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunOrder {
    /// Weighted fair shares: groups first, then trees, then processes.
    #[default]
    Fair,
    /// In turn, whatever they weigh.
    RoundRobin,
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
        self.llm.check()?;
        for (name, group) in &self.groups {
            group.check().map_err(|why| format!("in `[groups.{name}]`, {why}"))?;
        }
        for (name, permissions) in &self.grants {
            permissions.check(Side::Grant).map_err(|why| format!("in `[grants.{name}]`, {why}"))?;
        }
        if self.scheduler.workers == Some(0) {
            return Err("`scheduler.workers` is 0; give a positive number or leave it out".to_owned());
        }
        if self.scheduler.target_latency.is_some_and(|us| !(1_000..=1_000_000).contains(&us)) {
            return Err("`scheduler.target_latency` is 1000 to 1000000 microseconds".to_owned());
        }
        Ok(())
    }
}

impl LlmConfig {
    fn check(&self) -> Result<(), String> {
        let zero = |key: String| Err(format!("`{key}` is 0; give a positive number or leave it out"));
        for (name, provider) in &self.providers {
            let t = &provider.traffic;
            let numbers = [
                ("window", u64::from(provider.window)),
                ("slots", t.slots as u64),
                ("requests_per_minute", t.requests_per_minute.map_or(1, u64::from)),
                ("tokens_per_minute", t.tokens_per_minute.map_or(1, u64::from)),
                ("timeout_s", t.timeout_s),
            ];
            if let Some((key, _)) = numbers.into_iter().find(|(_, value)| *value == 0) {
                return zero(format!("llm.providers.{name}.{key}"));
            }
        }
        for (key, value) in [("window", u64::from(self.local.window)), ("slots", self.local.slots as u64)] {
            if value == 0 {
                return zero(format!("llm.local.{key}"));
            }
        }
        for (model, p) in &self.prices {
            let parts = [Some(p.input), p.cached, p.cache_write, Some(p.output)];
            if parts.into_iter().flatten().any(|usd| !(0.0..=1e6).contains(&usd)) {
                return Err(format!("`llm.prices.{model}` must be USD per million tokens, from 0 to 1000000"));
            }
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
        assert_eq!((c.llm.providers["x"].window, c.llm.providers["x"].traffic), (8192, Traffic::default()));
        let c = check(
            "[llm.providers.x]\nkind = \"anthropic\"\nbase_url = \"http://h/v1\"\nslots = 2\nnative_tools = false\n\
             [llm.prices.\"x/m\"]\ninput = 3\noutput = 15.5\n",
        )
        .unwrap();
        assert_eq!((c.llm.providers["x"].traffic.slots, c.llm.providers["x"].native_tools), (2, Some(false)));
        assert_eq!(c.llm.prices["x/m"].output, 15.5);
    }

    #[test]
    fn unknown_keys_and_zero_limits_are_named() {
        assert!(check("[limits]\nfule = 5\n").unwrap_err().contains("fule"));
        assert!(check("[limits]\nwall_ms = 0\n").unwrap_err().contains("limits.wall_ms"));
        assert!(check("[scheduler]\nworkers = 0\n").unwrap_err().contains("scheduler.workers"));
        assert!(check("[groups.g]\nweight = 0\n").unwrap_err().contains("1 to 10000"));
        assert!(check("[groups.g]\ntool_calls = 0\n").unwrap_err().contains("0 tool calls"));
        assert!(check("[groups.g]\nusd = -1.0\n").unwrap_err().contains("0 usd"));
        assert!(check("[scheduler]\ntarget_latency = 5\n").unwrap_err().contains("target_latency"));
        assert!(check("[scheduler]\npolicy = \"best\"\n").unwrap_err().contains("round-robin"));
        assert!(check("[grants.p]\nraed = []\n").unwrap_err().contains("raed"));
        assert!(check("[grants.p]\nread = [\"*\"]\n").unwrap_err().contains("every directory"));
        assert!(check("[grants.p]\ntrust = \"x\"\n").unwrap_err().contains("trust"));
        assert!(check("nonsense").unwrap_err().contains("aok.toml"));
        let provider = "[llm.providers.x]\nkind = \"openai\"\nbase_url = \"http://h/v1\"\n";
        assert!(check(&format!("{provider}slots = 0\n")).unwrap_err().contains("llm.providers.x.slots"));
        assert!(check(&format!("{provider}slot = 3\n")).unwrap_err().contains("slot"));
        assert!(check("[llm.prices.\"a/b\"]\ninput = -1\noutput = 1\n").unwrap_err().contains("llm.prices.a/b"));
    }

    #[test]
    fn a_missing_file_is_an_error_only_when_it_was_named() {
        let path = Path::new("/nowhere/aok.toml");
        assert!(Config::load(path, false).is_ok());
        assert!(Config::load(path, true).unwrap_err().to_string().contains("/nowhere/aok.toml"));
    }
}
