//! Pushes, pulls and statistics: what every mode has in common (rules C5 to C9).

use std::time::Duration;

use ps_common::calls::{
    Caller, Evaluation, Outcome, PullHeader, PullRequest, PushHeader, PushResult,
};
use ps_common::job::{JobState, Mode};
use ps_common::report::HistoryEntry;
use ps_common::{Error, ErrorCode};

use super::waits::{Purpose, Wait};
use super::{Answer, CallId, Core, Effect, Pending, Refusal, Time};

impl Core {
    /// Takes a whole gradient: counts it, keeps it for its round, or knows it already.
    pub(super) fn push(
        &mut self,
        now: Time,
        call: CallId,
        header: PushHeader,
        digest: u32,
        out: &mut Vec<Effect>,
    ) -> Result<(), Error> {
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
            let outcome = self.members.ranks[rank as usize].outcome_of(header.clock)?;
            out.push(Effect::Forget { gradient: call });
            self.answer_push(call, (now, now), rank, (outcome, 0), out);
            return Ok(());
        }
        if self.state != JobState::Running {
            out.push(Effect::Forget { gradient: call });
            self.answer_push(call, (now, now), rank, (Outcome::DroppedLate, 0), out);
            return Ok(());
        }
        self.check_clock(&header, owed)?;
        self.check_round(&header)?;
        if let Some(pending) = self.pending.get(&rank) {
            let same_life = pending.header.caller == header.caller;
            if same_life && pending.digest != digest {
                return Err(Error::new(
                    ErrorCode::SeqReused,
                    format!(
                        "clock {} of rank {rank} was pushed before with other bytes",
                        header.clock
                    ),
                )
                .with("clock", header.clock));
            }
            if same_life || self.applying.contains(&rank) {
                // Sent again while it waits: the newer call waits on.
                out.push(Effect::Forget { gradient: call });
                self.hold_push(now, call, &header, out);
                return Ok(());
            }
            // A replacement recomputed what its predecessor had pushed: its own word counts.
            out.push(Effect::Forget { gradient: pending.gradient });
            self.queue.retain(|&queued| queued != rank);
        }
        self.pending.insert(rank, Pending { gradient: call, header, digest });
        let seat = &mut self.members.ranks[rank as usize];
        seat.n_samples = seat.n_samples.max(header.n_samples);
        if self.config.mode == Mode::Async {
            self.queue.push_back(rank);
        }
        self.hold_push(now, call, &header, out);
        self.proceed(now, out);
        Ok(())
    }

    fn check_clock(&self, header: &PushHeader, owed: u64) -> Result<(), Error> {
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
        if self.config.rounds.is_some_and(|rounds| header.clock >= rounds) {
            return Err(Error::new(
                ErrorCode::JobEnded,
                format!("clock {} is beyond the job's --rounds", header.clock),
            ));
        }
        Ok(())
    }

    /// A synchronous round takes gradients of its own theta only, and while it is open (rule S1).
    fn check_round(&self, header: &PushHeader) -> Result<(), Error> {
        if self.config.mode != Mode::Sync {
            return Ok(());
        }
        let rank = header.caller.rank;
        if header.version_pulled != self.version {
            return Err(Error::new(
                ErrorCode::StaleRound,
                format!(
                    "round {} takes gradients at version {0} of theta, this one was computed at \
                     version {}; pull and compute it again",
                    self.version, header.version_pulled
                ),
            )
            .with("round", self.version));
        }
        if !self.applying.is_empty() && !self.applying.contains(&rank) {
            return Err(Error::new(
                ErrorCode::StaleRound,
                format!("round {} has closed without rank {rank}; join again", self.version),
            )
            .with("round", self.version));
        }
        Ok(())
    }

    /// Holds `call`; an older call of the same push is answered: its sender has given it up.
    fn hold_push(&mut self, now: Time, call: CallId, header: &PushHeader, out: &mut Vec<Effect>) {
        self.withdraw_waits_of(header.caller.rank, out);
        let deadline = now + self.patience(header.wait_max);
        let wait = Wait { caller: header.caller, since: now, deadline, purpose: Purpose::Push };
        self.hold(call, wait);
    }

    /// Holds a call until it is answered, withdrawn or due.
    fn hold(&mut self, call: CallId, wait: Wait) {
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
    fn withdraw_waits_of(&mut self, rank: u32, out: &mut Vec<Effect>) {
        let is_push = |w: &Wait| w.caller.rank == rank && w.purpose == Purpose::Push;
        for (call, wait) in self.waits.take(is_push) {
            self.answer_push(call, (wait.since, wait.since), rank, (Outcome::Waiting, 0), out);
        }
    }

    pub(super) fn refuse_when_draining(&self) -> Result<(), Error> {
        if !self.draining {
            return Ok(());
        }
        Err(Error::new(ErrorCode::Draining, "the server is stopping")
            .retry_after(Duration::from_secs(1)))
    }

    fn patience(&self, wish: Option<Duration>) -> Duration {
        wish.map_or(self.config.wait_max, |wish| wish.min(self.config.wait_max))
    }

    /// Answers a push that was held from `since` to `now`.
    pub(super) fn answer_push(
        &self,
        call: CallId,
        (since, now): (Time, Time),
        rank: u32,
        (outcome, gradient_delay): (Outcome, u64),
        out: &mut Vec<Effect>,
    ) {
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
        if self.is_granted(&request) {
            self.answer_pull(now, call, now, out);
        } else {
            let deadline = now + self.patience(request.wait_max);
            let purpose = Purpose::Pull(request);
            self.hold(call, Wait { caller: request.caller, since: now, deadline, purpose });
        }
        self.proceed(now, out);
        Ok(())
    }

    pub(super) fn is_granted(&self, request: &PullRequest) -> bool {
        if self.state >= JobState::Finishing {
            return true;
        }
        let started = request.caller.is_observer() || self.observers_are_ready();
        started && !request.r#final && self.version >= request.version_min
    }

    /// Whether the observers that the job waits for have seen the first theta (rule C9).
    fn observers_are_ready(&self) -> bool {
        let ready = self.members.observers.values().filter(|o| o.evaluated).count();
        self.version > 0 || ready >= self.config.observers as usize
    }

    pub(super) fn answer_pull(&self, now: Time, call: CallId, since: Time, out: &mut Vec<Effect>) {
        let header = PullHeader {
            version: self.version,
            state: self.state,
            seconds: self.record.finished_seconds.unwrap_or_else(|| self.seconds(now)),
            waited: now.saturating_sub(since),
        };
        out.push(Effect::Reply { call, answer: Answer::Pulled(header) });
    }

    /// Wakes pulls whose wish has come true.
    pub(super) fn wake_pulls(&mut self, now: Time, out: &mut Vec<Effect>) {
        let mut granted = Vec::new();
        for (&call, wait) in self.waits.iter() {
            if let Purpose::Pull(request) = wait.purpose
                && self.is_granted(&request)
            {
                granted.push(call);
            }
        }
        for call in granted {
            if let Some(wait) = self.waits.remove(call) {
                self.release(wait.caller, now);
                self.answer_pull(now, call, wait.since, out);
            }
        }
    }

    /// A held call of `caller` is answered: its lease runs from now.
    pub(super) fn release(&mut self, caller: Caller, now: Time) {
        self.members.touch(caller.rank, now + self.config.lease);
        self.wake_at(now + self.config.lease);
    }

    /// Takes an observer's measurement.
    pub(super) fn evaluate(&mut self, now: Time, what: Evaluation) -> Result<Answer, Error> {
        self.authenticate(now, what.caller)?;
        let Some(observer) = self.members.observers.get_mut(&what.caller.rank) else {
            return Err(
                Error::new(ErrorCode::BadField, "only an observer evaluates").with("field", "rank")
            );
        };
        if what.version > self.version {
            return Err(Error::new(
                ErrorCode::BadField,
                format!("version {} is ahead of theta's {}", what.version, self.version),
            ));
        }
        let is_final = what.version == self.version && self.state >= JobState::Finishing;
        if what.r#final && !is_final {
            return Err(Error::new(
                ErrorCode::BadField,
                format!(
                    "version {} is not final: theta is at {} and the job {}",
                    what.version, self.version, self.state
                ),
            )
            .with("field", "final"));
        }
        observer.evaluated = true;
        if what.r#final {
            observer.evaluated_final = true;
            self.record.final_train = Some(what.train);
            self.record.final_test = what.test;
        }
        self.record.measured(HistoryEntry {
            round: self.round_of(what.version),
            version: what.version,
            loss: what.train.objective(),
            seconds: what.seconds,
        });
        Ok(self.state_answer())
    }

    /// Rounds behind a version: itself in sync mode, version / K otherwise.
    pub(super) fn round_of(&self, version: u64) -> f64 {
        match self.config.mode {
            Mode::Sync => version as f64,
            Mode::Async => version as f64 / f64::from(self.config.n_workers),
        }
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
        self.statistics.insert(caller.rank);
        let deadline = now + self.config.wait_max;
        self.hold(call, Wait { caller, since: now, deadline, purpose: Purpose::Statistics });
        if self.statistics.len() == self.config.n_workers as usize {
            for (call, wait) in self.waits.take(|w| w.purpose == Purpose::Statistics) {
                self.release(wait.caller, now);
                out.push(Effect::Reply { call, answer: Answer::Statistics });
            }
        }
        Ok(())
    }
}
