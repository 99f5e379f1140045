//! mlp and fm: scores against the definitions written out, gradients against central differences,
//! tables and their start.

use ps_common::tables::Initializer;

use super::*;

/// More than a block has.
const ROWS: usize = 300;

fn of(text: &str, bias: bool, l2: f64, n_features: usize) -> Model {
    let choice = text.parse().expect("a model");
    Model::new(&ModelSpec { choice, l2, bias }, n_features, 5).expect("valid")
}

/// Element [i, j] of the table `name`.
fn element(model: &Model, theta: &[f64], name: &str, i: usize, j: usize) -> f64 {
    let (table, keys) = model.tables().ranges().find(|(t, _)| t.name == name).expect("a table");
    let width = table.shape.get(1).map_or(1, |n| *n as usize);
    theta[keys][i * width + j]
}

/// Scores of a row by the definition, and the sums that hidden units are made of.
fn naive_mlp(model: &Model, theta: &[f64], x: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let MapKind::Mlp { hidden, activation } = &model.kind().map else { panic!("an mlp") };
    let widths: Vec<usize> =
        hidden.iter().copied().chain([model.kind().loss.n_outputs()]).collect();
    let (mut input, mut sums) = (x.to_vec(), vec![]);
    for (number, &width) in (1..).zip(&widths) {
        let mut output = vec![0.0; width];
        for (unit, out) in output.iter_mut().enumerate() {
            for (i, x) in input.iter().enumerate() {
                *out += x * element(model, theta, &format!("W{number}"), i, unit);
            }
            if model.has_bias() {
                *out += element(model, theta, &format!("b{number}"), unit, 0);
            }
        }
        if number < widths.len() {
            sums.extend_from_slice(&output);
            for a in &mut output {
                *a = match activation {
                    Activation::Relu => a.max(0.0),
                    Activation::Tanh => a.tanh(),
                };
            }
        }
        input = output;
    }
    (input, sums)
}

/// Rendle 2010, eq. 1, pair by pair.
fn naive_fm(model: &Model, theta: &[f64], x: &[f64]) -> f64 {
    let MapKind::Fm { n_factors, .. } = model.kind().map else { panic!("an fm") };
    let mut z = if model.has_bias() { element(model, theta, "w0", 0, 0) } else { 0.0 };
    for i in 0..x.len() {
        z += element(model, theta, "w", i, 0) * x[i];
        for j in i + 1..x.len() {
            let product: f64 = (0..n_factors)
                .map(|f| element(model, theta, "V", i, f) * element(model, theta, "V", j, f))
                .sum();
            z += product * x[i] * x[j];
        }
    }
    z
}

fn naive_scores(model: &Model, theta: &[f64], x: &[f64]) -> Vec<f64> {
    match model.kind().map {
        MapKind::Fm { .. } => vec![naive_fm(model, theta, x)],
        _ => naive_mlp(model, theta, x).0,
    }
}

/// Rows of `loss` at whose hidden units theta may be moved a little without a kink in between.
fn rows_off_kinks(model: &Model, theta: &[f64]) -> Samples<f64> {
    let all = samples_of(model.kind().loss, model.n_features());
    let is_off = |row: &usize| match &model.kind().map {
        MapKind::Mlp { activation: Activation::Relu, .. } => {
            let (_, sums) = naive_mlp(model, theta, &dense(&all).row(*row).to_vec());
            sums.iter().all(|sum| sum.abs() > 1e-3)
        }
        _ => true,
    };
    let kept: Vec<usize> = (0..N).filter(is_off).take(ROWS).collect();
    assert_eq!(kept.len(), ROWS, "{} has too many rows near a kink", model.kind());
    Samples {
        features: Features::Dense(dense(&all).select(ndarray::Axis(0), &kept)),
        targets: kept.iter().map(|&row| all.targets[row]).collect(),
    }
}

