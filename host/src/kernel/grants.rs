//! What the operator grants to plugins of a running kernel: checked, written, in the audit log, and in
//! force for the next call.

use super::info::GrantReport;
use super::{Error, Kernel};
use crate::capability::Permissions;
use crate::grants::{self, Revocation};
use crate::registry::{Record, State};

/// Who acts, in the audit log.
const OPERATOR: &str = "operator";

impl Kernel {
    /// Grants more to a plugin of a directory. It is in force for the next call.
    ///
    /// # Errors
    /// [`Error::UnknownPlugin`]; [`Error::Grants`]: see [`grants::Grants::grant`]; [`Error::ReadOnly`].
    pub async fn grant(&self, plugin: &str, more: &Permissions) -> Result<GrantReport, Error> {
        self.owner()?;
        let record = self.grantee(plugin)?;
        let said = self.0.grants.grant(plugin, more)?;
        for word in said.words() {
            self.audit("grant", &format!("{plugin} {word}"), "allow", OPERATOR).await?;
        }
        let mut report = self.grant_report(&record);
        report.notes = without_effect(&said, &record.requested);
        let unset = said.secrets.iter().filter(|s| std::env::var_os(&s.name).is_none());
        report.notes.extend(unset.map(|s| {
            format!("the environment of this kernel has no variable {}: calls are denied until it has", s.name)
        }));
        Ok(report)
    }

    /// Takes back what was granted: all of it, where `less` names nothing. Calls under way end as they would have.
    ///
    /// # Errors
    /// [`Error::Grants`]: see [`grants::Grants::revoke`]; [`Error::ReadOnly`].
    pub async fn revoke(&self, plugin: &str, less: &Revocation) -> Result<GrantReport, Error> {
        self.owner()?;
        self.0.grants.revoke(plugin, less)?;
        let mut words = less.entries.words();
        words.extend(less.keys.iter().map(|key| key.name().to_owned()));
        let words = if words.is_empty() { vec!["everything".to_owned()] } else { words };
        for word in words {
            self.audit("revoke", &format!("{plugin} {word}"), "allow", OPERATOR).await?;
        }
        // A plugin that is gone may have grants left.
        let record = self.record(plugin);
        if let Some(record) = &record {
            self.tell_hooks_of_trust(record);
        }
        let none = || GrantReport {
            name: plugin.to_owned(),
            requested: Permissions::default(),
            granted: self.granted(plugin),
            trusted: false,
            notes: Vec::new(),
        };
        Ok(record.map_or_else(none, |record| self.grant_report(&record)))
    }

    /// Trusts the component that a plugin of a directory has now, and no other one in its place.
    ///
    /// # Errors
    /// [`Error::UnknownPlugin`]; [`Error::Grants`] if it has no component that could be read;
    /// [`Error::ReadOnly`].
    pub async fn trust(&self, plugin: &str) -> Result<GrantReport, Error> {
        self.owner()?;
        let record = self.grantee(plugin)?;
        let Some(digest) = &record.digest else {
            return Err(Error::Grants(grants::Error::Refused {
                message: format!("the component of `{plugin}` could not be read, so there is nothing to trust"),
                hint: "`aok plugin ls` says what is wrong with it".to_owned(),
            }));
        };
        self.0.grants.trust(plugin, digest)?;
        self.audit("trust", &format!("{plugin} {digest}"), "allow", OPERATOR).await?;
        self.tell_hooks_of_trust(&record);
        Ok(self.grant_report(&record))
    }

    /// What the operator grants a plugin.
    pub(super) fn granted(&self, plugin: &str) -> Permissions {
        self.0.grants.of(plugin).map(|granted| Permissions::clone(&granted)).unwrap_or_default()
    }

    /// Whether a plugin's component is trusted: the binary answers for what is in it.
    pub(super) fn trusts(&self, record: &Record) -> bool {
        let pinned = |digest: &String| self.0.grants.trusts(&record.name, digest);
        record.file.is_none() || record.digest.as_ref().is_some_and(pinned)
    }

    /// Lets a plugin's hooks rewrite from now on, or no more.
    fn tell_hooks_of_trust(&self, record: &Record) {
        self.0.services.hooks.trust(&record.name, self.trusts(record));
    }

    fn grant_report(&self, record: &Record) -> GrantReport {
        GrantReport {
            name: record.name.clone(),
            requested: record.requested.clone(),
            granted: self.granted(&record.name),
            trusted: self.trusts(record),
            notes: Vec::new(),
        }
    }

    /// The plugin of a name: that which serves it, where several files have it.
    fn record(&self, plugin: &str) -> Option<Record> {
        let mut records: Vec<_> = self.0.registry.records().into_iter().filter(|r| r.name == plugin).collect();
        let serving = records.iter().position(|r| r.state == State::Loaded).unwrap_or(0);
        (serving < records.len()).then(|| records.swap_remove(serving))
    }

    fn grantee(&self, plugin: &str) -> Result<Record, Error> {
        match self.record(plugin) {
            Some(record) if record.file.is_some() => Ok(record),
            Some(_) => Err(Error::Grants(grants::Error::Refused {
                message: format!("`{plugin}` is bundled: it has what the process that calls it has"),
                hint: "give the run a directory with `--dir PATH`, a host with `--host HOST`".to_owned(),
            })),
            None => {
                let files = self.0.registry.records().into_iter().filter(|r| r.file.is_some());
                Err(Error::UnknownPlugin { name: plugin.to_owned(), known: files.map(|r| r.name).collect() })
            }
        }
    }
}

/// Kinds of grants that the manifest does not ask for, so that they change nothing.
fn without_effect(granted: &Permissions, requested: &Permissions) -> Vec<String> {
    let counts = |p: &Permissions| [p.read.len(), p.write.len(), p.http.len(), p.env.len(), p.secrets.len()];
    let mut asks = counts(requested);
    // Who may write may read.
    asks[0] += requested.write.len();
    let keys = ["read", "write", "http", "env", "secrets"].into_iter().zip(counts(granted)).zip(asks);
    let idle = keys.filter(|((_, granted), asks)| *granted > 0 && *asks == 0);
    idle.map(|((key, _), _)| {
        format!("its manifest asks for no `{key}` under `[permissions]`, so that grant has no effect")
    })
    .collect()
}
