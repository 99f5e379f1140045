//! Real jobs, real processes, known results: every loss of a run against the golden files.

use std::fmt::Write;
use std::path::Path;

use ps_tests::{assert_close, data, data_dir, golden, local, losses, numbers, project_root};
use serde_json::Value;

fn final_of(report: &Value, field: &str) -> f64 {
    report["final"][field].as_f64().unwrap_or_else(|| panic!("no {field} in {}", report["final"]))
}

/// Numbers of a .npy file of float64 or int64.
fn npy(path: &Path) -> Vec<u64> {
    let bytes = std::fs::read(path).expect("part of the repository");
    let header = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    bytes[header..].chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().expect("8"))).collect()
}

/// The reference problem as two CSV files, its rows in the published order.
fn reference_csv(folder: &Path) -> (String, String) {
    let seed_data = project_root().join("tests/golden/seed_data");
    let (x, y) = (npy(&seed_data.join("X.npy")), npy(&seed_data.join("y.npy")));
    let order = npy(&seed_data.join("shuffled_indices.npy"));
    let (mut x_csv, mut y_csv) = (String::new(), String::new());
    for row in order.into_iter().map(|row| row as usize) {
        let fields: Vec<String> =
            x[10 * row..10 * (row + 1)].iter().map(|&b| f64::from_bits(b).to_string()).collect();
        writeln!(x_csv, "{}", fields.join(",")).expect("to a string");
        writeln!(y_csv, "{}", f64::from_bits(y[row])).expect("to a string");
    }
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).expect("written");
        path.to_string_lossy().into_owned()
    };
    (write("X.csv", &x_csv), write("y.csv", &y_csv))
}

/// The elements of a theta that `--theta-out` has left.
fn theta_csv(path: &Path) -> Vec<f64> {
    let text = std::fs::read_to_string(path).expect("written");
    let value = |line: &str| line.rsplit(',').next().map(|text| text.parse().expect("a number"));
    text.lines().skip(1).map(|line| value(line).expect("a value")).collect()
}

#[test]
fn the_reference_problem_loss_by_loss() {
    let run = golden("sync_k4.json");
    let want = numbers(&run["loss_history"]);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (x, y) = reference_csv(folder.path());
    let files = ["--data", &x, "--labels", &y];

    let from_csv = local(&[&files[..], &["--dtype=f64"]].concat());
    assert_close(&losses(&from_csv), &want, 1e-9);
    let plain_mean = local(&[&files[..], &["--dtype=f64", "--aggregate=mean"]].concat());
    assert_close(&losses(&plain_mean), &want, 1e-9);
    let built_in = local(&["--dtype=f64"]);
    assert_eq!(built_in["final"], from_csv["final"], "the default job is the reference problem");

    let single = local(&files);
    let deviation = run["float32_run_max_abs_loss_dev"].as_f64().expect("a number");
    assert_close(&losses(&single), &want, 10.0 * deviation);
    assert_eq!(single["dtype"], "f32");

    // In full batches every sample's loss is looked at once a round, before its update.
    let progressive = built_in["progressive_loss"].as_f64().expect("told by every worker");
    let mean = want[..100].iter().sum::<f64>() / 100.0;
    assert!((progressive - mean).abs() < 1e-9, "{progressive}, not {mean}");
}

#[test]
fn the_final_theta_is_that_of_the_golden_file() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("theta.csv").to_string_lossy().into_owned();
    local(&["--dtype=f64", "--theta-out", &out]);
    assert_close(
        &theta_csv(Path::new(&out)),
        &numbers(&golden("sync_k4.json")["theta_final"]),
        1e-9,
    );
}

#[test]
fn agaricus_logistic_with_l2() {
    let run = golden("agaricus_logistic.json");
    let (train, test) = (data("agaricus/agaricus.txt.train"), data("agaricus/agaricus.txt.test"));
    let report = local(&[
        "--model=logistic",
        "--bias=true",
        "--l2=1e-3",
        "--lr=0.5",
        "--rounds=50",
        "--dtype=f64",
        "--data",
        &train,
        "--test-data",
        &test,
    ]);
    assert_close(&losses(&report), &numbers(&run["gd_objective_history"]), 1e-9);
    let close = |field: &str, key: &str| {
        let want = run[key].as_f64().expect("a number");
        assert!((final_of(&report, field) - want).abs() < 1e-9, "{field}: {}", report["final"]);
    };
    close("train_accuracy", "gd_final_train_accuracy");
    close("test_accuracy", "gd_final_test_accuracy");
    close("test_loss", "gd_final_test_logloss");
}

