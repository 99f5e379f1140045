//! The worker: its shard of the data, its model, and the life it leads with a server.
//!
//! `data` and `model` are pure and know no network; `net` (feature `net`) drives them.

pub mod args;
pub mod coding;
pub mod credentials;
pub mod data;
pub mod learning;
pub mod local_steps;
pub mod model;
#[cfg(feature = "net")]
pub mod net;
pub mod overlap;
pub mod prediction;
#[cfg(feature = "net")]
pub mod run;
pub mod samples;
pub mod sparse;

/// Version and build id: equal only between programs built from the same sources.
pub const VERSION: &str = env!("PS_VERSION");
