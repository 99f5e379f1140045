//! A made-up cluster of well and ill behaved processes around one core, driven by plain events.
//!
//! Events are data: a failing sequence is a file that replays. After the events faults cease: every
//! rank gets a worker that does what it owes, and the job has to finish.

use std::collections::BTreeMap;
use std::time::Duration;

use ps_common::calls::{Caller, Evaluation, JoinRequest, Leave, Outcome, PullRequest, PushHeader};
use ps_common::job::{JobState, Metrics, Mode, PROTOCOL_VERSION, Role, WorkerStats};
use ps_common::tables::{Table, Tables};
use ps_common::{Dtype, ErrorCode};

use super::ledger::Ledger;
use crate::core::{
    Answer, CallId, Config, ConnId, Core, Effect, Input, Order, Plateau, StopRules, Time, Unapplied,
};

pub(super) mod disk;
pub(super) mod plan;

use disk::Disk;
use plan::{Case, Event, Life, N_PROCESSES, Plan};

#[derive(Debug, Clone, Default)]
struct Process {
    caller: Option<Caller>,
    before: Option<Caller>,
    /// The clock it believes to owe.
    clock: u64,
    /// Version of the theta that its next gradient is computed at, given to its life of now.
    theta: Option<u64>,
    /// Of one that computes ahead: of the theta that it was given last.
    theta_next: Option<u64>,
    /// Good workers: the push that is sent until it is answered.
    pushing: Option<PushHeader>,
    n_connections: u64,
    /// It was told that all clocks up to this one are settled.
    acknowledged: Option<u64>,
}

impl Process {
    /// The next gradient of who computes ahead is under way already, at the theta before.
    fn be_given(&mut self, version: u64, overlaps: bool) {
        self.theta = self.theta_next.take().or(Some(version));
        self.theta_next = overlaps.then_some(version);
    }
}

/// A core, its processes, the ledger.
struct World {
    core: Core,
    config: Config,
    disk: Disk,
    orders: BTreeMap<CallId, Order>,
    /// Of this job.
    restarts: u64,
    /// Clocks after the restart of the ranks that nobody joined as since.
    went_back: BTreeMap<u32, u64>,
    /// The largest clock that each rank has ever owed.
    reached: BTreeMap<u32, u64>,
    ledger: Ledger,
    plan: Plan,
    now: Time,
    processes: Vec<Process>,
    /// Which process made a call: its index.
    made_by: Vec<usize>,
    /// By which name a push was made.
    pushed_as: BTreeMap<CallId, Caller>,
    trace: Vec<String>,
}

/// Runs a case to its end. The trace tells what happened; the error is the first broken promise.
pub(super) fn run(case: &Case) -> (Vec<String>, Result<(), String>) {
    let mut world = World::new(case.plan.clone());
    let result = case
        .events
        .iter()
        .try_for_each(|event| world.happen(event))
        .and_then(|()| world.heal())
        .and_then(|()| world.settle());
    (world.trace, result)
}

impl World {
    fn new(plan: Plan) -> Self {
        let config = Config {
            checkpoints: plan.checkpoints(),
            boot: 0,
            consistency: plan.consistency(),
            n_workers: plan.n_workers,
            partition: ps_common::partition::Partition::WHOLE,
            aggregate: plan.aggregate,
            rounds: plan.rounds,
            lease: Duration::from_millis(plan.lease_ms),
            on_worker_loss: plan.on_worker_loss,
            replacement_timeout: Duration::from_millis(plan.replacement_ms),
            observers: plan.observers,
            wait_max: Duration::from_millis(plan.hold_ms),
            stop: StopRules {
                target_loss: plan.target_loss,
                duration: plan.max_ms.map(Duration::from_millis),
                plateau: plan
                    .plateau
                    .map(|n_measurements| Plateau { n_measurements, min_delta: 0.0 }),
            },
        };
        Self {
            core: Core::new(config.clone(), Dtype::F32),
            ledger: Ledger::new(config.clone()),
            config,
            disk: Disk::default(),
            orders: BTreeMap::new(),
            restarts: 0,
            went_back: BTreeMap::new(),
            reached: BTreeMap::new(),
            now: Time::ZERO,
            processes: vec![Process::default(); N_PROCESSES as usize + plan.n_workers as usize],
            plan,
            made_by: Vec::new(),
            pushed_as: BTreeMap::new(),
            trace: Vec::new(),
        }
    }

    fn call(&mut self, process: usize) -> CallId {
        let call = CallId(self.made_by.len() as u64);
        self.made_by.push(process);
        call
    }

    fn connection(&self, process: usize) -> ConnId {
        ConnId(process as u64 * 1_000_000 + self.processes[process].n_connections)
    }

