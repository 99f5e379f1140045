//! The tables of a job and where their elements lie in theta.
//!
//! theta is the concatenation of the tables in declared order, each row-major (rule R11); a *key*
//! is an index into it. Owns names, shapes and offsets; holds no values.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// How a table starts. A drawn element depends on the seed and on its key in theta (rule R11), so
/// neither on the number of servers nor on chunks, and no two tables share their draws.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum Initializer {
    /// All elements 0.
    Zeros,
    /// Each element uniform over \[-bound, bound).
    Uniform {
        /// From 0 to [`Initializer::SCALE_MAX`].
        bound: f64,
        /// Of the draws.
        seed: u64,
    },
    /// Each element normal with mean 0.
    Normal {
        /// Standard deviation, from 0 to [`Initializer::SCALE_MAX`].
        std: f64,
        /// Of the draws.
        seed: u64,
    },
}

impl Initializer {
    /// Largest bound or standard deviation: whatever is drawn is finite in either dtype.
    pub const SCALE_MAX: f64 = 1e30;

    /// Bound or standard deviation.
    pub fn scale(self) -> f64 {
        match self {
            Self::Zeros => 0.0,
            Self::Uniform { bound: scale, .. } | Self::Normal { std: scale, .. } => scale,
        }
    }
}

/// One named tensor of theta.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// Unique within the job.
    pub name: String,
    /// Row-major shape; the product is the number of elements.
    pub shape: Vec<u64>,
    /// How it starts.
    pub initializer: Initializer,
    /// Whether the L2 term applies (rule R11).
    pub penalized: bool,
}

impl Table {
    /// A table that starts at zero.
    pub fn zeros(name: &str, shape: &[u64], penalized: bool) -> Self {
        Self::new(name, shape, Initializer::Zeros, penalized)
    }

    /// A table that starts as `initializer` says.
    pub fn new(name: &str, shape: &[u64], initializer: Initializer, penalized: bool) -> Self {
        Self { name: name.to_owned(), shape: shape.to_vec(), initializer, penalized }
    }

    /// Number of elements, or `None` where the product overflows.
    pub fn n_elements(&self) -> Option<u64> {
        self.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d))
    }

    /// Number of rows: values of its first index, 1 without any.
    pub fn n_rows(&self) -> u64 {
        self.shape.first().copied().unwrap_or(1)
    }
}

/// Why a list of tables cannot be theta.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TablesError {
    /// There is nothing to train.
    #[error("the job declares no tables")]
    None,
    /// More tables than a job may have.
    #[error("{got} tables are declared, at most {max} are possible")]
    TooMany {
        /// Declared.
        got: usize,
        /// Permitted.
        max: usize,
    },
    /// A name that is empty, too long or used twice.
    #[error("table name `{0}` is empty, longer than 255 bytes or used twice")]
    Name(String),
    /// A shape whose product is 0 or too large.
    #[error("table `{name}` of shape {shape:?} is empty or larger than {max} elements in all")]
    Size {
        /// Of the table.
        name: String,
        /// As declared.
        shape: Vec<u64>,
        /// Limit of theta.
        max: u64,
    },
    /// An initialiser whose draws would not be finite.
    #[error("table `{name}`: its bound or standard deviation is {scale}, not from 0 to {max:e}")]
    Initializer {
        /// Of the table.
        name: String,
        /// As declared.
        scale: f64,
        /// [`Initializer::SCALE_MAX`].
        max: f64,
    },
}

/// A checked list of tables: at least one, names unique, sizes and initialisers sane.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Tables(Vec<Table>);

impl Tables {
    /// Elements that theta may have: 2^36, a quarter of a terabyte of f32.
    pub const DIM_MAX: u64 = 1 << 36;
    /// Tables that a job may have.
    pub const COUNT_MAX: usize = 1024;

