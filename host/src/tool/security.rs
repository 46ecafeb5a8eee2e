//! `ToolSecurity`: what a process may call, and what the call may reach.

use super::{Entry, Source};
use crate::capability::Rights;
use crate::process::ProcessSpec;

/// The policy stage's answers about tools. Default: nothing.
#[derive(Debug, Default)]
pub struct ToolSecurity;

impl ToolSecurity {
    /// What a call of `tool` by `process` may reach, of what its code asks for: a bundled tool the
    /// directories and hosts that the process was given, a plugin of a directory none of them.
    #[must_use]
    pub fn rights(&self, process: &ProcessSpec, tool: &Entry) -> Rights {
        match tool.source {
            Source::Bundled => Rights {
                mounts: if tool.needs.files { process.mounts.clone() } else { Vec::new() },
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
