//! The server's death and what it comes back with: checkpoints and a journal in memory, through JSON
//! as on a disk.

use std::collections::BTreeMap;

use ps_common::Dtype;
use ps_common::calls::{Caller, WorkerState, WorkerStatus};
use ps_common::job::Durability;

use super::{Process, World};
use crate::core::tests::ledger::Ledger;
use crate::core::{Answer, CallId, Core, Counted, Effect, Input, Saved, Time};

/// How a line of the trace begins: the server came back.
pub(in crate::core::tests) const RESTORED: &str = "restored";
/// A worker said what that undid.
pub(in crate::core::tests) const UNDONE: &str = "undone";

/// What outlives the server.
#[derive(Default)]
pub(super) struct Disk {
    /// The newest checkpoint.
    pub(super) kept: Option<Saved>,
    /// Taken and not written yet.
    pub(super) unsaved: Option<Saved>,
    /// What each update counted, by theta's version before it.
    pub(super) journal: BTreeMap<u64, Vec<Counted>>,
}

impl World {
    pub(super) fn undone(&self) -> u64 {
        let report = self.core.report(self.now, "", "", "");
        report.and_then(|report| report.durability).map_or(0, |durability| durability.undone)
    }

    /// With `always` an update is in the journal before the core hears of it.
    pub(super) fn write_journal(&mut self, input: &Input) {
        let Input::Updated { name, result } = input else { return };
        let Some(order) = self.orders.remove(name) else { return };
        if result.is_ok() && self.is_always() {
            let counted = self.core.counted_by(&order);
            self.disk.journal.insert(self.core.version(), as_written(&counted));
        }
    }

    pub(super) fn is_always(&self) -> bool {
        self.config.checkpoints.is_some_and(|c| c.durability == Durability::Always)
    }

    /// The first who joins as a rank after a restart tells what it undid (rule D6).
    pub(super) fn check_undone(
        &mut self,
        join: Option<(CallId, Option<u64>)>,
        before: u64,
        effects: &[Effect],
    ) -> Result<(), String> {
        let told = self.undone() - before;
        let joined = effects.iter().find_map(|effect| match effect {
            Effect::Reply { call, answer: Answer::Joined(welcome) }
                if join.is_some_and(|(name, _)| name == *call) && !welcome.caller.is_observer() =>
            {
                self.went_back.remove(&welcome.caller.rank)
            }
            _ => None,
        });
        let acknowledged = join.and_then(|(_, acknowledged)| acknowledged).map(|clock| clock + 1);
        let expected = match (joined, acknowledged) {
            (Some(restored), Some(next)) => next.saturating_sub(restored),
            _ => 0,
        };
        if told != expected {
            return Err(format!("{told} clocks are called undone, {expected} were"));
        }
        if told > 0 {
            self.trace.push(format!("{UNDONE} {told}"));
        }
        Ok(())
    }

