//! Synchronous rounds (rules S1 to S4): when a round closes, with whose gradients, at what weights.
//!
//! Chen, Pan, Monga, Bengio, Jozefowicz 2016, "Revisiting Distributed Synchronous SGD", section 2.

use ps_common::calls::WorkerState;
use ps_common::job::{Aggregate, OnWorkerLoss};
use ps_common::report::HistoryEntry;

use super::{Core, Effect, Time};

impl Core {
    /// Closes the round if every rank that it waits for is in.
    pub(super) fn close_round(&mut self, now: Time, out: &mut Vec<Effect>) {
        let complete = (0u32..self.config.n_workers)
            .all(|rank| self.pending.contains_key(&rank) || !self.awaited(rank));
        if !complete || self.pending.is_empty() {
            return;
        }
        self.record_round_loss(now);
        // BTreeMap: in order of rank, whatever the order of arrival (rule S3).
        let weights = self.weights();
        let parts =
            self.pending.values().zip(weights).map(|(p, weight)| (p.gradient, weight)).collect();
        self.applying = self.pending.keys().copied().collect();
        out.push(Effect::Update { parts });
    }

    /// Whether a round waits for this rank (rule S2).
    fn awaited(&self, rank: u32) -> bool {
        match self.config.on_worker_loss {
            OnWorkerLoss::Wait | OnWorkerLoss::Abort => true,
            OnWorkerLoss::Continue => {
                let seat = &self.members.ranks[rank as usize];
                matches!(seat.state, WorkerState::Live | WorkerState::Vacant)
            }
        }
    }

    fn weights(&self) -> Vec<f64> {
        // Counts are peers' words: a wide sum cannot overflow.
        let n_samples: u128 = self.pending.values().map(|p| u128::from(p.header.n_samples)).sum();
        let n_workers = self.pending.len() as f64;
        self.pending
            .values()
            .map(|p| match self.config.aggregate {
                Aggregate::WeightedMean if n_samples == 0 => 0.0,
                Aggregate::WeightedMean => p.header.n_samples as f64 / n_samples as f64,
                Aggregate::Mean => 1.0 / n_workers,
                Aggregate::Sum => 1.0,
            })
            .collect()
    }

    /// The objective at theta before this round's update, if every gradient is over a whole shard.
    fn record_round_loss(&mut self, now: Time) {
        let mut n_samples = 0u128;
        let mut loss_sum = 0f64;
        let mut penalty = 0f64;
        for pending in self.pending.values() {
            let header = &pending.header;
            let Some(loss) = header.loss else { return };
            n_samples += u128::from(header.n_samples);
            loss_sum += loss * header.n_samples as f64;
            penalty = penalty.max(header.penalty.unwrap_or(0.0));
        }
        let loss = if n_samples == 0 { 0.0 } else { loss_sum / n_samples as f64 } + penalty;
        let seconds = self.seconds(now);
        let (version, round) = (self.version, self.round_of(self.version));
        self.record.measured(HistoryEntry { round, version, loss, seconds });
    }
}
