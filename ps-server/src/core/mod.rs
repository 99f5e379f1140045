//! The core: decides joins, leases, barriers, duplicates and stops. Pure.
//!
//! Inputs carry ids, clocks and counts, never gradients, channels or futures. Effects are plain
//! data. Time is an argument: the monotonic time since the server's start. The rules are numbered
//! in docs/CONSISTENCY.md and cited here.
//!
//! Absent on purpose: theta, tensors, files, sockets, threads.

#![deny(clippy::disallowed_methods)]

mod account;
mod asynchronous;
pub mod invariants;
mod joining;
mod lifecycle;
mod members;
mod record;
mod sync;
#[cfg(test)]
mod tests;
mod traffic;
mod waits;

use std::collections::BTreeMap;
use std::time::Duration;

use ps_common::calls::{
    Caller, Evaluation, JoinAnswer, JoinRequest, Leave, PullHeader, PullRequest, PushHeader,
    PushResult,
};
use ps_common::job::{Aggregate, Fingerprint, JobState, Mode, OnWorkerLoss, WorkerStats};
use ps_common::tables::Tables;
use ps_common::{Dtype, Error, ErrorCode};
use serde::Serialize;

use members::Members;
use record::Record;
use waits::Waits;

/// Monotonic time since the server's start.
pub type Time = Duration;

/// One call in flight; also the name of the gradient that a push brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct CallId(pub u64);

/// One transport connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct ConnId(pub u64);

/// What the core decides by; fixed for the life of a server.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// How updates are ordered.
    pub mode: Mode,
    /// K.
    pub n_workers: u32,
    /// How a round is summed.
    pub aggregate: Aggregate,
    /// Clocks that a worker owes; `None`: until stopped.
    pub rounds: Option<u64>,
    /// A holder that is silent for so long is lost.
    pub lease: Duration,
    /// What becomes of a lost worker's rank.
    pub on_worker_loss: OnWorkerLoss,
    /// How long a rank may be without a holder before the job fails or goes on without it.
    pub replacement_timeout: Duration,
    /// Observers that must have measured theta before the first update.
    pub observers: u32,
    /// Longest time that a call is held.
    pub wait_max: Duration,
}

impl Config {
    /// How long a call is held at most.
    pub const WAIT_MAX: Duration = Duration::from_secs(30);
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A worker or observer wants in.
    Join {
        /// To be answered.
        call: CallId,
        /// That it came by.
        conn: ConnId,
        /// Peer address, for the operator.
        address: String,
        /// Its wish.
        request: JoinRequest,
    },
    /// A sign of life.
    Heartbeat {
        /// To be answered.
        call: CallId,
        /// Whose.
        caller: Caller,
        /// Its measurements.
        stats: WorkerStats,
    },
    /// A goodbye.
    Leave {
        /// To be answered.
        call: CallId,
        /// Its words.
        leave: Leave,
    },
    /// A whole, valid gradient has arrived; the driver holds it under `call`.
    Push {
        /// To be answered; names the gradient.
        call: CallId,
        /// That it came by.
        conn: ConnId,
        /// Its name and facts.
        header: PushHeader,
        /// Checksum of the gradient's bytes.
        digest: u32,
    },
    /// Somebody wants theta.
    Pull {
        /// To be answered.
        call: CallId,
        /// That it came by.
        conn: ConnId,
        /// Its wish.
        request: PullRequest,
    },
    /// An observer has measured.
    Evaluate {
        /// To be answered.
        call: CallId,
        /// What.
        evaluation: Evaluation,
    },
    /// A worker's feature statistics have arrived; the driver holds them by rank.
    Statistics {
        /// To be answered.
        call: CallId,
        /// Whose.
        caller: Caller,
    },
    /// A request was refused before it reached the core.
    Rejected {
        /// Who sent it, where that was readable.
        caller: Option<Caller>,
        /// Why.
        code: ErrorCode,
    },
    /// The driver has carried out [`Effect::Update`].
    Updated {
        /// Stored, or the first key that would have overflowed: then nothing was stored.
        result: Result<(), u64>,
    },
    /// The driver has carried out [`Effect::Conclude`].
    Concluded,
    /// The caller of a held call is gone.
    Dropped {
        /// Which.
        call: CallId,
    },
    /// A connection is gone.
    Disconnected {
        /// Which.
        conn: ConnId,
    },
    /// An operator ends the job: theta as it is becomes final.
    Stop {
        /// For the events.
        reason: String,
    },
    /// The server is going: held calls are told so.
    Drain,
    /// Time has passed.
    Tick,
}

