//! Which model a name means: `script/FILE`, `local/FILE.gguf`, the known providers, those of `aok.toml`.
//!
//! Keys come from the environment only, as a snapshot taken when the kernel starts; they are
//! handed to the provider and shown nowhere.

mod survey;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use super::device::expected::Expected;
use super::device::{Standing, policy};
use super::gateway::Gateway;
use super::local::{self, Local, Places};
use super::prices::Prices;
use super::remote::{Key, Remote, Settings};
use super::script::Script;
use super::{Error, Provider};
pub use survey::{Answer, Surveyed};

use crate::config::{DEFAULT_WINDOW, LlmConfig, ProviderKind, Traffic};

/// A provider that needs no configuration.
struct Known {
    name: &'static str,
    kind: ProviderKind,
    base_url: &'static str,
    /// The variable that holds its key; `None` for one that takes none.
    key_env: Option<&'static str>,
    /// The variable that names another address.
    url_env: Option<&'static str>,
    window: u32,
    native_tools: Option<bool>,
}

const KNOWN: [Known; 4] = [
    Known {
        name: "openai",
        kind: ProviderKind::Openai,
        base_url: "https://api.openai.com/v1",
        key_env: Some("OPENAI_API_KEY"),
        url_env: Some("OPENAI_BASE_URL"),
        window: 128_000,
        native_tools: Some(true),
    },
    Known {
        name: "anthropic",
        kind: ProviderKind::Anthropic,
        base_url: "https://api.anthropic.com/v1",
        key_env: Some("ANTHROPIC_API_KEY"),
        url_env: Some("ANTHROPIC_BASE_URL"),
        window: 200_000,
        native_tools: Some(true),
    },
    Known {
        name: "openrouter",
        kind: ProviderKind::Openai,
        base_url: "https://openrouter.ai/api/v1",
        key_env: Some("OPENROUTER_API_KEY"),
        url_env: None,
        window: 128_000,
        native_tools: None,
    },
    Known {
        name: "ollama",
        kind: ProviderKind::Openai,
        base_url: "http://127.0.0.1:11434/v1",
        key_env: None,
        url_env: Some("OLLAMA_HOST"),
        // What Ollama starts a model with unless it is told otherwise.
        window: 4096,
        native_tools: None,
    },
];

/// A model that was found.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// `provider/model`, as it goes into the process's record: it means the same from any directory.
    pub name: String,
    /// Who answers.
    pub provider: Arc<dyn Provider>,
    /// The model part, for [`super::Request::model`].
    pub model: String,
}

/// A script as it was when it was read.
struct CachedScript {
    modified: Option<SystemTime>,
    len: u64,
    script: Arc<Script>,
}

/// What this machine offers, for people: names only, never a variable's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Variables that are set.
    pub variables: Vec<String>,
    /// Providers of the configuration.
    pub configured: Vec<String>,
    /// The llama.cpp server.
    pub server: Option<PathBuf>,
    /// Weights in the models directory.
    pub weights: Vec<String>,
    /// Where weights are looked for.
    pub models_dir: Option<PathBuf>,
}

/// All models that can be named.
pub struct Models {
    config: LlmConfig,
    places: Option<Places>,
    env: BTreeMap<String, String>,
    path: Option<String>,
    prices: Arc<Prices>,
    providers: Mutex<HashMap<String, Arc<dyn Provider>>>,
    scripts: Mutex<HashMap<PathBuf, CachedScript>>,
}

impl fmt::Debug for Models {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Models").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Models {
    fn gateway(&self, name: &str, provider: Arc<dyn Provider>, traffic: Traffic) -> Arc<dyn Provider> {
        // The configuration has no other names.
        let policy = policy::by_name(self.config.policy.name()).unwrap_or_else(|| Box::new(Expected::default()));
        Arc::new(Gateway::with_policy(name, provider, traffic, policy))
    }

    /// Takes the configuration, where local models are, and, through `env`, the environment variables
    /// that matter here.
    #[must_use]
    pub fn new(config: LlmConfig, places: Option<Places>, env: impl Fn(&str) -> Option<String>) -> Self {
        let named = config.providers.values().filter_map(|p| p.key_env.as_deref());
        let known = KNOWN.iter().flat_map(|k| [k.key_env, k.url_env]).flatten();
        let set = |name: &str| env(name).filter(|v| !v.is_empty());
        let env: BTreeMap<String, String> = known
            .chain(["AOK_MODEL"])
            .chain(named)
            .filter_map(|name| set(name).map(|v| (name.to_owned(), v)))
            .collect();
        Self {
            prices: Arc::new(Prices::new(config.prices.clone())),
            path: set("PATH"),
            config,
            places,
            env,
            providers: Mutex::default(),
            scripts: Mutex::default(),
        }
    }

