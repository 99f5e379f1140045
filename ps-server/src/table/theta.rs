//! theta in one element type: its chunks, and how an update replaces them, all or none.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use ps_common::Element;
use ps_common::check::first_non_finite;
use ps_common::job::Combine;
use ps_common::shared::{Pool, Shared};

use super::aggregate::{Aggregate, Place, Scratch};
use super::certain::{Certain, bound_of};
use super::deferred::Deferred;
use super::gradient::Gradient;
use super::held::Held;
use super::motion::{Motion, Move};
use super::state::State;
use super::store::Chunks;
use crate::numeric::Optimizer;
use crate::threads::Threads;

mod rows;

pub(super) use rows::Moved;

/// Earlier versions of theta whose memory is kept: about as many as are on their way to readers at once.
const SPARES_MAX: usize = 8;

/// theta as chunks of `chunk_len` elements; the last may be shorter.
#[derive(Debug)]
pub(super) struct Theta<T: Element> {
    chunk_len: usize,
    now: Now<T>,
    pool: Arc<Pool<T>>,
    work: Work<T>,
    threads: Threads,
    /// What no element is larger than, once it is known.
    bound: Option<f64>,
}

/// The version in force.
#[derive(Debug)]
enum Now<T: Element> {
    Here(Vec<Shared<T>>),
    /// Some of it may have to be computed yet.
    Deferred(Arc<Deferred<T>>),
}

/// What updates need besides theta.
#[derive(Debug)]
struct Work<T> {
    /// By chunk; none before the first update, or if the rule remembers nothing.
    states: Vec<State<T>>,
    /// Steps that the states have seen.
    n_steps: u64,
}

/// theta, all of it computed, and who may share work on it.
#[derive(Debug)]
pub(super) struct Settled<'a, T> {
    chunk_len: usize,
    chunks: &'a [Shared<T>],
    pub(super) threads: Threads,
}

/// theta after an update that is not in force yet.
#[derive(Debug)]
pub(super) struct Prepared<T: Element> {
    chunks: Vec<Shared<T>>,
    /// Taken by it.
    n_steps: u64,
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
            work: Work { states, n_steps },
            threads: Threads::of_this_machine(),
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
        for (first_key, chunk) in first_keys.zip(self.now.settle()) {
            write(first_key, chunk.unshared().expect("filled before it is read"));
        }
    }

    /// Every chunk's bytes, without a copy.
    pub(super) fn bytes(&self) -> Chunks {
        match &self.now {
            Now::Here(chunks) => Chunks::Here(chunks.iter().map(Shared::bytes).collect()),
            Now::Deferred(deferred) => {
                Chunks::Coming(Arc::clone(deferred) as Arc<dyn super::deferred::Coming>)
            }
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
                let bound = bound_of(self.now.settle().iter().map(|chunk| &**chunk));
                *self.bound.insert(bound)
            }
        })
    }

    /// Puts an update in force, which [`Theta::certain`] just gave, by the gradients that it was
    /// asked about; it is computed when somebody wants it.
    pub(super) fn defer(
        &mut self,
        certain: Certain,
        gradients: Held,
        (optimizer, penalized): (&Optimizer, &Arc<[Range<usize>]>),
    ) {
        let chunks = std::mem::take(self.now.settle());
        let (theta, rule) = ((self.chunk_len, chunks), (optimizer, penalized));
        let deferred = Deferred::new(theta, &self.pool, rule, certain, gradients);
        self.now = Now::Deferred(Arc::new(deferred));
        self.bound = Some(certain.bound);
        self.work.n_steps += 1;
    }

    /// Steps so far, and by slot and chunk the bytes of what the rule remembers, without a copy;
    /// `None` before the first update, or if it remembers nothing.
    pub(super) fn state_bytes(&self, n_slots: usize) -> Option<(u64, Vec<Vec<Bytes>>)> {
        let Work { states, n_steps } = &self.work;
        let slot = |slot| states.iter().map(|state| state.bytes(slot)).collect();
        (!states.is_empty()).then(|| (*n_steps, (0..n_slots).map(slot).collect()))
    }

    /// theta as it is, all of it computed, to be read by many.
    pub(super) fn settled(&mut self) -> Settled<'_, T> {
        let Self { chunk_len, now, threads, .. } = self;
        Settled { chunk_len: *chunk_len, chunks: now.settle(), threads: *threads }
    }

    /// Lets `threads` share updates that are computed at once.
    pub(super) fn share(&mut self, threads: Threads) {
        self.threads = threads;
    }

    /// Computes theta as the gradients of `aggregate` move it, each step's multiplied by what `clips`
    /// says of it, beside theta as it is. If that would overflow theta or what the rule remembers, the
    /// error is the first such key.
    ///
    /// # Panics
    /// If a part has another length than theta.
    pub(super) fn prepare(
        &mut self,
        aggregate: Aggregate<'_, T>,
        clips: &[Option<f64>],
        motion: Motion<'_>,
    ) -> Result<Prepared<T>, usize> {
        let Self { now, pool, work, threads, .. } = self;
        let chunks = now.settle();
        let n_elements = chunks.iter().map(|chunk| chunk.len()).sum();
        work.start(chunks, &motion);
        let by = Move { aggregate, motion, clips, n_before: work.n_steps };
        let mut states = work.states.iter_mut();
        let parts = with_keys(chunks).enumerate().map(|(i, chunk)| (i, chunk, states.next()));
        let chunks = threads.share(n_elements, parts.collect(), |(i, (key, old), state)| {
            let mut new = pool.take(old.len());
            let values = new.unshared().expect("just taken");
            by.chunk_checked((i, key), (values, old), state).map(|()| new)
        })?;
        Ok(Prepared { chunks, n_steps: by.aggregate.n_steps() as u64 })
    }

    /// Puts what the last [`Theta::prepare`] gave in theta's place.
    pub(super) fn commit(&mut self, prepared: Prepared<T>) {
        self.now = Now::Here(prepared.chunks);
        self.bound = None;
        self.work.states.iter_mut().for_each(State::commit);
        self.work.n_steps += prepared.n_steps;
    }
}

