//! The first section of a checkpoint: the job, all of it but theta. JSON, so that a person can read
//! it.

use std::collections::BTreeMap;

use ps_common::partition::{CheckpointName, Partition};
use ps_common::statistics::Statistics;
use serde::{Deserialize, Serialize};

use crate::core::Saved;
use crate::numeric::Optimizer;

/// What is in it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct JobSection {
    /// A number that other jobs in the directory do not have.
    pub(super) id: u64,
    /// The update rule with its options, which the slots were made by.
    pub(super) rule: String,
    /// Which of how many servers has written it: the keys of theta that are in it.
    #[serde(default = "lone")]
    pub(super) partition: Partition,
    statistics: BTreeMap<u32, Bits>,
    pub(super) saved: Saved,
}

impl JobSection {
    pub(super) fn new(
        id: u64,
        partition: Partition,
        saved: Saved,
        optimizer: &Optimizer,
        statistics: &BTreeMap<u32, Statistics>,
    ) -> Self {
        let statistics = statistics.iter().map(|(rank, of)| (*rank, Bits::from(of))).collect();
        Self { id, rule: rule_of(optimizer), partition, statistics, saved }
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("all of it is plain data")
    }

    /// The checkpoint's name among servers. Its epoch is the life of the job that took it.
    pub(super) fn name(&self) -> CheckpointName {
        let (version, epoch) = (self.saved.version(), self.saved.boot());
        CheckpointName { version, epoch, job: self.id }
    }

    pub(super) fn statistics(&self) -> BTreeMap<u32, Statistics> {
        self.statistics.iter().map(|(rank, bits)| (*rank, bits.into())).collect()
    }
}

/// Whose sections say nothing of servers.
fn lone() -> Partition {
    Partition::WHOLE
}

/// As [`JobSection::rule`] has it: rates may change from one life to the next, the rule may not.
pub(super) fn rule_of(optimizer: &Optimizer) -> String {
    format!("{}{}", optimizer.rule.name(), optimizer.rule)
}

/// Statistics, their numbers as bits: JSON has no infinities, which stand for a shard without rows.
#[derive(Debug, Serialize, Deserialize)]
struct Bits {
    is_range: bool,
    n_samples: u64,
    /// Means, or smallest values.
    first: Vec<u64>,
    /// Deviations, or largest values.
    second: Vec<u64>,
}

impl From<&Statistics> for Bits {
    fn from(statistics: &Statistics) -> Self {
        let bits = |values: &[f64]| values.iter().map(|value| value.to_bits()).collect();
        match statistics {
            Statistics::Moments { n_samples, mean, deviations } => Self {
                is_range: false,
                n_samples: *n_samples,
                first: bits(mean),
                second: bits(deviations),
            },
            Statistics::Range { n_samples, min, max } => {
                Self { is_range: true, n_samples: *n_samples, first: bits(min), second: bits(max) }
            }
        }
    }
}

impl From<&Bits> for Statistics {
    fn from(bits: &Bits) -> Self {
        let values = |bits: &[u64]| bits.iter().copied().map(f64::from_bits).collect();
        let (first, second) = (values(&bits.first), values(&bits.second));
        let n_samples = bits.n_samples;
        match bits.is_range {
            false => Self::Moments { n_samples, mean: first, deviations: second },
            true => Self::Range { n_samples, min: first, max: second },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_of_no_rows_come_back_as_they_were() {
        let moments =
            Statistics::Moments { n_samples: 3, mean: vec![0.1], deviations: vec![1e-300] };
        let (min, max) = (vec![f64::INFINITY], vec![f64::NEG_INFINITY]);
        for statistics in [moments, Statistics::Range { n_samples: 0, min, max }] {
            let text = serde_json::to_string(&Bits::from(&statistics)).expect("plain");
            let bits: Bits = serde_json::from_str(&text).expect("as written");
            assert_eq!(Statistics::from(&bits), statistics);
        }
    }
}
