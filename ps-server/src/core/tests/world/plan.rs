//! A job and what happens to it, as data.

use std::time::Duration;

use ps_common::job::{Aggregate, Durability, Mode, OnWorkerLoss};
use serde::{Deserialize, Serialize};

use crate::core::{Checkpoints, Consistency, DelayScaling, Every, OnExcess};

/// Processes that events speak of.
pub(in crate::core::tests) const N_PROCESSES: u8 = 7;

/// A job and what happens to it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::core::tests) struct Case {
    pub(in crate::core::tests) plan: Plan,
    pub(in crate::core::tests) events: Vec<Event>,
}

/// [`Config`] in numbers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::core::tests) struct Plan {
    pub(in crate::core::tests) mode: Mode,
    /// sync; taken modulo K.
    pub(in crate::core::tests) backup_workers: u32,
    /// ssp.
    pub(in crate::core::tests) staleness_bound: u64,
    /// async: which of [`SCALINGS`].
    pub(in crate::core::tests) scaling: u8,
    /// async, and which of [`EXCESSES`].
    pub(in crate::core::tests) max_delay: Option<(u64, u8)>,
    pub(in crate::core::tests) target_loss: Option<f64>,
    pub(in crate::core::tests) plateau: Option<u32>,
    pub(in crate::core::tests) max_ms: Option<u64>,
    pub(in crate::core::tests) aggregate: Aggregate,
    pub(in crate::core::tests) on_worker_loss: OnWorkerLoss,
    pub(in crate::core::tests) n_workers: u32,
    pub(in crate::core::tests) rounds: Option<u64>,
    pub(in crate::core::tests) observers: u32,
    pub(in crate::core::tests) lease_ms: u64,
    pub(in crate::core::tests) hold_ms: u64,
    pub(in crate::core::tests) replacement_ms: u64,
    /// And which of [`EVERY`].
    #[serde(default)]
    pub(in crate::core::tests) checkpoints: Option<(Durability, u8)>,
    /// Every other process computes ahead, where the mode lets it.
    #[serde(default)]
    pub(in crate::core::tests) overlap: bool,
}

pub(in crate::core::tests) const SCALINGS: [DelayScaling; 5] = [
    DelayScaling::None,
    DelayScaling::Inverse,
    DelayScaling::InverseSqrt,
    DelayScaling::Exponential { alpha: 0.5 },
    DelayScaling::DcAsgd { lambda: 0.5 },
];
pub(in crate::core::tests) const EVERY: [Option<Every>; 4] = [
    None,
    Some(Every::Rounds(1)),
    Some(Every::Rounds(2)),
    Some(Every::Time(Duration::from_millis(150))),
];
pub(in crate::core::tests) const EXCESSES: [OnExcess; 3] =
    [OnExcess::Block, OnExcess::Scale, OnExcess::Drop];

impl Plan {
    pub(in crate::core::tests) fn consistency(&self) -> Consistency {
        match self.mode {
            Mode::Sync => {
                Consistency::Sync { backup_workers: self.backup_workers % self.n_workers }
            }
            Mode::Ssp => Consistency::Ssp { staleness_bound: self.staleness_bound },
            Mode::Async => Consistency::Async {
                delay_scaling: SCALINGS[self.scaling as usize],
                max_gradient_delay: self
                    .max_delay
                    .map(|(n, excess)| (n, EXCESSES[excess as usize])),
            },
            Mode::Hogwild => Consistency::Hogwild,
        }
    }

    /// Whether a process computes ahead.
    pub(in crate::core::tests) fn overlaps(&self, process: usize) -> bool {
        self.overlap && process.is_multiple_of(2) && self.consistency().check_overlap().is_ok()
    }

    pub(in crate::core::tests) fn checkpoints(&self) -> Option<Checkpoints> {
        let (durability, every) = self.checkpoints?;
        // Updates without locks have no order that a journal could keep.
        let durability = match self.mode {
            Mode::Hogwild => Durability::Interval,
            _ => durability,
        };
        Some(Checkpoints { durability, every: EVERY[every as usize] })
    }
}

/// Something that happens.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::core::tests) enum Event {
    Join {
        process: u8,
        rank: Option<u32>,
        observer: bool,
        alike: bool,
    },
    /// `clock` and `pulled` are off by so much from what is right; `theta`: with the next theta.
    Push {
        process: u8,
        life: Life,
        clock: i8,
        pulled: i8,
        bytes: u8,
        n_samples: u8,
        theta: bool,
        within: Option<u16>,
    },
    Pull {
        process: u8,
        life: Life,
        ahead: u8,
        r#final: bool,
        within: Option<u16>,
    },
    Heartbeat {
        process: u8,
        life: Life,
    },
    Leave {
        process: u8,
        life: Life,
    },
    Evaluate {
        process: u8,
        behind: i8,
        loss: u8,
        r#final: bool,
    },
    Statistics {
        process: u8,
    },
    Disconnect {
        process: u8,
    },
    /// A rank's process dies and another takes its place at once.
    Replace {
        rank: u8,
        process: u8,
    },
    Drop {
        which: u8,
    },
    /// Time passes; with `tick` the driver's timer is on time, else the next input is first.
    Pass {
        ms: u16,
        tick: bool,
    },
    /// To the core's next deadline.
    Alarm,
    /// One of the updates under way ends.
    Updated {
        which: u8,
        overflow: bool,
        /// The journal's disk is full.
        #[serde(default)]
        unwritten: bool,
    },
    /// An operator asks for a checkpoint.
    Checkpoint {
        process: u8,
    },
    /// theta has been taken.
    Captured,
    /// The disk has it, or not.
    Saved {
        fails: bool,
    },
    /// The server is killed and started again; where `rejoin`, those who held ranks come back at once.
    Crash {
        rejoin: bool,
    },
    Concluded,
    Reject {
        process: u8,
    },
    Stop,
}

/// By which of its names a process calls.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(in crate::core::tests) enum Life {
    Now,
    Before,
    Stranger,
}
