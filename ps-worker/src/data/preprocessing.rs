//! What is done to features before a model sees them: part of the job, and of every export.
//!
//! Owns the arithmetic of scaling. Where the statistics come from is decided elsewhere.

use ps_common::Element;
use ps_common::exit::ExitError;
use ps_common::statistics::Statistics;
use serde::{Deserialize, Serialize};

use super::spec::Scale;
use super::survey::Survey;

/// The treatment of features, the same for training, evaluation and prediction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Preprocessing {
    /// Features of every row.
    pub n_features: usize,
    /// The index of the first feature in LibSVM files, else 0.
    pub index_base: u32,
    /// What is done to values.
    pub scaling: Scaling,
}

/// What is done to values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Scaling {
    /// Nothing.
    None,
    /// x / divisor; sparse rows stay sparse.
    Divide {
        /// Finite, not 0.
        divisor: f64,
    },
    /// (x - offset) / divisor by feature; sparse rows become dense.
    Affine {
        /// Mean or minimum of each feature.
        offset: Vec<f64>,
        /// Standard deviation (ddof 0) or range of each feature; 1 for a constant one.
        divisor: Vec<f64>,
    },
}

impl Preprocessing {
    /// The treatment that `scale` means for the data of `survey`.
    ///
    /// `merged` are the statistics of all shards together where these files are only one of them;
    /// without it the survey's own count.
    ///
    /// # Errors
    /// Configuration: `merged` is of another kind or number of features than this shard.
    pub fn new(
        scale: Scale,
        survey: &Survey,
        merged: Option<&Statistics>,
    ) -> Result<Self, ExitError> {
        let n_features = survey.n_features;
        let scaling = match scale {
            Scale::None => Scaling::None,
            Scale::Divide(divisor) => Scaling::Divide { divisor },
            Scale::Standard | Scale::Minmax => {
                let statistics = merged.or(survey.statistics.as_ref()).ok_or_else(|| {
                    ExitError::config(format!("--scale {scale}: the data was read without it"))
                })?;
                affine(scale, statistics, n_features)?
            }
        };
        Ok(Self { n_features, index_base: survey.index_base, scaling })
    }

    /// Whether sparse rows stay sparse.
    pub fn keeps_zeros(&self) -> bool {
        !matches!(self.scaling, Scaling::Affine { .. })
    }

    /// Scales a whole row.
    ///
    /// # Panics
    /// If a length is not `n_features`.
    pub(super) fn scale<T: Element>(&self, row: &[f64], scaled: &mut [T]) {
        assert_eq!((row.len(), scaled.len()), (self.n_features, self.n_features));
        match &self.scaling {
            Scaling::None | Scaling::Divide { .. } => {
                for (to, &x) in scaled.iter_mut().zip(row) {
                    *to = T::from_f64(self.scale_entry(x));
                }
            }
            Scaling::Affine { offset, divisor } => {
                for (((to, &x), &o), &d) in scaled.iter_mut().zip(row).zip(offset).zip(divisor) {
                    *to = T::from_f64((x - o) / d);
                }
            }
        }
    }

    /// Scales one value of a sparse row.
    pub(super) fn scale_entry(&self, x: f64) -> f64 {
        match &self.scaling {
            Scaling::Divide { divisor } => x / divisor,
            Scaling::None | Scaling::Affine { .. } => x,
        }
    }
}

fn affine(scale: Scale, statistics: &Statistics, n_features: usize) -> Result<Scaling, ExitError> {
    if statistics.n_features() != n_features {
        return Err(ExitError::config(format!(
            "--data: this shard has {n_features} features, the shards of the job have {}",
            statistics.n_features()
        )));
    }
    let one_if_constant = |d: f64| if d > 0.0 { d } else { 1.0 };
    let n_samples = statistics.n_samples();
    if n_samples == 0 {
        return Ok(Scaling::Affine {
            offset: vec![0.0; n_features],
            divisor: vec![1.0; n_features],
        });
    }
    match (scale, statistics) {
        (Scale::Standard, Statistics::Moments { mean, deviations, .. }) => Ok(Scaling::Affine {
            offset: mean.clone(),
            divisor: deviations
                .iter()
                .map(|d| one_if_constant((d / n_samples as f64).sqrt()))
                .collect(),
        }),
        (Scale::Minmax, Statistics::Range { min, max, .. }) => Ok(Scaling::Affine {
            offset: min.clone(),
            divisor: min.iter().zip(max).map(|(lo, hi)| one_if_constant(hi - lo)).collect(),
        }),
        _ => Err(ExitError::config(format!(
            "--scale {scale}: the statistics of the job are of another kind; give all workers the \
             same --scale"
        ))),
    }
}
