//! How far one server carries.

use ps_common::exit::ExitError;

use super::About;
use super::findings::{Cell, Findings};
use super::lab::Lab;
use crate::show::chart::{Axis, Chart, Series};

pub(super) const SPEEDUP: About = About {
    paper: "Dean et al. 2012, section 5",
    seen: "speed-up against workers rises, then falls: all share one server's link",
};

/// theta of 4 MB over a link of 1 Gbit/s: 32 ms each way for every worker, beside 1 s of computing
/// shared by all.
pub(super) fn speedup(lab: &mut Lab) -> Result<Findings, ExitError> {
    let runs = lab.simulate(
        "--mode sync --workers 1,2,4,8,16,32 --theta-bytes 4M --server-bandwidth 1Gbit/s \
         --compute-time constant=1ms --compute-per row",
    )?;
    let speedup = |run: &crate::simulate::RunResult| run.speedup.unwrap_or(f64::NAN);
    let of = |y: &dyn Fn(&crate::simulate::RunResult) -> f64| {
        runs.iter().map(|run| (f64::from(run.n_workers), y(run))).collect()
    };
    let series = vec![
        Series::line("ideal", of(&|run| run.speedup_ideal)),
        Series::line("sync", of(&speedup)),
    ];
    let rows = runs.iter().map(|run| {
        vec![
            Cell::Count(u64::from(run.n_workers)),
            Cell::Seconds(run.virtual_seconds),
            Cell::Ratio(speedup(run)),
            run.idle_share.as_ref().map_or(Cell::Nothing, |idle| Cell::Share(idle.mean)),
        ]
    });
    Ok(Findings {
        columns: vec!["workers", "time_seconds", "speedup", "idle_share"],
        rows: rows.collect(),
        chart: Chart {
            title: "Speed-up of one server with 4 MB over 1 Gbit/s, simulated".to_owned(),
            x: Axis::linear("workers"),
            y: Axis::linear("speed-up"),
            series,
        },
    })
}
