//! Which rows each participant learns from.

use ps_common::calls::{Caller, JoinAnswer};
use ps_common::exit::ExitError;
use ps_common::job::{Aggregate, JobState, Mode};
use ps_worker::data::{Purpose, Shard, permutation};
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
    /// Blocks of the rows sorted by class, given out in random order (--seed): shards that differ as
    /// much as they can, after McMahan et al. 2017, section 3.
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
            if model.loss.n_classes().is_none() {
                return Err(ExitError::config(format!(
                    "--deal sorted-by-class has no meaning with --model {model}, whose targets are \
                     no classes"
                )));
            }
            let all = problem.load_all::<T>()?;
            let classes: Vec<f64> = all.targets.iter().map(|target| target.to_f64()).collect();
            let blocks = class_blocks(&classes, n, problem.seed());
            terms
                .zip(blocks)
                .map(|(terms, rows)| problem.learner(all.select(&rows), &terms))
                .collect()
        }
    }
}

/// The rows of each rank: all rows sorted by class, cut as evenly as any data are, the blocks given
/// out in random order. In order of rank neighbours in a ring would have the same classes, and a
/// graph would be judged by how it numbers its peers.
fn class_blocks(classes: &[f64], n: u32, seed: u64) -> Vec<Vec<usize>> {
    let mut rows: Vec<usize> = (0..classes.len()).collect();
    rows.sort_by(|&a, &b| classes[a].total_cmp(&classes[b]));
    let block = |index: u32| {
        let range = Shard { index, of: n, n_samples: rows.len() as u64 }.range();
        rows[range.start as usize..range.end as usize].to_vec()
    };
    permutation(n, seed, Purpose::Deal).into_iter().map(block).collect()
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
        first_keys: vec![0],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_have_few_classes_and_all_rows() {
        let classes: Vec<f64> = (0..31).map(|row| f64::from(row % 3)).collect();
        let blocks = class_blocks(&classes, 7, 5);
        for rows in &blocks {
            let mut of_block: Vec<f64> = rows.iter().map(|&row| classes[row]).collect();
            assert!(of_block.is_sorted());
            of_block.dedup();
            assert!((4..=5).contains(&rows.len()) && of_block.len() <= 2, "{of_block:?}");
            assert!(rows.is_sorted_by(|&a, &b| classes[a] != classes[b] || a < b), "file order");
        }
        let mut rows = blocks.concat();
        rows.sort_unstable();
        assert!(rows.into_iter().eq(0..31));
        assert_ne!(blocks, class_blocks(&classes, 7, 6), "who has which is by the seed");
        assert_eq!(class_blocks(&[1.0, 0.0], 3, 0).concat().len(), 2, "one has none");
    }
}
