//! The flags that describe data, and their check.
//!
//! Owns names, help and defaults. Their values are spelt in `spec`.

use ps_common::exit::ExitError;

use super::builtin::Builtin;
use super::spec::{BatchSize, DataSpec, Files, Format, IndexBase, Scale, Target};

/// The flags that describe data: what they say is not checked yet.
#[derive(clap::Args, serde::Serialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Data")]
pub struct DataArgs {
    /// Data files, one set in the order given; gzip is read as it is. Built in are `reference`, the
    /// default (linear regression, 1000 rows of 10 features), and `clusters` (10 classes, 3200 rows
    /// of 16 features; `clusters-sorted` has them class after class).
    #[arg(long, env = "PS_DATA", value_name = "FILE", value_delimiter = ',')]
    pub data: Vec<String>,

    /// Files with one target a row, for all rows of --data in order (CSV of one column, IDX, NPY).
    #[arg(long, env = "PS_LABELS", value_name = "FILE", value_delimiter = ',')]
    pub labels: Vec<String>,

    /// Layout of the data files; auto looks at their first bytes.
    #[arg(long, env = "PS_FORMAT", value_enum, default_value_t)]
    pub format: Format,

    /// Target column of CSV: first, last (the default), its name, or its index from 0.
    #[arg(long, env = "PS_TARGET", value_name = "first|last|NAME|INDEX")]
    pub target: Option<Target>,

    /// Treatment of features: none, standard (mean 0, deviation 1), minmax (0 to 1), or divide=255.
    /// standard and minmax make sparse data dense in the shard.
    #[arg(long, env = "PS_SCALE", value_name = "none|standard|minmax|divide=F", default_value_t)]
    pub scale: Scale,

    /// Only the first N rows of the whole (with --data-is-shard: of the shard).
    #[arg(long, env = "PS_TAKE", value_name = "N")]
    pub take: Option<u64>,

    /// Seed of all random order.
    #[arg(long, env = "PS_SEED", value_name = "N", default_value_t = 0)]
    pub seed: u64,

    /// Deal rows to shards, and visit batches, in random order. Default: true with --batch N, false
    /// with --batch full (file order).
    #[arg(long, env = "PS_SHUFFLE", value_name = "true|false")]
    pub shuffle: Option<bool>,

    /// Rows behind one gradient: full (the whole shard) or N.
    #[arg(long, env = "PS_BATCH", value_name = "full|N", default_value_t)]
    pub batch: BatchSize,

    /// The files are this worker's share already: no rows are dealt to others.
    #[arg(
        long,
        env = "PS_DATA_IS_SHARD",
        value_name = "true|false",
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value_t = false
    )]
    pub data_is_shard: bool,

    /// Whether LibSVM files count features from 0 or from 1; auto: from 0 if an index 0 occurs.
    #[arg(long, env = "PS_INDEX_BASE", value_enum)]
    pub index_base: Option<IndexBase>,

    /// Number of features of LibSVM files, if it is not their highest index.
    #[arg(long, env = "PS_FEATURES", value_name = "N")]
    pub features: Option<u32>,
}

impl DataArgs {
    /// Checks what can be checked without opening a file.
    ///
    /// # Errors
    /// Configuration, naming the flag: options that do not apply or contradict each other.
    pub fn check(&self) -> Result<DataSpec, ExitError> {
        self.check_rows(true)
    }

    /// As [`DataArgs::check`], for rows without targets.
    ///
    /// # Errors
    /// As there; also for a flag that says where targets are.
    pub fn check_without_targets(&self) -> Result<DataSpec, ExitError> {
        let targets = [("--labels", !self.labels.is_empty()), ("--target", self.target.is_some())];
        match targets.iter().find(|(_, given)| *given) {
            Some((flag, _)) => Err(ExitError::config(format!(
                "{flag} and --unlabelled exclude each other: the one says where targets are, the \
                 other that there are none"
            ))),
            None if matches!(self.files()?, Files::Builtin(_)) => Err(ExitError::config(
                "--unlabelled does not apply to built-in data: give --data FILE",
            )),
            None => self.check_rows(false),
        }
    }

    fn check_rows(&self, has_targets: bool) -> Result<DataSpec, ExitError> {
        let files = self.files()?;
        if self.take == Some(0) {
            return Err(ExitError::config("--take 0 leaves no rows: give at least 1"));
        }
        if self.features == Some(0) {
            return Err(ExitError::config("--features 0 leaves nothing to learn from"));
        }
        let spec = DataSpec {
            files,
            format: self.format,
            target: self.target.clone(),
            scale: self.scale,
            take: self.take,
            seed: self.seed,
            shuffle: self.shuffle.unwrap_or(self.batch != BatchSize::Full),
            batch: self.batch,
            data_is_shard: self.data_is_shard,
            index_base: self.index_base,
            features: self.features,
            has_targets,
        };
        spec.check_labels()?;
        if spec.format != Format::Auto {
            spec.check_format(spec.format)?;
        }
        Ok(spec)
    }

    fn files(&self) -> Result<Files, ExitError> {
        if self.data.is_empty() && !self.labels.is_empty() {
            return Err(ExitError::config("--labels needs --data: give the files it belongs to"));
        }
        if let Some(flag) = [("--data", &self.data), ("--labels", &self.labels)]
            .into_iter()
            .find_map(|(flag, files)| files.iter().any(String::is_empty).then_some(flag))
        {
            return Err(ExitError::config(format!("{flag} has an empty file name")));
        }
        let files = match Files::builtin(&self.data)? {
            Some(builtin) => builtin,
            None if self.data.is_empty() => Files::Builtin(Builtin::Reference),
            None => {
                return Ok(Files::Paths { data: self.data.clone(), labels: self.labels.clone() });
            }
        };
        let inapplicable = [
            ("--labels", !self.labels.is_empty()),
            ("--format", self.format != Format::Auto),
            ("--target", self.target.is_some()),
            ("--index-base", self.index_base.is_some()),
            ("--features", self.features.is_some()),
            ("--data-is-shard", self.data_is_shard),
        ];
        match inapplicable.iter().find(|(_, given)| *given) {
            Some((flag, _)) => Err(ExitError::config(format!(
                "{flag} does not apply to built-in data: give --data FILE or leave it out"
            ))),
            None => Ok(files),
        }
    }
}
