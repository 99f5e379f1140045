//! Captures do not change, and what is put back from them goes on bit by bit.

use ps_common::partition::Partition;

use super::super::{Captured, Restoring};
use super::updates::{decayed, gradient};
use super::*;

const SHAPE: (u64, u64) = (2100, 401);
const DIM: usize = 2501;

/// All sections of a capture, as a checkpoint has them.
fn sections(captured: &Captured) -> Vec<(String, Vec<u8>)> {
    let slots = captured.slots().map(|(name, parts)| (format!("optimizer/{name}"), parts.concat()));
    [("theta".to_owned(), captured.theta().chunks().collect::<Vec<_>>().concat())]
        .into_iter()
        .chain(slots)
        .collect()
}

/// One that the restored version matters to, where the rule takes it.
fn schedule(rule: &str) -> &'static str {
    if rule.starts_with("ftrl") { "constant" } else { "step,every=2,gamma=0.5" }
}

/// One update by several gradients in turn, so that there are more steps than updates.
fn train(store: &mut Store, steps: std::ops::Range<usize>) {
    let dtype = store.snapshot().dtype;
    for step in steps {
        let part = |rank| {
            let values = gradient(step * 2 + rank, DIM);
            let values = match dtype {
                Dtype::F32 => Gradient::F32(values.iter().map(|&x| x as f32).collect()),
                Dtype::F64 => Gradient::F64(values.into()),
            };
            (values, 0.5)
        };
        let parts = [part(0), part(1)];
        let update = Update { combine: Combine::InTurn, ..sum(&parts) };
        store.update(&update).expect("finite");
    }
}

fn restoring(wish: &Wish<'_>, dtype: Dtype, chunk: usize, version: u64) -> Restoring {
    let tables = [Table::zeros("W", &[SHAPE.0], true), Table::zeros("b", &[SHAPE.1], false)];
    let tables = Tables::new(tables.into()).expect("sane");
    Store::restoring((&tables, Partition::WHOLE), dtype, optimizer(wish), chunk, version)
}

/// Puts sections back, cut at a length that divides nothing.
fn put_back(mut restoring: Restoring, sections: &[(String, Vec<u8>)]) -> Result<Store, String> {
    for (section, bytes) in sections {
        for piece in bytes.chunks(1021) {
            restoring.append(section, piece)?;
        }
    }
    restoring.finish()
}

#[test]
fn what_is_put_back_goes_on_bit_by_bit() {
    for rule in RULES {
        for dtype in [Dtype::F32, Dtype::F64] {
            for n_before in [0, 1, 5] {
                let what = format!("{rule}, {dtype}, {n_before} steps before");
                let wish = Wish { schedule: schedule(rule), ..decayed(rule) };
                let mut first = store(&wish, SHAPE, dtype, 1000);
                train(&mut first, 0..n_before);
                let captured = sections(&first.capture());
                let version = first.snapshot().version;
                let n_slots = optimizer(&wish).rule.slots().len();
                let begun = if n_before > 0 && n_slots > 0 { n_slots + 1 } else { 0 };
                assert_eq!(captured.len(), 1 + begun, "{what}");
                train(&mut first, n_before..8);
                for chunk in [8, 1004, 8 * 2049, 1 << 20] {
                    let restoring = restoring(&wish, dtype, chunk, version);
                    let mut second = put_back(restoring, &captured).expect("fits");
                    assert_eq!(second.snapshot().version, version);
                    assert_eq!(sections(&second.capture()), captured, "{what}");
                    train(&mut second, n_before..8);
                    assert_eq!(second.snapshot().version, 8);
                    let (first, second) = (first.capture(), second.capture());
                    assert_eq!(sections(&second), sections(&first), "{what}, chunks of {chunk}");
                }
            }
        }
    }
}

