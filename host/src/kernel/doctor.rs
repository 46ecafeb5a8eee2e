//! `doctor`: what works here, each with the way out where it does not. It needs no kernel, and no data
//! directory that can be used: what is broken is a line of its report, never an error.
//!
//! It changes nothing that lasts: a probe file that it writes is gone at once, and compiled code is kept
//! only in a cache that is there already. No model is asked for anything that costs.

mod disk;
mod grants;
mod machine;
mod models;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::info::{Check, Health};
use super::{Builder, Kernel};
use crate::config::{self, Config, LlmConfig};
use crate::contract::Fault;
use crate::engine::Engine;
use crate::llm::Models;
use crate::plugin;
use crate::registry::{Loader, Record, Registry, Served};
use crate::storage::{Memory, Store};
use disk::{code_cache, data_directory, lock, processes, store, store_failed, survives};
use grants::grants;
use machine::toolchains;
use models::model_checks;

/// What is examined where no kernel answers.
#[derive(Clone, Debug)]
pub struct Examination {
    /// The data directory; it need not exist.
    pub data: PathBuf,
    /// The configuration file.
    pub config: PathBuf,
    /// Whether that file was named, so that it must exist.
    pub config_is_named: bool,
    /// Directories with more plugins.
    pub plugins: Vec<PathBuf>,
    /// The model that runs ask for; the configuration's default when `None`.
    pub model: Option<String>,
}

impl Examination {
    /// Looks at everything, from outside.
    pub async fn run(self) -> Vec<Check> {
        let loaded = Config::load(&self.config, self.config_is_named);
        let mut checks = vec![about(), configuration(&self.config, loaded.as_ref())];
        let setup = Kernel::builder(&self.data).config(loaded.unwrap_or_default());
        let setup = self.plugins.into_iter().fold(setup, Builder::plugin_dir);
        let directory = data_directory(&self.data);
        let (usable, is_there) = (directory.state == Health::Ok, self.data.is_dir());
        checks.push(directory);
        // What is in a directory that is none would fail for that reason alone.
        let inside = usable || is_there;
        if inside {
            checks.push(lock(&self.data));
        }
        if inside || setup.config.storage.url.is_some() {
            checks.push(store(&setup.store_url(), setup.config.storage.durability).await);
        }
        let mut kept = None;
        if inside {
            let dir = self.data.join("cache");
            let cache = code_cache(&dir);
            // Where there is none yet, nothing is kept.
            kept = (usable && dir.is_dir() && cache.state == Health::Ok).then_some(dir);
            checks.push(cache);
        }
        let loader = Arc::new(Loader::new(kept, setup.config.plugins.wasi03));
        // What it loads is looked at and never run, so it needs no place for its state.
        let nowhere = Store::with(Arc::new(Memory::new()));
        let served = Served { tools: Arc::default(), hooks: Arc::default(), security: Arc::default(), store: nowhere };
        let (registry, _) = Registry::new(loader, setup.config.limits, served);
        checks.push(sandbox(registry.engine().await));
        let dirs: Vec<_> = setup.plugin_dirs().into_iter().filter(|d| inside || !d.starts_with(&self.data)).collect();
        plugin::load_once(dirs, &registry).await;
        checks.push(plugins(&registry.records()));
        checks.extend(grants(setup.grants().as_ref(), is_set));
        finish(checks, &setup.models(), &setup.config.llm, self.model.as_deref()).await
    }
}

impl Kernel {
    /// Looks at everything as this kernel has it: its configuration, its keys, its plugins. `model` is what
    /// a client's runs ask for.
    pub async fn doctor(&self, model: Option<&str>) -> Vec<Check> {
        let setup = &self.0.setup;
        let lock = match self.0.owner {
            Some(_) => Check::ok("lock", format!("held by the running kernel, process {}", std::process::id())),
            None => lock(&setup.data),
        };
        let mut checks = vec![
            about(),
            Check::ok("configuration", "as the running kernel read it when it started"),
            data_directory(&setup.data),
            lock,
            self.open_store().await,
            code_cache(&setup.data.join("cache")),
            sandbox(self.0.registry.engine().await),
        ];
        checks.push(plugins(&self.0.registry.records()));
        checks.extend(grants(Ok(&self.0.grants), is_set));
        finish(checks, &self.0.services.models, &setup.config.llm, model).await
    }

