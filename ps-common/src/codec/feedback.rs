//! Gradients on their way out through a codec, and what it lost of them.

use std::ops::Range;

use bytes::Bytes;
use half::{bf16, f16};

use super::int8::Int8;
use super::largest::Largest;
use super::{Codec, Encoding, blocks, top_k};
use crate::check::first_non_finite;
use crate::dtype::{Element, as_le_bytes};
use crate::widest;

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
    largest: Largest<T>,
}

impl<T: Element> Feedback<T> {
    /// Nothing is lost yet.
    pub fn new(codec: Codec) -> Self {
        Self { codec, residual: Vec::new(), largest: Largest::new() }
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
        if self.residual.is_empty() {
            self.residual.resize(gradient.len(), T::ZERO);
        }
        assert_eq!(self.residual.len(), gradient.len(), "theta keeps its length");
        let ratio = match self.codec {
            Codec::TopK { ratio } => ratio,
            Codec::Dense(Encoding::TopK) => 1.0,
            Codec::Dense(encoding) => {
                let encode = |chunk: Range<usize>| {
                    let residual = &mut self.residual[chunk.clone()];
                    let (encoding, data) = encode_all(encoding, residual, &gradient[chunk.clone()]);
                    Encoded::new(chunk, encoding, data)
                };
                return chunks(gradient.len(), cuts, chunk_len).map(encode).collect();
            }
        };
        let (threshold, mut chosen) = self.largest.of_sum(&mut self.residual, gradient, ratio);
        let encode = |chunk: Range<usize>| {
            let here;
            (here, chosen) = chosen.split_at(chosen.partition_point(|&place| place < chunk.end));
            let residual = &mut self.residual[chunk.clone()];
            let (encoding, data) = encode_chosen(residual, here, chunk.start, threshold);
            Encoded::new(chunk, encoding, data)
        };
        chunks(gradient.len(), cuts, chunk_len).map(encode).collect()
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

impl Encoded {
    fn new(chunk: Range<usize>, encoding: Encoding, data: Vec<u8>) -> Self {
        Self { begin: chunk.start, len: chunk.len(), encoding, data: data.into() }
    }
}

/// The chunks of `len` elements that begin at `cuts` and have at most `chunk_len`.
fn chunks(len: usize, cuts: &[usize], chunk_len: usize) -> impl Iterator<Item = Range<usize>> {
    let ends = cuts.iter().skip(1).copied().chain([len]);
    cuts.iter().copied().zip(ends).flat_map(move |(begin, end)| {
        (begin..end).step_by(chunk_len).map(move |begin| begin..end.min(begin + chunk_len))
    })
}

/// Every sum of `gradient` and `residual`, which becomes what is lost of it.
fn encode_all<T: Element>(
    encoding: Encoding,
    residual: &mut [T],
    gradient: &[T],
) -> (Encoding, Vec<u8>) {
    let mut data = Vec::new();
    // A sum is finite where its gradient is. That is looked at first, because a block that is written
    // is not taken back.
    let is_finite = first_non_finite(gradient).is_none();
    match encoding {
        Encoding::F16 if is_finite => blocks::encode_sum::<f16, T>(residual, gradient, &mut data),
        Encoding::Bf16 if is_finite => blocks::encode_sum::<bf16, T>(residual, gradient, &mut data),
        Encoding::Int8 if is_finite => blocks::encode_sum::<Int8, T>(residual, gradient, &mut data),
        _ => {
            widest(|| blocks::add(residual, gradient));
            data.extend_from_slice(as_le_bytes(residual));
            if is_finite {
                residual.fill(T::ZERO);
            }
            return (Encoding::Plain, data);
        }
    }
    (encoding, data)
}

/// The elements of a chunk at the places `chosen`, where its first has the place `begin`: those of at
/// least `threshold`. What is not finite is among them.
fn encode_chosen<T: Element>(
    residual: &mut [T],
    chosen: &[usize],
    begin: usize,
    threshold: T,
) -> (Encoding, Vec<u8>) {
    let mut data = Vec::new();
    if chosen.iter().all(|place| residual[place - begin].is_finite()) {
        top_k::take(residual, chosen, begin, &mut data);
        return (Encoding::TopK, data);
    }
    // Nothing of it is taken in, and so nothing is taken off.
    let sent = |&value: &T| if value.abs() < threshold { T::ZERO } else { value };
    let sent: Vec<T> = residual.iter().map(sent).collect();
    data.extend_from_slice(as_le_bytes(&sent));
    (Encoding::Plain, data)
}
