//! Well-formed files of every format.

use proptest::prelude::*;

use super::*;

const ROWS: [[f64; 2]; 3] = [[1.5, -2.0], [0.0, 3.0], [4.0, 5e-3]];
const TARGETS: [f64; 3] = [7.0, 8.0, 9.0];

#[track_caller]
fn check(case: &Case, flags: &str) {
    let samples = case.load(flags).expect(flags);
    assert_eq!(rows(&samples), ROWS, "{flags}");
    assert_eq!(samples.targets, TARGETS, "{flags}");
}

#[test]
fn csv_in_all_its_dialects() {
    for (text, flags) in [
        ("1.5,-2,7\n0,3,8\n4,5e-3,9\n", ""),
        ("1.5,-2,7\n0,3,8\n4,5e-3,9", ""),
        ("1.5,-2,7\r\n\r\n0,3,8\r\n4,5e-3,9\r\n\r\n  \n", ""),
        ("\u{feff}a,b,y\n1.5,-2,7\n0,3,8\n4,5e-3,9\n", "--target y"),
        ("y;b;a\n7;1.5;-2\n8;0;3\n9;4;.005\n", "--target first"),
        ("y\tb\ta\n7\t1.5\t-2\n8\t0\t3\n9\t4\t5E-3\n", "--target 0"),
        ("1.5   -2  7 \n  0 3 8\n4 \t 0.005 9\n", "--target last"),
        ("\"a, b\",\"the \"\"y\"\"\",c\n\"1.5\", 7 ,-2\n0,\"8\",3\n4,9,5e-3\n", "--target 1"),
        ("\"a\nb\",y,c\n1.5,7,-2\n0,8,3\n4,9,5e-3\n", "--target y"),
        ("3,2,one,two,three\n1.5,-2,7\n0,3,8\n4,5e-3,9\n", ""),
        ("# a b,c\n1.5,-2,7\n0,3,8\n4,5e-3,9\n", "--format csv"),
    ] {
        let case = Case::with("a.csv", text);
        case.write("a.csv.gz", gzip(text));
        check(&case, &format!("--data @a.csv {flags}"));
        check(&case, &format!("--data @a.csv.gz {flags}"));
    }
}

#[test]
fn libsvm() {
    for text in [
        "7 1:1.5 2:-2\n8 2:3\n9 1:4 2:5e-3\n",
        "# made by hand\n+7 qid:3 0:1.5 1:-2 # a row\r\n\n8 qid:4 0:0 1:3\n9 0:4 1:0.005",
    ] {
        let case = Case::with("a.svm", text);
        case.write("a.gz", gzip(text));
        check(&case, "--data @a.svm");
        check(&case, "--data @a.gz");
    }
    let case = Case::with("a.svm", "-1 1:1.5\n+1 2:3\n");
    let survey = case.survey("--data @a.svm").expect("surveyed");
    assert!(survey.is_sparse && survey.targets.are_signs);
    assert_eq!((survey.index_base, survey.n_features), (1, 2));
    let survey = case.survey("--data @a.svm --index-base 0 --features 5").expect("surveyed");
    assert_eq!((survey.index_base, survey.n_features), (0, 5));
    // The label alone is a row of zeros.
    let case = Case::with("a.svm", "1 3:1\n0\n");
    assert_eq!(rows(&case.load("--data @a.svm").expect("ok")), [[0.0, 0.0, 1.0], [0.0; 3]]);
}

#[test]
fn idx_of_every_type() {
    let expected = [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 100.0]];
    let numbers = [1u8, 2, 3, 4, 5, 6, 7, 100];
    macro_rules! body {
        ($type:ty) => {
            numbers.iter().flat_map(|&n| <$type>::from(n).to_be_bytes()).collect::<Vec<u8>>()
        };
    }
    let case = Case::with("y", idx(8, &[2], &[3, 255]));
    for (kind, body) in [
        (0x08, numbers.to_vec()),
        (0x09, numbers.to_vec()),
        (0x0b, body!(i16)),
        (0x0c, body!(i32)),
        (0x0d, body!(f32)),
        (0x0e, body!(f64)),
    ] {
        case.write("x", idx(kind, &[2, 2, 2], &body));
        case.write("x.gz", gzip(idx(kind, &[2, 4], &body)));
        for data in ["x", "x.gz"] {
            let samples = case.load(&format!("--data @{data} --labels @y")).expect("ok");
            assert_eq!(rows(&samples), expected, "{kind:#x}");
            assert_eq!(samples.targets, [3.0, 255.0]);
        }
    }
    case.write("x", idx(0x09, &[2, 1], &[255, 1]));
    assert_eq!(rows(&case.load("--data @x --labels @y").expect("ok")), [[-1.0], [1.0]]);
}

