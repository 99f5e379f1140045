//! theta that several threads move at once, without locks, and what of that gets lost.
//!
//! Recht, Re, Wright, Niu 2011, "Hogwild!: A Lock-Free Approach to Parallelizing Stochastic Gradient
//! Descent", section 3: each element is an atomic that is loaded, moved and stored, all relaxed. A
//! store that falls between another thread's load and store of the same element is overwritten. How
//! often is measured, not guessed: a fixed sample of elements is stored by a swap, and one that gives
//! back another value than the one that was loaded has undone somebody's update. Where others ended
//! several updates in between that is still one: the count is of stores, so `lost` is 0 exactly if
//! nothing was lost in the sample.
//!
//! Knows no workers, rounds or wire, and starts no threads.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use ps_common::report::LostUpdates;
use ps_common::shared::Shared;
use ps_common::{Dtype, Element};

use super::gradient::Gradient;
use super::motion::runs_of;
use super::norm::BLOCK;
use super::store::{Snapshot, Store};
use crate::numeric::{Norm, Optimizer, Rule, scale, sgd_element};

mod rows;

/// A theta below this many elements is in the sample as a whole.
const SMALL: usize = 4096;
/// Of a larger theta, every element at a multiple of this.
const SAMPLE_STRIDE: usize = 64;

/// An element that any thread may read and write at any time.
trait Cell: fmt::Debug + Send + Sync {
    type Value: Element;
    fn new(value: Self::Value) -> Self;
    fn load(&self) -> Self::Value;
    fn store(&self, value: Self::Value);
    /// Stores `value`; whether that undid another store since `loaded` was loaded.
    fn replace(&self, loaded: Self::Value, value: Self::Value) -> bool;
}

impl Cell for AtomicU32 {
    type Value = f32;
    fn new(value: f32) -> Self {
        Self::new(value.to_bits())
    }
    fn load(&self) -> f32 {
        f32::from_bits(self.load(Relaxed))
    }
    fn store(&self, value: f32) {
        self.store(value.to_bits(), Relaxed);
    }
    fn replace(&self, loaded: f32, value: f32) -> bool {
        self.swap(value.to_bits(), Relaxed) != loaded.to_bits()
    }
}

impl Cell for AtomicU64 {
    type Value = f64;
    fn new(value: f64) -> Self {
        Self::new(value.to_bits())
    }
    fn load(&self) -> f64 {
        f64::from_bits(self.load(Relaxed))
    }
    fn store(&self, value: f64) {
        self.store(value.to_bits(), Relaxed);
    }
    fn replace(&self, loaded: f64, value: f64) -> bool {
        self.swap(value.to_bits(), Relaxed) != loaded.to_bits()
    }
}

#[derive(Debug)]
enum Cells {
    F32(Box<[AtomicU32]>),
    F64(Box<[AtomicU64]>),
}

/// theta as atomics, its version, its rate.
#[derive(Debug)]
pub struct SharedStore {
    dim: usize,
    /// In all of theta.
    first_key: usize,
    chunk_len: usize,
    cells: Cells,
    optimizer: Optimizer,
    /// Penalised elements, in order, counted from the first that is here.
    penalized: Arc<[Range<usize>]>,
    version: AtomicU64,
    stride: usize,
    checked: AtomicU64,
    lost: AtomicU64,
}

/// How one update moves an element.
#[derive(Debug, Clone, Copy)]
struct Motion<T> {
    lr: T,
    decay: Option<T>,
}

impl SharedStore {
    /// theta as `store` begins, copied out in chunks of `chunk_bytes`.
    ///
    /// # Panics
    /// If the update rule is not plain `sgd`: what other rules remember would need locks. The flags
    /// are checked before.
    pub fn new(store: &Store, chunk_bytes: usize) -> Self {
        let optimizer = store.optimizer;
        assert_eq!(optimizer.rule, Rule::Sgd, "other rules share what they remember");
        let first = store.snapshot();
        let dim = first.dim;
        Self {
            dim,
            first_key: store.first_key,
            chunk_len: (chunk_bytes / first.dtype.size_bytes()).max(1),
            cells: match first.dtype {
                Dtype::F32 => Cells::F32(cells(&first)),
                Dtype::F64 => Cells::F64(cells(&first)),
            },
            optimizer,
            penalized: store.penalized.clone(),
            version: AtomicU64::new(first.version),
            stride: if dim < SMALL { 1 } else { SAMPLE_STRIDE },
            checked: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        }
    }

