//! Models that are no linear maps, and local steps, through whole jobs of real processes.

use std::fmt::Write;

use ps_tests::{data, local, losses};
use serde_json::Value;

fn final_loss(report: &Value) -> f64 {
    report["final"]["loss"].as_f64().expect("a loss")
}

fn file(folder: &tempfile::TempDir, name: &str, text: &str) -> String {
    let path = folder.path().join(name);
    std::fs::write(&path, text).expect("written");
    path.to_string_lossy().into_owned()
}

#[test]
fn an_mlp_learns_exclusive_or_and_a_linear_map_does_not() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let xor = file(&folder, "xor.csv", "a,b,y\n0,0,0\n0,1,1\n1,0,1\n1,1,0\n");
    let run = |more: &[&str]| local(&[&["--data", &xor, "--workers=2", "--lr=0.5"], more].concat());
    let linear = run(&["--model=softmax", "--bias", "--rounds=100"]);
    assert!(final_loss(&linear) > 0.693, "{}", linear["final"]);
    let mlp = ["--model=mlp,hidden=8,activation=tanh", "--rounds=600"];
    let report = run(&mlp);
    assert_eq!(report["final"]["train_accuracy"], 1.0, "{}", report["final"]);
    assert_eq!(report["model"], "mlp,hidden=8,activation=tanh,loss=softmax,classes=2");
    assert_eq!(run(&mlp)["final"], report["final"], "a start at random is the same every time");
    let other = run(&[&mlp[..], &["--seed=1"]].concat());
    assert_ne!(losses(&other)[0], losses(&report)[0], "and another one with another seed");
}

#[test]
fn an_fm_learns_products_of_features_and_a_linear_map_does_not() {
    let mut rows = String::new();
    for i in 0..81 {
        let x: Vec<i32> = (0..4).map(|k| i / 3i32.pow(k) % 3 - 1).collect();
        let y = f64::from(x[0] * x[1] - 2 * x[2] * x[3] + x[0]) + 0.5;
        writeln!(rows, "{},{},{},{},{y}", x[0], x[1], x[2], x[3]).expect("to a string");
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pairs = file(&folder, "pairs.csv", &rows);
    let run = |model: &str| {
        let common = ["--workers=3", "--lr=0.2", "--rounds=200", "--bias", "--seed=1"];
        final_loss(&local(&[&common[..], &["--data", &pairs, "--model", model]].concat()))
    };
    // What a linear map cannot explain is half the variance of the products, (4/9 + 16/9) / 2.
    assert!((run("linear") - 10.0 / 9.0).abs() < 1e-3);
    let loss = run("fm,factors=4,init-std=0.1");
    assert!(loss < 1e-6, "{loss}");
}

#[test]
fn an_fm_takes_sparse_rows() {
    let train = data("agaricus/agaricus.txt.train");
    let report = local(&[
        "--data",
        &train,
        "--model=fm,factors=4,loss=logistic",
        "--l2=1e-4",
        "--lr=0.5",
        "--rounds=30",
    ]);
    let accuracy = report["final"]["train_accuracy"].as_f64().expect("a classifier");
    assert!(accuracy > 0.97, "{}", report["final"]);
    assert_eq!(report["dim"], 126 + 4 * 126 + 1);
}
