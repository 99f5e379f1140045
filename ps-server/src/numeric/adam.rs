//! Adam.

use ps_common::Element;

/// The constants of one step of Adam.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct AdamStep {
    /// Learning rate.
    pub(super) lr: f64,
    /// Decay of the first moment.
    pub(super) beta1: f64,
    /// Decay of the second moment.
    pub(super) beta2: f64,
    /// Added to the root.
    pub(super) eps: f64,
    /// Which step this is, from 1.
    pub(super) t: u64,
}

/// `m = b1 m + (1 - b1) g`; `v = b2 v + (1 - b2) g^2`;
/// `theta -= lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)`. Kingma and Ba 2015,
/// algorithm 1.
///
/// # Panics
/// If lengths differ.
pub(super) fn adam<T: Element>(
    theta: &mut [T],
    gradient: &[T],
    [m, v]: [&mut [T]; 2],
    step: AdamStep,
) {
    assert!(theta.len() == gradient.len() && theta.len() == m.len() && theta.len() == v.len());
    let scales = step.scales();
    for (((theta, &g), m), v) in theta.iter_mut().zip(gradient).zip(m).zip(v) {
        *theta -= scales.advance(g, m, v);
    }
}

impl AdamStep {
    pub(super) fn scales<T: Element>(&self) -> Scales<T> {
        let t = i32::try_from(self.t).unwrap_or(i32::MAX);
        let (first, second) = (1.0 - self.beta1.powi(t), 1.0 - self.beta2.powi(t));
        let [beta1, rest1, beta2, rest2, lr, per_root, eps] = [
            self.beta1,
            1.0 - self.beta1,
            self.beta2,
            1.0 - self.beta2,
            self.lr / first,
            1.0 / second.sqrt(),
            self.eps,
        ]
        .map(T::from_f64);
        Scales { beta1, rest1, beta2, rest2, lr, per_root, eps }
    }
}

/// What does not change from element to element.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scales<T> {
    beta1: T,
    rest1: T,
    beta2: T,
    rest2: T,
    /// With the first moment's correction.
    lr: T,
    /// One over the root of the second moment's correction.
    per_root: T,
    eps: T,
}

impl<T: Element> Scales<T> {
    /// Moves the moments; gives what theta is to be lowered by.
    #[inline(always)]
    pub(super) fn advance(self, g: T, m: &mut T, v: &mut T) -> T {
        *m = self.beta1 * *m + self.rest1 * g;
        *v = self.beta2 * *v + self.rest2 * (g * g);
        self.lr * *m / (v.sqrt() * self.per_root + self.eps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_step_has_the_length_of_the_rate() {
        for g in [1e-3, -7.0, 4e5] {
            let (mut theta, mut m, mut v) = ([0.0f64], [0.0], [0.0]);
            let step = AdamStep { lr: 0.1, beta1: 0.9, beta2: 0.999, eps: 1e-12, t: 1 };
            adam(&mut theta, &[g], [&mut m, &mut v], step);
            assert!((theta[0] + 0.1 * g.signum()).abs() < 1e-9, "{theta:?}");
            assert!((m[0] - 0.1 * g).abs() <= 1e-15 * g.abs());
        }
    }
}