    /// Elements.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Of its elements.
    pub fn dtype(&self) -> Dtype {
        match self.cells {
            Cells::F32(_) => Dtype::F32,
            Cells::F64(_) => Dtype::F64,
        }
    }

    /// Updates that have ended.
    pub fn version(&self) -> u64 {
        self.version.load(Relaxed)
    }

    /// An update has ended.
    pub fn count(&self) {
        self.version.fetch_add(1, Relaxed);
    }

    /// A copy of theta in the name of `version`. Updates under way may be in some of its elements
    /// and not in others.
    pub fn snapshot(&self, version: u64) -> Arc<Snapshot> {
        let chunks = match &self.cells {
            Cells::F32(cells) => copies(cells, self.chunk_len),
            Cells::F64(cells) => copies(cells, self.chunk_len),
        };
        Arc::new(Snapshot::new(version, self.dtype(), self.dim, chunks))
    }

    /// One update, beside any others that are under way, at the rate of the version that it begins
    /// at times `rate_factor`. The gradient is clipped in its place.
    ///
    /// # Errors
    /// The first key, counted over all of theta, that would overflow as theta is before the first store; then nothing has
    /// changed. What others store meanwhile is not foreseen: an element that would overflow only
    /// because of them stays as they left it, so that theta is finite at all times.
    ///
    /// # Panics
    /// If the gradient has another length or element type: the assembler has checked them.
    pub fn update(&self, gradient: &mut Gradient, rate_factor: f64) -> Result<(), usize> {
        match (&self.cells, gradient) {
            (Cells::F32(cells), Gradient::F32(values)) => {
                self.apply(cells, values.as_mut_slice(), rate_factor)
            }
            (Cells::F64(cells), Gradient::F64(values)) => {
                self.apply(cells, values.as_mut_slice(), rate_factor)
            }
            _ => unreachable!("checked by the assembler"),
        }
    }

    /// The stores to the sample so far.
    pub fn lost_updates(&self) -> LostUpdates {
        LostUpdates::new(self.checked.load(Relaxed), self.lost.load(Relaxed))
    }

    fn apply<C: Cell>(
        &self,
        cells: &[C],
        gradient: &mut [C::Value],
        rate_factor: f64,
    ) -> Result<(), usize> {
        assert_eq!(cells.len(), gradient.len());
        self.clip(gradient);
        let motion = Motion {
            lr: C::Value::from_f64(self.optimizer.rate(self.version()) * rate_factor),
            decay: self.optimizer.gradient_decay().map(C::Value::from_f64),
        };
        let runs = || {
            runs_of(&self.penalized, 0..cells.len()).map(|(keys, penalized)| {
                (keys, Motion { decay: motion.decay.filter(|_| penalized), ..motion })
            })
        };
        for (keys, motion) in runs() {
            let moved = |key: &usize| motion.moved(cells[*key].load(), gradient[*key]);
            if let Some(key) = keys.clone().find(|key| !moved(key).is_finite()) {
                return Err(self.first_key + key);
            }
        }
        let (mut checked, mut lost) = (0, 0);
        for (keys, motion) in runs() {
            for key in keys {
                let is_sampled = key.is_multiple_of(self.stride);
                let is_lost = motion.store(&cells[key], gradient[key], is_sampled);
                checked += u64::from(is_sampled);
                lost += u64::from(is_lost);
            }
        }
        self.count_stores(checked, lost);
        Ok(())
    }

    /// Counts stores to the sample, and those of them that undid another.
    fn count_stores(&self, checked: u64, lost: u64) {
        self.checked.fetch_add(checked, Relaxed);
        self.lost.fetch_add(lost, Relaxed);
    }

