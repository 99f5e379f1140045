//! Random order that stays the same: a permutation is a pure function of its key.
//!
//! Fisher-Yates from the last place down. The index for place i is drawn from 0..=i by Lemire's
//! multiplication with rejection (2019, algorithm 5) on 64-bit words of the ChaCha20 key stream
//! (RFC 8439, block counter and nonce from 0), written out here: the sampling of the rand crate
//! may change between its versions, the key stream cannot.
#![deny(clippy::disallowed_methods)]

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// What a permutation is for, so that two uses of one seed are unrelated.
#[derive(Debug, Clone, Copy)]
pub enum Purpose {
    /// Dealing all rows to shards.
    Deal,
    /// One pass of one worker over its shard.
    Pass {
        /// The worker's.
        rank: u32,
        /// Passes before it.
        pass: u64,
    },
    /// Who meets whom in one round of gossip.
    Match {
        /// Rounds before it.
        round: u64,
    },
}

/// The permutation of `0..n` for `seed` and `purpose`.
///
/// The ChaCha key is seed, purpose (0 deal, 1 pass, 2 match), rank, pass or round: four
/// little-endian 64-bit words.
pub fn permutation(n: u32, seed: u64, purpose: Purpose) -> Vec<u32> {
    let (kind, rank, pass) = match purpose {
        Purpose::Deal => (0, 0, 0),
        Purpose::Pass { rank, pass } => (1, u64::from(rank), pass),
        Purpose::Match { round } => (2, 0, round),
    };
    let mut key = [0u8; 32];
    for (bytes, word) in key.chunks_exact_mut(8).zip([seed, kind, rank, pass]) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    let mut stream = ChaCha20Rng::from_seed(key);
    let mut rows: Vec<u32> = (0..n).collect();
    for last in (1..rows.len()).rev() {
        let drawn = below(last as u64 + 1, || stream.next_u64());
        rows.swap(last, drawn as usize);
    }
    rows
}

/// A number drawn uniformly from `0..bound` (`bound` > 0).
fn below(bound: u64, mut word: impl FnMut() -> u64) -> u64 {
    let reject_below = bound.wrapping_neg() % bound;
    loop {
        let product = u128::from(word()) * u128::from(bound);
        if product as u64 >= reject_below {
            return (product >> 64) as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_stream_is_that_of_rfc_8439() {
        // Appendix A.1, test vector 1: key, nonce and counter zero.
        let mut stream = ChaCha20Rng::from_seed([0; 32]);
        assert_eq!(
            stream.next_u64().to_le_bytes(),
            [0x76, 0xb8, 0xe0, 0xad, 0xa0, 0xf1, 0x3d, 0x90]
        );
    }

    #[test]
    fn permutations_are_pinned() {
        // Computed by an independent program from the description at the top of this file.
        assert_eq!(permutation(12, 0, Purpose::Deal), [3, 7, 5, 8, 2, 0, 9, 4, 11, 10, 1, 6]);
        let pass = |n, seed, rank, pass| permutation(n, seed, Purpose::Pass { rank, pass });
        assert_eq!(pass(12, 7, 3, 2), [1, 9, 11, 4, 6, 10, 5, 8, 7, 0, 2, 3]);
        assert_eq!(pass(100, 1, 0, 5)[..8], [93, 21, 33, 76, 32, 9, 70, 3]);
    }

    #[test]
    fn every_row_occurs_once_and_keys_matter() {
        let of = |n, seed, rank, pass| permutation(n, seed, Purpose::Pass { rank, pass });
        let mut sorted = of(1000, 3, 2, 1);
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..1000));
        let base = of(1000, 3, 2, 1);
        for other in [of(1000, 4, 2, 1), of(1000, 3, 3, 1), of(1000, 3, 2, 2)] {
            assert_ne!(base, other);
        }
        assert_ne!(permutation(1000, 3, Purpose::Deal), of(1000, 3, 0, 0));
        assert_ne!(permutation(1000, 3, Purpose::Match { round: 1 }), of(1000, 3, 0, 1));
        assert!(of(0, 1, 0, 0).is_empty());
    }

    #[test]
    fn words_that_would_favour_low_numbers_are_rejected() {
        // 2^64 mod 3 = 1: exactly the word 0 is one too many.
        let mut words = [0, u64::MAX].into_iter();
        assert_eq!(below(3, || words.next().expect("two words")), 2);
        assert_eq!(words.next(), None);
    }
}
