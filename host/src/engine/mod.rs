//! The sandbox: sole owner of the wasmtime engine, its linkers, stores, limits and code cache.
//!
//! It runs images and tells what ended them. It knows no journal, no policy and no store: an agent
//! reaches the kernel through its [`Caller`](crate::syscall::Caller), a tool through its session.

mod agent;
mod cache;
mod config;
mod egress;
mod foreign;
mod hook;
mod limits;
mod nested;
mod private;
mod tool;
mod value;
mod wasi;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use wasmtime::component::{Component, Linker};

pub use agent::{AgentImage, Ended};
pub use config::config;
pub use hook::HookImage;
pub use tool::ToolImage;

use crate::abi::ToolSpec;
use crate::capability::Needs;
use crate::contract::{self, Fault, Role, Shape};
use crate::hook::Subscription;
use crate::quota::Limits;

/// Fuel between two yields of a guest. One poll of a process runs at most this much.
pub const YIELD_INTERVAL: u64 = 100_000;

/// How often the epoch moves: the backstop for what fuel does not see.
const TICK: Duration = Duration::from_millis(10);

/// The engine and what is shared by all images.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    plain: Lane,
    /// For components of component-model async, made when the first comes: see [`config`].
    concurrent: OnceLock<Result<Lane, String>>,
    cache_dir: Option<PathBuf>,
    /// Whether tools may have WASI 0.3.
    wasi03: bool,
    agents: Linker<agent::AgentStore>,
    /// Who makes the requests of tools.
    clients: Arc<egress::Clients>,
}

/// A wasmtime engine with what is made for it alone.
struct Lane {
    wasm: wasmtime::Engine,
    cache: cache::CodeCache,
    /// For what a syscall starts: tools and hooks.
    nested: Linker<nested::NestedStore>,
    /// Why there is no instance pool, where there is none.
    pool: Result<(), String>,
    ticking: Arc<AtomicBool>,
}

impl Lane {
    fn open(concurrency: bool, wasi03: bool, cache_dir: Option<&Path>) -> Result<Self, String> {
        let (wasm, pool) = match wasmtime::Engine::new(&config::config(true, concurrency)) {
            Ok(engine) => (engine, Ok(())),
            Err(e) => {
                tracing::warn!(
                    "no instance pool ({e}): instances are allocated on demand, which is slower; raise the address-space limit (ulimit -v)"
                );
                let engine = wasmtime::Engine::new(&config::config(false, concurrency));
                (engine.map_err(|e| format!("{e:#}"))?, Err(e.to_string()))
            }
        };
        let cache = cache::CodeCache::open(&wasm, cache_dir).map_err(|e| format!("the code cache: {e}"))?;
        let nested = nested::linker(&wasm, wasi03).map_err(|e| format!("{e:#}"))?;
        let ticking = Arc::new(AtomicBool::new(true));
        tick(&wasm, Arc::clone(&ticking)).map_err(|e| format!("the epoch ticker: {e}"))?;
        Ok(Self { wasm, cache, nested, pool, ticking })
    }

    fn compile(&self, digest: &str, bytes: &[u8]) -> wasmtime::Result<Component> {
        self.cache.component(&self.wasm, digest, bytes)
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("pool", &self.0.plain.pool).finish_non_exhaustive()
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.ticking.store(false, Ordering::Relaxed);
    }
}

/// The limits that a component of a role may use in one call, or why it cannot have what it asks for.
pub(crate) type Allowed<'a> = &'a (dyn Fn(Role) -> Result<Limits, Fault> + Sync);

/// A component that is ready to run.
#[derive(Debug)]
pub(crate) enum Image {
    /// A tool plugin with the tools that it lists, names as the plugin gives them.
    Tools(Arc<ToolImage>, Vec<ToolSpec>, Needs),
    /// An agent.
    Agent(Arc<AgentImage>),
    /// A hook, what it wants to hear of, and what its code asks for.
    Hook(Arc<HookImage>, Vec<Subscription>, Needs),
}

impl Image {
    /// The agent, if it is one.
    pub(crate) fn agent(self) -> Option<Arc<AgentImage>> {
        match self {
            Self::Agent(agent) => Some(agent),
            Self::Tools(..) | Self::Hook(..) => None,
        }
    }

