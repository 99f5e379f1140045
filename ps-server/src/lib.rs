//! The server: keeps theta, applies workers' gradients.
//!
//! `core` decides and is pure; `numeric` and `table` apply; `driver` is where they meet; `net`
//! (feature `net`) talks.

pub mod args;
pub mod core;
pub mod driver;
pub mod numeric;
pub mod table;

/// Program version and build.
pub const VERSION: &str = "0.1.0";
