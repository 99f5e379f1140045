//! Theta and the gradients that wait for it: carries out what the core decided. Decides nothing.
//!
//! Shared by the driver behind the network and by the simulator in virtual time.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use ps_common::Dtype;
use ps_common::import::Imported;
use ps_common::job::Combine;
use ps_common::partition::Partition;
use ps_common::report::LostUpdates;
use ps_common::rows::Rows;
use ps_common::tables::Tables;

use crate::core::{CallId, Compensate, Order, Unapplied};
use crate::numeric::Optimizer;
use crate::table::{
    Captured, Certain, Compensation, Gradient, Held, MovedRows, Prepared, Pushed, Restoring,
    SharedStore, Snapshot, Spares, SparseGradient, Store, Update,
};

mod clipped;

pub use clipped::Measured;

/// Elements of gradients from which on an update is long: waking a thread takes as long as some ten
/// thousand of them.
pub(crate) const LONG: usize = 1 << 16;

/// theta, the version that pulls get, and the gradients that are in.
#[derive(Debug)]
pub struct Applier {
    partition: Partition,
    optimizer: Optimizer,
    chunk_bytes: usize,
    start: Option<Imported>,
    /// theta's tables, once they are known.
    tables: OnceLock<Tables>,
    /// By the call that brought it.
    gradients: Mutex<HashMap<CallId, Pushed>>,
    /// Rows that the answer to a call shall bring in place of theta.
    asked: Mutex<HashMap<CallId, Vec<Rows>>>,
    /// Read by whoever copies rows out of theta, written by whoever writes some in place: so that neither
    /// sees half of the other, and no chunk has to be copied for the sake of a reader of a few rows.
    in_place: RwLock<()>,
    spares: Arc<Spares>,
    theta: Theta,
    /// By rank, where gradients are corrected by it.
    kept: Mutex<HashMap<u32, Arc<Snapshot>>>,
}

/// Takes down the gradients of an update with their weights, or says why it cannot.
pub type Recorder<'a> = dyn FnMut(Parts<'_>) -> Result<(), String> + 'a;

/// Gradients of an update with their weights, in order.
#[derive(Debug, Clone, Copy)]
pub enum Parts<'a> {
    /// Of all elements.
    Whole(&'a [(Gradient, f64)]),
    /// Of some rows each.
    Rows(&'a [(SparseGradient, f64)]),
}

/// theta in one of its two forms; without it before the first join.
#[derive(Debug)]
enum Theta {
    /// One version after another: updates take turns.
    Versions { store: Mutex<Option<Box<Store>>>, current: Mutex<Option<Arc<Snapshot>>> },
    /// In hogwild mode: updates go on side by side.
    Shared(OnceLock<Arc<SharedStore>>),
}

/// An update that nothing can go wrong with any more and that is not in force. Dropped, it leaves no trace.
#[derive(Debug)]
pub struct Pending(Way);

#[derive(Debug)]
enum Way {
    /// Computed already, because it might have overflowed.
    Computed(Prepared),
    /// To be computed once it is in force.
    Deferred(Certain, Held),
    /// Computed, and to be written where it lies.
    Rows(MovedRows),
}

/// What an update has made of theta, to be published together with the core's word of it.
#[derive(Debug)]
pub struct Fresh(Made);

#[derive(Debug)]
enum Made {
    /// Another theta.
    Version(Arc<Snapshot>),
    /// Some rows, which theta takes in when they are published.
    Rows(MovedRows),
    /// Without locks: it is in theta already.
    Stored,
}

/// theta as it goes out with the answers of one step of the core.
#[derive(Debug)]
pub(crate) enum View {
    /// As it is.
    Whole(Arc<Snapshot>),
    /// At the version that the core had then; copied when the first answer wants it.
    Moving {
        /// Where from.
        store: Arc<SharedStore>,
        /// Of the copy.
        version: u64,
        /// For the next answers.
        copied: OnceCell<Arc<Snapshot>>,
    },
}

impl View {
    /// theta to send. To be asked outside of locks.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(match self {
            Self::Whole(snapshot) => snapshot,
            Self::Moving { store, version, copied } => {
                copied.get_or_init(|| store.snapshot(*version))
            }
        })
    }
}

