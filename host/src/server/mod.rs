//! The API: one request type, one function that serves it, and the socket that carries both.
//!
//! [`handle`] is the whole behaviour. A command that owns the kernel calls it directly, a client
//! reaches it through [`socket`]; neither can do what the other cannot. This module knows no command
//! line and prints nothing.

pub mod client;
pub mod error;
pub mod mcp;
pub mod socket;
pub mod wire;

use std::time::Duration;

use futures_util::stream::{self, BoxStream, StreamExt as _};
use serde::Serialize;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;

use crate::capability::Rights;
use crate::kernel::{ClientCall, Error, Kernel};
use crate::process::{Event, EventKind, Pid};
use error::ApiError;
use wire::{ApprovalLine, CallLine, Connected, LogLine, MetricsLine, OfferedTool, Request, Spawned};

/// An answer: JSON lines without their line ends. An error is the last item.
pub type Lines = BoxStream<'static, Result<String, ApiError>>;

/// How often a followed log is looked at. The store has no notification across its backends, and a
/// fifth of a second is as quick as a person reads.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(200);

/// Serves one request.
///
/// Dropping the answer stops nothing that the request began: a process that it started runs on.
///
/// # Errors
/// What the kernel refuses, as users see it. What fails later is the stream's last item.
pub async fn handle(kernel: &Kernel, request: Request) -> Result<Lines, ApiError> {
    match request {
        Request::Run(spawn) => {
            let (pid, events) = kernel.spawn(spawn.into()).await?;
            Ok(event_lines(events, stopped(kernel.clone(), pid)))
        }
        Request::Resume { pid, raise } => {
            kernel.raise(pid, raise).await?;
            Ok(event_lines(kernel.resume(pid).await?, stopped(kernel.clone(), pid)))
        }
        Request::Spawn(spawn) => {
            let (pid, _events) = kernel.spawn(spawn.into()).await?;
            list(vec![Spawned { pid }])
        }
        Request::Attach { pid } => Ok(event_lines(kernel.attach(pid)?, stopped(kernel.clone(), pid))),
        Request::Wait { pid } => {
            let kernel = kernel.clone();
            let end = async move { json(&kernel.last_event(pid).await?) };
            Ok(stream::once(end).boxed())
        }
        Request::Suspend { .. } | Request::Signal { .. } | Request::Nice { .. } | Request::Kill { .. } => {
            order(kernel, request).await?;
            list::<()>(Vec::new())
        }
        Request::Ps {} => list(kernel.ps().await?),
        Request::Logs { pid, follow } => log_lines(kernel.clone(), pid, follow).await,
        Request::ToolLs {} => list(kernel.tools()),
        Request::ToolShow { name } => list(vec![kernel.tool(&name)?]),
        Request::ToolCall { name, arguments, connection: Some(pid), .. } => {
            let kernel = kernel.clone();
            let report = async move { json(&CallLine::from(kernel.call_on(pid, &name, &arguments).await?)) };
            Ok(stream::once(report).boxed())
        }
        Request::ToolCall { name, arguments, mounts, hosts, stop, connection: None } => {
            // Refused before it begins where the name leads nowhere.
            let call = kernel.begin_call(&name, &arguments, Rights { mounts, hosts, ..Rights::default() }).await?;
            Ok(call_line(kernel.clone(), call, stop))
        }
        Request::Connect { name, mounts, hosts } => {
            let connection = kernel.connect(&name, Rights { mounts, hosts, ..Rights::default() }).await?;
            let first = json(&Connected { pid: connection.pid() })?;
            let until_then = stream::once(async move { connection.ended().await });
            Ok(stream::once(async { Ok(first) }).chain(until_then.filter_map(|()| async { None })).boxed())
        }
        Request::ToolsOffered { mounts, hosts } => {
            let offered = kernel.tools_offered(Rights { mounts, hosts, ..Rights::default() }).into_iter();
            list(offered.map(|(tool, needs)| OfferedTool { tool, network: needs.network }).collect())
        }
        Request::ToolChanges {} => Ok(change_lines(kernel.tool_changes())),
        Request::PluginLs {} => list(kernel.plugins()),
        Request::PluginGrant { name, permissions } => list(vec![kernel.grant(&name, &permissions).await?]),
        Request::PluginRevoke { name, what } => list(vec![kernel.revoke(&name, &what).await?]),
        Request::PluginTrust { name } => list(vec![kernel.trust(&name).await?]),
        Request::AgentLs {} => list(kernel.agents()),
        Request::HookLs {} => list(kernel.hooks()),
        Request::Approvals { all } => {
            let approvals = kernel.approvals().await?.into_iter().filter(|a| all || a.answer.is_none());
            list(approvals.map(ApprovalLine::from).collect())
        }
        Request::Decide { id, approved, always } => {
            list(vec![ApprovalLine::from(kernel.decide(id, approved, always).await?)])
        }
        Request::Context { pid } => list(kernel.context(pid).await?),
        Request::Diff { pid, text } => list(kernel.diff(pid, text).await?),
        Request::Apply { pid, files } => match kernel.apply(pid, files).await {
            Err(Error::Conflict { pid, conflicts }) => {
                let lines = list(conflicts.clone())?;
                let failure = ApiError::from(Error::Conflict { pid, conflicts });
                Ok(lines.chain(stream::once(async { Err(failure) })).boxed())
            }
            applied => list(applied?),
        },
        Request::Discard { pid } => list(kernel.discard(pid).await?),
        Request::AuditTail { pid, limit } => list(kernel.audit_tail(pid, limit).await?),
        Request::AuditVerify {} => list(vec![kernel.audit_verify().await?]),
        Request::Doctor { model } => list(Box::pin(kernel.doctor(model.as_deref())).await),
        Request::Metrics {} => list(vec![MetricsLine { prometheus: kernel.metrics() }]),
    }
}

