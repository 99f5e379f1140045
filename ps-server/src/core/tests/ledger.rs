//! An independent account of what the core was told and what it answered.
//!
//! Checks the promises that no single state shows: every call is answered once and in time, every
//! gradient is used once, what is acknowledged has counted. Knows nothing of the core's insides.

use std::collections::{BTreeMap, BTreeSet};

use ps_common::ErrorCode;
use ps_common::calls::{Caller, Outcome, PullRequest, PushHeader, WorkerState};
use ps_common::job::{Aggregate, Combine, JobState, OnWorkerLoss};

use crate::core::{
    Answer, CallId, Compensate, Config, Consistency, Core, DelayScaling, Effect, Input, OnExcess,
    Order, Time, Unapplied, invariants,
};

/// A call that has not been answered yet.
#[derive(Debug, Clone)]
struct Open {
    rank: Option<u32>,
    deadline: Time,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    /// Whether theta goes with the answer.
    Push(PushHeader, bool),
    Pull(PullRequest),
    /// theta's version when it came.
    Checkpoint(u64),
    /// Of one that computes ahead, or not.
    Join(bool),
    Other,
}

/// The life that sent a gradient, and its checksum.
type Bytes = (u64, u32);

/// The account.
#[derive(Debug, Clone)]
pub(super) struct Ledger {
    config: Config,
    version: u64,
    state: JobState,
    open: BTreeMap<CallId, Open>,
    /// Neither used nor forgotten.
    gradients: BTreeMap<CallId, PushHeader>,
    /// Of each update under way, by its name.
    using: BTreeMap<CallId, Vec<(PushHeader, Bytes)>>,
    concluding: bool,
    /// [`Input::Captured`] is due.
    capturing: bool,
    /// [`Input::Saved`] is due, of this version.
    saving: Option<u64>,
    counted: BTreeSet<(u32, u64)>,
    /// Updates that were stored between the pull and the end of its own, of each that counts.
    delays: BTreeMap<(u32, u64), u64>,
    applied: BTreeSet<(u32, u64)>,
    /// Told to have counted.
    acknowledged: BTreeSet<(u32, u64)>,
    dropped: BTreeSet<(u32, u64)>,
    /// Names of what each version counted, so that a restart can go back.
    by_version: Vec<Vec<(u32, u64)>>,
    /// Life and bytes of each gradient.
    bytes: BTreeMap<CallId, Bytes>,
    /// Life and bytes of what has counted.
    counted_bytes: BTreeMap<(u32, u64), Bytes>,
    /// When a call of the rank last came or was answered.
    heard: BTreeMap<u32, Time>,
    /// Incarnations of those that compute ahead.
    ahead: BTreeSet<u64>,
}

impl Ledger {
    pub(super) fn new(config: Config) -> Self {
        Self {
            config,
            version: 0,
            state: JobState::Empty,
            open: BTreeMap::new(),
            gradients: BTreeMap::new(),
            using: BTreeMap::new(),
            delays: BTreeMap::new(),
            concluding: false,
            capturing: false,
            saving: None,
            counted: BTreeSet::new(),
            applied: BTreeSet::new(),
            acknowledged: BTreeSet::new(),
            dropped: BTreeSet::new(),
            by_version: Vec::new(),
            bytes: BTreeMap::new(),
            counted_bytes: BTreeMap::new(),
            heard: BTreeMap::new(),
            ahead: BTreeSet::new(),
        }
    }

    /// Whether [`Input::Updated`] is due.
    pub(super) fn is_updating(&self) -> bool {
        !self.using.is_empty()
    }

    /// The updates under way, in order of name.
    pub(super) fn updates(&self) -> impl Iterator<Item = CallId> {
        self.using.keys().copied()
    }

    /// Whether [`Input::Concluded`] is due.
    pub(super) fn is_concluding(&self) -> bool {
        self.concluding
    }

    /// Whether [`Input::Captured`] is due.
    pub(super) fn is_capturing(&self) -> bool {
        self.capturing
    }

