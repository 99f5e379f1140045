//! theta in memory: chunks behind reference counts, one version at a time.
//!
//! An update counts whole or not at all, and a pull in flight keeps the version that it began with (rule
//! R9): a chunk that somebody reads is written anew into spare memory. Where an update may overflow,
//! all of it is computed beside theta before it is in force (`theta.rs`), by several threads if it is
//! large; where it cannot, it is in force first (`deferred.rs`). An update of some rows computes these
//! beside theta, too, and then writes them where they lie (`theta/rows.rs`). In hogwild mode
//! `hogwild.rs` takes the place of all that. Knows no workers, rounds or wire.

mod aggregate;
mod capture;
mod certain;
mod deferred;
mod gradient;
mod held;
mod hogwild;
mod motion;
mod norm;
mod room;
mod sparse;
mod state;
mod store;
mod theta;

pub use capture::{Captured, Restoring};
pub use certain::Certain;
pub use gradient::{Gradient, GradientError, Values};
pub use held::{Held, Spares};
pub use hogwild::SharedStore;
pub use norm::{Grid, Misfit, clips};
pub(crate) use room::check_room;
pub use sparse::{Pushed, SparseGradient};
pub use store::{Compensation, MovedRows, Prepared, Snapshot, Store, Update};

#[cfg(test)]
mod tests;
