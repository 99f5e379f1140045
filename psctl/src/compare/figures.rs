//! The figures of a comparison: what --json prints, and what the table shows. Pure.

use ps_common::job::Mode;
use ps_common::report::Report;
use serde::Serialize;

use super::curve::{Band, Effort, Point, default_levels, reached};
use super::outcome::{Fate, Run};
use super::variant::Variant;

/// A variant with its runs.
#[derive(Debug)]
pub(super) struct Compared {
    /// What was run.
    pub(super) variant: Variant,
    /// In order of seed.
    pub(super) runs: Vec<Run>,
}

/// Everything a comparison has to say.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    /// Runs of each variant.
    pub(super) seeds: u32,
    /// Losses that `reached` speaks of.
    pub(super) to_loss: Vec<f64>,
    /// Whether it was stopped before all runs had ended.
    pub(super) interrupted: bool,
    /// In the order of the command line.
    pub(super) variants: Vec<VariantFigures>,
}

/// One variant. Bands are over the runs that are done.
#[derive(Debug, Serialize)]
pub(super) struct VariantFigures {
    pub(super) name: String,
    /// Of `--variant`.
    pub(super) options: String,
    pub(super) mode: Mode,
    pub(super) n_workers: u32,
    pub(super) n_done: usize,
    pub(super) n_diverged: usize,
    pub(super) n_failed: usize,
    /// The final one.
    pub(super) loss: Option<Band>,
    pub(super) train_accuracy: Option<Band>,
    pub(super) test_loss: Option<Band>,
    pub(super) test_accuracy: Option<Band>,
    pub(super) rounds: Option<Band>,
    /// Of all workers.
    pub(super) pushes: Option<Band>,
    pub(super) wall_seconds: Option<Band>,
    pub(super) pushes_per_second: Option<Band>,
    /// The mean over a run's pushes.
    pub(super) gradient_delay: Option<Band>,
    pub(super) bytes_sent_per_worker: Option<Band>,
    pub(super) bytes_received_per_worker: Option<Band>,
    /// One a loss of `to_loss`.
    pub(super) reached: Vec<Reached>,
    pub(super) runs: Vec<RunFigures>,
}

/// Medians over the runs that are done or have diverged, where one that never got there counts as
/// infinitely late; `None` where the median one never did.
#[derive(Debug, Serialize)]
pub(super) struct Reached {
    pub(super) loss: f64,
    /// How many runs got there.
    pub(super) n_runs: usize,
    #[serde(flatten)]
    pub(super) effort: Option<Effort>,
}

/// One run.
#[derive(Debug, Serialize)]
pub(super) struct RunFigures {
    pub(super) seed: u64,
    pub(super) outcome: Fate,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<String>,
    pub(super) loss: Option<f64>,
    pub(super) theta_sha256: Option<String>,
    pub(super) version: Option<u64>,
    pub(super) wall_seconds: Option<f64>,
    pub(super) history: Vec<Point>,
}

impl Figures {
    /// Of what has been run. Without `to_loss` levels are chosen from the curves.
    pub(super) fn of(compared: &[Compared], seeds: u32, to_loss: &[f64], n_runs: usize) -> Self {
        let to_loss = if to_loss.is_empty() { chosen(compared) } else { to_loss.to_vec() };
        let variants: Vec<_> = compared.iter().map(|c| figures(c, &to_loss)).collect();
        let n_run: usize = compared.iter().map(|c| c.runs.len()).sum();
        Self { seeds, to_loss, interrupted: n_run < n_runs, variants }
    }

    /// Runs that failed, not counting those that diverged.
    pub(super) fn n_failed(&self) -> usize {
        self.variants.iter().map(|v| v.n_failed).sum()
    }
}

impl VariantFigures {
    /// How its runs ended, in a word for the table: the worst where none is done.
    pub(super) fn fate(&self) -> Fate {
        match (self.n_done, self.n_diverged) {
            (0, 0) => Fate::Failed,
            (0, _) => Fate::Diverged,
            _ => Fate::Done,
        }
    }
}

