//! What one row costs under each model: the one place where models are told apart by row.
//!
//! Knows a row's scores and target, nothing of theta or of batches.

use super::{ModelKind, Real, linear, logistic, softmax};

impl ModelKind {
    /// Classes told apart; `None` for regression.
    pub fn n_classes(self) -> Option<usize> {
        match self {
            Self::Linear => None,
            Self::Logistic => Some(2),
            Self::Softmax { n_classes } => Some(n_classes),
        }
    }

    /// Columns of `Z`.
    pub(super) fn n_outputs(self) -> usize {
        match self {
            Self::Linear | Self::Logistic => 1,
            Self::Softmax { n_classes } => n_classes,
        }
    }

    /// Loss of one row with scores `z`, which become the loss's derivative by them.
    pub(super) fn derive<T: Real>(self, z: &mut [T], y: T, exps: &mut [f64]) -> f64 {
        match self {
            Self::Linear => linear::derive(&mut z[0], y),
            Self::Logistic => logistic::derive(&mut z[0], y),
            Self::Softmax { .. } => softmax::derive(z, y, exps),
        }
    }

    /// Whether the prediction is the target; never for regression.
    pub(super) fn is_correct<T: Real>(self, z: &[T], y: T) -> bool {
        match self {
            Self::Linear => false,
            Self::Logistic => (z[0] >= T::ZERO) == logistic::is_class_1(y),
            Self::Softmax { .. } => softmax::argmax(z) as f64 == y.to_f64(),
        }
    }

    /// The first target (row from 0, value) that the loss is not defined for.
    pub(super) fn find_wrong_target<T: Real>(self, targets: &[T]) -> Option<(usize, f64)> {
        let mut targets = targets.iter().map(|y| y.to_f64()).enumerate();
        match self {
            Self::Linear => targets.find(|(_, y)| !y.is_finite()),
            Self::Logistic => logistic::find_wrong_target(targets),
            Self::Softmax { n_classes } => {
                targets.find(|&(_, y)| softmax::class_of(y, n_classes).is_none())
            }
        }
    }

    /// What targets are to be, for a message.
    pub(super) fn targets_expected(self) -> String {
        match self {
            Self::Linear => "a finite number".to_owned(),
            Self::Logistic => "0 or 1, or else -1 or +1, one pair throughout".to_owned(),
            Self::Softmax { n_classes } => format!("a class from 0 to {}", n_classes - 1),
        }
    }
}
