//! The norm of a gradient, also where each of several servers has a part of it: the same bits wherever
//! the parts begin and end.
//!
//! A lone server sums squares chunk by chunk from key 0, a chunk block by block, a block in
//! [`Norm::add`]. That order is everybody's. Of a chunk, or else a block, that is all its own a server
//! tells the sum; of a block that ends at another server it tells the elements, so that somebody
//! can put the block together. [`clips`] takes all of that in order of key.

use std::iter;
use std::mem;
use std::ops::Range;

use ps_common::Element;
use ps_common::partition::{Partition, Squares};

use super::aggregate::{Aggregate, Scratch};
use super::store::{AnyTheta, Store, Update, slices};
use super::theta::Settled;
use crate::numeric::Norm;

/// Elements whose squares are summed one after the other; sums of blocks come after that. Another number
/// would be another order, and give other bits.
pub(super) const BLOCK: usize = 2048;

/// Where all of theta is cut into chunks and blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// Elements of all of theta.
    pub(super) dim: usize,
    /// Elements of a chunk.
    pub(super) chunk_len: usize,
}

/// Neighbouring keys of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stretch {
    keys: Range<usize>,
    /// Whether it is a whole chunk or a whole block, and not a part of a block.
    is_whole: bool,
}

/// Squares that cannot be of a server's part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit {
    /// Whose.
    pub partition: Partition,
    /// What was expected, and what was there.
    pub what: String,
}

impl Grid {
    fn chunk(self, key: usize) -> Range<usize> {
        let start = key - key % self.chunk_len;
        start..(start + self.chunk_len).min(self.dim)
    }

    fn block(self, key: usize) -> Range<usize> {
        let chunk = self.chunk(key);
        let start = key - (key - chunk.start) % BLOCK;
        start..(start + BLOCK).min(chunk.end)
    }

    /// `keys` in pieces as large as they are summed by whoever has them all.
    fn stretches(self, keys: Range<usize>) -> impl Iterator<Item = Stretch> {
        let mut from = keys.start;
        iter::from_fn(move || {
            if from == keys.end {
                return None;
            }
            let is_here = |whole: &Range<usize>| keys.start <= whole.start && whole.end <= keys.end;
            let (chunk, block) = (self.chunk(from), self.block(from));
            let part = from..block.end.min(keys.end);
            let stretch = match [chunk, block].into_iter().find(is_here) {
                Some(keys) => Stretch { keys, is_whole: true },
                None => Stretch { keys: part, is_whole: false },
            };
            from = stretch.keys.end;
            Some(stretch)
        })
    }

    /// How many elements and how many sums the server of `keys` tells.
    fn shape(self, keys: Range<usize>) -> (usize, usize) {
        self.stretches(keys).fold((0, 0), |(n_elements, n_sums), stretch| match stretch.is_whole {
            true => (n_elements, n_sums + 1),
            false => (n_elements + stretch.keys.len(), n_sums),
        })
    }
}

impl Stretch {
    /// From its beginning on, the last may be shorter.
    fn blocks(&self) -> impl Iterator<Item = Range<usize>> {
        let end = self.keys.end;
        self.keys.clone().step_by(BLOCK).map(move |start| start..(start + BLOCK).min(end))
    }
}

impl Store {
    /// What [`clips`] has to know of the gradients of an update: of each step's, before it is clipped,
    /// in order. theta stays as it is.
    ///
    /// # Errors
    /// The first key, counted over all of theta, where a step's gradient is not finite.
    ///
    /// # Panics
    /// As [`Store::prepare_clipped`].
    pub fn squares(&mut self, update: &Update<'_>) -> Result<Vec<Squares>, usize> {
        let Update { parts, combine, compensation, .. } = *update;
        let place = (self.grid, self.first_key..self.first_key + self.dim);
        let squares = match &mut self.theta {
            AnyTheta::F32(theta) => {
                let parts = slices(parts);
                squares(&theta.settled(), &Aggregate::new(&parts, combine, compensation), place)
            }
            AnyTheta::F64(theta) => {
                let parts = slices(parts);
                squares(&theta.settled(), &Aggregate::new(&parts, combine, compensation), place)
            }
        };
        squares.map_err(|place| self.first_key + place)
    }

