//! What the workers were told of their pushes, kept outside of the server, and whether the server's
//! theta says the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// The target of the event by which a worker says how a push was answered.
pub(crate) const TARGET: &str = "ps_worker::net::session";

/// How a push was answered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Answer {
    pub(crate) rank: u32,
    pub(crate) clock: u64,
    pub(crate) version: u64,
    pub(crate) outcome: String,
}

/// Collects what workers say.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answers(Arc<Mutex<Vec<Answer>>>);

impl Answers {
    /// Those since it was asked last.
    pub(crate) fn take(&self) -> Vec<Answer> {
        std::mem::take(&mut *self.0.lock())
    }
}

impl<S: Subscriber> Layer<S> for Answers {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut answer = Answer::default();
        event.record(&mut answer);
        if !answer.outcome.is_empty() {
            self.0.lock().push(answer);
        }
    }
}

impl Visit for Answer {
    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "rank" => self.rank = u32::try_from(value).expect("ranks are u32"),
            "clock" => self.clock = value,
            "version" => self.version = value,
            _ => {}
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "outcome" {
            self.outcome = format!("{value:?}");
        }
    }
}

/// What became of a push, as its worker knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Counted,
    Dropped,
}

/// All that workers were told.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    fates: BTreeMap<(u32, u64), Fate>,
    n_applied: u64,
}

/// Acknowledged pushes against theta.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Balance {
    /// Acknowledged as counted, and not in theta.
    pub(crate) lost: u64,
    /// In theta more than once, or although they were dropped.
    pub(crate) twice: u64,
}

impl Ledger {
    /// Enters an answer. `undone` says that the server may have lost updates since.
    pub(crate) fn enter(&mut self, answer: &Answer, undone: bool) -> Result<(), String> {
        let Answer { rank, clock, outcome, .. } = answer;
        let fate = match outcome.as_str() {
            "Applied" | "Duplicate" => Fate::Counted,
            "DroppedLate" => Fate::Dropped,
            // The job has ended; the worker will hear of it.
            "Waiting" => return Ok(()),
            other => return Err(format!("rank {rank}, clock {clock}: an outcome {other}")),
        };
        let known = self.fates.insert((*rank, *clock), fate);
        if known.is_some_and(|known| known != fate) {
            return Err(format!("rank {rank}, clock {clock} was {known:?}, and now {fate:?}"));
        }
        if outcome == "Applied" {
            self.n_applied += 1;
            if known.is_some() && !undone {
                return Err(format!("rank {rank}, clock {clock} was applied and told so twice"));
            }
        }
        Ok(())
    }

    /// Pushes whose worker was told that they counted.
    pub(crate) fn n_counted(&self) -> u64 {
        self.fates.values().filter(|fate| **fate == Fate::Counted).count() as u64
    }

    /// Pushes whose worker was told that they were dropped.
    pub(crate) fn n_dropped(&self) -> u64 {
        self.fates.len() as u64 - self.n_counted()
    }

    /// Holds the ledger against a theta of which each push moves its own element from 0 to 1.
    pub(crate) fn balance(&self, theta: &[f64], rounds: u64) -> Balance {
        let mut balance = Balance::default();
        for (i, value) in theta.iter().enumerate() {
            let (rank, clock) = (i as u64 / rounds, i as u64 % rounds);
            let fate = self.fates.get(&(rank as u32, clock));
            match (fate, *value) {
                (Some(Fate::Counted), 1.0) | (Some(Fate::Dropped) | None, 0.0) | (None, 1.0) => {}
                (Some(Fate::Counted), 0.0) => balance.lost += 1,
                _ => balance.twice += 1,
            }
        }
        balance
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(rank: u32, clock: u64, outcome: &str) -> Answer {
        Answer { rank, clock, version: 0, outcome: outcome.to_owned() }
    }

    #[test]
    fn a_theta_that_says_something_else_is_noticed() {
        let mut ledger = Ledger::default();
        for (rank, clock, outcome) in
            [(0, 0, "Applied"), (1, 0, "Duplicate"), (1, 1, "DroppedLate")]
        {
            ledger.enter(&answer(rank, clock, outcome), false).expect("new");
        }
        let balance = |theta: [f64; 4]| {
            let Balance { lost, twice } = ledger.balance(&theta, 2);
            (lost, twice)
        };
        assert_eq!(balance([1.0, 0.0, 1.0, 0.0]), (0, 0));
        // Not told yet, and counted.
        assert_eq!(balance([1.0, 1.0, 1.0, 0.0]), (0, 0));
        assert_eq!(balance([0.0, 0.0, 0.0, 0.0]), (2, 0));
        assert_eq!(balance([2.0, 0.0, 1.0, 1.0]), (0, 2));
        assert_eq!((ledger.n_counted(), ledger.n_dropped()), (2, 1));
    }

    #[test]
    fn contradictions_between_answers_are_noticed() {
        let mut ledger = Ledger::default();
        ledger.enter(&answer(0, 0, "Applied"), false).expect("new");
        ledger.enter(&answer(0, 0, "Duplicate"), false).expect("the same");
        ledger.enter(&answer(0, 0, "Applied"), true).expect("it had been lost");
        ledger.enter(&answer(0, 0, "Applied"), false).expect_err("twice");
        ledger.enter(&answer(0, 0, "DroppedLate"), false).expect_err("another fate");
    }
}
