//! `aok mcp`: the tools for any MCP client, over standard input and output.

use std::pin::pin;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::{Mutex, mpsc};

use super::error::Error;
use super::input;
use super::out::Out;
use super::session::{Owner, Session, Signals};
use crate::capability::{HostGrant, Rights};
use crate::process::Mount;
use crate::server::error::ApiError;
use crate::server::mcp::{Question, serve};
use crate::server::wire::Request;
use crate::server::{Lines, handle};

/// Serve the tools to an MCP client over standard input and output
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Directory that the tools may see, by its last name; read-only without `:rw`
    #[arg(long = "dir", value_name = "PATH[:rw]", value_parser = input::mount)]
    dirs: Vec<Mount>,
    /// Host that the tools may reach: HOST, HOST:PORT, *.DOMAIN, an address or a network
    #[arg(long = "host", value_name = "HOST")]
    hosts: Vec<HostGrant>,
}

pub(super) async fn run(args: Args, session: &Session, out: &mut Out) -> Result<(), Error> {
    let mut signals = Signals::listen()?;
    let rights = Rights { mounts: input::distinct(args.dirs)?, hosts: args.hosts, ..Rights::default() };
    let own = Mutex::default();
    let served = tokio::select! {
        served = connection(session, &own, rights) => served.map_err(Error::from),
        signal = signals.next() => Err(Error::Interrupted(signal, None)),
    };
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
async fn connection(session: &Session, own: &Mutex<Option<Owner>>, rights: Rights) -> Result<(), ApiError> {
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
            Some((request, reply)) = asked.recv() => answers.push(async move {
                // Whoever asked may have gone.
                let _ = reply.send(answer(session, own, request).await);
            }),
            Some(()) = answers.next() => {}
        }
    }
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
