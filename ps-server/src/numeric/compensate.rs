//! Delay compensation of a late gradient.

use ps_common::Element;

/// `g += c * g` with `c = lambda * g * (theta - pulled)`, limited to [-1, 1], element by element.
///
/// Zheng et al. 2017, "Asynchronous Stochastic Gradient Descent with Delay Compensation", section
/// 4.2, equation 10, which has no limit: at high rates theta runs away from what was pulled, the
/// correction grows with the distance, and drives it further. With the limit a gradient keeps its
/// sign and at most doubles.
///
/// # Panics
/// If lengths differ.
pub fn compensate<T: Element>(gradient: &mut [T], theta: &[T], pulled: &[T], lambda: f64) {
    assert!(gradient.len() == theta.len() && gradient.len() == pulled.len());
    let lambda = T::from_f64(lambda);
    for ((g, &theta), &pulled) in gradient.iter_mut().zip(theta).zip(pulled) {
        let c = lambda * *g * (theta - pulled);
        let c = if c > T::ONE { T::ONE } else { c };
        let c = if c < -T::ONE { -T::ONE } else { c };
        *g += c * *g;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_the_equation_says_up_to_the_limit() {
        let mut gradient = [2.0f64, -2.0, 2.0, -2.0, 0.0];
        compensate(&mut gradient, &[1.1, 1.1, 9.0, 9.0, 9.0], &[1.0; 5], 0.5);
        let want = [2.0 + 0.5 * 4.0 * 0.1, -2.0 + 0.5 * 4.0 * 0.1, 4.0, 0.0, 0.0];
        assert!(
            gradient.iter().zip(want).all(|(g, want)| (g - want).abs() < 1e-12),
            "{gradient:?}"
        );
    }

    #[test]
    fn nothing_is_changed_where_theta_has_not_moved() {
        let mut gradient = [0.1f32, -3.0];
        compensate(&mut gradient, &[5.0; 2], &[5.0; 2], 2.0);
        assert_eq!(gradient, [0.1, -3.0]);
    }
}