    /// The tools, if it has some.
    pub(crate) fn tools(self) -> Option<Arc<ToolImage>> {
        match self {
            Self::Tools(tools, ..) => Some(tools),
            Self::Agent(_) | Self::Hook(..) => None,
        }
    }

    /// The hook, if it is one.
    pub(crate) fn hook(self) -> Option<Arc<HookImage>> {
        match self {
            Self::Hook(hook, ..) => Some(hook),
            Self::Tools(..) | Self::Agent(_) => None,
        }
    }
}

impl Engine {
    /// Builds the engine; `wasi03`: whether tools may import WASI 0.3. The pooling allocator is probed: where the system refuses its address
    /// space, instances are allocated on demand, slower, and a warning says so.
    ///
    /// # Errors
    /// wasmtime's own, or the cache directory's.
    pub fn open(cache_dir: Option<&Path>, wasi03: bool) -> Result<Self, String> {
        let plain = Lane::open(false, false, cache_dir)?;
        let agents = agent::linker(&plain.wasm).map_err(|e| format!("{e:#}"))?;
        let cache_dir = cache_dir.map(Path::to_owned);
        Ok(Self(Arc::new(Inner {
            plain,
            concurrent: OnceLock::new(),
            cache_dir,
            wasi03,
            agents,
            clients: Arc::default(),
        })))
    }

    /// How many guests the instance pool has room for.
    ///
    /// # Errors
    /// Why there is none: instances are then allocated on demand.
    pub fn pool(&self) -> Result<u32, &str> {
        self.0.plain.pool.as_ref().map(|()| config::MAX_COMPONENTS).map_err(String::as_str)
    }

    /// Checks a component against the contract, compiles it (or loads it) and asks a tool for its tools and a hook
    /// for its points. What does not fit is refused before anything is compiled.
    pub(crate) async fn load(&self, digest: &str, bytes: &[u8], allowed: Allowed<'_>) -> Result<Image, Fault> {
        let shape = Shape::read(bytes)?;
        let role = shape.check(self.0.wasi03)?;
        let limits = allowed(role)?;
        match role {
            Role::Agent => Ok(Image::Agent(self.agent(digest, bytes).await?)),
            Role::Tool => {
                let image = self.tools(digest, bytes, limits).await?;
                let specs = image.list_tools().await?;
                Ok(Image::Tools(image, specs, shape.needs()))
            }
            Role::Foreign => {
                let toolbox = shape.toolbox();
                for why in &toolbox.left_out {
                    tracing::info!(digest, "{why}");
                }
                let specs = toolbox.tools.iter().map(|tool| tool.spec.clone()).collect();
                let component = self.component(digest, bytes).await?;
                let image = ToolImage::foreign(self, &component, toolbox, limits)?;
                Ok(Image::Tools(Arc::new(image), specs, shape.needs()))
            }
            Role::Hook => {
                let image = self.hook(digest, bytes, limits).await?;
                let subscriptions = image.subscriptions().await?;
                Ok(Image::Hook(image, subscriptions, shape.needs()))
            }
        }
    }

    /// The image of an agent that was checked before.
    pub(crate) async fn agent(&self, digest: &str, bytes: &[u8]) -> Result<Arc<AgentImage>, Fault> {
        let component = self.component(digest, bytes).await?;
        if !self.is_plain(&component) {
            return Err(Fault {
                code: "invalid_component",
                message: "it is an agent and uses component-model async, which only tools may".into(),
                hint: "build it without (for jco: `--backend-qjs-disable-async`)".into(),
            });
        }
        Ok(Arc::new(AgentImage::new(self, digest, &component)?))
    }

    /// The image of a tool plugin that was checked before.
    pub(crate) async fn tools(&self, digest: &str, bytes: &[u8], limits: Limits) -> Result<Arc<ToolImage>, Fault> {
        let component = self.component(digest, bytes).await?;
        let image = if tool::is_provider(&component) {
            ToolImage::new(self, &component, limits)?
        } else {
            ToolImage::foreign(self, &component, Shape::read(bytes)?.toolbox(), limits)?
        };
        Ok(Arc::new(image))
    }

    /// The image of a hook that was checked before.
    pub(crate) async fn hook(&self, digest: &str, bytes: &[u8], limits: Limits) -> Result<Arc<HookImage>, Fault> {
        let component = self.component(digest, bytes).await?;
        Ok(Arc::new(HookImage::new(self, &component, limits)?))
    }

