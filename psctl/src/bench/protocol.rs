//! What the bench and the processes it starts say to each other: one JSON object a line.
//!
//! With `--against-programs` the processes are those of another build: what is new here has to be
//! optional.
//!
//! A child whose standard input ends has lost its parent and exits.

use std::io::{self, Write};
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// To a worker process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub(super) enum Order {
    /// Do so many steps and report `Done`.
    Steps {
        /// Steps.
        steps: u64,
    },
    /// Push what the codec still holds back, as it is, and report `Done`.
    Settle,
    /// Report the `Times` of the last steps.
    Times,
    /// Compare theta as last pulled with what these pushes (by rank) make of zeros; `Checked`.
    Check {
        /// By rank.
        pushes: Vec<u64>,
    },
}

/// From a child process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case")]
pub(super) enum Report {
    /// A server takes connections.
    Listening {
        /// Where.
        address: SocketAddr,
    },
    /// A worker is connected.
    Connected,
    /// The steps are done.
    Done,
    /// How long each of the last steps took.
    Times {
        /// Nanoseconds.
        nanos: Vec<u64>,
        /// Bytes of messages that all of them sent; a build from before codecs does not say it.
        #[serde(default)]
        sent_bytes: Option<u64>,
    },
    /// Theta is what it should be.
    Checked,
    /// Theta is not.
    Different {
        /// Where first.
        key: usize,
        /// What the pushes amount to.
        expected: f64,
        /// What was pulled.
        got: f64,
    },
}

/// Writes one line and flushes it.
pub(super) fn say(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    to.write_all(&line)?;
    to.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_from_before_codecs_is_understood() {
        let report: Report = serde_json::from_str(r#"{"report":"times","nanos":[7]}"#).expect("ok");
        assert_eq!(report, Report::Times { nanos: vec![7], sent_bytes: None });
    }
}
