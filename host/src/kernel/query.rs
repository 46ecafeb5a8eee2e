//! What the kernel tells about itself. All of it works on a reader too.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use tokio::sync::watch;

use super::info::{AgentInfo, AuditVerdict, PageInfo, ProcessInfo, ToolInfo};
use super::{End, Error, Kernel, Live, lock};
use crate::audit::{self, Fault, Record};
use crate::context::{PageManager, Placement};
use crate::metrics::{Gauges, Times};
use crate::process::{Exit, Pid, ProcessState};
use crate::scheduler::TaskState;
use crate::storage::{LogRecord, ProcessRow};
use crate::tool::{Entry, Lookup};

impl Kernel {
    /// All processes, ended ones included.
    ///
    /// # Errors
    /// A failing store.
    pub async fn ps(&self) -> Result<Vec<ProcessInfo>, Error> {
        self.0.services.store.sync_all().await;
        let rows = self.0.services.store.processes().await?;
        let slices = self.0.owner.as_ref().map(|owner| owner.scheduler.load().slice_ns).unwrap_or_default();
        let slice_us = slices.into_iter().max().map(|ns| ns / 1_000);
        Ok(rows.into_iter().map(|row| self.process_info(row, slice_us)).collect())
    }

    fn process_info(&self, row: ProcessRow, slice_us: Option<u64>) -> ProcessInfo {
        let live = self.live(row.spec.pid);
        let usage = match (&live, &row.exit) {
            (Some(live), None) => live.process.caller.usage(),
            _ => row.usage,
        };
        let slices = match (&live, &row.exit) {
            (Some(live), None) => usage.slices + live.task.slices(),
            _ => usage.slices,
        };
        let pages = live.as_ref().map(|l| l.process.caller.pages().usage());
        let running = live.as_ref().filter(|_| row.exit.is_none()).map(|l| &l.task);
        ProcessInfo {
            pid: row.spec.pid.0,
            ppid: row.spec.ppid.map(|p| p.0),
            state: state_of(row.state, row.exit.as_ref(), live.as_ref()),
            waiting_on: match &live {
                _ if row.exit.is_some() => None,
                Some(live) if live.process.end.borrow().is_none() => live.process.caller.activity(),
                _ => row.waiting_on,
            },
            name: row.spec.name,
            agent: row.spec.agent,
            model: row.spec.model,
            group: row.spec.group,
            nice: row.spec.nice,
            fuel: usage.fuel,
            slices,
            tokens_in: usage.tokens_in,
            tokens_cached: usage.tokens_cached,
            tokens_out: usage.tokens_out,
            micro_usd: usage.micro_usd,
            tool_calls: usage.tool_calls,
            pages_resident: pages.map(|p| u64::from(p.resident_pages)),
            pages_swapped: pages.map(|p| p.swapped_pages),
            tree: row.spec.root.map_or(row.spec.pid, |root| root.pid).0,
            task: row.spec.task,
            cpu_us: running.map(|task| task.cpu_ns() / 1_000),
            slice_us: running.and(slice_us),
            effective_nice: running.map(|task| task.effective_nice().get()),
            inherits_from: running.and_then(|task| task.inherits_from()).map(|pid| pid.0),
            exit: row.exit,
        }
    }

    /// Processes that have no exit and run under no kernel. Tool calls from outside do not count.
    ///
    /// # Errors
    /// A failing store.
    pub async fn unfinished(&self) -> Result<Vec<Pid>, Error> {
        let rows = self.0.services.store.processes().await?;
        let is_left = |row: &ProcessRow| {
            row.exit.is_none()
                && row.state != ProcessState::Swapped
                && row.spec.agent != crate::syscall::CLIENT
                && self.live(row.spec.pid).is_none()
        };
        Ok(rows.into_iter().filter(is_left).map(|row| row.spec.pid).collect())
    }

    /// Processes running now. A client that is connected and makes no call does not count.
    #[must_use]
    pub fn running(&self) -> Vec<Pid> {
        let Some(owner) = &self.0.owner else { return Vec::new() };
        let live = lock(&owner.live);
        let mut pids: Vec<_> =
            live.iter().filter(|(_, l)| l.process.end.borrow().is_none()).map(|(pid, _)| *pid).collect();
        drop(live);
        pids.retain(|pid| !owner.connections.is_idle(*pid));
        pids.sort_unstable();
        pids
    }

