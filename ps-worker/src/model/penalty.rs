//! The L2 term: its value, its gradient, and which part of it each worker adds (rule R11).

use ps_common::job::{Aggregate, Mode};

use super::Real;

/// The factor of a worker's L2 gradient that puts the term into the aggregate exactly once.
///
/// Only workers whose shard has rows add it. With E such shards of K: a weighted mean adds theirs
/// with weights that sum to 1, hence 1; a plain mean divides E terms by K, hence K / E; a sum has E
/// terms, hence 1 / E, and so have the steps of a collected round together. A median or trimmed mean
/// of elements that all carry the whole term carries it once, hence 1. Gradients that are updates of
/// their own carry all of it.
///
/// # Panics
/// If more shards have rows than there are workers.
pub fn l2_share(mode: Mode, aggregate: Aggregate, n_workers: u32, n_shards_with_rows: u32) -> f64 {
    assert!(n_shards_with_rows <= n_workers, "{n_shards_with_rows} shards of {n_workers} workers");
    // Without any rows nobody adds the term, and its factor does not matter.
    let with_rows = f64::from(n_shards_with_rows.max(1));
    if !mode.aggregates() {
        return 1.0;
    }
    match aggregate {
        Aggregate::WeightedMean | Aggregate::Median | Aggregate::TrimmedMean { .. } => 1.0,
        Aggregate::Mean => f64::from(n_workers) / with_rows,
        Aggregate::Sum | Aggregate::Collect => 1.0 / with_rows,
    }
}

/// Whether [`l2_share`] is another one for another number of shards with rows.
pub fn l2_share_depends_on_shards(mode: Mode, aggregate: Aggregate) -> bool {
    l2_share(mode, aggregate, 2, 1) != l2_share(mode, aggregate, 2, 2)
}

/// `(l2 / 2) * |weights|^2` in f64.
pub(super) fn value<T: Real>(l2: f64, weights: &[T]) -> f64 {
    if l2 == 0.0 {
        return 0.0;
    }
    0.5 * l2 * weights.iter().map(|w| w.to_f64() * w.to_f64()).sum::<f64>()
}

/// `gradient += factor * weights`.
pub(super) fn add_gradient<T: Real>(factor: f64, weights: &[T], gradient: &mut [T]) {
    if factor == 0.0 {
        return;
    }
    let factor = T::from_f64(factor);
    for (g, &w) in gradient.iter_mut().zip(weights) {
        *g += factor * w;
    }
}
