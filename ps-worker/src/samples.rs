//! The rows of a shard in memory: what loaders give and models read.

use ndarray::Array2;
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
}
