//! Which model a name means: `script/FILE`, `openai/MODEL` and the providers of `aok.toml`.
//!
//! Keys come from the environment only, as a snapshot taken when the kernel starts; they are
//! handed to the provider and shown nowhere.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use super::openai::OpenAi;
use super::script::Script;
use super::{Error, Provider};
use crate::config::{LlmConfig, ProviderConfig, ProviderKind};

const OPENAI_URL: &str = "https://api.openai.com/v1";
const OPENAI_WINDOW: u32 = 128_000;

/// The window of a server that `OPENAI_BASE_URL` names: what most local ones start with.
const UNKNOWN_WINDOW: u32 = 8192;

/// Variables that the hint of `no_model` looks for, beside those that the configuration names.
const KNOWN: [&str; 4] = ["AOK_MODEL", "OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY"];

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

/// All models that can be named.
pub struct Models {
    config: LlmConfig,
    env: BTreeMap<String, String>,
    providers: Mutex<HashMap<String, Arc<OpenAi>>>,
    scripts: Mutex<HashMap<PathBuf, CachedScript>>,
}

impl fmt::Debug for Models {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Models").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Models {
    /// Takes the configuration and, through `env`, the environment variables that matter here.
    #[must_use]
    pub fn new(config: LlmConfig, env: impl Fn(&str) -> Option<String>) -> Self {
        let named = config.providers.values().filter_map(|p| p.key_env.as_deref());
        let env = KNOWN
            .into_iter()
            .chain(named)
            .filter_map(|name| env(name).filter(|v| !v.is_empty()).map(|v| (name.to_owned(), v)))
            .collect();
        Self { config, env, providers: Mutex::default(), scripts: Mutex::default() }
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
        if provider == "script" {
            return self.script(model);
        }
        let found = self.provider(provider, full)?;
        Ok(Resolved { name: full.to_owned(), provider: found, model: model.to_owned() })
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

    fn provider(&self, name: &str, full: &str) -> Result<Arc<dyn Provider>, Error> {
        let mut providers = self.providers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = providers.get(name) {
            return Ok(Arc::clone(known) as Arc<dyn Provider>);
        }
        let unknown = |why: String| Error::UnknownModel { model: full.to_owned(), why };
        let made = match self.config.providers.get(name) {
            Some(ProviderConfig { kind: ProviderKind::Openai, base_url, key_env, window }) => {
                let key = match key_env {
                    Some(var) => Some(self.env.get(var).cloned().ok_or_else(|| {
                        unknown(format!("the environment variable {var} that holds its key is not set; export {var}=…"))
                    })?),
                    None => None,
                };
                OpenAi::new(name, base_url, key, *window)?
            }
            None if name == "openai" => {
                let key = self.env.get("OPENAI_API_KEY").cloned();
                match self.env.get("OPENAI_BASE_URL") {
                    Some(url) => OpenAi::new(name, url, key, UNKNOWN_WINDOW)?,
                    None if key.is_some() => OpenAi::new(name, OPENAI_URL, key, OPENAI_WINDOW)?,
                    None => {
                        return Err(unknown(
                            "OPENAI_API_KEY is not set; export OPENAI_API_KEY=…, or OPENAI_BASE_URL=… for a server of your own"
                                .to_owned(),
                        ));
                    }
                }
            }
            None => {
                return Err(unknown(format!("there is no provider `{name}`; known: {}", self.names())));
            }
        };
        let made = Arc::new(made);
        providers.insert(name.to_owned(), Arc::clone(&made));
        Ok(made)
    }

    fn names(&self) -> String {
        let mut names = vec!["script", "openai"];
        names.extend(self.config.providers.keys().map(String::as_str).filter(|n| *n != "openai"));
        names.join(", ")
    }

    /// What was found on this machine, and commands to copy. Never a variable's value.
    fn hint(&self) -> String {
        let found: Vec<&str> = self.env.keys().map(String::as_str).collect();
        let found = if found.is_empty() { "no key".to_owned() } else { found.join(", ") };
        let configured: Vec<&str> = self.config.providers.keys().map(String::as_str).collect();
        let configured = if configured.is_empty() { "none".to_owned() } else { configured.join(", ") };
        let example = match self.config.providers.keys().next() {
            Some(name) => format!("{name}/MODEL"),
            None => "openai/MODEL".to_owned(),
        };
        format!(
            "found in the environment: {found}; providers in aok.toml: {configured}. Name one: \
             `aok run --model {example} --task …`, `export AOK_MODEL={example}`, or for a server of your own \
             `OPENAI_BASE_URL=http://127.0.0.1:8080/v1 aok run --model openai/MODEL --task …`"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn models(toml: &str, env: &[(&str, &str)]) -> Models {
        let config: LlmConfig = toml::from_str(toml).unwrap();
        let env: HashMap<String, String> = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Models::new(config, |name| env.get(name).cloned())
    }

    const LOCAL: &str = "default = \"local/a/b\"\n[providers.local]\nkind = \"openai\"\nbase_url = \"http://127.0.0.1:9/v1\"\nwindow = 4096\n";

    #[test]
    fn the_request_beats_the_environment_beats_the_configuration() {
        let name = |m: &Models, asked: Option<&str>| m.resolve(asked).unwrap().name;
        let m = models(LOCAL, &[("AOK_MODEL", "local/env")]);
        assert_eq!(name(&m, Some("local/asked")), "local/asked");
        assert_eq!(name(&m, None), "local/env");
        let m = models(LOCAL, &[("AOK_MODEL", "")]);
        let found = m.resolve(None).unwrap();
        assert_eq!((found.name.as_str(), found.model.as_str()), ("local/a/b", "a/b"));
        assert_eq!(found.provider.window("a/b"), 4096);
    }

    #[test]
    fn what_is_missing_is_named_and_keys_are_not() {
        let why = |m: &Models, asked: Option<&str>| m.resolve(asked).unwrap_err();
        let m = models("", &[("OPENAI_API_KEY", "sk-secret")]);
        let Error::NoModel { hint } = why(&m, None) else { panic!("another error") };
        assert!(hint.contains("OPENAI_API_KEY") && hint.contains("aok run --model openai/MODEL"), "{hint}");
        assert!(!hint.contains("sk-secret") && !format!("{m:?}").contains("sk-secret"));
        let found = m.resolve(Some("openai/gpt-x")).unwrap();
        assert!(!format!("{found:?}").contains("sk-secret"));
        let m = models(LOCAL, &[]);
        assert!(why(&m, Some("nope/x")).to_string().contains("known: script, openai, local"));
        assert!(why(&m, Some("noslash")).to_string().contains("provider/model"));
        assert!(why(&m, Some("openai/x")).to_string().contains("OPENAI_API_KEY"));
        let keyed = LOCAL.replace("window = 4096", "key_env = \"MY_KEY\"");
        assert!(why(&models(&keyed, &[]), None).to_string().contains("MY_KEY"));
        assert!(models(&keyed, &[("MY_KEY", "k")]).resolve(None).is_ok());
        let bad = LOCAL.replace("http://127.0.0.1:9/v1", "127.0.0.1");
        assert!(why(&models(&bad, &[]), None).to_string().contains("base URL"));
        assert!(models("", &[("OPENAI_BASE_URL", "http://[::1]:9/v1")]).resolve(Some("openai/x")).is_ok());
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
