//! Tensors in chunks: how a gradient is cut, behind the numbers of its rows if it is sparse, and how theta
//! is put together again.
//!
//! Knows keys, dtypes and lengths; nothing of streams or calls.

use std::ops::Range;

use bytes::{Buf, Bytes};
use ps_common::Element;
use ps_common::calls::Form;
use ps_common::codec::{Encoded, Encoding};
use ps_common::dtype::{CHUNK_BYTES, as_le_bytes};
use ps_common::rows::{self, NUMBER_BYTES, Rows};
use ps_common::shared::Shared;
use ps_common::wire::parameters::encoding_into;
use ps_common::wire::pb;
use ps_common::wire::status::Failure;
use tonic::Code;

/// One chunk of a tensor that is being sent, or of the numbers of its rows.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Chunk {
    /// Of its first element.
    pub(super) key: u64,
    /// Whether it ends the tensor.
    pub(super) last: bool,
    /// How its bytes are written, as on the wire.
    pub(super) dtype: i32,
    /// What it carries: elements, or numbers of rows.
    pub(super) part: pb::Part,
    /// Which table the numbers are of.
    pub(super) table: u32,
    /// At most [`CHUNK_BYTES`] where they are plain.
    pub(super) bytes: Bytes,
}

/// A gradient as it is sent, or the part of it that goes to one server.
#[derive(Debug, Clone, Copy)]
pub struct Parcel<'a, T> {
    /// Of the first element.
    first_key: usize,
    content: Content<'a, T>,
    /// Where it is sparse.
    named: Option<Named<'a>>,
}

/// Rows of theta that a sparse gradient names.
#[derive(Debug, Clone, Copy)]
struct Named<'a> {
    brought: &'a [Rows],
    asked: &'a [Rows],
}

#[derive(Debug, Clone, Copy)]
enum Content<'a, T> {
    /// As it is; each chunk is copied when its turn comes.
    Plain(&'a [T]),
    /// As it is and without a copy: `len` elements from the one at `begin`.
    Shared {
        /// A whole gradient.
        values: &'a Shared<T>,
        begin: usize,
        len: usize,
    },
    /// Written by a codec, of so many elements.
    Coded(usize, &'a [Encoded]),
}

impl<'a, T> From<&'a [T]> for Parcel<'a, T> {
    fn from(values: &'a [T]) -> Self {
        Self { first_key: 0, content: Content::Plain(values), named: None }
    }
}

impl<'a, T> From<&'a Vec<T>> for Parcel<'a, T> {
    fn from(values: &'a Vec<T>) -> Self {
        Self::from(&values[..])
    }
}

impl<'a, T> From<&'a Shared<T>> for Parcel<'a, T> {
    fn from(values: &'a Shared<T>) -> Self {
        let content = Content::Shared { values, begin: 0, len: values.len() };
        Self { first_key: 0, content, named: None }
    }
}

impl<'a, T: Element> Parcel<'a, T> {
    /// A whole gradient that a codec has written, in order of key.
    pub fn coded(chunks: &'a [Encoded]) -> Self {
        let len = chunks.last().map_or(0, |last| last.begin + last.len);
        Self { first_key: 0, content: Content::Coded(len, chunks), named: None }
    }

    /// These values as those of the rows `brought`, one after the other; the answer shall bring the rows
    /// `asked` in place of all of theta.
    ///
    /// # Panics
    /// If these rows have more or fewer elements.
    #[must_use]
    pub fn of_rows(self, brought: &'a [Rows], asked: &'a [Rows]) -> Self {
        assert_eq!(self.len(), rows::n_elements(brought), "as many values as elements");
        Self { named: Some(Named { brought, asked }), ..self }
    }

    /// Whether it names rows.
    pub(super) fn is_sparse(&self) -> bool {
        self.named.is_some()
    }

    /// Elements that the answer brings.
    pub(super) fn n_answered(&self) -> usize {
        self.named.map_or(self.len(), |named| rows::n_elements(named.asked))
    }

