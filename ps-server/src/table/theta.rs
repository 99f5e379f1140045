//! theta in one element type: its chunks, and the one way in which they change.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use ps_common::Element;
use ps_common::job::Combine;

use super::aggregate::{Aggregate, Place, Scratch};
use super::certain::{Certain, bound_of};
use super::deferred::{Deferred, Held};
use super::gradient::Gradient;
use super::pool::{Chunk, Pool};
use super::state::State;
use super::store::Chunks;
use crate::numeric::{Optimizer, Step, add_scaled, first_non_finite, scale};

/// Elements that are combined and updated in one go: buffers of this size stay in the first caches.
pub(super) const BLOCK: usize = 2048;

/// Earlier versions of theta whose memory is kept: about as many as are on their way to readers at once.
const SPARES_MAX: usize = 8;

/// theta as chunks of `chunk_len` elements; the last may be shorter.
#[derive(Debug)]
pub(super) struct Theta<T: Element> {
    chunk_len: usize,
    now: Now<T>,
    pool: Arc<Pool<T>>,
    work: Work<T>,
    /// What no element is larger than, once it is known.
    bound: Option<f64>,
}

/// The version in force.
#[derive(Debug)]
enum Now<T: Element> {
    Here(Vec<Chunk<T>>),
    /// Some of it may have to be computed yet.
    Deferred(Arc<Deferred<T>>),
}

/// What updates need besides theta.
#[derive(Debug)]
pub(super) struct Work<T> {
    scratch: Scratch<T>,
    /// By chunk; none before the first update, or if the rule remembers nothing.
    states: Vec<State<T>>,
    /// Steps that the states have seen.
    n_steps: u64,
}

/// theta after an update that is not in force yet.
#[derive(Debug)]
pub(super) struct Prepared<T: Element> {
    chunks: Vec<Chunk<T>>,
    /// Taken by it.
    n_steps: u64,
}

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

impl<T: Element> Theta<T> {
    pub(super) fn zeros(dim: usize, chunk_len: usize) -> Self {
        let lens = (0..dim).step_by(chunk_len).map(|start| chunk_len.min(dim - start));
        Self::restored(chunk_len, lens.map(|len| vec![T::ZERO; len]).collect(), (Vec::new(), 0))
    }

    /// With `chunks` of `chunk_len`, and after `n_steps` steps that left `states`.
    pub(super) fn restored(
        chunk_len: usize,
        chunks: Vec<Vec<T>>,
        (states, n_steps): (Vec<State<T>>, u64),
    ) -> Self {
        let dim: usize = chunks.iter().map(Vec::len).sum();
        let pool = Pool::new(chunk_len.min(dim), SPARES_MAX * chunks.len());
        Self {
            chunk_len,
            now: Now::Here(chunks.into_iter().map(|values| pool.adopt(values)).collect()),
            pool,
            work: Work { scratch: Scratch::default(), states, n_steps },
            bound: None,
        }
    }

    /// Lets `write` set the elements of each chunk, given the place of the first.
    ///
    /// # Panics
    /// If somebody reads theta already.
    pub(super) fn fill(&mut self, mut write: impl FnMut(usize, &mut [T])) {
        let first_keys = (0..).step_by(self.chunk_len);
        self.bound = None;
        for (first_key, chunk) in first_keys.zip(self.settle()) {
            write(first_key, chunk.unshared().expect("filled before it is read"));
        }
    }

    /// Every chunk's bytes, without a copy.
    pub(super) fn bytes(&self) -> Chunks {
        match &self.now {
            Now::Here(chunks) => Chunks::Here(chunks.iter().map(Chunk::bytes).collect()),
            Now::Deferred(deferred) => {
                Chunks::Coming(Arc::clone(deferred) as Arc<dyn super::deferred::Coming>)
            }
        }
    }

    /// The version in force, all of it computed.
    fn settle(&mut self) -> &mut Vec<Chunk<T>> {
        if let Now::Deferred(deferred) = &self.now {
            self.now = Now::Here(deferred.finish());
        }
        match &mut self.now {
            Now::Here(chunks) => chunks,
            Now::Deferred(_) => unreachable!("just settled"),
        }
    }

