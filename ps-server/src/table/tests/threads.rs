//! Updates that several threads share, against one thread: the same bits, and none where one of the
//! threads finds an overflow.

use super::updates::{decayed, gradient};
use super::*;
use crate::table::Compensation;
use crate::threads::Threads;

const DIM: usize = 5003;

/// Chunks that are no multiple of a block, more of them than there are threads.
fn shared(wish: &Wish<'_>, dtype: Dtype, n_threads: usize) -> Store {
    let store = store(wish, (4000, 1003), dtype, 211 * dtype.size_bytes());
    store.on_threads(Threads::exactly(n_threads))
}

fn pushed(dtype: Dtype, values: &[f64]) -> Gradient {
    match dtype {
        Dtype::F32 => Gradient::F32(values.iter().map(|&x| x as f32).collect()),
        Dtype::F64 => Gradient::F64(values.iter().copied().collect()),
    }
}

fn parts(dtype: Dtype, step: usize) -> Vec<(Gradient, f64)> {
    (0..3).map(|rank| (pushed(dtype, &gradient(step + 5 * rank, DIM)), 0.3)).collect()
}

/// theta and what the rule remembers, to the bit.
fn bits(store: &Store) -> (String, Vec<Vec<u64>>) {
    let bits = |slot: Vec<f64>| slot.into_iter().map(f64::to_bits).collect();
    (store.snapshot().sha256(), store.state().into_iter().map(bits).collect())
}

#[test]
fn threads_do_not_show() {
    for rule in RULES {
        for (clip_norm, dtype) in [(None, Dtype::F32), (Some(0.5), Dtype::F32), (None, Dtype::F64)]
        {
            let wish = Wish { clip_norm, ..decayed(rule) };
            let train = |n_threads: usize| {
                let mut store = shared(&wish, dtype, n_threads);
                let pulled = store.snapshot();
                let combines =
                    [Combine::Sum, Combine::InTurn, Combine::Median, Combine::TrimmedMean { k: 1 }];
                for (step, combine) in combines.into_iter().enumerate() {
                    let parts = parts(dtype, step);
                    store.update(&Update { combine, ..sum(&parts) }).expect("finite");
                }
                let alone = [(pushed(dtype, &gradient(9, DIM)), 1.0)];
                store.update(&sum(&alone)).expect("finite");
                let compensation = Some(Compensation { lambda: 0.5, pulled: &pulled });
                store.update(&Update { compensation, ..sum(&alone) }).expect("finite");
                bits(&store)
            };
            let alone = train(1);
            for n_threads in [2, 3, 7] {
                assert_eq!(train(n_threads), alone, "{wish:?}, {dtype}, {n_threads} threads");
            }
        }
    }
}

#[test]
fn an_overflow_that_any_thread_finds_leaves_theta_and_state_and_is_named_by_its_first_key() {
    for rule in RULES {
        for clip_norm in [None, Some(0.5)] {
            let wish = Wish { clip_norm, ..decayed(rule) };
            let train = |n_threads: usize, bad: &[usize]| {
                let mut store = shared(&wish, Dtype::F32, n_threads);
                for step in 0..3 {
                    if let Some(first) = bad.iter().min() {
                        let mut values = gradient(step, DIM);
                        bad.iter().for_each(|&key| values[key] = f64::from(f32::MAX));
                        let garbage =
                            [1.0, 1.0].map(|weight| (pushed(Dtype::F32, &values), weight));
                        assert_eq!(store.update(&sum(&garbage)), Err(*first), "{wish:?}");
                    }
                    store.update(&sum(&parts(Dtype::F32, step))).expect("finite");
                }
                bits(&store)
            };
            let untroubled = train(1, &[]);
            for n_threads in [1, 2, 3, 7] {
                for bad in [&[0][..], &[5002], &[2500, 211, 4999], &[210, 211]] {
                    let what = format!("{wish:?}, {n_threads} threads, {bad:?}");
                    assert_eq!(train(n_threads, bad), untroubled, "{what}");
                }
            }
        }
    }
}
