//! f16 and bf16: two bytes an element.
//!
//! Rounded with whole numbers, without a call or a branch, so that the compiler makes it many elements
//! at once for whatever registers there are.

use half::{bf16, f16};

use super::blocks::{Format, finite_sum};
use crate::dtype::Element;

/// A format of two bytes.
pub(super) trait Half {
    /// Its largest finite number.
    const MAX: f32;
    /// The NaN with the sign and the first bits of `single`, which is one.
    fn nan(single: f32) -> u16;
    /// The nearest number to `single`, of two the even one, as it is written and as an f32. `single` is
    /// at most [`Half::MAX`] and no NaN.
    fn round(single: f32) -> (u16, f32);
    /// The number that is written so.
    fn widen(bits: u16) -> f32;
}

const SIGN: u32 = 1 << 31;
const INFINITY: u32 = f32::INFINITY.to_bits();

impl Half for f16 {
    const MAX: f32 = f16::MAX.to_f32_const();

    #[inline(always)]
    fn round(single: f32) -> (u16, f32) {
        let magnitude = single.to_bits() & !SIGN;
        let sign = single.to_bits() & SIGN;
        let normal = (magnitude + 0xfff + (magnitude >> 13 & 1)) & !0x1fff;
        // Beside 1/2 an f32 has the multiples of 2^-24 only, which are the subnormals here.
        let subnormal = f32::from_bits(magnitude) + 0.5;
        let (bits, rounded) = if magnitude < SMALLEST_NORMAL {
            (subnormal.to_bits().wrapping_sub(HALF), (subnormal - 0.5).to_bits())
        } else {
            (normal.wrapping_sub(BIAS) >> 13, normal)
        };
        ((sign >> 16 | bits) as u16, f32::from_bits(sign | rounded))
    }

    #[inline(always)]
    fn nan(single: f32) -> u16 {
        let bits = single.to_bits();
        ((bits & SIGN) >> 16 | 0x7e00 | bits >> 13 & 0x3ff) as u16
    }

    #[inline(always)]
    fn widen(bits: u16) -> f32 {
        let sign = u32::from(bits & 0x8000) << 16;
        let magnitude = u32::from(bits & 0x7fff);
        let subnormal = (f32::from_bits(HALF + magnitude) - 0.5).to_bits();
        let normal = (magnitude << 13) + BIAS;
        let infinite = (magnitude << 13) | INFINITY;
        let finite = if magnitude < 0x400 { subnormal } else { normal };
        f32::from_bits(sign | if magnitude < 0x7c00 { finite } else { infinite })
    }
}

/// The smallest f32 that is a normal number as f16.
const SMALLEST_NORMAL: u32 = f16::MIN_POSITIVE.to_f32_const().to_bits();
const HALF: u32 = 0.5f32.to_bits();
/// How much larger the exponent of an f32 is than that of an f16, in its place.
const BIAS: u32 = (127 - 15) << 23;

impl Half for bf16 {
    const MAX: f32 = bf16::MAX.to_f32_const();

    #[inline(always)]
    fn round(single: f32) -> (u16, f32) {
        let bits = single.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000;
        ((rounded >> 16) as u16, f32::from_bits(rounded))
    }

    #[inline(always)]
    fn nan(single: f32) -> u16 {
        (single.to_bits() >> 16 | 0x40) as u16
    }

    #[inline(always)]
    fn widen(bits: u16) -> f32 {
        f32::from_bits(u32::from(bits) << 16)
    }
}

impl<H: Half> Format for H {
    #[inline(always)]
    fn n_bytes(n: usize) -> usize {
        2 * n
    }

    #[inline(always)]
    fn write<T: Element>(values: &[T], bytes: &mut [u8]) {
        for (&value, bytes) in values.iter().zip(bytes.as_chunks_mut::<2>().0) {
            let single = within::<H, T>(value);
            let bits = if single.is_nan() { H::nan(single) } else { H::round(single).0 };
            *bytes = bits.to_le_bytes();
        }
    }

    #[inline(always)]
    fn write_sum<T: Element>(residual: &mut [T], gradient: &[T], bytes: &mut [u8]) {
        let elements = residual.iter_mut().zip(gradient);
        for ((residual, &gradient), bytes) in elements.zip(bytes.as_chunks_mut::<2>().0) {
            let sum = finite_sum(*residual, gradient);
            let (bits, sent) = H::round(within::<H, T>(sum));
            *bytes = bits.to_le_bytes();
            *residual = sum - T::from_f64(sent.into());
        }
    }

    #[inline(always)]
    fn read<T: Element>(bytes: &[u8], values: &mut [T]) {
        for (value, &bytes) in values.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *value = T::from_f64(H::widen(u16::from_le_bytes(bytes)).into());
        }
    }
}

/// The nearest f32 that the format can round.
#[inline(always)]
fn within<H: Half, T: Element>(value: T) -> f32 {
    (value.to_f64() as f32).clamp(-H::MAX, H::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the crate of the formats makes of it.
    trait Reference: Half {
        fn reference_round(single: f32) -> u16;
        fn reference_widen(bits: u16) -> f32;
    }

    impl Reference for f16 {
        fn reference_round(single: f32) -> u16 {
            f16::from_f32_const(single).to_bits()
        }
        fn reference_widen(bits: u16) -> f32 {
            f16::from_bits(bits).to_f32_const()
        }
    }

    impl Reference for bf16 {
        fn reference_round(single: f32) -> u16 {
            bf16::from_f32_const(single).to_bits()
        }
        fn reference_widen(bits: u16) -> f32 {
            bf16::from_bits(bits).to_f32_const()
        }
    }

    fn rounds_as_it_should<H: Reference>(single: f32) {
        let single = single.clamp(-H::MAX, H::MAX);
        if single.is_nan() {
            assert_eq!(H::nan(single), H::reference_round(single), "{:x}", single.to_bits());
            return;
        }
        let (bits, sent) = H::round(single);
        assert_eq!(bits, H::reference_round(single), "{single:e}");
        assert_eq!(sent.to_bits(), H::reference_widen(bits).to_bits(), "{single:e}");
    }

    fn is_the_reference<H: Reference>() {
        for bits in 0..=u16::MAX {
            let (got, want) = (H::widen(bits), H::reference_widen(bits));
            assert_eq!(got.is_nan(), want.is_nan(), "{bits:#06x}");
            assert!(got.is_nan() || got.to_bits() == want.to_bits(), "{bits:#06x}: {got:e}");
            // Each number, what is halfway to the next, and what lies beside both.
            let next = H::reference_widen(bits ^ 1);
            for near in [want, want / 2.0 + next / 2.0] {
                for single in [near, near.next_up(), near.next_down()] {
                    rounds_as_it_should::<H>(single);
                }
            }
        }
        for bits in (0..=u32::MAX).step_by(99_991) {
            rounds_as_it_should::<H>(f32::from_bits(bits));
        }
    }

    #[test]
    fn all_numbers_are_rounded_and_widened_as_the_standard_says() {
        is_the_reference::<f16>();
        is_the_reference::<bf16>();
    }
}
