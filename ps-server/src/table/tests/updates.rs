//! Clip, decay, aggregate, compensation, schedule together; whole or not at all.

use super::super::Compensation;
use super::*;

/// A gradient that depends on the step and the element.
pub(super) fn gradient(step: usize, dim: usize) -> Vec<f64> {
    (0..dim).map(|i| ((step * 7 + i * 3) as f64 * 0.37).sin()).collect()
}

/// With weight decay, where the rule takes it.
pub(super) fn decayed(rule: &str) -> Wish<'_> {
    Wish { weight_decay: (!rule.starts_with("ftrl")).then_some(0.1), ..wish(rule) }
}

fn theta(store: &Store) -> Vec<f64> {
    store.snapshot().values()
}

#[test]
fn an_overflow_leaves_theta_and_state_and_step_count() {
    const DIM: usize = 7;
    for rule in RULES {
        let narrow = |values: Vec<f64>| Gradient::F32(values.iter().map(|&x| x as f32).collect());
        let train = |bad: bool| {
            let mut store = store(&decayed(rule), (5, 2), Dtype::F32, 8);
            for step in 0..6 {
                if bad {
                    let version = store.snapshot().version;
                    let mut garbage = gradient(step, DIM);
                    // In the last chunk: all others have been written by then.
                    garbage[6] = f64::from(f32::MAX);
                    let parts = [(narrow(garbage.clone()), 1.0), (narrow(garbage), 1.0)];
                    assert_eq!(store.update(&sum(&parts)), Err(6), "{rule}");
                    assert_eq!(store.snapshot().version, version);
                }
                let parts = [(narrow(gradient(step, DIM)), 0.5), (narrow(gradient(9, DIM)), 0.5)];
                store.update(&sum(&parts)).expect("finite");
            }
            (store.snapshot().sha256(), store.state())
        };
        assert_eq!(train(true), train(false), "{rule}");
    }
}

#[test]
fn a_state_that_would_overflow_is_refused_as_theta_is() {
    for rule in ["adagrad", "rmsprop", "adam", "adamw", "ftrl"] {
        let mut store = store(&wish(rule), (5, 0), Dtype::F32, 1024);
        // Finite, and its square is not in f32.
        let parts = [(Gradient::F32(vec![1.0, 1.0, 1e30, 1.0, 1e30].into()), 1.0)];
        assert_eq!(store.update(&sum(&parts)), Err(2), "{rule}");
        let parts = [(Gradient::F32(vec![1.0; 5].into()), 1.0)];
        store.update(&sum(&parts)).expect("finite");
        let theta = store.snapshot().values::<f32>();
        assert!(theta.iter().all(|x| *x == theta[0]), "{rule}: {theta:?}");
    }
}

#[test]
fn chunks_and_blocks_do_not_show() {
    const DIM: usize = 5003;
    for rule in RULES {
        let train = |chunk: usize| {
            let mut store = store(&decayed(rule), (4000, 1003), Dtype::F64, chunk);
            for step in 0..3 {
                let parts: Vec<_> = (0..3)
                    .map(|rank| (Gradient::F64(gradient(step + 5 * rank, DIM).into()), 0.3))
                    .collect();
                store.update(&sum(&parts)).expect("finite");
            }
            store.snapshot().sha256()
        };
        let whole = train(1 << 20);
        for chunk in [8 * 97, 8 * 2048, 8 * 2049] {
            assert_eq!(train(chunk), whole, "{rule}, chunks of {chunk} bytes");
        }
    }
}

#[test]
fn in_turn_is_one_update_after_the_other() {
    const DIM: usize = 9;
    for rule in RULES {
        for clip_norm in [None, Some(0.5)] {
            let wish = Wish { clip_norm, ..decayed(rule) };
            let new = || store(&wish, (6, 3), Dtype::F64, 32);
            let (mut at_once, mut singly) = (new(), new());
            for round in 0..3 {
                let parts: Vec<_> = (0..4)
                    .map(|rank| (Gradient::F64(gradient(round * 4 + rank, DIM).into()), 0.25))
                    .collect();
                let in_turn = Update { combine: Combine::InTurn, ..sum(&parts) };
                at_once.update(&in_turn).expect("finite");
                for part in &parts {
                    singly.update(&sum(std::slice::from_ref(part))).expect("finite");
                }
            }
            assert_eq!(theta(&at_once), theta(&singly), "{rule}");
            assert_eq!(at_once.state(), singly.state(), "{rule}");
            assert_eq!(at_once.snapshot().version, 3);
        }
    }
}

