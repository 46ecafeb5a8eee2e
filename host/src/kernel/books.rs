//! The accounts of groups and processes, as the store has them when a kernel begins.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use super::lock;
use crate::config::GroupConfig;
use crate::process::{Pid, ProcessSpec, Usage};
use crate::quota::{Account, Resource};
use crate::storage::ProcessRow;

/// What was used, by resource.
type Used = [(Resource, u64); 5];

fn used(usage: &Usage) -> Used {
    [
        (Resource::Fuel, usage.fuel),
        (Resource::Tokens, usage.tokens_in.saturating_add(usage.tokens_out)),
        (Resource::MicroUsd, usage.micro_usd.unwrap_or(0)),
        (Resource::ToolCalls, usage.tool_calls),
        (Resource::StoreBytes, usage.store_bytes),
    ]
}

fn add(sum: &mut Used, more: &Used) {
    for ((_, sum), (_, more)) in sum.iter_mut().zip(more) {
        *sum = sum.saturating_add(*more);
    }
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Books {
    limits: BTreeMap<String, GroupConfig>,
    groups: Mutex<HashMap<String, Arc<Account>>>,
    /// What an unfinished process and those that it spawned had used when this kernel began.
    left: Mutex<HashMap<Pid, Used>>,
}

impl Books {
    /// From the processes of the store.
    pub(super) fn read(rows: &[ProcessRow], limits: BTreeMap<String, GroupConfig>) -> Self {
        let above: HashMap<Pid, Option<Pid>> = rows.iter().map(|row| (row.spec.pid, row.spec.ppid)).collect();
        let mut sums: HashMap<Pid, Used> = HashMap::new();
        let mut groups: HashMap<&str, Used> = HashMap::new();
        let nothing = used(&Usage::default());
        for row in rows {
            let own = used(&row.usage);
            add(groups.entry(&row.spec.group).or_insert(nothing), &own);
            let mut at = Some(row.spec.pid);
            // A parent is older than its child, so this ends.
            while let Some(pid) = at {
                add(sums.entry(pid).or_insert(nothing), &own);
                at = above.get(&pid).copied().flatten().filter(|parent| *parent < pid);
            }
        }
        let unfinished = rows.iter().filter(|row| row.exit.is_none()).map(|row| row.spec.pid);
        let left = unfinished.filter_map(|pid| Some((pid, sums.remove(&pid)?))).collect();
        let books = Self { limits, groups: Mutex::default(), left: Mutex::new(left) };
        for (name, used) in groups {
            books.open_group(name, used);
        }
        books
    }

    fn open_group(&self, name: &str, used: Used) -> Arc<Account> {
        let quota = self.limits.get(name).cloned().unwrap_or_default().quota();
        let mut groups = lock(&self.groups);
        let open = || Account::new(format!("group {name}"), &quota, None, used);
        Arc::clone(groups.entry(name.to_owned()).or_insert_with(open))
    }

    /// The account of a group.
    pub(super) fn group(&self, name: &str) -> Arc<Account> {
        self.open_group(name, used(&Usage::default()))
    }

    /// An account of a process, below that of its spawner, or else of its group.
    pub(super) fn account(&self, spec: &ProcessSpec, spawner: Option<Arc<Account>>) -> Arc<Account> {
        let used = lock(&self.left).remove(&spec.pid).unwrap_or_else(|| used(&Usage::default()));
        let above = spawner.unwrap_or_else(|| self.group(&spec.group));
        Account::new(format!("process {}", spec.pid), &spec.quota, Some(above), used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{Exit, ProcessState};

    fn row(pid: u64, ppid: Option<u64>, tool_calls: u64, ended: bool) -> ProcessRow {
        ProcessRow {
            spec: ProcessSpec { ppid: ppid.map(Pid), ..ProcessSpec::sample(pid) },
            state: ProcessState::Runnable,
            waiting_on: None,
            usage: Usage { tool_calls, ..Usage::default() },
            exit: ended.then(|| Exit::Success(String::new())),
        }
    }

    #[test]
    fn what_a_tree_used_is_known_after_a_restart() {
        let rows =
            [row(1, None, 1, false), row(2, Some(1), 10, true), row(3, Some(2), 100, false), row(4, None, 7, true)];
        let limit = GroupConfig { tool_calls: 120, ..GroupConfig::default() };
        let books = Books::read(&rows, [("default".to_owned(), limit)].into());
        let root = books.account(&rows[0].spec, None);
        let grandchild = books.account(&rows[2].spec, Some(Arc::clone(&root)));
        let calls = |account: &Account| account.used(Resource::ToolCalls);
        assert_eq!((calls(&root), calls(&grandchild), calls(&books.group("default"))), (111, 100, 118));
        grandchild.charge(Resource::ToolCalls, 1);
        assert_eq!((calls(&root), calls(&books.group("default"))), (112, 119));
        assert_eq!(grandchild.reserve(Resource::ToolCalls, 2).unwrap_err().owner, "group default");
        assert_eq!(calls(&books.group("other")), 0);
    }
}
