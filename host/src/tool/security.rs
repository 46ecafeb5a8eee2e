//! `ToolSecurity`: what a process may call, and what the call may reach.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Entry, Secrets, Source};
use crate::abi::{Errno, Error};
use crate::capability::{ANY, Needs, Permissions, PluginRights, Rights, Secret};
use crate::grants::{Grants, mounts};
use crate::process::{Mount, ProcessSpec};

/// The policy stage's answers about tools. Default: nothing.
#[derive(Debug, Default)]
pub struct ToolSecurity {
    grants: Grants,
    secrets: Secrets,
}

/// A plugin of a directory that is about to run, whatever its role.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// Its name.
    pub plugin: &'a str,
    /// What its code asks for.
    pub needs: Needs,
    /// What its manifest asks for.
    pub asked: &'a Permissions,
}

impl<'a> Claim<'a> {
    fn of(tool: &'a Entry) -> Self {
        Self { plugin: &tool.plugin, needs: tool.needs, asked: &tool.asked }
    }
}

impl ToolSecurity {
    /// The policy of these grants.
    #[must_use]
    pub fn new(grants: Grants, secrets: Secrets) -> Self {
        Self { grants, secrets }
    }

    /// What a call of `tool` by `process` may reach, if it may be made.
    ///
    /// # Errors
    /// `denied` for a tool of WASI 0.3 where a directory is private: it would find no copy to write to; and as
    /// [`Self::rights`].
    pub fn admit(&self, process: &ProcessSpec, tool: &Entry) -> Result<Rights, Error> {
        let may = tool.source == Source::Bundled && tool.needs.files;
        if let Some(mount) = process.mounts.iter().find(|mount| may && !tool.sees(mount)) {
            let message = format!(
                "`{}` uses WASI 0.3, for which there are no private copies, and `{}` is private; the operator grants \
                 it with --direct",
                tool.spec.name, mount.guest
            );
            return Err(Error::new(Errno::Denied, message));
        }
        self.rights(process, tool)
    }

    /// What a call of `tool` by `process` may reach, of what its code asks for: a bundled tool the
    /// directories and hosts that the process was given, a plugin of a directory what its manifest asks for
    /// and its operator grants.
    ///
    /// # Errors
    /// `denied`: see [`Self::plugin`].
    pub fn rights(&self, process: &ProcessSpec, tool: &Entry) -> Result<Rights, Error> {
        match tool.source {
            Source::Bundled => Ok(Rights {
                mounts: process.mounts.iter().filter(|m| tool.needs.files && tool.sees(m)).cloned().collect(),
                hosts: if tool.needs.network { process.hosts.clone() } else { Vec::new() },
                plugin: None,
            }),
            Source::Directory => self.plugin(Claim::of(tool)),
        }
    }

    /// What a plugin of a directory may reach: what its code imports, and its manifest asks for, and its
    /// operator grants at this moment. One that imports nothing costs nothing.
    ///
    /// # Errors
    /// `denied`: a granted directory is not there any more or leads elsewhere, two of them have one name, or
    /// a secret has no value.
    pub fn plugin(&self, claim: Claim<'_>) -> Result<Rights, Error> {
        let Claim { plugin, needs, asked } = claim;
        if !needs.files && !needs.network && (!needs.environment || asked.is_empty()) {
            return Ok(Rights::default());
        }
        let granted = self.grants.of(plugin).unwrap_or_default();
        let mounts = if needs.files { directories(plugin, asked, &granted)? } else { Vec::new() };
        let mut rights = PluginRights { name: plugin.to_owned(), ..PluginRights::default() };
        if needs.network {
            rights.asked.clone_from(&asked.http);
            rights.granted.clone_from(&granted.http);
        }
        if needs.environment {
            let both = asked.env.iter().filter(|name| granted.env.contains(name));
            rights.env = both.filter_map(|name| Some((name.clone(), self.secrets.variable(name)?))).collect();
        }
        if needs.environment && needs.network {
            rights.secrets = self.secrets(plugin, asked, &granted)?;
        }
        Ok(Rights { mounts, hosts: Vec::new(), plugin: Some(Arc::new(rights)) })
    }

    /// Whether the operator trusts this very component of a plugin.
    #[must_use]
    pub fn trusts(&self, plugin: &str, digest: &str) -> bool {
        self.grants.trusts(plugin, digest)
    }

