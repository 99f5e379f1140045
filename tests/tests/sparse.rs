//! Rows of theta in place of all of it (`--sparse`): the same training, fewer bytes, what is refused.

use std::collections::BTreeMap;
use std::io::Write;

use ps_tests::{Process, data, final_loss, local, losses, theta_sha256};
use serde_json::Value;
use tempfile::NamedTempFile;

/// Bytes of a count of `workers` in the report, over all of them.
fn bytes(report: &Value, count: &str) -> f64 {
    let workers = report["workers"].as_array().expect("a list");
    workers.iter().map(|worker| worker[count].as_f64().expect("a number")).sum()
}

/// A job over these rows, without and with `--sparse`.
fn both(job: &[&str]) -> (Value, Value) {
    (local(job), local(&[job, &["--sparse"]].concat()))
}

/// The losses of a report's history, by version of theta.
fn by_version(report: &Value) -> BTreeMap<u64, f64> {
    let history = report["history"].as_array().expect("a history").iter();
    let versions = history.map(|entry| entry["version"].as_u64().expect("a version"));
    versions.zip(losses(report)).collect()
}

/// The final theta and every loss of both, which are the same to the last bit.
#[track_caller]
fn assert_same(job: &[&str]) {
    let (dense, sparse) = both(job);
    assert_eq!(theta_sha256(&sparse), theta_sha256(&dense), "{job:?}");
    assert_eq!(final_loss(&sparse), final_loss(&dense), "{job:?}");
    // An evaluator measures the versions that it meets; both meet the first and the last.
    let (dense, sparse) = (by_version(&dense), by_version(&sparse));
    let of_both: Vec<_> = sparse.iter().filter(|(v, _)| dense.contains_key(v)).collect();
    assert!(of_both.len() >= 2, "{job:?}: {sparse:?}, {dense:?}");
    assert!(of_both.iter().all(|(v, loss)| dense[v] == **loss), "{job:?}: {sparse:?}, {dense:?}");
    let full = !job.iter().any(|flag| flag.starts_with("--batch="));
    assert!(!full || sparse.len() == dense.len() && of_both.len() == dense.len(), "{job:?}");
    assert!(of_both[of_both.len() - 1].1 < of_both[0].1, "{job:?} learns: {sparse:?}");
}

#[test]
fn a_synchronous_run_ends_in_the_same_bits() {
    let file = format!("--data={}", data("agaricus/agaricus.txt.train"));
    let common = [file.as_str(), "--take=300", "--workers=3", "--rounds=12"];
    for more in [
        &["--model=logistic", "--bias", "--lr=0.2"][..],
        &["--model=softmax", "--batch=7", "--lr=0.2"],
        &["--model=fm,factors=3,loss=logistic", "--dtype=f64", "--lr=0.2"],
        &["--model=mlp,hidden=5", "--batch=16", "--optimizer=adagrad", "--lr=0.1"],
        &["--model=linear", "--scale=divide=4", "--wire-pull=bf16", "--aggregate=sum", "--lr=0.01"],
        // Rules that move every element: the server fills in the zeros.
        &["--model=logistic", "--batch=16", "--optimizer=adam", "--lr=0.01"],
        &["--model=logistic", "--batch=16", "--lr=1", "--clip-norm=0.1", "--aggregate=median"],
    ] {
        let job: Vec<&str> = common.iter().chain(more).copied().collect();
        assert_same(&job);
    }
}

#[test]
fn so_do_more_workers_than_rows_and_rows_without_features() {
    let mut file = NamedTempFile::new().expect("a file");
    file.write_all(b"1 3:1 9:2\n0\n").expect("written");
    let file = format!("--data={}", file.path().display());
    for more in [&["--batch=1"][..], &[]] {
        let job = [file.as_str(), "--format=libsvm", "--workers=3", "--rounds=4", "--bias"];
        let job: Vec<&str> = job.iter().chain(more).copied().collect();
        assert_same(&job);
    }
}

#[test]
fn one_worker_ends_in_the_same_bits_in_every_mode() {
    let file = format!("--data={}", data("agaricus/agaricus.txt.train"));
    for mode in ["--mode=async", "--mode=ssp", "--mode=hogwild"] {
        let model = ["--model=logistic", "--batch=9", "--rounds=10", "--eval-every=10"];
        let job = [&[file.as_str(), mode, "--take=90", "--workers=1"][..], &model].concat();
        let (dense, sparse) = both(&job);
        assert_eq!(theta_sha256(&sparse), theta_sha256(&dense), "{mode}");
    }
}

#[test]
fn few_of_many_rows_take_few_bytes() {
    const N_FEATURES: u32 = 100_000;
    let mut file = NamedTempFile::new().expect("a file");
    for row in 0..200u32 {
        let (first, second) = (3 + row * 7919 % 40_000, 50_000 + row * 104_729 % 50_000);
        writeln!(file, "{} {}:1 {first}:1 {second}:1", row % 2, 1 + row % 2).expect("written");
    }
    let file = format!("--data={}", file.path().display());
    let features = format!("--features={N_FEATURES}");
    let job = [&file, &features, "--model=logistic", "--batch=10", "--rounds=8", "--workers=2"];
    let (dense, sparse) = both(&job);
    assert_eq!(theta_sha256(&sparse), theta_sha256(&dense));
    // All of theta with each push, and once more at the start and, in both directions, at the end.
    let theta = 4.0 * f64::from(N_FEATURES);
    assert!(bytes(&dense, "bytes_sent") > 16.0 * theta);
    assert!(bytes(&dense, "bytes_received") > 16.0 * theta);
    // A batch of 10 rows touches 22 rows of theta; the shard's at the end are some hundred.
    for count in ["bytes_sent", "bytes_received"] {
        let got = bytes(&sparse, count);
        assert!(got < 40_000.0, "{count}: {got}, where a theta has {theta}");
    }
}

#[test]
fn what_would_touch_every_row_is_refused_with_78() {
    let rows = data("agaricus/agaricus.txt.train");
    for (arguments, says) in [
        (&["--sparse"][..], "the data is dense"),
        (&["--sparse", "--data", &rows, "--scale=minmax"], "--scale minmax makes the data dense"),
        (&["--sparse", "--data", &rows, "--l2=0.1"], "--sparse and --l2 0.1"),
        (&["--sparse", "--data", &rows, "--servers=2"], "--sparse and --servers (there are 2)"),
        (&["--sparse", "--data", &rows, "--overlap", "--mode=async"], "--sparse and --overlap"),
    ] {
        let all = [&["local", "--quiet", "--workers=1"], arguments].concat();
        let output = Process::start("psctl", &all).expect_exit(78);
        assert!(output.contains(says), "{arguments:?}: {output}");
    }
    let output = Process::start("ps-worker", &["--evaluate", "--sparse"]).expect_exit(78);
    assert!(output.contains("--evaluate and --sparse"), "{output}");
}
