//! Data sets that the program brings along, as NPY files in memory.
//!
//! Owns their names and values. They are read like any other file.

use std::fmt;
use std::sync::LazyLock;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A data set by name, as `--data` takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Builtin {
    /// Linear regression: 1000 rows of 10 features.
    Reference,
    /// Ten classes in 16 dimensions, 3200 rows, classes in turn.
    Clusters,
    /// The same rows, class after class: dealt in file order, shards see few classes each.
    ClustersSorted,
}

static REFERENCE_X: &[u8] = include_bytes!("../../data/reference/X.npy");
static REFERENCE_Y: &[u8] = include_bytes!("../../data/reference/y.npy");

const N_CLASSES: usize = 10;
const N_FEATURES: usize = 16;
const ROWS_PER_CLASS: usize = 320;
/// Of a coordinate about its cluster's centre; centres themselves spread by 1. The best linear
/// classifier is wrong on about one row in ten.
const SPREAD: f64 = 1.2;

static CLUSTERS: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| clusters(|row| row % N_CLASSES));
static CLUSTERS_SORTED: LazyLock<[Vec<u8>; 2]> =
    LazyLock::new(|| clusters(|row| row / ROWS_PER_CLASS));

impl Builtin {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Reference, Self::Clusters, Self::ClustersSorted];

    /// As `--data` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reference => "reference",
            Self::Clusters => "clusters",
            Self::ClustersSorted => "clusters-sorted",
        }
    }

    /// The data set of that name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|builtin| builtin.name() == name)
    }

    /// Features and targets, each an NPY file.
    pub(super) fn files(self) -> [&'static [u8]; 2] {
        match self {
            Self::Reference => [REFERENCE_X, REFERENCE_Y],
            Self::Clusters => [&CLUSTERS[0], &CLUSTERS[1]],
            Self::ClustersSorted => [&CLUSTERS_SORTED[0], &CLUSTERS_SORTED[1]],
        }
    }
}

impl fmt::Display for Builtin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Normal clusters; `class_of` says which class stands in a row.
fn clusters(class_of: impl Fn(usize) -> usize) -> [Vec<u8>; 2] {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let centres: Vec<f64> = (0..N_CLASSES * N_FEATURES).map(|_| normal(&mut rng)).collect();
    // Drawn class by class whatever the order of rows, which then are the same ones.
    let n_rows = N_CLASSES * ROWS_PER_CLASS;
    let rows: Vec<f64> = (0..n_rows * N_FEATURES)
        .map(|i| {
            let class = i / (ROWS_PER_CLASS * N_FEATURES);
            centres[class * N_FEATURES + i % N_FEATURES] + SPREAD * normal(&mut rng)
        })
        .collect();
    let mut given = [0; N_CLASSES];
    let (mut x, mut y) = (npy_header(&[n_rows, N_FEATURES]), npy_header(&[n_rows]));
    for class in (0..n_rows).map(class_of) {
        let row = class * ROWS_PER_CLASS + given[class];
        given[class] += 1;
        for value in &rows[row * N_FEATURES..][..N_FEATURES] {
            x.extend_from_slice(&value.to_le_bytes());
        }
        y.extend_from_slice(&(class as f64).to_le_bytes());
    }
    [x, y]
}

/// About normal: the sum of twelve uniform numbers less six. Additions only, so that it has the same
/// bits on every machine, which logarithms and cosines have not.
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let uniform = |bits: u32| f64::from(bits) / 4_294_967_296.0;
    (0..12).map(|_| uniform(rng.next_u32())).sum::<f64>() - 6.0
}

/// NPY version 1, little-endian f64, row-major.
fn npy_header(shape: &[usize]) -> Vec<u8> {
    let shape: String = shape.iter().map(|n| format!("{n}, ")).collect();
    let header = format!("{{'descr': '<f8', 'fortran_order': False, 'shape': ({shape})}}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend_from_slice(&(header.len() as u16).to_le_bytes());
    bytes.extend_from_slice(header.as_bytes());
    bytes
}
