//! Rows of theta's tables, by which sparse gradients and parts of theta are named.
//!
//! A row is what one value of a table's first index has: of a table of shape \[r, a, b\] there are r rows
//! of a * b elements, of one of shape \[r\] r rows of one element. Owns that, the limits of row numbers, and
//! their bytes.

use std::ops::Range;

use bytes::Buf;

use crate::error::{Error, ErrorCode};
use crate::tables::Tables;

/// Bytes of a row's number.
pub const NUMBER_BYTES: usize = 4;

/// Some rows of one table, in an order that matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rows {
    table: u32,
    /// Of the table's first element.
    first_key: usize,
    /// Of the table.
    n_rows: u64,
    width: usize,
    numbers: Vec<u32>,
}

impl Rows {
    /// These rows of table `table`, counted from 0 in the job's order.
    ///
    /// # Errors
    /// BAD_FIELD for a table that is not there, ROW_RANGE for the first row that is not.
    pub fn new(tables: &Tables, table: u32, numbers: Vec<u32>) -> Result<Self, Error> {
        let Some((of, keys)) = tables.ranges().nth(table as usize) else {
            let n_tables = tables.iter().count();
            let what = format!("the job has {n_tables} tables, numbered from 0; {table} is none");
            return Err(Error::new(ErrorCode::BadField, what)
                .with("field", "table")
                .with("got", table));
        };
        let n_rows = of.n_rows();
        if let Some(place) = numbers.iter().position(|&number| u64::from(number) >= n_rows) {
            let (name, number) = (&of.name, numbers[place]);
            let what =
                format!("table `{name}` has {n_rows} rows, numbered from 0; {number} is none");
            return Err(Error::new(ErrorCode::RowRange, what)
                .with("table", name)
                .with("rows", n_rows)
                .with("index", place)
                .with("got", number));
        }
        let width = keys.len() / usize::try_from(n_rows).expect("no more than elements");
        Ok(Self { table, first_key: keys.start, n_rows, width, numbers })
    }

    /// As [`Rows::new`], from numbers of four bytes each, little-endian.
    ///
    /// # Errors
    /// As there, and BAD_LENGTH for a broken number.
    pub fn from_bytes(tables: &Tables, table: u32, bytes: impl Buf) -> Result<Self, Error> {
        Self::new(tables, table, numbers(bytes)?)
    }

    /// Which table, counted from 0.
    pub fn table(&self) -> u32 {
        self.table
    }

    /// Elements of each row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Their numbers.
    pub fn numbers(&self) -> &[u32] {
        &self.numbers
    }

    /// Of all of them, at most the largest number there is.
    pub fn n_elements(&self) -> usize {
        self.width.saturating_mul(self.numbers.len())
    }

    /// The key of each row's first element, in order.
    pub fn keys(&self) -> impl Iterator<Item = usize> {
        self.numbers.iter().map(|&number| self.key_of(number))
    }

    /// The key of a row's first element.
    pub fn key_of(&self, number: u32) -> usize {
        self.first_key + number as usize * self.width
    }

    /// Other rows of the same table.
    ///
    /// # Panics
    /// If one of them is beyond the table's last.
    #[must_use]
    pub fn with(&self, numbers: Vec<u32>) -> Self {
        let last = numbers.iter().max();
        assert!(last.is_none_or(|&last| u64::from(last) < self.n_rows), "rows of this table");
        Self { numbers, ..*self }
    }
}

/// Adds rows behind others; those of the table that came last go with them.
pub fn append(all: &mut Vec<Rows>, rows: Rows) {
    match all.last_mut() {
        Some(last) if last.table == rows.table => last.numbers.extend(rows.numbers),
        _ => all.push(rows),
    }
}

/// Whether every table stands once and every row once, all in order.
pub fn are_in_order(rows: &[Rows]) -> bool {
    rows.is_sorted_by(|a, b| a.table < b.table)
        && rows.iter().all(|rows| rows.numbers.is_sorted_by(|a, b| a < b))
}

/// The keys of all their elements, in order.
pub fn elements(rows: &[Rows]) -> impl Iterator<Item = usize> + use<'_> {
    rows.iter().flat_map(|rows| rows.keys().flat_map(|key| key..key + rows.width))
}