#[test]
fn npy_of_many_types() {
    let case = Case::with("y.csv", "7\n8\n9\n");
    let y: Vec<u8> = TARGETS.iter().flat_map(|v| (*v as i64).to_le_bytes()).collect();
    case.write("y.npy", npy("<i8", "(3, 1)", &y));
    let x64: Vec<u8> = ROWS.as_flattened().iter().flat_map(|v| v.to_le_bytes()).collect();
    let x64_big: Vec<u8> = ROWS.as_flattened().iter().flat_map(|v| v.to_be_bytes()).collect();
    for (name, bytes) in [("<f8", &x64), (">f8", &x64_big)] {
        case.write("x", npy(name, "(3, 2)", bytes));
        case.write("x.gz", gzip(npy(name, "(3, 2, 1)", bytes)));
        for flags in ["--data @x --labels @y.npy", "--data @x.gz --labels @y.csv"] {
            check(&case, flags);
        }
    }
    for (descr, body) in [
        ("<f4", [1f32, 2.0, 3.0].iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()),
        ("<i4", [1i32, 2, 3].iter().flat_map(|v| v.to_le_bytes()).collect()),
        ("<u2", [1u16, 2, 3].iter().flat_map(|v| v.to_le_bytes()).collect()),
        ("|u1", vec![1, 2, 3]),
    ] {
        case.write("x", npy(descr, "(3,)", &body));
        let samples = case.load("--data @x --labels @y.npy").expect("ok");
        assert_eq!(rows(&samples), [[1.0], [2.0], [3.0]], "{descr}");
    }
}

#[test]
fn several_files_are_one_data_set() {
    let case = Case::with("a.csv", "a,y\n1,10\n2,20\n");
    case.write("b.csv", gzip("3;30\n"));
    case.write("c.csv", "x,y\n4,40\n5,50\n");
    let samples = case.load("--data @a.csv,@b.csv,@c.csv").expect("ok");
    assert_eq!(rows(&samples), [[1.0], [2.0], [3.0], [4.0], [5.0]]);
    assert_eq!(samples.targets, [10.0, 20.0, 30.0, 40.0, 50.0]);
    // A file may have no rows, as long as the whole has some.
    case.write("empty.csv", "");
    assert_eq!(case.load("--data @empty.csv,@a.csv,@empty.csv").expect("ok").targets, [10.0, 20.0]);
    // Labels are cut into files elsewhere than the data.
    case.write("y1", "7\n");
    case.write("y2", "target\n8\n9\n1\n2\n");
    let samples = case.load("--data @a.csv,@b.csv,@c.csv --labels @y1,@y2").expect("ok");
    assert_eq!(samples.n_features(), 2);
    assert_eq!(samples.targets, [7.0, 8.0, 9.0, 1.0, 2.0]);
}

fn finite() -> impl Strategy<Value = f64> {
    any::<f64>().prop_filter("finite", |x| x.is_finite())
}

fn table() -> impl Strategy<Value = Vec<Vec<f64>>> {
    (2usize..6).prop_flat_map(|width| {
        proptest::collection::vec(proptest::collection::vec(finite(), width), 1..12)
    })
}

proptest! {
    #[test]
    fn csv_reads_back_what_was_written(
        table in table(),
        delimiter in proptest::sample::select(vec![",", ";", "\t", " ", "  "]),
        end in proptest::sample::select(vec!["\n", "\r\n"]),
        header: bool,
    ) {
        let line = |row: &[f64]| {
            row.iter().map(f64::to_string).collect::<Vec<_>>().join(delimiter) + end
        };
        let names: Vec<_> = (0..table[0].len()).map(|i| format!("c{i}")).collect();
        let mut text = if header { names.join(delimiter) + end } else { String::new() };
        text.extend(table.iter().map(|row| line(row)));
        let samples = Case::with("a", text).load("--data @a").expect("ok");
        let (x, y): (Vec<_>, Vec<_>) =
            table.iter().map(|row| (row[..row.len() - 1].to_vec(), row[row.len() - 1])).unzip();
        prop_assert_eq!(rows(&samples), x);
        prop_assert_eq!(samples.targets, y);
    }

    #[test]
    fn libsvm_reads_back_what_was_written(table in table(), base in 0usize..2) {
        let mut text = String::new();
        for row in &table {
            text.push_str(&row[0].to_string());
            for (i, x) in row[1..].iter().enumerate().filter(|(_, x)| **x > 0.0) {
                text.push_str(&format!(" {}:{x}", i + base));
            }
            text.push('\n');
        }
        let flags = format!(
            "--data @a --format libsvm --index-base {base} --features {}", table[0].len() - 1);
        let samples = Case::with("a", text).load(&flags).expect("ok");
        let x: Vec<Vec<f64>> =
            table.iter().map(|row| row[1..].iter().map(|x| x.max(0.0)).collect()).collect();
        prop_assert_eq!(rows(&samples), x);
        prop_assert_eq!(samples.targets, table.iter().map(|row| row[0]).collect::<Vec<_>>());
    }
}
