//! The second pass: keeps one worker's rows, scaled, in theta's dtype.
//!
//! Memory is that of the shard, plus 4 bytes for every row of the data set while shuffled rows are
//! dealt.

use ndarray::Array2;
use ps_common::Element;
use ps_common::exit::{Exit, ExitError};

use crate::samples::{Features, Samples, SparseRows};

use super::dealing::{Placement, Rows};
use super::preprocessing::Preprocessing;
use super::spec::DataSpec;
use super::stream::{Known, Row, Stream};

/// Reads `rows` of a data set and scales them; also for other data than the one surveyed, such as
/// test data, with the treatment of the training data.
///
/// Rows of a shuffled shard come in the order of the permutation. LibSVM rows stay sparse unless
/// `--scale standard` or `minmax` fills in their zeros.
///
/// # Errors
/// Bad data (file and place): what the survey would find, another number of features than
/// `preprocessing` says, a value beyond the range of `T`, or files that shrank since the survey.
pub fn load<T: Element>(
    spec: &DataSpec,
    preprocessing: &Preprocessing,
    rows: Rows,
) -> Result<Samples<T>, ExitError> {
    let features = Some((preprocessing.n_features, preprocessing.index_base));
    let mut stream = Stream::open(spec, Known { features })?;
    let mut placement = Placement::new(spec, rows)?;
    let n_expected = placement.n_rows();
    let sparse = stream.is_sparse() && preprocessing.keeps_zeros();
    let mut kept = Kept::new(preprocessing, sparse, n_expected.unwrap_or(0) as usize);
    let mut row = Row::default();
    while n_expected != Some(kept.n_rows) && stream.next(&mut row)? {
        let Some(place) = placement.place(stream.n_rows() - 1) else { continue };
        if kept.n_rows == u64::from(u32::MAX) {
            return Err(ExitError::config(format!(
                "--data: more than {} rows for one worker: use more workers",
                u32::MAX
            )));
        }
        if !kept.add(&mut row, place as usize) {
            return Err(ExitError::new(
                Exit::BadData,
                format!(
                    "{}: a value is beyond the range of {} after scaling: use --dtype f64 or \
                     --scale",
                    stream.place(),
                    T::DTYPE
                ),
            ));
        }
    }
    if let Some(expected) = n_expected.filter(|&n| n != kept.n_rows) {
        return Err(ExitError::new(
            Exit::BadData,
            format!(
                "--data changed while it was read: {expected} rows belong to this shard, {} are \
                 left after row {}",
                kept.n_rows,
                stream.n_rows()
            ),
        ));
    }
    Ok(kept.into_samples())
}

/// The rows kept so far.
struct Kept<'a, T> {
    preprocessing: &'a Preprocessing,
    n_rows: u64,
    targets: Vec<T>,
    /// By place; of sparse rows in file order.
    values: Vec<T>,
    sparse: Option<Sparse>,
    whole: Vec<f64>,
}

/// Of sparse rows, in file order.
struct Sparse {
    starts: Vec<usize>,
    indices: Vec<u32>,
    /// Place of each row.
    places: Vec<usize>,
}

impl<'a, T: Element> Kept<'a, T> {
    fn new(preprocessing: &'a Preprocessing, sparse: bool, n_rows: usize) -> Self {
        let n_values = if sparse { 0 } else { n_rows * preprocessing.n_features };
        Self {
            preprocessing,
            n_rows: 0,
            targets: Vec::with_capacity(n_rows),
            values: Vec::with_capacity(n_values),
            sparse: sparse.then(|| Sparse {
                starts: vec![0],
                indices: Vec::new(),
                places: Vec::new(),
            }),
            whole: Vec::new(),
        }
    }

    /// Whether all values fit `T`.
    fn add(&mut self, row: &mut Row, place: usize) -> bool {
        let preprocessing = self.preprocessing;
        self.n_rows += 1;
        if self.targets.len() <= place {
            self.targets.resize(place + 1, T::ZERO);
        }
        self.targets[place] = T::from_f64(row.target);
        for index in &mut row.indices {
            *index -= preprocessing.index_base;
        }
        let added = if let Some(sparse) = &mut self.sparse {
            let start = self.values.len();
            let scaled = row.values.iter().map(|&x| T::from_f64(preprocessing.scale_entry(x)));
            self.values.extend(scaled);
            sparse.indices.extend_from_slice(&row.indices);
            sparse.starts.push(self.values.len());
            sparse.places.push(place);
            &self.values[start..]
        } else {
            let n = preprocessing.n_features;
            let whole = row.to_dense(n, &mut self.whole);
            if self.values.len() < (place + 1) * n {
                self.values.resize((place + 1) * n, T::ZERO);
            }
            let scaled = &mut self.values[place * n..(place + 1) * n];
            preprocessing.scale(whole, scaled);
            scaled
        };
        added.iter().all(|value| value.is_finite()) && self.targets[place].is_finite()
    }

    fn into_samples(self) -> Samples<T> {
        let n_features = self.preprocessing.n_features;
        let features = match self.sparse {
            Some(sparse) => Features::Sparse(sparse.into_rows(self.values, n_features)),
            None => Features::Dense(
                Array2::from_shape_vec((self.targets.len(), n_features), self.values)
                    .expect("one value a row and feature"),
            ),
        };
        Samples { features, targets: self.targets }
    }
}

impl Sparse {
    /// The rows in the order of their places.
    fn into_rows<T: Element>(self, values: Vec<T>, n_features: usize) -> SparseRows<T> {
        let Self { starts, indices, places } = self;
        if places.is_sorted() {
            return SparseRows { n_features, starts, indices, values };
        }
        let mut row_at = vec![0; places.len()];
        for (row, place) in places.into_iter().enumerate() {
            row_at[place] = row;
        }
        let mut ordered = SparseRows {
            n_features,
            starts: Vec::with_capacity(starts.len()),
            indices: Vec::with_capacity(indices.len()),
            values: Vec::with_capacity(values.len()),
        };
        ordered.starts.push(0);
        for row in row_at {
            let range = starts[row]..starts[row + 1];
            ordered.indices.extend_from_slice(&indices[range.clone()]);
            ordered.values.extend_from_slice(&values[range]);
            ordered.starts.push(ordered.values.len());
        }
        ordered
    }
}
