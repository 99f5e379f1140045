//! Two classes: the loss of one row, for targets 0/1 and -1/+1. Knows nothing of rows,
//! batches or theta.
//!
//! Cross-entropy `log(1 + exp(z)) - y z` is computed as `max(z, 0) - y z + log1p(exp(-|z|))`, whose
//! terms neither overflow nor cancel for any finite z.

use super::Real;

/// Whether a target names class 1: 1 does, 0 and -1 do not.
pub(super) fn is_class_1<T: Real>(y: T) -> bool {
    y > T::ZERO
}

/// Cross-entropy of a row in f64; `z` becomes `sigmoid(z) - y`.
pub(super) fn derive<T: Real>(z: &mut T, y: T) -> f64 {
    let score = z.to_f64();
    // Towards the row's own class. The loss is log(1 + exp(-margin)) for either class.
    let (margin, sign) = if is_class_1(y) { (score, -1.0) } else { (-score, 1.0) };
    *z = T::from_f64(sign * sigmoid(-margin));
    (-margin).max(0.0) + (-margin.abs()).exp().ln_1p()
}

/// `1 / (1 + exp(-z))` without overflow.
pub(super) fn sigmoid(z: f64) -> f64 {
    if z >= 0.0 {
        1.0 / (1.0 + (-z).exp())
    } else {
        let e = z.exp();
        e / (1.0 + e)
    }
}

/// The first target that is neither 0/1 nor -1/+1, or of the other pair than those before it.
pub(super) fn find_wrong_target(
    targets: impl Iterator<Item = (usize, f64)>,
) -> Option<(usize, f64)> {
    let mut negative = None;
    for (row, y) in targets {
        let fits = y == 1.0 || (y == 0.0 || y == -1.0) && *negative.get_or_insert(y) == y;
        if !fits {
            return Some((row, y));
        }
    }
    None
}