/// Where the elements of rows are in chunks of `chunk_len`, in order: a chunk and places in it. A row may lie in
/// several chunks.
pub fn pieces(
    rows: &[Rows],
    chunk_len: usize,
) -> impl Iterator<Item = (usize, Range<usize>)> + use<'_> {
    let mut keys = rows.iter().flat_map(|rows| rows.keys().map(|key| (key, rows.width())));
    let mut rest = None;
    let (mut chunk, mut begin) = (0, 0);
    std::iter::from_fn(move || {
        let (key, len) = rest.take().or_else(|| keys.next())?;
        // Most rows are in the chunk of the one before: a division each would be a good part of the work.
        if !(begin..begin + chunk_len).contains(&key) {
            chunk = key / chunk_len;
            begin = chunk * chunk_len;
        }
        let offset = key - begin;
        let here = len.min(chunk_len - offset);
        if here < len {
            rest = Some((key + here, len - here));
        }
        Some((chunk, offset..offset + here))
    })
}

/// Pieces that are looked at before they are copied: about as many as a processor fetches at once.
const AHEAD: usize = 32;

/// Gives `take` the elements of rows in order, piece by piece, out of chunks of `chunk_len`, each element of which
/// is `scale` entries of what `chunk` gives.
///
/// Rows are spread over more memory than caches hold. Both ends of some pieces are read before the first of them
/// is copied, so that the processor fetches them side by side and not one after the other.
pub fn visit<'a, E: Copy + 'a>(
    rows: &[Rows],
    (chunk_len, scale): (usize, usize),
    chunk: impl Fn(usize) -> &'a [E],
    mut take: impl FnMut(&'a [E]),
) {
    let mut pieces = pieces(rows, chunk_len)
        .map(|(index, place)| &chunk(index)[place.start * scale..place.end * scale]);
    loop {
        let ahead: [Option<&[E]>; AHEAD] = std::array::from_fn(|_| pieces.next());
        if ahead[0].is_none() {
            return;
        }
        for piece in ahead.iter().flatten() {
            std::hint::black_box((piece[0], piece[piece.len() - 1]));
        }
        ahead.into_iter().flatten().for_each(&mut take);
    }
}

/// Elements of all of them, at most the largest number there is.
pub fn n_elements(rows: &[Rows]) -> usize {
    rows.iter().fold(0, |n, rows| n.saturating_add(rows.n_elements()))
}

/// Refuses rows with more elements than all of `tables`: rows that are named again and again.
///
/// # Errors
/// DIM_MISMATCH.
pub fn check_size(rows: &[Rows], tables: &Tables) -> Result<(), Error> {
    let (want, got) = (tables.dim(), n_elements(rows));
    if got <= want {
        return Ok(());
    }
    let what = format!("rows of {got} elements are named, all of theta has {want}");
    Err(Error::new(ErrorCode::DimMismatch, what).with("want", want).with("got", got))
}

fn numbers(mut bytes: impl Buf) -> Result<Vec<u32>, Error> {
    let n_bytes = bytes.remaining();
    let bytes = bytes.copy_to_bytes(n_bytes);
    let (numbers, []) = bytes.as_chunks() else {
        let what = format!("{n_bytes} bytes are no whole number of row numbers of {NUMBER_BYTES}");
        return Err(Error::new(ErrorCode::BadLength, what).with("bytes", n_bytes));
    };
    Ok(numbers.iter().map(|number| u32::from_le_bytes(*number)).collect())
}

/// Rows of several tables as one run of bytes: for each its number, how many rows, their numbers.
pub fn to_bytes(rows: &[Rows]) -> Vec<u8> {
    let words = rows.iter().flat_map(|rows| {
        let n_rows = u32::try_from(rows.numbers.len()).expect("a number for each");
        [rows.table, n_rows].into_iter().chain(rows.numbers.iter().copied())
    });
    words.flat_map(u32::to_le_bytes).collect()
}

/// The way back from [`to_bytes`].
///
/// # Errors
/// As [`Rows::from_bytes`] and [`check_size`], and BAD_LENGTH where fewer rows follow than are said to.
pub fn from_bytes(tables: &Tables, mut bytes: &[u8]) -> Result<Vec<Rows>, Error> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let (head, rest) = bytes.split_at_checked(2 * NUMBER_BYTES).ok_or_else(|| cut(bytes))?;
        let [table, n_rows] = numbers(head)?[..] else { unreachable!("two numbers") };
        let n_bytes = n_rows as usize * NUMBER_BYTES;
        let (own, rest) = rest.split_at_checked(n_bytes).ok_or_else(|| cut(rest))?;
        all.push(Rows::from_bytes(tables, table, own)?);
        check_size(&all, tables)?;
        bytes = rest;
    }
    Ok(all)
}

