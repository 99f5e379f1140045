//! Generated faults: whatever goes wrong and is mended, the job ends, nothing counts twice, and a
//! synchronous job learns the same. The core checks its own invariants after every step.

use clap::Parser;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::simulate::{RunResult, SimulateArgs, results};

const CASES: u64 = 150;
const N_WORKERS: u64 = 5;
const ROUNDS: u64 = 12;

#[derive(Parser)]
struct Demo {
    #[command(flatten)]
    args: SimulateArgs,
}

fn simulate(flags: &[String]) -> RunResult {
    let all = std::iter::once("simulate").chain(flags.iter().map(String::as_str));
    let args = Demo::try_parse_from(all).expect("accepted").args;
    let mut runs = results(&args, true).expect("simulated").runs;
    assert_eq!(runs.len(), 1);
    runs.remove(0)
}

fn base(mode: &str) -> Vec<String> {
    let text = format!(
        "--mode={mode} --workers={N_WORKERS} --rounds={ROUNDS} --quiet --batch=full \
         --lease-ms=500 --on-worker-loss=wait"
    );
    text.split_whitespace().map(str::to_owned).collect()
}

/// Some world, and faults that all end.
fn generated(rng: &mut ChaCha8Rng) -> Vec<String> {
    let mut flags = Vec::new();
    let times = [
        "constant=10ms",
        "uniform=0s..50ms",
        "exponential,mean=15ms",
        "constant=900ms",
        "constant=0s",
    ];
    flags.push(format!("--compute-time={}", times[rng.random_range(0..times.len())]));
    let latency_us = [0, 100, 1000, 200_000][rng.random_range(0..4)];
    flags.push(format!("--latency={latency_us}us"));
    if rng.random() {
        flags.push("--server-bandwidth=1Mbit/s".to_owned());
    }
    for _ in 0..rng.random_range(1..5) {
        let (first, last) = (rng.random_range(0..N_WORKERS), rng.random_range(0..N_WORKERS));
        let from = rng.random_range(0..400);
        let to = from + [1, 30, 450, 3000, 40_000][rng.random_range(0..5)];
        flags.push(match rng.random_range(0..3) {
            0 => format!("--fault=crash:rank={first},at={from}ms,back={to}ms"),
            1 => format!("--fault=slow:rank={first},from={from}ms,to={to}ms,factor=100"),
            _ => format!(
                "--fault=partition:ranks={}-{},from={from}ms,to={to}ms",
                first.min(last),
                first.max(last)
            ),
        });
    }
    flags
}

#[test]
fn a_synchronous_job_learns_the_same_whatever_goes_wrong() {
    let plain = simulate(&base("sync"));
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for case in 0..CASES {
        let flags = [base("sync"), generated(&mut rng)].concat();
        let run = simulate(&flags);
        assert_eq!(run.outcome, "done", "case {case}: {flags:?}");
        assert_eq!(run.pushes, N_WORKERS * ROUNDS, "case {case}: {flags:?}");
        assert_eq!(run.theta_sha256, plain.theta_sha256, "case {case}: {flags:?}");
        let losses = |run: &RunResult| run.history.iter().map(|p| p.loss).collect::<Vec<_>>();
        let (got, expected) = (losses(&run), losses(&plain));
        let last = got.len() - 1;
        assert_eq!(got[..last], expected[..last], "case {case}: {flags:?}");
        // Of all rows, whoever is left at the end to measure it, summed in another order.
        assert!((got[last] - expected[last]).abs() < 1e-9, "case {case}: {flags:?}");
    }
}

#[test]
fn an_asynchronous_job_counts_every_gradient_once_whatever_goes_wrong() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for case in 0..CASES {
        let flags = [base("async"), generated(&mut rng)].concat();
        let run = simulate(&flags);
        assert_eq!(run.outcome, "done", "case {case}: {flags:?}");
        assert_eq!(run.pushes, N_WORKERS * ROUNDS, "case {case}: {flags:?}");
        let delays: u64 = run.gradient_delay.histogram.iter().sum();
        assert_eq!(delays, run.pushes, "case {case}: {flags:?}");
        assert!(run.history.is_sorted_by(|a, b| a.version < b.version && a.seconds <= b.seconds));
    }
}

/// One of three is ten times slower than a round, which closes without it.
#[test]
fn who_abandons_a_late_gradient_sends_none_and_the_rest_learn_the_same() {
    let run = |late: &str| {
        let flags = "--mode=sync --workers=3 --rounds=40 --quiet --backup-workers=1 \
                     --slow-worker=2=10";
        let mut flags: Vec<String> = flags.split_whitespace().map(str::to_owned).collect();
        flags.push(format!("--late={late}"));
        simulate(&flags)
    };
    let (finish, abandon) = (run("finish"), run("abandon"));
    let late = |run: &RunResult| run.report.as_ref().expect("a server's").dropped.late;
    assert!(late(&finish) > 0);
    assert_eq!(late(&abandon), 0);
    assert_eq!(abandon.pushes, 2 * 40);
    let sha256 = |run: &RunResult| run.theta_sha256.clone();
    assert_eq!(sha256(&abandon), sha256(&finish));
    assert!((abandon.virtual_seconds - finish.virtual_seconds).abs() < 0.1);
}

/// With no latency nobody computes for a round that is over: each takes as long as its second
/// fastest of three, drawn anew. Two rounds of a straggler cost nothing.
#[test]
fn who_abandons_is_in_step_in_the_next_round() {
    let flags = "--mode=sync --workers=3 --rounds=200 --quiet --backup-workers=1 --latency=0s \
                 --apply-time=0s --bandwidth=1000Gbit/s --stragglers=share=0.1,factor=20";
    let seconds = |late: &str| {
        let mut flags: Vec<String> = flags.split_whitespace().map(str::to_owned).collect();
        flags.push(format!("--late={late}"));
        simulate(&flags).virtual_seconds
    };
    // A round is slow, 0.2 s instead of 0.01 s, if two of three straggle: 2.8 % of them.
    let abandon = seconds("abandon");
    let n_slow = (abandon - 2.0) / 0.19;
    assert!((0.0..14.0).contains(&n_slow), "{abandon} s");
    assert!((n_slow - n_slow.round()).abs() < 0.01, "{abandon} s");
    assert!(seconds("finish") > 1.5 * abandon);
}

#[test]
fn a_job_whose_workers_abandon_ends_whatever_goes_wrong() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for case in 0..CASES {
        let more = ["--backup-workers=2", "--late=abandon"].map(str::to_owned);
        let flags = [base("sync"), more.into(), generated(&mut rng)].concat();
        let run = simulate(&flags);
        assert_eq!(run.outcome, "done", "case {case}: {flags:?}");
        let version = run.report.as_ref().expect("a server's").version;
        assert_eq!(version, ROUNDS, "case {case}: {flags:?}");
    }
}
