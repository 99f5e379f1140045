//! Just enough reading for the golden runs; the crate's own loaders have tests of their own.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use ndarray::Array2;
use ndarray_npy::read_npy;
use ps_worker::model::Real;
use ps_worker::samples::{Features, Samples, SparseRows};
use serde_json::Value;

fn path(inside: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests").join(inside)
}

fn text(inside: &str) -> String {
    let path = path(inside);
    let mut bytes = vec![];
    let file = File::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    if inside.ends_with(".gz") {
        GzDecoder::new(file).read_to_end(&mut bytes).unwrap();
    } else {
        { file }.read_to_end(&mut bytes).unwrap();
    }
    String::from_utf8(bytes).unwrap()
}

/// A file of `tests/golden`.
pub(crate) fn golden(name: &str) -> Value {
    serde_json::from_str(&text(&format!("golden/{name}"))).unwrap()
}

pub(crate) fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// All numbers of a list, or of a list of lists row by row.
pub(crate) fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(items) => items.iter().flat_map(numbers).collect(),
        other => vec![number(other)],
    }
}

/// An array of doubles in `tests/golden`, row-major.
pub(crate) fn npy_f64(name: &str) -> Vec<f64> {
    let array: ndarray::ArrayD<f64> = read_npy(path(&format!("golden/{name}"))).unwrap();
    array.iter().copied().collect()
}

/// The reference's rows, and the order in which it deals them.
pub(crate) fn reference() -> (Samples<f64>, Vec<usize>) {
    let order: ndarray::Array1<i64> =
        read_npy(path("golden/seed_data/shuffled_indices.npy")).unwrap();
    let features = dense(10, npy_f64("seed_data/X.npy"));
    let targets = npy_f64("seed_data/y.npy");
    (Samples { features, targets }, order.iter().map(|&i| i as usize).collect())
}

fn dense<T>(n_features: usize, values: Vec<T>) -> Features<T> {
    let shape = (values.len() / n_features, n_features);
    Features::Dense(Array2::from_shape_vec(shape, values).unwrap())
}

/// Columns to mean 0 and variance 1 (ddof 0).
fn standard(n_features: usize, values: Vec<f64>) -> Features<f64> {
    let Features::Dense(mut x) = dense(n_features, values) else { unreachable!("made dense") };
    for mut column in x.columns_mut() {
        let mean = column.mean().unwrap();
        let deviation = column.std(0.0);
        column.mapv_inplace(|x| (x - mean) / deviation);
    }
    Features::Dense(x)
}

pub(crate) fn diabetes() -> Samples<f64> {
    let parse = |name: &str| -> Vec<f64> {
        let text = text(&format!("data/diabetes/{name}"));
        text.split_whitespace().map(|field| field.parse().unwrap()).collect()
    };
    let features = standard(10, parse("diabetes_data_raw.csv.gz"));
    Samples { features, targets: parse("diabetes_target.csv.gz") }
}

pub(crate) fn iris() -> Samples<f64> {
    let (mut values, mut targets) = (vec![], vec![]);
    for line in text("data/iris/iris.csv").lines().skip(1) {
        let row: Vec<f64> = line.split(',').map(|field| field.parse().unwrap()).collect();
        values.extend(&row[..4]);
        targets.push(row[4]);
    }
    Samples { features: standard(4, values), targets }
}

/// `part` is `train` or `test`. Columns 0..125 are LibSVM's 1..126.
pub(crate) fn agaricus(part: &str) -> Samples<f64> {
    let (mut starts, mut indices, mut values, mut targets) = (vec![0], vec![], vec![], vec![]);
    for line in text(&format!("data/agaricus/agaricus.txt.{part}")).lines() {
        let mut fields = line.split_whitespace();
        targets.push(fields.next().unwrap().parse().unwrap());
        for field in fields {
            let (index, value) = field.split_once(':').unwrap();
            indices.push(index.parse::<u32>().unwrap() - 1);
            values.push(value.parse().unwrap());
        }
        starts.push(values.len());
    }
    let rows = SparseRows { n_features: 126, starts, indices, values };
    Samples { features: Features::Sparse(rows), targets }
}

/// The first 6000 training images and all test images, pixels divided by 255.
///
/// `None`, with the reason on stderr, where the files are not to be had.
pub(crate) fn fashion_mnist() -> Option<(Samples<f64>, Samples<f64>)> {
    let Some(root) = std::env::var_os("PS_DATA_DIR") else {
        eprintln!("skipped: PS_DATA_DIR is not set, so there is no fashion-mnist/ to read");
        return None;
    };
    let folder = Path::new(&root).join("fashion-mnist");
    let images = |name: &str, header: usize, take: usize| -> Option<Vec<f64>> {
        let path = folder.join(name);
        let Ok(file) = File::open(&path) else {
            eprintln!("skipped: {} is not there", path.display());
            return None;
        };
        let mut bytes = vec![0; header + take];
        GzDecoder::new(file).read_exact(&mut bytes).unwrap();
        Some(bytes[header..].iter().map(|&byte| f64::from(byte)).collect())
    };
    let part = |image_file: &str, label_file: &str, n: usize| {
        let mut pixels = images(image_file, 16, n * 784)?;
        pixels.iter_mut().for_each(|pixel| *pixel /= 255.0);
        Some(Samples { features: dense(784, pixels), targets: images(label_file, 8, n)? })
    };
    Some((
        part("train-images-part0-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", 6000)?,
        part("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", 10_000)?,
    ))
}

/// The rows numbered `rows`, in that order.
pub(crate) fn rows_of<T: Real>(samples: &Samples<T>, rows: &[usize]) -> Samples<T> {
    let features = match &samples.features {
        Features::Dense(x) => Features::Dense(x.select(ndarray::Axis(0), rows)),
        Features::Sparse(x) => {
            let mut part = SparseRows { n_features: x.n_features, ..empty() };
            for &row in rows {
                let span = x.starts[row]..x.starts[row + 1];
                part.indices.extend(&x.indices[span.clone()]);
                part.values.extend(&x.values[span]);
                part.starts.push(part.values.len());
            }
            Features::Sparse(part)
        }
    };
    Samples { features, targets: rows.iter().map(|&row| samples.targets[row]).collect() }
}

fn empty<T>() -> SparseRows<T> {
    SparseRows { n_features: 0, starts: vec![0], indices: vec![], values: vec![] }
}

pub(crate) fn to_dense(samples: &Samples<f64>) -> Samples<f64> {
    let Features::Sparse(rows) = &samples.features else { panic!("sparse rows expected") };
    let mut x = Array2::zeros((samples.len(), rows.n_features));
    for row in 0..samples.len() {
        for at in rows.starts[row]..rows.starts[row + 1] {
            x[[row, rows.indices[at] as usize]] = rows.values[at];
        }
    }
    Samples { features: Features::Dense(x), targets: samples.targets.clone() }
}

pub(crate) fn to_f32(samples: &Samples<f64>) -> Samples<f32> {
    let Features::Dense(x) = &samples.features else { panic!("dense rows expected") };
    let targets = samples.targets.iter().map(|&y| y as f32).collect();
    Samples { features: Features::Dense(x.mapv(|x| x as f32)), targets }
}