    fn caller(&self, process: usize, life: Life) -> Caller {
        let known = match life {
            Life::Now => self.processes[process].caller,
            Life::Before => self.processes[process].before,
            Life::Stranger => None,
        };
        known.unwrap_or(Caller { rank: process as u32, incarnation: 1_000_000 })
    }

    fn step(&mut self, input: Input) -> Result<Vec<Effect>, String> {
        self.trace.push(format!("{:?} {input:?}", self.now));
        let join = match &input {
            Input::Join { call, request, .. } => Some((*call, request.acknowledged_clock)),
            _ => None,
        };
        let undone = self.undone();
        self.write_journal(&input);
        let effects = self.ledger.step(&mut self.core, self.now, input)?;
        self.learn(&effects);
        self.check_undone(join, undone, &effects)?;
        Ok(effects)
    }

    /// The processes hear what they are answered.
    fn learn(&mut self, effects: &[Effect]) {
        for effect in effects {
            self.trace.push(format!("  => {effect:?}"));
            if let Effect::Update(order) = effect {
                self.orders.insert(order.name(), order.clone());
            }
            let Effect::Reply { call, answer } = effect else { continue };
            let index = self.made_by[call.0 as usize];
            let overlaps = self.plan.overlaps(index);
            let process = &mut self.processes[index];
            match answer {
                Answer::Joined(welcome) => {
                    process.before = process.caller.replace(welcome.caller);
                    // What was undone is not acknowledged any more.
                    let same = process.before.is_some_and(|b| b.rank == welcome.caller.rank);
                    let below = |clock: &u64| *clock < welcome.clock;
                    process.acknowledged =
                        process.acknowledged.filter(|_| same).and_then(|clock| {
                            Some(clock).filter(below).or(welcome.clock.checked_sub(1))
                        });
                    process.clock = welcome.clock;
                    (process.theta, process.theta_next) = (None, None);
                    process.pushing = None;
                }
                Answer::Pushed(result) => {
                    process.clock = result.clock;
                    if result.outcome != Outcome::Waiting {
                        if process.caller == self.pushed_as.get(call).copied() {
                            process.acknowledged = result.clock.checked_sub(1);
                        }
                        process.be_given(result.version, overlaps);
                        process.pushing = None;
                    }
                }
                Answer::Pulled(header) => {
                    (process.theta, process.theta_next) = (Some(header.version), None);
                    process.be_given(header.version, overlaps);
                }
                Answer::Refused(_) => process.pushing = None,
                _ => {}
            }
        }
    }

    fn happen(&mut self, event: &Event) -> Result<(), String> {
        // Something else may come before the driver does what it was asked.
        let capturing = self.ledger.is_capturing();
        self.happen_once(event)?;
        if capturing { self.capture() } else { Ok(()) }
    }

    fn happen_once(&mut self, event: &Event) -> Result<(), String> {
        let input = match *event {
            Event::Pass { ms, tick } => {
                self.now += Duration::from_millis(ms.into());
                if !tick {
                    return Ok(());
                }
                Input::Tick
            }
            Event::Alarm => {
                let Some(alarm) = self.core.next_deadline() else { return Ok(()) };
                self.now = self.now.max(alarm);
                Input::Tick
            }
            Event::Captured => return self.capture(),
            Event::Saved { fails } => return self.saved(fails),
            Event::Crash { rejoin } => return self.crash(rejoin),
            Event::Checkpoint { process } => {
                Input::Checkpoint { call: Some(self.call(process.into())) }
            }
            Event::Updated { which, overflow, unwritten } if self.ledger.is_updating() => {
                let under_way: Vec<CallId> = self.ledger.updates().collect();
                let name = under_way[usize::from(which) % under_way.len()];
                let result = match (overflow, unwritten && self.is_always()) {
                    (_, true) => Err(Unapplied::NotWritten { what: "no space left".to_owned() }),
                    (true, false) => Err(Unapplied::Overflow { key: 3 }),
                    (false, false) => Ok(()),
                };
                Input::Updated { name, result }
            }
            Event::Concluded if self.ledger.is_concluding() => Input::Concluded,
            Event::Updated { .. } | Event::Concluded => return Ok(()),
            Event::Drop { which } => {
                let open: Vec<CallId> = self.ledger.open().collect();
                if open.is_empty() {
                    return Ok(());
                }
                Input::Dropped { call: open[which as usize % open.len()] }
            }
            Event::Disconnect { process } => {
                let conn = self.connection(process.into());
                self.processes[process as usize].n_connections += 1;
                Input::Disconnected { conn }
            }
            Event::Replace { rank, process } => {
                let rank = u32::from(rank) % self.plan.n_workers;
                let holds = |p: &Process| p.caller.is_some_and(|caller| caller.rank == rank);
                for old in 0..self.processes.len() {
                    if holds(&self.processes[old]) {
                        let conn = self.connection(old);
                        self.processes[old].n_connections += 1;
                        self.step(Input::Disconnected { conn })?;
                    }
                }
                self.join(process.into(), Some(rank), false, true)
            }
            Event::Reject { process } => {
                let caller = Some(self.caller(process.into(), Life::Now));
                Input::Rejected { caller, code: ErrorCode::NonFinite }
            }
            Event::Stop => Input::Stop { reason: "enough".to_owned() },
            _ => self.request(event),
        };
        self.step(input).map(drop)
    }

