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
mod checkpoints;
mod consistency;
mod event;
mod hogwild;
pub mod invariants;
mod joining;
mod lifecycle;
mod measuring;
mod members;
mod reads;
mod record;
mod resuming;
mod saved;
mod ssp;
mod sync;
#[cfg(test)]
mod tests;
mod traffic;
mod waits;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ps_common::calls::{Caller, JoinAnswer, PushHeader};
use ps_common::job::{Fingerprint, JobState};
use ps_common::tables::Tables;
use ps_common::{Dtype, Error, ErrorCode};

pub use asynchronous::{DelayScaling, OnExcess};
use checkpoints::Captures;
pub use consistency::{Compensate, Consistency, Order};
pub use event::{
    Answer, CallId, Checkpoints, Config, ConnId, Effect, Every, Input, Refusal, Time, Unapplied,
    Welcome,
};
use measuring::Best;
pub use measuring::{Plateau, StopRules};
use members::Members;
use reads::Given;
use record::Record;
pub use saved::{Counted, Saved};
use traffic::Push;
use waits::Waits;

/// What all workers of a job agreed on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Job {
    pub(crate) fingerprint: Fingerprint,
    pub(crate) tables: Tables,
    pub(crate) dtype: Dtype,
    /// Time of the first join in this life of the server, or of its resumption.
    pub(crate) began: Time,
    /// In lives of the server before.
    pub(crate) elapsed_before: Time,
}

impl Job {
    /// Since the first join.
    fn elapsed(&self, now: Time) -> Time {
        self.elapsed_before + now.saturating_sub(self.began)
    }
}

/// What a restored job had reached, perhaps under other options.
#[derive(Debug, Clone, Copy, Default)]
struct Floor {
    clock: u64,
    delay: u64,
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
    /// sync: this round's gradients; else: accepted gradients by rank.
    pending: BTreeMap<u32, Pending>,
    /// Not in sync mode: whose turn is next.
    queue: VecDeque<u32>,
    /// Ranks whose gradients are being applied, together in sync mode, else each by an update of its
    /// own; empty: no update is under way.
    applying: Vec<u32>,
    /// theta that live ranks compute with, where the mode bounds that.
    given: BTreeMap<u32, Given>,
    /// Ranks that wait for theta, in the order in which they began to, where it is given in turns.
    askers: Vec<u32>,
    best: Best,
    stop: Option<String>,
    statistics: BTreeSet<u32>,
    record: Record,
    captures: Captures,
    floor: Floor,
    concluding: bool,
    /// The server is going: nothing is held any more.
    draining: bool,
    /// The last update could not be written to the journal.
    unwritten: bool,
    /// Of a job that was taken up again after its end: until then somebody may ask how it ended.
    linger_end: Option<Time>,
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
        let members = Members::new(config.n_workers, config.boot);
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
            queue: VecDeque::new(),
            applying: Vec::new(),
            given: BTreeMap::new(),
            askers: Vec::new(),
            best: Best::default(),
            stop: None,
            statistics: BTreeSet::new(),
            record: Record::default(),
            captures: Captures::default(),
            floor: Floor::default(),
            concluding: false,
            draining: false,
            unwritten: false,
            linger_end: None,
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
        // First: nobody is there to take the answer that may be due now.
        if let Input::Dropped { call } = input {
            self.captures.forget(call);
            if let Some(wait) = self.waits.remove(call) {
                self.release(wait.caller, now);
            }
        }
        self.expire(now, &mut out);
        match input {
            Input::Join { call, conn, address, request } => {
                let answer = self.join(now, conn, address, request, &mut out);
                self.reply(now, call, None, answer, &mut out);
                self.proceed(now, &mut out);
            }
            Input::Heartbeat { call, caller, stats } => {
                let answer = self.authenticate(now, caller).map(|()| {
                    self.members.measure(caller, stats);
                    self.state_answer()
                });
                self.reply(now, call, Some(caller), answer, &mut out);
            }
            Input::Leave { call, leave } => self.leave(now, call, leave, &mut out),
            Input::Push { call, conn, header, digest, theta } => {
                self.members.heard_by(header.caller, conn);
                let push = Push { header, digest, theta };
                if let Err(error) = self.push(now, call, push, &mut out) {
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
                let caller = Some(evaluation.caller);
                let answer = self.evaluate(now, evaluation);
                self.reply(now, call, caller, answer, &mut out);
                self.proceed(now, &mut out);
                self.conclude_if_complete(&mut out);
            }
            Input::Statistics { call, caller } => {
                if let Err(error) = self.merge_statistics(now, call, caller, &mut out) {
                    self.refuse(now, call, Some(caller), error, &mut out);
                }
            }
            Input::Rejected { caller, code } => self.record_rejection(now, caller, code),
            Input::Updated { name, result } => self.updated(now, name, result, &mut out),
            Input::Concluded => self.concluded(now, &mut out),
            Input::Disconnected { conn } => {
                self.members.disconnected(conn);
                self.conclude_if_complete(&mut out);
            }
            Input::Stop { reason } => self.stop(now, reason, &mut out),
            Input::Drain => self.drain(now, &mut out),
            Input::Checkpoint { call } => self.checkpoint(now, call, &mut out),
            Input::Captured => self.captured(now, &mut out),
            Input::Saved { version, result } => self.saved(now, version, result, &mut out),
            Input::Dropped { .. } | Input::Tick => {}
        }
        debug_assert_eq!(invariants::check(self), Ok(()));
        out
    }

    /// When [`Input::Tick`] is needed next; it may find that nothing is due yet.
    pub fn next_deadline(&self) -> Option<Time> {
        (self.alarm != Time::MAX).then_some(self.alarm)
    }

    /// Element type of theta, once there is one.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Where the job stands.
    pub fn state(&self) -> JobState {
        self.state
    }

    /// Why it failed; empty otherwise.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// K.
    pub fn n_workers(&self) -> u32 {
        self.config.n_workers
    }

    /// Updates committed.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Nobody is left who should hear of the end: the server may go.
    pub fn is_over(&self) -> bool {
        matches!(self.state, JobState::Done | JobState::Failed)
            && !self.concluding
            && self.captures.is_settled()
            && self.linger_end.is_none()
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
            mode: self.config.consistency.mode(),
            aggregate: self.config.aggregate,
            rounds: self.config.rounds,
            version: welcome.version,
            state: welcome.state,
            program: program.to_owned(),
            fingerprint: job.fingerprint.clone(),
            tables: job.tables.clone(),
            first_keys: self.config.partition.first_keys(job.tables.dim()),
        })
    }

    /// Whether `caller` may be listened to, before its message is read.
    ///
    /// # Errors
    /// As every call of it would be refused.
    pub fn check_caller(&self, caller: Caller) -> Result<(), Error> {
        self.identify(caller)
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

    /// An event for the report that is no business of the core's.
    pub fn note(&mut self, now: Time, kind: &str, detail: String) {
        let seconds = self.seconds(now);
        self.record.event(seconds, kind, None, detail);
    }

    /// Since the job began.
    pub(crate) fn seconds(&self, now: Time) -> f64 {
        self.job.as_ref().map_or(0.0, |job| job.elapsed(now).as_secs_f64())
    }

    fn reply(
        &mut self,
        now: Time,
        call: CallId,
        caller: Option<Caller>,
        answer: Result<Answer, Error>,
        out: &mut Vec<Effect>,
    ) {
        match answer {
            Ok(answer) => out.push(Effect::Reply { call, answer }),
            Err(error) => self.refuse(now, call, caller, error, out),
        }
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
