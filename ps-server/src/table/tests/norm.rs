//! Parts of theta whose gradients are clipped by the norm of all of it: the bits of the whole.

use std::ops::Range;

use proptest::prelude::*;
use ps_common::partition::{Partition, Squares};

use super::super::norm::BLOCK;
use super::super::{Compensation, clips};
use super::updates::decayed;
use super::*;
use crate::numeric::Norm;

/// Gradients have a norm of 0.5 to 1.5; the weights of some bring them below this.
const NORM_MAX: f64 = 0.4;
const WEIGHTS: [f64; 3] = [0.5, 0.3, 1.0];

/// A job, on however many servers.
#[derive(Debug, Clone, Copy)]
struct Case {
    dim: usize,
    /// Elements.
    chunk_len: usize,
    rule: &'static str,
    dtype: Dtype,
    combine: Combine,
    seed: usize,
    /// What gradients and the limit of their norm are multiplied by.
    size: f64,
}

impl Case {
    fn gradient(&self, rank: usize, step: usize, keys: Range<usize>) -> Gradient {
        let n = self.seed + 31 * rank + 7 * step;
        let scale = self.size / (self.dim as f64).sqrt();
        let value = |key| (1.0 + 0.5 * ((n + key * 3) as f64 * 0.37).sin()) * scale;
        match self.dtype {
            Dtype::F32 => Gradient::F32(keys.map(|key| value(key) as f32).collect()),
            Dtype::F64 => Gradient::F64(keys.map(value).collect()),
        }
    }

    /// The gradients of an update; the second update has one, which is corrected.
    fn parts(&self, step: usize, keys: &Range<usize>) -> Vec<(Gradient, f64)> {
        let ranks = if step == 1 { 2..3 } else { 0..3 };
        ranks.map(|rank| (self.gradient(rank, step, keys.clone()), WEIGHTS[rank])).collect()
    }

    fn store(&self, partition: Partition) -> Store {
        let n_weights = (self.dim as u64).div_ceil(2);
        let tables = [("W", n_weights, true), ("b", self.dim as u64 - n_weights, false)];
        let tables = tables.into_iter().filter(|(_, n, _)| *n > 0);
        let tables = tables.map(|(name, n, penalized)| Table::zeros(name, &[n], penalized));
        let tables = Tables::new(tables.collect()).expect("sane");
        let wish = Wish { clip_norm: Some(NORM_MAX * self.size), ..decayed(self.rule) };
        let chunk_bytes = self.chunk_len * self.dtype.size_bytes();
        Store::part(&tables, partition, self.dtype, optimizer(&wish), chunk_bytes)
    }

    /// The bytes of theta and what the rule remembers after three updates on `n` servers, and what the
    /// gradients were multiplied by.
    fn train(&self, n: u32) -> (Vec<u8>, Vec<Vec<f64>>, Vec<Option<f64>>) {
        let partitions = (0..n).map(|index| Partition { index, count: n });
        let keys: Vec<_> = partitions.clone().map(|one| one.keys(self.dim)).collect();
        let mut stores: Vec<Store> = partitions.map(|one| self.store(one)).collect();
        let first: Vec<_> = stores.iter().map(Store::snapshot).collect();
        let mut factors = Vec::new();
        for step in 0..3 {
            let parts: Vec<_> = keys.iter().map(|keys| self.parts(step, keys)).collect();
            let update = |server: usize| match step {
                1 => {
                    let pulled = &*first[server];
                    let compensation = Some(Compensation { lambda: 0.4, pulled });
                    Update { compensation, ..sum(&parts[server]) }
                }
                _ => Update { combine: self.combine, ..sum(&parts[server]) },
            };
            let servers = || (0..).map(update);
            let squares =
                stores.iter_mut().zip(servers()).map(|(store, update)| store.squares(&update));
            let squares: Vec<Vec<Squares>> = squares.collect::<Result<_, _>>().expect("finite");
            let clips = clips_of(&stores[0], &squares, NORM_MAX * self.size);
            for (store, update) in stores.iter_mut().zip(servers()) {
                let prepared = match n {
                    1 => store.prepare(&update),
                    _ => store.prepare_clipped(&update, &clips),
                };
                store.commit(prepared.expect("finite"));
            }
            factors.extend(clips);
        }
        let chunks = stores.iter().flat_map(|store| store.snapshot().chunks().collect::<Vec<_>>());
        let states: Vec<Vec<Vec<f64>>> = stores.iter().map(Store::state).collect();
        let of_slot =
            |slot: usize| states.iter().flat_map(|state| state[slot].iter().copied()).collect();
        let theta = chunks.collect::<Vec<_>>().concat();
        (theta, (0..states[0].len()).map(of_slot).collect(), factors)
    }

