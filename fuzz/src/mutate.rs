//! Small random changes of an input, the same for the same seed.

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Numbers that readers trip over, as bytes in either order.
const NUMBERS: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX,
];

/// Words that text is made of.
const WORDS: [&str; 20] = [
    ",",
    ";",
    "\t",
    " ",
    "\n",
    "\r\n",
    "\"",
    "\"\"",
    ":",
    "-",
    "e308",
    "1e999",
    "nan",
    "inf",
    "#",
    "0",
    "4294967295",
    "18446744073709551615",
    "()",
    "\u{feff}",
];

/// A source of changes.
#[derive(Debug)]
pub struct Mutator(ChaCha8Rng);

impl Mutator {
    /// The changes that `seed` names.
    pub fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// `input` with one to four changes; `other` lends pieces.
    pub fn mutate(&mut self, input: &[u8], other: &[u8]) -> Vec<u8> {
        let mut bytes = input.to_vec();
        for _ in 0..self.0.random_range(1..=4) {
            self.change(&mut bytes, other);
        }
        bytes
    }

    /// Two indices below `n`.
    pub fn pick_two(&mut self, n: usize) -> [usize; 2] {
        [self.0.random_range(0..n), self.0.random_range(0..n)]
    }

    fn change(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        let rng = &mut self.0;
        let place = rng.random_range(0..=bytes.len());
        let rest = bytes.len() - place;
        let length = rng.random_range(0..=rest.min(16));
        match rng.random_range(0..9) {
            0 if rest > 0 => bytes[place] ^= 1 << rng.random_range(0..8),
            1 if rest > 0 => bytes[place] = rng.random(),
            2 => bytes.truncate(place),
            3 => drop(bytes.drain(place..place + length)),
            4 => {
                let again = bytes[place..place + length].to_vec();
                insert(bytes, place, &again);
            }
            5 => {
                let number = NUMBERS[rng.random_range(0..NUMBERS.len())];
                let number = match rng.random_range(0..2) {
                    0 => number.to_le_bytes(),
                    _ => number.to_be_bytes(),
                };
                let width = (1usize << rng.random_range(0..4)).min(rest);
                bytes[place..place + width].copy_from_slice(&number[..width]);
            }
            6 => insert(bytes, place, WORDS[rng.random_range(0..WORDS.len())].as_bytes()),
            7 => {
                let from = rng.random_range(0..=other.len());
                let to = rng.random_range(from..=other.len().min(from + 64));
                insert(bytes, place, &other[from..to]);
            }
            _ => {
                let mut noise = vec![0; length];
                rng.fill_bytes(&mut noise);
                bytes[place..place + length].copy_from_slice(&noise);
            }
        }
    }
}

fn insert(bytes: &mut Vec<u8>, place: usize, piece: &[u8]) {
    bytes.splice(place..place, piece.iter().copied());
}
