//! Updates that are in force before they are computed, against the same ones computed at once.

use std::sync::Arc;

use super::updates::{decayed, gradient};
use super::*;
use crate::table::{Held, Snapshot, Spares};

const DIM: usize = 5003;

/// Two stores that get the same updates, each in its way.
pub(in crate::table) struct Pair {
    pub(in crate::table) deferred: Store,
    pub(in crate::table) at_once: Store,
    /// Where each update's gradients go, and how many they are.
    homes: Vec<(Arc<Spares>, usize)>,
}

impl Pair {
    pub(in crate::table) fn new(wish: &Wish<'_>, dtype: Dtype) -> Self {
        let new = || store(wish, (4000, 1003), dtype, 613 * dtype.size_bytes());
        Self { deferred: new(), at_once: new(), homes: Vec::new() }
    }

    /// The same update of both.
    pub(in crate::table) fn update(&mut self, step: usize, n_parts: usize) {
        let dtype = self.deferred.snapshot().dtype;
        let part = |rank: usize| {
            let values = gradient(step + 31 * rank, DIM);
            let gradient = match dtype {
                Dtype::F32 => Gradient::F32(values.iter().map(|&x| x as f32).collect()),
                Dtype::F64 => Gradient::F64(values.into()),
            };
            (gradient, if n_parts == 1 { 1.0 } else { 0.3 })
        };
        let parts: Vec<_> = (0..n_parts).map(part).collect();
        self.at_once.update(&sum(&parts)).expect("finite");
        let certain = self.deferred.certain(&sum(&parts)).expect("an ordinary update");
        let home = Arc::default();
        self.deferred.defer(certain, Held::new(parts, &home));
        self.homes.push((home, n_parts));
    }

    /// How many updates' gradients have gone home, all of each.
    pub(in crate::table) fn let_go(&self) -> usize {
        self.homes.iter().filter(|(home, n_parts)| home.len() == *n_parts).count()
    }
}

#[test]
fn the_bits_are_those_of_an_update_at_once_whoever_wants_which_chunks_when() {
    for wish in [wish("sgd"), decayed("sgd")] {
        for dtype in [Dtype::F32, Dtype::F64] {
            for n_parts in [1, 3] {
                let mut pair = Pair::new(&wish, dtype);
                let mut earlier: Vec<(Arc<Snapshot>, Arc<Snapshot>)> = Vec::new();
                for step in 0..6 {
                    pair.update(step, n_parts);
                    let (late, now) = (pair.deferred.snapshot(), pair.at_once.snapshot());
                    assert_eq!((late.version, late.n_chunks()), (now.version, now.n_chunks()));
                    // Of some versions nothing is wanted before the next update, of some a part.
                    for chunk in (0..late.n_chunks()).rev().take(step * 2) {
                        assert_eq!(late.chunk(chunk), now.chunk(chunk), "{step}");
                    }
                    if step % 2 == 0 {
                        earlier.push((late, now));
                    }
                }
                let last = (pair.deferred.snapshot(), pair.at_once.snapshot());
                for (late, now) in earlier.into_iter().chain([last]) {
                    assert_eq!(late.sha256(), now.sha256(), "{wish:?} {dtype} {n_parts}");
                }
                // What might overflow is computed at once, from whatever came before.
                let large = (Gradient::empty(dtype, None), vec![1e300; DIM]);
                if let (Gradient::F64(_), values) = large {
                    let parts = [(Gradient::F64(values.into()), 1.0)];
                    for store in [&mut pair.deferred, &mut pair.at_once] {
                        assert!(store.certain(&sum(&parts)).is_none());
                        store.update(&sum(&parts)).expect("finite");
                    }
                    assert!(pair.deferred.snapshot().sha256() == pair.at_once.snapshot().sha256());
                }
            }
        }
    }
}

#[test]
fn gradients_are_let_go_with_the_last_chunk_or_the_next_update() {
    let mut pair = Pair::new(&wish("sgd"), Dtype::F32);
    pair.update(0, 2);
    let snapshot = pair.deferred.snapshot();
    for chunk in 1..snapshot.n_chunks() {
        drop(snapshot.chunk(chunk));
    }
    assert_eq!(pair.let_go(), 0);
    drop(snapshot.chunk(0));
    assert_eq!(pair.let_go(), 1);
    pair.update(1, 2);
    assert_eq!(pair.let_go(), 1, "nobody wanted anything of it");
    pair.update(2, 2);
    assert_eq!(pair.let_go(), 2);
    assert_eq!(pair.deferred.snapshot().sha256(), pair.at_once.snapshot().sha256());
    assert_eq!(pair.let_go(), 3);
}

#[test]
fn a_version_that_is_captured_stays_and_one_that_is_in_force_is_the_next_ones_memory() {
    let mut pair = Pair::new(&wish("sgd"), Dtype::F32);
    pair.update(0, 1);
    let captured = pair.deferred.capture();
    let sha256 = pair.at_once.snapshot().sha256();
    for step in 1..4 {
        pair.update(step, 1);
        drop(pair.deferred.snapshot().sha256());
    }
    assert_eq!(captured.theta().sha256(), sha256);
    drop(captured);
    let places = |store: &Store| -> std::collections::BTreeSet<usize> {
        store.snapshot().chunks().map(|chunk| chunk.as_ptr() as usize).collect()
    };
    let n_chunks = pair.deferred.snapshot().n_chunks();
    let mut all = places(&pair.deferred);
    for step in 4..20 {
        pair.update(step, 1);
        all.extend(places(&pair.deferred));
    }
    assert_eq!(all.len(), n_chunks, "nobody reads it: it is written in place");
    let mut held = pair.deferred.snapshot();
    for step in 20..40 {
        pair.update(step, 1);
        let sha256 = held.sha256();
        all.extend(places(&pair.deferred));
        assert_eq!(held.sha256(), sha256, "whoever holds a version keeps it");
        held = pair.deferred.snapshot();
    }
    // The last chunk is short and takes what there is.
    assert!(all.len() <= 2 * n_chunks, "{} places for {n_chunks} chunks", all.len());
    assert_eq!(pair.deferred.snapshot().sha256(), pair.at_once.snapshot().sha256());
}
