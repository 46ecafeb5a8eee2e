//! Thousands of agents in one kernel: what an idle one takes, how fast they come, how fast a dormant one is back.
//!
//! Memory is measured in processes of its own, one for the kernel and one for raw wasmtime, so that neither finds what
//! the other gave back.

use std::path::Path;
use std::pin::Pin;
use std::process::Command;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use agent_os_kernel::config::{Config, SchedulerConfig};
use agent_os_kernel::engine::config;
use agent_os_kernel::kernel::{Kernel, SpawnRequest};
use agent_os_kernel::process::{Pid, ProcessState, Signal};
use anyhow::{Context as _, Result, anyhow, ensure};
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use serde_json::{Value, json};
use system_tests::figure::Figure;
use wasmtime::component::{Component, Linker, Val};
use wasmtime::{Engine, Store};

use super::BENCH;
use super::guest::STEPPER;

/// Names the part that a process of its own measures.
pub(crate) const PART: &str = "AOK_SCHED_PART";
const AGENTS: usize = 10_000;
/// Spawns under way at once.
const AT_ONCE: usize = 64;
/// Dormant agents, and the records of each one's journal.
const DORMANT: usize = 300;
const RECORDS: usize = 50;
const PATIENCE: Duration = Duration::from_secs(300);

/// Resident bytes of this process.
fn resident() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/self/statm").context("/proc tells what a process takes")?;
    let pages: f64 = text.split_whitespace().nth(1).context("statm has a second number")?.parse()?;
    Ok(pages * 4096.0)
}

/// A task whose agent waits for a message.
fn waiting() -> String {
    json!([{ "peers": "receive" }]).to_string()
}

/// Runs a part in a process of its own: the numbers that it prints.
fn part(name: &str) -> Result<Vec<f64>> {
    let out = Command::new(std::env::current_exe()?).env(PART, name).output()?;
    ensure!(out.status.success(), "the part {name} failed: {}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8(out.stdout)?;
    text.split_whitespace().map(|number| Ok(number.parse()?)).collect()
}

/// What a process of its own does.
#[allow(clippy::print_stdout, reason = "its numbers go to the process that started it")]
pub(crate) fn run_part(name: &str) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let numbers = match name {
        "raw" => vec![raw()?],
        "kernel" => runtime.block_on(kernel())?,
        _ => return Err(anyhow!("there is no part {name}")),
    };
    let text: Vec<String> = numbers.iter().map(f64::to_string).collect();
    println!("{}", text.join(" "));
    Ok(())
}

pub(crate) fn run() -> Result<Vec<Figure>> {
    let raw = part("raw")?;
    let ours = part("kernel")?;
    let ([raw], [idle, spawns, p50, p99]) = (&raw[..], &ours[..]) else {
        return Err(anyhow!("the parts told {raw:?} and {ours:?}"));
    };
    Ok(vec![
        Figure::plain(BENCH, "idle_rss_bytes", *idle, "bytes").beside(*raw),
        Figure::at_most(BENCH, "idle_rss_ratio", idle / raw, "ratio", 2.0),
        Figure::at_least(BENCH, "spawn_per_s", *spawns, "spawns/s", 5_000.0),
        Figure::plain(BENCH, "swapin_p50_ms", *p50, "ms"),
        Figure::at_most(BENCH, "swapin_p99_ms", *p99, "ms", 10.0),
    ])
}

/// Resident bytes of an instance that waits in a host call, with its store and its call.
fn raw() -> Result<f64> {
    let told = |e: wasmtime::Error| anyhow!("{e:#}");
    let engine = Engine::new(&config(true, false)).map_err(told)?;
    let component = Component::from_file(&engine, STEPPER).map_err(told)?;
    let mut linker: Linker<()> = Linker::new(&engine);
    let mut process = linker.instance("agent-os:agent/process@0.1.0").map_err(told)?;
    process.func_new_async("receive", |_, _, _, _| Box::new(std::future::pending())).map_err(told)?;
    linker.define_unknown_imports_as_traps(&component).map_err(told)?;
    let (_, entry) = component.get_export(None, "agent-os:agent/agent-entry@0.1.0").context("it is an agent")?;
    let (_, run) = component.get_export(Some(&entry), "run").context("agents run")?;
    let pre = linker.instantiate_pre(&component).map_err(told)?;
    let park = || {
        let (engine, pre) = (engine.clone(), pre.clone());
        Box::pin(async move {
            let mut store = Store::new(&engine, ());
            store.set_fuel(1 << 40)?;
            store.set_epoch_deadline(1_000_000);
            let instance = pre.instantiate_async(&mut store).await?;
            let run = instance.get_func(&mut store, run).ok_or_else(|| wasmtime::Error::msg("no export `run`"))?;
            let task =
                Val::Record(vec![("text".into(), Val::String(waiting())), ("input".into(), Val::List(Vec::new()))]);
            run.call_async(&mut store, &[task], &mut [Val::Bool(false)]).await
        }) as Pin<Box<dyn Future<Output = wasmtime::Result<()>>>>
    };
    let mut parked = Vec::with_capacity(AGENTS);
    let mut before = 0.0;
    for n in 0..AGENTS + 10 {
        // The first few make what all share.
        if n == 10 {
            before = resident()?;
        }
        let mut agent = park();
        match agent.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => parked.push(agent),
            Poll::Ready(end) => return Err(anyhow!("it did not wait: {end:?}")),
        }
    }
    Ok((resident()? - before) / AGENTS as f64)
}

