//! Guests that a syscall starts: a component linked and ready, and a store with what one call of it may use. It runs
//! inside its caller's future.

use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use wasmtime::component::{Component, Instance, InstancePre, Linker, ResourceTable};
use wasmtime::{Store, UpdateDeadline};
use wasmtime_wasi::filesystem::WasiFilesystemCtxView;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use super::egress::{self, Egress};
use super::limits::Meter;
use super::private::{self, Files, Private, PrivateView};
use super::{Engine, YIELD_INTERVAL, link_refusal, wasi};
use crate::abi::ToolResult;
use crate::capability::{Network, Rights};
use crate::contract::Fault;
use crate::overlay::Area;
use crate::quota::Limits;
use crate::syscall::link::{GuestData, ToolData};
use crate::tool::Session;

/// Files, streams, header lists and the like that one call may hold at once: they are the kernel's memory.
const MAX_HANDLES: usize = 4_096;

/// The data of a tool's or a hook's store.
pub(super) struct NestedStore {
    pub(super) meter: Meter,
    session: Session,
    /// Made when the guest first asks for it, unless it has rights to carry.
    wasi: Option<Box<WasiCtx>>,
    /// The mounts of which it sees a private copy.
    private: Private,
    http: WasiHttpCtx,
    egress: Egress,
    table: ResourceTable,
    since_yield: u64,
    fuel_mark: u64,
    deadline: Instant,
}

impl NestedStore {
    /// Ends a call: its session, with what the network refused in its log. No secret stays in it or in the result.
    pub(super) fn close(&mut self, result: &mut ToolResult) -> Session {
        let mut session = std::mem::replace(&mut self.session, Session::detached(0));
        self.egress.report(&mut session, result);
        self.private.report(&mut session);
        session
    }
}

impl WasiView for NestedStore {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let ctx = self.wasi.get_or_insert_with(|| Box::new(wasi::without_rights()));
        WasiCtxView { ctx, table: &mut self.table }
    }
}

impl PrivateView for NestedStore {
    fn files(&mut self) -> Files<'_> {
        let wasi = self.wasi.get_or_insert_with(|| Box::new(wasi::without_rights()));
        Files::new(WasiFilesystemCtxView { ctx: wasi.filesystem(), table: &mut self.table }, &self.private)
    }
}

impl WasiHttpView for NestedStore {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.egress }
    }
}

impl GuestData for NestedStore {
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

impl ToolData for NestedStore {
    fn session(&mut self) -> &mut Session {
        &mut self.session
    }
}

/// Everything that tools and hooks may import.
pub(super) fn linker(engine: &wasmtime::Engine, wasi03: bool) -> wasmtime::Result<Linker<NestedStore>> {
    let mut linker = Linker::new(engine);
    if wasi03 {
        wasmtime_wasi::p3::add_to_linker(&mut linker)?;
    }
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    private::link(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    crate::syscall::link::tool(&mut linker)?;
    Ok(linker)
}

/// A component's code, linked, and the limits of one call.
pub(super) struct Nested {
    engine: Engine,
    pre: InstancePre<NestedStore>,
    limits: Limits,
}

impl fmt::Debug for Nested {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nested").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Nested {
    pub(super) fn new(engine: &Engine, component: &Component, limits: Limits) -> Result<Self, Fault> {
        let pre = engine.nested_linker(component).instantiate_pre(component).map_err(|e| link_refusal(&e))?;
        Ok(Self { engine: engine.clone(), pre, limits })
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(super) async fn instantiate(&self, store: &mut Store<NestedStore>) -> wasmtime::Result<Instance> {
        self.pre.instantiate_async(store).await
    }

    /// A store for one call; `area` is where the private copies of its directories are.
    ///
    /// # Errors
    /// A directory that can no longer be opened; wasmtime's own.
    pub(super) fn store(
        &self,
        session: Session,
        rights: Rights,
        area: Option<&Arc<Area>>,
        fuel: u64,
        began: Instant,
    ) -> Result<Store<NestedStore>, String> {
        let files = (wasi::tool(&rights)?, Private::open(&rights, area)?);
        let network = Network { hosts: rights.hosts, plugin: rights.plugin };
        let made = self.made(session, files, network, fuel, began);
        made.map_err(|e| e.to_string())
    }

    fn made(
        &self,
        session: Session,
        (wasi, private): (Option<Box<WasiCtx>>, Private),
        network: Network,
        fuel: u64,
        began: Instant,
    ) -> wasmtime::Result<Store<NestedStore>> {
        let mut table = ResourceTable::new();
        table.set_max_capacity(MAX_HANDLES);
        let data = NestedStore {
            meter: Meter::new(self.limits),
            session,
            wasi,
            private,
            http: egress::context(),
            egress: self.egress(network),
            table,
            since_yield: 0,
            fuel_mark: fuel,
            deadline: began + self.wall(),
        };
        let mut store = Store::new(self.pre.engine(), data);
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

    /// Makes the store of an earlier call that of a new one, with limits of its own. Its rights are the same: an
    /// instance does not outlive a change of them.
    pub(super) fn renew(
        &self,
        store: &mut Store<NestedStore>,
        session: Session,
        rights: Rights,
        fuel: u64,
        began: Instant,
    ) -> wasmtime::Result<()> {
        let network = Network { hosts: rights.hosts, plugin: rights.plugin };
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
    fn arm(&self, store: &mut Store<NestedStore>, fuel: u64) -> wasmtime::Result<()> {
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

    /// Runs `call` under the wall limit, whatever it waits on. Most calls end in their first poll, and a
    /// timer wakes Tokio's driver when it is set: so it is set only for a call that does not.
    pub(super) async fn within_wall<T>(
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
}
