//! Which image serves which name. Images are made when they are first needed; what they are (role,
//! tools) is remembered by digest, so that listing costs no compilation.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;

use crate::abi::{Errno, Error, ToolSpec};
use crate::capability::Needs;
use crate::contract::Fault;
use crate::engine::{self, AgentImage, Engine, Image, ToolImage};
use crate::quota::Limits;
use crate::tool::{Entry, Invocation, Invoke, Report, SessionEnd, Source, ToolRegistry, full_name};

/// The engine, opened when the first image is needed, and where its caches are.
#[derive(Debug)]
pub struct Loader {
    cache: Option<PathBuf>,
    engine: OnceCell<Engine>,
}

impl Loader {
    /// A loader that keeps compiled code in `cache`.
    #[must_use]
    pub fn new(cache: Option<PathBuf>) -> Self {
        Self { cache, engine: OnceCell::new() }
    }

    /// The engine.
    ///
    /// # Errors
    /// See [`Engine::open`].
    pub async fn engine(&self) -> Result<&Engine, String> {
        let open = || {
            let cache = self.cache.clone();
            async move {
                tokio::task::spawn_blocking(move || Engine::open(cache.as_deref())).await.map_err(|e| e.to_string())?
            }
        };
        self.engine.get_or_try_init(open).await
    }

    async fn load(&self, digest: &str, bytes: &[u8], limits: Limits) -> Result<Image, Fault> {
        let engine = self.engine().await.map_err(|message| Fault {
            code: "engine",
            message: format!("the sandbox cannot be started: {message}"),
            hint: "check the cache directory and the address-space limit (`ulimit -v`), then start aok again".into(),
        })?;
        engine.load(digest, bytes, limits).await
    }
}

/// A plugin that was found, before anybody looked into it.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Its name.
    pub name: String,
    /// Its file; `None` for bundled ones.
    pub file: Option<PathBuf>,
    /// Where from.
    pub source: Source,
    /// Its component, or why there is none.
    pub component: Result<Component, Fault>,
}

/// A component's bytes.
#[derive(Clone, Debug)]
pub enum Component {
    /// Inside the binary, with its SHA-256 in hex.
    Bundled {
        /// The component.
        bytes: &'static [u8],
        /// Its digest.
        digest: &'static str,
    },
    /// Read from a file.
    File(Arc<[u8]>),
}

impl Component {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Bundled { bytes, .. } => bytes,
            Self::File(bytes) => bytes,
        }
    }

    fn digest(&self) -> String {
        match self {
            Self::Bundled { digest, .. } => (*digest).to_owned(),
            Self::File(bytes) => engine::digest(bytes),
        }
    }
}

/// What a component is, as the cache remembers it.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Known {
    Agent,
    Tools { specs: Vec<ToolSpec>, needs: Needs },
}

/// A plugin, loaded or refused.
#[derive(Clone, Debug)]
pub struct Record {
    /// Name.
    pub name: String,
    /// File; `None` for bundled ones.
    pub file: Option<PathBuf>,
    /// Where from.
    pub source: Source,
    /// SHA-256, hex.
    pub digest: Option<String>,
    /// Full names of its tools.
    pub tools: Vec<String>,
    /// Whether it is an agent.
    pub is_agent: bool,
    /// Calls and failed calls since the kernel started.
    pub counts: Arc<Counts>,
    /// Why it is refused.
    pub fault: Option<Fault>,
}

/// Calls of a plugin.
#[derive(Debug, Default)]
pub struct Counts {
    /// All calls.
    pub calls: AtomicU64,
    /// Those that failed.
    pub errors: AtomicU64,
}

/// An agent that can be spawned.
#[derive(Clone, Debug)]
pub struct Agent {
    /// Name, also its plugin's.
    pub name: String,
    /// SHA-256, hex.
    pub digest: String,
    /// Where from.
    pub source: Source,
    lazy: Arc<Lazy<AgentImage>>,
}

