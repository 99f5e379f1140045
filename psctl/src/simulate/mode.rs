//! In what order a simulated job makes its updates: the server's modes, and map-reduce.

use std::fmt;

use ps_common::job::Mode;
use serde::Serialize;

/// `--mode` of a simulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum RunMode {
    /// A barrier per round: one update from all workers' gradients.
    Sync,
    /// Every gradient is an update of its own; nobody is more than a bound of clocks ahead of the
    /// slowest.
    Ssp,
    /// Every gradient is an update of its own, applied when it arrives.
    Async,
    /// Updates side by side: a matter of real threads, refused.
    #[value(hide = true)]
    Hogwild,
    /// Rounds without a server's calls: theta is broadcast, gradients are mapped and reduced.
    Mapreduce,
}

impl RunMode {
    /// By which of the server's rules updates are made: those of map-reduce are synchronous rounds.
    pub fn rules(self) -> Mode {
        match self {
            Self::Sync | Self::Mapreduce => Mode::Sync,
            Self::Ssp => Mode::Ssp,
            Self::Async => Mode::Async,
            Self::Hogwild => Mode::Hogwild,
        }
    }
}

impl From<Mode> for RunMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Sync => Self::Sync,
            Mode::Ssp => Self::Ssp,
            Mode::Async => Self::Async,
            Mode::Hogwild => Self::Hogwild,
        }
    }
}

impl fmt::Display for RunMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mapreduce => f.write_str("mapreduce"),
            Self::Sync | Self::Ssp | Self::Async | Self::Hogwild => self.rules().fmt(f),
        }
    }
}
