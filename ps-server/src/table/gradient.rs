//! A gradient on its way in: bytes checked while they are hot, cast into place.

use std::ops::Deref;

use bytes::Buf;
use ps_common::check::{all_within, first_non_finite};
use ps_common::codec::Encoding;
use ps_common::dtype::as_le_bytes;
use ps_common::{Dtype, Element, Error, ErrorCode, widest};

use super::certain::moderate;
use super::room::{check_room, no_room};

/// What is copied before it is looked at: it is still in the first cache then.
const BLOCK_BYTES: usize = 16 << 10;

/// A gradient, whole or growing.
#[derive(Debug, Clone, PartialEq)]
pub enum Gradient {
    /// Single precision.
    F32(Values<f32>),
    /// Double precision.
    F64(Values<f64>),
}

/// A gradient's elements, all finite, and whether one of them is so large that an update may overflow.
#[derive(Debug, Clone, PartialEq)]
pub struct Values<T> {
    values: Vec<T>,
    is_moderate: bool,
}

impl<T: Element> From<Vec<T>> for Values<T> {
    fn from(values: Vec<T>) -> Self {
        let is_moderate = all_within(&values, moderate());
        Self { values, is_moderate }
    }
}

impl<T: Element> FromIterator<T> for Values<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        Self::from(values.into_iter().collect::<Vec<T>>())
    }
}

impl<T> Deref for Values<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.values
    }
}

impl<T: Element> Values<T> {
    /// The elements, for an update that does not ask whether they are moderate.
    pub(super) fn as_mut_slice(&mut self) -> &mut [T] {
        &mut self.values
    }

    /// None, in the same memory.
    fn emptied(mut self) -> Self {
        self.values.clear();
        Self { values: self.values, is_moderate: true }
    }
}

/// Why a chunk cannot be part of a gradient.
pub type GradientError = Error;

impl Gradient {
    /// An empty one that will have `dim` elements; `spare` lends its memory.
    pub fn empty(dtype: Dtype, spare: Option<Self>) -> Self {
        match (dtype, spare) {
            (Dtype::F32, Some(Self::F32(values))) => Self::F32(values.emptied()),
            (Dtype::F64, Some(Self::F64(values))) => Self::F64(values.emptied()),
            (Dtype::F32, _) => Self::F32(Vec::new().into()),
            (Dtype::F64, _) => Self::F64(Vec::new().into()),
        }
    }

    /// A whole one from the bytes of [`Gradient::as_le_bytes`].
    ///
    /// # Errors
    /// NON_FINITE with the first index, BAD_LENGTH for a broken element.
    pub fn from_le_bytes(dtype: Dtype, bytes: &[u8]) -> Result<Self, GradientError> {
        let mut gradient = Self::empty(dtype, None);
        gradient.append(bytes, bytes.len() / dtype.size_bytes())?;
        Ok(gradient)
    }

    /// Its elements as bytes, little-endian.
    pub fn as_le_bytes(&self) -> &[u8] {
        match self {
            Self::F32(values) => as_le_bytes(values),
            Self::F64(values) => as_le_bytes(values),
        }
    }

    /// Its elements.
    ///
    /// # Panics
    /// If they are of another type.
    pub fn values<T: Element>(&self) -> &[T] {
        let dtype = match self {
            Self::F32(_) => Dtype::F32,
            Self::F64(_) => Dtype::F64,
        };
        assert_eq!(T::DTYPE, dtype, "the assembler has checked it");
        match self {
            Self::F32(values) => bytemuck::cast_slice(values),
            Self::F64(values) => bytemuck::cast_slice(values),
        }
    }

    /// Whether no element is so large that an ordinary update by it may overflow.
    pub(super) fn is_moderate(&self) -> bool {
        match self {
            Self::F32(values) => values.is_moderate,
            Self::F64(values) => values.is_moderate,
        }
    }

