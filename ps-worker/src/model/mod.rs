//! Losses, gradients and predictions: theta and rows in, numbers out.
//!
//! Owns what a model computes ([`Model`]), its flags ([`args`]) and how much of the L2 term a
//! worker adds ([`l2_share`]). Knows no files, no clock, no threads and no network; batches and
//! shards are chosen elsewhere. The same inputs give the same bits.
//!
//! A model is a map from a row to its scores `Z` and a loss of a row's scores:
//!
//! | model | map | loss |
//! |---|---|---|
//! | linear, logistic, softmax | `linear`: `Z = X W + b` | squared, logistic, softmax |
//! | mlp | `mlp`: layers of units | softmax, squared or logistic |
//! | fm | `fm`: a linear term and products of pairs of features | squared or logistic |
//!
//! | loss | of a row | prediction |
//! |---|---|---|
//! | squared | `(z - y)^2 / 2` | `z` |
//! | logistic | `log(1 + exp(z)) - y z`, y = 0 or 1 | `1 / (1 + exp(-z))` |
//! | softmax | `-log softmax(z)[y]`, y = 0 .. C-1 | argmax of `z` |
//!
//! `map` chooses among maps and `loss` among losses; here is what all models share: batches in
//! blocks of rows, means over rows, the L2 term. With m rows a table of weights has the gradient
//! `(sum over rows) / m + l2_share * l2 * W`, a table of biases that without the L2 term; sums of
//! biases are f64. `rows` has products with dense and sparse rows.
//!
//! Overflow in theta shows as a loss or gradient that is not finite; nothing here panics on it.

#![deny(clippy::disallowed_methods)]

pub mod args;
mod fm;
mod linear;
mod logistic;
mod loss;
mod map;
mod mlp;
mod penalty;
mod rows;
mod softmax;
mod spec;
mod squared;

#[cfg(test)]
mod tests;

use ndarray::{Array2, LinalgScalar};
use ps_common::Element;
use ps_common::exit::{Exit, ExitError};
use ps_common::job::Metrics;
use ps_common::tables::Tables;

use crate::samples::{Samples, Selection};

pub use args::{ModelArgs, ModelSpec};
pub use loss::RowLoss;
use map::{Map, Work};
pub use penalty::{l2_share, l2_share_depends_on_shards};
use rows::{Block, Which};
pub use spec::{Activation, MapKind, ModelChoice, ModelKind};

/// An [`Element`] that `ndarray` multiplies: `f32` or `f64`.
pub trait Real: Element + LinalgScalar + Default {}

impl Real for f32 {}
impl Real for f64 {}

/// A model over rows of a known width.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    kind: ModelKind,
    map: Map,
    n_features: usize,
    l2: f64,
    bias: bool,
    tables: Tables,
    dim: usize,
}

/// The rows that a gradient is taken over, and how much of the L2 term it carries.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a, T> {
    /// The shard.
    pub samples: &'a Samples<T>,
    /// Which of its rows.
    pub selection: Selection<'a>,
    /// Factor of the L2 gradient, so that the aggregate has it once: see [`l2_share`].
    pub l2_share: f64,
}

/// The objective on a batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Loss {
    /// Mean data loss over the rows, 0 without rows.
    pub loss: f64,
    /// The whole L2 term, `(l2 / 2) * |w|^2`, without the bias and whatever `l2_share` is.
    pub penalty: f64,
    /// Rows.
    pub n_samples: u64,
}

/// Memory that gradients reuse from step to step, so that only general matrix products (many
/// outputs on dense rows) allocate, for their packing. Its content never reaches a result.
#[derive(Debug, Clone, Default)]
pub struct Scratch<T> {
    gathered: Vec<T>,
    exps: Vec<f64>,
    work: Work<T>,
}

impl Model {
    /// The model that `spec` describes for rows of `n_features` columns; `seed` is that of tables
    /// that start at random.
    ///
    /// # Errors
    /// Bad data without columns; configuration when theta would be too large.
    pub fn new(spec: &ModelSpec, n_features: usize, seed: u64) -> Result<Self, ExitError> {
        if n_features == 0 {
            return Err(ExitError::new(
                Exit::BadData,
                "the data has no feature columns; --model needs at least one beside the target",
            ));
        }
        let kind = spec.kind()?;
        let map = Map::new(&kind, n_features, spec.bias);
        let tables = Tables::new(map.tables(seed)).map_err(|error| {
            ExitError::config(format!("--model {kind} over {n_features} features")).because(error)
        })?;
        let dim = tables.dim();
        Ok(Self { kind, map, n_features, l2: spec.l2, bias: spec.bias, tables, dim })
    }

