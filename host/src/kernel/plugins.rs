//! The plugins of a running kernel: followed in their directories, and put in by the embedder.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use tokio::sync::mpsc::UnboundedReceiver;

use super::info::{Diagnosis, PluginInfo, PluginReport};
use super::{Error, Follower, Inner, Kernel, lock};
use crate::contract::{Comments, FOREIGN, Fault, Role, Shape, VERSION};
use crate::manifest::Manifest;
use crate::plugin::{self, Finder, check_name};
use crate::registry::{Candidate, Contents, Files, Happened, Notice, Origin, Record};

impl Kernel {
    /// Loads what the directories hold, and follows them until the kernel ends. Returns when everything
    /// that is there is loaded or refused.
    pub(super) async fn follow_plugins(&self, dirs: Vec<PathBuf>, notices: UnboundedReceiver<Notice>) {
        let registry = &self.0.registry;
        let mut finder = Finder::new(dirs);
        registry.fill(finder.look()).await;
        let Some(owner) = &self.0.owner else { return };
        let follow = plugin::follow(finder, registry.clone());
        // It must not keep alive what it serves.
        let audit = audit_plugins(Arc::downgrade(&self.0), notices);
        let both = tokio::spawn(async move { tokio::join!(follow, audit) });
        *lock(&owner.follower) = Some(Follower(both.abort_handle()));
        // Whoever starts a kernel finds what was there then, what must be compiled first included.
        registry.ready().await;
    }

    /// All plugins, bundled ones first.
    #[must_use]
    pub fn plugins(&self) -> Vec<PluginInfo> {
        self.0.registry.records().into_iter().map(|record| self.plugin_info(record)).collect()
    }

    /// Loads the component of a file, with the `NAME.toml` beside it, as a plugin called
    /// after the file. It stays until [`Self::unregister_plugin`] or the end of this kernel; called again
    /// for the same file, it takes what the file holds then. The file is not watched.
    ///
    /// # Errors
    /// [`Error::Plugin`] with the diagnosis; what the name served before, it goes on serving.
    /// [`Error::ReadOnly`].
    pub async fn register_plugin(&self, path: impl AsRef<Path>) -> Result<PluginInfo, Error> {
        self.owner()?;
        let path = path.as_ref();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let refused = |fault: Fault| Error::Plugin { name: name.clone(), fault };
        let (found, _) = candidate(path, &name).map_err(refused)?;
        Ok(self.plugin_info(self.0.registry.register(found).await.map_err(refused)?))
    }

    /// Takes out a plugin that [`Self::register_plugin`] put in; calls under way end as they would have.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is not such a plugin.
    pub fn unregister_plugin(&self, name: &str) -> Result<(), Error> {
        match self.0.registry.unregister(name) {
            true => Ok(()),
            false => Err(Error::Invalid(format!("`{name}` is no plugin that was registered by a call"))),
        }
    }

    fn plugin_info(&self, record: Record) -> PluginInfo {
        let mut kind = Vec::new();
        if !record.tools.is_empty() {
            kind.push("tool".to_owned());
        }
        if !record.hooks.is_empty() {
            kind.push("hook".to_owned());
        }
        if record.is_agent {
            kind.push("agent".to_owned());
        }
        PluginInfo {
            trusted: self.trusts(&record),
            contract: (!kind.is_empty()).then(|| if record.is_foreign { FOREIGN } else { VERSION }.to_owned()),
            kind,
            file: record.file.map(|f| f.display().to_string()),
            state: record.state.name().to_owned(),
            version: record.version,
            digest: record.digest,
            tools: record.tools,
            hooks: record.hooks.iter().map(ToString::to_string).collect(),
            agents: if record.is_agent { vec![record.name.clone()] } else { Vec::new() },
            requested: record.requested,
            granted: self.granted(&record.name),
            calls: record.counts.calls.load(Ordering::Relaxed),
            errors: record.counts.errors.load(Ordering::Relaxed),
            diagnosis: record.fault.map(Into::into),
            name: record.name,
        }
    }
}

