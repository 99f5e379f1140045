//! The rows of a run as a picture: the ratio to bare sockets against the size of theta.

use super::rows::{Results, Row};
use crate::show::chart::{Axis, Chart, Series};

/// One line for each mode, number of workers and, where there is one, codec; GB/s of bare sockets where only these were
/// measured.
pub(super) fn chart(results: &Results) -> Chart {
    let ratios = results.rows.iter().all(|row| row.ratio_to_raw().is_some());
    let coded = results.rows.iter().any(Row::is_coded);
    let mut series: Vec<Series> = Vec::new();
    for row in &results.rows {
        let wire = if coded { format!(", {}", row.wire) } else { String::new() };
        let name = format!("{}, W = {}{wire}", row.mode, row.workers);
        let value =
            row.ratio_to_raw().filter(|_| ratios).unwrap_or_else(|| row.raw_gb_per_second());
        let point = (row.n as f64, value);
        match series.iter_mut().find(|s| s.name == name) {
            Some(series) => series.points.push(point),
            None => series.push(Series::line(name, vec![point])),
        }
    }
    for series in &mut series {
        series.points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    let y = if ratios { "gRPC GB/s / bare sockets GB/s" } else { "bare sockets, GB/s" };
    Chart {
        title: format!("dense push-pull, {}", results.machine.cpu),
        x: Axis::log("elements of theta"),
        y: Axis::linear(y),
        series,
    }
}
