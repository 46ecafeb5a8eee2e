//! Enforces [`Limits`] inside a store, and says which one was hit.

use std::sync::Arc;

use wasmtime::{ResourceLimiter, Result, Trap};

use crate::abi::Error as AbiError;
use crate::quota::{Account, Limits, MIB, Reservation, Resource};
use crate::syscall::Stop;

/// A limit that a guest ran into, raised as a trap.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Hit {
    /// `memory`, `tables`, `instances`, `host-calls`, `wall` …
    pub(crate) limit: &'static str,
    /// Used and allowed.
    pub(crate) message: String,
}

/// Counts what a store's instances hold, over all memories and tables together.
#[derive(Debug)]
pub(crate) struct Meter {
    limits: Limits,
    memory: u64,
    peak_memory: u64,
    tables: u64,
    host_calls: u64,
    refused: Option<Hit>,
    /// The memory that an account holds for it.
    held: Option<Reservation>,
}

impl Meter {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, memory: 0, peak_memory: 0, tables: 0, host_calls: 0, refused: None, held: None }
    }

    /// Has its memory counted against an account too.
    pub(crate) fn on_account(self, account: &Arc<Account>) -> Self {
        Self { held: Some(account.hold(Resource::Memory)), ..self }
    }

    /// Begins another call of the same instance: what it holds goes on counting, what it does begins anew.
    pub(crate) fn begin_call(&mut self) {
        self.peak_memory = self.memory;
        self.host_calls = 0;
        self.refused = None;
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The most memory that the instances held at once, in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        self.peak_memory
    }

    pub(crate) fn count_host_call(&mut self) -> Result<()> {
        self.host_calls += 1;
        if self.host_calls > self.limits.host_calls {
            let message =
                format!("it made more than {} calls into the kernel, its `host_calls` limit", self.limits.host_calls);
            return Err(self.refuse("host-calls", message));
        }
        Ok(())
    }

    fn refuse(&mut self, limit: &'static str, message: String) -> wasmtime::Error {
        let hit = Hit { limit, message };
        self.refused = Some(hit.clone());
        hit.into()
    }
}

