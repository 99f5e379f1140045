//! What is learned, put together: a model over data, and the gradient of each clock.
//!
//! Knows `data` and `model`, and no network: the terms of the job are arguments.

use ps_common::Dtype;
use ps_common::calls::JoinAnswer;
use ps_common::exit::{Exit, ExitError};
use ps_common::job::{Fingerprint, Metrics, Mode};
use ps_common::statistics::Statistics;
use ps_common::tables::Tables;

use crate::args::{EvaluationArgs, LearnArgs};
use crate::data::{BatchSize, Batches, DataSpec, Preprocessing, Rows, Scale, Survey, load, survey};
use crate::local_steps::LocalSteps;
use crate::model::{
    Batch, Loss, Model, ModelSpec, Real, Scratch, l2_share, l2_share_depends_on_shards,
};
use crate::samples::{Samples, Selection};

mod sparse;

use sparse::Sparse;

/// A model over data that has been looked at, but not loaded.
#[derive(Debug, Clone)]
pub struct Problem {
    data: DataSpec,
    survey: Survey,
    preprocessing: Preprocessing,
    spec: ModelSpec,
    model: Model,
    local: Option<LocalSteps>,
}

impl Problem {
    /// Checks the flags and looks at all rows once.
    ///
    /// # Errors
    /// Configuration, naming the flag; bad data, naming file, line and column.
    pub fn survey(learn: &LearnArgs) -> Result<Self, ExitError> {
        let spec = learn.model.check()?;
        let data = learn.data.check()?;
        let local = learn.local.check()?;
        let survey = survey(&data)?;
        // One shard alone cannot know the classes of all.
        let n_classes = survey.targets.n_classes().filter(|_| !data.data_is_shard);
        let spec = spec.with_classes(n_classes)?;
        let model = Model::new(&spec, survey.n_features, data.seed)?;
        let preprocessing = Preprocessing::new(data.scale, &survey, None)?;
        Ok(Self { data, survey, preprocessing, spec, model, local })
    }

    /// The model for rows of the data's width.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// theta's tables.
    pub fn tables(&self) -> &Tables {
        self.model.tables()
    }

    /// Refuses to train on rows of theta alone where the data has all features in every row.
    ///
    /// # Errors
    /// Configuration, naming the flags.
    pub fn check_sparse(&self) -> Result<(), ExitError> {
        let why = match (self.survey.is_sparse, self.preprocessing.keeps_zeros()) {
            (true, true) => return Ok(()),
            (false, _) => "the data is dense: take LibSVM files, or leave --sparse out".to_owned(),
            (true, false) => {
                let scale = self.data.scale;
                format!("--scale {scale} makes the data dense: take --scale divide=F or none")
            }
        };
        Err(ExitError::config(format!("--sparse: every row of theta would be touched, {why}")))
    }

    /// Of all random order.
    pub fn seed(&self) -> u64 {
        self.data.seed
    }

