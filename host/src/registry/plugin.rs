//! A plugin's place in the registry: what was found, what it serves, and what is told of both.

use std::path::PathBuf;
use std::sync::Arc;

use super::files::{Files, Stamp};
use super::image::{Counts, Lazy};
use crate::capability::Permissions;
use crate::contract::Fault;
use crate::engine::AgentImage;
use crate::hook::Hook;
use crate::tool::Source;

/// A plugin that was found, before anybody looked into it.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Its name.
    pub name: String,
    /// Where its code is.
    pub origin: Origin,
    /// What its files looked like.
    pub stamp: Stamp,
    /// Whether they are being written.
    pub calm: Calm,
    /// Why it cannot be a plugin, whatever its code is.
    pub fault: Option<Fault>,
}

impl Candidate {
    /// A plugin whose files, if it has any, are at rest.
    #[must_use]
    pub fn new(name: &str, origin: Origin) -> Self {
        Self { name: name.to_owned(), origin, stamp: Stamp::default(), calm: Calm::Settled, fault: None }
    }

    pub(super) fn can_load(&self) -> bool {
        self.fault.is_none() && matches!(self.calm, Calm::Settled | Calm::Replaced)
    }
}

/// Where a plugin's code is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Inside the binary, with its SHA-256 in hex.
    Bundled {
        /// The component.
        bytes: &'static [u8],
        /// Its digest.
        digest: &'static str,
    },
    /// In files.
    Files(Files),
}

impl Origin {
    /// The file that the plugin is known by; none for a bundled one.
    #[must_use]
    pub fn file(&self) -> Option<&PathBuf> {
        match self {
            Self::Bundled { .. } => None,
            Self::Files(files) => Some(&files.component),
        }
    }

    pub(super) fn source(&self) -> Source {
        match self {
            Self::Bundled { .. } => Source::Bundled,
            Self::Files(_) => Source::Directory,
        }
    }
}

/// Whether files are being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calm {
    /// They have been as they are for a while.
    Settled,
    /// They changed a moment ago.
    Changing,
    /// They have been changing for long, each time by another whole file: one may be tried.
    Replaced,
    /// They have been changing for long, in place.
    Restless,
}

/// A plugin, as `plugin ls` shows it.
#[derive(Clone, Debug)]
pub struct Record {
    /// Name.
    pub name: String,
    /// File; `None` for bundled ones.
    pub file: Option<PathBuf>,
    /// How its file is.
    pub state: State,
    /// SHA-256 of what it serves, hex; of a refused file where it serves nothing.
    pub digest: Option<String>,
    /// From its manifest.
    pub version: Option<String>,
    /// Full names of its tools.
    pub tools: Vec<String>,
    /// The points where it stands as a hook.
    pub hooks: Vec<Hook>,
    /// Whether it is an agent.
    pub is_agent: bool,
    /// Whether it was not written for the contract.
    pub is_foreign: bool,
    /// What its manifest asks for.
    pub requested: Permissions,
    /// Calls and failed calls since the kernel started.
    pub counts: Arc<Counts>,
    /// Why its file is refused.
    pub fault: Option<Fault>,
}

/// How a plugin's file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Being written, read or compiled.
    Loading,
    /// What it holds is served.
    Loaded,
    /// It cannot be used.
    Refused,
}

impl State {
    /// The word in `plugin ls`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Loaded => "loaded",
            Self::Refused => "refused",
        }
    }
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
    pub(super) lazy: Arc<Lazy<AgentImage>>,
}

impl Agent {
    /// Its code, ready to run.
    ///
    /// # Errors
    /// Why it cannot be loaded.
    pub async fn image(&self) -> Result<Arc<AgentImage>, Fault> {
        self.lazy.agent().await
    }
}

/// A plugin's place in the registry.
#[derive(Debug)]
pub(super) struct Plugin {
    pub(super) found: Candidate,
    /// Put here by a caller and not by a look at the directories.
    pub(super) registered: bool,
    /// What its files looked like when they were last loaded.
    pub(super) loaded: Option<Stamp>,
    /// The last load that was begun: the end of an earlier one counts for nothing.
    pub(super) ticket: u64,
    /// Whether that load has not ended. Another waits for it, so that files that change faster than they
    /// load are followed, if at a distance.
    pub(super) under_way: bool,
    pub(super) state: State,
    pub(super) fault: Option<Fault>,
    /// Digest of a component that was read and refused.
    pub(super) refused_digest: Option<String>,
    pub(super) serving: Option<Serving>,
    pub(super) counts: Arc<Counts>,
}

/// What a plugin serves.
#[derive(Debug)]
pub(super) struct Serving {
    pub(super) digest: String,
    pub(super) version: Option<String>,
    pub(super) requested: Permissions,
    pub(super) tools: Vec<String>,
    pub(super) hooks: Vec<Hook>,
    pub(super) foreign: bool,
    pub(super) wasi03: bool,
    pub(super) agent: Option<Agent>,
}

impl Plugin {
    pub(super) fn new(found: Candidate, registered: bool) -> Self {
        Self {
            found,
            registered,
            loaded: None,
            ticket: 0,
            under_way: false,
            state: State::Loading,
            fault: None,
            refused_digest: None,
            serving: None,
            counts: Arc::default(),
        }
    }

    pub(super) fn is(&self, found: &Candidate) -> bool {
        self.found.name == found.name && self.found.origin.file() == found.origin.file()
    }

    /// Whether somebody who needs it should wait for it.
    pub(super) fn is_coming(&self) -> bool {
        self.state == State::Loading && !matches!(self.found.calm, Calm::Replaced | Calm::Restless)
    }

    pub(super) fn record(&self) -> Record {
        let serving = self.serving.as_ref();
        Record {
            name: self.found.name.clone(),
            file: self.found.origin.file().cloned(),
            state: self.state,
            digest: serving.map(|s| s.digest.clone()).or_else(|| self.refused_digest.clone()),
            version: serving.and_then(|s| s.version.clone()),
            tools: serving.map(|s| s.tools.clone()).unwrap_or_default(),
            hooks: serving.map(|s| s.hooks.clone()).unwrap_or_default(),
            is_agent: serving.is_some_and(|s| s.agent.is_some()),
            is_foreign: serving.is_some_and(|s| s.foreign),
            requested: serving.map(|s| s.requested.clone()).unwrap_or_default(),
            counts: Arc::clone(&self.counts),
            fault: self.fault.clone(),
        }
    }
}
