//! An independent account of what the core was told and what it answered.
//!
//! Checks the promises that no single state shows: every call is answered once and in time, every
//! gradient is used once, what is acknowledged has counted. Knows nothing of the core's insides.

use std::collections::{BTreeMap, BTreeSet};

use ps_common::ErrorCode;
use ps_common::calls::{Outcome, PullRequest, PushHeader, WorkerState};
use ps_common::job::{Aggregate, JobState, Mode, OnWorkerLoss};

use crate::core::{Answer, CallId, Config, Core, Effect, Input, Time, invariants};

/// A call that has not been answered yet.
#[derive(Debug, Clone)]
struct Open {
    rank: Option<u32>,
    deadline: Time,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Push(PushHeader),
    Pull(PullRequest),
    Other,
}

/// The account.
#[derive(Debug, Clone)]
pub(super) struct Ledger {
    config: Config,
    version: u64,
    state: JobState,
    open: BTreeMap<CallId, Open>,
    /// Neither used nor forgotten.
    gradients: BTreeMap<CallId, PushHeader>,
    /// Of the update under way.
    using: Vec<PushHeader>,
    concluding: bool,
    counted: BTreeSet<(u32, u64)>,
    applied: BTreeSet<(u32, u64)>,
    dropped: BTreeSet<(u32, u64)>,
    /// When a call of the rank last came or was answered.
    heard: BTreeMap<u32, Time>,
}

impl Ledger {
    pub(super) fn new(config: Config) -> Self {
        Self {
            config,
            version: 0,
            state: JobState::Empty,
            open: BTreeMap::new(),
            gradients: BTreeMap::new(),
            using: Vec::new(),
            concluding: false,
            counted: BTreeSet::new(),
            applied: BTreeSet::new(),
            dropped: BTreeSet::new(),
            heard: BTreeMap::new(),
        }
    }

    /// Whether [`Input::Updated`] is due.
    pub(super) fn is_updating(&self) -> bool {
        !self.using.is_empty()
    }

    /// Whether [`Input::Concluded`] is due.
    pub(super) fn is_concluding(&self) -> bool {
        self.concluding
    }

    /// Calls without an answer, in order.
    pub(super) fn open(&self) -> impl Iterator<Item = CallId> {
        self.open.keys().copied()
    }

    /// Gradients that the core still has to use or to forget.
    pub(super) fn n_gradients(&self) -> usize {
        self.gradients.len()
    }

    /// Steps the core and books what happens; the error is the first broken promise.
    pub(super) fn step(
        &mut self,
        core: &mut Core,
        now: Time,
        input: Input,
    ) -> Result<Vec<Effect>, String> {
        let fresh = self.book_input(now, &input)?;
        let effects = core.step(now, input);
        for effect in &effects {
            self.book_effect(now, effect).map_err(|what| format!("{what}, in {effects:?}"))?;
        }
        invariants::check(core)?;
        self.check_progress(core)?;
        self.check_time(core, now, fresh)?;
        Ok(effects)
    }

