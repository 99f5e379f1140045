//! Several servers: how theta's keys are cut, and what partition 0 tells the others.
//!
//! Partition 0 decides; its decisions, in one order, make the others' part of theta (rule R2).

use std::ops::Range;
use std::str::FromStr;
use std::time::Duration;

use crate::calls::Caller;
use crate::dtype::Dtype;
use crate::job::{Combine, Fingerprint, JobState};
use crate::tables::Tables;

/// Which of how many servers: `i/S` on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Partition {
    /// From 0.
    pub index: u32,
    /// S, at least 1.
    pub count: u32,
}

impl Partition {
    /// The only server.
    pub const WHOLE: Self = Self { index: 0, count: 1 };

    /// Whether it decides.
    pub fn is_authority(self) -> bool {
        self.index == 0
    }

    /// Its keys of a theta of `dim` elements.
    pub fn keys(self, dim: usize) -> Range<usize> {
        first_key(dim, self.index, self.count)..first_key(dim, self.index + 1, self.count)
    }

    /// The first key of each partition.
    pub fn first_keys(self, dim: usize) -> Vec<usize> {
        (0..self.count).map(|index| first_key(dim, index, self.count)).collect()
    }
}

/// Keys are dealt as rows are: as evenly as it goes, the first partitions get one more.
fn first_key(dim: usize, index: u32, count: u32) -> usize {
    let (index, count) = (index as usize, count as usize);
    index * (dim / count) + index.min(dim % count)
}

impl std::fmt::Display for Partition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

impl FromStr for Partition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('/').and_then(|(index, count)| {
            Some(Self { index: index.parse().ok()?, count: count.parse().ok()? })
        });
        match parsed {
            Some(partition) if partition.index < partition.count => Ok(partition),
            Some(Self { count, .. }) => Err(format!(
                "`{text}`: of {count} servers the last is {}/{count}",
                i64::from(count) - 1
            )),
            None => Err(format!("`{text}` is not i/S, such as 0/2")),
        }
    }
}

/// What partition 0 is shown of a push's parts at the others (`staged` on the wire): CRC-32 over
/// their digests in order of partition, each as four bytes little-endian.
pub fn staged_digest(digests: &[u32]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    digests.iter().for_each(|digest| hasher.update(&digest.to_le_bytes()));
    hasher.finalize()
}

/// A push by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PushName {
    /// Whose.
    pub caller: Caller,
    /// The worker's completed steps.
    pub clock: u64,
}

/// A checkpoint that every server of a job may have its part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CheckpointName {
    /// theta's version in it. First: the newest is the largest.
    pub version: u64,
    /// The life of the job that it was written in: theta of one version may differ between lives.
    pub epoch: u32,
    /// A number that other jobs do not have.
    pub job: u64,
}

/// One update by the names of its gradients.
#[derive(Debug, Clone, PartialEq)]
pub struct Joint {
    /// Gradients with their weights, in the order in which they are combined.
    pub parts: Vec<(PushName, f64)>,
    /// How they become one step, or several.
    pub combine: Combine,
    /// Multiplies the learning rate of this update.
    pub rate_factor: f64,
    /// Strength, rank and version of the theta that the gradient is corrected by.
    pub compensation: Option<(f64, u32, u64)>,
}

/// What a server tells of the squares of its part of a gradient, so that the norm of all of it has the
/// bits that it has where one server has it all.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Squares {
    /// The gradient itself where a block that is summed in one goes on at another server, in order of
    /// key.
    pub elements: Vec<f64>,
    /// Of every other stretch of keys, in order: the sum of squares, which may be infinite, and that of
    /// squares scaled so far down that it is not.
    pub sums: Vec<(f64, f64)>,
}

/// A worker's wish for a part of theta.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Take {
    /// Whose.
    pub caller: Caller,
    /// The number of the exchange in which partition 0 gives it.
    pub exchange: u64,
    /// Longest time that the answer may be held; `None`: the server's limit.
    pub wait_max: Option<Duration>,
}