/// Something to be done, in order.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum Effect {
    /// Answer a call.
    Reply {
        /// Which.
        call: CallId,
        /// With what.
        answer: Answer,
    },
    /// Make theta.
    Create {
        /// Its tables.
        tables: Tables,
        /// Its element type.
        dtype: Dtype,
    },
    /// Update theta by the weighted sum of these gradients, summed in this order; whole or not at
    /// all. At most one is under way; [`Input::Updated`] follows.
    Update {
        /// Gradients by the call that brought them, with weights.
        parts: Vec<(CallId, f64)>,
    },
    /// Drop a gradient unused.
    Forget {
        /// By the call that brought it.
        gradient: CallId,
    },
    /// The job is over in all but name: write report and theta; [`Input::Concluded`] follows.
    Conclude,
}

/// The answer to a call. Where theta goes with it, the driver adds the newest.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum Answer {
    /// Welcome.
    Joined(Box<Welcome>),
    /// State of the job, and theta's version.
    State {
        /// Of the job.
        state: JobState,
        /// Of theta.
        version: u64,
    },
    /// To a push.
    Pushed(PushResult),
    /// To a pull.
    Pulled(PullHeader),
    /// All ranks' statistics are in: merge and send.
    Statistics,
    /// No.
    Refused(Refusal),
}

/// [`JoinAnswer`] as an effect: comparable and serialisable.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Welcome {
    /// The caller's name.
    pub caller: Caller,
    /// The first clock it owes.
    pub clock: u64,
    /// Of theta.
    pub version: u64,
    /// Of the job.
    pub state: JobState,
}

/// [`Error`] as an effect.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal(pub Error);

impl Serialize for Refusal {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// What all workers of a job agreed on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Job {
    pub(crate) fingerprint: Fingerprint,
    pub(crate) tables: Tables,
    pub(crate) dtype: Dtype,
    /// Time of the first join.
    pub(crate) began: Time,
}

/// The state machine.
#[derive(Debug, Clone)]
pub struct Core {
    config: Config,
    dtype: Dtype,
    job: Option<Job>,
    state: JobState,
    reason: String,
    version: u64,
    members: Members,
    waits: Waits,
    /// sync: this round's gradients; async: accepted gradients by rank.
    pending: BTreeMap<u32, Pending>,
    /// async: whose turn is next.
    queue: std::collections::VecDeque<u32>,
    /// Ranks whose gradients are being applied; empty: no update is under way.
    applying: Vec<u32>,
    stop: Option<String>,
    statistics: std::collections::BTreeSet<u32>,
    record: Record,
    concluding: bool,
    /// Nothing expires before.
    alarm: Time,
}

/// A gradient that is in but has not counted yet.
#[derive(Debug, Clone, PartialEq)]
struct Pending {
    gradient: CallId,
    header: PushHeader,
    digest: u32,
}

impl Core {
    /// A server without a job.
    pub fn new(config: Config, dtype: Dtype) -> Self {
        let members = Members::new(config.n_workers);
        Self {
            config,
            dtype,
            job: None,
            state: JobState::Empty,
            reason: String::new(),
            version: 0,
            members,
            waits: Waits::default(),
            pending: BTreeMap::new(),
            queue: std::collections::VecDeque::new(),
            applying: Vec::new(),
            stop: None,
            statistics: std::collections::BTreeSet::new(),
            record: Record::default(),
            concluding: false,
            alarm: Time::MAX,
        }
    }