    /// The same model for some of its features, whose theta has the rows of these and is otherwise
    /// this one's. How its tables start says nothing of this one's.
    ///
    /// # Panics
    /// If `n_features` is 0 or above [`Model::n_features`].
    #[must_use]
    pub fn over(&self, n_features: usize) -> Self {
        assert!((1..=self.n_features).contains(&n_features), "{n_features} features");
        let map = Map::new(&self.kind, n_features, self.bias);
        let tables = Tables::new(map.tables(0)).expect("smaller than tables that were checked");
        let dim = tables.dim();
        Self { kind: self.kind.clone(), map, n_features, tables, dim, ..*self }
    }

    /// How many of its tables have a row for each feature: the first ones. The others are the same
    /// for any features.
    pub fn n_tables_by_feature(&self) -> usize {
        self.map.n_tables_by_feature()
    }

    /// Which model.
    pub fn kind(&self) -> &ModelKind {
        &self.kind
    }

    /// Columns of the rows, without a bias column.
    pub fn n_features(&self) -> usize {
        self.n_features
    }

    /// Whether theta has biases.
    pub fn has_bias(&self) -> bool {
        self.bias
    }

    /// Whether the objective has an L2 term.
    pub fn has_penalty(&self) -> bool {
        self.l2 > 0.0
    }

    /// theta's tables: weights are penalised, biases are not.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Elements of theta.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Refuses rows of another width and targets that the model has no loss for.
    ///
    /// Logistic takes 0 and 1, or -1 and +1, not both in one shard; softmax takes 0 .. C-1; linear
    /// takes what is finite.
    ///
    /// # Errors
    /// Bad data, naming the row (counted from 1 within `samples`) and its target.
    pub fn check_samples<T: Real>(&self, samples: &Samples<T>) -> Result<(), ExitError> {
        let bad = |message| Err(ExitError::new(Exit::BadData, message));
        if samples.n_features() != self.n_features {
            return bad(format!(
                "rows have {} features, --model {} was set up for {}",
                samples.n_features(),
                self.kind,
                self.n_features
            ));
        }
        let Some((row, y)) = self.kind.loss.find_wrong_target(&samples.targets) else {
            return Ok(());
        };
        bad(format!(
            "row {}: target {y}, where --model {} expects {}",
            row + 1,
            self.kind,
            self.kind.loss.targets_expected()
        ))
    }

    /// Mean loss over the batch and its gradient, L2 term included as [`Batch`] says.
    ///
    /// Without rows `gradient` is all zeros, without an L2 term, and the loss is 0. The loss is
    /// summed in f64 in the order of the rows.
    ///
    /// # Panics
    /// If `theta` or `gradient` have another length than [`Model::dim`], if rows have another
    /// width, a selected row does not exist, or a target was not let through by
    /// [`Model::check_samples`].
    pub fn loss_and_gradient<T: Real>(
        &self,
        theta: &[T],
        batch: &Batch<'_, T>,
        gradient: &mut [T],
        scratch: &mut Scratch<T>,
    ) -> Loss {
        assert_eq!(gradient.len(), self.dim(), "gradient's length");
        gradient.fill(T::ZERO);
        let samples = batch.samples;
        let which = Which::of(samples.len(), batch.selection);
        let n_samples = which.len();
        let penalty = self.penalty(theta);
        if n_samples == 0 {
            return Loss { loss: 0.0, penalty, n_samples: 0 };
        }
        let Scratch { gathered, exps, work } = scratch;
        let loss = self.kind.loss;
        let n_outputs = loss.n_outputs();
        let n_biases = self.tables.ranges().filter(|(t, _)| !t.penalized).map(|(_, k)| k.len());
        work.bias_sums.clear();
        work.bias_sums.resize(n_biases.sum(), 0.0);
        exps.resize(n_outputs, 0.0);
        self.map.prepare(theta, &samples.features, work);
        let mut loss_sum = 0.0;
        for which in which.blocks(rows::block_rows(&samples.features)) {
            let block = self.block(samples, which, gathered);
            self.map.write_scores(theta, &block, work);
            for (row, z) in which.rows().zip(work.scores.chunks_exact_mut(n_outputs)) {
                loss_sum += loss.derive(z, samples.targets[row], exps);
            }
            self.map.add_gradient(theta, &block, work, gradient);
        }
        let m = n_samples as f64;
        self.finish(theta, m, batch.l2_share * self.l2, &work.bias_sums, gradient);
        Loss { loss: loss_sum / m, penalty, n_samples: n_samples as u64 }
    }

    /// Makes means of sums over `m` rows, and adds the L2 term's gradient.
    fn finish<T: Real>(&self, theta: &[T], m: f64, l2: f64, bias_sums: &[f64], gradient: &mut [T]) {
        let divisor = T::from_f64(m);
        let mut bias_sums = bias_sums.iter();
        for (table, keys) in self.tables.ranges() {
            let of_table = &mut gradient[keys.clone()];
            if table.penalized {
                for g in &mut *of_table {
                    *g = *g / divisor;
                }
                penalty::add_gradient(l2, &theta[keys], of_table);
            } else {
                for (g, &sum) in of_table.iter_mut().zip(&mut bias_sums) {
                    *g = T::from_f64(sum / m);
                }
            }
        }
    }

