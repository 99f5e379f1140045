//! Map-reduce against the golden losses of a synchronous run.

use super::*;
use crate::peers::deal::Deal;
use crate::peers::settings::Links;
use crate::peers::{golden_losses, problem};

const SETTINGS: Settings<'static> = Settings {
    dtype: Dtype::F64,
    rounds: 100,
    record_every: 1,
    deal: Deal::AsRead,
    links: Links { bytes_per_second: 1e6, latency_seconds: 0.01 },
    message_bytes: None,
    compute_seconds: &|rank, _| rank as f64,
};

fn job(reduce: Aggregate, n_workers: u32, lr: f64) -> MapReduce {
    MapReduce { n_workers, reduce, optimizer: Optimizer::sgd(lr) }
}

fn outcome(reduce: Aggregate, n_workers: u32, lr: f64) -> Outcome {
    run(&problem(&[]), &job(reduce, n_workers, lr), &SETTINGS).expect("runs")
}

#[test]
fn every_reduction_has_the_losses_of_the_synchronous_server() {
    let want = golden_losses("sync_k4.json");
    for (reduce, lr) in [
        (Aggregate::WeightedMean, 0.01),
        (Aggregate::Mean, 0.01),
        // Four equal shards: a quarter of the rate.
        (Aggregate::Sum, 0.0025),
        // A step by each, all four taken at the theta that was broadcast.
        (Aggregate::Collect, 0.0025),
    ] {
        let run = outcome(reduce, 4, lr);
        assert_eq!(run.history.len(), want.len());
        for (entry, want) in run.history.iter().zip(&want) {
            assert!((entry.loss - want).abs() < 1e-9, "{reduce:?}: {entry:?}, not {want}");
        }
    }
}

#[test]
fn a_round_lasts_as_long_as_its_exchange_and_its_slowest_worker() {
    let run = outcome(Aggregate::Mean, 4, 0.01);
    let round = 2.0 * (0.01 + 4.0 * 80.0 / 1e6) + 3.0;
    let last = run.history.last().expect("entries");
    assert!((last.seconds - 100.0 * round).abs() < 1e-9, "{last:?}");
    assert_eq!(run.bytes_sent, 100 * 8 * 80);
    assert_eq!(run.history[0].seconds, 0.0);
}

#[test]
fn more_workers_than_rows_and_batches() {
    let few = problem(&["--take=3", "--l2=0.1"]);
    let one = run(&few, &job(Aggregate::Mean, 1, 0.01), &SETTINGS).expect("runs");
    let many = run(&few, &job(Aggregate::WeightedMean, 5, 0.01), &SETTINGS).expect("runs");
    let last = |run: &Outcome| run.history.last().expect("entries").loss;
    assert!((last(&one) - last(&many)).abs() < 1e-12);

    let batches = problem(&["--batch=10"]);
    let settings = Settings { record_every: 30, ..SETTINGS };
    let run = run(&batches, &job(Aggregate::Mean, 4, 0.01), &settings).expect("runs");
    let rounds: Vec<u64> = run.history.iter().map(|entry| entry.round).collect();
    assert_eq!(rounds, [0, 30, 60, 90, 100]);
    assert!((run.history[0].loss - golden_losses("sync_k4.json")[0]).abs() < 1e-9, "all rows");
    assert!(last(&run) < 0.1);
}

#[test]
fn divergence_is_told_and_no_workers_are_refused() {
    let run = outcome(Aggregate::Mean, 4, 1e300);
    assert!(run.diverged_in_round.is_some_and(|round| round < 5), "{:?}", run.diverged_in_round);
    assert_eq!(run.history.len() as u64, run.diverged_in_round.unwrap_or(0) + 1);
    let error = super::run(&problem(&[]), &job(Aggregate::Mean, 0, 0.1), &SETTINGS);
    assert!(error.expect_err("nobody").message.contains("--workers 0"));
}