    /// The compiled component, on the plain engine unless it needs component-model async.
    async fn component(&self, digest: &str, bytes: &[u8]) -> Result<Component, Fault> {
        let (engine, owned, name) = (self.clone(), bytes.to_vec(), digest.to_owned());
        let compile = move || match engine.0.plain.compile(&name, &owned) {
            // wasmtime tells it in text alone, when it reads the component's border and before it compiles.
            Err(e) if format!("{e:#}").contains("component model async feature") => {
                engine.concurrent().map_err(wasmtime::Error::msg)?.compile(&name, &owned)
            }
            Ok(component) if engine.asks_for_wasi03(&component) => {
                engine.concurrent().map_err(wasmtime::Error::msg)?.compile(&name, &owned)
            }
            compiled => compiled,
        };
        // Compiling takes a core for long: not on the caller's thread.
        match tokio::task::spawn_blocking(compile).await {
            Ok(compiled) => compiled.map_err(|e| contract::broken(bytes, &format!("{e:#}"))),
            Err(e) => Err(Fault { code: "compile_failed", message: e.to_string(), hint: "report it as a bug".into() }),
        }
    }

    fn concurrent(&self) -> Result<&Lane, String> {
        let open = || Lane::open(true, self.0.wasi03, self.0.cache_dir.as_deref());
        self.0.concurrent.get_or_init(open).as_ref().map_err(Clone::clone)
    }

    /// WASI 0.3 is for engines with concurrency only, also where a component needs no more of it than a clock.
    fn asks_for_wasi03(&self, component: &Component) -> bool {
        let ty = component.component_type();
        self.0.wasi03 && ty.imports(component.engine()).any(|(name, _)| contract::is_wasi03(name))
    }

    fn is_plain(&self, component: &Component) -> bool {
        wasmtime::Engine::same(component.engine(), &self.0.plain.wasm)
    }

    /// The linker of the engine that a component was compiled for.
    fn nested_linker(&self, component: &Component) -> &Linker<nested::NestedStore> {
        match self.0.concurrent.get() {
            Some(Ok(lane)) if !self.is_plain(component) => &lane.nested,
            _ => &self.0.plain.nested,
        }
    }
}

/// Bytes of a guest's stack, the limit `stack`.
pub(crate) const STACK: u64 = config::WASM_STACK as u64;

/// The compiled components in a cache directory and their bytes; `None` where there is none yet.
///
/// # Errors
/// It cannot be read, or would not be used: it is no directory, or another user's.
pub fn cached(dir: &Path) -> std::io::Result<Option<(u64, u64)>> {
    cache::contents(dir)
}

/// SHA-256 of a component, hex.
pub(crate) fn digest(bytes: &[u8]) -> String {
    cache::digest(bytes)
}

/// One coarse ticker per engine, ended with it.
fn tick(engine: &wasmtime::Engine, ticking: Arc<AtomicBool>) -> std::io::Result<()> {
    let weak = engine.weak();
    std::thread::Builder::new().name("aok-epoch".into()).spawn(move || {
        while ticking.load(Ordering::Relaxed) {
            std::thread::sleep(TICK);
            let Some(engine) = weak.upgrade() else { return };
            engine.increment_epoch();
        }
    })?;
    Ok(())
}

/// A component whose imports have other types than what they name, although its `agent-os` interfaces
/// fit the contract: WASI's, then. wasmtime tells which in text alone, with the names in backticks.
fn link_refusal(error: &wasmtime::Error) -> Fault {
    let text = format!("{error:#}");
    let quoted: Vec<&str> = text.split('`').skip(1).step_by(2).collect();
    let interface = quoted.iter().find(|name| name.contains(':'));
    let function = quoted.iter().find(|name| !name.contains(':'));
    let what = match (interface, function) {
        (Some(interface), Some(function)) => format!("`{function}` of `{interface}` is not what this kernel has there"),
        (Some(interface), None) => format!("`{interface}` is not what this kernel has under that name"),
        _ => "one of its imports is not what this kernel has under that name".to_owned(),
    };
    Fault {
        code: "contract_mismatch",
        message: format!("it does not fit: {what}"),
        hint: "rebuild it with tools for WASI 0.2 and the SDK of this aok's version".into(),
    }
}
