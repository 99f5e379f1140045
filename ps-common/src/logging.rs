//! Logs: to stderr, filtered by `PS_LOG`, coloured only on a terminal.

use std::io::{self, IsTerminal, Write};

use tracing_subscriber::EnvFilter;

/// A stderr that swallows write errors: a closed stderr must not end a server (row 48).
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(io::stderr().write(bytes).unwrap_or(bytes.len()))
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = io::stderr().flush();
        Ok(())
    }
}

/// Installs the process's subscriber. `default` is the filter where `PS_LOG` is not set, `json`
/// writes one object a line.
pub fn init(default: &str, json: bool) {
    let filter = EnvFilter::try_from_env("PS_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| Stderr)
        .with_ansi(colour)
        .with_target(false);
    // A second call (tests, roles inside one process) keeps the first subscriber.
    let _ = if json { builder.json().try_init() } else { builder.try_init() };
}
