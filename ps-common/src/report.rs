//! The report of a job: one JSON object, the same from `ps-server --report` and `psctl local`.
//!
//! Field names are a promise to users; add, never rename.

use serde::{Deserialize, Serialize};

use crate::dtype::Dtype;
use crate::job::{Durability, Mode, WorkerStats};

/// Everything a finished job has to say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// How updates were ordered.
    pub mode: Mode,
    /// K.
    pub n_workers: u32,
    /// S.
    pub n_servers: u32,
    /// As the workers' fingerprint names it.
    pub model: String,
    /// Name and options.
    pub optimizer: String,
    /// Of theta.
    pub dtype: Dtype,
    /// Elements of theta.
    pub dim: u64,
    /// Rows in all shards.
    pub n_samples: u64,
    /// Of shuffles and batches.
    pub seed: Option<u64>,
    /// From the first join to the final theta.
    pub wall_seconds: f64,
    /// Completed; version / K in asynchronous modes (rule R1).
    pub rounds: f64,
    /// Updates committed.
    pub version: u64,
    /// `done`, or why not.
    pub outcome: String,
    /// The objective at theta *before* each round's update, and one last entry for the final theta.
    pub history: Vec<HistoryEntry>,
    /// At the final theta.
    pub r#final: FinalResult,
    /// Mean data loss of all samples behind acknowledged pushes, each at the theta that its gradient
    /// was computed at; absent if a worker did not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progressive_loss: Option<f64>,
    /// By rank.
    pub workers: Vec<WorkerReport>,
    /// Updates between a gradient's pull and its own.
    pub gradient_delay: GradientDelay,
    /// Gradients that did not count.
    #[serde(default)]
    pub dropped: Dropped,
    /// Updates that overwrote each other; only in hogwild mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hogwild: Option<LostUpdates>,
    /// What was made durable, and what restarts of the server undid; only with `--checkpoint-dir`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durability: Option<DurabilityReport>,
    /// Joins, losses, rejections, restores.
    pub events: Vec<Event>,
    /// Program and build.
    pub program: String,
}

/// The objective at one version of theta.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// version in sync mode, version / K otherwise.
    pub round: f64,
    /// Of theta.
    pub version: u64,
    /// Objective over the training set, L2 term included.
    #[serde(deserialize_with = "infinite_if_null")]
    pub loss: f64,
    /// Since the first join.
    pub seconds: f64,
}

/// The objective and theta at the end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FinalResult {
    /// Objective over the training set; `None` if nobody could measure it.
    pub loss: Option<f64>,
    /// Share of training rows predicted right; absent for regression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_accuracy: Option<f64>,
    /// Data loss over the test rows, where there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_loss: Option<f64>,
    /// Share of test rows predicted right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_accuracy: Option<f64>,
    /// SHA-256 of theta's little-endian bytes (rule R11), hexadecimal.
    pub theta_sha256: String,
}

/// One rank's part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerReport {
    /// From 0.
    pub rank: u32,
    /// Of the rank's last holder.
    pub incarnation: u64,
    /// The worker's own measurements.
    #[serde(flatten)]
    pub stats: WorkerStats,
    /// Of its gradients, how many did not count.
    #[serde(default)]
    pub dropped: u64,
}

/// Gradients that were answered DROPPED_LATE, by reason; each is counted once, however often it was
/// sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// Their round had closed without them.
    pub late: u64,
    /// Their delay was above `--max-gradient-delay`.
    pub delay: u64,
    /// theta was final.
    pub ended: u64,
}

impl Dropped {
    /// For whatever reason.
    pub fn total(&self) -> u64 {
        self.late + self.delay + self.ended
    }
}

/// Distribution of the gradient delay over all counted pushes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GradientDelay {
    /// `histogram[d]` pushes had delay d; the last cell also counts all above.
    pub histogram: Vec<u64>,
    /// Over all pushes; 0 if there were none.
    pub mean: f64,
    /// 99th percentile, nearest rank.
    pub p99: u64,
    /// Largest.
    pub max: u64,
}

/// Checkpoints and restarts of a job.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct DurabilityReport {
    /// As `--durability` said.
    pub setting: Durability,
    /// Written.
    pub checkpoints: u64,
    /// That could not be written.
    pub failed: u64,
    /// Times that the server came back.
    pub restarts: u64,
    /// Acknowledged gradients that restarts undid, by what workers said when they joined again
    /// (rule R4): a lower bound if workers died, too.
    pub undone: u64,
    /// Most updates that were applied and not durable at one time: what a crash then would have
    /// undone.
    pub window_updates_max: u64,
    /// Longest time, in seconds, between an update and its being durable.
    pub window_seconds_max: f64,
}

/// What updates without locks cost, measured on a fixed sample of theta's elements: every 64th, or
/// all of a theta below 4096 elements (rule H3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct LostUpdates {
    /// Stores to elements of the sample.
    pub checked: u64,
    /// Of these, how many replaced another value than the one that they were computed from: each
    /// undid at least one other update of its element. A step that was not stored, because others
    /// had meanwhile moved its element to where it would overflow, is counted here, too.
    pub lost: u64,
    /// `lost / checked`; 0 if nothing was checked.
    pub lost_rate: f64,
}

impl LostUpdates {
    /// With the rate that follows.
    pub fn new(checked: u64, lost: u64) -> Self {
        let lost_rate = if checked == 0 { 0.0 } else { lost as f64 / checked as f64 };
        Self { checked, lost, lost_rate }
    }
}

/// Something that happened to the job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Since the first join.
    pub seconds: f64,
    /// `joined`, `lost`, `left`, `rejected`, ...
    pub kind: String,
    /// Whom it concerns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<u32>,
    /// For a person.
    pub detail: String,
}

/// JSON has no infinity: a loss beyond the range of f64 is written as null.
fn infinite_if_null<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::INFINITY))
}

#[cfg(test)]
mod infinite {
    use super::*;

    #[test]
    fn a_loss_beyond_the_range_reads_back() {
        let entry = HistoryEntry { round: 1.0, version: 1, loss: f64::INFINITY, seconds: 0.5 };
        let text = serde_json::to_string(&entry).expect("JSON");
        let again: HistoryEntry = serde_json::from_str(&text).expect("its own JSON");
        assert_eq!(again, entry);
    }
}