impl View {
    /// Some rows of it, copied.
    pub(crate) fn rows(&self, rows: &[Rows]) -> Snapshot {
        match self {
            Self::Whole(snapshot) => snapshot.of_rows(rows),
            Self::Moving { store, version, .. } => store.rows(*version, rows),
        }
    }
}

impl Applier {
    /// Without theta.
    pub fn new(optimizer: Optimizer, chunk_bytes: usize) -> Self {
        Self {
            partition: Partition::WHOLE,
            optimizer,
            chunk_bytes,
            start: None,
            tables: OnceLock::new(),
            gradients: Mutex::default(),
            asked: Mutex::default(),
            in_place: RwLock::default(),
            spares: Arc::default(),
            theta: Theta::Versions { store: Mutex::default(), current: Mutex::default() },
            kept: Mutex::default(),
        }
    }

    /// Lets several updates be under way, without locks (rules H1 to H3).
    #[must_use]
    pub fn without_locks(mut self) -> Self {
        self.theta = Theta::Shared(OnceLock::new());
        self
    }

    /// Has the keys of `partition` alone: all lengths are of them from now on. All keys that are told
    /// stay those of all of theta.
    #[must_use]
    pub fn of_partition(mut self, partition: Partition) -> Self {
        self.partition = partition;
        self
    }

    /// Which of how many servers it is the theta of.
    pub fn partition(&self) -> Partition {
        self.partition
    }

    /// Lets theta start at `start` and not as the tables' initialisers say.
    #[must_use]
    pub fn starting_from(mut self, start: Imported) -> Self {
        self.start = Some(start);
        self
    }

    /// What theta is to start from.
    pub fn start(&self) -> Option<&Imported> {
        self.start.as_ref()
    }

    /// How theta moves.
    pub fn optimizer(&self) -> &Optimizer {
        &self.optimizer
    }

