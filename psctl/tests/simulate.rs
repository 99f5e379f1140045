//! `psctl simulate` through the real binary: what the issue says it must show, against golden
//! losses and a naive twin, and what must not be said to it.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

const PSCTL: &str = env!("CARGO_BIN_EXE_psctl");

fn psctl(arguments: &[&str]) -> Output {
    let mut command = Command::new(PSCTL);
    for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("PS_")) {
        command.env_remove(key);
    }
    command.arg("simulate").args(arguments).output().expect("psctl starts")
}

/// The runs of a call with `--json`.
fn simulate(arguments: &[&str]) -> Vec<Value> {
    let output = psctl(&[arguments, &["--json"]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    let results: Value = serde_json::from_slice(&output.stdout).expect("one object of JSON");
    results["runs"].as_array().expect("runs").clone()
}

fn number(value: &Value, path: &str) -> f64 {
    value.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("{path} in {value}"))
}

fn losses(run: &Value) -> Vec<f64> {
    let history = run["history"].as_array().expect("a history");
    history.iter().map(|point| number(point, "/loss")).collect()
}

#[track_caller]
fn assert_close(got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len());
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!((got - expected).abs() <= tolerance, "entry {i}: {got}, expected {expected}");
    }
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

/// A file with `text`, and its name as an argument.
fn file(text: &str) -> (tempfile::NamedTempFile, String) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), text).expect("written");
    let name = file.path().display().to_string();
    (file, name)
}

/// Least squares by hand, without any of the project's code.
struct Twin {
    rows: Vec<Vec<f64>>,
    targets: Vec<f64>,
}

impl Twin {
    /// The reference data, in the order in which it is dealt.
    fn new() -> Self {
        let words = |name: &str| -> Vec<[u8; 8]> {
            let bytes = std::fs::read(golden("seed_data").join(name)).expect("golden data");
            let header = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
            bytes[header..].chunks_exact(8).map(|word| word.try_into().expect("eight")).collect()
        };
        let doubles =
            |name: &str| -> Vec<f64> { words(name).into_iter().map(f64::from_le_bytes).collect() };
        let (x, y) = (doubles("X.npy"), doubles("y.npy"));
        let order: Vec<usize> = words("shuffled_indices.npy")
            .into_iter()
            .map(|word| usize::try_from(i64::from_le_bytes(word)).expect("a row"))
            .collect();
        Self {
            rows: order.iter().map(|row| x[row * 10..row * 10 + 10].to_vec()).collect(),
            targets: order.iter().map(|row| y[*row]).collect(),
        }
    }

    fn residual(&self, theta: &[f64], row: usize) -> f64 {
        self.rows[row].iter().zip(theta).map(|(x, t)| x * t).sum::<f64>() - self.targets[row]
    }

    fn loss(&self, theta: &[f64]) -> f64 {
        let n = self.rows.len();
        (0..n).map(|row| self.residual(theta, row).powi(2)).sum::<f64>() / (2 * n) as f64
    }

    /// Of worker `rank` of `n_workers`: shards as numpy's array_split deals them.
    fn gradient(&self, theta: &[f64], rank: usize, n_workers: usize) -> Vec<f64> {
        let (size, more) = (self.rows.len() / n_workers, self.rows.len() % n_workers);
        let first = rank * size + rank.min(more);
        let shard = first..first + size + usize::from(rank < more);
        let mut gradient = vec![0.0; theta.len()];
        for row in shard.clone() {
            let residual = self.residual(theta, row);
            for (g, x) in gradient.iter_mut().zip(&self.rows[row]) {
                *g += residual * x / shard.len() as f64;
            }
        }
        gradient
    }

    /// Losses after every update of (worker, delay) turns.
    fn asynchronous(&self, turns: &[(usize, usize)], n_workers: usize, lr: f64) -> Vec<f64> {
        let mut thetas = VecDeque::from([vec![0.0; 10]]);
        let mut losses = vec![self.loss(&thetas[0])];
        for &(rank, delay) in turns {
            let newest = thetas.len() - 1;
            let gradient = self.gradient(&thetas[newest.saturating_sub(delay)], rank, n_workers);
            let theta: Vec<f64> =
                thetas[newest].iter().zip(gradient).map(|(t, g)| t - lr * g).collect();
            losses.push(self.loss(&theta));
            thetas.push_back(theta);
        }
        losses
    }
}

