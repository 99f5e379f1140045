//! Taking, scaling, shuffling, dealing, and data of other files than those surveyed (rule R10).

use proptest::prelude::*;
use ps_common::statistics::Statistics;

use super::super::{Scale, Scaling};
use super::*;

fn numbered(n: usize) -> Case {
    let text: String = (0..n).map(|i| format!("{i},{},{i}\n", 10 * i)).collect();
    let case = Case::with("a", text);
    let text: String = (0..n).map(|i| format!("{i} 1:{} 3:1\n", i + 1)).collect();
    case.write("svm", text);
    case
}

proptest! {
    #[test]
    fn shards_partition_the_rows(n in 1usize..40, of in 1u32..9, seed in 0u64..99, shuffle: bool, sparse: bool) {
        let case = numbered(n);
        let file = if sparse { "svm" } else { "a" };
        let flags = format!("--data @{file} --shuffle {shuffle} --seed {seed}");
        let whole = case.shard(&flags, 0, 1).expect("ok");
        let mut dealt = (Vec::new(), Vec::new());
        for index in 0..of {
            let shard = case.shard(&flags, index, of).expect("ok");
            dealt.0.extend(rows(&shard));
            dealt.1.extend(shard.targets);
        }
        prop_assert_eq!(&dealt.0, &rows(&whole));
        prop_assert_eq!(&dealt.1, &whole.targets);
        for (row, target) in dealt.0.iter().zip(&dealt.1) {
            let first = if sparse { target + 1.0 } else { *target };
            prop_assert_eq!(row[0], first);
        }
        dealt.1.sort_unstable_by(f64::total_cmp);
        prop_assert!(dealt.1.into_iter().eq((0..n).map(|i| i as f64)));
    }
}

#[test]
fn shuffling_changes_the_order_and_the_seed_matters() {
    let targets = |flags: &str| numbered(50).load(flags).expect("ok").targets;
    let ordered = targets("--data @a");
    assert!(ordered.is_sorted());
    let zero = targets("--data @a --shuffle true");
    assert!(!zero.is_sorted());
    assert_ne!(targets("--data @a --shuffle true --seed 1"), zero);
    assert_eq!(targets("--data @a --batch 5 --seed 0"), zero);
    // A shard as it is given, and test data, stay in file order.
    assert_eq!(targets("--data @a --shuffle true --data-is-shard"), ordered);
}

#[test]
fn take_comes_before_statistics_and_dealing() {
    let case = numbered(10);
    let survey = case.survey("--data @a --take 4 --scale minmax").expect("ok");
    assert_eq!(survey.n_samples, 4);
    assert_eq!(survey.targets.max, 3.0);
    let shard = case.shard("--data @a --take 4 --scale minmax", 1, 2).expect("ok");
    assert_eq!(shard.targets, [2.0, 3.0]);
    assert_eq!(rows(&shard), [[2.0 / 3.0; 2], [1.0; 2]]);
    assert_eq!(case.survey("--data @a --take 99").expect("ok").n_samples, 10);
    // What comes after the rows taken is not looked at.
    case.write("bad", "1,2\n3,4\nx,y\n");
    assert_eq!(case.load("--data @bad --take 2").expect("ok").len(), 2);
}

#[test]
fn scaling() {
    let case = Case::with("a", "1,5,-2,0\n3,5,-4,0\n");
    let load = |scale| rows(&case.load(&format!("--data @a --scale {scale}")).expect("ok"));
    assert_eq!(load("standard"), [[-1.0, 0.0, 1.0], [1.0, 0.0, -1.0]]);
    assert_eq!(load("minmax"), [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]);
    assert_eq!(load("divide=4"), [[0.25, 1.25, -0.5], [0.75, 1.25, -1.0]]);
}

#[test]
fn sparse_data_is_scaled_as_if_its_zeros_were_written() {
    let case = Case::with("svm", "1 1:2\n0 3:4\n1 1:1 2:-3\n0 2:1 5:7\n");
    case.write("csv", "1,2,0,0,0,0\n0,0,0,4,0,0\n1,1,-3,0,0,0\n0,0,1,0,0,7\n");
    for scale in ["none", "standard", "minmax", "divide=3"] {
        let sparse = case.load(&format!("--data @svm --scale {scale}")).expect("ok");
        let dense = case.load(&format!("--data @csv --target first --scale {scale}")).expect("ok");
        assert_eq!(rows(&sparse), rows(&dense), "{scale}");
        assert_eq!(sparse.targets, dense.targets);
        let stays_sparse = matches!(sparse.features, Features::Sparse(_));
        assert_eq!(stays_sparse, ["none", "divide=3"].contains(&scale), "{scale}");
    }
}

