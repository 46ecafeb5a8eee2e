//! Tool calls: a fresh store per call from a warm `InstancePre`, run inside the caller's future.

use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde_json::Value;
use wasmtime::component::{Component, ComponentExportIndex, Instance, InstancePre, Linker, ResourceTable};
use wasmtime::{Store, UpdateDeadline};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use super::egress::{self, Egress};
use super::foreign::Functions;
use super::limits::{Fall, Meter, classify};
use super::{Engine, YIELD_INTERVAL, link_refusal, wasi};
use crate::abi::{Errno, Error, ToolSpec};
use crate::bindings::tool as world;
use crate::bindings::tool::exports::agent_os::plugin::tool_provider;
use crate::bindings::types;
use crate::capability::{Network, Rights};
use crate::contract::{Fault, Toolbox};
use crate::process::Pid;
use crate::quota::Limits;
use crate::syscall::link::{GuestData, ToolData};
use crate::syscall::now_ms;
use crate::tool::{Invocation, Invoke, Report, Session, SessionEnd};

/// Files, streams, header lists and the like that one call may hold at once: they are the kernel's memory.
const MAX_HANDLES: usize = 4_096;

/// The data of a tool's store.
pub(super) struct ToolStore {
    meter: Meter,
    session: Session,
    /// Made when the guest first asks for it, unless it has rights to carry.
    wasi: Option<Box<WasiCtx>>,
    http: WasiHttpCtx,
    egress: Egress,
    table: ResourceTable,
    since_yield: u64,
    fuel_mark: u64,
    deadline: Instant,
}

impl WasiView for ToolStore {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let ctx = self.wasi.get_or_insert_with(|| Box::new(wasi::without_rights()));
        WasiCtxView { ctx, table: &mut self.table }
    }
}

impl WasiHttpView for ToolStore {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.egress }
    }
}

impl GuestData for ToolStore {
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

impl ToolData for ToolStore {
    fn session(&mut self) -> &mut Session {
        &mut self.session
    }
}

/// Everything that tools may import.
pub(super) fn linker(engine: &wasmtime::Engine, wasi03: bool) -> wasmtime::Result<Linker<ToolStore>> {
    let mut linker = Linker::new(engine);
    if wasi03 {
        wasmtime_wasi::p3::add_to_linker(&mut linker)?;
    }
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    crate::syscall::link::tool(&mut linker)?;
    Ok(linker)
}

/// A tool plugin's code, linked and ready to be instantiated.
pub struct ToolImage {
    engine: Engine,
    /// Tells it from the image that a plugin had before.
    id: u64,
    face: Face,
    limits: Limits,
}

/// An instance that waits for its process's next call.
struct Live {
    image: u64,
    /// What it was made with: the directories and variables that it sees.
    rights: Rights,
    store: Store<ToolStore>,
    instance: Instance,
}

/// How a component is called.
enum Face {
    /// By the contract's interface.
    Provider {
        pre: world::ToolPre<ToolStore>,
        /// `call-tool`. The generated bindings look up every export of an instance, and a call needs one.
        call: ComponentExportIndex,
    },
    /// By functions of its own.
    Foreign { pre: InstancePre<ToolStore>, functions: Functions },
}

impl Face {
    fn pre(&self) -> &InstancePre<ToolStore> {
        match self {
            Self::Provider { pre, .. } => pre.instance_pre(),
            Self::Foreign { pre, .. } => pre,
        }
    }
}

/// Parameters and results of `call-tool`.
type CallParams<'a> = (&'a str, &'a str, &'a tool_provider::CallContext);
type CallResults = (Result<String, types::Error>,);

/// The interface that tools are called through.
const PROVIDER: &str = "agent-os:plugin/tool-provider@0.1.0";

/// Whether a component has that interface.
pub(super) fn is_provider(component: &Component) -> bool {
    component.get_export_index(None, PROVIDER).is_some()
}

