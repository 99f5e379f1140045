//! The elements that are not 0, with their places in the chunk.
//!
//! A chunk: elements that it covers (u32), then the places in order (u32 each), then the values (f32
//! each); all little-endian.

use crate::dtype::Element;
use crate::error::{Error, ErrorCode};

const HEAD_BYTES: usize = 4;
const ENTRY_BYTES: usize = 8;

/// A chunk covers at most so many elements: as many as fit into a plain one of single precision.
const COVERED_MAX: usize = 1 << 18;

/// Elements that a chunk covers; `None`: there is no such chunk.
pub(super) fn n_elements(bytes: &[u8]) -> Option<usize> {
    let (head, entries) = bytes.split_at_checked(HEAD_BYTES)?;
    let n = u32::from_le_bytes(head.try_into().expect("four bytes")) as usize;
    let n_entries = entries.len() / ENTRY_BYTES;
    let whole = entries.len().is_multiple_of(ENTRY_BYTES);
    (whole && n > 0 && n <= COVERED_MAX && n_entries <= n).then_some(n)
}

pub(super) fn encode<T: Element>(values: &[T], out: &mut Vec<u8>) {
    let chosen: Vec<_> = (0..values.len()).filter(|&place| values[place] != T::ZERO).collect();
    write(values, &chosen, 0, out);
}

/// Appends a chunk of the `values` at `chosen`, all of them finite and in order, where the first one of
/// `values` has the place `begin`. What is left of them there is what a reader lacks.
pub(super) fn take<T: Element>(
    values: &mut [T],
    chosen: &[usize],
    begin: usize,
    out: &mut Vec<u8>,
) {
    write(values, chosen, begin, out);
    // No reader takes a longer one.
    if values.len() <= COVERED_MAX {
        for place in chosen {
            let value = &mut values[place - begin];
            *value -= T::from_f64(single(*value).into());
        }
    }
}

fn write<T: Element>(values: &[T], chosen: &[usize], begin: usize, out: &mut Vec<u8>) {
    let n = u32::try_from(values.len()).expect("a chunk is short");
    out.reserve(HEAD_BYTES + chosen.len() * ENTRY_BYTES);
    out.extend_from_slice(&n.to_le_bytes());
    for place in chosen {
        out.extend_from_slice(&((place - begin) as u32).to_le_bytes());
    }
    for place in chosen {
        out.extend_from_slice(&single(values[place - begin]).to_le_bytes());
    }
}

fn single<T: Element>(value: T) -> f32 {
    (value.to_f64() as f32).clamp(f32::MIN, f32::MAX)
}

pub(super) fn decode<T: Element>(bytes: &[u8], n: usize, values: &mut Vec<T>) -> Result<(), Error> {
    let entries = &bytes[HEAD_BYTES..];
    let (places, singles) = entries.split_at(entries.len() / 2);
    let begin = values.len();
    values.resize(begin + n, T::ZERO);
    let mut next = 0;
    for (place, single) in places.chunks_exact(4).zip(singles.chunks_exact(4)) {
        let place = u32::from_le_bytes(place.try_into().expect("four bytes")) as usize;
        if place < next || place >= n {
            let what = format!(
                "an element at place {place} of a chunk of {n}, where {next} or more was next"
            );
            return Err(Error::new(ErrorCode::BadKey, what).with("got", place));
        }
        let single = f32::from_le_bytes(single.try_into().expect("four bytes"));
        values[begin + place] = T::from_f64(single.into());
        next = place + 1;
    }
    Ok(())
}
