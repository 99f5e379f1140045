//! Curves of losses: which a comparison asks about, when they were reached, what several seeds
//! make together. Pure.

use ps_common::report::Report;
use serde::Serialize;

/// Default levels are rounded to so many digits, or more where that would be above the first loss.
const LEVEL_DIGITS: std::ops::RangeInclusive<i32> = 2..=6;
/// Points of a curve of several seeds: more than a picture can show.
const RESAMPLED_MAX: usize = 1000;

/// A measured loss, and what had been done by then.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Point {
    /// Steps of each worker; a share of one where not all had done theirs.
    pub(super) round: f64,
    /// Of theta.
    pub(super) version: u64,
    /// Gradients of all workers that had counted: `round` times K.
    pub(super) pushes: f64,
    /// Since the first join.
    pub(super) seconds: f64,
    /// The objective over the training set.
    pub(super) loss: f64,
}

/// What it took to get to a loss.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Effort {
    /// Steps of each worker.
    pub(super) rounds: f64,
    /// Gradients of all workers.
    pub(super) pushes: f64,
    /// Since the first join.
    pub(super) seconds: f64,
}

/// The report's history.
pub(super) fn points(report: &Report) -> Vec<Point> {
    let point = |entry: &ps_common::report::HistoryEntry| Point {
        round: entry.round,
        version: entry.version,
        pushes: entry.round * f64::from(report.n_workers),
        seconds: entry.seconds,
        loss: entry.loss,
    };
    report.history.iter().map(point).collect()
}

/// What it took until the loss was `level` or less for the first time; `None` if it never was.
///
/// Between two measurements the loss is taken to move on a straight line, and the answer is the
/// first whole version of theta at which that line is at or below `level`. Where every version was
/// measured, this is the measurement itself.
pub(super) fn reached(curve: &[Point], level: f64) -> Option<Effort> {
    let at = curve.iter().position(|point| point.loss <= level)?;
    let after = &curve[at];
    let before = curve[..at].last().filter(|p| p.loss.is_finite() && p.version < after.version);
    let Some(before) = before else { return Some(effort(after, after, 1.0)) };
    let versions = (after.version - before.version) as f64;
    let crossing = (before.loss - level) / (before.loss - after.loss) * versions;
    // A crossing that lies on a version but for rounding is that version.
    let whole = (crossing - 1e-9).ceil().clamp(1.0, versions);
    Some(effort(before, after, whole / versions))
}

fn effort(before: &Point, after: &Point, share: f64) -> Effort {
    // The end itself comes out to the bit.
    let between = |a: f64, b: f64| if share >= 1.0 { b } else { a + share * (b - a) };
    Effort {
        rounds: between(before.round, after.round),
        pushes: between(before.pushes, after.pushes),
        seconds: between(before.seconds, after.seconds),
    }
}

/// Losses worth asking about, falling: one half way (as a ratio) between `first` and `worst`, then
/// `worst`, the largest final loss, which all reach, then `best`, the smallest. Each is rounded up.
/// None where there is nothing below `first`.
pub(super) fn default_levels(first: f64, worst: f64, best: f64) -> Vec<f64> {
    let half_way = if worst > 0.0 { (first * worst).sqrt() } else { f64::midpoint(first, worst) };
    let mut levels: Vec<f64> = Vec::new();
    for level in [half_way, worst, best] {
        if let Some(level) = rounded_up(level, first)
            && levels.last().is_none_or(|last| level < *last)
        {
            levels.push(level);
        }
    }
    levels
}

/// The smallest number of few digits that is at least `value` and below `limit`.
fn rounded_up(value: f64, limit: f64) -> Option<f64> {
    if !value.is_finite() || value >= limit {
        return None;
    }
    if value <= 0.0 {
        return Some(value);
    }
    let magnitude = value.log10().floor() as i32;
    let round = |digits: i32| {
        let text = format!("{value:.*e}", usize::try_from(digits - 1).unwrap_or(0));
        let nearest: f64 = text.parse().unwrap_or(value);
        let step = 10f64.powi(magnitude - digits + 1);
        let up = if nearest >= value { nearest } else { nearest + step };
        // As a person writes it: sums of powers of ten have tails.
        format!("{up:.*e}", usize::try_from(digits - 1).unwrap_or(0)).parse().unwrap_or(value)
    };
    LEVEL_DIGITS.map(round).find(|level| *level >= value && *level < limit).or(Some(value))
}

/// The least, the middle and the largest of some figures.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Band {
    /// Of an even number: the mean of the two in the middle.
    pub(super) median: f64,
    /// Least.
    pub(super) min: f64,
    /// Largest.
    pub(super) max: f64,
}

impl Band {
    /// Over `values`, infinite ones included; `None` if there are none, or one is not a number.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        if values.is_empty() || values.iter().any(|value| value.is_nan()) {
            return None;
        }
        values.sort_by(f64::total_cmp);
        let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        // The mean of two infinities is one, a difference of them is not.
        let median = if low == high { low } else { low / 2.0 + high / 2.0 };
        Some(Self { median, min: values[0], max: values[values.len() - 1] })
    }
}

