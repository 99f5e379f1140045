//! Which rows each participant learns from.

use ps_common::calls::{Caller, JoinAnswer};
use ps_common::exit::ExitError;
use ps_common::job::{Aggregate, JobState, Mode};
use ps_worker::data::Shard;
use ps_worker::learning::{Learner, Problem};
use ps_worker::model::Real;
use serde::Serialize;

use super::settings::Settings;

/// How rows are dealt to shards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Deal {
    /// Contiguous blocks of the file, or with --shuffle of a random order, as every job does it.
    #[default]
    AsRead,
    /// Contiguous blocks of the rows sorted by class, those of one class in file order: shards that
    /// differ as much as they can.
    SortedByClass,
}

/// What the gradients are for: a round of a barrier, or an update of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Use {
    pub(super) mode: Mode,
    pub(super) aggregate: Aggregate,
}

/// A learner for each of `n` participants, in order of rank.
///
/// # Errors
/// Configuration, where rows cannot be sorted by class; bad data.
pub(super) fn learners<T: Real>(
    problem: &Problem,
    n: u32,
    for_use: Use,
    settings: &Settings<'_>,
) -> Result<Vec<Learner<T>>, ExitError> {
    let terms = (0..n).map(|rank| terms(problem, rank, n, for_use, settings));
    match settings.deal {
        Deal::AsRead => terms.map(|terms| problem.load_shard(&terms)).collect(),
        Deal::SortedByClass => {
            let model = problem.model().kind();
            if model.n_classes().is_none() {
                return Err(ExitError::config(format!(
                    "--deal sorted-by-class has no meaning with --model {model}, whose targets are \
                     no classes"
                )));
            }
            let all = problem.load_all::<T>()?;
            let mut order: Vec<usize> = (0..all.len()).collect();
            order.sort_by(|&a, &b| all.targets[a].to_f64().total_cmp(&all.targets[b].to_f64()));
            let n_samples = all.len() as u64;
            let of = |terms: &JoinAnswer| {
                let range = Shard { index: terms.shard, of: n, n_samples }.range();
                all.select(&order[range.start as usize..range.end as usize])
            };
            terms.map(|terms| problem.learner(of(&terms), &terms)).collect()
        }
    }
}

/// What a server would tell the worker of this rank.
fn terms(
    problem: &Problem,
    rank: u32,
    n_shards: u32,
    for_use: Use,
    settings: &Settings<'_>,
) -> JoinAnswer {
    JoinAnswer {
        caller: Caller { rank, incarnation: 1 },
        lease: std::time::Duration::ZERO,
        clock: 0,
        shard: rank,
        n_shards,
        dim: problem.model().dim(),
        dtype: settings.dtype,
        mode: for_use.mode,
        aggregate: for_use.aggregate,
        rounds: Some(settings.rounds),
        version: 0,
        state: JobState::Running,
        program: String::new(),
        fingerprint: problem.fingerprint(Some(settings.dtype)),
        tables: problem.tables().clone(),
    }
}
