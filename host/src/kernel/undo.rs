//! Undo for the world: what a process wrote to its private copies, shown, applied to the originals, or thrown away.
//! A tree of processes writes to the same ones, so any of its members stands for all.

use std::sync::Arc;

use super::info::{FileBase, FileChange};
use super::{Error, Kernel, Live, Owner, lock};
use crate::overlay::{self, Area, Kind, Overlay, Plan, Step};
use crate::process::{Mount, Pid};
use crate::storage::ProcessRow;

/// Paths that an audit record names.
const NAMED: usize = 10;

impl Kernel {
    /// What a process changed in its private copies and is not outside yet, by path; `text`: with the changes of
    /// text files as unified diffs. Works on a reader, and while the process runs.
    ///
    /// # Errors
    /// [`Error::UnknownProcess`]; [`Error::Files`]; a failing store.
    pub async fn diff(&self, pid: Pid, text: bool) -> Result<Vec<FileChange>, Error> {
        let row = self.known(pid).await?;
        let (plan, _) = self.plan(&row, Vec::new()).await?;
        blocking(pid, move || {
            let open = plan.steps().iter().filter(|step| !step.change().done);
            open.map(|step| Ok(file_change(step, if text { step.unified()? } else { None }))).collect()
        })
        .await
    }

    /// Applies what a process changed to the originals: everything, or what `files` names. All of it is checked
    /// first; with a conflict nothing is applied. What was applied, by path.
    ///
    /// # Errors
    /// [`Error::UnknownProcess`]; [`Error::State`] if it runs; [`Error::Unchanged`]; [`Error::Conflict`];
    /// [`Error::Files`], where what came before is applied; a failing store.
    pub async fn apply(&self, pid: Pid, files: Vec<String>) -> Result<Vec<FileChange>, Error> {
        let (row, _settling) = self.at_rest(pid).await?;
        let (plan, _) = self.plan(&row, files).await?;
        let conflicts: Vec<_> = plan.steps().iter().filter(|step| step.change().conflict.is_some()).collect();
        if !conflicts.is_empty() {
            let conflicts: Vec<_> = conflicts.into_iter().map(|step| file_change(step, None)).collect();
            self.audit("apply", &object(pid, &conflicts), "deny", "conflict").await?;
            return Err(Error::Conflict { pid, conflicts });
        }
        let open = plan.steps().iter().filter(|step| !step.change().done);
        let applied: Vec<_> = open.map(|step| file_change(step, None)).collect();
        if !applied.is_empty() {
            // Before the first file is touched it is on record that it will be.
            self.audit("apply", &object(pid, &applied), "allow", "operator").await?;
            self.0.services.store.sync(Pid::KERNEL).await?;
        }
        blocking(pid, move || plan.carry_out()).await?;
        Ok(applied)
    }

    /// Throws away what a process wrote to its private copies. What it was, by path.
    ///
    /// # Errors
    /// [`Error::UnknownProcess`]; [`Error::State`] if it runs; [`Error::Files`]; a failing store.
    pub async fn discard(&self, pid: Pid) -> Result<Vec<FileChange>, Error> {
        let (row, _settling) = self.at_rest(pid).await?;
        let area = self.area(&row)?;
        // An original that is gone keeps nobody from throwing the copy away.
        let discarded = match self.plan(&row, Vec::new()).await {
            // What kept it from being applied is no matter any more.
            Ok((plan, _)) => {
                let change = |step| FileChange { conflict: None, ..file_change(step, None) };
                plan.steps().iter().map(change).collect()
            }
            Err(Error::Files { .. }) => Vec::new(),
            Err(e) => return Err(e),
        };
        if area.dir().exists() {
            self.audit("discard", &object(pid, &discarded), "allow", "operator").await?;
            self.0.services.store.sync(Pid::KERNEL).await?;
            let path = area.dir().display().to_string();
            blocking(pid, move || area.wipe().map_err(|source| overlay::Error::Io { path, source })).await?;
        }
        Ok(discarded)
    }

    /// A process that does not run, and does not begin to as long as the guard lives.
    async fn at_rest(&self, pid: Pid) -> Result<(ProcessRow, Settling<'_>), Error> {
        let owner = self.owner()?;
        let row = self.known(pid).await?;
        let root = row.spec.root().pid;
        let refuse = |pid, why: &str| Err(Error::State { pid, why: why.to_owned() });
        let live = lock(&owner.live);
        let of_its_tree = |live: &&Live| live.process.caller.spec().root().pid == root;
        let runs = live.values().filter(of_its_tree).find(|live| live.process.end.borrow().is_none());
        if let Some(runs) = runs {
            let pid = runs.process.caller.spec().pid;
            return refuse(pid, "is running: wait until it ends, or stop it with Ctrl-C where it was started");
        }
        if !lock(&owner.settling).insert(root) {
            return refuse(pid, "has its private copies applied or discarded already at this moment");
        }
        Ok((row, Settling { owner, root }))
    }

    fn area(&self, row: &ProcessRow) -> Result<Arc<Area>, Error> {
        let pid = row.spec.pid;
        let failed = |source| Error::Files { pid, source: overlay::Error::Io { path: "private".to_owned(), source } };
        self.0.services.areas.open(&row.spec).map_err(failed)
    }

    async fn plan(&self, row: &ProcessRow, files: Vec<String>) -> Result<(Plan, Arc<Area>), Error> {
        let area = self.area(row)?;
        let (own, mounts) = (Arc::clone(&area), row.spec.mounts.clone());
        let plan = blocking(row.spec.pid, move || Plan::new(&own, open(&own, &mounts)?, &files)).await?;
        Ok((plan, area))
    }
}

/// Keeps the processes of a tree from running.
struct Settling<'a> {
    owner: &'a Owner,
    root: Pid,
}

impl Drop for Settling<'_> {
    fn drop(&mut self) {
        lock(&self.owner.settling).remove(&self.root);
    }
}

/// The private copies of a process; none where it wrote nothing, so that an original that is gone is no matter then.
fn open(area: &Arc<Area>, mounts: &[Mount]) -> Result<Vec<Overlay>, overlay::Error> {
    if !area.dir().exists() {
        return Ok(Vec::new());
    }
    Overlay::all(area, mounts).map_err(|(path, source)| overlay::Error::Io { path: path.display().to_string(), source })
}

async fn blocking<T: Send + 'static>(
    pid: Pid,
    work: impl FnOnce() -> Result<T, overlay::Error> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|e| Error::Engine(e.to_string()))?;
    done.map_err(|e| match e {
        overlay::Error::Unchanged(file) => Error::Unchanged { pid, file },
        source => Error::Files { pid, source },
    })
}

fn file_change(step: &Step, text: Option<String>) -> FileChange {
    let change = step.change();
    let of = change.mine.as_ref().or(change.base.as_ref());
    FileChange {
        path: step.path(),
        change: change.action,
        kind: of.map_or(Kind::File, |of| of.kind),
        base: change.base.as_ref().map(|base| FileBase { bytes: base.bytes, sha256: base.sha256.clone() }),
        bytes: change.mine.as_ref().map(|mine| mine.bytes),
        conflict: change.conflict.clone(),
        text,
    }
}

/// What an audit record is about.
fn object(pid: Pid, changes: &[FileChange]) -> String {
    let named: Vec<&str> = changes.iter().take(NAMED).map(|c| c.path.as_str()).collect();
    let more = changes.len().saturating_sub(NAMED);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{pid} {}{rest}", named.join(" "))
}
