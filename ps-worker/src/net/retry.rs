//! When to try again: which failures, after what pause, for how long.
//!
//! Pauses are drawn with full jitter (uniform from zero to a bound that doubles), so that a
//! thousand workers that lose one server do not return as one wave. Knows no calls.

use std::time::Duration;

use ps_common::error::Retry;
use ps_common::wire::status::Failure;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::time::Instant;

/// What may be done about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Nothing.
    None,
    /// The same call again, over a new connection.
    Reconnect,
    /// The same call again, after the pause that the server names, if it names one.
    Again(Option<Duration>),
    /// Join again, then go on from where the server says.
    Rejoin,
}

impl Remedy {
    /// The remedy for `failure`: by its code for a refusal, a new connection for a broken one.
    pub fn of(failure: &Failure) -> Self {
        match failure {
            Failure::Transport(_) => Self::Reconnect,
            Failure::Other(..) => Self::None,
            Failure::Refused(error) => match error.code.retry() {
                Retry::Never => Self::None,
                Retry::Same => Self::Again(error.retry_after),
                Retry::Rejoin => Self::Rejoin,
            },
        }
    }
}

/// Pauses between attempts that follow one another.
#[derive(Debug, Clone)]
pub struct Backoff {
    rng: ChaCha8Rng,
    bound: Duration,
}

impl Backoff {
    /// Upper bound of the first pause.
    pub const FIRST: Duration = Duration::from_millis(20);
    /// Upper bound of every pause.
    pub const LONGEST: Duration = Duration::from_secs(2);

    /// Pauses drawn from `seed`, which should differ between processes.
    pub fn new(seed: u64) -> Self {
        Self { rng: ChaCha8Rng::seed_from_u64(seed), bound: Self::FIRST }
    }

    /// The next pause: uniform in `0..=bound`, where the bound doubles each time up to
    /// [`Backoff::LONGEST`].
    pub fn next_pause(&mut self) -> Duration {
        let pause = self.rng.random_range(Duration::ZERO..=self.bound);
        self.bound = (self.bound * 2).min(Self::LONGEST);
        pause
    }

    /// Begins again with short pauses: something has worked.
    pub fn reset(&mut self) {
        self.bound = Self::FIRST;
    }
}

/// How long trying may go on: runs from the first failure, ends with a success.
#[derive(Debug, Clone)]
pub struct Budget {
    patience: Duration,
    backoff: Backoff,
    until: Option<Instant>,
}

impl Budget {
    /// A budget of `patience` for each row of failures, pauses drawn from `seed`.
    pub fn new(patience: Duration, seed: u64) -> Self {
        Self { patience, backoff: Backoff::new(seed), until: None }
    }

    /// What it allows in all.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// The pause before the next attempt, `at_least` where the server named one; `None` once the
    /// budget would be spent by then.
    pub fn spend(&mut self, now: Instant, at_least: Option<Duration>) -> Option<Duration> {
        let until = *self.until.get_or_insert(now + self.patience);
        let pause = self.backoff.next_pause().saturating_add(at_least.unwrap_or_default());
        (now + pause < until).then_some(pause)
    }

    /// An attempt has worked: the next failure begins a new row.
    pub fn succeed(&mut self) {
        self.until = None;
        self.backoff.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ps_common::{Error, ErrorCode};

    #[test]
    fn pauses_grow_to_a_limit_and_differ_between_seeds() {
        let pauses = |seed| {
            let mut backoff = Backoff::new(seed);
            (0..200).map(|_| backoff.next_pause()).collect::<Vec<_>>()
        };
        let (a, b) = (pauses(1), pauses(2));
        assert_eq!(a, pauses(1));
        assert_ne!(a, b);
        assert!(a[0] <= Backoff::FIRST);
        assert!(a.iter().all(|&pause| pause <= Backoff::LONGEST));
        // Full jitter: late pauses fill the whole range, they do not cluster at its end.
        let late = &a[20..];
        let mean = late.iter().sum::<Duration>() / late.len() as u32;
        assert!(mean > Backoff::LONGEST * 4 / 10 && mean < Backoff::LONGEST * 6 / 10, "{mean:?}");
    }

    #[test]
    fn a_budget_runs_from_the_first_failure_and_is_renewed_by_success() {
        let start = Instant::now();
        let mut budget = Budget::new(Duration::from_secs(10), 7);
        assert!(budget.spend(start, None).is_some());
        assert!(budget.spend(start + Duration::from_secs(7), None).is_some());
        assert_eq!(budget.spend(start + Duration::from_secs(10), None), None);
        budget.succeed();
        let pause = budget.spend(start + Duration::from_secs(10), Some(Duration::from_secs(3)));
        assert!(pause.is_some_and(|pause| pause >= Duration::from_secs(3)));
        assert_eq!(
            budget.spend(start + Duration::from_secs(10), Some(Duration::from_secs(11))),
            None
        );
    }

    #[test]
    fn a_remedy_follows_the_code() {
        let refused = |code| {
            let error = Error::new(code, "").retry_after(Duration::from_secs(1));
            Remedy::of(&Failure::Refused(error))
        };
        assert_eq!(refused(ErrorCode::NonFinite), Remedy::None);
        assert_eq!(refused(ErrorCode::Fenced), Remedy::None);
        assert_eq!(refused(ErrorCode::LeaseExpired), Remedy::Rejoin);
        assert_eq!(refused(ErrorCode::Draining), Remedy::Again(Some(Duration::from_secs(1))));
        assert_eq!(Remedy::of(&Failure::Transport(String::new())), Remedy::Reconnect);
        assert_eq!(Remedy::of(&Failure::Other(tonic::Code::Internal, String::new())), Remedy::None);
    }
}
