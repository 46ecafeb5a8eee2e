//! What one switch between two agents costs: guests that only compute, cut into slices of one yield
//! interval by the run queue, beside the same guest in raw wasmtime that yields and is polled again.
//! Both are counted above the guest's own computing, measured without any yield.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use agent_os_kernel::engine::config;
use agent_os_kernel::process::Pid;
use agent_os_kernel::scheduler::{PolicyKind, Scheduler, Settings, SliceRule, TaskSpec};
use anyhow::{Context as _, Result};
use system_tests::figure::{Figure, median, timed};
use wasmtime::component::{Component, InstancePre, Linker, Val};
use wasmtime::{Engine, Store};

include!(concat!(env!("OUT_DIR"), "/guests.rs"));

/// Small, so that the switch and not the guest is what is measured.
const INTERVAL: u64 = 1_000;
const FUEL: u64 = 1 << 50;
const ROUNDS: usize = 9;
const ENTRY: &str = "agent-os:agent/agent-entry@0.1.0";

#[derive(Clone)]
struct Guest {
    engine: Engine,
    pre: InstancePre<()>,
    run: wasmtime::component::ComponentExportIndex,
}

impl Guest {
    fn new() -> Result<Self> {
        let engine = Engine::new(&config(true, false)).map_err(|e| anyhow::anyhow!("{e:#}"))?;
        let component = Component::from_file(&engine, SPINNER).map_err(|e| anyhow::anyhow!("{e:#}"))?;
        let mut linker = Linker::new(&engine);
        linker.define_unknown_imports_as_traps(&component).map_err(|e| anyhow::anyhow!("{e:#}"))?;
        let (_, instance) = component.get_export(None, ENTRY).context("the spinner is an agent")?;
        let (_, run) = component.get_export(Some(&instance), "run").context("agents run")?;
        let pre = linker.instantiate_pre(&component).map_err(|e| anyhow::anyhow!("{e:#}"))?;
        Ok(Self { engine, pre, run })
    }

    async fn spin(self, interval: Option<u64>) {
        if let Err(e) = self.try_spin(interval).await {
            panic!("the spinner failed: {e:#}");
        }
    }

    async fn try_spin(&self, interval: Option<u64>) -> wasmtime::Result<()> {
        let mut store = Store::new(&self.engine, ());
        store.set_fuel(FUEL)?;
        store.fuel_async_yield_interval(interval)?;
        store.set_epoch_deadline(1_000_000);
        let instance = self.pre.instantiate_async(&mut store).await?;
        let run = instance.get_func(&mut store, self.run).ok_or_else(|| wasmtime::Error::msg("no export `run`"))?;
        let task =
            Val::Record(vec![("text".into(), Val::String("10".into())), ("input".into(), Val::List(Vec::new()))]);
        let mut results = [Val::Bool(false)];
        run.call_async(&mut store, &[task], &mut results).await
    }
}

/// Polls a future to its end; how many polls that took.
fn drive(future: impl Future<Output = ()>) -> u64 {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    let mut polls = 1;
    while future.as_mut().poll(&mut context).is_pending() {
        polls += 1;
    }
    polls
}

/// Counts its own polls.
struct Counted<F> {
    inner: Pin<Box<F>>,
    polls: u64,
    report: std::sync::mpsc::Sender<u64>,
}

impl<F: Future<Output = ()>> Future for Counted<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.polls += 1;
        let end = self.inner.as_mut().poll(cx);
        if end.is_ready() {
            // Nobody listens any more once the bench has failed.
            self.report.send(self.polls).ok();
        }
        end
    }
}

/// Two guests on one worker: each slice ends in a switch to the other.
fn scheduled(guest: &Guest, runtime: &tokio::runtime::Runtime) -> Result<(f64, u64)> {
    // Slices of one interval, whatever that takes.
    let slice = SliceRule { floor: Duration::ZERO, ceiling: Duration::ZERO, ..SliceRule::default() };
    let settings = Settings { policy: PolicyKind::Fair, slice, ..Settings::new(1) };
    let scheduler = Scheduler::start(settings, runtime.handle().clone())?;
    let (report, reports) = std::sync::mpsc::channel();
    let (took, switches) = timed(|| {
        for pid in 1..=2 {
            let inner = Box::pin(guest.clone().spin(Some(INTERVAL)));
            scheduler.add(&TaskSpec::new(Pid(pid)), Counted { inner, polls: 0, report: report.clone() });
        }
        drop(report);
        reports.iter().sum::<u64>()
    });
    scheduler.shutdown();
    Ok((took.as_secs_f64() * 1e9, switches))
}

fn main() -> Result<()> {
    let guest = Guest::new()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    drive(guest.clone().spin(None));
    let plain_ns = median(ROUNDS, || timed(|| drive(guest.clone().spin(None))).0.as_secs_f64() * 1e9);
    let raw_ns = median(ROUNDS, || {
        let (took, polls) = timed(|| drive(guest.clone().spin(Some(INTERVAL))));
        (took.as_secs_f64() * 1e9 - plain_ns) / polls as f64
    });
    let mut failure = None;
    let ours_ns = median(ROUNDS, || match scheduled(&guest, &runtime) {
        Ok((took, switches)) => (took - 2.0 * plain_ns) / switches as f64,
        Err(e) => {
            failure = Some(e);
            f64::NAN
        }
    });
    if let Some(e) = failure {
        return Err(e);
    }
    Figure::at_most("slice", "slice_switch_ns", ours_ns, "ns", 1_000.0).beside(raw_ns).print();
    Figure::at_most("slice", "slice_switch_ratio", ours_ns / raw_ns, "ratio", 5.0).print();
    Ok(())
}
