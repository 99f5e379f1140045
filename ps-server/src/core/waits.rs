//! Calls that are held, what each waits for, and until when.
//!
//! Owns no policy: who may be woken is asked of the caller of [`Waits::take`].

use std::collections::{BTreeMap, BTreeSet};

use ps_common::calls::{Caller, Outcome, PullRequest};

use super::{CallId, Time};

/// A held call.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Wait {
    pub(super) caller: Caller,
    pub(super) since: Time,
    pub(super) deadline: Time,
    pub(super) purpose: Purpose,
}

/// What a held call waits for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Purpose {
    /// That the rank's pending gradient counts.
    Push {
        /// theta goes with the answer.
        theta: bool,
    },
    /// The rank's gradient is settled, its worker may not go on yet.
    Turn {
        /// theta goes with the answer.
        theta: bool,
        /// What became of the gradient.
        outcome: Outcome,
        /// Updates between its pull and its own.
        gradient_delay: u64,
    },
    /// A version, the end, or the start.
    Pull(PullRequest),
    /// All ranks' statistics.
    Statistics,
}

impl Purpose {
    /// Whether the call is answered by theta and nothing else is missing.
    fn is_read(&self) -> bool {
        matches!(self, Self::Pull(_) | Self::Turn { .. })
    }

    /// Whether the call is a push.
    pub(super) fn is_push(&self) -> bool {
        matches!(self, Self::Push { .. } | Self::Turn { .. })
    }
}

/// All held calls.
#[derive(Debug, Clone, Default)]
pub(super) struct Waits {
    by_call: BTreeMap<CallId, Wait>,
    /// Held calls of each rank.
    n_by_rank: BTreeMap<u32, u32>,
    /// Those that only wait for theta.
    readers: BTreeSet<CallId>,
}

impl Waits {
    pub(super) fn hold(&mut self, call: CallId, wait: Wait) {
        *self.n_by_rank.entry(wait.caller.rank).or_default() += 1;
        if wait.purpose.is_read() {
            self.readers.insert(call);
        }
        self.by_call.insert(call, wait);
    }

    pub(super) fn remove(&mut self, call: CallId) -> Option<Wait> {
        let wait = self.by_call.remove(&call)?;
        self.forget(call, wait.caller.rank);
        Some(wait)
    }

    /// A held call.
    pub(super) fn get(&self, call: CallId) -> Option<&Wait> {
        self.by_call.get(&call)
    }

    /// The calls that only wait for theta, in order.
    pub(super) fn readers(&self) -> impl Iterator<Item = (CallId, &Wait)> {
        self.readers.iter().map(|&call| (call, &self.by_call[&call]))
    }

    fn forget(&mut self, call: CallId, rank: u32) {
        self.readers.remove(&call);
        if let Some(n) = self.n_by_rank.get_mut(&rank) {
            *n -= 1;
            if *n == 0 {
                self.n_by_rank.remove(&rank);
            }
        }
    }

    /// Removes and gives, in order of call, the held calls for which `wanted` holds.
    pub(super) fn take(&mut self, wanted: impl Fn(&Wait) -> bool) -> Vec<(CallId, Wait)> {
        let taken: Vec<_> = self.by_call.extract_if(.., |_, wait| wanted(wait)).collect();
        for (call, wait) in &taken {
            self.forget(*call, wait.caller.rank);
        }
        taken
    }

    /// Whether a call of `rank` is held.
    pub(super) fn holds(&self, rank: u32) -> bool {
        self.n_by_rank.contains_key(&rank)
    }

    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.by_call.values().map(|wait| wait.deadline).min()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&CallId, &Wait)> {
        self.by_call.iter()
    }
}
