//! Products with rows, dense and sparse: `Z += X W` and `G += X^T R`.
//!
//! Rows are taken in blocks, so that a block is still in the cache when its transpose is
//! multiplied, a batch needs no more memory than a block, and f32 sums stay short. Owns how rows
//! are reached; knows no loss. W, G are features by outputs and Z, R rows by outputs, row-major.

use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView1, ArrayView2, ArrayViewMut2};

use super::Real;
use crate::samples::{Features, Selection, SparseRows};

/// Rows of a block at most.
const BLOCK_ROWS: usize = 256;
/// Elements of a dense block that a second-level cache holds.
const BLOCK_ELEMENTS: usize = 1 << 18;

/// Rows of a block: depends on the shape only, as the order of additions does on it.
pub(super) fn block_rows<T>(features: &Features<T>) -> usize {
    match features {
        Features::Dense(rows) => (BLOCK_ELEMENTS / rows.ncols().max(1)).clamp(8, BLOCK_ROWS),
        Features::Sparse(_) => BLOCK_ROWS,
    }
}

impl<T> Features<T> {
    /// Rows.
    pub(super) fn n_rows(&self) -> usize {
        match self {
            Self::Dense(rows) => rows.nrows(),
            Self::Sparse(rows) => rows.starts.len().saturating_sub(1),
        }
    }
}

/// Numbers of rows: an interval, or a list.
#[derive(Debug, Clone, Copy)]
pub(super) enum Which<'a> {
    Range { start: usize, end: usize },
    Listed(&'a [u32]),
}

impl<'a> Which<'a> {
    /// What `selection` means in a shard of `n_rows`.
    pub(super) fn of(n_rows: usize, selection: Selection<'a>) -> Self {
        match selection {
            Selection::All => Self::Range { start: 0, end: n_rows },
            Selection::Rows(rows) => Self::Listed(rows),
        }
    }

    pub(super) fn len(self) -> usize {
        match self {
            Self::Range { start, end } => end - start,
            Self::Listed(rows) => rows.len(),
        }
    }

    /// Consecutive parts of `size` rows, the last one perhaps shorter.
    pub(super) fn blocks(self, size: usize) -> impl Iterator<Item = Self> {
        let n = self.len();
        (0..n).step_by(size).map(move |from| {
            let to = n.min(from + size);
            match self {
                Self::Range { start, .. } => Self::Range { start: start + from, end: start + to },
                Self::Listed(rows) => Self::Listed(&rows[from..to]),
            }
        })
    }

    /// The numbers in order.
    pub(super) fn rows(self) -> impl Iterator<Item = usize> {
        (0..self.len()).map(move |i| match self {
            Self::Range { start, .. } => start + i,
            Self::Listed(rows) => rows[i] as usize,
        })
    }
}

/// Some rows of a shard.
#[derive(Debug)]
pub(super) enum Block<'a, T> {
    Dense(ArrayView2<'a, T>),
    Sparse { rows: &'a SparseRows<T>, which: Which<'a> },
}

impl<'a, T: Real> Block<'a, T> {
    /// The rows `which` of `features`; listed dense rows are copied to `gathered`.
    ///
    /// # Panics
    /// If a row does not exist.
    pub(super) fn new(
        features: &'a Features<T>,
        which: Which<'a>,
        gathered: &'a mut Vec<T>,
    ) -> Self {
        match (features, which) {
            (Features::Sparse(rows), which) => Self::Sparse { rows, which },
            (Features::Dense(rows), Which::Range { start, end }) => {
                Self::Dense(rows.slice(ndarray::s![start..end, ..]))
            }
            (Features::Dense(rows), Which::Listed(list)) => {
                gathered.clear();
                for &row in list {
                    gathered.extend(rows.row(row as usize));
                }
                let shape = (list.len(), rows.ncols());
                Self::Dense(ArrayView2::from_shape(shape, gathered).expect("as many as gathered"))
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Dense(x) => x.nrows(),
            Self::Sparse { which, .. } => which.len(),
        }
    }

    pub(super) fn n_features(&self) -> usize {
        match self {
            Self::Dense(x) => x.ncols(),
            Self::Sparse { rows, .. } => rows.n_features,
        }
    }

    /// `z += X weights`.
    pub(super) fn add_product(&self, weights: &[T], n_outputs: usize, z: &mut [T]) {
        match self {
            Self::Dense(x) if n_outputs == 1 => {
                let w = ArrayView1::from(weights);
                for (z, row) in z.iter_mut().zip(x.outer_iter()) {
                    *z += row.dot(&w);
                }
            }
            Self::Dense(x) => {
                let w = ArrayView2::from_shape((x.ncols(), n_outputs), weights);
                let z = ArrayViewMut2::from_shape((x.nrows(), n_outputs), z);
                let (w, mut z) = (w.expect("d x C weights"), z.expect("m x C scores"));
                general_mat_mul(T::ONE, x, &w, T::ONE, &mut z);
            }
            Self::Sparse { rows, which } if n_outputs == 1 => {
                for (z, row) in z.iter_mut().zip(which.rows()) {
                    for (j, v) in entries(rows, row) {
                        *z += v * weights[j];
                    }
                }
            }
            Self::Sparse { rows, which } => {
                for (z, row) in z.chunks_exact_mut(n_outputs).zip(which.rows()) {
                    for (j, v) in entries(rows, row) {
                        add_scaled(z, v, &weights[j * n_outputs..][..n_outputs]);
                    }
                }
            }
        }
    }

    /// `g += X^T r`; `partial` is working memory.
    pub(super) fn add_transposed(
        &self,
        r: &[T],
        n_outputs: usize,
        g: &mut [T],
        partial: &mut Vec<T>,
    ) {
        match self {
            Self::Dense(x) if n_outputs == 1 => {
                partial.clear();
                partial.resize(g.len(), T::ZERO);
                for (&r, row) in r.iter().zip(x.outer_iter()) {
                    match row.as_slice() {
                        Some(row) => add_scaled(partial, r, row),
                        None => partial.iter_mut().zip(&row).for_each(|(g, &x)| *g += r * x),
                    }
                }
                add_scaled(g, T::ONE, partial);
            }
            Self::Dense(x) => {
                let g = ArrayViewMut2::from_shape((x.ncols(), n_outputs), g);
                let r = ArrayView2::from_shape((x.nrows(), n_outputs), r);
                let (mut g, r) = (g.expect("d x C gradient"), r.expect("m x C derivatives"));
                general_mat_mul(T::ONE, &x.t(), &r, T::ONE, &mut g);
            }
            Self::Sparse { rows, which } if n_outputs == 1 => {
                for (&r, row) in r.iter().zip(which.rows()) {
                    for (j, v) in entries(rows, row) {
                        g[j] += r * v;
                    }
                }
            }
            Self::Sparse { rows, which } => {
                for (r, row) in r.chunks_exact(n_outputs).zip(which.rows()) {
                    for (j, v) in entries(rows, row) {
                        add_scaled(&mut g[j * n_outputs..][..n_outputs], v, r);
                    }
                }
            }
        }
    }
}

/// Columns and values of a sparse row.
fn entries<T: Real>(rows: &SparseRows<T>, row: usize) -> impl Iterator<Item = (usize, T)> {
    let span = rows.starts[row]..rows.starts[row + 1];
    rows.indices[span.clone()].iter().map(|&j| j as usize).zip(rows.values[span].iter().copied())
}

/// `y += a x`.
#[inline]
fn add_scaled<T: Real>(y: &mut [T], a: T, x: &[T]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}
