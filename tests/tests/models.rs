//! Models that are no linear maps, and local steps, through whole jobs of real processes.

use std::fmt::Write;

use ps_tests::{
    Process, assert_close, data, final_loss, golden, local, losses, numbers, wait_until,
};

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

#[test]
fn local_steps_of_one_worker_are_steps_of_gradient_descent() {
    let want = numbers(&golden("sync_k4.json")["loss_history"]);
    let every_fifth: Vec<f64> = want.iter().copied().step_by(5).collect();
    let steps = ["--local-steps=5", "--local-lr=0.01", "--dtype=f64"];
    let run = |more: &[&str]| losses(&local(&[&steps[..], more].concat()));
    assert_close(&run(&["--workers=1", "--rounds=20"]), &every_fifth, 1e-9);
    // A single local step of each is a step of all, at the server's own rate of 1.
    let single = ["--local-lr=0.01", "--dtype=f64", "--lr=1"];
    assert_close(&losses(&local(&single)), &want, 1e-9);
    // Several of each are no longer the same, but lead to the same place.
    let apart = run(&["--workers=4", "--rounds=20"]);
    assert!((apart[20] - want[100]).abs() > 1e-9 && (apart[20] - want[100]).abs() < 1e-3);
    let report = local(&["--local-steps=5", "--local-lr=0.01", "--rounds=3"]);
    assert_eq!(report["n_samples"], 1000, "a row that several steps use is one row");
}

#[test]
fn a_server_says_when_its_rate_is_none_for_local_steps() {
    let (server, address) = Process::server(&["--workers=1", "--rounds=2", "--lr=0.5"]);
    let url = format!("http://{address}");
    let worker = ["--server", &url, "--local-lr=0.1", "--local-steps=2"];
    Process::start("ps-worker", &worker).expect_exit(0);
    let said = wait_until("the server's warning", || {
        Some(server.output()).filter(|output| output.contains("--lr 0.5"))
    });
    assert!(said.contains("federated averaging is --optimizer sgd with --lr 1"), "{said}");
    server.expect_exit(0);
    let said = Process::start("psctl", &["local", "--local-steps=2"]).expect_exit(78);
    assert!(said.contains("--local-steps 2 needs --local-lr"), "{said}");
}

#[test]
fn a_run_goes_on_from_the_theta_of_another() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let iris = data("iris/iris.csv");
    let run = |more: &[&str]| {
        let common = ["--data", &iris, "--model=mlp,hidden=5", "--lr=0.1", "--workers=2"];
        local(&[&common[..], more].concat())
    };
    let whole = run(&["--rounds=25"]);
    for ending in ["npy", "csv", "safetensors"] {
        let path = folder.path().join(format!("theta.{ending}"));
        let path = path.to_string_lossy();
        run(&["--rounds=10", "--theta-out", &path]);
        let rest = run(&["--rounds=15", "--theta-in", &path]);
        assert_eq!(rest["final"], whole["final"], "{ending}");
        assert_eq!(losses(&rest), losses(&whole)[10..], "{ending}");
    }

    let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let refused = |code: i32, arguments: &[&str]| {
        let all = [&["local", "--quiet", "--data", &iris, "--model=softmax"], arguments].concat();
        Process::start("psctl", &all).expect_exit(code)
    };
    let said = refused(78, &["--theta-in", &at("theta.csv")]);
    assert!(said.contains("theta has 43 elements, the job's has 12"), "{said}");
    let said = refused(78, &["--dtype=f64", "--theta-in", &at("theta.npy")]);
    assert!(said.contains("--theta-in") && said.contains("say --dtype f32"), "{said}");
    let torn = file(&folder, "torn.csv", "table,key,value\nW,0,0.5\nW,1,half\n");
    let said = refused(65, &["--theta-in", &torn]);
    assert!(said.contains("line 3: value `half`, expected a number"), "{said}");
    refused(74, &["--theta-in", &at("none.npy")]);
}