    /// Elements.
    pub(super) fn len(&self) -> usize {
        match self.content {
            Content::Plain(values) => values.len(),
            Content::Shared { len, .. } | Content::Coded(len, _) => len,
        }
    }

    /// What of a whole gradient has these keys, where a chunk begins at the first and one ends at the
    /// last.
    pub(super) fn part(&self, keys: Range<usize>) -> Self {
        let content = match self.content {
            Content::Plain(values) => Content::Plain(&values[keys.clone()]),
            Content::Shared { values, .. } => {
                Content::Shared { values, begin: keys.start, len: keys.len() }
            }
            Content::Coded(_, chunks) => {
                let begin = chunks.partition_point(|chunk| chunk.begin < keys.start);
                let end = chunks.partition_point(|chunk| chunk.begin < keys.end);
                Content::Coded(keys.len(), &chunks[begin..end])
            }
        };
        Self { first_key: keys.start, content, named: self.named }
    }

    /// All that is sent of it: the numbers of its rows, if it is sparse, then its values.
    pub(super) fn chunks(self) -> impl Iterator<Item = Chunk> {
        self.named.into_iter().flat_map(Named::chunks).chain(self.values())
    }

    /// Its chunks in order of key; of no values one without bytes.
    fn values(self) -> impl Iterator<Item = Chunk> {
        let size = T::DTYPE.size_bytes();
        let chunk_len = CHUNK_BYTES / size;
        let n_chunks = match self.content {
            Content::Plain(_) | Content::Shared { .. } => self.len().div_ceil(chunk_len).max(1),
            Content::Coded(_, chunks) => chunks.len(),
        };
        let shared = match self.content {
            Content::Shared { values, .. } => values.bytes(),
            Content::Plain(_) | Content::Coded(..) => Bytes::new(),
        };
        (0..n_chunks).map(move |i| {
            let place = i * chunk_len..self.len().min((i + 1) * chunk_len);
            let (key, encoding, bytes) = match self.content {
                Content::Plain(values) => {
                    let bytes = as_le_bytes(&values[place.clone()]);
                    (place.start, Encoding::Plain, Bytes::copy_from_slice(bytes))
                }
                Content::Shared { begin, .. } => {
                    let bytes = (begin + place.start) * size..(begin + place.end) * size;
                    (place.start, Encoding::Plain, shared.slice(bytes))
                }
                Content::Coded(_, chunks) => {
                    let Encoded { begin, encoding, data, .. } = &chunks[i];
                    (begin - self.first_key, *encoding, data.clone())
                }
            };
            Chunk {
                key: (self.first_key + key) as u64,
                last: i + 1 == n_chunks,
                dtype: encoding_into(encoding, T::DTYPE),
                bytes,
                ..Chunk::default()
            }
        })
    }
}

impl<'a> Named<'a> {
    /// The numbers of both kinds of rows, table by table.
    fn chunks(self) -> impl Iterator<Item = Chunk> + use<'a> {
        let parts = [(pb::Part::Rows, self.brought), (pb::Part::Asked, self.asked)];
        let tables =
            parts.into_iter().flat_map(|(part, rows)| rows.iter().map(move |of| (part, of)));
        tables.flat_map(|(part, of)| {
            // Little-endian, as `ps_common::dtype` asserts.
            of.numbers().chunks(CHUNK_BYTES / NUMBER_BYTES).map(move |numbers| Chunk {
                part,
                table: of.table(),
                bytes: Bytes::copy_from_slice(bytemuck::cast_slice(numbers)),
                ..Chunk::default()
            })
        })
    }
}

/// theta while its chunks arrive; checks that they are in order, of one version and complete.
#[derive(Debug)]
pub(super) struct Assembly<'a, T> {
    theta: &'a mut [T],
    /// Of theta's first element here.
    first_key: usize,
    n_filled: usize,
    version: Option<u64>,
    /// In which it was asked for.
    form: Form,
    /// A decoded chunk on its way to its place.
    decoded: Vec<T>,
}

