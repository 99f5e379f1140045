//! Gradients on their way out through a codec, and what it lost of them.

use bytes::Bytes;

use super::{Codec, Encoding, top_k};
use crate::check::first_non_finite;
use crate::dtype::Element;

/// One chunk of an encoded tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Index of its first element.
    pub begin: usize,
    /// Elements that it covers.
    pub len: usize,
    /// How they are written: plain where one of them is not finite, so that the receiver can say so.
    pub encoding: Encoding,
    /// As [`Encoding::encode`] writes them.
    pub data: Bytes,
}

/// A sender's memory: what was lost of the gradients before is added to the next.
#[derive(Debug, Clone)]
pub struct Feedback<T> {
    codec: Codec,
    /// Empty before the first gradient.
    residual: Vec<T>,
    scratch: Vec<T>,
}

impl<T: Element> Feedback<T> {
    /// Nothing is lost yet.
    pub fn new(codec: Codec) -> Self {
        Self { codec, residual: Vec::new(), scratch: Vec::new() }
    }

    /// How chunks are written.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// Encodes `gradient`, with what was lost before, in chunks that begin at `cuts` (ascending from 0)
    /// and have at most `chunk_len` elements. What is lost now is kept for the next.
    ///
    /// # Panics
    /// If gradients differ in length.
    pub fn encode(&mut self, gradient: &[T], cuts: &[usize], chunk_len: usize) -> Vec<Encoded> {
        self.residual.resize(gradient.len(), T::ZERO);
        assert_eq!(self.residual.len(), gradient.len(), "theta keeps its length");
        for (residual, &gradient) in self.residual.iter_mut().zip(gradient) {
            let sum = *residual + gradient;
            // What could not be sent for long is cut before it is infinite.
            *residual = if sum.is_finite() || !gradient.is_finite() { sum } else { gradient };
        }
        let threshold = match self.codec {
            Codec::Dense(_) => T::ZERO,
            Codec::TopK { ratio } => top_k::threshold(&self.residual, ratio, &mut self.scratch),
        };
        let mut chunks = Vec::new();
        let ends = cuts.iter().skip(1).copied().chain([gradient.len()]);
        for (begin, end) in cuts.iter().copied().zip(ends) {
            for begin in (begin..end).step_by(chunk_len) {
                let len = chunk_len.min(end - begin);
                chunks.push(self.encode_chunk(begin, len, threshold));
            }
        }
        chunks
    }

    fn encode_chunk(&mut self, begin: usize, len: usize, threshold: T) -> Encoded {
        let rest = &mut self.residual[begin..begin + len];
        let encoding = match first_non_finite(rest) {
            None => self.codec.encoding(),
            Some(_) => Encoding::Plain,
        };
        self.scratch.clear();
        self.scratch.extend(
            rest.iter().map(|&value| if value.abs() < threshold { T::ZERO } else { value }),
        );
        let mut data = Vec::new();
        encoding.encode(&self.scratch, &mut data);
        self.scratch.clear();
        if encoding.decode(&data, &mut self.scratch, begin, len).is_ok() {
            for (rest, &sent) in rest.iter_mut().zip(&self.scratch) {
                *rest -= sent;
            }
        }
        Encoded { begin, len, encoding, data: data.into() }
    }

    /// What is lost so far and goes with the next gradient, by element; empty before the first.
    pub fn lost(&self) -> &[T] {
        &self.residual
    }

    /// The sum of squares of what is lost so far.
    pub fn lost_squares(&self) -> f64 {
        self.residual.iter().map(|x| x.to_f64() * x.to_f64()).sum()
    }

    /// Forgets what was lost: another theta than the one that it was lost of.
    pub fn reset(&mut self) {
        self.residual.clear();
    }
}
