//! A tool call of an agent, the whole path with journal and audit into SQLite, beside the same call
//! of the same component in raw wasmtime: same engine configuration, pool, `InstancePre`, fuel on, a
//! fresh store for each call, typed call.

use std::fs;

use agent_os_kernel::engine::config;
use agent_os_kernel::kernel::{Kernel, SpawnRequest};
use agent_os_kernel::plugin::bundled;
use agent_os_kernel::process::Exit;
use anyhow::{Context as _, Result, ensure};
use system_tests::figure::{Figure, median, timed};
use wasmtime::component::{Component, ComponentType, InstancePre, Lift, Linker, Lower};
use wasmtime::{Engine, Store};

include!(concat!(env!("OUT_DIR"), "/guests.rs"));

/// As in `aok`, for both sides.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CALLS: u32 = 4_000;
const ROUNDS: usize = 7;
const FUEL: u64 = 20_000_000_000;
const ARGUMENTS: &str = r#"{"expression":"12*(3+4)/2"}"#;
const PROVIDER: &str = "agent-os:plugin/tool-provider@0.1.0";

#[derive(ComponentType, Lower)]
#[component(record)]
struct CallContext {
    caller: u64,
    #[component(name = "deadline-ms")]
    deadline_ms: u64,
    #[component(name = "idempotency-key")]
    idempotency_key: String,
}

#[derive(ComponentType, Lift)]
#[component(record)]
struct Failure {
    code: Errno,
    message: String,
}

#[derive(Clone, Copy, Debug, ComponentType, Lift)]
#[component(enum)]
#[repr(u8)]
#[allow(dead_code, reason = "the guest makes them")]
enum Errno {
    #[component(name = "denied")]
    Denied,
    #[component(name = "not-found")]
    NotFound,
    #[component(name = "invalid")]
    Invalid,
    #[component(name = "quota")]
    Quota,
    #[component(name = "again")]
    Again,
    #[component(name = "interrupted")]
    Interrupted,
    #[component(name = "timeout")]
    Timeout,
    #[component(name = "unsupported")]
    Unsupported,
    #[component(name = "too-large")]
    TooLarge,
    #[component(name = "io")]
    Io,
}

type CallParams<'a> = (&'a str, &'a str, &'a CallContext);
type CallResults = (std::result::Result<String, Failure>,);

struct Raw {
    engine: Engine,
    pre: InstancePre<()>,
    call: wasmtime::component::ComponentExportIndex,
}

impl Raw {
    fn new() -> Result<Self> {
        let engine = Engine::new(&config(true, false)).map_err(|e| anyhow::anyhow!("{e:#}"))?;
        let bytes = bundled().iter().find(|b| b.name == "calc").context("calc is bundled")?.component;
        let component = Component::new(&engine, bytes).map_err(|e| anyhow::anyhow!("{e:#}"))?;
        let mut linker = Linker::new(&engine);
        linker.define_unknown_imports_as_traps(&component).map_err(|e| anyhow::anyhow!("{e:#}"))?;
        let (_, instance) = component.get_export(None, PROVIDER).context("calc provides tools")?;
        let (_, call) = component.get_export(Some(&instance), "call-tool").context("tools can be called")?;
        let pre = linker.instantiate_pre(&component).map_err(|e| anyhow::anyhow!("{e:#}"))?;
        Ok(Self { engine, pre, call })
    }

    async fn call(&self, context: &CallContext) -> wasmtime::Result<String> {
        let mut store = Store::new(&self.engine, ());
        store.set_fuel(FUEL)?;
        store.fuel_async_yield_interval(Some(100_000))?;
        store.set_epoch_deadline(1_000_000);
        let instance = self.pre.instantiate_async(&mut store).await?;
        let call = instance.get_typed_func::<CallParams<'_>, CallResults>(&mut store, &self.call)?;
        let (result,) = call.call_async(&mut store, ("eval", ARGUMENTS, context)).await?;
        result.map_err(|e| wasmtime::Error::msg(format!("{:?}: {}", e.code, e.message)))
    }
}

async fn ours(kernel: &Kernel, script: &str) -> Result<f64> {
    let request = SpawnRequest {
        agent: "talker".into(),
        task: format!("call {CALLS}"),
        model: Some(script.to_owned()),
        ..SpawnRequest::default()
    };
    let start = std::time::Instant::now();
    // Nobody watches the baseline either.
    let (pid, events) = kernel.spawn(request).await?;
    drop(events);
    let exit = kernel.wait(pid).await?;
    let took = start.elapsed();
    ensure!(exit == Exit::Success(CALLS.to_string()), "the agent ended with {exit:?}");
    Ok(took.as_secs_f64() * 1e6 / f64::from(CALLS))
}

fn main() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let plugins = dir.path().join("more");
    fs::create_dir(&plugins)?;
    fs::copy(TALKER, plugins.join("talker.wasm"))?;
    let script = dir.path().join("script.jsonl");
    fs::write(&script, "{\"text\":\"unused\"}\n")?;
    let script = format!("script/{}", script.display());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let raw = Raw::new()?;
    let context = CallContext { caller: 1, deadline_ms: 0, idempotency_key: "0123456789abcdef-1-1".into() };
    let kernel = runtime.block_on(Kernel::builder(dir.path().join("data")).plugin_dir(&plugins).start())?;
    let raw_round = || {
        let (took, result): (_, wasmtime::Result<()>) = timed(|| {
            runtime.block_on(async {
                for _ in 0..CALLS {
                    raw.call(&context).await?;
                }
                Ok(())
            })
        });
        result.map(|()| took.as_secs_f64() * 1e6 / f64::from(CALLS))
    };
    raw_round().map_err(|e| anyhow::anyhow!("{e:#}"))?;
    runtime.block_on(ours(&kernel, &script))?;
    let mut failure = None;
    // Rounds alternate, so that a busy moment of the machine meets both.
    let mut raw_us = Vec::new();
    let ours_us = median(ROUNDS, || {
        raw_us.push(raw_round().unwrap_or(f64::NAN));
        runtime.block_on(ours(&kernel, &script)).unwrap_or_else(|e| {
            failure = Some(e);
            f64::NAN
        })
    });
    raw_us.sort_by(f64::total_cmp);
    let raw_us = raw_us[raw_us.len() / 2];
    runtime.block_on(kernel.shutdown());
    if let Some(e) = failure {
        return Err(e);
    }
    Figure {
        value: ours_us,
        unit: "us",
        ok: None,
        target: None,
        ..Figure::at_most("call", "tool_call_us", 0.0, "us", 0.0)
    }
    .beside(raw_us)
    .print();
    Figure::at_most("call", "tool_call_ratio", ours_us / raw_us, "ratio", 1.5).print();
    Ok(())
}
