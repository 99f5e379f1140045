//! What a worker finds outside of itself: the network, chance, threads. A simulation brings its own.

use std::sync::Arc;

use ps_common::exit::{Exit, ExitError};
use ps_common::transport::Dial;

/// What there is outside. The default is what the system offers.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// How connections are opened; none: the system's TCP.
    pub dialer: Option<Arc<dyn Dial>>,
    /// Of the pauses between attempts: should differ between processes.
    pub seed: u64,
    /// Whether what takes long is computed on a thread of its own, so that heartbeats go on.
    pub has_threads: bool,
}

impl Default for Surroundings {
    fn default() -> Self {
        Self { dialer: None, seed: std::process::id().into(), has_threads: true }
    }
}

impl Surroundings {
    /// Runs what takes long.
    pub(super) async fn compute<A: Send + 'static>(
        &self,
        work: impl FnOnce() -> A + Send + 'static,
    ) -> Result<A, ExitError> {
        if !self.has_threads {
            return Ok(work());
        }
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| ExitError::new(Exit::Bug, "a computation panicked").because(error))
    }
}
