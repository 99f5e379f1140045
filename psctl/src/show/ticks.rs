//! Axes: the range that holds the data, round ticks in it, their labels. Shared by pictures and
//! the terminal curve.

/// Beyond this, differences of values would overflow.
const MAGNITUDE_MAX: f64 = 1e300;

/// One axis over the data: values to positions in [0, 1].
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scale {
    /// Lower end, log10 of the value on a logarithmic axis.
    lo: f64,
    /// Upper end, log10 of the value on a logarithmic axis; above `lo`.
    hi: f64,
    log: bool,
}

/// A labelled place on an axis.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tick {
    /// In [0, 1].
    pub(super) at: f64,
    /// As printed.
    pub(super) label: String,
}

impl Scale {
    /// The axis over `values`, with `pad` (a share of the range) on both ends. Values that have no
    /// place on it (not finite; not above 0 on a logarithmic axis) are skipped. Without values,
    /// the axis is 0..1 (1..10).
    pub(super) fn over(values: impl Iterator<Item = f64>, log: bool, pad: f64) -> Self {
        let placed = values.filter_map(|value| place(value, log));
        let range = placed.fold(None, |range: Option<(f64, f64)>, v| {
            Some(range.map_or((v, v), |(lo, hi)| (lo.min(v), hi.max(v))))
        });
        let (lo, hi) = range.unwrap_or((0.0, 1.0));
        if hi - lo <= lo.abs().max(hi.abs()) * 1e-12 {
            // One value: it stands in the middle.
            let half = if log { 0.5 } else { (lo.abs() * 0.1).max(1e-300) };
            let half = if !log && lo == 0.0 { 1.0 } else { half };
            return Self { lo: lo - half, hi: hi + half, log };
        }
        let margin = (hi - lo) * pad;
        // Padding does not make a quantity that is never negative look as if it could be.
        let floor = if !log && lo >= 0.0 { 0.0 } else { f64::NEG_INFINITY };
        Self { lo: (lo - margin).max(floor), hi: hi + margin, log }
    }

    /// Where `value` stands: 0 at the lower end, 1 at the upper; `None` if it has no place.
    pub(super) fn at(&self, value: f64) -> Option<f64> {
        place(value, self.log).map(|v| (v - self.lo) / (self.hi - self.lo))
    }

    /// Values at the lower and the upper end.
    pub(super) fn ends(&self) -> (f64, f64) {
        if self.log { (exp10(self.lo), exp10(self.hi)) } else { (self.lo, self.hi) }
    }

    /// About `n` round ticks, rising.
    pub(super) fn ticks(&self, n: usize) -> Vec<Tick> {
        let n = n.max(2);
        if self.log { self.log_ticks(n) } else { self.linear_ticks(self.lo, self.hi, n) }
    }

    /// Unlabelled places between the ticks: 2..9 of every decade; none on other axes or where
    /// they would run together.
    pub(super) fn minor(&self) -> Vec<f64> {
        if !self.log || self.hi - self.lo > 8.0 {
            return Vec::new();
        }
        let mut places = Vec::new();
        for decade in self.lo.floor() as i32..=self.hi.floor() as i32 {
            for digit in 2..=9 {
                let at =
                    (f64::from(decade) + f64::from(digit).log10() - self.lo) / (self.hi - self.lo);
                if (0.0..=1.0).contains(&at) {
                    places.push(at);
                }
            }
        }
        places
    }

    fn linear_ticks(&self, lo: f64, hi: f64, n: usize) -> Vec<Tick> {
        let step = round_step((hi - lo) / n as f64);
        let first = (lo / step).ceil();
        let label = labeller(step, lo.abs().max(hi.abs()));
        let mut ticks = Vec::new();
        for i in 0..=n * 3 {
            let value = (first + i as f64) * step;
            if value > hi + step * 1e-9 || !value.is_finite() {
                break;
            }
            // Not -0.
            let value = if value.abs() < step * 1e-9 { 0.0 } else { value };
            if let Some(at) = self.at(value) {
                ticks.push(Tick { at, label: label(value) });
            }
        }
        ticks
    }

    fn log_ticks(&self, n: usize) -> Vec<Tick> {
        let decades = self.hi - self.lo;
        if decades < 0.8 {
            let (lo, hi) = self.ends();
            return self.linear_ticks(lo, hi, n);
        }
        let digits: &[u32] = if decades <= 2.0 { &[1, 2, 5] } else { &[1] };
        let stride = (decades / n as f64).ceil().max(1.0) as i32;
        let mut ticks = Vec::new();
        for decade in self.lo.floor() as i32..=self.hi.floor() as i32 {
            if decade.rem_euclid(stride) != 0 {
                continue;
            }
            for &digit in digits {
                let log = f64::from(decade) + f64::from(digit).log10();
                let at = (log - self.lo) / (self.hi - self.lo);
                if (-1e-9..=1.0 + 1e-9).contains(&at) {
                    ticks.push(Tick { at, label: log_label(digit, decade) });
                }
            }
        }
        ticks
    }
}

