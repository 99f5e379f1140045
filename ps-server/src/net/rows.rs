//! A push of some rows on its way in: their names, then their elements; and the rows that its answer brings.

use bytes::Buf;
use ps_common::codec::Encoding;
use ps_common::rows::{self, Rows};
use ps_common::tables::Tables;
use ps_common::wire::frames::Pieces;
use ps_common::wire::parameters::encoding_from;
use ps_common::wire::pb;
use ps_common::{Dtype, Error, ErrorCode};

use super::assemble::{bad_dtype, check_key};
use crate::table::{Gradient, SparseGradient};

/// The rows that a push has named so far.
#[derive(Debug)]
pub(super) struct RowNames<'a> {
    tables: &'a Tables,
    brought: Vec<Rows>,
    asked: Vec<Rows>,
}

impl<'a> RowNames<'a> {
    /// None yet.
    pub(super) fn new(tables: &'a Tables) -> Self {
        Self { tables, brought: Vec::new(), asked: Vec::new() }
    }

    /// Takes in a message; elements go into `gradient`.
    ///
    /// # Errors
    /// The refusal of the push.
    pub(super) fn take(
        &mut self,
        fields: &pb::PushRequest,
        data: Pieces,
        gradient: &mut Gradient,
        dtype: Dtype,
    ) -> Result<(), Error> {
        let names = match pb::Part::try_from(fields.part) {
            Ok(pb::Part::Values) => return self.append(fields, data, gradient, dtype),
            Ok(pb::Part::Asked) => &mut self.asked,
            Ok(pb::Part::Rows) if gradient.is_empty() => &mut self.brought,
            Ok(pb::Part::Rows) => {
                return Err(bad_part("rows are named behind elements; name all of them first"));
            }
            Err(_) => return Err(bad_part(&format!("there is no part {}", fields.part))),
        };
        if !data.has_remaining() {
            return Err(Error::new(ErrorCode::Empty, "a message of row numbers has none"));
        }
        rows::append(names, Rows::from_bytes(self.tables, fields.table, data)?);
        rows::check_size(names, self.tables)
    }

    fn append(
        &self,
        fields: &pb::PushRequest,
        data: Pieces,
        gradient: &mut Gradient,
        dtype: Dtype,
    ) -> Result<(), Error> {
        if !data.has_remaining() {
            // A shard without rows has nothing to say but that.
            return match fields.last {
                true => Ok(()),
                false => Err(Error::new(ErrorCode::Empty, "a chunk carries no elements")),
            };
        }
        if encoding_from(fields.dtype, dtype) != Some(Encoding::Plain) {
            return Err(bad_dtype(fields.dtype, dtype));
        }
        check_key(fields.key, gradient.len())?;
        gradient.append(data, rows::n_elements(&self.brought))
    }

    /// The gradient, each row once and in order, and the rows that the answer brings.
    ///
    /// # Errors
    /// As [`SparseGradient::new`].
    pub(super) fn finish(self, values: Gradient) -> Result<(SparseGradient, Vec<Rows>), Error> {
        Ok((SparseGradient::new(self.brought, values)?, self.asked))
    }
}

fn bad_part(what: &str) -> Error {
    Error::new(ErrorCode::BadField, what).with("field", "part")
}
