//! Adagrad.

use ps_common::Element;

/// `n += g^2`; `theta -= lr * g / (sqrt(n) + eps)`. Duchi, Hazan, Singer 2011, section 1.1,
/// diagonal, with epsilon outside the root.
///
/// # Panics
/// If lengths differ.
pub(super) fn adagrad<T: Element>(
    theta: &mut [T],
    gradient: &[T],
    n: &mut [T],
    (lr, eps): (f64, f64),
) {
    assert!(theta.len() == gradient.len() && theta.len() == n.len());
    let (lr, eps) = (T::from_f64(lr), T::from_f64(eps));
    for ((theta, &g), n) in theta.iter_mut().zip(gradient).zip(n) {
        *n += g * g;
        *theta -= lr * g / (n.sqrt() + eps);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_steps() {
        let (mut theta, mut n) = ([1.0f64, 1.0], [0.0; 2]);
        adagrad(&mut theta, &[3.0, 0.0], &mut n, (0.25, 1.0));
        assert_eq!((theta, n), ([0.8125, 1.0], [9.0, 0.0]));
        adagrad(&mut theta, &[4.0, 0.0], &mut n, (0.375, 1.0));
        assert_eq!((theta, n), ([0.5625, 1.0], [25.0, 0.0]));
    }
}