    /// Loss and, for classifiers, rows predicted right, over all rows.
    ///
    /// # Panics
    /// As [`Model::loss_and_gradient`].
    pub fn metrics<T: Real>(&self, theta: &[T], samples: &Samples<T>) -> Metrics {
        let loss = self.kind.loss;
        let mut exps = vec![0.0; loss.n_outputs()];
        let (mut loss_sum, mut n_correct) = (0.0, 0u64);
        self.for_each_row(theta, samples, |row, z| {
            let y = samples.targets[row];
            n_correct += u64::from(loss.is_correct(z, y));
            loss_sum += loss.derive(z, y, &mut exps);
        });
        let n = samples.len();
        Metrics {
            n_samples: n as u64,
            loss: if n == 0 { 0.0 } else { loss_sum / n as f64 },
            penalty: self.penalty(theta),
            n_correct: loss.n_classes().map(|_| n_correct),
        }
    }

    /// One number a row: by squared loss the value, by logistic loss the probability of class 1, by
    /// softmax the class.
    ///
    /// A logistic row counts as class 1 where `z >= 0`, which is a probability of one half or more;
    /// among equal softmax scores the lowest class wins. Targets are not looked at and may be absent.
    ///
    /// # Panics
    /// If `theta` has another length than [`Model::dim`] or rows have another width.
    pub fn predict<T: Real>(&self, theta: &[T], samples: &Samples<T>) -> Vec<T> {
        let mut predicted = Vec::with_capacity(samples.features.n_rows());
        self.for_each_row(theta, samples, |_, z| predicted.push(self.kind.loss.predict(z)));
        predicted
    }

    /// One number a row, of the kind that targets are: by squared loss the value, else the class, by
    /// logistic loss 0 or 1. The rules of [`Model::predict`] hold.
    ///
    /// # Panics
    /// As [`Model::predict`].
    pub fn predict_targets<T: Real>(&self, theta: &[T], samples: &Samples<T>) -> Vec<T> {
        let mut predicted = Vec::with_capacity(samples.features.n_rows());
        self.for_each_row(theta, samples, |_, z| {
            predicted.push(self.kind.loss.predict_target(z));
        });
        predicted
    }

    /// Probability of each class, rows by classes (logistic has 2); `None` for regression.
    ///
    /// # Panics
    /// As [`Model::predict`].
    pub fn probabilities<T: Real>(&self, theta: &[T], samples: &Samples<T>) -> Option<Array2<f64>> {
        let n_classes = self.kind.loss.n_classes()?;
        let mut all = Array2::zeros((samples.features.n_rows(), n_classes));
        self.for_each_row(theta, samples, |row, z| {
            let mut of_row = all.row_mut(row);
            let of_row = of_row.as_slice_mut().expect("made row-major above");
            self.kind.loss.write_probabilities(z, of_row);
        });
        Some(all)
    }

    fn penalty<T: Real>(&self, theta: &[T]) -> f64 {
        assert_eq!(theta.len(), self.dim, "theta's length");
        let weights = self.tables.ranges().filter(|(table, _)| table.penalized);
        weights.map(|(_, keys)| penalty::value(self.l2, &theta[keys])).sum()
    }

    fn block<'a, T: Real>(
        &self,
        samples: &'a Samples<T>,
        which: Which<'a>,
        gathered: &'a mut Vec<T>,
    ) -> Block<'a, T> {
        let block = Block::new(&samples.features, which, gathered);
        assert_eq!(block.n_features(), self.n_features, "features of a row");
        block
    }

    /// Visits all rows in order with their scores, which the visitor may overwrite.
    fn for_each_row<T: Real>(
        &self,
        theta: &[T],
        samples: &Samples<T>,
        mut visit: impl FnMut(usize, &mut [T]),
    ) {
        assert_eq!(theta.len(), self.dim, "theta's length");
        let Scratch { mut gathered, mut work, .. } = Scratch::default();
        self.map.prepare(theta, &samples.features, &mut work);
        let all = Which::of(samples.features.n_rows(), Selection::All);
        let n_outputs = self.kind.loss.n_outputs();
        for which in all.blocks(rows::block_rows(&samples.features)) {
            let block = self.block(samples, which, &mut gathered);
            self.map.write_scores(theta, &block, &mut work);
            for (row, z) in which.rows().zip(work.scores.chunks_exact_mut(n_outputs)) {
                visit(row, z);
            }
        }
    }
}