/// Several curves of (x, y), each rising in x and not empty, as one: (x, band of y), straight lines
/// between a curve's points, its first and last value held before and after them: theta does not
/// move before a run begins or after it has ended.
pub(super) fn together(curves: &[Vec<(f64, f64)>]) -> Vec<(f64, Band)> {
    let mut places: Vec<f64> = curves.iter().flatten().map(|p| p.0).collect();
    places.sort_by(f64::total_cmp);
    places.dedup();
    let stride = places.len().div_ceil(RESAMPLED_MAX).max(1);
    let last = places.len().saturating_sub(1);
    let kept = places.iter().enumerate().filter(|(i, _)| i % stride == 0 || *i == last);
    let band = |x: f64| Band::of(curves.iter().filter_map(|curve| value_at(curve, x)));
    kept.filter_map(|(_, &x)| Some((x, band(x)?))).collect()
}

/// The curve's value at `x`; `None` if it has no points.
fn value_at(curve: &[(f64, f64)], x: f64) -> Option<f64> {
    let after = curve.partition_point(|point| point.0 < x);
    let Some(&(x1, y1)) = curve.get(after) else { return curve.last().map(|point| point.1) };
    match after.checked_sub(1).map(|before| curve[before]) {
        Some((x0, y0)) if x1 > x => Some(y0 + (x - x0) / (x1 - x0) * (y1 - y0)),
        _ => Some(y1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(n_workers: f64, entries: &[(u64, f64)]) -> Vec<Point> {
        let point = |&(version, loss): &(u64, f64)| {
            let round = version as f64 / n_workers;
            let seconds = version as f64 * 0.5;
            Point { round, version, pushes: version as f64, seconds, loss }
        };
        entries.iter().map(point).collect()
    }

    #[test]
    fn a_level_is_reached_at_the_first_measurement_where_all_are_measured() {
        let each = curve(1.0, &[(0, 4.0), (1, 2.5), (2, 1.0), (3, 2.0), (4, 0.5)]);
        let rounds = |level| reached(&each, level).map(|effort| effort.rounds);
        assert_eq!(rounds(4.0), Some(0.0));
        assert_eq!(rounds(3.9), Some(1.0));
        assert_eq!(rounds(2.5), Some(1.0), "at the level counts");
        assert_eq!(rounds(1.5), Some(2.0), "the first time counts");
        assert_eq!(rounds(0.4), None);
        assert_eq!(reached(&[], 1.0), None);
    }

    #[test]
    fn between_measurements_it_is_the_first_whole_version_on_the_line() {
        let sparse = curve(2.0, &[(0, 4.0), (10, 2.0)]);
        let effort = reached(&sparse, 3.0).expect("reached");
        assert_eq!(effort, Effort { rounds: 2.5, pushes: 5.0, seconds: 2.5 });
        let effort = reached(&sparse, 2.9).expect("reached");
        assert_eq!(effort, Effort { rounds: 3.0, pushes: 6.0, seconds: 3.0 });
        assert_eq!(reached(&sparse, 2.0).expect("reached").pushes, 10.0);
        let gap = curve(1.0, &[(0, f64::INFINITY), (10, 2.0)]);
        assert_eq!(reached(&gap, 3.0).expect("reached").pushes, 10.0);
    }

    #[test]
    fn default_levels_are_round_and_reached_by_all() {
        assert_eq!(default_levels(3.2382, 0.04838, 0.01321), [0.4, 0.049, 0.014]);
        assert_eq!(default_levels(0.7, 0.6971, 0.6971), [0.699, 0.698]);
        assert_eq!(default_levels(100.0, 9.96, 9.96), [32.0, 10.0]);
        assert_eq!(default_levels(1.0, 1.0, 0.5), [0.5], "nothing below the first");
        assert_eq!(default_levels(1.0, 2.0, f64::NAN), Vec::<f64>::new());
        assert_eq!(default_levels(1.0, 0.0, 0.0), [0.5, 0.0]);
    }

    #[test]
    fn bands_hold_the_least_the_middle_and_the_largest() {
        let band = |median, min, max| Some(Band { median, min, max });
        assert_eq!(Band::of([3.0, 1.0, 2.0]), band(2.0, 1.0, 3.0));
        assert_eq!(Band::of([4.0, 1.0]), band(2.5, 1.0, 4.0));
        assert_eq!(Band::of([5.0]), band(5.0, 5.0, 5.0));
        let never = f64::INFINITY;
        assert_eq!(Band::of([never, 1.0, never]), band(never, 1.0, never));
        assert_eq!(Band::of([never, 1.0]), band(never, 1.0, never));
        assert_eq!(Band::of([]), None);
        assert_eq!(Band::of([f64::NAN, 1.0]), None);
    }

    #[test]
    fn curves_come_together_and_stand_still_before_and_after() {
        let curves = [vec![(0.0, 4.0), (2.0, 2.0)], vec![(1.0, 5.0), (3.0, 1.0)]];
        let band = |median, min, max| Band { median, min, max };
        assert_eq!(
            together(&curves),
            [
                (0.0, band(4.5, 4.0, 5.0)),
                (1.0, band(4.0, 3.0, 5.0)),
                (2.0, band(2.5, 2.0, 3.0)),
                (3.0, band(1.5, 1.0, 2.0)),
            ]
        );
        assert_eq!(together(&[]), []);
        let long: Vec<(f64, f64)> = (0..5000).map(|i| (f64::from(i), 1.0)).collect();
        let thin = together(&[long.clone(), long]);
        assert!(thin.len() <= RESAMPLED_MAX + 1, "{}", thin.len());
        assert_eq!(thin.last().map(|p| p.0), Some(4999.0));
    }
}
