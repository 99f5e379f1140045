//! Gradients of some rows of theta: those of all other elements are 0.
//!
//! Owns their order: every row once, by table and number, however they came.

use std::borrow::Cow;

use ps_common::rows::{self, Rows};
use ps_common::{Element, Error, ErrorCode};

use super::gradient::Gradient;
use crate::numeric::add_scaled;

/// A gradient of some rows, each of them once and in order.
#[derive(Debug, Clone, PartialEq)]
pub struct SparseGradient {
    rows: Vec<Rows>,
    values: Gradient,
}

/// A gradient as it was pushed.
#[derive(Debug, Clone, PartialEq)]
pub enum Pushed {
    /// Of all elements.
    Whole(Gradient),
    /// Of some rows.
    Rows(SparseGradient),
}

impl From<Gradient> for Pushed {
    fn from(gradient: Gradient) -> Self {
        Self::Whole(gradient)
    }
}

impl From<SparseGradient> for Pushed {
    fn from(gradient: SparseGradient) -> Self {
        Self::Rows(gradient)
    }
}

impl Pushed {
    /// Its elements, for the sake of their memory.
    pub fn into_values(self) -> Gradient {
        match self {
            Self::Whole(gradient) => gradient,
            Self::Rows(gradient) => gradient.values,
        }
    }
}

impl SparseGradient {
    /// Elements of its rows.
    pub fn n_elements(&self) -> usize {
        self.values.len()
    }

    /// `values` are the elements of `rows`, one row after the other. What comes for a row that is named more
    /// than once is added up in this order.
    ///
    /// # Errors
    /// DIM_MISMATCH where there are more or fewer values, NON_FINITE where a sum is not finite.
    pub fn new(rows: Vec<Rows>, values: Gradient) -> Result<Self, Error> {
        let (want, got) = (rows::n_elements(&rows), values.len());
        if want != got {
            let what = format!("the push has {got} elements, the rows that it names have {want}");
            return Err(Error::new(ErrorCode::DimMismatch, what)
                .with("want", want)
                .with("got", got));
        }
        if rows::are_in_order(&rows) {
            return Ok(Self { rows, values });
        }
        match values {
            Gradient::F32(values) => in_order::<f32>(&rows, &values),
            Gradient::F64(values) => in_order::<f64>(&rows, &values),
        }
    }

    /// Which rows.
    pub fn rows(&self) -> &[Rows] {
        &self.rows
    }

    /// Their elements.
    pub fn values(&self) -> &Gradient {
        &self.values
    }

    /// The same gradient with its zeros, of a theta of `dim` elements.
    pub fn filled(&self, dim: usize) -> Gradient {
        match &self.values {
            Gradient::F32(values) => Gradient::F32(filled(&self.rows, values, dim).into()),
            Gradient::F64(values) => Gradient::F64(filled(&self.rows, values, dim).into()),
        }
    }
}

/// The weighted sum of gradients from left to right, as `weighted_sum` would have it with their zeros.
pub(super) fn sum_of<'a, T: Element>(
    parts: &'a [(SparseGradient, f64)],
) -> (Cow<'a, [Rows]>, Cow<'a, [T]>) {
    if let [(only, 1.0)] = parts {
        return (Cow::Borrowed(&only.rows), Cow::Borrowed(only.values.values()));
    }
    let rows = union(parts.iter().map(|(part, _)| &part.rows[..]));
    let mut sum = vec![T::ZERO; rows::n_elements(&rows)];
    for (number, (part, weight)) in parts.iter().enumerate() {
        add(&rows, &mut sum, (&part.rows, part.values.values()), T::from_f64(*weight), number == 0);
    }
    (Cow::Owned(rows), Cow::Owned(sum))
}

/// Adds `weight` times a gradient to a sum over more rows; `is_first` puts it there instead.
fn add<T: Element>(
    rows: &[Rows],
    sum: &mut [T],
    (of_part, values): (&[Rows], &[T]),
    weight: T,
    is_first: bool,
) {
    let mut of_part = of_part.iter().peekable();
    let (mut sum, mut values) = (sum, values);
    for table in rows {
        let own = of_part.next_if(|own| own.table() == table.table());
        let mut numbers = own.map_or(&[][..], Rows::numbers).iter().peekable();
        for number in table.numbers() {
            let (row, rest) = std::mem::take(&mut sum).split_at_mut(table.width());
            sum = rest;
            if numbers.next_if_eq(&number).is_none() {
                // As adding 0 does: -0 becomes 0.
                row.iter_mut().for_each(|x| *x += T::ZERO);
                continue;
            }
            let (own, rest) = values.split_at(table.width());
            values = rest;
            match is_first {
                true => row.iter_mut().zip(own).for_each(|(x, &g)| *x = weight * g),
                false => add_scaled(row, own, weight),
            }
        }
    }
}

/// All rows that one of several lists has, in order.
fn union<'a>(lists: impl Iterator<Item = &'a [Rows]>) -> Vec<Rows> {
    let mut all: Vec<&Rows> = lists.flatten().collect();
    all.sort_by_key(|rows| rows.table());
    all.chunk_by(|a, b| a.table() == b.table())
        .map(|of_table| {
            let numbers = of_table.iter().flat_map(|rows| rows.numbers());
            let mut numbers: Vec<u32> = numbers.copied().collect();
            numbers.sort_unstable();
            numbers.dedup();
            of_table[0].with(numbers)
        })
        .collect()
}

fn in_order<T: Element>(rows: &[Rows], values: &[T]) -> Result<SparseGradient, Error> {
    let names = rows.iter().flat_map(|rows| rows.numbers().iter().map(move |n| (rows, *n)));
    let mut begin = 0;
    let mut named: Vec<_> = names
        .map(|(rows, number)| {
            begin += rows.width();
            (rows, number, begin - rows.width())
        })
        .collect();
    // Stable: what comes for one row keeps its order.
    named.sort_by_key(|(rows, number, _)| (rows.table(), *number));
    let (mut sorted, mut sums) = (Vec::new(), Vec::with_capacity(values.len()));
    for same in named.chunk_by(|a, b| (a.0.table(), a.1) == (b.0.table(), b.1)) {
        let (of_table, number, begin) = same[0];
        let start = sums.len();
        sums.extend_from_slice(&values[begin..begin + of_table.width()]);
        for (_, _, begin) in &same[1..] {
            add_scaled(&mut sums[start..], &values[*begin..][..of_table.width()], T::ONE);
        }
        rows::append(&mut sorted, of_table.with(vec![number]));
    }
    let mut gradient = Gradient::empty(T::DTYPE, None);
    gradient.append(ps_common::dtype::as_le_bytes(&sums), sums.len())?;
    Ok(SparseGradient { rows: sorted, values: gradient })
}

fn filled<T: Element>(rows: &[Rows], values: &[T], dim: usize) -> Vec<T> {
    let mut all = vec![T::ZERO; dim];
    let mut rest = values;
    for (key, width) in rows.iter().flat_map(|rows| rows.keys().map(|key| (key, rows.width()))) {
        let (row, others) = rest.split_at(width);
        all[key..key + width].copy_from_slice(row);
        rest = others;
    }
    all
}
