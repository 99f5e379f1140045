//! Losses, gradients and predictions: theta and rows in, numbers out.
//!
//! Owns what a model computes ([`Model`]), its flags ([`args`]) and how much of the L2 term a
//! worker adds ([`l2_share`]). Knows no files, no clock, no threads and no network; batches and
//! shards are chosen elsewhere. The same inputs give the same bits.
//!
//! All three models are one linear map `Z = X W + b` under different losses: `rows` has the map and
//! its transpose over dense and sparse rows; `linear`, `logistic` and `softmax` have each the loss
//! of one row of `Z` and its derivative; `kind` chooses among them. With m rows the gradient is
//! `gradient_W = X^T R / m + l2_share * l2 * W`, `gradient_b = (column sums of R) / m`,
//! where row i of `R` is the derivative of row i's loss by row i of `Z`.
//!
//! | model | theta | loss of a row | prediction |
//! |---|---|---|---|
//! | linear | `w` \[d\], `b` \[1\] | `(z - y)^2 / 2` | `z` |
//! | logistic | `w` \[d\], `b` \[1\] | `log(1 + exp(z)) - y z`, y = 0 or 1 | `1 / (1 + exp(-z))` |
//! | softmax | `W` \[d, C\], `b` \[C\] | `-log softmax(z)[y]`, y = 0 .. C-1 | argmax of `z` |
//!
//! Overflow in theta shows as a loss or gradient that is not finite; nothing here panics on it.

#![deny(clippy::disallowed_methods)]

pub mod args;
mod kind;
mod linear;
mod logistic;
mod penalty;
mod rows;
mod softmax;

#[cfg(test)]
mod tests;

use ndarray::{Array2, LinalgScalar};
use ps_common::Element;
use ps_common::exit::{Exit, ExitError};
use ps_common::job::Metrics;
use ps_common::tables::{Table, Tables};

use crate::samples::{Samples, Selection};

pub use args::{ModelArgs, ModelChoice, ModelKind, ModelSpec};
pub use penalty::{l2_share, l2_share_depends_on_shards};
use rows::{Block, Weights, Which};

/// An [`Element`] that `ndarray` multiplies: `f32` or `f64`.
pub trait Real: Element + LinalgScalar + Default {}

impl Real for f32 {}
impl Real for f64 {}

/// A model over rows of a known width.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    kind: ModelKind,
    n_features: usize,
    l2: f64,
    bias: bool,
    tables: Tables,
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

/// Memory that gradients reuse from step to step, so that only general matrix products (softmax on
/// dense rows) allocate, for their packing. Its content never reaches a result.
#[derive(Debug, Clone, Default)]
pub struct Scratch<T> {
    turned: Vec<T>,
    gathered: Vec<T>,
    scores: Vec<T>,
    partial: Vec<T>,
    bias_sums: Vec<f64>,
    exps: Vec<f64>,
}

impl Model {
    /// The model that `spec` describes for rows of `n_features` columns.
    ///
    /// # Errors
    /// Bad data without columns; configuration when theta would be too large.
    pub fn new(spec: &ModelSpec, n_features: usize) -> Result<Self, ExitError> {
        if n_features == 0 {
            return Err(ExitError::new(
                Exit::BadData,
                "the data has no feature columns; --model needs at least one beside the target",
            ));
        }
        let bias = spec.bias;
        let kind = spec.kind()?;
        let (d, c) = (n_features as u64, kind.n_outputs() as u64);
        let mut tables = vec![match kind {
            ModelKind::Linear | ModelKind::Logistic => Table::zeros("w", &[d], true),
            ModelKind::Softmax { .. } => Table::zeros("W", &[d, c], true),
        }];
        if bias {
            tables.push(Table::zeros("b", &[c], false));
        }
        let tables = Tables::new(tables).map_err(|error| {
            ExitError::config(format!("--model {} over {n_features} features", kind)).because(error)
        })?;
        Ok(Self { kind, n_features, l2: spec.l2, bias, tables })
    }

    /// Which model.
    pub fn kind(&self) -> ModelKind {
        self.kind
    }

    /// Columns of the rows, without a bias column.
    pub fn n_features(&self) -> usize {
        self.n_features
    }

    /// Whether theta ends with a bias.
    pub fn has_bias(&self) -> bool {
        self.bias
    }

    /// theta's tables: the weights (penalised), then the bias (not penalised) where there is one.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Elements of theta.
    pub fn dim(&self) -> usize {
        self.n_weights() + if self.bias { self.kind.n_outputs() } else { 0 }
    }

