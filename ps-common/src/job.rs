//! What a job is, in words that all programs share: mode, aggregate, roles, states, measurements.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The version of the wire that this build speaks (`JoinRequest.protocol_version`).
pub const PROTOCOL_VERSION: u32 = 1;

/// How updates are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// A barrier per round: one update from all workers' gradients.
    Sync,
    /// Every gradient is an update of its own; nobody is more than a bound of clocks ahead of the
    /// slowest.
    Ssp,
    /// Every gradient is an update of its own, applied when it arrives.
    Async,
    /// As async, and several updates at once, without locks: they may overwrite each other's
    /// elements.
    Hogwild,
}

impl Mode {
    /// Updates of theta in one round of K workers (rule R1).
    pub fn updates_per_round(self, n_workers: u32) -> u64 {
        match self {
            Self::Sync => 1,
            Self::Ssp | Self::Async | Self::Hogwild => u64::from(n_workers),
        }
    }

    /// Whether updates are made of a round's gradients together, so that there is something to
    /// aggregate.
    pub fn aggregates(self) -> bool {
        matches!(self, Self::Sync)
    }

    /// Rounds behind a version of theta.
    pub fn round_of(self, version: u64, n_workers: u32) -> f64 {
        version as f64 / self.updates_per_round(n_workers.max(1)) as f64
    }
}

/// How a synchronous round's gradients become one step, or several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Aggregate {
    /// Weighted by the samples behind each gradient.
    WeightedMean,
    /// Each worker counts the same, an empty shard's zero too.
    Mean,
    /// No division.
    Sum,
    /// Each gradient is kept apart and is a step of its own, in order of rank.
    Collect,
    /// The median of each element.
    Median,
    /// The mean of each element without its `k` smallest and `k` largest.
    TrimmedMean {
        /// Dropped at either end.
        k: u32,
    },
}

impl fmt::Display for Aggregate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WeightedMean => f.write_str("weighted-mean"),
            Self::Mean => f.write_str("mean"),
            Self::Sum => f.write_str("sum"),
            Self::Collect => f.write_str("collect"),
            Self::Median => f.write_str("median"),
            Self::TrimmedMean { k } => write!(f, "trimmed-mean,k={k}"),
        }
    }
}

impl FromStr for Aggregate {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "weighted-mean" => Self::WeightedMean,
            "mean" => Self::Mean,
            "sum" => Self::Sum,
            "collect" => Self::Collect,
            "median" => Self::Median,
            _ => {
                let k = text.strip_prefix("trimmed-mean,k=").and_then(|k| k.parse().ok());
                let k = k.ok_or_else(|| {
                    "expected weighted-mean, mean, sum, collect, median or trimmed-mean,k=N"
                        .to_owned()
                })?;
                Self::TrimmedMean { k }
            }
        })
    }
}

impl Serialize for Aggregate {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Aggregate {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What an update makes of its gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Combine {
    /// One step by their weighted sum.
    Sum,
    /// A step by each, one after the other in their order, scaled by its weight.
    InTurn,
    /// One step by the median of each element; weights are not looked at.
    Median,
    /// One step by the mean of each element without its `k` smallest and `k` largest; weights are
    /// not looked at.
    TrimmedMean {
        /// Dropped at either end.
        k: u32,
    },
}

impl Combine {
    /// Steps that theta takes by so many gradients.
    pub fn n_steps(self, n_gradients: usize) -> usize {
        match self {
            Self::InTurn => n_gradients,
            Self::Sum | Self::Median | Self::TrimmedMean { .. } => 1,
        }
    }
}

/// What becomes of a rank whose lease ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum OnWorkerLoss {
    /// The barrier waits for a replacement, at most `--replacement-timeout`.
    Wait,
    /// The rest go on without it.
    Continue,
    /// The job fails.
    Abort,
}

/// What a crash of the server may undo of a job that keeps checkpoints. Synchronous rounds are
/// computed again, to the same bits, whichever it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// All since the last checkpoint; they are taken where asked for, and at the end.
    None,
    /// All since the last checkpoint; they are taken at intervals.
    Interval,
    /// Nothing that was acknowledged: every update is in a journal before its answer leaves.
    Always,
}

/// What joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Has a rank and a shard.
    Worker,
    /// Looks on.
    Observer,
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Nobody has joined; there is no theta.
    Empty,
    /// Updates are taken.
    Running,
    /// theta is final; final losses are being collected.
    Finishing,
    /// The report is durable.
    Done,
    /// Ended without its result.
    Failed,
}

macro_rules! display_as_serde {
    ($($type:ty),*) => {$(
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.serialize(f)
            }
        }
    )*};
}
display_as_serde!(Mode, OnWorkerLoss, Durability, Role, JobState);

/// What must be equal for all workers of a job, by name (rule R12). An absent key is unchecked.
pub type Fingerprint = BTreeMap<String, String>;

