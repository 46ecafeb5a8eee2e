//! Which image serves which name, and what became of each plugin that was found.
//!
//! [`Registry::update`] takes what a look at the directories found and makes the registry so: new and
//! changed plugins are loaded in the background, each takes the place of its older self in one step
//! when it is ready, and those that are gone are withdrawn. A file that cannot be loaded takes no
//! place: what its plugin served before, it goes on serving, and the record tells what is wrong.

mod files;
mod image;
mod plugin;
mod serve;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Semaphore, mpsc, watch};

pub use files::{Contents, Files, Stamp};
pub use image::{Counts, Loader};
pub use plugin::{Agent, Calm, Candidate, Origin, Record, State};

use crate::contract::{Comments, Fault};
use crate::engine::{self, Engine, Image};
use crate::hook::HookChain;
use crate::manifest::Manifest;
use crate::quota::Limits;
use crate::storage::Store;
use crate::tool::{Source, ToolRegistry, ToolSecurity, full_name};
use files::Unread;
use image::Known;
use plugin::Plugin;

/// Something that the audit log should hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The plugin.
    pub plugin: String,
    /// What happened to it.
    pub what: Happened,
}

/// What happened to a plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happened {
    /// It serves the component of this digest now.
    Loaded {
        /// SHA-256, hex.
        digest: String,
        /// Whether it has WASI 0.3.
        wasi03: bool,
    },
    /// Its file was refused, with this code.
    Refused(&'static str),
    /// It serves no more.
    Unloaded,
    /// Its hooks are not asked any more, for this reason.
    Barred(String),
}

/// A load that was begun.
struct Job {
    ticket: u64,
    found: Candidate,
    counts: Arc<Counts>,
}

/// What a load came to.
enum Loaded {
    /// It can serve.
    Ready { digest: String, notes: Box<Notes>, known: Known, image: Option<Image> },
    /// It was changed meanwhile: the next look begins anew.
    Changing,
    /// It cannot.
    Refused { digest: Option<String>, fault: Fault },
}

impl From<Fault> for Loaded {
    fn from(fault: Fault) -> Self {
        Self::Refused { digest: None, fault }
    }
}

/// Where what plugins serve goes, and what it needs to run.
#[derive(Debug)]
pub struct Served {
    /// Their tools.
    pub tools: Arc<ToolRegistry>,
    /// Their hooks.
    pub hooks: Arc<HookChain>,
    /// What hooks may reach, and which of them are trusted.
    pub security: Arc<ToolSecurity>,
    /// Where hooks keep their state.
    pub store: Store,
}

/// All plugins of a kernel. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Registry(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    loader: Arc<Loader>,
    limits: Limits,
    served: Served,
    plugins: Mutex<Vec<Plugin>>,
    /// Loads under way at once: each may hold a large component and its compiler.
    turns: Semaphore,
    /// Counts changes, for those who wait.
    version: watch::Sender<u64>,
    notices: mpsc::UnboundedSender<Notice>,
}

impl Registry {
    /// An empty registry; `limits` are the most that one tool call may use. The receiver gets what the audit log
    /// should hold.
    #[must_use]
    pub fn new(loader: Arc<Loader>, limits: Limits, served: Served) -> (Self, mpsc::UnboundedReceiver<Notice>) {
        let (notices, receiver) = mpsc::unbounded_channel();
        let plugins = Mutex::default();
        let turns = Semaphore::new(LOADS_AT_ONCE);
        let barred = notices.clone();
        served.hooks.when_barred(move |plugin, why| {
            let notice = Notice { plugin: plugin.to_owned(), what: Happened::Barred(why.to_owned()) };
            let _ = barred.send(notice); // nobody listens in a kernel that only reads
        });
        let version = watch::Sender::new(0);
        let shared = Shared { loader, limits, served, plugins, turns, version, notices };
        (Self(Arc::new(shared)), receiver)
    }

    /// The sandbox that the images run in; opened by the first who needs it.
    ///
    /// # Errors
    /// See [`Engine::open`].
    pub async fn engine(&self) -> Result<&Engine, String> {
        self.0.loader.engine().await
    }

    /// The first filling: as [`Self::update`], and what is known of a component from an earlier run is
    /// taken at once, its image being made at its first use. What must be compiled is left to the
    /// background.
    pub async fn fill(&self, found: Vec<Candidate>) {
        let jobs = self.take(found);
        let registry = self.clone();
        let quick = tokio::task::spawn_blocking(move || {
            jobs.into_iter().filter_map(|job| registry.recall(job)).collect::<Vec<_>>()
        });
        for job in quick.await.unwrap_or_default() {
            self.begin(job);
        }
    }