impl ResourceLimiter for Meter {
    fn memory_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> Result<bool> {
        let sum = self.memory + (desired.saturating_sub(current)) as u64;
        if sum > self.limits.memory {
            let message =
                format!("it needs {} MiB, its `memory` limit is {} MiB", sum.div_ceil(MIB), self.limits.memory / MIB);
            return Err(self.refuse("memory", message));
        }
        if let Some(Err(e)) = self.held.as_mut().map(|held| held.resize(sum)) {
            return Err(self.refuse("memory", e.to_string()));
        }
        self.memory = sum;
        self.peak_memory = self.peak_memory.max(sum);
        Ok(true)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> Result<()> {
        // The growth was counted before the allocator refused it: the pool's slots are smaller.
        let message = format!("its memory cannot grow: {error}");
        Err(self.refuse("memory", message))
    }

    fn table_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> Result<bool> {
        let sum = self.tables + (desired.saturating_sub(current)) as u64;
        if sum > self.limits.tables {
            let message = format!("it needs {sum} table elements, its `tables` limit is {}", self.limits.tables);
            return Err(self.refuse("tables", message));
        }
        self.tables = sum;
        Ok(true)
    }

    fn table_grow_failed(&mut self, error: wasmtime::Error) -> Result<()> {
        let message = format!("its tables cannot grow: {error}");
        Err(self.refuse("tables", message))
    }

    fn instances(&self) -> usize {
        self.limits.instances as usize
    }

    fn tables(&self) -> usize {
        MAX_TABLES
    }

    fn memories(&self) -> usize {
        MAX_MEMORIES
    }
}

/// Tables and memories per store; their sizes are what `Limits` bounds.
const MAX_TABLES: usize = 64;
const MAX_MEMORIES: usize = 16;

/// Why a guest did not return.
#[derive(Debug, PartialEq)]
pub(crate) enum Fall {
    /// A limit, with a sentence.
    Limit(String, String),
    /// The process must stop.
    Stop(Stop),
    /// The kernel has no room for another instance right now.
    Busy,
    /// The guest's own fault, as a sentence.
    Trap(String),
}

/// Tells from wasmtime's error what ended a guest.
pub(crate) fn classify(error: &wasmtime::Error, meter: &Meter) -> Fall {
    if let Some(hit) = error.downcast_ref::<Hit>() {
        return Fall::Limit(hit.limit.to_owned(), hit.message.clone());
    }
    if let Some(stop) = error.downcast_ref::<Stop>() {
        return Fall::Stop(stop.clone());
    }
    if let Some(AbiError { limit: Some(limit), message, .. }) = error.downcast_ref::<AbiError>() {
        return Fall::Limit(limit.clone(), message.clone());
    }
    if error.is::<wasmtime::PoolConcurrencyLimitError>() {
        return Fall::Busy;
    }
    let limits = meter.limits();
    match error.downcast_ref::<Trap>() {
        Some(Trap::OutOfFuel) => {
            return Fall::Limit("fuel".into(), format!("it used up its {} fuel", limits.fuel));
        }
        Some(Trap::Interrupt) => {
            return Fall::Limit("wall".into(), format!("it ran longer than its `wall` limit of {} ms", limits.wall_ms));
        }
        Some(Trap::StackOverflow) => {
            return Fall::Limit(
                "stack".into(),
                format!("it recursed deeper than its stack of {} KiB", super::config::WASM_STACK / 1024),
            );
        }
        Some(trap) => {
            // A guest that was refused memory often aborts: say why, not how.
            if let Some(hit) = &meter.refused {
                return Fall::Limit(hit.limit.to_owned(), hit.message.clone());
            }
            return Fall::Trap(format!("it trapped: {trap}"));
        }
        None => {}
    }
    // These two have no type of their own in wasmtime 48.
    let text = format!("{error:#}");
    if text.contains("too much data is being copied") {
        let message =
            format!("it passed more than {} bytes in one call, its `host_call_bytes` limit", limits.host_call_bytes);
        return Fall::Limit("output".into(), message);
    }
    if text.contains("resource limit exceeded: instance count") {
        return Fall::Limit("instances".into(), format!("it needs more than {} instances", limits.instances));
    }
    if text.contains("resource limit exceeded: table count") {
        return Fall::Limit("tables".into(), format!("it needs more than {MAX_TABLES} tables"));
    }
    if text.contains("resource limit exceeded: memory count") {
        return Fall::Limit("memory".into(), format!("it needs more than {MAX_MEMORIES} memories"));
    }
    Fall::Trap(format!("it failed: {}", error.root_cause()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_tables_are_summed_over_all_of_a_store() {
        let mut meter = Meter::new(Limits { memory: 3 * MIB, tables: 10, ..Limits::TOOL });
        let mib = MIB as usize;
        assert!(meter.memory_growing(0, 2 * mib, None).unwrap());
        assert!(meter.memory_growing(0, mib, None).unwrap());
        let error = meter.memory_growing(mib, 2 * mib, None).unwrap_err();
        assert!(
            matches!(classify(&error, &meter), Fall::Limit(l, m) if l == "memory" && m.contains("4 MiB") && m.contains("3 MiB"))
        );
        assert!(meter.table_growing(0, 10, None).unwrap());
        let error = meter.table_growing(0, 1, None).unwrap_err();
        assert!(matches!(classify(&error, &meter), Fall::Limit(l, _) if l == "tables"));
        assert_eq!(meter.peak_memory(), 3 * MIB);
    }

    #[test]
    fn an_abort_after_a_refused_growth_is_the_limits_doing() {
        let mut meter = Meter::new(Limits { memory: 1, ..Limits::TOOL });
        let _ = meter.memory_growing(0, 65536, None).unwrap_err();
        let abort = wasmtime::Error::from(Trap::UnreachableCodeReached);
        assert!(matches!(classify(&abort, &meter), Fall::Limit(l, _) if l == "memory"));
        let fresh = Meter::new(Limits::TOOL);
        assert!(matches!(classify(&abort, &fresh), Fall::Trap(_)));
    }

    #[test]
    fn host_calls_are_counted() {
        let mut meter = Meter::new(Limits { host_calls: 2, ..Limits::TOOL });
        assert!(meter.count_host_call().is_ok() && meter.count_host_call().is_ok());
        let error = meter.count_host_call().unwrap_err();
        assert!(matches!(classify(&error, &meter), Fall::Limit(l, _) if l == "host-calls"));
    }
}
