//! Squared error: the loss of one row. Knows nothing of rows, batches or theta.

use super::Real;

/// `(z - y)^2 / 2`; `z` becomes `z - y`.
pub(super) fn derive<T: Real>(z: &mut T, y: T) -> f64 {
    *z -= y;
    let residual = z.to_f64();
    0.5 * residual * residual
}
