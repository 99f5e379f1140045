//! What waiting and staleness cost: bounded delay, SSP, and the rescue of stale gradients.

use ps_common::exit::{Exit, ExitError};

use super::About;
use super::findings::{Cell, Findings};
use super::lab::Lab;
use crate::show::chart::{Axis, Chart, Series};
use crate::simulate::{Point, RunResult};

pub(super) const BOUNDED_DELAY: About = About {
    paper: "Li et al. 2014, figure 13",
    seen: "time to a loss is U-shaped in the permitted delay: less waiting, then too stale",
};

pub(super) const SSP_IDLE: About = About {
    paper: "Ho et al. 2013, section 5 (computing and waiting by staleness)",
    seen: "the idle share falls with every larger staleness bound",
};

pub(super) const STALENESS_RESCUE: About = About {
    paper: "Zhang et al. 2016, section 3.2; Zheng et al. 2017, section 4",
    seen: "32 workers diverge; scaled or compensated they end near one worker's error",
};

/// The one run of a call for one.
pub(super) fn only(runs: Vec<RunResult>) -> Result<RunResult, ExitError> {
    let n_runs = runs.len();
    runs.into_iter()
        .next()
        .filter(|_| n_runs == 1)
        .ok_or_else(|| ExitError::new(Exit::Bug, format!("{n_runs} runs, not one")))
}

fn idle(run: &RunResult) -> f64 {
    run.idle_share.as_ref().map_or(f64::NAN, |idle| idle.mean)
}

/// Workers of one speed and no network: the server alone holds them back. Of 4 such workers none is
/// more than 3 updates late, and at this rate that is nearly too much.
///
/// The time is that from which on the loss stays low. `--target-loss` would stop where theta, which
/// oscillates when gradients are late, first happens to pass a good place.
pub(super) fn bounded_delay(lab: &mut Lab) -> Result<Findings, ExitError> {
    let mut rows = Vec::new();
    let (mut times, mut waits) = (Vec::new(), Vec::new());
    for n in [0, 1, 2, 3, 4, 8] {
        let run = only(lab.simulate(&format!(
            "--mode async --workers 4 --lr 0.17 --rounds 250 --eval-every 1 --compute-time \
             constant=1s --latency 0s --apply-time 0s --bandwidth 1000Gbit/s --on-excess block \
             --max-gradient-delay {n}"
        ))?)?;
        let idle = idle(&run);
        let settled = settled(&run.history, 0.0054);
        let seconds = settled.map(|point| point.seconds);
        rows.push(vec![
            Cell::Count(n),
            seconds.map_or(Cell::Nothing, Cell::Seconds),
            settled.map_or(Cell::Nothing, |point| Cell::Count(point.pushes)),
            Cell::Share(idle),
            Cell::Ratio(run.gradient_delay.mean),
        ]);
        times.extend(seconds.map(|seconds| (n as f64, seconds)));
        waits.extend(seconds.map(|seconds| (n as f64, seconds * idle)));
    }
    Ok(Findings {
        columns: vec!["delay_max", "time_seconds", "pushes", "idle_share", "delay_mean"],
        rows,
        chart: Chart {
            title: "Bounded delay: time to a loss of 0.0054 for good, 4 workers, simulated"
                .to_owned(),
            x: Axis::linear("maximal gradient delay"),
            y: Axis::linear("virtual seconds"),
            series: vec![Series::line("total", times), Series::line("waiting", waits)],
        },
    })
}

/// The first point from which on the loss is `target` or less to the end.
fn settled(history: &[Point], target: f64) -> Option<&Point> {
    let is_above = |point: &Point| point.loss.is_nan() || point.loss > target;
    let first = history.iter().rposition(is_above).map_or(0, |last_above| last_above + 1);
    history.get(first)
}

/// Compute times that vary much, so that the slowest of 8 is far behind the rest.
pub(super) fn ssp_idle(lab: &mut Lab) -> Result<Findings, ExitError> {
    let mut rows = Vec::new();
    let mut points = Vec::new();
    for s in [0, 1, 2, 4, 8, 16, 32] {
        let run = only(lab.simulate(&format!(
            "--mode ssp --workers 8 --lr 0.02 --compute-time log-normal,median=10ms,sigma=1 \
             --staleness-bound {s}"
        ))?)?;
        let idle = idle(&run);
        rows.push(vec![
            Cell::Count(s),
            Cell::Seconds(run.virtual_seconds),
            Cell::Share(idle),
            Cell::Ratio(run.gradient_delay.mean),
            run.final_loss.map_or(Cell::Nothing, Cell::Loss),
        ]);
        points.push((s as f64, 100.0 * idle));
    }
    Ok(Findings {
        columns: vec!["staleness_bound", "time_seconds", "idle_share", "delay_mean", "final_loss"],
        rows,
        chart: Chart {
            title: "SSP: share of its time that a worker waits, 8 workers, simulated".to_owned(),
            x: Axis::linear("staleness bound"),
            y: Axis::linear("idle, %"),
            series: vec![Series::line("ssp", points)],
        },
    })
}

/// All of them make 3200 updates; with 32 workers a gradient is 31 updates late.
pub(super) fn staleness_rescue(lab: &mut Lab) -> Result<Findings, ExitError> {
    let mut rows = Vec::new();
    let mut series = Vec::new();
    for (case, flags) in [
        ("one worker", "--workers 1 --rounds 3200"),
        ("plain", "--workers 32 --rounds 100"),
        ("inverse-sqrt", "--workers 32 --rounds 100 --delay-scaling inverse-sqrt"),
        ("dc-asgd", "--workers 32 --rounds 100 --delay-scaling dc-asgd,lambda=100"),
    ] {
        let run = only(lab.simulate(&format!(
            "--mode async --data clusters --model mlp,hidden=32 --batch 16 --lr 0.25 {flags}"
        ))?)?;
        let accuracy = run.train_accuracy;
        rows.push(vec![
            Cell::Word(case.to_owned()),
            Cell::Count(u64::from(run.n_workers)),
            Cell::Word(run.outcome.clone()),
            accuracy.map_or(Cell::Nothing, |accuracy| Cell::Share(1.0 - accuracy)),
            run.final_loss.map_or(Cell::Nothing, Cell::Loss),
            Cell::Ratio(run.gradient_delay.mean),
            Cell::Seconds(run.virtual_seconds),
        ]);
        let points = run.history.iter().map(|point| (point.pushes as f64, point.loss)).collect();
        series.push(Series::line(case, points));
    }
    Ok(Findings {
        columns: vec![
            "case",
            "workers",
            "outcome",
            "train_error_share",
            "final_loss",
            "delay_mean",
            "time_seconds",
        ],
        rows,
        chart: Chart {
            title: "Staleness: 32 workers beside one at the same rate, simulated".to_owned(),
            x: Axis::linear("pushes"),
            y: Axis::log("training loss"),
            series,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rises_again_has_not_settled() {
        let settled_at = |losses: &[f64]| {
            let point = |(at, &loss): (usize, &f64)| {
                let version = at as u64;
                Point { round: at as f64, version, pushes: version, seconds: at as f64, loss }
            };
            let history: Vec<Point> = losses.iter().enumerate().map(point).collect();
            settled(&history, 1.0).map(|point| point.version)
        };
        assert_eq!(settled_at(&[3.0, 1.0, 2.0, 0.9, 1.0]), Some(3));
        assert_eq!(settled_at(&[0.5, 0.4]), Some(0));
        assert_eq!(settled_at(&[3.0, 0.5, f64::NAN]), None);
        assert_eq!(settled_at(&[3.0, 0.5, 1.1]), None);
    }
}
