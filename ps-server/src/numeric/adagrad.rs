//! Adagrad.

use ps_common::{Element, widest};

use super::rule::Turn;

/// `n += g^2`; `theta -= lr * g / (sqrt(n) + eps)`. Duchi, Hazan, Singer 2011, section 1.1,
/// diagonal, with epsilon outside the root.
/// Gives whether all that it wrote is finite.
///
/// # Panics
/// If lengths differ.
pub(super) fn adagrad<T: Element>(
    (new, old): Turn<'_, T>,
    gradient: &[T],
    (n, before): Turn<'_, T>,
    (lr, eps): (f64, f64),
) -> bool {
    assert!(new.len() == old.len() && new.len() == gradient.len());
    assert!(new.len() == n.len() && new.len() == before.len());
    let (lr, eps) = (T::from_f64(lr), T::from_f64(eps));
    widest(|| {
        let mut is_finite = true;
        let then = old.iter().zip(gradient).zip(before);
        for ((new, n), ((&old, &g), &before)) in new.iter_mut().zip(n).zip(then) {
            *n = before + g * g;
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
    fn two_steps() {
        let (mut first, mut n1) = ([f64::NAN; 2], [f64::NAN; 2]);
        adagrad((&mut first, &[1.0, 1.0]), &[3.0, 0.0], (&mut n1, &[0.0; 2]), (0.25, 1.0));
        assert_eq!((first, n1), ([0.8125, 1.0], [9.0, 0.0]));
        let (mut second, mut n2) = ([f64::NAN; 2], [f64::NAN; 2]);
        adagrad((&mut second, &first), &[4.0, 0.0], (&mut n2, &n1), (0.375, 1.0));
        assert_eq!((second, n2), ([0.5625, 1.0], [25.0, 0.0]));
    }
}