    /// Checks names, sizes and initialisers.
    pub fn new(tables: Vec<Table>) -> Result<Self, TablesError> {
        if tables.is_empty() {
            return Err(TablesError::None);
        }
        if tables.len() > Self::COUNT_MAX {
            return Err(TablesError::TooMany { got: tables.len(), max: Self::COUNT_MAX });
        }
        let mut dim = 0u64;
        let mut names = std::collections::BTreeSet::new();
        for table in &tables {
            if table.name.is_empty() || table.name.len() > 255 || !names.insert(&table.name) {
                return Err(TablesError::Name(table.name.clone()));
            }
            let scale = table.initializer.scale();
            if !(0.0..=Initializer::SCALE_MAX).contains(&scale) {
                let (name, max) = (table.name.clone(), Initializer::SCALE_MAX);
                return Err(TablesError::Initializer { name, scale, max });
            }
            dim = match table.n_elements() {
                Some(len) if len > 0 && len <= Self::DIM_MAX => dim + len,
                _ => u64::MAX,
            };
            if dim > Self::DIM_MAX {
                return Err(TablesError::Size {
                    name: table.name.clone(),
                    shape: table.shape.clone(),
                    max: Self::DIM_MAX,
                });
            }
        }
        Ok(Self(tables))
    }

    /// The tables in declared order.
    pub fn iter(&self) -> impl Iterator<Item = &Table> {
        self.0.iter()
    }

    /// Elements of theta.
    pub fn dim(&self) -> usize {
        self.ranges().last().map_or(0, |(_, keys)| keys.end)
    }

    /// Each table with its interval of keys.
    pub fn ranges(&self) -> impl Iterator<Item = (&Table, Range<usize>)> {
        self.0.iter().scan(0usize, |start, table| {
            let len = table.n_elements().expect("checked by Tables::new") as usize;
            let keys = *start..*start + len;
            *start = keys.end;
            Some((table, keys))
        })
    }
}

impl<'de> Deserialize<'de> for Tables {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(Vec::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_follow_the_declared_order() {
        let tables =
            Tables::new(vec![Table::zeros("W", &[3, 2], true), Table::zeros("b", &[2], false)])
                .expect("valid");
        let ranges: Vec<_> = tables.ranges().map(|(t, k)| (t.name.as_str(), k)).collect();
        assert_eq!(ranges, [("W", 0..6), ("b", 6..8)]);
        assert_eq!(tables.dim(), 8);
    }

    #[test]
    fn nonsense_is_refused() {
        let zeros = |name: &str, shape: &[u64]| Table::zeros(name, shape, true);
        assert_eq!(Tables::new(vec![]), Err(TablesError::None));
        assert!(matches!(Tables::new(vec![zeros("", &[1])]), Err(TablesError::Name(_))));
        assert!(matches!(
            Tables::new(vec![zeros("a", &[1]), zeros("a", &[1])]),
            Err(TablesError::Name(_))
        ));
        for shape in [&[0u64][..], &[1 << 40], &[1 << 33, 1 << 33]] {
            assert!(matches!(Tables::new(vec![zeros("a", shape)]), Err(TablesError::Size { .. })));
        }
    }

    #[test]
    fn an_initializer_that_could_overflow_is_refused() {
        let of = |initializer| Tables::new(vec![Table::new("v", &[2], initializer, true)]);
        let scales = [-1e-9, f64::NAN, f64::INFINITY, 2.0 * Initializer::SCALE_MAX];
        for scale in scales {
            for bad in [
                Initializer::Uniform { bound: scale, seed: 1 },
                Initializer::Normal { std: scale, seed: 1 },
            ] {
                assert!(matches!(of(bad), Err(TablesError::Initializer { .. })), "{bad:?}");
            }
        }
        for good in [0.0, 1e-300, Initializer::SCALE_MAX] {
            assert!(of(Initializer::Normal { std: good, seed: u64::MAX }).is_ok());
        }
    }
}
