//! FTRL-Proximal: online learning with a rate for each coordinate and weights that are exactly 0.

use ps_common::Element;

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
///
/// # Panics
/// If lengths differ.
pub(super) fn ftrl<T: Element>(
    theta: &mut [T],
    gradient: &[T],
    [z, n]: [&mut [T]; 2],
    step: FtrlStep,
) {
    assert!(theta.len() == gradient.len() && theta.len() == z.len() && theta.len() == n.len());
    let [per_alpha, beta, l1, l2, weight] =
        [1.0 / step.alpha, step.beta, step.l1, step.l2, step.weight].map(T::from_f64);
    for (((theta, &g), z), n) in theta.iter_mut().zip(gradient).zip(z).zip(n) {
        let g = weight * g;
        let root_before = n.sqrt();
        *n += g * g;
        let root = n.sqrt();
        *z += g - (root - root_before) * per_alpha * *theta;
        let beyond = z.abs() - l1;
        let size = beyond / ((beta + root) * per_alpha + l2);
        let signed = if *z > T::ZERO { -size } else { size };
        *theta = if beyond > T::ZERO { signed } else { T::ZERO };
    }
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
        let (mut theta, mut z, mut n) = ([0.0f64; 3], [0.0; 3], [0.0; 3]);
        ftrl(&mut theta, &[1.0, -3.0, 0.0], [&mut z, &mut n], STEP);
        assert_eq!((z, n), ([1.0, -3.0, 0.0], [1.0, 9.0, 0.0]));
        // (3 - 1) / ((1 + 3) / 0.5 + 0.25)
        assert_eq!(theta, [0.0, 2.0 / 8.25, 0.0]);
        assert!(theta.iter().all(|x| x.is_sign_positive()));
    }

    #[test]
    fn a_theta_that_was_given_stays_where_nothing_is_learned() {
        let given = [0.5f64, -0.25, 0.0];
        let (mut theta, mut z) = (given, [9.0; 3]);
        ftrl_start(&theta, &mut z, STEP);
        ftrl(&mut theta, &[0.0; 3], [&mut z, &mut [0.0; 3]], STEP);
        assert_eq!(theta, given);
    }
}
