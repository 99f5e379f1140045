//! The course of a job: progress, losses, the end (rules L1 to L7).

use std::time::Duration;

use ps_common::calls::{Leave, Outcome, WorkerState};
use ps_common::job::{JobState, OnWorkerLoss};
use ps_common::{Error, ErrorCode};

use super::consistency::Reason;
use super::waits::{Purpose, Wait};
use super::{Answer, CallId, Core, Effect, Refusal, Time, Unapplied};

impl Core {
    /// Does what has become possible: wakes pulls, starts the next update.
    pub(super) fn proceed(&mut self, now: Time, out: &mut Vec<Effect>) {
        self.capture_if_due(now, out);
        if self.state == JobState::Running {
            let may_start = self.applying.is_empty() || self.config.consistency.updates_overlap();
            if self.stop.is_none() && may_start && !self.is_still() {
                self.start_update(now, out);
            }
            // What is under way is stored first.
            if self.applying.is_empty() && (self.stop.is_some() || self.all_clocks_done()) {
                self.finish(now, out);
            }
        }
        self.wake_reads(now, out);
    }

    /// The driver has stored an update, or found that it would overflow.
    pub(super) fn updated(
        &mut self,
        now: Time,
        name: CallId,
        result: Result<(), Unapplied>,
        out: &mut Vec<Effect>,
    ) {
        let ranks = self.end_update(name);
        let failed_before = self.state == JobState::Failed;
        let counted: Vec<_> = ranks
            .iter()
            .map(|rank| (*rank, self.pending.remove(rank).expect("kept while applied")))
            .collect();
        match result {
            Ok(()) => {
                let before = self.version;
                self.version += 1;
                self.unwritten = false;
                self.captures.moved(now);
                for (rank, pending) in &counted {
                    let header = &pending.header;
                    let seat = &mut self.members.ranks[*rank as usize];
                    seat.count(header.clock);
                    seat.remember(header.clock, header.caller.incarnation, pending.digest);
                    self.record.delayed(before - pending.header.version_pulled);
                }
                self.skip_clocks(now, out);
                for (rank, pending) in &counted {
                    let delay = before - pending.header.version_pulled;
                    self.settle_push(now, *rank, (Outcome::Applied, delay), out);
                }
            }
            Err(Unapplied::NotWritten { what }) => {
                let ranks = counted.iter().map(|(rank, _)| *rank);
                self.not_written(now, ranks, what, out);
            }
            Err(Unapplied::Overflow { key }) => {
                let error = Error::new(
                    ErrorCode::UpdateOverflow,
                    format!("the update would overflow theta at key {key}; nothing was stored; lower --lr"),
                )
                .with("key", key);
                for (rank, _) in &counted {
                    self.refuse_waiting_push(now, *rank, &error, out);
                }
                self.skip_clocks(now, out);
                if self.config.consistency.has_rounds() {
                    self.fail(
                        now,
                        format!("DIVERGED: round {}: {}", self.version, error.message),
                        out,
                    );
                }
            }
        }
        if failed_before && self.applying.is_empty() {
            out.push(Effect::Conclude);
        }
        self.proceed(now, out);
    }

    /// The update of these ranks' gradients, which are dropped, could not be written: it did not come
    /// about, and their clocks are owed (rule D8).
    fn not_written(
        &mut self,
        now: Time,
        ranks: impl Iterator<Item = u32>,
        what: String,
        out: &mut Vec<Effect>,
    ) {
        let error = Error::new(
            ErrorCode::NotDurable,
            format!(
                "the update could not be written, so it was not applied: {what}; send it again"
            ),
        )
        .retry_after(Duration::from_secs(1));
        for rank in ranks {
            self.refuse_waiting_push(now, rank, &error, out);
        }
        for rank in self.reopen_round() {
            // It has not been told yet that it was late: it is not any more.
            let told = |w: &Wait| w.caller.rank == rank && w.purpose.is_push();
            for (call, wait) in self.waits.take(told) {
                self.release(wait.caller, now);
                let answer = (false, Outcome::Waiting, 0);
                self.answer_push(call, (wait.since, now), rank, answer, out);
            }
        }
        self.skip_clocks(now, out);
        // Of a row of failures the first is told; refusals are counted.
        if !std::mem::replace(&mut self.unwritten, true) {
            let seconds = self.seconds(now);
            self.record.event(seconds, "journal failed", None, what);
        }
    }

    /// Takes the held push of `rank` whose gradient is pending.
    pub(super) fn waiting_push(&mut self, rank: u32) -> Option<(CallId, Wait)> {
        let waits = |w: &Wait| w.caller.rank == rank && matches!(w.purpose, Purpose::Push { .. });
        self.waits.take(waits).pop()
    }

    fn refuse_waiting_push(&mut self, now: Time, rank: u32, error: &Error, out: &mut Vec<Effect>) {
        if let Some((call, wait)) = self.waiting_push(rank) {
            self.release(wait.caller, now);
            self.refuse(now, call, Some(wait.caller), error.clone(), out);
        }
    }

