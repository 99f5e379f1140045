//! Element types of theta and their bytes.
//!
//! Owns the two dtypes, the little-endian view of slices, and how many bytes are kept and sent in one
//! piece. Knows nothing of tables or the wire.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Bytes of tensor in one chunk: large enough to amortise a message, small enough to stay in cache.
///
/// With its heads it fills eight of TCP's packets, on loopback (65,483 bytes) as well as where a card
/// cuts them (45 segments of 1,448 bytes). 512 KiB would need a ninth for its last few bytes, which
/// costs as much as a full one.
pub const CHUNK_BYTES: usize = 509 << 10;

/// Element type of theta and of gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 double precision.
    F64,
}

impl Dtype {
    /// Bytes of one element.
    pub const fn size_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    /// The name on flags, in reports and in fingerprints.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F64 => "f64",
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Dtype {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "f32" => Ok(Self::F32),
            "f64" => Ok(Self::F64),
            other => Err(format!("dtype is f32 or f64, not `{other}`")),
        }
    }
}

/// A float that theta can be made of: `f32` or `f64`.
///
/// Sealed by use: kernels are written once over `Element` and run in either precision.
pub trait Element:
    bytemuck::Pod
    + PartialOrd
    + fmt::Debug
    + fmt::Display
    + Send
    + Sync
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::Neg<Output = Self>
    + std::ops::AddAssign
    + std::ops::SubAssign
    + std::ops::MulAssign
    + 'static
{
    /// Which dtype this is.
    const DTYPE: Dtype;
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// Rounds to this type's precision.
    fn from_f64(value: f64) -> Self;
    /// Widens without loss.
    fn to_f64(self) -> f64;
    /// Neither NaN nor infinite.
    fn is_finite(self) -> bool;
    /// Without its sign.
    fn abs(self) -> Self;
    /// Square root, correctly rounded.
    fn sqrt(self) -> Self;
}

macro_rules! element {
    ($float:ty, $dtype:expr) => {
        impl Element for $float {
            const DTYPE: Dtype = $dtype;
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            #[inline(always)]
            #[allow(clippy::cast_possible_truncation, clippy::cast_lossless)]
            fn from_f64(value: f64) -> Self {
                value as Self
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            #[inline(always)]
            fn is_finite(self) -> bool {
                <$float>::is_finite(self)
            }
            #[inline(always)]
            fn abs(self) -> Self {
                <$float>::abs(self)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                <$float>::sqrt(self)
            }
        }
    };
}
element!(f32, Dtype::F32);
element!(f64, Dtype::F64);

/// The little-endian bytes of a slice, which on every supported machine are its bytes in memory.
pub fn as_le_bytes<T: Element>(values: &[T]) -> &[u8] {
    const { assert!(cfg!(target_endian = "little"), "big-endian machines are not supported") };
    bytemuck::cast_slice(values)
}

/// Copies little-endian bytes, at any alignment, into `values`.
///
/// # Panics
/// If the lengths differ.
pub fn copy_from_le_bytes<T: Element>(values: &mut [T], bytes: &[u8]) {
    const { assert!(cfg!(target_endian = "little"), "big-endian machines are not supported") };
    bytemuck::cast_slice_mut::<T, u8>(values).copy_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_round_trip_at_an_odd_alignment() {
        let values = [1.5f64, -0.0, f64::MIN_POSITIVE];
        let mut shifted = vec![0u8];
        shifted.extend_from_slice(as_le_bytes(&values));
        let mut back = [9f64; 3];
        copy_from_le_bytes(&mut back, &shifted[1..]);
        assert_eq!(back.map(f64::to_bits), values.map(f64::to_bits));
        assert_eq!(&shifted[1..9], &1.5f64.to_le_bytes());
    }

    #[test]
    fn names_round_trip() {
        for dtype in [Dtype::F32, Dtype::F64] {
            assert_eq!(dtype.name().parse::<Dtype>(), Ok(dtype));
        }
        assert!("f16".parse::<Dtype>().is_err());
    }
}
