//! How scores come about: the one place where the maps from rows to scores are told apart.
//!
//! A map is asked block by block, for scores and then, given the derivative of the loss by each
//! score, for the part of the gradient that the block adds. It knows theta, its tables and rows; no
//! losses, no means over rows and no L2 term.

use ps_common::tables::Table;

use super::Real;
use super::fm::Fm;
use super::linear::Linear;
use super::mlp::Mlp;
use super::rows::Block;
use super::spec::{MapKind, ModelKind};
use crate::samples::Features;

/// A map over rows of a known width.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Map {
    Linear(Linear),
    Mlp(Mlp),
    Fm(Fm),
}

/// Memory of a map and what passes through it. Its content never outlives a call's block.
#[derive(Debug, Clone, Default)]
pub(super) struct Work<T> {
    /// Weights by column, a layer each.
    pub(super) turned: Vec<Vec<T>>,
    /// Out of a map: scores, rows by outputs. Into it: the loss's derivative by each.
    pub(super) scores: Vec<T>,
    /// What each hidden layer gives, rows by units.
    pub(super) layers: Vec<Vec<T>>,
    /// The loss's derivatives by a layer's units, before and after.
    pub(super) deltas: [Vec<T>; 2],
    /// Sums over a row's features, rows by factors.
    pub(super) factors: Vec<T>,
    pub(super) partial: Vec<T>,
    /// Gradient of the tables that are not penalised, one after the other, times the rows.
    pub(super) bias_sums: Vec<f64>,
}

impl Map {
    pub(super) fn new(kind: &ModelKind, n_features: usize, bias: bool) -> Self {
        let n_outputs = kind.loss.n_outputs();
        match &kind.map {
            MapKind::Linear => Self::Linear(Linear { n_features, n_outputs, bias }),
            MapKind::Mlp { hidden, activation } => {
                Self::Mlp(Mlp::new(n_features, hidden, n_outputs, *activation, bias))
            }
            &MapKind::Fm { n_factors, init_std } => {
                Self::Fm(Fm { n_features, n_factors, init_std, bias })
            }
        }
    }

    /// theta's tables. Those that are penalised are weights, the others biases.
    pub(super) fn tables(&self, seed: u64) -> Vec<Table> {
        match self {
            Self::Linear(map) => map.tables(),
            Self::Mlp(map) => map.tables(seed),
            Self::Fm(map) => map.tables(seed),
        }
    }

    /// How many tables have a row for each feature: they come first.
    pub(super) fn n_tables_by_feature(&self) -> usize {
        match self {
            Self::Linear(_) | Self::Mlp(_) => 1,
            Self::Fm(_) => 2,
        }
    }

    /// Before the first block of rows of `features`.
    pub(super) fn prepare<T: Real>(&self, theta: &[T], features: &Features<T>, work: &mut Work<T>) {
        match self {
            Self::Linear(map) => map.prepare(theta, features, work),
            Self::Mlp(map) => map.prepare(theta, features, work),
            Self::Fm(_) => {}
        }
    }

    /// Writes the scores of a block's rows.
    pub(super) fn write_scores<T: Real>(
        &self,
        theta: &[T],
        block: &Block<'_, T>,
        work: &mut Work<T>,
    ) {
        match self {
            Self::Linear(map) => map.write_scores(theta, block, work),
            Self::Mlp(map) => map.write_scores(theta, block, work),
            Self::Fm(map) => map.write_scores(theta, block, work),
        }
    }

    /// Adds the block's part, a sum over its rows: of weights to `gradient`, of biases to
    /// `bias_sums`. The block is the one that scores were written for last.
    pub(super) fn add_gradient<T: Real>(
        &self,
        theta: &[T],
        block: &Block<'_, T>,
        work: &mut Work<T>,
        gradient: &mut [T],
    ) {
        match self {
            Self::Linear(map) => map.add_gradient(block, work, gradient),
            Self::Mlp(map) => map.add_gradient(theta, block, work, gradient),
            Self::Fm(map) => map.add_gradient(theta, block, work, gradient),
        }
    }
}

/// Makes `rows` hold `n_rows` times `bias`, or that many rows of `width` zeros where there is none.
pub(super) fn start_rows<T: Real>(rows: &mut Vec<T>, n_rows: usize, width: usize, bias: &[T]) {
    rows.clear();
    if bias.is_empty() {
        rows.resize(n_rows * width, T::ZERO);
    } else {
        for _ in 0..n_rows {
            rows.extend_from_slice(bias);
        }
    }
}

/// `sums += ` the columns' sums of `rows`, in order of rows, in f64.
pub(super) fn add_columns<T: Real>(sums: &mut [f64], rows: &[T]) {
    if sums.is_empty() {
        return;
    }
    for row in rows.chunks_exact(sums.len()) {
        for (sum, &r) in sums.iter_mut().zip(row) {
            *sum += r.to_f64();
        }
    }
}