impl fmt::Debug for ToolImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ToolImage").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl ToolImage {
    pub(super) fn new(engine: &Engine, component: &Component, limits: Limits) -> Result<Self, Fault> {
        let pre = engine
            .tool_linker(component)
            .instantiate_pre(component)
            .and_then(world::ToolPre::new)
            .map_err(|e| link_refusal(&e))?;
        let provider = component.get_export_index(None, PROVIDER);
        let call = provider.and_then(|p| component.get_export_index(Some(&p), "call-tool"));
        let call = call.ok_or_else(|| link_refusal(&wasmtime::Error::msg("it exports no `call-tool`")))?;
        Ok(Self::made(engine, Face::Provider { pre, call }, limits))
    }

    /// The image of a component that the contract knows nothing of.
    pub(super) fn foreign(
        engine: &Engine,
        component: &Component,
        toolbox: Toolbox,
        limits: Limits,
    ) -> Result<Self, Fault> {
        let pre = engine.tool_linker(component).instantiate_pre(component).map_err(|e| link_refusal(&e))?;
        let functions = Functions::new(component.engine(), component, toolbox)?;
        Ok(Self::made(engine, Face::Foreign { pre, functions }, limits))
    }

    fn made(engine: &Engine, face: Face, limits: Limits) -> Self {
        static IMAGES: AtomicU64 = AtomicU64::new(0);
        Self { engine: engine.clone(), id: IMAGES.fetch_add(1, Ordering::Relaxed), face, limits }
    }

    /// Whether the contract knows nothing of it.
    pub(crate) fn is_foreign(&self) -> bool {
        matches!(self.face, Face::Foreign { .. })
    }

    fn store(
        &self,
        session: Session,
        wasi: Option<Box<WasiCtx>>,
        network: Network,
        fuel: u64,
        began: Instant,
    ) -> wasmtime::Result<Store<ToolStore>> {
        let mut table = ResourceTable::new();
        table.set_max_capacity(MAX_HANDLES);
        let data = ToolStore {
            meter: Meter::new(self.limits),
            session,
            wasi,
            http: egress::context(),
            egress: self.egress(network),
            table,
            since_yield: 0,
            fuel_mark: fuel,
            deadline: began + self.wall(),
        };
        let mut store = Store::new(self.face.pre().engine(), data);
        store.limiter(|data| &mut data.meter);
        store.fuel_async_yield_interval(Some(YIELD_INTERVAL))?;
        store.epoch_deadline_callback(|store| {
            if Instant::now() >= store.data().deadline {
                return Ok(UpdateDeadline::Interrupt);
            }
            Ok(UpdateDeadline::Continue(1))
        });
        self.arm(&mut store, fuel)?;
        Ok(store)
    }

    /// Makes the store of an earlier call that of a new one, with limits of its own. Its rights are the same:
    /// an instance does not outlive a change of them.
    fn renew(
        &self,
        store: &mut Store<ToolStore>,
        session: Session,
        network: Network,
        fuel: u64,
        began: Instant,
    ) -> wasmtime::Result<()> {
        let data = store.data_mut();
        data.meter.begin_call();
        data.session = session;
        data.egress = self.egress(network);
        data.since_yield = 0;
        data.fuel_mark = fuel;
        data.deadline = began + self.wall();
        self.arm(store, fuel)
    }

    /// Gives a store what one call may use.
    fn arm(&self, store: &mut Store<ToolStore>, fuel: u64) -> wasmtime::Result<()> {
        store.set_fuel(fuel)?;
        store.set_hostcall_fuel(usize::try_from(self.limits.host_call_bytes).unwrap_or(usize::MAX));
        store.set_epoch_deadline(1);
        Ok(())
    }

    fn egress(&self, network: Network) -> Egress {
        Egress::new(Arc::clone(&self.engine.0.clients), network, self.wall(), self.limits.host_calls)
    }

    fn wall(&self) -> Duration {
        Duration::from_millis(self.limits.wall_ms)
    }

    /// Asks the component which tools it has, with no rights. A foreign one is not asked: its border
    /// tells ([`Toolbox`]).
    pub(super) async fn list_tools(&self) -> Result<Vec<ToolSpec>, Fault> {
        let Face::Provider { pre, .. } = &self.face else { return Ok(Vec::new()) };
        let refusal = |message: String| Fault {
            code: "list_tools_failed",
            message,
            hint: "`list-tools` must return without files, state or other rights".into(),
        };
        let limited = |limit: &str, message: String| Fault {
            hint: format!("it needs less, or a higher limit of `{limit}` under `[limits]` in aok.toml"),
            ..refusal(message)
        };
        let session = Session::detached(self.limits.log);
        let began = Instant::now();
        let mut store = self
            .store(session, None, Network::default(), self.limits.fuel, began)
            .map_err(|e| refusal(e.to_string()))?;
        let listed = self.within_wall(began, async {
            let instance = pre.instantiate_async(&mut store).await?;
            instance.agent_os_plugin_tool_provider().call_list_tools(&mut store).await
        });
        let specs = listed.await.map_err(|e| match classify(&e, &store.data().meter) {
            Fall::Limit(limit, why) => limited(&limit, format!("`list-tools` failed: {why}")),
            Fall::Trap(why) => refusal(format!("`list-tools` failed: {why}")),
            Fall::Busy => refusal("`list-tools` failed: too many guests run at once".to_owned()),
            Fall::Stop(stop) => refusal(format!("`list-tools` failed: {stop}")),
        })?;
        specs.into_iter().map(spec).collect()
    }

    /// Runs `call` under the wall limit, whatever it waits on. Most calls end in their first poll, and a
    /// timer wakes Tokio's driver when it is set: so it is set only for a call that does not.
    async fn within_wall<T>(
        &self,
        began: Instant,
        call: impl Future<Output = wasmtime::Result<T>>,
    ) -> wasmtime::Result<T> {
        let deadline = tokio::time::Instant::from_std(began + self.wall());
        let mut call = pin!(call);
        let mut timer = None;
        poll_fn(|cx| {
            if let Poll::Ready(result) = call.as_mut().poll(cx) {
                return Poll::Ready(result);
            }
            let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
            timer.as_mut().poll(cx).map(|()| Err(wasmtime::Trap::Interrupt.into()))
        })
        .await
    }

    /// Makes a call in `instance`, or in a new one that is left there.
    async fn run(
        &self,
        store: &mut Store<ToolStore>,
        instance: &mut Option<Instance>,
        call: &Call,
    ) -> wasmtime::Result<Result<String, Error>> {
        let index = match &self.face {
            Face::Provider { call, .. } => call,
            Face::Foreign { functions, .. } => {
                let function = match functions.call(&call.tool, &call.arguments) {
                    Ok(function) => function,
                    Err(e) => return Ok(Err(e)),
                };
                let instance = self.enter(store, instance).await?;
                return function.run(store, &instance, &call.tool).await;
            }
        };
        let instance = self.enter(store, instance).await?;
        let context = tool_provider::CallContext {
            caller: call.caller.0,
            deadline_ms: now_ms() + self.limits.wall_ms,
            idempotency_key: call.idempotency_key.clone(),
        };
        let function = instance.get_typed_func::<CallParams<'_>, CallResults>(&mut *store, index)?;
        let (result,) = function.call_async(store, (&call.tool, &call.arguments, &context)).await?;
        Ok(result.map_err(Error::from))
    }

    /// The instance that is there, or a new one.
    async fn enter(&self, store: &mut Store<ToolStore>, place: &mut Option<Instance>) -> wasmtime::Result<Instance> {
        if let Some(instance) = place {
            return Ok(*instance);
        }
        Ok(*place.insert(self.face.pre().instantiate_async(store).await?))
    }

    /// Makes a call in an instance of an earlier one, or in a new one. The instance comes back unless the call
    /// broke it.
    async fn call(&self, live: Option<Live>, call: Invocation) -> (Report, Option<Live>) {
        let began = Instant::now();
        let Invocation { tool, arguments, caller, idempotency_key, rights, fuel, session, slot } = call;
        let failed = |message: String| {
            let result = Err(Error::new(Errno::Io, message));
            (Report { result, fuel: 0, memory_bytes: 0, session: SessionEnd::default() }, None)
        };
        // Only an instance that lives on has to know them.
        let keeps = slot.map(|_| rights.clone());
        let wasi = match &live {
            Some(_) => None,
            None => match wasi::tool(&rights) {
                Ok(wasi) => wasi,
                Err(message) => return failed(message),
            },
        };
        let network = Network { hosts: rights.hosts, plugin: rights.plugin };
        let (store, mut instance) = match live {
            Some(Live { mut store, instance, .. }) => {
                let renewed = self.renew(&mut store, session, network, fuel, began);
                (renewed.map(|()| store), Some(instance))
            }
            None => (self.store(session, wasi, network, fuel, began), None),
        };
        let mut store = match store {
            Ok(store) => store,
            Err(e) => return failed(e.to_string()),
        };
        let call = Call { tool, arguments, caller, idempotency_key };
        let (mut result, whole) = match self.within_wall(began, self.run(&mut store, &mut instance, &call)).await {
            Ok(result) => (result, true),
            Err(e) => (Err(fall_error(&call.tool, &e, store.data(), fuel, self.limits.fuel)), false),
        };
        let used = fuel.saturating_sub(store.get_fuel().unwrap_or(0));
        let data = store.data_mut();
        let mut session = std::mem::replace(&mut data.session, Session::detached(0));
        data.egress.report(&mut session, &mut result);
        let (ok, memory_bytes) = (result.is_ok(), data.meter.peak_memory());
        let live = instance.filter(|_| whole).zip(keeps);
        let live = live.map(|(instance, rights)| Live { image: self.id, rights, store, instance });
        (Report { result, fuel: used, memory_bytes, session: session.end(ok) }, live)
    }
}

