//! theta whatever its element type, with its version: the table that the driver holds.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use ps_common::dtype::CHUNK_BYTES;
use ps_common::import::Imported;
use ps_common::job::Combine;
use ps_common::partition::Partition;
use ps_common::rows::{self, Rows};
use ps_common::tables::Tables;
use ps_common::{Dtype, Element};
use sha2::{Digest, Sha256};

use super::aggregate::Aggregate;
use super::certain::Certain;
use super::deferred::Coming;
use super::gradient::Gradient;
use super::held::Held;
use super::motion::Motion;
use super::norm::{Grid, clips};
use super::sparse::{SparseGradient, sum_of};
use super::theta::Theta;
use crate::numeric::{Optimizer, initialize};
use crate::threads::Threads;

/// One version of theta, immutable.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Updates before it.
    pub version: u64,
    /// Of its elements.
    pub dtype: Dtype,
    /// Elements: of this server's part, where there are several servers.
    pub dim: usize,
    /// Its bytes, little-endian, cut in order of key.
    chunks: Chunks,
}

/// The bytes of theta's chunks, in order of key.
#[derive(Debug, Clone)]
pub(super) enum Chunks {
    /// Here.
    Here(Arc<[Bytes]>),
    /// Computed when they are wanted.
    Coming(Arc<dyn Coming>),
}

impl Chunks {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Here(chunks) => chunks.len(),
            Self::Coming(coming) => coming.n_chunks(),
        }
    }

    pub(super) fn get(&self, index: usize) -> Bytes {
        match self {
            Self::Here(chunks) => chunks[index].clone(),
            Self::Coming(coming) => coming.chunk_bytes(index),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Bytes> {
        (0..self.len()).map(|index| self.get(index))
    }
}

impl Snapshot {
    /// Of theta's elements as they are.
    pub(crate) fn new(version: u64, dtype: Dtype, dim: usize, chunks: Vec<Bytes>) -> Self {
        Self { version, dtype, dim, chunks: Chunks::Here(chunks.into()) }
    }

    /// How many chunks its bytes are cut into.
    pub fn n_chunks(&self) -> usize {
        self.chunks.len()
    }

    /// Elements of a chunk.
    ///
    /// # Panics
    /// If there is no such chunk.
    pub fn chunk_len(&self, index: usize) -> usize {
        match &self.chunks {
            Chunks::Here(chunks) => chunks[index].len() / self.dtype.size_bytes(),
            Chunks::Coming(coming) => coming.chunk_len(index),
        }
    }

    /// The bytes of a chunk, without a copy; computed now, if nobody has wanted them before.
    ///
    /// # Panics
    /// If there is no such chunk.
    pub fn chunk(&self, index: usize) -> Bytes {
        self.chunks.get(index)
    }

    /// The bytes of all chunks, in order of key.
    pub fn chunks(&self) -> impl Iterator<Item = Bytes> {
        self.chunks.iter()
    }

    /// The same version with the parts of other servers behind this one's.
    #[must_use]
    pub fn joined(&self, parts: impl IntoIterator<Item = Bytes>) -> Self {
        let chunks: Vec<Bytes> = self.chunks().chain(parts).collect();
        let n_bytes: usize = chunks.iter().map(Bytes::len).sum();
        Self::new(self.version, self.dtype, n_bytes / self.dtype.size_bytes(), chunks)
    }

    /// The elements of `rows`, in this order, as a theta of their own: a copy.
    ///
    /// # Panics
    /// If a row is beyond theta.
    #[must_use]
    pub fn of_rows(&self, rows: &[Rows]) -> Self {
        let (size, dim) = (self.dtype.size_bytes(), rows::n_elements(rows));
        let n_bytes = dim * size;
        let mut chunks = Vec::with_capacity(n_bytes.div_ceil(CHUNK_BYTES));
        let mut bytes = BytesMut::with_capacity(n_bytes.min(CHUNK_BYTES));
        let open = self.open(rows);
        let scale = (self.chunk_len(0), size);
        rows::visit(
            rows,
            scale,
            |index| &open[index][..],
            |mut piece| {
                while !piece.is_empty() {
                    let (here, beyond) = piece.split_at(piece.len().min(CHUNK_BYTES - bytes.len()));
                    bytes.extend_from_slice(here);
                    piece = beyond;
                    if bytes.len() == CHUNK_BYTES {
                        let next = BytesMut::with_capacity(CHUNK_BYTES);
                        chunks.push(std::mem::replace(&mut bytes, next).freeze());
                    }
                }
            },
        );
        if !bytes.is_empty() {
            chunks.push(bytes.freeze());
        }
        Self::new(self.version, self.dtype, dim, chunks)
    }

    /// The chunks by index, at least those that rows are in.
    fn open(&self, rows: &[Rows]) -> Cow<'_, [Bytes]> {
        match &self.chunks {
            Chunks::Here(chunks) => Cow::Borrowed(chunks),
            Chunks::Coming(coming) => {
                let mut open = vec![Bytes::new(); coming.n_chunks()];
                for (index, _) in rows::pieces(rows, coming.chunk_len(0)) {
                    if open[index].is_empty() {
                        open[index] = coming.chunk_bytes(index);
                    }
                }
                Cow::Owned(open)
            }
        }
    }

    /// SHA-256 of theta's bytes (rule R11), hexadecimal.
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        for chunk in self.chunks() {
            hash.update(&chunk);
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// All elements in one piece.
    ///
    /// # Panics
    /// If `T` is not the snapshot's element type.
    pub fn values<T: Element>(&self) -> Vec<T> {
        assert_eq!(T::DTYPE, self.dtype);
        let mut values = vec![T::ZERO; self.dim];
        let mut rest = &mut values[..];
        for chunk in self.chunks() {
            let (head, tail) = rest.split_at_mut(chunk.len() / size_of::<T>());
            ps_common::dtype::copy_from_le_bytes(head, &chunk);
            rest = tail;
        }
        values
    }
}

/// What theta is to be moved by.
#[derive(Debug, Clone, Copy)]
pub struct Update<'a> {
    /// Gradients with their weights, in the order in which they are combined.
    pub parts: &'a [(Gradient, f64)],
    /// How they become one step, or several.
    pub combine: Combine,
    /// Multiplies the learning rate of this update.
    pub rate_factor: f64,
    /// Corrects the gradient for the updates since it was computed.
    pub compensation: Option<Compensation<'a>>,
}

