//! The worker: its shard of the data, its model, and the life it leads with a server.
//!
//! `data` and `model` are pure and know no network; `net` (feature `net`) drives them.

pub mod data;
pub mod model;
#[cfg(feature = "net")]
pub mod net;
pub mod samples;

/// Program version and build: equal only for equal sources.
pub const VERSION: &str = env!("PS_VERSION");
