//! Everything psctl shows a person, as functions from reports and status values to text and
//! pictures.
//!
//! Nothing here talks to servers or starts processes, and nothing here computes a result: a figure
//! shown is a figure that was given. Results go to stdout, progress to stderr; the caller writes
//! what these functions return.

pub mod chart;
pub mod curve;
pub mod look;
pub mod loss;
pub mod number;
pub mod progress;
pub mod snapshot;
pub mod status;
pub mod summary;
pub mod table;
mod ticks;

pub use look::Look;
pub use snapshot::{Snapshot, WorkerLine, WorkerState};