/// Delay compensation: g + lambda * g * g * (theta - theta_pulled), element by element.
///
/// Zheng et al. 2017, "Asynchronous Stochastic Gradient Descent with Delay Compensation",
/// section 4.2, equation 10. Limited per element, because it diverges at high rates: a gradient keeps
/// its sign and at most doubles ([`crate::numeric::compensate`]). theta is the one before the update,
/// also where gradients are applied in turn.
#[derive(Debug, Clone, Copy)]
pub struct Compensation<'a> {
    /// Its strength.
    pub lambda: f64,
    /// theta that the gradient was computed at.
    pub pulled: &'a Snapshot,
}

#[derive(Debug)]
pub(super) enum AnyTheta {
    F32(Theta<f32>),
    F64(Theta<f64>),
}

/// An update that is computed and not in force: dropped, it leaves no trace.
#[derive(Debug)]
pub struct Prepared(AnyPrepared);

#[derive(Debug)]
enum AnyPrepared {
    F32(super::theta::Prepared<f32>),
    F64(super::theta::Prepared<f64>),
}

/// Rows as an update leaves them, not in force: dropped, they leave no trace.
#[derive(Debug)]
pub struct MovedRows(AnyMoved);

#[derive(Debug)]
enum AnyMoved {
    F32(super::theta::Moved<f32>),
    F64(super::theta::Moved<f64>),
}

/// theta, its version, its update rule; or the part of theta that this server has.
#[derive(Debug)]
pub struct Store {
    /// Elements that are here.
    pub(super) dim: usize,
    /// Of the first of them, in all of theta.
    pub(super) first_key: usize,
    /// Of all of theta.
    pub(super) grid: Grid,
    pub(super) dtype: Dtype,
    pub(super) version: u64,
    pub(super) theta: AnyTheta,
    pub(super) optimizer: Optimizer,
    /// Penalised elements, in order, counted from the first that is here.
    pub(super) penalized: Arc<[Range<usize>]>,
}

impl Store {
    /// theta at version 0, as the tables' initialisers say, in chunks of `chunk_bytes`.
    pub fn new(tables: &Tables, dtype: Dtype, optimizer: Optimizer, chunk_bytes: usize) -> Self {
        Self::part(tables, Partition::WHOLE, dtype, optimizer, chunk_bytes)
    }

