//! From a checkpoint to a running job (rules D4 to D6): the journal's updates are counted again,
//! leases are granted for another term, an ended job is concluded again.

use ps_common::calls::{Caller, WorkerState};
use ps_common::job::JobState;

use super::members::Holder;
use super::{Core, Counted, Effect, Order, Time, invariants};

impl Core {
    /// What an update that was ordered will count, in order of its parts; for the journal.
    ///
    /// # Panics
    /// If the update is not under way.
    pub fn counted_by(&self, order: &Order) -> Vec<Counted> {
        let part = |name| {
            let pending = self.pending.values().find(|pending| pending.gradient == name);
            let pending = pending.expect("a gradient is pending while its update is under way");
            Counted { header: pending.header, digest: pending.digest }
        };
        order.parts.iter().map(|&(name, _)| part(name)).collect()
    }

    /// Counts the next update as the journal has it. Only after [`Core::restore`], before any step.
    ///
    /// # Errors
    /// In words, if it does not follow from the state: a rank that does not exist, a clock that is
    /// behind. A journal of this program has none such.
    pub fn replay(&mut self, counted: &[Counted]) -> Result<(), String> {
        self.check_replay(counted)?;
        let seconds = self.seconds(Time::ZERO);
        if self.config.consistency.rounds_are_whole() {
            self.record_round_loss(seconds, counted.iter().map(|part| &part.header));
        }
        for Counted { header, .. } in counted {
            let seat = &mut self.members.ranks[header.caller.rank as usize];
            // What the others had gone on without.
            seat.skip_to(header.clock);
            seat.count(header.clock);
            seat.n_samples = seat.n_samples.max(header.n_samples);
            let newer =
                seat.holder.as_ref().is_none_or(|h| h.incarnation < header.caller.incarnation);
            if newer {
                // It joined after the checkpoint.
                seat.state = WorkerState::Live;
                seat.holder = Some(Holder::unheard(header.caller.incarnation));
            }
            self.record.delayed(self.version - header.version_pulled);
        }
        self.version += 1;
        if self.config.consistency.has_rounds() {
            self.skip_rounds();
        }
        self.floor = self.reached();
        debug_assert_eq!(invariants::check(self), Ok(()));
        Ok(())
    }

    fn check_replay(&self, counted: &[Counted]) -> Result<(), String> {
        let version = self.version;
        let fail = |what: String| Err(format!("the update of version {version} {what}"));
        if self.state != JobState::Running {
            return fail(format!("is of a job that is {}", self.state));
        }
        let has_rounds = self.config.consistency.has_rounds();
        if counted.is_empty() || (!has_rounds && counted.len() != 1) {
            return fail(format!("has {} gradients", counted.len()));
        }
        let mut before: Option<u32> = None;
        for Counted { header, .. } in counted {
            let Caller { rank, .. } = header.caller;
            let Some(seat) = self.members.ranks.get(rank as usize) else {
                return fail(format!(
                    "is by rank {rank}, the job has {} workers",
                    self.config.n_workers
                ));
            };
            if before.is_some_and(|before| before >= rank) {
                return fail(format!("has rank {rank} out of order"));
            }
            before = Some(rank);
            if header.clock < seat.clock {
                let (clock, owed) = (header.clock, seat.clock);
                return fail(format!("is by clock {clock} of rank {rank}, which owes {owed}"));
            }
            let pulled = header.version_pulled;
            if pulled > version || (has_rounds && (pulled != version || header.clock != version)) {
                return fail(format!(
                    "is by clock {} of rank {rank}, computed at version {pulled}",
                    header.clock
                ));
            }
        }
        Ok(())
    }

    /// Begins the restored job's life; gives what follows at once, as [`Core::step`] does: a job
    /// that had ended is concluded again.
    pub fn resume(&mut self, now: Time) -> Vec<Effect> {
        let mut out = Vec::new();
        let Some(job) = &mut self.job else { return out };
        job.began = now;
        for seat in &mut self.members.ranks {
            seat.vacant_since = now;
            seat.restored = seat.restored.map(|_| seat.clock);
            if let Some(holder) = &mut seat.holder {
                holder.last_heard = now;
                holder.lease_end = now + self.config.lease;
            }
        }
        if self.state == JobState::Finishing {
            self.linger_end = Some(now + self.config.lease);
        }
        self.captures.resumed(now, self.version);
        self.wake_at(now + self.config.lease);
        self.wake_at(now + self.config.replacement_timeout);
        if let Some(end) = self.time_limit() {
            self.wake_at(end);
        }
        let seconds = self.seconds(now);
        let what = format!("the server was started again, theta is at version {}", self.version);
        self.record.event(seconds, "restored", None, what);
        self.proceed(now, &mut out);
        self.conclude_if_complete(&mut out);
        debug_assert_eq!(invariants::check(self), Ok(()));
        out
    }
}
