//! Numbers in a row behind a reference count: whoever reads them keeps them as they are.

use std::sync::Arc;

use bytes::Bytes;
use ps_common::Element;

/// A chunk of theta, or of what the update rule remembers.
#[derive(Debug)]
pub(super) struct Chunk<T>(pub(super) Vec<T>);

impl<T: Element> Chunk<T> {
    pub(super) fn zeros(len: usize) -> Arc<Self> {
        Arc::new(Self(vec![T::ZERO; len]))
    }

    /// Its bytes, little-endian, without a copy.
    pub(super) fn bytes(self: &Arc<Self>) -> Bytes {
        Bytes::from_owner(ChunkBytes(Arc::clone(self)))
    }
}

/// A chunk's memory as bytes, for as long as somebody reads them.
struct ChunkBytes<T>(Arc<Chunk<T>>);

impl<T: Element> AsRef<[u8]> for ChunkBytes<T> {
    fn as_ref(&self) -> &[u8] {
        ps_common::dtype::as_le_bytes(&self.0.0)
    }
}