impl<T: Element> Now<T> {
    /// All of it computed.
    fn settle(&mut self) -> &mut Vec<Shared<T>> {
        if let Self::Deferred(deferred) = self {
            *self = Self::Here(deferred.finish());
        }
        match self {
            Self::Here(chunks) => chunks,
            Self::Deferred(_) => unreachable!("just settled"),
        }
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

impl<T: Element> Settled<'_, T> {
    /// Writes a step's gradient, as it is before it is clipped, at `keys`, a block of them at most. The
    /// error is the first key where it is not finite.
    pub(super) fn write_gradient<'a>(
        &self,
        (aggregate, step): (&Aggregate<'a, T>, usize),
        keys: Range<usize>,
        (gradient, scratch): (&mut Vec<T>, &mut Scratch<'a, T>),
    ) -> Result<(), usize> {
        gradient.clear();
        let mut key = keys.start;
        while key < keys.end {
            let (chunk, offset) = (key / self.chunk_len, key % self.chunk_len);
            let len = (keys.end - key).min(self.chunk_len - offset);
            let place = Place { chunk, offset, key, len };
            let theta = &self.chunks[chunk][offset..offset + len];
            let part: &[T] = match aggregate.as_pushed(step, place) {
                Some(pushed) => pushed,
                None => aggregate.write(step, place, theta, scratch),
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

/// theta's chunks, each with its first key.
fn with_keys<T: Element>(chunks: &[Shared<T>]) -> impl Iterator<Item = (usize, &Shared<T>)> {
    let first_keys = chunks.iter().scan(0, |end, chunk| {
        *end += chunk.len();
        Some(*end - chunk.len())
    });
    first_keys.zip(chunks)
}

impl<T: Element> Work<T> {
    /// Makes the states if there are to be any: at the first update, when theta is what it starts
    /// from, however it came about.
    fn start(&mut self, chunks: &[Shared<T>], motion: &Motion<'_>) {
        let Motion { optimizer, lr, penalized, .. } = *motion;
        if optimizer.rule.slots().is_empty() || !self.states.is_empty() {
            return;
        }
        let step = optimizer.at(lr, 1.0, 0);
        let state = |(key, chunk): (usize, &Shared<T>)| {
            State::start(&optimizer.rule, &step, (chunk, key), penalized)
        };
        self.states = with_keys(chunks).map(state).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::super::motion::BLOCK;
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
        let prepared = theta.prepare(Aggregate::new(parts, Combine::Sum, None), &[], motion);
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
}