/// Levels that all variants that are done cross, and one that the best does.
fn chosen(compared: &[Compared]) -> Vec<f64> {
    let done = || compared.iter().flat_map(|c| &c.runs).filter_map(done_report);
    let first = done().filter_map(|r| r.history.first()).map(|e| e.loss).fold(f64::MIN, f64::max);
    let bands = compared.iter().filter_map(|c| {
        Band::of(c.runs.iter().filter_map(done_report).filter_map(|r| r.r#final.loss))
    });
    let ends = bands.fold(None, |ends: Option<(f64, f64)>, band| {
        let (worst, best) = ends.unwrap_or((f64::MIN, f64::MAX));
        Some((worst.max(band.max), best.min(band.median)))
    });
    ends.map(|(worst, best)| default_levels(first, worst, best)).unwrap_or_default()
}

fn done_report(run: &Run) -> Option<&Report> {
    run.report.as_ref().filter(|_| run.fate == Fate::Done)
}

fn figures(compared: &Compared, to_loss: &[f64]) -> VariantFigures {
    let Compared { variant, runs } = compared;
    let count = |fate| runs.iter().filter(|run| run.fate == fate).count();
    let over = |figure: fn(&Report) -> Option<f64>| {
        Band::of(runs.iter().filter_map(done_report).filter_map(figure))
    };
    VariantFigures {
        name: variant.name.clone(),
        options: variant.options.clone(),
        mode: variant.args.crew.mode,
        n_workers: variant.args.crew.workers,
        n_done: count(Fate::Done),
        n_diverged: count(Fate::Diverged),
        n_failed: count(Fate::Failed),
        loss: over(|r| r.r#final.loss),
        train_accuracy: over(|r| r.r#final.train_accuracy),
        test_loss: over(|r| r.r#final.test_loss),
        test_accuracy: over(|r| r.r#final.test_accuracy),
        rounds: over(|r| Some(r.rounds)),
        pushes: over(|r| Some(pushes(r))),
        wall_seconds: over(|r| Some(r.wall_seconds)),
        pushes_per_second: over(|r| Some(pushes(r) / r.wall_seconds).filter(|n| n.is_finite())),
        gradient_delay: over(|r| Some(r.gradient_delay.mean)),
        bytes_sent_per_worker: over(|r| per_worker(r, |w| w.stats.bytes_sent)),
        bytes_received_per_worker: over(|r| per_worker(r, |w| w.stats.bytes_received)),
        reached: to_loss.iter().map(|&level| reached_by(runs, level)).collect(),
        runs: runs.iter().map(run_figures).collect(),
    }
}

fn pushes(report: &Report) -> f64 {
    report.workers.iter().map(|worker| worker.stats.pushes as f64).sum()
}

fn per_worker(
    report: &Report,
    bytes: impl Fn(&ps_common::report::WorkerReport) -> u64,
) -> Option<f64> {
    let all: f64 = report.workers.iter().map(|worker| bytes(worker) as f64).sum();
    (!report.workers.is_empty()).then(|| all / report.workers.len() as f64)
}

fn reached_by(runs: &[Run], loss: f64) -> Reached {
    let counted = runs.iter().filter(|run| run.fate != Fate::Failed);
    let efforts: Vec<Option<Effort>> = counted.map(|run| reached(&run.curve(), loss)).collect();
    let median = |figure: fn(&Effort) -> f64| {
        let figures = efforts.iter().map(|e| e.as_ref().map_or(f64::INFINITY, figure));
        Band::of(figures).map(|band| band.median).filter(|median| median.is_finite())
    };
    let effort = match (median(|e| e.rounds), median(|e| e.pushes), median(|e| e.seconds)) {
        (Some(rounds), Some(pushes), Some(seconds)) => Some(Effort { rounds, pushes, seconds }),
        _ => None,
    };
    Reached { loss, n_runs: efforts.iter().flatten().count(), effort }
}

fn run_figures(run: &Run) -> RunFigures {
    let report = run.report.as_ref();
    RunFigures {
        seed: run.seed,
        outcome: run.fate,
        reason: run.reason.clone(),
        loss: report.and_then(|r| r.r#final.loss),
        theta_sha256: report.map(|r| r.r#final.theta_sha256.clone()),
        version: report.map(|r| r.version),
        wall_seconds: report.map(|r| r.wall_seconds),
        history: run.curve(),
    }
}
