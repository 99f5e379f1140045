//! Adam.

use ps_common::{Element, widest};

use super::rule::Turn;

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
/// Gives whether all that it wrote is finite.
///
/// # Panics
/// If lengths differ.
pub(super) fn adam<T: Element>(
    (new, old): Turn<'_, T>,
    gradient: &[T],
    [(m, m_before), (v, v_before)]: [Turn<'_, T>; 2],
    step: AdamStep,
) -> bool {
    assert!(new.len() == old.len() && new.len() == gradient.len());
    assert!(new.len() == m.len() && new.len() == m_before.len());
    assert!(new.len() == v.len() && new.len() == v_before.len());
    let scales = step.scales();
    widest(|| {
        let mut is_finite = true;
        let then = old.iter().zip(gradient).zip(m_before.iter().zip(v_before));
        for (((new, m), v), ((&old, &g), before)) in new.iter_mut().zip(m).zip(v).zip(then) {
            *new = old - scales.advance(g, (&mut *m, &mut *v), before);
            is_finite &= new.is_finite() & m.is_finite() & v.is_finite();
        }
        is_finite
    })
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
    /// Writes the moments, which were what is said last; gives what theta is to be lowered by.
    #[inline(always)]
    pub(super) fn advance(self, g: T, (m, v): (&mut T, &mut T), before: (&T, &T)) -> T {
        *m = self.beta1 * *before.0 + self.rest1 * g;
        *v = self.beta2 * *before.1 + self.rest2 * (g * g);
        self.lr * *m / (v.sqrt() * self.per_root + self.eps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_step_has_the_length_of_the_rate() {
        for g in [1e-3, -7.0, 4e5] {
            let (mut theta, mut m, mut v) = ([f64::NAN], [f64::NAN], [f64::NAN]);
            let step = AdamStep { lr: 0.1, beta1: 0.9, beta2: 0.999, eps: 1e-12, t: 1 };
            let moments = [(&mut m[..], &[0.0][..]), (&mut v[..], &[0.0][..])];
            adam((&mut theta, &[0.0]), &[g], moments, step);
            assert!((theta[0] + 0.1 * g.signum()).abs() < 1e-9, "{theta:?}");
            assert!((m[0] - 0.1 * g).abs() <= 1e-15 * g.abs());
        }
    }
}
