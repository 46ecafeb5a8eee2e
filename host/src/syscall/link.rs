//! Binds each import of the WIT contract to its [`Syscall`]: names, types and fuel, nothing else.
//!
//! Fuel is exact here: on entry the guest's counter says what its own code used, on exit the fuel of
//! the guests that the call ran and the price of the call itself are taken off it. Taking fuel off
//! restarts the engine's yield interval, so a guest in a tight loop of calls is made to yield here.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use wasmtime::component::{ComponentNamedList, Lift, Linker, LinkerInstance, Lower};
use wasmtime::{Result, StoreContextMut};

use super::{Caller, Child, Options, Outcome, StepOutcome, Stop, Syscall};
use crate::abi::Error as AbiError;
use crate::bindings::{plugin, sys, types};
use crate::ipc::Filter;
use crate::process::{Exit, Input, Message, Pid, Signal};
use crate::tool::Session;

/// Fuel that one call into the kernel costs its guest.
pub(crate) const HOST_CALL_FUEL: u64 = 2_000;

/// What every guest's store keeps about its calls into the kernel.
pub(crate) trait GuestData: Send + 'static {
    /// Counts a call.
    ///
    /// # Errors
    /// The limit that it breaks.
    fn count_host_call(&mut self) -> Result<()>;
    /// Fuel burnt without a yield so far; the caller resets it.
    fn since_yield(&mut self) -> &mut u64;
    /// After how much of it the guest must yield.
    fn yield_interval(&self) -> u64;
    /// The guest's fuel counter when it last came back from the kernel.
    fn fuel_mark(&mut self) -> &mut u64;
}

/// The store data of an agent.
pub(crate) trait AgentData: GuestData {
    /// Its side of the kernel.
    fn caller(&self) -> &Caller;
    /// Fuel that it had used when it was started, and what it was given then.
    fn fuel_given(&self) -> (u64, u64);
}

/// The store data of a tool.
pub(crate) trait ToolData: GuestData {
    /// Its call's session.
    fn session(&mut self) -> &mut Session;
}

/// Links what an agent imports from the kernel.
pub(crate) fn agent<T: AgentData>(linker: &mut Linker<T>) -> Result<()> {
    let mut log = linker.instance("agent-os:plugin/log@0.1.0")?;
    bind_unit(&mut log, "log", |(level, message): (plugin::log::Level, String)| Syscall::Log {
        level: level_name(level),
        message,
    })?;
    agent_state(linker)?;
    agent_context(linker)?;
    agent_tools(linker)?;
    let mut llm = linker.instance("agent-os:agent/llm@0.1.0")?;
    bind(
        &mut llm,
        "generate",
        |(o,): (sys::llm::Options,)| Syscall::Generate(options(o)),
        |outcome| match outcome {
            Outcome::Reply(reply) => Some(sys::llm::Reply::from(reply)),
            _ => None,
        },
    )?;
    let mut process = linker.instance("agent-os:agent/process@0.1.0")?;
    bind_plain(
        &mut process,
        "self-pid",
        |(): ()| Syscall::SelfPid,
        |outcome| match outcome {
            Outcome::Number(pid) => Some(pid),
            _ => None,
        },
    )?;
    bind(&mut process, "sleep", |(ms,): (u64,)| Syscall::Sleep { ms }, done)?;
    agent_children(&mut process)?;
    agent_messages(&mut process)?;
    let mut step = linker.instance("agent-os:agent/step@0.1.0")?;
    step.func_wrap_async("step", |mut store: StoreContextMut<'_, T>, (o,): (sys::llm::Options,)| {
        Box::new(async move {
            let caller = enter_agent(&mut store)?;
            let (outcome, cost) = caller.step(options(o)).await?;
            leave(&mut store, cost.fuel).await?;
            Ok((outcome.map(step_outcome).map_err(types::Error::from),))
        })
    })
}