    /// Elements so far.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F64(values) => values.len(),
        }
    }

    /// Whether nothing is in yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends a chunk of a gradient of `dim` elements, in however many pieces. On an error nothing is
    /// appended.
    ///
    /// # Errors
    /// NON_FINITE with the first index, DIM_MISMATCH beyond `dim`, BAD_LENGTH for a broken element,
    /// OVERLOADED without memory for it and for the theta that it would make.
    pub fn append(&mut self, bytes: impl Buf, dim: usize) -> Result<(), GradientError> {
        self.append_from(0, bytes, dim, |_| {})
    }

    /// As [`Gradient::append`], of a part of a gradient whose first element is `first_key` of the whole:
    /// errors name elements so. All bytes are shown to `see`, in order, each block of them just before
    /// it is taken in: they are in the first cache then.
    ///
    /// # Errors
    /// As there.
    pub fn append_from(
        &mut self,
        first_key: usize,
        bytes: impl Buf,
        dim: usize,
        see: impl FnMut(&[u8]),
    ) -> Result<(), GradientError> {
        match self {
            Self::F32(values) => append(values, first_key, (bytes, see), dim),
            Self::F64(values) => append(values, first_key, (bytes, see), dim),
        }
    }

    /// As [`Gradient::append_from`], of a chunk that is written in fewer bytes.
    ///
    /// # Errors
    /// As there, and BAD_KEY where the places of its elements are out of order.
    pub fn append_coded(
        &mut self,
        first_key: usize,
        encoding: Encoding,
        mut bytes: impl Buf,
        dim: usize,
    ) -> Result<(), GradientError> {
        let bytes = bytes.copy_to_bytes(bytes.remaining());
        match self {
            Self::F32(values) => append_coded(values, first_key, encoding, &bytes, dim),
            Self::F64(values) => append_coded(values, first_key, encoding, &bytes, dim),
        }
    }
}

fn append_coded<T: Element>(
    gradient: &mut Values<T>,
    first_key: usize,
    encoding: Encoding,
    bytes: &[u8],
    dim: usize,
) -> Result<(), GradientError> {
    let n = encoding.n_elements(bytes, size_of::<T>())?;
    let values = &mut gradient.values;
    let start = values.len();
    make_room(values, n, dim)?;
    encoding.decode(bytes, values, first_key, dim)?;
    gradient.is_moderate &= all_within(&values[start..], moderate());
    Ok(())
}

/// Memory for `n` elements more of a gradient of `dim`.
fn make_room<T: Element>(values: &mut Vec<T>, n: usize, dim: usize) -> Result<(), GradientError> {
    let start = values.len();
    let end = start + n;
    if end > dim {
        return Err(Error::new(
            ErrorCode::DimMismatch,
            format!("the gradient has at least {end} elements, theta has {dim}"),
        )
        .with("want", dim)
        .with("got", end));
    }
    if values.capacity() < end {
        // All at once, but never for more than the sender has begun to deliver.
        let wanted = if start == 0 { end } else { dim };
        let n_bytes = |n: usize| (n * size_of::<T>()) as u64;
        values
            .try_reserve_exact(wanted - start)
            .map_err(|_| no_room("a gradient", n_bytes(wanted)))?;
        check_room("the update by a gradient", n_bytes(wanted))?;
    }
    Ok(())
}

