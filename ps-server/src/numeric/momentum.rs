//! Heavy-ball momentum.

use ps_common::Element;

/// `v = mu * v + g`, without dampening; `theta -= lr * v`. Polyak 1964, "Some methods of speeding
/// up the convergence of iteration methods", in the form of Sutskever et al. 2013 that torch has.
///
/// # Panics
/// If lengths differ.
pub(super) fn momentum<T: Element>(
    theta: &mut [T],
    gradient: &[T],
    v: &mut [T],
    (lr, mu): (f64, f64),
) {
    assert!(theta.len() == gradient.len() && theta.len() == v.len());
    let (lr, mu) = (T::from_f64(lr), T::from_f64(mu));
    for ((theta, &g), v) in theta.iter_mut().zip(gradient).zip(v) {
        *v = mu * *v + g;
        *theta -= lr * *v;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_steps() {
        let (mut theta, mut v) = ([1.0f32], [0.0]);
        momentum(&mut theta, &[1.0], &mut v, (0.25, 0.5));
        assert_eq!((theta, v), ([0.75], [1.0]));
        momentum(&mut theta, &[1.0], &mut v, (0.25, 0.5));
        assert_eq!((theta, v), ([0.375], [1.5]));
    }
}
