//! The calls of a worker's and an operator's life as checked values.
//!
//! `wire/` turns protobuf into these and back; core, server and worker know only these.

use std::time::Duration;

use crate::codec::Encoding;
use crate::dtype::Dtype;
use crate::job::{Aggregate, Fingerprint, JobState, Metrics, Mode, Role, WorkerStats};
use crate::report::HistoryEntry;
use crate::tables::Tables;

/// Who calls: a rank (an observer's number for observers) and which life of it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct Caller {
    /// Worker rank from 0, or an observer's number from [`Caller::FIRST_OBSERVER`].
    pub rank: u32,
    /// Counts the lives of a job's workers; a newer one fences the older.
    pub incarnation: u64,
}

impl Caller {
    /// Observers are numbered from here, workers below.
    pub const FIRST_OBSERVER: u32 = 1 << 31;

    /// Whether the number is an observer's.
    pub fn is_observer(self) -> bool {
        self.rank >= Self::FIRST_OBSERVER
    }
}

/// A wish to enter the job.
#[derive(Debug, Clone, PartialEq)]
pub struct JoinRequest {
    /// The caller's version of the wire.
    pub protocol_version: u32,
    /// Worker or observer.
    pub role: Role,
    /// A worker's wish.
    pub rank: Option<u32>,
    /// What must agree.
    pub fingerprint: Fingerprint,
    /// The model's tables; `None`: whatever the job has.
    pub tables: Option<Tables>,
    /// `None`: whatever the job has.
    pub dtype: Option<Dtype>,
    /// Program and version, for the operator.
    pub program: String,
    /// On a rejoin: the last acknowledged clock.
    pub acknowledged_clock: Option<u64>,
    /// A worker that computes its next gradient while a push is on its way.
    pub overlap: bool,
}

/// What a worker needs to know of the job it is in.
#[derive(Debug, Clone, PartialEq)]
pub struct JoinAnswer {
    /// The caller's name from now on.
    pub caller: Caller,
    /// Its lease.
    pub lease: Duration,
    /// The first clock it owes.
    pub clock: u64,
    /// Its part of the data.
    pub shard: u32,
    /// K.
    pub n_shards: u32,
    /// Elements of theta.
    pub dim: usize,
    /// Of theta.
    pub dtype: Dtype,
    /// How updates are ordered.
    pub mode: Mode,
    /// How a round is summed.
    pub aggregate: Aggregate,
    /// Clocks a worker owes in all; `None`: until the job stops.
    pub rounds: Option<u64>,
    /// Of theta, now.
    pub version: u64,
    /// Of the job, now.
    pub state: JobState,
    /// Server program and version.
    pub program: String,
    /// The job's.
    pub fingerprint: Fingerprint,
    /// The job's.
    pub tables: Tables,
    /// The first key of each server's part of theta, in order of partition: 0 for a lone server.
    pub first_keys: Vec<usize>,
}

/// The name and facts of a push, without its gradient.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct PushHeader {
    /// Whose.
    pub caller: Caller,
    /// The worker's completed steps.
    pub clock: u64,
    /// The theta that the gradient was computed at.
    pub version_pulled: u64,
    /// Behind the gradient.
    pub n_samples: u64,
    /// Mean data loss over them at that theta.
    pub loss: Option<f64>,
    /// L2 term at that theta.
    pub penalty: Option<f64>,
    /// Longest time that the answer may be held; `None`: the server's limit.
    #[serde(skip)]
    pub wait_max: Option<Duration>,
    /// The caller's number for the theta of the answer, which it takes from the other servers by it;
    /// 0 where there are none.
    #[serde(skip)]
    pub exchange: u64,
}

/// What became of a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Counted.
    Applied,
    /// Had counted before.
    Duplicate,
    /// Too late; does not count.
    DroppedLate,
    /// Kept, waiting for others.
    Waiting,
}

