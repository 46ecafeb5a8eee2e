//! What a process is asked to be: checked before anything of it exists, and told to its model.

use std::collections::BTreeMap;

use super::{Error, SpawnRequest};
use crate::capability::HostGrant;
use crate::process::Mount;
use crate::quota::ResourceQuota;

/// Longest task and name, in bytes.
const MAX_TASK: usize = 1 << 20;
const MAX_NAME: usize = 128;

/// Most hosts that are granted to a process; each request is held against all of them.
const MAX_HOSTS: usize = 1_000;

/// The group of a process that was given none: whoever runs the kernel.
pub(super) fn user() -> String {
    ["USER", "LOGNAME"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok())
        .filter(|name| !name.is_empty() && name.len() <= MAX_NAME && !name.chars().any(char::is_control))
        .unwrap_or_else(|| "default".to_owned())
}

/// Checks what a process is to do.
pub(super) fn check_task(task: &str) -> Result<(), Error> {
    if task.trim().is_empty() {
        return Err(Error::Invalid("the task is empty: say what is to be done".to_owned()));
    }
    if task.len() > MAX_TASK {
        let why = format!("the task has {} bytes, the most is {MAX_TASK}: put it into a file", task.len());
        return Err(Error::Invalid(why));
    }
    Ok(())
}

pub(super) fn check_quota(quota: &ResourceQuota) -> Result<(), Error> {
    quota.zero().map_or(Ok(()), |name| {
        Err(Error::Invalid(format!("a limit of 0 {name} allows nothing: give a positive number")))
    })
}

pub(super) fn check_request(request: &SpawnRequest) -> Result<(), Error> {
    let invalid = |message: String| Err(Error::Invalid(message));
    check_task(&request.task)?;
    for (what, name) in [("name", &request.name), ("group", &request.group)] {
        if name.as_ref().is_some_and(|n| n.is_empty() || n.len() > MAX_NAME || n.chars().any(char::is_control)) {
            return invalid(format!("a {what} has 1 to {MAX_NAME} bytes and no control characters"));
        }
    }
    if !(-20..=19).contains(&request.nice) {
        return invalid(format!("nice is -20 to 19, not {}", request.nice));
    }
    check_quota(&request.quota)?;
    if request.hosts.len() > MAX_HOSTS {
        return invalid(format!(
            "{} hosts are granted, the most is {MAX_HOSTS}: grant a network or `*.DOMAIN`",
            request.hosts.len()
        ));
    }
    let mut names = BTreeMap::new();
    for mount in &request.mounts {
        if let Some(other) = names.insert(&mount.guest, &mount.host) {
            return invalid(format!(
                "{} and {} would both be called `{}`: rename one or give their parent",
                other.display(),
                mount.host.display(),
                mount.guest
            ));
        }
        if !mount.host.is_dir() {
            return invalid(format!("{} is no directory", mount.host.display()));
        }
    }
    Ok(())
}

/// What opens every agent's window: what the kernel knows and the model cannot. How to call tools is
/// the provider's to say, and a small model follows a short head better.
pub(super) fn system_text(mounts: &[Mount], hosts: &[HostGrant]) -> String {
    let list = |names: Vec<String>| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let mode = |m: &Mount| match m.writable {
        false => "read-only",
        true if m.private => "read and write, in a private copy that is applied after you are done",
        true => "read and write",
    };
    let mut text =
        format!("Directories: {}.", list(mounts.iter().map(|m| format!("{} ({})", m.guest, mode(m))).collect()));
    if !hosts.is_empty() {
        text.push_str(&format!("\nHosts: {}.", list(hosts.iter().map(ToString::to_string).collect())));
    }
    text
}