    /// The input of an event that is a call.
    fn request(&mut self, event: &Event) -> Input {
        let millis = |ms: Option<u16>| ms.map(|ms| Duration::from_millis(ms.into()));
        match *event {
            Event::Join { process, rank, observer, alike } => {
                self.join(process.into(), rank, observer, alike)
            }
            Event::Push { process, life, clock, pulled, bytes, n_samples, theta, within } => {
                let process = usize::from(process);
                // A round takes its own theta only; elsewhere it is the one that was given.
                let given = self.processes[process].theta.filter(|_| self.plan.mode != Mode::Sync);
                let version = given.unwrap_or(self.core.version());
                let header = PushHeader {
                    caller: self.caller(process, life),
                    clock: self.processes[process].clock.saturating_add_signed(clock.into()),
                    version_pulled: version.saturating_add_signed(pulled.into()),
                    n_samples: n_samples.into(),
                    loss: Some(f64::from(n_samples)),
                    penalty: None,
                    wait_max: millis(within),
                    exchange: 0,
                };
                self.push(process, header, bytes.into(), theta)
            }
            Event::Pull { process, life, ahead, r#final, within } => {
                let process = usize::from(process);
                let request = PullRequest {
                    caller: self.caller(process, life),
                    version_min: self.core.version() + u64::from(ahead),
                    r#final,
                    wait_max: millis(within),
                    exchange: 0,
                };
                Input::Pull { call: self.call(process), conn: self.connection(process), request }
            }
            Event::Heartbeat { process, life } => {
                let (process, stats) = (process.into(), WorkerStats::default());
                let caller = self.caller(process, life);
                Input::Heartbeat { call: self.call(process), caller, stats }
            }
            Event::Leave { process, life } => self.leave(process.into(), life),
            Event::Evaluate { process, behind, loss, r#final } => {
                let process = usize::from(process);
                let evaluation = Evaluation {
                    caller: self.caller(process, Life::Now),
                    version: self.core.version().saturating_add_signed(-i64::from(behind)),
                    seconds: 0.0,
                    train: Metrics { loss: f64::from(loss), ..Metrics::default() },
                    test: None,
                    r#final,
                };
                Input::Evaluate { call: self.call(process), evaluation }
            }
            Event::Statistics { process } => {
                let process = process.into();
                let caller = self.caller(process, Life::Now);
                Input::Statistics { call: self.call(process), caller }
            }
            _ => unreachable!("handled by `happen`"),
        }
    }

    fn join(&mut self, process: usize, rank: Option<u32>, observer: bool, alike: bool) -> Input {
        let tables = Tables::new(vec![Table::zeros("w", &[3], true)]).expect("sane");
        let own = self.processes[process].caller.map(|caller| caller.rank);
        let model = if alike { "linear" } else { "softmax" };
        let request = JoinRequest {
            protocol_version: PROTOCOL_VERSION,
            role: if observer { Role::Observer } else { Role::Worker },
            rank,
            fingerprint: [("model".to_owned(), model.to_owned())].into(),
            tables: (!observer).then_some(tables),
            dtype: None,
            program: String::new(),
            acknowledged_clock: self.processes[process]
                .acknowledged
                .filter(|_| rank.is_some() && rank == own),
            overlap: !observer && self.plan.overlaps(process),
        };
        let conn = self.connection(process);
        Input::Join { call: self.call(process), conn, address: String::new(), request }
    }

    fn push(&mut self, process: usize, header: PushHeader, digest: u32, theta: bool) -> Input {
        let (call, conn) = (self.call(process), self.connection(process));
        self.pushed_as.insert(call, header.caller);
        Input::Push { call, conn, header, digest, theta }
    }

    fn leave(&mut self, process: usize, life: Life) -> Input {
        let caller = self.caller(process, life);
        let leave = Leave { caller, stats: WorkerStats::default(), final_metrics: None };
        Input::Leave { call: self.call(process), leave }
    }

