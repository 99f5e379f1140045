//! The first pass: how many rows and features there are, what the targets look like, and the
//! statistics that scaling needs.
//!
//! Memory is of the order of one row. Every value is parsed, so that a bad one is found before
//! training begins, whoever's shard it is in.

use ps_common::Element;
use ps_common::exit::{Exit, ExitError};
use ps_common::statistics::Statistics;

use super::input::DENSE_FEATURES_MAX;
use super::spec::{DataSpec, Files, IndexBase, Scale};
use super::stream::{Known, Row, Stream};

/// What one pass over a data set finds.
#[derive(Debug, Clone, PartialEq)]
pub struct Survey {
    /// Rows, after `--take`. 0 only with `--data-is-shard`.
    pub n_samples: u64,
    /// Features, without the target.
    pub n_features: usize,
    /// Whether rows are kept sparse, unless scaling makes them dense.
    pub is_sparse: bool,
    /// The index of the first feature in LibSVM files, else 0.
    pub index_base: u32,
    /// What the targets look like.
    pub targets: TargetFacts,
    /// Of all rows in file order, for `--scale standard` (moments) and `minmax` (range).
    pub statistics: Option<Statistics>,
}

/// What the targets look like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TargetFacts {
    /// None has a fractional part.
    pub all_integers: bool,
    /// All are -1 or +1, and -1 occurs.
    pub are_signs: bool,
    /// Infinity over no rows.
    pub min: f64,
    /// Minus infinity over no rows.
    pub max: f64,
}

impl TargetFacts {
    fn of_none() -> Self {
        let (min, max) = (f64::INFINITY, f64::NEG_INFINITY);
        Self { all_integers: true, are_signs: false, min, max }
    }

    fn add(&mut self, target: f64) {
        let is_first = self.min > self.max;
        let sign_so_far = is_first || self.are_signs || (self.min == 1.0 && self.max == 1.0);
        self.all_integers &= target.fract() == 0.0;
        self.min = self.min.min(target);
        self.max = self.max.max(target);
        self.are_signs = sign_so_far && target.abs() == 1.0 && self.min == -1.0;
    }

    /// How many classes the targets name, if they are classes counted from 0 (highest plus one) or
    /// the two signs.
    pub fn n_classes(&self) -> Option<usize> {
        if self.are_signs {
            return Some(2);
        }
        let are_classes = self.all_integers
            && self.max >= self.min
            && self.min >= 0.0
            && self.max < f64::from(u32::MAX);
        are_classes.then(|| self.max as usize + 1)
    }
}

/// Turns the labels -1 and +1 of two classes into 0 and 1, in place; others stay.
///
/// For targets whose facts say `are_signs`, and for other data of the same job.
pub fn signs_to_classes<T: Element>(targets: &mut [T]) {
    for target in targets {
        if *target == -T::ONE {
            *target = T::ZERO;
        }
    }
}

/// Reads a data set once.
///
/// # Errors
/// Bad data (file and place), also if there are no rows; configuration, if an option does not
/// apply to the format found.
pub fn survey(spec: &DataSpec) -> Result<Survey, ExitError> {
    let mut stream = Stream::open(spec, Known::default())?;
    let mut row = Row::default();
    let mut targets = TargetFacts::of_none();
    let mut width = Width::default();
    let mut statistics = match spec.scale {
        Scale::None | Scale::Divide(_) => None,
        Scale::Standard => Some(Statistics::moments(0)),
        Scale::Minmax => Some(Statistics::range(0)),
    };
    let mut dense = Vec::new();
    while stream.next(&mut row)? {
        targets.add(row.target);
        let widened = width.add(&row);
        if widened && width.n_raw == u32::MAX as usize + 1 {
            return Err(no_such_feature(&stream.place()));
        }
        if let Some(statistics) = &mut statistics {
            if width.n_raw > DENSE_FEATURES_MAX {
                return Err(too_wide(&stream.place(), width.n_raw, spec.scale));
            }
            widen(statistics, width.n_raw);
            statistics.add(row.to_dense(width.n_raw, &mut dense));
        }
        if widened {
            width.place = stream.place();
        }
    }
    let (index_base, n_features) = match (stream.is_sparse(), width.n_raw) {
        (true, _) => width.sparse(spec)?,
        (false, 0) => (0, stream.n_announced()),
        (false, n_features) => (0, n_features),
    };
    let n_samples = stream.n_rows();
    if n_samples == 0 && !spec.data_is_shard {
        return Err(no_rows(&spec.files));
    }
    if n_features == 0 {
        return Err(ExitError::new(Exit::BadData, format!("{}: no features", show(&spec.files))));
    }
    if let Some(statistics) = &mut statistics {
        if n_features > DENSE_FEATURES_MAX {
            return Err(too_wide(&show(&spec.files), n_features, spec.scale));
        }
        widen(statistics, n_features + index_base as usize);
        drop_first(statistics, index_base as usize);
    }
    let is_sparse = stream.is_sparse();
    Ok(Survey { n_samples, n_features, is_sparse, index_base, targets, statistics })
}

