//! The curves of a comparison as a picture: a line a variant, and the band of its seeds. Pure.

use super::args::Along;
use super::curve::{Point, together};
use super::figures::{Figures, VariantFigures};
use super::outcome::{DIVERGED_RATIO, Fate};
use crate::show::chart::{Axis, Chart, Series};
use crate::show::loss::wants_log;

/// The picture of everything that was measured.
pub(super) fn chart(figures: &Figures, along: Along) -> Chart {
    // Losses on their way to infinity would leave no room for the others.
    let firsts = figures.variants.iter().flat_map(|v| &v.runs).filter_map(|r| r.history.first());
    let first = firsts.map(|point| point.loss).filter(|loss| loss.is_finite());
    let ceiling = first.fold(f64::MIN, f64::max) * DIVERGED_RATIO;
    let mut series = Vec::new();
    for variant in &figures.variants {
        series.extend(curves(variant, along, ceiling));
    }
    let log = wants_log(series.iter().flat_map(|s| &s.points).map(|point| point.1));
    let n = figures.seeds;
    Chart {
        title: match n {
            1 => "training loss".to_owned(),
            _ => format!("training loss: median and range of {n} seeds"),
        },
        x: Axis::linear(match along {
            Along::Rounds => "round",
            Along::Pushes => "pushes of all workers",
            Along::Seconds => "seconds",
        }),
        y: Axis { label: "training loss".to_owned(), log },
        series,
    }
}

/// The line of the medians, then the band, where there are several runs.
fn curves(variant: &VariantFigures, along: Along, ceiling: f64) -> Vec<Series> {
    let x = |point: &Point| match along {
        Along::Rounds => point.round,
        Along::Pushes => point.pushes,
        Along::Seconds => point.seconds,
    };
    let shown = |point: &&Point| point.loss.is_finite() && point.loss <= ceiling;
    let runs: Vec<Vec<(f64, f64)>> = variant
        .runs
        .iter()
        .filter(|run| run.outcome != Fate::Failed)
        .map(|run| run.history.iter().filter(shown).map(|p| (x(p), p.loss)).collect::<Vec<_>>())
        .filter(|curve| !curve.is_empty())
        .collect();
    let name = match variant.fate() {
        Fate::Diverged => format!("{} (diverged)", variant.name),
        Fate::Done | Fate::Failed => variant.name.clone(),
    };
    match runs.as_slice() {
        [] => Vec::new(),
        [alone] => vec![Series::line(name, alone.clone())],
        several => {
            let bands = together(several);
            let edges: Vec<_> = bands.iter().map(|(x, band)| (*x, band.min, band.max)).collect();
            let line = bands.iter().map(|(x, band)| (*x, band.median)).collect();
            vec![Series::line(name.clone(), line), Series::band(name, &edges)]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::figures::Compared;
    use super::super::outcome::Run;
    use super::super::{args, variant};
    use super::*;
    use crate::local::Trained;
    use crate::show::chart::Style;
    use crate::show::summary::tests::report;

    fn figures(losses: &[&[f64]]) -> Figures {
        let variants = variant::all(&args::tests::compare(&[])).expect("variants");
        let run = |(seed, &loss): (usize, &f64)| {
            let mut report = report();
            report.r#final.loss = Some(loss);
            report.history[1].loss = loss;
            Run::of(seed as u64, Trained { report: Some(report), error: None })
        };
        let compared: Vec<Compared> = variants
            .into_iter()
            .zip(losses)
            .map(|(variant, losses)| Compared {
                variant,
                runs: losses.iter().enumerate().map(run).collect(),
            })
            .collect();
        Figures::of(&compared, 2, &[], 3)
    }

    #[test]
    fn seeds_make_a_line_and_a_band_of_one_name() {
        let chart = chart(&figures(&[&[0.5, 0.25], &[0.75]]), Along::Pushes);
        let drawn: Vec<_> = chart.series.iter().map(|s| (s.name.as_str(), s.style)).collect();
        assert_eq!(drawn, [("sync", Style::Line), ("sync", Style::Band), ("async", Style::Line)]);
        assert_eq!(chart.series[0].points[1], (200.0, 0.375));
        assert_eq!(chart.series[1].points.len(), 4);
        assert!(chart.series[1].points.contains(&(200.0, 0.25)));
        assert_eq!(chart.x.label, "pushes of all workers");
    }

    #[test]
    fn what_diverges_is_cut_off_and_named_so() {
        let chart = chart(&figures(&[&[0.5], &[1e30]]), Along::Rounds);
        let last = chart.series.last().expect("a line");
        assert_eq!((last.name.as_str(), last.points.len()), ("async (diverged)", 1));
        assert!(!chart.y.log);
    }
}
