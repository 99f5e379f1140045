//! The linear map `Z = X W + b`: linear, logistic and softmax regression, by the loss on top.
//!
//! `gradient_W = X^T R`, `gradient_b = ` column sums of `R`, where row i of `R` is the derivative of
//! row i's loss by row i of `Z`.

use ps_common::tables::Table;

use super::Real;
use super::map::{Work, add_columns, start_rows};
use super::rows::{Block, Weights, turn};
use crate::samples::Features;

/// Features by outputs.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Linear {
    pub(super) n_features: usize,
    pub(super) n_outputs: usize,
    pub(super) bias: bool,
}

impl Linear {
    /// `w` \[d\] or `W` \[d, C\], then `b` \[C\]; all start at zero.
    pub(super) fn tables(&self) -> Vec<Table> {
        let (d, c) = (self.n_features as u64, self.n_outputs as u64);
        let mut tables = vec![match c {
            1 => Table::zeros("w", &[d], true),
            _ => Table::zeros("W", &[d, c], true),
        }];
        if self.bias {
            tables.push(Table::zeros("b", &[c], false));
        }
        tables
    }

    fn n_weights(&self) -> usize {
        self.n_features * self.n_outputs
    }

    pub(super) fn prepare<T: Real>(&self, theta: &[T], features: &Features<T>, work: &mut Work<T>) {
        let is_dense = matches!(features, Features::Dense(_));
        work.turned.resize_with(1, Vec::new);
        turn(&theta[..self.n_weights()], self.n_outputs, is_dense, &mut work.turned[0]);
    }

    pub(super) fn write_scores<T: Real>(
        &self,
        theta: &[T],
        block: &Block<'_, T>,
        work: &mut Work<T>,
    ) {
        let (weights, bias) = theta.split_at(self.n_weights());
        start_rows(&mut work.scores, block.len(), self.n_outputs, bias);
        let weights = Weights::new(weights, &work.turned[0], self.n_outputs);
        block.add_product(&weights, &mut work.scores);
    }

    pub(super) fn add_gradient<T: Real>(
        &self,
        block: &Block<'_, T>,
        work: &mut Work<T>,
        gradient: &mut [T],
    ) {
        add_columns(&mut work.bias_sums, &work.scores);
        let gradient = &mut gradient[..self.n_weights()];
        block.add_transposed(&work.scores, self.n_outputs, gradient, &mut work.partial);
    }
}