/// theta goes out to a caller.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Give {
    /// Whose.
    pub caller: Caller,
    /// The caller's number for it.
    pub exchange: u64,
    /// Of theta.
    pub version: u64,
    /// Of the job.
    pub state: JobState,
    /// Since the job began.
    pub seconds: f64,
}

/// What partition 0 tells another, in the order in which it is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// First of all; [`Word::Holding`] follows, or a refusal that names what differs.
    Open {
        /// Of the wire.
        protocol_version: u32,
        /// Who the other is taken for.
        partition: Partition,
        /// What must be equal on all servers.
        settings: Fingerprint,
    },
    /// A life of the job begins; [`Word::Ready`] follows.
    Begin {
        /// The upper half of its incarnations.
        epoch: u32,
        /// Where from; `None`: from nothing.
        checkpoint: Option<CheckpointName>,
    },
    /// Make theta.
    Create {
        /// All of them.
        tables: Tables,
        /// Its element type.
        dtype: Dtype,
        /// Names the job in checkpoints.
        job: u64,
    },
    /// Compute an update beside theta; [`Word::Prepared`] follows. Where gradients are clipped by their
    /// norm a [`Word::Squares`] of each step follows, and [`Decision::Clip`] comes before it is computed.
    Prepare(Joint),
    /// What each step's gradient is multiplied by to have the norm that it may have, if it is longer;
    /// [`Word::Prepared`] follows.
    Clip(Vec<Option<f64>>),
    /// What was prepared is in force.
    Commit,
    /// What was prepared is not.
    Abort,
    /// Answer a Take.
    Give(Give),
    /// Keep theta for this rank's next gradient.
    Keep(u32),
    /// Drop what was staged.
    Forget(PushName),
    /// Write a checkpoint; [`Word::Saved`] follows.
    Capture,
    /// Send this part of theta; [`Word::Part`]s follow.
    Collect,
    /// The job is over.
    End {
        /// How.
        state: JobState,
        /// Why it failed; empty otherwise.
        reason: String,
    },
}

/// What the other answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Word {
    /// The checkpoints that it has.
    Holding(Vec<CheckpointName>),
    /// theta is as it was wanted.
    Ready,
    /// The update is computed, or the first key that would overflow, counted over all of theta.
    Prepared(Option<u64>),
    /// What the norm of the next step's gradient has to be made of.
    Squares(Squares),
    /// A checkpoint is durable, or why it is not.
    Saved {
        /// theta's version in it.
        version: u64,
        /// Where and why it failed.
        result: Result<(), String>,
    },
    /// The next of theta's bytes, and whether they are the last.
    Part(bytes::Bytes, bool),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_dealt_without_gap_or_overlap() {
        for (dim, count) in [(10, 1), (10, 3), (7850, 4), (3, 3), (25_000_000, 7)] {
            let ranges: Vec<_> =
                (0..count).map(|index| Partition { index, count }.keys(dim)).collect();
            assert_eq!(ranges[0].start, 0);
            assert_eq!(ranges[count as usize - 1].end, dim);
            assert!(ranges.windows(2).all(|two| two[0].end == two[1].start));
            let (most, least) = (ranges[0].len(), ranges[count as usize - 1].len());
            assert!(most - least <= 1 && least > 0, "{ranges:?}");
        }
        assert_eq!(Partition { index: 0, count: 3 }.first_keys(10), [0, 4, 7]);
    }

    #[test]
    fn the_digest_of_digests_is_that_of_their_bytes_in_order() {
        let digests = [0x0403_0201, 0x0807_0605];
        assert_eq!(staged_digest(&digests), crc32fast::hash(&[1, 2, 3, 4, 5, 6, 7, 8]));
        assert_eq!(staged_digest(&[]), 0);
    }

    #[test]
    fn a_partition_is_read_as_it_is_written() {
        for text in ["0/1", "2/3"] {
            assert_eq!(text.parse::<Partition>().expect("valid").to_string(), text);
        }
        let error = "3/3".parse::<Partition>().expect_err("counted from 0");
        assert!(error.contains("the last is 2/3"), "{error}");
        for text in ["", "1", "a/2", "0/0", "-1/2"] {
            assert!(text.parse::<Partition>().is_err(), "{text}");
        }
    }
}