    /// The version of the checkpoint that [`Input::Saved`] is due of.
    pub(super) fn saving(&self) -> Option<u64> {
        self.saving
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
            Input::Join { call, request, .. } => {
                (*call, None, Time::ZERO, Kind::Join(request.overlap))
            }
            Input::Heartbeat { call, caller, .. } => {
                (*call, Some(caller.rank), Time::ZERO, Kind::Other)
            }
            Input::Statistics { call, caller } => {
                (*call, Some(caller.rank), patience(None), Kind::Other)
            }
            Input::Leave { call, leave } => {
                // A last word waits until it is durable.
                let is_last =
                    self.state == JobState::Finishing && self.config.checkpoints.is_some();
                let wait = if is_last { Time::MAX - now } else { Time::ZERO };
                (*call, Some(leave.caller.rank), wait, Kind::Other)
            }
            Input::Evaluate { call, evaluation } => {
                (*call, Some(evaluation.caller.rank), Time::ZERO, Kind::Other)
            }
            Input::Push { call, header, theta, digest, .. } => {
                self.bytes.insert(*call, (header.caller.incarnation, *digest));
                self.gradients.insert(*call, *header);
                let wait = patience(header.wait_max);
                (*call, Some(header.caller.rank), wait, Kind::Push(*header, *theta))
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
            Input::Updated { name, result } => {
                self.book_update(*name, result)?;
                return Ok(None);
            }
            Input::Concluded => {
                ensure(self.is_concluding(), || "nothing is being concluded".to_owned())?;
                self.concluding = false;
                return Ok(None);
            }
            Input::Checkpoint { call: Some(call) } => {
                (*call, None, Time::MAX - now, Kind::Checkpoint(self.version))
            }
            Input::Captured => {
                ensure(std::mem::take(&mut self.capturing), || "nothing is captured".to_owned())?;
                self.saving = Some(self.version);
                return Ok(None);
            }
            Input::Saved { .. } => {
                ensure(self.saving.take().is_some(), || "nothing is being saved".to_owned())?;
                return Ok(None);
            }
            Input::Checkpoint { call: None }
            | Input::Rejected { .. }
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

    fn book_update(&mut self, name: CallId, result: &Result<(), Unapplied>) -> Result<(), String> {
        let Some(used) = self.using.remove(&name) else {
            return Err(format!("no update {name:?} is under way"));
        };
        let has_rounds = matches!(self.config.consistency, Consistency::Sync { .. });
        if has_rounds && matches!(result, Err(Unapplied::NotWritten { .. })) {
            // The round is open again, also to those who were late for it (rule D8).
            let version = self.version;
            self.dropped.retain(|&(_, clock)| clock < version);
        }
        if result.is_ok() {
            let names = used.iter().map(|(header, _)| (header.caller.rank, header.clock));
            self.by_version.push(names.collect());
            let before = self.version;
            self.version += 1;
            for (header, bytes) in used {
                self.counted_bytes.insert((header.caller.rank, header.clock), bytes);
                let name = (header.caller.rank, header.clock);
                self.delays.insert(name, before - header.version_pulled);
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
            Effect::Update(order) => {
                ensure(!self.capturing, || "theta moves while it is taken".to_owned())?;
                self.book_order(order)
            }
            Effect::Capture => {
                ensure(self.config.checkpoints.is_some(), || "nobody keeps it".to_owned())?;
                ensure(!self.capturing && self.saving.is_none(), || "two at once".to_owned())?;
                let overlap = self.config.consistency == Consistency::Hogwild;
                ensure(overlap || self.using.is_empty(), || "theta is moving".to_owned())?;
                self.capturing = true;
                Ok(())
            }
            Effect::Keep { rank } => ensure(
                matches!(
                    self.config.consistency,
                    Consistency::Async { delay_scaling: DelayScaling::DcAsgd { .. }, .. }
                ) && *rank < self.config.n_workers,
                || format!("theta is kept for rank {rank} and not needed"),
            ),
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
            (Kind::Push(header, theta), Answer::Pushed(result)) => {
                let name = (header.caller.rank, header.clock);
                if *theta && result.outcome != Outcome::Waiting {
                    self.check_read(header.caller, result.state)?;
                }
                match result.outcome {
                    Outcome::Applied => {
                        self.acknowledged.insert(name);
                        ensure(self.applied.insert(name), || format!("{name:?} applied twice"))?;
                        let delay = self.delays.get(&name);
                        ensure(delay == Some(&result.gradient_delay), || {
                            format!("{name:?} has delay {delay:?}: {result:?}")
                        })?;
                        ensure(self.counted.contains(&name), || format!("{name:?} did not count"))
                    }
                    Outcome::Duplicate => {
                        ensure(self.counted.contains(&name), || {
                            format!("{name:?} is called a duplicate and never counted")
                        })?;
                        self.acknowledged.insert(name);
                        self.check_bytes(call, name)
                    }
                    Outcome::DroppedLate => {
                        self.dropped.insert(name);
                        ensure(!self.counted.contains(&name), || {
                            format!("{name:?} is called dropped and has counted")
                        })
                    }
                    Outcome::Waiting => Ok(()),
                }
            }
            (Kind::Push(..), Answer::Refused(refusal)) => {
                // Kept for whoever sends it again: after a restart, or as the rank's newer life.
                let kept = self.gradients.contains_key(&call);
                let may = matches!(refusal.0.code, ErrorCode::Draining | ErrorCode::Fenced);
                ensure(!kept || may, || format!("{call:?} is refused and its gradient kept"))
            }
            (Kind::Pull(request), Answer::Pulled(header)) => {
                self.check_read(request.caller, header.state)?;
                ensure(
                    header.version >= request.version_min && !request.r#final
                        || header.state >= JobState::Finishing
                        || now >= open.deadline,
                    || format!("{request:?} is granted too early: {header:?}"),
                )
            }
            (Kind::Checkpoint(asked), Answer::Checkpointed { version, .. }) => {
                ensure(version >= asked, || format!("{call:?} has {version}, asked at {asked}"))
            }
            (Kind::Checkpoint(_), Answer::Refused(_)) => Ok(()),
            (Kind::Join(overlap), Answer::Joined(welcome)) => {
                if *overlap {
                    self.ahead.insert(welcome.caller.incarnation);
                }
                Ok(())
            }
            (Kind::Other, Answer::State { .. } | Answer::Statistics)
            | (Kind::Pull(_) | Kind::Join(_) | Kind::Other, Answer::Refused(_)) => Ok(()),
            (kind, answer) => Err(format!("{kind:?} is answered by {answer:?}")),
        }
    }

    /// A gradient that is called a duplicate is the one that counted, as far as the server remembers
    /// (rule C6).
    fn check_bytes(&self, call: CallId, name: (u32, u64)) -> Result<(), String> {
        let (life, bytes) = self.counted_bytes[&name];
        let newest = self.counted.range((name.0, 0)..=(name.0, u64::MAX)).next_back();
        let remembered = newest.is_some_and(|(_, clock)| clock - name.1 < 8);
        let (pushed_by, pushed) = self.bytes[&call];
        ensure(!remembered || life != pushed_by || bytes == pushed, || {
            format!("{name:?} counted with bytes {bytes}, {call:?} has {pushed}")
        })
    }

    /// The server was killed and went back to what `core` has; gives the names that were
    /// acknowledged and have to be made again.
    pub(super) fn restart(&mut self, config: Config, core: &Core) -> Vec<(u32, u64)> {
        self.version = core.version();
        self.state = core.state();
        self.open.clear();
        self.gradients.clear();
        self.using.clear();
        self.heard.clear();
        (self.concluding, self.capturing, self.saving) = (false, false, None);
        self.by_version.truncate(self.version as usize);
        if self.config.n_workers != config.n_workers {
            // Names of ranks mean something else now.
            self.by_version.iter_mut().for_each(Vec::clear);
            self.dropped.clear();
        }
        self.config = config;
        self.counted = self.by_version.iter().flatten().copied().collect();
        let counted = &self.counted;
        self.delays.retain(|name, _| counted.contains(name));
        self.counted_bytes.retain(|name, _| counted.contains(name));
        self.applied.retain(|name| counted.contains(name));
        let undone = self.acknowledged.extract_if(.., |name| !counted.contains(name)).collect();
        let clocks: Vec<u64> =
            core.status(Time::ZERO, "", "").workers.iter().map(|worker| worker.clock).collect();
        self.dropped.retain(|&(rank, clock)| clock < clocks[rank as usize]);
        undone
    }

    /// Books what a restored core does at once.
    pub(super) fn resume(&mut self, core: &mut Core, now: Time) -> Result<Vec<Effect>, String> {
        let effects = core.resume(now);
        for effect in &effects {
            self.book_effect(now, effect).map_err(|what| format!("{what}, in {effects:?}"))?;
        }
        invariants::check(core)?;
        self.check_progress(core)?;
        self.check_time(core, now, None)?;
        Ok(effects)
    }

    /// ssp with every rank awaited: theta goes to nobody who is more than S clocks ahead.
    fn check_read(&self, caller: Caller, state: JobState) -> Result<(), String> {
        let Consistency::Ssp { staleness_bound } = self.config.consistency else { return Ok(()) };
        let all_awaited = self.config.on_worker_loss != OnWorkerLoss::Continue;
        if caller.is_observer() || !all_awaited || state != JobState::Running {
            return Ok(());
        }
        let clock = |rank: u32| self.counted.range((rank, 0)..=(rank, u64::MAX)).count() as u64;
        // What is in already is not computed again.
        let known =
            self.gradients.values().chain(self.using.values().flatten().map(|(header, _)| header));
        let is_in = known
            .into_iter()
            .any(|header| header.caller.rank == caller.rank && header.clock == clock(caller.rank));
        let next = clock(caller.rank) + u64::from(is_in);
        let done = self.config.rounds.is_some_and(|rounds| next >= rounds);
        let slowest = (0..self.config.n_workers).map(clock).min().unwrap_or(0);
        // Who computes ahead has nothing newer for one clock more.
        let ahead = u64::from(self.ahead.contains(&caller.incarnation));
        let last = self.config.rounds.map_or(u64::MAX, |rounds| rounds.saturating_sub(1));
        let reads = (clock(caller.rank) + ahead).min(last);
        ensure(done || reads <= slowest + staleness_bound, || {
            format!("rank {} reads for clock {reads}, the slowest is at {slowest}", caller.rank)
        })
    }

    /// ssp with every rank awaited: theta that a good worker computed at has all gradients of clocks
    /// more than S below its own (rule B1).
    pub(super) fn check_bound(&self, header: &PushHeader) -> Result<(), String> {
        let Consistency::Ssp { staleness_bound } = self.config.consistency else { return Ok(()) };
        if self.config.on_worker_loss == OnWorkerLoss::Continue {
            return Ok(());
        }
        let n_owed = header.clock.saturating_sub(staleness_bound);
        let in_theta = &self.by_version[..header.version_pulled as usize];
        let n_in = |rank: u32| in_theta.iter().flatten().filter(|name| name.0 == rank).count();
        let behind = (0..self.config.n_workers).find(|&rank| (n_in(rank) as u64) < n_owed);
        ensure(behind.is_none(), || {
            format!(
                "{header:?} lacks clocks below {n_owed} of rank {behind:?}, S {staleness_bound}"
            )
        })
    }

    fn book_order(&mut self, order: &Order) -> Result<(), String> {
        let overlap = self.config.consistency == Consistency::Hogwild;
        ensure(overlap || self.using.is_empty(), || "two updates at once".to_owned())?;
        ensure(!order.parts.is_empty(), || "an update of nothing".to_owned())?;
        let mut used = Vec::new();
        for (gradient, _) in &order.parts {
            let Some(header) = self.gradients.remove(gradient) else {
                return Err(format!("{gradient:?} is used after it was used or forgotten"));
            };
            let rank = header.caller.rank;
            let busy = self.using.values().flatten().any(|(other, _)| other.caller.rank == rank);
            ensure(!busy, || format!("two gradients of rank {rank} at once"))?;
            used.push(header);
        }
        let weights: Vec<f64> = order.parts.iter().map(|(_, weight)| *weight).collect();
        match self.config.consistency {
            Consistency::Sync { backup_workers } => {
                self.check_round((order, &used), &weights, backup_workers)?;
            }
            Consistency::Ssp { .. } | Consistency::Hogwild => {
                let alone = Order::alone(order.parts[0].0);
                ensure(*order == alone, || format!("not as it came: {order:?}"))?;
            }
            Consistency::Async { delay_scaling, max_gradient_delay } => {
                ensure(weights == [1.0], || format!("async weights {weights:?}"))?;
                self.check_delay((order, &used[0]), delay_scaling, max_gradient_delay)?;
            }
        }
        let bytes = order.parts.iter().map(|(name, _)| self.bytes[name]);
        self.using.insert(order.name(), used.into_iter().zip(bytes).collect());
        Ok(())
    }

    fn check_delay(
        &self,
        (order, header): (&Order, &PushHeader),
        scaling: DelayScaling,
        bound: Option<(u64, OnExcess)>,
    ) -> Result<(), String> {
        let d = self.version - header.version_pulled;
        let mut rate = match (scaling, d) {
            (DelayScaling::None | DelayScaling::DcAsgd { .. }, _) => 1.0,
            (DelayScaling::Inverse | DelayScaling::InverseSqrt, 0) => 1.0,
            (DelayScaling::Inverse, d) => 1.0 / d as f64,
            (DelayScaling::InverseSqrt, d) => 1.0 / (d as f64).sqrt(),
            (DelayScaling::Exponential { alpha }, d) => (-alpha * d as f64).exp(),
        };
        match bound {
            Some((n, OnExcess::Scale)) if d > n => rate *= n.max(1) as f64 / d as f64,
            Some((_, OnExcess::Scale)) | None => {}
            Some((n, _)) => ensure(d <= n, || format!("a delay of {d} above {n}: {header:?}"))?,
        }
        ensure((order.rate_factor - rate).abs() < 1e-12, || {
            format!("rate factor {} at delay {d}, expected {rate}", order.rate_factor)
        })?;
        let wanted = match scaling {
            DelayScaling::DcAsgd { lambda } => Some(Compensate {
                lambda,
                rank: header.caller.rank,
                version_pulled: header.version_pulled,
            }),
            _ => None,
        };
        ensure(order.compensation == wanted, || format!("{order:?} is not corrected as it should"))
    }

    fn check_round(
        &self,
        (order, used): (&Order, &[PushHeader]),
        weights: &[f64],
        backups: u32,
    ) -> Result<(), String> {
        let ranks: Vec<u32> = used.iter().map(|header| header.caller.rank).collect();
        ensure(ranks.is_sorted_by(|a, b| a < b), || format!("round of ranks {ranks:?}"))?;
        let full = (self.config.n_workers - backups) as usize;
        let fewer_do = self.config.on_worker_loss == OnWorkerLoss::Continue;
        ensure(ranks.len() == full || fewer_do && ranks.len() < full, || {
            format!("a round closes with {ranks:?}, {full} are enough")
        })?;
        let clocks: Vec<u64> = used.iter().map(|header| header.clock).collect();
        ensure(clocks.iter().all(|&clock| clock == self.version), || {
            format!("round {} of clocks {clocks:?}", self.version)
        })?;
        let samples = used.iter().map(|header| header.n_samples as f64);
        let total: f64 = samples.clone().sum();
        let want: Vec<f64> = samples
            .map(|n| match self.config.aggregate {
                Aggregate::WeightedMean if total == 0.0 => 0.0,
                Aggregate::WeightedMean => n / total,
                Aggregate::Mean => 1.0 / ranks.len() as f64,
                _ => 1.0,
            })
            .collect();
        ensure(weights == want, || format!("weights {weights:?}, expected {want:?}"))?;
        let combined_as_named = match (self.config.aggregate, order.combine) {
            (Aggregate::Collect, Combine::InTurn) | (Aggregate::Median, Combine::Median) => true,
            (Aggregate::TrimmedMean { k }, Combine::TrimmedMean { k: used }) => {
                used <= k && 2 * (used as usize) < ranks.len()
            }
            (Aggregate::WeightedMean | Aggregate::Mean | Aggregate::Sum, Combine::Sum) => true,
            _ => false,
        };
        let plain = order.rate_factor == 1.0 && order.compensation.is_none();
        ensure(combined_as_named && plain, || format!("{order:?} for {}", self.config.aggregate))
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
