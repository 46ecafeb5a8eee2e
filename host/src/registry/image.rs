//! Images as they are made: when they are first needed, from code that is compiled or in the cache.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;

use super::{Files, Origin};
use crate::abi::{Errno, Error, ToolSpec};
use crate::capability::{Needs, Permissions};
use crate::contract::{Comments, Fault};
use crate::engine::{self, AgentImage, Allowed, Engine, HookImage, Image, ToolImage};
use crate::hook::{self, Subscription};
use crate::quota::Limits;
use crate::tool::{Claim, Invocation, Invoke, Report, SessionEnd, ToolSecurity};

/// The engine, opened when the first image is needed, and where its caches are.
#[derive(Debug)]
pub struct Loader {
    cache: Option<PathBuf>,
    wasi03: bool,
    engine: OnceCell<Engine>,
}

impl Loader {
    /// A loader that keeps compiled code in `cache`; `wasi03`: whether tools may import WASI 0.3.
    #[must_use]
    pub fn new(cache: Option<PathBuf>, wasi03: bool) -> Self {
        Self { cache, wasi03, engine: OnceCell::new() }
    }

    /// The engine.
    ///
    /// # Errors
    /// See [`Engine::open`].
    pub async fn engine(&self) -> Result<&Engine, String> {
        let open = || {
            let (cache, wasi03) = (self.cache.clone(), self.wasi03);
            async move {
                let opened = tokio::task::spawn_blocking(move || Engine::open(cache.as_deref(), wasi03));
                opened.await.map_err(|e| e.to_string())?
            }
        };
        self.engine.get_or_try_init(open).await
    }

    /// Checks a component and makes its image.
    pub(super) async fn load(&self, digest: &str, bytes: &[u8], allowed: Allowed<'_>) -> Result<Image, Fault> {
        self.ready().await?.load(digest, bytes, allowed).await
    }

    async fn ready(&self) -> Result<&Engine, Fault> {
        self.engine().await.map_err(|message| Fault {
            code: "engine",
            message: format!("the sandbox cannot be started: {message}"),
            hint: "check the cache directory and the address-space limit (`ulimit -v`), then start aok again".into(),
        })
    }

    /// What a component is, if it was loaded before and is still allowed.
    pub(super) fn remembered(&self, digest: &str) -> Option<Known> {
        let known: Known = serde_json::from_slice(&fs::read(self.facts(digest)?).ok()?).ok()?;
        Some(known).filter(|known| self.wasi03 || !known.asks_for_wasi03())
    }

    /// Keeps what a component is. Losing it only means loading the component again.
    pub(super) fn remember(&self, digest: &str, known: &Known) {
        let Some(path) = self.facts(digest) else { return };
        let partial = path.with_extension(format!("{}.part", std::process::id()));
        let written = serde_json::to_vec(known)
            .map_err(std::io::Error::from)
            .and_then(|text| fs::write(&partial, text))
            .and_then(|()| fs::rename(&partial, &path));
        if let Err(e) = written {
            tracing::debug!("what {digest} is cannot be remembered: {e}");
        }
    }

    fn facts(&self, digest: &str) -> Option<PathBuf> {
        self.cache.as_deref().map(|dir: &Path| dir.join(format!("{digest}.{FACTS}")))
    }
}

/// Names this program's version: another one may read a component differently.
const FACTS: &str = concat!("facts-", env!("CARGO_PKG_VERSION"), ".json");

/// What a component is, as the cache remembers it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Known {
    Agent,
    Tools { specs: Vec<ToolSpec>, needs: Needs, foreign: bool },
    Hook { subscriptions: Vec<Subscription>, needs: Needs },
}

impl Known {
    /// Describes the tools of a foreign component by what its WIT says of its functions.
    pub(super) fn comment(&mut self, comments: &Comments) {
        let Self::Tools { specs, foreign: true, .. } = self else { return };
        for spec in specs {
            if let Some(comment) = comments.of(&spec.name) {
                comment.clone_into(&mut spec.description);
            }
        }
    }

    pub(super) fn asks_for_wasi03(&self) -> bool {
        matches!(self, Self::Tools { needs, .. } | Self::Hook { needs, .. } if needs.wasi03)
    }

    pub(super) fn of(image: &Image) -> Self {
        match image {
            Image::Agent(_) => Self::Agent,
            Image::Hook(_, subscriptions, needs) => Self::Hook { subscriptions: subscriptions.clone(), needs: *needs },
            Image::Tools(image, specs, needs) => {
                Self::Tools { specs: specs.clone(), needs: *needs, foreign: image.is_foreign() }
            }
        }
    }
}

/// Where an image's code comes from.
#[derive(Clone, Debug)]
pub(super) struct Code {
    pub(super) loader: Arc<Loader>,
    pub(super) origin: Origin,
    pub(super) digest: String,
    pub(super) limits: Limits,
}

