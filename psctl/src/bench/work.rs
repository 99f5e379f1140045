//! What the workers push, so that what comes back can be checked to the last bit.
//!
//! Gradients are small whole numbers and the learning rate is a power of two: theta stays exact in
//! f32 whatever the order of the updates, as long as no element passes 2^24 learning rates.

use ps_common::Element;
use ps_common::shared::Shared;

/// The learning rate of both sides: 2^-10.
pub(super) const LEARNING_RATE: f64 = 1.0 / 1024.0;

const GRADIENT_MAX: u64 = 3;

/// Element `key` of the gradient of worker `rank`, the same in every step: 1, 2 or 3.
fn element(key: usize, rank: u32) -> u64 {
    1 + (key as u64 + u64::from(rank)) % GRADIENT_MAX
}

/// The gradient of worker `rank`.
pub(super) fn gradient<T: Element>(n: usize, rank: u32) -> Shared<T> {
    Shared::from((0..n).map(|key| T::from_f64(element(key, rank) as f64)).collect::<Vec<T>>())
}

/// Pushes per worker for which theta is exact.
pub(super) fn pushes_max(n_workers: u32) -> u64 {
    (1 << 24) / (GRADIENT_MAX * u64::from(n_workers))
}

/// The first key at which `theta` is not what `pushes` (by rank) make of zeros, with what was
/// expected there.
pub(super) fn first_difference<T: Element>(theta: &[T], pushes: &[u64]) -> Option<(usize, T)> {
    // The pattern repeats every GRADIENT_MAX keys.
    let expected: Vec<T> = (0..GRADIENT_MAX as usize)
        .map(|key| {
            let sum: u64 = (0u32..).zip(pushes).map(|(rank, k)| k * element(key, rank)).sum();
            T::from_f64(-LEARNING_RATE * sum as f64)
        })
        .collect();
    let wanted = |key: usize| expected[key % expected.len()];
    let key = theta.iter().enumerate().position(|(key, t)| *t != wanted(key))?;
    Some((key, wanted(key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f32_counts_exactly_up_to_the_stated_number_of_pushes() {
        let last = pushes_max(1);
        let lr = LEARNING_RATE as f32;
        let g = gradient::<f32>(3, 0);
        let before: Vec<f32> = g.iter().map(|g| -lr * g * (last - 1) as f32).collect();
        let after: Vec<f32> = before.iter().zip(g.iter()).map(|(t, g)| t - lr * g).collect();
        assert_eq!(first_difference(&before, &[last - 1]), None);
        assert_eq!(first_difference(&after, &[last]), None);
    }

    #[test]
    fn a_lost_push_is_found() {
        let theta: Vec<f64> =
            gradient::<f64>(9, 1).iter().map(|g| -LEARNING_RATE * 5.0 * g).collect();
        assert_eq!(first_difference(&theta, &[0, 5]), None);
        assert_eq!(first_difference(&theta, &[0, 6]).map(|d| d.0), Some(0));
        let mut torn = theta;
        torn[7] += LEARNING_RATE;
        assert_eq!(first_difference(&torn, &[0, 5]).map(|d| d.0), Some(7));
    }
}
