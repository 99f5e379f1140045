//! Adam with decoupled weight decay.

use ps_common::Element;

use super::adam::AdamStep;

/// `theta -= lr * decay * theta`, then a step of Adam that knows nothing of it. Loshchilov and
/// Hutter 2019, algorithm 2, with the decay first, as torch has it. A `decay` of 0 is Adam.
///
/// # Panics
/// If lengths differ.
pub(super) fn adamw<T: Element>(
    theta: &mut [T],
    gradient: &[T],
    [m, v]: [&mut [T]; 2],
    step: AdamStep,
    decay: f64,
) {
    assert!(theta.len() == gradient.len() && theta.len() == m.len() && theta.len() == v.len());
    let scales = step.scales();
    let keep = T::from_f64(1.0 - step.lr * decay);
    for (((theta, &g), m), v) in theta.iter_mut().zip(gradient).zip(m).zip(v) {
        *theta = *theta * keep - scales.advance(g, m, v);
    }
}

#[cfg(test)]
mod tests {
    use super::super::adam::adam;
    use super::*;

    #[test]
    fn without_a_gradient_only_the_decay_is_left() {
        let (mut theta, mut m, mut v) = ([2.0f32, -4.0], [0.0; 2], [0.0; 2]);
        let step = AdamStep { lr: 0.5, beta1: 0.9, beta2: 0.999, eps: 1e-8, t: 3 };
        adamw(&mut theta, &[0.0; 2], [&mut m, &mut v], step, 0.5);
        assert_eq!(theta, [1.5, -3.0]);
    }

    #[test]
    fn without_decay_it_is_adam_to_the_bit() {
        let step = AdamStep { lr: 0.1, beta1: 0.9, beta2: 0.999, eps: 1e-8, t: 1 };
        let (mut a, mut b) = ([0.3f32, -7.0], [0.3f32, -7.0]);
        let gradient = [0.7, -0.01];
        adam(&mut a, &gradient, [&mut [0.1, 0.2], &mut [0.3, 0.4]], step);
        adamw(&mut b, &gradient, [&mut [0.1, 0.2], &mut [0.3, 0.4]], step, 0.0);
        assert_eq!(a, b);
    }
}
