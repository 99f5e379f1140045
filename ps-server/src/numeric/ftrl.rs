//! FTRL-Proximal: online learning with a rate for each coordinate and weights that are exactly 0.

use ps_common::check::first_non_finite;
use ps_common::{Element, widest};

use super::rule::Turn;

/// The constants of a step of FTRL-Proximal.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct FtrlStep {
    /// Learning rate; above 0.
    pub(super) alpha: f64,
    /// Steadies the rate of coordinates that have been seen little.
    pub(super) beta: f64,
    /// Strength of the L1 term: |z| up to it gives a weight of 0.
    pub(super) l1: f64,
    /// Strength of the L2 term.
    pub(super) l2: f64,
    /// The gradient counts this much; 1 unless it is late.
    pub(super) weight: f64,
}

/// McMahan et al. 2013, "Ad Click Prediction: a View from the Trenches", algorithm 1, with theta
/// for its w, for one gradient `g` a coordinate:
/// `sigma = (sqrt(n + g^2) - sqrt(n)) / alpha`; `z += g - sigma * theta`; `n += g^2`;
/// `theta = 0` where `|z| <= l1`, else `-(z - sign(z) * l1) / ((beta + sqrt(n)) / alpha + l2)`.
/// Gives whether all that it wrote is finite.
///
/// # Panics
/// If lengths differ.
pub(super) fn ftrl<T: Element>(
    (new, old): Turn<'_, T>,
    gradient: &[T],
    [(z, z_before), (n, n_before)]: [Turn<'_, T>; 2],
    step: FtrlStep,
) -> bool {
    assert!(new.len() == old.len() && new.len() == gradient.len());
    assert!(new.len() == z.len() && new.len() == z_before.len());
    assert!(new.len() == n.len() && new.len() == n_before.len());
    let [per_alpha, beta, l1, l2, weight] =
        [1.0 / step.alpha, step.beta, step.l1, step.l2, step.weight].map(T::from_f64);
    widest(|| {
        let then = old.iter().zip(gradient).zip(z_before.iter().zip(n_before));
        for (((new, z), n), ((&old, &g), before)) in
            new.iter_mut().zip(&mut *z).zip(&mut *n).zip(then)
        {
            let g = weight * g;
            let root_before = before.1.sqrt();
            *n = *before.1 + g * g;
            let root = n.sqrt();
            *z = *before.0 + (g - (root - root_before) * per_alpha * old);
            let beyond = z.abs() - l1;
            let size = beyond / ((beta + root) * per_alpha + l2);
            let signed = if *z > T::ZERO { -size } else { size };
            *new = if beyond > T::ZERO { signed } else { T::ZERO };
        }
    });
    // In the loop, as other rules have it, this makes the loop too large to be inlined into `widest`.
    [&*new, &*z, &*n].into_iter().all(|written| first_non_finite(written).is_none())
}

/// The `z` that belongs to a theta that nothing was learned at yet (n = 0): the next step moves on
/// from there.
///
/// # Panics
/// If lengths differ.
pub(super) fn ftrl_start<T: Element>(theta: &[T], z: &mut [T], step: FtrlStep) {
    assert_eq!(theta.len(), z.len());
    let l1 = T::from_f64(step.l1);
    let curvature = T::from_f64(step.beta / step.alpha + step.l2);
    for (&theta, z) in theta.iter().zip(z) {
        let signed = if theta > T::ZERO { l1 } else { -l1 };
        *z = if theta == T::ZERO { T::ZERO } else { -(theta * curvature + signed) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: FtrlStep = FtrlStep { alpha: 0.5, beta: 1.0, l1: 1.0, l2: 0.25, weight: 1.0 };

    #[test]
    fn small_gradients_leave_zeros() {
        let (mut theta, mut z, mut n) = ([f64::NAN; 3], [f64::NAN; 3], [f64::NAN; 3]);
        let zeros = [0.0; 3];
        let slots = [(&mut z[..], &zeros[..]), (&mut n[..], &zeros[..])];
        ftrl((&mut theta, &zeros), &[1.0, -3.0, 0.0], slots, STEP);
        assert_eq!((z, n), ([1.0, -3.0, 0.0], [1.0, 9.0, 0.0]));
        // (3 - 1) / ((1 + 3) / 0.5 + 0.25)
        assert_eq!(theta, [0.0, 2.0 / 8.25, 0.0]);
        assert!(theta.iter().all(|x| x.is_sign_positive()));
    }

    #[test]
    fn a_theta_that_was_given_stays_where_nothing_is_learned() {
        let given = [0.5f64, -0.25, 0.0];
        let (mut theta, mut z, mut next) = ([f64::NAN; 3], [9.0; 3], [[f64::NAN; 3]; 2]);
        ftrl_start(&given, &mut z, STEP);
        let [next_z, next_n] = &mut next;
        ftrl((&mut theta, &given), &[0.0; 3], [(next_z, &z), (next_n, &[0.0; 3])], STEP);
        assert_eq!(theta, given);
    }
}