    /// What must be equal for all workers of a job (rule R12). Where each worker brings its own
    /// rows their number is its own affair.
    pub fn fingerprint(&self, dtype: Option<Dtype>) -> Fingerprint {
        let data = &self.data;
        let n_classes = self.model.kind().loss.n_classes();
        let n_samples = (!data.data_is_shard).then_some(self.survey.n_samples);
        let take = data.take.map_or("all".to_owned(), |n| n.to_string());
        let local_lr = self.local.map_or("none".to_owned(), |local| local.lr.to_string());
        [
            ("model", Some(self.model.kind().to_string())),
            ("n_features", Some(self.model.n_features().to_string())),
            ("n_classes", n_classes.map(|n| n.to_string())),
            ("bias", Some(self.model.has_bias().to_string())),
            ("l2", Some(self.spec.l2.to_string())),
            ("scale", Some(data.scale.to_string())),
            ("batch", Some(data.batch.to_string())),
            ("shuffle", Some(data.shuffle.to_string())),
            ("seed", Some(data.seed.to_string())),
            ("take", Some(take)),
            ("local_steps", Some(self.local_steps().to_string())),
            ("local_lr", Some(local_lr)),
            ("n_samples", n_samples.map(|n| n.to_string())),
            ("dtype", dtype.map(|dtype| dtype.to_string())),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?)))
        .collect()
    }

    /// Batches behind a push.
    fn local_steps(&self) -> u32 {
        self.local.map_or(1, |local| local.n_steps)
    }

    /// This shard's statistics, where scaling needs those of shards that others have.
    pub fn statistics_to_merge(&self) -> Option<Statistics> {
        let needed = matches!(self.data.scale, Scale::Standard | Scale::Minmax);
        if self.data.data_is_shard && needed { self.survey.statistics.clone() } else { None }
    }

    /// Scales by the statistics of all shards.
    ///
    /// # Errors
    /// Configuration, where they are of other features.
    pub fn use_statistics(&mut self, merged: &Statistics) -> Result<(), ExitError> {
        self.preprocessing = Preprocessing::new(self.data.scale, &self.survey, Some(merged))?;
        Ok(())
    }

    /// Versions of theta that come of one pass over the data by all workers.
    pub fn updates_per_pass(&self, mode: Mode, n_workers: u32) -> u64 {
        let rows = self.survey.n_samples.div_ceil(u64::from(n_workers));
        let rounds = match self.data.batch {
            BatchSize::Full => 1,
            BatchSize::Rows(size) => {
                let batches = rows.div_ceil(u64::from(size));
                batches.div_ceil(self.local_steps().into()).max(1)
            }
        };
        rounds * mode.updates_per_round(n_workers)
    }

    /// Reads the shard that the job has given.
    ///
    /// # Errors
    /// Bad data; configuration, where the job's terms do not go with the flags.
    pub fn load_shard<T: Real>(&self, terms: &JoinAnswer) -> Result<Learner<T>, ExitError> {
        if let Some(local) = self.local {
            local.check_aggregate(terms.mode, terms.aggregate)?;
        }
        let rows = Rows::of_worker(&self.data, terms.shard, terms.n_shards, self.survey.n_samples);
        let samples = load::<T>(&self.data, &self.preprocessing, rows)?;
        self.model.check_samples(&samples)?;
        self.learner(samples, terms)
    }

    /// A learner over rows that were dealt elsewhere. `terms` say whose they are; as many shards
    /// must have rows as would have if these were dealt as usual.
    ///
    /// # Errors
    /// Bad data: too many rows.
    pub fn learner<T: Real>(
        &self,
        samples: Samples<T>,
        terms: &JoinAnswer,
    ) -> Result<Learner<T>, ExitError> {
        let n_with_rows = self.n_shards_with_rows(terms)?;
        let n_rows = u32::try_from(samples.len()).map_err(|_| {
            let what =
                format!("a shard of {} rows: at most {} are possible", samples.len(), u32::MAX);
            ExitError::new(Exit::BadData, what)
        })?;
        let DataSpec { seed, shuffle, batch: size, .. } = self.data;
        Ok(Learner {
            batches: Batches::new(n_rows, size, seed, terms.shard, shuffle),
            model: self.model.clone(),
            samples,
            l2_share: match self.local {
                Some(_) => 1.0,
                None => l2_share(terms.mode, terms.aggregate, terms.n_shards, n_with_rows),
            },
            local: self.local,
            theta_local: Vec::new(),
            is_full_batch: size == BatchSize::Full,
            scratch: Scratch::default(),
            sparse: None,
        })
    }

    /// Shards that have rows, among which the L2 term is divided.
    fn n_shards_with_rows(&self, terms: &JoinAnswer) -> Result<u32, ExitError> {
        let n_samples = u32::try_from(self.survey.n_samples).unwrap_or(u32::MAX);
        if !self.data.data_is_shard {
            return Ok(n_samples.min(terms.n_shards));
        }
        // Nobody knows how many of the others have rows; all do, or it must not matter.
        let divided =
            self.local.is_none() && l2_share_depends_on_shards(terms.mode, terms.aggregate);
        if n_samples == 0 && divided && self.spec.l2 > 0.0 {
            return Err(ExitError::config(format!(
                "--data-is-shard without any rows: with --l2 and --aggregate {} every shard needs \
                 some",
                terms.aggregate
            )));
        }
        Ok(terms.n_shards)
    }

    /// Reads all rows.
    ///
    /// # Errors
    /// Bad data.
    pub fn load_all<T: Real>(&self) -> Result<Samples<T>, ExitError> {
        let samples = load::<T>(&self.data, &self.preprocessing, Rows::All)?;
        self.model.check_samples(&samples)?;
        Ok(samples)
    }

    /// Reads the test rows, if there are any, with the treatment of the training rows.
    ///
    /// # Errors
    /// Configuration, naming the flag; bad data.
    pub fn load_test<T: Real>(
        &self,
        evaluation: &EvaluationArgs,
    ) -> Result<Option<Samples<T>>, ExitError> {
        let EvaluationArgs { test_data, test_labels, .. } = evaluation;
        if test_data.is_empty() {
            return Ok(None);
        }
        let data = self.data.with_files(test_data.clone(), test_labels.clone())?;
        let samples = load::<T>(&data, &self.preprocessing, Rows::All)?;
        self.model.check_samples(&samples)?;
        Ok(Some(samples))
    }
}

