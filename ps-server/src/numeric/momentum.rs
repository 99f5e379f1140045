//! Heavy-ball momentum.

use ps_common::{Element, widest};

use super::rule::Turn;

/// `v = mu * v + g`, without dampening; `theta -= lr * v`. Polyak 1964, "Some methods of speeding
/// up the convergence of iteration methods", in the form of Sutskever et al. 2013 that torch has.
/// Gives whether all that it wrote is finite.
///
/// # Panics
/// If lengths differ.
pub(super) fn momentum<T: Element>(
    (new, old): Turn<'_, T>,
    gradient: &[T],
    (v, before): Turn<'_, T>,
    (lr, mu): (f64, f64),
) -> bool {
    assert!(new.len() == old.len() && new.len() == gradient.len());
    assert!(new.len() == v.len() && new.len() == before.len());
    let (lr, mu) = (T::from_f64(lr), T::from_f64(mu));
    widest(|| {
        let mut is_finite = true;
        let then = old.iter().zip(gradient).zip(before);
        for ((new, v), ((&old, &g), &before)) in new.iter_mut().zip(v).zip(then) {
            *v = mu * before + g;
            *new = old - lr * *v;
            is_finite &= new.is_finite() & v.is_finite();
        }
        is_finite
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_steps() {
        let (mut first, mut v1) = ([f32::NAN], [f32::NAN]);
        momentum((&mut first, &[1.0]), &[1.0], (&mut v1, &[0.0]), (0.25, 0.5));
        assert_eq!((first, v1), ([0.75], [1.0]));
        let (mut second, mut v2) = ([f32::NAN], [f32::NAN]);
        momentum((&mut second, &first), &[1.0], (&mut v2, &v1), (0.25, 0.5));
        assert_eq!((second, v2), ([0.375], [1.5]));
    }
}
