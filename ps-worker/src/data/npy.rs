//! The header of NPY, numpy's array format, versions 1 to 3: magic, version, length, then a Python
//! dictionary literal with `descr`, `fortran_order` and `shape`.
//!
//! Rows are read one by one, so that memory does not grow with the file; ndarray-npy, which reads
//! whole arrays, serves elsewhere. Arrays of more than two dimensions are flattened behind the
//! first.

use ps_common::exit::ExitError;

use super::binary::{BinaryReader, ByteOrder, Layout, Scalar};
use super::input::{Input, bad_file, quoted};

/// The first bytes.
pub(super) const MAGIC: &[u8] = b"\x93NUMPY";

/// Longest header read; numpy itself refuses longer ones than 10 000 bytes.
const HEADER_BYTES_MAX: usize = 64 << 10;

/// Reads the header.
///
/// # Errors
/// Bad data: another magic or version, a truncated or unreadable header, a type that is no real
/// number, Fortran order.
pub(super) fn open(mut input: Input) -> Result<BinaryReader, ExitError> {
    let mut bytes = Vec::new();
    input.read_up_to(8, 0, &mut bytes)?;
    if bytes.len() < 8 || !bytes.starts_with(MAGIC) {
        return Err(bad_file(input.name(), "byte 0: expected the NPY magic \\x93NUMPY"));
    }
    let length_bytes = match bytes[6] {
        1 => 2,
        2 | 3 => 4,
        other => {
            return Err(bad_file(
                input.name(),
                format!("byte 6: NPY version {other}, expected 1, 2 or 3"),
            ));
        }
    };
    input.read_up_to(length_bytes, 8, &mut bytes)?;
    let truncated = |input: &Input, at: usize| {
        bad_file(input.name(), format!("ends at byte {at} within its header: truncated"))
    };
    if bytes.len() < length_bytes {
        return Err(truncated(&input, 8 + bytes.len()));
    }
    let length = bytes.iter().rev().fold(0usize, |sum, &b| sum << 8 | usize::from(b));
    if length > HEADER_BYTES_MAX {
        return Err(bad_file(input.name(), format!("byte 8: a header of {length} bytes")));
    }
    let start = 8 + length_bytes;
    input.read_up_to(length, start as u64, &mut bytes)?;
    if bytes.len() < length {
        return Err(truncated(&input, start + bytes.len()));
    }
    let header = String::from_utf8_lossy(&bytes).into_owned();
    let layout = layout(&header, (start + length) as u64)
        .map_err(|what| bad_file(input.name(), format!("header at byte {start}: {what}")))?;
    Ok(BinaryReader::new(input, layout))
}

fn layout(header: &str, header_bytes: u64) -> Result<Layout, String> {
    let unreadable = |key: &str| format!("no readable `{key}` in {}", quoted(header.as_bytes()));
    let descr = value_of(header, "descr")
        .and_then(|text| text.strip_prefix('\''))
        .and_then(|text| text.split('\'').next())
        .ok_or_else(|| unreadable("descr"))?;
    let (scalar, order) = scalar(descr).ok_or_else(|| {
        format!("type `{descr}` is not read, expected b1, i1 to i8, u1 to u8, f4 or f8")
    })?;
    let shape = value_of(header, "shape")
        .and_then(|text| text.strip_prefix('('))
        .and_then(|text| text.split_once(')'))
        .and_then(|(inside, _)| dimensions(inside))
        .ok_or_else(|| unreadable("shape"))?;
    let fortran = value_of(header, "fortran_order").ok_or_else(|| unreadable("fortran_order"))?;
    if fortran.starts_with("True") && shape.len() > 1 {
        return Err("the array is in Fortran order (by columns); save it by rows, with \
                    numpy.ascontiguousarray"
            .to_owned());
    }
    Layout::new(scalar, order, &shape, header_bytes).ok_or_else(|| {
        format!("shape {shape:?} has no rows' dimension, or leaves a row empty or too large")
    })
}

fn value_of<'a>(header: &'a str, key: &str) -> Option<&'a str> {
    let (_, rest) = header.split_once(&format!("'{key}'"))?;
    Some(rest.trim_start().strip_prefix(':')?.trim_start())
}

fn dimensions(inside: &str) -> Option<Vec<u64>> {
    inside
        .split(',')
        .map(str::trim)
        .filter(|number| !number.is_empty())
        .map(|number| number.parse().ok())
        .collect()
}

fn scalar(descr: &str) -> Option<(Scalar, ByteOrder)> {
    let (order, kind) = descr.split_at_checked(1)?;
    let order = match order {
        "<" | "|" => ByteOrder::Little,
        ">" => ByteOrder::Big,
        _ => return None,
    };
    let scalar = match kind {
        "b1" => Scalar::Bool,
        "u1" => Scalar::U8,
        "i1" => Scalar::I8,
        "u2" => Scalar::U16,
        "i2" => Scalar::I16,
        "u4" => Scalar::U32,
        "i4" => Scalar::I32,
        "u8" => Scalar::U64,
        "i8" => Scalar::I64,
        "f4" => Scalar::F32,
        "f8" => Scalar::F64,
        _ => return None,
    };
    Some((scalar, order))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers() {
        let header = |descr: &str, order: &str, shape: &str| {
            layout(
                &format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}"),
                80,
            )
        };
        let of = |layout: Layout| (layout.scalar, layout.order, layout.n_rows, layout.n_columns);
        let read = |shape| header("<f8", "False", shape).map(of);
        assert_eq!(read("(7,)"), Ok((Scalar::F64, ByteOrder::Little, 7, 1)));
        assert_eq!(read("(7, 2, 3)"), Ok((Scalar::F64, ByteOrder::Little, 7, 6)));
        assert_eq!(header(">i4", "True", "(7,)").map(of), Ok((Scalar::I32, ByteOrder::Big, 7, 1)));
        let error = |descr, order, shape| header(descr, order, shape).expect_err("refused");
        assert!(error("<f8", "True", "(7, 2)").contains("Fortran"));
        assert!(error("<c16", "False", "(7, 2)").contains("`<c16`"));
        assert!(error("<f8", "False", "()").contains("shape []"));
        assert!(error("<f8", "False", "(7, 0)").contains("shape [7, 0]"));
        assert!(error("<f8", "False", "(9999999999, 9999999999999)").contains("too large"));
        assert!(layout("{}", 80).expect_err("refused").contains("`descr`"));
    }
}
