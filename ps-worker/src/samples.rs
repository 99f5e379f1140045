//! The rows of a shard in memory: what loaders give and models read.

use ndarray::{Array2, Axis};
use ps_common::Element;

/// Rows and their targets. A target is the number to predict, or a class counted from 0.
#[derive(Debug, Clone, PartialEq)]
pub struct Samples<T> {
    /// One row a sample.
    pub features: Features<T>,
    /// One target a sample.
    pub targets: Vec<T>,
}

/// Feature values, scaled, without a bias column.
#[derive(Debug, Clone, PartialEq)]
pub enum Features<T> {
    /// Samples by features, row-major.
    Dense(Array2<T>),
    /// Compressed rows.
    Sparse(SparseRows<T>),
}

/// Compressed sparse rows: row i has `indices[starts[i]..starts[i + 1]]` and the same `values`.
#[derive(Debug, Clone, PartialEq)]
pub struct SparseRows<T> {
    /// Columns.
    pub n_features: usize,
    /// One more than rows.
    pub starts: Vec<usize>,
    /// Strictly increasing within a row.
    pub indices: Vec<u32>,
    /// As many as indices.
    pub values: Vec<T>,
}

/// Which rows a gradient is taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selection<'a> {
    /// All rows, in order.
    All,
    /// These rows, in this order.
    Rows(&'a [u32]),
}

impl<T: Element> Samples<T> {
    /// Rows.
    pub fn len(&self) -> usize {
        self.targets.len()
    }

    /// Whether the shard has no rows.
    pub fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    /// Columns.
    pub fn n_features(&self) -> usize {
        match &self.features {
            Features::Dense(rows) => rows.ncols(),
            Features::Sparse(rows) => rows.n_features,
        }
    }

    /// A copy of some rows, in the order given.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn select(&self, rows: &[usize]) -> Self {
        let features = match &self.features {
            Features::Dense(all) => Features::Dense(all.select(Axis(0), rows)),
            Features::Sparse(all) => Features::Sparse(all.select(rows)),
        };
        Self { features, targets: rows.iter().map(|&row| self.targets[row]).collect() }
    }
}

impl<T: Element> SparseRows<T> {
    fn select(&self, rows: &[usize]) -> Self {
        let (mut starts, mut indices, mut values) = (vec![0], Vec::new(), Vec::new());
        for &row in rows {
            let of_row = self.starts[row]..self.starts[row + 1];
            indices.extend_from_slice(&self.indices[of_row.clone()]);
            values.extend_from_slice(&self.values[of_row]);
            starts.push(indices.len());
        }
        Self { n_features: self.n_features, starts, indices, values }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chosen_rows_come_in_the_order_given() {
        let dense = Samples {
            features: Features::Dense(ndarray::arr2(&[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])),
            targets: vec![0.0, 1.0, 2.0],
        };
        let chosen = dense.select(&[2, 0]);
        assert_eq!(chosen.features, Features::Dense(ndarray::arr2(&[[5.0, 6.0], [1.0, 2.0]])));
        assert_eq!(chosen.targets, [2.0, 0.0]);

        let rows = |starts: &[usize], indices: &[u32], values: &[f64]| {
            Features::Sparse(SparseRows {
                n_features: 4,
                starts: starts.to_vec(),
                indices: indices.to_vec(),
                values: values.to_vec(),
            })
        };
        let sparse = Samples {
            features: rows(&[0, 2, 2, 3], &[0, 3, 1], &[1.0, 2.0, 3.0]),
            targets: vec![0.0, 1.0, 2.0],
        };
        let chosen = sparse.select(&[2, 1, 0]);
        assert_eq!(chosen.features, rows(&[0, 1, 1, 3], &[1, 0, 3], &[3.0, 1.0, 2.0]));
        assert!(sparse.select(&[]).is_empty());
    }
}
