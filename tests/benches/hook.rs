//! One question to a hook component through the hook chain, beside the same call of the same export in raw wasmtime: same
//! engine configuration, pool, `InstancePre`, fuel on, a fresh store for each. And what a point costs where nobody stands.

use std::alloc::{GlobalAlloc, Layout};
use std::fs;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use agent_os_kernel::engine::config;
use agent_os_kernel::hook::{Hook, HookChain, HookEvent, Outcome};
use agent_os_kernel::kernel::Kernel;
use agent_os_kernel::process::Pid;
use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use system_tests::figure::{Figure, median, timed};
use wasmtime::component::{Component, ComponentExportIndex, ComponentType, InstancePre, Lift, Linker, Lower};
use wasmtime::{Engine, Store};

include!(concat!(env!("OUT_DIR"), "/guests.rs"));

/// As in `aok`, for both sides, with a count.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

#[expect(unsafe_code, reason = "an allocator is unsafe to write; this one hands everything on")]
// SAFETY: every call is handed on as it is to mimalloc's allocator, which keeps the trait's contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { mimalloc::MiMalloc.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { mimalloc::MiMalloc.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const QUESTIONS: u32 = 4_000;
const ROUNDS: usize = 7;
const FUEL: u64 = 2_000_000_000;
const HANDLER: &str = "agent-os:plugin/hook-handler@0.1.0";

#[derive(ComponentType, Lower, Clone, Copy)]
#[component(enum)]
#[repr(u8)]
#[allow(dead_code, reason = "the type must have all of them")]
enum Point {
    #[component(name = "before-agent-spawn")]
    BeforeAgentSpawn,
    #[component(name = "after-agent-spawn")]
    AfterAgentSpawn,
    #[component(name = "before-step")]
    BeforeStep,
    #[component(name = "after-step")]
    AfterStep,
    #[component(name = "before-llm-call")]
    BeforeLlmCall,
    #[component(name = "after-llm-call")]
    AfterLlmCall,
    #[component(name = "before-tool-call")]
    BeforeToolCall,
    #[component(name = "after-tool-call")]
    AfterToolCall,
    #[component(name = "before-page-out")]
    BeforePageOut,
    #[component(name = "after-page-out")]
    AfterPageOut,
    #[component(name = "before-page-in")]
    BeforePageIn,
    #[component(name = "after-page-in")]
    AfterPageIn,
    #[component(name = "before-checkpoint")]
    BeforeCheckpoint,
    #[component(name = "after-checkpoint")]
    AfterCheckpoint,
    #[component(name = "on-message")]
    OnMessage,
    #[component(name = "on-quota-exceeded")]
    OnQuotaExceeded,
    #[component(name = "on-approval")]
    OnApproval,
    #[component(name = "on-signal")]
    OnSignal,
    #[component(name = "on-agent-exit")]
    OnAgentExit,
    #[component(name = "on-error")]
    OnError,
    #[component(name = "on-plugin-load")]
    OnPluginLoad,
    #[component(name = "on-plugin-unload")]
    OnPluginUnload,
    #[component(name = "on-kernel-start")]
    OnKernelStart,
    #[component(name = "on-kernel-stop")]
    OnKernelStop,
}

#[derive(ComponentType, Lower)]
#[component(record)]
struct Event {
    point: Point,
    pid: Option<u64>,
    agent: Option<String>,
    #[component(name = "at-ms")]
    at_ms: u64,
    subject: String,
}

#[derive(ComponentType, Lift)]
#[component(variant)]
#[allow(dead_code, reason = "the guest makes them")]
enum Verdict {
    #[component(name = "allow")]
    Allow,
    #[component(name = "rewrite")]
    Rewrite(String),
    #[component(name = "deny")]
    Deny(String),
    #[component(name = "ask")]
    Ask(String),
}

struct Raw {
    engine: Engine,
    pre: InstancePre<()>,
    on_event: ComponentExportIndex,
}

impl Raw {
    fn new() -> Result<Self> {
        let failed = |e: wasmtime::Error| anyhow::anyhow!("{e:#}");
        let engine = Engine::new(&config(true, false)).map_err(failed)?;
        let component = Component::new(&engine, fs::read(MEDDLER)?).map_err(failed)?;
        let mut linker = Linker::new(&engine);
        linker.define_unknown_imports_as_traps(&component).map_err(failed)?;
        let (_, instance) = component.get_export(None, HANDLER).context("it is a hook")?;
        let (_, on_event) = component.get_export(Some(&instance), "on-event").context("it can be asked")?;
        Ok(Self { pre: linker.instantiate_pre(&component).map_err(failed)?, engine, on_event })
    }

