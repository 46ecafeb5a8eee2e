//! The processes of clients outside: one for a single tool call, or one for all calls of a connection.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::{mpsc, oneshot};

use super::info::{CallReport, ToolInfo};
use super::life::{Born, set_aside};
use super::query::tool_info;
use super::request::user;
use super::{End, Error, Kernel, Live, Process, lock};
use crate::abi::{Errno, ToolCall};
use crate::audit::Chain;
use crate::capability::{Needs, Rights};
use crate::context::PageManager;
use crate::process::{Exit, Input, Pid, ProcessSpec, Usage};
use crate::quota::{OnQuota, ResourceQuota};
use crate::storage::{Batch, Change};
use crate::syscall::{Answer, CLIENT, Caller, Life, Outcome, Stop, Syscall, now_ms};

/// Tokens of a client's window: it never asks a model.
const CLIENT_WINDOW: u32 = 8192;

/// A tool call of a client that has begun.
#[derive(Debug)]
pub struct ClientCall {
    pid: Pid,
    tool: String,
    receive: oneshot::Receiver<(Result<Answer, Stop>, End)>,
}

impl ClientCall {
    /// The client process that makes it.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// A failing store; [`Error::Suspended`] if the kernel ends before the call, or somebody ends the call.
    pub async fn report(self) -> Result<CallReport, Error> {
        let Self { pid, tool, receive } = self;
        match receive.await.map_err(|_| gone(pid))? {
            (_, End::Suspended(why)) => Err(Error::Suspended { pid, why }),
            (_, End::Unanswered(source)) => Err(Error::Unanswered { pid, source }),
            (answer, End::Exit(_)) => report(pid, tool, answer),
        }
    }
}

fn gone(pid: Pid) -> Error {
    Error::Suspended { pid, why: "the kernel was shut down".to_owned() }
}

/// What a client is told of its call.
fn report(pid: Pid, tool: String, answer: Result<Answer, Stop>) -> Result<CallReport, Error> {
    let answer = match answer {
        Ok(answer) => answer,
        Err(Stop::Store(why)) => return Err(Error::Suspended { pid, why }),
        Err(stop) => return Err(Error::State { pid, why: stop.to_string() }),
    };
    Ok(CallReport {
        tool,
        pid: pid.0,
        outcome: match answer.outcome {
            Outcome::Text(text) => Ok(text),
            Outcome::Failed(e) => Err(e),
            other => Err(crate::abi::Error::new(Errno::Io, format!("{other:?}"))),
        },
        fuel: answer.cost.fuel,
        memory_bytes: answer.cost.memory_bytes,
        duration_us: answer.cost.duration_us,
        seq: answer.seq,
    })
}

/// The connection of a client: a process that makes its calls and ends with the last handle.
#[derive(Clone, Debug)]
pub struct Connection {
    pid: Pid,
    jobs: mpsc::UnboundedSender<Message>,
}

impl Connection {
    /// Its process.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits until its process has ended, by a quota or by somebody who ended it.
    pub async fn ended(&self) {
        self.jobs.closed().await;
    }
}

/// What the process of a connection is told.
#[derive(Debug)]
enum Message {
    Make(Job),
    /// To end if it makes no call. The sender is dropped when it has ended, or makes one.
    Close(oneshot::Sender<Infallible>),
}

/// A call of a connection. It is cancelled when nobody waits for its answer any more.
#[derive(Debug)]
struct Job {
    call: ToolCall,
    /// Whether the answer waits until the call is durable, since it did more than to look.
    settle: bool,
    reply: oneshot::Sender<Result<Answer, Stop>>,
}

/// The connections of a kernel, none of which it keeps open.
#[derive(Debug, Default)]
pub(super) struct Connections(Mutex<HashMap<Pid, Entry>>);

#[derive(Debug)]
struct Entry {
    jobs: mpsc::WeakUnboundedSender<Message>,
    under_way: Arc<AtomicUsize>,
}

impl Connections {
    fn get(&self, pid: Pid) -> Option<Connection> {
        let jobs = lock(&self.0).get(&pid)?.jobs.upgrade()?;
        Some(Connection { pid, jobs }).filter(|c| !c.jobs.is_closed())
    }

    /// Forgets one whose process has ended.
    pub(super) fn remove(&self, pid: Pid) {
        lock(&self.0).remove(&pid);
    }