    /// In the order of chunks and blocks, as the store with locks does it: the same bits.
    fn clip<T: Element>(&self, gradient: &mut [T]) {
        let Some(norm_max) = self.optimizer.clip_norm else { return };
        let mut norm = Norm::default();
        for chunk in gradient.chunks(self.chunk_len) {
            let mut of_chunk = Norm::default();
            chunk.chunks(BLOCK).for_each(|block| of_chunk.add(block));
            norm.append(&of_chunk);
        }
        if let Some(factor) = norm.factor(norm_max) {
            scale(gradient, factor);
        }
    }
}

impl<T: Element> Motion<T> {
    fn moved(&self, theta: T, gradient: T) -> T {
        sgd_element(theta, gradient, self.lr, self.decay)
    }

    /// Moves one element; whether it is of the sample and lost an update.
    fn store<C: Cell<Value = T>>(&self, cell: &C, gradient: T, is_sampled: bool) -> bool {
        let loaded = cell.load();
        let value = self.moved(loaded, gradient);
        if !value.is_finite() {
            return is_sampled;
        }
        if is_sampled {
            return cell.replace(loaded, value);
        }
        cell.store(value);
        false
    }
}

fn cells<C: Cell>(first: &Snapshot) -> Box<[C]> {
    first.values::<C::Value>().into_iter().map(C::new).collect()
}

