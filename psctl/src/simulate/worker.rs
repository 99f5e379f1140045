//! A simulated worker: the real learner, and the real worker's life as a state machine.
//!
//! The same order of calls as `ps_worker::net::session`: join, pull, then gradient after gradient,
//! each pushed for the next theta; at the end the final theta, its metrics, a goodbye. What a
//! refusal means is what `ErrorCode::retry` says. Knows no server, no network and no queue: the
//! engine carries out what [`Action`] says.

use std::sync::Arc;
use std::time::Duration;

use ps_common::calls::{
    Caller, JoinAnswer, JoinRequest, Leave, Outcome, PullRequest, PushHeader, PushResult,
};
use ps_common::dtype::as_le_bytes;
use ps_common::error::Retry;
use ps_common::exit::ExitError;
use ps_common::job::{JobState, Metrics, PROTOCOL_VERSION, Role, WorkerStats};
use ps_common::{Error, ErrorCode};
use ps_server::driver::Delivery;
use ps_server::table::Snapshot;
use ps_worker::learning::{Learner, Problem};
use ps_worker::model::{Loss, Real};
use ps_worker::net::retry::Backoff;

use super::pace::Draws;
use super::queue::Time;

/// What a worker asks the server for.
#[derive(Debug, Clone)]
pub(super) enum Request {
    /// To be let in.
    Join(Box<JoinRequest>),
    /// theta.
    Pull(PullRequest),
    /// To count the gradient in [`Worker::gradient`].
    Push(PushHeader),
    /// A sign of life.
    Heartbeat(Caller, WorkerStats),
    /// Goodbye.
    Leave(Leave),
}

/// What a worker does next.
#[derive(Debug)]
pub(super) enum Action {
    /// Calls the server.
    Call(Request),
    /// Computes the gradient of its clock, over so many rows.
    Compute(u64),
    /// Does nothing for so long, then [`Worker::resume`].
    Pause(Duration),
    /// Its numbers have left the range of floating point: it has nothing more to push.
    Diverged,
    /// Its process ends.
    End,
}

/// Where a worker is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Outside the job, or on its way in.
    Joining,
    /// Waits for theta; the flag: for the final one.
    Pulling {
        r#final: bool,
    },
    Computing,
    Pushing,
    Leaving,
    Ended,
}

/// One rank's worker over all its lives.
pub(super) struct Worker<T> {
    /// Lives so far: an event of an earlier life is void.
    pub(super) life: u64,
    /// Gradients begun so far: the end of one that was given up is void.
    pub(super) attempt: u64,
    phase: Phase,
    request: JoinRequest,
    terms: Option<Box<JoinAnswer>>,
    learner: Option<Learner<T>>,
    clock: u64,
    /// Takes the clock from the theta that it waits for: behind a barrier a version is a round.
    catches_up: bool,
    theta: Option<Arc<Snapshot>>,
    gradient: Vec<T>,
    header: Option<PushHeader>,
    /// Of the gradient.
    loss: Loss,
    stats: WorkerStats,
    backoff: Backoff,
    pub(super) draws: Draws,
    /// Since when it computes or waits for an answer.
    since: Time,
    /// Held by the server during the push so far.
    waited: Duration,
    /// Computing, over all lives.
    busy: Duration,
    first_joined: Option<Time>,
    last_answered: Time,
}

impl<T: Real> Worker<T> {
    /// A worker that has not joined yet.
    pub(super) fn new(rank: u32, sim_seed: u64, problem: &Problem) -> Self {
        Self {
            life: 0,
            attempt: 0,
            phase: Phase::Joining,
            request: join_request::<T>(problem, Role::Worker, Some(rank)),
            terms: None,
            learner: None,
            clock: 0,
            catches_up: false,
            theta: None,
            gradient: Vec::new(),
            header: None,
            loss: Loss { loss: 0.0, penalty: 0.0, n_samples: 0 },
            stats: WorkerStats::of_learner(),
            backoff: Backoff::new(sim_seed ^ u64::from(rank).rotate_left(32)),
            draws: Draws::of(sim_seed, rank),
            since: Time::ZERO,
            waited: Duration::ZERO,
            busy: Duration::ZERO,
            first_joined: None,
            last_answered: Time::ZERO,
        }
    }

    /// A process begins.
    pub(super) fn start(&mut self, now: Time) -> Action {
        self.life += 1;
        self.request.acknowledged_clock = None;
        self.stats = WorkerStats::default();
        self.join(now)
    }

    /// The process dies.
    pub(super) fn crash(&mut self, now: Time) {
        if self.phase == Phase::Computing {
            self.busy += now - self.since;
        }
        self.life += 1;
        self.phase = Phase::Ended;
    }

