//! Arithmetic on slices: first values, sums of gradients, clipping, update rules. Pure, no allocation.
//!
//! Equal lengths are asserted once per call; nothing here knows tables, chunks or versions.

#![deny(clippy::disallowed_methods)]

mod adagrad;
mod adam;
mod adamw;
mod ahead;
mod clip;
mod compensate;
mod ftrl;
mod initialize;
mod momentum;
mod nesterov;
mod optimizer;
mod options;
mod rmsprop;
mod robust;
mod rule;
mod schedule;
mod sgd;
mod sum;

pub use clip::{Norm, scale};
pub use compensate::compensate;
pub use initialize::initialize;
pub use optimizer::{ADAMW_DECAY, LR, Optimizer, Wish};
pub use robust::{median, trimmed_mean};
pub use rule::{Betas, Rule, SLOTS_MAX, Slots, Step, Turn};
pub use schedule::Schedule;
pub use sgd::{sgd_element, sgd_from};
pub use sum::{add_scaled, weighted_sum};

#[cfg(test)]
mod tests;