    /// The store that this kernel has open.
    async fn open_store(&self) -> Check {
        let (setup, store) = (&self.0.setup, &self.0.services.store);
        let survives = survives(&setup.store_url(), setup.config.storage.durability);
        match store.processes().await {
            Ok(_) if !store.healthy() => Check::fail(
                "store",
                format!("{}: the last commit failed", store.name()),
                "see what aok says on stderr; free some space or check the disk, then resume what has stopped",
            ),
            Ok(rows) => {
                let running = self.running().len();
                let open = rows.iter().filter(|r| r.exit.is_none()).count();
                let what = processes(rows.len(), running, open.saturating_sub(running));
                Check::ok("store", format!("{}, {what}; {survives}", store.name()))
            }
            Err(e) => store_failed(store.name(), &e),
        }
    }
}

/// What is the same with and without a kernel: models and toolchains.
async fn finish(mut checks: Vec<Check>, models: &Models, config: &LlmConfig, model: Option<&str>) -> Vec<Check> {
    let path = std::env::var_os("PATH");
    let (models, tools) = tokio::join!(model_checks(models, config, model), toolchains(path.as_deref()));
    checks.extend(models);
    checks.extend(tools);
    checks
}

fn about() -> Check {
    let (os, machine) = (std::env::consts::OS, std::env::consts::ARCH);
    Check::ok("aok", format!("{} on {os}, {machine}", env!("CARGO_PKG_VERSION")))
}

fn configuration(path: &Path, loaded: Result<&Config, &config::Error>) -> Check {
    match loaded {
        Ok(_) if path.exists() => Check::ok("configuration", path.display().to_string()),
        Ok(_) => Check::ok("configuration", format!("there is no {}: the defaults hold", path.display())),
        Err(e) => {
            let fix = format!("correct {}, or name another file with `--config`", path.display());
            Check::fail("configuration", text(e), fix)
        }
    }
}

/// So many of what `word` names.
fn count(n: usize, word: &str) -> String {
    let end = match n {
        1 => "",
        _ if word.ends_with('s') => "es",
        _ => "s",
    };
    format!("{n} {word}{end}")
}

fn sandbox(engine: Result<&Engine, String>) -> Check {
    match engine.as_ref().map(|engine| engine.pool()) {
        Ok(Ok(room)) => Check::ok("instance pool", format!("room for {room} guests at once")),
        Ok(Err(why)) => Check::warn(
            "instance pool",
            format!("none ({why}): guests get their memory on demand, which is slower"),
            "raise the address-space limit: ulimit -v unlimited",
        ),
        Err(why) => Check::fail(
            "instance pool",
            format!("the sandbox cannot be started: {why}"),
            "check the address-space limit (ulimit -v) and the cache directory",
        ),
    }
}

fn plugins(records: &[Record]) -> Check {
    let (refused, loaded): (Vec<&Record>, Vec<&Record>) = records.iter().partition(|r| r.fault.is_some());
    let tools: usize = loaded.iter().map(|r| r.tools.len()).sum();
    let agents = loaded.iter().filter(|r| r.is_agent).count();
    let what = format!("{} loaded ({}, {})", loaded.len(), count(tools, "tool"), count(agents, "agent"));
    let Some((first, Fault { code, message, hint })) = refused.iter().find_map(|r| Some((r, r.fault.as_ref()?))) else {
        return Check::ok("plugins", what);
    };
    let what = format!("{what}; {} refused, `{}` because {message} [{code}]", refused.len(), first.name);
    let fix = format!("{hint}; `aok plugin ls` shows every plugin");
    match refused.iter().any(|r| r.file.is_none()) {
        true => Check::fail("plugins", what, fix),
        false => Check::warn("plugins", what, fix),
    }
}

fn is_set(name: &str) -> bool {
    std::env::var_os(name).is_some()
}

/// An error's text with those of its causes.
fn text(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |e| e.source()).map(ToString::to_string);
    causes.reduce(|all, part| if all.contains(&part) { all } else { format!("{all}: {part}") }).unwrap_or_default()
}

#[cfg(test)]
mod tests;
