//! Memory that is used again: whoever lets go of it last brings it back.

use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use ps_common::Element;

/// Memory of theta's chunks that nobody uses now, the latest used last: it may still be in a cache.
#[derive(Debug)]
pub(super) struct Pool<T> {
    /// Elements that each has room for: those of a whole chunk.
    chunk_len: usize,
    n_max: usize,
    free: Mutex<Vec<Vec<T>>>,
}

impl<T: Element> Pool<T> {
    /// For chunks of `chunk_len`; keeps the memory of at most `n_max`.
    pub(super) fn new(chunk_len: usize, n_max: usize) -> Arc<Self> {
        Arc::new(Self { chunk_len, n_max, free: Mutex::default() })
    }

    /// A chunk of `len` elements, all of which are to be written.
    pub(super) fn chunk(self: &Arc<Self>, len: usize) -> Chunk<T> {
        let mut values =
            self.free.lock().pop().unwrap_or_else(|| Vec::with_capacity(self.chunk_len));
        values.resize(len, T::ZERO);
        self.adopt(values)
    }

    /// A chunk of these values, whose memory comes here in the end.
    pub(super) fn adopt(self: &Arc<Self>, values: Vec<T>) -> Chunk<T> {
        Chunk(Arc::new(Memory { values, home: Arc::clone(self) }))
    }

    fn take_back(&self, values: Vec<T>) {
        let mut free = self.free.lock();
        if values.capacity() >= self.chunk_len && free.len() < self.n_max {
            free.push(values);
        }
    }
}

/// A chunk of theta: written by one, then read by many. Clones are the same one.
#[derive(Debug, Clone)]
pub(super) struct Chunk<T: Element>(Arc<Memory<T>>);

#[derive(Debug)]
struct Memory<T: Element> {
    values: Vec<T>,
    home: Arc<Pool<T>>,
}

impl<T: Element> Chunk<T> {
    /// Its elements, to be written; `None` while somebody else holds it.
    pub(super) fn unshared(&mut self) -> Option<&mut [T]> {
        Arc::get_mut(&mut self.0).map(|memory| &mut memory.values[..])
    }

    /// Its bytes, little-endian, without a copy.
    pub(super) fn bytes(&self) -> Bytes {
        Bytes::from_owner(ChunkBytes(self.clone()))
    }
}

impl<T: Element> Deref for Chunk<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0.values
    }
}

impl<T: Element> Drop for Memory<T> {
    fn drop(&mut self) {
        self.home.take_back(std::mem::take(&mut self.values));
    }
}

/// A chunk's memory as bytes, for as long as somebody reads them.
struct ChunkBytes<T: Element>(Chunk<T>);

impl<T: Element> AsRef<[u8]> for ChunkBytes<T> {
    fn as_ref(&self) -> &[u8] {
        ps_common::dtype::as_le_bytes(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_from_its_last_reader_and_not_before() {
        let pool = Pool::<f32>::new(4, 2);
        let mut chunk = pool.chunk(4);
        chunk.unshared().expect("new").copy_from_slice(&[1.0, 2.0, 3.0, 4.0]);
        let place = chunk.as_ptr();
        let bytes = chunk.bytes();
        assert_eq!(bytes.as_ptr(), place.cast(), "no copy");
        assert!(chunk.unshared().is_none());
        drop(chunk);
        let other = pool.chunk(4);
        assert_ne!(other.as_ptr(), place);
        assert_eq!(bytes[4..8], 2f32.to_le_bytes());
        drop(bytes);
        let short = pool.chunk(3);
        assert_eq!((short.len(), short.as_ptr()), (3, place));
        drop(short);
        assert_eq!(pool.chunk(4).as_ptr(), place);
        drop(other);
    }

    #[test]
    fn no_more_is_kept_than_there_is_use_for() {
        let pool = Pool::<f64>::new(2, 3);
        let chunks: Vec<_> = (0..5).map(|_| pool.chunk(2)).collect();
        drop(chunks);
        assert_eq!(pool.free.lock().len(), 3);
        drop(pool.adopt(vec![0.0]));
        assert_eq!(pool.free.lock().iter().map(Vec::capacity).min(), Some(2), "too short");
    }
}
