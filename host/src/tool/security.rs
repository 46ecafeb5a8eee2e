//! `ToolSecurity`: what a process may call, and what the call may reach.

use super::{Entry, Source};
use crate::abi::{Errno, Error};
use crate::capability::Rights;
use crate::process::{Mount, ProcessSpec};

/// The policy stage's answers about tools. Default: nothing.
#[derive(Debug, Default)]
pub struct ToolSecurity;

impl ToolSecurity {
    /// What a call of `tool` by `process` may reach, if it may be made.
    ///
    /// # Errors
    /// `denied` for a tool of WASI 0.3 where a directory is private: it would find no copy to write to.
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
        Ok(self.rights(process, tool))
    }

    /// What a call of `tool` by `process` may reach, of what its code asks for: a bundled tool the
    /// directories and hosts that the process was given, a plugin of a directory none of them.
    #[must_use]
    pub fn rights(&self, process: &ProcessSpec, tool: &Entry) -> Rights {
        match tool.source {
            Source::Bundled => Rights {
                mounts: process.mounts.iter().filter(|m| tool.needs.files && tool.sees(m)).cloned().collect(),
                hosts: if tool.needs.network { process.hosts.clone() } else { Vec::new() },
            },
            Source::Directory => Rights::default(),
        }
    }

    /// Whether `process` is told of `tool`: one that could only answer `denied` is not offered. A
    /// call of it is still answered by the tool itself, with the grant that is missing.
    #[must_use]
    pub fn offers(&self, process: &ProcessSpec, tool: &Entry) -> bool {
        if !tool.needs.files && !tool.needs.network {
            return true;
        }
        let Rights { mounts, hosts } = self.rights(process, tool);
        let files = if tool.spec.effect.is_outward() { mounts.iter().any(|m| m.writable) } else { !mounts.is_empty() };
        (files || !tool.needs.files) && (!hosts.is_empty() || !tool.needs.network)
    }
}

impl Entry {
    /// Whether it can be given a directory: WASI 0.3 knows nothing of private copies.
    fn sees(&self, mount: &Mount) -> bool {
        !(self.needs.wasi03 && mount.is_private())
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use super::*;
    use crate::abi::{Effect, ToolSpec};
    use crate::capability::Needs;
    use crate::process::Pid;
    use crate::quota::{Limits, ResourceQuota};
    use crate::tool::{Invocation, Invoke, Report};

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
            pid: Pid(1),
            ppid: None,
            name: "n".into(),
            agent: "a".into(),
            digest: String::new(),
            model: None,
            group: "default".into(),
            nice: 0,
            task: "t".into(),
            mounts: vec![Mount { host: PathBuf::from("/w"), guest: "w".into(), writable: true, private }],
            hosts: Vec::new(),
            yes: false,
            quota: ResourceQuota::STANDARD,
            seed: 1,
            created_ms: 1,
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
            needs: Needs { files: true, network: false, wasi03 },
            limits: Limits::TOOL,
            stateful: false,
            code: Arc::new(Nothing),
        };
        let check = |wasi03, private, given: bool| {
            let (process, tool) = (process(private), entry(wasi03));
            let admitted = ToolSecurity.admit(&process, &tool);
            assert_eq!((admitted.is_ok(), ToolSecurity.offers(&process, &tool)), (given, given));
            assert_eq!(ToolSecurity.rights(&process, &tool).mounts.len(), usize::from(given));
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