    fn n_weights(&self) -> usize {
        self.n_features * self.kind.n_outputs()
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
        let Some((row, y)) = self.kind.find_wrong_target(&samples.targets) else { return Ok(()) };
        bad(format!(
            "row {}: target {y}, where --model {} expects {}",
            row + 1,
            self.kind,
            self.kind.targets_expected()
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
        let c = self.kind.n_outputs();
        scratch.bias_sums.clear();
        scratch.bias_sums.resize(c, 0.0);
        scratch.exps.resize(c, 0.0);
        let (gradient_w, gradient_b) = gradient.split_at_mut(self.n_weights());
        let (weights, bias) = theta.split_at(self.n_weights());
        let w = Weights::new(weights, c, &samples.features, &mut scratch.turned);
        let mut loss_sum = 0.0;
        for which in which.blocks(rows::block_rows(&samples.features)) {
            let block = Block::new(&samples.features, which, &mut scratch.gathered);
            self.write_scores(&w, bias, &block, &mut scratch.scores);
            for (row, z) in which.rows().zip(scratch.scores.chunks_exact_mut(c)) {
                loss_sum += self.kind.derive(z, samples.targets[row], &mut scratch.exps);
                for (sum, &r) in scratch.bias_sums.iter_mut().zip(&*z) {
                    *sum += r.to_f64();
                }
            }
            block.add_transposed(&scratch.scores, c, gradient_w, &mut scratch.partial);
        }
        let m = n_samples as f64;
        let divisor = T::from_f64(m);
        for g in &mut *gradient_w {
            *g = *g / divisor;
        }
        for (g, &sum) in gradient_b.iter_mut().zip(&scratch.bias_sums) {
            *g = T::from_f64(sum / m);
        }
        penalty::add_gradient(batch.l2_share * self.l2, weights, gradient_w);
        Loss { loss: loss_sum / m, penalty, n_samples: n_samples as u64 }
    }

    /// Loss and, for classifiers, rows predicted right, over all rows.
    ///
    /// # Panics
    /// As [`Model::loss_and_gradient`].
    pub fn metrics<T: Real>(&self, theta: &[T], samples: &Samples<T>) -> Metrics {
        let mut exps = vec![0.0; self.kind.n_outputs()];
        let (mut loss_sum, mut n_correct) = (0.0, 0u64);
        self.for_each_row(theta, samples, |row, z| {
            let y = samples.targets[row];
            n_correct += u64::from(self.kind.is_correct(z, y));
            loss_sum += self.kind.derive(z, y, &mut exps);
        });
        let n = samples.len();
        Metrics {
            n_samples: n as u64,
            loss: if n == 0 { 0.0 } else { loss_sum / n as f64 },
            penalty: self.penalty(theta),
            n_correct: self.kind.n_classes().map(|_| n_correct),
        }
    }

    /// One number a row: linear the value, logistic the probability of class 1, softmax the class.
    ///
    /// A logistic row counts as class 1 where `z >= 0`, which is a probability of one half or more;
    /// among equal softmax scores the lowest class wins. Targets are not looked at and may be absent.
    ///
    /// # Panics
    /// If `theta` has another length than [`Model::dim`] or rows have another width.
    pub fn predict<T: Real>(&self, theta: &[T], samples: &Samples<T>) -> Vec<T> {
        let mut predicted = Vec::with_capacity(samples.features.n_rows());
        self.for_each_row(theta, samples, |_, z| {
            predicted.push(match self.kind {
                ModelKind::Linear => z[0],
                ModelKind::Logistic => T::from_f64(logistic::sigmoid(z[0].to_f64())),
                ModelKind::Softmax { .. } => T::from_f64(softmax::argmax(z) as f64),
            });
        });
        predicted
    }

    /// Probability of each class, rows by classes (logistic has 2); `None` for linear.
    ///
    /// # Panics
    /// As [`Model::predict`].
    pub fn probabilities<T: Real>(&self, theta: &[T], samples: &Samples<T>) -> Option<Array2<f64>> {
        let n_classes = self.kind.n_classes()?;
        let mut all = Array2::zeros((samples.features.n_rows(), n_classes));
        self.for_each_row(theta, samples, |row, z| {
            let mut of_row = all.row_mut(row);
            let of_row = of_row.as_slice_mut().expect("made row-major above");
            if self.kind == ModelKind::Logistic {
                let z = z[0].to_f64();
                of_row.copy_from_slice(&[logistic::sigmoid(-z), logistic::sigmoid(z)]);
            } else {
                softmax::write_probabilities(z, of_row);
            }
        });
        Some(all)
    }

    fn penalty<T: Real>(&self, theta: &[T]) -> f64 {
        assert_eq!(theta.len(), self.dim(), "theta's length");
        penalty::value(self.l2, &theta[..self.n_weights()])
    }

    /// Visits all rows in order with their scores, which the visitor may overwrite.
    fn for_each_row<T: Real>(
        &self,
        theta: &[T],
        samples: &Samples<T>,
        mut visit: impl FnMut(usize, &mut [T]),
    ) {
        assert_eq!(theta.len(), self.dim(), "theta's length");
        let (mut turned, mut gathered, mut scores) = (Vec::new(), Vec::new(), Vec::new());
        let (weights, bias) = theta.split_at(self.n_weights());
        let w = Weights::new(weights, self.kind.n_outputs(), &samples.features, &mut turned);
        let all = Which::of(samples.features.n_rows(), Selection::All);
        for which in all.blocks(rows::block_rows(&samples.features)) {
            let block = Block::new(&samples.features, which, &mut gathered);
            self.write_scores(&w, bias, &block, &mut scores);
            for (row, z) in which.rows().zip(scores.chunks_exact_mut(self.kind.n_outputs())) {
                visit(row, z);
            }
        }
    }

    /// `Z = X W + b` of a block, row-major. `bias` is empty where the model has none.
    fn write_scores<T: Real>(
        &self,
        w: &Weights<'_, T>,
        bias: &[T],
        block: &Block<'_, T>,
        scores: &mut Vec<T>,
    ) {
        assert_eq!(block.n_features(), self.n_features, "features of a row");
        scores.clear();
        if self.bias {
            for _ in 0..block.len() {
                scores.extend_from_slice(bias);
            }
        } else {
            scores.resize(block.len() * self.kind.n_outputs(), T::ZERO);
        }
        block.add_product(w, scores);
    }
}
