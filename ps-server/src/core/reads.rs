//! Theta on its way out: who gets it now, who waits for it, who has which (rules C8, C9).
//!
//! Whether a rank may have theta is the mode's affair; here is what follows from it.

use ps_common::calls::{
    Caller, Outcome, PullHeader, PullRequest, PushHeader, PushResult, WorkerState,
};
use ps_common::job::JobState;
use ps_common::{Error, ErrorCode};

use super::waits::{Purpose, Wait};
use super::{Answer, CallId, Core, Effect, Refusal, Time};

/// theta that a live rank was given last, while gradients that it is for are not in yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) version: u64,
    /// Of the last gradient that will be computed from it.
    pub(super) clock: u64,
}

impl Core {
    /// Gives theta now or holds the call until there is one to its wish.
    pub(super) fn pull(
        &mut self,
        now: Time,
        call: CallId,
        request: PullRequest,
        out: &mut Vec<Effect>,
    ) -> Result<(), Error> {
        self.authenticate(now, request.caller)?;
        if self.state == JobState::Failed {
            return Err(self.ended());
        }
        self.refuse_when_draining()?;
        // Who waits for theta already comes first.
        if self.askers.is_empty() && self.is_granted(&request, self.read_limit()) {
            self.answer_pull(now, call, request.caller, now, out);
        } else {
            self.ask(request.caller);
            let deadline = now + self.patience(request.wait_max);
            let purpose = Purpose::Pull(request);
            self.hold(call, Wait { caller: request.caller, since: now, deadline, purpose });
        }
        self.proceed(now, out);
        Ok(())
    }

    /// Whether a pull can be answered; `limit` is [`Core::read_limit`].
    pub(super) fn is_granted(&self, request: &PullRequest, limit: u64) -> bool {
        if self.state >= JobState::Finishing {
            return true;
        }
        let started = request.caller.is_observer() || self.observers_are_ready();
        let wished = started && !request.r#final && self.version >= request.version_min;
        wished && (request.caller.is_observer() || self.may_read(request.caller.rank, limit))
    }

    /// Whether the observers that the job waits for have seen the first theta (rule C9).
    fn observers_are_ready(&self) -> bool {
        let ready = self.members.observers.values().filter(|o| o.evaluated).count();
        self.version > 0 || ready >= self.config.observers as usize
    }

    /// Whether `rank` may have theta now.
    fn may_have_theta(&self, rank: u32) -> bool {
        self.state != JobState::Running || self.may_read(rank, self.read_limit())
    }

    pub(super) fn answer_pull(
        &mut self,
        now: Time,
        call: CallId,
        caller: Caller,
        since: Time,
        out: &mut Vec<Effect>,
    ) {
        if !caller.is_observer() {
            self.give(caller.rank, out);
        }
        let header = PullHeader {
            version: self.version,
            state: self.state,
            seconds: self.record.finished_seconds.unwrap_or_else(|| self.seconds(now)),
            waited: now.saturating_sub(since),
        };
        out.push(Effect::Reply { call, answer: Answer::Pulled(header) });
    }

    /// A pull has waited long enough: whatever theta there is, if its worker may have any.
    pub(super) fn end_pull(&mut self, now: Time, call: CallId, wait: &Wait, out: &mut Vec<Effect>) {
        if wait.caller.is_observer() || self.may_have_theta(wait.caller.rank) {
            return self.answer_pull(now, call, wait.caller, wait.since, out);
        }
        let error = Error::new(
            ErrorCode::Deadline,
            format!(
                "theta is not given to rank {} yet: other workers come first (--mode {}); ask again",
                wait.caller.rank,
                self.config.consistency.mode()
            ),
        );
        out.push(Effect::Reply { call, answer: Answer::Refused(Refusal(error)) });
    }

    /// Notes what `rank` computes from now on.
    fn give(&mut self, rank: u32, out: &mut Vec<Effect>) {
        self.askers.retain(|&asker| asker != rank);
        let clock = self.reader_clock(rank);
        let owes = self.config.rounds.is_none_or(|rounds| clock < rounds);
        // Who has left may still have a call to be answered.
        let live = self.members.ranks[rank as usize].state == WorkerState::Live;
        if self.state != JobState::Running || !live || !owes {
            return;
        }
        if self.config.consistency.keeps_theta() {
            out.push(Effect::Keep { rank });
        }
        if self.config.consistency.bounds_reads() {
            let clock = self.last_clock_of_theta(rank);
            self.given.insert(rank, Given { version: self.version, clock });
        }
    }

    /// The gradient of `clock` is in: theta that `rank` was given for it is used up, unless the rank
    /// computes a later one from it, too.
    pub(super) fn use_up(&mut self, rank: u32, clock: u64) {
        let ahead = self.given.get(&rank).is_some_and(|given| given.clock > clock);
        if !(ahead && self.members.overlaps(rank)) {
            self.given.remove(&rank);
        }
    }

    /// `rank` has a new life or none: what it was given will not come back.
    pub(super) fn take_back(&mut self, rank: u32) {
        self.given.remove(&rank);
        self.askers.retain(|&asker| asker != rank);
    }