impl Agent {
    /// Its code, ready to run.
    ///
    /// # Errors
    /// Why it cannot be loaded.
    pub async fn image(&self) -> Result<Arc<AgentImage>, Fault> {
        self.lazy
            .get(|image| match image {
                Image::Agent(agent) => Some(agent),
                Image::Tools(..) => None,
            })
            .await
    }
}

/// An image that is made when it is first needed.
#[derive(Debug)]
struct Lazy<T> {
    loader: Arc<Loader>,
    digest: String,
    component: Component,
    limits: Limits,
    image: OnceCell<Arc<T>>,
}

impl<T> Lazy<T> {
    async fn get(&self, pick: fn(Image) -> Option<Arc<T>>) -> Result<Arc<T>, Fault> {
        let make = || async {
            let image = self.loader.load(&self.digest, self.component.bytes(), self.limits).await?;
            pick(image).ok_or_else(|| Fault {
                code: "role_changed",
                message: "the cache remembers another role of this component".into(),
                hint: "remove the `cache` directory".into(),
            })
        };
        self.image.get_or_try_init(make).await.cloned()
    }
}

/// A tool plugin as the tool table calls it.
#[derive(Debug)]
struct LazyTools {
    lazy: Lazy<ToolImage>,
    counts: Arc<Counts>,
}

#[async_trait]
impl Invoke for LazyTools {
    async fn invoke(&self, call: Invocation) -> Report {
        self.counts.calls.fetch_add(1, Ordering::Relaxed);
        let image = self.lazy.get(|image| match image {
            Image::Tools(tools, ..) => Some(tools),
            Image::Agent(_) => None,
        });
        let report = match image.await {
            Ok(image) => image.invoke(call).await,
            Err(fault) => Report {
                result: Err(Error::new(
                    Errno::Io,
                    format!("the tool `{}` cannot be loaded: {}", call.tool, fault.message),
                )),
                fuel: 0,
                memory_bytes: 0,
                session: SessionEnd::default(),
            },
        };
        if report.result.is_err() {
            self.counts.errors.fetch_add(1, Ordering::Relaxed);
        }
        report
    }
}

/// All plugins of a kernel.
#[derive(Debug)]
pub struct Registry {
    loader: Arc<Loader>,
    limits: Limits,
    agents: RwLock<BTreeMap<String, Agent>>,
    records: RwLock<Vec<Record>>,
}

impl Registry {
    /// An empty registry; `limits` are those of one tool call.
    #[must_use]
    pub fn new(loader: Arc<Loader>, limits: Limits) -> Self {
        Self { loader, limits, agents: RwLock::default(), records: RwLock::default() }
    }

    /// The sandbox that the images run in; opened by the first who needs it.
    ///
    /// # Errors
    /// See [`Engine::open`].
    pub async fn engine(&self) -> Result<&Engine, String> {
        self.loader.engine().await
    }

    /// Registers what was found; tools go into `tools`. A plugin that cannot be loaded is recorded with
    /// its diagnosis and disturbs no other.
    pub async fn fill(&self, found: Vec<Candidate>, tools: &ToolRegistry) {
        for candidate in found {
            let record = self.add(candidate, tools).await;
            if let Some(fault) = &record.fault {
                let Fault { code, message, hint } = fault;
                tracing::warn!(plugin = record.name, code, "plugin refused: {message} ({hint})");
            }
            self.records.write().unwrap_or_else(PoisonError::into_inner).push(record);
        }
    }