    /// theta is final: gradients that have not counted never will.
    fn finish(&mut self, now: Time, out: &mut Vec<Effect>) {
        self.state = JobState::Finishing;
        self.reopen_round();
        let seconds = self.seconds(now);
        self.record.finished_seconds = Some(seconds);
        if let Some(reason) = self.stop.take() {
            self.record.event(seconds, "stopped", None, reason);
        }
        for (rank, clock) in self.drop_pending(out) {
            self.count_dropped(rank, clock, Reason::Ended);
        }
        for (call, wait) in self.waits.take(|w| matches!(w.purpose, Purpose::Push { .. })) {
            self.release(wait.caller, now);
            let answer = (true, Outcome::DroppedLate, 0);
            self.answer_push(call, (wait.since, now), wait.caller.rank, answer, out);
        }
        let error = self.ended();
        for (call, wait) in self.waits.take(|w| w.purpose == Purpose::Statistics) {
            self.release(wait.caller, now);
            out.push(Effect::Reply { call, answer: Answer::Refused(Refusal(error.clone())) });
        }
        self.wake_reads(now, out);
        self.conclude_if_complete(out);
    }

    /// Lets go of all gradients that are not being applied; gives their ranks and clocks.
    fn drop_pending(&mut self, out: &mut Vec<Effect>) -> Vec<(u32, u64)> {
        self.queue.clear();
        self.given.clear();
        self.askers.clear();
        let applying = &self.applying;
        let dropped = self.pending.extract_if(.., |rank, _| !applying.contains(rank));
        dropped
            .map(|(rank, pending)| {
                out.push(Effect::Forget { gradient: pending.gradient });
                (rank, pending.header.clock)
            })
            .collect()
    }

    pub(super) fn fail(&mut self, now: Time, reason: String, out: &mut Vec<Effect>) {
        if self.state >= JobState::Done {
            return;
        }
        self.state = JobState::Failed;
        let seconds = self.seconds(now);
        self.record.finished_seconds.get_or_insert(seconds);
        self.record.event(seconds, "failed", None, reason.clone());
        self.reason = reason;
        self.drop_pending(out);
        let error = self.ended();
        for (call, wait) in self.waits.take(|_| true) {
            self.release(wait.caller, now);
            out.push(Effect::Reply { call, answer: Answer::Refused(Refusal(error.clone())) });
        }
        self.concluding = true;
        // An update under way still changes theta: its end concludes.
        if self.applying.is_empty() {
            out.push(Effect::Conclude);
        }
    }

    /// Report and theta are written once everybody's last word is in (rule L5).
    pub(super) fn conclude_if_complete(&mut self, out: &mut Vec<Effect>) {
        if self.state != JobState::Finishing || self.concluding {
            return;
        }
        let workers_gone = self.members.ranks.iter().all(|s| s.state != WorkerState::Live);
        // An observer that is gone has no last word to wait for.
        let observers_done = self
            .members
            .observers
            .values()
            .all(|o| o.evaluated_final || !o.evaluated || o.holder.conn.is_none());
        if workers_gone && observers_done {
            self.concluding = true;
            out.push(Effect::Conclude);
        }
    }

    pub(super) fn concluded(&mut self, now: Time, out: &mut Vec<Effect>) {
        self.concluding = false;
        if self.state == JobState::Finishing {
            self.state = JobState::Done;
        }
        self.wake_reads(now, out);
    }

    pub(super) fn stop(&mut self, now: Time, reason: String, out: &mut Vec<Effect>) {
        match self.state {
            JobState::Running => {
                self.stop = Some(reason);
                self.proceed(now, out);
            }
            JobState::Empty => {
                self.fail(now, format!("stopped before anybody joined: {reason}"), out)
            }
            JobState::Finishing | JobState::Done | JobState::Failed => {}
        }
    }

    pub(super) fn drain(&mut self, now: Time, out: &mut Vec<Effect>) {
        self.draining = true;
        let Err(error) = self.refuse_when_draining() else { return };
        for (call, wait) in self.waits.take(|_| true) {
            self.release(wait.caller, now);
            out.push(Effect::Reply { call, answer: Answer::Refused(Refusal(error.clone())) });
        }
    }

    pub(super) fn leave(&mut self, now: Time, call: CallId, leave: Leave, out: &mut Vec<Effect>) {
        if let Err(error) = self.authenticate(now, leave.caller) {
            return self.refuse(now, call, Some(leave.caller), error, out);
        }
        let seconds = self.seconds(now);
        let rank = leave.caller.rank;
        if leave.caller.is_observer() {
            self.members.observers.remove(&rank);
        } else {
            self.members.measure(leave.caller, leave.stats);
            if self.state >= JobState::Finishing {
                self.members.ranks[rank as usize].final_metrics = leave.final_metrics;
            }
            self.vacate(now, rank, WorkerState::Left);
            if self.state == JobState::Running {
                self.record.event(seconds, "left", Some(rank), "before the end".to_owned());
                self.lost(now, rank, "left before the end", out);
            }
        }
        self.farewell(call, out);
        self.proceed(now, out);
        self.conclude_if_complete(out);
    }