fn agent_children<T: AgentData>(process: &mut LinkerInstance<'_, T>) -> Result<()> {
    bind(
        process,
        "spawn",
        |(o,): (sys::process::SpawnOptions,)| {
            let sys::process::SpawnOptions { agent, task, input, name, nice, model, quota } = o;
            Syscall::Spawn(Box::new(Child { agent, task, input: Input(input), name, nice, model, quota }))
        },
        number,
    )?;
    bind(
        process,
        "wait",
        |(pid, timeout_ms): (u64, Option<u64>)| Syscall::Wait { pid: Pid(pid), timeout_ms },
        |outcome| match outcome {
            Outcome::Exit(exit) => Some(match exit {
                Exit::Success(text) => sys::process::Exit::Success(text),
                Exit::Failure(text) => sys::process::Exit::Failure(text),
                Exit::Killed(text) => sys::process::Exit::Killed(text),
                Exit::OverQuota(text) => sys::process::Exit::OverQuota(text),
            }),
            _ => None,
        },
    )?;
    bind(
        process,
        "signal",
        |(pid, kind): (u64, sys::process::SignalKind)| Syscall::Signal {
            pid: Pid(pid),
            signal: match kind {
                sys::process::SignalKind::Stop => Signal::Stop,
                sys::process::SignalKind::Cont => Signal::Cont,
                sys::process::SignalKind::Term => Signal::Term,
                sys::process::SignalKind::Kill => Signal::Kill,
            },
        },
        done,
    )?;
    bind(
        process,
        "exec",
        |(agent, task, input): (String, String, Vec<u8>)| Syscall::Exec { agent, task, input: Input(input) },
        done,
    )
}

fn agent_messages<T: AgentData>(process: &mut LinkerInstance<'_, T>) -> Result<()> {
    bind(
        process,
        "send",
        |(to, topic, body): (u64, String, Vec<u8>)| Syscall::Send {
            to: Pid(to),
            topic,
            body: Input(body),
            reply_to: None,
        },
        number,
    )?;
    bind(
        process,
        "reply",
        |(message, body): (u64, Vec<u8>)| Syscall::Send {
            to: Message::sender_of(message),
            topic: REPLY.to_owned(),
            body: Input(body),
            reply_to: Some(message),
        },
        number,
    )?;
    bind(process, "publish", |(topic, body): (String, Vec<u8>)| Syscall::Publish { topic, body: Input(body) }, number)?;
    bind(process, "subscribe", |(topic,): (String,)| Syscall::Subscribe { topic, on: true }, done)?;
    bind(process, "unsubscribe", |(topic,): (String,)| Syscall::Subscribe { topic, on: false }, done)?;
    bind(
        process,
        "receive",
        |(topic, timeout_ms): (Option<String>, Option<u64>)| Syscall::Receive {
            filter: topic.map_or(Filter::Any, Filter::Topic),
            from: None,
            timeout_ms,
        },
        |outcome| match outcome {
            Outcome::Message(message) => Some(message.map(told_message)),
            _ => None,
        },
    )?;
    process.func_wrap_async(
        "request",
        |mut store: StoreContextMut<'_, T>, (to, topic, body, timeout_ms): (u64, String, Vec<u8>, Option<u64>)| {
            Box::new(async move {
                let caller = enter_agent(&mut store)?;
                let answer = caller.ask_peer(Pid(to), topic, Input(body), timeout_ms).await?;
                leave(&mut store, 0).await?;
                Ok((answer.map(told_message).map_err(types::Error::from),))
            })
        },
    )?;
    bind(process, "lock", |(name, timeout_ms): (String, Option<u64>)| Syscall::Lock { name, timeout_ms }, done)?;
    bind(process, "unlock", |(name,): (String,)| Syscall::Unlock { name }, done)
}

/// The topic of answers.
const REPLY: &str = "reply";