    /// The driver does what it was asked.
    fn obey(&mut self) -> Result<(), String> {
        while self.ledger.is_updating() {
            let under_way: Vec<CallId> = self.ledger.updates().collect();
            for name in under_way {
                self.step(Input::Updated { name, result: Ok(()) })?;
            }
        }
        if self.ledger.is_concluding() {
            self.step(Input::Concluded)?;
        }
        while self.ledger.is_capturing() || self.ledger.saving().is_some() {
            self.capture()?;
            self.saved(false)?;
        }
        if self.ledger.is_updating() { self.obey() } else { Ok(()) }
    }

    /// Faults cease: the job has to finish.
    fn heal(&mut self) -> Result<(), String> {
        self.trace.push("faults cease".to_owned());
        self.step(Input::Tick)?;
        self.obey()?;
        for process in 0..self.processes.len() {
            let conn = self.connection(process);
            self.processes[process].n_connections += 1;
            self.step(Input::Disconnected { conn })?;
        }
        let alike = !self.core.description("").is_some_and(|job| {
            job.fingerprint.get("model").is_some_and(|model| model == "softmax")
        });
        for rank in 0..self.plan.n_workers {
            let input =
                self.join((u32::from(N_PROCESSES) + rank) as usize, Some(rank), false, alike);
            self.step(input)?;
        }
        let running = self.core.state() == JobState::Running;
        // The first theta may wait for observers that never come: one hold is patience enough.
        let hold = 3 * self.plan.hold_ms / self.plan.lease_ms;
        let steps = (self.plan.rounds.unwrap_or(3) + 2) * 12 + 40 + 2 * hold;
        for i in 0..steps {
            if self.core.state() >= JobState::Done {
                break;
            }
            if self.plan.rounds.is_none() && i == 5 + hold {
                self.step(Input::Stop { reason: "enough".to_owned() })?;
            }
            for rank in 0..self.plan.n_workers {
                self.work((u32::from(N_PROCESSES) + rank) as usize)?;
                self.obey()?;
            }
            self.now += Duration::from_millis(self.plan.lease_ms / 3);
            self.step(Input::Tick)?;
            self.obey()?;
        }
        let state = self.core.state();
        let finished = state == JobState::Done || (!running && state == JobState::Failed);
        if finished {
            return Ok(());
        }
        Err(format!(
            "liveness: {state} after {steps} steps of good workers: {}",
            self.core.reason()
        ))
    }

    /// One step of a good worker.
    fn work(&mut self, process: usize) -> Result<(), String> {
        let Some(caller) = self.processes[process].caller else { return Ok(()) };
        let clock = self.processes[process].clock;
        let beat = self.call(process);
        self.step(Input::Heartbeat { call: beat, caller, stats: WorkerStats::default() })?;
        if self.core.state() >= JobState::Finishing {
            self.processes[process].caller = None;
            self.processes[process].before = Some(caller);
            let input = self.leave(process, Life::Before);
            return self.step(input).map(drop);
        }
        if self.plan.rounds.is_some_and(|rounds| clock >= rounds) {
            return Ok(());
        }
        let waits = self.ledger.open().any(|call| self.made_by[call.0 as usize] == process);
        if waits {
            return Ok(());
        }
        if let Some(header) = self.processes[process].pushing {
            let input = self.push(process, header, 0, true);
            return self.step(input).map(drop);
        }
        let Some(version_pulled) = self.processes[process].theta else {
            let request =
                PullRequest { caller, version_min: 0, r#final: false, wait_max: None, exchange: 0 };
            let (call, conn) = (self.call(process), self.connection(process));
            return self.step(Input::Pull { call, conn, request }).map(drop);
        };
        let header = PushHeader {
            caller,
            clock,
            version_pulled,
            n_samples: 1,
            loss: None,
            penalty: None,
            wait_max: None,
            exchange: 0,
        };
        self.ledger.check_bound(&header)?;
        // Before the step, which may answer it: sent again only if it is told to wait.
        self.processes[process].pushing = Some(header);
        let input = self.push(process, header, 0, true);
        self.step(input).map(drop)
    }

    /// In time every call is answered, every gradient used or forgotten, and the server may go.
    fn settle(&mut self) -> Result<(), String> {
        for process in 0..self.processes.len() {
            let conn = self.connection(process);
            self.step(Input::Disconnected { conn })?;
        }
        for _ in 0..3 {
            self.now += Duration::from_millis(self.plan.lease_ms + self.plan.hold_ms);
            self.step(Input::Tick)?;
            self.obey()?;
        }
        let open: Vec<CallId> = self.ledger.open().collect();
        if !open.is_empty() || self.ledger.n_gradients() > 0 || !self.core.is_over() {
            return Err(format!(
                "at the end {open:?} are open, {} gradients kept, over: {}",
                self.ledger.n_gradients(),
                self.core.is_over()
            ));
        }
        Ok(())
    }
}
