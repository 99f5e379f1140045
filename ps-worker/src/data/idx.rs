//! The header of IDX, the format of MNIST: two zero bytes, type, number of dimensions, dimensions
//! as big-endian 32-bit numbers; numbers follow, big-endian, rows first.
//!
//! Images are flattened: a row is everything behind the first dimension.

use ps_common::exit::ExitError;

use super::binary::{BinaryReader, ByteOrder, Layout, Scalar};
use super::input::{Input, bad_file};

/// Whether a file begins like IDX.
pub(super) fn is_magic(head: &[u8]) -> bool {
    matches!(head, [0, 0, kind, n_dimensions, ..] if scalar(*kind).is_some() && *n_dimensions > 0)
}

fn scalar(kind: u8) -> Option<Scalar> {
    Some(match kind {
        0x08 => Scalar::U8,
        0x09 => Scalar::I8,
        0x0b => Scalar::I16,
        0x0c => Scalar::I32,
        0x0d => Scalar::F32,
        0x0e => Scalar::F64,
        _ => return None,
    })
}

/// Reads the header.
///
/// # Errors
/// Bad data: another magic, a truncated header, dimensions that no file can have.
pub(super) fn open(mut input: Input) -> Result<BinaryReader, ExitError> {
    let mut bytes = Vec::new();
    input.read_up_to(4, 0, &mut bytes)?;
    let &[0, 0, kind, n_dimensions] = bytes.as_slice() else {
        return Err(bad_file(
            input.name(),
            format!(
                "byte 0: begins with {bytes:02x?}, expected the IDX magic 00 00 TYPE DIMENSIONS"
            ),
        ));
    };
    let Some(scalar) = scalar(kind) else {
        return Err(bad_file(
            input.name(),
            format!("byte 2: IDX type {kind:#04x} is none of 0x08, 0x09, 0x0b, 0x0c, 0x0d, 0x0e"),
        ));
    };
    if n_dimensions == 0 {
        return Err(bad_file(input.name(), "byte 3: no dimensions, expected at least 1"));
    }
    let dimension_bytes = 4 * usize::from(n_dimensions);
    input.read_up_to(dimension_bytes, 4, &mut bytes)?;
    let (chunks, _) = bytes.as_chunks::<4>();
    let dimensions: Vec<u64> = chunks.iter().map(|&b| u64::from(u32::from_be_bytes(b))).collect();
    if bytes.len() < dimension_bytes {
        return Err(bad_file(
            input.name(),
            format!(
                "ends at byte {} within its header of {n_dimensions} dimensions: the file is \
                 truncated",
                4 + bytes.len()
            ),
        ));
    }
    let header_bytes = 4 + dimension_bytes as u64;
    match Layout::new(scalar, ByteOrder::Big, &dimensions, header_bytes) {
        Some(layout) => Ok(BinaryReader::new(input, layout)),
        None => Err(bad_file(
            input.name(),
            format!("byte 4: dimensions {dimensions:?} leave a row empty or too large"),
        )),
    }
}
