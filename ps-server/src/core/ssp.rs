//! Bounded staleness (rules B1 to B4): who may read theta, and who has fallen out of the bound.
//!
//! Ho et al. 2013, "More Effective Distributed ML via a Stale Synchronous Parallel Parameter
//! Server", section 2: the slowest and the fastest worker are at most S clocks apart, and a worker
//! that would get further ahead waits before it reads. Gradients count when they arrive.

use ps_common::calls::WorkerState;

use super::consistency::Reason;
use super::{Core, Effect, Time};

impl Core {
    /// The largest clock whose gradient may be computed: `bound` beyond the slowest awaited rank
    /// (rule B1).
    pub(super) fn bound(&self, bound: u64) -> u64 {
        let ranks = (0..self.config.n_workers).filter(|&rank| self.awaited(rank));
        let slowest = ranks.map(|rank| self.members.ranks[rank as usize].clock).min();
        slowest.map_or(u64::MAX, |slowest| slowest.saturating_add(bound))
    }

    /// A rank that was not awaited and is again may be further behind than the bound: it goes on
    /// where the reads that the others have been granted still hold (rule B4).
    pub(super) fn skip_to_bound(&mut self, now: Time, bound: u64, out: &mut Vec<Effect>) {
        let Some(leader) = self.given.values().map(|given| given.clock).max() else { return };
        let least = leader.saturating_sub(bound);
        for rank in 0..self.config.n_workers {
            let seat = &self.members.ranks[rank as usize];
            let behind = seat.state == WorkerState::Live && seat.clock < least;
            if !behind || self.applying.contains(&rank) {
                continue;
            }
            // Pushed by an earlier life.
            self.drop_gradient(now, rank, Reason::Late, out);
            self.members.ranks[rank as usize].skip_to(least);
        }
    }
}
