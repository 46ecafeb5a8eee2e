//! Agents: one store and one instance for a process's whole life, run as a future by the scheduler.

use std::fmt;

use wasmtime::component::{Component, Linker, ResourceTable};
use wasmtime::{Store, UpdateDeadline};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

use super::limits::{Fall, Meter, classify};
use super::{Engine, YIELD_INTERVAL, link_refusal, wasi};
use crate::bindings::agent as world;
use crate::bindings::agent::exports::agent_os::agent::agent_entry;
use crate::contract::Fault;
use crate::llm;
use crate::quota::Limits;
use crate::syscall::link::{AgentData, GuestData};
use crate::syscall::{Caller, Stop};

/// The data of an agent's store.
pub(super) struct AgentStore {
    caller: Caller,
    meter: Meter,
    wasi: WasiCtx,
    table: ResourceTable,
    since_yield: u64,
    fuel_mark: u64,
    /// Fuel that the process had used before, and what this instance was given.
    fuel_given: (u64, u64),
}

impl WasiView for AgentStore {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl GuestData for AgentStore {
    fn count_host_call(&mut self) -> wasmtime::Result<()> {
        self.meter.count_host_call()
    }

    fn since_yield(&mut self) -> &mut u64 {
        &mut self.since_yield
    }

    fn yield_interval(&self) -> u64 {
        YIELD_INTERVAL
    }

    fn fuel_mark(&mut self) -> &mut u64 {
        &mut self.fuel_mark
    }
}

impl AgentData for AgentStore {
    fn caller(&self) -> &Caller {
        &self.caller
    }

    fn fuel_given(&self) -> (u64, u64) {
        self.fuel_given
    }
}

/// Everything that agents may import.
pub(super) fn linker(engine: &wasmtime::Engine) -> wasmtime::Result<Linker<AgentStore>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasi::link_virtual_sleep(&mut linker, |data: &mut AgentStore| wasi::Sleeper {
        caller: &data.caller,
        table: &mut data.table,
    })?;
    crate::syscall::link::agent(&mut linker)?;
    Ok(linker)
}

/// How an agent's code ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Ended {
    /// It returned its answer, or why it has none.
    Returned(Result<String, String>),
    /// A limit or quota ended it: which, and a sentence.
    Limit(String, String),
    /// It broke.
    Trapped(String),
    /// It made another call than its journal says.
    Diverged(String),
    /// The store failed, or there was no room: it can be resumed.
    Suspended(String),
    /// It becomes another agent.
    Exec,
    /// No model answered: it can be resumed.
    Unanswered(Box<llm::Error>),
}

/// An agent's code, linked and ready to be instantiated.
pub struct AgentImage {
    engine: Engine,
    digest: String,
    pre: world::AgentPre<AgentStore>,
}

impl fmt::Debug for AgentImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentImage").field("digest", &self.digest).finish_non_exhaustive()
    }
}

impl AgentImage {
    pub(super) fn new(engine: &Engine, digest: &str, component: &Component) -> Result<Self, Fault> {
        let pre =
            engine.0.agents.instantiate_pre(component).and_then(world::AgentPre::new).map_err(|e| link_refusal(&e))?;
        Ok(Self { engine: engine.clone(), digest: digest.to_owned(), pre })
    }

    /// SHA-256 of the component, hex.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Runs the process from its beginning; what its journal holds is replayed.
    pub async fn run(&self, caller: Caller, limits: Limits) -> Ended {
        let quota = caller.spec().quota;
        let before = caller.spec().epoch.map_or(0, |epoch| epoch.fuel);
        let fuel = quota.fuel.saturating_sub(before);
        let limits = Limits { memory: limits.memory.min(quota.memory), ..limits };
        let data = AgentStore {
            meter: Meter::new(Limits { fuel, wall_ms: quota.wall_ms, ..limits }).on_account(caller.account()),
            wasi: wasi::agent(&caller),
            table: ResourceTable::new(),
            since_yield: 0,
            fuel_mark: fuel,
            fuel_given: (before, fuel),
            caller: caller.clone(),
        };
        let mut store = Store::new(&self.engine.0.plain.wasm, data);
        let result = match prepare(&mut store, fuel, &limits) {
            Ok(()) => self.call(&mut store).await,
            Err(e) => Err(e),
        };
        caller.note_fuel(before + fuel.saturating_sub(store.get_fuel().unwrap_or(0)));
        // A process that was told to stop has stopped, whatever its code made of it.
        if let Some(stop) = caller.stopping() {
            return stopped(stop.clone());
        }
        match result {
            Ok(returned) => Ended::Returned(returned),
            Err(e) => match classify(&e, &store.data().meter) {
                Fall::Limit(limit, why) => Ended::Limit(limit, why),
                Fall::Stop(stop) => stopped(stop),
                Fall::Busy => {
                    Ended::Suspended("too many guests run at once; resume it when others have ended".to_owned())
                }
                Fall::Trap(why) => Ended::Trapped(why),
            },
        }
    }

    async fn call(&self, store: &mut Store<AgentStore>) -> wasmtime::Result<Result<String, String>> {
        let spec = store.data().caller.spec();
        let task = agent_entry::Task { text: spec.task.clone(), input: spec.input.0.clone() };
        let instance = self.pre.instantiate_async(&mut *store).await?;
        instance.agent_os_agent_agent_entry().call_run(store, &task).await
    }
}

fn prepare(store: &mut Store<AgentStore>, fuel: u64, limits: &Limits) -> wasmtime::Result<()> {
    store.limiter(|data| &mut data.meter);
    store.set_fuel(fuel)?;
    store.fuel_async_yield_interval(Some(YIELD_INTERVAL))?;
    store.set_hostcall_fuel(usize::try_from(limits.host_call_bytes).unwrap_or(usize::MAX));
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(|store| {
        let data = store.data();
        if let Some(stop) = data.caller.stopping() {
            return Err(stop.clone().into());
        }
        // Right to within one yield interval: exact figures are noted at host calls.
        let (before, given) = data.fuel_given;
        data.caller.note_fuel(before + given.saturating_sub(store.get_fuel()?));
        data.caller.check_fuel()?;
        Ok(UpdateDeadline::Continue(1))
    });
    Ok(())
}

fn stopped(stop: Stop) -> Ended {
    match stop {
        Stop::OverQuota { limit, message } => Ended::Limit(limit, message),
        Stop::Diverged(why) => Ended::Diverged(why),
        Stop::Store(why) => Ended::Suspended(why),
        Stop::Exec => Ended::Exec,
        Stop::Provider(error) => Ended::Unanswered(error),
    }
}
