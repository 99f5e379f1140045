//! Synchronous rounds (rules S1 to S6): when a round closes, with whose gradients, at what weights.
//!
//! Chen, Pan, Monga, Bengio, Jozefowicz 2016, "Revisiting Distributed Synchronous SGD", section 3,
//! with and without backup workers.

use ps_common::calls::{PushHeader, WorkerState};
use ps_common::job::{Aggregate, Combine};
use ps_common::report::HistoryEntry;
use ps_common::{Error, ErrorCode};

use super::consistency::{Admission, Consistency, Order, Reason};
use super::{CallId, Core, Time};

impl Order {
    /// A round's update, from its gradients in order of rank with the samples behind each (rules
    /// S4 and S6).
    ///
    /// # Panics
    /// If there are no gradients.
    pub fn of_round(aggregate: Aggregate, gradients: &[(CallId, u64)]) -> Self {
        // Counts are peers' words: a wide sum cannot overflow.
        let n_samples: u128 = gradients.iter().map(|(_, n)| u128::from(*n)).sum();
        let n_gradients = gradients.len();
        let weight = |n: u64| match aggregate {
            Aggregate::WeightedMean if n_samples == 0 => 0.0,
            Aggregate::WeightedMean => n as f64 / n_samples as f64,
            Aggregate::Mean => 1.0 / n_gradients as f64,
            Aggregate::Sum
            | Aggregate::Collect
            | Aggregate::Median
            | Aggregate::TrimmedMean { .. } => 1.0,
        };
        let combine = match aggregate {
            Aggregate::WeightedMean | Aggregate::Mean | Aggregate::Sum => Combine::Sum,
            Aggregate::Collect => Combine::InTurn,
            Aggregate::Median => Combine::Median,
            Aggregate::TrimmedMean { k } => {
                // A round without its lost ranks may be too small to lose 2 k more.
                let most = (n_gradients as u32 - 1) / 2;
                Combine::TrimmedMean { k: k.min(most) }
            }
        };
        let parts = gradients.iter().map(|&(gradient, n)| (gradient, weight(n))).collect();
        Self { parts, combine, rate_factor: 1.0, compensation: None }
    }
}

impl Core {
    /// Closes the round if every rank that it waits for is in, or all but the spare ones (S5).
    pub(super) fn close_round(&mut self, now: Time) -> Option<Order> {
        let complete = self.is_full()
            || (0u32..self.config.n_workers)
                .all(|rank| self.pending.contains_key(&rank) || !self.awaited(rank));
        if !complete || self.pending.is_empty() {
            return None;
        }
        if self.config.consistency.rounds_are_whole() {
            let seconds = self.seconds(now);
            let headers: Vec<_> = self.pending.values().map(|p| p.header).collect();
            self.record_round_loss(seconds, headers.iter());
            if self.stop.is_some() {
                // theta as it was measured is good enough: it is not moved any more (rule L7).
                return None;
            }
        }
        // BTreeMap: in order of rank, whatever the order of arrival (rule S3).
        let gradients: Vec<_> =
            self.pending.values().map(|p| (p.gradient, p.header.n_samples)).collect();
        self.applying = self.pending.keys().copied().collect();
        Some(Order::of_round(self.config.aggregate, &gradients))
    }

    /// A round takes gradients of its own theta only (rule S1); who comes while it is closing is
    /// late (rule S5).
    pub(super) fn admit_to_round(&self, header: &PushHeader) -> Result<Admission, Error> {
        // Who was late for the closing round owes the next one, which has no theta yet.
        if header.version_pulled != self.version || header.clock > self.version {
            return Err(Error::new(
                ErrorCode::StaleRound,
                format!(
                    "round {} takes gradients at version {0} of theta, this one was computed at \
                     version {}; pull and compute it again",
                    self.version, header.version_pulled
                ),
            )
            .with("round", self.version));
        }
        let rank = header.caller.rank;
        let closing = match self.applying.is_empty() {
            false => !self.applying.contains(&rank),
            // It has all that it takes, and theta is held still.
            true => self.is_still() && !self.pending.contains_key(&rank) && self.is_full(),
        };
        Ok(if closing { Admission::Late } else { Admission::Kept })
    }

    /// Whether the round has as many gradients as it takes.
    fn is_full(&self) -> bool {
        let Consistency::Sync { backup_workers } = self.config.consistency else { return false };
        self.pending.len() >= (self.config.n_workers - backup_workers) as usize
    }

    /// Whether the round that theta is at waits for a gradient of `rank`: a late one gets the next
    /// theta.
    pub(super) fn owes_this_round(&self, rank: u32) -> bool {
        self.members.ranks[rank as usize].clock <= self.version
    }

    /// A late gradient of the round that is closing: its clock is done, the next theta is awaited.
    pub(super) fn too_late(&mut self, header: &PushHeader) {
        let rank = header.caller.rank;
        self.members.ranks[rank as usize].skip_to(header.clock + 1);
        self.count_dropped(rank, header.clock, Reason::Late);
    }

    /// The round that was closing did not come about: who was late for it owes it again. Gives their
    /// ranks.
    pub(super) fn reopen_round(&mut self) -> Vec<u32> {
        let mut late = Vec::new();
        if !self.config.consistency.has_rounds() {
            return late;
        }
        let version = self.version;
        for (seat, rank) in self.members.ranks.iter_mut().zip(0..) {
            if seat.clock > version {
                seat.skipped -= seat.clock - version;
                seat.clock = version;
                late.push(rank);
            }
        }
        late
    }

    /// A living rank that a round closed without owes the next round, not this one.
    pub(super) fn skip_rounds(&mut self) {
        let version = self.version;
        for (seat, rank) in self.members.ranks.iter_mut().zip(0..) {
            if seat.state == WorkerState::Live && !self.pending.contains_key(&rank) {
                seat.skip_to(version);
            }
        }
    }

    /// The objective at theta before this round's update, if every gradient is over a whole shard.
    pub(super) fn record_round_loss<'a>(
        &mut self,
        seconds: f64,
        headers: impl Iterator<Item = &'a PushHeader>,
    ) {
        let mut n_samples = 0u128;
        let mut loss_sum = 0f64;
        let mut penalty = 0f64;
        for header in headers {
            let Some(loss) = header.loss else { return };
            n_samples += u128::from(header.n_samples);
            loss_sum += loss * header.n_samples as f64;
            penalty = penalty.max(header.penalty.unwrap_or(0.0));
        }
        let loss = if n_samples == 0 { 0.0 } else { loss_sum / n_samples as f64 } + penalty;
        let (version, round) = (self.version, self.round_of(self.version));
        self.measured(HistoryEntry { round, version, loss, seconds });
    }
}
