//! What may be said about data: the values of the flags, and the checked whole.
//!
//! Owns their spelling. Opens no file.

use std::fmt;
use std::str::FromStr;

use ps_common::exit::ExitError;
use serde::{Serialize, Serializer};

use super::builtin::Builtin;

/// Layout of data files, found by content where it is not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// By the first bytes: NPY, IDX, then text with `index:value` (LibSVM) or without (CSV).
    #[default]
    Auto,
    /// Numbers separated by commas, semicolons, tabs or blanks.
    Csv,
    /// Sparse text: `label index:value ...`.
    Libsvm,
    /// The binary format of MNIST.
    Idx,
    /// A numpy array.
    Npy,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Csv => "CSV",
            Self::Libsvm => "LibSVM",
            Self::Idx => "IDX",
            Self::Npy => "NPY",
        })
    }
}

/// How LibSVM files count features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
pub enum IndexBase {
    /// From 0 if index 0 occurs anywhere, else from 1.
    #[serde(rename = "auto")]
    Auto,
    /// The first feature is 0.
    #[serde(rename = "0")]
    #[value(name = "0")]
    Zero,
    /// The first feature is 1.
    #[serde(rename = "1")]
    #[value(name = "1")]
    One,
}

/// Which column of a CSV file is the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The first.
    First,
    /// The last.
    Last,
    /// Counted from 0.
    Index(usize),
    /// By the name in the first line.
    Name(String),
}

impl FromStr for Target {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "" => return Err("expected first, last, a column's name or its index from 0".into()),
            "first" => Self::First,
            "last" => Self::Last,
            digits if digits.bytes().all(|b| b.is_ascii_digit()) => {
                Self::Index(digits.parse().map_err(|_| format!("`{digits}` is no column"))?)
            }
            name => Self::Name(name.to_owned()),
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::First => f.write_str("first"),
            Self::Last => f.write_str("last"),
            Self::Index(index) => index.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// What is done to features.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Scale {
    /// Nothing.
    #[default]
    None,
    /// (x - mean) / standard deviation, ddof 0.
    Standard,
    /// (x - min) / (max - min).
    Minmax,
    /// x / divisor.
    Divide(f64),
}

impl FromStr for Scale {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is none of none, standard, minmax, divide=255");
        match text {
            "none" => Ok(Self::None),
            "standard" => Ok(Self::Standard),
            "minmax" => Ok(Self::Minmax),
            other => {
                let number = other.strip_prefix("divide=").ok_or_else(wrong)?;
                let divisor: f64 = number.parse().map_err(|_| wrong())?;
                if !divisor.is_finite() || divisor == 0.0 {
                    return Err(format!("divide={number}: expected a finite number other than 0"));
                }
                Ok(Self::Divide(divisor))
            }
        }
    }
}

impl fmt::Display for Scale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Standard => f.write_str("standard"),
            Self::Minmax => f.write_str("minmax"),
            Self::Divide(divisor) => write!(f, "divide={divisor}"),
        }
    }
}

/// Rows behind one gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BatchSize {
    /// All rows of the shard.
    #[default]
    Full,
    /// So many, at least 1.
    Rows(u32),
}

impl FromStr for BatchSize {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse::<u32>()) {
            ("full", _) => Ok(Self::Full),
            (_, Ok(n)) if n > 0 => Ok(Self::Rows(n)),
            _ => Err(format!("`{text}` is neither full nor a number of rows from 1")),
        }
    }
}

impl fmt::Display for BatchSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("full"),
            Self::Rows(n) => n.fmt(f),
        }
    }
}

macro_rules! serialize_as_display {
    ($($type:ty),*) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )*};
}
serialize_as_display!(Target, Scale, BatchSize);

/// Where rows come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Files {
    /// A data set that the program brings along.
    Builtin(Builtin),
    /// These files, one data set in this order.
    Paths {
        /// At least one.
        data: Vec<String>,
        /// Empty if targets stand in the data files.
        labels: Vec<String>,
    },
}

