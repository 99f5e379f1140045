//! Steps of rows: which rows a worker pushes and asks for, step by step, and what theta's rows have to be then.
//!
//! theta is one table. A worker has some batches of rows, spread over all of it, and takes them in turn: what
//! it is given with the answer to one is of the rows of the next, as in training.

use std::fmt;
use std::str::FromStr;

use ps_common::Element;
use ps_common::codec::Codec;
use ps_common::rows::{Rows, elements};
use ps_common::shared::Shared;
use ps_common::tables::{Table, Tables};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::work::{LEARNING_RATE, element};

/// Batches of a worker.
const N_BATCHES: usize = 16;

/// Rows of a step, and elements of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sparse {
    /// Different ones.
    pub(super) rows: usize,
    /// Elements of a row.
    pub(super) width: usize,
}

impl fmt::Display for Sparse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.rows, self.width)
    }
}

impl FromStr for Sparse {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || format!("`{text}` is not ROWSxWIDTH, as in 10000x16");
        let (rows, width) = text.split_once('x').ok_or_else(refused)?;
        match (rows.parse(), width.parse()) {
            (Ok(rows @ 1..=100_000_000), Ok(width @ 1..=1_000_000)) => Ok(Self { rows, width }),
            _ => Err(refused()),
        }
    }
}

impl Sparse {
    /// What is wrong with it for a theta of `n` elements.
    pub(super) fn check(self, n: usize) -> Result<(), String> {
        let Self { rows, width } = self;
        match n.is_multiple_of(width) && n / width >= rows && u32::try_from(n / width).is_ok() {
            true => Ok(()),
            false => Err(format!(
                "{n} elements are no table of at least {rows} rows of {width}, numbered in four bytes"
            )),
        }
    }

    /// Elements of a step.
    pub(super) fn n_elements(self) -> usize {
        self.rows * self.width
    }

    /// theta's only table.
    pub(super) fn tables(self, n: usize) -> Tables {
        let shape = [n / self.width, self.width].map(|len| len as u64);
        Tables::new(vec![Table::zeros("theta", &shape, false)]).expect("checked with the flags")
    }

    /// The rows of a worker's batch, in order: one in each of as many equal stretches of the table.
    fn numbers(self, n: usize, rank: u32, batch: usize) -> Vec<u32> {
        let stretch = n / self.width / self.rows;
        let mut rng = ChaCha8Rng::seed_from_u64(u64::from(rank) << 8 | batch as u64);
        let number = |i: usize| (i * stretch + rng.random_range(0..stretch)) as u32;
        (0..self.rows).map(number).collect()
    }
}

/// What a worker pushes and asks for.
pub(super) struct Batches<T> {
    batches: Vec<(Vec<Rows>, Shared<T>)>,
    /// Steps so far.
    n_steps: u64,
}

impl<T: Element> Batches<T> {
    /// Those of worker `rank`, of a theta of `n` elements.
    pub(super) fn new(sparse: Sparse, n: usize, rank: u32) -> Self {
        let tables = sparse.tables(n);
        let batch = |number| {
            let numbers = sparse.numbers(n, rank, number);
            let rows = vec![Rows::new(&tables, 0, numbers).expect("rows of the table")];
            let values = elements(&rows).map(|key| T::from_f64(gradient(key, rank) as f64));
            let values = Shared::from(values.collect::<Vec<T>>());
            (rows, values)
        };
        Self { batches: (0..N_BATCHES).map(batch).collect(), n_steps: 0 }
    }

    /// The rows and values to push now, and the rows to ask for.
    pub(super) fn next(&mut self) -> (&[Rows], &Shared<T>, &[Rows]) {
        let (rows, values) = &self.batches[self.n_steps as usize % N_BATCHES];
        self.n_steps += 1;
        let (asked, _) = &self.batches[self.n_steps as usize % N_BATCHES];
        (rows, values, asked)
    }

    /// The first key at which `given`, the rows asked for last, is not what `pushes` (by rank) make of zeros,
    /// with what was expected there, and its place in `given`.
    pub(super) fn first_difference(
        &self,
        (sparse, n): (Sparse, usize),
        given: &[T],
        pushes: &[u64],
    ) -> Option<(usize, T, usize)> {
        let mut sums = vec![0i64; n];
        for (rank, &n_pushes) in (0u32..).zip(pushes) {
            for batch in 0..N_BATCHES {
                let times = n_pushes.saturating_sub(batch as u64).div_ceil(N_BATCHES as u64);
                let rows = Rows::new(&sparse.tables(n), 0, sparse.numbers(n, rank, batch));
                for key in elements(&[rows.expect("rows of the table")]) {
                    sums[key] += times as i64 * gradient(key, rank);
                }
            }
        }
        let (asked, _) = &self.batches[self.n_steps as usize % N_BATCHES];
        let wanted = |key: usize| T::from_f64(-LEARNING_RATE * sums[key] as f64);
        let place = elements(asked).zip(given).position(|(key, got)| *got != wanted(key))?;
        let key = elements(asked).nth(place).expect("it is there");
        Some((key, wanted(key), place))
    }
}

fn gradient(key: usize, rank: u32) -> i64 {
    element(key, rank, Codec::PLAIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_spelt_as_they_are_shown_and_have_to_fit() {
        let sparse: Sparse = "10000x16".parse().expect("fine");
        assert_eq!(
            (sparse.rows, sparse.width, sparse.to_string()),
            (10_000, 16, "10000x16".into())
        );
        for bad in ["", "10", "x", "0x16", "10x0", "10x-1", "1x1x1"] {
            assert!(bad.parse::<Sparse>().is_err(), "{bad}");
        }
        assert!(sparse.check(160_000).is_ok());
        for n in [159_984, 160_001, 16 << 32] {
            assert!(sparse.check(n).is_err(), "{n}");
        }
    }

    #[test]
    fn batches_are_rows_in_order_and_differ() {
        let sparse = Sparse { rows: 7, width: 3 };
        let all: Vec<_> = (0..2)
            .flat_map(|rank| (0..N_BATCHES).map(move |batch| sparse.numbers(300, rank, batch)))
            .collect();
        assert!(all.iter().all(|numbers| numbers.is_sorted_by(|a, b| a < b) && numbers[6] < 100));
        let different: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len());
        let dense = Sparse { rows: 100, width: 3 };
        assert_eq!(dense.numbers(300, 1, 2), (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_lost_push_is_found() {
        let (sparse, n) = (Sparse { rows: 4, width: 2 }, 40);
        let mut theta = vec![0f64; n];
        let mut workers = [Batches::<f64>::new(sparse, n, 0), Batches::new(sparse, n, 1)];
        for (worker, n_pushes) in workers.iter_mut().zip([19, 33]) {
            for _ in 0..n_pushes {
                let (rows, values, _) = worker.next();
                let keys = elements(rows).zip(values.iter());
                keys.for_each(|(key, g)| theta[key] -= LEARNING_RATE * g);
            }
        }
        let (asked, _) = &workers[1].batches[33 % N_BATCHES];
        let mut given: Vec<f64> = elements(asked).map(|key| theta[key]).collect();
        let different = |given: &[f64], pushes: &[u64]| {
            workers[1].first_difference((sparse, n), given, pushes).map(|(_, _, place)| place)
        };
        assert_eq!(different(&given, &[19, 33]), None);
        // The rows asked for are those of batch 1, which a 34th push would have moved.
        assert_eq!(different(&given, &[19, 34]), Some(0));
        given[5] += LEARNING_RATE;
        assert_eq!(different(&given, &[19, 33]), Some(5));
    }
}
