//! Several classes: the loss of one row of scores. Knows nothing of rows, batches or theta.
//!
//! The largest score is subtracted before `exp`, so that no finite score overflows; exponentials
//! and their sum are f64 in either dtype.

use super::Real;

/// The class that a target names, if it is one of `n_classes`.
pub(super) fn class_of(y: f64, n_classes: usize) -> Option<usize> {
    (y >= 0.0 && y < n_classes as f64 && y.fract() == 0.0).then_some(y as usize)
}

/// `-log softmax(z)[y]`; `z` becomes `softmax(z) - onehot(y)`. `exps` is as long as `z`.
///
/// # Panics
/// If `y` is no class.
pub(super) fn derive<T: Real>(z: &mut [T], y: T, exps: &mut [f64]) -> f64 {
    let class = class_of(y.to_f64(), z.len()).expect("targets are checked before training");
    let score = z[class].to_f64();
    let (max, sum) = write_exps(z, exps);
    for (z, &e) in z.iter_mut().zip(&*exps) {
        *z = T::from_f64(e / sum);
    }
    // By difference in f64, or a probability close to 1 would lose its distance from 1.
    z[class] = T::from_f64(exps[class] / sum - 1.0);
    sum.ln() + (max - score)
}

/// `softmax(z)`.
pub(super) fn write_probabilities<T: Real>(z: &[T], probabilities: &mut [f64]) {
    let (_, sum) = write_exps(z, probabilities);
    for p in probabilities {
        *p /= sum;
    }
}

/// `exps = exp(z - max z)`; gives the maximum and the sum.
fn write_exps<T: Real>(z: &[T], exps: &mut [f64]) -> (f64, f64) {
    let max = z.iter().fold(f64::NEG_INFINITY, |max, z| max.max(z.to_f64()));
    let mut sum = 0.0;
    for (e, z) in exps.iter_mut().zip(z) {
        *e = (z.to_f64() - max).exp();
        sum += *e;
    }
    (max, sum)
}

/// The class of the largest score, the lowest among equals.
pub(super) fn argmax<T: Real>(z: &[T]) -> usize {
    let mut best = 0;
    for (class, &score) in z.iter().enumerate() {
        if score > z[best] {
            best = class;
        }
    }
    best
}