fn told_message(m: Message) -> sys::process::Message {
    let Message { id, sender, topic, body, reply_to } = m;
    sys::process::Message { id, sender: sender.0, topic, body: body.0, reply_to }
}

fn agent_state<T: AgentData>(linker: &mut Linker<T>) -> Result<()> {
    let mut state = linker.instance("agent-os:plugin/state@0.1.0")?;
    bind(
        &mut state,
        "get",
        |(key,): (String,)| Syscall::StateGet { key },
        |outcome| match outcome {
            Outcome::Entry(e) => Some(e.map(|(value, revision)| plugin::state::Entry { value, revision })),
            _ => None,
        },
    )?;
    bind(
        &mut state,
        "put",
        |(key, value, expected): (String, Vec<u8>, Option<u64>)| Syscall::StatePut { key, value, expected },
        number,
    )?;
    bind(&mut state, "delete", |(key,): (String,)| Syscall::StateDelete { key }, done)
}

fn agent_context<T: AgentData>(linker: &mut Linker<T>) -> Result<()> {
    let mut context = linker.instance("agent-os:agent/context@0.1.0")?;
    bind(
        &mut context,
        "append",
        |(kind, text, importance, pinned): (sys::context::PageKind, String, Option<f32>, bool)| Syscall::Append {
            kind: kind.into(),
            text,
            importance,
            pinned,
        },
        number,
    )?;
    bind(&mut context, "read", |(page,): (u64,)| Syscall::Read { page }, text)?;
    bind(&mut context, "pin", |(page, pinned): (u64, bool)| Syscall::Pin { page, pinned }, done)?;
    bind(
        &mut context,
        "set-importance",
        |(page, importance): (u64, f32)| Syscall::SetImportance { page, importance },
        done,
    )?;
    bind_plain(
        &mut context,
        "pages",
        |(): ()| Syscall::Pages,
        |outcome| match outcome {
            Outcome::Pages(pages) => Some(pages.into_iter().map(page_info).collect::<Vec<_>>()),
            _ => None,
        },
    )?;
    bind_plain(
        &mut context,
        "get-usage",
        |(): ()| Syscall::Usage,
        |outcome| match outcome {
            Outcome::Usage(u) => Some(sys::context::Usage {
                window_tokens: u.window_tokens,
                resident_tokens: u.resident_tokens,
                resident_pages: u.resident_pages,
                swapped_pages: u.swapped_pages,
                faults: u.faults,
                hits: u.hits,
                evictions: u.evictions,
            }),
            _ => None,
        },
    )
}

fn agent_tools<T: AgentData>(linker: &mut Linker<T>) -> Result<()> {
    let mut tools = linker.instance("agent-os:agent/tools@0.1.0")?;
    bind_plain(
        &mut tools,
        "available",
        |(): ()| Syscall::Available,
        |outcome| match outcome {
            Outcome::Tools(specs) => Some(specs.into_iter().map(types::ToolSpec::from).collect::<Vec<_>>()),
            _ => None,
        },
    )?;
    bind(
        &mut tools,
        "call",
        |(name, arguments): (String, String)| Syscall::Call {
            call: crate::abi::ToolCall { id: String::new(), name, arguments },
            page: false,
        },
        text,
    )?;
    tools.func_wrap_async("call-all", |mut store: StoreContextMut<'_, T>, (calls,): (Vec<types::ToolCall>,)| {
        Box::new(async move {
            let caller = enter_agent(&mut store)?;
            let (called, cost) = caller.call_all(calls.into_iter().map(Into::into).collect()).await?;
            leave(&mut store, cost.fuel).await?;
            let outcomes: Vec<_> = called
                .into_iter()
                .map(|c| sys::tools::Outcome { id: c.call.id, content: c.result.map_err(types::Error::from) })
                .collect();
            Ok((outcomes,))
        })
    })
}