    /// What an update makes of theta, if it is certain that nothing overflows; it has not moved then.
    pub(super) fn certain(
        &mut self,
        parts: &[(Gradient, f64)],
        combine: Combine,
        motion: &Motion<'_>,
    ) -> Option<Certain> {
        Certain::of::<T>(parts, combine, motion, || match self.bound {
            Some(bound) => bound,
            None => {
                let bound = bound_of(self.settle().iter().map(|chunk| &**chunk));
                *self.bound.insert(bound)
            }
        })
    }

    /// Puts an update in force, which [`Theta::certain`] just gave, by the gradients that it was
    /// asked about; it is computed when somebody wants it.
    pub(super) fn defer(
        &mut self,
        certain: Certain,
        gradients: Arc<dyn Held>,
        (optimizer, penalized): (&Optimizer, &Arc<[Range<usize>]>),
    ) {
        let chunks = std::mem::take(self.settle());
        let (theta, rule) = ((self.chunk_len, chunks), (optimizer, penalized));
        let deferred = Deferred::new(theta, &self.pool, rule, certain, gradients);
        self.now = Now::Deferred(Arc::new(deferred));
        self.bound = Some(certain.bound);
        self.work.n_steps += 1;
    }

    /// Steps so far, and by slot and chunk the bytes of what the rule remembers, without a copy;
    /// `None` before the first update, or if it remembers nothing.
    pub(super) fn state_bytes(&self, n_slots: usize) -> Option<(u64, Vec<Vec<Bytes>>)> {
        let Work { states, n_steps, .. } = &self.work;
        let slot = |slot| states.iter().map(|state| state.bytes(slot)).collect();
        (!states.is_empty()).then(|| (*n_steps, (0..n_slots).map(slot).collect()))
    }

    /// Computes theta as the gradients of `aggregate` move it, each step's multiplied by what `clips`
    /// says of it, beside theta as it is. If that would overflow theta or what the rule remembers, the
    /// error is the first such key.
    ///
    /// # Panics
    /// If a part has another length than theta.
    pub(super) fn prepare(
        &mut self,
        aggregate: &mut Aggregate<'_, T>,
        clips: &[Option<f64>],
        motion: &Motion<'_>,
    ) -> Result<Prepared<T>, usize> {
        self.settle();
        self.start(motion);
        let Self { now: Now::Here(chunks), pool, work, .. } = self else {
            unreachable!("just settled")
        };
        let mut new_chunks = Vec::with_capacity(chunks.len());
        for (i, old) in chunks.iter().enumerate() {
            let mut new = pool.chunk(old.len());
            let values = new.unshared().expect("just taken");
            let start = i * self.chunk_len;
            blocks(i, start, old.len()).try_for_each(|place| {
                let range = place.offset..place.offset + place.len;
                let block = (&mut values[range.clone()], &old[range]);
                work.update_block(block, place, (aggregate, clips), motion)
            })?;
            new_chunks.push(new);
        }
        Ok(Prepared { chunks: new_chunks, n_steps: aggregate.n_steps() as u64 })
    }

    /// Puts what the last [`Theta::prepare`] gave in theta's place.
    pub(super) fn commit(&mut self, prepared: Prepared<T>) {
        self.now = Now::Here(prepared.chunks);
        self.bound = None;
        self.work.states.iter_mut().for_each(State::commit);
        self.work.n_steps += prepared.n_steps;
    }

    /// Makes the states if there are to be any: at the first update, when theta is what it starts
    /// from, however it came about.
    fn start(&mut self, motion: &Motion<'_>) {
        let Motion { optimizer, lr, penalized, .. } = *motion;
        if optimizer.rule.slots().is_empty() || !self.work.states.is_empty() {
            return;
        }
        let step = optimizer.at(lr, 1.0, 0);
        let first_keys = (0..).step_by(self.chunk_len);
        let chunks = self.settle().clone();
        let chunks = chunks.iter().zip(first_keys);
        let state = |(chunk, key): (&Chunk<T>, usize)| {
            State::start(&optimizer.rule, &step, (chunk, key), penalized)
        };
        self.work.states = chunks.map(state).collect();
    }