/// The answer to a push.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct PushResult {
    /// What became of it.
    pub outcome: Outcome,
    /// theta's version after the update that it is part of.
    pub version: u64,
    /// Updates between its pull and its own.
    pub gradient_delay: u64,
    /// The first clock that the worker owes now.
    pub clock: u64,
    /// Of the job.
    pub state: JobState,
    /// Held by the server for others' sake.
    pub waited: Duration,
}

/// A wish for theta.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PullRequest {
    /// Whose.
    pub caller: Caller,
    /// At least this version.
    pub version_min: u64,
    /// Only when final.
    pub r#final: bool,
    /// Answer by then with what there is; `None`: the server's limit.
    pub wait_max: Option<Duration>,
    /// As [`PushHeader::exchange`].
    pub exchange: u64,
}

/// In which form theta is asked for. It changes nothing of which theta is given, and to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// How it is to be written; one that [suits theta](Encoding::suits_theta).
    pub encoding: Encoding,
    /// The caller has this version in this encoding already, and needs no other copy of it.
    pub version_have: Option<u64>,
}

impl Form {
    /// As it is, all of it.
    pub const PLAIN: Self = Self { encoding: Encoding::Plain, version_have: None };
}

/// A pulled theta, without its values.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct PullHeader {
    /// Of theta.
    pub version: u64,
    /// Of the job.
    pub state: JobState,
    /// Since the job began.
    pub seconds: f64,
    /// Held by the server.
    pub waited: Duration,
}

/// An observer's measurement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluation {
    /// Whose.
    pub caller: Caller,
    /// Of the theta that was measured.
    pub version: u64,
    /// As the pull said.
    pub seconds: f64,
    /// Over the training rows.
    pub train: Metrics,
    /// Over the test rows.
    pub test: Option<Metrics>,
    /// Of the final theta.
    pub r#final: bool,
}

/// A goodbye.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Leave {
    /// Whose.
    pub caller: Caller,
    /// Totals.
    pub stats: WorkerStats,
    /// Of the shard at the final theta.
    pub final_metrics: Option<Metrics>,
}

/// The job in one answer, for an operator.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Status {
    /// Where it stands.
    pub state: JobState,
    /// Why it failed; empty otherwise.
    pub reason: String,
    /// How updates are ordered.
    pub mode: Mode,
    /// How a round is summed.
    pub aggregate: Aggregate,
    /// Name and options.
    pub optimizer: String,
    /// Of theta.
    pub dtype: Dtype,
    /// Elements of theta; 0 before the first join.
    pub dim: u64,
    /// K.
    pub n_workers: u32,
    /// Clocks a worker owes; `None`: until the job stops.
    pub rounds: Option<u64>,
    /// Updates committed.
    pub version: u64,
    /// Since the first join.
    pub seconds: f64,
    /// Newest entry of the history.
    pub last: Option<HistoryEntry>,
    /// By rank.
    pub workers: Vec<WorkerStatus>,
    /// Looking on.
    pub observers: u64,
    /// Gradients that were answered DROPPED_LATE.
    pub dropped: u64,
    /// Server program and version.
    pub program: String,
    /// Of the job.
    pub fingerprint: Fingerprint,
}

/// Where a rank stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerState {
    /// Nobody has had it yet.
    Vacant,
    /// Its holder's lease runs.
    Live,
    /// The lease ended.
    Lost,
    /// The holder said goodbye.
    Left,
}

/// A rank as an operator sees it.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct WorkerStatus {
    /// From 0.
    pub rank: u32,
    /// Of its last holder; 0: none yet.
    pub incarnation: u64,
    /// Where it stands.
    pub state: WorkerState,
    /// The first clock it owes.
    pub clock: u64,
    /// Since its last call.
    pub silent: Duration,
    /// Its own measurements.
    pub stats: WorkerStats,
    /// Program and version.
    pub program: String,
    /// Peer address.
    pub address: String,
}
