//! One run: hosts and network, faults at their times, checks all along.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context;
use ps_server::storage::{Fault, Loss};
use turmoil::Sim;

use crate::faults::{Action, Host, Step};
use crate::ledger::{Answer, Answers, Ledger};
use crate::outcome::{Outcome, Recoveries};
use crate::plan::{Durability, Kind, Plan, Problem};
use crate::stage::{End, Stage};

const TICK: Duration = Duration::from_millis(1);
/// Everything is checked after so many ticks, and before every action.
const CHECK_EVERY: u64 = 20;
/// Once faults have stopped, the job has this long beside the time that it takes undisturbed.
const PATIENCE: Duration = Duration::from_secs(180);

/// Runs a plan, in sync mode after its undisturbed run.
///
/// # Errors
/// Of this machine; what the programs did wrong is in the outcome.
pub(crate) fn simulate(plan: &Plan, answers: &Answers) -> anyhow::Result<Outcome> {
    let begun = Instant::now();
    let place = tempfile::tempdir().context("a directory for data")?;
    let data = place.path().join("ledger.svm");
    write_ledger_rows(&data, u64::from(plan.workers) * plan.rounds)?;
    let mut reference = None;
    let mut simulated = Duration::ZERO;
    if plan.problem == Problem::Reference {
        let undisturbed = plan.undisturbed();
        let run = Run::new(&undisturbed, answers, &data).play_out(None);
        simulated += run.sim.elapsed();
        if let Some(what) = &run.violation {
            return Ok(run.outcome(Some(format!("undisturbed: {what}")), simulated, begun));
        }
        reference = run.stage.end.borrow().clone();
    }
    let run = Run::new(plan, answers, &data).play_out(reference.as_ref());
    simulated += run.sim.elapsed();
    Ok(run.outcome(run.violation.clone(), simulated, begun))
}

/// Row i has feature i alone, and 1 as its target.
fn write_ledger_rows(path: &Path, n_rows: u64) -> anyhow::Result<()> {
    let rows: String = (1..=n_rows).map(|i| format!("1 {i}:1\n")).collect();
    std::fs::write(path, rows).with_context(|| format!("cannot write {}", path.display()))
}

/// Since when somebody is waited for.
#[derive(Debug, Default)]
struct Awaited {
    server: Option<Duration>,
    workers: BTreeMap<u32, Duration>,
    links: BTreeMap<u32, Duration>,
}

struct Run<'a> {
    plan: &'a Plan,
    answers: &'a Answers,
    sim: Sim<'static>,
    stage: Rc<Stage>,
    ledger: Ledger,
    trace: DefaultHasher,
    violation: Option<String>,
    faults: BTreeMap<Kind, u64>,
    awaited: Awaited,
    recoveries: Recoveries,
    /// Hosts whose crash was left out, because their programs had ended.
    spared: Vec<Host>,
    server_was_lost: bool,
    /// The disk's operation at which the server's power fails.
    power: Option<u64>,
    checks: u64,
}

impl<'a> Run<'a> {
    fn new(plan: &'a Plan, answers: &'a Answers, data: &Path) -> Self {
        let stage = Stage::new(plan, data.to_owned());
        let mut sim = turmoil::Builder::new()
            .tick_duration(TICK)
            .simulation_duration(Duration::from_secs(86_400))
            .rng_seed(plan.seed)
            .min_message_latency(Duration::from_millis(plan.latency_ms.0))
            .max_message_latency(Duration::from_millis(plan.latency_ms.1))
            .tcp_capacity(1024)
            .build();
        sim.host(Host::Server.to_string(), {
            let stage = Rc::clone(&stage);
            move || Rc::clone(&stage).server()
        });
        for rank in 0..plan.workers {
            sim.host(Host::Worker(rank).to_string(), {
                let stage = Rc::clone(&stage);
                move || Rc::clone(&stage).worker(rank)
            });
        }
        Self {
            plan,
            answers,
            sim,
            stage,
            ledger: Ledger::default(),
            trace: DefaultHasher::new(),
            violation: None,
            faults: BTreeMap::new(),
            awaited: Awaited::default(),
            recoveries: Recoveries::default(),
            spared: Vec::new(),
            server_was_lost: false,
            power: None,
            checks: 0,
        }
    }

    /// Runs until all have ended or something does not hold; theta must end as in `reference`.
    fn play_out(mut self, reference: Option<&End>) -> Self {
        let result = self.play().and_then(|()| self.check_end(reference));
        self.violation = result.err();
        self
    }