/// A shard in memory and what is computed over it.
#[derive(Debug, Clone)]
pub struct Learner<T> {
    model: Model,
    samples: Samples<T>,
    batches: Batches,
    l2_share: f64,
    local: Option<LocalSteps>,
    /// Working memory of local steps.
    theta_local: Vec<T>,
    is_full_batch: bool,
    scratch: Scratch<T>,
    /// Where only rows of theta come and go.
    sparse: Option<Sparse<T>>,
}

impl<T: Real> Learner<T> {
    /// Rows of the shard.
    pub fn n_samples(&self) -> usize {
        self.samples.len()
    }

    /// Whether every gradient is over the whole shard.
    pub fn is_full_batch(&self) -> bool {
        self.is_full_batch
    }

    /// What the worker pushes at `clock`, given the `theta` that it pulled, and the loss there: the
    /// same bits whenever it is asked.
    ///
    /// That is the gradient of the clock's batch or, with local steps, theta_pulled - theta_local.
    /// The loss is then that of the first step, and `n_samples` the rows behind all of them, at most
    /// those of the shard: over whole passes workers weigh as in Algorithm 1 of McMahan et al. 2017.
    ///
    /// # Panics
    /// If `theta` or `gradient` has another length than the model's, or than the rows that the clock
    /// touches.
    pub fn compute(&mut self, clock: u64, theta: &[T], gradient: &mut [T]) -> Loss {
        let Some(LocalSteps { n_steps, lr }) = self.local else {
            return self.of_batch(clock, theta, gradient);
        };
        let mut local = std::mem::take(&mut self.theta_local);
        local.clear();
        local.extend_from_slice(theta);
        let first = clock * u64::from(n_steps);
        let mut told = self.of_batch(first, theta, gradient);
        move_by(&mut local, lr, gradient);
        for number in first + 1..first + u64::from(n_steps) {
            told.n_samples += self.of_batch(number, &local, gradient).n_samples;
            move_by(&mut local, lr, gradient);
        }
        for ((g, &pulled), &arrived) in gradient.iter_mut().zip(theta).zip(&local) {
            *g = pulled - arrived;
        }
        self.theta_local = local;
        told.n_samples = told.n_samples.min(self.samples.len() as u64);
        told
    }

    /// The gradient at `theta` of batch `number`, counted over all passes.
    fn of_batch(&mut self, number: u64, theta: &[T], gradient: &mut [T]) -> Loss {
        let Self { model, samples, batches, l2_share, scratch, .. } = self;
        let (model, samples, selection) = match &mut self.sparse {
            Some(sparse) if !self.is_full_batch => {
                let batch = sparse.batch(number, samples, batches);
                (&batch.model, &batch.samples, Selection::All)
            }
            _ => (&*model, &*samples, batches.select(number)),
        };
        let batch = Batch { samples, selection, l2_share: *l2_share };
        model.loss_and_gradient(theta, &batch, gradient, scratch)
    }

    /// Loss and accuracy over the whole shard.
    ///
    /// # Panics
    /// If `theta` has another length than the model's, or than the rows that the shard touches.
    pub fn metrics(&self, theta: &[T]) -> Metrics {
        self.model.metrics(theta, &self.samples)
    }
}

/// `theta -= lr * gradient`.
fn move_by<T: Real>(theta: &mut [T], lr: f64, gradient: &[T]) {
    let lr = T::from_f64(lr);
    for (theta, &g) in theta.iter_mut().zip(gradient) {
        *theta -= lr * g;
    }
}

#[cfg(test)]
mod tests;
