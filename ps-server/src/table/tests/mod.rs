//! Updates as a whole, through the store.

mod capture;
pub(super) mod deferred;
mod golden;
mod norm;
mod parts;
mod sparse;
mod threads;
mod updates;

use ps_common::Dtype;
use ps_common::job::Combine;
use ps_common::tables::{Table, Tables};

use super::{Gradient, Store, Update};
use crate::numeric::{Optimizer, Wish};

/// One of each rule, with and without options.
const RULES: [&str; 8] = [
    "sgd",
    "momentum",
    "nesterov,mu=0.5",
    "adagrad",
    "rmsprop,rho=0.9",
    "adam",
    "adamw,beta2=0.9",
    "ftrl,beta=0.5,l1=0.01,l2=1",
];

pub(super) fn wish(optimizer: &str) -> Wish<'_> {
    Wish { optimizer, lr: None, schedule: "constant", weight_decay: None, clip_norm: None }
}

fn optimizer(wish: &Wish<'_>) -> Optimizer {
    Optimizer::new(wish).expect("sane")
}

/// A penalised table of `n_weights` and one of `n_bias` that is not.
fn store(wish: &Wish<'_>, (n_weights, n_bias): (u64, u64), dtype: Dtype, chunk: usize) -> Store {
    let tables = [(n_weights, true), (n_bias, false)]
        .into_iter()
        .filter(|(n, _)| *n > 0)
        .map(|(n, penalized)| Table::zeros(if penalized { "W" } else { "b" }, &[n], penalized))
        .collect();
    let tables = Tables::new(tables).expect("sane");
    Store::new(&tables, dtype, optimizer(wish), chunk)
}

fn sum(parts: &[(Gradient, f64)]) -> Update<'_> {
    Update { parts, combine: Combine::Sum, rate_factor: 1.0, compensation: None }
}

fn push(store: &mut Store, gradient: Vec<f64>) -> Result<(), usize> {
    store.update(&sum(&[(Gradient::F64(gradient.into()), 1.0)]))
}

#[track_caller]
fn assert_close(got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    for (key, (got, want)) in got.iter().zip(want).enumerate() {
        let near = (got - want).abs() <= tolerance * want.abs().max(1.0);
        assert!(near, "key {key}: {got}, not {want}");
    }
}
