//! Numbers behind a reference count: handed out as bytes without a copy, their memory used again.
//!
//! Whoever holds the bytes keeps the numbers as they are; whoever writes them next sees to that. Numbers
//! out of a [`Pool`] give their memory back to it when their last holder lets go of them.

use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::dtype::{Element, as_le_bytes};

/// Numbers that are written by one and read by many. Clones are the same ones.
#[derive(Debug, Clone)]
pub struct Shared<T>(Arc<Memory<T>>);

#[derive(Debug)]
struct Memory<T> {
    values: Vec<T>,
    home: Option<Arc<Pool<T>>>,
}

impl<T: Element> Shared<T> {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        Self::from(vec![T::ZERO; len])
    }

    /// Their bytes, little-endian, without a copy.
    pub fn bytes(&self) -> Bytes {
        Bytes::from_owner(SharedBytes(self.clone()))
    }

    /// The numbers, to be written; `None` while somebody else holds them.
    pub fn unshared(&mut self) -> Option<&mut [T]> {
        Arc::get_mut(&mut self.0).map(|memory| &mut memory.values[..])
    }

    /// The numbers, some of which are to be written: these, or a copy while somebody else holds these.
    pub fn owned(&mut self) -> &mut [T] {
        if Arc::get_mut(&mut self.0).is_none() {
            let values = match &self.0.home {
                Some(home) => {
                    let mut copy = home.take(self.len());
                    copy.unshared().expect("just taken").copy_from_slice(self);
                    copy
                }
                None => Self::from(self.to_vec()),
            };
            *self = values;
        }
        self.unshared().expect("nobody can hold them yet")
    }

    /// As many numbers, all of which are to be written: these, or zeros in new memory while somebody
    /// else holds these.
    pub fn renewed(&mut self) -> &mut [T] {
        if Arc::get_mut(&mut self.0).is_none() {
            *self = Self::zeros(self.len());
        }
        self.unshared().expect("nobody can hold them yet")
    }
}

impl<T> From<Vec<T>> for Shared<T> {
    fn from(values: Vec<T>) -> Self {
        Self(Arc::new(Memory { values, home: None }))
    }
}

impl<T> Deref for Shared<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0.values
    }
}

impl<T: PartialEq> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T> Drop for Memory<T> {
    fn drop(&mut self) {
        if let Some(home) = &self.home {
            home.take_back(std::mem::take(&mut self.values));
        }
    }
}

/// The numbers' memory as bytes, for as long as somebody reads them.
struct SharedBytes<T>(Shared<T>);

impl<T: Element> AsRef<[u8]> for SharedBytes<T> {
    fn as_ref(&self) -> &[u8] {
        as_le_bytes(&self.0)
    }
}

/// Memory that nobody uses now, the latest used last: it may still be in a cache.
#[derive(Debug)]
pub struct Pool<T> {
    /// Elements that each has room for.
    len_max: usize,
    n_max: usize,
    free: Mutex<Vec<Vec<T>>>,
}

impl<T: Element> Pool<T> {
    /// For up to `len_max` numbers at a time; keeps the memory of at most `n_max` of them.
    pub fn new(len_max: usize, n_max: usize) -> Arc<Self> {
        Arc::new(Self { len_max, n_max, free: Mutex::default() })
    }

    /// `len` numbers, all of which are to be written.
    pub fn take(self: &Arc<Self>, len: usize) -> Shared<T> {
        let mut values = self.free.lock().pop().unwrap_or_else(|| Vec::with_capacity(self.len_max));
        values.resize(len, T::ZERO);
        self.adopt(values)
    }

    /// These numbers, whose memory comes here in the end.
    pub fn adopt(self: &Arc<Self>, values: Vec<T>) -> Shared<T> {
        Shared(Arc::new(Memory { values, home: Some(Arc::clone(self)) }))
    }
}

impl<T> Pool<T> {
    fn take_back(&self, values: Vec<T>) {
        let mut free = self.free.lock();
        if values.capacity() >= self.len_max && free.len() < self.n_max {
            free.push(values);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_holds_the_bytes_keeps_them_as_they_are() {
        let mut shared = Shared::from(vec![1f32, 2.0]);
        let place = shared.as_ptr();
        let bytes = shared.bytes();
        assert_eq!(bytes, as_le_bytes(&[1f32, 2.0]));
        assert_eq!(bytes.as_ptr(), place.cast(), "no copy");
        assert!(shared.unshared().is_none());
        let part = bytes.slice(4..);
        drop(bytes);
        shared.renewed().copy_from_slice(&[3.0, 4.0]);
        assert_eq!((&shared[..], &part[..]), (&[3.0, 4.0][..], &2f32.to_le_bytes()[..]));
        assert_ne!(shared.as_ptr(), place);
    }

    #[test]
    fn some_are_written_in_place_or_in_a_copy_out_of_the_same_pool() {
        let pool = Pool::<f32>::new(2, 2);
        for mut shared in [Shared::from(vec![1f32, 2.0]), pool.adopt(vec![1.0, 2.0])] {
            let place = shared.as_ptr();
            shared.owned()[0] = 3.0;
            assert_eq!((&shared[..], shared.as_ptr()), (&[3.0, 2.0][..], place));
            let bytes = shared.bytes();
            shared.owned()[1] = 4.0;
            assert_eq!(&shared[..], [3.0, 4.0]);
            assert_eq!(bytes, as_le_bytes(&[3f32, 2.0]), "whoever holds them keeps them");
        }
        assert_eq!(pool.free.lock().len(), 2, "the copy and what it is of");
    }

    #[test]
    fn memory_that_nobody_else_holds_is_written_again() {
        let mut shared = Shared::<f64>::zeros(3);
        let place = shared.as_ptr();
        drop(shared.bytes());
        shared.renewed()[0] = 5.0;
        assert_eq!((&shared[..], shared.as_ptr()), (&[5.0, 0.0, 0.0][..], place));
    }

    #[test]
    fn memory_comes_back_from_its_last_reader_and_not_before() {
        let pool = Pool::<f32>::new(4, 2);
        let mut chunk = pool.take(4);
        chunk.unshared().expect("new").copy_from_slice(&[1.0, 2.0, 3.0, 4.0]);
        let place = chunk.as_ptr();
        let bytes = chunk.bytes();
        assert_eq!(bytes.as_ptr(), place.cast(), "no copy");
        assert!(chunk.unshared().is_none());
        drop(chunk);
        let other = pool.take(4);
        assert_ne!(other.as_ptr(), place);
        assert_eq!(bytes[4..8], 2f32.to_le_bytes());
        drop(bytes);
        let short = pool.take(3);
        assert_eq!((short.len(), short.as_ptr()), (3, place));
        drop(short);
        assert_eq!(pool.take(4).as_ptr(), place);
        drop(other);
    }

    #[test]
    fn no_more_is_kept_than_there_is_use_for() {
        let pool = Pool::<f64>::new(2, 3);
        let chunks: Vec<_> = (0..5).map(|_| pool.take(2)).collect();
        drop(chunks);
        assert_eq!(pool.free.lock().len(), 3);
        drop(pool.adopt(vec![0.0]));
        assert_eq!(pool.free.lock().iter().map(Vec::capacity).min(), Some(2), "too short");
    }
}
