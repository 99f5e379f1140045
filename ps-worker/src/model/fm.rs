//! The factorization machine of degree 2 (Rendle 2010, "Factorization Machines", eq. 1):
//! `z = w0 + sum_j w_j x_j + sum_(i<j) <v_i, v_j> x_i x_j`.
//!
//! Computed in O(n k) a row (section III-A, Lemma 3.1), over the features that are not 0:
//! `sum_(i<j) <v_i, v_j> x_i x_j = (1/2) sum_f ((sum_j v_jf x_j)^2 - sum_j (v_jf x_j)^2)`. Its
//! derivatives are 1 by `w0`, `x_j` by `w_j`, and `x_j s_f - v_jf x_j^2` by `v_jf`, where `s_f` is
//! the inner sum (eq. 4).
//!
//! `V` starts normal with a small deviation: at 0 its gradient would be 0 for ever.

use ps_common::tables::{Initializer, Table};

use super::Real;
use super::map::{Work, add_columns, start_rows};
use super::rows::Block;

/// Features by factors; one score.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fm {
    pub(super) n_features: usize,
    pub(super) n_factors: usize,
    /// Of V at the start.
    pub(super) init_std: f64,
    pub(super) bias: bool,
}

impl Fm {
    /// `w` \[d\], `V` \[d, k\], then `w0` \[1\], which L2 leaves alone.
    pub(super) fn tables(&self, seed: u64) -> Vec<Table> {
        let (d, k) = (self.n_features as u64, self.n_factors as u64);
        let start = Initializer::Normal { std: self.init_std, seed };
        let mut tables = vec![Table::zeros("w", &[d], true), Table::new("V", &[d, k], start, true)];
        if self.bias {
            tables.push(Table::zeros("w0", &[1], false));
        }
        tables
    }

    /// w, V, w0 of theta or of its gradient.
    fn parts<'a, T>(&self, theta: &'a [T]) -> (&'a [T], &'a [T], &'a [T]) {
        let (w, rest) = theta.split_at(self.n_features);
        let (v, w0) = rest.split_at(self.n_features * self.n_factors);
        (w, v, w0)
    }

    pub(super) fn write_scores<T: Real>(
        &self,
        theta: &[T],
        block: &Block<'_, T>,
        work: &mut Work<T>,
    ) {
        let k = self.n_factors;
        let (w, v, w0) = self.parts(theta);
        let Work { scores, factors, partial, .. } = work;
        start_rows(scores, block.len(), 1, w0);
        start_rows(factors, block.len(), k, &[]);
        for (row, (z, sums)) in scores.iter_mut().zip(factors.chunks_exact_mut(k)).enumerate() {
            let squares = &mut *partial;
            start_rows(squares, 1, k, &[]);
            block.for_each_entry(row, |j, x| {
                *z += w[j] * x;
                let of_j = v[j * k..][..k].iter();
                for ((sum, square), &v) in sums.iter_mut().zip(&mut *squares).zip(of_j) {
                    let product = v * x;
                    *sum += product;
                    *square += product * product;
                }
            });
            // In f64: the two sums may be close to each other.
            let twice: f64 =
                sums.iter().zip(squares).map(|(s, q)| s.to_f64() * s.to_f64() - q.to_f64()).sum();
            *z = T::from_f64(z.to_f64() + 0.5 * twice);
        }
    }

    pub(super) fn add_gradient<T: Real>(
        &self,
        theta: &[T],
        block: &Block<'_, T>,
        work: &mut Work<T>,
        gradient: &mut [T],
    ) {
        let k = self.n_factors;
        let (_, v, _) = self.parts(theta);
        add_columns(&mut work.bias_sums, &work.scores);
        let (of_w, rest) = gradient.split_at_mut(self.n_features);
        let of_v = &mut rest[..self.n_features * k];
        let rows = work.scores.iter().zip(work.factors.chunks_exact(k));
        for (row, (&r, sums)) in rows.enumerate() {
            block.for_each_entry(row, |j, x| {
                let rx = r * x;
                of_w[j] += rx;
                let v = v[j * k..][..k].iter();
                for ((g, &v), &sum) in of_v[j * k..][..k].iter_mut().zip(v).zip(sums) {
                    *g += rx * (sum - v * x);
                }
            });
        }
    }
}