const MODELS: [&str; 15] = [
    "mlp,hidden=4,activation=tanh,classes=3",
    "mlp,hidden=4,activation=tanh,loss=squared",
    "mlp,hidden=1,activation=tanh,loss=logistic",
    "mlp,hidden=3x5,activation=tanh,classes=3",
    "mlp,hidden=4,classes=3",
    "mlp,hidden=4,loss=squared",
    "mlp,hidden=4,loss=logistic",
    "mlp,hidden=3x5x2,classes=2",
    "mlp,hidden=3x5,loss=squared",
    // On either side of the widths that products are cut at.
    "mlp,hidden=33x2,activation=tanh,loss=squared",
    "mlp,hidden=6x33,classes=3",
    "fm,factors=1,loss=squared",
    "fm,factors=4,loss=squared",
    "fm,factors=3,loss=logistic",
    "fm,factors=33,loss=logistic",
];

/// Calls `check` with every model, with and without biases and L2, and every form and batch.
fn for_each(mut check: impl FnMut(&Model, &[f64], &Samples<f64>, &Batch<'_, f64>)) {
    let long: Vec<u32> = (0..281u32).map(|i| (i * 389) % ROWS as u32).chain([5, 5]).collect();
    let batches = [None, Some(long), Some(vec![ROWS as u32 - 1])];
    for text in MODELS {
        for (bias, l2) in [(true, 0.7), (false, 0.0)] {
            let model = of(text, bias, l2, D);
            let theta = Sequence(11).vector(model.dim());
            let plain = rows_off_kinks(&model, &theta);
            for form in [&plain, &to_sparse(&plain)] {
                for rows in &batches {
                    let selection = selection(rows.as_ref());
                    let batch = Batch { samples: form, selection, l2_share: 1.5 };
                    check(&model, &theta, &plain, &batch);
                }
            }
        }
    }
}

#[test]
fn gradients_are_those_of_central_differences() {
    const H: f64 = 1e-5;
    for_each(|model, theta, _, batch| {
        let (_, gradient) = ask(model, theta, batch);
        let scale = gradient.iter().fold(1.0, |max: f64, g| max.max(g.abs()));
        let mut scratch = Scratch::default();
        let (mut moved, mut unused) = (theta.to_vec(), vec![0.0; model.dim()]);
        for key in 0..model.dim() {
            let mut objective = |step: f64| {
                moved[key] = theta[key] + step;
                let at = model.loss_and_gradient(&moved, batch, &mut unused, &mut scratch);
                moved[key] = theta[key];
                at.loss + batch.l2_share * at.penalty
            };
            let slope = (objective(H) - objective(-H)) / (2.0 * H);
            let apart = (slope - gradient[key]).abs() / scale;
            let what = model.kind();
            assert!(apart < 1e-6, "{what} key {key}: {slope} and {}", gradient[key]);
        }
    });
}

#[test]
fn scores_and_losses_are_those_of_the_definitions() {
    for_each(|model, theta, plain, batch| {
        let loss = model.kind().loss;
        let rows: Vec<usize> = Which::of(ROWS, batch.selection).rows().collect();
        let mut exps = vec![0.0; loss.n_outputs()];
        let mut sum = 0.0;
        for &row in &rows {
            let mut z = naive_scores(model, theta, &dense(plain).row(row).to_vec());
            sum += loss.derive(&mut z, plain.targets[row], &mut exps);
        }
        let (at, _) = ask(model, theta, batch);
        let mean = sum / rows.len() as f64;
        assert!((at.loss - mean).abs() < 1e-12 * mean.max(1.0), "{}", model.kind());
        assert_eq!(at.n_samples, rows.len() as u64);
        if loss == RowLoss::Squared && batch.selection == Selection::All {
            let predicted = model.predict(theta, batch.samples);
            for (row, got) in predicted.into_iter().enumerate() {
                let want = naive_scores(model, theta, &dense(plain).row(row).to_vec())[0];
                assert!((got - want).abs() < 1e-12 * want.abs().max(1.0), "{}", model.kind());
            }
            assert!((model.metrics(theta, batch.samples).loss - mean).abs() < 1e-12 * mean);
        }
    });
}

#[test]
fn l2_touches_weights_and_no_bias() {
    for text in ["mlp,hidden=3x2,classes=3", "fm,factors=2"] {
        let (with, without) = (of(text, true, 0.5, D), of(text, true, 0.0, D));
        let theta = Sequence(2).vector(with.dim());
        let rows = samples_of(with.kind().loss, D);
        let (_, a) = ask_all(&with, &theta, &rows);
        let (_, b) = ask_all(&without, &theta, &rows);
        let mut squares = 0.0;
        for (table, keys) in with.tables().ranges() {
            assert_eq!(table.penalized, !["b1", "b2", "b3", "w0"].contains(&&*table.name));
            for key in keys {
                let want = if table.penalized { 0.5 * theta[key] } else { 0.0 };
                assert!((a[key] - b[key] - want).abs() < 1e-12, "{text} {} {key}", table.name);
                squares += if table.penalized { theta[key] * theta[key] } else { 0.0 };
            }
        }
        assert!((with.metrics(&theta, &rows).penalty - 0.25 * squares).abs() < 1e-12);
    }
}

#[test]
fn tables_and_their_start() {
    let tables = |text, bias| -> Vec<(String, Vec<u64>, Initializer)> {
        let model = of(text, bias, 0.0, 7);
        model.tables().iter().map(|t| (t.name.clone(), t.shape.clone(), t.initializer)).collect()
    };
    let normal = |std| Initializer::Normal { std, seed: 5 };
    let uniform = |bound| Initializer::Uniform { bound, seed: 5 };
    let named = |name: &str, shape: &[u64], start| (name.to_owned(), shape.to_vec(), start);
    assert_eq!(
        tables("mlp,hidden=8x2,classes=3", true),
        [
            named("W1", &[7, 8], normal((2.0f64 / 7.0).sqrt())),
            named("b1", &[8], Initializer::Zeros),
            named("W2", &[8, 2], normal(0.5)),
            named("b2", &[2], Initializer::Zeros),
            named("W3", &[2, 3], normal(1.0)),
            named("b3", &[3], Initializer::Zeros),
        ]
    );
    assert_eq!(
        tables("mlp,hidden=5,activation=tanh,loss=squared", false),
        [named("W1", &[7, 5], uniform((6.0f64 / 12.0).sqrt())), named("W2", &[5, 1], uniform(1.0)),]
    );
    assert_eq!(
        tables("fm,factors=4,init-std=0.5", true),
        [
            named("w", &[7], Initializer::Zeros),
            named("V", &[7, 4], normal(0.5)),
            named("w0", &[1], Initializer::Zeros),
        ]
    );
    let large = "mlp,hidden=1048576x1048576".parse().expect("in range by itself");
    let large = ModelSpec { choice: large, l2: 0.0, bias: true };
    let large = large.with_classes(Some(2)).expect("counted");
    assert_eq!(Model::new(&large, 4, 0).expect_err("2^40 elements").exit, Exit::Config);
}

#[test]
fn extremes_show_and_empty_shards_are_zeros() {
    for text in MODELS {
        let model = of(text, true, 2.0, D);
        let rows = samples_of(model.kind().loss, D);
        let theta = Sequence(4).vector(model.dim());
        let none = Batch { samples: &rows, selection: Selection::Rows(&[]), l2_share: 1.0 };
        let (at, gradient) = ask(&model, &theta, &none);
        assert_eq!((at.loss, at.n_samples, gradient), (0.0, 0, vec![0.0; model.dim()]));
        let mut broken = theta.clone();
        broken[0] = f64::NAN;
        assert!(ask_all(&model, &broken, &rows).0.is_nan(), "{text}");
        // What is left in the scratch of another model and batch has no say.
        let mut scratch = Scratch::default();
        let other = of("mlp,hidden=40x7,classes=5", true, 0.0, D);
        let of_other = samples_of(other.kind().loss, D);
        let batch = Batch { samples: &of_other, selection: Selection::All, l2_share: 1.0 };
        let mut gradient = vec![0.0; other.dim()];
        other.loss_and_gradient(&vec![0.5; other.dim()], &batch, &mut gradient, &mut scratch);
        let batch = Batch { samples: &rows, selection: Selection::All, l2_share: 1.0 };
        let mut gradient = vec![f64::NAN; model.dim()];
        let at = model.loss_and_gradient(&theta, &batch, &mut gradient, &mut scratch);
        assert_eq!((at, gradient), ask(&model, &theta, &batch));
    }
}
