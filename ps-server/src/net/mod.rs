//! Talking: gRPC services, connections, the clock. Knows calls and the driver, no rules.

mod answer;
mod assemble;
mod callers;
mod chunks;
mod connections;
mod elsewhere;
mod encoder;
mod entrance;
mod following;
mod gate;
mod hot;
mod lanes;
mod membership;
mod operator;
mod pace;
mod parameters;
mod partition;
mod peers;
mod protection;
mod router;
mod rows;
mod shell;
#[cfg(test)]
mod testing;
mod tls;
mod turnaways;

pub use assemble::{Assembly, Progress, Push};
pub use connections::{Connections, Listener};
pub use following::{Facts, Following};
pub use peers::{NotGathered, Peers, Ways};
pub use protection::Protection;
pub use router::{Health, serve, serve_follower};
pub use shell::Shell;
