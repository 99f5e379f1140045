//! The gradient over touched rows against the rows of the whole gradient, to the last bit.

use std::collections::BTreeSet;
use std::io::Write;
use std::time::Duration;

use clap::Parser;
use ps_common::calls::{Caller, JoinAnswer};
use ps_common::job::{Aggregate, Fingerprint, JobState, Mode};
use ps_common::rows::{elements, n_elements};
use tempfile::NamedTempFile;

use super::*;
use crate::args::WorkerArgs;
use crate::learning::Problem;

const N_FEATURES: u32 = 1000;

/// Rows of up to six features out of many, some of none, in LibSVM's words.
fn data(n_rows: u32) -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("a file");
    let mut state = 7u64;
    let mut draw = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (state >> 33) % below
    };
    for row in 0..n_rows {
        let n = if row % 9 == 4 { 0 } else { draw(7) };
        // Half of them few, so that rows share some.
        let index = |i: u64, draw: &mut dyn FnMut(u64) -> u64| match i % 2 {
            0 => 1 + draw(12),
            _ => 1 + draw(u64::from(N_FEATURES)),
        };
        let features: BTreeSet<u64> = (0..n).map(|i| index(i, &mut draw)).collect();
        write!(file, "{}", draw(2)).expect("written");
        for feature in features {
            write!(file, " {feature}:{}", draw(2000) as f64 / 999.0 - 1.0).expect("written");
        }
        writeln!(file).expect("written");
    }
    file
}

fn problem(file: &NamedTempFile, arguments: &[&str]) -> Problem {
    let data = format!("--data={}", file.path().display());
    let features = format!("--features={N_FEATURES}");
    let fixed = ["ps-worker", &data, "--format=libsvm", &features];
    let args = WorkerArgs::try_parse_from(fixed.iter().chain(arguments)).expect("parses");
    Problem::survey(&args.learn).expect("good data")
}

fn learner<T: Real>(problem: &Problem, (shard, n_shards): (u32, u32)) -> Learner<T> {
    let terms = JoinAnswer {
        caller: Caller { rank: shard, incarnation: 1 },
        lease: Duration::from_secs(1),
        clock: 0,
        shard,
        n_shards,
        dim: problem.tables().dim(),
        dtype: T::DTYPE,
        mode: Mode::Sync,
        aggregate: Aggregate::WeightedMean,
        rounds: None,
        version: 0,
        state: JobState::Running,
        program: String::new(),
        fingerprint: Fingerprint::new(),
        tables: problem.tables().clone(),
        first_keys: vec![0],
    };
    problem.load_shard(&terms).expect("loads")
}

/// What of a tensor over all of theta lies in these rows, and the rest.
fn cut<T: Real>(whole: &[T], rows: &[Rows]) -> (Vec<T>, Vec<T>) {
    let keys: Vec<usize> = elements(rows).collect();
    let inside: BTreeSet<usize> = keys.iter().copied().collect();
    assert_eq!(inside.len(), keys.len(), "no row is named twice");
    let rest = (0..whole.len()).filter(|key| !inside.contains(key)).map(|key| whole[key]);
    (keys.iter().map(|&key| whole[key]).collect(), rest.collect())
}

fn bits<T: Real>(values: &[T]) -> Vec<u64> {
    values.iter().map(|x| x.to_f64().to_bits()).collect()
}

/// Compares both at all clocks of two passes; gives how many rows of features each clock touched.
fn compare<T: Real>(problem: &Problem, shard: (u32, u32), n_clocks: u64) -> Vec<usize> {
    let mut whole = learner::<T>(problem, shard);
    let mut sparse = whole.clone().sparse();
    assert!(whole.touched(0).is_none() && whole.touched_by_shard().is_none());
    let theta: Vec<T> = (0..problem.tables().dim())
        .map(|key| T::from_f64(((key * 7919) % 1009) as f64 / 1009.0 - 0.4))
        .collect();
    let mut gradient = vec![T::from_f64(f64::NAN); theta.len()];
    let mut n_touched = Vec::new();
    for clock in 0..n_clocks {
        let rows = sparse.touched(clock).expect("rows");
        let names: Vec<u32> = rows.iter().map(Rows::table).collect();
        assert!(names.into_iter().eq(0..problem.tables().iter().count() as u32));
        assert!(rows.iter().all(|rows| rows.numbers().is_sorted() && !rows.numbers().is_empty()));
        let (at, _) = cut(&theta, &rows);
        assert_eq!(at.len(), n_elements(&rows));
        let mut of_rows = vec![T::from_f64(f64::NAN); at.len()];
        let loss = sparse.compute(clock, &at, &mut of_rows);
        assert_eq!(loss, whole.compute(clock, &theta, &mut gradient));
        let (expected, rest) = cut(&gradient, &rows);
        assert_eq!(bits(&of_rows), bits(&expected), "clock {clock}");
        assert!(rest.iter().all(|&g| g == T::ZERO), "clock {clock}: not all that is touched");
        n_touched.push(rows[0].numbers().len());
        // The same again, and with another batch in between.
        sparse.touched(clock + 1);
        assert_eq!(sparse.touched(clock).expect("rows"), rows);
    }
    let (of_shard, _) = cut(&theta, &sparse.touched_by_shard().expect("rows"));
    assert_eq!(sparse.metrics(&of_shard), whole.metrics(&theta));
    assert_eq!(sparse.n_samples(), whole.n_samples());
    n_touched
}

