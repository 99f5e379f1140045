//! Local steps against a simulation of federated averaging written out, on the built-in problem.

use std::time::Duration;

use clap::Parser;
use ps_common::calls::Caller;
use ps_common::job::{Aggregate, JobState};

use super::*;
use crate::args::WorkerArgs;
use crate::samples::Features;

const WORKERS: u32 = 3;
const L2: f64 = 0.125;

fn problem(arguments: &[&str]) -> Result<Problem, ExitError> {
    let l2 = format!("--l2={L2}");
    let all = ["ps-worker", &l2, "--shuffle=false"].into_iter().chain(arguments.iter().copied());
    Problem::survey(&WorkerArgs::try_parse_from(all).expect("parses").learn)
}

fn terms(problem: &Problem, shard: u32, aggregate: Aggregate) -> JoinAnswer {
    JoinAnswer {
        caller: Caller { rank: shard, incarnation: 1 },
        lease: Duration::from_secs(1),
        clock: 0,
        shard,
        n_shards: WORKERS,
        dim: problem.tables().dim(),
        dtype: Dtype::F64,
        mode: Mode::Sync,
        aggregate,
        rounds: None,
        version: 0,
        state: JobState::Running,
        program: String::new(),
        fingerprint: Fingerprint::new(),
        tables: problem.tables().clone(),
        first_keys: vec![0],
    }
}

fn learners(problem: &Problem) -> Vec<Learner<f64>> {
    let load = |k| problem.load_shard(&terms(problem, k, Aggregate::WeightedMean));
    (0..WORKERS).map(|k| load(k).expect("loaded")).collect()
}

/// What a server at rate 1 and its workers do, by the learners; the objective of each round.
fn train(problem: &Problem, rounds: u64) -> (Vec<f64>, Vec<f64>) {
    let mut learners = learners(problem);
    let mut theta = vec![0.0; problem.tables().dim()];
    let mut history = vec![];
    for clock in 0..rounds {
        let pushes: Vec<(Loss, Vec<f64>)> = learners
            .iter_mut()
            .map(|learner| {
                let mut gradient = vec![f64::NAN; theta.len()];
                (learner.compute(clock, &theta, &mut gradient), gradient)
            })
            .collect();
        let n: u64 = pushes.iter().map(|(loss, _)| loss.n_samples).sum();
        let mut objective = 0.0;
        for (loss, gradient) in &pushes {
            let share = loss.n_samples as f64 / n as f64;
            objective += share * (loss.loss + loss.penalty);
            for (theta, g) in theta.iter_mut().zip(gradient) {
                *theta -= share * g;
            }
        }
        history.push(objective);
    }
    (theta, history)
}

/// Algorithm 1 of McMahan et al. 2017 on half the mean squared error with an L2 term, one number at
/// a time: every client starts from the common theta, takes `h` steps on batches of `size` rows in
/// file order, and the new theta is the mean of theirs by the rows they used.
fn naive(problem: &Problem, rounds: usize, h: usize, size: usize, lr: f64) -> (Vec<f64>, Vec<f64>) {
    let all = problem.load_all::<f64>().expect("loaded");
    let Features::Dense(x) = &all.features else { panic!("dense") };
    let residual = |theta: &[f64], i: usize| -> f64 {
        x.row(i).iter().zip(theta).map(|(x, t)| x * t).sum::<f64>() - all.targets[i]
    };
    let (n, d, k) = (all.len(), x.ncols(), WORKERS as usize);
    let mut theta = vec![0.0; d];
    let mut history = vec![];
    for round in 0..rounds {
        let whole: f64 =
            (0..n).map(|i| residual(&theta, i).powi(2)).sum::<f64>() / (2.0 * n as f64);
        history.push(whole + L2 / 2.0 * theta.iter().map(|t| t * t).sum::<f64>());
        let (mut sum, mut weight) = (vec![0.0; d], 0.0);
        let mut start = 0;
        for client in 0..k {
            let rows = start..start + n / k + usize::from(client < n % k);
            start = rows.end;
            let batches: Vec<Vec<usize>> =
                rows.clone().collect::<Vec<_>>().chunks(size).map(<[usize]>::to_vec).collect();
            let (mut own, mut used) = (theta.clone(), 0);
            for step in 0..h {
                let batch = &batches[(round * h + step) % batches.len()];
                let mut gradient: Vec<f64> = own.iter().map(|t| L2 * t).collect();
                for &i in batch {
                    let r = residual(&own, i) / batch.len() as f64;
                    gradient.iter_mut().zip(x.row(i)).for_each(|(g, x)| *g += r * x);
                }
                own.iter_mut().zip(&gradient).for_each(|(t, g)| *t -= lr * g);
                used += batch.len();
            }
            let used = used.min(rows.len()) as f64;
            sum.iter_mut().zip(&own).for_each(|(s, t)| *s += used * t);
            weight += used;
        }
        theta = sum.into_iter().map(|s| s / weight).collect();
    }
    (theta, history)
}

