//! Calls that are held, what each waits for, and until when.
//!
//! Owns no policy: who may be woken is asked of the caller of [`Waits::take`].

use std::collections::BTreeMap;

use ps_common::calls::{Caller, PullRequest};

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
    Push,
    /// A version, the end, or the start.
    Pull(PullRequest),
    /// All ranks' statistics.
    Statistics,
}

/// All held calls.
#[derive(Debug, Clone, Default)]
pub(super) struct Waits {
    by_call: BTreeMap<CallId, Wait>,
    /// Held calls of each rank.
    n_by_rank: BTreeMap<u32, u32>,
}

impl Waits {
    pub(super) fn hold(&mut self, call: CallId, wait: Wait) {
        *self.n_by_rank.entry(wait.caller.rank).or_default() += 1;
        self.by_call.insert(call, wait);
    }

    pub(super) fn remove(&mut self, call: CallId) -> Option<Wait> {
        let wait = self.by_call.remove(&call)?;
        self.forget(wait.caller.rank);
        Some(wait)
    }

    fn forget(&mut self, rank: u32) {
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
        for (_, wait) in &taken {
            self.forget(wait.caller.rank);
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
