//! f16 and bf16: two bytes an element.

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
    fn to_bytes(self) -> [u8; 2];
    fn from_bytes(bytes: [u8; 2]) -> Self;
}

macro_rules! half_precision {
    ($format:ty) => {
        impl Half for $format {
            const MAX: f32 = <$format>::MAX.to_f32_const();
            const ZERO: Self = <$format>::ZERO;
            fn from_f32s(values: &[f32], out: &mut [Self]) {
                use half::slice::HalfFloatSliceExt;
                out.convert_from_f32_slice(values);
            }
            fn to_f32s(values: &[Self], out: &mut [f32]) {
                use half::slice::HalfFloatSliceExt;
                values.convert_to_f32_slice(out);
            }
            fn to_bytes(self) -> [u8; 2] {
                self.to_le_bytes()
            }
            fn from_bytes(bytes: [u8; 2]) -> Self {
                Self::from_le_bytes(bytes)
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
        out.extend(halves.iter().flat_map(|half| half.to_bytes()));
    }
}

#[expect(clippy::unnecessary_wraps, reason = "as the other decoders")]
pub(super) fn decode<H: Half, T: Element>(bytes: &[u8], values: &mut Vec<T>) -> Result<(), Error> {
    let (mut single, mut halves) = ([0f32; BLOCK], [H::ZERO; BLOCK]);
    for block in bytes.chunks(2 * BLOCK) {
        let n = block.len() / 2;
        for (half, bytes) in halves.iter_mut().zip(block.chunks_exact(2)) {
            *half = H::from_bytes([bytes[0], bytes[1]]);
        }
        H::to_f32s(&halves[..n], &mut single[..n]);
        values.extend(single[..n].iter().map(|&single| T::from_f64(single.into())));
    }
    Ok(())
}
