//! Talking: gRPC services, connections, the clock. Knows calls and the driver, no rules.

mod assemble;
mod chunks;
mod connections;
mod lanes;
mod membership;
mod operator;
mod parameters;
mod router;
mod shell;

pub use connections::Connections;
pub use router::{Health, serve};
pub use shell::Shell;
