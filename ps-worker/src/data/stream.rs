//! All rows of a data set, one after the other: several files as one, labels paired with data.
//!
//! Owns what holds across files: one format, one number of features, as many targets as rows,
//! `--take`. Keeps one row.

use ps_common::exit::{Exit, ExitError};

use super::binary::BinaryReader;
use super::csv::CsvReader;
use super::input::{Input, bad_file};
use super::libsvm::{Allowed, LibsvmReader};
use super::spec::{DataSpec, Files, Format, IndexBase, Target};
use super::{idx, npy};

/// A row as it stands in the file.
#[derive(Debug, Default)]
pub(super) struct Row {
    /// The number to predict.
    pub(super) target: f64,
    /// Of sparse rows, as they stand in the file; else empty.
    pub(super) indices: Vec<u32>,
    /// All features, or those that `indices` name.
    pub(super) values: Vec<f64>,
}

impl Row {
    /// All `n` features; `whole` is room for them, used for sparse rows.
    pub(super) fn to_dense<'a>(&'a self, n: usize, whole: &'a mut Vec<f64>) -> &'a [f64] {
        if self.values.len() == n {
            // A sparse row with all features has them in order.
            return &self.values;
        }
        whole.clear();
        whole.resize(n, 0.0);
        for (&index, &value) in self.indices.iter().zip(&self.values) {
            whole[index as usize] = value;
        }
        whole
    }
}

/// What a pass knows of a data set before it reads it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Known {
    /// Features and the index of the first one in LibSVM files.
    pub(super) features: Option<(usize, u32)>,
}

enum Reader {
    Csv(CsvReader),
    Libsvm(LibsvmReader),
    Binary(BinaryReader),
}

/// One side of a pair: files in order, and the one being read.
struct Chain {
    paths: std::vec::IntoIter<String>,
    current: Option<Reader>,
    n_rows: u64,
}

/// A pass over a data set.
pub(super) struct Stream {
    spec: DataSpec,
    format: Format,
    allowed: Allowed,
    data: Chain,
    labels: Option<Chain>,
    label: Row,
    n_features: Option<usize>,
}

impl Stream {
    /// Opens the first files.
    ///
    /// # Errors
    /// Bad data; configuration, if an option does not apply to the format found.
    pub(super) fn open(spec: &DataSpec, known: Known) -> Result<Self, ExitError> {
        let (data, labels) = match &spec.files {
            Files::Builtin(builtin) => {
                let [x, y] = builtin.files();
                (Chain::embedded("X.npy", x)?, Some(Chain::embedded("y.npy", y)?))
            }
            Files::Paths { data, labels } => {
                (Chain::new(data.clone()), (!labels.is_empty()).then(|| Chain::new(labels.clone())))
            }
        };
        let format = match (&spec.files, spec.format) {
            (Files::Paths { data, .. }, Format::Auto) => match data.first() {
                Some(path) => Input::open(path)?.format(),
                None => return Err(ExitError::config("no data file is named")),
            },
            (Files::Builtin(_), _) => Format::Npy,
            (Files::Paths { .. }, given) => given,
        };
        spec.check_format(format)?;
        Ok(Self {
            allowed: allowed(spec, known),
            n_features: known.features.map(|(n, _)| n).filter(|_| format != Format::Libsvm),
            spec: spec.clone(),
            format,
            data,
            labels,
            label: Row::default(),
        })
    }

    /// Whether rows have indices.
    pub(super) fn is_sparse(&self) -> bool {
        self.format == Format::Libsvm
    }

    /// Rows given so far.
    pub(super) fn n_rows(&self) -> u64 {
        self.data.n_rows
    }

    /// Features that the header of the current file announces; 0 if it has none.
    pub(super) fn n_announced(&self) -> usize {
        match &self.data.current {
            Some(Reader::Csv(reader)) => reader.n_features(),
            Some(Reader::Binary(reader)) => reader.n_columns(),
            Some(Reader::Libsvm(_)) | None => 0,
        }
    }

    /// Where the row given last stands.
    pub(super) fn place(&self) -> String {
        self.data.current.as_ref().map_or_else(String::new, Reader::place)
    }

    /// Puts the next row into `row`; `false` after the last one, or after `--take`.
    pub(super) fn next(&mut self, row: &mut Row) -> Result<bool, ExitError> {
        if self.spec.take.is_some_and(|take| self.data.n_rows >= take) {
            return Ok(false);
        }
        let target_in_data = self.labels.is_none() && self.spec.has_targets;
        let (format, allowed, spec) = (self.format, self.allowed, &self.spec);
        let open = |path: &str| {
            let target = spec.target.as_ref().unwrap_or(&Target::Last);
            Reader::open(Input::open(path)?, format, target_in_data.then_some(target), allowed)
        };
        let more = self.data.next(row, open)?;
        if more {
            self.check_width(row)?;
            if !self.spec.has_targets {
                row.target = 0.0;
            }
        }
        if let Some(labels) = &mut self.labels {
            let more_labels = labels.next(&mut self.label, open_labels)?;
            if more != more_labels {
                return Err(self.unpaired());
            }
            if more {
                row.target = one_target(labels, &self.label)?;
            }
        }
        Ok(more)
    }