/// Links what a tool imports from the kernel.
pub(crate) fn tool<T: ToolData>(linker: &mut Linker<T>) -> Result<()> {
    let mut log = linker.instance("agent-os:plugin/log@0.1.0")?;
    log.func_wrap_async("log", |mut store: StoreContextMut<'_, T>, (level, message): (plugin::log::Level, String)| {
        Box::new(async move {
            enter(&mut store)?;
            store.data_mut().session().log(level_name(level), message).map_err(wasmtime::Error::from)?;
            leave(&mut store, 0).await
        })
    })?;
    let mut state = linker.instance("agent-os:plugin/state@0.1.0")?;
    state.func_wrap_async("get", |mut store: StoreContextMut<'_, T>, (key,): (String,)| {
        Box::new(async move {
            enter(&mut store)?;
            let entry = store.data_mut().session().get(key).await;
            leave(&mut store, 0).await?;
            let entry = entry.map(|e| e.map(|e| plugin::state::Entry { value: e.value, revision: e.revision }));
            Ok((entry.map_err(types::Error::from),))
        })
    })?;
    state.func_wrap_async(
        "put",
        |mut store: StoreContextMut<'_, T>, (key, value, expected): (String, Vec<u8>, Option<u64>)| {
            Box::new(async move {
                enter(&mut store)?;
                let revision = store.data_mut().session().put(key, value, expected).await;
                leave(&mut store, 0).await?;
                Ok((revision.map_err(types::Error::from),))
            })
        },
    )?;
    state.func_wrap_async("delete", |mut store: StoreContextMut<'_, T>, (key,): (String,)| {
        Box::new(async move {
            enter(&mut store)?;
            store.data_mut().session().delete(key);
            leave(&mut store, 0).await?;
            Ok((Ok::<(), types::Error>(()),))
        })
    })
}

/// Counts the call and what the guest burnt since the last one.
fn enter<T: GuestData>(store: &mut StoreContextMut<'_, T>) -> Result<u64> {
    let left = store.get_fuel()?;
    let data = store.data_mut();
    data.count_host_call()?;
    let burnt = data.fuel_mark().saturating_sub(left);
    *data.since_yield() += burnt;
    Ok(left)
}

fn enter_agent<T: AgentData>(store: &mut StoreContextMut<'_, T>) -> Result<Caller> {
    let left = enter(store)?;
    let data = store.data();
    let caller = data.caller().clone();
    let (before, given) = data.fuel_given();
    caller.note_fuel(before + given.saturating_sub(left));
    Ok(caller)
}

/// Takes the call's price and the fuel of the guests that it ran off the guest's fuel, and yields if
/// the guest has had its interval.
async fn leave<T: GuestData>(store: &mut StoreContextMut<'_, T>, nested: u64) -> Result<()> {
    let left = store.get_fuel()?.saturating_sub(nested).saturating_sub(HOST_CALL_FUEL);
    store.set_fuel(left)?;
    let data = store.data_mut();
    *data.fuel_mark() = left;
    *data.since_yield() += HOST_CALL_FUEL;
    if *data.since_yield() >= data.yield_interval() {
        *data.since_yield() = 0;
        Yield(false).await;
    }
    Ok(())
}

/// Pending once, woken at once: to the run queue this is a used interval.
struct Yield(bool);

impl Future for Yield {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.0 {
            return Poll::Ready(());
        }
        self.0 = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Binds an import that cannot fail for the guest.
fn bind_plain<T, P, R>(
    instance: &mut LinkerInstance<'_, T>,
    name: &'static str,
    syscall: fn(P) -> Syscall,
    result: fn(Outcome) -> Option<R>,
) -> Result<()>
where
    T: AgentData,
    P: ComponentNamedList + Lift + Send + 'static,
    R: Lower + wasmtime::component::ComponentType + Send + 'static,
{
    instance.func_wrap_async(name, move |mut store: StoreContextMut<'_, T>, params: P| {
        Box::new(async move {
            let caller = enter_agent(&mut store)?;
            let answer = caller.call(syscall(params)).await?;
            leave(&mut store, answer.cost.fuel).await?;
            result(answer.outcome).map(|r| (r,)).ok_or_else(|| mismatch(&caller, name))
        })
    })
}