    /// Books the call that an input brings, and gives its name.
    fn book_input(&mut self, now: Time, input: &Input) -> Result<Option<CallId>, String> {
        let patience = |wish: Option<Time>| wish.unwrap_or(Time::MAX).min(self.config.wait_max);
        let (call, rank, wait, kind) = match input {
            Input::Join { call, .. } => (*call, None, Time::ZERO, Kind::Other),
            Input::Heartbeat { call, caller, .. } => {
                (*call, Some(caller.rank), Time::ZERO, Kind::Other)
            }
            Input::Statistics { call, caller } => {
                (*call, Some(caller.rank), patience(None), Kind::Other)
            }
            Input::Leave { call, leave } => {
                (*call, Some(leave.caller.rank), Time::ZERO, Kind::Other)
            }
            Input::Evaluate { call, evaluation } => {
                (*call, Some(evaluation.caller.rank), Time::ZERO, Kind::Other)
            }
            Input::Push { call, header, .. } => {
                self.gradients.insert(*call, *header);
                let wait = patience(header.wait_max);
                (*call, Some(header.caller.rank), wait, Kind::Push(*header))
            }
            Input::Pull { call, request, .. } => {
                let wait = patience(request.wait_max);
                (*call, Some(request.caller.rank), wait, Kind::Pull(*request))
            }
            Input::Dropped { call } => {
                if let Some(Open { rank: Some(rank), .. }) = self.open.remove(call) {
                    self.heard.insert(rank, now);
                }
                return Ok(None);
            }
            Input::Updated { result } => {
                ensure(self.is_updating(), || "no update is under way".to_owned())?;
                self.book_update(result.is_ok())?;
                return Ok(None);
            }
            Input::Concluded => {
                ensure(self.is_concluding(), || "nothing is being concluded".to_owned())?;
                self.concluding = false;
                return Ok(None);
            }
            Input::Rejected { .. }
            | Input::Disconnected { .. }
            | Input::Stop { .. }
            | Input::Drain
            | Input::Tick => return Ok(None),
        };
        if let Some(rank) = rank {
            self.heard.insert(rank, now);
        }
        let open = Open { rank, deadline: now + wait, kind };
        ensure(self.open.insert(call, open).is_none(), || format!("{call:?} was named twice"))?;
        Ok(Some(call))
    }

    fn book_update(&mut self, stored: bool) -> Result<(), String> {
        let used = std::mem::take(&mut self.using);
        if stored {
            self.version += 1;
            for header in used {
                let name = (header.caller.rank, header.clock);
                ensure(self.counted.insert(name), || format!("{name:?} counts twice"))?;
                ensure(!self.dropped.contains(&name), || {
                    format!("{name:?} counts, and its worker was told that it does not")
                })?;
            }
        }
        Ok(())
    }

    fn book_effect(&mut self, now: Time, effect: &Effect) -> Result<(), String> {
        match effect {
            Effect::Reply { call, answer } => {
                let Some(open) = self.open.remove(call) else {
                    return Err(format!("{call:?} is answered twice, or was dropped"));
                };
                if let Some(rank) = open.rank {
                    self.heard.insert(rank, now);
                }
                self.book_answer(now, *call, &open, answer)
            }
            Effect::Update { parts } => self.book_parts(parts),
            Effect::Forget { gradient } => {
                let known = self.gradients.remove(gradient).is_some();
                ensure(known, || format!("{gradient:?} is forgotten after it was used"))
            }
            Effect::Conclude => {
                ensure(!self.concluding, || "concludes twice at once".to_owned())?;
                self.concluding = true;
                Ok(())
            }
            Effect::Create { .. } => ensure(self.state == JobState::Empty, || {
                format!("theta is made in state {}", self.state)
            }),
        }
    }

    fn book_answer(
        &mut self,
        now: Time,
        call: CallId,
        open: &Open,
        answer: &Answer,
    ) -> Result<(), String> {
        match (&open.kind, answer) {
            (Kind::Push(header), Answer::Pushed(result)) => {
                let name = (header.caller.rank, header.clock);
                match result.outcome {
                    Outcome::Applied => {
                        ensure(self.applied.insert(name), || format!("{name:?} applied twice"))?;
                        ensure(self.counted.contains(&name), || format!("{name:?} did not count"))
                    }
                    Outcome::Duplicate => ensure(self.counted.contains(&name), || {
                        format!("{name:?} is called a duplicate and never counted")
                    }),
                    Outcome::DroppedLate => {
                        self.dropped.insert(name);
                        ensure(!self.counted.contains(&name), || {
                            format!("{name:?} is called dropped and has counted")
                        })
                    }
                    Outcome::Waiting => Ok(()),
                }
            }
            (Kind::Push(_), Answer::Refused(refusal)) => {
                // Kept for whoever sends it again: after a restart, or as the rank's newer life.
                let kept = self.gradients.contains_key(&call);
                let may = matches!(refusal.0.code, ErrorCode::Draining | ErrorCode::Fenced);
                ensure(!kept || may, || format!("{call:?} is refused and its gradient kept"))
            }
            (Kind::Pull(request), Answer::Pulled(header)) => ensure(
                header.version >= request.version_min && !request.r#final
                    || header.state >= JobState::Finishing
                    || now >= open.deadline,
                || format!("{request:?} is granted too early: {header:?}"),
            ),
            (Kind::Other, Answer::Joined(_) | Answer::State { .. } | Answer::Statistics)
            | (Kind::Pull(_) | Kind::Other, Answer::Refused(_)) => Ok(()),
            (kind, answer) => Err(format!("{kind:?} is answered by {answer:?}")),
        }
    }