    fn secrets(&self, plugin: &str, asked: &Permissions, granted: &Permissions) -> Result<Vec<Secret>, Error> {
        let mut secrets = Vec::new();
        for wish in &asked.secrets {
            if let Some(grant) = granted.secrets.iter().find(|grant| grant.name == wish.name) {
                secrets.push(self.secrets.get(plugin, &wish.name, &wish.hosts, &grant.hosts)?);
            }
        }
        Ok(secrets)
    }

    /// Whether `process` is told of `tool`: one that could only answer `denied` is not offered. A
    /// call of it is still answered by the tool itself, with the grant that is missing.
    #[must_use]
    pub fn offers(&self, process: &ProcessSpec, tool: &Entry) -> bool {
        let Needs { files, network, .. } = tool.needs;
        if !files && !network {
            return true;
        }
        match tool.source {
            Source::Bundled => {
                let outward = tool.spec.effect.is_outward();
                let has_files = process.mounts.iter().any(|m| tool.sees(m) && (m.writable || !outward));
                (has_files || !files) && (!process.hosts.is_empty() || !network)
            }
            Source::Directory => {
                let asks_files = files && !(tool.asked.read.is_empty() && tool.asked.write.is_empty());
                let asks_network = network && !tool.asked.http.is_empty();
                let granted = self.grants.of(&tool.plugin).unwrap_or_default();
                let has_files = !granted.read.is_empty() || !granted.write.is_empty();
                // One that imports them and asks for neither was made to do what it may not.
                (asks_files || asks_network)
                    && (has_files || !asks_files)
                    && (!granted.http.is_empty() || !asks_network)
            }
        }
    }

    /// What an operator could grant to a tool whose call was denied, in words.
    #[must_use]
    pub fn advice(&self, tool: &Entry) -> Option<String> {
        let Claim { plugin, needs, asked } = Claim::of(tool);
        if tool.source == Source::Bundled || !(needs.files || needs.network) {
            return None;
        }
        if asked.is_empty() {
            return Some(format!("the manifest of the plugin `{plugin}` asks for nothing, so it has no rights"));
        }
        let granted = self.grants.of(plugin).unwrap_or_default();
        let mut missing = Vec::new();
        if needs.files && !asked.write.is_empty() && granted.write.is_empty() {
            missing.push("write=DIRECTORY");
        }
        if needs.files && !asked.read.is_empty() && granted.read.is_empty() && granted.write.is_empty() {
            missing.push("read=DIRECTORY");
        }
        if needs.network && !asked.http.is_empty() && granted.http.is_empty() {
            missing.push("http=HOST");
        }
        let missing = missing.join(" ");
        (!missing.is_empty())
            .then(|| format!("`aok plugin grant {plugin} {missing}` grants what its manifest asks for"))
    }
}

impl Entry {
    /// Whether it can be given a directory: WASI 0.3 knows nothing of private copies.
    fn sees(&self, mount: &Mount) -> bool {
        !(self.needs.wasi03 && mount.is_private())
    }
}

/// The directories of a plugin: for each pair of what is asked for and granted, the deeper one, if one holds the other.
fn directories(plugin: &str, asked: &Permissions, granted: &Permissions) -> Result<Vec<Mount>, Error> {
    if asked.read.is_empty() && asked.write.is_empty() {
        return Ok(Vec::new());
    }
    for path in granted.read.iter().chain(&granted.write) {
        // It was canonical when it was granted: another one now is not what the operator saw.
        if real(path).as_deref() != Some(path) {
            return Err(Error::new(
                Errno::Denied,
                format!(
                    "the directory {} that is granted to the plugin `{plugin}` is not there any more, or leads elsewhere; \
                     put it back, or take the grant back with `aok plugin revoke {plugin}`",
                    path.display()
                ),
            ));
        }
    }
    // Who may write may read.
    let write = deeper(&asked.write, granted.write.iter());
    let mut read = deeper(&asked.read, granted.read.iter().chain(&granted.write));
    read.extend(deeper(&asked.write, granted.read.iter()));
    mounts(&read, &write).map_err(|clash| {
        Error::new(
            Errno::Denied,
            format!("{clash}: take one back with `aok plugin revoke {plugin}`, or grant the directory that holds both"),
        )
    })
}

