//! Asynchronous updates (rules A1 to A7): every gradient is an update of its own, in order of
//! arrival; what its delay does to it, and how delays are bounded.
//!
//! Dean et al. 2012, "Large Scale Distributed Deep Networks", section 4.1 (Downpour SGD). Delay
//! scaling: Zhang, Gupta, Lian, Liu 2016, "Staleness-aware Async-SGD for Distributed Deep Learning",
//! section 3.2; Zheng et al. 2017, "Asynchronous Stochastic Gradient Descent with Delay
//! Compensation", section 4. Bounded delay: Li et al., OSDI 2014, "Scaling Distributed Machine
//! Learning with the Parameter Server", section 3.5.
//!
//! Bounded delay by holding back. Call *outstanding* every theta that was given to a live rank and
//! whose gradient has not counted, and every pending gradient; v_0 <= v_1 <= ... are the versions
//! that they were computed at, V is theta's. The set is *feasible* if V + m - v_m <= N for every m:
//! applied in this order, one after the other, none has a delay above N.
//!
//! 1. Feasibility is kept. A gradient is applied only if the others are feasible at V + 1. A new
//!    theta has v = V, the largest, so with m others it needs V + m - V = m <= N. A gradient that
//!    leaves the set unused (a lost worker's theta, a refused push) moves later ones to smaller m.
//! 2. No delay exceeds N. A gradient at place m has V - v_m <= N - m.
//! 3. There is always one to apply: the oldest. Without it the others move down by one, so that
//!    V + 1 + (m - 1) - v_m = V + m - v_m <= N. If its gradient is not in yet its worker computes
//!    it, or its lease ends; so nobody waits for ever.
//! 4. Nobody starves. A pending gradient is outstanding, so 3 reaches it; a wish for theta is
//!    granted in the order in which ranks began to wish.

use ps_common::calls::PushHeader;
use ps_common::{Error, ErrorCode};
use serde::Serialize;

use super::consistency::{Admission, Compensate, Order, Reason};
use super::{Core, Effect, Time};

/// What a gradient delay d does to an update.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub enum DelayScaling {
    /// Nothing.
    None,
    /// The rate is divided by max(1, d).
    Inverse,
    /// The rate is divided by sqrt(max(1, d)).
    InverseSqrt,
    /// The rate is multiplied by exp(-alpha d).
    Exponential {
        /// Its strength, above 0.
        alpha: f64,
    },
    /// The gradient is corrected by g * g * (theta - theta_pulled), element by element.
    DcAsgd {
        /// Its strength, above 0.
        lambda: f64,
    },
}

/// What becomes of a gradient whose delay is above `--max-gradient-delay`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum OnExcess {
    /// It does not come about: pushes and pulls are held back.
    Block,
    /// Its rate is multiplied by N / d.
    Scale,
    /// It does not count.
    Drop,
}

impl DelayScaling {
    /// What the learning rate is multiplied by at delay `d`.
    pub(super) fn rate_factor(self, d: u64) -> f64 {
        match self {
            Self::None | Self::DcAsgd { .. } => 1.0,
            Self::Inverse => 1.0 / d.max(1) as f64,
            Self::InverseSqrt => 1.0 / (d.max(1) as f64).sqrt(),
            Self::Exponential { alpha } => (-alpha * d as f64).exp(),
        }
    }
}

/// What dropping beyond `n` does to a job of so many workers, where it does not bode well.
pub(super) fn starvation(n: u64, n_workers: u32) -> Option<String> {
    let usual = u64::from(n_workers.saturating_sub(1));
    (n < usual).then(|| {
        format!(
            "--max-gradient-delay {n} --on-excess drop with {n_workers} workers: a gradient's usual \
             delay is K - 1 = {usual}, so most gradients will be dropped and training starves; \
             allow at least {usual}, or use --on-excess block or scale"
        )
    })
}

/// Whether gradients computed at `versions` can be applied one after the other from `version` on
/// with no delay above `n`.
fn is_feasible(mut versions: Vec<u64>, version: u64, n: u64) -> bool {
    versions.sort_unstable();
    versions.iter().zip(version..).all(|(&pulled, at)| at <= pulled.saturating_add(n))
}