    async fn ask(&self, event: &Event) -> wasmtime::Result<()> {
        let mut store = Store::new(&self.engine, ());
        store.set_fuel(FUEL)?;
        store.fuel_async_yield_interval(Some(100_000))?;
        store.set_epoch_deadline(1_000_000);
        let instance = self.pre.instantiate_async(&mut store).await?;
        let ask = instance.get_typed_func::<(&Event,), (Verdict,)>(&mut store, &self.on_event)?;
        match ask.call_async(&mut store, (event,)).await? {
            (Verdict::Allow,) => Ok(()),
            _ => Err(wasmtime::Error::msg("it does not allow")),
        }
    }
}

fn event() -> HookEvent {
    HookEvent {
        point: Hook::BeforeToolCall,
        pid: Some(Pid(1)),
        seq: 1,
        agent: "assistant".to_owned(),
        object: "fs__read".to_owned(),
        at_ms: 1_700_000_000_000,
        subject: json!({
            "id": "call_1", "name": "fs__read", "arguments": { "path": "notes/today.txt" }, "effect": "read-only",
        }),
    }
}

async fn ours(chain: &HookChain) -> Result<()> {
    for _ in 0..QUESTIONS {
        let asked = chain.ask(event(), FUEL).await;
        ensure!(asked.outcome == Outcome::Pass, "{:?}", asked.outcome);
    }
    Ok(())
}

/// Allocations of a look at every point of a chain where nobody stands, many times.
fn allocations_without_hooks() -> u64 {
    let chain = HookChain::default();
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for _ in 0..1_000 {
        black_box(black_box(&chain).is_empty());
        for point in Hook::ALL {
            black_box(black_box(&chain).listens(point));
        }
    }
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

fn main() -> Result<()> {
    #[allow(clippy::cast_precision_loss, reason = "a small count")]
    let allocations = allocations_without_hooks() as f64;
    Figure::at_most("hook", "no_hook_allocs", allocations, "allocations", 0.0).print();
    let dir = tempfile::tempdir()?;
    let plugins = dir.path().join("more");
    fs::create_dir(&plugins)?;
    fs::copy(MEDDLER, plugins.join("meddler.wasm"))?;
    fs::write(plugins.join("meddler.toml"), "[hook]\npoints = [\"BEFORE_TOOL_CALL\"]\n")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let raw = Raw::new()?;
    let shown = Event {
        point: Point::BeforeToolCall,
        pid: Some(1),
        agent: Some("assistant".to_owned()),
        at_ms: 1_700_000_000_000,
        subject: event().subject.to_string(),
    };
    let kernel = runtime.block_on(Kernel::builder(dir.path().join("data")).plugin_dir(&plugins).start())?;
    let per_question = |took: std::time::Duration| took.as_secs_f64() * 1e6 / f64::from(QUESTIONS);
    let raw_round = || {
        let (took, result): (_, wasmtime::Result<()>) = timed(|| {
            runtime.block_on(async {
                for _ in 0..QUESTIONS {
                    raw.ask(&shown).await?;
                }
                Ok(())
            })
        });
        result.map(|()| per_question(took)).map_err(|e| anyhow::anyhow!("{e:#}"))
    };
    let our_round = || {
        let (took, result) = timed(|| runtime.block_on(ours(kernel.hook_chain())));
        result.map(|()| per_question(took))
    };
    raw_round()?;
    our_round()?;
    let mut failure = None;
    let mut kept = |result: Result<f64>| {
        result.unwrap_or_else(|e| {
            failure = Some(e);
            f64::NAN
        })
    };
    // Rounds alternate, so that a busy moment of the machine meets both.
    let mut raw_us = Vec::new();
    let ours_us = median(ROUNDS, || {
        raw_us.push(kept(raw_round()));
        kept(our_round())
    });
    raw_us.sort_by(f64::total_cmp);
    let raw_us = raw_us[raw_us.len() / 2];
    runtime.block_on(kernel.shutdown());
    if let Some(e) = failure {
        return Err(e);
    }
    Figure::plain("hook", "wasm_hook_us", ours_us, "us").beside(raw_us).print();
    Figure::at_most("hook", "wasm_hook_ratio", ours_us / raw_us, "ratio", 1.3).print();
    Ok(())
}
