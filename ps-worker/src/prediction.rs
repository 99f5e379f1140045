//! A model with a theta that is there already, over rows: predictions, and how good they are.
//!
//! Knows `data` and `model`; neither where theta is from nor where predictions go.

use ndarray::Array2;
use ps_common::exit::ExitError;
use ps_common::job::Metrics;
use ps_common::tables::Tables;

use crate::data::{DataArgs, DataSpec, Preprocessing, Rows, Scale, load, survey};
use crate::model::{Model, ModelSpec, Real};

/// What is predicted, by flags that are not checked yet.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The rows.
    pub data: &'a DataArgs,
    /// Whether they come without targets.
    pub unlabelled: bool,
    /// The data that theta was trained on, if it is at hand.
    pub train: Option<Training<'a>>,
    /// Classes, where theta's file knows them.
    pub n_classes: Option<usize>,
}

/// The data that theta was trained on: its statistics, its width, its classes.
#[derive(Debug, Clone, Copy)]
pub struct Training<'a> {
    /// At least one.
    pub data: &'a [String],
    /// Empty if targets stand in the data.
    pub labels: &'a [String],
    /// As `--take` in training.
    pub take: Option<u64>,
}

/// A model, and rows that have been looked at but not loaded.
#[derive(Debug, Clone)]
pub struct Predictor {
    rows: DataSpec,
    preprocessing: Preprocessing,
    model: Model,
}

/// One number a row, and what targets make of it.
#[derive(Debug, Clone)]
pub struct Predicted<T> {
    /// By squared loss the value, else the class (of two: 0 or 1).
    pub targets: Vec<T>,
    /// Of each class, rows by classes; `None` for regression.
    pub probabilities: Option<Array2<f64>>,
    /// Against the rows' own targets, where they have some.
    pub metrics: Option<Metrics>,
}

impl Predictor {
    /// Checks the flags and looks at the data that says what theta's tables are.
    ///
    /// # Errors
    /// Configuration, naming the flag; bad data, naming file, line and column.
    pub fn survey(spec: ModelSpec, question: &Question<'_>) -> Result<Self, ExitError> {
        let Question { data, unlabelled, train, n_classes } = *question;
        let rows = if unlabelled { data.check_without_targets()? } else { data.check()? };
        refuse_training_flags(data)?;
        if matches!(rows.scale, Scale::Standard | Scale::Minmax) && train.is_none() {
            return Err(ExitError::config(format!(
                "--scale {} needs the statistics of the training data, which an exported theta \
                 does not hold: name its files in --train-data",
                rows.scale
            )));
        }
        let known = match train {
            None => rows.clone(),
            Some(Training { data, labels, take }) => {
                let spec = DataSpec { has_targets: true, ..rows.clone() };
                DataSpec { take, ..spec.with_files(data.to_vec(), labels.to_vec())? }
            }
        };
        let survey = survey(&known)?;
        let of_targets = survey.targets.n_classes().filter(|_| known.has_targets);
        let spec = spec.with_classes(n_classes.or(of_targets))?;
        let model = Model::new(&spec, survey.n_features, known.seed)?;
        let preprocessing = Preprocessing::new(rows.scale, &survey, None)?;
        Ok(Self { rows, preprocessing, model })
    }

    /// theta's tables.
    pub fn tables(&self) -> &Tables {
        self.model.tables()
    }

    /// The model, for rows of the data's width.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Reads the rows and applies the model to them.
    ///
    /// # Errors
    /// Bad data.
    ///
    /// # Panics
    /// If `theta` is not as long as the tables say.
    pub fn predict<T: Real>(&self, theta: &[T]) -> Result<Predicted<T>, ExitError> {
        let samples = load::<T>(&self.rows, &self.preprocessing, Rows::All)?;
        let metrics = if self.rows.has_targets {
            self.model.check_samples(&samples)?;
            Some(self.model.metrics(theta, &samples))
        } else {
            None
        };
        Ok(Predicted {
            targets: self.model.predict_targets(theta, &samples),
            probabilities: self.model.probabilities(theta, &samples),
            metrics,
        })
    }
}

/// Flags that say in which order rows are learned from.
fn refuse_training_flags(data: &DataArgs) -> Result<(), ExitError> {
    let order = [
        ("--batch", data.batch != Default::default()),
        ("--shuffle", data.shuffle.is_some()),
        ("--seed", data.seed != 0),
        ("--data-is-shard", data.data_is_shard),
    ];
    match order.into_iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((flag, _)) => Err(ExitError::config(format!(
            "{flag} has no meaning here: predictions are made for all rows in their order"
        ))),
    }
}
