//! What the view shows, from the kernel of the data directory or else from its store.

use futures_util::stream::StreamExt as _;

use super::{Action, Snapshot, Source};
use crate::cli::session::Session;
use crate::server::Lines;
use crate::server::error::ApiError;
use crate::server::wire::{MetricsLine, Request};

/// The processes of a data directory.
pub(in crate::cli) struct Kernel<'a>(pub(in crate::cli) &'a Session);

async fn read<T: serde::de::DeserializeOwned>(mut lines: Lines) -> Result<Vec<T>, ApiError> {
    let mut all = Vec::new();
    while let Some(line) = lines.next().await {
        let read = serde_json::from_str(&line?);
        all.push(read.map_err(|e| ApiError::internal(format!("the kernel's answer is not understood: {e}")))?);
    }
    Ok(all)
}

impl Source for Kernel<'_> {
    async fn snapshot(&self) -> Result<Snapshot, ApiError> {
        let (live, processes, metrics) = self.0.glance().await?;
        let processes = read(processes).await?;
        let metrics: Vec<MetricsLine> = match metrics {
            Some(lines) => read(lines).await?,
            None => Vec::new(),
        };
        Ok(Snapshot::now(live, processes, metrics.into_iter().map(|line| line.prometheus).collect()))
    }

    async fn act(&self, action: Action) -> Result<(), ApiError> {
        let request = match action {
            Action::Signal { pid, signal } => Request::Signal { pid, signal, grace_ms: None },
            Action::Nice { pid, nice } => Request::Nice { pid, nice },
            Action::Quit => return Ok(()),
        };
        self.0.ask(request).await.map(drop)
    }
}
