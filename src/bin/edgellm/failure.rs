//! How a command ends when it does not end well.

use std::fmt::Display;
use std::io;

/// What `main` turns into an exit code: 0 and silence, or 1 and a line on stderr. (2, for wrong usage, is clap's.)
#[derive(Debug)]
pub enum Failure {
    /// The reader of our output left: there is nothing wrong and nobody to tell.
    Quiet,
    /// What went wrong.
    Message(String),
}

impl Failure {
    /// A failure with this text.
    pub fn new(message: impl Display) -> Self {
        Failure::Message(message.to_string())
    }
}

impl From<edgellm::Error> for Failure {
    fn from(error: edgellm::Error) -> Self {
        Failure::new(error)
    }
}

/// Writing to stdout failed. Reads name their file themselves.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::Quiet,
            _ => Failure::Message(format!("stdout: {error}")),
        }
    }
}