#[test]
fn medians_and_trimmed_means_do_not_look_at_weights() {
    let parts: Vec<(Gradient, f64)> = [[1.0, 9.0], [2.0, 8.0], [1e9, -1e9], [4.0, 6.0]]
        .map(|g| (Gradient::F64(g.to_vec().into()), 17.0))
        .into();
    let descent = Wish { lr: Some(1.0), ..wish("sgd") };
    for (combine, want) in [
        (Combine::Median, [-3.0, -7.0]),
        (Combine::TrimmedMean { k: 1 }, [-3.0, -7.0]),
        (Combine::TrimmedMean { k: 0 }, [-250_000_001.75, 249_999_994.25]),
        (Combine::TrimmedMean { k: 7 }, [-3.0, -7.0]),
    ] {
        let mut store = store(&descent, (2, 0), Dtype::F64, 64);
        store.update(&Update { combine, ..sum(&parts) }).expect("finite");
        assert_close(&theta(&store), &want, 1e-12);
    }
    // 3 and 7 cut to a norm of sqrt(58) / 2.
    let clipped = Wish { clip_norm: Some(58f64.sqrt() / 2.0), ..descent };
    let mut store = store(&clipped, (2, 0), Dtype::F64, 64);
    store.update(&Update { combine: Combine::Median, ..sum(&parts) }).expect("finite");
    assert_close(&theta(&store), &[-1.5, -3.5], 1e-12);
}

#[test]
fn first_the_clip_then_the_decay_and_no_decay_of_a_bias() {
    let wish = Wish { lr: Some(0.5), weight_decay: Some(0.1), clip_norm: Some(5.0), ..wish("sgd") };
    let mut store = store(&wish, (2, 1), Dtype::F64, 8);
    store.begin_at(&[10.0, -20.0, 30.0]);
    // Of norm 10: it is halved over all chunks, and the decay comes on top.
    push(&mut store, vec![6.0, 0.0, -8.0]).expect("finite");
    assert_close(&theta(&store), &[10.0 - 0.5 * 4.0, -20.0 + 0.5 * 2.0, 30.0 + 0.5 * 4.0], 1e-12);
    // Of norm 1: it stays.
    push(&mut store, vec![0.0, 0.0, 1.0]).expect("finite");
    assert_close(&theta(&store), &[8.0 * 0.95, -19.0 * 0.95, 31.5], 1e-12);
}

#[test]
fn the_decay_of_adamw_is_no_part_of_its_moments() {
    let wish = Wish { lr: Some(0.5), weight_decay: Some(0.1), ..wish("adamw") };
    let mut store = store(&wish, (2, 1), Dtype::F64, 8);
    store.begin_at(&[10.0, -20.0, 30.0]);
    push(&mut store, vec![0.0; 3]).expect("finite");
    assert_close(&theta(&store), &[9.5, -19.0, 30.0], 1e-12);
    assert_eq!(store.state(), [[0.0; 3], [0.0; 3]]);
}

#[test]
fn ftrl_does_not_penalise_a_bias_and_goes_on_from_a_given_theta() {
    let mut store = store(&wish("ftrl,alpha=1,l1=2,l2=1"), (2, 1), Dtype::F64, 64);
    store.begin_at(&[0.5, 0.0, 0.5]);
    push(&mut store, vec![0.0; 3]).expect("finite");
    assert_eq!(theta(&store), [0.5, 0.0, 0.5]);
    push(&mut store, vec![1.0; 3]).expect("finite");
    // z = -(theta * curvature + l1) + g - sigma * theta, with sigma = 1.
    let want = [(0.5 * 2.0 + 2.0 - 1.0 + 0.5 - 2.0) / 3.0, 0.0, (0.5 - 1.0 + 0.5) / 2.0];
    assert_close(&theta(&store), &want, 1e-12);
}

#[test]
fn late_gradients_are_compensated_with_a_limit() {
    let mut store = store(&Wish { lr: Some(1.0), ..wish("sgd") }, (2, 1), Dtype::F64, 8);
    let pulled = store.snapshot();
    push(&mut store, vec![-0.5, -5.0, 0.0]).expect("finite");
    let compensation = Some(Compensation { lambda: 0.5, pulled: &pulled });
    let parts = [(Gradient::F64(vec![2.0; 3].into()), 0.5)];
    // The weighted gradient is 1; theta has moved by 0.5, 5 and 0.
    store.update(&Update { compensation, ..sum(&parts) }).expect("finite");
    assert_close(&theta(&store), &[0.5 - 1.25, 5.0 - 2.0, -1.0], 1e-12);
}

#[test]
fn the_rate_follows_the_version_and_a_factor_is_of_one_update() {
    let wish = Wish { lr: Some(8.0), schedule: "step,every=1,gamma=0.5", ..wish("sgd") };
    let mut store = store(&wish, (1, 0), Dtype::F64, 8);
    let parts = [(Gradient::F64(vec![1.0].into()), 1.0)];
    for (rate_factor, want) in [(1.0, -8.0), (0.25, -9.0), (1.0, -11.0)] {
        store.update(&Update { rate_factor, ..sum(&parts) }).expect("finite");
        assert_eq!(theta(&store), [want]);
    }
    let bad = [(Gradient::F64(vec![f64::MAX].into()), 1.0)];
    assert_eq!(store.update(&Update { rate_factor: 9.0, ..sum(&bad) }), Err(0));
    store.update(&sum(&parts)).expect("finite");
    assert_eq!(theta(&store), [-12.0], "the refused update was no step");
}
