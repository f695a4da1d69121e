//! Every way this crate can fail.
//!
//! An error says what was wrong and where. Each variant is one status of the C API (`capi::status`).

use std::borrow::Cow;
use std::fmt;

/// The result of everything here that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a message is made of: static where no memory may be asked for.
pub type Message = Cow<'static, str>;

/// Why a call failed. A failed call has changed nothing.
#[derive(Debug)]
pub enum Error {
    /// An argument is wrong: out of range, not UTF-8, an unknown flag.
    Argument(Message),
    /// The call is not allowed now.
    State(Message),
    /// Another thread is inside this session.
    Busy,
    /// Memory could not be had, for what and how many bytes.
    NoMemory {
        /// For what.
        what: &'static str,
        /// How much.
        bytes: usize,
    },
    /// The system does not keep this memory from being swapped out.
    NotLocked {
        /// Of what.
        what: &'static str,
        /// How much.
        bytes: usize,
        /// How much this process may lock in all, if that is known; `u64::MAX` = any.
        limit: Option<u64>,
        /// What the system said.
        reason: std::io::Error,
    },
    /// What a model and its sessions may take together is not enough.
    MemoryLimit {
        /// For what.
        what: &'static str,
        /// How much more.
        bytes: u64,
        /// What they have taken.
        taken: u64,
        /// What they may take.
        limit: u64,
    },
    /// Memory of a device could not be had, for what and how many bytes.
    DeviceMemory {
        /// For what.
        what: &'static str,
        /// How much; 0 when only the driver knows.
        bytes: usize,
    },
    /// The operating system refused; `errno` is its code or 0.
    Io {
        /// What was being done to which thing, and why it failed.
        message: String,
        /// The system's code, or 0.
        errno: i32,
    },
    /// The file is damaged or hostile.
    Format(String),
    /// The file is fine, this build cannot run it.
    Unsupported(String),
    /// What was saved is damaged or incomplete.
    Integrity(Message),
    /// What was saved belongs to another model, layout or version.
    Mismatch(String),
    /// The context is full: `capacity` tokens fit, `wanted` were asked for.
    Context {
        /// Tokens that fit.
        capacity: usize,
        /// Tokens asked for.
        wanted: usize,
    },
    /// A grammar was rejected, or cannot go on.
    Grammar(Message),
    /// Another thread cancelled the step; the session is as it was before the step.
    Cancelled,
    /// The device's driver is missing or too old, the device was lost, or a call of the driver failed.
    Device(Message),
    /// The handle was used in a child process after `fork`.
    Forked,
    /// A bug of ours, caught.
    Internal(Message),
}

impl Error {
    /// An [`Error::Argument`] from anything that can be a message.
    pub fn argument(message: impl Into<Message>) -> Self {
        Error::Argument(message.into())
    }

    /// An [`Error::Device`] from anything that can be a message.
    pub fn device(message: impl Into<Message>) -> Self {
        Error::Device(message.into())
    }

    /// An [`Error::Io`] that says what was being done to which thing.
    pub fn io(what: impl fmt::Display, error: &std::io::Error) -> Self {
        Error::Io { message: format!("{what}: {error}"), errno: error.raw_os_error().unwrap_or(0) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Argument(message)
            | Error::State(message)
            | Error::Integrity(message)
            | Error::Grammar(message)
            | Error::Device(message)
            | Error::Internal(message) => f.write_str(message),
            Error::Busy => f.write_str("another thread is inside this session"),
            Error::NoMemory { what, bytes } => write!(f, "no memory for {what}: {bytes} bytes"),
            Error::NotLocked { what, bytes, limit, reason } => {
                write!(f, "{bytes} bytes of {what} cannot be locked in memory: {reason}")?;
                match limit {
                    Some(limit) if *limit < u64::MAX => write!(f, "; this process may lock {limit} bytes"),
                    _ => Ok(()),
                }
            }
            Error::MemoryLimit { what, bytes, taken, limit } => {
                write!(f, "memory limit: {what} takes {bytes} bytes, and {taken} of {limit} are taken")
            }
            Error::DeviceMemory { what, bytes: 0 } => write!(f, "no memory of the device for {what}"),
            Error::DeviceMemory { what, bytes } => write!(f, "no memory of the device for {what}: {bytes} bytes"),
            Error::Io { message, .. }
            | Error::Format(message)
            | Error::Unsupported(message)
            | Error::Mismatch(message) => f.write_str(message),
            Error::Context { capacity, wanted } => {
                write!(f, "context full: {wanted} tokens wanted, {capacity} fit")
            }
            Error::Cancelled => f.write_str("cancelled"),
            Error::Forked => f.write_str("this handle belongs to the parent process: load again after fork"),
        }
    }
}

impl std::error::Error for Error {}
