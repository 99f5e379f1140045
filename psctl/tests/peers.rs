//! Map-reduce against a real synchronous server with real workers: the same theta to the bit.

use std::process::Command;

use clap::Parser;
use ps_common::Dtype;
use ps_common::job::Aggregate;
use ps_server::numeric::Optimizer;
use ps_worker::args::LearnArgs;
use ps_worker::learning::Problem;
use psctl::peers::map_reduce::{self, MapReduce};
use psctl::peers::{Deal, Links, Settings};
use serde_json::Value;

const PSCTL: &str = env!("CARGO_BIN_EXE_psctl");
const ROUNDS: u64 = 20;
const LR: f64 = 0.25;

#[derive(Parser)]
struct Demo {
    #[command(flatten)]
    learn: LearnArgs,
}

/// The report of `psctl local`.
fn synchronous(learn: &[&str], aggregate: &str, dtype: Dtype) -> Value {
    let output = Command::new(PSCTL)
        .args(["local", "--json", "--quiet", "--workers=4"])
        .args([format!("--rounds={ROUNDS}"), format!("--lr={LR}"), format!("--dtype={dtype}")])
        .args([format!("--aggregate={aggregate}")])
        .args(learn)
        .output()
        .expect("psctl starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one line of JSON")
}

#[test]
fn map_reduce_gives_theta_the_bits_of_a_synchronous_server() {
    let iris = concat!("--data=", env!("CARGO_MANIFEST_DIR"), "/../tests/data/iris/iris.csv");
    let model = [iris, "--model=softmax", "--scale=standard", "--bias", "--l2=0.01", "--seed=3"];
    for (reduce, aggregate, dtype, batch) in [
        (Aggregate::WeightedMean, "weighted-mean", Dtype::F64, "--batch=full"),
        (Aggregate::Mean, "mean", Dtype::F32, "--batch=16"),
        (Aggregate::Sum, "sum", Dtype::F64, "--batch=full"),
        (Aggregate::Collect, "collect", Dtype::F32, "--batch=16"),
        (Aggregate::Median, "median", Dtype::F64, "--batch=full"),
    ] {
        let learn = [&model[..], &[batch]].concat();
        let report = synchronous(&learn, aggregate, dtype);

        let demo = Demo::try_parse_from(["demo"].iter().chain(&learn)).expect("parses");
        let problem = Problem::survey(&demo.learn).expect("good data");
        let job = MapReduce { n_workers: 4, reduce, optimizer: Optimizer::sgd(LR) };
        let settings = Settings {
            dtype,
            rounds: ROUNDS,
            record_every: 1,
            deal: Deal::AsRead,
            links: Links { bytes_per_second: 1e9, latency_seconds: 0.0 },
            message_bytes: None,
            compute_seconds: &|_, _| 0.0,
        };
        let run = map_reduce::run(&problem, &job, &settings).expect("runs");

        let sha256 = report["final"]["theta_sha256"].as_str().expect("a digest");
        assert_eq!(run.theta_sha256, sha256, "{aggregate} {dtype} {batch}");
        if batch == "--batch=full" {
            let losses: Vec<f64> = run.history.iter().map(|entry| entry.loss).collect();
            let history = report["history"].as_array().expect("a history");
            let theirs: Vec<f64> =
                history.iter().map(|entry| entry["loss"].as_f64().expect("a loss")).collect();
            assert_eq!(losses, theirs, "{aggregate} {dtype}");
        }
    }
}