impl Core {
    /// The first gradient in the queue that may be applied now, scaled by its delay.
    pub(super) fn next_within_delay(
        &mut self,
        now: Time,
        scaling: DelayScaling,
        bound: Option<(u64, OnExcess)>,
        out: &mut Vec<Effect>,
    ) -> Option<Order> {
        let delay_of =
            |core: &Self, rank: u32| core.version - core.pending[&rank].header.version_pulled;
        let mut excess = 1.0;
        match bound {
            None => {}
            Some((n, OnExcess::Block)) => {
                let turn = (0..self.queue.len()).find(|&i| self.leaves_room(self.queue[i], n))?;
                let rank = self.queue.remove(turn).expect("found there");
                self.queue.push_front(rank);
            }
            Some((n, OnExcess::Drop)) => {
                while let Some(&rank) = self.queue.front()
                    && delay_of(self, rank) > n
                {
                    self.drop_gradient(now, rank, Reason::Delay, out);
                }
            }
            Some((n, OnExcess::Scale)) => {
                let delay = delay_of(self, *self.queue.front()?);
                if delay > n {
                    excess = n.max(1) as f64 / delay as f64;
                }
            }
        }
        let mut order = self.next_in_line()?;
        let rank = self.applying[0];
        order.rate_factor = scaling.rate_factor(delay_of(self, rank)) * excess;
        if let DelayScaling::DcAsgd { lambda } = scaling {
            let version_pulled = self.pending[&rank].header.version_pulled;
            order.compensation = Some(Compensate { lambda, rank, version_pulled });
        }
        Some(order)
    }

    /// The versions that outstanding gradients are computed at: those given to live ranks, those
    /// pending and not being applied.
    fn outstanding(&self, without: impl Fn(u32, bool) -> bool) -> Vec<u64> {
        let given = self.given.iter().filter(|&(&rank, _)| !without(rank, false));
        let waiting = |rank: u32| !self.applying.contains(&rank) && !without(rank, true);
        let pending = self.pending.iter().filter(|&(&rank, _)| waiting(rank));
        let given = given.map(|(_, given)| given.version);
        given.chain(pending.map(|(_, pending)| pending.header.version_pulled)).collect()
    }

    /// theta's version once the update under way is stored.
    fn version_next(&self) -> u64 {
        self.version + u64::from(!self.applying.is_empty())
    }

    /// Whether the rest stays feasible if this rank's pending gradient is applied now.
    fn leaves_room(&self, rank: u32, n: u64) -> bool {
        let others = self.outstanding(|other, pending| pending && other == rank);
        is_feasible(others, self.version + 1, n)
    }

    /// Whether `rank` may be given theta: at most `n` others are outstanding.
    pub(super) fn has_room(&self, rank: u32, n: u64) -> bool {
        let others = self.given.len() - usize::from(self.given.contains_key(&rank));
        (others + self.pending.len()) as u64 <= n
    }

    /// A push of a theta that its life was given is always taken; of an older one, or of one that
    /// it was not given, as long as it can be applied in time.
    pub(super) fn admit_within(&self, header: &PushHeader, n: u64) -> Result<Admission, Error> {
        let rank = header.caller.rank;
        if self.applying.contains(&rank) {
            return Ok(Admission::Kept);
        }
        let mut versions = self.outstanding(|other, _| other == rank);
        versions.push(header.version_pulled);
        if is_feasible(versions, self.version_next(), n) {
            return Ok(Admission::Kept);
        }
        Err(Error::new(
            ErrorCode::StaleRound,
            format!(
                "a gradient at version {} of theta could not be applied at {} within \
                 --max-gradient-delay {n}; pull, which waits until it can, and compute it again",
                header.version_pulled, self.version
            ),
        )
        .with("version", self.version))
    }

    /// Whether everything that is outstanding can be applied in time (invariant I7).
    pub(super) fn is_feasible(&self, n: u64) -> bool {
        is_feasible(self.outstanding(|_, _| false), self.version_next(), n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_fall_with_the_delay() {
        assert_eq!(DelayScaling::None.rate_factor(9), 1.0);
        assert_eq!(DelayScaling::Inverse.rate_factor(0), 1.0);
        assert_eq!(DelayScaling::Inverse.rate_factor(4), 0.25);
        assert_eq!(DelayScaling::InverseSqrt.rate_factor(4), 0.5);
        let exponential = DelayScaling::Exponential { alpha: 0.5 };
        assert_eq!(exponential.rate_factor(0), 1.0);
        assert_eq!(exponential.rate_factor(2), (-1f64).exp());
        assert_eq!(DelayScaling::DcAsgd { lambda: 0.1 }.rate_factor(7), 1.0);
    }

    #[test]
    fn feasible_sets_can_be_applied_in_order() {
        assert!(is_feasible(vec![], 7, 0));
        assert!(is_feasible(vec![7], 7, 0) && !is_feasible(vec![6], 7, 0));
        assert!(is_feasible(vec![7, 6, 5], 7, 2));
        assert!(!is_feasible(vec![7, 7, 7], 7, 1));
        assert!(!is_feasible(vec![5, 5], 7, 2), "the second would have delay 3");
        assert!(is_feasible(vec![1], 9, u64::MAX), "no overflow");
    }

    #[test]
    fn a_bound_that_starves_is_named_with_its_numbers() {
        assert_eq!(starvation(3, 4), None);
        let warning = starvation(2, 4).expect("below K - 1");
        assert!(warning.contains("--max-gradient-delay 2") && warning.contains("K - 1 = 3"));
    }
}