    #[track_caller]
    fn check(&self, n: u32) {
        let n = n.min(self.dim as u32);
        let (whole, parts) = (self.train(1), self.train(n));
        assert!(whole.2.iter().any(Option::is_some), "{self:?}: nothing is clipped");
        assert_eq!(parts.2, whole.2, "{self:?}, {n} servers");
        assert!(parts.0 == whole.0, "{self:?}, {n} servers: theta differs");
        assert_eq!(parts.1, whole.1, "{self:?}, {n} servers");
    }
}

#[track_caller]
fn clips_of(store: &Store, squares: &[Vec<Squares>], norm_max: f64) -> Vec<Option<f64>> {
    let parts: Vec<&[Squares]> = squares.iter().map(|squares| &squares[..]).collect();
    clips(store.grid(), &parts, norm_max).expect("of their parts")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_cut_gives_the_bits_of_the_whole(
        dim in prop_oneof![
            1_usize..50,
            (1_usize..5, 0_usize..7).prop_map(|(n, more)| n * BLOCK + more - 3),
        ],
        chunk_len in prop_oneof![
            Just(7),
            Just(613),
            Just(BLOCK),
            Just(2 * BLOCK),
            Just(2 * BLOCK + 5),
            Just(1 << 16),
        ],
        rule in prop::sample::select(&RULES[..]),
        dtype in prop_oneof![Just(Dtype::F32), Just(Dtype::F64)],
        combine in prop_oneof![
            Just(Combine::Sum),
            Just(Combine::InTurn),
            Just(Combine::Median),
            Just(Combine::TrimmedMean { k: 1 }),
        ],
        seed in 0_usize..1000,
        n in 1_u32..=8,
    ) {
        Case { dim, chunk_len, rule, dtype, combine, seed, size: 1.0 }.check(n);
    }
}

const PLAIN: Case = Case {
    dim: 3 * BLOCK + 11,
    chunk_len: 2 * BLOCK,
    rule: "sgd",
    dtype: Dtype::F64,
    combine: Combine::Sum,
    seed: 5,
    size: 1.0,
};

#[test]
fn a_norm_whose_square_overflows_is_the_same_on_all_servers() {
    for n in 1..=8 {
        Case { size: 1e200, ..PLAIN }.check(n);
    }
}

#[test]
fn the_order_of_the_sum_is_chunk_by_chunk_each_block_by_block() {
    let parts = PLAIN.parts(1, &(0..PLAIN.dim));
    let gradient: Vec<f64> = parts[0].0.values().to_vec();
    let mut want = Norm::default();
    for chunk in gradient.chunks(PLAIN.chunk_len) {
        let mut of_chunk = Norm::default();
        chunk.chunks(BLOCK).for_each(|block| of_chunk.add(block));
        want.append(&of_chunk);
    }
    let mut store = PLAIN.store(Partition::WHOLE);
    let squares = store.squares(&sum(&parts)).expect("finite");
    assert_eq!((squares[0].elements.len(), squares[0].sums.len()), (0, 2), "a sum each chunk");
    assert_eq!(clips_of(&store, &[squares], 1e-3), [want.factor(1e-3)]);
}

#[test]
fn squares_that_cannot_be_of_a_part_are_refused_with_its_name() {
    let squares = |index| {
        let partition = Partition { index, count: 3 };
        let update = PLAIN.parts(0, &partition.keys(PLAIN.dim));
        PLAIN.store(partition).squares(&sum(&update)).expect("finite")
    };
    let grid = PLAIN.store(Partition::WHOLE).grid();
    let good: Vec<_> = (0..3).map(squares).collect();
    let refused = |change: fn(&mut Vec<Squares>)| {
        let mut all = good.clone();
        change(&mut all[1]);
        let all: Vec<&[Squares]> = all.iter().map(|one| &one[..]).collect();
        let misfit = clips(grid, &all, 1.0).expect_err("it does not fit");
        assert_eq!(misfit.partition, Partition { index: 1, count: 3 });
        misfit.what
    };
    assert!(refused(|all| all[0].elements.truncate(1)).contains("elements"));
    assert!(refused(|all| all[0].sums.push((1.0, 0.0))).contains("sums"));
    assert!(refused(|all| all.push(Squares::default())).contains("2 steps, not of 1"));
}

#[test]
fn a_gradient_that_overflows_before_it_is_clipped_is_told_by_its_key() {
    let partition = Partition { index: 1, count: 2 };
    let keys = partition.keys(PLAIN.dim);
    let mut values = vec![1.0; keys.len()];
    values[700] = f64::MAX;
    let parts = [(Gradient::F64(values.into()), 1.0)];
    let parts = [parts[0].clone(), parts[0].clone()];
    let mut store = PLAIN.store(partition);
    assert_eq!(store.squares(&sum(&parts)), Err(keys.start + 700));
    assert_eq!(store.snapshot().version, 0);
}