    async fn add(&self, candidate: Candidate, tools: &ToolRegistry) -> Record {
        let Candidate { name, file, source, component } = candidate;
        let counts = Arc::new(Counts::default());
        let mut record = Record {
            name,
            file,
            source,
            digest: None,
            tools: Vec::new(),
            is_agent: false,
            counts: Arc::clone(&counts),
            fault: None,
        };
        let component = match component {
            Ok(component) => component,
            Err(fault) => return Record { fault: Some(fault), ..record },
        };
        let digest = component.digest();
        record.digest = Some(digest.clone());
        let name = &record.name;
        match self.know(&digest, &component).await {
            Err(fault) => record.fault = Some(fault),
            Ok(Known::Agent) => {
                record.is_agent = true;
                let lazy = Arc::new(self.lazy(&digest, component, Limits::AGENT));
                let agent = Agent { name: name.clone(), digest, source, lazy };
                self.agents.write().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), agent);
            }
            Ok(Known::Tools { specs, needs }) => {
                let code: Arc<dyn Invoke> =
                    Arc::new(LazyTools { lazy: self.lazy(&digest, component, self.limits), counts });
                match self.entries(name, source, specs, needs, &code) {
                    Ok(entries) => {
                        record.tools = entries.iter().map(|e| e.spec.name.clone()).collect();
                        if let Err((taken, owner)) = tools.add(entries) {
                            record.tools.clear();
                            record.fault = Some(Fault {
                                code: "tool_name_taken",
                                message: format!("its tool name `{taken}` belongs to the plugin `{owner}`"),
                                hint: "rename the tool or the file".into(),
                            });
                        }
                    }
                    Err(fault) => record.fault = Some(fault),
                }
            }
        }
        record
    }

    fn lazy<T>(&self, digest: &str, component: Component, limits: Limits) -> Lazy<T> {
        Lazy { loader: Arc::clone(&self.loader), digest: digest.to_owned(), component, limits, image: OnceCell::new() }
    }

    fn entries(
        &self,
        plugin: &str,
        source: Source,
        specs: Vec<ToolSpec>,
        needs: Needs,
        code: &Arc<dyn Invoke>,
    ) -> Result<Vec<Entry>, Fault> {
        let entry = |spec: ToolSpec| {
            let validator = jsonschema::validator_for(&spec.input_schema).map_err(|e| Fault {
                code: "invalid_schema",
                message: format!("the input schema of its tool `{}` cannot be used: {e}", spec.name),
                hint: "give a JSON Schema (draft 2020-12) object".into(),
            })?;
            Ok(Entry {
                validator,
                plugin: plugin.to_owned(),
                tool: spec.name.clone(),
                source,
                needs,
                limits: self.limits,
                code: Arc::clone(code),
                spec: ToolSpec { name: full_name(plugin, &spec.name), ..spec },
            })
        };
        specs.into_iter().map(entry).collect()
    }

    /// What a component is: from the cache, or by loading it once.
    async fn know(&self, digest: &str, component: &Component) -> Result<Known, Fault> {
        let path = self.loader.cache.as_ref().map(|dir| dir.join(format!("{digest}.{FACTS}")));
        if let Some(known) = path.as_deref().and_then(remembered) {
            return Ok(known);
        }
        let known = match self.loader.load(digest, component.bytes(), self.limits).await? {
            Image::Agent(_) => Known::Agent,
            Image::Tools(_, specs, needs) => Known::Tools { specs, needs },
        };
        if let (Some(path), Ok(text)) = (path, serde_json::to_vec(&known)) {
            // Losing this only means asking the component again.
            let partial = path.with_extension(format!("{}.part", std::process::id()));
            let written = fs::write(&partial, text).and_then(|()| fs::rename(&partial, &path));
            if let Err(e) = written {
                tracing::debug!("what {digest} is cannot be remembered: {e}");
            }
        }
        Ok(known)
    }

    /// The agent of a name.
    #[must_use]
    pub fn agent(&self, name: &str) -> Option<Agent> {
        self.agents.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// All agents by name.
    #[must_use]
    pub fn agents(&self) -> Vec<Agent> {
        self.agents.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// All plugins, bundled ones first.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        self.records.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Names this program's version: another one may read a component differently.
const FACTS: &str = concat!("facts-", env!("CARGO_PKG_VERSION"), ".json");

fn remembered(path: &Path) -> Option<Known> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}
