//! Tensors in fewer bytes: half precision, eight bits with a scale, the largest elements only.
//!
//! A codec is a pure function from a chunk's values to bytes and back. What it loses of a gradient
//! the sender keeps and adds to its next one ([`Feedback`]): Seide et al. 2014, "1-Bit Stochastic
//! Gradient Descent", section 3; Karimireddy et al. 2019, "Error Feedback Fixes SignSGD", algorithm 2.
//! Knows nothing of messages and calls.

mod blocks;
mod feedback;
mod half_precision;
mod int8;
mod largest;
mod top_k;

use std::str::FromStr;

use half::{bf16, f16};

use crate::check::{first_beyond, first_non_finite};
use crate::dtype::{Element, as_le_bytes};
use crate::error::{Error, ErrorCode};

use int8::Int8;

pub use feedback::{Encoded, Feedback};

/// How the numbers of a chunk are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// As theta has them: nothing is lost.
    Plain,
    /// IEEE 754 half precision, rounded to nearest even; beyond its largest (65504) that.
    F16,
    /// The upper half of single precision, rounded to nearest even; beyond its largest that.
    Bf16,
    /// Blocks of 256 numbers: their scale in f32, then a signed byte of each.
    Int8,
    /// Some elements with their places; the others are 0.
    TopK,
}

impl Encoding {
    /// Appends `values`, all of them finite, to `out`. [`Encoding::TopK`] writes those that are not 0.
    pub fn encode<T: Element>(self, values: &[T], out: &mut Vec<u8>) {
        match self {
            Self::Plain => out.extend_from_slice(as_le_bytes(values)),
            Self::F16 => blocks::encode::<f16, T>(values, out),
            Self::Bf16 => blocks::encode::<bf16, T>(values, out),
            Self::Int8 => blocks::encode::<Int8, T>(values, out),
            Self::TopK => top_k::encode(values, out),
        }
    }

    /// As [`Encoding::encode`], for an encoding that [suits theta](Encoding::suits_theta). On an error
    /// nothing is appended.
    ///
    /// # Errors
    /// The first place of a number beyond the format's largest: nothing near it can be written.
    pub fn encode_theta<T: Element>(self, values: &[T], out: &mut Vec<u8>) -> Result<(), usize> {
        if let Some(place) = first_beyond(values, T::from_f64(self.largest())) {
            return Err(place);
        }
        self.encode(values, out);
        Ok(())
    }

    /// Whether theta may be written so: each number by itself, as it is or as the nearest that a format
    /// has. What the others leave out of a gradient is sent with the next one; of theta it would never
    /// arrive.
    pub fn suits_theta(self) -> bool {
        matches!(self, Self::Plain | Self::F16 | Self::Bf16)
    }

    /// The largest number that is not cut.
    pub fn largest(self) -> f64 {
        match self {
            Self::Plain => f64::MAX,
            Self::F16 => half::f16::MAX.into(),
            Self::Bf16 => half::bf16::MAX.into(),
            Self::Int8 | Self::TopK => f32::MAX.into(),
        }
    }

