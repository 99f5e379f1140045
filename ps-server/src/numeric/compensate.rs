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

    fn agree<T: Element>(tolerance: f64) {
        let numbers = |phase: f64| -> Vec<T> {
            (0..103).map(|i| T::from_f64(3.0 * (f64::from(i) * 0.7 + phase).sin())).collect()
        };
        let (before, theta, pulled) = (numbers(0.0), numbers(1.0), numbers(2.5));
        let mut gradient = before.clone();
        compensate(&mut gradient, &theta, &pulled, 0.2);
        let mut n_limited = 0;
        for (i, got) in gradient.iter().enumerate() {
            let (g, moved) = (before[i].to_f64(), theta[i].to_f64() - pulled[i].to_f64());
            let correction = 0.2 * g * g * moved;
            let want = g + correction.clamp(-g.abs(), g.abs());
            n_limited += u32::from(correction.abs() > g.abs());
            assert!((got.to_f64() - want).abs() < tolerance, "element {i}: {got}, not {want}");
        }
        assert!((10..93).contains(&n_limited), "both sides of the limit: {n_limited}");
    }

    #[test]
    fn as_the_equation_says_up_to_the_limit() {
        agree::<f64>(1e-12);
        agree::<f32>(1e-5);
    }

    #[test]
    fn nothing_is_changed_where_theta_has_not_moved() {
        let mut gradient = [0.1f32, -3.0];
        compensate(&mut gradient, &[5.0; 2], &[5.0; 2], 2.0);
        assert_eq!(gradient, [0.1, -3.0]);
    }
}
