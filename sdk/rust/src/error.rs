//! The one error of the contract, with a constructor for each reason.

pub use crate::generated::agent::agent_os::types::types::{Errno, Error};

/// What a syscall or a tool gives: the value, or an [`Error`] that a model can read.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Each message says what happened, to what, and what to do next: a model reads it.
impl Error {
    /// Builds an error of any reason.
    pub fn new(code: Errno, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// An argument is malformed or out of range.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Errno::Invalid, message)
    }

    /// A grant does not cover it.
    pub fn denied(message: impl Into<String>) -> Self {
        Self::new(Errno::Denied, message)
    }

    /// There is no such thing.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Errno::NotFound, message)
    }

    /// An argument or a result is over its size limit.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(Errno::TooLarge, message)
    }

    /// The environment failed.
    pub fn io(message: impl Into<String>) -> Self {
        Self::new(Errno::Io, message)
    }
}

impl Errno {
    /// The name that the contract and the kernel's JSON output use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::NotFound => "not-found",
            Self::Invalid => "invalid",
            Self::Quota => "quota",
            Self::Again => "again",
            Self::Interrupted => "interrupted",
            Self::Timeout => "timeout",
            Self::Unsupported => "unsupported",
            Self::TooLarge => "too-large",
            Self::Io => "io",
        }
    }
}