#[test]
fn a_capture_stays_as_it_was_while_training_goes_on() {
    for rule in RULES {
        let mut store = store(&decayed(rule), SHAPE, Dtype::F32, 4096);
        let mut held = Vec::new();
        for step in 0..12 {
            train(&mut store, step..step + 1);
            // Captures of one version, of neighbours, and one from long ago.
            if [0, 5, 6].contains(&step) {
                let captured = [store.capture(), store.capture()];
                held.extend(captured.map(|captured| (sections(&captured), captured)));
            }
            for (before, captured) in &held {
                assert!(sections(captured) == *before, "{rule}, after {step}");
            }
        }
        let last = |i: usize| held[i].0.clone();
        assert!(last(0) != last(2) && last(2) != last(4), "{rule} moved in between");
        // A refused update writes over nothing either.
        let mut garbage = vec![1.0; DIM];
        garbage[DIM - 1] = f32::MAX;
        let parts =
            [(Gradient::F32(garbage.clone().into()), 1.0), (Gradient::F32(garbage.into()), 1.0)];
        let now = store.capture();
        let before = sections(&now);
        store.update(&sum(&parts)).expect_err("too large");
        assert!(sections(&now) == before && sections(&store.capture()) == before, "{rule}");
    }
}

/// Where the first chunk of each slot lies.
fn places(store: &Store) -> Vec<usize> {
    store.capture().slots().map(|(_, parts)| parts[0].as_ptr() as usize).collect::<Vec<_>>()
        [..store.optimizer.rule.slots().len()]
        .to_vec()
}

#[test]
fn a_state_has_two_places_and_a_third_only_while_it_is_held() {
    for rule in RULES.into_iter().filter(|rule| *rule != "sgd") {
        let mut store = store(&decayed(rule), SHAPE, Dtype::F64, 4096);
        let next = |store: &mut Store, step: usize| {
            train(store, step..step + 1);
            places(store)
        };
        let [a, b] = [0, 1].map(|step| next(&mut store, step));
        assert_ne!(a, b);
        for step in 2..8 {
            let want = if step % 2 == 0 { &a } else { &b };
            assert_eq!(next(&mut store, step), *want, "{rule}");
        }
        let held = store.capture();
        let after: Vec<_> = (8..14).map(|step| next(&mut store, step)).collect();
        assert_eq!(after[0], a, "{rule}: it was free");
        assert!(after[1] != a && after[1] != b, "{rule}: b is held");
        let c = &after[1];
        assert_eq!(after[2..], [a.clone(), c.clone(), a.clone(), c.clone()], "{rule}");
        drop(held);
        for step in 14..18 {
            let want = if step % 2 == 0 { &a } else { c };
            assert_eq!(next(&mut store, step), *want, "{rule}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_by_its_section() {
    let wish = wish("adam");
    let mut store = store(&wish, SHAPE, Dtype::F64, 1000);
    train(&mut store, 0..3);
    let good = sections(&store.capture());
    let names: Vec<&str> = good.iter().map(|(name, _)| &name[..]).collect();
    assert_eq!(names, ["theta", "optimizer/m", "optimizer/v", "optimizer/n_steps"]);
    assert_eq!(good[3].1, 6u64.to_le_bytes());
    let refused = |version, sections: &[(String, Vec<u8>)]| {
        put_back(restoring(&wish, Dtype::F64, 800, version), sections).expect_err("does not fit")
    };
    for (i, name) in names.iter().enumerate() {
        let want = good[i].1.len();
        let mut bad = good.clone();
        bad[i].1.pop();
        let text = refused(3, &bad);
        assert_eq!(text, format!("section {name:?}: want {want} bytes, got {}", want - 1));
        bad[i].1.extend([0, 0]);
        let text = refused(3, &bad);
        assert_eq!(text, format!("section {name:?}: want {want} bytes, got at least {}", want + 1));
        let mut bad = good.clone();
        bad.remove(i);
        let text = refused(3, &bad);
        assert_eq!(text, format!("section {name:?}: want {want} bytes, got 0"));
    }
    // Only a rule that has not begun has no state.
    assert!(refused(3, &good[..1]).starts_with("section \"optimizer/m\": want"));
    assert!(refused(0, &good[..3]).starts_with("section \"optimizer/n_steps\": want 8"));
    put_back(restoring(&wish, Dtype::F64, 800, 0), &good[..1]).expect("not begun");
    let text = refused(3, &[("optimizer/z".to_owned(), vec![0])]);
    assert_eq!(text, "section \"optimizer/z\": optimizer adam has none of this name");
}