    /// What pulls get now; `None` before theta is made.
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.view().map(|view| view.snapshot())
    }

    /// What pulls get now, without a copy yet.
    pub(crate) fn view(&self) -> Option<View> {
        match &self.theta {
            Theta::Versions { current, .. } => current.lock().clone().map(View::Whole),
            Theta::Shared(store) => store.get().map(|store| View::Moving {
                store: Arc::clone(store),
                version: store.version(),
                copied: OnceCell::new(),
            }),
        }
    }

    /// Elements that are here and type of theta; `None` before it is made.
    pub fn shape(&self) -> Option<(usize, Dtype)> {
        match &self.theta {
            Theta::Versions { current, .. } => current.lock().as_ref().map(|s| (s.dim, s.dtype)),
            Theta::Shared(store) => store.get().map(|store| (store.dim(), store.dtype())),
        }
    }

    /// Whether there is one version of theta after another, each a theta of its own.
    pub fn has_versions(&self) -> bool {
        matches!(self.theta, Theta::Versions { .. })
    }

    /// What updates without locks have cost; `None` where there are locks.
    pub fn lost_updates(&self) -> Option<LostUpdates> {
        match &self.theta {
            Theta::Versions { .. } => None,
            Theta::Shared(store) => store.get().map(|store| store.lost_updates()),
        }
    }

    /// What pulls get from now on.
    pub fn publish(&self, fresh: Fresh) {
        match (&self.theta, fresh.0) {
            (Theta::Versions { current, .. }, Made::Version(snapshot)) => {
                *current.lock() = Some(snapshot);
            }
            (Theta::Versions { current, .. }, Made::Rows(moved)) => {
                // Waits for those who copy rows, and for nobody else: it is they who come often.
                let _alone = self.in_place.write();
                let mut current = current.lock();
                // Nobody holds the chunks of a version that nobody reads: they are written in place.
                *current = None;
                *current = Some(self.with_store(|store| {
                    store.commit_rows(&moved);
                    store.snapshot()
                }));
            }
            (Theta::Shared(store), Made::Stored) => store.get().expect("updated before").count(),
            (_, made) => panic!("{made:?} is not of this theta"),
        }
    }

    /// Keeps a gradient under the name of the call that brought it.
    pub fn hold(&self, call: CallId, gradient: impl Into<Pushed>) {
        self.gradients.lock().insert(call, gradient.into());
    }

    /// Whether the update by the gradient of a call takes so long that another thread may be woken for it.
    /// What is computed once it is in force takes no time before that.
    pub fn is_long(&self, call: CallId) -> bool {
        match self.gradients.lock().get(&call) {
            Some(Pushed::Rows(gradient)) => gradient.n_elements() >= LONG,
            Some(Pushed::Whole(gradient)) => gradient.len() >= LONG && !self.optimizer.is_plain(),
            None => false,
        }
    }

    /// Lets the answer to a call bring these rows in place of theta.
    pub fn ask(&self, call: CallId, rows: Vec<Rows>) {
        self.asked.lock().insert(call, rows);
    }

    /// The rows that a call has asked for, whose answer is due.
    pub fn asked(&self, call: CallId) -> Option<Vec<Rows>> {
        self.asked.lock().remove(&call)
    }

    /// Keeps rows from being written in place while it is held. To be taken together with theta, inside
    /// the core's lock, and let go after it.
    pub(crate) fn reading(&self) -> RwLockReadGuard<'_, ()> {
        self.in_place.read()
    }

    /// theta's tables; `None` before it is made.
    pub fn tables(&self) -> Option<&Tables> {
        self.tables.get()
    }

    /// Memory for the next gradient.
    pub fn empty_gradient(&self, dtype: Dtype) -> Gradient {
        self.spares.empty(dtype)
    }

    /// Gives back the memory of a gradient that was refused on its way.
    pub fn recycle(&self, gradient: Gradient) {
        self.spares.recycle(gradient);
    }

    /// Makes theta.
    ///
    /// # Panics
    /// If what it starts from has other tables or another type.
    pub fn create(&self, tables: &Tables, dtype: Dtype) {
        self.tables.get_or_init(|| tables.clone());
        let (optimizer, chunk_bytes) = (self.optimizer, self.chunk_bytes);
        let mut store = Store::part(tables, self.partition, dtype, optimizer, chunk_bytes);
        if let Some(start) = &self.start {
            store.start_from(start);
        }
        self.restore(store);
    }

    /// Begins to put `version` of theta back, for [`Applier::restore`].
    pub fn restoring(&self, tables: &Tables, dtype: Dtype, version: u64) -> Restoring {
        self.tables.get_or_init(|| tables.clone());
        let part = (tables, self.partition);
        Store::restoring(part, dtype, self.optimizer, self.chunk_bytes, version)
    }

    /// Takes `store` for theta, in place of [`Applier::create`].
    ///
    /// # Panics
    /// If there is a theta already, and no locks.
    pub fn restore(&self, store: Store) {
        match &self.theta {
            Theta::Versions { store: place, current } => {
                *current.lock() = Some(store.snapshot());
                *place.lock() = Some(Box::new(store));
            }
            Theta::Shared(place) => {
                let shared = Arc::new(SharedStore::new(&store, self.chunk_bytes));
                assert!(place.set(shared).is_ok(), "theta is made once");
            }
        }
    }

    /// theta and what its update rule remembers, for a checkpoint; `None` before theta is made. No
    /// update may be under way or wait to be published, except without locks: there theta is copied
    /// at its present version, and updates may be in some of its elements and not in others.
    pub fn capture(&self) -> Option<Captured> {
        match &self.theta {
            Theta::Versions { store, .. } => store.lock().as_ref().map(|store| store.capture()),
            Theta::Shared(store) => {
                store.get().map(|store| Captured::bare(store.snapshot(store.version())))
            }
        }
    }

    /// Keeps theta as a worker has it, for the correction of its next gradient.
    pub fn keep(&self, rank: u32, theta: Arc<Snapshot>) {
        self.kept.lock().insert(rank, theta);
    }

    /// One update by gradients that are held, which are let go. What it gives is to be published
    /// together with the core's word of it. A gradient whose theta is not kept is not corrected.
    /// Without locks several threads may be in here at once.
    ///
    /// # Errors
    /// The first key that would overflow; then theta is as it was.
    ///
    /// # Panics
    /// If a gradient is not held, or there is no theta; without locks if there are several
    /// gradients, or one to be corrected.
    pub fn update(&self, order: &Order) -> Result<Fresh, Unapplied> {
        self.update_recorded(order, &mut |_| Ok(()))
    }

    /// Like [`Applier::update`]; calls `record` with the gradients and their weights once it is
    /// certain that they can be applied, and before anything is stored. Without locks nothing is
    /// recorded.
    ///
    /// # Errors
    /// As [`Applier::update`], and what `record` fails with; then theta is as it was.
    ///
    /// # Panics
    /// As [`Applier::update`].
    pub fn update_recorded(
        &self,
        order: &Order,
        record: &mut Recorder<'_>,
    ) -> Result<Fresh, Unapplied> {
        let Theta::Shared(store) = &self.theta else {
            let pending = self.prepare_recorded(order, record)?;
            return Ok(self.commit(pending));
        };
        let store = store.get().expect("created at the first join");
        assert!(order.compensation.is_none(), "async mode's, which has locks");
        let [(_, 1.0)] = order.parts[..] else {
            panic!("an update without locks is of one gradient as it came: {order:?}")
        };
        let stored = match self.take_rows(order) {
            Some(parts) => {
                let stored = store.update_rows(&parts[0].0, order.rate_factor);
                self.recycle_rows(parts);
                stored
            }
            None => store.update(&mut self.take(order)[0].0, order.rate_factor),
        };
        stored.map(|()| Fresh(Made::Stored)).map_err(overflow)
    }

    /// Makes an update by gradients that are held, which are let go, so far that nothing can go wrong
    /// with it; theta stays as it is. Where several servers move their parts of theta together, each does
    /// this first; then all of them [`Applier::commit`], or all drop what this gave.
    ///
    /// # Errors
    /// As [`Applier::update`].
    ///
    /// # Panics
    /// As [`Applier::update`], and without locks.
    pub fn prepare(&self, order: &Order) -> Result<Pending, Unapplied> {
        self.prepare_recorded(order, &mut |_| Ok(()))
    }

    /// Puts an update in force. What it gives is to be published together with the core's word of it.
    ///
    /// # Panics
    /// If `pending` is not what the last [`Applier::prepare`] gave.
    pub fn commit(&self, pending: Pending) -> Fresh {
        Fresh(match pending.0 {
            Way::Rows(moved) => Made::Rows(moved),
            Way::Computed(prepared) => self.with_store(|store| {
                store.commit(prepared);
                Made::Version(store.snapshot())
            }),
            Way::Deferred(certain, gradients) => self.with_store(|store| {
                store.defer(certain, gradients);
                Made::Version(store.snapshot())
            }),
        })
    }

    /// With theta in its one version, under its lock.
    fn with_store<R>(&self, then: impl FnOnce(&mut Store) -> R) -> R {
        match &self.theta {
            Theta::Versions { store, .. } => {
                then(store.lock().as_mut().expect("created at the first join"))
            }
            Theta::Shared(_) => panic!("without locks an update is prepared and stored in one"),
        }
    }

    /// The gradients of an order, which are its own: nobody else asks for them. Those of rows with their
    /// zeros.
    fn take(&self, order: &Order) -> Held {
        let take = |call| {
            let pushed = self.gradients.lock().remove(call);
            match pushed.expect("pushed before") {
                Pushed::Whole(gradient) => gradient,
                Pushed::Rows(rows) => rows.filled(self.shape().expect("pushed to it").0),
            }
        };
        let parts = order.parts.iter().map(|(call, weight)| (take(call), *weight)).collect();
        Held::new(parts, &self.spares)
    }

    /// The gradients of an order, if all of them are of rows and no other rows have to be looked at.
    fn take_rows(&self, order: &Order) -> Option<Vec<(SparseGradient, f64)>> {
        let is_sum = order.combine == Combine::Sum && order.compensation.is_none();
        if !is_sum || order.parts.is_empty() || !self.optimizer.leaves_zeros() {
            return None;
        }
        let mut gradients = self.gradients.lock();
        let is_rows = |(call, _): &(CallId, f64)| matches!(gradients[call], Pushed::Rows(_));
        if !order.parts.iter().all(is_rows) {
            return None;
        }
        let mut take = |call| match gradients.remove(call) {
            Some(Pushed::Rows(rows)) => rows,
            other => unreachable!("just seen to be of rows: {other:?}"),
        };
        Some(order.parts.iter().map(|(call, weight)| (take(call), *weight)).collect())
    }

    /// Makes an update of rows, recorded.
    fn prepare_rows(
        &self,
        parts: Vec<(SparseGradient, f64)>,
        rate_factor: f64,
        record: &mut Recorder<'_>,
    ) -> Result<Pending, Unapplied> {
        let moved = self.with_store(|store| store.prepare_rows(&parts, rate_factor));
        let recorded = moved.map_err(overflow).and_then(|moved| {
            record(Parts::Rows(&parts)).map_err(|what| Unapplied::NotWritten { what })?;
            Ok(Pending(Way::Rows(moved)))
        });
        self.recycle_rows(parts);
        recorded
    }

    fn recycle_rows(&self, parts: Vec<(SparseGradient, f64)>) {
        parts.into_iter().for_each(|(part, _)| self.recycle(Pushed::from(part).into_values()));
    }

    fn prepare_recorded(
        &self,
        order: &Order,
        record: &mut Recorder<'_>,
    ) -> Result<Pending, Unapplied> {
        if let Some(parts) = self.take_rows(order) {
            return self.prepare_rows(parts, order.rate_factor, record);
        }
        let gradients = self.take(order);
        let pulled = order.compensation.and_then(|wanted| self.kept(wanted));
        let update = Update {
            parts: &gradients,
            combine: order.combine,
            rate_factor: order.rate_factor,
            compensation: pulled
                .as_ref()
                .map(|(lambda, pulled)| Compensation { lambda: *lambda, pulled }),
        };
        let safe = self.with_store(|store| match store.certain(&update) {
            Some(certain) => Ok(Ok(certain)),
            None => store.prepare(&update).map(Err).map_err(overflow),
        })?;
        record(Parts::Whole(&gradients)).map_err(|what| Unapplied::NotWritten { what })?;
        Ok(Pending(match safe {
            Ok(certain) => Way::Deferred(certain, gradients),
            Err(prepared) => Way::Computed(prepared),
        }))
    }

    /// theta that a gradient was computed at, if it is the one that its worker was given last.
    fn kept(&self, wanted: Compensate) -> Option<(f64, Arc<Snapshot>)> {
        let kept = self.kept.lock();
        let pulled = kept.get(&wanted.rank).filter(|s| s.version == wanted.version_pulled)?;
        Some((wanted.lambda, Arc::clone(pulled)))
    }

    /// Lets a gradient go unused.
    pub fn forget(&self, call: CallId) {
        let forgotten = self.gradients.lock().remove(&call);
        if let Some(gradient) = forgotten {
            self.recycle(gradient.into_values());
        }
    }
}

