//! Linear maps: gradients against finite differences and against naive loops, closed forms, and
//! extremes. `nonlinear` has the other maps.

mod nonlinear;

use ndarray::{Array2, ShapeBuilder};
use ps_common::job::{Aggregate, Mode};

use super::*;
use crate::samples::{Features, SparseRows};

const N: usize = 600;
const D: usize = 5;

/// A fixed sequence over (-1, 1).
struct Sequence(u64);

impl Sequence {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (self.0 >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    fn vector(&mut self, n: usize) -> Vec<f64> {
        (0..n).map(|_| self.next()).collect()
    }
}

fn spec(loss: RowLoss, bias: bool, l2: f64) -> ModelSpec {
    let choice = ModelChoice { map: MapKind::Linear, loss: Some(loss) };
    ModelSpec { choice, l2, bias }
}

fn model(loss: RowLoss, bias: bool, l2: f64, n_features: usize) -> Model {
    Model::new(&spec(loss, bias, l2), n_features, 0).expect("valid")
}

const LOSSES: [RowLoss; 3] =
    [RowLoss::Squared, RowLoss::Logistic, RowLoss::Softmax { n_classes: 3 }];

fn n_weights(model: &Model) -> usize {
    model.tables().ranges().filter(|(t, _)| t.penalized).map(|(_, keys)| keys.len()).sum()
}

/// Rows about half of whose entries are 0, so that dense and sparse forms differ in earnest.
fn samples(loss: RowLoss) -> Samples<f64> {
    samples_of(loss, D)
}

fn samples_of(loss: RowLoss, n_features: usize) -> Samples<f64> {
    let mut sequence = Sequence(7);
    let features = Array2::from_shape_fn((N, n_features), |_| {
        Some(sequence.next()).filter(|x| *x > -0.1).unwrap_or(0.0)
    });
    let target = |_| match loss {
        RowLoss::Squared => 3.0 * sequence.next(),
        RowLoss::Logistic => f64::from(u8::from(sequence.next() > 0.0)),
        RowLoss::Softmax { n_classes } => {
            ((sequence.next() + 1.0) / 2.0 * n_classes as f64).floor()
        }
    };
    let targets = (0..N).map(target).collect();
    Samples { features: Features::Dense(features), targets }
}

fn dense(samples: &Samples<f64>) -> &Array2<f64> {
    let Features::Dense(x) = &samples.features else { panic!("made dense") };
    x
}

fn to_sparse(samples: &Samples<f64>) -> Samples<f64> {
    let x = dense(samples);
    let (mut starts, mut indices, mut values) = (vec![0], vec![], vec![]);
    for row in x.outer_iter() {
        for (j, &v) in row.iter().enumerate().filter(|(_, v)| **v != 0.0) {
            indices.push(j as u32);
            values.push(v);
        }
        starts.push(values.len());
    }
    let rows = SparseRows { n_features: x.ncols(), starts, indices, values };
    Samples { features: Features::Sparse(rows), targets: samples.targets.clone() }
}

/// All rows; a batch longer than a block, out of order and with repetitions; one row.
fn selections() -> [Option<Vec<u32>>; 3] {
    let long = (0..401u32).map(|i| (i * 389) % N as u32).chain([5, 5]).collect();
    [None, Some(long), Some(vec![N as u32 - 1])]
}

fn selection(rows: Option<&Vec<u32>>) -> Selection<'_> {
    rows.map_or(Selection::All, |rows| Selection::Rows(rows))
}

fn ask<T: Real + Default>(model: &Model, theta: &[T], batch: &Batch<'_, T>) -> (Loss, Vec<T>) {
    let mut gradient = vec![T::from_f64(f64::NAN); model.dim()];
    let loss = model.loss_and_gradient(theta, batch, &mut gradient, &mut Scratch::default());
    (loss, gradient)
}