    /// The server is killed and comes back with what the disk has.
    pub(super) fn crash(&mut self, rejoin: bool) -> Result<(), String> {
        if self.config.checkpoints.is_none() {
            return Ok(());
        }
        self.trace.push(format!("{:?} the server is killed", self.now));
        let before = self.core.status(self.now, "", "");
        self.now = Time::ZERO;
        self.config.boot += 1;
        self.orders.clear();
        self.disk.unsaved = None;
        self.went_back.clear();
        for process in &mut self.processes {
            process.n_connections += 1;
            process.pushing = None;
        }
        let Some(saved) = self.disk.kept.clone() else { return self.begin_anew(before.version) };
        self.restarts += 1;
        let mut core = Core::restore(self.config.clone(), Dtype::F32, saved.clone())
            .map_err(|error| format!("not restored: {error}"))?;
        self.disk.journal.retain(|&version, _| version >= saved.version());
        for counted in self.disk.journal.values() {
            core.replay(counted)?;
        }
        self.trace.push(format!(
            "{RESTORED} to version {} and {} by the journal",
            core.version(),
            self.disk.journal.len()
        ));
        let undone = self.ledger.restart(self.config.clone(), &core);
        if self.is_always() && (core.version() != before.version || !undone.is_empty()) {
            return Err(format!("{undone:?} was acknowledged and is lost"));
        }
        let after = core.status(self.now, "", "");
        for (was, is) in before.workers.iter().zip(&after.workers) {
            if !self.is_always() && is.clock > was.clock {
                return Err(format!("rank {} went ahead to {}", is.rank, is.clock));
            }
            self.went_back.insert(is.rank, is.clock);
            let reached = self.reached.entry(was.rank).or_default();
            *reached = was.clock.max(*reached);
        }
        if after.seconds + 1e-9 < saved.elapsed_seconds() {
            return Err(format!("the job's clock went back to {}", after.seconds));
        }
        self.core = core;
        let effects = self.ledger.resume(&mut self.core, self.now)?;
        self.learn(&effects);
        let report = self.core.report(self.now, "", "", "").and_then(|report| report.durability);
        let restarts = report.map(|durability| durability.restarts);
        if restarts != Some(self.restarts) {
            return Err(format!("{restarts:?} restarts are told, {} were", self.restarts));
        }
        if rejoin { self.rejoin(before.workers) } else { Ok(()) }
    }

    /// There is no checkpoint yet.
    fn begin_anew(&mut self, lost: u64) -> Result<(), String> {
        self.disk.journal.clear();
        if self.is_always() && lost > 0 {
            return Err(format!("{lost} updates and no checkpoint"));
        }
        self.core = Core::new(self.config.clone(), Dtype::F32);
        self.ledger = Ledger::new(self.config.clone());
        self.restarts = 0;
        self.reached.clear();
        for process in &mut self.processes {
            process.acknowledged = None;
        }
        Ok(())
    }

    /// Who held a rank when the server was killed comes back.
    fn rejoin(&mut self, workers: Vec<WorkerStatus>) -> Result<(), String> {
        for worker in workers.iter().filter(|worker| worker.state == WorkerState::Live) {
            let name = Caller { rank: worker.rank, incarnation: worker.incarnation };
            let holds = |process: &Process| process.caller == Some(name);
            let Some(process) = self.processes.iter().position(holds) else { continue };
            // It tells no more than there was.
            let acknowledged = self.processes[process].acknowledged.map_or(0, |clock| clock + 1);
            if acknowledged > self.reached[&worker.rank] {
                return Err(format!("{process} was acknowledged up to {acknowledged}"));
            }
            let join = self.join(process, Some(worker.rank), false, true);
            self.step(join)?;
        }
        Ok(())
    }

    /// What the driver does at once; the checkpoint then waits for its disk.
    pub(super) fn capture(&mut self) -> Result<(), String> {
        if self.ledger.is_capturing() {
            self.disk.unsaved = self.core.save(self.now);
            self.step(Input::Captured)?;
        }
        Ok(())
    }

    pub(super) fn saved(&mut self, fails: bool) -> Result<(), String> {
        if self.ledger.saving().is_none() {
            return Ok(());
        }
        let unsaved = self.disk.unsaved.take().expect("taken when it was captured");
        let version = unsaved.version();
        let result = if fails {
            Err("no space left".to_owned())
        } else {
            let text = serde_json::to_string(&unsaved).expect("plain data");
            let back: Saved = serde_json::from_str(&text).expect("its own");
            if back != unsaved {
                return Err(format!("{unsaved:?} is read as {back:?}"));
            }
            self.disk.kept = Some(back);
            Ok((format!("{version}"), text.len() as u64))
        };
        self.step(Input::Saved { version, result }).map(drop)
    }
}

/// As the journal has it.
fn as_written(counted: &[Counted]) -> Vec<Counted> {
    let text = serde_json::to_string(counted).expect("plain data");
    serde_json::from_str(&text).expect("its own")
}