    /// A process's log lines after the `skip` first ones.
    ///
    /// # Errors
    /// [`Error::UnknownProcess`], a failing store.
    pub async fn logs(&self, pid: Pid, skip: u64) -> Result<Vec<LogRecord>, Error> {
        self.known(pid).await?;
        Ok(self.0.services.store.logs(pid, skip).await?)
    }

    pub(super) async fn known(&self, pid: Pid) -> Result<ProcessRow, Error> {
        self.0.services.store.sync_all().await;
        self.0.services.store.process(pid).await?.ok_or(Error::UnknownProcess { pid })
    }

    /// All tools by full name.
    #[must_use]
    pub fn tools(&self) -> Vec<ToolInfo> {
        self.0.services.tools.all().iter().map(|e| tool_info(e)).collect()
    }

    /// The tool of a full or bare name.
    ///
    /// # Errors
    /// [`Error::UnknownTool`], [`Error::AmbiguousTool`].
    pub fn tool(&self, name: &str) -> Result<ToolInfo, Error> {
        match self.0.services.tools.find(name) {
            Lookup::Found(entry) => Ok(tool_info(&entry)),
            Lookup::Ambiguous(candidates) => Err(Error::AmbiguousTool { name: name.to_owned(), candidates }),
            Lookup::Unknown => {
                let known = self.0.services.tools.all().iter().map(|e| e.spec.name.clone()).collect();
                Err(Error::UnknownTool { name: name.to_owned(), known })
            }
        }
    }

    /// Counts the changes of the tools.
    #[must_use]
    pub fn tool_changes(&self) -> watch::Receiver<u64> {
        self.0.services.tools.changes()
    }

    /// All agents by name.
    #[must_use]
    pub fn agents(&self) -> Vec<AgentInfo> {
        let agents = self.0.registry.agents().into_iter();
        agents
            .map(|a| AgentInfo {
                plugin: a.name.clone(),
                name: a.name,
                digest: a.digest,
                source: a.source.name().to_owned(),
            })
            .collect()
    }

    /// A process's pages: the window in its order, then what is swapped out.
    ///
    /// # Errors
    /// [`Error::UnknownProcess`], a failing store.
    pub async fn context(&self, pid: Pid) -> Result<Vec<PageInfo>, Error> {
        self.known(pid).await?;
        if let Some(live) = self.live(pid) {
            return Ok(page_infos(&live.process.caller.pages()));
        }
        let pages = self.0.services.store.pages(pid).await?;
        Ok(page_infos(&PageManager::restore(pid, u32::MAX, pages)))
    }

    /// The last audit records of all chains, or of one.
    ///
    /// # Errors
    /// A failing store.
    pub async fn audit_tail(&self, pid: Option<Pid>, limit: u64) -> Result<Vec<Record>, Error> {
        self.0.services.store.sync_all().await;
        Ok(self.0.services.store.audit_tail(pid, limit).await?)
    }

    /// Checks every chain: its hashes, its head, and what the kernel's chain says of it.
    ///
    /// # Errors
    /// A failing store. A broken chain is a verdict.
    pub async fn audit_verify(&self) -> Result<AuditVerdict, Error> {
        let store = &self.0.services.store;
        store.sync_all().await;
        let mut heads: BTreeMap<Pid, Option<audit::Head>> =
            store.audit_heads().await?.into_iter().map(|(pid, head)| (pid, Some(head))).collect();
        // A process whose chain and head are both gone is still in the process table.
        for row in store.processes().await? {
            heads.entry(row.spec.pid).or_default();
        }
        let kernel = store.audit_chain(Pid::KERNEL).await?;
        let sealed = sealed_heads(&kernel);
        let mut records = 0;
        for (pid, head) in heads {
            let chain = store.audit_chain(pid).await?;
            let missing = |seq| AuditVerdict::Bad { ok: false, pid: pid.0, seq, why: "missing".to_owned() };
            if chain.is_empty() {
                return Ok(missing(1));
            }
            match audit::verify(pid, &chain, head.as_ref()) {
                Ok(n) => records += n,
                Err(Fault { pid, seq, why }) => {
                    return Ok(AuditVerdict::Bad { ok: false, pid: pid.0, seq, why: why.to_string() });
                }
            }
            if let Some((seq, hash)) = sealed.get(&pid.0) {
                match chain.iter().find(|r| r.seq == *seq) {
                    None => {
                        return Ok(AuditVerdict::Bad { ok: false, pid: pid.0, seq: *seq, why: "truncated".to_owned() });
                    }
                    Some(record) if *record.hash != **hash => {
                        return Ok(AuditVerdict::Bad { ok: false, pid: pid.0, seq: *seq, why: "changed".to_owned() });
                    }
                    Some(_) => {}
                }
            }
        }
        Ok(AuditVerdict::Good { ok: true, records })
    }

