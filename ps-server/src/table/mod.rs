//! theta in memory: chunks behind reference counts, one version at a time.
//!
//! An update writes every chunk anew into a spare buffer and then swaps all of them in: whole or
//! not at all, and a pull in flight keeps the version that it began with (rule R9). In hogwild mode
//! `hogwild.rs` takes the place of all that. Knows no workers, rounds or wire.

mod aggregate;
mod capture;
mod gradient;
mod hogwild;
mod room;
mod state;
mod store;
mod theta;

pub use capture::{Captured, Restoring};
pub use gradient::{Gradient, GradientError};
pub use hogwild::SharedStore;
pub(crate) use room::check_room;
pub use store::{Compensation, Prepared, Snapshot, Store, Update};

#[cfg(test)]
mod tests;
