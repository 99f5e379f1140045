//! What a run has to say, as one JSON object.

use std::collections::BTreeMap;

use ps_common::job::Mode;
use serde::{Deserialize, Serialize};

use crate::plan::{Kind, Plan};

/// Of one seed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) seed: u64,
    pub(crate) mode: Mode,
    /// What did not hold.
    pub(crate) violation: Option<String>,
    /// Injected.
    pub(crate) faults: BTreeMap<Kind, u64>,
    /// Pushes whose workers were told that they counted.
    pub(crate) acknowledged: u64,
    /// Pushes whose workers were told that they did not count.
    pub(crate) dropped: u64,
    /// Acknowledged, and not in theta, although it had to be.
    pub(crate) lost: u64,
    /// The same where a crash may undo it, and it was not done again.
    pub(crate) undone: u64,
    /// In theta more than once.
    pub(crate) twice: u64,
    /// Times that everything was checked.
    pub(crate) checks: u64,
    /// Simulated, the undisturbed run included.
    pub(crate) simulated_seconds: f64,
    pub(crate) wall_seconds: f64,
    /// Milliseconds of simulated time.
    pub(crate) recoveries: Recoveries,
    /// Equal for runs that went alike.
    pub(crate) trace: String,
}

impl Outcome {
    /// Of a run that did not come to its end, whose figures are lost.
    pub(crate) fn broken_off(plan: &Plan, what: String) -> Self {
        Self {
            seed: plan.seed,
            mode: plan.mode,
            violation: Some(what),
            faults: BTreeMap::new(),
            acknowledged: 0,
            dropped: 0,
            lost: 0,
            undone: 0,
            twice: 0,
            checks: 0,
            simulated_seconds: 0.0,
            wall_seconds: 0.0,
            recoveries: Recoveries::default(),
            trace: "-".to_owned(),
        }
    }
}

/// How long it took until a push was acknowledged again, in milliseconds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Recoveries {
    /// Of anybody, once the server was back.
    pub(crate) server: Vec<u64>,
    /// Of a worker, once it was back.
    pub(crate) worker: Vec<u64>,
    /// Of a worker, once its link was mended.
    pub(crate) heal: Vec<u64>,
}

impl Recoveries {
    /// Takes those of another run in.
    pub(crate) fn add(&mut self, other: &Self) {
        self.server.extend(&other.server);
        self.worker.extend(&other.worker);
        self.heal.extend(&other.heal);
    }
}
