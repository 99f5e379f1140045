//! The operator's status, both ways.

use std::time::Duration;

use super::enums::{Parse, aggregate_from, aggregate_into};
use super::membership::stats_from;
use super::{finite, pb, seconds};
use crate::calls::{Status, WorkerStatus};
use crate::error::Error;
use crate::report::HistoryEntry;

impl From<Status> for pb::StatusResponse {
    fn from(status: Status) -> Self {
        let (aggregate, trimmed) = aggregate_into(status.aggregate);
        Self {
            state: pb::JobState::from(status.state).into(),
            reason: status.reason,
            mode: pb::Mode::from(status.mode).into(),
            aggregate,
            trimmed,
            optimizer: status.optimizer,
            dtype: pb::Dtype::from(status.dtype).into(),
            dim: status.dim,
            n_workers: status.n_workers,
            rounds: status.rounds.unwrap_or(0),
            version: status.version,
            seconds: status.seconds,
            last: status.last.map(|entry| pb::HistoryEntry {
                round: entry.round,
                version: entry.version,
                loss: entry.loss,
                seconds: entry.seconds,
            }),
            workers: status.workers.into_iter().map(Into::into).collect(),
            program: status.program,
            fingerprint: status.fingerprint,
            observers: status.observers,
            dropped: status.dropped,
        }
    }
}

impl TryFrom<pb::StatusResponse> for Status {
    type Error = Error;
    fn try_from(status: pb::StatusResponse) -> Result<Self, Error> {
        Ok(Self {
            state: status.state.parse()?,
            reason: status.reason,
            mode: status.mode.parse()?,
            aggregate: aggregate_from((status.aggregate, status.trimmed))?,
            optimizer: status.optimizer,
            dtype: status.dtype.parse()?,
            dim: status.dim,
            n_workers: status.n_workers,
            rounds: (status.rounds != 0).then_some(status.rounds),
            version: status.version,
            seconds: seconds("seconds", status.seconds)?,
            last: status
                .last
                .map(|entry| {
                    Ok::<_, Error>(HistoryEntry {
                        round: finite("last.round", entry.round)?,
                        version: entry.version,
                        loss: entry.loss,
                        seconds: seconds("last.seconds", entry.seconds)?,
                    })
                })
                .transpose()?,
            workers: status
                .workers
                .into_iter()
                .map(WorkerStatus::try_from)
                .collect::<Result<_, _>>()?,
            observers: status.observers,
            dropped: status.dropped,
            program: status.program,
            fingerprint: status.fingerprint,
        })
    }
}

impl From<WorkerStatus> for pb::WorkerStatus {
    fn from(worker: WorkerStatus) -> Self {
        Self {
            rank: worker.rank,
            incarnation: worker.incarnation,
            state: pb::worker_status::State::from(worker.state).into(),
            clock: worker.clock,
            silent_ms: u64::try_from(worker.silent.as_millis()).unwrap_or(u64::MAX),
            stats: Some(worker.stats.into()),
            program: worker.program,
            address: worker.address,
        }
    }
}

impl TryFrom<pb::WorkerStatus> for WorkerStatus {
    type Error = Error;
    fn try_from(worker: pb::WorkerStatus) -> Result<Self, Error> {
        Ok(Self {
            rank: worker.rank,
            incarnation: worker.incarnation,
            state: worker.state.parse()?,
            clock: worker.clock,
            silent: Duration::from_millis(worker.silent_ms),
            stats: stats_from(worker.stats)?,
            program: worker.program,
            address: worker.address,
        })
    }
}
