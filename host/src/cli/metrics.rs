//! `aok metrics`: the kernel's figures.

use super::error::Error;
use super::out::Out;
use super::session::Session;
use crate::server::wire::{MetricsLine, Request};

/// Write the kernel's metrics as Prometheus text
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) async fn run(_: Args, session: &Session, out: &mut Out) -> Result<(), Error> {
    let lines = session.look(Request::Metrics {}).await?;
    for metrics in out.items::<MetricsLine>(lines).await? {
        out.line(metrics.prometheus.trim_end())?;
    }
    Ok(())
}