fn deeper<'a>(asked: &[PathBuf], granted: impl Iterator<Item = &'a PathBuf> + Clone) -> Vec<PathBuf> {
    let mut both = Vec::new();
    for wish in asked {
        if wish == Path::new(ANY) {
            both.extend(granted.clone().cloned());
            continue;
        }
        let Some(wish) = real(wish) else { continue };
        for grant in granted.clone() {
            if wish.starts_with(grant) {
                both.push(wish.clone());
            } else if grant.starts_with(&wish) {
                both.push(grant.clone());
            }
        }
    }
    both
}

fn real(path: &Path) -> Option<PathBuf> {
    path.canonicalize().ok().filter(|path| path.is_dir())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::abi::{Effect, ToolSpec};
    use crate::quota::Limits;
    use crate::tool::{Invocation, Invoke, Report};

    const NEEDS: Needs = Needs { files: true, network: true, environment: true, wasi03: false };

    struct Place {
        dir: tempfile::TempDir,
        security: ToolSecurity,
    }

    impl Place {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            for name in ["data", "srv/app/logs", "other"] {
                fs::create_dir_all(dir.path().join(name)).unwrap();
            }
            let data = dir.path().join("data");
            let grants = Grants::open(&std::collections::BTreeMap::new(), Path::new("aok.toml"), &data, &[]).unwrap();
            let secrets = Secrets::new(|name| name.starts_with("SET").then(|| "a value of it".into()));
            Self { dir, security: ToolSecurity::new(grants, secrets) }
        }

        fn at(&self, name: &str) -> PathBuf {
            self.dir.path().canonicalize().unwrap().join(name)
        }

        /// Permissions whose texts have `DIR/` for this place.
        fn parse(&self, text: &str) -> Permissions {
            toml::from_str(&text.replace("DIR", self.at("").to_str().unwrap().trim_end_matches('/'))).unwrap()
        }

        fn grant(&self, text: &str) {
            self.security.grants.grant("p", &self.parse(text)).unwrap();
        }

        fn rights(&self, needs: Needs, asked: &str) -> Result<Rights, Error> {
            self.security.plugin(Claim { plugin: "p", needs, asked: &self.parse(asked) })
        }

        fn mounts(&self, asked: &str) -> String {
            let rights = self.rights(NEEDS, asked).unwrap();
            let show = |m: &Mount| format!("{}{}", m.guest, if m.writable { ":rw" } else { "" });
            rights.mounts.iter().map(show).collect::<Vec<_>>().join(" ")
        }
    }

    #[test]
    fn directories_are_what_both_sides_hold() {
        let place = Place::new();
        place.grant("read = [\"DIR/srv/app\"]\nwrite = [\"DIR/other\"]");
        for (asked, mounts) in [
            ("", ""),
            ("read = [\"*\"]", "other app"),
            ("write = [\"*\"]", "other:rw app"),
            ("read = [\"DIR/srv\"]", "app"),
            ("read = [\"DIR/srv/app\"]", "app"),
            ("read = [\"DIR/srv/app/logs\"]", "logs"),
            ("read = [\"DIR/srv/ap\"]", ""),
            ("read = [\"/etc\"]", ""),
            ("read = [\"/nowhere\"]", ""),
            ("read = [\"DIR/srv/app\", \"DIR/srv/app/logs\"]", "app"),
            ("write = [\"DIR/srv/app\"]", "app"),
            ("write = [\"DIR/other\"]", "other:rw"),
            ("read = [\"DIR/other\"]", "other"),
        ] {
            let got = place.mounts(asked);
            let sorted = |s: &str| {
                let mut names: Vec<_> = s.split(' ').map(str::to_owned).collect();
                names.sort();
                names
            };
            assert_eq!(sorted(&got), sorted(mounts), "{asked}");
        }
        assert!(place.rights(Needs { files: false, ..NEEDS }, "read = [\"*\"]").unwrap().mounts.is_empty());
    }

    #[test]
    fn a_directory_that_became_another_is_refused() {
        let place = Place::new();
        place.grant("read = [\"DIR/other\"]");
        // What is asked for may be a link, and is what it leads to.
        symlink("/etc", place.at("srv/app/way")).unwrap();
        assert_eq!(place.mounts("read = [\"DIR/srv/app/way\"]"), "");
        fs::remove_dir(place.at("other")).unwrap();
        for _ in 0..2 {
            let error = place.rights(NEEDS, "read = [\"*\"]").unwrap_err();
            assert_eq!(error.code, Errno::Denied);
            assert!(error.message.contains("other") && error.message.contains("aok plugin revoke p"), "{error:?}");
            let _ = symlink("/etc", place.at("other"));
        }
    }

    #[test]
    fn a_tool_without_needs_has_no_rights_whatever_is_granted() {
        let place = Place::new();
        place.grant("http = [{ host = \"h\" }]\nenv = [\"SET\"]");
        let asked = "http = [{ host = \"h\" }]\nenv = [\"SET\"]";
        assert_eq!(place.rights(Needs::default(), asked).unwrap(), Rights::default());
        let network = place.rights(Needs { network: true, ..Needs::default() }, asked).unwrap().plugin.unwrap();
        assert_eq!((network.granted.len(), network.asked.len(), network.env.len()), (1, 1, 0));
        let none = place.rights(NEEDS, "").unwrap().plugin.unwrap();
        assert_eq!((none.asked.len(), none.env.len(), none.secrets.len()), (0, 0, 0));
    }

    #[test]
    fn variables_and_secrets_are_what_both_sides_name() {
        let place = Place::new();
        place.grant(
            "env = [\"SET_A\", \"SET_B\", \"UNSET\"]\n\
             secrets = [{ name = \"SET_K\", hosts = [\"h\"] }, { name = \"NOT_THERE\", hosts = [\"h\"] }]",
        );
        let asked = "env = [\"SET_A\", \"UNSET\", \"SET_C\"]\nsecrets = [{ name = \"SET_K\", hosts = [\"*\"] }]";
        let rights = place.rights(NEEDS, asked).unwrap().plugin.unwrap();
        assert_eq!(rights.env, [("SET_A".to_owned(), "a value of it".to_owned())]);
        assert_eq!((rights.secrets.len(), rights.secrets[0].value.reveal()), (1, "a value of it"));
        // Without the variables or the network there is nothing to do with a secret.
        for needs in [Needs { environment: false, ..NEEDS }, Needs { network: false, ..NEEDS }] {
            assert!(place.rights(needs, asked).unwrap().plugin.unwrap().secrets.is_empty());
        }
        let missing = "secrets = [{ name = \"NOT_THERE\", hosts = [\"h\"] }]";
        let error = place.rights(NEEDS, missing).unwrap_err();
        assert!(error.code == Errno::Denied && error.message.contains("no variable NOT_THERE"), "{error:?}");
    }

    #[derive(Debug)]
    struct Nothing;

    #[async_trait::async_trait]
    impl Invoke for Nothing {
        async fn invoke(&self, _: Invocation) -> Report {
            unreachable!("nothing is called")
        }
    }

    fn process(private: bool) -> ProcessSpec {
        ProcessSpec {
            mounts: vec![Mount { host: PathBuf::from("/w"), guest: "w".into(), writable: true, private }],
            ..ProcessSpec::sample(1)
        }
    }

    #[test]
    fn a_tool_of_wasi_03_is_denied_a_private_directory_and_told_so() {
        let schema = serde_json::json!({ "type": "object" });
        let entry = |wasi03| Entry {
            validator: jsonschema::validator_for(&schema).unwrap(),
            spec: ToolSpec {
                name: "t__x".into(),
                description: String::new(),
                input_schema: schema.clone(),
                output_schema: None,
                effect: Effect::Idempotent,
            },
            plugin: "t".into(),
            tool: "x".into(),
            source: Source::Bundled,
            needs: Needs { files: true, wasi03, ..Needs::default() },
            asked: Arc::default(),
            limits: Limits::TOOL,
            stateful: false,
            code: Arc::new(Nothing),
        };
        let check = |wasi03, private, given: bool| {
            let (process, tool) = (process(private), entry(wasi03));
            let admitted = ToolSecurity::default().admit(&process, &tool);
            assert_eq!((admitted.is_ok(), ToolSecurity::default().offers(&process, &tool)), (given, given));
            assert_eq!(ToolSecurity::default().rights(&process, &tool).unwrap().mounts.len(), usize::from(given));
            if let Err(e) = admitted {
                assert!(e.code == Errno::Denied && e.message.contains("--direct"), "{}", e.message);
            }
        };
        check(false, true, true);
        check(false, false, true);
        check(true, false, true);
        check(true, true, false);
    }
}