/// Does what is answered with nothing.
async fn order(kernel: &Kernel, request: Request) -> Result<(), Error> {
    match request {
        Request::Suspend { pid } => kernel.suspend(pid).await,
        Request::Kill { pid, reason } => kernel.kill(pid, &reason).await,
        Request::Nice { pid, nice } => kernel.nice(pid, nice).await,
        Request::Signal { pid, signal, grace_ms } => {
            let reason = format!("somebody sent {}", signal.name());
            kernel.signal(pid, signal, &reason, grace_ms.map(Duration::from_millis)).await
        }
        _ => Ok(()),
    }
}

fn json(item: &impl Serialize) -> Result<String, ApiError> {
    serde_json::to_string(item).map_err(|e| ApiError::internal(format!("an answer is no JSON: {e}")))
}

/// An answer of these items.
///
/// # Errors
/// An item that is no JSON, which is a bug.
pub fn list<T: Serialize>(items: Vec<T>) -> Result<Lines, ApiError> {
    let lines = items.iter().map(json).collect::<Result<Vec<_>, _>>()?;
    Ok(stream::iter(lines.into_iter().map(Ok)).boxed())
}

/// The events of a process up to its exit. Events that end without one mean that the process was
/// stopped where it was; the last item says so.
fn event_lines(events: UnboundedReceiver<Event>, why: impl Future<Output = ApiError> + Send + 'static) -> Lines {
    stream::unfold(Some((events, why)), move |state| async move {
        let (mut events, why) = state?;
        let Some(event) = events.recv().await else {
            return Some((Err(why.await), None));
        };
        let last = matches!(event.kind, EventKind::Exit { .. });
        Some((json(&event), (!last).then_some((events, why))))
    })
    .boxed()
}

/// Why a process left the run queue without an end.
async fn stopped(kernel: Kernel, pid: Pid) -> ApiError {
    match kernel.wait(pid).await {
        Err(e) => e.into(),
        Ok(_) => ApiError::stopped(pid),
    }
}

/// The report of a tool call. One that has begun is not cut off because nobody waits for its report,
/// unless its caller wants that.
fn call_line(kernel: Kernel, call: ClientCall, stop: bool) -> Lines {
    let mut guard = StopOnDrop { kernel, pid: call.pid(), armed: stop };
    stream::once(async move {
        let report = call.report().await;
        guard.disarm();
        json(&CallLine::from(report?))
    })
    .boxed()
}

