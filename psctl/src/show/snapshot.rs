//! What a job looks like at one moment: the input of progress and status, as plain values.

use ps_common::job::{JobState, Mode, WorkerStats};

use super::number;

/// A job at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Where it stands.
    pub state: JobState,
    /// How updates are ordered.
    pub mode: Mode,
    /// Updates committed.
    pub version: u64,
    /// Rounds to do (clocks per worker in asynchronous modes); 0 until stopped.
    pub rounds: u64,
    /// Since the first join.
    pub seconds: f64,
    /// Newest loss known.
    pub loss: Option<f64>,
    /// All K ranks, in order; vacant ones too.
    pub workers: Vec<WorkerLine>,
}

/// One rank at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerLine {
    /// From 0.
    pub rank: u32,
    /// Of its holder; 0 if it never had one.
    pub incarnation: u64,
    /// Whether it has one.
    pub state: WorkerState,
    /// Completed steps.
    pub clock: u64,
    /// Since its last call.
    pub silent_ms: u64,
    /// Its own measurements, as far as it has told.
    pub stats: WorkerStats,
    /// Where it calls from; empty if not known.
    pub address: String,
}

/// What has become of a rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerState {
    /// Nobody has the rank yet.
    Vacant,
    /// Its holder calls.
    Live,
    /// Its holder's lease ended.
    Lost,
    /// Its holder is done.
    Left,
}

impl WorkerState {
    /// As shown.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vacant => "vacant",
            Self::Live => "live",
            Self::Lost => "lost",
            Self::Left => "left",
        }
    }
}

impl WorkerLine {
    /// Shares of its measured time spent computing, waiting and on the wire; `None` before any.
    pub fn shares(&self) -> Option<[f64; 3]> {
        shares(&self.stats)
    }
}

/// Shares of the measured time spent computing, waiting and on the wire; `None` if there is none.
pub(super) fn shares(stats: &WorkerStats) -> Option<[f64; 3]> {
    let parts = [stats.compute_seconds, stats.wait_seconds, stats.comm_seconds];
    let parts = parts.map(|s| if s.is_finite() { s.max(0.0) } else { 0.0 });
    let total: f64 = parts.iter().sum();
    (total > 0.0).then(|| parts.map(|part| part / total))
}

impl Snapshot {
    /// Rounds done: version, divided by K in asynchronous modes (rule R1).
    pub fn round(&self) -> f64 {
        let n_workers = u32::try_from(self.workers.len()).unwrap_or(u32::MAX);
        self.mode.round_of(self.version, n_workers)
    }

    /// `round 40/100`, or `round 40` where there is no end.
    pub(super) fn round_text(&self) -> String {
        let round = number::rounds(self.round());
        match self.rounds {
            0 => format!("round {round}"),
            all => format!("round {round}/{}", number::count(all)),
        }
    }

    /// `4 workers`, or how many of them are there.
    pub(super) fn workers_text(&self) -> String {
        let count = |state| self.workers.iter().filter(|w| w.state == state).count();
        let (all, lost) = (self.workers.len(), count(WorkerState::Lost));
        let here = count(WorkerState::Live) + count(WorkerState::Left);
        let noun = if all == 1 { "worker" } else { "workers" };
        if here == all {
            format!("{all} {noun}")
        } else if lost == 0 {
            format!("{here} of {all} {noun}")
        } else {
            format!("{here} of {all} {noun}, {lost} lost")
        }
    }
}
