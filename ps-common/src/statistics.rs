//! Statistics of features for scaling (rule R10), and their merger over shards.
//!
//! Moments are kept as mean and sum of squared deviations and merged pairwise (Chan, Golub,
//! LeVeque 1979, eq. 2.1), so that nothing cancels. Merging in a fixed order gives fixed bits.

use serde::{Deserialize, Serialize};

/// Per-feature statistics of some rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Statistics {
    /// For `--scale standard`.
    Moments {
        /// Rows seen.
        n_samples: u64,
        /// Mean of each feature.
        mean: Vec<f64>,
        /// Sum over rows of (x - mean)^2.
        deviations: Vec<f64>,
    },
    /// For `--scale minmax`.
    Range {
        /// Rows seen.
        n_samples: u64,
        /// Smallest value of each feature; infinity over no rows.
        min: Vec<f64>,
        /// Largest value of each feature; minus infinity over no rows.
        max: Vec<f64>,
    },
}

impl Statistics {
    /// Moments of no rows.
    pub fn moments(n_features: usize) -> Self {
        Self::Moments {
            n_samples: 0,
            mean: vec![0.0; n_features],
            deviations: vec![0.0; n_features],
        }
    }

    /// Ranges of no rows.
    pub fn range(n_features: usize) -> Self {
        Self::Range {
            n_samples: 0,
            min: vec![f64::INFINITY; n_features],
            max: vec![f64::NEG_INFINITY; n_features],
        }
    }

    /// Rows seen.
    pub fn n_samples(&self) -> u64 {
        match self {
            Self::Moments { n_samples, .. } | Self::Range { n_samples, .. } => *n_samples,
        }
    }

    /// Features.
    pub fn n_features(&self) -> usize {
        match self {
            Self::Moments { mean: first, .. } | Self::Range { min: first, .. } => first.len(),
        }
    }

    /// Counts one row (Welford's update for moments).
    ///
    /// # Panics
    /// If the row has another number of features.
    pub fn add(&mut self, row: &[f64]) {
        assert_eq!(row.len(), self.n_features());
        match self {
            Self::Moments { n_samples, mean, deviations } => {
                *n_samples += 1;
                let n = *n_samples as f64;
                for ((m, d), &x) in mean.iter_mut().zip(deviations).zip(row) {
                    let before = x - *m;
                    *m += before / n;
                    *d += before * (x - *m);
                }
            }
            Self::Range { n_samples, min, max } => {
                *n_samples += 1;
                for ((lo, hi), &x) in min.iter_mut().zip(max).zip(row) {
                    *lo = lo.min(x);
                    *hi = hi.max(x);
                }
            }
        }
    }

    /// Counts the rows of `other` after one's own.
    ///
    /// # Panics
    /// If kinds or numbers of features differ: the caller has checked them.
    pub fn merge(&mut self, other: &Self) {
        assert_eq!(self.n_features(), other.n_features());
        match (self, other) {
            (
                Self::Moments { n_samples, mean, deviations },
                Self::Moments { n_samples: n_other, mean: mean_other, deviations: dev_other },
            ) => {
                if *n_other == 0 {
                    return;
                }
                let (a, b) = (*n_samples as f64, *n_other as f64);
                *n_samples = n_samples.saturating_add(*n_other);
                for (((m, d), &mo), &dev) in
                    mean.iter_mut().zip(deviations).zip(mean_other).zip(dev_other)
                {
                    let apart = mo - *m;
                    *m += apart * (b / (a + b));
                    *d += dev + apart * apart * (a * b / (a + b));
                }
            }
            (
                Self::Range { n_samples, min, max },
                Self::Range { n_samples: n_other, min: min_other, max: max_other },
            ) => {
                *n_samples = n_samples.saturating_add(*n_other);
                for (lo, &x) in min.iter_mut().zip(min_other) {
                    *lo = lo.min(x);
                }
                for (hi, &x) in max.iter_mut().zip(max_other) {
                    *hi = hi.max(x);
                }
            }
            _ => panic!("statistics of different kinds cannot be merged"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(rows: &[[f64; 2]], mut statistics: Statistics) -> Statistics {
        for row in rows {
            statistics.add(row);
        }
        statistics
    }

    #[test]
    fn counts_beyond_the_largest_number_stay_there() {
        for empty in [Statistics::moments(1), Statistics::range(1)] {
            let mut many = empty.clone();
            match &mut many {
                Statistics::Moments { n_samples, .. } | Statistics::Range { n_samples, .. } => {
                    *n_samples = u64::MAX;
                }
            }
            let mut merged = many.clone();
            merged.merge(&many);
            assert_eq!(merged.n_samples(), u64::MAX);
        }
    }

    #[test]
    fn merging_shards_gives_the_statistics_of_the_union() {
        let rows = [[1e8, 1.0], [1e8 + 1.0, -2.0], [1e8 + 2.0, 4.0], [1e8 + 3.0, 0.5]];
        for empty in [Statistics::moments(2), Statistics::range(2)] {
            let whole = of(&rows, empty.clone());
            let mut merged = of(&rows[..1], empty.clone());
            merged.merge(&of(&[], empty.clone()));
            merged.merge(&of(&rows[1..], empty));
            match (&whole, &merged) {
                (
                    Statistics::Moments { deviations: a, mean: m, .. },
                    Statistics::Moments { deviations: b, mean: n, n_samples },
                ) => {
                    assert_eq!(*n_samples, 4);
                    assert!((a[0] - 5.0).abs() < 1e-6 && (b[0] - 5.0).abs() < 1e-6);
                    assert!((m[1] - n[1]).abs() < 1e-15);
                }
                (a, b) => assert_eq!(a, b),
            }
        }
    }
}
