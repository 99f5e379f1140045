//! Whether an update can overflow, said before it is computed.
//!
//! A bound, not a measurement: theta's largest magnitude is known to be at most so much, a gradient's
//! at most [`moderate`], and an update by them adds at most its share. The bound only grows, by so little
//! against the largest number of the type that a job of any length stays below it.

use ps_common::job::Combine;
use ps_common::{Dtype, Element};

use super::gradient::Gradient;
use super::motion::Motion;

/// Gradients whose elements are no larger are moderate: 2^64 in single precision, 2^512 in double.
pub(super) fn moderate<T: Element>() -> T {
    T::from_f64(match T::DTYPE {
        Dtype::F32 => f64::from_bits(0x43f0_0000_0000_0000),
        Dtype::F64 => f64::from_bits(0x5ff0_0000_0000_0000),
    })
}

/// What theta is kept below: far from overflow, so that rounding does not matter.
fn limit<T: Element>() -> f64 {
    match T::DTYPE {
        Dtype::F32 => f64::from(f32::MAX) / 8.0,
        Dtype::F64 => f64::MAX / 8.0,
    }
}

/// For the rounding of a sum of however many gradients that there can be, and of a step.
const ROUNDING: f64 = 1.01;

/// An update that cannot overflow, but for its gradients.
#[derive(Debug, Clone, Copy)]
pub struct Certain {
    pub(super) combine: Combine,
    /// The learning rate, as scheduled.
    pub(super) lr: f64,
    /// Multiplies it.
    pub(super) factor: f64,
    /// What no element of theta is larger than, after it.
    pub(super) bound: f64,
}

impl Certain {
    /// The update by `parts` of a theta whose elements are at most `bound`, if it is certain. Only plain descent along a sum
    /// can be: other rules remember more than theta, and that may overflow as well.
    pub(super) fn of<T: Element>(
        parts: &[(Gradient, f64)],
        combine: Combine,
        motion: &Motion<'_>,
        bound: impl FnOnce() -> f64,
    ) -> Option<Self> {
        let Motion { optimizer, lr, factor, .. } = *motion;
        let plain = optimizer.is_plain() && matches!(combine, Combine::Sum);
        if !plain || !parts.iter().all(|(gradient, _)| gradient.is_moderate()) {
            return None;
        }
        let bound = bound();
        let weights: f64 = parts.iter().map(|(_, weight)| weight.abs()).sum();
        let (rate, decay) = (lr.abs() * factor.abs(), optimizer.gradient_decay().unwrap_or(0.0));
        let gradient = ROUNDING * (weights * moderate::<T>().to_f64() + decay * bound);
        let bound = bound + ROUNDING * rate * gradient;
        // Comparisons that a NaN fails.
        let fits = [rate, decay, gradient, bound].iter().all(|x| *x <= limit::<T>());
        fits.then_some(Self { combine, lr, factor, bound })
    }
}

/// What no element of `values` is larger than.
pub(super) fn bound_of<'a, T: Element>(values: impl Iterator<Item = &'a [T]>) -> f64 {
    let largest = |values: &[T]| {
        values.iter().fold(T::ZERO, |largest, x| if x.abs() > largest { x.abs() } else { largest })
    };
    values.map(|values| largest(values).to_f64()).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::{Optimizer, Rule};

    fn certain<T: Element>(
        gradient: Gradient,
        (optimizer, factor): (&Optimizer, f64),
        bound: f64,
    ) -> Option<f64> {
        let motion = Motion { optimizer, lr: optimizer.lr, factor, penalized: &[] };
        Certain::of::<T>(&[(gradient, 0.5)], Combine::Sum, &motion, || bound).map(|c| c.bound)
    }

    #[test]
    fn an_ordinary_update_is_certain_for_longer_than_a_job_can_last() {
        let sgd = Optimizer::sgd(1.0);
        let gradient = Gradient::F32(vec![1.0; 3].into());
        let bound = certain::<f32>(gradient, (&sgd, 1.0), 5.0).expect("certain");
        let n_updates = limit::<f32>() / (bound - 5.0);
        assert!(n_updates > 1e18, "{n_updates}");
    }

    #[test]
    fn what_might_overflow_is_not_certain() {
        let sgd = Optimizer::sgd(1.0);
        let ones = || Gradient::F32(vec![1.0; 3].into());
        for gradient in [vec![1e20f32], vec![0.0, -f32::MAX]] {
            assert!(certain::<f32>(Gradient::F32(gradient.into()), (&sgd, 1.0), 0.0).is_none());
        }
        for bound in [f64::from(f32::MAX) / 7.0, f64::INFINITY, f64::NAN] {
            assert!(certain::<f32>(ones(), (&sgd, 1.0), bound).is_none(), "{bound}");
        }
        assert!(certain::<f32>(ones(), (&sgd, 1e30), 0.0).is_none(), "a rate of 1e30");
        assert!(certain::<f32>(ones(), (&sgd, f64::NAN), 0.0).is_none());
        let none = Certain::of::<f32>(
            &[(ones(), 0.0)],
            Combine::Sum,
            &Motion { optimizer: &sgd, lr: 1e39, factor: 1.0, penalized: &[] },
            || 0.0,
        );
        assert!(none.is_none(), "infinity times nothing");
        let decayed = Optimizer { weight_decay: 1e30, ..sgd };
        assert!(certain::<f32>(ones(), (&decayed, 1.0), 1e20).is_none());
        let clipped = Optimizer { clip_norm: Some(1.0), ..sgd };
        assert!(certain::<f32>(ones(), (&clipped, 1.0), 0.0).is_none(), "its norm may overflow");
        let momentum = Optimizer { rule: Rule::Momentum { mu: 0.9 }, ..sgd };
        assert!(certain::<f32>(ones(), (&momentum, 1.0), 0.0).is_none());
    }

    #[test]
    fn the_limits_are_the_powers_of_two_that_they_say() {
        assert_eq!(moderate::<f32>(), 2f32.powi(64));
        assert_eq!(moderate::<f64>(), 2f64.powi(512));
        let values: [&[f32]; 2] = [&[1.0, -3.0], &[2.0]];
        assert_eq!(bound_of(values.into_iter()), 3.0);
    }
}
