//! Arithmetic on slices: first values, sums of gradients, update rules, checks. Pure, no allocation.
//!
//! Equal lengths are asserted once per call; nothing here knows tables, chunks or versions.

#![deny(clippy::disallowed_methods)]

mod check;
mod initialize;
mod optimizer;
mod sgd;
mod sum;

pub use check::first_non_finite;
pub use initialize::initialize;
pub use optimizer::Optimizer;
pub use sgd::sgd;
pub use sum::weighted_sum;