/// Writes what happens to plugins into the kernel's chain, as long as there is one.
async fn audit_plugins(kernel: Weak<Inner>, mut notices: UnboundedReceiver<Notice>) {
    while let Some(notice) = notices.recv().await {
        let Some(kernel) = kernel.upgrade().map(Kernel) else { return };
        let Notice { plugin, what } = notice.clone();
        let (event, object, decision, by) = match what {
            Happened::Loaded { digest, wasi03 } => {
                let by = if wasi03 { "wasi03" } else { "kernel" };
                ("plugin-load", format!("{plugin} {digest}"), "allow", by)
            }
            Happened::Refused(code) => ("plugin-load", plugin, "deny", code),
            Happened::Unloaded => ("plugin-unload", plugin, "allow", "kernel"),
            Happened::Barred(why) => ("hook-barred", format!("{plugin}: {why}"), "deny", "kernel"),
        };
        if let Err(e) = kernel.audit(event, &object, decision, by).await {
            tracing::warn!("what happened to the plugin {object} is not in the audit log: {e}");
        }
        kernel.tell_of_plugin(&notice).await;
    }
}

/// Looks at a component file and the manifest beside it, as the plugin that the file makes or as `name`; `wasi03`:
/// whether WASI 0.3 is allowed. Nothing of it is compiled or run.
#[must_use]
pub fn report_file(path: &Path, name: Option<&str>, wasi03: bool) -> PluginReport {
    let stem = || path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let name = name.map_or_else(stem, str::to_owned);
    let report = PluginReport { file: Some(path.display().to_string()), name, ..PluginReport::default() };
    let contents = candidate(path, &report.name).and_then(|(_, files)| files.contents());
    let Contents { component, manifest, wit } = match contents {
        Ok(contents) => contents,
        Err(fault) => return refused(report, fault),
    };
    let manifest = manifest.map_or_else(|| Ok(Manifest::default()), |text| Manifest::parse(&report.name, &text));
    let report = report_bytes(report, &component, wasi03);
    if let Some(Err(fault)) = wit.map(|text| Comments::parse(&text)).filter(|_| report.ok) {
        return refused(report, fault);
    }
    match manifest {
        Ok(Manifest { version, permissions, .. }) => PluginReport { version, requested: permissions, ..report },
        Err(fault) if report.ok => refused(report, fault),
        Err(_) => report,
    }
}

/// Looks at a bundled component; `None` where there is none of that name.
#[must_use]
pub fn report_bundled(name: &str) -> Option<PluginReport> {
    let bundled = plugin::bundled().iter().find(|b| b.name == name)?;
    Some(report_bytes(PluginReport { name: name.to_owned(), ..PluginReport::default() }, bundled.component, false))
}

fn report_bytes(report: PluginReport, bytes: &[u8], wasi03: bool) -> PluginReport {
    let report = PluginReport { bytes: bytes.len() as u64, digest: Some(crate::engine::digest(bytes)), ..report };
    let shape = match Shape::read(bytes) {
        Ok(shape) => shape,
        Err(fault) => return refused(report, fault),
    };
    let role = shape.role().ok();
    let report = PluginReport {
        ok: true,
        kind: role.map(|r| r.name().to_owned()),
        contract: role.map(|role| role.contract().to_owned()),
        needs: shape.needs(),
        imports: shape.imports(),
        exports: shape.exports(),
        drift: shape.drift(),
        left_out: role.filter(|r| *r == Role::Foreign).map(|_| shape.toolbox().left_out).unwrap_or_default(),
        ..report
    };
    match shape.check(wasi03) {
        Ok(_) => report,
        Err(fault) => refused(report, fault),
    }
}

fn refused(report: PluginReport, fault: Fault) -> PluginReport {
    PluginReport { ok: false, diagnosis: Some(fault.into()), ..report }
}

impl From<Fault> for Diagnosis {
    fn from(Fault { code, message, hint }: Fault) -> Self {
        Self { code: code.to_owned(), message, hint }
    }
}

/// The plugin `name` of a component file, and its files.
fn candidate(path: &Path, name: &str) -> Result<(Candidate, Files), Fault> {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    if extension != "wasm" {
        return Err(Fault {
            code: "no_interpreter",
            message: format!("{} is no component: this aok runs `.wasm` files only", path.display()),
            hint: "build a component of it".into(),
        });
    }
    check_name(name)?;
    let beside = |extension: &str| Some(path.with_extension(extension)).filter(|p| p.exists());
    let (manifest, wit) = (beside("toml"), beside("wit"));
    let files = Files { component: path, manifest, wit };
    let stamp = files.stamp()?;
    Ok((Candidate { stamp, ..Candidate::new(name, Origin::Files(files.clone())) }, files))
}