/// Ends a call whose caller has gone.
struct StopOnDrop {
    kernel: Kernel,
    pid: Pid,
    /// Whether it has not ended.
    armed: bool,
}

impl StopOnDrop {
    fn disarm(&mut self) {
        self.armed = false;
    }
}

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let (kernel, pid) = (self.kernel.clone(), self.pid);
        // Without a runtime the kernel is gone too.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                // It may have ended by itself.
                let _ = kernel.kill(pid, "its caller cancelled it").await;
            });
        }
    }
}

/// A line for each change of what `changes` counts.
fn change_lines(changes: watch::Receiver<u64>) -> Lines {
    stream::unfold(changes, |mut changes| async move {
        changes.changed().await.ok()?;
        let count = *changes.borrow_and_update();
        Some((json(&count), changes))
    })
    .boxed()
}

/// Where a followed log stands.
struct Follow {
    kernel: Kernel,
    pid: Pid,
    /// Lines given out.
    seen: u64,
    /// The process ran when this was last looked at, so there may be more.
    more: bool,
}

async fn log_lines(kernel: Kernel, pid: Pid, follow: bool) -> Result<Lines, ApiError> {
    // Whether it runs is asked before its lines are read: what it writes between the two is then
    // read in the next round, and a process that no longer runs writes nothing.
    let runs = |kernel: &Kernel| follow && kernel.running().contains(&pid);
    let more = runs(&kernel);
    let first = kernel.logs(pid, 0).await?;
    let start = Follow { kernel, pid, seen: first.len() as u64, more };
    let later = stream::unfold(start, |mut at| async move {
        if !at.more {
            return None;
        }
        tokio::time::sleep(FOLLOW_INTERVAL).await;
        at.more = at.kernel.running().contains(&at.pid);
        let records = match at.kernel.logs(at.pid, at.seen).await {
            Ok(records) => records,
            Err(e) => {
                at.more = false;
                return Some((vec![Err(e.into())], at));
            }
        };
        at.seen += records.len() as u64;
        Some((records.into_iter().map(|r| json(&LogLine::from(r))).collect(), at))
    });
    let first: Vec<_> = first.into_iter().map(|r| json(&LogLine::from(r))).collect();
    Ok(stream::once(async { first }).chain(later).flat_map(stream::iter).boxed())
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::unbounded_channel;

    use super::error::Code;
    use super::*;
    use crate::process::{ProcessState, Usage};

    fn event(kind: EventKind) -> Event {
        Event { pid: Pid(4), seq: 1, at_ms: 2, kind }
    }

    #[tokio::test]
    async fn events_end_with_the_exit() {
        let (sender, receiver) = unbounded_channel();
        sender.send(event(EventKind::Text { delta: "hi".into() })).unwrap();
        let exit = EventKind::Exit {
            status: "success".into(),
            answer: Some("42".into()),
            message: None,
            usage: Usage::default(),
        };
        sender.send(event(exit)).unwrap();
        // The sender stays open: the stream must end by itself.
        let lines: Vec<_> = event_lines(receiver, async { ApiError::stopped(Pid(4)) }).collect().await;
        assert_eq!(lines[0].as_deref().unwrap(), r#"{"pid":4,"seq":1,"at_ms":2,"type":"text","delta":"hi"}"#);
        assert!(lines[1].as_deref().unwrap().contains(r#""type":"exit","status":"success","answer":"42""#));
        assert_eq!(lines.len(), 2);
    }

    #[tokio::test]
    async fn events_without_an_exit_end_with_the_way_to_resume() {
        let (sender, receiver) = unbounded_channel();
        sender.send(event(EventKind::State { state: ProcessState::Stopped })).unwrap();
        drop(sender);
        let mut lines: Vec<_> = event_lines(receiver, async { ApiError::stopped(Pid(4)) }).collect().await;
        let error = lines.pop().unwrap().unwrap_err();
        assert_eq!((error.code, error.hint.as_str()), (Code::Stopped, "resume with: aok run --resume 4"));
        assert_eq!(lines.len(), 1);
    }
}
