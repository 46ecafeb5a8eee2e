//! What every backend refuses, in the same words: values that no backend can hold, changes that the
//! records in the store contradict, and batches behind a failed one of their process.
//!
//! Knows no backend.

use std::collections::HashMap;

use super::{Batch, Change, Error, PageMeta};
use crate::process::{Pid, Usage};

/// The most bytes of one batch; what one row may hold in SQLite, with room to spare.
const MAX_BATCH_BYTES: usize = 512 << 20;

/// Decides which batches of one commit are looked at, and remembers which processes' were refused.
#[derive(Default)]
pub(super) struct Gate {
    failed: HashMap<Pid, String>,
}

impl Gate {
    /// Fails for a batch that stands behind a failed one of its process, or that cannot be held.
    pub(super) fn check(&self, batch: &Batch) -> Result<(), Error> {
        match self.failed.get(&batch.pid) {
            Some(first) => Err(Error::Refused { pid: batch.pid, first: first.clone() }),
            None => admissible(batch),
        }
    }

    /// Notes how a batch of `pid` ended.
    pub(super) fn note(&mut self, pid: Pid, result: &Result<(), Error>) {
        match result {
            Ok(()) | Err(Error::Conflict { .. } | Error::Refused { .. }) => {}
            Err(error) => {
                self.failed.entry(pid).or_insert_with(|| error.chain());
            }
        }
    }
}

/// Fails for a batch that holds what some backend cannot hold: integers are signed 64-bit in SQL,
/// NaN is no SQL number, and paths must be text.
pub(super) fn admissible(batch: &Batch) -> Result<(), Error> {
    if batch.size() > MAX_BATCH_BYTES {
        return Err(broken(format!("a batch of process {} is larger than {MAX_BATCH_BYTES} bytes", batch.pid)));
    }
    let held = fits(&[batch.pid.0]) && batch.changes.iter().all(holds);
    if held { Ok(()) } else { Err(broken(format!("a value in a batch of process {} cannot be stored", batch.pid))) }
}

fn fits(numbers: &[u64]) -> bool {
    numbers.iter().all(|n| i64::try_from(*n).is_ok())
}

fn usage_fits(u: &Usage) -> bool {
    fits(&[u.fuel, u.slices, u.tokens_in, u.tokens_cached, u.tokens_out, u.micro_usd.unwrap_or(0)])
        && fits(&[u.llm_calls, u.tool_calls, u.log_bytes, u.wall_us, u.store_bytes])
}

fn meta_fits(meta: &PageMeta) -> bool {
    fits(&[meta.accessed_ms]) && !meta.importance.is_nan()
}

fn holds(change: &Change) -> bool {
    match change {
        Change::Spawn(spec) | Change::Respec(spec) => {
            fits(&[spec.pid.0, spec.created_ms]) && spec.mounts.iter().all(|m| m.host.to_str().is_some())
        }
        Change::Usage(usage) => usage_fits(usage),
        Change::State(..) | Change::Exit(_) | Change::StateDelete { .. } => true,
        Change::Forget(before) => fits(&[*before]),
        Change::Journal(r) => fits(&[r.pid.0, r.seq, r.started_ms, r.ended_ms.unwrap_or(0)]),
        Change::Page(p) => fits(&[p.pid.0, p.id, p.seq, p.created_ms]) && meta_fits(&p.meta),
        Change::PageMeta(id, meta) => fits(&[*id]) && meta_fits(meta),
        Change::StatePut { expected, .. } => fits(&[expected.unwrap_or(0)]),
        Change::Log(r) => fits(&[r.pid.0, r.seq, r.at_ms]),
        Change::Audit(r) => fits(&[r.pid.0, r.seq, r.at_ms]),
    }
}

/// Why a change of a batch of `pid` is refused, when the records in the store contradict it.
pub(super) fn refusal(pid: Pid, change: &Change) -> Error {
    broken(match change {
        Change::Spawn(spec) => format!("process {} exists already", spec.pid),
        Change::Usage(_) | Change::State(..) => format!("there is no process {pid}"),
        Change::Respec(spec) => format!("there is no process {}", spec.pid),
        Change::Forget(before) => format!("the journal of process {pid} before {before} cannot be forgotten"),
        Change::Exit(_) => format!("process {pid} has ended already or never was"),
        Change::Journal(r) => {
            format!("journal position {} of process {} is taken: by an outcome or another call", r.seq, r.pid)
        }
        Change::Page(p) => format!("page {} of process {} exists already", p.id, p.pid),
        Change::PageMeta(id, _) => format!("process {pid} has no page {id}"),
        Change::StatePut { key, .. } | Change::StateDelete { key, .. } => {
            format!("`{key}` cannot be written")
        }
        Change::Log(r) => format!("a log line of process {} cannot be written", r.pid),
        Change::Audit(r) => {
            format!("audit record {} of process {} does not follow the head of its chain", r.seq, r.pid)
        }
    })
}

fn broken(what: String) -> Error {
    Error::Broken { what }
}

impl Batch {
    /// About how many bytes its texts and values hold.
    #[must_use]
    pub fn size(&self) -> usize {
        self.changes.iter().map(Change::size).sum()
    }
}

impl Change {
    fn size(&self) -> usize {
        // What a row costs beside its texts; an estimate is enough for a bound on memory.
        const ROW: usize = 64;
        ROW + match self {
            Self::Spawn(spec) | Self::Respec(spec) => {
                spec.task.len() + spec.input.0.len() * 4 / 3 + spec.mounts.len() * ROW
            }
            Self::Usage(_) | Self::Forget(_) | Self::PageMeta(..) => 0,
            Self::State(_, waiting_on) => waiting_on.as_ref().map_or(0, String::len),
            Self::Exit(exit) => exit.message().len(),
            Self::Journal(r) => r.call.len() + r.request.len() + r.outcome.as_ref().map_or(0, String::len),
            Self::Page(p) => {
                let calls: usize = p.tool_calls.iter().map(|c| c.id.len() + c.name.len() + c.arguments.len()).sum();
                p.text.len() + calls + p.hash.len()
            }
            Self::StatePut { scope, key, value, .. } => scope.len() + key.len() + value.len(),
            Self::StateDelete { scope, key } => scope.len() + key.len(),
            Self::Log(r) => r.source.len() + r.message.len(),
            Self::Audit(r) => r.event.len() + r.object.len() + r.by.len() + r.prev.len() + r.hash.len(),
        }
    }
}
