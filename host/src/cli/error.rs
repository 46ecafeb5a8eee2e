//! How a command ends when it does not end well: one error, one exit status.

use std::io;

use crate::process::Pid;
use crate::server::error::{ApiError, Code, resume_hint};

/// A signal that asks aok to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    /// Ctrl-C.
    Interrupt,
    /// A polite kill.
    Terminate,
}

impl Signal {
    fn number(self) -> u8 {
        match self {
            Self::Interrupt => 2,
            Self::Terminate => 15,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Interrupt => "Ctrl-C",
            Self::Terminate => "SIGTERM",
        }
    }
}

/// Why a command does not exit with 0.
#[derive(Debug)]
pub(super) enum Error {
    /// It failed, or the kernel refused it.
    Failed(ApiError),
    /// A signal ended it. The process, where one was begun, can be resumed.
    Interrupted(Signal, Option<Pid>),
    /// Nobody reads its output any more: no reason to say anything.
    BrokenPipe,
}

impl Error {
    /// The exit status (CONTRACT §2).
    pub(super) fn exit(&self) -> u8 {
        match self {
            Self::Failed(e) => e.exit(),
            Self::Interrupted(signal, _) => 128 + signal.number(),
            Self::BrokenPipe => 128 + 13,
        }
    }

    /// What to tell the user; nothing if nobody listens.
    pub(super) fn report(self) -> Option<ApiError> {
        match self {
            Self::Failed(e) => Some(e),
            Self::Interrupted(signal, pid) => {
                let (what, hint) = match pid {
                    Some(pid) => (format!("process {pid} was stopped"), resume_hint(pid)),
                    None => ("this was stopped".to_owned(), "`aok ps` shows what was begun".to_owned()),
                };
                Some(ApiError::new(Code::Interrupted, format!("{what} by {}", signal.name()), hint))
            }
            Self::BrokenPipe => None,
        }
    }
}

impl From<ApiError> for Error {
    fn from(e: ApiError) -> Self {
        Self::Failed(e)
    }
}

impl From<io::Error> for Error {
    /// For errors of writing output only: inputs name their file.
    fn from(e: io::Error) -> Self {
        match e.kind() {
            io::ErrorKind::BrokenPipe => Self::BrokenPipe,
            _ => Self::Failed(ApiError::new(
                Code::Io,
                format!("the output cannot be written: {e}"),
                "check where the output goes",
            )),
        }
    }
}

impl From<serde_json::Error> for Error {
    /// For lines of the kernel's answers only.
    fn from(e: serde_json::Error) -> Self {
        Self::Failed(ApiError::internal(format!("the kernel's answer is not understood: {e}")))
    }
}

/// Bad usage that clap could not see.
pub(super) fn usage(message: impl Into<String>, hint: impl Into<String>) -> Error {
    Error::Failed(ApiError::new(Code::BadUsage, message, hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_exit_by_their_number_and_tell_how_to_resume() {
        let error = Error::Interrupted(Signal::Interrupt, Some(Pid(3)));
        assert_eq!(error.exit(), 130);
        let told = error.report().unwrap();
        assert_eq!((told.code, told.hint.as_str()), (Code::Interrupted, "resume with: aok run --resume 3"));
        assert_eq!(Error::Interrupted(Signal::Terminate, None).exit(), 143);
    }

    #[test]
    fn a_closed_pipe_is_silent() {
        let error = Error::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(error.exit(), 141);
        assert_eq!(error.report(), None);
        assert_eq!(Error::from(io::Error::from(io::ErrorKind::StorageFull)).exit(), 5);
    }
}