    /// Makes the registry as a look at the directories found them. Loading goes on in the background.
    pub fn update(&self, found: Vec<Candidate>) {
        for job in self.take(found) {
            self.begin(job);
        }
    }

    /// Loads a plugin that no directory holds, and waits for it. It stays until [`Self::unregister`].
    ///
    /// # Errors
    /// Why it is refused; what its name served before, it goes on serving.
    pub async fn register(&self, mut found: Candidate) -> Result<Record, Fault> {
        if let Some(fault) = found.fault.take() {
            return Err(fault);
        }
        let job = {
            let mut plugins = self.plugins();
            let other = plugins.iter().find(|p| p.found.name == found.name && !p.is(&found));
            if let Some(other) = other {
                return Err(name_taken(&other.found));
            }
            if !plugins.iter().any(|p| p.is(&found)) {
                plugins.push(Plugin::new(found.clone(), true));
            }
            let place = plugins.iter_mut().find(|p| p.is(&found));
            place.map(|plugin| begin_load(plugin, found.clone()))
        };
        if let Some(job) = job {
            let loaded = self.load(&job.found).await;
            self.settle(&job, loaded);
        }
        let mut plugins = self.plugins();
        let place = plugins.iter_mut().find(|p| p.is(&found));
        let fault = match place.as_ref().map(|p| p.record()) {
            Some(record) if record.state == State::Loaded => return Ok(record),
            Some(Record { fault: Some(fault), state: State::Refused, .. }) => fault,
            _ => Fault {
                code: "changing",
                message: format!("the files of `{}` changed while they were read", found.name),
                hint: "register it again when they have been written".into(),
            },
        };
        if let Some(plugin) = place.filter(|p| p.registered && p.state == State::Loading) {
            // Nobody looks at its files again: what it served before, it goes on serving.
            plugin.state = State::Loaded;
        }
        // One that serves nothing is nobody's concern but its caller's.
        plugins.retain(|p| !(p.is(&found) && p.registered && p.serving.is_none()));
        Err(fault)
    }

    /// Takes out a plugin that [`Self::register`] put here; whether there was one.
    pub fn unregister(&self, name: &str) -> bool {
        let mut plugins = self.plugins();
        let Some(at) = plugins.iter().position(|p| p.registered && p.found.name == name) else { return false };
        let plugin = plugins.remove(at);
        self.unload(&plugin);
        drop(plugins);
        self.changed();
        true
    }

    async fn wait(&self, wanted: impl Fn(&Plugin) -> bool) {
        let mut version = self.0.version.subscribe();
        while self.plugins().iter().any(|p| p.is_coming() && wanted(p)) {
            // It fails only when the registry is gone, which this borrows.
            if version.changed().await.is_err() {
                return;
            }
        }
    }

    /// Whether files that are being written are waited for.
    #[must_use]
    pub fn awaits_files(&self) -> bool {
        self.plugins().iter().any(|p| p.is_coming() && p.loaded.as_ref() != Some(&p.found.stamp))
    }

    /// Waits until every plugin is loaded or refused. Files that never come to rest are not waited for.
    pub async fn ready(&self) {
        self.wait(|_| true).await;
    }

    /// Waits until the plugin that an agent or a full tool name speaks of is loaded or refused.
    pub async fn ready_for(&self, name: &str) {
        let concerns = |plugin: &str| {
            name == plugin || name == full_name(plugin, plugin) || name.starts_with(&full_name(plugin, ""))
        };
        self.wait(|p| concerns(&p.found.name)).await;
    }

    /// Puts `found` into the places of the plugins; what is to be loaded is returned.
    fn take(&self, found: Vec<Candidate>) -> Vec<Job> {
        let mut plugins = self.plugins();
        let by_key = |p: Plugin| (key(&p.found), p);
        let mut before: BTreeMap<Key, Plugin> = std::mem::take(&mut *plugins).into_iter().map(by_key).collect();
        let registered = before.values().filter(|p| p.registered).map(|p| (p.found.name.clone(), p.found.clone()));
        let registered: BTreeMap<String, Candidate> = registered.collect();
        let mut jobs = Vec::new();
        let mut gone = false;
        for mut found in found {
            let owner = registered.get(&found.name).filter(|owner| key(owner) != key(&found));
            if let Some(owner) = owner.filter(|_| found.fault.is_none()) {
                found.fault = Some(name_taken(owner));
            }
            let mut plugin = before.remove(&key(&found)).unwrap_or_else(|| Plugin::new(found.clone(), false));
            plugin.registered = false;
            let was_serving = plugin.serving.is_some();
            jobs.extend(self.place(&mut plugin, found));
            gone |= was_serving && plugin.serving.is_none();
            plugins.push(plugin);
        }
        for plugin in before.into_values() {
            if plugin.registered {
                plugins.push(plugin);
            } else {
                gone = true;
                self.unload(&plugin);
            }
        }
        if gone {
            // What one of them had in another's way is free now.
            let in_the_way = |p: &Plugin| p.fault.as_ref().is_some_and(|f| f.code == TOOL_NAME_TAKEN);
            let waiting = plugins.iter_mut().filter(|p| !p.under_way && in_the_way(p));
            jobs.extend(waiting.map(|p| begin_load(p, p.found.clone())));
        }
        drop(plugins);
        self.changed();
        jobs
    }