fn show(files: &Files) -> String {
    match files {
        Files::Builtin(builtin) => builtin.to_string(),
        Files::Paths { data, .. } => data.join(", "),
    }
}

fn no_rows(files: &Files) -> ExitError {
    ExitError::new(Exit::BadData, format!("{}: no rows, expected at least one", show(files)))
}

fn no_such_feature(place: &str) -> ExitError {
    ExitError::new(Exit::BadData, format!("{place}: index {} is too large", u32::MAX))
}

fn too_wide(place: &str, n_features: usize, scale: Scale) -> ExitError {
    ExitError::new(
        Exit::BadData,
        format!(
            "{place}: {n_features} features, which --scale {scale} would have to hold for every row, \
             expected at most {DENSE_FEATURES_MAX}: use --scale none or divide"
        ),
    )
}

/// How wide rows are, and what that says about indices.
#[derive(Default)]
struct Width {
    /// Highest index plus one, as indices stand in the file; of dense rows their length.
    n_raw: usize,
    has_index_0: bool,
    /// Where the highest index stood.
    place: String,
}

impl Width {
    /// Whether the row is wider than those before it.
    fn add(&mut self, row: &Row) -> bool {
        let n_raw = match (row.indices.first(), row.indices.last()) {
            (Some(&first), Some(&last)) => {
                self.has_index_0 |= first == 0;
                last as usize + 1
            }
            _ => row.values.len(),
        };
        let widened = n_raw > self.n_raw;
        self.n_raw = self.n_raw.max(n_raw);
        widened
    }

    /// Base of indices and number of features of LibSVM files.
    fn sparse(&self, spec: &DataSpec) -> Result<(u32, usize), ExitError> {
        let base = match spec.index_base {
            Some(IndexBase::Zero) => 0,
            Some(IndexBase::One) => 1,
            None | Some(IndexBase::Auto) => u32::from(!self.has_index_0),
        };
        let found = self.n_raw.saturating_sub(base as usize);
        match spec.features.map(|n| n as usize) {
            None => Ok((base, found)),
            Some(given) if found <= given => Ok((base, given)),
            Some(given) => Err(ExitError::new(
                Exit::BadData,
                format!(
                    "{}: index {}, expected at most {} with --features {given} and indices from \
                     {base}",
                    self.place,
                    self.n_raw - 1,
                    given - 1 + base as usize
                ),
            )),
        }
    }
}

/// Adds features that were zero in all rows so far.
fn widen(statistics: &mut Statistics, n_features: usize) {
    if n_features <= statistics.n_features() {
        return;
    }
    let none = statistics.n_samples() == 0;
    match statistics {
        Statistics::Moments { mean, deviations, .. } => {
            mean.resize(n_features, 0.0);
            deviations.resize(n_features, 0.0);
        }
        Statistics::Range { min, max, .. } => {
            min.resize(n_features, if none { f64::INFINITY } else { 0.0 });
            max.resize(n_features, if none { f64::NEG_INFINITY } else { 0.0 });
        }
    }
}

/// Leaves out the place of index 0 where features count from 1.
fn drop_first(statistics: &mut Statistics, n: usize) {
    let (first, second) = match statistics {
        Statistics::Moments { mean, deviations, .. } => (mean, deviations),
        Statistics::Range { min, max, .. } => (min, max),
    };
    first.drain(..n);
    second.drain(..n);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(targets: &[f64]) -> TargetFacts {
        targets.iter().fold(TargetFacts::of_none(), |mut facts, &target| {
            facts.add(target);
            facts
        })
    }

    #[test]
    fn targets_are_signs_classes_or_numbers() {
        assert!(facts(&[1.0, -1.0, 1.0]).are_signs);
        assert!(facts(&[1.0, 1.0, -1.0]).are_signs);
        for not_signs in [&[1.0, 1.0][..], &[0.0, 1.0], &[-1.0, 0.0, 1.0], &[0.5, -1.0], &[]] {
            assert!(!facts(not_signs).are_signs, "{not_signs:?}");
        }
        assert_eq!(facts(&[0.0, 4.0]).n_classes(), Some(5));
        assert_eq!(facts(&[-1.0, 1.0]).n_classes(), Some(2));
        assert_eq!(facts(&[0.0, 1.5]).n_classes(), None);
        assert_eq!(facts(&[-2.0, 1.0]).n_classes(), None);
        assert_eq!(facts(&[]).n_classes(), None);
        let mut targets = [-1.0f32, 1.0];
        signs_to_classes(&mut targets);
        assert_eq!(targets, [0.0, 1.0]);
    }
}