    /// Ends every connection that makes no call, as if its client had left. One that makes a call goes on.
    pub(super) async fn close_idle(&self, live: &Mutex<HashMap<Pid, Live>>) {
        let idle: Vec<_> = lock(&self.0)
            .iter()
            .filter(|(_, entry)| entry.under_way.load(Ordering::Relaxed) == 0)
            .map(|(pid, entry)| (*pid, entry.jobs.upgrade()))
            .collect();
        for (pid, jobs) in idle {
            if let Some(jobs) = jobs {
                let (ending, ended) = oneshot::channel();
                drop(jobs.send(Message::Close(ending)));
                drop(ended.await);
                continue;
            }
            let end = lock(live).get(&pid).map(|l| l.process.end.subscribe());
            if let Some(mut end) = end {
                // Its client left, so nothing holds it up.
                drop(end.wait_for(Option::is_some).await);
            }
        }
    }

    /// Whether it is a connection that makes no call.
    pub(super) fn is_idle(&self, pid: Pid) -> bool {
        lock(&self.0).get(&pid).is_some_and(|entry| entry.under_way.load(Ordering::Relaxed) == 0)
    }
}

/// The process of a client with these rights.
fn client_spec(pid: Pid, name: String, rights: Rights) -> ProcessSpec {
    ProcessSpec {
        pid,
        ppid: None,
        name: name.clone(),
        agent: CLIENT.to_owned(),
        digest: String::new(),
        model: None,
        group: user(),
        nice: 0,
        task: name,
        input: Input::default(),
        root: None,
        epoch: None,
        mounts: rights.mounts,
        hosts: rights.hosts,
        yes: false,
        quota: ResourceQuota::STANDARD,
        on_quota: OnQuota::End,
        seed: rand::random(),
        created_ms: now_ms(),
    }
}

impl Kernel {
    /// Calls a tool as a client process of its own, with the rights given: journaled and audited.
    ///
    /// # Errors
    /// [`Error::UnknownTool`], [`Error::AmbiguousTool`], a failing store. A failing tool is a report.
    pub async fn call_tool(&self, name: &str, arguments: &str, rights: Rights) -> Result<CallReport, Error> {
        self.begin_call(name, arguments, rights).await?.report().await
    }

    /// Begins a call as [`Self::call_tool`] makes it. It goes on whether or not somebody waits for its report;
    /// [`Self::kill`] of its process stops it.
    ///
    /// # Errors
    /// [`Error::UnknownTool`], [`Error::AmbiguousTool`], a failing store.
    pub async fn begin_call(&self, name: &str, arguments: &str, rights: Rights) -> Result<ClientCall, Error> {
        self.owner()?;
        self.0.registry.ready_for(name).await;
        let tool = self.tool(name)?.name;
        let process = self.client(tool.clone(), rights).await?;
        let pid = process.caller.spec().pid;
        let call = ToolCall { id: "client".to_owned(), name: tool.clone(), arguments: arguments.to_owned() };
        let (send, receive) = oneshot::channel();
        let (kernel, client) = (self.clone(), process.clone());
        self.start(&process, async move {
            let answer = client.caller.call(Syscall::Call { call, page: false }).await;
            let exit = match &answer {
                Ok(answer) => match &answer.outcome {
                    Outcome::Text(text) => Exit::Success(text.clone()),
                    Outcome::Failed(e) if e.code == Errno::Quota => Exit::OverQuota(e.message.clone()),
                    Outcome::Failed(e) => Exit::Failure(e.message.clone()),
                    other => Exit::Failure(format!("{other:?}")),
                },
                Err(stop) => Exit::Failure(stop.to_string()),
            };
            let end = kernel.conclude(&client, exit).await;
            drop(send.send((answer, end)));
        })?;
        Ok(ClientCall { pid, tool, receive })
    }

    /// Opens a connection for a client called `name`: one process makes all its calls, with the rights given.
    ///
    /// # Errors
    /// [`Error::ReadOnly`], a failing store.
    pub async fn connect(&self, name: &str, rights: Rights) -> Result<Connection, Error> {
        let owner = self.owner()?;
        let process = self.client(name.to_owned(), rights).await?;
        let pid = process.caller.spec().pid;
        let (jobs, receive) = mpsc::unbounded_channel();
        let under_way = Arc::new(AtomicUsize::new(0));
        let entry = Entry { jobs: jobs.downgrade(), under_way: Arc::clone(&under_way) };
        lock(&owner.connections.0).insert(pid, entry);
        let (kernel, client) = (self.clone(), process.clone());
        self.start(&process, async move {
            let exit = match serve(&client.caller, receive, &under_way).await {
                Ok(closing) => {
                    drop(kernel.conclude(&client, Exit::Success(String::new())).await);
                    return drop(closing);
                }
                Err(Stop::Store(why)) => return set_aside(&client, End::Suspended(why)),
                Err(Stop::OverQuota { message, .. }) => Exit::OverQuota(message),
                Err(stop) => Exit::Failure(stop.to_string()),
            };
            drop(kernel.conclude(&client, exit).await);
        })?;
        Ok(Connection { pid, jobs })
    }

