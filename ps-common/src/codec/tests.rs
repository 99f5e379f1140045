//! What codecs keep, what they lose, what they refuse.

use super::*;

const ALL: [Encoding; 5] =
    [Encoding::Plain, Encoding::F16, Encoding::Bf16, Encoding::Int8, Encoding::TopK];

/// Numbers of many sizes, the same ones for the same seed.
pub(super) fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next() * 10f32.powf(3.0 * next())).collect()
}

fn round_trip<T: Element>(encoding: Encoding, values: &[T]) -> (usize, Vec<T>) {
    let (mut bytes, mut back) = (Vec::new(), Vec::new());
    encoding.encode(values, &mut bytes);
    encoding.decode(&bytes, &mut back, 0, values.len()).expect("its own");
    (bytes.len(), back)
}

#[test]
fn every_length_comes_back_with_its_length() {
    for encoding in ALL {
        for n in [1, 2, 255, 256, 257, 512, 513, 1000, 65_536] {
            assert_eq!(round_trip(encoding, &values(n, 3)).1.len(), n, "{encoding:?} of {n}");
        }
    }
}

#[test]
fn what_is_lost_is_within_the_bound_of_each_codec() {
    let values = values(10_000, 7);
    let bytes_of = |encoding| round_trip(encoding, &values).0;
    assert_eq!(ALL.map(bytes_of)[..4], [40_000, 20_000, 20_000, 10_000 + 4 * 40]);
    let check = |encoding, bound: &dyn Fn(usize, f32) -> f32| {
        let (_, back) = round_trip(encoding, &values);
        for (i, (&value, back)) in values.iter().zip(back).enumerate() {
            assert!((value - back).abs() <= bound(i, value), "{encoding:?}: {value} gives {back}");
        }
    };
    check(Encoding::Plain, &|_, _| 0.0);
    // Half a unit in the last of 11 and of 8 places; below that half of the smallest subnormal.
    check(Encoding::F16, &|_, value| (value.abs() * 2f32.powi(-11)).max(2f32.powi(-25)));
    check(Encoding::Bf16, &|_, value| value.abs() * 2f32.powi(-8));
    check(Encoding::Int8, &|i, _| {
        let block = &values[i / int8::BLOCK * int8::BLOCK..];
        let block = &block[..int8::BLOCK.min(block.len())];
        let largest = block.iter().fold(0f32, |m, x| m.max(x.abs()));
        largest / 127.0 * 0.5001
    });
    check(Encoding::TopK, &|_, _| 0.0);
}

#[test]
fn numbers_that_a_format_has_are_kept() {
    let kept = [0.0f32, -0.0, 1.0, -2.5, 65_504.0, 0.125];
    for encoding in [Encoding::F16, Encoding::Plain] {
        assert_eq!(round_trip(encoding, &kept).1, kept);
    }
    let (_, back) = round_trip(Encoding::Bf16, &[1.0f64, -3.0, 0.0]);
    assert_eq!(back, [1.0, -3.0, 0.0]);
}

#[test]
fn numbers_beyond_a_format_become_its_largest() {
    let (_, back) = round_trip(Encoding::F16, &[1e9f32, -1e9]);
    assert_eq!(back, [65_504.0, -65_504.0]);
    for encoding in [Encoding::Bf16, Encoding::Int8, Encoding::TopK] {
        let (_, back) = round_trip(encoding, &[f64::MAX, f64::MIN, 1.0]);
        assert!(
            back.iter().all(|x| x.is_finite()) && back[0] > 1e38 && back[1] < -1e38,
            "{back:?}"
        );
        let (_, back) = round_trip(encoding, &[f32::MAX, f32::MIN, 0.0]);
        assert!(back.iter().all(|x| x.is_finite()) && back[0] > 3e38, "{encoding:?}: {back:?}");
    }
}

#[test]
fn theta_is_rounded_and_never_cut() {
    let values = [65_504.0f64, -65_504.5, 1e39];
    let mut bytes = vec![7];
    for (encoding, largest, beyond) in
        [(Encoding::F16, 65_504.0, 1), (Encoding::Bf16, 3.389_531_389_251_535_4e38, 2)]
    {
        assert!(encoding.suits_theta() && encoding.largest() == largest, "{encoding:?}");
        assert_eq!(encoding.encode_theta(&values, &mut bytes), Err(beyond), "{encoding:?}");
        assert_eq!(bytes, [7], "nothing is appended");
        encoding.encode_theta(&[largest, -largest], &mut bytes).expect("its largest");
        let mut back = Vec::<f64>::new();
        encoding.decode(&bytes[1..], &mut back, 0, 2).expect("its own");
        assert_eq!(back, [largest, -largest]);
        bytes.truncate(1);
    }
    // Of f32 there is something beyond bf16 as well.
    assert_eq!(Encoding::Bf16.encode_theta(&[0.0, f32::MAX], &mut bytes), Err(1));
    assert_eq!(Encoding::Plain.encode_theta(&[f32::MIN, f32::MAX], &mut bytes), Ok(()));
    assert!(!Encoding::Int8.suits_theta() && !Encoding::TopK.suits_theta());
}

