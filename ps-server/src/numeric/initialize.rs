//! How theta starts: elements drawn by key. Knows no tables' names, no chunks, no files.
//!
//! A draw is a pure function of seed and key (rule R11), so that any part of theta can be made
//! apart from the rest, with the same bits. The words of a key are those at position `4 * key` (in
//! words of 32 bits) of the ChaCha8 key stream whose key is four little-endian 64-bit words: seed,
//! 2, 0, 0; block counter and nonce start from 0 as in RFC 8439. With `u = (word64 >> 11) / 2^53`:
//!
//! * uniform: `bound * (2 u1 - 1)`;
//! * normal: `std * sqrt(-2 ln(1 - u1)) * cos(2 pi u2)` (Box and Muller 1958, eq. 1).

use ps_common::Element;
use ps_common::tables::Initializer;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Tells these draws from other uses of the same seed (a worker's orders use 0 and 1).
const PURPOSE: u64 = 2;
/// Two draws of 64 bits.
const WORDS_PER_KEY: u128 = 4;

/// Fills the elements from key `first_key` on as `initializer` says; f64 draws are rounded to `T`.
pub fn initialize<T: Element>(values: &mut [T], first_key: u64, initializer: Initializer) {
    let seed = match initializer {
        Initializer::Zeros => return values.fill(T::ZERO),
        Initializer::Uniform { seed, .. } | Initializer::Normal { seed, .. } => seed,
    };
    let mut key = [0u8; 32];
    for (bytes, word) in key.chunks_exact_mut(8).zip([seed, PURPOSE]) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    let mut stream = ChaCha8Rng::from_seed(key);
    stream.set_word_pos(u128::from(first_key) * WORDS_PER_KEY);
    for value in values {
        let (u1, u2) = (unit(stream.next_u64()), unit(stream.next_u64()));
        *value = T::from_f64(match initializer {
            Initializer::Zeros => 0.0,
            Initializer::Uniform { bound, .. } => bound * (2.0 * u1 - 1.0),
            Initializer::Normal { std, .. } => {
                std * (-2.0 * (1.0 - u1).ln()).sqrt() * (std::f64::consts::TAU * u2).cos()
            }
        });
    }
}

/// The upper 53 bits as a number in \[0, 1).
fn unit(word: u64) -> f64 {
    (word >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(first_key: u64, n: usize, initializer: Initializer) -> Vec<f64> {
        let mut values = vec![f64::NAN; n];
        initialize(&mut values, first_key, initializer);
        values
    }

    #[test]
    fn draws_are_pinned() {
        // By an independent program, from the description at the top of this file.
        for (seed, key, uniform, normal) in [
            (0, 0, 0.2264955291076931, -2.8183065877610587),
            (0, 5, 0.17901254757405138, 1.5132745686281674),
            (42, 1, -0.26783685115665257, -1.1324360794200914),
            (u64::MAX, (1 << 36) - 1, -0.12552588155600242, 0.46885914551367314),
        ] {
            assert_eq!(drawn(key, 1, Initializer::Uniform { bound: 0.5, seed }), [uniform]);
            let got = drawn(key, 1, Initializer::Normal { std: 2.0, seed })[0];
            assert!((got - normal).abs() < 1e-14, "seed {seed}, key {key}: {got}");
        }
    }

    #[test]
    fn any_part_is_that_of_the_whole() {
        for initializer in [
            Initializer::Zeros,
            Initializer::Uniform { bound: 0.5, seed: 3 },
            Initializer::Normal { std: 2.0, seed: 3 },
        ] {
            let whole = drawn(0, 1000, initializer);
            for (from, to) in [(0, 1), (1, 2), (3, 300), (7, 8), (999, 1000)] {
                assert_eq!(drawn(from as u64, to - from, initializer), whole[from..to]);
            }
        }
    }

    #[test]
    fn draws_have_their_distribution() {
        const N: usize = 200_000;
        let moments = |values: &[f64]| {
            let mean = values.iter().sum::<f64>() / N as f64;
            (mean, values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / N as f64)
        };
        let uniform = drawn(5, N, Initializer::Uniform { bound: 0.5, seed: 1 });
        assert!(uniform.iter().all(|x| (-0.5..0.5).contains(x)));
        let (mean, variance) = moments(&uniform);
        // Six standard errors.
        assert!(mean.abs() < 6.0 * 0.29 / 447.0 && (variance - 1.0 / 12.0).abs() < 1e-3);
        let normal = drawn(5, N, Initializer::Normal { std: 2.0, seed: 1 });
        let (mean, variance) = moments(&normal);
        assert!(mean.abs() < 6.0 * 2.0 / 447.0 && (variance - 4.0).abs() < 0.08, "{variance}");
        let beyond = normal.iter().filter(|x| x.abs() > 4.0).count() as f64 / N as f64;
        assert!((beyond - 0.0455).abs() < 0.003, "{beyond} beyond two deviations");
        let neighbours = normal.windows(2).map(|w| w[0] * w[1]).sum::<f64>() / N as f64;
        assert!(neighbours.abs() < 6.0 * 4.0 / 447.0, "{neighbours}");
    }

    #[test]
    fn seeds_matter_and_rounding_comes_last() {
        let of = |seed| drawn(0, 8, Initializer::Normal { std: 1.0, seed });
        assert!(of(1).iter().zip(of(2)).all(|(a, b)| *a != b));
        let mut single = [0f32; 8];
        initialize(&mut single, 0, Initializer::Normal { std: 1.0, seed: 1 });
        assert!(of(1).iter().zip(single).all(|(a, b)| *a as f32 == b));
    }
}