/// Binds an import without a result.
fn bind_unit<T, P>(instance: &mut LinkerInstance<'_, T>, name: &'static str, syscall: fn(P) -> Syscall) -> Result<()>
where
    T: AgentData,
    P: ComponentNamedList + Lift + Send + 'static,
{
    instance.func_wrap_async(name, move |mut store: StoreContextMut<'_, T>, params: P| {
        Box::new(async move {
            let caller = enter_agent(&mut store)?;
            let answer = caller.call(syscall(params)).await?;
            leave(&mut store, answer.cost.fuel).await
        })
    })
}

/// Binds an import that gives `result<R, error>`.
fn bind<T, P, R>(
    instance: &mut LinkerInstance<'_, T>,
    name: &'static str,
    syscall: fn(P) -> Syscall,
    result: fn(Outcome) -> Option<R>,
) -> Result<()>
where
    T: AgentData,
    P: ComponentNamedList + Lift + Send + 'static,
    R: Lower + wasmtime::component::ComponentType + Send + 'static,
{
    instance.func_wrap_async(name, move |mut store: StoreContextMut<'_, T>, params: P| {
        Box::new(async move {
            let caller = enter_agent(&mut store)?;
            let answer = caller.call(syscall(params)).await?;
            leave(&mut store, answer.cost.fuel).await?;
            Ok((match answer.outcome {
                Outcome::Failed(e) => Err(types::Error::from(e)),
                outcome => Ok(result(outcome).ok_or_else(|| mismatch(&caller, name))?),
            },))
        })
    })
}

/// An outcome of another call's shape: only a journal that somebody changed can hold one.
fn mismatch(caller: &Caller, name: &str) -> wasmtime::Error {
    let pid = caller.spec().pid;
    caller.stop(Stop::Store(format!("the journal of process {pid} holds another call's outcome for `{name}`"))).into()
}

fn done(outcome: Outcome) -> Option<()> {
    matches!(outcome, Outcome::Done).then_some(())
}

fn number(outcome: Outcome) -> Option<u64> {
    match outcome {
        Outcome::Number(n) => Some(n),
        _ => None,
    }
}

fn text(outcome: Outcome) -> Option<String> {
    match outcome {
        Outcome::Text(text) => Some(text),
        _ => None,
    }
}

fn level_name(level: plugin::log::Level) -> &'static str {
    match level {
        plugin::log::Level::Trace => "trace",
        plugin::log::Level::Debug => "debug",
        plugin::log::Level::Info => "info",
        plugin::log::Level::Warn => "warn",
        plugin::log::Level::Error => "error",
    }
}

fn options(o: sys::llm::Options) -> Options {
    Options {
        model: o.model,
        tools: o.tools,
        temperature: o.temperature,
        max_tokens: o.max_tokens,
        response_schema: o.response_schema,
    }
}

fn step_outcome(outcome: StepOutcome) -> sys::step::Outcome {
    match outcome {
        StepOutcome::Answered(text) => sys::step::Outcome::Answered(text),
        StepOutcome::Continuing(called) => sys::step::Outcome::Continuing(
            called
                .into_iter()
                .map(|c| sys::step::Called { call: c.call.into(), content: c.result.map_err(|e: AbiError| e.into()) })
                .collect(),
        ),
    }
}

fn page_info(p: super::PageBrief) -> sys::context::PageInfo {
    sys::context::PageInfo {
        id: p.id,
        kind: p.kind.into(),
        tokens: p.tokens,
        importance: p.importance,
        pinned: p.pinned,
        resident: p.resident,
        preview: p.preview,
    }
}
