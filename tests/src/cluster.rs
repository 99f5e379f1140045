//! A job through `psctl local`, and what it reported.

use std::path::Path;

use serde_json::Value;

use crate::{Process, project_root};

/// Elements of the theta of `local_net`.
const NET_DIM: u64 = 13_510;

/// Runs `psctl local --json` with these arguments to its end and gives the report.
///
/// # Panics
/// If it does not exit 0 with a report as the last line.
pub fn local(arguments: &[&str]) -> Value {
    let mut all = vec!["local", "--json", "--quiet"];
    all.extend_from_slice(arguments);
    let output = Process::start("psctl", &all).expect_exit(0);
    let line = output.lines().rfind(|line| line.starts_with('{')).unwrap_or_default();
    serde_json::from_str(line).unwrap_or_else(|e| panic!("no report ({e}) in:\n{output}"))
}

/// Runs a job whose theta has 13,510 elements and whose loss falls, as [`local`] does.
pub fn local_net(more: &[&str]) -> Value {
    const JOB: [&str; 6] = [
        "--data=clusters",
        "--take=300",
        "--model=mlp,hidden=500",
        "--rounds=30",
        "--workers=2",
        "--lr=0.05",
    ];
    let report = local(&[&JOB[..], more].concat());
    assert_eq!(report["dim"], NET_DIM);
    report
}

/// A golden file of `tests/golden`.
pub fn golden(name: &str) -> Value {
    let path = project_root().join("tests/golden").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path:?}: {e}"))
}

/// A file of `tests/data`, as an argument.
pub fn data(name: &str) -> String {
    let path = project_root().join("tests/data").join(name);
    assert!(Path::new(&path).exists(), "{path:?} is part of the repository");
    path.to_string_lossy().into_owned()
}

/// A list of numbers.
pub fn numbers(value: &Value) -> Vec<f64> {
    let list = value.as_array().unwrap_or_else(|| panic!("not a list: {value}"));
    list.iter().map(|x| x.as_f64().expect("a number")).collect()
}

/// The losses of a report's history.
pub fn losses(report: &Value) -> Vec<f64> {
    let history = report["history"].as_array().expect("a history");
    history.iter().map(|entry| entry["loss"].as_f64().expect("a loss")).collect()
}

/// The loss at a report's end.
pub fn final_loss(report: &Value) -> f64 {
    report["final"]["loss"].as_f64().expect("a loss")
}

/// The hash of a report's theta.
pub fn theta_sha256(report: &Value) -> &str {
    report["final"]["theta_sha256"].as_str().expect("a hash")
}

/// Asserts that two histories are equal to `tolerance`, entry by entry.
#[track_caller]
pub fn assert_close(got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "entries");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= tolerance, "entry {i} is {got}, expected {want}");
    }
}
