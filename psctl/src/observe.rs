//! A server's status as what `show` draws. The one place where the two meet.

use ps_common::calls::{self, Status, WorkerStatus};

use crate::show::snapshot::{Snapshot, WorkerLine, WorkerState};
use crate::show::status::JobFacts;

/// The job at the moment of `status`.
pub fn snapshot(status: &Status) -> Snapshot {
    Snapshot {
        state: status.state,
        mode: status.mode,
        version: status.version,
        rounds: status.rounds.unwrap_or(0),
        seconds: status.seconds,
        loss: status.last.map(|entry| entry.loss),
        workers: status.workers.iter().map(worker_line).collect(),
    }
}

/// What does not change while the job runs; `address` is the server's.
pub fn facts(status: &Status, address: &str) -> JobFacts {
    JobFacts {
        address: address.to_owned(),
        program: status.program.clone(),
        reason: status.reason.clone(),
        aggregate: status.mode.aggregates().then_some(status.aggregate),
        optimizer: status.optimizer.clone(),
        dtype: status.dtype,
        dim: status.dim,
        observers: status.observers,
        fingerprint: status.fingerprint.clone(),
    }
}

fn worker_line(worker: &WorkerStatus) -> WorkerLine {
    WorkerLine {
        rank: worker.rank,
        incarnation: worker.incarnation,
        state: match worker.state {
            calls::WorkerState::Vacant => WorkerState::Vacant,
            calls::WorkerState::Live => WorkerState::Live,
            calls::WorkerState::Lost => WorkerState::Lost,
            calls::WorkerState::Left => WorkerState::Left,
        },
        clock: worker.clock,
        silent_ms: u64::try_from(worker.silent.as_millis()).unwrap_or(u64::MAX),
        stats: worker.stats,
        address: worker.address.clone(),
    }
}
