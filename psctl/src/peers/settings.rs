//! What both kinds of training are told: how long, on what links, measured how often.

use ps_common::Dtype;
use serde::Serialize;

use super::deal::Deal;

/// Every participant has one full-duplex link like this.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Links {
    /// Of each direction, shared by what goes over it at the same time.
    pub bytes_per_second: f64,
    /// From the end of sending to the end of receiving.
    pub latency_seconds: f64,
}

impl Links {
    /// Seconds of a message of `bytes` that has the link to itself.
    pub fn seconds(&self, bytes: f64) -> f64 {
        self.shared_seconds(bytes, 1)
    }

    /// Seconds until the last of `n` messages of `bytes` each is over that share a link; 0 of none.
    pub fn shared_seconds(&self, bytes: f64, n: usize) -> f64 {
        if n == 0 { 0.0 } else { self.latency_seconds + n as f64 * bytes / self.bytes_per_second }
    }
}

/// How a run goes.
#[derive(Clone, Copy)]
pub struct Settings<'a> {
    /// Of theta and gradients.
    pub dtype: Dtype,
    /// Rounds.
    pub rounds: u64,
    /// Rounds from one entry of the history to the next; the last theta always has one.
    pub record_every: u64,
    /// Whose rows are whose.
    pub deal: Deal,
    /// Of every participant.
    pub links: Links,
    /// Bytes that a message is as large as; `None`: theta.
    pub message_bytes: Option<u64>,
    /// Seconds that a rank takes to compute its next gradient, which is over so many rows. Asked once
    /// for each gradient, round after round.
    pub compute_seconds: &'a dyn Fn(u32, u64) -> f64,
}

impl Settings<'_> {
    /// Bytes of a message of `dim` elements.
    pub(super) fn bytes(&self, dim: usize) -> u64 {
        self.message_bytes.unwrap_or((dim * self.dtype.size_bytes()) as u64)
    }

    /// Whether theta before `round` gets an entry.
    pub(super) fn is_recorded(&self, round: u64) -> bool {
        round == self.rounds || round.is_multiple_of(self.record_every.max(1))
    }
}

impl std::fmt::Debug for Settings<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { dtype, rounds, record_every, deal, links, message_bytes, compute_seconds: _ } =
            self;
        write!(f, "{dtype} {rounds} {record_every} {deal:?} {links:?} {message_bytes:?}")
    }
}
