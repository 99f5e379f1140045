//! f16 and bf16: two bytes an element.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::dtype::Element;
use crate::error::Error;

/// Numbers that are converted at a time: they stay in registers and the nearest cache.
const BLOCK: usize = 256;

/// A format of two bytes.
pub(super) trait Half: Copy {
    /// Its largest finite number.
    const MAX: f32;
    /// 0.
    const ZERO: Self;
    fn from_f32s(values: &[f32], out: &mut [Self]);
    fn to_f32s(values: &[Self], out: &mut [f32]);
    fn bits(values: &[Self]) -> &[u16];
    fn bits_mut(values: &mut [Self]) -> &mut [u16];
}

macro_rules! half_precision {
    ($format:ty) => {
        impl Half for $format {
            const MAX: f32 = <$format>::MAX.to_f32_const();
            const ZERO: Self = <$format>::ZERO;
            fn from_f32s(values: &[f32], out: &mut [Self]) {
                out.convert_from_f32_slice(values);
            }
            fn to_f32s(values: &[Self], out: &mut [f32]) {
                values.convert_to_f32_slice(out);
            }
            fn bits(values: &[Self]) -> &[u16] {
                values.reinterpret_cast()
            }
            fn bits_mut(values: &mut [Self]) -> &mut [u16] {
                values.reinterpret_cast_mut()
            }
        }
    };
}
half_precision!(f16);
half_precision!(bf16);

pub(super) fn encode<H: Half, T: Element>(values: &[T], out: &mut Vec<u8>) {
    out.reserve(values.len() * 2);
    let (mut single, mut halves) = ([0f32; BLOCK], [H::ZERO; BLOCK]);
    for block in values.chunks(BLOCK) {
        let (single, halves) = (&mut single[..block.len()], &mut halves[..block.len()]);
        for (single, value) in single.iter_mut().zip(block) {
            // The rest is the sender's to add to the next.
            *single = (value.to_f64() as f32).clamp(-H::MAX, H::MAX);
        }
        H::from_f32s(single, halves);
        // Whole blocks at once: a byte at a time costs more than the conversion.
        let start = out.len();
        out.resize(start + 2 * block.len(), 0);
        for (bytes, bits) in out[start..].chunks_exact_mut(2).zip(H::bits(halves)) {
            bytes.copy_from_slice(&bits.to_le_bytes());
        }
    }
}

#[expect(clippy::unnecessary_wraps, reason = "as the other decoders")]
pub(super) fn decode<H: Half, T: Element>(bytes: &[u8], values: &mut Vec<T>) -> Result<(), Error> {
    let (mut single, mut halves) = ([0f32; BLOCK], [H::ZERO; BLOCK]);
    for block in bytes.chunks(2 * BLOCK) {
        let n = block.len() / 2;
        for (bits, bytes) in H::bits_mut(&mut halves).iter_mut().zip(block.chunks_exact(2)) {
            *bits = u16::from_le_bytes([bytes[0], bytes[1]]);
        }
        H::to_f32s(&halves[..n], &mut single[..n]);
        values.extend(single[..n].iter().map(|&single| T::from_f64(single.into())));
    }
    Ok(())
}