/// The part of an invocation that the guest sees.
struct Call {
    tool: String,
    arguments: String,
    caller: Pid,
    idempotency_key: String,
}

#[async_trait]
impl Invoke for ToolImage {
    async fn invoke(&self, call: Invocation) -> Report {
        let Some(slot) = call.slot.clone() else { return self.call(None, call).await.0 };
        let mut place = slot.lock().await;
        // Taken out, so that a call that is given up leaves no instance that is in the middle of something.
        let live = place.take().and_then(|kept| kept.downcast::<Live>().ok());
        let live = live.filter(|live| live.image == self.id && live.rights == call.rights).map(|live| *live);
        let (report, live) = self.call(live, call).await;
        if let Some(live) = live {
            *place = Some(Box::new(live));
        }
        report
    }
}

fn fall_error(tool: &str, error: &wasmtime::Error, data: &ToolStore, fuel: u64, limit: u64) -> Error {
    match classify(error, &data.meter) {
        // The caller had less fuel left than the tool may use: it is the caller that has run out.
        Fall::Limit(name, _) if name == "fuel" && fuel < limit => Error::limit(
            "fuel",
            format!("the tool `{tool}` was stopped: its caller had {fuel} fuel left, give it more with --max-fuel"),
        ),
        Fall::Limit(name, why) => Error::limit(&name, format!("the tool `{tool}` was stopped: {why}")),
        Fall::Busy => Error::new(
            Errno::Again,
            format!("the tool `{tool}` has no room to run: too many guests run at once, try again"),
        ),
        Fall::Stop(stop) => Error::new(Errno::Io, stop.to_string()),
        Fall::Trap(why) => Error::new(Errno::Io, format!("the tool `{tool}` broke: {why}")),
    }
}

/// A listed tool with its schemas read.
fn spec(s: crate::bindings::types::ToolSpec) -> Result<ToolSpec, Fault> {
    let schema = |text: &str, what: &str| {
        let bad = |why: String| Fault {
            code: "invalid_schema",
            message: format!("the {what} schema of its tool `{}` cannot be used: {why}", s.name),
            hint: "give a JSON Schema (draft 2020-12) object".into(),
        };
        let value: Value = serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
        jsonschema::validator_for(&value).map_err(|e| bad(e.to_string()))?;
        Ok(value)
    };
    if s.name.is_empty() {
        return Err(Fault {
            code: "invalid_tool_name",
            message: "one of its tools has no name".into(),
            hint: "give each tool a name".into(),
        });
    }
    Ok(ToolSpec {
        input_schema: schema(&s.input_schema, "input")?,
        output_schema: s.output_schema.as_deref().map(|text| schema(text, "output")).transpose()?,
        name: s.name,
        description: s.description,
        effect: s.effect.into(),
    })
}