#[test]
fn sync_loses_nothing_by_more_workers() {
    let text = std::fs::read_to_string(golden("sync_k4.json")).expect("golden losses");
    let golden: Value = serde_json::from_str(&text).expect("JSON");
    let golden: Vec<f64> = golden["loss_history"]
        .as_array()
        .expect("losses")
        .iter()
        .map(|loss| loss.as_f64().expect("a number"))
        .collect();
    let runs = simulate(&["--mode=sync", "--workers=1,2,3,4,16,50", "--dtype=f64"]);
    assert_eq!(runs.len(), 6);
    for run in &runs {
        assert_close(&losses(run), &golden, 1e-9);
        assert_eq!(run["outcome"], "done");
        assert_eq!(run["report"]["outcome"], "done");
        assert_eq!(number(run, "/pushes"), 100.0 * number(run, "/n_workers"));
        assert_eq!(number(run, "/gradient_delay/max"), 0.0);
        let last = &run["history"][100];
        assert_eq!(number(last, "/pushes"), number(run, "/pushes"));
    }
}

#[test]
fn async_workers_in_turn_each_on_its_last_copy_equal_the_naive_twin() {
    let twin = Twin::new();
    for (n_workers, about) in [(4, 0.0197), (16, 0.0073)] {
        let workers = format!("--workers={n_workers}");
        let runs = simulate(&["--mode=async", &workers, "--dtype=f64", "--eval-every=1"]);
        // All take the same time, so they push in turn: gradient t is of the theta that its worker
        // was given with its own update before, n_workers - 1 others ago.
        let turns: Vec<_> =
            (0..100 * n_workers).map(|t| (t % n_workers, t.min(n_workers - 1))).collect();
        let expected = twin.asynchronous(&turns, n_workers, 0.01);
        assert_close(&losses(&runs[0]), &expected, 1e-9);
        assert!((number(&runs[0], "/final_loss") / about - 1.0).abs() < 0.01);
        assert_eq!(number(&runs[0], "/gradient_delay/max"), n_workers as f64 - 1.0);
    }
}

