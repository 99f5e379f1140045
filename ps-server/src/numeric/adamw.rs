//! Adam with decoupled weight decay.

use ps_common::{Element, widest};

use super::adam::AdamStep;
use super::rule::Turn;

/// `theta -= lr * decay * theta`, then a step of Adam that knows nothing of it. Loshchilov and
/// Hutter 2019, algorithm 2, with the decay first, as torch has it. A `decay` of 0 is Adam.
/// Gives whether all that it wrote is finite.
///
/// # Panics
/// If lengths differ.
pub(super) fn adamw<T: Element>(
    (new, old): Turn<'_, T>,
    gradient: &[T],
    [(m, m_before), (v, v_before)]: [Turn<'_, T>; 2],
    step: AdamStep,
    decay: f64,
) -> bool {
    assert!(new.len() == old.len() && new.len() == gradient.len());
    assert!(new.len() == m.len() && new.len() == m_before.len());
    assert!(new.len() == v.len() && new.len() == v_before.len());
    let scales = step.scales();
    let keep = T::from_f64(1.0 - step.lr * decay);
    widest(|| {
        let mut is_finite = true;
        let then = old.iter().zip(gradient).zip(m_before.iter().zip(v_before));
        for (((new, m), v), ((&old, &g), before)) in new.iter_mut().zip(m).zip(v).zip(then) {
            *new = old * keep - scales.advance(g, (&mut *m, &mut *v), before);
            is_finite &= new.is_finite() & m.is_finite() & v.is_finite();
        }
        is_finite
    })
}

#[cfg(test)]
mod tests {
    use super::super::adam::adam;
    use super::*;

    #[test]
    fn without_a_gradient_only_the_decay_is_left() {
        let (mut theta, mut m, mut v) = ([f32::NAN; 2], [f32::NAN; 2], [f32::NAN; 2]);
        let moments = [(&mut m[..], &[0.0; 2][..]), (&mut v[..], &[0.0; 2][..])];
        let step = AdamStep { lr: 0.5, beta1: 0.9, beta2: 0.999, eps: 1e-8, t: 3 };
        adamw((&mut theta, &[2.0, -4.0]), &[0.0; 2], moments, step, 0.5);
        assert_eq!(theta, [1.5, -3.0]);
    }

    #[test]
    fn without_decay_it_is_adam_to_the_bit() {
        let step = AdamStep { lr: 0.1, beta1: 0.9, beta2: 0.999, eps: 1e-8, t: 1 };
        let (old, gradient, moments) = ([0.3f32, -7.0], [0.7, -0.01], [[0.1, 0.2], [0.3, 0.4]]);
        let (mut a, mut b) = ([[f32::NAN; 2]; 3], [[f32::NAN; 2]; 3]);
        let [theta, m, v] = &mut a;
        adam((theta, &old), &gradient, [(m, &moments[0]), (v, &moments[1])], step);
        let [theta, m, v] = &mut b;
        adamw((theta, &old), &gradient, [(m, &moments[0]), (v, &moments[1])], step, 0.0);
        assert_eq!(a, b);
    }
}