    /// As [`Store::new`], the keys of `partition` alone: the bits that they have in the whole, now
    /// and after the same updates.
    pub fn part(
        tables: &Tables,
        partition: Partition,
        dtype: Dtype,
        optimizer: Optimizer,
        chunk_bytes: usize,
    ) -> Self {
        let keys = partition.keys(tables.dim());
        let chunk_len = (chunk_bytes / dtype.size_bytes()).max(1);
        Self {
            dim: keys.len(),
            first_key: keys.start,
            grid: Grid { dim: tables.dim(), chunk_len },
            dtype,
            version: 0,
            optimizer,
            penalized: penalized(tables, &keys),
            theta: match dtype {
                Dtype::F32 => AnyTheta::F32(first_theta(tables, keys, chunk_len)),
                Dtype::F64 => AnyTheta::F64(first_theta(tables, keys, chunk_len)),
            },
        }
    }

    /// Lets theta start at `start`, which is all of it, and not as the initialisers say.
    ///
    /// # Panics
    /// If it is too short or has another element type, or somebody reads theta already.
    pub fn start_from(&mut self, start: &Imported) {
        let keys = self.first_key..self.first_key + self.dim;
        match &mut self.theta {
            AnyTheta::F32(theta) => copy(theta, &start.values()[keys]),
            AnyTheta::F64(theta) => copy(theta, &start.values()[keys]),
        }
    }

    /// Lets `threads` share updates that are computed at once; without it, as many as suit this
    /// machine and theta's size. It changes no bit.
    #[must_use]
    pub fn on_threads(mut self, threads: Threads) -> Self {
        match &mut self.theta {
            AnyTheta::F32(theta) => theta.share(threads),
            AnyTheta::F64(theta) => theta.share(threads),
        }
        self
    }