#[test]
fn the_gradient_over_touched_rows_is_the_whole_one_to_the_last_bit() {
    // More rows than a block of products has.
    let file = data(600);
    for model in [
        "linear",
        "logistic",
        "softmax,classes=3",
        "fm,factors=3",
        "fm,factors=2,loss=logistic",
        "mlp,hidden=5x4,classes=3",
        "mlp,hidden=3,activation=tanh,loss=squared",
    ] {
        for bias in ["--bias=true", "--bias=false"] {
            let model = format!("--model={model}");
            for batch in ["--batch=full", "--batch=17", "--batch=290"] {
                let problem = problem(&file, &[&model, bias, batch]);
                problem.check_sparse().expect("sparse rows");
                let touched = compare::<f32>(&problem, (1, 2), 6);
                assert_eq!(touched, compare::<f64>(&problem, (1, 2), 6));
                let alike = touched.iter().all(|&n| n == touched[0]);
                assert_eq!(alike, batch == "--batch=full", "{touched:?}");
                let few = |&n: &usize| n > 1 && n < N_FEATURES as usize / 2;
                assert!(touched.iter().all(few), "{touched:?}");
            }
        }
    }
}

#[test]
fn a_batch_or_shard_without_features_has_the_first_one_with_a_gradient_of_zero() {
    let mut file = NamedTempFile::new().expect("a file");
    write!(file, "1\n0\n1 3:0.5 9:2\n").expect("written");
    for model in ["--model=logistic", "--model=fm,factors=2", "--model=mlp,hidden=3,classes=2"] {
        let one = problem(&file, &[model, "--bias", "--batch=1", "--shuffle=false"]);
        // A shard without features; one with two; and one without rows.
        assert_eq!(compare::<f64>(&one, (0, 2), 2), [1, 1]);
        assert_eq!(compare::<f64>(&one, (1, 2), 2), [2, 2]);
        assert_eq!(compare::<f32>(&one, (0, 1), 4), [1, 1, 2, 1]);
        assert_eq!(compare::<f64>(&one, (3, 4), 2), [1, 1]);
        let full = problem(&file, &[model, "--batch=full"]);
        assert_eq!(compare::<f64>(&full, (3, 4), 2), [1, 1]);
        let rows = learner::<f64>(&one, (3, 4)).sparse().touched(0).expect("rows");
        assert_eq!(rows[0].numbers(), [0]);
    }
}

#[test]
fn features_are_named_as_the_job_names_them() {
    let mut file = NamedTempFile::new().expect("a file");
    write!(file, "1 3:1 900:1\n0 3:1 4:2\n0 1000:1\n").expect("written");
    let problem = problem(&file, &["--batch=2", "--shuffle=false", "--model=fm,factors=2"]);
    let mut learner = learner::<f32>(&problem, (0, 1)).sparse();
    let numbers = |rows: Arc<[Rows]>| -> Vec<Vec<u32>> {
        rows.iter().map(|rows| rows.numbers().to_vec()).collect()
    };
    // LibSVM counts from 1.
    let first = vec![2, 3, 899];
    assert_eq!(numbers(learner.touched(0).expect("rows")), [first.clone(), first, vec![0]]);
    assert_eq!(numbers(learner.touched(1).expect("rows"))[1], [999]);
    assert_eq!(numbers(learner.touched_by_shard().expect("rows"))[0], [2, 3, 899, 999]);
}

#[test]
fn places_are_told_in_words_of_bits() {
    let numbers = [0u32, 63, 64, 65, 200, 200, 64];
    let occurring = Occurring::new(&numbers, 201);
    assert_eq!(occurring.all(), [0, 63, 64, 65, 200]);
    for (place, number) in (0..).zip(occurring.all()) {
        assert_eq!(occurring.n_below(number), place);
    }
    assert_eq!(Occurring::new(&[], 0).all(), [0u32; 0]);
}

#[test]
fn data_that_is_dense_is_refused() {
    let file = data(20);
    problem(&file, &["--scale=divide=2"]).check_sparse().expect("sparse rows");
    let refused = |problem: &Problem| problem.check_sparse().expect_err("dense").message;
    let scaled = refused(&problem(&file, &["--scale=minmax"]));
    assert!(scaled.contains("--sparse: ") && scaled.contains("--scale minmax"), "{scaled}");
    let args = WorkerArgs::try_parse_from(["ps-worker"]).expect("parses");
    let dense = refused(&Problem::survey(&args.learn).expect("the built-in problem"));
    assert!(dense.contains("--sparse: ") && dense.contains("the data is dense"), "{dense}");
}
