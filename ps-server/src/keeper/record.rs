//! A record of the journal: one update, by what it is made of (rule R14).
//!
//! `bytes of the head u32 · head, JSON · each gradient's elements, little-endian, in order`

use ps_common::Dtype;
use ps_common::job::Combine;
use serde::{Deserialize, Serialize};

use crate::core::{CallId, Counted, Order};
use crate::table::Gradient;

/// An update without its gradients.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    counted: Vec<Counted>,
    weights: Vec<f64>,
    combine: Combine,
    rate_factor: f64,
}

/// An update as it was recorded.
#[derive(Debug)]
pub(super) struct Record {
    /// Gradients by names of their own.
    pub(super) order: Order,
    /// In order of its parts.
    pub(super) gradients: Vec<Gradient>,
    /// What it counts, in the same order.
    pub(super) counted: Vec<Counted>,
}

/// What precedes the gradients of an update in its record.
pub(super) fn head(order: &Order, counted: &[Counted]) -> Vec<u8> {
    let head = Head {
        counted: counted.to_vec(),
        weights: order.parts.iter().map(|(_, weight)| *weight).collect(),
        combine: order.combine,
        rate_factor: order.rate_factor,
    };
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, &head).expect("all of it is plain data");
    let n_bytes = (bytes.len() - 4) as u32;
    bytes[..4].copy_from_slice(&n_bytes.to_le_bytes());
    bytes
}

impl Record {
    /// Reads a record of gradients of `dim` elements.
    ///
    /// # Errors
    /// In words, if it is none.
    pub(super) fn parse(payload: &[u8], dtype: Dtype, dim: usize) -> Result<Self, String> {
        let short = || "the record is too short".to_owned();
        let (n_bytes, rest) = payload.split_first_chunk().ok_or_else(short)?;
        let n_bytes = u32::from_le_bytes(*n_bytes) as usize;
        let (head, gradients) = rest.split_at_checked(n_bytes).ok_or_else(short)?;
        let Head { counted, weights, combine, rate_factor } =
            serde_json::from_slice(head).map_err(|e| format!("the record's head: {e}"))?;
        let want = weights.len() * dim * dtype.size_bytes();
        if weights.is_empty() || weights.len() != counted.len() || gradients.len() != want {
            return Err(format!(
                "the record has {} gradients in {} bytes, which should be {want}",
                counted.len(),
                gradients.len()
            ));
        }
        let parts = weights.into_iter().zip(0..).map(|(weight, i)| (CallId(i), weight)).collect();
        let order = Order { parts, combine, rate_factor, compensation: None };
        let gradients = gradients.chunks_exact(dim * dtype.size_bytes());
        let gradients: Result<_, _> =
            gradients.map(|bytes| Gradient::from_le_bytes(dtype, bytes)).collect();
        Ok(Self { order, gradients: gradients.map_err(|e| e.message)?, counted })
    }
}