fn append<T: Element>(
    gradient: &mut Values<T>,
    first_key: usize,
    (mut bytes, mut see): (impl Buf, impl FnMut(&[u8])),
    dim: usize,
) -> Result<(), GradientError> {
    let (n_bytes, size) = (bytes.remaining(), size_of::<T>());
    if !n_bytes.is_multiple_of(size) {
        return Err(Error::new(
            ErrorCode::BadLength,
            format!("{n_bytes} bytes are no whole number of {} elements", T::DTYPE),
        )
        .with("bytes", n_bytes));
    }
    let values = &mut gradient.values;
    let start = values.len();
    make_room(values, n_bytes / size, dim)?;
    let mut is_moderate = true;
    while bytes.has_remaining() {
        let begin = values.len();
        let whole = bytes.chunk().len().min(BLOCK_BYTES) / size * size;
        if whole > 0 {
            let block = &bytes.chunk()[..whole];
            see(block);
            let elements = block.chunks_exact(size);
            widest(|| values.extend(elements.map(bytemuck::pod_read_unaligned::<T>)));
            bytes.advance(whole);
        } else {
            // An element that lies in two pieces.
            let mut element = T::ZERO;
            bytes.copy_to_slice(bytemuck::bytes_of_mut(&mut element));
            see(bytemuck::bytes_of(&element));
            values.push(element);
        }
        is_moderate &= all_within(&values[begin..], moderate());
    }
    if is_moderate {
        return Ok(());
    }
    if let Some(index) = first_non_finite(&values[start..]) {
        let (key, value) = (first_key + start + index, values[start + index]);
        values.truncate(start);
        return Err(Error::new(
            ErrorCode::NonFinite,
            format!("the gradient's element {key} is {value}"),
        )
        .with("index", key));
    }
    gradient.is_moderate = false;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(result: Result<(), Error>) -> Option<ErrorCode> {
        result.err().map(|e| e.code)
    }

    #[test]
    fn chunks_add_up_and_bad_ones_leave_no_trace() {
        let mut gradient = Gradient::empty(Dtype::F32, None);
        gradient.append(as_le_bytes(&[1f32, 2.0]), 3).expect("fits");
        let before = gradient.clone();
        assert_eq!(code(gradient.append(&[0; 5][..], 3)), Some(ErrorCode::BadLength));
        assert_eq!(code(gradient.append(&[0; 8][..], 3)), Some(ErrorCode::DimMismatch));
        let error = gradient.append(as_le_bytes(&[f32::NAN]), 3).expect_err("NaN");
        assert_eq!((error.code, error.facts["index"].as_str()), (ErrorCode::NonFinite, "2"));
        assert_eq!(gradient, before);
        gradient.append(as_le_bytes(&[3f32]), 3).expect("fits");
        assert_eq!(gradient, Gradient::F32(vec![1.0, 2.0, 3.0].into()));
    }

    #[test]
    fn a_large_element_shows_in_whatever_chunk_it_comes() {
        for at in [0, 1, 2] {
            let mut values = [1f32; 3];
            values[at] = -1e20;
            let mut gradient = Gradient::empty(Dtype::F32, None);
            for value in values {
                gradient.append(as_le_bytes(&[value]), 3).expect("finite");
            }
            assert!(!gradient.is_moderate());
            assert_eq!(gradient, Gradient::F32(values.to_vec().into()));
            let mut again = Gradient::empty(Dtype::F32, Some(gradient));
            again.append(as_le_bytes(&[1f32; 3]), 3).expect("finite");
            assert!(again.is_moderate(), "nothing is left of it");
        }
    }

    #[test]
    fn bytes_round_trip_and_bad_ones_are_refused() {
        for gradient in
            [Gradient::F32(vec![1.5, -0.0].into()), Gradient::F64(vec![1e-310, 2.0].into())]
        {
            let dtype = if matches!(gradient, Gradient::F32(_)) { Dtype::F32 } else { Dtype::F64 };
            let bytes = gradient.as_le_bytes();
            assert_eq!(bytes.len(), 2 * dtype.size_bytes());
            let back = Gradient::from_le_bytes(dtype, bytes).expect("whole and finite");
            assert_eq!(back.as_le_bytes(), bytes);
            let cut = Gradient::from_le_bytes(dtype, &bytes[1..]).map(drop);
            assert_eq!(code(cut), Some(ErrorCode::BadLength));
        }
        let bad = Gradient::from_le_bytes(Dtype::F32, as_le_bytes(&[1f32, f32::NAN])).map(drop);
        assert_eq!(code(bad), Some(ErrorCode::NonFinite));
    }

    #[test]
    fn elements_may_be_cut_anywhere() {
        let values: Vec<f64> = (0..7).map(|i| f64::from(i) + 0.1).collect();
        let bytes = as_le_bytes(&values);
        for first in 0..=bytes.len() {
            for second in first..=bytes.len() {
                let mut gradient = Gradient::empty(Dtype::F64, None);
                let rest = bytes[first..second].chain(&bytes[second..]);
                let (all, mut seen) = (bytes[..first].chain(rest), Vec::new());
                gradient
                    .append_from(0, all, 7, |block| seen.extend_from_slice(block))
                    .expect("fits");
                assert_eq!(seen, bytes);
                assert_eq!(
                    gradient,
                    Gradient::F64(values.clone().into()),
                    "cut at {first}, {second}"
                );
            }
        }
    }
}