/// What an incoming chunk says of itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct ChunkHead {
    /// As on the wire.
    pub(super) dtype: i32,
    /// Of theta.
    pub(super) version: u64,
    /// Of its first element.
    pub(super) key: u64,
    /// Whether it ends theta.
    pub(super) last: bool,
    /// Whether it stands for a theta that is here already.
    pub(super) unchanged: bool,
}

impl<'a, T: Element> Assembly<'a, T> {
    /// Nothing has arrived yet of a theta that was asked for in this form.
    pub(super) fn new(form: Form, theta: &'a mut [T]) -> Self {
        Self::from_key(0, form, theta)
    }

    /// A part of theta, whose first element has `first_key`.
    pub(super) fn from_key(first_key: usize, form: Form, theta: &'a mut [T]) -> Self {
        Self { theta, first_key, n_filled: 0, version: None, form, decoded: Vec::new() }
    }

    /// Elements that it takes.
    pub(super) fn dim(&self) -> u64 {
        self.theta.len() as u64
    }

    /// Whether it takes no elements.
    pub(super) fn is_empty(&self) -> bool {
        self.theta.is_empty()
    }

    /// Copies a chunk to its place, decoded. `Ok(true)`: theta is complete.
    pub(super) fn accept(&mut self, head: ChunkHead, mut data: impl Buf) -> Result<bool, Failure> {
        if head.unchanged {
            return self.keep(head, data.remaining());
        }
        let encoding = self.form.encoding;
        let wanted = encoding_into(encoding, T::DTYPE);
        if head.dtype != wanted {
            let name = match encoding {
                Encoding::Plain => T::DTYPE.name(),
                other => other.name(),
            };
            let what = format!("a chunk of dtype number {}, not {wanted} ({name})", head.dtype);
            return Err(broken(what));
        }
        if encoding == Encoding::Plain {
            let place = self.place(head, data.remaining())?;
            // Little-endian, as `ps_common::dtype` asserts.
            data.copy_to_slice(bytemuck::cast_slice_mut(place));
            return Ok(head.last);
        }
        let data = data.copy_to_bytes(data.remaining());
        let mut decoded = std::mem::take(&mut self.decoded);
        decoded.clear();
        let key = self.first_key + self.n_filled;
        let len_max = self.theta.len() - self.n_filled;
        encoding.decode(&data, &mut decoded, key, len_max).map_err(broken)?;
        self.place(head, decoded.len() * T::DTYPE.size_bytes())?.copy_from_slice(&decoded);
        self.decoded = decoded;
        Ok(head.last)
    }

    /// theta stays as it is.
    fn keep(&self, head: ChunkHead, n_bytes: usize) -> Result<bool, Failure> {
        let is_whole = self.version.is_none() && head.last && n_bytes == 0;
        match is_whole && self.form.version_have == Some(head.version) {
            true => Ok(true),
            false => Err(broken(format!(
                "theta of version {} is unchanged, where {:?} is here",
                head.version, self.form.version_have
            ))),
        }
    }

    /// The place of a chunk that is `n_bytes` as theta has it, which the caller fills; the last one
    /// completes theta.
    fn place(&mut self, head: ChunkHead, n_bytes: usize) -> Result<&mut [T], Failure> {
        if *self.version.get_or_insert(head.version) != head.version {
            return Err(broken(format!("chunks of more than one version ({})", head.version)));
        }
        let key = (self.first_key + self.n_filled) as u64;
        if head.key != key {
            return Err(broken(format!("a chunk at key {}, not {key}", head.key)));
        }
        let size = T::DTYPE.size_bytes();
        let end = self.n_filled + n_bytes / size;
        let fits = n_bytes.is_multiple_of(size) && n_bytes > 0 && end <= self.theta.len();
        if !fits || head.last != (end == self.theta.len()) {
            return Err(broken(format!(
                "a chunk of {n_bytes} bytes at key {}{}, where theta has {} elements of {size} bytes",
                head.key,
                if head.last { ", the last" } else { "" },
                self.theta.len(),
            )));
        }
        let place = &mut self.theta[self.n_filled..end];
        self.n_filled = end;
        Ok(place)
    }
}

