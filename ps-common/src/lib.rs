//! What server, worker and tools share: the domain's types, their errors, the report, the flags'
//! machinery, and (feature `net`) the wire.
//!
//! Nothing here decides anything about training: consistency lives in `ps-server/src/core`,
//! gradients in `ps-worker/src/model`.

pub mod calls;
pub mod check;
pub mod cluster;
pub mod codec;
#[cfg(feature = "net")]
pub mod congestion;
pub mod dtype;
pub mod error;
pub mod exit;
pub mod export;
pub mod flags;
pub mod import;
pub mod job;
pub mod logging;
pub mod partition;
pub mod report;
pub mod rows;
#[cfg(feature = "net")]
pub mod secrets;
pub mod shared;
pub mod statistics;
pub mod tables;
#[cfg(feature = "net")]
pub mod transport;
pub mod units;
#[cfg(feature = "net")]
pub mod url;
mod widest;
#[cfg(feature = "net")]
pub mod wire;

pub use dtype::{Dtype, Element};
pub use error::{Error, ErrorCode};
pub use widest::{Kernel, widest};
