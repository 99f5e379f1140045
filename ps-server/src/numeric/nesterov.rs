//! Nesterov's accelerated gradient.

use ps_common::Element;

/// `v = mu * v + g`; `theta -= lr * (g + mu * v)`. Nesterov 1983, in the form of Sutskever et al.
/// 2013, section 2, with the look-ahead moved into the step, as torch has it.
///
/// # Panics
/// If lengths differ.
pub(super) fn nesterov<T: Element>(
    theta: &mut [T],
    gradient: &[T],
    v: &mut [T],
    (lr, mu): (f64, f64),
) {
    assert!(theta.len() == gradient.len() && theta.len() == v.len());
    let (lr, mu) = (T::from_f64(lr), T::from_f64(mu));
    for ((theta, &g), v) in theta.iter_mut().zip(gradient).zip(v) {
        *v = mu * *v + g;
        *theta -= lr * (g + mu * *v);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_steps() {
        let (mut theta, mut v) = ([1.0f32], [0.0]);
        nesterov(&mut theta, &[1.0], &mut v, (0.25, 0.5));
        assert_eq!((theta, v), ([0.625], [1.0]));
        nesterov(&mut theta, &[1.0], &mut v, (0.25, 0.5));
        assert_eq!((theta, v), ([0.1875], [1.5]));
    }
}