    /// The current version, without a copy.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        let chunks = match &self.theta {
            AnyTheta::F32(theta) => theta.bytes(),
            AnyTheta::F64(theta) => theta.bytes(),
        };
        Arc::new(Snapshot { version: self.version, dtype: self.dtype, dim: self.dim, chunks })
    }

    /// One update, whole or not at all.
    ///
    /// # Errors
    /// As [`Store::prepare`].
    ///
    /// # Panics
    /// As [`Store::prepare`].
    pub fn update(&mut self, update: &Update<'_>) -> Result<(), usize> {
        self.prepare(update).map(|prepared| self.commit(prepared))
    }

    /// Computes an update beside theta, which stays as it is until [`Store::commit`].
    ///
    /// # Errors
    /// The first key, counted over all of theta, where theta or what the update rule remembers would
    /// overflow; then nothing has changed.
    ///
    /// # Panics
    /// As [`Store::prepare_clipped`]; if gradients are clipped by their norm and this is a part of theta:
    /// the norm is not known here ([`Store::squares`]).
    pub fn prepare(&mut self, update: &Update<'_>) -> Result<Prepared, usize> {
        let clips = match self.optimizer.clip_norm {
            None => Vec::new(),
            Some(norm_max) => {
                let squares = self.squares(update)?;
                clips(self.grid, &[&squares], norm_max).expect("all of theta is here")
            }
        };
        self.prepare_clipped(update, &clips)
    }

    /// As [`Store::prepare`], each step's gradient multiplied by what `clips` says of it.
    ///
    /// # Errors
    /// As [`Store::prepare`].
    ///
    /// # Panics
    /// If a gradient or the pulled theta has another length or element type: the assembler has
    /// checked them.
    pub fn prepare_clipped(
        &mut self,
        update: &Update<'_>,
        clips: &[Option<f64>],
    ) -> Result<Prepared, usize> {
        let Update { parts, combine, rate_factor, compensation } = *update;
        let absolute = |place| self.first_key + place;
        let motion = motion(&self.optimizer, self.version, rate_factor, &self.penalized);
        Ok(Prepared(match &mut self.theta {
            AnyTheta::F32(theta) => {
                let parts = slices(parts);
                let aggregate = Aggregate::new(&parts, combine, compensation);
                AnyPrepared::F32(theta.prepare(aggregate, clips, motion).map_err(absolute)?)
            }
            AnyTheta::F64(theta) => {
                let parts = slices(parts);
                let aggregate = Aggregate::new(&parts, combine, compensation);
                AnyPrepared::F64(theta.prepare(aggregate, clips, motion).map_err(absolute)?)
            }
        }))
    }

    /// Whether it is certain before it is computed that an update does not overflow, for
    /// [`Store::defer`]; theta stays as it is.
    pub fn certain(&mut self, update: &Update<'_>) -> Option<Certain> {
        let Update { parts, combine, rate_factor, compensation } = *update;
        if compensation.is_some() {
            return None;
        }
        let motion = motion(&self.optimizer, self.version, rate_factor, &self.penalized);
        match &mut self.theta {
            AnyTheta::F32(theta) => theta.certain(parts, combine, &motion),
            AnyTheta::F64(theta) => theta.certain(parts, combine, &motion),
        }
    }

    /// Puts an update in force that is computed later, chunk by chunk, by whoever wants one first.
    /// `gradients`, which are kept until then, are those of the update that `certain` was given for.
    ///
    /// # Panics
    /// At the latest when it is computed, if theta has moved since, or they are others.
    pub fn defer(&mut self, certain: Certain, gradients: Held) {
        let rule = (&self.optimizer, &self.penalized);
        match &mut self.theta {
            AnyTheta::F32(theta) => theta.defer(certain, gradients, rule),
            AnyTheta::F64(theta) => theta.defer(certain, gradients, rule),
        }
        self.version += 1;
    }

    /// Computes an update by gradients of some rows, weighted and summed in this order, beside theta; other
    /// rows stay as they are ([`Optimizer::leaves_zeros`] says whether that is right).
    ///
    /// # Errors
    /// As [`Store::prepare`].
    ///
    /// # Panics
    /// If a gradient has another element type, or a row is beyond theta.
    pub fn prepare_rows(
        &mut self,
        parts: &[(SparseGradient, f64)],
        rate_factor: f64,
    ) -> Result<MovedRows, usize> {
        let motion = motion(&self.optimizer, self.version, rate_factor, &self.penalized);
        let absolute = |place| self.first_key + place;
        Ok(MovedRows(match &mut self.theta {
            AnyTheta::F32(theta) => {
                let (rows, sum) = sum_of(parts);
                let moved = theta.prepare_rows(rows.into_owned(), &sum, &motion);
                AnyMoved::F32(moved.map_err(absolute)?)
            }
            AnyTheta::F64(theta) => {
                let (rows, sum) = sum_of(parts);
                let moved = theta.prepare_rows(rows.into_owned(), &sum, &motion);
                AnyMoved::F64(moved.map_err(absolute)?)
            }
        }))
    }

    /// Puts rows in force where they lie. Whoever holds a snapshot keeps its version; that costs a copy of
    /// each chunk that rows are in.
    ///
    /// # Panics
    /// If they are not what this store's last [`Store::prepare_rows`] gave.
    pub fn commit_rows(&mut self, moved: &MovedRows) {
        match (&mut self.theta, &moved.0) {
            (AnyTheta::F32(theta), AnyMoved::F32(moved)) => theta.commit_rows(moved),
            (AnyTheta::F64(theta), AnyMoved::F64(moved)) => theta.commit_rows(moved),
            _ => panic!("another store's update"),
        }
        self.version += 1;
    }

    /// Puts an update in force.
    ///
    /// # Panics
    /// If it is not what this store's last [`Store::prepare`] gave.
    pub fn commit(&mut self, prepared: Prepared) {
        match (&mut self.theta, prepared.0) {
            (AnyTheta::F32(theta), AnyPrepared::F32(prepared)) => theta.commit(prepared),
            (AnyTheta::F64(theta), AnyPrepared::F64(prepared)) => theta.commit(prepared),
            _ => panic!("another store's update"),
        }
        self.version += 1;
    }
}

/// For tests of what is inside.
#[cfg(test)]
impl Store {
    /// Puts `values` in theta's place, before the first update.
    pub(super) fn begin_at(&mut self, values: &[f64]) {
        match &mut self.theta {
            AnyTheta::F32(theta) => theta.begin_at(values),
            AnyTheta::F64(theta) => theta.begin_at(values),
        }
    }

    /// What the rule remembers, by slot.
    pub(super) fn state(&self) -> Vec<Vec<f64>> {
        let slots = 0..self.optimizer.rule.slots().len();
        match &self.theta {
            AnyTheta::F32(theta) => slots.map(|slot| theta.slot(slot)).collect(),
            AnyTheta::F64(theta) => slots.map(|slot| theta.slot(slot)).collect(),
        }
    }
}