    fn book_parts(&mut self, parts: &[(CallId, f64)]) -> Result<(), String> {
        ensure(self.using.is_empty(), || "two updates at once".to_owned())?;
        ensure(!parts.is_empty(), || "an update of nothing".to_owned())?;
        for (gradient, _) in parts {
            let Some(header) = self.gradients.remove(gradient) else {
                return Err(format!("{gradient:?} is used after it was used or forgotten"));
            };
            self.using.push(header);
        }
        let weights: Vec<f64> = parts.iter().map(|(_, weight)| *weight).collect();
        match self.config.mode {
            Mode::Async => ensure(weights == [1.0], || format!("async weights {weights:?}")),
            Mode::Sync => self.check_round(&weights),
        }
    }

    fn check_round(&self, weights: &[f64]) -> Result<(), String> {
        let ranks: Vec<u32> = self.using.iter().map(|header| header.caller.rank).collect();
        ensure(ranks.is_sorted_by(|a, b| a < b), || format!("round of ranks {ranks:?}"))?;
        ensure(
            self.config.on_worker_loss == OnWorkerLoss::Continue
                || ranks.len() == self.config.n_workers as usize,
            || format!("a round closes with {ranks:?} only"),
        )?;
        let clocks: Vec<u64> = self.using.iter().map(|header| header.clock).collect();
        ensure(clocks.iter().all(|&clock| clock == self.version), || {
            format!("round {} of clocks {clocks:?}", self.version)
        })?;
        let samples = self.using.iter().map(|header| header.n_samples as f64);
        let total: f64 = samples.clone().sum();
        let want: Vec<f64> = samples
            .map(|n| match self.config.aggregate {
                Aggregate::WeightedMean if total == 0.0 => 0.0,
                Aggregate::WeightedMean => n / total,
                Aggregate::Mean => 1.0 / ranks.len() as f64,
                Aggregate::Sum => 1.0,
            })
            .collect();
        ensure(weights == want, || format!("weights {weights:?}, expected {want:?}"))
    }

    /// Versions are as counted here, the state never goes back.
    fn check_progress(&mut self, core: &Core) -> Result<(), String> {
        ensure(core.version() == self.version, || {
            format!("version {}, {} updates were stored", core.version(), self.version)
        })?;
        let state = core.state();
        ensure(state >= self.state, || format!("state {} after {}", state, self.state))?;
        self.state = state;
        Ok(())
    }

    /// No call is overdue, no lease outlives its time, and the core asks to be woken in time.
    fn check_time(&self, core: &Core, now: Time, fresh: Option<CallId>) -> Result<(), String> {
        let alarm = core.next_deadline().unwrap_or(Time::MAX);
        for (call, open) in &self.open {
            ensure(open.deadline > now || Some(*call) == fresh, || {
                format!("{call:?} is overdue at {now:?}: {open:?}")
            })?;
            ensure(alarm <= open.deadline, || format!("{call:?} will be overdue: {open:?}"))?;
        }
        for worker in core.status(now, "", "").workers {
            let held = self.open.values().any(|open| open.rank == Some(worker.rank));
            if worker.state == WorkerState::Live && !held {
                let Some(heard) = self.heard.get(&worker.rank) else { continue };
                let end = *heard.max(&(now - worker.silent)) + self.config.lease;
                ensure(end > now, || format!("rank {} lives on after its lease", worker.rank))?;
                ensure(alarm <= end, || format!("the lease of {} is not watched", worker.rank))?;
            }
        }
        Ok(())
    }
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}