    /// What is to be done about one plugin that was found.
    fn place(&self, plugin: &mut Plugin, found: Candidate) -> Option<Job> {
        if let Some(fault) = &found.fault {
            if plugin.fault.as_ref() != Some(fault) {
                self.tell(&found.name, Happened::Refused(fault.code));
                warn(&found.name, fault);
            }
            self.unload(plugin);
            // A load that is under way counts for nothing.
            plugin.ticket += 1;
            plugin.under_way = false;
            (plugin.state, plugin.fault) = (State::Refused, found.fault.clone());
            (plugin.serving, plugin.loaded, plugin.refused_digest) = (None, None, None);
            plugin.found = found;
            return None;
        }
        if plugin.loaded.as_ref() == Some(&found.stamp) {
            plugin.found = found;
            return None;
        }
        if found.can_load() && !plugin.under_way {
            return Some(begin_load(plugin, found));
        }
        plugin.state = State::Loading;
        plugin.found = found;
        None
    }

    fn unload(&self, plugin: &Plugin) {
        if plugin.serving.is_some() {
            self.withdraw(&plugin.found.name);
            self.tell(&plugin.found.name, Happened::Unloaded);
        }
    }

    /// Settles a load from what is remembered, without code; what cannot be is returned.
    fn recall(&self, job: Job) -> Option<Job> {
        let loaded = match self.read(&job.found) {
            Ok(Read { digest, notes, .. }) => {
                let Some(known) = self.0.loader.remembered(&digest) else { return Some(job) };
                Loaded::Ready { digest, notes, known, image: None }
            }
            Err(loaded) => loaded,
        };
        self.settle(&job, loaded);
        None
    }

    fn begin(&self, job: Job) {
        let registry = self.clone();
        tokio::spawn(async move {
            // It fails only when it is closed, which nobody does.
            let _turn = registry.0.turns.acquire().await;
            let loaded = registry.load(&job.found).await;
            registry.settle(&job, loaded);
        });
    }

    fn read(&self, found: &Candidate) -> Result<Read, Loaded> {
        match &found.origin {
            Origin::Bundled { digest, .. } => {
                let (component, digest) = (Vec::new(), (*digest).to_owned());
                Ok(Read { digest, component, notes: Box::default() })
            }
            Origin::Files(files) => {
                let Contents { component, manifest, wit } = files.read().map_err(|e| match e {
                    Unread::Changing => Loaded::Changing,
                    Unread::Fault(fault) => fault.into(),
                })?;
                let digest = engine::digest(&component);
                let manifest =
                    manifest.map_or_else(|| Ok(Manifest::default()), |text| Manifest::parse(&found.name, &text));
                let comments = wit.map_or_else(|| Ok(Comments::default()), |text| Comments::parse(&text));
                let refused = |fault| Loaded::Refused { digest: Some(digest.clone()), fault };
                let (manifest, comments) = (manifest.map_err(refused)?, comments.map_err(refused)?);
                Ok(Read { digest, component, notes: Box::new(Notes { manifest, comments }) })
            }
        }
    }

    /// Reads a plugin's files and makes its image, so that the first call does not wait for it.
    async fn load(&self, found: &Candidate) -> Loaded {
        let (registry, own) = (self.clone(), found.clone());
        let read = match tokio::task::spawn_blocking(move || registry.read(&own)).await {
            Ok(Ok(read)) => read,
            Ok(Err(loaded)) => return loaded,
            Err(_) => return Loaded::Changing,
        };
        let Read { digest, component, notes } = read;
        let refused = |fault| Loaded::Refused { digest: Some(digest.clone()), fault };
        let allowed = |role| self.allowed(role, &notes.manifest);
        let bytes = match &found.origin {
            Origin::Bundled { bytes, .. } => bytes,
            Origin::Files(_) => &component[..],
        };
        match self.0.loader.load(&digest, bytes, &allowed).await {
            Ok(image) => {
                let known = Known::of(&image);
                self.0.loader.remember(&digest, &known);
                Loaded::Ready { digest, notes, known, image: Some(image) }
            }
            Err(fault) => refused(fault),
        }
    }