/// A worker's own measurements, totals since it joined.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerStats {
    /// Acknowledged.
    pub pushes: u64,
    /// Behind its gradients.
    pub samples: u64,
    /// Computing gradients, also while a push is on its way (`--overlap`).
    pub compute_seconds: f64,
    /// Held by the server for others' sake, and nothing computed meanwhile.
    pub wait_seconds: f64,
    /// The rest of the round trips, as far as nothing was computed meanwhile: the three add up to
    /// the time that has passed.
    pub comm_seconds: f64,
    /// On the wire, messages with their headers.
    pub bytes_sent: u64,
    /// On the wire, messages with their headers.
    pub bytes_received: u64,
    /// Of every sample behind its acknowledged gradients, the data loss at the theta that the
    /// gradient was computed at, summed; `None` where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_sum: Option<f64>,
}

impl WorkerStats {
    /// Of a worker that computes losses, at its start.
    pub fn of_learner() -> Self {
        Self { loss_sum: Some(0.0), ..Self::default() }
    }

    /// A push is acknowledged: so many samples with this mean loss stand behind it.
    pub fn count_push(&mut self, n_samples: u64, loss: f64) {
        self.pushes += 1;
        self.samples += n_samples;
        // A loss that is not finite cannot be told, and neither can any sum with it.
        let sum = |sum: f64| sum + loss * n_samples as f64;
        self.loss_sum = self.loss_sum.map(sum).filter(|sum| sum.is_finite());
    }
}

/// Loss and accuracy of some rows at one theta.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Rows.
    pub n_samples: u64,
    /// Mean data loss, without the L2 term.
    pub loss: f64,
    /// The L2 term, (l2 / 2) * |w|^2.
    pub penalty: f64,
    /// Predicted right; `None` for regression.
    pub n_correct: Option<u64>,
}

impl Metrics {
    /// The metrics of the union of rows, in the order given; `None` of nothing.
    pub fn merge(parts: impl IntoIterator<Item = Self>) -> Option<Self> {
        let mut n_samples = 0u64;
        let mut loss_sum = 0f64;
        let mut penalty = 0f64;
        let mut n_correct = Some(0u64);
        let mut any = false;
        for part in parts {
            any = true;
            // A peer may say anything.
            n_samples = n_samples.saturating_add(part.n_samples);
            loss_sum += part.loss * part.n_samples as f64;
            penalty = penalty.max(part.penalty);
            if part.n_samples > 0 {
                n_correct = n_correct.zip(part.n_correct).map(|(a, b)| a.saturating_add(b));
            }
        }
        let loss = if n_samples == 0 { 0.0 } else { loss_sum / n_samples as f64 };
        any.then_some(Self { n_samples, loss, penalty, n_correct })
    }

    /// Data loss and L2 term together.
    pub fn objective(&self) -> f64 {
        self.loss + self.penalty
    }

    /// Share of rows predicted right; `None` for regression or no rows.
    pub fn accuracy(&self) -> Option<f64> {
        self.n_correct.filter(|_| self.n_samples > 0).map(|n| n as f64 / self.n_samples as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_metrics_are_those_of_the_union() {
        let part =
            |n_samples, loss, n_correct| Metrics { n_samples, loss, penalty: 0.5, n_correct };
        let merged =
            Metrics::merge([part(1, 4.0, Some(1)), part(3, 0.0, Some(2)), part(0, 0.0, None)])
                .expect("parts");
        assert_eq!(merged, part(4, 1.0, Some(3)));
        assert_eq!(merged.objective(), 1.5);
        assert_eq!(merged.accuracy(), Some(0.75));
        assert_eq!(Metrics::merge([]), None);
    }

    #[test]
    fn names_are_those_of_the_flags() {
        assert_eq!(Aggregate::WeightedMean.to_string(), "weighted-mean");
        assert_eq!(Mode::Async.to_string(), "async");
        assert_eq!(Mode::Ssp.to_string(), "ssp");
        for name in ["weighted-mean", "mean", "sum", "collect", "median", "trimmed-mean,k=3"] {
            let aggregate: Aggregate = name.parse().expect(name);
            assert_eq!(aggregate.to_string(), name);
            let json = serde_json::to_string(&aggregate).expect("plain data");
            assert_eq!(json, format!("\"{name}\""));
            assert_eq!(serde_json::from_str::<Aggregate>(&json).expect("its own"), aggregate);
        }
        for wrong in ["", "trimmed-mean", "trimmed-mean,k=", "trimmed-mean,k=-1", "median,k=1"] {
            assert!(wrong.parse::<Aggregate>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_round_is_one_update_or_one_of_each_worker() {
        assert_eq!(Mode::Sync.round_of(12, 4), 12.0);
        assert_eq!(Mode::Async.round_of(10, 4), 2.5);
        assert_eq!(Mode::Ssp.updates_per_round(4), 4);
        assert!(Mode::Sync.aggregates() && !Mode::Ssp.aggregates());
    }
}
