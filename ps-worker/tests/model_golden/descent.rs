//! Gradient descent in a loop: what a server and its workers compute, without either.

use ps_common::job::{Aggregate, Metrics, Mode};
use ps_worker::model::{Batch, Loss, Model, Real, Scratch, l2_share};
use ps_worker::samples::{Samples, Selection};

/// theta from zeros on.
pub(crate) struct Descent<'a, T> {
    model: &'a Model,
    aggregate: Aggregate,
    lr: f64,
    pub(crate) theta: Vec<T>,
    gradient: Vec<T>,
    scratch: Scratch<T>,
}

impl<'a, T: Real + Default> Descent<'a, T> {
    pub(crate) fn new(model: &'a Model, aggregate: Aggregate, lr: f64) -> Self {
        let zeros = vec![T::ZERO; model.dim()];
        let (theta, gradient) = (zeros.clone(), zeros);
        Self { model, aggregate, lr, theta, gradient, scratch: Scratch::default() }
    }

    /// The objective before each of `rounds` rounds and after the last.
    pub(crate) fn run(&mut self, shards: &[Samples<T>], rounds: usize) -> Vec<f64> {
        for shard in shards {
            self.model.check_samples(shard).expect("good data");
        }
        let mut history: Vec<f64> = (0..rounds).map(|_| self.round(shards)).collect();
        let parts = shards.iter().map(|shard| self.model.metrics(&self.theta, shard));
        history.push(Metrics::merge(parts).expect("shards").objective());
        history
    }

    fn round(&mut self, shards: &[Samples<T>]) -> f64 {
        let with_rows = shards.iter().filter(|shard| !shard.is_empty()).count() as u32;
        let n_workers = shards.len() as u32;
        let l2_share = l2_share(Mode::Sync, self.aggregate, n_workers, with_rows);
        let n_samples: usize = shards.iter().map(Samples::len).sum();
        let mut sum = vec![T::ZERO; self.theta.len()];
        let mut parts = vec![];
        for samples in shards {
            let batch = Batch { samples, selection: Selection::All, l2_share };
            let at = self.model.loss_and_gradient(
                &self.theta,
                &batch,
                &mut self.gradient,
                &mut self.scratch,
            );
            let weight = match self.aggregate {
                Aggregate::WeightedMean => samples.len() as f64 / n_samples as f64,
                Aggregate::Mean => 1.0 / f64::from(n_workers),
                Aggregate::Sum => 1.0,
                other => panic!("{other} is no weighted sum"),
            };
            for (sum, &g) in sum.iter_mut().zip(&self.gradient) {
                *sum += T::from_f64(weight) * g;
            }
            let Loss { loss, penalty, n_samples } = at;
            parts.push(Metrics { n_samples, loss, penalty, n_correct: None });
        }
        self.step(&sum);
        Metrics::merge(parts).expect("shards").objective()
    }

    /// One pass over `samples` in batches of `size` rows in file order.
    pub(crate) fn pass(&mut self, samples: &Samples<T>, size: usize) {
        let rows: Vec<u32> = (0..samples.len() as u32).collect();
        for rows in rows.chunks(size) {
            let batch = Batch { samples, selection: Selection::Rows(rows), l2_share: 1.0 };
            let mut gradient = std::mem::take(&mut self.gradient);
            self.model.loss_and_gradient(&self.theta, &batch, &mut gradient, &mut self.scratch);
            self.step(&gradient);
            self.gradient = gradient;
        }
    }

    fn step(&mut self, gradient: &[T]) {
        for (theta, &g) in self.theta.iter_mut().zip(gradient) {
            *theta -= T::from_f64(self.lr) * g;
        }
    }
}

/// Asserts that two lists agree within `allowed`.
pub(crate) fn close(got: &[f64], want: &[f64], allowed: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let apart = (got - want).abs();
        assert!(apart <= allowed, "{what}: entry {i} is {got}, not {want}: {apart:e} apart");
    }
}
