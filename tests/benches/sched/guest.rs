//! A guest that only computes, in the kernel's own engine configuration.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use agent_os_kernel::engine::config;
use anyhow::{Context as _, Result, anyhow};
use wasmtime::component::{Component, ComponentExportIndex, InstancePre, Linker, Val};
use wasmtime::{Engine, Store};

include!(concat!(env!("OUT_DIR"), "/guests.rs"));

const FUEL: u64 = 1 << 60;
const ENTRY: &str = "agent-os:agent/agent-entry@0.1.0";
/// Millions of turns: far more than a bench waits for.
const ENDLESS: &str = "10000000";

#[derive(Clone)]
pub(crate) struct Guest {
    engine: Engine,
    pre: InstancePre<()>,
    run: ComponentExportIndex,
}

impl Guest {
    pub(crate) fn new() -> Result<Self> {
        let engine = Engine::new(&config(true, false)).map_err(|e| anyhow!("{e:#}"))?;
        let component = Component::from_file(&engine, SPINNER).map_err(|e| anyhow!("{e:#}"))?;
        let mut linker = Linker::new(&engine);
        linker.define_unknown_imports_as_traps(&component).map_err(|e| anyhow!("{e:#}"))?;
        let (_, instance) = component.get_export(None, ENTRY).context("the spinner is an agent")?;
        let (_, run) = component.get_export(Some(&instance), "run").context("agents run")?;
        let pre = linker.instantiate_pre(&component).map_err(|e| anyhow!("{e:#}"))?;
        Ok(Self { engine, pre, run })
    }

    /// Computes without end, and is pending after each `interval` of fuel.
    pub(crate) async fn spin(self, interval: u64) {
        if let Err(e) = self.try_spin(interval).await {
            panic!("the spinner failed: {e:#}");
        }
    }

    async fn try_spin(&self, interval: u64) -> wasmtime::Result<()> {
        let mut store = Store::new(&self.engine, ());
        store.set_fuel(FUEL)?;
        store.fuel_async_yield_interval(Some(interval))?;
        store.set_epoch_deadline(1_000_000);
        let instance = self.pre.instantiate_async(&mut store).await?;
        let run = instance.get_func(&mut store, self.run).ok_or_else(|| wasmtime::Error::msg("no export `run`"))?;
        let task =
            Val::Record(vec![("text".into(), Val::String(ENDLESS.into())), ("input".into(), Val::List(Vec::new()))]);
        let mut results = [Val::Bool(false)];
        run.call_async(&mut store, &[task], &mut results).await
    }
}

/// Counts the polls of a future: with one interval each, its fuel.
pub(crate) struct Counted<F> {
    inner: Pin<Box<F>>,
    polls: Arc<AtomicU64>,
}

impl<F> Counted<F> {
    pub(crate) fn new(inner: F, polls: &Arc<AtomicU64>) -> Self {
        Self { inner: Box::pin(inner), polls: Arc::clone(polls) }
    }
}

impl<F: Future<Output = ()>> Future for Counted<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.polls.fetch_add(1, Ordering::Relaxed);
        self.inner.as_mut().poll(cx)
    }
}