    /// Writes a step's gradient, as it is before it is clipped, at `keys`, a block of them at most. The
    /// error is the first key where it is not finite.
    pub(super) fn write_gradient(
        &mut self,
        (aggregate, step): (&mut Aggregate<'_, T>, usize),
        keys: Range<usize>,
        gradient: &mut Vec<T>,
    ) -> Result<(), usize> {
        self.settle();
        let Self { now: Now::Here(chunks), work, chunk_len, .. } = self else {
            unreachable!("just settled")
        };
        gradient.clear();
        let mut key = keys.start;
        while key < keys.end {
            let (chunk, offset) = (key / *chunk_len, key % *chunk_len);
            let len = (keys.end - key).min(*chunk_len - offset);
            let place = Place { chunk, offset, key, len };
            let theta = &chunks[chunk][offset..offset + len];
            let part: &[T] = match aggregate.as_pushed(step, place) {
                Some(pushed) => pushed,
                None => aggregate.write(step, place, theta, &mut work.scratch),
            };
            if let Some(index) = first_non_finite(part) {
                return Err(key + index);
            }
            gradient.extend_from_slice(part);
            key += len;
        }
        Ok(())
    }
}

#[cfg(test)]
impl<T: Element> Theta<T> {
    pub(super) fn begin_at(&mut self, values: &[f64]) {
        let values = values.iter().map(|&x| T::from_f64(x));
        let values: Vec<T> = values.collect();
        let chunks = values.chunks(self.chunk_len).map(|chunk| self.pool.adopt(chunk.to_vec()));
        self.now = Now::Here(chunks.collect());
        self.bound = None;
    }

