//! Updates of rows, against the same ones with their zeros.

use proptest::prelude::*;
use ps_common::ErrorCode::{DimMismatch, NonFinite};
use ps_common::rows::{Rows, elements};
use ps_common::tables::Initializer;

use super::*;
use crate::table::SparseGradient;

/// Vectors, single elements that are not penalised, and more vectors.
fn tables() -> Tables {
    let uniform = Initializer::Uniform { bound: 1.0, seed: 3 };
    Tables::new(vec![
        Table::new("V", &[9, 3], uniform, true),
        Table::zeros("b", &[5], false),
        Table::new("U", &[4, 2, 2], uniform, true),
    ])
    .expect("sane")
}

/// Names of rows, and values for their elements, again and again.
type Part = (Vec<(u32, Vec<u32>)>, Vec<i8>);

fn part() -> impl Strategy<Value = Part> {
    let numbers = |table| prop::collection::vec(0..[9u32, 5, 4][table as usize], 0..5);
    let of_table = (0..3u32).prop_flat_map(move |table| (Just(table), numbers(table)));
    (prop::collection::vec(of_table, 0..4), prop::collection::vec(any::<i8>(), 80))
}

fn rows((names, _): &Part) -> Vec<Rows> {
    let rows = |(table, numbers): &(u32, Vec<u32>)| Rows::new(&tables(), *table, numbers.clone());
    names.iter().map(|named| rows(named).expect("there")).collect()
}

/// The gradient, and the same written out by hand.
fn gradients(part: &Part, dtype: Dtype) -> (SparseGradient, Gradient) {
    let mut all = vec![0f64; tables().dim()];
    let rows = rows(part);
    // Eighths, so that sums are exact, and -0 is among them.
    let values = part.1.iter().cycle().map(|&x| f64::from(x) * -0.125);
    let named: Vec<(usize, f64)> = elements(&rows).zip(values).collect();
    named.iter().for_each(|(key, value)| all[*key] += value);
    let of = |values: Vec<f64>| match dtype {
        Dtype::F32 => Gradient::F32(values.iter().map(|&x| x as f32).collect()),
        Dtype::F64 => Gradient::F64(values.into()),
    };
    let values = of(named.into_iter().map(|(_, value)| value).collect());
    (SparseGradient::new(rows, values).expect("as many"), of(all))
}

fn store(rule: &str, dtype: Dtype, chunk: usize) -> Store {
    Store::new(&tables(), dtype, optimizer(&wish(rule)), chunk)
}

proptest! {
    #[test]
    fn the_bits_are_those_of_the_gradient_with_its_zeros(
        rounds in prop::collection::vec(prop::collection::vec(part(), 1..4), 1..5),
        chunk in prop::sample::select(vec![8usize, 40, 96, 1 << 12]),
        weight in prop::sample::select(vec![1.0, 0.3]),
    ) {
        for (rule, dtype) in ["sgd", "adagrad"].into_iter().flat_map(|rule| {
            [Dtype::F32, Dtype::F64].map(|dtype| (rule, dtype))
        }) {
            let [mut sparse, mut filled, mut dense] = [(); 3].map(|()| store(rule, dtype, chunk));
            for parts in &rounds {
                let both = parts.iter().map(|part| gradients(part, dtype));
                let (rows, whole): (Vec<_>, Vec<_>) =
                    both.map(|(rows, whole)| ((rows, weight), (whole, weight))).unzip();
                let moved = sparse.prepare_rows(&rows, 0.5).expect("finite");
                sparse.commit_rows(&moved);
                let zeros = rows.iter().map(|(rows, weight)| (rows.filled(tables().dim()), *weight));
                let zeros: Vec<_> = zeros.collect();
                for (store, parts) in [(&mut filled, &zeros), (&mut dense, &whole)] {
                    store.update(&Update { rate_factor: 0.5, ..sum(parts) }).expect("finite");
                    prop_assert_eq!(sparse.snapshot().version, store.snapshot().version);
                    prop_assert_eq!(sparse.snapshot().sha256(), store.snapshot().sha256());
                    prop_assert_eq!(sparse.state(), store.state());
                }
            }
        }
    }

    #[test]
    fn rows_are_copied_in_the_order_asked(
        part in part(),
        chunk in prop::sample::select(vec![8usize, 40, 1 << 12]),
    ) {
        let theta = store("sgd", Dtype::F64, chunk).snapshot();
        let (all, rows) = (theta.values::<f64>(), rows(&part));
        let wanted: Vec<f64> = elements(&rows).map(|key| all[key]).collect();
        prop_assert_eq!(theta.of_rows(&rows).values::<f64>(), wanted);
    }
}

