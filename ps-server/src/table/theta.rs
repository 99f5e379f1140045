//! theta in one element type: its chunks, and the one way in which they change.

use std::sync::Arc;

use bytes::Bytes;
use ps_common::Element;

use crate::numeric::{Optimizer, first_non_finite, weighted_sum};

/// Elements that are summed and updated in one go: two buffers of this size stay in the first
/// cache.
const BLOCK: usize = 2048;

/// Earlier versions of a chunk that are kept for their memory: about as many as are on their way to
/// readers at once.
const SPARES_MAX: usize = 8;

/// theta as chunks of `chunk_len` elements; the last may be shorter.
#[derive(Debug)]
pub(super) struct Theta<T> {
    chunk_len: usize,
    chunks: Vec<Arc<Chunk<T>>>,
    /// Of each chunk, memory that was theirs before; some of it pulls may still be reading.
    spares: Vec<Vec<Arc<Chunk<T>>>>,
    sum: Box<[T]>,
}

#[derive(Debug)]
struct Chunk<T>(Vec<T>);

/// A chunk's memory as bytes, for as long as somebody reads them.
struct ChunkBytes<T>(Arc<Chunk<T>>);

impl<T: Element> AsRef<[u8]> for ChunkBytes<T> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0.0)
    }
}

impl<T: Element> Theta<T> {
    pub(super) fn zeros(dim: usize, chunk_len: usize) -> Self {
        let lens = (0..dim).step_by(chunk_len).map(|start| chunk_len.min(dim - start));
        let chunks: Vec<_> = lens.map(|len| Arc::new(Chunk(vec![T::ZERO; len]))).collect();
        Self {
            chunk_len,
            spares: vec![Vec::new(); chunks.len()],
            chunks,
            sum: vec![T::ZERO; BLOCK].into_boxed_slice(),
        }
    }

    /// Lets `write` set the elements of each chunk, given the key of the first.
    ///
    /// # Panics
    /// If somebody reads theta already.
    pub(super) fn fill(&mut self, mut write: impl FnMut(usize, &mut [T])) {
        let first_keys = (0..).step_by(self.chunk_len);
        for (first_key, chunk) in first_keys.zip(&mut self.chunks) {
            write(first_key, &mut Arc::get_mut(chunk).expect("filled before it is read").0);
        }
    }

    /// Every chunk's bytes, without a copy.
    pub(super) fn bytes(&self) -> Vec<Bytes> {
        let owner = |chunk: &Arc<Chunk<T>>| Bytes::from_owner(ChunkBytes(Arc::clone(chunk)));
        self.chunks.iter().map(owner).collect()
    }

    /// Moves theta by the weighted sum of `parts`, or, if that would overflow, not at all: the
    /// error is the first such key.
    ///
    /// # Panics
    /// If a part has another length than theta.
    pub(super) fn update(
        &mut self,
        parts: &[(&[T], f64)],
        optimizer: &Optimizer,
    ) -> Result<(), usize> {
        let mut new_chunks = Vec::with_capacity(self.chunks.len());
        for (i, (old, spares)) in self.chunks.iter().zip(&mut self.spares).enumerate() {
            let start = i * self.chunk_len;
            let mut new = unshared(spares, old.0.len());
            let values = &mut Arc::get_mut(&mut new).expect("unshared").0;
            let updated = update_chunk(values, &old.0, start, parts, &mut self.sum, optimizer);
            new_chunks.push(new);
            if let Err(key) = updated {
                self.retire(new_chunks);
                return Err(key);
            }
        }
        let old_chunks = std::mem::replace(&mut self.chunks, new_chunks);
        self.retire(old_chunks);
        Ok(())
    }

    /// Keeps the memory of chunks that are no part of theta (any more).
    fn retire(&mut self, chunks: Vec<Arc<Chunk<T>>>) {
        for (spares, chunk) in self.spares.iter_mut().zip(chunks) {
            if spares.len() < SPARES_MAX {
                spares.push(chunk);
            }
        }
    }
}

/// Memory that nobody reads any more, the most recently used first, or else new memory.
fn unshared<T: Element>(spares: &mut Vec<Arc<Chunk<T>>>, len: usize) -> Arc<Chunk<T>> {
    let free = spares.iter_mut().rposition(|spare| Arc::get_mut(spare).is_some());
    free.map_or_else(|| Arc::new(Chunk(vec![T::ZERO; len])), |free| spares.remove(free))
}

/// Fills `new` block by block, each checked while it is in the first cache; the error is the first
/// key that is not finite.
fn update_chunk<T: Element>(
    new: &mut [T],
    old: &[T],
    start: usize,
    parts: &[(&[T], f64)],
    sum: &mut [T],
    optimizer: &Optimizer,
) -> Result<(), usize> {
    let mut block_parts: Vec<(&[T], f64)> = Vec::with_capacity(parts.len());
    for (offset, (new, old)) in
        (0..).step_by(BLOCK).zip(new.chunks_mut(BLOCK).zip(old.chunks(BLOCK)))
    {
        let from = start + offset;
        let to = from + old.len();
        if let [(gradient, 1.0)] = parts {
            optimizer.update(new, old, &gradient[from..to]);
        } else {
            block_parts.clear();
            block_parts.extend(parts.iter().map(|(g, weight)| (&g[from..to], *weight)));
            let sum = &mut sum[..old.len()];
            weighted_sum(sum, &block_parts);
            optimizer.update(new, old, sum);
        }
        if let Some(index) = first_non_finite(new) {
            return Err(from + index);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(theta: &Theta<f64>) -> Vec<f64> {
        theta.chunks.iter().flat_map(|chunk| chunk.0.iter().copied()).collect()
    }

    const SGD: Optimizer = Optimizer::Sgd { lr: 0.5 };

    #[test]
    fn chunked_updates_equal_plain_ones_at_every_boundary() {
        for dim in [1, 2, 3, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5] {
            for chunk_len in [1, 7, BLOCK, 2 * BLOCK] {
                let a: Vec<f64> = (0..dim).map(|i| i as f64).collect();
                let b: Vec<f64> = (0..dim).map(|i| -0.25 * i as f64 + 1.0).collect();
                let mut theta = Theta::zeros(dim, chunk_len);
                theta.update(&[(&a, 1.0)], &SGD).expect("finite");
                theta.update(&[(&a, 0.25), (&b, 0.75)], &SGD).expect("finite");
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
        theta.update(&[(&[1.0; 10], 1.0)], &SGD).expect("finite");
        let before = theta.bytes();
        for key in [0, 4, 9] {
            let mut gradient = [1.0f32; 10];
            gradient[key] = f32::MAX;
            let parts: [(&[f32], f64); 2] = [(&gradient, 1.0), (&gradient, 1.0)];
            assert_eq!(theta.update(&parts, &SGD), Err(key));
            assert_eq!(theta.bytes(), before);
        }
    }

    #[test]
    fn a_reader_keeps_its_version_and_memory_is_reused_after_it() {
        let mut theta = Theta::<f64>::zeros(4, 2);
        let old = theta.bytes();
        for _ in 0..3 {
            theta.update(&[(&[2.0; 4], 1.0)], &SGD).expect("finite");
        }
        assert!(old.iter().all(|chunk| chunk.iter().all(|&byte| byte == 0)));
        drop(old);
        let mut places = std::collections::BTreeSet::new();
        for _ in 0..10 {
            theta.update(&[(&[2.0; 4], 1.0)], &SGD).expect("finite");
            places.insert(theta.chunks[0].0.as_ptr() as usize);
        }
        assert_eq!(places.len(), 2, "two buffers take turns");
    }
}