#[test]
fn ftrl_learns_agaricus_in_one_pass() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("theta.csv").to_string_lossy().into_owned();
    let file = golden("agaricus_ftrl.json");
    for (run, n_nonzero) in file["runs"].as_array().expect("runs").iter().zip([116, 111]) {
        let p = &run["params"];
        let optimizer = format!(
            "--optimizer=ftrl,alpha={},beta={},l1={},l2={}",
            p["alpha"], p["beta"], p["l1"], p["l2"]
        );
        let report = local(&[
            "--model=logistic",
            "--batch=1",
            "--shuffle=false",
            "--workers=1",
            "--rounds=6513",
            "--dtype=f64",
            &optimizer,
            "--data",
            &data("agaricus/agaricus.txt.train"),
            "--test-data",
            &data("agaricus/agaricus.txt.test"),
            "--theta-out",
            &out,
        ]);
        let figure = |key: &str| run[key].as_f64().expect("a number");
        let progressive = report["progressive_loss"].as_f64().expect("told by the worker");
        assert!((progressive - figure("progressive_logloss")).abs() < 1e-9, "{progressive}");
        let after = &run["test_after_pass"];
        let accuracy = after["accuracy"].as_f64().expect("a number");
        assert!((final_of(&report, "test_accuracy") - accuracy).abs() < 1e-12);
        let theta = theta_csv(Path::new(&out));
        assert_eq!(theta.len(), 126);
        assert_eq!(theta.iter().filter(|&&w| w != 0.0).count(), n_nonzero);
        let want = |i: usize| run["w_nonzero_by_libsvm_index"][i.to_string()].as_f64();
        let want: Vec<f64> = (1..=126).map(|i| want(i).unwrap_or(0.0)).collect();
        assert_close(&theta, &want, 1e-9);
    }
}

#[test]
fn diabetes_least_squares_whole_and_uneven() {
    let run = golden("diabetes_least_squares.json");
    let (x, y) =
        (data("diabetes/diabetes_data_raw.csv.gz"), data("diabetes/diabetes_target.csv.gz"));
    let common = [
        "--data",
        &x,
        "--labels",
        &y,
        "--scale=standard",
        "--bias=true",
        "--lr=0.1",
        "--rounds=100",
        "--dtype=f64",
    ];
    let whole = local(&common);
    // Losses of order 1e4: 1e-9 relative.
    assert_close(&losses(&whole), &numbers(&run["gd_loss_first_101"]), 1e-5);
    let uneven = local(&[&common[..], &["--workers=3", "--aggregate=mean"]].concat());
    let want = numbers(&run["gd_3_shards_array_split_plain_mean"]["loss_first_101"]);
    assert_close(&losses(&uneven), &want, 1e-5);
}

#[test]
fn iris_softmax() {
    let run = golden("iris_softmax.json");
    let report = local(&[
        "--model=softmax",
        "--bias=true",
        "--scale=standard",
        "--lr=0.5",
        "--rounds=100",
        "--dtype=f64",
        "--data",
        &data("iris/iris.csv"),
    ]);
    assert_close(&losses(&report), &numbers(&run["full_batch_gd"]["loss_history"]), 1e-9);
    assert!((final_of(&report, "train_accuracy") - 143.0 / 150.0).abs() < 1e-12);
}

#[test]
fn fashion_mnist_softmax() {
    let Some(folder) = data_dir("fashion-mnist") else { return };
    let file = |name: &str| folder.join(name).to_string_lossy().into_owned();
    let run = golden("fmnist_softmax.json");
    let common = [
        "--model=softmax",
        "--scale=divide=255",
        "--take=6000",
        "--bias=true",
        "--rounds=50",
        "--data",
        &file("train-images-part0-idx3-ubyte.gz"),
        "--labels",
        &file("train-labels-idx1-ubyte.gz"),
    ];
    let test_files = [
        "--test-data",
        &file("t10k-images-idx3-ubyte.gz"),
        "--test-labels",
        &file("t10k-labels-idx1-ubyte.gz"),
    ];
    let report = local(&[&common[..], &test_files, &["--lr=0.1"]].concat());
    let want = &run["full_batch_gd_lr0.1"];
    assert_close(&losses(&report), &numbers(&want["loss_history"]), 1e-5);
    assert!((final_of(&report, "test_accuracy") - 0.7235).abs() < 0.002, "{}", report["final"]);

    let uneven = ["--lr=0.02", "--workers=7", "--aggregate=mean", "--dtype=f64"];
    let report = local(&[&common[..], &uneven].concat());
    let want = &run["full_batch_gd_7_shards_plain_mean"];
    assert_close(&losses(&report), &numbers(&want["loss_history"]), 1e-9);
}

#[test]
fn mini_batches_in_file_order() {
    let Some(folder) = data_dir("fashion-mnist") else { return };
    let file = |name: &str| folder.join(name).to_string_lossy().into_owned();
    let want = numbers(
        &golden("fmnist_softmax.json")["minibatch_sgd_first6000"]["train_loss_after_each_epoch"],
    );
    let report = local(&[
        "--model=softmax",
        "--scale=divide=255",
        "--take=6000",
        "--bias=true",
        "--lr=0.05",
        "--batch=50",
        "--shuffle=false",
        "--workers=1",
        "--rounds=240",
        "--dtype=f64",
        "--data",
        &file("train-images-part0-idx3-ubyte.gz"),
        "--labels",
        &file("train-labels-idx1-ubyte.gz"),
    ]);
    // Two passes of 120 steps, measured after each.
    assert!((final_of(&report, "loss") - want[1]).abs() < 1e-9, "{}", report["final"]);
}