    /// Takes one input at time `now` and says what is to be done.
    ///
    /// `now` never goes back. Every call is answered by exactly one [`Effect::Reply`], now or at a
    /// later step, unless [`Input::Dropped`] withdraws it; every gradient is used by exactly one
    /// [`Effect::Update`] or dropped by one [`Effect::Forget`].
    pub fn step(&mut self, now: Time, input: Input) -> Vec<Effect> {
        let mut out = Vec::new();
        self.expire(now, &mut out);
        match input {
            Input::Join { call, conn, address, request } => {
                let answer = self.join(now, conn, address, request, &mut out);
                reply(call, answer, &mut out);
                self.proceed(now, &mut out);
            }
            Input::Heartbeat { call, caller, stats } => {
                let answer = self.authenticate(now, caller).map(|()| {
                    self.members.measure(caller, stats);
                    self.state_answer()
                });
                reply(call, answer, &mut out);
            }
            Input::Leave { call, leave } => self.leave(now, call, leave, &mut out),
            Input::Push { call, conn, header, digest } => {
                self.members.heard_by(header.caller, conn);
                if let Err(error) = self.push(now, call, header, digest, &mut out) {
                    out.push(Effect::Forget { gradient: call });
                    self.refuse(now, call, Some(header.caller), error, &mut out);
                }
            }
            Input::Pull { call, conn, request } => {
                self.members.heard_by(request.caller, conn);
                if let Err(error) = self.pull(now, call, request, &mut out) {
                    self.refuse(now, call, Some(request.caller), error, &mut out);
                }
            }
            Input::Evaluate { call, evaluation } => {
                let answer = self.evaluate(now, evaluation);
                reply(call, answer, &mut out);
                // The first measurement may be what workers' first pulls wait for.
                self.wake_pulls(now, &mut out);
                self.conclude_if_complete(&mut out);
            }
            Input::Statistics { call, caller } => {
                if let Err(error) = self.merge_statistics(now, call, caller, &mut out) {
                    self.refuse(now, call, Some(caller), error, &mut out);
                }
            }
            Input::Rejected { caller, code } => self.record_rejection(now, caller, code),
            Input::Updated { result } => self.updated(now, result, &mut out),
            Input::Concluded => self.concluded(now, &mut out),
            Input::Dropped { call } => {
                if let Some(wait) = self.waits.remove(call) {
                    self.release(wait.caller, now);
                }
            }
            Input::Disconnected { conn } => self.members.disconnected(conn),
            Input::Stop { reason } => self.stop(now, reason, &mut out),
            Input::Drain => self.drain(now, &mut out),
            Input::Tick => {}
        }
        debug_assert_eq!(invariants::check(self), Ok(()));
        out
    }

    /// When [`Input::Tick`] is needed next; it may find that nothing is due yet.
    pub fn next_deadline(&self) -> Option<Time> {
        (self.alarm != Time::MAX).then_some(self.alarm)
    }

    /// Where the job stands.
    pub fn state(&self) -> JobState {
        self.state
    }

    /// Why it failed; empty otherwise.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Updates committed.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Nobody is left who should hear of the end: the server may go.
    pub fn is_over(&self) -> bool {
        matches!(self.state, JobState::Done | JobState::Failed)
            && !self.concluding
            && self.members.all_gone()
    }

    /// The whole answer to a join.
    pub fn join_answer(&self, welcome: &Welcome, program: &str) -> Option<JoinAnswer> {
        let job = self.job.as_ref()?;
        Some(JoinAnswer {
            caller: welcome.caller,
            lease: self.config.lease,
            clock: welcome.clock,
            shard: if welcome.caller.is_observer() { 0 } else { welcome.caller.rank },
            n_shards: self.config.n_workers,
            dim: job.tables.dim(),
            dtype: job.dtype,
            mode: self.config.mode,
            aggregate: self.config.aggregate,
            rounds: self.config.rounds,
            version: welcome.version,
            state: welcome.state,
            program: program.to_owned(),
            fingerprint: job.fingerprint.clone(),
            tables: job.tables.clone(),
        })
    }

    /// Whether `caller` may be listened to, before its message is read.
    ///
    /// # Errors
    /// As every call of it would be refused.
    pub fn check_caller(&self, caller: Caller) -> Result<(), Error> {
        if self.job.is_none() {
            return Err(joining::not_initialized());
        }
        self.members.authenticate(caller)
    }

    /// The job as an outsider sees it; `None` before the first join.
    pub fn description(&self, program: &str) -> Option<JoinAnswer> {
        let caller = Caller { rank: Caller::FIRST_OBSERVER, incarnation: 0 };
        let welcome = Welcome { caller, clock: 0, version: self.version, state: self.state };
        self.join_answer(&welcome, program)
    }

    fn state_answer(&self) -> Answer {
        Answer::State { state: self.state, version: self.version }
    }

    fn seconds(&self, now: Time) -> f64 {
        self.job.as_ref().map_or(0.0, |job| now.saturating_sub(job.began).as_secs_f64())
    }

    fn refuse(
        &mut self,
        now: Time,
        call: CallId,
        caller: Option<Caller>,
        error: Error,
        out: &mut Vec<Effect>,
    ) {
        self.record_rejection(now, caller, error.code);
        out.push(Effect::Reply { call, answer: Answer::Refused(Refusal(error)) });
    }

    fn record_rejection(&mut self, now: Time, caller: Option<Caller>, code: ErrorCode) {
        let seconds = self.seconds(now);
        self.record.rejected(seconds, caller.map(|c| c.rank), code);
    }
}

fn reply(call: CallId, answer: Result<Answer, Error>, out: &mut Vec<Effect>) {
    let answer = answer.unwrap_or_else(|error| Answer::Refused(Refusal(error)));
    out.push(Effect::Reply { call, answer });
}
