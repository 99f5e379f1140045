//! Rows of a theta without locks: moved, and copied out.

use bytes::Bytes;
use ps_common::Element;
use ps_common::rows::{self, Rows};
use ps_common::shared::Shared;

use super::{Cell, Cells, Motion, SharedStore};
use crate::table::gradient::Gradient;
use crate::table::sparse::SparseGradient;
use crate::table::store::Snapshot;

impl SharedStore {
    /// As [`SharedStore::update`], by a gradient of some rows; no other element is looked at
    /// ([`crate::numeric::Optimizer::leaves_zeros`] says whether that is right).
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// As there.
    pub fn update_rows(&self, gradient: &SparseGradient, rate_factor: f64) -> Result<(), usize> {
        let rows = gradient.rows();
        match (&self.cells, gradient.values()) {
            (Cells::F32(cells), Gradient::F32(values)) => {
                self.apply_rows(cells, rows, values, rate_factor)
            }
            (Cells::F64(cells), Gradient::F64(values)) => {
                self.apply_rows(cells, rows, values, rate_factor)
            }
            _ => unreachable!("checked by the assembler"),
        }
    }

    /// A copy of some rows, in this order, as a theta of their own in the name of `version`.
    pub fn rows(&self, version: u64, rows: &[Rows]) -> Snapshot {
        let chunks = match &self.cells {
            Cells::F32(cells) => copies(cells, rows, self.chunk_len),
            Cells::F64(cells) => copies(cells, rows, self.chunk_len),
        };
        Snapshot::new(version, self.dtype(), rows::n_elements(rows), chunks)
    }

    fn apply_rows<C: Cell>(
        &self,
        cells: &[C],
        rows: &[Rows],
        gradient: &[C::Value],
        rate_factor: f64,
    ) -> Result<(), usize> {
        let lr = C::Value::from_f64(self.optimizer.rate(self.version()) * rate_factor);
        let motion = Motion { lr, decay: None };
        let elements = || rows::elements(rows).zip(gradient);
        let overflows =
            |(key, g): &(usize, &C::Value)| !motion.moved(cells[*key].load(), **g).is_finite();
        if let Some((key, _)) = elements().find(overflows) {
            return Err(self.first_key + key);
        }
        let (mut checked, mut lost) = (0, 0);
        for (key, &g) in elements() {
            let is_sampled = key.is_multiple_of(self.stride);
            lost += u64::from(motion.store(&cells[key], g, is_sampled));
            checked += u64::from(is_sampled);
        }
        self.count_stores(checked, lost);
        Ok(())
    }
}

fn copies<C: Cell>(cells: &[C], rows: &[Rows], chunk_len: usize) -> Vec<Bytes> {
    let values: Vec<C::Value> = rows::elements(rows).map(|key| cells[key].load()).collect();
    values.chunks(chunk_len).map(|chunk| Shared::from(chunk.to_vec()).bytes()).collect()
}
