//! Pushes and statistics: what every mode has in common (rules C5 to C7).

use std::time::Duration;

use ps_common::calls::{Caller, Outcome, PushHeader};
use ps_common::job::JobState;
use ps_common::{Error, ErrorCode};

use super::consistency::{Admission, Reason};
use super::waits::{Purpose, Wait};
use super::{Answer, CallId, Core, Effect, Pending, Refusal, Time};

/// A push as it came in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Push {
    pub(super) header: PushHeader,
    pub(super) digest: u32,
    /// theta goes with the answer.
    pub(super) theta: bool,
}

impl Core {
    /// Takes a whole gradient: counts it, keeps it for its round, or knows it already.
    pub(super) fn push(
        &mut self,
        now: Time,
        call: CallId,
        push: Push,
        out: &mut Vec<Effect>,
    ) -> Result<(), Error> {
        let Push { header, digest, theta } = push;
        self.authenticate(now, header.caller)?;
        let rank = header.caller.rank;
        if header.caller.is_observer() {
            return Err(Error::new(ErrorCode::BadField, "an observer has no gradients to push")
                .with("field", "rank"));
        }
        if matches!(self.state, JobState::Failed) {
            return Err(self.ended());
        }
        self.refuse_when_draining()?;
        let owed = self.members.ranks[rank as usize].clock;
        if header.clock < owed {
            // It has counted, or its round closed without it: the current theta is the answer to
            // both (rule C6).
            let seat = &self.members.ranks[rank as usize];
            if seat.had_other_bytes(header.clock, digest) {
                return Err(reused(&header));
            }
            let outcome = seat.outcome_of(header.clock)?;
            if outcome == Outcome::DroppedLate {
                self.count_dropped(rank, header.clock, Reason::Late);
            }
            out.push(Effect::Forget { gradient: call });
            self.answer_in_turn(now, call, &header, (theta, outcome), out);
            return Ok(());
        }
        self.check_not_ahead(&header, owed)?;
        if self.state != JobState::Running {
            self.count_dropped(rank, header.clock, Reason::Ended);
            out.push(Effect::Forget { gradient: call });
            self.answer_in_turn(now, call, &header, (theta, Outcome::DroppedLate), out);
            return Ok(());
        }
        if self.config.rounds.is_some_and(|rounds| header.clock >= rounds) {
            return Err(Error::new(
                ErrorCode::JobEnded,
                format!("clock {} is beyond the job's --rounds", header.clock),
            ));
        }
        if self.admission(&header)? == Admission::Late {
            self.too_late(&header);
            out.push(Effect::Forget { gradient: call });
            self.answer_in_turn(now, call, &header, (theta, Outcome::DroppedLate), out);
            return Ok(());
        }
        if let Some(pending) = self.pending.get(&rank) {
            let same_life = pending.header.caller == header.caller;
            if same_life && pending.digest != digest {
                return Err(reused(&header));
            }
            if same_life || self.applying.contains(&rank) {
                // Sent again while it waits: the newer call waits on.
                out.push(Effect::Forget { gradient: call });
                self.hold_push(now, call, &header, theta, out);
                return Ok(());
            }
            // A replacement recomputed what its predecessor had pushed: its own word counts.
            out.push(Effect::Forget { gradient: pending.gradient });
            self.queue.retain(|&queued| queued != rank);
        }
        self.pending.insert(rank, Pending { gradient: call, header, digest });
        self.use_up(rank, header.clock);
        let seat = &mut self.members.ranks[rank as usize];
        seat.n_samples = seat.n_samples.max(header.n_samples);
        if !self.config.consistency.has_rounds() {
            self.queue.push_back(rank);
        }
        self.hold_push(now, call, &header, theta, out);
        self.proceed(now, out);
        Ok(())
    }

    /// What the server has not reached, also after the end: it went back, or the name is made up.
    fn check_not_ahead(&self, header: &PushHeader, owed: u64) -> Result<(), Error> {
        if header.clock > owed || header.version_pulled > self.version {
            return Err(Error::new(
                ErrorCode::EpochChanged,
                format!(
                    "clock {} at version {} is ahead of this server, which has clock {owed} of \
                     rank {} and version {}; pull and go on from there",
                    header.clock, header.version_pulled, header.caller.rank, self.version
                ),
            )
            .with("clock", owed)
            .with("version", self.version));
        }
        Ok(())
    }

