//! What the runs have come to, as data: the JSON of `psctl simulate`.

use ps_common::report::{GradientDelay, Report};
use serde::Serialize;

use super::engine::Finished;
use super::mode::RunMode;
use super::pace::Per;

/// An objective that has risen to so many times where it began will not come back.
const BLOWN_UP: f64 = 1e3;

/// All runs of a call.
#[derive(Debug, Clone, Serialize)]
pub struct Results {
    /// In the order of the flags: by mode, number of workers, seed.
    pub runs: Vec<RunResult>,
}

/// One run.
#[derive(Debug, Clone, Serialize)]
pub struct RunResult {
    /// How updates were ordered.
    pub mode: RunMode,
    /// K.
    pub n_workers: u32,
    /// Of compute times.
    pub sim_seed: u64,
    /// `done`, `diverged`, or why the job failed.
    pub outcome: String,
    /// Where the objective first was a thousand times its first value, if it ended above that; else
    /// where numbers left the range of floating point.
    pub diverged_at_round: Option<f64>,
    /// From the first join to the final theta; 0 in a fixed schedule.
    pub virtual_seconds: f64,
    /// Completed.
    pub rounds: f64,
    /// Gradients that counted.
    pub pushes: u64,
    /// The objective at the final theta; `None` if it is no number.
    pub final_loss: Option<f64>,
    /// Share of training rows predicted right at the final theta; absent for regression and where
    /// nobody looked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_accuracy: Option<f64>,
    /// Of the final theta (rule R11).
    pub theta_sha256: String,
    /// Of the workers' time, from first join to last push; absent in a fixed schedule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_share: Option<IdleShare>,
    /// Updates between a gradient's pull and its own.
    pub gradient_delay: GradientDelay,
    /// Work per virtual second, divided by that of one worker in the same mode; `None` where one
    /// worker alone is not possible or nothing was done.
    pub speedup: Option<f64>,
    /// What it would be if workers never waited: K.
    pub speedup_ideal: f64,
    /// The objective by round, version, pushes and virtual seconds.
    pub history: Vec<Point>,
    /// The core's own report; absent without a server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report: Option<Report>,
    /// Model and update rule, for titles.
    #[serde(skip)]
    pub(super) subject: String,
    /// Work per virtual second: gradients, or rows with `--compute-per row`.
    #[serde(skip)]
    pub(super) rate: Option<f64>,
}

/// Share of the time that workers did not compute.
#[derive(Debug, Clone, Serialize)]
pub struct IdleShare {
    /// Over the workers.
    pub mean: f64,
    /// Least idle worker.
    pub min: f64,
    /// Most idle worker.
    pub max: f64,
    /// By rank.
    pub by_worker: Vec<f64>,
}

/// The objective at one version of theta.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Point {
    /// version in sync mode, version / K otherwise.
    pub round: f64,
    /// Of theta.
    pub version: u64,
    /// Gradients that had counted.
    pub pushes: u64,
    /// Virtual.
    pub seconds: f64,
    /// The objective.
    pub loss: f64,
}

impl RunResult {
    /// From what the engine has left.
    pub(super) fn new(mode: RunMode, sim_seed: u64, per: Per, finished: Finished) -> Self {
        let Finished { report, pushes, n_pushes, idle_shares, diverged_at_round } = finished;
        let final_loss = report.r#final.loss;
        let ended = report.outcome == "done";
        let history = report.history.iter().zip(pushes).map(|(entry, pushes)| Point {
            round: entry.round,
            version: entry.version,
            pushes,
            seconds: entry.seconds,
            loss: entry.loss,
        });
        let history: Vec<Point> = history.collect();
        // theta is finite to the end, but the objective at it need not be.
        let diverged_at_round = diverged_at(&history, diverged_at_round)
            .or_else(|| (ended && final_loss.is_none()).then_some(report.rounds));
        let outcome = if diverged_at_round.is_some() {
            "diverged".to_owned()
        } else {
            report.outcome.clone()
        };
        let work = match per {
            Per::Step => n_pushes as f64,
            Per::Row => report.workers.iter().map(|worker| worker.stats.samples as f64).sum(),
        };
        Self {
            mode,
            n_workers: report.n_workers,
            sim_seed,
            outcome,
            diverged_at_round,
            virtual_seconds: report.wall_seconds,
            rounds: report.rounds,
            pushes: n_pushes,
            final_loss,
            train_accuracy: report.r#final.train_accuracy,
            theta_sha256: report.r#final.theta_sha256.clone(),
            idle_share: IdleShare::of(idle_shares),
            gradient_delay: report.gradient_delay.clone(),
            speedup: None,
            speedup_ideal: f64::from(report.n_workers),
            history,
            subject: format!("{}, {}", report.model, report.optimizer),
            rate: (work > 0.0 && report.wall_seconds > 0.0).then(|| work / report.wall_seconds),
            report: Some(report),
        }
    }
}

