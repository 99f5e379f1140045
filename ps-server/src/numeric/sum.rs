//! The aggregate of a round: gradients summed in a fixed order.

use ps_common::{Element, widest};

/// `sum[i] = weight_0 * g_0[i] + weight_1 * g_1[i] + ...`, summed left to right in the precision of
/// `T`, so that the order of `parts` fixes every bit. A weight of exactly 1 costs no rounding.
///
/// # Panics
/// If a length differs from `sum`'s.
pub fn weighted_sum<T: Element>(sum: &mut [T], parts: &[(&[T], f64)]) {
    let Some(((first, weight), rest)) = parts.split_first() else {
        return sum.fill(T::ZERO);
    };
    scale(sum, first, T::from_f64(*weight));
    for (gradient, weight) in rest {
        add_scaled(sum, gradient, T::from_f64(*weight));
    }
}

fn scale<T: Element>(out: &mut [T], x: &[T], factor: T) {
    assert_eq!(out.len(), x.len());
    widest(|| {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = factor * x;
        }
    });
}

/// `out += factor * x`.
///
/// # Panics
/// If lengths differ.
pub fn add_scaled<T: Element>(out: &mut [T], x: &[T], factor: T) {
    assert_eq!(out.len(), x.len());
    widest(|| {
        for (out, &x) in out.iter_mut().zip(x) {
            *out += factor * x;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_kept() {
        // (1e16 + 1) + -1e16 = 0, 1e16 + -1e16 + 1 = 1: the order is visible.
        let (big, one, minus) = ([1e16f64], [1.0f64], [-1e16f64]);
        let mut sum = [f64::NAN];
        weighted_sum(&mut sum, &[(&big, 1.0), (&one, 1.0), (&minus, 1.0)]);
        assert_eq!(sum, [0.0]);
        weighted_sum(&mut sum, &[(&big, 1.0), (&minus, 1.0), (&one, 1.0)]);
        assert_eq!(sum, [1.0]);
        weighted_sum(&mut sum, &[(&one, 0.25)]);
        assert_eq!(sum, [0.25]);
        weighted_sum(&mut sum, &[]);
        assert_eq!(sum, [0.0]);
    }
}
