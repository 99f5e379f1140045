//! Theta and the gradients that wait for it: carries out what the core decided. Decides nothing.
//!
//! Shared by the driver behind the network and by the simulator in virtual time.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use ps_common::Dtype;
use ps_common::import::Imported;
use ps_common::tables::Tables;

use crate::core::{CallId, Compensate, Order};
use crate::numeric::Optimizer;
use crate::table::{Compensation, Gradient, Snapshot, Store, Update};

/// Spare gradients that are kept for their memory.
const SPARES_MAX: usize = 8;

/// theta, the version that pulls get, and the gradients that are in.
#[derive(Debug)]
pub struct Applier {
    optimizer: Optimizer,
    chunk_bytes: usize,
    start: Option<Imported>,
    gradients: Mutex<Gradients>,
    store: Mutex<Option<Store>>,
    current: Mutex<Option<Arc<Snapshot>>>,
    /// By rank, where gradients are corrected by it.
    kept: Mutex<HashMap<u32, Arc<Snapshot>>>,
}

#[derive(Debug, Default)]
struct Gradients {
    held: HashMap<CallId, Gradient>,
    spares: Vec<Gradient>,
}

impl Applier {
    /// Without theta.
    pub fn new(optimizer: Optimizer, chunk_bytes: usize) -> Self {
        Self {
            optimizer,
            chunk_bytes,
            start: None,
            gradients: Mutex::default(),
            store: Mutex::default(),
            current: Mutex::default(),
            kept: Mutex::default(),
        }
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
        self.current.lock().clone()
    }

    /// What pulls get from now on.
    pub fn publish(&self, snapshot: Arc<Snapshot>) {
        *self.current.lock() = Some(snapshot);
    }

    /// Keeps a gradient under the name of the call that brought it.
    pub fn hold(&self, call: CallId, gradient: Gradient) {
        self.gradients.lock().held.insert(call, gradient);
    }

    /// Memory for the next gradient.
    pub fn empty_gradient(&self, dtype: Dtype) -> Gradient {
        let spare = self.gradients.lock().spares.pop();
        Gradient::empty(dtype, spare)
    }

    /// Gives back the memory of a gradient that was refused on its way.
    pub fn recycle(&self, gradient: Gradient) {
        self.gradients.lock().recycle(gradient);
    }

    /// Makes theta.
    ///
    /// # Panics
    /// If what it starts from has other tables or another type.
    pub fn create(&self, tables: &Tables, dtype: Dtype) {
        let mut store = Store::new(tables, dtype, self.optimizer, self.chunk_bytes);
        if let Some(start) = &self.start {
            store.start_from(start);
        }
        *self.current.lock() = Some(store.snapshot());
        *self.store.lock() = Some(store);
    }

    /// Keeps theta as a worker has it, for the correction of its next gradient.
    pub fn keep(&self, rank: u32, theta: Arc<Snapshot>) {
        self.kept.lock().insert(rank, theta);
    }

    /// One update by gradients that are held, which are let go. What it gives is to be published
    /// together with the core's word of it. A gradient whose theta is not kept is not corrected.
    ///
    /// # Errors
    /// The first key that would overflow; then theta is as it was.
    ///
    /// # Panics
    /// If a gradient is not held, or there is no theta.
    pub fn update(&self, order: &Order) -> Result<Arc<Snapshot>, u64> {
        let mut gradients = self.gradients.lock();
        let parts: Vec<(Gradient, f64)> = order
            .parts
            .iter()
            .map(|(call, weight)| (gradients.held.remove(call).expect("pushed before"), *weight))
            .collect();
        drop(gradients);
        let pulled = order.compensation.and_then(|wanted| self.kept(wanted));
        let mut store = self.store.lock();
        let store = store.as_mut().expect("created at the first join");
        let update = Update {
            parts: &parts,
            combine: order.combine,
            rate_factor: order.rate_factor,
            compensation: pulled
                .as_ref()
                .map(|(lambda, pulled)| Compensation { lambda: *lambda, pulled }),
        };
        let result = store.update(&update).map(|()| store.snapshot());
        let mut gradients = self.gradients.lock();
        for (gradient, _) in parts {
            gradients.recycle(gradient);
        }
        result.map_err(|key| key as u64)
    }

    /// theta that a gradient was computed at, if it is the one that its worker was given last.
    fn kept(&self, wanted: Compensate) -> Option<(f64, Arc<Snapshot>)> {
        let kept = self.kept.lock();
        let pulled = kept.get(&wanted.rank).filter(|s| s.version == wanted.version_pulled)?;
        Some((wanted.lambda, Arc::clone(pulled)))
    }

    /// Lets a gradient go unused.
    pub fn forget(&self, call: CallId) {
        let mut gradients = self.gradients.lock();
        if let Some(gradient) = gradients.held.remove(&call) {
            gradients.recycle(gradient);
        }
    }
}

impl Gradients {
    fn recycle(&mut self, gradient: Gradient) {
        if self.spares.len() < SPARES_MAX {
            self.spares.push(gradient);
        }
    }
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

        applier.hold(CallId(1), Gradient::F64(vec![1.0]));
        let newer = applier.update(&Order::alone(CallId(1))).expect("finite");
        applier.publish(newer);
        applier.keep(1, applier.snapshot().expect("there"));
        assert!(applier.kept(wanted(1, 0)).is_none(), "the newer one has taken its place");
        assert_eq!(applier.kept(wanted(1, 1)).expect("given").1.values::<f64>(), [-1.0]);
    }
}