    /// Ends leases, held calls and patience whose time has come.
    pub(super) fn expire(&mut self, now: Time, out: &mut Vec<Effect>) {
        if now < self.alarm {
            return;
        }
        self.alarm = Time::MAX;
        for rank in self.members.expired(now, |rank| self.waits.holds(rank)) {
            let seconds = self.seconds(now);
            if self.members.observers.remove(&rank).is_some() {
                self.record.event(seconds, "observer lost", Some(rank), "lease ended".to_owned());
            } else {
                self.vacate(now, rank, WorkerState::Lost);
                self.record.event(seconds, "lost", Some(rank), "lease ended".to_owned());
                self.lost(now, rank, "lost: its lease ended", out);
            }
            self.proceed(now, out);
            self.conclude_if_complete(out);
        }
        for (call, wait) in self.waits.take(|w| w.deadline <= now) {
            self.release(wait.caller, now);
            match wait.purpose {
                Purpose::Push { .. } | Purpose::Turn { .. } => {
                    let answer = (false, Outcome::Waiting, 0);
                    self.answer_push(call, (wait.since, now), wait.caller.rank, answer, out);
                }
                Purpose::Pull(_) => self.end_pull(now, call, &wait, out),
                Purpose::Statistics => {
                    let error = Error::new(
                        ErrorCode::Deadline,
                        format!(
                            "statistics of {} of {} ranks are in; ask again",
                            self.statistics.len(),
                            self.config.n_workers
                        ),
                    );
                    out.push(Effect::Reply { call, answer: Answer::Refused(Refusal(error)) });
                }
            }
        }
        if self.next_vacancy_end().is_some_and(|end| end <= now) {
            self.vacancy_ended(now, out);
        }
        self.end_in_time(now, out);
        self.linger_end = self.linger_end.filter(|&end| end > now);
        self.capture_if_due(now, out);
        let lease = self.members.next_lease_end(|rank| self.waits.holds(rank));
        let waits = self.waits.next_deadline();
        let rest = [waits, lease, self.next_vacancy_end(), self.time_limit(), self.linger_end];
        if let Some(next) = rest.into_iter().flatten().min() {
            self.wake_at(next);
        }
    }

    fn vacate(&mut self, now: Time, rank: u32, state: WorkerState) {
        self.members.vacate(rank, state, now);
        self.take_back(rank);
        self.wake_at(now + self.config.replacement_timeout);
    }

    fn lost(&mut self, now: Time, rank: u32, how: &str, out: &mut Vec<Effect>) {
        let clock = self.members.ranks[rank as usize].clock;
        let owes = self.config.rounds.is_none_or(|rounds| clock < rounds);
        let aborts = self.config.on_worker_loss == OnWorkerLoss::Abort;
        if self.state == JobState::Running && aborts && owes {
            self.fail(now, format!("rank {rank} {how} (--on-worker-loss abort)"), out);
        }
    }

    /// Ranks without a holder whose clocks are still owed and waited for.
    fn vacancies(&self) -> impl Iterator<Item = (u32, Time)> {
        let rounds = self.config.rounds.unwrap_or(u64::MAX);
        let seats = &self.members.ranks;
        let anybody_live = seats.iter().any(|s| s.state == WorkerState::Live);
        // With `continue` a lost rank is missed only once all are gone, and from then on.
        let newest = seats.iter().map(|s| s.vacant_since).max().unwrap_or_default();
        seats.iter().zip(0u32..).filter_map(move |(seat, rank)| {
            let since = match (self.config.on_worker_loss, seat.state) {
                (_, WorkerState::Live) => return None,
                (OnWorkerLoss::Continue, WorkerState::Lost | WorkerState::Left) if anybody_live => {
                    return None;
                }
                (OnWorkerLoss::Continue, _) if !anybody_live => newest,
                _ => seat.vacant_since,
            };
            (seat.clock < rounds).then_some((rank, since))
        })
    }

    pub(super) fn next_vacancy_end(&self) -> Option<Time> {
        if self.state != JobState::Running {
            return None;
        }
        self.vacancies().map(|(_, since)| since + self.config.replacement_timeout).min()
    }

    fn vacancy_ended(&mut self, now: Time, out: &mut Vec<Effect>) {
        let end = |since: Time| since + self.config.replacement_timeout;
        let overdue: Vec<u32> =
            self.vacancies().filter(|&(_, since)| end(since) <= now).map(|(r, _)| r).collect();
        let anybody_live = self.members.ranks.iter().any(|s| s.state == WorkerState::Live);
        if self.config.on_worker_loss == OnWorkerLoss::Continue && anybody_live {
            let seconds = self.seconds(now);
            for rank in overdue {
                self.vacate(now, rank, WorkerState::Lost);
                self.record.event(seconds, "lost", Some(rank), "never came".to_owned());
            }
            return self.proceed(now, out);
        }
        let patience = self.config.replacement_timeout.as_secs_f64();
        self.fail(now, format!("nobody took rank {overdue:?} within {patience} s"), out);
    }
}