impl Code {
    /// The component's bytes, if they are still those that were looked at.
    async fn bytes(&self) -> Result<Cow<'static, [u8]>, Fault> {
        let component = match &self.origin {
            Origin::Bundled { bytes, .. } => return Ok(Cow::Borrowed(bytes)),
            Origin::Files(Files { component, .. }) => component.clone(),
        };
        let read = tokio::task::spawn_blocking(move || {
            let bytes = Files { component, ..Files::default() }.contents()?.component;
            Ok((engine::digest(&bytes), bytes))
        });
        let (digest, bytes) = read.await.map_err(|e| changed(&e.to_string()))??;
        if digest != self.digest {
            return Err(changed("its file holds another component now, which is not loaded yet"));
        }
        Ok(Cow::Owned(bytes))
    }
}

fn changed(why: &str) -> Fault {
    Fault { code: "changed", message: why.to_owned(), hint: "try again".into() }
}

/// An image that is made when it is first needed.
#[derive(Debug)]
pub(super) struct Lazy<T> {
    code: Code,
    image: OnceCell<Arc<T>>,
}

impl<T> Lazy<T> {
    /// With the image, where it was made already.
    pub(super) fn new(code: Code, image: Option<Arc<T>>) -> Self {
        Self { code, image: OnceCell::new_with(image) }
    }
}

impl Lazy<AgentImage> {
    pub(super) async fn agent(&self) -> Result<Arc<AgentImage>, Fault> {
        let code = &self.code;
        let make = || async { code.loader.ready().await?.agent(&code.digest, &code.bytes().await?).await };
        self.image.get_or_try_init(make).await.cloned()
    }
}

impl Lazy<ToolImage> {
    /// The limits of one call.
    pub(super) fn limits(&self) -> Limits {
        self.code.limits
    }

    async fn tools(&self) -> Result<Arc<ToolImage>, Fault> {
        let code = &self.code;
        let make = || async { code.loader.ready().await?.tools(&code.digest, &code.bytes().await?, code.limits).await };
        self.image.get_or_try_init(make).await.cloned()
    }
}

impl Lazy<HookImage> {
    async fn hook(&self) -> Result<Arc<HookImage>, Fault> {
        let code = &self.code;
        let make = || async { code.loader.ready().await?.hook(&code.digest, &code.bytes().await?, code.limits).await };
        self.image.get_or_try_init(make).await.cloned()
    }
}

/// A hook plugin as the hook chain asks it.
#[derive(Debug)]
pub(super) struct LazyHook {
    pub(super) lazy: Lazy<HookImage>,
    pub(super) counts: Arc<Counts>,
    pub(super) plugin: String,
    pub(super) needs: Needs,
    pub(super) asked: Permissions,
    pub(super) security: Arc<ToolSecurity>,
}

#[async_trait]
impl hook::Run for LazyHook {
    async fn run(&self, question: hook::Question<'_>) -> hook::Report {
        self.counts.calls.fetch_add(1, Ordering::Relaxed);
        let failed = |why: String| {
            let verdict = Err(hook::Fall::Elsewhere(why));
            hook::Report { verdict, fuel: 0, session: SessionEnd::default() }
        };
        let claim = Claim { plugin: &self.plugin, needs: self.needs, asked: &self.asked };
        let report = match (self.security.plugin(claim), self.lazy.hook().await) {
            (Ok(rights), Ok(image)) => image.answer(question, rights).await,
            (Err(denied), _) => failed(denied.message),
            (_, Err(fault)) => failed(format!("it cannot be loaded: {}", fault.message)),
        };
        if report.verdict.is_err() {
            self.counts.errors.fetch_add(1, Ordering::Relaxed);
        }
        report
    }
}

/// Calls of a plugin since the kernel started, whatever its file held.
#[derive(Debug, Default)]
pub struct Counts {
    /// All calls.
    pub calls: AtomicU64,
    /// Those that failed.
    pub errors: AtomicU64,
}

/// A tool plugin as the tool table calls it.
#[derive(Debug)]
pub(super) struct LazyTools {
    pub(super) lazy: Lazy<ToolImage>,
    pub(super) counts: Arc<Counts>,
}

#[async_trait]
impl Invoke for LazyTools {
    async fn invoke(&self, call: Invocation) -> Report {
        self.counts.calls.fetch_add(1, Ordering::Relaxed);
        let report = match self.lazy.tools().await {
            Ok(image) => image.invoke(call).await,
            Err(fault) => {
                let errno = if fault.code == "changed" { Errno::Again } else { Errno::Io };
                let message = format!("the tool `{}` cannot be loaded: {}", call.tool, fault.message);
                let result = Err(Error::new(errno, message));
                Report { result, fuel: 0, memory_bytes: 0, session: SessionEnd::default() }
            }
        };
        if report.result.is_err() {
            self.counts.errors.fetch_add(1, Ordering::Relaxed);
        }
        report
    }
}