fn cut(rest: &[u8]) -> Error {
    let n_bytes = rest.len();
    let what = format!("the last table's rows are cut: {n_bytes} bytes are left of them");
    Error::new(ErrorCode::BadLength, what).with("bytes", n_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::Table;

    fn tables() -> Tables {
        let zeros = |name: &str, shape: &[u64]| Table::zeros(name, shape, true);
        Tables::new(vec![zeros("w", &[5]), zeros("V", &[4, 2, 3]), zeros("b", &[1])])
            .expect("valid")
    }

    fn rows(table: u32, numbers: &[u32]) -> Rows {
        Rows::new(&tables(), table, numbers.to_vec()).expect("there")
    }

    #[test]
    fn rows_have_keys_and_widths() {
        let of_vectors = rows(1, &[3, 0, 3]);
        assert_eq!((of_vectors.width(), of_vectors.n_elements()), (6, 18));
        assert_eq!(of_vectors.keys().collect::<Vec<_>>(), [23, 5, 23]);
        assert_eq!(rows(0, &[4]).keys().collect::<Vec<_>>(), [4]);
        assert_eq!(rows(2, &[0]).keys().collect::<Vec<_>>(), [29]);
        assert_eq!(n_elements(&[of_vectors, rows(0, &[1, 2])]), 20);
    }

    #[test]
    fn rows_of_one_table_go_together_and_order_is_seen() {
        let mut all = Vec::new();
        for more in [rows(0, &[1]), rows(0, &[4]), rows(1, &[0])] {
            append(&mut all, more);
        }
        assert_eq!(all, [rows(0, &[1, 4]), rows(1, &[0])]);
        assert!(are_in_order(&all) && are_in_order(&[]));
        for more in [rows(1, &[0]), rows(1, &[2, 1]), rows(0, &[3])] {
            let mut disorder = all.clone();
            append(&mut disorder, more);
            assert!(!are_in_order(&disorder), "{disorder:?}");
        }
    }

    #[test]
    fn pieces_are_the_rows_whatever_chunks_they_lie_in() {
        let some = [rows(1, &[3, 0, 1]), rows(0, &[2]), rows(2, &[0])];
        let keys: Vec<usize> =
            [23..29, 5..11, 11..17, 2..3, 29..30].into_iter().flatten().collect();
        assert_eq!(elements(&some).collect::<Vec<_>>(), keys);
        for chunk_len in 1..40 {
            let found = pieces(&some, chunk_len)
                .inspect(|(_, place)| assert!(!place.is_empty() && place.end <= chunk_len))
                .flat_map(|(chunk, place)| place.map(move |i| chunk * chunk_len + i));
            assert_eq!(found.collect::<Vec<_>>(), keys, "chunks of {chunk_len}");
        }
    }

    #[test]
    fn all_pieces_are_visited_in_order() {
        let theta: Vec<u16> = (0..30).collect();
        let many = [rows(1, &[3, 0, 1, 2]), rows(0, &(0..5).cycle().take(37).collect::<Vec<_>>())];
        for chunk_len in [1, 4, 30] {
            let chunks: Vec<Vec<u16>> =
                theta.chunks(chunk_len).map(|c| c.iter().flat_map(|&x| [x, x]).collect()).collect();
            let mut got = Vec::new();
            visit(&many, (chunk_len, 2), |i| &chunks[i][..], |piece| got.extend_from_slice(piece));
            let wanted: Vec<u16> = elements(&many).flat_map(|key| [theta[key]; 2]).collect();
            assert_eq!(got, wanted, "chunks of {chunk_len}");
        }
    }

    #[test]
    fn what_is_not_there_is_refused_by_name() {
        let refused = |table, numbers: &[u32]| {
            Rows::new(&tables(), table, numbers.to_vec()).expect_err("not there")
        };
        let error = refused(1, &[0, 4, 9]);
        assert_eq!((error.code, &error.facts["got"][..]), (ErrorCode::RowRange, "4"), "{error}");
        assert_eq!((&error.facts["table"][..], &error.facts["index"][..]), ("V", "1"));
        assert_eq!(refused(0, &[u32::MAX]).code, ErrorCode::RowRange);
        assert_eq!(refused(3, &[]).code, ErrorCode::BadField);
        let broken = Rows::from_bytes(&tables(), 0, &[1, 0, 0, 0, 2][..]).expect_err("broken");
        assert_eq!(broken.code, ErrorCode::BadLength);
    }

    #[test]
    fn bytes_round_trip_and_cut_ones_are_refused() {
        let some = [rows(1, &[3, 0]), rows(0, &[]), rows(2, &[0])];
        let bytes = to_bytes(&some);
        assert_eq!(from_bytes(&tables(), &bytes).expect("whole"), some);
        for end in 1..bytes.len() {
            match from_bytes(&tables(), &bytes[..end]) {
                Ok(fewer) => assert_eq!(fewer, some[..fewer.len()], "cut at {end}"),
                Err(error) => assert_eq!(error.code, ErrorCode::BadLength, "cut at {end}"),
            }
        }
        assert_eq!(from_bytes(&tables(), &[]).expect("nothing"), []);
    }
}