    /// Where theta is given in turns: `caller` has its place in the row until it gets one, however
    /// often it has to ask.
    fn ask(&mut self, caller: Caller) {
        let in_turns = self.config.consistency.blocked_delay().is_some();
        if in_turns && !caller.is_observer() && !self.askers.contains(&caller.rank) {
            self.askers.push(caller.rank);
        }
    }

    /// Answers a push whose fate is known; where theta goes with the answer, once it may.
    pub(super) fn answer_in_turn(
        &mut self,
        now: Time,
        call: CallId,
        header: &PushHeader,
        (theta, outcome): (bool, Outcome),
        out: &mut Vec<Effect>,
    ) {
        let rank = header.caller.rank;
        // Who is late for a round that is closing hears so when it is closed: it may yet be open again
        // (rule D8).
        let may_be_undone = outcome == Outcome::DroppedLate && self.config.consistency.has_rounds();
        let may_go_on = match theta {
            true => self.askers.is_empty() && self.may_have_theta(rank),
            false => !may_be_undone || self.may_have_theta(rank),
        };
        if may_go_on {
            return self.answer_push(call, (now, now), rank, (theta, outcome, 0), out);
        }
        let deadline = now + self.patience(header.wait_max);
        let purpose = Purpose::Turn { theta, outcome, gradient_delay: 0 };
        self.withdraw_waits_of(rank, out);
        if theta {
            self.ask(header.caller);
        }
        self.hold(call, Wait { caller: header.caller, since: now, deadline, purpose });
        self.wake_reads(now, out);
    }

    /// The fate of `rank`'s held push is known.
    pub(super) fn settle_push(
        &mut self,
        now: Time,
        rank: u32,
        (outcome, gradient_delay): (Outcome, u64),
        out: &mut Vec<Effect>,
    ) {
        let Some((call, wait)) = self.waiting_push(rank) else { return };
        let theta = wait.purpose == Purpose::Push { theta: true };
        if !theta || self.askers.is_empty() && self.may_have_theta(rank) {
            self.release(wait.caller, now);
            return self.answer_push(
                call,
                (wait.since, now),
                rank,
                (theta, outcome, gradient_delay),
                out,
            );
        }
        self.ask(wait.caller);
        let purpose = Purpose::Turn { theta, outcome, gradient_delay };
        self.waits.hold(call, Wait { purpose, ..wait });
    }

    /// Answers a push that was held from `since` to `now`.
    pub(super) fn answer_push(
        &mut self,
        call: CallId,
        (since, now): (Time, Time),
        rank: u32,
        (theta, outcome, gradient_delay): (bool, Outcome, u64),
        out: &mut Vec<Effect>,
    ) {
        if theta && outcome != Outcome::Waiting {
            self.give(rank, out);
        }
        let result = PushResult {
            outcome,
            version: self.version,
            gradient_delay,
            clock: self.members.ranks[rank as usize].clock,
            state: self.state,
            waited: now.saturating_sub(since),
        };
        out.push(Effect::Reply { call, answer: Answer::Pushed(result) });
    }

    /// Gives theta to those that wait for it and may have it, in the order of their asking.
    pub(super) fn wake_reads(&mut self, now: Time, out: &mut Vec<Effect>) {
        if self.waits.readers().next().is_none() {
            return;
        }
        let limit = self.read_limit();
        let due = self.waits.readers().filter(|(_, wait)| self.is_due(wait, limit));
        let mut readers: Vec<(usize, CallId)> =
            due.map(|(call, wait)| (self.turn_of(wait.caller.rank), call)).collect();
        readers.sort_unstable();
        for (_, call) in readers {
            // One that was given theta before it may have left no room.
            if !self.waits.get(call).is_some_and(|wait| self.is_due(wait, limit)) {
                continue;
            }
            let Some(wait) = self.waits.remove(call) else { continue };
            self.release(wait.caller, now);
            match wait.purpose {
                Purpose::Turn { theta, outcome, gradient_delay } => {
                    let answer = (theta, outcome, gradient_delay);
                    self.answer_push(call, (wait.since, now), wait.caller.rank, answer, out);
                }
                _ => self.answer_pull(now, call, wait.caller, wait.since, out),
            }
        }
    }

    /// The place of `rank` in the row of those that wait for theta; behind all where it has none.
    fn turn_of(&self, rank: u32) -> usize {
        self.askers.iter().position(|&asker| asker == rank).unwrap_or(usize::MAX)
    }

    /// Whether a call that waits for theta can be answered; `limit` is [`Core::read_limit`].
    pub(super) fn is_due(&self, wait: &Wait, limit: u64) -> bool {
        match &wait.purpose {
            Purpose::Pull(request) => self.is_granted(request, limit),
            Purpose::Turn { .. } => {
                self.state != JobState::Running || self.may_read(wait.caller.rank, limit)
            }
            Purpose::Push { .. } | Purpose::Statistics => false,
        }
    }
}
