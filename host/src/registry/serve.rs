//! Puts what was loaded into service: tools into their table, hooks into their chain, agents into the registry.

use std::sync::Arc;

use super::image::{Code, Known, Lazy, LazyHook, LazyTools};
use super::plugin::{Agent, Serving};
use super::{Job, Registry, TOOL_NAME_TAKEN};
use crate::abi::ToolSpec;
use crate::capability::Needs;
use crate::contract::{Fault, Role};
use crate::engine::{Image, ToolImage};
use crate::hook::{Handler, Hook, Phase, Stored, Subscription};
use crate::manifest::{HookNote, Manifest};
use crate::quota::Limits;
use crate::tool::{Entry, Invoke, Source, full_name};

impl Registry {
    /// What one call of a component in this role may use.
    pub(super) fn allowed(&self, role: Role, manifest: &Manifest) -> Result<Limits, Fault> {
        match role {
            Role::Hook => manifest.within(self.0.limits.both(Limits::HOOK)),
            Role::Tool | Role::Foreign => manifest.within(self.0.limits),
            Role::Agent => Ok(Limits::AGENT),
        }
    }

    /// Takes out all that a plugin serves by name.
    pub(super) fn withdraw(&self, plugin: &str) {
        self.0.served.tools.withdraw(plugin);
        self.0.served.hooks.withdraw(plugin);
    }

    /// Puts what was loaded in the place of what the plugin served.
    pub(super) fn serve(
        &self,
        job: &Job,
        digest: &str,
        manifest: Manifest,
        known: Known,
        image: Option<Image>,
    ) -> Result<Serving, Fault> {
        let name = &job.found.name;
        let code = |limits| Code {
            loader: Arc::clone(&self.0.loader),
            origin: job.found.origin.clone(),
            digest: digest.to_owned(),
            limits,
        };
        let mut serving = Serving {
            digest: digest.to_owned(),
            version: manifest.version.clone(),
            requested: manifest.permissions.clone(),
            tools: Vec::new(),
            hooks: Vec::new(),
            foreign: false,
            wasi03: known.asks_for_wasi03(),
            agent: None,
        };
        match known {
            Known::Agent => {
                manifest.check_agent()?;
                let lazy = Arc::new(Lazy::new(code(Limits::AGENT), image.and_then(Image::agent)));
                let source = job.found.origin.source();
                self.withdraw(name);
                serving.agent = Some(Agent { name: name.clone(), digest: digest.to_owned(), source, lazy });
            }
            Known::Tools { specs, needs, foreign } => {
                serving.foreign = foreign;
                manifest.check_tools(specs.iter().map(|s| s.name.as_str()))?;
                let limits = self.allowed(Role::Tool, &manifest)?;
                let lazy = Lazy::new(code(limits), image.and_then(Image::tools));
                let tools = entries(job, &manifest, specs, needs, lazy)?;
                serving.tools = tools.iter().map(|e| e.spec.name.clone()).collect();
                self.0.served.tools.swap(name, tools).map_err(|(taken, owner)| Fault {
                    code: TOOL_NAME_TAKEN,
                    message: format!("its tool name `{taken}` belongs to the plugin `{owner}`"),
                    hint: "rename the tool or the file".into(),
                })?;
                self.0.served.hooks.withdraw(name);
            }
            Known::Hook { subscriptions, needs } => {
                manifest.check_hook()?;
                let limits = self.allowed(Role::Hook, &manifest)?;
                let at = placed(subscriptions, manifest.hook.as_ref())?;
                serving.hooks = at.iter().map(|s| s.point).collect();
                serving.hooks.dedup();
                let lazy = Lazy::new(code(limits), image.and_then(Image::hook));
                let counts = Arc::clone(&job.counts);
                let (asked, security) = (manifest.permissions.clone(), Arc::clone(&self.0.served.security));
                let trusted =
                    job.found.origin.source() == Source::Bundled || self.0.served.security.trusts(name, digest);
                let code = Arc::new(LazyHook { lazy, counts, plugin: name.clone(), needs, asked, security });
                let handler: Arc<dyn Handler> = Arc::new(Stored {
                    code,
                    store: self.0.served.store.clone(),
                    plugin: name.clone(),
                    log_limit: limits.log,
                });
                self.0.served.tools.withdraw(name);
                self.0.served.hooks.swap(name, at, &handler, trusted);
            }
        }
        Ok(serving)
    }
}

/// The tools of a plugin, as its manifest has them.
fn entries(
    job: &Job,
    manifest: &Manifest,
    specs: Vec<ToolSpec>,
    needs: Needs,
    lazy: Lazy<ToolImage>,
) -> Result<Vec<Entry>, Fault> {
    let limits = lazy.limits();
    let code: Arc<dyn Invoke> = Arc::new(LazyTools { lazy, counts: Arc::clone(&job.counts) });
    let plugin = &job.found.name;
    let asked = Arc::new(manifest.permissions.clone());
    let entry = |spec: ToolSpec| {
        let validator = jsonschema::validator_for(&spec.input_schema).map_err(|e| Fault {
            code: "invalid_schema",
            message: format!("the input schema of its tool `{}` cannot be used: {e}", spec.name),
            hint: "give a JSON Schema (draft 2020-12) object".into(),
        })?;
        let note = manifest.tools.get(&spec.name);
        Ok(Entry {
            validator,
            plugin: plugin.clone(),
            tool: spec.name.clone(),
            source: job.found.origin.source(),
            needs,
            asked: Arc::clone(&asked),
            limits,
            stateful: manifest.stateful,
            code: Arc::clone(&code),
            spec: ToolSpec {
                name: full_name(plugin, &spec.name),
                effect: note.and_then(|n| n.effect).unwrap_or(spec.effect),
                description: note.and_then(|n| n.description.clone()).unwrap_or(spec.description),
                ..spec
            },
        })
    };
    specs.into_iter().map(entry).collect()
}

/// Where a hook stands, as its manifest has it.
fn placed(subscriptions: Vec<Subscription>, note: Option<&HookNote>) -> Result<Vec<Subscription>, Fault> {
    let Some(note) = note else { return Ok(subscriptions) };
    let wrong = |message: String, hint: String| Fault { code: "invalid_manifest", message, hint };
    let mut points = Vec::new();
    for name in &note.points {
        let all = || Hook::ALL.map(Hook::name).join(", ");
        let point = Hook::from_name(name)
            .ok_or_else(|| wrong(format!("its `[hook]` names a point `{name}` that there is not"), all()))?;
        if !subscriptions.iter().any(|s| s.point == point) {
            let own: Vec<_> = subscriptions.iter().map(|s| s.point.name()).collect();
            let message = format!("its `[hook]` names {point}, which the component does not ask for");
            return Err(wrong(message, format!("it asks for: {}", own.join(", "))));
        }
        points.push(point);
    }
    let phase = note.phase.as_deref().map(|word| {
        let phase = Phase::ALL.into_iter().find(|p| p.name() == word);
        phase.ok_or_else(|| {
            let message = format!("the phase of its `[hook]` is `{word}`, which there is not");
            wrong(message, "it is validate, authorize, policy or telemetry".to_owned())
        })
    });
    let phase = phase.transpose()?;
    let kept = subscriptions.into_iter().filter(|s| points.is_empty() || points.contains(&s.point));
    let placed = |s: Subscription| Subscription {
        point: s.point,
        phase: phase.unwrap_or(s.phase),
        priority: note.priority.unwrap_or(s.priority),
        matcher: note.matcher.clone().or(s.matcher),
    };
    Ok(kept.map(placed).collect())
}