fn assert_close(got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    let apart = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(apart < 1e-12, "{apart:e} apart");
}

#[test]
fn local_steps_are_federated_averaging() {
    // One batch; part of a pass; several passes, the last one short; batches of one row.
    for (h, batch) in [(1, "full"), (4, "full"), (5, "50"), (17, "50"), (3, "1")] {
        let (steps, batch_flag) = (format!("--local-steps={h}"), format!("--batch={batch}"));
        let problem = problem(&[&steps, &batch_flag, "--local-lr=0.0625"]).expect("fine");
        let (theta, history) = train(&problem, 6);
        let size = batch.parse().unwrap_or(usize::MAX);
        let (theta_naive, history_naive) = naive(&problem, 6, h, size, 0.0625);
        assert_close(&theta, &theta_naive);
        if batch == "full" {
            assert_close(&history, &history_naive);
        }
    }
}

#[test]
fn one_step_at_rate_f_is_the_gradient_times_f() {
    let plain = problem(&["--batch=64"]).expect("fine");
    let local = problem(&["--batch=64", "--local-lr=0.5"]).expect("fine");
    let theta: Vec<f64> = (0..10).map(|i| f64::from(i) / 8.0).collect();
    let (mut gradient, mut moved) = (vec![0.0; 10], vec![0.0; 10]);
    for clock in [0, 3, 100] {
        for (plain, local) in learners(&plain).iter_mut().zip(&mut learners(&local)) {
            let a = plain.compute(clock, &theta, &mut gradient);
            assert_eq!(local.compute(clock, &theta, &mut moved), a);
            let want: Vec<f64> = gradient.iter().map(|g| 0.5 * g).collect();
            assert_close(&moved, &want);
        }
    }
}

#[test]
fn what_a_job_must_agree_on_and_what_it_refuses() {
    let plain = problem(&[]).expect("fine");
    let fingerprint = plain.fingerprint(None);
    assert_eq!((&*fingerprint["local_steps"], &*fingerprint["local_lr"]), ("1", "none"));
    let local = problem(&["--local-steps=5", "--local-lr=0.25", "--batch=10"]).expect("fine");
    let fingerprint = local.fingerprint(None);
    assert_eq!((&*fingerprint["local_steps"], &*fingerprint["local_lr"]), ("5", "0.25"));
    // 334 rows are 34 batches, 7 pushes of 5.
    assert_eq!(local.updates_per_pass(Mode::Sync, WORKERS), 7);
    let load = |problem: &Problem| {
        problem.load_shard::<f64>(&terms(problem, 0, Aggregate::Sum)).map(|_| ())
    };
    assert!(load(&plain).is_ok());
    let error = load(&local).expect_err("a sum of ways");
    assert!(error.exit == Exit::Config && error.message.contains("--aggregate sum"), "{error}");
    let error = problem(&["--local-steps=5"]).expect_err("no rate");
    assert!(error.message.starts_with("--local-steps 5 needs --local-lr"), "{error}");
}
