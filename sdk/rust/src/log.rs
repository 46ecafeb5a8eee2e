//! Lines in the log of the calling process (`aok logs PID`), capped by the `log` limit.

pub use crate::generated::agent::agent_os::plugin::log::{Level, log};

/// Logs detail that only the author needs.
pub fn debug(message: &str) {
    log(Level::Debug, message);
}

/// Logs what an operator may want to know.
pub fn info(message: &str) {
    log(Level::Info, message);
}

/// Logs something unexpected that did not stop the work.
pub fn warn(message: &str) {
    log(Level::Warn, message);
}

/// Logs a failure.
pub fn error(message: &str) {
    log(Level::Error, message);
}