#[test]
fn other_data_gets_the_treatment_of_the_training_data() {
    let case = Case::with("train", "1,2,0\n3,4,0\n");
    case.write("test", "y,a,b\n5,5,6\n");
    case.write("wide", "1,2,3,4\n");
    let spec = case.args("--data @train --scale minmax --take 2 --batch 1").check().expect("ok");
    let preprocessing =
        Preprocessing::new(spec.scale, &survey(&spec).expect("ok"), None).expect("ok");
    let path = |name: &str| vec![case.folder.path().join(name).display().to_string()];
    let test = spec.with_files(path("test"), vec![]).expect("ok");
    let samples: Samples<f32> = load(&test, &preprocessing, Rows::All).expect("ok");
    assert_eq!(samples.targets, [6.0]);
    assert_eq!(samples.features, Features::Dense(ndarray::array![[2.0, 1.5]]));
    let wide = spec.with_files(path("wide"), vec![]).expect("ok");
    let error = load::<f32>(&wide, &preprocessing, Rows::All).expect_err("too wide");
    assert!(error.message.contains("3 features, expected 2"), "{error}");
    // LibSVM: base and number of features are those of the training data.
    case.write("train", "1 1:1 4:1\n");
    case.write("test", "1 2:9\n");
    case.write("wide", "1 5:9\n");
    let spec = case.args("--data @train").check().expect("ok");
    let preprocessing =
        Preprocessing::new(spec.scale, &survey(&spec).expect("ok"), None).expect("ok");
    let test = spec.with_files(path("test"), vec![]).expect("ok");
    let samples = load(&test, &preprocessing, Rows::All).expect("ok");
    assert_eq!(rows(&samples), [[0.0, 9.0, 0.0, 0.0]]);
    let wide = spec.with_files(path("wide"), vec![]).expect("ok");
    let error = load::<f64>(&wide, &preprocessing, Rows::All).expect_err("too wide");
    assert!(error.exit == Exit::BadData && error.message.contains("up to 4"), "{error}");
}

#[test]
fn shards_in_files_of_their_own_share_their_statistics() {
    let case = Case::with("a", "1,0\n3,0\n");
    case.write("b", "5,0\n7,0\n");
    case.write("whole", "1,0\n3,0\n5,0\n7,0\n");
    for scale in ["standard", "minmax"] {
        let scale_flag = format!("--scale {scale} --data-is-shard");
        let spec = case.args(&format!("--data @a {scale_flag}")).check().expect("ok");
        let mine = survey(&spec).expect("ok");
        let mut merged = mine.statistics.clone().expect("statistics");
        let other = case.survey(&format!("--data @b {scale_flag}")).expect("ok");
        merged.merge(&other.statistics.expect("statistics"));
        let preprocessing = Preprocessing::new(spec.scale, &mine, Some(&merged)).expect("ok");
        let samples = load(&spec, &preprocessing, Rows::of_worker(&spec, 1, 2, 2)).expect("ok");
        let whole = case.load(&format!("--data @whole --scale {scale}")).expect("ok");
        for (a, b) in rows(&samples).iter().zip(&rows(&whole)[..2]) {
            assert!((a[0] - b[0]).abs() < 1e-15, "{scale}: {a:?} {b:?}");
        }
        let wrong = Statistics::moments(3);
        let error = Preprocessing::new(Scale::Standard, &mine, Some(&wrong)).expect_err("3");
        assert!(error.exit == Exit::Config && error.message.contains("3"), "{error}");
    }
}

#[test]
fn a_shard_of_its_own_may_be_empty() {
    let case = Case::with("x", npy("<f8", "(0, 4)", &[]));
    case.write("y", npy("<f8", "(0,)", &[]));
    let message = case.bad_data("--data @x --labels @y");
    assert!(message.contains("no rows"), "{message}");
    let flags = "--data @x --labels @y --data-is-shard --scale standard";
    let samples = case.load(flags).expect("ok");
    assert_eq!((samples.len(), samples.n_features()), (0, 4));
    case.write("header", "a,b,y\n");
    let samples = case.load("--data @header --target y --data-is-shard").expect("ok");
    assert_eq!((samples.len(), samples.n_features()), (0, 2));
}

#[test]
fn values_beyond_f32_are_refused_only_for_f32() {
    let case = Case::with("a", "1,2\n1e300,2\n");
    let spec = case.args("--data @a").check().expect("ok");
    let preprocessing =
        Preprocessing::new(spec.scale, &survey(&spec).expect("ok"), None).expect("ok");
    assert_eq!(load::<f64>(&spec, &preprocessing, Rows::All).expect("ok").len(), 2);
    let error = load::<f32>(&spec, &preprocessing, Rows::All).expect_err("too large");
    assert!(error.exit == Exit::BadData && error.message.contains("a:2: a value"), "{error}");
}

#[test]
fn data_that_shrinks_between_the_passes_is_noticed() {
    let case = numbered(10);
    let spec = case.args("--data @a").check().expect("ok");
    let found = survey(&spec).expect("ok");
    let preprocessing = Preprocessing::new(spec.scale, &found, None).expect("ok");
    case.write("a", "1,2,3\n");
    let rows = Rows::of_worker(&spec, 0, 2, found.n_samples);
    let error = load::<f64>(&spec, &preprocessing, rows).expect_err("shrunk");
    assert!(error.exit == Exit::BadData && error.message.contains("changed"), "{error}");
}

#[test]
fn the_treatment_is_plain_data() {
    let case = Case::with("a", "1,5,-2,0\n3,5,-4.5,0\n");
    for scale in ["none", "divide=255", "standard", "minmax"] {
        let spec = case.args(&format!("--data @a --scale {scale}")).check().expect("ok");
        let survey = survey(&spec).expect("ok");
        let preprocessing = Preprocessing::new(spec.scale, &survey, None).expect("ok");
        let json = serde_json::to_string(&preprocessing).expect("JSON");
        let back: Preprocessing = serde_json::from_str(&json).expect("read back");
        assert_eq!(back, preprocessing);
    }
    let json = r#"{"n_features":1,"index_base":0,"scaling":{"kind":"divide","divisor":255.0}}"#;
    let read: Preprocessing = serde_json::from_str(json).expect("read");
    assert_eq!(read.scaling, Scaling::Divide { divisor: 255.0 });
}
