//! Which rows of a shard each step uses (rule R10).
//!
//! A pure function of rows, batch size, seed, rank and clock: a worker that starts again computes
//! the gradients that the one before it computed. Knows neither rows nor files.
#![deny(clippy::disallowed_methods)]

use crate::samples::Selection;

use super::shuffle::{Purpose, permutation};
use super::spec::BatchSize;

/// Gives the batch of each clock: batch `clock mod ceil(n / B)` of the order of pass
/// `clock div ceil(n / B)`.
///
/// The last batch of a pass may be short. Full batches take all rows in order. Only the order of
/// the current pass is kept, 4 bytes a row.
#[derive(Debug, Clone)]
pub struct Batches {
    n_rows: u32,
    size: BatchSize,
    seed: u64,
    rank: u32,
    shuffle: bool,
    order: Vec<u32>,
    pass: Option<u64>,
}

impl Batches {
    /// Batches of `size` over a shard of `n_rows`; with `shuffle` each pass has its own random
    /// order, without it batches follow the order of the shard.
    pub fn new(n_rows: u32, size: BatchSize, seed: u64, rank: u32, shuffle: bool) -> Self {
        Self { n_rows, size, seed, rank, shuffle, order: Vec::new(), pass: None }
    }

    /// Steps that visit every row once: ceil(n / B), and 1 for a shard without rows.
    pub fn steps_per_pass(&self) -> u64 {
        match self.size {
            BatchSize::Full => 1,
            BatchSize::Rows(size) => u64::from(self.n_rows.div_ceil(size)).max(1),
        }
    }

    /// The rows of the step at `clock`, in the order in which they count.
    pub fn select(&mut self, clock: u64) -> Selection<'_> {
        let BatchSize::Rows(size) = self.size else { return Selection::All };
        let steps = self.steps_per_pass();
        self.set_order(clock / steps);
        let first = (clock % steps) as usize * size as usize;
        let last = self.order.len().min(first + size as usize);
        Selection::Rows(&self.order[first..last])
    }

    fn set_order(&mut self, pass: u64) {
        if self.pass == Some(pass) || (!self.shuffle && self.pass.is_some()) {
            return;
        }
        self.order = if self.shuffle {
            permutation(self.n_rows, self.seed, Purpose::Pass { rank: self.rank, pass })
        } else {
            (0..self.n_rows).collect()
        };
        self.pass = Some(pass);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rows(batches: &mut Batches, clock: u64) -> Vec<u32> {
        match batches.select(clock) {
            Selection::All => panic!("a batch of rows"),
            Selection::Rows(rows) => rows.to_vec(),
        }
    }

    proptest! {
        #[test]
        fn a_pass_visits_every_row_once(n in 0u32..60, size in 1u32..70, seed: u64, pass in 0u64..9) {
            let mut batches = Batches::new(n, BatchSize::Rows(size), seed, 1, true);
            let steps = batches.steps_per_pass();
            let mut seen = Vec::new();
            for clock in pass * steps..(pass + 1) * steps {
                let batch = rows(&mut batches, clock);
                prop_assert!(batch.len() <= size as usize);
                seen.extend(batch);
            }
            prop_assert_eq!(&seen, &permutation(n, seed, Purpose::Pass { rank: 1, pass }));
        }

        #[test]
        fn a_batch_depends_on_nothing_but_its_clock(clocks in proptest::collection::vec(0u64..50, 1..20)) {
            let new = || Batches::new(10, BatchSize::Rows(3), 5, 0, true);
            let mut used = new();
            for clock in clocks {
                prop_assert_eq!(rows(&mut used, clock), rows(&mut new(), clock));
            }
        }
    }

    #[test]
    fn without_shuffle_batches_follow_the_shard_and_the_last_is_short() {
        let mut batches = Batches::new(5, BatchSize::Rows(2), 9, 0, false);
        assert_eq!(rows(&mut batches, 0), [0, 1]);
        assert_eq!(rows(&mut batches, 2), [4]);
        assert_eq!(rows(&mut batches, 3), [0, 1]);
    }

    #[test]
    fn full_batches_and_empty_shards() {
        assert_eq!(Batches::new(5, BatchSize::Full, 0, 0, true).select(7), Selection::All);
        let mut empty = Batches::new(0, BatchSize::Rows(4), 0, 0, true);
        assert!(rows(&mut empty, 3).is_empty());
    }
}
