//! RMSProp.

use ps_common::{Element, widest};

use super::rule::Turn;

/// `n = rho * n + (1 - rho) * g^2`; `theta -= lr * g / (sqrt(n) + eps)`. Tieleman and Hinton 2012,
/// lecture 6.5 of "Neural Networks for Machine Learning", with epsilon outside the root.
/// Gives whether all that it wrote is finite.
///
/// # Panics
/// If lengths differ.
pub(super) fn rmsprop<T: Element>(
    (new, old): Turn<'_, T>,
    gradient: &[T],
    (n, before): Turn<'_, T>,
    (lr, rho, eps): (f64, f64, f64),
) -> bool {
    assert!(new.len() == old.len() && new.len() == gradient.len());
    assert!(new.len() == n.len() && new.len() == before.len());
    let [lr, rho, rest, eps] = [lr, rho, 1.0 - rho, eps].map(T::from_f64);
    widest(|| {
        let mut is_finite = true;
        let then = old.iter().zip(gradient).zip(before);
        for ((new, n), ((&old, &g), &before)) in new.iter_mut().zip(n).zip(then) {
            *n = rho * before + rest * (g * g);
            *new = old - lr * g / (n.sqrt() + eps);
            is_finite &= new.is_finite() & n.is_finite();
        }
        is_finite
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_step() {
        let (mut theta, mut n) = ([f64::NAN; 2], [f64::NAN; 2]);
        let gradient = [17f64.sqrt(), 0.0];
        rmsprop((&mut theta, &[1.0, 1.0]), &gradient, (&mut n, &[1.0, 4.0]), (0.5, 0.5, 1.0));
        assert!((n[0] - 9.0).abs() < 1e-12 && n[1] == 2.0, "{n:?}");
        assert!((theta[0] - (1.0 - 0.125 * 17f64.sqrt())).abs() < 1e-12 && theta[1] == 1.0);
    }
}
