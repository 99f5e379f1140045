//! The loops that the formats with every element share: block by block, in the first cache.
//!
//! A block is added up, written, and what was written is taken off, before the next one is read.
//! Knows nothing of what a format does with the numbers of a block.

use std::marker::PhantomData;

use crate::dtype::Element;
use crate::{Kernel, widest};

/// Numbers of a block: 4 KiB of f32. A whole number of the blocks of int8.
const BLOCK: usize = 1024;

/// Numbers in fewer bytes, all of them.
pub(super) trait Format {
    /// Bytes of `n` numbers; blocks but the last are full.
    fn n_bytes(n: usize) -> usize;
    /// Writes `values` to as many `bytes` as they take.
    fn write<T: Element>(values: &[T], bytes: &mut [u8]);
    /// Writes the sums of `residual` and `gradient`, which is finite, and leaves in the first what a
    /// reader lacks of them.
    fn write_sum<T: Element>(residual: &mut [T], gradient: &[T], bytes: &mut [u8]);
    /// Reads as many `values` as there are.
    fn read<T: Element>(bytes: &[u8], values: &mut [T]);
}

/// What goes out for `gradient`, where `residual` was lost before.
#[inline(always)]
pub(super) fn sum<T: Element>(residual: T, gradient: T) -> T {
    if gradient.is_finite() { finite_sum(residual, gradient) } else { residual + gradient }
}

/// As [`sum`], for a gradient that is finite: what could not be sent for long is cut before it is
/// infinite.
#[inline(always)]
pub(super) fn finite_sum<T: Element>(residual: T, gradient: T) -> T {
    let sum = residual + gradient;
    if sum.is_finite() { sum } else { gradient }
}

/// Puts the sums in the place of `residual`.
#[inline(always)]
pub(super) fn add<T: Element>(residual: &mut [T], gradient: &[T]) {
    for (residual, &gradient) in residual.iter_mut().zip(gradient) {
        *residual = sum(*residual, gradient);
    }
}

/// Appends `values` to `out`.
pub(super) fn encode<F: Format, T: Element>(values: &[T], out: &mut Vec<u8>) {
    widest(Encode { values, out, format: PhantomData::<F> });
}

/// Appends `gradient` and what was lost before to `out`; `residual` becomes what is lost now. All are
/// finite.
pub(super) fn encode_sum<F: Format, T: Element>(
    residual: &mut [T],
    gradient: &[T],
    out: &mut Vec<u8>,
) {
    widest(EncodeSum { residual, gradient, out, format: PhantomData::<F> });
}

/// Appends the `n` numbers of `bytes` to `values`.
pub(super) fn decode<F: Format, T: Element>(bytes: &[u8], n: usize, values: &mut Vec<T>) {
    widest(Decode { bytes, n, values, format: PhantomData::<F> });
}

struct Encode<'a, F, T> {
    values: &'a [T],
    out: &'a mut Vec<u8>,
    format: PhantomData<F>,
}

impl<F: Format, T: Element> Kernel for Encode<'_, F, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.out.reserve(F::n_bytes(self.values.len()));
        for block in self.values.chunks(BLOCK) {
            F::write(block, more(self.out, F::n_bytes(block.len()), 0));
        }
    }
}

struct EncodeSum<'a, F, T> {
    residual: &'a mut [T],
    gradient: &'a [T],
    out: &'a mut Vec<u8>,
    format: PhantomData<F>,
}

impl<F: Format, T: Element> Kernel for EncodeSum<'_, F, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.out.reserve(F::n_bytes(self.residual.len()));
        for (residual, gradient) in self.residual.chunks_mut(BLOCK).zip(self.gradient.chunks(BLOCK))
        {
            let bytes = more(self.out, F::n_bytes(residual.len()), 0);
            F::write_sum(residual, gradient, bytes);
        }
    }
}

struct Decode<'a, F, T> {
    bytes: &'a [u8],
    n: usize,
    values: &'a mut Vec<T>,
    format: PhantomData<F>,
}

impl<F: Format, T: Element> Kernel for Decode<'_, F, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.values.reserve(self.n);
        let mut rest = self.n;
        for block in self.bytes.chunks(F::n_bytes(BLOCK)) {
            let len = rest.min(BLOCK);
            F::read(block, more(self.values, len, T::ZERO));
            rest -= len;
        }
    }
}

/// `n` elements more at the end of `all`, to be written over.
#[inline(always)]
fn more<V: Copy>(all: &mut Vec<V>, n: usize, value: V) -> &mut [V] {
    let start = all.len();
    all.resize(start + n, value);
    &mut all[start..]
}
