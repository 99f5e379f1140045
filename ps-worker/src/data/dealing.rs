//! Which rows of a data set are whose (rule R10).
//!
//! Rows are dealt in file order or in the order of a random permutation, in contiguous blocks, as
//! numpy's `array_split` does it.

use std::ops::Range;

use ps_common::exit::ExitError;

use super::shuffle::{Purpose, permutation};
use super::spec::DataSpec;

/// Which rows to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// All, in file order: test data, an evaluator's data, files that are a shard already.
    All,
    /// Those of one worker.
    Shard(Shard),
}

/// One worker's share of `n_samples` rows dealt to `of` workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// The worker's rank, below `of`.
    pub index: u32,
    /// Number of shards, at least 1.
    pub of: u32,
    /// Rows dealt, as the survey counted them.
    pub n_samples: u64,
}

impl Rows {
    /// What the worker of rank `index` among `of` keeps of data with `n_samples` rows.
    pub fn of_worker(spec: &DataSpec, index: u32, of: u32, n_samples: u64) -> Self {
        if spec.data_is_shard { Self::All } else { Self::Shard(Shard { index, of, n_samples }) }
    }
}

impl Shard {
    /// The places dealt to this shard: the first `n_samples mod of` shards get one more.
    ///
    /// # Panics
    /// If `index` is not below `of`.
    pub fn range(&self) -> Range<u64> {
        assert!(self.index < self.of, "shard {} of {}", self.index, self.of);
        let (index, of) = (u64::from(self.index), u64::from(self.of));
        let (each, more) = (self.n_samples / of, self.n_samples % of);
        let start = index * each + index.min(more);
        start..start + each + u64::from(index < more)
    }
}

/// Where rows of the file go in the shard.
#[derive(Debug)]
pub(super) enum Placement {
    /// All rows, as they come.
    All,
    /// A block, as it comes.
    Block(Range<u64>),
    /// (row of the file, place in the shard), by row.
    Places(std::iter::Peekable<std::vec::IntoIter<(u32, u32)>>, usize),
}

impl Placement {
    /// # Errors
    /// Configuration: more rows than can be shuffled.
    pub(super) fn new(spec: &DataSpec, rows: Rows) -> Result<Self, ExitError> {
        let shard = match rows {
            Rows::All => return Ok(Self::All),
            Rows::Shard(shard) => shard,
        };
        let range = shard.range();
        if !spec.shuffle || range.is_empty() {
            return Ok(Self::Block(range));
        }
        let n_samples = u32::try_from(shard.n_samples).map_err(|_| {
            ExitError::config(format!(
                "--shuffle: {} rows are more than the {} that can be shuffled: use --shuffle false",
                shard.n_samples,
                u32::MAX
            ))
        })?;
        let order = permutation(n_samples, spec.seed, Purpose::Deal);
        let mine = &order[range.start as usize..range.end as usize];
        let mut places: Vec<(u32, u32)> = mine.iter().copied().zip(0..).collect();
        places.sort_unstable();
        let n = places.len();
        Ok(Self::Places(places.into_iter().peekable(), n))
    }

    /// Rows kept, where that is known beforehand.
    pub(super) fn n_rows(&self) -> Option<u64> {
        match self {
            Self::All => None,
            Self::Block(range) => Some(range.end - range.start),
            Self::Places(_, n) => Some(*n as u64),
        }
    }

    /// The place of `row`, if it is kept. Rows are asked for in increasing order.
    pub(super) fn place(&mut self, row: u64) -> Option<u64> {
        match self {
            Self::All => Some(row),
            Self::Block(range) => range.contains(&row).then(|| row - range.start),
            Self::Places(places, _) => places
                .next_if(|&(next, _)| u64::from(next) == row)
                .map(|(_, place)| u64::from(place)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(n_samples: u64, of: u32) -> Vec<u64> {
        (0..of)
            .map(|index| Shard { index, of, n_samples }.range())
            .map(|range| range.end - range.start)
            .collect()
    }

    #[test]
    fn blocks_are_those_of_array_split() {
        assert_eq!(lengths(442, 3), [148, 147, 147]);
        assert_eq!(lengths(2, 4), [1, 1, 0, 0]);
        assert_eq!(lengths(1000, 4), [250; 4]);
        let ranges = (0..7).map(|index| Shard { index, of: 7, n_samples: 31 }.range());
        assert!(ranges.flatten().eq(0..31));
    }
}