fn overflow(key: usize) -> Unapplied {
    Unapplied::Overflow { key: key as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ps_common::tables::Table;

    #[test]
    fn a_gradient_is_corrected_by_the_theta_that_its_worker_was_given() {
        let applier = Applier::new(Optimizer::sgd(1.0), 64);
        let tables = Tables::new(vec![Table::zeros("w", &[1], true)]).expect("valid");
        applier.create(&tables, Dtype::F64);
        let wanted = |rank, version_pulled| Compensate { lambda: 0.5, rank, version_pulled };
        assert!(applier.kept(wanted(1, 0)).is_none(), "nothing was given");
        applier.keep(1, applier.snapshot().expect("created"));
        let (lambda, pulled) = applier.kept(wanted(1, 0)).expect("given");
        assert_eq!((lambda, pulled.version), (0.5, 0));
        assert!(applier.kept(wanted(0, 0)).is_none(), "another rank's");
        assert!(applier.kept(wanted(1, 1)).is_none(), "another version");

        applier.hold(CallId(1), Gradient::F64(vec![1.0].into()));
        let newer = applier.update(&Order::alone(CallId(1))).expect("finite");
        applier.publish(newer);
        applier.keep(1, applier.snapshot().expect("there"));
        assert!(applier.kept(wanted(1, 0)).is_none(), "the newer one has taken its place");
        assert_eq!(applier.kept(wanted(1, 1)).expect("given").1.values::<f64>(), [-1.0]);
    }

    #[test]
    fn an_update_that_is_prepared_is_seen_once_it_is_in_force_or_never() {
        let applier =
            Applier::new(Optimizer::sgd(1.0), 64).of_partition(Partition { index: 1, count: 2 });
        let tables = Tables::new(vec![Table::zeros("w", &[3], true)]).expect("valid");
        applier.create(&tables, Dtype::F64);
        assert_eq!(applier.shape(), Some((1, Dtype::F64)), "the last key of three");
        let prepare = |call, value| {
            applier.hold(CallId(call), Gradient::F64(vec![value].into()));
            applier.prepare(&Order::alone(CallId(call)))
        };
        let seen = || {
            let snapshot = applier.snapshot().expect("created");
            (snapshot.version, snapshot.values::<f64>())
        };
        drop(prepare(1, 1.0).expect("finite"));
        assert_eq!(seen(), (0, vec![0.0]), "dropped");
        let pending = prepare(2, 2.0).expect("finite");
        assert_eq!(seen(), (0, vec![0.0]), "not in force");
        applier.publish(applier.commit(pending));
        assert_eq!(seen(), (1, vec![-2.0]));
        let pending = prepare(3, f64::MAX).expect("finite");
        applier.publish(applier.commit(pending));
        let overflow = prepare(4, f64::MAX).expect_err("twice the largest");
        assert_eq!(overflow, Unapplied::Overflow { key: 2 });
    }

    /// Applier of one table of 3 elements, and another that is put back from what it captures.
    fn put_back(without_locks: bool) -> (Applier, Applier) {
        let applier = |chunk_bytes| {
            let applier = Applier::new(Optimizer::sgd(0.5), chunk_bytes);
            if without_locks { applier.without_locks() } else { applier }
        };
        let (first, second) = (applier(64), applier(8));
        assert!(first.capture().is_none(), "no theta yet");
        let tables = Tables::new(vec![Table::zeros("w", &[3], true)]).expect("valid");
        first.create(&tables, Dtype::F64);
        for call in [1, 2] {
            push(&first, call);
        }
        let captured = first.capture().expect("created");
        let mut restoring = second.restoring(&tables, Dtype::F64, captured.theta().version);
        for chunk in captured.theta().chunks() {
            restoring.append("theta", &chunk).expect("fits");
        }
        second.restore(restoring.finish().expect("whole"));
        (first, second)
    }

    fn push(applier: &Applier, call: u64) {
        applier.hold(CallId(call), Gradient::F64(vec![1.0, call as f64, -1.0].into()));
        let fresh = applier.update(&Order::alone(CallId(call))).expect("finite");
        applier.publish(fresh);
    }

    #[test]
    fn a_restored_theta_goes_on_where_it_was_with_locks_and_without() {
        for without_locks in [false, true] {
            let (first, second) = put_back(without_locks);
            for applier in [&first, &second] {
                assert_eq!(applier.shape(), Some((3, Dtype::F64)));
                push(applier, 3);
            }
            let [first, second] = [first, second].map(|applier| applier.snapshot().expect("made"));
            assert_eq!((first.version, second.version), (3, 3));
            assert_eq!((first.n_chunks(), second.n_chunks()), (1, 3));
            assert_eq!(second.values::<f64>(), [-1.5, -3.0, 1.5]);
            assert_eq!(first.sha256(), second.sha256());
        }
    }
}
