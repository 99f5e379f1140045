//! Trajectories of optimizers against `tests/golden`, in f64.

use serde_json::Value;

use super::*;

fn golden(name: &str) -> Value {
    let path = format!("{}/../tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).expect("part of the repository");
    serde_json::from_str(&text).expect("JSON")
}

fn numbers(value: &Value) -> Vec<f64> {
    serde_json::from_value(value.clone()).expect("numbers")
}

fn matrix(value: &Value) -> Vec<Vec<f64>> {
    serde_json::from_value(value.clone()).expect("rows of numbers")
}

/// The first `n` numbers of a .npy file of float64.
fn npy(name: &str, n: usize) -> Vec<f64> {
    let path = format!("{}/../tests/golden/seed_data/{name}", env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(path).expect("part of the repository");
    let header = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let numbers = bytes[header..].chunks_exact(8);
    numbers.take(n).map(|b| f64::from_le_bytes(b.try_into().expect("eight"))).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

type GradientAt = Box<dyn Fn(&[f64]) -> Vec<f64>>;

/// Where a problem starts, and its gradient.
fn problem(name: &str, spec: &Value) -> (Vec<f64>, GradientAt) {
    if name == "quadratic" {
        let spec = &spec["problems"]["quadratic"];
        let (a, b) = (matrix(&spec["A"]), numbers(&spec["b"]));
        let gradient = move |x: &[f64]| a.iter().zip(&b).map(|(row, b)| dot(row, x) - b).collect();
        return (numbers(&spec["x0"]), Box::new(gradient));
    }
    assert_eq!(name, "seed_regression_64");
    let (x, y) = (npy("X.npy", 640), npy("y.npy", 64));
    let gradient = move |theta: &[f64]| {
        let mut sum = vec![0.0; 10];
        for (row, y) in x.chunks_exact(10).zip(&y) {
            let residual = dot(row, theta) - y;
            sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += residual * x / 64.0);
        }
        sum
    };
    (vec![0.0; 10], Box::new(gradient))
}

#[test]
fn trajectories_of_optimizers() {
    let file = golden("optimizers_public.json");
    let runs = file["runs"].as_array().expect("runs");
    assert_eq!(runs.len(), 6);
    for run in runs {
        let (start, gradient_at) = problem(run["problem"].as_str().expect("text"), &file["spec"]);
        let mut text = run["optimizer"].as_str().expect("text").to_owned();
        let options = run["hyperparameters"].as_object().expect("an object");
        for (key, value) in options.iter().filter(|(key, _)| *key != "lr") {
            text.push_str(&format!(",{key}={value}"));
        }
        let wish = Wish { lr: options["lr"].as_f64(), ..wish(&text) };
        // A chunk of three elements each.
        let mut store = store(&wish, (start.len() as u64, 0), Dtype::F64, 24);
        store.begin_at(&start);
        let want = matrix(&run["x"]);
        assert_eq!(want.len(), 21);
        for want in &want {
            let theta = store.snapshot().values::<f64>();
            assert_close(&theta, want, 1e-10);
            if store.snapshot().version < 20 {
                push(&mut store, gradient_at(&theta)).expect("finite");
            }
        }
        for (slot, name) in store.state().iter().zip(store_slots(&wish)) {
            assert_close(slot, &numbers(&run["final_state"][name]), 1e-10);
        }
    }
}

fn store_slots(wish: &Wish<'_>) -> &'static [&'static str] {
    optimizer(wish).rule.slots()
}

/// Label and features, counted from 0, of each row.
fn agaricus() -> Vec<(f64, Vec<usize>)> {
    let path = format!("{}/../tests/data/agaricus/agaricus.txt.train", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).expect("part of the repository");
    let row = |line: &str| {
        let mut words = line.split_whitespace();
        let label = words.next().expect("a label").parse().expect("a number");
        let features = words.map(|word| {
            let (index, value) = word.split_once(':').expect("index:value");
            assert_eq!(value, "1");
            index.parse::<usize>().expect("an index") - 1
        });
        (label, features.collect())
    };
    text.lines().map(row).collect()
}

#[test]
fn ftrl_on_agaricus() {
    let rows = agaricus();
    assert_eq!(rows.len(), 6513);
    let file = golden("agaricus_ftrl.json");
    for (run, n_nonzero) in file["runs"].as_array().expect("runs").iter().zip([116, 111]) {
        let p = &run["params"];
        let text =
            format!("ftrl,alpha={},beta={},l1={},l2={}", p["alpha"], p["beta"], p["l1"], p["l2"]);
        let mut store = store(&wish(&text), (126, 0), Dtype::F64, 200);
        let mut loss_sum = 0.0;
        for (label, features) in &rows {
            let theta = store.snapshot().values::<f64>();
            let z: f64 = features.iter().map(|&i| theta[i]).sum();
            let probability = 1.0 / (1.0 + (-z).exp());
            loss_sum -= if *label == 1.0 { probability.ln() } else { (1.0 - probability).ln() };
            let mut gradient = vec![0.0; 126];
            features.iter().for_each(|&i| gradient[i] = probability - label);
            push(&mut store, gradient).expect("finite");
        }
        let progressive = run["progressive_logloss"].as_f64().expect("a number");
        assert!((loss_sum / 6513.0 - progressive).abs() < 1e-10);
        let dense = |field: &str| -> Vec<f64> {
            (1..=126).map(|i| run[field][i.to_string()].as_f64().unwrap_or(0.0)).collect()
        };
        let theta = store.snapshot().values::<f64>();
        assert_eq!(theta.iter().filter(|&&w| w != 0.0).count(), n_nonzero);
        assert_close(&theta, &dense("w_nonzero_by_libsvm_index"), 1e-10);
        let [z, n] = &store.state()[..] else { panic!("z and n") };
        assert_close(z, &dense("z_by_libsvm_index"), 1e-10);
        assert_close(n, &dense("n_by_libsvm_index"), 1e-10);
    }
}
