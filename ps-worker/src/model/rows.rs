//! Products with rows, dense and sparse: `Z += X W` and `G += X^T R`.
//!
//! Rows are taken in blocks, so that a block is still in the cache when its transpose is
//! multiplied, a batch needs no more memory than a block, and f32 sums stay short. Owns how rows
//! are reached; knows no loss. W, G are features by outputs and Z, R rows by outputs, row-major.

use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView1, ArrayView2, ArrayViewMut2, Axis};

use super::Real;
use crate::samples::{Features, Selection, SparseRows};

/// Rows of a block at most.
const BLOCK_ROWS: usize = 256;
/// Elements of a dense block that a second-level cache holds.
const BLOCK_ELEMENTS: usize = 1 << 18;
/// Outputs up to which a dense row is multiplied by one column of W at a time. A general product
/// rearranges all of X first, which pays only over many outputs (four times slower at 10).
const NARROW_OUTPUTS: usize = 32;
/// Running sums of a dot product, enough to fill vector registers.
const LANES: usize = 16;

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
        (0..self.len()).map(move |i| self.row(i))
    }

    /// The number at place `i`.
    fn row(self, i: usize) -> usize {
        match self {
            Self::Range { start, .. } => start + i,
            Self::Listed(rows) => rows[i] as usize,
        }
    }
}

/// W as products want it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weights<'a, T> {
    /// Features by outputs.
    rows: &'a [T],
    /// Outputs by features; empty where nothing reads it.
    columns: &'a [T],
    n_outputs: usize,
}

impl<'a, T: Real> Weights<'a, T> {
    /// `rows` is W row-major, `turned` what [`turn`] made of it.
    pub(super) fn new(rows: &'a [T], turned: &'a [T], n_outputs: usize) -> Self {
        let columns = if n_outputs == 1 { rows } else { turned };
        Self { rows, columns, n_outputs }
    }
}

/// Makes `turned` W by column, where products with dense or sparse rows read it so, else empty.
pub(super) fn turn<T: Real>(rows: &[T], n_outputs: usize, is_dense: bool, turned: &mut Vec<T>) {
    turned.clear();
    if is_dense && (2..=NARROW_OUTPUTS).contains(&n_outputs) {
        for k in 0..n_outputs {
            turned.extend(rows.iter().skip(k).step_by(n_outputs));
        }
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
                    let row = rows.row(row as usize);
                    match row.as_slice() {
                        Some(row) => gathered.extend_from_slice(row),
                        None => gathered.extend(row),
                    }
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

    /// Visits what is not 0 in a row of the block: column and value.
    pub(super) fn for_each_entry(&self, row: usize, mut visit: impl FnMut(usize, T)) {
        match self {
            Self::Dense(x) => {
                for (j, &value) in x.row(row).iter().enumerate() {
                    if value != T::ZERO {
                        visit(j, value);
                    }
                }
            }
            Self::Sparse { rows, which } => {
                for (j, value) in entries(rows, which.row(row)) {
                    visit(j, value);
                }
            }
        }
    }

    /// `z += X W`.
    pub(super) fn add_product(&self, w: &Weights<'_, T>, z: &mut [T]) {
        let c = w.n_outputs;
        match self {
            Self::Dense(x) if c <= NARROW_OUTPUTS => {
                let columns = w.columns.chunks_exact(x.ncols());
                for (z, row) in z.chunks_exact_mut(c).zip(x.outer_iter()) {
                    for (z, column) in z.iter_mut().zip(columns.clone()) {
                        *z += match row.as_slice() {
                            Some(row) => dot(row, column),
                            None => row.dot(&ArrayView1::from(column)),
                        };
                    }
                }
            }
            Self::Dense(x) => {
                let w = ArrayView2::from_shape((x.ncols(), c), w.rows);
                let z = ArrayViewMut2::from_shape((x.nrows(), c), z);
                let (w, mut z) = (w.expect("d x C weights"), z.expect("m x C scores"));
                general_mat_mul(T::ONE, x, &w, T::ONE, &mut z);
            }
            Self::Sparse { rows, which } if c == 1 => {
                for (z, row) in z.iter_mut().zip(which.rows()) {
                    for (j, v) in entries(rows, row) {
                        *z += v * w.rows[j];
                    }
                }
            }
            Self::Sparse { rows, which } => {
                for (z, row) in z.chunks_exact_mut(c).zip(which.rows()) {
                    for (j, v) in entries(rows, row) {
                        add_scaled(z, v, &w.rows[j * c..][..c]);
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
                for (r, rows) in r.chunks(4).zip(x.axis_chunks_iter(Axis(0), 4)) {
                    add_rows(&rows, r, partial);
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

/// `a . b` by [`LANES`] interleaved sums, added up in their order, then the rest.
fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = a_chunks.remainder().iter().zip(b_chunks.remainder());
    let mut sums = [T::ZERO; LANES];
    for (a, b) in a_chunks.zip(b_chunks) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let mut sum = T::ZERO;
    for lane in sums {
        sum += lane;
    }
    for (&a, &b) in rest {
        sum += a * b;
    }
    sum
}

/// `g += X^T r` of up to four rows. Four together need a fourth of the loads and stores of `g`.
fn add_rows<T: Real>(x: &ArrayView2<'_, T>, r: &[T], g: &mut [T]) {
    let d = x.ncols();
    match (x.as_slice(), r) {
        (Some(x), &[r0, r1, r2, r3]) => {
            let (x01, x23) = x.split_at(2 * d);
            let ((x0, x1), (x2, x3)) = (x01.split_at(d), x23.split_at(d));
            let columns = x0.iter().zip(x1).zip(x2).zip(x3);
            for (g, (((&x0, &x1), &x2), &x3)) in g.iter_mut().zip(columns) {
                *g += (r0 * x0 + r1 * x1) + (r2 * x2 + r3 * x3);
            }
        }
        _ => {
            for (&r, row) in r.iter().zip(x.outer_iter()) {
                for (g, &x) in g.iter_mut().zip(&row) {
                    *g += r * x;
                }
            }
        }
    }
}

/// `y += a x`.
#[inline]
fn add_scaled<T: Real>(y: &mut [T], a: T, x: &[T]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}
