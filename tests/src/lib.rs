//! What the whole-system tests share.

pub mod fake_llm;
pub mod figure;
pub mod herald;
pub mod stub;

use axum::Router;
use axum::serve::ListenerExt as _;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Serves `app` until the task is ended. An answer of a model is many small pieces: held back until the one before is
/// acknowledged, each takes 40 ms. A socket that cannot be told so is only slower.
fn serve(listener: TcpListener, app: Router) -> JoinHandle<()> {
    let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
    tokio::spawn(async move {
        // A test server has no log: what it cannot serve, its clients see.
        let _ = axum::serve(listener, app).await;
    })
}
