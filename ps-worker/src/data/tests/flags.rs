//! Flags: defaults, the way back to arguments, and what does not go together.

use super::super::{BatchSize, Files, Format, Scale};
use super::*;

#[test]
fn defaults() {
    let spec = Case::new().args("").check().expect("checked");
    assert_eq!(spec.files, Files::Builtin(crate::data::Builtin::Reference));
    assert_eq!((spec.format, spec.scale, spec.batch), (Format::Auto, Scale::None, BatchSize::Full));
    assert_eq!((spec.seed, spec.take, spec.shuffle, spec.data_is_shard), (0, None, false, false));
    let by_name = Case::new().args("--data reference").check().expect("checked");
    assert_eq!(by_name, spec);
}

#[test]
fn small_batches_are_shuffled_unless_told() {
    let shuffle = |flags: &str| Case::new().args(flags).check().expect("checked").shuffle;
    assert!(shuffle("--batch 32"));
    assert!(!shuffle("--batch 32 --shuffle false"));
    assert!(!shuffle("--batch full"));
    assert!(shuffle("--batch full --shuffle true"));
}

#[test]
fn flags_survive_the_way_back_to_arguments() {
    let case = Case::new();
    for flags in [
        "",
        "--data a.csv,b.csv --target name --scale divide=255 --take 10 --batch 32 --shuffle true",
        "--data a --labels b,c --format npy --scale minmax --seed 18446744073709551615",
        "--data a --format libsvm --index-base 1 --features 126 --data-is-shard",
        "--data a --target 3 --index-base auto",
    ] {
        let args = case.args(flags);
        let again: Vec<String> = ps_common::flags::to_arguments(&args)
            .into_iter()
            .map(|argument| argument.into_string().expect("UTF-8"))
            .collect();
        assert_eq!(case.args(&again.join(" ")), args, "{again:?}");
    }
}

#[test]
fn values_that_are_no_values_are_usage_errors() {
    for flags in [
        "--batch 0",
        "--batch half",
        "--scale divide=0",
        "--scale divide=nan",
        "--scale log",
        "--format xls",
        "--index-base 2",
        "--shuffle maybe",
        "--take -1",
    ] {
        let words = std::iter::once("program").chain(flags.split(' '));
        assert!(Program::try_parse_from(words).is_err(), "{flags}");
    }
}

#[test]
fn options_that_do_not_apply_are_configuration_errors() {
    let case = Case::with("a.csv", "1,2\n");
    case.write("a.svm", "1 1:2\n");
    case.write("a.idx", idx(8, &[1, 2], &[1, 2]));
    case.write("y.idx", idx(8, &[1], &[1]));
    for (flags, named) in [
        ("--labels @y.idx", "--labels"),
        ("--target last", "--target"),
        ("--format csv", "--format"),
        ("--features 10", "--features"),
        ("--data reference --data-is-shard", "--data-is-shard"),
        ("--data @a.csv --take 0", "--take"),
        ("--data @a.svm --features 0", "--features"),
        ("--data @a.csv,", "--data"),
        ("--data @a.csv --target first --labels @y.idx", "--target"),
        ("--data @a.csv --index-base 1", "--index-base"),
        ("--data @a.csv --features 1", "--features"),
        ("--data @a.svm --target first", "--target"),
        ("--data @a.svm --labels @y.idx", "--labels"),
        ("--data @a.svm --data-is-shard", "--features N and --index-base"),
        ("--data @a.svm --data-is-shard --features 3", "--index-base"),
        ("--data @a.idx --target first", "--target"),
        ("--data @a.idx --labels @y.idx --index-base 0", "--index-base"),
        ("--data @a.idx", "--labels"),
        ("--data @a.csv --format idx", "--labels"),
        ("--data @a.csv --target 2", "--target 2"),
        ("--data @a.csv --target x", "no header"),
    ] {
        let message = case.config(flags);
        assert!(message.contains(named), "{flags}: {message}");
    }
}
