//! The gradients of an update, made into what a step takes, block by block.

use ps_common::Element;
use ps_common::job::Combine;

use super::motion::BLOCK;
use super::store::Compensation;
use crate::numeric::{compensate, median, trimmed_mean, weighted_sum};

/// Gradients with their weights, in order, and how they become one, or several in turn.
#[derive(Debug)]
pub(super) struct Aggregate<'a, T> {
    parts: &'a [(&'a [T], f64)],
    combine: Combine,
    compensation: Option<Compensation<'a>>,
}

/// A block of a chunk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Which chunk.
    pub(super) chunk: usize,
    /// Of the block's first element in the chunk.
    pub(super) offset: usize,
    /// Of the block's first element in theta.
    pub(super) key: usize,
    /// At most [`BLOCK`].
    pub(super) len: usize,
}

/// Memory for a block, which stays in the first caches; each part is empty until there is use for it.
#[derive(Debug)]
pub(super) struct Scratch<'a, T> {
    gradient: Vec<T>,
    pulled: Vec<T>,
    /// The parts' elements of a block.
    cut: Vec<(&'a [T], f64)>,
    cut_bare: Vec<&'a [T]>,
    /// Of medians.
    sorted: Vec<T>,
}

impl<T> Default for Scratch<'_, T> {
    fn default() -> Self {
        Self {
            gradient: Vec::new(),
            pulled: Vec::new(),
            cut: Vec::new(),
            cut_bare: Vec::new(),
            sorted: Vec::new(),
        }
    }
}

impl<'a, T: Element> Aggregate<'a, T> {
    pub(super) fn new(
        parts: &'a [(&'a [T], f64)],
        combine: Combine,
        compensation: Option<Compensation<'a>>,
    ) -> Self {
        Self { parts, combine, compensation }
    }

    /// Steps that theta takes.
    pub(super) fn n_steps(&self) -> usize {
        self.combine.n_steps(self.parts.len())
    }

    /// The gradient of a step where it is, bit for bit, one that came in.
    pub(super) fn as_pushed(&self, step: usize, place: Place) -> Option<&'a [T]> {
        let part = match self.combine {
            Combine::Sum if self.parts.len() == 1 => self.parts[0],
            Combine::InTurn => self.parts[step],
            Combine::Sum | Combine::Median | Combine::TrimmedMean { .. } => return None,
        };
        let (gradient, weight) = part;
        let plain = weight == 1.0 && self.compensation.is_none();
        plain.then(|| &gradient[place.key..place.key + place.len])
    }

    /// Writes the gradient of a step; `theta` is what was there before the update.
    pub(super) fn write<'s>(
        &self,
        step: usize,
        place: Place,
        theta: &[T],
        scratch: &'s mut Scratch<'a, T>,
    ) -> &'s mut [T] {
        scratch.gradient.resize(BLOCK, T::ZERO);
        let gradient = &mut scratch.gradient[..place.len];
        let keys = place.key..place.key + place.len;
        let cut = |(values, weight): &(&'a [T], f64)| (&values[keys.clone()], *weight);
        match self.combine {
            Combine::Sum => {
                scratch.cut.clear();
                scratch.cut.extend(self.parts.iter().map(cut));
                weighted_sum(gradient, &scratch.cut);
            }
            Combine::InTurn => weighted_sum(gradient, &[cut(&self.parts[step])]),
            Combine::Median | Combine::TrimmedMean { .. } => {
                scratch.cut_bare.clear();
                scratch.cut_bare.extend(self.parts.iter().map(|part| cut(part).0));
                let sorted = &mut scratch.sorted;
                match self.combine {
                    Combine::TrimmedMean { k } => {
                        trimmed_mean(gradient, &scratch.cut_bare, k as usize, sorted);
                    }
                    _ => median(gradient, &scratch.cut_bare, sorted),
                }
            }
        }
        if let Some(Compensation { lambda, pulled }) = self.compensation {
            let size = size_of::<T>();
            let chunk = pulled.chunk(place.chunk);
            let bytes = &chunk[place.offset * size..][..place.len * size];
            scratch.pulled.resize(BLOCK, T::ZERO);
            let pulled = &mut scratch.pulled[..place.len];
            ps_common::dtype::copy_from_le_bytes(pulled, bytes);
            compensate(gradient, theta, pulled, lambda);
        }
        gradient
    }
}
