//! `aok mcp`: the tools for any MCP client, over standard input and output.

use std::pin::pin;

use futures_util::stream::{self, FuturesUnordered, StreamExt as _};
use tokio::sync::{Mutex, mpsc};

use super::error::Error;
use super::out::Out;
use super::session::{Owner, Session, Signals};
use super::{diff, input};
use crate::capability::{HostGrant, Rights};
use crate::process::{Mount, Pid};
use crate::server::error::ApiError;
use crate::server::mcp::{Question, serve};
use crate::server::wire::{Connected, Request};
use crate::server::{Lines, handle};

/// Serve the tools to an MCP client over standard input and output
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Directory that the tools may see, by its last name; read-only without `:rw`
    #[arg(long = "dir", value_name = "PATH[:rw]", value_parser = input::mount)]
    dirs: Vec<Mount>,
    /// Let what is written to directories with `:rw` go through to them, and not to a private copy
    #[arg(long, requires = "dirs")]
    direct: bool,
    /// Host that the tools may reach: HOST, HOST:PORT, *.DOMAIN, an address or a network
    #[arg(long = "host", value_name = "HOST")]
    hosts: Vec<HostGrant>,
}

pub(super) async fn run(args: Args, session: &Session, out: &mut Out) -> Result<(), Error> {
    let mut signals = Signals::listen()?;
    let rights = Rights { mounts: input::mounts(args.dirs, args.direct)?, hosts: args.hosts, ..Rights::default() };
    let own = Mutex::default();
    let private = rights.mounts.iter().any(Mount::is_private);
    let (pids, mut opened) = mpsc::unbounded_channel();
    let served = tokio::select! {
        served = connection(session, &own, rights, pids) => served.map_err(Error::from),
        signal = signals.next() => Err(Error::Interrupted(signal, None)),
    };
    while let Ok(pid) = opened.try_recv() {
        if private {
            diff::tell(pid, session, out).await;
        }
    }
    if let Some(owner) = own.into_inner() {
        match served {
            Err(Error::Interrupted(..)) => owner.stop(None, &mut signals, out).await,
            _ => owner.finish(None, &mut signals, out).await,
        }
    }
    served
}

/// Serves the client, and ends the connection if there is no kernel and none can be started. The greeting does
/// not wait for that: a first start compiles the plugins, and clients have little patience.
async fn connection(
    session: &Session,
    own: &Mutex<Option<Owner>>,
    rights: Rights,
    pids: mpsc::UnboundedSender<Pid>,
) -> Result<(), ApiError> {
    let Rights { mounts, hosts, .. } = rights.clone();
    let (questions, mut asked) = mpsc::unbounded_channel::<Question>();
    let mut served = pin!(serve(questions, rights));
    let mut first = pin!(answer(session, own, Request::ToolsOffered { mounts, hosts }));
    let mut found = false;
    let mut answers = FuturesUnordered::new();
    loop {
        tokio::select! {
            served = &mut served => return served,
            tools = &mut first, if !found => {
                drop(tools?);
                found = true;
            }
            Some((request, reply)) = asked.recv() => {
                let pids = matches!(request, Request::Connect { .. }).then(|| pids.clone());
                answers.push(async move {
                    let mut lines = answer(session, own, request).await;
                    if let (Some(pids), Ok(lines)) = (pids, &mut lines) {
                        note_process(lines, &pids).await;
                    }
                    // Whoever asked may have gone.
                    let _ = reply.send(lines);
                });
            }
            Some(()) = answers.next() => {}
        }
    }
}

/// Tells the process of a connection, which its first line names, and leaves the answer as it was.
async fn note_process(lines: &mut Lines, pids: &mpsc::UnboundedSender<Pid>) {
    let first = lines.next().await;
    if let Some(Ok(line)) = &first
        && let Ok(Connected { pid }) = serde_json::from_str(line)
    {
        // Nobody listens any more when the command ends.
        let _ = pids.send(pid);
    }
    let rest = std::mem::replace(lines, stream::empty().boxed());
    *lines = stream::iter(first).chain(rest).boxed();
}

/// Answers by the kernel of the data directory: the running one, and where none runs any more one of our own.
async fn answer(session: &Session, own: &Mutex<Option<Owner>>, request: Request) -> Result<Lines, ApiError> {
    let kernel = own.lock().await.as_ref().map(Owner::kernel);
    if let Some(kernel) = kernel {
        return handle(&kernel, request).await;
    }
    // Of two that find no kernel at once, the second becomes a client of the first one's.
    let started = session.act(request).await?;
    if let Some(owner) = started.owner {
        *own.lock().await = Some(owner);
    }
    started.answer
}
