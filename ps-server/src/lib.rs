//! The server: keeps theta, applies workers' gradients.
//!
//! `core` decides and is pure; `numeric` and `table` apply; `applier` and `driver` are where they
//! meet; `group` has other servers follow; `follower` has no core: it carries out what another server
//! decides; `net` (feature `net`) talks; `run` is the program.

pub mod applier;
pub mod args;
pub mod core;
pub mod driver;
pub mod follower;
pub mod group;
pub mod keeper;
#[cfg(feature = "net")]
pub mod net;
pub mod numeric;
#[cfg(feature = "net")]
mod outputs;
#[cfg(feature = "net")]
pub mod run;
pub mod security;
pub mod storage;
pub mod table;
pub mod threads;

/// Program version and build: equal only for equal sources.
pub const VERSION: &str = env!("PS_VERSION");