    fn check_width(&mut self, row: &Row) -> Result<(), ExitError> {
        if self.is_sparse() {
            return Ok(());
        }
        let expected = *self.n_features.get_or_insert(row.values.len());
        if row.values.len() == expected && expected > 0 {
            return Ok(());
        }
        let found = row.values.len();
        Err(bad_file(
            &self.place(),
            if found == 0 {
                "no features beside the target: expected at least 1".to_owned()
            } else {
                format!("{found} features, expected {expected} as in the other data")
            },
        ))
    }

    /// Data and labels differ in length: reads both to their ends, to name both.
    fn unpaired(&mut self) -> ExitError {
        let mut row = Row::default();
        let (format, allowed) = (self.format, self.allowed);
        let open = |path: &str| Reader::open(Input::open(path)?, format, None, allowed);
        while let Ok(true) = self.data.next(&mut row, open) {}
        let Some(labels) = &mut self.labels else { unreachable!("only labels are unpaired") };
        while let Ok(true) = labels.next(&mut row, open_labels) {}
        ExitError::new(
            Exit::BadData,
            format!(
                "--data has {} rows, --labels has {}: expected as many of both ({})",
                self.data.n_rows,
                labels.n_rows,
                match &self.spec.files {
                    Files::Paths { data, labels } =>
                        format!("{}; {}", data.join(", "), labels.join(", ")),
                    Files::Builtin(builtin) => builtin.to_string(),
                }
            ),
        )
    }
}

fn allowed(spec: &DataSpec, known: Known) -> Allowed {
    let (first, n_features) = match (known.features, spec.index_base) {
        (Some((n, first)), _) => (first, Some(n as u64)),
        (None, Some(IndexBase::One)) => (1, spec.features.map(u64::from)),
        (None, Some(IndexBase::Zero)) => (0, spec.features.map(u64::from)),
        // Not known before the end: index N is right only if they count from 1.
        (None, None | Some(IndexBase::Auto)) => (0, spec.features.map(|n| u64::from(n) + 1)),
    };
    let last = n_features.map(|n| u64::from(first) + n - 1);
    Allowed { first, last: last.map(|last| u32::try_from(last).unwrap_or(u32::MAX)) }
}

fn open_labels(path: &str) -> Result<Reader, ExitError> {
    let input = Input::open(path)?;
    let format = match input.format() {
        Format::Libsvm => Format::Csv,
        other => other,
    };
    Reader::open(input, format, None, Allowed { first: 0, last: None })
}

fn one_target(labels: &Chain, row: &Row) -> Result<f64, ExitError> {
    match row.values[..] {
        [target] => Ok(target),
        _ => Err(bad_file(
            &labels.current.as_ref().map_or_else(String::new, Reader::place),
            format!("{} values, expected one target a row in --labels", row.values.len()),
        )),
    }
}

impl Chain {
    fn new(paths: Vec<String>) -> Self {
        Self { paths: paths.into_iter(), current: None, n_rows: 0 }
    }

    fn embedded(name: &str, bytes: &'static [u8]) -> Result<Self, ExitError> {
        let reader = Reader::Binary(npy::open(Input::embedded(name, bytes)?)?);
        Ok(Self { current: Some(reader), ..Self::new(Vec::new()) })
    }

    fn next(
        &mut self,
        row: &mut Row,
        open: impl Fn(&str) -> Result<Reader, ExitError>,
    ) -> Result<bool, ExitError> {
        loop {
            if let Some(reader) = &mut self.current
                && reader.next(row)?
            {
                self.n_rows += 1;
                return Ok(true);
            }
            let Some(path) = self.paths.next() else { return Ok(false) };
            self.current = Some(open(&path)?);
        }
    }
}

impl Reader {
    fn open(
        input: Input,
        format: Format,
        target: Option<&Target>,
        allowed: Allowed,
    ) -> Result<Self, ExitError> {
        Ok(match format {
            Format::Csv => Self::Csv(CsvReader::open(input, target)?),
            Format::Libsvm => Self::Libsvm(LibsvmReader::new(input, allowed)),
            Format::Idx => Self::Binary(idx::open(input)?),
            Format::Npy => Self::Binary(npy::open(input)?),
            Format::Auto => {
                let found = input.format();
                return Self::open(input, found, target, allowed);
            }
        })
    }

    fn next(&mut self, row: &mut Row) -> Result<bool, ExitError> {
        match self {
            Self::Csv(reader) => reader.next(&mut row.values, &mut row.target),
            Self::Libsvm(reader) => reader.next(&mut row.indices, &mut row.values, &mut row.target),
            Self::Binary(reader) => reader.next(&mut row.values),
        }
    }

    fn place(&self) -> String {
        match self {
            Self::Csv(reader) => reader.place(),
            Self::Libsvm(reader) => reader.place(),
            Self::Binary(reader) => reader.place(),
        }
    }
}
