//! Models against the golden runs: plain gradient descent here, gradients from the crate.
//!
//! What each run is stands in the `spec` of its file in the workspace's `tests/golden`.

// A file that cannot be read ends the test, and the panic says which call; a skipped test says so.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod data;
mod descent;

use std::ops::Range;

use ps_common::job::Aggregate;
use ps_worker::model::{Model, ModelArgs};
use ps_worker::samples::Samples;
use serde_json::Value;

use data::{golden, number, numbers, rows_of};
use descent::{Descent, close};

fn model(name: &str, l2: f64, n_features: usize, bias: bool) -> Model {
    let args = ModelArgs { model: name.to_owned(), l2, bias: Some(bias) };
    let spec = args.check().expect("valid flags");
    Model::new(&spec, n_features, 0).expect("a valid model")
}

/// Shards of consecutive rows as numpy's `array_split` deals them.
fn dealt(n: usize, n_shards: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n_shards).scan(0, move |start, k| {
        let end = *start + n / n_shards + usize::from(k < n % n_shards);
        Some(std::mem::replace(start, end)..end)
    })
}

fn shards<T: ps_worker::model::Real>(samples: &Samples<T>, n_shards: usize) -> Vec<Samples<T>> {
    let deal = |rows: Range<usize>| rows_of(samples, &rows.collect::<Vec<_>>());
    dealt(samples.len(), n_shards).map(deal).collect()
}

/// One shard, four, and more shards than blocks are long with some empty ones, all the same run.
fn on_several_shards(model: &Model, samples: &Samples<f64>, lr: f64, want: &[f64]) -> Vec<f64> {
    let mut theta = vec![];
    for n_shards in [1, 4, samples.len() + 3] {
        let shards = shards(samples, n_shards);
        let mut descent = Descent::new(model, Aggregate::WeightedMean, lr);
        let history = descent.run(&shards, want.len() - 1);
        close(&history, want, 1e-9, &format!("{n_shards} shards"));
        theta = descent.theta;
    }
    theta
}

#[test]
fn the_reference_run_on_four_shards() {
    let run = golden("sync_k4.json");
    let (samples, order) = data::reference();
    let model = model("linear", 0.0, 10, false);
    assert_eq!(model.dim(), 10, "theta0 is zeros(10)");
    let shards: Vec<_> = dealt(1000, 4).map(|rows| rows_of(&samples, &order[rows])).collect();
    let want = numbers(&run["loss_history"]);
    let mut descent = Descent::new(&model, Aggregate::Mean, 0.01);
    close(&descent.run(&shards, 100), &want, 1e-9, "losses");
    close(&descent.theta, &numbers(&run["theta_final"]), 1e-10, "theta");

    let shards: Vec<Samples<f32>> = shards.iter().map(data::to_f32).collect();
    let mut descent = Descent::new(&model, Aggregate::Mean, 0.01);
    let allowed = 10.0 * number(&run["float32_run_max_abs_loss_dev"]);
    close(&descent.run(&shards, 100), &want, allowed, "losses in f32");
}

#[test]
fn diabetes_whole_and_on_three_shards() {
    let run = golden("diabetes_least_squares.json");
    let samples = data::diabetes();
    let model = model("linear", 0.0, 10, true);
    let want = numbers(&run["gd_loss_first_101"]);
    // Losses are of order 1e4.
    let mut descent = Descent::new(&model, Aggregate::WeightedMean, 0.1);
    let whole = std::slice::from_ref(&samples);
    close(&descent.run(whole, 100), &want, 1e-8, "whole");
    close(&descent.theta, &numbers(&run["gd_theta_at"]["100"]), 1e-9, "theta at 100");
    let last = descent.run(whole, 900);
    let want = number(&run["gd_loss_at"]["1000"]);
    close(&last[900..], &[want], 1e-8, "round 1000");

    let run = &run["gd_3_shards_array_split_plain_mean"];
    let mut descent = Descent::new(&model, Aggregate::Mean, 0.1);
    let history = descent.run(&shards(&samples, 3), 100);
    close(&history, &numbers(&run["loss_first_101"]), 1e-8, "three shards");
    close(&descent.theta, &numbers(&run["theta_at_100"]), 1e-9, "theta of three shards");
}

#[test]
fn iris_softmax() {
    let run = &golden("iris_softmax.json")["full_batch_gd"];
    let samples = data::iris();
    let model = model("softmax,classes=3", 0.0, 4, true);
    let want = numbers(&run["loss_history"]);
    assert!((want[100] - 0.173331664216).abs() < 1e-12);
    let theta = on_several_shards(&model, &samples, 0.5, &want);
    close(&theta[..12], &numbers(&run["W_final"]), 1e-9, "W");
    close(&theta[12..], &numbers(&run["b_final"]), 1e-9, "b");
    let accuracy = model.metrics(&theta, &samples).accuracy().expect("a classifier");
    assert_eq!(accuracy, number(&run["train_accuracy"]));
}

