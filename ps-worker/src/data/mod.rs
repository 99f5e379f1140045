//! Files to samples: which rows a worker has, what was done to their values, in which order it
//! visits them (rule R10).
//!
//! A program goes through it in this order: [`DataArgs::check`] gives a [`DataSpec`];
//! [`survey`] reads all rows once, in memory of the order of one row; [`Preprocessing`] is settled
//! from the survey, or from statistics merged over all workers; [`load`] reads again and keeps the
//! worker's own rows; [`Batches`] says which of them each step uses.
//!
//! Knows files, but neither network nor models. Values are parsed as f64 and rounded to theta's
//! dtype last, after scaling.

mod args;
mod batches;
mod binary;
mod builtin;
mod csv;
mod dealing;
mod idx;
mod input;
mod libsvm;
mod load;
mod npy;
mod preprocessing;
mod shuffle;
mod spec;
mod stream;
mod survey;
#[cfg(test)]
mod tests;

pub use args::DataArgs;
pub use batches::Batches;
pub use builtin::Builtin;
pub use dealing::{Rows, Shard};
pub use load::load;
pub use preprocessing::{Preprocessing, Scaling};
pub use shuffle::{Purpose, permutation};
pub use spec::{BatchSize, DataSpec, Files, Format, IndexBase, Scale, Target};
pub use survey::{Survey, TargetFacts, signs_to_classes, survey};
