//! Codecs against naive twins: an element at a time, whole chunks decoded again for what they lost.
//!
//! The same bytes and the same residual, to the last bit.

use half::{bf16, f16};

use super::tests::values;
use super::*;

/// What the twins need to know of a float beyond its arithmetic.
trait Float: Element {
    /// Its bits; all NaNs are one.
    fn bits(self) -> u64;
    /// One that is hard in some way: too large, too small, halfway, nothing.
    fn hard(choice: u64) -> Self;
}

const HARD: [f64; 22] = [
    0.0,
    -0.0,
    1.0,
    65_504.0,
    65_519.99,
    -65_520.0,
    1e6,
    5.96e-8,
    -2.98e-8,
    2.980_232_238_769_531_3e-8,
    6.103_515_625e-5,
    6.1e-5,
    1.000_488_281_25,
    1.001_464_843_75,
    1.003_906_25,
    -1.011_718_75,
    1e-40,
    -1.4e-45,
    3e38,
    -3.4e38,
    127.5,
    0.5,
];

impl Float for f32 {
    fn bits(self) -> u64 {
        if self.is_nan() { u64::MAX } else { self.to_bits().into() }
    }
    fn hard(choice: u64) -> Self {
        let extremes = [Self::MAX, Self::MIN, Self::MIN_POSITIVE, Self::from_bits(1)];
        let n = choice as usize % (HARD.len() + extremes.len());
        HARD.get(n).map_or_else(|| extremes[n - HARD.len()], |&hard| hard as Self)
    }
}

impl Float for f64 {
    fn bits(self) -> u64 {
        if self.is_nan() { u64::MAX } else { self.to_bits() }
    }
    fn hard(choice: u64) -> Self {
        let extremes = [Self::MAX, Self::MIN, Self::MIN_POSITIVE, 1e-320, 4e38, -1e39];
        let n = choice as usize % (HARD.len() + extremes.len());
        HARD.get(n).map_or_else(|| extremes[n - HARD.len()], |&hard| hard)
    }
}

fn all_bits<T: Float>(values: &[T]) -> Vec<u64> {
    values.iter().map(|&x| x.bits()).collect()
}

fn naive_encode<T: Element>(encoding: Encoding, values: &[T]) -> Vec<u8> {
    let single = |x: &T, largest: f32| (x.to_f64() as f32).clamp(-largest, largest);
    let f16s = |x: &T| f16::from_f32_const(single(x, 65_504.0)).to_le_bytes();
    let bf16s = |x: &T| bf16::from_f32_const(single(x, bf16::MAX.to_f32_const())).to_le_bytes();
    match encoding {
        Encoding::Plain => as_le_bytes(values).to_vec(),
        Encoding::F16 => values.iter().flat_map(f16s).collect(),
        Encoding::Bf16 => values.iter().flat_map(bf16s).collect(),
        Encoding::Int8 => values.chunks(256).flat_map(naive_int8).collect(),
        Encoding::TopK => {
            let chosen = || (0u32..).zip(values).filter(|&(_, &value)| value != T::ZERO);
            let places = chosen().flat_map(|(place, _)| place.to_le_bytes());
            let singles = chosen().flat_map(|(_, value)| single(value, f32::MAX).to_le_bytes());
            let n = values.len() as u32;
            n.to_le_bytes().into_iter().chain(places).chain(singles).collect()
        }
    }
}

fn naive_int8<T: Element>(block: &[T]) -> Vec<u8> {
    let mut largest = 0.0;
    for x in block {
        if x.abs().to_f64() > largest {
            largest = x.abs().to_f64();
        }
    }
    let scale = ((largest / 127.0) as f32).min((f32::MAX / 127.0).next_down());
    let inverse = if scale > 0.0 { 1.0 / f64::from(scale) } else { 0.0 };
    let nearest = |x: &T| (x.to_f64() * inverse).clamp(-127.0, 127.0).round_ties_even() as i8;
    let bytes = block.iter().map(|x| nearest(x).cast_unsigned());
    scale.to_le_bytes().into_iter().chain(bytes).collect()
}

