//! Rows of numbers of one size, as IDX and NPY hold them after their headers.
//!
//! Owns the decoding of scalars and the check that a file has as many bytes as its header says.

use ps_common::exit::ExitError;

use super::input::{DENSE_FEATURES_MAX, Input, bad_file};

/// Type of one number in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scalar {
    Bool,
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F32,
    F64,
}

impl Scalar {
    pub(super) const fn size_bytes(self) -> usize {
        match self {
            Self::Bool | Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    const fn may_be_non_finite(self) -> bool {
        matches!(self, Self::F32 | Self::F64)
    }
}

/// Order of the bytes of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ByteOrder {
    Little,
    Big,
}

/// What a header says about the numbers after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) scalar: Scalar,
    pub(super) order: ByteOrder,
    pub(super) n_rows: u64,
    /// Product of all dimensions but the first.
    pub(super) n_columns: usize,
    /// Bytes before the first number.
    pub(super) header_bytes: u64,
}

impl Layout {
    /// A layout from the dimensions in a header, rows first; `None` if they overflow, or leave a
    /// row without numbers or with more than [`DENSE_FEATURES_MAX`].
    pub(super) fn new(
        scalar: Scalar,
        order: ByteOrder,
        dimensions: &[u64],
        header_bytes: u64,
    ) -> Option<Self> {
        let (&n_rows, rest) = dimensions.split_first()?;
        let columns = rest.iter().try_fold(1u64, |product, &d| product.checked_mul(d))?;
        let n_columns =
            usize::try_from(columns).ok().filter(|n| (1..=DENSE_FEATURES_MAX).contains(n))?;
        let row_bytes = columns.checked_mul(scalar.size_bytes() as u64)?;
        row_bytes.checked_mul(n_rows)?.checked_add(header_bytes)?;
        Some(Self { scalar, order, n_rows, n_columns, header_bytes })
    }
}

/// Reads rows one by one.
pub(super) struct BinaryReader {
    input: Input,
    layout: Layout,
    next_row: u64,
    bytes: Vec<u8>,
}

impl BinaryReader {
    /// `input` stands behind the header.
    pub(super) fn new(input: Input, layout: Layout) -> Self {
        Self { input, layout, next_row: 0, bytes: Vec::new() }
    }

    /// Numbers in a row.
    pub(super) fn n_columns(&self) -> usize {
        self.layout.n_columns
    }

    /// Where the row given last stands.
    pub(super) fn place(&self) -> String {
        format!("{}: row {}", self.input.name(), self.next_row.saturating_sub(1))
    }

    /// Puts the next row into `values`; `false` after the last one.
    ///
    /// # Errors
    /// Bad data: fewer or more bytes than the header says, or a number that is not finite.
    pub(super) fn next(&mut self, values: &mut Vec<f64>) -> Result<bool, ExitError> {
        let layout = self.layout;
        let row_bytes = layout.n_columns * layout.scalar.size_bytes();
        let offset = layout.header_bytes + self.next_row * row_bytes as u64;
        if self.next_row == layout.n_rows {
            self.input.read_up_to(1, offset, &mut self.bytes)?;
            if !self.bytes.is_empty() {
                return Err(bad_file(
                    self.input.name(),
                    format!(
                        "has bytes after byte {offset}, where its header says that {} rows end",
                        layout.n_rows
                    ),
                ));
            }
            return Ok(false);
        }
        self.input.read_up_to(row_bytes, offset, &mut self.bytes)?;
        if self.bytes.len() < row_bytes {
            return Err(bad_file(
                self.input.name(),
                format!(
                    "ends at byte {} within row {} (counted from 0) of the {} rows that its \
                     header announces, {row_bytes} bytes each: the file is truncated",
                    offset + self.bytes.len() as u64,
                    self.next_row,
                    layout.n_rows
                ),
            ));
        }
        values.clear();
        decode(&self.bytes, layout, values);
        if layout.scalar.may_be_non_finite()
            && let Some(column) = values.iter().position(|value| !value.is_finite())
        {
            return Err(bad_file(
                self.input.name(),
                format!(
                    "row {}, column {column} (counted from 0, byte {}) is {}, expected a finite \
                     number",
                    self.next_row,
                    offset + (column * layout.scalar.size_bytes()) as u64,
                    values[column]
                ),
            ));
        }
        self.next_row += 1;
        Ok(true)
    }
}

/// Appends the numbers in `bytes`. 64-bit integers beyond 2^53 are rounded.
fn decode(bytes: &[u8], layout: Layout, values: &mut Vec<f64>) {
    macro_rules! wide {
        ($type:ty) => {{
            let (chunks, _) = bytes.as_chunks::<{ size_of::<$type>() }>();
            match layout.order {
                ByteOrder::Little => {
                    values.extend(chunks.iter().map(|&b| <$type>::from_le_bytes(b) as f64));
                }
                ByteOrder::Big => {
                    values.extend(chunks.iter().map(|&b| <$type>::from_be_bytes(b) as f64));
                }
            }
        }};
    }
    match layout.scalar {
        Scalar::Bool => values.extend(bytes.iter().map(|&b| f64::from(u8::from(b != 0)))),
        Scalar::U8 => values.extend(bytes.iter().map(|&b| f64::from(b))),
        Scalar::I8 => wide!(i8),
        Scalar::U16 => wide!(u16),
        Scalar::I16 => wide!(i16),
        Scalar::U32 => wide!(u32),
        Scalar::I32 => wide!(i32),
        Scalar::U64 => wide!(u64),
        Scalar::I64 => wide!(i64),
        Scalar::F32 => wide!(f32),
        Scalar::F64 => wide!(f64),
    }
}