#[test]
fn agaricus_logistic_sparse_and_dense() {
    let run = golden("agaricus_logistic.json");
    let model = model("logistic", 1e-3, 126, true);
    let want = numbers(&run["gd_objective_history"]);
    assert!((want[50] - 0.119305319752).abs() < 1e-12);
    let (train, test) = (data::agaricus("train"), data::agaricus("test"));
    let theta = on_several_shards(&model, &train, 0.5, &want);
    close(&theta, &numbers(&run["gd_final_w"]), 1e-9, "w");
    let at_train = model.metrics(&theta, &train);
    let at_test = model.metrics(&theta, &test);
    assert_eq!(at_train.accuracy(), Some(number(&run["gd_final_train_accuracy"])));
    assert_eq!(at_test.accuracy(), Some(number(&run["gd_final_test_accuracy"])));
    assert!((at_test.loss - number(&run["gd_final_test_logloss"])).abs() < 1e-9);
    assert!((at_train.objective() - want[50]).abs() < 1e-9);

    let mut descent = Descent::new(&model, Aggregate::WeightedMean, 0.5);
    close(&descent.run(&[data::to_dense(&train)], 50), &want, 1e-9, "dense");
    let signed = |y: &f64| 2.0 * y - 1.0;
    let signed = Samples { targets: train.targets.iter().map(signed).collect(), ..train };
    let mut descent = Descent::new(&model, Aggregate::WeightedMean, 0.5);
    close(&descent.run(&[signed], 50), &want, 1e-9, "targets -1 and +1");

    let optimum = numbers(&run["optimum"]["w"]);
    let at_test = model.metrics(&optimum, &test);
    assert_eq!(at_test.accuracy(), Some(1.0));
    assert!(
        (at_test.penalty - 5e-4 * number(&run["optimum"]["l2_norm_of_w"]).powi(2)).abs() < 1e-12
    );
}

/// A plain mean or a sum scales the data term, never the L2 term: with E equal shards and K - E
/// empty ones it is the weighted run at another rate and strength.
#[test]
fn mean_and_sum_have_the_l2_term_once() {
    let of_l2 = |l2| model("logistic", l2, 126, true);
    let (lr, l2) = (0.1, 0.02);
    let mut shards = shards(&data::agaricus("train"), 3);
    assert!(shards.iter().all(|shard| shard.len() == 2171));
    shards.push(rows_of(&shards[0], &[]));
    for (aggregate, scale) in [(Aggregate::Mean, 0.75), (Aggregate::Sum, 3.0)] {
        let (model, same_model) = (of_l2(l2), of_l2(l2 / scale));
        let mut descent = Descent::new(&model, aggregate, lr);
        descent.run(&shards, 20);
        let mut same = Descent::new(&same_model, Aggregate::WeightedMean, lr * scale);
        same.run(&shards, 20);
        close(&descent.theta, &same.theta, 1e-12, &aggregate.to_string());
    }
}

#[test]
fn fashion_mnist_softmax_in_both_precisions() {
    let Some((train, test)) = data::fashion_mnist() else { return };
    let file = golden("fmnist_softmax.json");
    let model = model("softmax,classes=10", 0.0, 784, true);
    let train_f32 = data::to_f32(&train);
    for (name, lr) in [("full_batch_gd", 0.02), ("full_batch_gd_lr0.1", 0.1)] {
        let run = &file[name];
        let want = numbers(&run["loss_history"]);
        let mut descent = Descent::new(&model, Aggregate::WeightedMean, lr);
        close(&descent.run(std::slice::from_ref(&train), 50), &want, 1e-9, name);
        check_final(&model, &descent.theta, run, &test);
        if name == "full_batch_gd" {
            let w50 = data::npy_f64("fmnist_softmax_W50.npy");
            close(&descent.theta[..7840], &w50, 1e-10, "W");
        }
        let mut descent = Descent::new(&model, Aggregate::WeightedMean, lr);
        let allowed = 10.0 * number(&run["float32_run_max_abs_loss_dev"]);
        let history = descent.run(std::slice::from_ref(&train_f32), 50);
        close(&history, &want, allowed, &format!("{name} in f32"));
    }
    let run = &file["full_batch_gd_7_shards_plain_mean"];
    let mut descent = Descent::new(&model, Aggregate::Mean, 0.02);
    let history = descent.run(&shards(&train, 7), 50);
    close(&history, &numbers(&run["loss_history"]), 1e-9, "seven shards");
}

fn check_final(model: &Model, theta: &[f64], run: &Value, test: &Samples<f64>) {
    close(&theta[7840..], &numbers(&run["final"]["b"]), 1e-9, "b");
    let at_test = model.metrics(theta, test);
    assert_eq!(at_test.accuracy(), Some(number(&run["test_accuracy"])));
    assert!((at_test.loss - number(&run["test_loss"])).abs() < 1e-9);
}

#[test]
fn fashion_mnist_softmax_in_mini_batches() {
    let Some((train, test)) = data::fashion_mnist() else { return };
    let run = &golden("fmnist_softmax.json")["minibatch_sgd_first6000"];
    let model = model("softmax,classes=10", 0.0, 784, true);
    let mut descent = Descent::new(&model, Aggregate::WeightedMean, number(&run["lr"]));
    let mut history = vec![];
    for _ in 0..10 {
        descent.pass(&train, 50);
        history.push(model.metrics(&descent.theta, &train).loss);
    }
    close(&history, &numbers(&run["train_loss_after_each_epoch"]), 1e-9, "passes");
    check_final(&model, &descent.theta, run, &test);
}