#[test]
fn stale_gradients_diverge_where_rounds_are_stable() {
    let hot = simulate(&["--workers=16", "--lr=0.3", "--dtype=f64"]);
    assert_eq!((&hot[0]["mode"], &hot[0]["outcome"]), (&"sync".into(), &"done".into()));
    assert!((number(&hot[0], "/final_loss") - 0.0054).abs() < 1e-4);
    assert_eq!((&hot[1]["mode"], &hot[1]["outcome"]), (&"async".into(), &"diverged".into()));
    assert!(number(&hot[1], "/diverged_at_round") < 20.0);
    let hotter = simulate(&["--workers=16", "--lr=0.7", "--mode=sync", "--dtype=f64"]);
    assert!((number(&hotter[0], "/final_loss") - 0.00519).abs() < 1e-5);

    // In f32 theta leaves the range of numbers: still a result.
    let output = psctl(&["--workers=16", "--lr=0.5", "--rounds=400"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(text.contains("async, K = 16: diverged at round "), "{text}");
    let runs = simulate(&["--workers=16", "--lr=0.5", "--rounds=400", "--mode=async"]);
    assert!(number(&runs[0], "/rounds") < 400.0, "it stops there");
    assert!(number(&runs[0], "/final_loss") > 1e30, "theta is that before the overflow");
}

#[test]
fn a_fixed_schedule_equals_the_naive_twin() {
    let twin = Twin::new();
    // Some order that is not regular, and delays beyond the first updates.
    let order: Vec<usize> = (0..200).map(|t| (t * t + t / 3) % 5).collect();
    let lines: String = order.iter().map(|rank| format!("{rank}\n")).collect();
    let (_kept, name) = file(&lines);
    let run = simulate(&[
        "--schedule",
        &name,
        "--fixed-delay=7",
        "--workers=5",
        "--dtype=f64",
        "--lr=0.05",
    ]);
    let turns: Vec<_> = order.iter().map(|rank| (*rank, 7)).collect();
    assert_close(&losses(&run[0]), &twin.asynchronous(&turns, 5, 0.05), 1e-9);
    let versions: Vec<f64> = run[0]["history"]
        .as_array()
        .expect("a history")
        .iter()
        .map(|point| number(point, "/version"))
        .collect();
    assert!(versions.iter().copied().eq((0..=200).map(f64::from)), "every version is measured");
    assert_eq!(number(&run[0], "/gradient_delay/max"), 7.0);

    // A delay of its own for each line, and the same as JSON where it is one.
    let turns: Vec<_> = order.iter().enumerate().map(|(t, rank)| (*rank, t % 4)).collect();
    let lines: String = turns.iter().map(|(rank, delay)| format!("{rank},{delay}\n")).collect();
    let (_kept, name) = file(&lines);
    let run = simulate(&["--schedule", &name, "--workers=5", "--dtype=f64"]);
    assert_close(&losses(&run[0]), &twin.asynchronous(&turns, 5, 0.01), 1e-9);
    let json = serde_json::json!({ "workers": order, "delay": 2 }).to_string();
    let (_kept, name) = file(&json);
    let run = simulate(&["--schedule", &name, "--workers=5", "--dtype=f64"]);
    let turns: Vec<_> = order.iter().map(|rank| (*rank, 2)).collect();
    assert_close(&losses(&run[0]), &twin.asynchronous(&turns, 5, 0.01), 1e-9);
}

#[test]
fn a_round_takes_what_its_parts_take() {
    // 1,000,064 bytes at 80 Mbit/s and 2 ms of latency, either way; 20 ms of computing; 5 ms of
    // applying.
    let world = [
        "--mode=sync",
        "--workers=1,3",
        "--rounds=10",
        "--theta-bytes=1M",
        "--bandwidth=80Mbit/s",
        "--latency=2ms",
        "--compute-time=constant=20ms",
        "--apply-time=5ms",
    ];
    let message = 0.002 + 1_000_064.0 * 8.0 / 80e6;
    let round = 0.020 + message + 0.005 + message;
    // The job begins when the first join arrives. The welcome and a pull without theta are small.
    let small = 0.002 + 64.0 * 8.0 / 80e6;
    let first_pull = small + small + message;
    let expected = first_pull + 10.0 * round - message;
    for run in simulate(&world) {
        let got = number(&run, "/virtual_seconds");
        assert!((got - expected).abs() < 1e-6, "{got}, expected {expected}");
        // From the welcome to the last answer.
        let idle = 1.0 - 0.2 / (small + message + 10.0 * round);
        assert!((number(&run, "/idle_share/mean") - idle).abs() < 1e-6);
        let speedup = number(&run, "/speedup") / number(&run, "/speedup_ideal");
        assert!((speedup - 1.0).abs() < 1e-9, "each link is its worker's own");
    }
}

#[test]
fn one_server_link_makes_speed_up_rise_and_fall_again() {
    let runs = simulate(&[
        "--mode=sync",
        "--workers=1,2,4,8,16,32",
        "--rounds=20",
        "--theta-bytes=4M",
        "--server-bandwidth=1Gbit/s",
        "--compute-time=constant=1ms",
        "--compute-per=row",
    ]);
    let speedups: Vec<f64> = runs.iter().map(|run| number(run, "/speedup")).collect();
    assert_eq!(speedups[0], 1.0);
    assert!(speedups[0] < speedups[1] && speedups[1] < speedups[2], "{speedups:?}");
    assert!(speedups[3] > speedups[4] && speedups[4] > speedups[5], "{speedups:?}");
    let idle: Vec<f64> = runs.iter().map(|run| number(run, "/idle_share/mean")).collect();
    assert!(idle.is_sorted(), "{idle:?}");
}

#[test]
fn stragglers_hold_rounds_up_and_not_single_updates() {
    let runs = simulate(&[
        "--workers=20",
        "--stragglers=share=0.02,factor=10",
        "--slow-worker=3=2",
        "--sim-seed=5",
    ]);
    let [sync, asynchronous] = &runs[..] else { panic!("two modes") };
    assert!(number(sync, "/idle_share/mean") > 0.5);
    assert!(number(asynchronous, "/idle_share/mean") < 0.25);
    // Worker 3 alone is slow all the time: behind a barrier it is the least idle.
    let of = |run: &Value, rank: u32| number(run, &format!("/idle_share/by_worker/{rank}"));
    assert!((0..20).all(|rank| of(sync, rank) >= of(sync, 3)));
    assert!(number(sync, "/speedup") < number(asynchronous, "/speedup"));
}

#[test]
fn faults_change_when_but_not_what_a_synchronous_job_learns() {
    let plain = &simulate(&["--mode=sync", "--workers=4"])[0];
    let sha = |run: &Value| run["report"]["final"]["theta_sha256"].clone();
    let kinds = |run: &Value| -> Vec<String> {
        let events = run["report"]["events"].as_array().expect("events");
        events.iter().map(|e| e["kind"].as_str().expect("text").to_owned()).collect()
    };
    for (fault, at_least) in [
        ("crash:rank=2,at=200ms,back=30s", 30.0),
        ("partition:ranks=0-1,from=0.2s,to=20s", 20.0),
        // Longer than the server holds a call: pushes are sent again.
        ("slow:rank=1,from=0s,to=1s,factor=10000", 100.0),
        ("slow:rank=1,from=0.1s,to=0.5s,factor=10", 1.5),
    ] {
        let run = &simulate(&["--mode=sync", "--workers=4", "--fault", fault])[0];
        assert_eq!(sha(run), sha(plain), "{fault}");
        assert_eq!(run["outcome"], "done", "{fault}");
        assert!(number(run, "/virtual_seconds") > at_least, "{fault}");
        assert_eq!(number(run, "/pushes"), 400.0, "{fault}");
    }
    let run = &simulate(&["--mode=sync", "--fault=crash:rank=2,at=200ms,back=30s"])[0];
    assert!(kinds(run).contains(&"lost".to_owned()), "its lease ended");
    let life = |rank: u32| number(run, &format!("/report/workers/{rank}/incarnation"));
    assert!([0, 1, 3].iter().all(|rank| life(*rank) < life(2)), "its second life is the newest");
    // Heartbeats keep a lease that is shorter than a gradient.
    let run =
        &simulate(&["--mode=sync", "--rounds=2", "--compute-time=constant=9s", "--lease-ms=500"])
            [0];
    assert!(!kinds(run).contains(&"lost".to_owned()));
}

#[test]
fn a_job_goes_on_or_fails_as_on_worker_loss_says() {
    let crash = "--fault=crash:rank=2,at=200ms";
    let with = |policy: &str| simulate(&["--mode=sync", crash, policy]).remove(0);
    let run = with("--on-worker-loss=continue");
    assert_eq!(run["outcome"], "done");
    assert!(number(&run, "/pushes") < 400.0 && number(&run, "/rounds") == 100.0);
    let run = with("--on-worker-loss=abort");
    assert!(run["outcome"].as_str().expect("text").contains("rank 2 lost"), "{}", run["outcome"]);
    let run = with("--replacement-timeout=1m");
    assert!(run["outcome"].as_str().expect("text").contains("nobody took rank [2]"));
    let (_kept, name) = file("[[crash]]\nrank = 2\nat = '200ms'\nback = '30s'\n");
    let by_file = simulate(&["--mode=sync", "--faults", &name]);
    assert_eq!(by_file, simulate(&["--mode=sync", "--fault=crash:rank=2,at=200ms,back=30s"]));
}

#[test]
fn equal_flags_give_equal_bytes() {
    let arguments = [
        "--workers=3,7",
        "--compute-time=log-normal,median=10ms,sigma=0.8",
        "--sim-seed=1,2",
        "--stragglers=share=0.1,factor=5",
        "--batch=8",
        "--fault=crash:rank=1,at=0.3s,back=12s",
        "--json",
    ];
    let (first, second) = (psctl(&arguments), psctl(&arguments));
    assert!(first.status.success() && first.stdout == second.stdout);
    let results: Value = serde_json::from_slice(&first.stdout).expect("JSON");
    let seconds = |i: usize| number(&results, &format!("/runs/{i}/virtual_seconds"));
    assert_eq!(number(&results, "/runs/1/sim_seed"), 2.0);
    assert_ne!(seconds(0), seconds(1), "another seed, another time");
}

#[test]
fn one_call_gives_the_table_and_the_pictures() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let output = psctl(&[
        "--workers=1,2,4,8,16,32",
        "--plot",
        &at("loss.svg"),
        "--x=pushes",
        "--plot-speedup",
        &at("speedup.png"),
        "--csv",
        &at("loss.csv"),
    ]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let table = String::from_utf8(output.stdout).expect("UTF-8");
    let rows = |mode: &str| table.lines().filter(|line| line.starts_with(mode)).count();
    assert_eq!((rows("sync "), rows("async ")), (6, 6), "{table}");
    let svg = std::fs::read_to_string(at("loss.svg")).expect("a picture");
    for name in ["sync, K = 1", "async, K = 32", "pushes"] {
        assert!(svg.contains(name), "{name}");
    }
    assert!(std::fs::read(at("speedup.png")).expect("a picture").starts_with(b"\x89PNG"));
    let csv = std::fs::read_to_string(at("loss.csv")).expect("a file");
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(lines[0], "mode,workers,sim_seed,version,round,seconds,pushes,loss");
    assert_eq!(lines.len(), 1 + 12 * 101, "one measurement a pass, and theta at the end");
    assert!(lines.iter().any(|line| line.starts_with("sync,4,0,100,100,")));
}

#[test]
fn test_rows_are_measured_at_the_end() {
    let data = golden("../data/iris/iris.csv").display().to_string();
    let runs = simulate(&[
        "--data",
        &data,
        "--test-data",
        &data,
        "--model=softmax",
        "--bias",
        "--lr=0.5",
        "--workers=3",
        "--shuffle=true",
        "--scale=standard",
    ]);
    for run in &runs {
        let of = |name: &str| number(run, &format!("/report/final/{name}"));
        assert!(of("test_accuracy") > 0.9, "{run}");
        assert!((of("test_loss") - of("loss")).abs() < 1e-6, "the same rows");
    }
}

#[test]
fn what_cannot_be_meant_is_refused_by_name() {
    let (_kept, schedule) = file("0\n1\n9\n");
    let (_kept_too, good) = file("0\n1\n");
    for (arguments, code, says) in [
        (&["--rounds=0"][..], 78, "--rounds 0"),
        (&["--compute-time=gauss"], 78, "--compute-time"),
        (&["--bandwidth=1GB/s"], 78, "--bandwidth"),
        (&["--slow-worker=4=2"], 78, "--workers 5"),
        (&["--fault=melt:rank=1"], 78, "--fault"),
        (&["--fault=crash:rank=4,at=1s"], 78, "--workers 5"),
        (&["--fixed-delay=2"], 78, "--schedule"),
        (&["--x=pushes"], 78, "--plot"),
        (&["--plot-speedup=a.svg"], 78, "--workers"),
        (&["--plot=a.gif"], 78, "--plot"),
        (&["--mode=sync", "--eval-every=2"], 78, "--eval-every"),
        (&["--mode=async", "--aggregate=mean"], 78, "--aggregate"),
        (&["--staleness-bound=1"], 78, "--staleness-bound"),
        (&["--mode=async,hogwild"], 78, "--mode hogwild"),
        (&["--data-is-shard"], 78, "--data-is-shard"),
        (&["--lr=-1"], 78, "--lr"),
        (&["--csv=/no/such/folder/a.csv"], 73, "/no/such/folder"),
        (&["--faults=/no/such/file"], 74, "--faults"),
        (&["--workers=0"], 2, "--workers"),
        (&["--schedule", &schedule], 65, ":3: worker 9"),
        (&["--schedule", &good, "--mode=sync"], 78, "--mode"),
        (&["--schedule", &good, "--workers=2,4"], 78, "--workers"),
        (&["--schedule", &good, "--rounds=5"], 78, "--rounds"),
        (&["--schedule", &good, "--latency=1ms"], 78, "--latency"),
        (&["--schedule", &good, "--latency=1ms"], 78, "--latency"),
        (&["--schedule", &good, "--late=abandon"], 78, "--late"),
        (&["--mode=sync", "--late=abandon"], 78, "--backup-workers"),
        (&["--schedule", &good, "--fault=crash:rank=1,at=1s"], 78, "--fault"),
    ] {
        let output = psctl(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(says), "{arguments:?}: {stderr}");
    }
}

#[test]
fn the_configuration_file_knows_every_option() {
    let flags = [
        "--workers=2,3",
        "--mode=async",
        "--sim-seed=7",
        "--lr=0.02",
        "--compute-time=uniform=5ms..15ms",
        "--slow-worker=0=2",
        "--slow-worker=1=3",
        "--fault=crash:rank=1,at=0.1s,back=12s",
        "--fault=slow:rank=0,from=0s,to=1s,factor=4",
    ];
    let printed = psctl(&[&flags[..], &["--print-config"]].concat());
    let (_kept, name) = file(&String::from_utf8(printed.stdout).expect("UTF-8"));
    let runs = simulate(&["--config", &name]);
    assert_eq!(runs.len(), 2);
    assert_eq!(runs, simulate(&flags));
    assert_eq!((number(&runs[1], "/n_workers"), number(&runs[1], "/sim_seed")), (3.0, 7.0));
    assert_eq!(runs[0]["report"]["optimizer"], "sgd, lr=0.02");
}

fn golden_sync() -> Vec<f64> {
    let text = std::fs::read_to_string(golden("sync_k4.json")).expect("golden losses");
    let golden: Value = serde_json::from_str(&text).expect("JSON");
    let losses = golden["loss_history"].as_array().expect("losses");
    losses.iter().map(|loss| loss.as_f64().expect("a number")).collect()
}

const IRIS: &str = concat!("--data=", env!("CARGO_MANIFEST_DIR"), "/../tests/data/iris/iris.csv");

#[test]
fn map_reduce_is_a_synchronous_server_to_the_bit() {
    let runs = simulate(&["--mode=mapreduce", "--workers=1,3,4,16", "--dtype=f64"]);
    assert_eq!(runs.len(), 4);
    for run in &runs {
        assert_close(&losses(run), &golden_sync(), 1e-9);
        assert_eq!((&run["mode"], &run["outcome"]), (&"mapreduce".into(), &"done".into()));
        assert_eq!(number(run, "/pushes"), 100.0 * number(run, "/n_workers"));
        assert!(run.get("report").is_none(), "there is no core that could report");
    }
    // Two messages of 10 numbers from or to all over one link, and the slowest worker's 10 ms.
    let round = 2.0 * (0.001 + 4.0 * 80.0 * 8.0 / 1e9) + 0.010;
    assert!((number(&runs[2], "/virtual_seconds") - 100.0 * round).abs() < 1e-9);

    for job in [
        &["--aggregate=sum", "--lr=0.003"][..],
        &["--aggregate=collect", "--batch=8"],
        &["--aggregate=trimmed-mean,k=1", "--dtype=f64"],
        &["--optimizer=adam", "--lr-schedule=inv-sqrt,warmup=5", "--weight-decay=0.1"],
        &[IRIS, "--model=mlp", "--scale=standard", "--batch=16", "--shuffle=true", "--seed=3"],
    ] {
        let arguments = [&["--mode=sync,mapreduce", "--workers=5"][..], job].concat();
        let runs = simulate(&arguments);
        let [sync, reduced] = &runs[..] else { panic!("two modes") };
        assert_eq!(reduced["theta_sha256"], sync["report"]["final"]["theta_sha256"], "{job:?}");
        assert_eq!(reduced["theta_sha256"], sync["theta_sha256"], "{job:?}");
        assert_eq!(reduced["train_accuracy"], sync["train_accuracy"], "{job:?}");
        let versions = |run: &Value| -> Vec<f64> {
            let points = run["history"].as_array().expect("a history");
            points.iter().map(|point| number(point, "/version")).collect()
        };
        assert_eq!(versions(reduced), versions(sync), "{job:?}");
        assert_close(&losses(reduced), &losses(sync), 1e-6);
    }
}

#[test]
fn map_reduce_lives_in_the_same_world() {
    let world = [
        "--mode=sync,mapreduce",
        "--workers=20",
        "--compute-time=log-normal,median=10ms,sigma=0.5",
        "--stragglers=share=0.02,factor=10",
        "--slow-worker=3=2",
        "--sim-seed=5,6",
        "--latency=0s",
        "--bandwidth=1000Gbit/s",
    ];
    let runs = simulate(&world);
    let [sync, _, reduced, other] = &runs[..] else { panic!("two modes, two seeds") };
    // The same draws: without links only the server's updates take longer.
    let applied = 100.0 * 0.1e-3;
    let differ = number(sync, "/virtual_seconds") - number(reduced, "/virtual_seconds");
    assert!((differ - applied).abs() < 1e-3, "{differ}");
    assert_ne!(number(other, "/virtual_seconds"), number(reduced, "/virtual_seconds"));
    let idle = |run: &Value, rank: u32| number(run, &format!("/idle_share/by_worker/{rank}"));
    assert!((0..20).all(|rank| (idle(sync, rank) - idle(reduced, rank)).abs() < 0.01));
    assert!((0..20).all(|rank| idle(reduced, rank) >= idle(reduced, 3)));
    let speedups = [sync, reduced].map(|run| number(run, "/speedup"));
    assert!((speedups[0] / speedups[1] - 1.0).abs() < 0.02, "{speedups:?}");

    // A theta of another size, rows that take their time: 25 rows and 2 (L + 4 B / W).
    let rows = ["--mode=mapreduce", "--theta-bytes=1M", "--compute-per=row", "--rounds=10"];
    let seconds = number(&simulate(&rows)[0], "/virtual_seconds");
    let rows_of_a_worker = Twin::new().targets.len().div_ceil(4) as f64;
    let round = 0.010 * rows_of_a_worker + 2.0 * (0.001 + 4.0 * 8e6 / 1e9);
    assert!((seconds - 10.0 * round).abs() < 1e-9, "{seconds}");

    let hot = simulate(&["--mode=mapreduce", "--lr=50", "--dtype=f64", "--rounds=1000"]);
    assert_eq!(hot[0]["outcome"], "diverged");
    assert!(number(&hot[0], "/diverged_at_round") < 5.0 && number(&hot[0], "/rounds") < 1000.0);
}

#[test]
fn a_ring_tells_its_gap_and_how_far_its_peers_are_apart() {
    let runs = simulate(&["--topology=ring,star,complete", "--workers=4,9", "--dtype=f64"]);
    assert_eq!(runs.len(), 6);
    for (run, n) in runs.iter().zip([4.0, 9.0].into_iter().cycle()) {
        let gap = match run["topology"].as_str().expect("a name") {
            "ring" => 2.0 / 3.0 * (1.0 - (std::f64::consts::TAU / n).cos()),
            "star" => 1.0 / n,
            _ => 1.0,
        };
        assert!((number(run, "/spectral_gap") - gap).abs() < 1e-11, "{run}");
        assert_eq!((number(run, "/n_peers"), &run["outcome"]), (n, &"done".into()));
        let last = &run["history"][100];
        assert!(number(last, "/disagreement") > 0.0);
        assert!(number(last, "/loss") < number(last, "/loss_own"));
        assert!(number(last, "/loss_own") < number(last, "/loss_worst"));
        assert_eq!(number(last, "/loss"), number(run, "/final_loss"));
    }
    // All shards have as many rows: the mean of all in a complete graph is the server's theta.
    assert_close(&losses(&runs[4]), &golden_sync(), 1e-9);

    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (csv, svg) = (at("peers.csv"), at("peers.svg"));
    let one = ["--topology=ring", "--workers=6", "--csv", &csv, "--plot", &svg, "--x=seconds"];
    let output = psctl(&one);
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(text.starts_with("ring") && text.contains("spectral gap 0.3333\n"), "{text}");
    let csv = std::fs::read_to_string(&csv).expect("a file");
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(
        lines[0],
        "topology,workers,sim_seed,round,seconds,loss,loss_own,loss_worst,rank_worst,disagreement,\
         accuracy,accuracy_own"
    );
    assert!(lines.len() == 102 && lines[101].starts_with("ring,6,0,100,"), "{csv}");
    let svg = std::fs::read_to_string(&svg).expect("a picture");
    for what in ["mean theta", "own thetas", "worst", "disagreement"] {
        assert!(svg.contains(&format!("ring, K = 6: {what}")), "{what}");
    }
    let table = psctl(&["--topology=ring,star", "--workers=4", "--eval-every=50"]);
    let table = String::from_utf8(table.stdout).expect("UTF-8");
    for word in ["gap", "own loss", "worst", "disagreement", "0.6667", "0.2500", "\nring", "\nstar"]
    {
        assert!(table.contains(word), "{word}: {table}");
    }
}

#[test]
fn peers_begin_as_the_model_says_and_take_their_time() {
    let job = [IRIS, "--model=mlp", "--scale=standard", "--lr=0.5", "--workers=3", "--dtype=f64"];
    let begin = |how: &str| losses(&simulate(&[&job[..], &[how]].concat())[0]);
    let (peers, server) = (begin("--topology=complete"), begin("--mode=sync"));
    assert_close(&peers, &server, 1e-9);
    assert!(server[100] < 0.5 * server[0], "{server:?}");

    let world = ["--latency=5ms", "--bandwidth=80Mbit/s", "--theta-bytes=1M", "--rounds=10"];
    let star = ["--topology=star", "--slow-worker=0=3", "--workers=5"];
    let run = &simulate(&[&star[..], &world].concat())[0];
    // The link of rank 0 carries four thetas each way; it computes for three times 10 ms. The last
    // gradient of a leaf is sooner than its.
    let round = 0.005 + 4.0 * 0.1 + 0.030;
    assert!((number(run, "/virtual_seconds") - 10.0 * round).abs() < 1e-9, "{run}");
    let again = ["--topology=gossip", "--sim-seed=1,2", "--compute-time=exponential,mean=10ms"];
    let runs = simulate(&again);
    assert_ne!(runs[0]["virtual_seconds"], runs[1]["virtual_seconds"]);
    assert_eq!(losses(&runs[0]), losses(&runs[1]), "seconds decide nothing");
    let hot = &simulate(&["--topology=ring", "--lr=50"])[0];
    assert_eq!(hot["outcome"], "diverged");
}

#[test]
fn parts_of_a_graph_are_refused_unless_permitted() {
    let (_kept, apart) = file("0 1\n2 3\n");
    let (_kept_too, joined) = file("0 1\n1 2\n2 3 # a path\n");
    for arguments in [&["--topology=ring,islands"][..], &["--graph", &apart]] {
        let output = psctl(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{stderr}");
        assert!(stderr.contains("2 components: {0, 1} {2, 3}"), "{stderr}");
        let run = &simulate(&[arguments, &["--allow-disconnected"]].concat()).pop().expect("runs");
        assert_eq!(number(run, "/n_components"), 2.0);
        assert!(number(run, "/spectral_gap").abs() < 1e-12);
    }
    let by_file = &simulate(&["--graph", &joined])[0];
    let by_name = &simulate(&["--topology=path"])[0];
    assert_eq!((&by_file["topology"], &by_file["history"]), (&joined.into(), &by_name["history"]));
    let sorted = [IRIS, "--model=softmax", "--lr=0.5", "--shuffle=true", "--workers=9"];
    let own = |deal: &str| {
        let run = simulate(&[&sorted[..], &["--topology=star", deal]].concat()).remove(0);
        number(&run, "/history/100/loss_own")
    };
    assert!(own("--deal=sorted-by-class") > 1.1 * own("--deal=as-read"), "shards that differ");
}

#[test]
fn what_has_no_meaning_without_a_server_is_refused_by_name() {
    let (_kept, schedule) = file("0\n1\n");
    let of_a_server = [
        "--staleness-bound=2",
        "--backup-workers=1",
        "--delay-scaling=inverse",
        "--max-gradient-delay=4",
        "--on-excess=drop",
        "--target-loss=0.1",
        "--max-seconds=5",
        "--plateau=3",
        "--lease-ms=500",
        "--on-worker-loss=wait",
        "--replacement-timeout=10m",
        "--server-bandwidth=1G",
        "--apply-time=0.1ms",
        "--fault=crash:rank=1,at=1s",
        "--faults=faults.toml",
    ];
    let schedule = format!("--schedule={schedule}");
    let (_kept_too, graph) = file("0 1\n1 2\n2 3\n");
    let graph = format!("--graph={graph}");
    let of_peers = [
        "--mode=sync",
        "--aggregate=mean",
        "--optimizer=adam",
        "--lr-schedule=step,every=5,gamma=0.5",
        "--weight-decay=0.1",
        "--clip-norm=1",
        "--fixed-delay=1",
        &schedule,
    ];
    let ring = of_peers.iter().chain(&of_a_server).map(|given| vec!["--topology=ring", given]);
    let reduced = of_a_server.iter().map(|given| vec!["--mode=sync,mapreduce", given]);
    let more = [
        vec!["--topology=ring", "--data-is-shard"],
        vec!["--topology=ring", "--test-data=a.csv"],
        vec!["--topology=ring", "--plot=a.svg", "--x=pushes"],
        vec!["--topology=ring", "--workers=2,4", "--plot-speedup=a.svg"],
        vec!["--topology=ring", "--rounds=0"],
        vec!["--topology=ring", "--slow-worker=4=2"],
        vec!["--topology=ring", &graph],
        vec!["--mode=mapreduce", "--test-data=a.csv"],
        vec!["--mode=mapreduce", "--data-is-shard"],
        vec!["--mode=mapreduce", "--eval-every=2"],
        vec!["--mode=mapreduce,sync", "--deal=sorted-by-class"],
        vec!["--mode=mapreduce", "--deal=sorted-by-class"],
        vec!["--deal=as-read"],
        vec!["--allow-disconnected"],
    ];
    for arguments in ring.chain(reduced).chain(more) {
        let output = psctl(&arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        let given = arguments.last().expect("one").split('=').next().expect("a flag");
        assert_eq!(output.status.code(), Some(78), "{arguments:?}: {stderr}");
        assert!(stderr.contains(given), "{arguments:?}: {stderr}");
    }
    let output = psctl(&["--mode=bsp"]);
    assert_eq!(output.status.code(), Some(2), "an unknown word is a usage error");
}

#[test]
fn runs_without_a_server_are_the_same_bytes_again() {
    for how in ["--topology=gossip,torus,tree", "--mode=mapreduce"] {
        let arguments = [
            how,
            "--workers=5,8",
            "--compute-time=exponential,mean=10ms",
            "--sim-seed=1,2",
            "--stragglers=share=0.1,factor=5",
            "--batch=8",
            "--json",
        ];
        let (first, second) = (psctl(&arguments), psctl(&arguments));
        assert!(first.status.success() && first.stdout == second.stdout, "{how}");
        let printed = psctl(&[&arguments[..], &["--print-config"]].concat());
        let (_kept, name) = file(&String::from_utf8(printed.stdout).expect("UTF-8"));
        assert_eq!(psctl(&["--config", &name]).stdout, first.stdout, "{how}");
    }
}

#[test]
fn a_scenario_plays_the_flags_that_it_prints() {
    let json = psctl(&["--scenario=one-server-speedup", "--json"]);
    assert!(json.status.success(), "{}", String::from_utf8_lossy(&json.stderr));
    let played: Value = serde_json::from_slice(&json.stdout).expect("one object of JSON");
    let command = played["commands"][0].as_str().expect("a command");
    let flags = command.strip_prefix("psctl simulate ").expect("a call of this program");
    let runs = simulate(&flags.split(' ').collect::<Vec<_>>());
    let rows = played["rows"].as_array().expect("rows");
    assert_eq!(runs.len(), rows.len());
    for (run, row) in runs.iter().zip(rows) {
        assert_eq!(run["speedup"], row["speedup"]);
        assert_eq!(run["virtual_seconds"], row["time_seconds"]);
    }
}

#[test]
fn what_a_scenario_would_ignore_is_refused_wherever_it_is_from() {
    let (_kept, config) = file("lr = 0.5\n");
    let call = |more: &[&str], variable: Option<(&str, &str)>| {
        let mut command = Command::new(PSCTL);
        for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("PS_")) {
            command.env_remove(key);
        }
        command.args(["simulate", "--scenario=ssp-idle"]).args(more).envs(variable);
        let output = command.output().expect("psctl starts");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (more, variable, says) in [
        (&["--workers=3"][..], None, "--workers has no meaning with --scenario ssp-idle"),
        (&["--print-config"], None, "--print-config has no meaning"),
        (&["--config", &config], None, "--lr has no meaning"),
        (&[], Some(("PS_LR", "0.5")), "--lr has no meaning"),
    ] {
        let (code, stderr) = call(more, variable);
        assert_eq!(code, Some(78), "{more:?} {variable:?}: {stderr}");
        assert!(stderr.contains(says), "{more:?} {variable:?}: {stderr}");
    }
    let (code, stderr) = call(&["--quiet"], Some(("PS_SIM_SEED", "3")));
    assert_eq!(code, Some(0), "{stderr}");
}
