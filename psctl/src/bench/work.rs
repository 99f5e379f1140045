//! What the workers push, so that what comes back can be checked to the last bit.
//!
//! Gradients are whole numbers and the learning rate is a power of two: theta stays exact in f32
//! whatever the order of the updates, as long as no element passes 2^24 learning rates. Which whole
//! numbers depends on the codec: those that it keeps, or with top-k many different ones, of which it
//! sends about the share that it was asked to.

use ps_common::Element;
use ps_common::codec::{Codec, Encoding};
use ps_common::shared::Shared;

/// The learning rate of both sides: 2^-10.
pub(super) const LEARNING_RATE: f64 = 1.0 / 1024.0;

/// Element `key` of the gradient of worker `rank`, the same in every step.
pub(super) fn element(key: usize, rank: u32, wire: Codec) -> i64 {
    let place = key as u64 + u64::from(rank);
    match wire {
        // The scale of any block is then 1.
        Codec::Dense(Encoding::Int8) => [127, 127, -127][(place % 3) as usize],
        Codec::TopK { .. } => {
            // Multiplicative hashing: Knuth, The Art of Computer Programming 3, section 6.4.
            let mixed = (place << 8 | u64::from(rank)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            1 + ((mixed >> 32) % 1023) as i64
        }
        Codec::Dense(_) => 1 + (place % 3) as i64,
    }
}

/// The largest magnitude of an element.
fn element_max(wire: Codec) -> u64 {
    match wire {
        Codec::Dense(Encoding::Int8) => 127,
        Codec::TopK { .. } => 1023,
        Codec::Dense(_) => 3,
    }
}

/// Whether every push arrives as it is; else the worker holds something back.
pub(super) fn is_exact(wire: Codec) -> bool {
    !matches!(wire, Codec::TopK { .. })
}

/// The gradient of worker `rank`.
pub(super) fn gradient<T: Element>(n: usize, rank: u32, wire: Codec) -> Shared<T> {
    let values: Vec<T> = (0..n).map(|key| T::from_f64(element(key, rank, wire) as f64)).collect();
    Shared::from(values)
}

/// Pushes per worker for which theta is exact.
pub(super) fn pushes_max(n_workers: u32, wire: Codec) -> u64 {
    (1 << 24) / (element_max(wire) * u64::from(n_workers))
}

/// The first key at which `theta` is not what `pushes` (by rank) make of zeros, with what was
/// expected there.
pub(super) fn first_difference<T: Element>(
    theta: &[T],
    pushes: &[u64],
    wire: Codec,
) -> Option<(usize, T)> {
    let wanted = |key: usize| {
        let sum: i64 =
            (0u32..).zip(pushes).map(|(rank, &k)| k as i64 * element(key, rank, wire)).sum();
        T::from_f64(-LEARNING_RATE * sum as f64)
    };
    let key = theta.iter().enumerate().position(|(key, t)| *t != wanted(key))?;
    Some((key, wanted(key)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ps_common::codec::Feedback;

    fn codecs() -> [Codec; 5] {
        ["f32", "f16", "bf16", "int8", "topk,ratio=0.1"].map(|name| name.parse().expect("a codec"))
    }

    #[test]
    fn f32_counts_exactly_up_to_the_stated_number_of_pushes() {
        for wire in codecs() {
            let last = pushes_max(1, wire);
            let lr = LEARNING_RATE as f32;
            let g = gradient::<f32>(3000, 0, wire);
            let before: Vec<f32> = g.iter().map(|g| -lr * g * (last - 1) as f32).collect();
            let after: Vec<f32> = before.iter().zip(g.iter()).map(|(t, g)| t - lr * g).collect();
            assert_eq!(first_difference(&before, &[last - 1], wire), None);
            assert_eq!(first_difference(&after, &[last], wire), None);
            let largest = g.iter().fold(0f32, |m, g| m.max(g.abs()));
            assert!(largest <= element_max(wire) as f32, "{wire}");
        }
    }

    #[test]
    fn a_lost_push_is_found() {
        let wire = Codec::PLAIN;
        let theta: Vec<f64> =
            gradient::<f64>(9, 1, wire).iter().map(|g| -LEARNING_RATE * 5.0 * g).collect();
        assert_eq!(first_difference(&theta, &[0, 5], wire), None);
        assert_eq!(first_difference(&theta, &[0, 6], wire).map(|d| d.0), Some(0));
        let mut torn = theta;
        torn[7] += LEARNING_RATE;
        assert_eq!(first_difference(&torn, &[0, 5], wire).map(|d| d.0), Some(7));
    }

    /// What a codec sends of a gradient, element by element.
    fn sent(feedback: &mut Feedback<f32>, gradient: &[f32]) -> Vec<f32> {
        let mut values = Vec::new();
        for chunk in feedback.encode(gradient, &[0], 1 << 16) {
            let decoded =
                chunk.encoding.decode(&chunk.data, &mut values, chunk.begin, gradient.len());
            decoded.expect("its own bytes");
        }
        values
    }

    #[test]
    fn codecs_lose_nothing_of_what_is_pushed_or_hold_it_back() {
        for wire in codecs() {
            // Blocks and chunks that are not full, too.
            for n in [1, 2, 255, 1000, 65_536 + 257] {
                let gradient = gradient::<f32>(n, 2, wire);
                let mut feedback = Feedback::new(wire);
                let mut total = vec![0f32; n];
                for _ in 0..5 {
                    let sent = sent(&mut feedback, &gradient);
                    total.iter_mut().zip(&sent).for_each(|(total, sent)| *total += sent);
                }
                if is_exact(wire) {
                    assert!(feedback.lost().iter().all(|lost| *lost == 0.0), "{wire}, {n}");
                }
                let rest = total.iter().zip(feedback.lost()).map(|(total, lost)| total + lost);
                let all = gradient.iter().map(|g| 5.0 * g);
                assert!(rest.eq(all), "{wire}, {n}: what was sent and what is held back are all");
            }
        }
    }

    #[test]
    fn top_k_sends_about_the_share_that_it_was_asked_to() {
        let wire = "topk,ratio=0.1".parse().expect("a codec");
        let gradient = gradient::<f32>(100_000, 0, wire);
        let mut feedback = Feedback::new(wire);
        for step in 0..20 {
            let sent = sent(&mut feedback, &gradient).iter().filter(|x| **x != 0.0).count();
            assert!((10_000..10_500).contains(&sent), "step {step}: {sent} of 100,000");
        }
    }
}