    fn play(&mut self) -> Result<(), String> {
        let mut steps = self.plan.steps.iter().copied().peekable();
        let last = self.plan.steps.last().map_or(Duration::ZERO, |step| step.at);
        let alone = self.plan.rounds * (self.plan.compute_ms.1 + 4 * self.plan.latency_ms.1);
        let deadline = last + PATIENCE + Duration::from_millis(alone);
        for tick in 0u64.. {
            while let Some(step) = steps.next_if(|step| step.at <= self.sim.elapsed()) {
                self.check()?;
                self.act(step);
            }
            self.sim.step().map_err(|e| format!("a program broke off: {e}"))?;
            self.hear()?;
            self.watch_power();
            if tick % CHECK_EVERY == 0 {
                self.check()?;
            }
            if let Some(failure) = self.stage.failures.borrow().first() {
                return Err(format!("a program failed: {failure}"));
            }
            if self.stage.is_over() {
                break;
            }
            if self.sim.elapsed() > deadline {
                return Err(self.stuck(last));
            }
        }
        self.check()
    }

    fn stuck(&self, last: Duration) -> String {
        let state = self.stage.shell.borrow().as_ref().map(|shell| {
            let status = shell.driver().status(Duration::ZERO);
            let clocks: Vec<_> =
                status.workers.iter().map(|w| (w.rank, w.state, w.clock)).collect();
            format!("{:?} at version {}, {clocks:?}", status.state, status.version)
        });
        format!(
            "no progress: not over {:?} after the last fault; workers done {:?}; the server {state:?}",
            self.sim.elapsed().saturating_sub(last),
            self.stage.done.borrow(),
        )
    }

    fn act(&mut self, step: Step) {
        let now = self.sim.elapsed();
        match step.action {
            Action::Crash(host) if self.is_to_be_spared(host) => {
                self.spared.push(host);
                return;
            }
            Action::Rot(_) if self.spared.contains(&Host::Server) => return,
            Action::Start(host) if self.spared.contains(&host) => {
                self.spared.retain(|spared| *spared != host);
                return;
            }
            Action::PowerFails(n) => {
                if self.is_to_be_spared(Host::Server) {
                    self.spared.push(Host::Server);
                } else {
                    let disk = &self.stage.disk.0;
                    disk.order(disk.n_operations() + n, Fault::Crash);
                    self.power = Some(disk.n_operations() + n);
                }
                return;
            }
            Action::Crash(Host::Server) => self.lose_server(Loss::Nothing),
            // It did not come to the operation at which the power was to fail.
            Action::Rot(_) if self.power.is_some() => self.power_fails(),
            Action::Start(Host::Server) => {
                if self.power.is_some() {
                    self.power_fails();
                }
                self.awaited.server = Some(now);
            }
            Action::Start(Host::Worker(rank)) => {
                self.awaited.workers.insert(rank, now);
            }
            Action::Mend(rank) | Action::MendIn(rank) | Action::MendOut(rank) => {
                self.awaited.links.insert(rank, now);
            }
            _ => {}
        }
        if let Some(kind) = step.fault {
            *self.faults.entry(kind).or_default() += 1;
        }
        tracing::info!(%step, "fault");
        (now, format!("{:?}", step.action)).hash(&mut self.trace);
        step.action.apply(&mut self.sim, &self.stage.breakers, &self.stage.disk);
    }

    /// Cuts the power at the disk's operation that it was ordered for: torn in the middle.
    fn watch_power(&mut self) {
        if self.power.is_some_and(|n| self.stage.disk.0.n_operations() > n) {
            for rank in 0..self.plan.workers {
                Action::Cut(rank).apply(&mut self.sim, &self.stage.breakers, &self.stage.disk);
            }
            self.power_fails();
        }
    }

    fn power_fails(&mut self) {
        self.power = None;
        let now = self.sim.elapsed();
        tracing::info!(?now, "the server's power fails");
        now.hash(&mut self.trace);
        *self.faults.entry(Kind::ServerPower).or_default() += 1;
        self.lose_server(Loss::Some(self.trace.finish()));
    }

    /// What a dying server does in its last moment does not count.
    fn lose_server(&mut self, loss: Loss) {
        self.server_was_lost = true;
        self.stage.disk.stop();
        self.sim.crash(Host::Server.to_string().as_str());
        *self.stage.shell.borrow_mut() = None;
        self.stage.disk.restart(loss);
    }

    /// A program that has ended is not to be crashed. A server that keeps nothing is not either, once
    /// a worker is gone for good: nobody would bring the lost clocks again.
    fn is_to_be_spared(&mut self, host: Host) -> bool {
        let any_done = self.stage.done.borrow().iter().any(|done| *done);
        let keeps = self.plan.durability != Durability::Memory;
        !self.sim.is_host_running(host.to_string().as_str())
            || (host == Host::Server && any_done && !keeps)
    }

    /// Takes in what workers were told.
    fn hear(&mut self) -> Result<(), String> {
        let now = self.sim.elapsed();
        for answer in self.answers.take() {
            tracing::debug!(?now, ?answer, "told");
            (now, &answer).hash(&mut self.trace);
            self.ledger.enter(&answer, self.may_be_undone())?;
            self.recovered(&answer, now);
        }
        Ok(())
    }

