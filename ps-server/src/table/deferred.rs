//! An update that is in force before it is computed: each chunk is, when somebody first wants it.
//!
//! It has to be certain that no element will overflow (`certain.rs`), since what is in force cannot be
//! taken back. What it is for: whoever sends theta computes a chunk and sends it while it is in the
//! cache, the next while the first is on its way; connections on several threads share the work, and
//! none waits for a chunk while there are others to compute; and a chunk is written where it lies, unless
//! somebody still reads its earlier version, whose memory takes in the next chunk when it is let go.
//! The bits are those of an update that is computed at once.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use ps_common::Element;
use ps_common::shared::{Pool, Shared};

use super::aggregate::Aggregate;
use super::certain::Certain;
use super::held::Held;
use super::motion::{Motion, Move};
use crate::numeric::Optimizer;

/// Chunks of which some may not be computed yet.
pub(super) trait Coming: Debug + Send + Sync {
    /// How many.
    fn n_chunks(&self) -> usize;

    /// Elements of a chunk.
    fn chunk_len(&self, chunk: usize) -> usize;

    /// The bytes of a chunk, which is computed if it is not yet.
    fn chunk_bytes(&self, chunk: usize) -> Bytes;
}

/// theta after an update by which it has moved, or is about to.
#[derive(Debug)]
pub(super) struct Deferred<T: Element> {
    dim: usize,
    chunk_len: usize,
    optimizer: Optimizer,
    certain: Certain,
    penalized: Arc<[Range<usize>]>,
    pool: Arc<Pool<T>>,
    chunks: Vec<Mutex<State<T>>>,
    n_before: AtomicUsize,
    /// Let go when all chunks are computed.
    gradients: Mutex<Option<Arc<Held>>>,
}

#[derive(Debug)]
enum State<T: Element> {
    /// As the update finds it.
    Before(Shared<T>),
    /// As the update leaves it.
    After(Shared<T>),
}

impl<T: Element> Deferred<T> {
    pub(super) fn new(
        (chunk_len, chunks): (usize, Vec<Shared<T>>),
        pool: &Arc<Pool<T>>,
        (optimizer, penalized): (&Optimizer, &Arc<[Range<usize>]>),
        certain: Certain,
        gradients: Held,
    ) -> Self {
        Self {
            dim: chunks.iter().map(|chunk| chunk.len()).sum(),
            chunk_len,
            optimizer: *optimizer,
            certain,
            penalized: Arc::clone(penalized),
            pool: Arc::clone(pool),
            n_before: AtomicUsize::new(chunks.len()),
            chunks: chunks.into_iter().map(|chunk| Mutex::new(State::Before(chunk))).collect(),
            gradients: Mutex::new(Some(Arc::new(gradients))),
        }
    }

    /// A chunk of theta as it is after the update. While another thread computes it, this one computes
    /// chunks that come after it.
    pub(super) fn chunk(&self, index: usize) -> Shared<T> {
        for later in index + 1..self.chunks.len() {
            if let Some(mut state) = self.chunks[index].try_lock() {
                return self.after(index, &mut state);
            }
            if let Some(mut state) = self.chunks[later].try_lock() {
                self.after(later, &mut state);
            }
        }
        self.after(index, &mut self.chunks[index].lock())
    }

    /// Computes a chunk, unless it is computed.
    fn after(&self, index: usize, state: &mut State<T>) -> Shared<T> {
        let before = match state {
            State::After(chunk) => return chunk.clone(),
            State::Before(chunk) => chunk,
        };
        let gradients = self.gradients.lock().clone();
        let gradients = gradients.expect("kept until all chunks are computed");
        let after = self.compute(index, before, &gradients);
        // Lets go of the version before: its memory is in the cache for the next chunk.
        *state = State::After(after.clone());
        if self.n_before.fetch_sub(1, Ordering::AcqRel) == 1 {
            *self.gradients.lock() = None;
        }
        after
    }