    pub(super) fn slot(&self, slot: usize) -> Vec<f64> {
        let of_chunk =
            |state: &State<T>| state.slot(slot).iter().map(|x| x.to_f64()).collect::<Vec<f64>>();
        self.work.states.iter().flat_map(of_chunk).collect()
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

impl<T> Default for Work<T> {
    fn default() -> Self {
        Self { scratch: Scratch::default(), states: Vec::new(), n_steps: 0 }
    }
}

impl<T: Element> Work<T> {
    /// Writes a block's new theta and next state, both checked while they are in the first caches;
    /// the error is the first key that is not finite.
    fn update_block(
        &mut self,
        (new, old): (&mut [T], &[T]),
        place: Place,
        by: (&mut Aggregate<'_, T>, &[Option<f64>]),
        motion: &Motion<'_>,
    ) -> Result<(), usize> {
        self.move_block((&mut *new, old), place, by, motion);
        let block = place.offset..place.offset + place.len;
        let state = self.states.get(place.chunk);
        let in_state = state.and_then(|state| state.first_non_finite(&block));
        match first_non_finite(new).into_iter().chain(in_state).min() {
            Some(index) => Err(place.key + index),
            None => Ok(()),
        }
    }

    /// Writes a block's new theta and next state, whatever comes of it.
    pub(super) fn move_block(
        &mut self,
        (new, old): (&mut [T], &[T]),
        place: Place,
        (aggregate, clips): (&mut Aggregate<'_, T>, &[Option<f64>]),
        motion: &Motion<'_>,
    ) {
        let Motion { optimizer, lr, factor, penalized } = *motion;
        let keys = place.key..place.key + place.len;
        let block = place.offset..place.offset + place.len;
        let mut state = self.states.get_mut(place.chunk);
        if let Some(state) = &mut state {
            state.open(block.clone());
        }
        if aggregate.n_steps() == 0 {
            new.copy_from_slice(old);
        }
        for which in 0..aggregate.n_steps() {
            let decay = optimizer.gradient_decay().map(T::from_f64);
            let clip = clips.get(which).copied().flatten();
            let untouched = clip.is_none() && decay.is_none();
            let gradient: &[T] = match aggregate.as_pushed(which, place) {
                Some(pushed) if untouched => pushed,
                _ => {
                    let gradient = aggregate.write(which, place, old, &mut self.scratch);
                    if let Some(factor) = clip {
                        scale(gradient, factor);
                    }
                    if let Some(decay) = decay {
                        let theta = if which == 0 { old } else { &*new };
                        for (run, _) in runs_of(penalized, keys.clone()).filter(|(_, yes)| *yes) {
                            let run = run.start - place.key..run.end - place.key;
                            add_scaled(&mut gradient[run.clone()], &theta[run], decay);
                        }
                    }
                    gradient
                }
            };
            let step = optimizer.at(lr, factor, self.n_steps + which as u64);
            for (run, penalized) in runs_of(penalized, keys.clone()) {
                let run = run.start - place.key..run.end - place.key;
                let (from, to) = (place.offset + run.start, place.offset + run.end);
                let slots = state.as_mut().map_or_else(Default::default, |s| s.next(from..to));
                let (new, gradient) = (&mut new[run.clone()], &gradient[run.clone()]);
                let (rule, step) = (optimizer.rule, Step { penalized, ..step });
                if which == 0 {
                    rule.step_from((new, &old[run]), gradient, slots, &step);
                } else {
                    rule.step(new, gradient, slots, &step);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(theta: &Theta<f64>) -> Vec<f64> {
        let of_chunk = |bytes: Bytes| {
            let mut values = vec![0.0; bytes.len() / 8];
            ps_common::dtype::copy_from_le_bytes(&mut values, &bytes);
            values
        };
        theta.bytes().iter().flat_map(of_chunk).collect()
    }

    const SGD: Optimizer = Optimizer::sgd(0.5);

    fn update<T: Element>(theta: &mut Theta<T>, parts: &[(&[T], f64)]) -> Result<(), usize> {
        let motion = Motion { optimizer: &SGD, lr: SGD.lr, factor: 1.0, penalized: &[] };
        let prepared = theta.prepare(&mut Aggregate::new(parts, Combine::Sum, None), &[], &motion);
        prepared.map(|prepared| theta.commit(prepared))
    }

    #[test]
    fn chunked_updates_equal_plain_ones_at_every_boundary() {
        for dim in [1, 2, 3, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5] {
            for chunk_len in [1, 7, BLOCK, 2 * BLOCK] {
                let a: Vec<f64> = (0..dim).map(|i| i as f64).collect();
                let b: Vec<f64> = (0..dim).map(|i| -0.25 * i as f64 + 1.0).collect();
                let mut theta = Theta::zeros(dim, chunk_len);
                update(&mut theta, &[(&a, 1.0)]).expect("finite");
                update(&mut theta, &[(&a, 0.25), (&b, 0.75)]).expect("finite");
                let plain: Vec<f64> = (0..dim)
                    .map(|i| (0.0 - 0.5 * a[i]) - 0.5 * (0.25 * a[i] + 0.75 * b[i]))
                    .collect();
                assert_eq!(values(&theta), plain, "{dim} in chunks of {chunk_len}");
            }
        }
    }

    #[test]
    fn an_overflow_anywhere_leaves_every_bit() {
        let mut theta = Theta::<f32>::zeros(10, 3);
        update(&mut theta, &[(&[1.0; 10], 1.0)]).expect("finite");
        let before = theta.bytes().iter().collect::<Vec<_>>();
        for key in [0, 4, 9] {
            let mut gradient = [1.0f32; 10];
            gradient[key] = f32::MAX;
            let parts: [(&[f32], f64); 2] = [(&gradient, 1.0), (&gradient, 1.0)];
            assert_eq!(update(&mut theta, &parts), Err(key));
            assert!(theta.bytes().iter().eq(before.iter().cloned()));
        }
    }

    #[test]
    fn a_reader_keeps_its_version_and_memory_is_reused_after_it() {
        let mut theta = Theta::<f64>::zeros(4, 2);
        let old: Vec<Bytes> = theta.bytes().iter().collect();
        for _ in 0..3 {
            update(&mut theta, &[(&[2.0; 4], 1.0)]).expect("finite");
        }
        assert!(old.iter().all(|chunk| chunk.iter().all(|&byte| byte == 0)));
        drop(old);
        let mut places = std::collections::BTreeSet::new();
        for _ in 0..10 {
            update(&mut theta, &[(&[2.0; 4], 1.0)]).expect("finite");
            places.extend(theta.bytes().iter().map(|chunk| chunk.as_ptr() as usize));
        }
        assert_eq!(places.len(), 4, "the memory of two versions takes turns");
    }

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