    fn recovered(&mut self, answer: &Answer, now: Duration) {
        let since = |from: Duration| u64::try_from((now - from).as_millis()).unwrap_or(u64::MAX);
        let Awaited { server, workers, links } = &mut self.awaited;
        self.recoveries.server.extend(server.take().map(since));
        self.recoveries.worker.extend(workers.remove(&answer.rank).map(since));
        self.recoveries.heal.extend(links.remove(&answer.rank).map(since));
    }

    /// Whether what was acknowledged may have been lost with a server, to be done again.
    fn may_be_undone(&self) -> bool {
        self.server_was_lost && self.plan.durability != Durability::Always
    }

    /// What must hold at any time.
    fn check(&mut self) -> Result<(), String> {
        let Some(shell) = self.stage.shell.borrow().clone() else { return Ok(()) };
        self.checks += 1;
        shell.driver().check()?;
        if self.plan.problem == Problem::Ledger
            && let Some(theta) = shell.driver().snapshot()
        {
            let values = theta.values::<f64>();
            let balance = self.ledger.balance(&values, self.plan.rounds);
            let lost = if self.may_be_undone() { 0 } else { balance.lost };
            if lost + balance.twice > 0 {
                return Err(format!("theta differs from what workers were told: {balance:?}"));
            }
            let sum: f64 = values.iter().sum();
            if sum != theta.version as f64 {
                return Err(format!(
                    "theta adds up to {sum} pushes, its version is {}",
                    theta.version
                ));
            }
        }
        Ok(())
    }

    fn check_end(&mut self, reference: Option<&End>) -> Result<(), String> {
        let Some(end) = self.stage.end.borrow().clone() else { return Err("no report".to_owned()) };
        let plan = self.plan;
        let all = u64::from(plan.workers) * plan.rounds;
        let version = match plan.problem {
            Problem::Reference => plan.rounds,
            Problem::Ledger if plan.on_worker_loss == "wait" => all,
            // Who was lost at the end is not waited for.
            Problem::Ledger => end.version,
        };
        if end.version != version {
            return Err(format!("the job ended at version {}, expected {version}", end.version));
        }
        match reference {
            Some(undisturbed) if undisturbed.sha256 != end.sha256 => {
                Err(format!("theta ends as {}, undisturbed as {}", end.sha256, undisturbed.sha256))
            }
            _ => Ok(()),
        }
    }

    fn outcome(&self, violation: Option<String>, simulated: Duration, begun: Instant) -> Outcome {
        let theta = self.stage.shell.borrow().as_ref().and_then(|shell| shell.driver().snapshot());
        let balance = match (self.plan.problem, theta) {
            (Problem::Ledger, Some(theta)) => {
                self.ledger.balance(&theta.values::<f64>(), self.plan.rounds)
            }
            _ => Default::default(),
        };
        let (lost, undone) = match self.may_be_undone() {
            true => (0, balance.lost),
            false => (balance.lost, 0),
        };
        Outcome {
            seed: self.plan.seed,
            mode: self.plan.mode,
            violation,
            faults: self.faults.clone(),
            acknowledged: self.ledger.n_counted(),
            dropped: self.ledger.n_dropped(),
            lost,
            undone,
            twice: balance.twice,
            checks: self.checks,
            simulated_seconds: simulated.as_secs_f64(),
            wall_seconds: begun.elapsed().as_secs_f64(),
            recoveries: self.recoveries.clone(),
            trace: format!("{:016x}", self.trace.finish()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Fixed;

    #[test]
    fn a_run_is_shorter_where_workers_compute_while_pushes_are_on_their_way() {
        let seconds = |mode: &str, overlap: bool| {
            let mode = Some(clap::ValueEnum::from_str(mode, true).expect("a mode"));
            let durability = Some(Durability::Memory);
            let (workers, rounds) = (Some(2), Some(30));
            let fixed = Fixed {
                mode,
                workers,
                rounds,
                durability,
                n_faults: Some(0),
                overlap,
                ..Fixed::default()
            };
            let drawn = Plan::draw(1, &fixed);
            let plan = Plan { compute_ms: (60, 60), latency_ms: (20, 20), ..drawn };
            let outcome = simulate(&plan, &Answers::default()).expect("runs");
            assert_eq!(outcome.violation, None);
            outcome.simulated_seconds
        };
        for mode in ["async", "ssp"] {
            let (alternating, overlapping) = (seconds(mode, false), seconds(mode, true));
            // A message each way is 40 ms beside the 60 that a gradient takes.
            let saved = alternating - overlapping;
            assert!(saved > 28.0 * 0.04, "{mode}: {alternating} s, {overlapping} s with overlap");
        }
    }
}
