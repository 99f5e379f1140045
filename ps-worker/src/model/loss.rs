//! What the scores of one row cost, and what they predict: the one place where losses are told
//! apart.
//!
//! Knows a row's scores and target, nothing of theta, of batches or of how scores come about.

use super::{Real, logistic, softmax, squared};

/// The loss of a row of scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowLoss {
    /// Half the squared error of one score: regression.
    Squared,
    /// Cross-entropy of one score: two classes.
    Logistic,
    /// Cross-entropy of a score for each class.
    Softmax {
        /// At least 2.
        n_classes: usize,
    },
}

impl RowLoss {
    /// Classes told apart; `None` for regression.
    pub fn n_classes(self) -> Option<usize> {
        match self {
            Self::Squared => None,
            Self::Logistic => Some(2),
            Self::Softmax { n_classes } => Some(n_classes),
        }
    }

    /// Scores of a row.
    pub(super) fn n_outputs(self) -> usize {
        match self {
            Self::Squared | Self::Logistic => 1,
            Self::Softmax { n_classes } => n_classes,
        }
    }

    /// Loss of one row with scores `z`, which become the loss's derivative by them.
    pub(super) fn derive<T: Real>(self, z: &mut [T], y: T, exps: &mut [f64]) -> f64 {
        match self {
            Self::Squared => squared::derive(&mut z[0], y),
            Self::Logistic => logistic::derive(&mut z[0], y),
            Self::Softmax { .. } => softmax::derive(z, y, exps),
        }
    }

    /// Whether the prediction is the target; never for regression.
    pub(super) fn is_correct<T: Real>(self, z: &[T], y: T) -> bool {
        match self {
            Self::Squared => false,
            Self::Logistic => (z[0] >= T::ZERO) == logistic::is_class_1(y),
            Self::Softmax { .. } => softmax::argmax(z) as f64 == y.to_f64(),
        }
    }

    /// The value, the probability of class 1, or the class.
    pub(super) fn predict<T: Real>(self, z: &[T]) -> T {
        match self {
            Self::Squared => z[0],
            Self::Logistic => T::from_f64(logistic::sigmoid(z[0].to_f64())),
            Self::Softmax { .. } => T::from_f64(softmax::argmax(z) as f64),
        }
    }

    /// The value or the class, of two classes 0 or 1.
    pub(super) fn predict_target<T: Real>(self, z: &[T]) -> T {
        match self {
            Self::Squared | Self::Softmax { .. } => self.predict(z),
            Self::Logistic => {
                if z[0] >= T::ZERO {
                    T::ONE
                } else {
                    T::ZERO
                }
            }
        }
    }

    /// The probability of each class; nothing for regression.
    pub(super) fn write_probabilities<T: Real>(self, z: &[T], probabilities: &mut [f64]) {
        match self {
            Self::Squared => {}
            Self::Logistic => {
                let z = z[0].to_f64();
                probabilities.copy_from_slice(&[logistic::sigmoid(-z), logistic::sigmoid(z)]);
            }
            Self::Softmax { .. } => softmax::write_probabilities(z, probabilities),
        }
    }

    /// The first target (row from 0, value) that the loss is not defined for.
    pub(super) fn find_wrong_target<T: Real>(self, targets: &[T]) -> Option<(usize, f64)> {
        let mut targets = targets.iter().map(|y| y.to_f64()).enumerate();
        match self {
            Self::Squared => targets.find(|(_, y)| !y.is_finite()),
            Self::Logistic => logistic::find_wrong_target(targets),
            Self::Softmax { n_classes } => {
                targets.find(|&(_, y)| softmax::class_of(y, n_classes).is_none())
            }
        }
    }

    /// What targets are to be, for a message.
    pub(super) fn targets_expected(self) -> String {
        match self {
            Self::Squared => "a finite number".to_owned(),
            Self::Logistic => "0 or 1, or else -1 or +1, one pair throughout".to_owned(),
            Self::Softmax { n_classes } => format!("a class from 0 to {}", n_classes - 1),
        }
    }
}