/// What a reader makes of a chunk whose bytes are in order, finite or not.
fn naive_decode<T: Element>(encoding: Encoding, bytes: &[u8]) -> Vec<T> {
    let single = |x: f32| T::from_f64(x.into());
    let pair = |b: &[u8]| u16::from_le_bytes([b[0], b[1]]);
    let four = |b: &[u8]| [b[0], b[1], b[2], b[3]];
    match encoding {
        Encoding::Plain => {
            bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
        }
        Encoding::F16 => {
            bytes.chunks(2).map(|b| single(f16::from_bits(pair(b)).to_f32_const())).collect()
        }
        Encoding::Bf16 => {
            bytes.chunks(2).map(|b| single(bf16::from_bits(pair(b)).to_f32_const())).collect()
        }
        Encoding::Int8 => {
            let block = |block: &[u8]| {
                let scale = f32::from_le_bytes(four(block));
                let value = |&b: &u8| single(scale * f32::from(b.cast_signed()));
                block[4..].iter().map(value).collect::<Vec<T>>()
            };
            bytes.chunks(260).flat_map(block).collect()
        }
        Encoding::TopK => {
            let mut values = vec![T::ZERO; u32::from_le_bytes(four(bytes)) as usize];
            let (places, singles) = bytes[4..].split_at((bytes.len() - 4) / 2);
            for (place, value) in places.chunks(4).zip(singles.chunks(4)) {
                let place = u32::from_le_bytes(four(place)) as usize;
                values[place] = single(f32::from_le_bytes(four(value)));
            }
            values
        }
    }
}

/// The twin of [`Feedback::encode`].
fn naive_feedback<T: Element>(
    codec: Codec,
    residual: &mut Vec<T>,
    gradient: &[T],
    cuts: &[usize],
    chunk_len: usize,
) -> Vec<Encoded> {
    residual.resize(gradient.len(), T::ZERO);
    for (residual, &gradient) in residual.iter_mut().zip(gradient) {
        let sum = *residual + gradient;
        *residual = if sum.is_finite() || !gradient.is_finite() { sum } else { gradient };
    }
    let threshold = match codec {
        Codec::TopK { ratio } if !residual.is_empty() => {
            let k = (residual.len() as f64 * ratio).ceil() as usize;
            let k = k.clamp(1, residual.len());
            let mut magnitudes: Vec<T> = residual.iter().map(|x| x.abs()).collect();
            let descending = |a: &T, b: &T| b.partial_cmp(a).unwrap_or(std::cmp::Ordering::Equal);
            *magnitudes.select_nth_unstable_by(k - 1, descending).1
        }
        _ => T::ZERO,
    };
    let mut chunks = Vec::new();
    for (i, &cut) in cuts.iter().enumerate() {
        let end = cuts.get(i + 1).copied().unwrap_or(gradient.len());
        for begin in (cut..end).step_by(chunk_len) {
            let rest = &mut residual[begin..end.min(begin + chunk_len)];
            let is_finite = rest.iter().all(|x| x.is_finite());
            let encoding = if is_finite { codec.encoding() } else { Encoding::Plain };
            let is_small = |x: &T| x.abs() < threshold;
            let large: Vec<T> =
                rest.iter().map(|x| if is_small(x) { T::ZERO } else { *x }).collect();
            let data = naive_encode(encoding, &large);
            if is_finite {
                for (rest, sent) in rest.iter_mut().zip(naive_decode::<T>(encoding, &data)) {
                    *rest -= sent;
                }
            }
            chunks.push(Encoded { begin, len: rest.len(), encoding, data: data.into() });
        }
    }
    chunks
}

/// What the numbers of a gradient are like.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Usual,
    /// Every fifth is hard.
    Hard,
    /// Nearly all are 0.
    Sparse,
    /// One magnitude, both signs.
    Signs,
    /// Too small for single precision's normal numbers.
    Tiny,
    /// A few are not finite.
    Broken,
}

const KINDS: [Kind; 6] =
    [Kind::Usual, Kind::Hard, Kind::Sparse, Kind::Signs, Kind::Tiny, Kind::Broken];

fn gradient<T: Float>(kind: Kind, n: usize, seed: u64) -> Vec<T> {
    let mut state = seed.wrapping_add(n as u64);
    let element = |usual: f32| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(seed | 1);
        let choice = state >> 33;
        let usual = T::from_f64(f64::from(usual) * 1.000_000_1);
        match kind {
            Kind::Hard if choice.is_multiple_of(5) => T::hard(choice / 5),
            Kind::Sparse if !choice.is_multiple_of(97) => T::ZERO,
            Kind::Signs => T::from_f64(if choice & 1 == 0 { 0.37 } else { -0.37 }),
            Kind::Tiny => usual * T::from_f64(1e-43),
            Kind::Broken if choice.is_multiple_of(301) => {
                T::from_f64([f64::NAN, f64::INFINITY, f64::NEG_INFINITY][choice as usize % 3])
            }
            _ => usual,
        }
    };
    values(n, seed).into_iter().map(element).collect()
}

const CODECS: [&str; 9] = [
    "f32",
    "f16",
    "bf16",
    "int8",
    "topk,ratio=0.01",
    "topk,ratio=0.0001",
    "topk,ratio=0.3",
    "topk,ratio=0.9",
    "topk,ratio=1",
];