/// The first sign that a run diverged: in its history, or the round in which numbers overflowed.
pub(super) fn diverged_at(history: &[Point], overflow: Option<f64>) -> Option<f64> {
    let losses: Vec<(f64, f64)> = history.iter().map(|p| (p.round, p.loss)).collect();
    blown_up_at(&losses).or(overflow)
}

/// The round from which on, if it ended so, the objective was beyond all hope, or no number. Losses
/// come with their rounds.
pub(super) fn blown_up_at(losses: &[(f64, f64)]) -> Option<f64> {
    let (&(_, first), last) = (losses.first()?, losses.last()?);
    let is_beyond = |(_, loss): &&(f64, f64)| *loss > first * BLOWN_UP || loss.is_nan();
    if first > 0.0 && is_beyond(&last) {
        losses.iter().find(is_beyond).map(|(round, _)| *round)
    } else {
        None
    }
}

impl IdleShare {
    pub(super) fn of(by_worker: Vec<f64>) -> Option<Self> {
        if by_worker.is_empty() {
            return None;
        }
        Some(Self {
            mean: by_worker.iter().sum::<f64>() / by_worker.len() as f64,
            min: by_worker.iter().copied().fold(f64::INFINITY, f64::min),
            max: by_worker.iter().copied().fold(0.0, f64::max),
            by_worker,
        })
    }
}

/// Fills in how much faster each run works than one worker of the same mode and seed.
pub(super) fn compare(runs: &mut [RunResult], baselines: &[RunResult]) {
    let rates: Vec<(RunMode, u64, Option<f64>)> = runs
        .iter()
        .chain(baselines)
        .filter(|run| run.n_workers == 1)
        .map(|run| (run.mode, run.sim_seed, run.rate))
        .collect();
    for run in runs {
        let alone = rates.iter().find(|(mode, seed, _)| *mode == run.mode && *seed == run.sim_seed);
        let alone = alone.and_then(|(_, _, rate)| *rate);
        run.speedup = run.rate.zip(alone).map(|(rate, alone)| rate / alone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_ends_far_above_its_beginning_has_diverged() {
        let at = |losses: &[f64]| {
            let entry = |(round, &loss): (usize, &f64)| (round as f64, loss);
            blown_up_at(&losses.iter().enumerate().map(entry).collect::<Vec<_>>())
        };
        assert_eq!(at(&[1.0, 2.0, 1e4, 1e2, 1e9]), Some(2.0));
        assert_eq!(at(&[1.0, 1e4, 0.5]), None, "it came back");
        assert_eq!(at(&[1.0, 999.0]), None);
        assert_eq!(at(&[1.0, 2.0, f64::NAN]), Some(2.0));
        assert_eq!(at(&[0.0, 1.0]), None, "nothing is a thousand times nothing");
        assert_eq!(at(&[]), None);
    }

    #[test]
    fn idle_shares_are_summed_up() {
        let idle = IdleShare::of(vec![0.25, 0.75, 0.5]).expect("workers");
        assert_eq!((idle.mean, idle.min, idle.max), (0.5, 0.25, 0.75));
        assert!(IdleShare::of(Vec::new()).is_none());
    }
}
