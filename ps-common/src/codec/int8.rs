//! Eight bits an element: blocks of numbers as multiples of the block's scale.
//!
//! The scale is the largest magnitude of the block over 127, so that an element is off by at most half
//! of it.

use crate::dtype::Element;
use crate::error::Error;

/// Numbers that share a scale. The last block of a chunk may be shorter.
pub(super) const BLOCK: usize = 256;

const SCALE_BYTES: usize = 4;

/// Elements of a chunk of `n_bytes`; `None`: there is no such chunk.
pub(super) fn n_elements(n_bytes: usize) -> Option<usize> {
    let rest = n_bytes % (SCALE_BYTES + BLOCK);
    let n_blocks = n_bytes / (SCALE_BYTES + BLOCK) + usize::from(rest > 0);
    (rest == 0 || rest > SCALE_BYTES).then(|| n_bytes - n_blocks * SCALE_BYTES)
}

pub(super) fn encode<T: Element>(values: &[T], out: &mut Vec<u8>) {
    out.reserve(values.len() + values.len().div_ceil(BLOCK) * SCALE_BYTES);
    for block in values.chunks(BLOCK) {
        let largest =
            block.iter().fold(T::ZERO, |m, &x| if x.abs() > m { x.abs() } else { m }).to_f64();
        // 127 of them have to be a number still.
        let scale = ((largest / 127.0) as f32).min((f32::MAX / 127.0).next_down());
        out.extend_from_slice(&scale.to_le_bytes());
        let inverse = if scale > 0.0 { 1.0 / f64::from(scale) } else { 0.0 };
        out.extend(block.iter().map(|x| nearest((x.to_f64() * inverse).clamp(-127.0, 127.0))));
    }
}

/// The signed byte nearest to `x`, which is within its range; of two the even one.
///
/// Beside 1.5 * 2^52 a double has whole numbers only, the lowest bits of its significand are
/// theirs, and the sum is rounded to even: no call, no branch, many at once.
fn nearest(x: f64) -> u8 {
    const WHOLE: f64 = 6_755_399_441_055_744.0;
    (x + WHOLE).to_bits() as u8
}

#[expect(clippy::unnecessary_wraps, reason = "as the other decoders")]
pub(super) fn decode<T: Element>(bytes: &[u8], values: &mut Vec<T>) -> Result<(), Error> {
    for block in bytes.chunks(SCALE_BYTES + BLOCK) {
        let (scale, block) = block.split_at(SCALE_BYTES);
        let scale = f32::from_le_bytes(scale.try_into().expect("four bytes"));
        // A product that f32 does not have, or a scale that is none, is found by who called.
        let value = |byte: u8| T::from_f64(f64::from(scale * f32::from(byte.cast_signed())));
        values.extend(block.iter().map(|&byte| value(byte)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_byte_is_that_of_rounding() {
        for i in -127 * 64..=127 * 64 {
            let x = f64::from(i) / 64.0;
            let rounded = x.round_ties_even() as i8;
            assert_eq!(nearest(x), rounded.cast_unsigned(), "{x}");
            for near in [x.next_up(), x.next_down()] {
                let near = near.clamp(-127.0, 127.0);
                assert_eq!(nearest(near), (near.round_ties_even() as i8).cast_unsigned(), "{near}");
            }
        }
    }
}