/// Four gradients one after the other through a codec and its twin.
fn is_its_twin<T: Float>(codec: &str, kinds: [Kind; 4], n: usize, cuts: &[usize], len: usize) {
    let codec: Codec = codec.parse().expect("valid");
    let (mut feedback, mut residual) = (Feedback::new(codec), Vec::new());
    for (kind, seed) in kinds.into_iter().zip(n as u64..) {
        let gradient = gradient::<T>(kind, n, seed);
        let got = feedback.encode(&gradient, cuts, len);
        let want = naive_feedback(codec, &mut residual, &gradient, cuts, len);
        let what = || format!("{codec} of {n} {} in {len}, {kinds:?} seed {seed}", T::DTYPE);
        assert_eq!(got.len(), want.len(), "{}", what());
        for (got, want) in got.iter().zip(&want) {
            assert!(got == want, "{} at {}", what(), want.begin);
            let mut back = Vec::<T>::new();
            let decoded = got.encoding.decode(&got.data, &mut back, got.begin, got.len);
            let want: Vec<T> = naive_decode(want.encoding, &want.data);
            assert_eq!(decoded.is_ok(), want.iter().all(|x| x.is_finite()), "{}", what());
            assert!(decoded.is_err() || all_bits(&back) == all_bits(&want), "{}", what());
        }
        assert!(all_bits(feedback.lost()) == all_bits(&residual), "{}: the residual", what());
    }
}

fn kinds(n: usize) -> [Kind; 4] {
    [0, 1, 3, 7].map(|i| KINDS[(n + i * n / 7 + i) % KINDS.len()])
}

#[test]
fn short_gradients_are_written_as_by_the_twins() {
    for n in 0..=600 {
        for codec in CODECS {
            is_its_twin::<f32>(codec, kinds(n), n, &[0, n / 3, n / 2], 256);
            is_its_twin::<f64>(codec, kinds(n + 1), n, &[0], 300);
        }
    }
}

#[test]
fn block_boundaries_are_written_as_by_the_twins() {
    for block in [1024, 2048, 4096] {
        for n in [block - 1, block, block + 1, block + 255, block + 256, block + 257] {
            for codec in CODECS {
                is_its_twin::<f32>(codec, kinds(n), n, &[0, 255, 700], n);
                is_its_twin::<f64>(codec, kinds(n + 5), n, &[0, 0, 1], 1500);
            }
        }
    }
}

#[test]
fn long_gradients_are_written_as_by_the_twins() {
    for codec in CODECS {
        for kind in KINDS {
            is_its_twin::<f32>(codec, [Kind::Usual, kind, kind, kind], 100_003, &[0, 7], 40_000);
        }
        for kind in [Kind::Usual, Kind::Hard] {
            is_its_twin::<f64>(codec, [kind; 4], 100_000, &[0, 99_999], 130_304);
        }
    }
}

#[test]
fn a_sample_that_misleads_changes_nothing() {
    let n = 100_000;
    for codec in ["topk,ratio=0.001", "topk,ratio=0.01", "topk,ratio=0.3"] {
        let codec: Codec = codec.parse().expect("valid");
        for large in [1e3, 1e-3, 0.0] {
            // What is looked at is unlike all the others.
            let mut gradient = values(n, 5);
            for place in largest::sample(n) {
                gradient[place] = large;
            }
            let (mut feedback, mut residual) = (Feedback::new(codec), Vec::new());
            for _ in 0..3 {
                let got = feedback.encode(&gradient, &[0], 30_000);
                let want = naive_feedback(codec, &mut residual, &gradient, &[0], 30_000);
                assert!(got == want && feedback.lost() == residual, "{codec}, {large}");
            }
        }
    }
}

#[test]
fn values_without_feedback_are_written_as_by_the_twins() {
    for encoding in [Encoding::F16, Encoding::Bf16, Encoding::Int8, Encoding::TopK] {
        for n in [1, 15, 16, 17, 255, 257, 1023, 1025, 5000] {
            // What is not finite is not to be written; where it is, it stays what it was.
            for kind in KINDS {
                let singles = gradient::<f32>(kind, n, 3);
                let doubles = gradient::<f64>(kind, n, 4);
                let mut bytes = vec![7];
                encoding.encode(&singles, &mut bytes);
                assert!(bytes[1..] == naive_encode(encoding, &singles), "{encoding:?} {kind:?}");
                bytes.truncate(1);
                encoding.encode(&doubles, &mut bytes);
                assert!(bytes[1..] == naive_encode(encoding, &doubles), "{encoding:?} {kind:?}");
            }
        }
    }
}
