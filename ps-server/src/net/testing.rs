//! What the tests of this folder share: a server without a job and without protection.

use std::sync::Arc;
use std::time::Duration;

use ps_common::Dtype;
use ps_common::dtype::CHUNK_BYTES;
use ps_common::job::{Aggregate, OnWorkerLoss};

use super::{Protection, Shell};
use crate::core::{Config, Consistency, DelayScaling, StopRules};
use crate::driver::Driver;
use crate::numeric::{Optimizer, Rule};
use crate::security::{Limits, Security};

/// A server that waits for one worker.
pub(super) fn shell() -> Arc<Shell> {
    shell_of(1)
}

/// A server that waits for so many workers, whose updates take turns.
pub(super) fn shell_of(n_workers: u32) -> Arc<Shell> {
    let config = Config {
        consistency: Consistency::Async {
            delay_scaling: DelayScaling::None,
            max_gradient_delay: None,
        },
        n_workers,
        partition: ps_common::partition::Partition::WHOLE,
        aggregate: Aggregate::Mean,
        rounds: None,
        lease: Duration::from_secs(60),
        on_worker_loss: OnWorkerLoss::Continue,
        replacement_timeout: Duration::from_secs(1),
        observers: 0,
        wait_max: Config::WAIT_MAX,
        stop: StopRules::default(),
        checkpoints: None,
        boot: 0,
    };
    // Without a memory of earlier steps it is plain descent, but computed before it is in force.
    let optimizer = Optimizer { rule: Rule::Momentum { mu: 0.0 }, ..Optimizer::sgd(1.0) };
    Shell::new(Driver::new(config, Dtype::F32, optimizer, CHUNK_BYTES, "test"))
}

/// Plaintext, no tokens, 4 connections.
pub(super) fn unprotected() -> Protection {
    let limits = Limits {
        connections_max: 4,
        handshake: Duration::from_secs(5),
        stall: Duration::from_secs(5),
        age: Duration::from_secs(60),
    };
    let open = Security { tls: None, tokens: None, warning: None };
    Protection::load(&open, limits).expect("no file is read")
}
