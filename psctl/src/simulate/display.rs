//! Results as a table, as CSV and as pictures. Computes nothing.

use std::fmt::Write;

use crate::show::chart::{Axis, Chart, Series};
use crate::show::look::Tone;
use crate::show::loss::wants_log;
use crate::show::table::{Align, Table};
use crate::show::{Look, number};

use super::args::X;
use super::outcome::{Results, RunResult};

/// A row per run.
pub(super) fn table(results: &Results, look: &Look) -> String {
    let seeds = results.runs.iter().any(|run| run.sim_seed != results.runs[0].sim_seed);
    let columns = [
        ("mode", Align::Left),
        ("K", Align::Right),
        ("seed", Align::Right),
        ("time", Align::Right),
        ("rounds", Align::Right),
        ("pushes", Align::Right),
        ("loss", Align::Right),
        ("idle", Align::Right),
        ("min", Align::Right),
        ("max", Align::Right),
        ("delay", Align::Right),
        ("p99", Align::Right),
        ("speed-up", Align::Right),
    ];
    let shown = |name: &str| seeds || name != "seed";
    let mut table = Table::new(columns.into_iter().filter(|(name, _)| shown(name)));
    for run in &results.runs {
        let idle = |share: fn(&super::outcome::IdleShare) -> f64| {
            run.idle_share.as_ref().map_or(String::new(), |idle| number::percent(share(idle)))
        };
        let speedup = run.speedup.map_or_else(
            || "-".to_owned(),
            |speedup| format!("{speedup:.2} / {}", run.speedup_ideal),
        );
        let cells = [
            run.mode.to_string(),
            run.n_workers.to_string(),
            run.sim_seed.to_string(),
            number::seconds(run.virtual_seconds),
            number::rounds(run.rounds),
            number::count(run.pushes),
            loss(run, look),
            idle(|idle| idle.mean),
            idle(|idle| idle.min),
            idle(|idle| idle.max),
            format!("{:.1}", run.gradient_delay.mean),
            run.gradient_delay.p99.to_string(),
            speedup,
        ];
        let row = columns.iter().zip(cells).filter(|((name, _), _)| shown(name));
        table.row(row.map(|(_, cell)| cell));
    }
    // Figures are not cut, and a mode is known by its whole name.
    let mut out = table.render("", look.width.max(table.natural_width()));
    out.push_str(&notes(results, look));
    out
}

fn loss(run: &RunResult, look: &Look) -> String {
    match (run.diverged_at_round, run.final_loss) {
        (Some(_), _) => look.paint(Tone::Bad, "diverged"),
        (None, Some(loss)) => number::loss(loss),
        (None, None) => "-".to_owned(),
    }
}

/// What a figure in the table cannot say.
fn notes(results: &Results, look: &Look) -> String {
    let mut out = String::new();
    for run in &results.runs {
        let name = name(run);
        if let Some(round) = run.diverged_at_round {
            let round = number::rounds(round);
            let line = format!("{name}: diverged at round {round}: lower --lr\n");
            out.push_str(&line);
        } else if run.outcome != "done" {
            let line = format!("{name}: {}\n", look.clean(&run.outcome));
            out.push_str(&line);
        }
    }
    out
}

/// `sync, K = 4`: runs that differ in their seed only share it.
fn name(run: &RunResult) -> String {
    format!("{}, K = {}", run.mode, run.n_workers)
}

/// Every measured loss, a line each.
pub(super) fn csv(results: &Results) -> String {
    let mut out = "mode,workers,sim_seed,version,round,seconds,pushes,loss\n".to_owned();
    for run in &results.runs {
        for point in &run.history {
            let (mode, k, seed) = (run.mode, run.n_workers, run.sim_seed);
            let super::outcome::Point { version, round, seconds, pushes, loss } = point;
            writeln!(out, "{mode},{k},{seed},{version},{round},{seconds},{pushes},{loss}")
                .expect("a string takes all");
        }
    }
    out
}

/// A loss curve per run.
pub(super) fn losses(results: &Results, x: X) -> Chart {
    let series: Vec<Series> = results
        .runs
        .iter()
        .map(|run| {
            let at = |point: &super::outcome::Point| match x {
                X::Rounds => point.round,
                X::Seconds => point.seconds,
                X::Pushes => point.pushes as f64,
            };
            Series::line(name(run), run.history.iter().map(|p| (at(p), p.loss)).collect())
        })
        .collect();
    let log = wants_log(series.iter().flat_map(|s| &s.points).map(|point| point.1));
    let label = match x {
        X::Rounds => "round",
        X::Seconds => "virtual seconds",
        X::Pushes => "pushes",
    };
    Chart {
        title: results
            .runs
            .first()
            .map_or(String::new(), |run| format!("{}, simulated", run.subject)),
        x: Axis::linear(label),
        y: Axis { label: "training loss".to_owned(), log },
        series,
    }
}

/// Speed-up over the number of workers, a line per mode, beside the ideal.
pub(super) fn speedups(results: &Results) -> Chart {
    let mut counts: Vec<u32> = results.runs.iter().map(|run| run.n_workers).collect();
    counts.sort_unstable();
    counts.dedup();
    let ideal = counts.iter().map(|k| (f64::from(*k), f64::from(*k))).collect();
    let mut series = vec![Series::line("ideal", ideal)];
    for run in &results.runs {
        let Some(speedup) = run.speedup else { continue };
        let several = results.runs.iter().any(|other| other.sim_seed != run.sim_seed);
        let seed = if several { format!(", seed {}", run.sim_seed) } else { String::new() };
        let name = format!("{}{seed}", run.mode);
        let point = (f64::from(run.n_workers), speedup);
        match series.iter_mut().find(|s| s.name == name) {
            Some(series) => series.points.push(point),
            None => series.push(Series::line(name, vec![point])),
        }
    }
    for series in &mut series {
        series.points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    Chart {
        title: "speed-up against one worker, simulated".to_owned(),
        x: Axis::linear("workers"),
        y: Axis::linear("speed-up"),
        series,
    }
}