    /// Appends what `bytes` says to `values`, which may have `len_max` elements then. On an error nothing
    /// is appended; errors count elements from `first_key`.
    ///
    /// # Errors
    /// BAD_LENGTH where the bytes are no whole number of elements, DIM_MISMATCH beyond `len_max`,
    /// BAD_KEY where places are out of order, NON_FINITE with the index of the first such number.
    pub fn decode<T: Element>(
        self,
        bytes: &[u8],
        values: &mut Vec<T>,
        first_key: usize,
        len_max: usize,
    ) -> Result<(), Error> {
        let begin = values.len();
        let n = self.n_elements(bytes, size_of::<T>())?;
        if n > len_max - begin.min(len_max) {
            return Err(Error::new(
                ErrorCode::DimMismatch,
                format!("a tensor of at least {} elements, where {len_max} are wanted", begin + n),
            )
            .with("want", len_max)
            .with("got", begin + n));
        }
        let mut decoded = Ok(());
        match self {
            Self::Plain => {
                values.extend(
                    bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned::<T>),
                );
            }
            Self::F16 => blocks::decode::<f16, T>(bytes, n, values),
            Self::Bf16 => blocks::decode::<bf16, T>(bytes, n, values),
            Self::Int8 => blocks::decode::<Int8, T>(bytes, n, values),
            Self::TopK => decoded = top_k::decode(bytes, n, values),
        }
        let finite = decoded.and_then(|()| match first_non_finite(&values[begin..]) {
            None => Ok(()),
            Some(index) => {
                let (key, value) = (first_key + begin + index, values[begin + index]);
                let what = format!("element {key} is {value}");
                Err(Error::new(ErrorCode::NonFinite, what).with("index", key))
            }
        });
        finite.inspect_err(|_| values.truncate(begin))
    }

    /// Elements of a chunk of these bytes; `plain_bytes` is the size of one as theta has it.
    ///
    /// # Errors
    /// BAD_LENGTH where there is no such chunk.
    pub fn n_elements(self, bytes: &[u8], plain_bytes: usize) -> Result<usize, Error> {
        let whole = |size: usize| bytes.len().is_multiple_of(size).then(|| bytes.len() / size);
        let n = match self {
            Self::Plain => whole(plain_bytes),
            Self::F16 | Self::Bf16 => whole(2),
            Self::Int8 => int8::n_elements(bytes.len()),
            Self::TopK => top_k::n_elements(bytes),
        };
        n.ok_or_else(|| {
            let what = format!("{} bytes are no whole chunk of {}", bytes.len(), self.name());
            Error::new(ErrorCode::BadLength, what).with("bytes", bytes.len())
        })
    }

    /// Whether what comes out is what went in.
    pub fn is_exact(self) -> bool {
        self == Self::Plain
    }

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::TopK => "topk",
        }
    }
}

/// What `--wire` says of gradients: an encoding with its options.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Codec {
    /// Every element.
    Dense(Encoding),
    /// Of each gradient the largest elements.
    TopK {
        /// Their share of all, above 0 and at most 1.
        ratio: f64,
    },
}

impl Codec {
    /// Nothing is lost.
    pub const PLAIN: Self = Self::Dense(Encoding::Plain);

    /// How its chunks are written.
    pub fn encoding(self) -> Encoding {
        match self {
            Self::Dense(encoding) => encoding,
            Self::TopK { .. } => Encoding::TopK,
        }
    }
}

impl std::fmt::Display for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            // Theta's own type, whatever it is.
            Self::Dense(Encoding::Plain) => f.write_str("f32"),
            Self::Dense(encoding) => f.write_str(encoding.name()),
            Self::TopK { ratio } => write!(f, "topk,ratio={ratio}"),
        }
    }
}

impl FromStr for Codec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, option) = match text.split_once(',') {
            Some((name, option)) => (name, Some(option)),
            None => (text, None),
        };
        let dense = match name {
            "f32" | "f64" | "plain" => Encoding::Plain,
            "f16" => Encoding::F16,
            "bf16" => Encoding::Bf16,
            "int8" => Encoding::Int8,
            "topk" => {
                let ratio = option.and_then(|option| option.strip_prefix("ratio="));
                let ratio = ratio.and_then(|text| text.parse().ok());
                return match ratio.filter(|&ratio: &f64| ratio > 0.0 && ratio <= 1.0) {
                    Some(ratio) => Ok(Self::TopK { ratio }),
                    None => Err(format!(
                        "`{text}`: topk wants the share of elements to send, above 0 and at most \
                         1, as in topk,ratio=0.01"
                    )),
                };
            }
            _ => return Err(format!("`{name}` is not f32, f16, bf16, int8 or topk,ratio=R")),
        };
        match option {
            None => Ok(Self::Dense(dense)),
            Some(option) => Err(format!("`{option}`: {name} has no options")),
        }
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod twin_tests;