    /// Finds the model that was asked for, else that of `AOK_MODEL`, else the configuration's
    /// default. Connects to nothing. A script is read here, and again only when its file changes.
    ///
    /// # Errors
    /// [`Error::NoModel`] and [`Error::UnknownModel`], a script with a wrong line among them.
    pub fn resolve(&self, model: Option<&str>) -> Result<Resolved, Error> {
        let full = model
            .or_else(|| self.env.get("AOK_MODEL").map(String::as_str))
            .or(self.config.default.as_deref())
            .ok_or_else(|| Error::NoModel { hint: self.hint() })?;
        let unknown = |why: String| Error::UnknownModel { model: full.to_owned(), why };
        let Some((provider, model)) = full.split_once('/').filter(|(p, m)| !p.is_empty() && !m.is_empty()) else {
            return Err(unknown(format!("a model is named provider/model; providers: {}", self.names())));
        };
        match provider {
            "script" => self.script(model),
            "local" if !self.config.providers.contains_key("local") => self.local(model, full),
            _ => {
                let found = self.provider(provider, full)?;
                Ok(Resolved { name: full.to_owned(), provider: found, model: model.to_owned() })
            }
        }
    }

    /// Who may be asked in place of `name`, in order. One that cannot be found is left out with a
    /// warning: it is needed only when another one is out.
    #[must_use]
    pub fn fallbacks(&self, name: &str) -> Vec<Resolved> {
        let others = self.config.fallback.iter().filter(|other| *other != name);
        others
            .filter_map(|other| {
                self.resolve(Some(other))
                    .inspect_err(|e| tracing::warn!("the fallback model `{other}` cannot be used: {e}"))
                    .ok()
            })
            .collect()
    }