    /// Prometheus text.
    #[must_use]
    pub fn metrics(&self) -> String {
        let load = self.0.owner.as_ref().map(|o| o.scheduler.load()).unwrap_or_default();
        let workers = load.busy_ns.len().max(1);
        let busy = std::time::Duration::from_nanos(load.busy_ns.iter().sum()).as_secs_f64();
        let waiting = u32::try_from(load.runnable + load.running).unwrap_or(u32::MAX);
        let workers = f64::from(u32::try_from(workers).unwrap_or(u32::MAX));
        let gauges = Gauges {
            cpu_usage: (busy / (self.0.started.elapsed().as_secs_f64() * workers)).min(1.0),
            memory_bytes: resident_bytes(),
            active_agents: self.running().len() as u64,
            storage_healthy: self.0.services.store.healthy(),
            scheduler_load: f64::from(waiting) / workers,
            wake_to_run: Times { counts: load.wake_to_run.counts, sum_ns: load.wake_to_run.sum_ns },
            queue_wait: Times { counts: load.queue_wait.counts, sum_ns: load.queue_wait.sum_ns },
        };
        self.0.services.metrics.render(Instant::now(), &gauges)
    }
}

/// What the kernel's chain says of the chains of ended processes: pid → (seq, hash).
fn sealed_heads(kernel: &[Record]) -> HashMap<u64, (u64, String)> {
    let sealed = |record: &Record| {
        let mut parts = record.object.split(' ');
        let pid = parts.next()?.parse().ok()?;
        let seq = parts.next()?.parse().ok()?;
        Some((pid, (seq, parts.next()?.to_owned())))
    };
    kernel.iter().filter(|r| r.event == "exit").filter_map(sealed).collect()
}

fn state_of(stored: ProcessState, exit: Option<&Exit>, live: Option<&Live>) -> ProcessState {
    if exit.is_some() {
        return ProcessState::Zombie;
    }
    // One that waited for a person when its kernel stopped still does, and one that is out comes back.
    let stopped = match stored {
        ProcessState::Approval | ProcessState::Swapped => stored,
        _ => ProcessState::Stopped,
    };
    let Some(live) = live else { return stopped };
    if matches!(*live.process.end.borrow(), Some(End::Suspended(_) | End::Unanswered(_))) {
        return stopped;
    }
    if live.process.caller.is_parked() {
        return ProcessState::Approval;
    }
    match live.task.state() {
        TaskState::Runnable | TaskState::Running => ProcessState::Runnable,
        TaskState::Blocked | TaskState::Done => ProcessState::Waiting,
        TaskState::Stopped => ProcessState::Stopped,
    }
}

pub(super) fn tool_info(entry: &Entry) -> ToolInfo {
    ToolInfo {
        name: entry.spec.name.clone(),
        plugin: entry.plugin.clone(),
        tool: entry.tool.clone(),
        description: entry.spec.description.clone(),
        effect: entry.spec.effect,
        input_schema: entry.spec.input_schema.clone(),
        output_schema: entry.spec.output_schema.clone(),
        source: entry.source.name().to_owned(),
        state: "ready".to_owned(),
    }
}

fn page_infos(pages: &PageManager) -> Vec<PageInfo> {
    pages
        .pages()
        .map(|Placement { page: p, region, why }| PageInfo {
            id: p.id,
            kind: p.kind,
            region: region.name().to_owned(),
            tokens: p.meta.tokens,
            exact: p.meta.exact,
            resident: p.meta.resident,
            pinned: p.meta.pinned,
            importance: p.meta.importance,
            accesses: p.meta.accesses,
            hash: p.hash.clone(),
            why: why.to_owned(),
            cached: None,
        })
        .collect()
}

/// Resident memory of this process, 0 where the system does not say.
fn resident_bytes() -> u64 {
    const PAGE: u64 = 4096;
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * PAGE
}
