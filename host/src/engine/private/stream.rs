//! Streams of files in a private copy: wasmtime-wasi's, which hold the file's room and take more as it grows.

use std::io;
use std::sync::Arc;

use hyper::body::Bytes;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult};

use crate::overlay::Held;

/// A stream out of a file in the copy.
pub(super) struct Reading {
    pub(super) stream: Box<dyn InputStream>,
    pub(super) _held: Arc<Held>,
}

#[async_trait]
impl InputStream for Reading {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        self.stream.read(size)
    }

    async fn cancel(&mut self) {
        self.stream.cancel().await;
    }
}

#[async_trait]
impl Pollable for Reading {
    async fn ready(&mut self) {
        self.stream.ready().await;
    }
}

/// A stream into a file in the copy.
pub(super) struct Writing {
    pub(super) stream: Box<dyn OutputStream>,
    pub(super) held: Arc<Held>,
    /// Where the next byte goes.
    pub(super) position: u64,
    /// How far room was taken.
    pub(super) end: u64,
}

impl Writing {
    fn charge(&mut self, bytes: usize) -> StreamResult<()> {
        let position = self.position.saturating_add(bytes as u64);
        let more = position.saturating_sub(self.end);
        self.held.area().charge(more, 0).map_err(|e| StreamError::LastOperationFailed(full(e)))?;
        self.position = position;
        self.end = self.end.max(position);
        Ok(())
    }
}

fn full(error: io::Error) -> wasmtime::Error {
    // By its type the guest is told that no space is left.
    error.into()
}

#[async_trait]
impl OutputStream for Writing {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.charge(bytes.len())?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> StreamResult<()> {
        self.stream.flush()
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        self.stream.check_write()
    }

    async fn blocking_write_and_flush(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.charge(bytes.len())?;
        self.stream.blocking_write_and_flush(bytes).await
    }

    async fn cancel(&mut self) {
        self.stream.cancel().await;
    }
}

#[async_trait]
impl Pollable for Writing {
    async fn ready(&mut self) {
        self.stream.ready().await;
    }
}