    /// All providers that were asked for so far.
    fn all(&self) -> Vec<Arc<dyn Provider>> {
        self.providers.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Stops what runs on this machine for models.
    pub async fn stop(&self) {
        for provider in self.all() {
            provider.stop().await;
        }
    }

    /// Raises what waits of a process's requests, at every provider: see [`Provider::raise`].
    pub fn raise(&self, pid: u64, to: Option<&Standing>) {
        self.all().iter().for_each(|provider| provider.raise(pid, to));
    }

    /// Tells every provider that a process tree ended: see [`Provider::finished`].
    pub fn finished(&self, program: u64) {
        self.all().iter().for_each(|provider| provider.finished(program));
    }

    /// What there is to choose from.
    #[must_use]
    pub fn found(&self) -> Found {
        Found {
            variables: self.env.keys().cloned().collect(),
            configured: self.config.providers.keys().cloned().collect(),
            server: local::find_server(&self.config.local, self.path.as_deref()),
            weights: self.places.as_ref().map(local::weights).unwrap_or_default(),
            models_dir: self.places.as_ref().map(|p| p.models.clone()),
        }
    }

    fn script(&self, file: &str) -> Result<Resolved, Error> {
        let unknown = |why: String| Error::UnknownModel { model: format!("script/{file}"), why };
        let path = std::path::absolute(file).map_err(|e| unknown(format!("no such path can be: {e}")))?;
        let meta = std::fs::metadata(&path).map_err(|e| unknown(format!("{} cannot be read: {e}", path.display())))?;
        let (modified, len) = (meta.modified().ok(), meta.len());
        let mut scripts = self.scripts.lock().unwrap_or_else(PoisonError::into_inner);
        let script = match scripts.get(&path) {
            // A file system without times is read each time.
            Some(c) if c.modified.is_some() && c.modified == modified && c.len == len => Arc::clone(&c.script),
            _ => {
                let script = Arc::new(Script::open(&path)?);
                scripts.insert(path.clone(), CachedScript { modified, len, script: Arc::clone(&script) });
                script
            }
        };
        let model = path.display().to_string();
        Ok(Resolved { name: format!("script/{model}"), provider: script, model })
    }

    fn local(&self, file: &str, full: &str) -> Result<Resolved, Error> {
        let unknown = |why: String| Error::UnknownModel { model: full.to_owned(), why };
        let Some(places) = &self.places else {
            return Err(unknown("this kernel has no data directory for weights".to_owned()));
        };
        let mut providers = self.providers.lock().unwrap_or_else(PoisonError::into_inner);
        let provider = match providers.get(full) {
            Some(known) => Arc::clone(known),
            None => {
                let settings = local::settings(&self.config.local, Arc::clone(&self.prices));
                let found = Local::find(file, places, &self.config.local, self.path.as_deref(), settings);
                let traffic = Traffic { slots: self.config.local.slots, ..Traffic::default() };
                let made = self.gateway("local", Arc::new(found.map_err(unknown)?), traffic);
                providers.insert(full.to_owned(), Arc::clone(&made));
                made
            }
        };
        Ok(Resolved { name: full.to_owned(), provider, model: file.to_owned() })
    }

    fn provider(&self, name: &str, full: &str) -> Result<Arc<dyn Provider>, Error> {
        let mut providers = self.providers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = providers.get(name) {
            return Ok(Arc::clone(known));
        }
        let (settings, traffic) =
            self.settings(name).map_err(|why| Error::UnknownModel { model: full.to_owned(), why })?;
        let made = self.gateway(name, Arc::new(Remote::new(settings)?), traffic);
        providers.insert(name.to_owned(), Arc::clone(&made));
        Ok(made)
    }

    /// The settings of a provider, or what is missing.
    fn settings(&self, name: &str) -> Result<(Settings, Traffic), String> {
        let prices = Arc::clone(&self.prices);
        if let Some(p) = self.config.providers.get(name) {
            let key = p.key_env.as_ref().map(|var| {
                self.env.get(var).ok_or_else(|| {
                    format!("the environment variable {var} that holds its key is not set; export {var}=…")
                })
            });
            let settings = Settings {
                name: name.to_owned(),
                kind: p.kind,
                base_url: p.base_url.clone(),
                key: key.transpose()?.cloned().map(Key::new),
                window: p.window,
                native_tools: p.native_tools,
                prices,
            };
            return Ok((settings, p.traffic));
        }
        let Some(known) = KNOWN.iter().find(|k| k.name == name) else {
            return Err(format!("there is no provider `{name}`; known: {}", self.names()));
        };
        let key = known.key_env.and_then(|var| self.env.get(var));
        let elsewhere = known.url_env.and_then(|var| self.env.get(var));
        if let (Some(var), None, None) = (known.key_env, key, elsewhere) {
            let own = known.url_env.map_or(String::new(), |url| format!(", or {url}=… for a server of your own"));
            return Err(format!("{var} is not set; export {var}=…{own}"));
        }
        let settings = Settings {
            name: name.to_owned(),
            kind: known.kind,
            base_url: elsewhere.map_or_else(|| known.base_url.to_owned(), |url| address(name, url)),
            key: key.cloned().map(Key::new),
            // A server of one's own is mostly a small one, and may have any model.
            window: if elsewhere.is_some() { DEFAULT_WINDOW.min(known.window) } else { known.window },
            native_tools: known.native_tools.filter(|_| elsewhere.is_none() || known.kind == ProviderKind::Anthropic),
            prices,
        };
        Ok((settings, Traffic::default()))
    }

    fn names(&self) -> String {
        let mut names = vec!["script", "local"];
        names.extend(KNOWN.iter().map(|k| k.name));
        let own = self.config.providers.keys().map(String::as_str);
        names.extend(own.filter(|n| *n != "local" && KNOWN.iter().all(|k| k.name != *n)));
        names.join(", ")
    }

    /// What was found on this machine, and commands to copy. Never a variable's value.
    fn hint(&self) -> String {
        let found = self.found();
        let list = |names: &[String]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        let server = found.server.as_ref().map_or("none in PATH".to_owned(), |s| s.display().to_string());
        let weights = match &found.models_dir {
            Some(dir) => format!("{} in {}", list(&found.weights), dir.display()),
            None => "none".to_owned(),
        };
        let [first, second, third] = self.commands(&found);
        format!(
            "found: keys and addresses in the environment: {}; providers in aok.toml: {}; llama-server: {server}; \
             weights: {weights}. Try one of: `{first}`, `{second}`, `{third}`; AOK_MODEL or `default` of [llm] \
             in aok.toml then saves the option",
            list(&found.variables),
            list(&found.configured),
        )
    }

    /// Three commands that would work here, the likeliest first.
    fn commands(&self, found: &Found) -> [String; 3] {
        let run = |model: &str| format!("aok run --model {model} --task …");
        let usable = |name: &&str| self.settings(name).is_ok();
        let mut commands: Vec<String> = Vec::new();
        if let (Some(file), Some(_)) = (found.weights.first(), &found.server) {
            commands.push(run(&format!("local/{file}")));
        }
        let own = found.configured.iter().map(String::as_str);
        let known = KNOWN.iter().filter(|k| k.key_env.is_some()).map(|k| k.name);
        commands.extend(own.chain(known).filter(usable).map(|name| run(&format!("{name}/MODEL"))));
        commands.extend([
            format!("export ANTHROPIC_API_KEY=… && {}", run("anthropic/MODEL")),
            format!("export OPENAI_BASE_URL=http://127.0.0.1:8080/v1 && {}", run("openai/MODEL")),
            format!("ollama pull MODEL && {}", run("ollama/MODEL")),
        ]);
        let mut commands = commands.into_iter();
        std::array::from_fn(|_| commands.next().unwrap_or_default())
    }
}

/// `OLLAMA_HOST` is written as `HOST:PORT`, with or without a scheme, and never with the path.
fn address(name: &str, url: &str) -> String {
    if name != "ollama" {
        return url.to_owned();
    }
    let url = url.trim_end_matches('/');
    let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    if url.ends_with("/v1") { url } else { format!("{url}/v1") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Models of a configuration's `[llm]` and an environment.
    pub(super) fn models(toml: &str, env: &[(&str, &str)]) -> Models {
        let config: LlmConfig = toml::from_str(toml).unwrap();
        let env: HashMap<String, String> = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Models::new(config, None, |name| env.get(name).cloned())
    }

    const LOCAL: &str = "default = \"near/a/b\"\n[providers.near]\nkind = \"openai\"\nbase_url = \"http://127.0.0.1:9/v1\"\nwindow = 4096\n";

    #[test]
    fn the_request_beats_the_environment_beats_the_configuration() {
        let name = |m: &Models, asked: Option<&str>| m.resolve(asked).unwrap().name;
        let m = models(LOCAL, &[("AOK_MODEL", "near/env")]);
        assert_eq!(name(&m, Some("near/asked")), "near/asked");
        assert_eq!(name(&m, None), "near/env");
        let m = models(LOCAL, &[("AOK_MODEL", "")]);
        let found = m.resolve(None).unwrap();
        assert_eq!((found.name.as_str(), found.model.as_str()), ("near/a/b", "a/b"));
        assert_eq!(found.provider.window("a/b"), 4096);
    }

    #[test]
    fn what_is_missing_is_named_and_keys_are_not() {
        let why = |m: &Models, asked: Option<&str>| m.resolve(asked).unwrap_err();
        let m = models("", &[("OPENAI_API_KEY", "sk-secret")]);
        let Error::NoModel { hint } = why(&m, None) else { panic!("another error") };
        assert!(hint.contains("OPENAI_API_KEY") && hint.contains("`aok run --model openai/MODEL --task …`"), "{hint}");
        assert_eq!(hint.matches("aok run --model").count(), 3, "{hint}");
        assert!(!hint.contains("sk-secret") && !format!("{m:?}").contains("sk-secret"));
        let found = m.resolve(Some("openai/gpt-x")).unwrap();
        assert!(!format!("{found:?}").contains("sk-secret"));
        let m = models(LOCAL, &[]);
        assert!(
            why(&m, Some("nope/x"))
                .to_string()
                .contains("known: script, local, openai, anthropic, openrouter, ollama, near")
        );
        assert!(why(&m, Some("noslash")).to_string().contains("provider/model"));
        assert!(why(&m, Some("openai/x")).to_string().contains("OPENAI_API_KEY"));
        let keyed = LOCAL.replace("window = 4096", "key_env = \"MY_KEY\"");
        assert!(why(&models(&keyed, &[]), None).to_string().contains("MY_KEY"));
        assert!(models(&keyed, &[("MY_KEY", "k")]).resolve(None).is_ok());
        let bad = LOCAL.replace("http://127.0.0.1:9/v1", "127.0.0.1");
        assert!(why(&models(&bad, &[]), None).to_string().contains("base URL"));
        assert!(models("", &[("OPENAI_BASE_URL", "http://[::1]:9/v1")]).resolve(Some("openai/x")).is_ok());
        assert!(why(&models("", &[]), Some("anthropic/x")).to_string().contains("ANTHROPIC_API_KEY"));
        assert!(why(&models("", &[]), Some("local/x.gguf")).to_string().contains("no data directory"));
    }

    #[test]
    fn known_providers_take_their_address_from_the_environment() {
        let settings = |env: &[(&str, &str)], name: &str| {
            let (s, _) = models("", env).settings(name).unwrap();
            (s.base_url, s.window, s.native_tools)
        };
        let near = "http://127.0.0.1:9/v1".to_owned();
        assert_eq!(settings(&[("OPENAI_BASE_URL", &near)], "openai"), (near.clone(), 8192, None));
        assert_eq!(settings(&[("ANTHROPIC_BASE_URL", &near)], "anthropic"), (near.clone(), 8192, Some(true)));
        let (url, window, native) = settings(&[("OPENAI_API_KEY", "k")], "openai");
        assert_eq!((url.as_str(), window, native), ("https://api.openai.com/v1", 128_000, Some(true)));
        for host in ["127.0.0.1:9", "http://127.0.0.1:9", "http://127.0.0.1:9/", "http://127.0.0.1:9/v1/"] {
            assert_eq!(settings(&[("OLLAMA_HOST", host)], "ollama").0, near, "{host}");
        }
        assert_eq!(settings(&[], "ollama"), ("http://127.0.0.1:11434/v1".to_owned(), 4096, None));
    }

    #[test]
    fn local_weights_need_a_file_and_a_server_and_both_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places { models: dir.path().join("models"), cache: dir.path().join("cache") };
        std::fs::create_dir(&places.models).unwrap();
        let env = HashMap::from([("PATH", dir.path().display().to_string())]);
        let m = || Models::new(LlmConfig::default(), Some(places.clone()), |name| env.get(name).cloned());
        let why = |model: &str| m().resolve(Some(model)).unwrap_err().to_string();
        assert!(why("local/x.gguf").contains("holds nothing"), "{}", why("local/x.gguf"));
        std::fs::write(places.models.join("x.gguf"), "weights").unwrap();
        assert!(why("local/y.gguf").contains("x.gguf"));
        assert!(why("local/x.gguf").contains("[llm.local] server"), "{}", why("local/x.gguf"));
        let server = dir.path().join("llama-server");
        std::fs::write(&server, "#!/bin/sh\n").unwrap();
        assert!(m().found().server.is_none(), "it may not be run");
        std::fs::set_permissions(&server, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        assert_eq!(m().found().server, Some(server));
        assert!(m().resolve(Some("local/x.gguf")).is_ok());
        let Error::NoModel { hint } = m().resolve(None).unwrap_err() else { panic!("another error") };
        assert!(hint.contains("`aok run --model local/x.gguf --task …`"), "{hint}");
    }

    #[test]
    fn fallbacks_are_those_that_can_be_used() {
        let m = models("fallback = [\"ollama/a\", \"nope/b\", \"ollama/c\"]\n", &[]);
        let names: Vec<String> = m.fallbacks("ollama/c").into_iter().map(|r| r.name).collect();
        assert_eq!(names, ["ollama/a"]);
    }

    #[test]
    fn a_script_is_named_by_its_absolute_path_and_read_again_when_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.jsonl");
        std::fs::write(&path, "{\"text\":\"a\"}\n").unwrap();
        let m = models("", &[]);
        let asked = format!("script/{}", path.display());
        let first = m.resolve(Some(&asked)).unwrap();
        assert_eq!(first.name, asked);
        assert_eq!(first.model, path.display().to_string());
        std::fs::write(&path, "{\"text\":\"a\"}\n{\"txt\":1}\n").unwrap();
        let why = m.resolve(Some(&asked)).unwrap_err().to_string();
        assert!(why.contains("line 2") && why.contains("s.jsonl"), "{why}");
        assert!(m.resolve(Some("script/no-such-file.jsonl")).unwrap_err().to_string().contains("no-such-file.jsonl"));
    }
}
