//! `aok mcp`: the tools for any MCP client, over standard input and output.

use super::error::Error;
use super::input;
use super::out::Out;
use super::session::{Session, Signals};
use crate::capability::{HostGrant, Rights};
use crate::process::Mount;
use crate::server::mcp::serve;
use crate::server::wire::Request;

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
    let rights = Rights { mounts: input::distinct(args.dirs)?, hosts: args.hosts };
    let Rights { mounts, hosts } = rights.clone();
    // The first question finds out who answers.
    let started = tokio::select! {
        started = session.act(Request::ToolsOffered { mounts, hosts }) => started?,
        signal = signals.next() => return Err(Error::Interrupted(signal, None)),
    };
    let backend = session.backend(started.owner.as_ref());
    let served = match started.answer {
        Ok(_) => tokio::select! {
            served = serve(backend, rights) => served.map_err(Error::from),
            signal = signals.next() => Err(Error::Interrupted(signal, None)),
        },
        Err(e) => Err(e.into()),
    };
    if let Some(owner) = started.owner {
        match served {
            Err(Error::Interrupted(..)) => owner.stop(None, &mut signals, out).await,
            _ => owner.finish(None, &mut signals, out).await,
        }
    }
    served
}
