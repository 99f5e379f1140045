//! RMSProp.

use ps_common::Element;

/// `n = rho * n + (1 - rho) * g^2`; `theta -= lr * g / (sqrt(n) + eps)`. Tieleman and Hinton 2012,
/// lecture 6.5 of "Neural Networks for Machine Learning", with epsilon outside the root.
///
/// # Panics
/// If lengths differ.
pub(super) fn rmsprop<T: Element>(
    theta: &mut [T],
    gradient: &[T],
    n: &mut [T],
    (lr, rho, eps): (f64, f64, f64),
) {
    assert!(theta.len() == gradient.len() && theta.len() == n.len());
    let [lr, rho, rest, eps] = [lr, rho, 1.0 - rho, eps].map(T::from_f64);
    for ((theta, &g), n) in theta.iter_mut().zip(gradient).zip(n) {
        *n = rho * *n + rest * (g * g);
        *theta -= lr * g / (n.sqrt() + eps);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_step() {
        let (mut theta, mut n) = ([1.0f64, 1.0], [1.0, 4.0]);
        rmsprop(&mut theta, &[17f64.sqrt(), 0.0], &mut n, (0.5, 0.5, 1.0));
        assert!((n[0] - 9.0).abs() < 1e-12 && n[1] == 2.0, "{n:?}");
        assert!((theta[0] - (1.0 - 0.125 * 17f64.sqrt())).abs() < 1e-12 && theta[1] == 1.0);
    }
}