    /// Holds `call`; an older call of the same push is answered: its sender has given it up.
    fn hold_push(
        &mut self,
        now: Time,
        call: CallId,
        header: &PushHeader,
        theta: bool,
        out: &mut Vec<Effect>,
    ) {
        self.withdraw_waits_of(header.caller.rank, out);
        let deadline = now + self.patience(header.wait_max);
        let purpose = Purpose::Push { theta };
        let wait = Wait { caller: header.caller, since: now, deadline, purpose };
        self.hold(call, wait);
    }

    /// Holds a call until it is answered, withdrawn or due.
    pub(super) fn hold(&mut self, call: CallId, wait: Wait) {
        self.wake_at(wait.deadline);
        self.waits.hold(call, wait);
    }

    /// Something may be due at `time`.
    pub(super) fn wake_at(&mut self, time: Time) {
        self.alarm = self.alarm.min(time);
    }

    /// Refuses the held calls of a rank's earlier lives; what they pushed stays.
    pub(super) fn fence_waits_of(&mut self, rank: u32, out: &mut Vec<Effect>) {
        for (call, wait) in self.waits.take(|w| w.caller.rank == rank) {
            let error = self.members.authenticate(wait.caller);
            let error = error.expect_err("the rank has just gone to a newer life");
            out.push(Effect::Reply { call, answer: Answer::Refused(Refusal(error)) });
        }
    }

    /// Answers the held push of a rank that has sent it again.
    pub(super) fn withdraw_waits_of(&mut self, rank: u32, out: &mut Vec<Effect>) {
        let is_push = |w: &Wait| w.caller.rank == rank && w.purpose.is_push();
        for (call, wait) in self.waits.take(is_push) {
            let answer = (false, Outcome::Waiting, 0);
            self.answer_push(call, (wait.since, wait.since), rank, answer, out);
        }
    }

    pub(super) fn refuse_when_draining(&self) -> Result<(), Error> {
        if !self.draining {
            return Ok(());
        }
        Err(Error::new(ErrorCode::Draining, "the server is stopping")
            .retry_after(Duration::from_secs(1)))
    }

    pub(super) fn patience(&self, wish: Option<Duration>) -> Duration {
        wish.map_or(self.config.wait_max, |wish| wish.min(self.config.wait_max))
    }

    /// A held call of `caller` is answered: its lease runs from now.
    pub(super) fn release(&mut self, caller: Caller, now: Time) {
        self.members.touch(caller.rank, now + self.config.lease);
        self.wake_at(now + self.config.lease);
    }

    /// Holds the call until every rank's statistics are in.
    pub(super) fn merge_statistics(
        &mut self,
        now: Time,
        call: CallId,
        caller: Caller,
        out: &mut Vec<Effect>,
    ) -> Result<(), Error> {
        self.authenticate(now, caller)?;
        if caller.is_observer() {
            return Err(
                Error::new(ErrorCode::BadField, "an observer has no shard").with("field", "rank")
            );
        }
        if self.state != JobState::Running {
            return Err(self.ended());
        }
        self.refuse_when_draining()?;
        let all_before = self.statistics.len() == self.config.n_workers as usize;
        self.statistics.insert(caller.rank);
        let deadline = now + self.config.wait_max;
        self.hold(call, Wait { caller, since: now, deadline, purpose: Purpose::Statistics });
        if self.statistics.len() == self.config.n_workers as usize {
            for (call, wait) in self.waits.take(|w| w.purpose == Purpose::Statistics) {
                self.release(wait.caller, now);
                out.push(Effect::Reply { call, answer: Answer::Statistics });
            }
            if !all_before && self.config.checkpoints.is_some_and(|c| c.every.is_some()) {
                // Who comes after a restart asks for them, and nobody would bring them again.
                self.captures.want();
                self.proceed(now, out);
            }
        }
        Ok(())
    }
}

fn reused(header: &PushHeader) -> Error {
    let PushHeader { clock, caller, .. } = header;
    let what = format!("clock {clock} of rank {} was pushed before with other bytes", caller.rank);
    Error::new(ErrorCode::SeqReused, what).with("clock", clock)
}