    /// Calls a tool on the connection of the process `pid`. Dropping the future cancels the call.
    ///
    /// # Errors
    /// [`Error::UnknownTool`], [`Error::AmbiguousTool`]; [`Error::UnknownProcess`] if there is no such connection (any
    /// more): then nothing was begun; [`Error::Suspended`] if the process or the kernel ends before the call;
    /// [`Error::State`] if a quota of the process is used up. A failing tool is a report.
    pub async fn call_on(&self, pid: Pid, name: &str, arguments: &str) -> Result<CallReport, Error> {
        let owner = self.owner()?;
        self.0.registry.ready_for(name).await;
        let tool = self.tool(name)?;
        let call = ToolCall { id: "client".to_owned(), name: tool.name.clone(), arguments: arguments.to_owned() };
        let (reply, answer) = oneshot::channel();
        let job = Job { call, settle: tool.effect.is_outward(), reply };
        let connection = owner.connections.get(pid).ok_or(Error::UnknownProcess { pid })?;
        connection.jobs.send(Message::Make(job)).map_err(|_| Error::UnknownProcess { pid })?;
        report(pid, tool.name, answer.await.map_err(|_| gone(pid))?)
    }

    /// A new client process, not yet on the run queue.
    async fn client(&self, name: String, rights: Rights) -> Result<Process, Error> {
        let pid = Pid(self.owner()?.next_pid.fetch_add(1, Ordering::Relaxed));
        let spec = client_spec(pid, name, rights);
        let mut chain = Chain::resume(pid, None);
        let audit = chain.append(spec.created_ms, "spawn", CLIENT, "allow", "policy");
        let changes = vec![Change::Spawn(Box::new(spec.clone())), Change::Audit(audit)];
        self.0.services.store.enqueue(Batch { pid, changes }).await?;
        let account = self.owner()?.books.account(&spec, None);
        let life = Life {
            spec,
            pages: PageManager::new(pid, CLIENT_WINDOW),
            first_page: 1,
            usage: Usage::default(),
            chain,
            journal: Vec::new(),
            account,
            lease: None,
        };
        let Born { process, .. } = self.adopt(life, None);
        Ok(process)
    }

    /// The tools that a client with these rights may call, and what the code of each asks for.
    #[must_use]
    pub fn tools_offered(&self, rights: Rights) -> Vec<(ToolInfo, Needs)> {
        let services = &self.0.services;
        let client = client_spec(Pid::KERNEL, String::new(), rights);
        let offered = services.tools.all().into_iter().filter(|tool| services.security.offers(&client, tool));
        offered.map(|tool| (tool_info(&tool), tool.needs)).collect()
    }
}

/// Makes the calls of a connection until its last handle is gone or it is told to close; then it returns who waits
/// for that. The calls share the process's turns on the run queue: `FuturesUnordered` gives way after two that used
/// up their interval.
async fn serve(
    caller: &Caller,
    mut jobs: mpsc::UnboundedReceiver<Message>,
    under_way: &AtomicUsize,
) -> Result<Option<oneshot::Sender<Infallible>>, Stop> {
    let mut calls = FuturesUnordered::new();
    let mut open = true;
    while open || !calls.is_empty() {
        tokio::select! {
            message = jobs.recv(), if open => match message {
                Some(Message::Make(job)) => calls.push(job.make(caller)),
                Some(Message::Close(closing)) if calls.is_empty() => return Ok(Some(closing)),
                Some(Message::Close(_)) => {}
                None => open = false,
            },
            Some(made) = calls.next() => made?,
        }
        under_way.store(calls.len(), Ordering::Relaxed);
    }
    Ok(None)
}

impl Job {
    /// Makes the call and answers. What stops the process is told to both sides.
    async fn make(self, caller: &Caller) -> Result<(), Stop> {
        let Self { call, settle, mut reply } = self;
        let mut answer = caller.call_until(Syscall::Call { call, page: false }, reply.closed()).await;
        if settle && answer.is_ok() {
            answer = caller.settled().await.and(answer);
        }
        let made = answer.as_ref().map(drop).map_err(Stop::clone);
        // Its caller may have gone.
        let _ = reply.send(answer);
        made
    }
}