/// The coordinate of a value on its axis; `None` if it has none.
fn place(value: f64, log: bool) -> Option<f64> {
    if !value.is_finite() || (log && value <= 0.0) {
        return None;
    }
    Some(if log { value.log10() } else { value.clamp(-MAGNITUDE_MAX, MAGNITUDE_MAX) })
}

fn exp10(log: f64) -> f64 {
    10f64.powf(log)
}

/// The smallest of 1, 2, 5 times a power of ten that is at least `raw` (or about it).
fn round_step(raw: f64) -> f64 {
    let power = 10f64.powi(raw.log10().floor() as i32);
    let factor = match raw / power {
        m if m <= 1.2 => 1.0,
        m if m <= 2.4 => 2.0,
        m if m <= 6.0 => 5.0,
        _ => 10.0,
    };
    factor * power
}

/// A label for multiples of `step` up to `largest`: enough decimals to tell them apart.
fn labeller(step: f64, largest: f64) -> impl Fn(f64) -> String {
    let step_power = (step.log10() + 1e-9).floor() as i32;
    let power = (largest.log10() + 1e-9).floor() as i32;
    let scientific = power >= 6 || step_power < -5;
    let digits = usize::try_from(power - step_power).unwrap_or(0).min(12);
    let decimals = usize::try_from(-step_power).unwrap_or(0);
    move |value| {
        if value == 0.0 {
            "0".to_owned()
        } else if scientific {
            format!("{value:.digits$e}")
        } else {
            format!("{value:.decimals$}")
        }
    }
}

fn log_label(digit: u32, decade: i32) -> String {
    match decade {
        0..=4 => format!("{}", u64::from(digit) * 10u64.pow(decade.unsigned_abs())),
        -4..=-1 => {
            let decimals = decade.unsigned_abs() as usize;
            format!("{:.decimals$}", f64::from(digit) * 10f64.powi(decade))
        }
        _ => format!("{digit}e{decade}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(values: &[f64], log: bool, n: usize) -> Vec<String> {
        let scale = Scale::over(values.iter().copied(), log, 0.0);
        scale.ticks(n).into_iter().map(|tick| tick.label).collect()
    }

    #[test]
    fn linear_ticks_are_round() {
        assert_eq!(labels(&[0.0, 100.0], false, 5), ["0", "20", "40", "60", "80", "100"]);
        assert_eq!(labels(&[0.13, 2.3], false, 5), ["0.5", "1.0", "1.5", "2.0"]);
        assert_eq!(labels(&[-1.0, 1.0], false, 4), ["-1.0", "-0.5", "0", "0.5", "1.0"]);
        assert_eq!(labels(&[0.0, 4e6], false, 4), ["0", "1e6", "2e6", "3e6", "4e6"]);
        assert_eq!(labels(&[0.0, 4e-9], false, 4), ["0", "1e-9", "2e-9", "3e-9", "4e-9"]);
    }

    #[test]
    fn logarithmic_ticks_are_powers() {
        assert_eq!(labels(&[1e-3, 1e2], true, 6), ["0.001", "0.01", "0.1", "1", "10", "100"]);
        assert_eq!(labels(&[1.0, 20.0], true, 6), ["1", "2", "5", "10", "20"]);
        assert_eq!(labels(&[2.0, 4.0], true, 4), ["2.0", "2.5", "3.0", "3.5", "4.0"]);
        assert!(labels(&[1e-300, 1e300], true, 6).len() <= 8);
    }

    #[test]
    fn every_range_has_ticks_inside() {
        let cases: [(&[f64], bool); 9] = [
            (&[], false),
            (&[], true),
            (&[5.0], false),
            (&[0.0, 0.0], false),
            (&[7.0], true),
            (&[f64::NAN, f64::INFINITY], false),
            (&[-f64::MAX, f64::MAX], false),
            (&[5e-324, f64::MAX], true),
            (&[1.0, 1.0 + 1e-9], false),
        ];
        for (values, log) in cases {
            for pad in [0.0, 0.05] {
                let scale = Scale::over(values.iter().copied(), log, pad);
                let ticks = scale.ticks(6);
                assert!((2..=14).contains(&ticks.len()), "{values:?} {log}: {ticks:?}");
                for tick in ticks {
                    assert!((-1e-6..=1.0 + 1e-6).contains(&tick.at), "{values:?} {tick:?}");
                }
            }
        }
    }

    #[test]
    fn what_has_no_place_is_skipped() {
        let scale = Scale::over([1.0, f64::NAN, 3.0, -5.0, 0.0].into_iter(), true, 0.0);
        assert_eq!(scale.at(1.0), Some(0.0));
        assert_eq!(scale.at(3.0), Some(1.0));
        assert_eq!(scale.at(0.0), None);
        assert_eq!(scale.at(f64::NAN), None);
    }

    #[test]
    fn padding_keeps_a_positive_range_positive() {
        assert_eq!(Scale::over([0.01, 1.0].into_iter(), false, 0.05).ends().0, 0.0);
        assert!(Scale::over([-0.01, 1.0].into_iter(), false, 0.05).ends().0 < -0.01);
    }
}
