//! Sparse training: a batch as a problem of its own, over the features that its rows have.
//!
//! theta's tables in declared order, each cut to the rows that belong to these features (or whole, if
//! it does not go by features), one after the other, are the theta of the same model over so many
//! features, and the gradient there has the elements of the whole gradient in these rows; all others are
//! 0. Features keep their order, and so do all additions: the bits are those of the whole problem.
//!
//! Owns which rows those are. Knows no network.

use std::sync::Arc;

use ps_common::rows::Rows;

use super::Learner;
use crate::data::Batches;
use crate::model::{Model, Real};
use crate::samples::{Features, Samples, Selection};

/// What a learner knows of the job whose rows it has, where its model is one over the shard's features.
#[derive(Debug, Clone)]
pub(super) struct Sparse<T> {
    /// Over all features.
    whole: Model,
    shard: Names,
    /// The batch that was asked for last, with its number; none of full batches.
    batch: Option<(u64, Compact<T>)>,
}

/// Features of a compact problem as the job names them.
#[derive(Debug, Clone)]
struct Names {
    /// Ascending.
    features: Vec<u32>,
    /// The rows of theta that belong to them, in order of tables.
    rows: Arc<[Rows]>,
}

/// Some rows of the shard over the features that they have.
#[derive(Debug, Clone)]
pub(super) struct Compact<T> {
    pub(super) model: Model,
    pub(super) samples: Samples<T>,
    names: Names,
}

impl<T: Real> Learner<T> {
    /// The same learner for parts of theta: [`Learner::compute`] takes, and gives the gradient of, the
    /// rows that its clock touches, [`Learner::metrics`] takes those that the shard touches.
    ///
    /// # Panics
    /// If the samples are dense, steps are local, or there is an L2 term: then every row counts.
    #[must_use]
    pub fn sparse(self) -> Self {
        assert!(self.local.is_none(), "local steps move all of theta");
        assert!(!self.model.has_penalty(), "an L2 term moves all of theta");
        let (samples, features) = renumbered(self.samples);
        let model = self.model.over(features.len());
        let shard = Names::new(&self.model, features);
        let sparse = Some(Sparse { whole: self.model, shard, batch: None });
        Self { model, samples, sparse, ..self }
    }

    /// The rows of theta that the batch of `clock` touches, in order of tables, each table's ascending;
    /// at least one of each. `None`: all of theta. What belongs to the latest answer is kept.
    pub fn touched(&mut self, clock: u64) -> Option<Arc<[Rows]>> {
        let sparse = self.sparse.as_mut()?;
        let names = match self.is_full_batch {
            true => &sparse.shard,
            false => &sparse.batch(clock, &self.samples, &mut self.batches).names,
        };
        Some(Arc::clone(&names.rows))
    }

    /// As [`Learner::touched`], of all rows of the shard.
    pub fn touched_by_shard(&self) -> Option<Arc<[Rows]>> {
        self.sparse.as_ref().map(|sparse| Arc::clone(&sparse.shard.rows))
    }
}

impl<T: Real> Sparse<T> {
    /// The batch with this number; `samples` are the shard's.
    pub(super) fn batch(
        &mut self,
        number: u64,
        samples: &Samples<T>,
        batches: &mut Batches,
    ) -> &Compact<T> {
        let Self { whole, shard, batch } = self;
        let compact = match batch.take() {
            Some((kept, compact)) if kept == number => compact,
            _ => Compact::of(whole, shard, samples, batches.select(number)),
        };
        &batch.insert((number, compact)).1
    }
}

impl<T: Real> Compact<T> {
    fn of(whole: &Model, shard: &Names, samples: &Samples<T>, selection: Selection<'_>) -> Self {
        let chosen = match selection {
            Selection::All => samples.clone(),
            Selection::Rows(rows) => {
                samples.select(&rows.iter().map(|&row| row as usize).collect::<Vec<_>>())
            }
        };
        let (samples, features) = renumbered(chosen);
        let features = features.iter().map(|&feature| shard.features[feature as usize]).collect();
        let names = Names::new(whole, features);
        Self { model: whole.over(names.features.len()), samples, names }
    }
}

impl Names {
    fn new(whole: &Model, features: Vec<u32>) -> Self {
        let tables = whole.tables();
        let rows = (0..).zip(tables.iter()).map(|(number, table)| {
            let by_feature = (number as usize) < whole.n_tables_by_feature();
            let numbers = match by_feature {
                true => features.clone(),
                false => (0..u32::try_from(table.n_rows()).expect("units, or classes")).collect(),
            };
            Rows::new(tables, number, numbers).expect("rows that the tables have")
        });
        Self { rows: rows.collect(), features }
    }
}

/// Samples over the features that occur in them, counted from 0 in their order, and what these were
/// before. Where none occurs it is the first, as a model has at least one: its gradient is 0.
fn renumbered<T>(samples: Samples<T>) -> (Samples<T>, Vec<u32>) {
    let Features::Sparse(mut rows) = samples.features else { panic!("rows are sparse") };
    let occurring = Occurring::new(&rows.indices, rows.n_features);
    for index in &mut rows.indices {
        *index = occurring.n_below(*index);
    }
    let mut features = occurring.all();
    if features.is_empty() {
        features.push(0);
    }
    rows.n_features = features.len();
    (Samples { features: Features::Sparse(rows), targets: samples.targets }, features)
}

/// A set of numbers as bits, which knows each one's place in its order.
struct Occurring {
    words: Vec<u64>,
    /// Members below each word.
    below: Vec<u32>,
}

impl Occurring {
    /// These numbers, all below `end`.
    fn new(numbers: &[u32], end: usize) -> Self {
        let mut words = vec![0u64; end.div_ceil(64)];
        for &number in numbers {
            words[number as usize / 64] |= 1 << (number % 64);
        }
        let below = words.iter().scan(0, |n, word| {
            let below = *n;
            *n += word.count_ones();
            Some(below)
        });
        Self { below: below.collect(), words }
    }

    /// Members below `number`.
    fn n_below(&self, number: u32) -> u32 {
        let (word, bit) = (number as usize / 64, number % 64);
        self.below[word] + (self.words[word] & ((1 << bit) - 1)).count_ones()
    }

    /// All members, ascending.
    fn all(&self) -> Vec<u32> {
        let mut members = Vec::new();
        for (place, &word) in self.words.iter().enumerate() {
            let mut rest = word;
            while rest != 0 {
                members.push(place as u32 * 64 + rest.trailing_zeros());
                rest &= rest - 1;
            }
        }
        members
    }
}

#[cfg(test)]
#[path = "sparse_tests.rs"]
mod tests;