/// Calls `check` for every model, form, bias, strength and batch.
fn for_each_case(check: impl Fn(&Model, &[f64], &Samples<f64>, &Batch<'_, f64>)) {
    for loss in LOSSES {
        let plain = samples(loss);
        for (bias, l2) in [(false, 0.0), (false, 0.7), (true, 0.0), (true, 0.7)] {
            let model = model(loss, bias, l2, D);
            let theta = Sequence(11).vector(model.dim());
            for form in [&plain, &to_sparse(&plain)] {
                for rows in selections() {
                    let selection = selection(rows.as_ref());
                    check(
                        &model,
                        &theta,
                        &plain,
                        &Batch { samples: form, selection, l2_share: 1.5 },
                    );
                }
            }
        }
    }
}

#[test]
fn gradients_are_those_of_central_differences() {
    const H: f64 = 1e-5;
    for_each_case(|model, theta, _, batch| {
        let (_, gradient) = ask(model, theta, batch);
        for key in 0..model.dim() {
            let objective = |step: f64| {
                let mut theta = theta.to_vec();
                theta[key] += step;
                let (at, _) = ask(model, &theta, batch);
                at.loss + batch.l2_share * at.penalty
            };
            let slope = (objective(H) - objective(-H)) / (2.0 * H);
            assert!((slope - gradient[key]).abs() < 1e-6, "{model:?} {batch:?} key {key}");
        }
    });
}

/// Loss and gradient by the definitions, one element at a time.
fn naive(
    model: &Model,
    theta: &[f64],
    plain: &Samples<f64>,
    batch: &Batch<'_, f64>,
) -> (f64, Vec<f64>) {
    let (x, c, d) = (dense(plain), model.kind.loss.n_outputs(), model.n_features);
    let rows: Vec<usize> = Which::of(N, batch.selection).rows().collect();
    let (mut loss, mut gradient) = (0.0, vec![0.0; model.dim()]);
    let m = rows.len() as f64;
    for &i in &rows {
        let mut z = vec![0.0; c];
        for k in 0..c {
            for j in 0..d {
                z[k] += x[[i, j]] * theta[j * c + k];
            }
            if model.bias {
                z[k] += theta[d * c + k];
            }
        }
        let y = plain.targets[i];
        let sum: f64 = z.iter().map(|z| z.exp()).sum();
        loss += match model.kind.loss {
            RowLoss::Squared => (z[0] - y).powi(2) / 2.0,
            RowLoss::Logistic => (1.0 + z[0].exp()).ln() - y * z[0],
            RowLoss::Softmax { .. } => -(z[y as usize].exp() / sum).ln(),
        };
        for k in 0..c {
            let r = match model.kind.loss {
                RowLoss::Squared => z[0] - y,
                RowLoss::Logistic => 1.0 / (1.0 + (-z[0]).exp()) - y,
                RowLoss::Softmax { .. } => z[k].exp() / sum - f64::from(u8::from(k == y as usize)),
            };
            for j in 0..d {
                gradient[j * c + k] += r * x[[i, j]] / m;
            }
            if model.bias {
                gradient[d * c + k] += r / m;
            }
        }
    }
    for key in 0..d * c {
        gradient[key] += batch.l2_share * model.l2 * theta[key];
    }
    (loss / m, gradient)
}

fn assert_naive_agrees(model: &Model, theta: &[f64], plain: &Samples<f64>, batch: &Batch<'_, f64>) {
    let (loss, gradient) = ask(model, theta, batch);
    let (loss_naive, gradient_naive) = naive(model, theta, plain, batch);
    assert!((loss.loss - loss_naive).abs() < 1e-12, "{model:?} {batch:?}");
    assert_eq!(loss.n_samples, Which::of(N, batch.selection).len() as u64);
    let squares: f64 = theta[..n_weights(model)].iter().map(|w| w * w).sum();
    assert!((loss.penalty - model.l2 / 2.0 * squares).abs() < 1e-12);
    for (key, (a, b)) in gradient.iter().zip(gradient_naive).enumerate() {
        assert!((a - b).abs() < 1e-12, "{model:?} {batch:?} key {key}: {a} {b}");
    }
}

#[test]
fn naive_loops_agree_on_dense_and_sparse_rows() {
    for_each_case(assert_naive_agrees);
}

#[test]
fn naive_loops_agree_on_wide_rows_and_many_classes() {
    // More features than a dot product has lanes, and classes on both sides of the kernel's limit.
    let softmax = |n_classes| RowLoss::Softmax { n_classes };
    for loss in [RowLoss::Squared, RowLoss::Logistic, softmax(32), softmax(33)] {
        let model = model(loss, true, 0.1, 37);
        let theta = Sequence(13).vector(model.dim());
        let plain = samples_of(loss, 37);
        let mut columns = Array2::zeros((N, 37).f());
        columns.assign(dense(&plain));
        let columns = Samples { features: Features::Dense(columns), ..plain.clone() };
        for form in [&plain, &to_sparse(&plain), &columns] {
            for rows in selections() {
                let selection = selection(rows.as_ref());
                let batch = Batch { samples: form, selection, l2_share: 1.0 };
                assert_naive_agrees(&model, &theta, &plain, &batch);
            }
        }
    }
}

#[test]
fn neither_scratch_nor_the_way_rows_are_named_matters() {
    for loss in LOSSES {
        let model = model(loss, true, 0.1, D);
        let theta = Sequence(3).vector(model.dim());
        let plain = samples(loss);
        let all: Vec<u32> = (0..N as u32).collect();
        let batch = Batch { samples: &plain, selection: Selection::All, l2_share: 1.0 };
        let (loss, gradient) = ask(&model, &theta, &batch);
        let mut scratch = Scratch::default();
        let mut again = vec![0.0; model.dim()];
        for rows in [&all[5..300], &all[..]] {
            let named = Batch { selection: Selection::Rows(rows), ..batch };
            let named = model.loss_and_gradient(&theta, &named, &mut again, &mut scratch);
            assert_eq!(rows.len() == N, named == loss);
        }
        assert_eq!(again, gradient);
    }
}

#[test]
fn no_rows_give_zeros_without_an_l2_term() {
    for loss in LOSSES {
        let model = model(loss, true, 2.0, D);
        let theta = vec![1.0; model.dim()];
        let penalty = n_weights(&model) as f64;
        let none = Loss { loss: 0.0, penalty, n_samples: 0 };
        let some = samples(loss);
        let empty = Samples { features: Features::Dense(Array2::zeros((0, D))), targets: vec![] };
        for samples in [&empty, &to_sparse(&empty)] {
            let batch = Batch { samples, selection: Selection::All, l2_share: 1.0 };
            assert_eq!(ask(&model, &theta, &batch), (none, vec![0.0; model.dim()]));
            assert_eq!(model.metrics(&theta, samples).loss, 0.0);
            assert!(model.predict(&theta, samples).is_empty());
        }
        let unlabelled = Samples { targets: vec![], ..some.clone() };
        assert_eq!(model.predict(&theta, &unlabelled), model.predict(&theta, &some));
        assert_eq!(model.probabilities(&theta, &unlabelled), model.probabilities(&theta, &some));
        let batch = Batch { samples: &some, selection: Selection::Rows(&[]), l2_share: 1.0 };
        assert_eq!(ask(&model, &theta, &batch), (none, vec![0.0; model.dim()]));
    }
}

fn one_feature<T: Real>(rows: &[(f64, f64)]) -> Samples<T> {
    let x: Vec<T> = rows.iter().map(|row| T::from_f64(row.0)).collect();
    let features = Array2::from_shape_vec((rows.len(), 1), x).expect("one column");
    let targets = rows.iter().map(|row| T::from_f64(row.1)).collect();
    Samples { features: Features::Dense(features), targets }
}

fn ask_all<T: Real + Default>(model: &Model, theta: &[T], samples: &Samples<T>) -> (f64, Vec<T>) {
    let batch = Batch { samples, selection: Selection::All, l2_share: 1.0 };
    let (loss, gradient) = ask(model, theta, &batch);
    (loss.loss, gradient)
}

#[test]
fn linear_closed_form() {
    let model = model(RowLoss::Squared, true, 0.0, 1);
    // Residuals 2*1 + 3 - 1 = 4 and 2*(-1) + 3 - 4 = -3.
    let rows = one_feature(&[(1.0, 1.0), (-1.0, 4.0)]);
    assert_eq!(ask_all(&model, &[2.0, 3.0], &rows), ((16.0 + 9.0) / 4.0, vec![3.5, 0.5]));
    assert_eq!(model.predict(&[2.0, 3.0], &rows), [5.0, 1.0]);
    assert_eq!(model.probabilities(&[2.0, 3.0], &rows), None);
    assert_eq!(model.metrics(&[2.0, 3.0], &rows).n_correct, None);
}

fn logistic_extremes<T: Real + Default + PartialEq>() {
    let model = model(RowLoss::Logistic, false, 0.0, 1);
    let theta = [T::from_f64(1000.0)];
    for (x, y, loss, gradient) in [
        (1.0, 1.0, 0.0, 0.0),
        (1.0, 0.0, 1000.0, 1.0),
        (1.0, -1.0, 1000.0, 1.0),
        (-1.0, 1.0, 1000.0, 1.0),
        (-1.0, 0.0, 0.0, 0.0),
        (0.0, 1.0, std::f64::consts::LN_2, 0.0),
    ] {
        let got = ask_all(&model, &theta, &one_feature::<T>(&[(x, y)]));
        assert_eq!(got, (loss, vec![T::from_f64(gradient)]), "x {x}, y {y}");
    }
}

#[test]
fn logistic_neither_overflows_nor_cancels() {
    logistic_extremes::<f32>();
    logistic_extremes::<f64>();
    // log(1 + exp(-40)) is exp(-40) to 17 digits; 1 + exp(-40) alone would be 1.
    let model = model(RowLoss::Logistic, false, 0.0, 1);
    let (loss, gradient) = ask_all(&model, &[40.0], &one_feature::<f64>(&[(1.0, 1.0)]));
    assert!((loss / (-40f64).exp() - 1.0).abs() < 1e-15);
    assert!((gradient[0] / -(-40f64).exp() - 1.0).abs() < 1e-15);
}

fn softmax_extremes<T: Real + Default + PartialEq>() {
    let model = model(RowLoss::Softmax { n_classes: 3 }, false, 0.0, 1);
    let theta = [1000.0, -1000.0, 1000.0].map(T::from_f64);
    for (y, loss, gradient) in [
        (0.0, std::f64::consts::LN_2, [-0.5, 0.0, 0.5]),
        (1.0, 2000.0 + std::f64::consts::LN_2, [0.5, -1.0, 0.5]),
    ] {
        let got = ask_all(&model, &theta, &one_feature::<T>(&[(1.0, y)]));
        assert_eq!(got, (loss, gradient.map(T::from_f64).to_vec()), "class {y}");
    }
}

#[test]
fn softmax_does_not_overflow() {
    softmax_extremes::<f32>();
    softmax_extremes::<f64>();
}

#[test]
fn two_class_softmax_is_logistic_of_the_difference() {
    let plain = samples(RowLoss::Logistic);
    // With a bias, or rows of zeros would be ties, which the two settle differently.
    let logistic = model(RowLoss::Logistic, true, 0.0, D);
    let softmax = model(RowLoss::Softmax { n_classes: 2 }, true, 0.0, D);
    let pairs = Sequence(5).vector(2 * (D + 1));
    let differences: Vec<f64> = pairs.chunks(2).map(|w| w[1] - w[0]).collect();
    let (a, b) = (ask_all(&softmax, &pairs, &plain), ask_all(&logistic, &differences, &plain));
    assert!((a.0 - b.0).abs() < 1e-12);
    for (pair, g) in a.1.chunks(2).zip(b.1) {
        assert!((pair[1] - g).abs() < 1e-12 && (pair[0] + g).abs() < 1e-12);
    }
    let of_softmax = softmax.probabilities(&pairs, &plain).expect("a classifier");
    let of_logistic = logistic.probabilities(&differences, &plain).expect("a classifier");
    assert!((&of_softmax - &of_logistic).iter().all(|apart| apart.abs() < 1e-12));
    assert!(of_softmax.rows().into_iter().all(|row| (row.sum() - 1.0).abs() < 1e-12));
    let column: Vec<f64> = of_logistic.column(1).to_vec();
    assert_eq!(logistic.predict(&differences, &plain), column);
    let (a, b) = (softmax.metrics(&pairs, &plain), logistic.metrics(&differences, &plain));
    assert_eq!(a.n_correct, b.n_correct);
    assert!(a.n_correct.is_some_and(|n| n > 0 && n < N as u64));
}

#[test]
fn ties_go_to_the_lowest_class_and_one_half_to_class_1() {
    let rows = one_feature::<f64>(&[(1.0, 0.0), (1.0, 1.0), (1.0, 2.0)]);
    let softmax = model(RowLoss::Softmax { n_classes: 3 }, false, 0.0, 1);
    assert_eq!(softmax.predict(&[1.0, 1.0, 1.0], &rows), [0.0; 3]);
    assert_eq!(softmax.predict(&[0.0, 1.0, 1.0], &rows), [1.0; 3]);
    assert_eq!(softmax.metrics(&[0.0, 1.0, 1.0], &rows).n_correct, Some(1));
    let rows = one_feature::<f64>(&[(1.0, 0.0), (1.0, 1.0), (1.0, -1.0)]);
    let logistic = model(RowLoss::Logistic, false, 0.0, 1);
    assert_eq!(logistic.metrics(&[0.0], &rows).n_correct, Some(1));
    assert_eq!(logistic.predict_targets(&[0.0], &rows), [1.0; 3]);
    assert_eq!(logistic.predict_targets(&[-0.1], &rows), [0.0; 3]);
    assert_eq!(logistic.metrics(&[-1.0], &rows).n_correct, Some(2));
}

#[test]
fn a_theta_that_is_no_number_shows_in_the_loss() {
    for loss in LOSSES {
        let model = model(loss, true, 0.0, D);
        let mut theta = vec![0.0; model.dim()];
        theta[0] = f64::NAN;
        let (loss, gradient) = ask_all(&model, &theta, &samples(loss));
        assert!(loss.is_nan() && gradient[0].is_nan(), "{loss}");
    }
}

#[test]
fn sums_in_f32_do_not_lose_digits_to_their_length() {
    let model = model(RowLoss::Squared, true, 0.0, 1);
    let rows = one_feature::<f32>(&vec![(0.1, -1.0); 200_000]);
    let (loss, gradient) = ask_all(&model, &[0.0, 0.0], &rows);
    let running = (0..200_000).fold(0f32, |sum, _| sum + 0.1) / 200_000.0;
    assert!((running - 0.1).abs() > 1e-5, "one running sum would do: {running}");
    assert!((f64::from(gradient[0]) - 0.1).abs() < 1e-6, "{}", gradient[0]);
    assert_eq!((loss, gradient[1]), (0.5, 1.0));
}

#[test]
fn tables_are_weights_then_bias() {
    let shapes = |model: &Model| -> Vec<(String, Vec<u64>, bool)> {
        model.tables().iter().map(|t| (t.name.clone(), t.shape.clone(), t.penalized)).collect()
    };
    let softmax = model(RowLoss::Softmax { n_classes: 3 }, true, 0.0, 4);
    assert_eq!(
        shapes(&softmax),
        [("W".to_owned(), vec![4, 3], true), ("b".to_owned(), vec![3], false)]
    );
    let logistic = model(RowLoss::Logistic, true, 0.0, 4);
    assert_eq!(
        shapes(&logistic),
        [("w".to_owned(), vec![4], true), ("b".to_owned(), vec![1], false)]
    );
    let linear = model(RowLoss::Squared, false, 0.0, 4);
    assert_eq!(shapes(&linear), [("w".to_owned(), vec![4], true)]);
    for model in [softmax, logistic, linear] {
        assert_eq!(model.dim(), model.tables().dim());
    }
    let large = spec(RowLoss::Softmax { n_classes: 1 << 20 }, true, 0.0);
    let error = Model::new(&large, 1 << 20, 0).expect_err("2^40 elements");
    assert_eq!(error.exit, Exit::Config);
    let error = Model::new(&large, 0, 0).expect_err("no columns");
    assert_eq!(error.exit, Exit::BadData);
}

#[test]
fn targets_without_a_loss_are_refused_by_row() {
    let check = |loss, targets: &[f64]| {
        let rows: Vec<_> = targets.iter().map(|&y| (1.0, y)).collect();
        model(loss, true, 0.0, 1).check_samples(&one_feature::<f64>(&rows))
    };
    let softmax = RowLoss::Softmax { n_classes: 3 };
    for (loss, good) in [
        (RowLoss::Squared, &[-1e300, 0.5][..]),
        (RowLoss::Logistic, &[0.0, 1.0, 0.0]),
        (RowLoss::Logistic, &[1.0, -1.0]),
        (RowLoss::Logistic, &[]),
        (softmax, &[0.0, 2.0]),
    ] {
        assert!(check(loss, good).is_ok(), "{loss:?} {good:?}");
    }
    for (loss, bad, says) in [
        (RowLoss::Squared, &[0.0, f64::NAN][..], "row 2: target NaN"),
        (RowLoss::Logistic, &[0.0, 1.0, -1.0], "row 3: target -1"),
        (RowLoss::Logistic, &[2.0], "row 1: target 2, where --model logistic expects 0 or 1"),
        (softmax, &[1.0, 3.0], "row 2: target 3, where --model softmax,classes=3 expects a class"),
        (softmax, &[0.5], "row 1: target 0.5"),
        (softmax, &[-1.0], "row 1: target -1"),
        (softmax, &[f64::NAN], "row 1: target NaN"),
    ] {
        let error = check(loss, bad).expect_err(says);
        assert!(error.exit == Exit::BadData && error.message.starts_with(says), "{error}");
    }
    let error = model(softmax, true, 0.0, 2).check_samples(&one_feature::<f64>(&[(1.0, 0.0)]));
    assert!(error.expect_err("another width").message.contains("rows have 1 features"));
}

#[test]
fn the_aggregate_has_the_l2_term_once() {
    // Five workers, two of them without rows.
    let sizes = [3u64, 0, 5, 4, 0];
    let with_rows = sizes.iter().filter(|n| **n > 0).count() as u32;
    let share = |mode, aggregate| l2_share(mode, aggregate, sizes.len() as u32, with_rows);
    for aggregate in [Aggregate::WeightedMean, Aggregate::Mean, Aggregate::Sum, Aggregate::Collect]
    {
        let term = |weight: fn(u64) -> f64| -> f64 {
            let of_worker = |&n: &u64| {
                if n == 0 { 0.0 } else { weight(n) * share(Mode::Sync, aggregate) }
            };
            sizes.iter().map(of_worker).sum()
        };
        let times = match aggregate {
            Aggregate::WeightedMean => term(|n| n as f64 / 12.0),
            Aggregate::Mean => term(|_| 1.0 / 5.0),
            // The steps of a collected round add up.
            _ => term(|_| 1.0),
        };
        assert!((times - 1.0).abs() < 1e-15, "{aggregate}: {times}");
        assert_eq!(share(Mode::Async, aggregate), 1.0);
        assert_eq!(share(Mode::Ssp, aggregate), 1.0);
        assert_eq!(share(Mode::Hogwild, aggregate), 1.0);
    }
    // Of values that all have the whole term, the middle one has it once.
    for aggregate in [Aggregate::Median, Aggregate::TrimmedMean { k: 1 }] {
        assert_eq!(share(Mode::Sync, aggregate), 1.0);
        assert!(!l2_share_depends_on_shards(Mode::Sync, aggregate));
    }
    assert!(l2_share_depends_on_shards(Mode::Sync, Aggregate::Mean));
    assert!(!l2_share_depends_on_shards(Mode::Async, Aggregate::Mean));
    assert!(l2_share(Mode::Sync, Aggregate::Mean, 3, 0).is_finite());
}