struct Lab {
    kernel: Kernel,
    model: String,
    _dir: tempfile::TempDir,
}

impl Lab {
    async fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let plugins = dir.path().join("plugins");
        std::fs::create_dir(&plugins)?;
        std::fs::copy(Path::new(STEPPER), plugins.join("stepper.wasm"))?;
        let script = dir.path().join("none.jsonl");
        std::fs::write(&script, "{\"text\":\"hello\"}\n")?;
        let scheduler = SchedulerConfig { swap_after_s: Some(1_000_000), ..SchedulerConfig::default() };
        let config = Config { scheduler, ..Config::default() };
        let kernel = Kernel::builder(dir.path().join("data")).plugin_dir(&plugins).config(config).start().await?;
        Ok(Self { kernel, model: format!("script/{}", script.display()), _dir: dir })
    }

    async fn spawn(&self, task: String) -> Result<Pid> {
        let (agent, model) = ("stepper".to_owned(), Some(self.model.clone()));
        let (pid, _) = self.kernel.spawn(SpawnRequest { agent, task, model, ..SpawnRequest::default() }).await?;
        Ok(pid)
    }

    async fn spawn_all(&self, n: usize, task: &str) -> Result<Vec<Pid>> {
        stream::iter(0..n).map(|_| self.spawn(task.to_owned())).buffered(AT_ONCE).try_collect().await
    }

    /// Waits until all of them wait.
    async fn settle(&self, pids: &[Pid]) -> Result<()> {
        let since = Instant::now();
        let (first, last) = (pids.first().map_or(0, |p| p.0), pids.last().map_or(0, |p| p.0));
        loop {
            let all = self.kernel.ps().await?;
            let mine = all.iter().filter(|p| (first..=last).contains(&p.pid));
            let waiting = |p: &&agent_os_kernel::kernel::info::ProcessInfo| {
                p.state == ProcessState::Waiting && p.waiting_on.as_deref() == Some("message")
            };
            if mine.filter(waiting).count() == pids.len() {
                return Ok(());
            }
            ensure!(since.elapsed() < PATIENCE, "they do not come to rest");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Bytes of an idle agent, spawns per second, and how long a dormant one takes to be back, p50 and p99 in ms.
async fn kernel() -> Result<Vec<f64>> {
    let lab = Lab::new().await?;
    let first = lab.spawn_all(10, &waiting()).await?;
    lab.settle(&first).await?;
    let mut steps: Vec<Value> =
        (1..RECORDS).map(|n| json!({ "op": "state_put", "key": format!("k{n}"), "value": "v" })).collect();
    steps.push(json!({ "peers": "receive" }));
    let dormant = lab.spawn_all(DORMANT, &Value::from(steps).to_string()).await?;
    lab.settle(&dormant).await?;
    for pid in &dormant {
        ensure!(lab.kernel.swap_out(*pid).await?, "process {pid} does more than to wait");
    }
    let before = resident()?;
    let since = Instant::now();
    let pids = lab.spawn_all(AGENTS, &waiting()).await?;
    let spawns = AGENTS as f64 / since.elapsed().as_secs_f64();
    lab.settle(&pids).await?;
    let idle = (resident()? - before) / AGENTS as f64;

    let mut times = Vec::with_capacity(DORMANT);
    for pid in dormant {
        // It is back, has replayed its journal, is told to end, and does.
        let since = Instant::now();
        lab.kernel.signal(pid, Signal::Term, "bench", None).await?;
        lab.kernel.wait(pid).await?;
        times.push(since.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    let at = |q: f64| times[((times.len() - 1) as f64 * q).round() as usize];
    lab.kernel.shutdown().await;
    Ok(vec![idle, spawns, at(0.5), at(0.99)])
}