/// Those of `here` that are penalised, counted from the first of them. Neighbours that are both
/// penalised are one range.
pub(super) fn penalized(tables: &Tables, here: &Range<usize>) -> Arc<[Range<usize>]> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for (_, keys) in tables.ranges().filter(|(table, _)| table.penalized) {
        let (from, to) = (keys.start.max(here.start), keys.end.min(here.end));
        if from >= to {
            continue;
        }
        let keys = from - here.start..to - here.start;
        match ranges.last_mut() {
            Some(last) if last.end == keys.start => last.end = keys.end,
            _ => ranges.push(keys),
        }
    }
    ranges.into()
}

/// The keys `here` of theta as the tables' initialisers say, the same for any `chunk_len`.
fn first_theta<T: Element>(tables: &Tables, here: Range<usize>, chunk_len: usize) -> Theta<T> {
    let mut theta = Theta::zeros(here.len(), chunk_len);
    theta.fill(|place, values: &mut [T]| {
        let first_key = here.start + place;
        let end = first_key + values.len();
        for (table, keys) in tables.ranges() {
            let (from, to) = (keys.start.max(first_key), keys.end.min(end));
            if from < to {
                let values = &mut values[from - first_key..to - first_key];
                initialize(values, from as u64, table.initializer);
            }
        }
    });
    theta
}

fn copy<T: Element>(theta: &mut Theta<T>, values: &[T]) {
    theta.fill(|place, chunk| {
        chunk.copy_from_slice(&values[place..place + chunk.len()]);
    });
}

pub(super) fn slices<T: Element>(parts: &[(Gradient, f64)]) -> Vec<(&[T], f64)> {
    parts.iter().map(|(gradient, weight)| (gradient.values(), *weight)).collect()
}

fn motion<'a>(
    optimizer: &'a Optimizer,
    version: u64,
    factor: f64,
    penalized: &'a [Range<usize>],
) -> Motion<'a> {
    Motion { optimizer, lr: optimizer.rate(version), factor, penalized }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ps_common::tables::{Initializer, Table};

    #[test]
    fn the_first_theta_does_not_depend_on_chunks() {
        let uniform = Initializer::Uniform { bound: 1.0, seed: 7 };
        let normal = Initializer::Normal { std: 0.5, seed: 7 };
        let tables = Tables::new(vec![
            Table::new("a", &[3, 5], uniform, true),
            Table::zeros("b", &[4], false),
            Table::new("c", &[11], uniform, true),
            Table::new("d", &[2, 7], normal, true),
        ])
        .expect("valid");
        let sgd = Optimizer::sgd(1.0);
        let first = |bytes| Store::new(&tables, Dtype::F64, sgd, bytes).snapshot().values::<f64>();
        let whole = first(1 << 20);
        for bytes in [8, 24, 40, 128, 320] {
            assert_eq!(first(bytes), whole, "in chunks of {bytes} bytes");
        }
        assert_eq!(whole[15..19], [0.0; 4]);
        let (a, c) = (&whole[..11], &whole[19..30]);
        assert!(a.iter().zip(c).all(|(a, c)| a != c), "two tables share no draws");
        assert!(whole[..15].iter().chain(&whole[19..]).all(|x| *x != 0.0));
    }

    #[test]
    fn snapshots_have_a_version_and_a_hash() {
        let tables = Tables::new(vec![Table::zeros("w", &[5], true)]).expect("valid");
        let mut store = Store::new(&tables, Dtype::F32, Optimizer::sgd(1.0), 8);
        let zero = store.snapshot();
        assert_eq!((zero.version, zero.n_chunks()), (0, 3));
        // sha256 of twenty zero bytes.
        assert_eq!(
            zero.sha256(),
            "de47c9b27eb8d300dbb5f2c353e632c393262cf06340c4fa7f1b40c4cbd36f90"
        );
        let parts = [(Gradient::F32(vec![1.0; 5].into()), 1.0)];
        let update =
            Update { parts: &parts, combine: Combine::Sum, rate_factor: 1.0, compensation: None };
        store.update(&update).expect("finite");
        assert_eq!(store.snapshot().version, 1);
        assert_eq!(store.snapshot().values::<f32>(), [-1.0; 5]);
        assert_eq!(zero.values::<f32>(), [0.0; 5]);
    }
}