/// The server's answer is none that this version of the wire knows.
pub(super) fn broken(what: impl std::fmt::Display) -> Failure {
    Failure::Other(Code::Internal, format!("the server's answer breaks the protocol: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ps_common::codec::Feedback;
    use ps_common::dtype;
    use ps_common::tables::{Table, Tables};

    fn head(key: u64, last: bool) -> ChunkHead {
        ChunkHead { dtype: 2, version: 5, key, last, unchanged: false }
    }

    #[test]
    fn chunks_cover_a_tensor_and_only_the_last_is_short() {
        for n in [1usize, CHUNK_BYTES / 4 - 1, CHUNK_BYTES / 4, CHUNK_BYTES / 4 + 1, 500_000] {
            let values: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let mut expected = 0;
            let shared = Shared::from(values.clone());
            assert!(Parcel::from(&values).chunks().eq(Parcel::from(&shared).chunks()));
            for chunk in Parcel::from(&shared).chunks() {
                assert_eq!(chunk.key, expected as u64);
                expected += chunk.bytes.len() / 4;
                assert_eq!(chunk.last, expected == n);
                assert!(chunk.last || chunk.bytes.len() == CHUNK_BYTES);
                assert_eq!(chunk.bytes[..4], (chunk.key as f32).to_le_bytes());
            }
            assert_eq!(expected, n);
        }
        assert_eq!(Parcel::from(&vec![0f64; CHUNK_BYTES / 8 + 1]).chunks().count(), 2);
    }

    #[test]
    fn a_part_of_a_shared_gradient_is_that_of_the_plain_one_without_a_copy() {
        let values: Vec<f64> = (0..100_000).map(f64::from).collect();
        let shared = Shared::from(values.clone());
        for keys in [0..50_000, 50_000..100_000, 3..4] {
            let part = Parcel::from(&shared).part(keys.clone());
            assert!(part.chunks().eq(Parcel::from(&values).part(keys.clone()).chunks()));
            let first = part.chunks().next().expect("there is one");
            assert_eq!(first.bytes.as_ptr(), shared[keys.start..].as_ptr().cast());
        }
    }

    #[test]
    fn parts_of_a_coded_gradient_are_whole_chunks() {
        let mut feedback = Feedback::new("f16".parse().expect("valid"));
        let chunks = feedback.encode(&[1f32; 10], &[0, 4], 3);
        let whole = Parcel::<f32>::coded(&chunks);
        assert_eq!(whole.len(), 10);
        let shown = |part: Parcel<'_, f32>| -> Vec<_> {
            part.chunks().map(|chunk| (chunk.key, chunk.last, chunk.bytes.len() / 2)).collect()
        };
        assert_eq!(shown(whole.part(0..4)), [(0, false, 3), (3, true, 1)]);
        assert_eq!(shown(whole.part(4..10)), [(4, false, 3), (7, true, 3)]);
        assert!(whole.chunks().all(|chunk| chunk.dtype == 3));
    }

    /// These rows of a table of many, and of one with few and wide ones.
    fn rows(table: u32, numbers: impl IntoIterator<Item = u32>) -> Rows {
        let zeros = |name: &str, shape: &[u64]| Table::zeros(name, shape, true);
        let tables = Tables::new(vec![zeros("w", &[1 << 20]), zeros("V", &[4, 3])]).expect("valid");
        Rows::new(&tables, table, numbers.into_iter().collect()).expect("there")
    }

    #[test]
    fn the_numbers_of_rows_go_before_their_values() {
        let values = Shared::from(vec![1f32; 5]);
        let (brought, asked) = ([rows(0, [7, 9]), rows(1, [3])], [rows(0, []), rows(1, [0, 2])]);
        let parcel = Parcel::from(&values).of_rows(&brought, &asked);
        assert_eq!((parcel.len(), parcel.n_answered(), parcel.is_sparse()), (5, 6, true));
        let names = |part, table, numbers: &[u32]| Chunk {
            part,
            table,
            bytes: numbers.iter().flat_map(|number| number.to_le_bytes()).collect(),
            ..Chunk::default()
        };
        let of_values = Chunk { last: true, dtype: 1, bytes: values.bytes(), ..Chunk::default() };
        let expected = [
            names(pb::Part::Rows, 0, &[7, 9]),
            names(pb::Part::Rows, 1, &[3]),
            names(pb::Part::Asked, 1, &[0, 2]),
            of_values,
        ];
        assert!(parcel.chunks().eq(expected));
        let chunk = parcel.chunks().last().expect("of values");
        assert_eq!(chunk.bytes.as_ptr(), values.as_ptr().cast(), "no copy");
        // Nothing to bring and nothing to ask for: the end of the push alone.
        let nothing = Vec::<f32>::new();
        let nothing = Parcel::from(&nothing).of_rows(&[], &[]);
        let end = Chunk { last: true, dtype: 1, ..Chunk::default() };
        assert!(nothing.chunks().eq([end]));
    }

    #[test]
    fn numbers_of_many_rows_are_cut_as_values_are() {
        const N_MAX: usize = CHUNK_BYTES / NUMBER_BYTES;
        let brought = [rows(0, 0..N_MAX as u32 + 1)];
        let values = vec![0f64; N_MAX + 1];
        let parcel = Parcel::from(&values).of_rows(&brought, &brought);
        let shown: Vec<_> =
            parcel.chunks().map(|c| (c.part, c.key, c.bytes.len(), c.last)).collect();
        let half = N_MAX as u64 / 2;
        assert_eq!(
            shown,
            [
                (pb::Part::Rows, 0, CHUNK_BYTES, false),
                (pb::Part::Rows, 0, NUMBER_BYTES, false),
                (pb::Part::Asked, 0, CHUNK_BYTES, false),
                (pb::Part::Asked, 0, NUMBER_BYTES, false),
                (pb::Part::Values, 0, CHUNK_BYTES, false),
                (pb::Part::Values, half, CHUNK_BYTES, false),
                (pb::Part::Values, 2 * half, 8, true),
            ]
        );
    }

    #[test]
    #[should_panic(expected = "as many values as elements")]
    fn values_that_are_not_those_of_the_rows_are_a_bug() {
        let _ = Parcel::from(&vec![0f32; 4]).of_rows(&[rows(1, [0])], &[]);
    }

    #[test]
    fn chunks_in_order_make_theta() {
        let values = [1.0f64, 2.0, 3.0];
        let mut theta = [0.0; 3];
        let mut assembly = Assembly::new(Form::PLAIN, &mut theta);
        let bytes = dtype::as_le_bytes(&values);
        assert_eq!(assembly.accept(head(0, false), &bytes[..16]), Ok(false));
        assert_eq!(assembly.accept(head(2, true), &bytes[16..]), Ok(true));
        assert_eq!(theta, values);
    }

    #[test]
    fn a_part_of_theta_counts_keys_over_all_of_it() {
        let mut part = [0f64; 2];
        let mut assembly = Assembly::from_key(7, Form::PLAIN, &mut part);
        let bytes = dtype::as_le_bytes(&[4.0f64, 5.0]);
        let failure = assembly.accept(head(0, false), &bytes[..8]).expect_err("not from 0");
        assert!(failure.to_string().contains("at key 0, not 7"), "{failure}");
        assert_eq!(assembly.accept(head(7, false), &bytes[..8]), Ok(false));
        assert_eq!(assembly.accept(head(8, true), &bytes[8..]), Ok(true));
        assert_eq!(part, [4.0, 5.0]);
    }

    /// Of a chunk of f16 at the start of theta.
    const HALF: ChunkHead =
        ChunkHead { dtype: 3, version: 5, key: 0, last: true, unchanged: false };

    #[test]
    fn a_coded_theta_is_decoded_in_its_place() {
        let form = Form { encoding: Encoding::F16, version_have: None };
        let (one, two) = ([0x00, 0x3c], [0x00, 0x40]);
        let mut theta = [9f32; 3];
        let mut assembly = Assembly::new(form, &mut theta);
        let first = ChunkHead { last: false, ..HALF };
        assert_eq!(assembly.accept(first, &[one, two].concat()[..]), Ok(false));
        assert_eq!(assembly.accept(ChunkHead { key: 2, ..HALF }, &two[..]), Ok(true));
        assert_eq!(theta, [1.0, 2.0, 2.0]);
        let cases: [(ChunkHead, &[u8], &str); 5] = [
            (ChunkHead { dtype: 1, ..HALF }, &[0; 6], "dtype number 1, not 3 (f16)"),
            (HALF, &[0; 5], "5 bytes are no whole chunk of f16"),
            (HALF, &[0; 8], "a tensor of at least 4 elements, where 3 are wanted"),
            (HALF, &[0; 4], "at key 0, the last"),
            (HALF, &[0, 0, 0, 0x7c, 0, 0], "element 1 is inf"),
        ];
        for (head, data, says) in cases {
            let failure = Assembly::new(form, &mut theta).accept(head, data).expect_err(says);
            assert!(failure.to_string().contains(says), "{failure} does not say {says}");
        }
        assert_eq!(theta, [1.0, 2.0, 2.0], "a refused chunk leaves no trace");
    }

    #[test]
    fn a_theta_that_is_here_stays_if_it_is_the_one_that_was_named() {
        let form = Form { version_have: Some(5), ..Form::PLAIN };
        let unchanged = ChunkHead { unchanged: true, ..head(0, true) };
        let mut theta = [1f64, 2.0];
        let answer = |form, head, data: &[u8], theta: &mut [f64]| {
            Assembly::new(form, theta).accept(head, data)
        };
        assert_eq!(answer(form, unchanged, &[], &mut theta), Ok(true));
        for (form, head, data) in [
            (Form::PLAIN, unchanged, &[][..]),
            (form, ChunkHead { version: 6, ..unchanged }, &[]),
            (form, ChunkHead { last: false, ..unchanged }, &[]),
            (form, unchanged, &[0; 16]),
        ] {
            let failure = answer(form, head, data, &mut theta).expect_err("not asked for");
            assert!(failure.to_string().contains("is unchanged"), "{failure}");
        }
        assert_eq!(theta, [1.0, 2.0]);
    }

    #[test]
    fn a_chunk_that_does_not_fit_is_refused() {
        let cases: [(ChunkHead, usize, &str); 8] = [
            (ChunkHead { dtype: 1, ..head(1, true) }, 16, "dtype number 1, not 2 (f64)"),
            (ChunkHead { version: 6, ..head(1, true) }, 16, "more than one version"),
            (head(0, true), 16, "at key 0, not 1"),
            (head(2, true), 8, "at key 2, not 1"),
            (head(1, true), 8, "8 bytes at key 1, the last"),
            (head(1, false), 16, "16 bytes at key 1, where theta has 3"),
            (head(1, true), 24, "24 bytes"),
            (head(1, true), 15, "15 bytes"),
        ];
        for (wrong, n_bytes, says) in cases {
            let mut theta = [0f64; 3];
            let mut assembly = Assembly::new(Form::PLAIN, &mut theta);
            assert_eq!(assembly.accept(head(0, false), &[0; 8][..]), Ok(false));
            let failure = assembly.accept(wrong, &vec![0; n_bytes][..]).expect_err(says);
            assert!(failure.to_string().contains(says), "{failure} does not say {says}");
        }
    }
}