fn copies<C: Cell>(cells: &[C], chunk_len: usize) -> Vec<Bytes> {
    let copy = |chunk: &[C]| Shared::from(chunk.iter().map(C::load).collect::<Vec<_>>()).bytes();
    cells.chunks(chunk_len).map(copy).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::Wish;
    use crate::table::Update;
    use ps_common::job::Combine;
    use ps_common::tables::{Initializer, Table, Tables};

    /// Penalised weights that are not 0, and a bias.
    fn tables(dim: u64) -> Tables {
        let uniform = Initializer::Uniform { bound: 1.0, seed: 7 };
        let weights = Table::new("W", &[dim - 1], uniform, true);
        Tables::new(vec![weights, Table::zeros("b", &[1], false)]).expect("sane")
    }

    fn zeros(dim: u64, dtype: Dtype) -> SharedStore {
        let tables = Tables::new(vec![Table::zeros("w", &[dim], true)]).expect("sane");
        SharedStore::new(&Store::new(&tables, dtype, Optimizer::sgd(1.0), 64), 64)
    }

    fn gradient(dtype: Dtype, dim: u64, step: u64) -> Gradient {
        let value = |i: u64| ((step * 7 + i * 3) as f64 * 0.37).sin();
        match dtype {
            Dtype::F32 => Gradient::F32((0..dim).map(|i| value(i) as f32).collect()),
            Dtype::F64 => Gradient::F64((0..dim).map(value).collect()),
        }
    }

    #[test]
    fn one_thread_gives_the_bits_of_the_store_with_locks() {
        let plain = Wish {
            optimizer: "sgd",
            lr: Some(0.3),
            schedule: "exponential,gamma=0.9",
            weight_decay: None,
            clip_norm: None,
        };
        let decayed = Wish { weight_decay: Some(0.1), ..plain };
        let clipped = Wish { clip_norm: Some(0.7), ..decayed };
        for dtype in [Dtype::F32, Dtype::F64] {
            for wish in [plain, decayed, clipped] {
                for dim in [2, 37, 2 * BLOCK as u64 + 5] {
                    let optimizer = Optimizer::new(&wish).expect("sane");
                    let mut locked = Store::new(&tables(dim), dtype, optimizer, 24_000);
                    let shared = SharedStore::new(&locked, 24_000);
                    for step in 0..5 {
                        let parts = [(gradient(dtype, dim, step), 1.0)];
                        let update = Update {
                            parts: &parts,
                            combine: Combine::Sum,
                            rate_factor: 0.75,
                            compensation: None,
                        };
                        locked.update(&update).expect("finite");
                        let mut again = gradient(dtype, dim, step);
                        shared.update(&mut again, 0.75).expect("finite");
                        shared.count();
                        let copy = shared.snapshot(shared.version());
                        assert_eq!(copy.version, locked.snapshot().version);
                        let what = format!("{dtype}, {dim} elements, {optimizer}, step {step}");
                        assert!(copy.chunks().eq(locked.snapshot().chunks()), "{what}");
                    }
                    let sampled = if dim < 4096 { dim } else { dim.div_ceil(64) };
                    assert_eq!(shared.lost_updates(), LostUpdates::new(5 * sampled, 0));
                }
            }
        }
    }

    #[test]
    fn a_store_over_another_is_counted_and_one_over_what_was_loaded_is_not() {
        let cell = <AtomicU32 as Cell>::new(1.5);
        let loaded = Cell::load(&cell);
        assert!(!Cell::replace(&cell, loaded, 2.5));
        assert!(Cell::replace(&cell, loaded, 3.5), "2.5 was there");
        assert_eq!(Cell::load(&cell), 3.5);
    }

    #[test]
    fn an_overflow_is_refused_before_the_first_store() {
        for dtype in [Dtype::F32, Dtype::F64] {
            let store = zeros(100, dtype);
            let large = |sign: f64| match dtype {
                Dtype::F32 => Gradient::F32(vec![f32::MAX * sign as f32; 100].into()),
                Dtype::F64 => Gradient::F64(vec![f64::MAX * sign; 100].into()),
            };
            store.update(&mut large(1.0), 1.0).expect("just finite");
            let before: Vec<Bytes> = store.snapshot(0).chunks().collect();
            let mut second = match dtype {
                Dtype::F32 => Gradient::F32(vec![1.0; 100].into()),
                Dtype::F64 => Gradient::F64(vec![1.0; 100].into()),
            };
            match &mut second {
                Gradient::F32(values) => values.as_mut_slice()[70] = f32::MAX,
                Gradient::F64(values) => values.as_mut_slice()[70] = f64::MAX,
            }
            assert_eq!(store.update(&mut second, 1.0), Err(70));
            assert!(store.snapshot(0).chunks().eq(before.iter().cloned()));
            assert_eq!(store.lost_updates().checked, 100, "the refused one stored nothing");
            store.update(&mut large(-1.0), 1.0).expect("back to 0");
        }
    }

    #[test]
    fn what_would_overflow_after_the_check_stays_and_is_counted() {
        let cell = <AtomicU64 as Cell>::new(f64::MAX);
        let motion = Motion { lr: 1.0, decay: None };
        assert!(motion.store(&cell, -f64::MAX, true));
        assert!(!motion.store(&cell, -f64::MAX, false), "outside the sample nothing is counted");
        assert_eq!(Cell::load(&cell), f64::MAX);
    }

    /// Steps of -1 from 0 by several threads. The value after n stores is at least -n, and is -n
    /// only if each store replaced what it had loaded: by induction over the order of stores, the
    /// i-th can only be -i if it loaded -(i - 1), which no other but the one before it can have left.
    #[test]
    fn nothing_is_counted_as_lost_exactly_if_nothing_is() {
        const THREADS: u64 = 4;
        const STEPS: u64 = 50_000;
        let dim = 3;
        let store = zeros(dim, Dtype::F64);
        // All at once: a thread that begins when another has ended loses nothing.
        let start = std::sync::Barrier::new(THREADS as usize);
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    start.wait();
                    for _ in 0..STEPS {
                        let mut ones = Gradient::F64(vec![1.0; dim as usize].into());
                        store.update(&mut ones, 1.0).expect("finite");
                    }
                });
            }
        });
        let n = (THREADS * STEPS) as f64;
        let theta = store.snapshot(0).values::<f64>();
        let LostUpdates { checked, lost, lost_rate } = store.lost_updates();
        assert_eq!(checked, THREADS * STEPS * dim);
        assert!(theta.iter().all(|x| *x >= -n && *x <= -1.0), "{theta:?}");
        assert_eq!(lost == 0, theta.iter().all(|x| *x == -n), "{lost} lost, {theta:?}");
        assert_eq!(lost_rate, lost as f64 / checked as f64);
        println!("{lost} of {checked} stores lost something: {theta:?} after {n} steps");
    }
}
