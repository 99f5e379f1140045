//! Loss over time as pictures: which points of a report are drawn, and how.

use ps_common::report::{HistoryEntry, Report};

use super::Look;
use super::chart::{Axis, Chart, Series};
use super::curve::{self, Frame, Marks};

/// Rows of the curve in the terminal.
const TERMINAL_ROWS: usize = 9;
/// A wider curve is no better to read.
const TERMINAL_COLUMNS_MAX: usize = 72;
/// A loss that falls by more than this is drawn on a logarithmic axis: on a linear one it would
/// be a corner.
const LOG_FROM_RATIO: f64 = 100.0;

/// What stands on the x axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Against {
    /// `round`: version, divided by the number of workers in asynchronous modes.
    Round,
    /// Seconds since the first join.
    Seconds,
}

/// One curve per report, under the name given with it.
pub fn chart(title: &str, reports: &[(&str, &Report)], against: Against) -> Chart {
    let series: Vec<Series> = reports
        .iter()
        .map(|(name, report)| Series::line(*name, points(&report.history, against)))
        .collect();
    let all = series.iter().flat_map(|series| &series.points).map(|point| point.1);
    let x = match against {
        Against::Round => "round",
        Against::Seconds => "seconds",
    };
    let y = Axis { label: "training loss".to_owned(), log: wants_log(all) };
    Chart { title: title.to_owned(), x: Axis::linear(x), y, series }
}

/// The loss over the rounds for the terminal; empty with fewer than two entries.
pub fn terminal(history: &[HistoryEntry], look: &Look) -> String {
    let points = points(history, Against::Round);
    if points.iter().filter(|point| point.1.is_finite()).count() < 2 {
        return String::new();
    }
    let log_y = wants_log(points.iter().map(|point| point.1));
    let frame = Frame {
        width: look.width.min(TERMINAL_COLUMNS_MAX),
        height: TERMINAL_ROWS,
        marks: if look.unicode { Marks::Braille } else { Marks::Ascii },
        log_y,
        x_label: if log_y { "round (loss on a log scale)" } else { "round" },
    };
    curve::draw(&points, &frame)
}

fn points(history: &[HistoryEntry], against: Against) -> Vec<(f64, f64)> {
    let x = |entry: &HistoryEntry| match against {
        Against::Round => entry.round,
        Against::Seconds => entry.seconds,
    };
    history.iter().map(|entry| (x(entry), entry.loss)).collect()
}

/// Whether finite values are all above 0 and so far apart that a logarithmic axis shows more.
pub fn wants_log(values: impl Iterator<Item = f64>) -> bool {
    let ends = values.filter(|v| v.is_finite()).fold(None, |ends: Option<(f64, f64)>, v| {
        Some(ends.map_or((v, v), |(lo, hi)| (lo.min(v), hi.max(v))))
    });
    ends.is_some_and(|(lo, hi)| lo > 0.0 && hi / lo >= LOG_FROM_RATIO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::show::summary::tests::report;

    fn history(losses: &[f64]) -> Vec<HistoryEntry> {
        let entry = |(i, &loss): (usize, &f64)| HistoryEntry {
            round: i as f64,
            version: i as u64,
            loss,
            seconds: i as f64 * 0.1,
        };
        losses.iter().enumerate().map(entry).collect()
    }

    #[test]
    fn a_wide_range_is_drawn_logarithmically() {
        assert!(wants_log([1000.0, 1.0].into_iter()));
        assert!(!wants_log([2.3, 0.4].into_iter()));
        assert!(!wants_log([1000.0, 0.0].into_iter()), "0 has no logarithm");
        assert!(!wants_log([f64::NAN].into_iter()));
    }

    #[test]
    fn reports_become_named_curves() {
        let mut fast = report();
        fast.history = history(&[2.0, 1.0, f64::NAN]);
        let chart = chart("t", &[("fast", &fast), ("same", &fast)], Against::Seconds);
        assert_eq!(chart.x.label, "seconds");
        assert_eq!(chart.series[1].name, "same");
        assert_eq!(chart.series[0].points[..2], [(0.0, 2.0), (0.1, 1.0)]);
    }

    #[test]
    fn the_terminal_shows_a_curve_only_if_there_is_one() {
        assert_eq!(terminal(&history(&[1.0]), &Look::plain(true)), "");
        let text = terminal(&history(&[3.0, 2.0, 1.5]), &Look::plain(false));
        assert!(text.is_ascii());
        assert_eq!(text.lines().count(), TERMINAL_ROWS + 2);
        assert!(text.starts_with("3.0000 +'"), "{text}");
    }
}