    /// Ends a load: its plugin serves what was loaded, from now on, or is refused.
    fn settle(&self, job: &Job, loaded: Loaded) {
        let mut plugins = self.plugins();
        let Some(plugin) = plugins.iter_mut().find(|p| p.is(&job.found) && p.ticket == job.ticket) else { return };
        plugin.under_way = false;
        let made = match loaded {
            Loaded::Ready { digest, notes, mut known, image } => {
                known.comment(&notes.comments);
                let made = self.serve(job, &digest, notes.manifest, known, image);
                made.map_err(|fault| (Some(digest), fault))
            }
            Loaded::Refused { digest, fault } => Err((digest, fault)),
            Loaded::Changing => {
                plugin.loaded = None;
                return;
            }
        };
        match made {
            Ok(serving) => {
                // The binary answers for what is in it.
                if job.found.origin.source() == Source::Directory {
                    let loaded = Happened::Loaded { digest: serving.digest.clone(), wasi03: serving.wasi03 };
                    self.tell(&job.found.name, loaded);
                }
                (plugin.state, plugin.fault, plugin.refused_digest) = (State::Loaded, None, None);
                plugin.serving = Some(serving);
            }
            Err((digest, fault)) => {
                warn(&job.found.name, &fault);
                self.tell(&job.found.name, Happened::Refused(fault.code));
                (plugin.state, plugin.fault, plugin.refused_digest) = (State::Refused, Some(fault), digest);
            }
        }
        let newer = plugin.found.can_load() && plugin.loaded.as_ref() != Some(&plugin.found.stamp);
        let next = newer.then(|| begin_load(plugin, plugin.found.clone()));
        drop(plugins);
        self.changed();
        if let Some(next) = next {
            self.begin(next);
        }
    }

    fn plugins(&self) -> MutexGuard<'_, Vec<Plugin>> {
        // Each change of the list is whole when the lock is given back.
        self.0.plugins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.0.version.send_modify(|n| *n += 1);
    }

    fn tell(&self, plugin: &str, what: Happened) {
        // A kernel that only reads has nobody who listens.
        let _ = self.0.notices.send(Notice { plugin: plugin.to_owned(), what });
    }

    /// The agent of a name.
    #[must_use]
    pub fn agent(&self, name: &str) -> Option<Agent> {
        let plugins = self.plugins();
        let mut agents = plugins.iter().filter_map(|p| p.serving.as_ref()?.agent.as_ref());
        agents.find(|a| a.name == name).cloned()
    }

    /// All agents by name.
    #[must_use]
    pub fn agents(&self) -> Vec<Agent> {
        let plugins = self.plugins();
        let mut agents: Vec<_> = plugins.iter().filter_map(|p| p.serving.as_ref()?.agent.clone()).collect();
        agents.sort_by(|a, b| a.name.cmp(&b.name));
        agents
    }

    /// All plugins, bundled ones first.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        self.plugins().iter().map(Plugin::record).collect()
    }
}

/// What tells one plugin from another: its name, and its file.
type Key = (String, Option<PathBuf>);

fn key(found: &Candidate) -> Key {
    (found.name.clone(), found.origin.file().cloned())
}

/// What was read of a plugin; a bundled one's component is not copied.
struct Read {
    digest: String,
    component: Vec<u8>,
    notes: Box<Notes>,
}

/// What is said of a component in the files beside it.
#[derive(Debug, Default)]
struct Notes {
    manifest: Manifest,
    comments: Comments,
}

/// Plugins that are loaded at the same time; the others wait.
const LOADS_AT_ONCE: usize = 4;

const TOOL_NAME_TAKEN: &str = "tool_name_taken";

fn begin_load(plugin: &mut Plugin, found: Candidate) -> Job {
    plugin.ticket += 1;
    plugin.under_way = true;
    plugin.state = State::Loading;
    plugin.loaded = Some(found.stamp.clone());
    plugin.found = found.clone();
    Job { ticket: plugin.ticket, found, counts: Arc::clone(&plugin.counts) }
}

fn name_taken(owner: &Candidate) -> Fault {
    let what = owner.origin.file().map_or("a bundled plugin".to_owned(), |f| f.display().to_string());
    Fault {
        code: "name_taken",
        message: format!("the name `{}` belongs to {what}", owner.name),
        hint: "rename the file".into(),
    }
}

fn warn(plugin: &str, Fault { code, message, hint }: &Fault) {
    tracing::warn!(plugin, code, "plugin refused: {message} ({hint})");
}
