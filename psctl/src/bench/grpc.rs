//! The side that is measured: the real server, and a worker that uses the real client.
//!
//! Nothing here knows how it is measured: a worker gets its gradient and a buffer for theta.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use ps_common::Element;
use ps_common::exit::{Exit, ExitError};

use super::role::{ServerArgs, WorkerArgs};

/// A worker's place in the job. There is none yet: the client is not part of this build.
pub(super) struct Connection(Infallible);

/// Serves theta of `args.job.n` zeros with plain SGD of `work::LEARNING_RATE`, gradients summed
/// (not averaged) in sync mode; calls `announce` once bound. Returns when the job cannot go on.
pub(super) fn serve(
    _: &ServerArgs,
    _: impl FnOnce(SocketAddr) -> io::Result<()>,
) -> Result<(), ExitError> {
    Err(not_built())
}

/// Joins as rank `args.rank`.
#[expect(clippy::unused_async, reason = "the client's calls are awaited here")]
pub(super) async fn connect(_: &WorkerArgs) -> Result<Connection, ExitError> {
    Err(not_built())
}

/// Pushes `gradient` and pulls into `theta`, `steps` times; how long each took.
#[expect(clippy::unused_async, reason = "the client's calls are awaited here")]
pub(super) async fn steps<T: Element>(
    connection: &mut Connection,
    _gradient: &[T],
    _theta: &mut [T],
    _steps: u64,
) -> Result<Vec<Duration>, ExitError> {
    match connection.0 {}
}

fn not_built() -> ExitError {
    ExitError::new(Exit::Bug, "this build has no gRPC side to measure")
}