    /// After a pause.
    pub(super) fn resume(&mut self, now: Time) -> Action {
        match self.phase {
            Phase::Joining => self.join(now),
            Phase::Pulling { r#final } => self.pull(now, r#final),
            Phase::Pushing => self.push_again(),
            Phase::Leaving => self.leave(None),
            Phase::Computing | Phase::Ended => Action::End,
        }
    }

    /// Whether it is out of the job for good.
    pub(super) fn has_ended(&self) -> bool {
        self.phase == Phase::Ended
    }

    /// Who it is to the server, once it has joined and until it leaves.
    pub(super) fn presence(&self) -> Option<(Caller, Duration, WorkerStats)> {
        let terms = self.terms.as_ref()?;
        let present = !matches!(self.phase, Phase::Joining | Phase::Leaving | Phase::Ended);
        present.then_some((terms.caller, terms.lease, self.stats))
    }

    /// The gradient of the push that is being made, as its bytes.
    pub(super) fn gradient(&self) -> &[u8] {
        as_le_bytes(&self.gradient)
    }

    /// From the first join to the last push's answer, and how much of it was spent computing.
    pub(super) fn time(&self) -> (Duration, Duration) {
        let span =
            self.first_joined.map_or(Time::ZERO, |first| self.last_answered.saturating_sub(first));
        (span, self.busy)
    }

    /// Joined for the first time: the shard is here.
    ///
    /// # Errors
    /// Bad data.
    pub(super) fn load(&mut self, problem: &Problem, terms: &JoinAnswer) -> Result<(), ExitError> {
        if self.learner.is_none() {
            self.learner = Some(problem.load_shard(terms)?);
            self.gradient = vec![T::ZERO; terms.dim];
        }
        Ok(())
    }

    /// An answer arrives.
    pub(super) fn hear(&mut self, now: Time, delivery: Delivery) -> Action {
        match delivery {
            Delivery::Refused(error) => return self.refused(now, &error),
            _ => self.backoff.reset(),
        }
        match delivery {
            Delivery::Joined(terms) => {
                self.clock = terms.clock;
                self.terms = Some(terms);
                self.first_joined.get_or_insert(now);
                self.pull(now, false)
            }
            Delivery::Pulled(header, theta) => {
                self.stats.wait_seconds += header.waited.as_secs_f64();
                if std::mem::take(&mut self.catches_up) {
                    self.clock = self.clock.max(theta.version);
                }
                self.theta = Some(theta);
                let over = matches!(header.state, JobState::Finishing | JobState::Done);
                match self.phase {
                    Phase::Pulling { r#final: true } if over => self.measure_and_leave(),
                    // The server's patience was over before the job was.
                    Phase::Pulling { r#final: true } => self.pull(now, true),
                    _ => self.go_on(now, header.state),
                }
            }
            Delivery::Pushed(result, theta) => self.pushed(now, result, theta),
            Delivery::Checkpointed(..) => unreachable!("no simulated worker is an operator"),
            Delivery::State { .. } => {
                self.phase = Phase::Ended;
                Action::End
            }
            Delivery::Statistics(_) | Delivery::Refused(_) => {
                unreachable!("refusals are handled above, statistics are not asked for")
            }
        }
    }

    /// Whether it is still about what it was in this life and attempt.
    pub(super) fn is_at(&self, life: u64, attempt: u64) -> bool {
        self.phase == Phase::Computing && (self.life, self.attempt) == (life, attempt)
    }

    /// A round has closed, theta is of `version` now: a gradient at an older theta is given up, the
    /// next is that of the new theta's round.
    pub(super) fn abandon(&mut self, now: Time, version: u64) -> Option<Action> {
        let behind = self.theta.as_ref().is_some_and(|theta| theta.version < version);
        if self.phase != Phase::Computing || !behind {
            return None;
        }
        self.busy += now - self.since;
        self.stats.compute_seconds += (now - self.since).as_secs_f64();
        self.catches_up = true;
        Some(self.pull(now, false))
    }

    /// The compute time of the gradient is over.
    pub(super) fn computed(&mut self, now: Time) -> Action {
        self.busy += now - self.since;
        self.stats.compute_seconds += (now - self.since).as_secs_f64();
        self.phase = Phase::Pushing;
        (self.since, self.waited) = (now, Duration::ZERO);
        self.push_again()
    }

    fn push_again(&self) -> Action {
        Action::Call(Request::Push(self.header.expect("computed before")))
    }

    fn join(&mut self, now: Time) -> Action {
        self.phase = Phase::Joining;
        self.since = now;
        Action::Call(Request::Join(Box::new(self.request.clone())))
    }

    fn pull(&mut self, now: Time, r#final: bool) -> Action {
        self.phase = Phase::Pulling { r#final };
        self.since = now;
        let caller = self.terms.as_ref().expect("joined").caller;
        Action::Call(Request::Pull(PullRequest {
            caller,
            version_min: 0,
            r#final,
            wait_max: None,
            exchange: 0,
        }))
    }

    /// The next gradient, or the final theta if there is nothing more to push.
    fn go_on(&mut self, now: Time, state: JobState) -> Action {
        let rounds = self.terms.as_ref().and_then(|terms| terms.rounds).unwrap_or(u64::MAX);
        if state != JobState::Running || self.clock >= rounds {
            return self.pull(now, true);
        }
        self.phase = Phase::Computing;
        self.since = now;
        self.attempt += 1;
        Action::Compute(self.compute())
    }

    /// Computes the gradient of the clock at the theta that is here, which nothing changes until
    /// its compute time is over. Gives the number of rows.
    fn compute(&mut self) -> u64 {
        let theta = self.theta.as_ref().expect("pulled before");
        let version_pulled = theta.version;
        let theta = theta.values::<T>();
        let learner = self.learner.as_mut().expect("loaded at the join");
        let loss = learner.compute(self.clock, &theta, &mut self.gradient);
        // As the real worker: the objective is told where it is that of the whole shard.
        let whole = learner.is_full_batch();
        let told = |value: f64| (whole && value.is_finite()).then_some(value);
        self.header = Some(PushHeader {
            caller: self.terms.as_ref().expect("joined").caller,
            clock: self.clock,
            version_pulled,
            n_samples: loss.n_samples,
            loss: told(loss.loss),
            penalty: told(loss.penalty),
            wait_max: None,
            exchange: 0,
        });
        self.loss = loss;
        loss.n_samples
    }

    fn pushed(&mut self, now: Time, result: PushResult, theta: Arc<Snapshot>) -> Action {
        self.waited += result.waited;
        if result.outcome == Outcome::Waiting && result.state == JobState::Running {
            return self.push_again();
        }
        let round_trip = (now - self.since).saturating_sub(self.waited);
        self.stats.count_push(self.loss.n_samples, self.loss.loss);
        self.stats.wait_seconds += self.waited.as_secs_f64();
        self.stats.comm_seconds += round_trip.as_secs_f64();
        self.last_answered = now;
        self.clock = result.clock;
        self.request.acknowledged_clock = self.clock.checked_sub(1);
        self.theta = Some(theta);
        self.go_on(now, result.state)
    }

    fn measure_and_leave(&mut self) -> Action {
        let theta = self.theta.as_ref().expect("pulled just now").values::<T>();
        let metrics = self.learner.as_ref().map(|learner| learner.metrics(&theta));
        self.leave(metrics)
    }

    fn leave(&mut self, metrics: Option<Metrics>) -> Action {
        self.phase = Phase::Leaving;
        let caller = self.terms.as_ref().expect("joined").caller;
        let final_metrics = metrics.filter(is_finite);
        Action::Call(Request::Leave(Leave { caller, stats: self.stats, final_metrics }))
    }

    fn refused(&mut self, now: Time, error: &Error) -> Action {
        let failed = error.facts.get("state").is_some_and(|state| state == "failed");
        match error.code {
            ErrorCode::JobEnded if !failed && self.phase == Phase::Pushing => {
                return self.pull(now, true);
            }
            ErrorCode::NonFinite | ErrorCode::UpdateOverflow => return Action::Diverged,
            ErrorCode::RankTaken | ErrorCode::NoVacancy => {
                let pause = self.backoff.next_pause() + error.retry_after.unwrap_or_default();
                return Action::Pause(pause);
            }
            _ => {}
        }
        let pause = self.backoff.next_pause() + error.retry_after.unwrap_or_default();
        match error.code.retry() {
            Retry::Same => Action::Pause(pause),
            Retry::Rejoin => {
                self.phase = Phase::Joining;
                Action::Pause(pause)
            }
            Retry::Never => {
                self.phase = Phase::Ended;
                Action::End
            }
        }
    }

    /// There is nothing more to push: waits for the final theta.
    pub(super) fn give_up(&mut self, now: Time) -> Action {
        self.pull(now, true)
    }

    /// Bytes on its link.
    pub(super) fn count_traffic(&mut self, sent: u64, received: u64) {
        self.stats.bytes_sent += sent;
        self.stats.bytes_received += received;
    }
}

/// Whether metrics may be sent: of a theta that has diverged they are not.
pub(super) fn is_finite(metrics: &Metrics) -> bool {
    metrics.loss.is_finite() && metrics.penalty.is_finite()
}

/// The wish to enter the job that `problem` is about.
pub(super) fn join_request<T: Real>(
    problem: &Problem,
    role: Role,
    rank: Option<u32>,
) -> JoinRequest {
    JoinRequest {
        protocol_version: PROTOCOL_VERSION,
        role,
        rank,
        fingerprint: problem.fingerprint(Some(T::DTYPE)),
        tables: Some(problem.tables().clone()),
        dtype: Some(T::DTYPE),
        program: "psctl simulate".to_owned(),
        acknowledged_clock: None,
        overlap: false,
    }
}
