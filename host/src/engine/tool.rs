//! Tool calls: a fresh store per call from a warm `InstancePre`, run inside the caller's future.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use serde_json::Value;
use wasmtime::Store;
use wasmtime::component::{Component, ComponentExportIndex, Instance};

use super::foreign::Functions;
use super::limits::{Fall, classify};
use super::nested::{Nested, NestedStore};
use super::{Engine, link_refusal};
use crate::abi::{Errno, Error, ToolSpec};
use crate::bindings::tool::exports::agent_os::plugin::tool_provider;
use crate::bindings::types;
use crate::capability::Rights;
use crate::contract::{Fault, Toolbox};
use crate::process::Pid;
use crate::quota::Limits;
use crate::syscall::now_ms;
use crate::tool::{Invocation, Invoke, Report, Session, SessionEnd};

/// A tool plugin's code, linked and ready to be instantiated.
pub struct ToolImage {
    code: Nested,
    /// Tells it from the image that a plugin had before.
    id: u64,
    face: Face,
}

/// An instance that waits for its process's next call.
struct Live {
    image: u64,
    /// What it was made with: the directories and variables that it sees.
    rights: Rights,
    store: Store<NestedStore>,
    instance: Instance,
}

/// How a component is called. The generated bindings look up every export of an instance, and a call needs one.
enum Face {
    /// By the contract's interface.
    Provider { list: ComponentExportIndex, call: ComponentExportIndex },
    /// By functions of its own.
    Foreign(Functions),
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
        f.debug_struct("ToolImage").field("code", &self.code).finish_non_exhaustive()
    }
}

impl ToolImage {
    pub(super) fn new(engine: &Engine, component: &Component, limits: Limits) -> Result<Self, Fault> {
        let provider = component.get_export_index(None, PROVIDER);
        let find = |name: &str| {
            let index = provider.and_then(|p| component.get_export_index(Some(&p), name));
            index.ok_or_else(|| link_refusal(&wasmtime::Error::msg(format!("it exports no `{name}`"))))
        };
        let face = Face::Provider { list: find("list-tools")?, call: find("call-tool")? };
        Ok(Self::made(Nested::new(engine, component, limits)?, face))
    }

    /// The image of a component that the contract knows nothing of.
    pub(super) fn foreign(
        engine: &Engine,
        component: &Component,
        toolbox: Toolbox,
        limits: Limits,
    ) -> Result<Self, Fault> {
        let code = Nested::new(engine, component, limits)?;
        let functions = Functions::new(component.engine(), component, toolbox)?;
        Ok(Self::made(code, Face::Foreign(functions)))
    }

    fn made(code: Nested, face: Face) -> Self {
        static IMAGES: AtomicU64 = AtomicU64::new(0);
        Self { code, id: IMAGES.fetch_add(1, Ordering::Relaxed), face }
    }

    /// Whether the contract knows nothing of it.
    pub(crate) fn is_foreign(&self) -> bool {
        matches!(self.face, Face::Foreign(_))
    }

    /// Asks the component which tools it has, with no rights. A foreign one is not asked: its border
    /// tells ([`Toolbox`]).
    pub(super) async fn list_tools(&self) -> Result<Vec<ToolSpec>, Fault> {
        let Face::Provider { list, .. } = &self.face else { return Ok(Vec::new()) };
        let refusal = |message: String| Fault {
            code: "list_tools_failed",
            message,
            hint: "`list-tools` must return without files, state or other rights".into(),
        };
        let limited = |limit: &str, message: String| Fault {
            hint: format!("it needs less, or a higher limit of `{limit}` under `[limits]` in aok.toml"),
            ..refusal(message)
        };
        let limits = self.code.limits();
        let session = Session::detached(limits.log);
        let began = Instant::now();
        let mut store = self.code.store(session, Rights::default(), None, limits.fuel, began).map_err(refusal)?;
        let listed = self.code.within_wall(began, async {
            let instance = self.code.instantiate(&mut store).await?;
            let list = instance.get_typed_func::<(), (Vec<types::ToolSpec>,)>(&mut store, list)?;
            list.call_async(&mut store, ()).await
        });
        let (specs,) = listed.await.map_err(|e| match classify(&e, &store.data().meter) {
            Fall::Limit(limit, why) => limited(&limit, format!("`list-tools` failed: {why}")),
            Fall::Trap(why) => refusal(format!("`list-tools` failed: {why}")),
            Fall::Busy => refusal("`list-tools` failed: too many guests run at once".to_owned()),
            Fall::Stop(stop) => refusal(format!("`list-tools` failed: {stop}")),
        })?;
        specs.into_iter().map(spec).collect()
    }

    /// Makes a call in `instance`, or in a new one that is left there.
    async fn run(
        &self,
        store: &mut Store<NestedStore>,
        instance: &mut Option<Instance>,
        call: &Call,
    ) -> wasmtime::Result<Result<String, Error>> {
        let index = match &self.face {
            Face::Provider { call, .. } => call,
            Face::Foreign(functions) => {
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
            deadline_ms: now_ms() + self.code.limits().wall_ms,
            idempotency_key: call.idempotency_key.clone(),
        };
        let function = instance.get_typed_func::<CallParams<'_>, CallResults>(&mut *store, index)?;
        let (result,) = function.call_async(store, (&call.tool, &call.arguments, &context)).await?;
        Ok(result.map_err(Error::from))
    }

    /// The instance that is there, or a new one.
    async fn enter(&self, store: &mut Store<NestedStore>, place: &mut Option<Instance>) -> wasmtime::Result<Instance> {
        if let Some(instance) = place {
            return Ok(*instance);
        }
        Ok(*place.insert(self.code.instantiate(store).await?))
    }

    /// Makes a call in an instance of an earlier one, or in a new one. The instance comes back unless the call
    /// broke it.
    async fn call(&self, live: Option<Live>, call: Invocation) -> (Report, Option<Live>) {
        let began = Instant::now();
        let Invocation { tool, arguments, caller, idempotency_key, rights, area, fuel, session, slot } = call;
        let failed = |message: String| {
            let result = Err(Error::new(Errno::Io, message));
            (Report { result, fuel: 0, memory_bytes: 0, session: SessionEnd::default() }, None)
        };
        // Only an instance that lives on has to know them.
        let keeps = slot.map(|_| rights.clone());
        let (store, mut instance) = match live {
            Some(Live { mut store, instance, .. }) => {
                let renewed = self.code.renew(&mut store, session, rights, fuel, began);
                (renewed.map(|()| store).map_err(|e| e.to_string()), Some(instance))
            }
            None => (self.code.store(session, rights, area.as_ref(), fuel, began), None),
        };
        let mut store = match store {
            Ok(store) => store,
            Err(message) => return failed(message),
        };
        let call = Call { tool, arguments, caller, idempotency_key };
        let (mut result, whole) = match self.code.within_wall(began, self.run(&mut store, &mut instance, &call)).await {
            Ok(result) => (result, true),
            Err(e) => (Err(fall_error(&call.tool, &e, store.data(), fuel, self.code.limits().fuel)), false),
        };
        let used = fuel.saturating_sub(store.get_fuel().unwrap_or(0));
        let data = store.data_mut();
        let session = data.close(&mut result);
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

fn fall_error(tool: &str, error: &wasmtime::Error, data: &NestedStore, fuel: u64, limit: u64) -> Error {
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