fn one(table: u32, numbers: &[u32], values: &[f64]) -> SparseGradient {
    let rows = Rows::new(&tables(), table, numbers.to_vec()).expect("there");
    SparseGradient::new(vec![rows], Gradient::F64(values.to_vec().into())).expect("as many")
}

fn push_rows(store: &mut Store, gradient: SparseGradient) -> Result<(), usize> {
    let moved = store.prepare_rows(&[(gradient, 1.0)], 1.0)?;
    store.commit_rows(&moved);
    Ok(())
}

#[test]
fn ftrl_moves_the_rows_that_are_named_as_ever_and_no_others() {
    let rule = "ftrl,beta=0.5,l1=0.01,l2=1";
    let [mut sparse, mut dense] = [(); 2].map(|()| store(rule, Dtype::F64, 40));
    let before = sparse.snapshot().values::<f64>();
    for step in 0..5 {
        let gradient = one(0, &[2, 7], &[1.0, -2.0, 0.5, 3.0, f64::from(step), -1.0]);
        dense.update(&sum(&[(gradient.filled(tables().dim()), 1.0)])).expect("finite");
        push_rows(&mut sparse, gradient).expect("finite");
    }
    let (after, wanted) = (sparse.snapshot().values::<f64>(), dense.snapshot().values::<f64>());
    for key in 0..after.len() {
        let is_named = (6..9).contains(&key) || (21..24).contains(&key);
        let want = if is_named { wanted[key] } else { before[key] };
        assert_eq!(after[key].to_bits(), want.to_bits(), "{key}");
    }
    assert_close(&after, &wanted, 1e-15);
}

#[test]
fn an_overflow_leaves_every_bit_and_is_told_by_its_key() {
    for rule in ["sgd", "adagrad"] {
        let mut store = store(rule, Dtype::F64, 40);
        push_rows(&mut store, one(2, &[1], &[1.0; 4])).expect("finite");
        let (theta, state) = (store.snapshot().sha256(), store.state());
        let huge = one(2, &[0, 3], &[1.0, 1.0, 1.0, 1.0, 1.0, f64::MAX, 1.0, 1.0]);
        let moved = store.prepare_rows(&[(huge.clone(), 1.0), (huge, 1.0)], 1.0);
        assert_eq!(moved.map(drop), Err(27 + 5 + 13), "{rule}");
        assert_eq!((store.snapshot().sha256(), store.state()), (theta, state), "{rule}");
    }
}

#[test]
fn chunks_are_written_where_they_lie_unless_somebody_reads_them() {
    let mut store = store("adagrad", Dtype::F64, 80);
    let push = |store: &mut Store| push_rows(store, one(0, &[1], &[1.0; 3])).expect("finite");
    let places = |store: &Store| {
        store.snapshot().chunks().map(|chunk| chunk.as_ptr() as usize).collect::<Vec<_>>()
    };
    push(&mut store);
    let before = places(&store);
    push(&mut store);
    assert_eq!(places(&store), before, "in place");
    let (held, captured) = (store.snapshot(), store.capture());
    let (sha256, state) = (held.sha256(), store.state());
    push(&mut store);
    assert_ne!(store.snapshot().sha256(), sha256);
    assert_ne!(store.state(), state);
    assert_eq!((held.sha256(), captured.theta().sha256()), (sha256.clone(), sha256));
    let after = places(&store);
    assert_ne!(after[0], before[0], "a copy of the chunk that is read");
    assert_eq!(after[1..], before[1..], "others are left alone");
}

#[test]
fn values_have_to_be_as_many_as_rows_say_and_sums_finite() {
    let new = |numbers: &[u32], values: &[f64]| {
        let rows = Rows::new(&tables(), 1, numbers.to_vec()).expect("there");
        SparseGradient::new(vec![rows], Gradient::F64(values.to_vec().into())).map_err(|e| e.code)
    };
    for values in [&[1.0][..], &[1.0; 3]] {
        assert_eq!(new(&[0, 4], values), Err(DimMismatch));
    }
    assert_eq!(new(&[4, 4], &[f64::MAX, f64::MAX]), Err(NonFinite));
    assert_eq!(new(&[4, 0, 4], &[1.0, 2.0, 0.5]), new(&[0, 4], &[2.0, 1.5]));
}
