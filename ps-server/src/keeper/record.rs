//! A record of the journal: one update, by what it is made of (rule R14).
//!
//! `bytes of the head u32 · head, JSON · each gradient, in order`
//!
//! A gradient is its elements, little-endian; one of rows has their names before its elements, in as many bytes as
//! the head says.

use ps_common::Dtype;
use ps_common::job::Combine;
use ps_common::rows;
use ps_common::tables::Tables;
use serde::{Deserialize, Serialize};

use crate::applier::Parts;
use crate::core::{CallId, Counted, Order};
use crate::table::{Gradient, Pushed, SparseGradient};

/// An update without its gradients.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    counted: Vec<Counted>,
    weights: Vec<f64>,
    combine: Combine,
    rate_factor: f64,
    /// Bytes of each gradient's rows, where they are of rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rows_bytes: Option<Vec<u64>>,
}

/// An update as it was recorded.
#[derive(Debug)]
pub(super) struct Record {
    /// Gradients by names of their own.
    pub(super) order: Order,
    /// In order of its parts.
    pub(super) gradients: Vec<Pushed>,
    /// What it counts, in the same order.
    pub(super) counted: Vec<Counted>,
}

/// Gives `write` the bytes of a record, in pieces.
pub(super) fn with_bytes<R>(
    order: &Order,
    counted: &[Counted],
    gradients: Parts<'_>,
    write: impl FnOnce(&[&[u8]]) -> R,
) -> R {
    let head = |rows_bytes| Head {
        counted: counted.to_vec(),
        weights: order.parts.iter().map(|(_, weight)| *weight).collect(),
        combine: order.combine,
        rate_factor: order.rate_factor,
        rows_bytes,
    };
    match gradients {
        Parts::Whole(gradients) => {
            let head = head(None).to_bytes();
            let gradients = gradients.iter().map(|(gradient, _)| gradient.as_le_bytes());
            write(&std::iter::once(&head[..]).chain(gradients).collect::<Vec<_>>())
        }
        Parts::Rows(gradients) => {
            let rows: Vec<_> =
                gradients.iter().map(|(part, _)| rows::to_bytes(part.rows())).collect();
            let head = head(Some(rows.iter().map(|rows| rows.len() as u64).collect())).to_bytes();
            let values = gradients.iter().map(|(part, _)| part.values().as_le_bytes());
            let gradients = rows.iter().zip(values).flat_map(|(rows, values)| [&rows[..], values]);
            write(&std::iter::once(&head[..]).chain(gradients).collect::<Vec<_>>())
        }
    }
}

impl Head {
    /// With their number before them.
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; 4];
        serde_json::to_writer(&mut bytes, self).expect("all of it is plain data");
        let n_bytes = (bytes.len() - 4) as u32;
        bytes[..4].copy_from_slice(&n_bytes.to_le_bytes());
        bytes
    }
}

impl Record {
    /// Reads a record of gradients of a theta of `tables`.
    ///
    /// # Errors
    /// In words, if it is none.
    pub(super) fn parse(payload: &[u8], dtype: Dtype, tables: &Tables) -> Result<Self, String> {
        let short = || "the record is too short".to_owned();
        let (n_bytes, rest) = payload.split_first_chunk().ok_or_else(short)?;
        let n_bytes = u32::from_le_bytes(*n_bytes) as usize;
        let (head, mut rest) = rest.split_at_checked(n_bytes).ok_or_else(short)?;
        let Head { counted, weights, combine, rate_factor, rows_bytes } =
            serde_json::from_slice(head).map_err(|e| format!("the record's head: {e}"))?;
        let n_gradients = weights.len();
        let of_rows = rows_bytes.as_ref().map_or(n_gradients, Vec::len);
        if n_gradients == 0 || n_gradients != counted.len() || n_gradients != of_rows {
            return Err(format!(
                "the record has {n_gradients} gradients, {} clocks and {of_rows} lists of rows",
                counted.len()
            ));
        }
        let mut gradients = Vec::with_capacity(n_gradients);
        for i in 0..n_gradients {
            let mut take = |n_bytes: usize| {
                let (own, others) = rest.split_at_checked(n_bytes).ok_or_else(|| {
                    format!("gradient {i} should be {n_bytes} bytes, {} are left", rest.len())
                })?;
                rest = others;
                Ok::<_, String>(own)
            };
            gradients.push(match &rows_bytes {
                None => Pushed::from(values(take(tables.dim() * dtype.size_bytes())?, dtype)?),
                Some(rows_bytes) => {
                    let rows = take(usize::try_from(rows_bytes[i]).map_err(|_| short())?)?;
                    let rows = rows::from_bytes(tables, rows).map_err(|e| e.message)?;
                    let bytes = take(rows::n_elements(&rows) * dtype.size_bytes())?;
                    let sparse = SparseGradient::new(rows, values(bytes, dtype)?);
                    Pushed::from(sparse.map_err(|e| e.message)?)
                }
            });
        }
        if !rest.is_empty() {
            return Err(format!("{} bytes follow the record's last gradient", rest.len()));
        }
        let parts = weights.into_iter().zip(0..).map(|(weight, i)| (CallId(i), weight)).collect();
        let order = Order { parts, combine, rate_factor, compensation: None };
        Ok(Self { order, gradients, counted })
    }
}

fn values(bytes: &[u8], dtype: Dtype) -> Result<Gradient, String> {
    Gradient::from_le_bytes(dtype, bytes).map_err(|e| e.message)
}
