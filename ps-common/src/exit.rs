//! Exit codes of all programs, and the error that carries one up to `main`.

use std::fmt;
use std::process::ExitCode;

/// How a program ends (sysexits where they fit).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// The run failed.
    Failed = 1,
    /// Usage: clap's own.
    Usage = 2,
    /// A data file is bad, or no checkpoint is usable.
    BadData = 65,
    /// A server is not reachable, or an address not to be had.
    Unavailable = 69,
    /// A bug.
    Bug = 70,
    /// An output cannot be created.
    CannotCreate = 73,
    /// Reading or writing failed.
    Io = 74,
    /// Try later.
    TryLater = 75,
    /// An invalid combination of options, or a mismatch with the running job.
    Config = 78,
    /// SIGINT.
    Interrupted = 130,
    /// SIGTERM.
    Terminated = 143,
}

/// An error with the exit code that it means. The message is one line; the source is the chain.
#[derive(Debug)]
pub struct ExitError {
    /// How the program ends.
    pub exit: Exit,
    /// What happened and what to do, one line.
    pub message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl ExitError {
    /// An error without a cause.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), source: None }
    }

    /// A configuration error; the message names the flag.
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(Exit::Config, message)
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
}

impl fmt::Display for ExitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ExitError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}

/// Prints `PROGRAM: what happened`, then the chain of causes, to stderr, and gives the code.
///
/// Never panics, even when stderr is closed.
pub fn conclude(program: &str, result: Result<(), ExitError>) -> ExitCode {
    use std::io::Write;
    let Err(error) = result else { return ExitCode::SUCCESS };
    let mut text = format!("{program}: {error}\n");
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text.push_str(&format!("  caused by: {cause}\n"));
        source = cause.source();
    }
    // Nobody is left to tell when stderr itself is gone.
    let _ = std::io::stderr().write_all(text.as_bytes());
    ExitCode::from(error.exit as u8)
}