#[test]
fn bytes_that_are_no_chunk_are_refused_and_leave_no_trace() {
    let refusals: [(Encoding, Vec<u8>, ErrorCode); 10] = [
        (Encoding::Plain, vec![0; 6], ErrorCode::BadLength),
        (Encoding::F16, vec![0; 3], ErrorCode::BadLength),
        (Encoding::F16, vec![0, 0x7c], ErrorCode::NonFinite),
        (Encoding::Bf16, vec![0xc0, 0x7f], ErrorCode::NonFinite),
        (Encoding::Int8, vec![0; 4], ErrorCode::BadLength),
        (Encoding::Int8, [&f32::NAN.to_le_bytes()[..], &[1]].concat(), ErrorCode::NonFinite),
        (Encoding::Int8, [&f32::MAX.to_le_bytes()[..], &[9]].concat(), ErrorCode::NonFinite),
        (Encoding::TopK, vec![1, 0, 0], ErrorCode::BadLength),
        (Encoding::TopK, [[0xff; 4], [0; 4], [0; 4]].concat(), ErrorCode::BadLength),
        (Encoding::TopK, [[2, 0, 0, 0], [2, 0, 0, 0], [0; 4]].concat(), ErrorCode::BadKey),
    ];
    for (encoding, bytes, code) in refusals {
        let mut values = vec![5.0f32];
        let error = encoding.decode(&bytes, &mut values, 0, 9).expect_err("refused");
        assert_eq!(error.code, code, "{encoding:?} {bytes:?}: {error}");
        assert_eq!(values, [5.0], "{encoding:?} {bytes:?}");
    }
    let mut values = vec![0f32; 8];
    let error = Encoding::F16.decode(&[0; 4], &mut values, 0, 9).expect_err("one too many");
    assert_eq!((error.code, values.len()), (ErrorCode::DimMismatch, 8));
    let same_place = [[3, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0; 4], [0; 4]].concat();
    let error =
        Encoding::TopK.decode(&same_place, &mut Vec::<f32>::new(), 0, 9).expect_err("twice");
    assert_eq!(error.code, ErrorCode::BadKey);
}

#[test]
fn arbitrary_bytes_never_panic() {
    for encoding in ALL {
        for n in 0..600 {
            let bytes: Vec<u8> = (0..n).map(|i| (i * i * 31 + n) as u8).collect();
            let mut values = Vec::<f32>::new();
            match encoding.decode(&bytes, &mut values, 0, 1000) {
                Ok(()) => assert!(values.iter().all(|x| x.is_finite())),
                Err(_) => assert!(values.is_empty()),
            }
        }
    }
}

#[test]
fn flags_are_read_as_they_are_written() {
    for text in ["f32", "f16", "bf16", "int8", "topk,ratio=0.25"] {
        assert_eq!(text.parse::<Codec>().expect("valid").to_string(), text);
    }
    for text in ["", "f8", "topk", "topk,ratio=0", "topk,ratio=1.5", "topk,k=3", "f16,ratio=1"] {
        assert!(text.parse::<Codec>().is_err(), "{text}");
    }
}

/// What the receiver adds up over many steps of one gradient, against the sum of what was meant.
fn drift(codec: &str, with_feedback: bool) -> f64 {
    let gradient = values(700, 11);
    let mut feedback = Feedback::new(codec.parse().expect("valid"));
    let mut received = vec![0f64; gradient.len()];
    let steps = 400;
    for _ in 0..steps {
        for chunk in feedback.encode(&gradient, &[0, 300], 128) {
            let mut sent = Vec::<f32>::new();
            chunk.encoding.decode(&chunk.data, &mut sent, 0, chunk.len).expect("its own");
            assert_eq!(sent.len(), chunk.len);
            for (sum, sent) in received[chunk.begin..].iter_mut().zip(sent) {
                *sum += f64::from(sent);
            }
        }
        if !with_feedback {
            feedback.reset();
        }
    }
    let meant = |x: f32| f64::from(x) * f64::from(steps);
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let off = norm(&mut received.iter().zip(&gradient).map(|(r, &g)| r - meant(g)));
    off / norm(&mut gradient.iter().map(|&g| meant(g)))
}

#[test]
fn with_feedback_nothing_is_lost_for_good() {
    for (codec, bound) in [("f16", 1e-6), ("bf16", 1e-4), ("int8", 1e-4), ("topk,ratio=0.05", 0.05)]
    {
        let (with, without) = (drift(codec, true), drift(codec, false));
        assert!(with < bound && with < without / 10.0, "{codec}: {with} with, {without} without");
    }
    assert_eq!(drift("f32", false), drift("f32", true));
}

#[test]
fn chunks_begin_at_the_cuts_and_hold_the_largest_elements() {
    let mut gradient = vec![0.001f32; 1000];
    for (i, place) in [17, 300, 301, 999].into_iter().enumerate() {
        gradient[place] = 2.0 + i as f32;
    }
    let mut feedback = Feedback::new(Codec::TopK { ratio: 0.004 });
    let chunks = feedback.encode(&gradient, &[0, 301], 256);
    let places: Vec<_> = chunks.iter().map(|chunk| (chunk.begin, chunk.len)).collect();
    assert_eq!(places, [(0, 256), (256, 45), (301, 256), (557, 256), (813, 187)]);
    let sizes: Vec<_> = chunks.iter().map(|chunk| (chunk.data.len() - 4) / 8).collect();
    assert_eq!(sizes, [1, 1, 1, 0, 1]);
    let lost = feedback.lost_squares();
    assert!((lost - 996.0 * 1e-6).abs() < 1e-8, "{lost}");
}

#[test]
fn a_gradient_that_is_not_finite_is_sent_as_one() {
    for encoding in ["f16", "bf16", "int8", "topk,ratio=0.5"] {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut feedback = Feedback::new(encoding.parse().expect("valid"));
            let chunks = feedback.encode(&[1.0f32, bad, 2.0], &[0], 8);
            let error = chunks[0].encoding.decode::<f32>(&chunks[0].data, &mut Vec::new(), 0, 3);
            assert_eq!(error.expect_err("refused").code, ErrorCode::NonFinite, "{encoding} {bad}");
        }
    }
}