impl Files {
    /// The data set that `--data` names, if it names a built-in one.
    ///
    /// # Errors
    /// Configuration, if it names other data as well.
    pub(super) fn builtin(data: &[String]) -> Result<Option<Self>, ExitError> {
        let Some(builtin) = data.iter().find_map(|name| Builtin::of_name(name)) else {
            return Ok(None);
        };
        if data.len() > 1 {
            return Err(ExitError::config(format!(
                "--data {builtin} is built in and stands alone; a file of that name is ./{builtin}"
            )));
        }
        Ok(Some(Self::Builtin(builtin)))
    }
}

/// Checked description of a data set and of its treatment.
///
/// What depends on a format that is still to be found by content is checked when a file is opened.
#[derive(Debug, Clone, PartialEq)]
pub struct DataSpec {
    /// Where rows come from.
    pub files: Files,
    /// Layout of the data files; label files are always told by content.
    pub format: Format,
    /// Target column of CSV; `None` is the last one.
    pub target: Option<Target>,
    /// What is done to features.
    pub scale: Scale,
    /// Only the first so many rows of the whole.
    pub take: Option<u64>,
    /// Of all shuffling.
    pub seed: u64,
    /// Whether rows are dealt, and batches visited, in random order.
    pub shuffle: bool,
    /// Rows behind one gradient.
    pub batch: BatchSize,
    /// The files are this worker's own share: nothing is dealt.
    pub data_is_shard: bool,
    /// Of LibSVM; `None` is auto.
    pub index_base: Option<IndexBase>,
    /// Features of LibSVM, where they are not to be found by their highest index.
    pub features: Option<u32>,
    /// Whether rows have targets; without, all columns are features, targets are 0 and a label of
    /// LibSVM is not looked at. `false` is for predictions.
    pub has_targets: bool,
}

impl DataSpec {
    /// The same treatment for other files, such as test data: all of their rows, in file order.
    ///
    /// # Errors
    /// Configuration: no file, or an option of this data set that does not apply to the other one.
    pub fn with_files(&self, data: Vec<String>, labels: Vec<String>) -> Result<Self, ExitError> {
        if data.is_empty() {
            return Err(ExitError::config("no data file is named"));
        }
        let files = Files::builtin(&data)?.unwrap_or(Files::Paths { data, labels });
        let spec = Self { files, take: None, shuffle: false, data_is_shard: false, ..self.clone() };
        spec.check_labels()?;
        if spec.format != Format::Auto {
            spec.check_format(spec.format)?;
        }
        Ok(spec)
    }

    pub(super) fn check_labels(&self) -> Result<(), ExitError> {
        match &self.files {
            Files::Paths { labels, .. } if !labels.is_empty() && self.target.is_some() => {
                Err(ExitError::config(
                    "--target names a column of the data files, --labels gives files of their \
                     own: use one of the two",
                ))
            }
            _ => Ok(()),
        }
    }

    /// Whether the options given apply to `format`, which is not `Auto`.
    pub(super) fn check_format(&self, format: Format) -> Result<(), ExitError> {
        let refuse = |flag: &str, only: &str| {
            Err(ExitError::config(format!(
                "{flag} does not apply to {format} data, only to {only}: leave it out"
            )))
        };
        if self.target.is_some() && format != Format::Csv {
            return refuse("--target", "CSV");
        }
        if self.index_base.is_some() && format != Format::Libsvm {
            return refuse("--index-base", "LibSVM");
        }
        if self.features.is_some() && format != Format::Libsvm {
            return refuse("--features", "LibSVM");
        }
        let Files::Paths { labels, .. } = &self.files else { return Ok(()) };
        match format {
            Format::Libsvm if !labels.is_empty() => refuse("--labels", "CSV, IDX and NPY"),
            Format::Idx | Format::Npy if labels.is_empty() && self.has_targets => {
                Err(ExitError::config(format!(
                    "{format} data holds no targets: give them with --labels"
                )))
            }
            Format::Libsvm if self.data_is_shard => {
                if self.features.is_none() || !self.base_is_given() {
                    return Err(ExitError::config(
                        "--data-is-shard with LibSVM data needs --features N and --index-base \
                         0|1, for a shard alone does not tell them",
                    ));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn base_is_given(&self) -> bool {
        matches!(self.index_base, Some(IndexBase::Zero | IndexBase::One))
    }
}
