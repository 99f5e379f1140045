//! Eight bits an element: blocks of numbers as multiples of the block's scale.
//!
//! The scale is the largest magnitude of the block over 127, so that an element is off by at most half
//! of it.

use super::blocks::{Format, finite_sum};
use crate::dtype::Element;

/// Numbers that share a scale. The last block of a chunk may be shorter.
pub(super) const BLOCK: usize = 256;

const SCALE_BYTES: usize = 4;

/// As many magnitudes as are compared side by side; a single largest one would wait for itself.
const LANES: usize = 16;

/// Elements of a chunk of `n_bytes`; `None`: there is no such chunk.
pub(super) fn n_elements(n_bytes: usize) -> Option<usize> {
    let rest = n_bytes % (SCALE_BYTES + BLOCK);
    let n_blocks = n_bytes / (SCALE_BYTES + BLOCK) + usize::from(rest > 0);
    (rest == 0 || rest > SCALE_BYTES).then(|| n_bytes - n_blocks * SCALE_BYTES)
}

pub(super) struct Int8;

impl Format for Int8 {
    #[inline(always)]
    fn n_bytes(n: usize) -> usize {
        n + n.div_ceil(BLOCK) * SCALE_BYTES
    }

    #[inline(always)]
    fn write<T: Element>(values: &[T], bytes: &mut [u8]) {
        let mut multiples = [0; BLOCK];
        for (values, bytes) in values.chunks(BLOCK).zip(bytes.chunks_mut(SCALE_BYTES + BLOCK)) {
            let largest = largest(values);
            let (scale, bytes) = begin(largest, bytes);
            let multiples = &mut multiples[..values.len()];
            scale.divide(values, largest, multiples);
            for (byte, &multiple) in bytes.iter_mut().zip(&*multiples) {
                *byte = multiple as u8;
            }
        }
    }

    #[inline(always)]
    fn write_sum<T: Element>(residual: &mut [T], gradient: &[T], bytes: &mut [u8]) {
        let mut multiples = [0; BLOCK];
        let blocks = residual.chunks_mut(BLOCK).zip(gradient.chunks(BLOCK));
        for ((residual, gradient), bytes) in blocks.zip(bytes.chunks_mut(SCALE_BYTES + BLOCK)) {
            for (residual, &gradient) in residual.iter_mut().zip(gradient) {
                *residual = finite_sum(*residual, gradient);
            }
            let largest = largest(residual);
            let (scale, bytes) = begin(largest, bytes);
            let multiples = &mut multiples[..residual.len()];
            scale.divide(residual, largest, multiples);
            for ((residual, byte), &multiple) in residual.iter_mut().zip(bytes).zip(&*multiples) {
                *byte = multiple as u8;
                *residual -= times(scale.scale, multiple);
            }
        }
    }

    #[inline(always)]
    fn read<T: Element>(bytes: &[u8], values: &mut [T]) {
        for (values, bytes) in values.chunks_mut(BLOCK).zip(bytes.chunks(SCALE_BYTES + BLOCK)) {
            let (scale, bytes) = bytes.split_at(SCALE_BYTES);
            let scale = f32::from_le_bytes(scale.try_into().expect("four bytes"));
            for (value, &byte) in values.iter_mut().zip(bytes) {
                *value = times(scale, byte.cast_signed().into());
            }
        }
    }
}

/// A block's scale.
struct Scale {
    scale: f32,
    inverse: f64,
}

/// Writes the scale of a block, and returns it with the bytes of the numbers.
#[inline(always)]
fn begin<T: Element>(largest: T, bytes: &mut [u8]) -> (Scale, &mut [u8]) {
    // 127 of them have to be a number still.
    let scale = ((largest.to_f64() / 127.0) as f32).min((f32::MAX / 127.0).next_down());
    let inverse = if scale > 0.0 { 1.0 / f64::from(scale) } else { 0.0 };
    let (head, bytes) = bytes.split_at_mut(SCALE_BYTES);
    head.copy_from_slice(&scale.to_le_bytes());
    (Scale { scale, inverse }, bytes)
}

impl Scale {
    /// The nearest `multiples` to `values`, whose largest magnitude is `largest`.
    ///
    /// In memory of their own, because whole numbers become bytes and f32s from there with fewer
    /// instructions than right from the doubles that they are found with.
    #[inline(always)]
    fn divide<T: Element>(&self, values: &[T], largest: T, multiples: &mut [i32]) {
        let quotient = |value: T| value.to_f64() * self.inverse;
        // Nothing has to be cut but what is beyond f32, or where a scale is hardly above 0.
        if quotient(largest) < 127.4 {
            for (multiple, &value) in multiples.iter_mut().zip(values) {
                *multiple = nearest(quotient(value));
            }
        } else {
            for (multiple, &value) in multiples.iter_mut().zip(values) {
                *multiple = nearest(quotient(value).clamp(-127.0, 127.0));
            }
        }
    }
}

/// The largest magnitude of `values`; a NaN has none.
#[inline(always)]
fn largest<T: Element>(values: &[T]) -> T {
    let larger = |m: T, x: T| if x.abs() > m { x.abs() } else { m };
    let mut lanes = [T::ZERO; LANES];
    let (rows, rest) = values.as_chunks::<LANES>();
    for row in rows {
        for (lane, &x) in lanes.iter_mut().zip(row) {
            *lane = larger(*lane, x);
        }
    }
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = larger(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    rest.iter().fold(lanes[0], |m, &x| larger(m, x))
}

/// What a multiple of a scale stands for. A product that f32 does not have, or a scale that is none, is
/// found by who reads.
#[inline(always)]
fn times<T: Element>(scale: f32, multiple: i32) -> T {
    T::from_f64(f64::from(scale * multiple as f32))
}

/// The whole number nearest to `x`, which is within 31 bits; of two the even one.
///
/// Beside 1.5 * 2^52 a double has whole numbers only, the lowest bits of its significand are
/// theirs, and the sum is rounded to even: no call, no branch, many at once.
#[inline(always)]
fn nearest(x: f64) -> i32 {
    const WHOLE: f64 = 6_755_399_441_055_744.0;
    (x + WHOLE).to_bits() as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_number_is_that_of_rounding() {
        for i in -127 * 64..=127 * 64 {
            let x = f64::from(i) / 64.0;
            assert_eq!(nearest(x), x.round_ties_even() as i32, "{x}");
            for near in [x.next_up(), x.next_down()] {
                assert_eq!(nearest(near), near.round_ties_even() as i32, "{near}");
            }
        }
    }
}