    /// All of them. Begins at the end: whoever sends theta comes from the other one.
    pub(super) fn finish(&self) -> Vec<Shared<T>> {
        let mut chunks: Vec<_> =
            (0..self.chunks.len()).rev().map(|index| self.chunk(index)).collect();
        chunks.reverse();
        chunks
    }

    /// A chunk as it is after the update: where it was before it, unless somebody still reads that.
    fn compute(&self, index: usize, before: &mut Shared<T>, gradients: &Held) -> Shared<T> {
        let parts: Vec<(&[T], f64)> =
            gradients.iter().map(|(gradient, weight)| (gradient.values(), *weight)).collect();
        let by = Move {
            aggregate: Aggregate::new(&parts, self.certain.combine, None),
            motion: Motion {
                optimizer: &self.optimizer,
                lr: self.certain.lr,
                factor: self.certain.factor,
                penalized: &self.penalized,
            },
            clips: &[],
            // Plain descent does not count its steps.
            n_before: 0,
        };
        let place = (index, index * self.chunk_len);
        if let Some(theta) = before.unshared() {
            by.chunk(place, (theta, None));
            return before.clone();
        }
        let mut after = self.pool.take(before.len());
        by.chunk(place, (after.unshared().expect("just made"), Some(before)));
        after
    }
}

impl<T: Element> Coming for Deferred<T> {
    fn n_chunks(&self) -> usize {
        self.chunks.len()
    }

    fn chunk_len(&self, chunk: usize) -> usize {
        self.chunk_len.min(self.dim - chunk * self.chunk_len)
    }

    fn chunk_bytes(&self, chunk: usize) -> Bytes {
        self.chunk(chunk).bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use ps_common::Dtype;
    use ps_common::job::Combine;

    use super::*;
    use crate::table::Gradient;
    use crate::table::tests::deferred::Pair;
    use crate::table::tests::wish;

    #[test]
    fn several_threads_share_the_work_and_see_one_version() {
        let mut pair = Pair::new(&wish("sgd"), Dtype::F32);
        for step in 0..50 {
            pair.update(step, 2);
            let late = pair.deferred.snapshot();
            let now = pair.at_once.snapshot().sha256();
            std::thread::scope(|scope| {
                let readers: Vec<_> = (0..4).map(|_| scope.spawn(|| late.sha256())).collect();
                for reader in readers {
                    assert_eq!(reader.join().expect("no panic"), now);
                }
            });
        }
        assert_eq!(pair.let_go(), 50);
    }

    #[test]
    fn a_thread_that_waits_for_a_chunk_computes_others_meanwhile() {
        const CHUNK_LEN: usize = 3;
        let (theta, gradient): (Vec<_>, Vec<_>) =
            (0..5 * CHUNK_LEN).map(|i| (2.0 * i as f32, i as f32)).unzip();
        let chunks = theta.chunks(CHUNK_LEN).map(|chunk| Shared::from(chunk.to_vec())).collect();
        let deferred = Deferred::new(
            (CHUNK_LEN, chunks),
            &Pool::new(CHUNK_LEN, 5),
            (&Optimizer::sgd(1.0), &Arc::from([])),
            Certain { combine: Combine::Sum, lr: 1.0, factor: 1.0, bound: 100.0 },
            Held::new(vec![(Gradient::F32(gradient.clone().into()), 1.0)], &Arc::default()),
        );
        let is_after = |index: usize| {
            let state = deferred.chunks[index].try_lock();
            state.is_some_and(|state| matches!(*state, State::After(_)))
        };
        // As if others computed the first and the third.
        let [first, third] = [0, 2].map(|index| deferred.chunks[index].lock());
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| deferred.chunk(0).to_vec());
            let patience = Instant::now() + Duration::from_secs(60);
            while ![1, 3, 4].into_iter().all(is_after) {
                assert!(Instant::now() < patience, "it waits idly");
                std::thread::yield_now();
            }
            drop(first);
            assert_eq!(waits.join().expect("no panic"), gradient[..CHUNK_LEN]);
        });
        drop(third);
        let after: Vec<f32> = deferred.finish().iter().flat_map(|chunk| chunk.to_vec()).collect();
        assert_eq!(after, gradient);
    }
}
