//! How an update's gradients move a chunk of theta and what its rule remembers of it, block by block.

use std::ops::Range;

use ps_common::Element;
use ps_common::check::first_non_finite;

use super::aggregate::{Aggregate, Place, Scratch};
use super::state::State;
use crate::numeric::{Optimizer, Step, add_scaled, scale};

/// Elements that are combined and updated in one go: so few that buffers of them stay in the first
/// caches, so many that what is done once a block does not count.
pub(super) const BLOCK: usize = 8192;

/// How an update's gradients move theta.
#[derive(Debug, Clone, Copy)]
pub(super) struct Motion<'a> {
    pub(super) optimizer: &'a Optimizer,
    /// The learning rate, as scheduled.
    pub(super) lr: f64,
    /// Multiplies it.
    pub(super) factor: f64,
    /// Keys that decay applies to, in order.
    pub(super) penalized: &'a [Range<usize>],
}

/// One update, as each chunk of theta takes it.
#[derive(Debug)]
pub(super) struct Move<'a, T> {
    pub(super) aggregate: Aggregate<'a, T>,
    pub(super) motion: Motion<'a>,
    /// What each step's gradient is multiplied by; none if there is no clipping.
    pub(super) clips: &'a [Option<f64>],
    /// Steps before it.
    pub(super) n_before: u64,
}

impl<'a, T: Element> Move<'a, T> {
    /// Writes a chunk's new theta, whatever comes of it, by a rule that remembers nothing: from what it was,
    /// or in place, where gradients must not be compensated. The chunk is known by its index and first key.
    pub(super) fn chunk(
        &self,
        (chunk, key): (usize, usize),
        (theta, old): (&mut [T], Option<&[T]>),
    ) {
        let mut scratch = Scratch::default();
        for place in blocks(chunk, key, theta.len()) {
            let block = place.offset..place.offset + place.len;
            let old = old.map(|old| &old[block.clone()]);
            self.block((&mut theta[block], old), place, None, &mut scratch);
        }
    }

    /// Writes a chunk's new theta beside what it was, and its next state; the error is the first key where
    /// one of both is not finite.
    pub(super) fn chunk_checked(
        &self,
        (chunk, key): (usize, usize),
        (new, old): (&mut [T], &[T]),
        mut state: Option<&mut State<T>>,
    ) -> Result<(), usize> {
        let mut scratch = Scratch::default();
        for place in blocks(chunk, key, old.len()) {
            let block = place.offset..place.offset + place.len;
            let (new, old) = (&mut new[block.clone()], &old[block.clone()]);
            if self.block((&mut *new, Some(old)), place, state.as_deref_mut(), &mut scratch) {
                continue;
            }
            let in_state = state.as_ref().and_then(|state| state.first_non_finite(&block));
            if let Some(index) = first_non_finite(new).into_iter().chain(in_state).min() {
                return Err(place.key + index);
            }
        }
        Ok(())
    }

    /// Writes `new` from `old`, or in place where there is none. Gives whether all that it wrote is finite.
    fn block(
        &self,
        (new, old): (&mut [T], Option<&[T]>),
        place: Place,
        mut state: Option<&mut State<T>>,
        scratch: &mut Scratch<'a, T>,
    ) -> bool {
        let mut is_finite = true;
        let Motion { optimizer, lr, factor, penalized } = self.motion;
        let keys = place.key..place.key + place.len;
        let n_steps = self.aggregate.n_steps();
        if n_steps == 0 {
            if let Some(old) = old {
                new.copy_from_slice(old);
            }
            if let Some(state) = &mut state {
                state.stay(place.offset..place.offset + place.len);
            }
        }
        for which in 0..n_steps {
            // The first step comes from what there was, the others go on from there.
            let from = old.filter(|_| which == 0);
            let theta = from.unwrap_or(new);
            let gradient = self.gradient(which, place, (theta, old.unwrap_or(theta)), scratch);
            let step = optimizer.at(lr, factor, self.n_before + which as u64);
            for (run, penalized) in runs_of(penalized, keys.clone()) {
                let run = run.start - place.key..run.end - place.key;
                let in_chunk = place.offset + run.start..place.offset + run.end;
                let (new, gradient) = (&mut new[run.clone()], &gradient[run.clone()]);
                let (rule, step) = (optimizer.rule, Step { penalized, ..step });
                if let Some(from) = from {
                    let slots = state.as_mut().map(|state| state.turns(in_chunk));
                    is_finite &= rule.step_from(
                        (new, &from[run]),
                        gradient,
                        slots.unwrap_or_default(),
                        &step,
                    );
                } else {
                    let slots = state.as_mut().map(|state| state.next(in_chunk));
                    is_finite &= rule.step(new, gradient, slots.unwrap_or_default(), &step);
                }
            }
        }
        is_finite
    }

    /// The gradient of a step, clipped and with the decay of `theta`, which was `old` before the update.
    fn gradient<'s>(
        &self,
        which: usize,
        place: Place,
        (theta, old): (&[T], &[T]),
        scratch: &'s mut Scratch<'a, T>,
    ) -> &'s [T] {
        let Motion { optimizer, penalized, .. } = self.motion;
        let decay = optimizer.gradient_decay().map(T::from_f64);
        let clip = self.clips.get(which).copied().flatten();
        match self.aggregate.as_pushed(which, place) {
            Some(pushed) if clip.is_none() && decay.is_none() => return pushed,
            _ => {}
        }
        let gradient = self.aggregate.write(which, place, old, scratch);
        if let Some(factor) = clip {
            scale(gradient, factor);
        }
        if let Some(decay) = decay {
            let keys = place.key..place.key + place.len;
            for (run, _) in runs_of(penalized, keys).filter(|(_, yes)| *yes) {
                let run = run.start - place.key..run.end - place.key;
                add_scaled(&mut gradient[run.clone()], &theta[run], decay);
            }
        }
        gradient
    }
}

/// The blocks of chunk `chunk`, whose first key is `start`.
pub(super) fn blocks(chunk: usize, start: usize, len: usize) -> impl Iterator<Item = Place> {
    let block =
        move |offset| Place { chunk, offset, key: start + offset, len: BLOCK.min(len - offset) };
    (0..len).step_by(BLOCK).map(block)
}

/// `keys` cut where penalised ones begin or end, each piece with whether it is penalised.
pub(super) fn runs_of(
    penalized: &[Range<usize>],
    keys: Range<usize>,
) -> impl Iterator<Item = (Range<usize>, bool)> {
    let mut next = penalized.partition_point(|range| range.end <= keys.start);
    let mut from = keys.start;
    std::iter::from_fn(move || {
        if from == keys.end {
            return None;
        }
        let (end, is_penalized) = match penalized.get(next) {
            Some(range) if range.start <= from => {
                next += 1;
                (range.end, true)
            }
            Some(range) => (range.start, false),
            None => (keys.end, false),
        };
        let run = from..end.min(keys.end);
        from = run.end;
        Some((run, is_penalized))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_end_where_penalties_do() {
        let penalized = [2..5, 7..9];
        let runs = |keys| runs_of(&penalized, keys).collect::<Vec<_>>();
        let all = [(0..2, false), (2..5, true), (5..7, false), (7..9, true), (9..12, false)];
        assert_eq!(runs(0..12), all);
        assert_eq!(runs(3..4), [(3..4, true)]);
        assert_eq!(runs(5..8), [(5..7, false), (7..8, true)]);
        assert_eq!(runs(9..10), [(9..10, false)]);
        assert_eq!(runs(4..4), []);
    }
}
