//! Numbers behind a reference count: handed out as bytes without a copy.
//!
//! Whoever holds the bytes keeps the numbers as they are; whoever writes them next sees to that.

use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;

use crate::dtype::{Element, as_le_bytes};

/// Numbers that are written by one and read by many. Clones are the same ones.
#[derive(Debug, Clone, PartialEq)]
pub struct Shared<T>(Arc<Vec<T>>);

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
        Arc::get_mut(&mut self.0).map(Vec::as_mut_slice)
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
        Self(Arc::new(values))
    }
}

impl<T> Deref for Shared<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

/// The numbers' memory as bytes, for as long as somebody reads them.
struct SharedBytes<T>(Shared<T>);

impl<T: Element> AsRef<[u8]> for SharedBytes<T> {
    fn as_ref(&self) -> &[u8] {
        as_le_bytes(&self.0)
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
    fn memory_that_nobody_else_holds_is_written_again() {
        let mut shared = Shared::<f64>::zeros(3);
        let place = shared.as_ptr();
        drop(shared.bytes());
        shared.renewed()[0] = 5.0;
        assert_eq!((&shared[..], shared.as_ptr()), (&[5.0, 0.0, 0.0][..], place));
    }
}