    /// Where all of theta is cut.
    pub fn grid(&self) -> Grid {
        self.grid
    }
}

/// What is told of a stretch.
enum Piece {
    Sum((f64, f64)),
    Elements(Vec<f64>),
}

fn squares<T: Element>(
    theta: &Settled<'_, T>,
    aggregate: &Aggregate<'_, T>,
    (grid, keys): (Grid, Range<usize>),
) -> Result<Vec<Squares>, usize> {
    let piece = |step, stretch: &Stretch| -> Result<Piece, usize> {
        let (mut sum, mut elements) = (Norm::default(), Vec::new());
        let (mut gradient, mut scratch) = (Vec::with_capacity(BLOCK), Scratch::default());
        for block in stretch.blocks() {
            let here = block.start - keys.start..block.end - keys.start;
            theta.write_gradient((aggregate, step), here, (&mut gradient, &mut scratch))?;
            match stretch.is_whole {
                true => sum.add(&gradient),
                false => elements.extend(gradient.iter().map(|x| x.to_f64())),
            }
        }
        Ok(match stretch.is_whole {
            true => Piece::Sum(sum.sums()),
            false => Piece::Elements(elements),
        })
    };
    let of_step = |step| {
        let stretches = grid.stretches(keys.clone()).collect();
        let pieces = theta.threads.share(keys.len(), stretches, |of| piece(step, &of))?;
        let mut squares = Squares::default();
        for piece in pieces {
            match piece {
                Piece::Sum(sums) => squares.sums.push(sums),
                Piece::Elements(elements) => squares.elements.extend(elements),
            }
        }
        Ok(squares)
    };
    (0..aggregate.n_steps()).map(of_step).collect()
}

/// What each step's gradient has to be multiplied by to have a norm of `norm_max` at most; `None` where
/// it is not longer than that. `parts` are all servers', each by step, in order of partition.
///
/// # Errors
/// The first server whose squares are not those of its keys.
pub fn clips(grid: Grid, parts: &[&[Squares]], norm_max: f64) -> Result<Vec<Option<f64>>, Misfit> {
    let (count, n_steps) = (parts.len() as u32, parts.first().map_or(0, |part| part.len()));
    let servers =
        || (0..count).zip(parts).map(move |(index, part)| (Partition { index, count }, *part));
    for (partition, part) in servers() {
        let want = grid.shape(partition.keys(grid.dim));
        let shape = |squares: &Squares| (squares.elements.len(), squares.sums.len());
        if part.len() != n_steps {
            let what = format!("squares of {} steps, not of {n_steps}", part.len());
            return Err(Misfit { partition, what });
        }
        if let Some(got) = part.iter().map(shape).find(|got| *got != want) {
            let what = format!(
                "{} elements and {} sums of squares, not {} and {}",
                got.0, got.1, want.0, want.1
            );
            return Err(Misfit { partition, what });
        }
    }
    let of_step = |step: usize| {
        let parts = servers().map(|(partition, part)| (partition.keys(grid.dim), &part[step]));
        norm(grid, parts).factor(norm_max)
    };
    Ok((0..n_steps).map(of_step).collect())
}

/// The norm out of the squares of each server's keys, which are of the right shape.
fn norm<'a>(grid: Grid, parts: impl Iterator<Item = (Range<usize>, &'a Squares)>) -> Norm {
    let (mut norm, mut of_chunk) = (Norm::default(), Norm::default());
    let mut block = Vec::<f64>::with_capacity(BLOCK);
    for (keys, squares) in parts {
        let (mut elements, mut sums) = (squares.elements.iter(), squares.sums.iter());
        for Stretch { keys, is_whole } in grid.stretches(keys) {
            let last = keys.end - 1;
            if is_whole {
                of_chunk.append(&Norm::of_sums(*sums.next().expect("of the right shape")));
            } else {
                block.extend(elements.by_ref().take(keys.len()));
                if keys.end == grid.block(last).end {
                    of_chunk.add(&block);
                    block.clear();
                }
            }
            if keys.end == grid.chunk(last).end {
                norm.append(&mem::take(&mut of_chunk));
            }
        }
    }
    norm
}
