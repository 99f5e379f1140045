//! Training without a server of its own standing between: peers that average with their
//! neighbours, and map-reduce; both in virtual time.
//!
//! Owns graphs, averaging weights, the rounds of both, and what a round's exchange costs. Gradients
//! are the worker's own ([`ps_worker::learning`]), updates the server's own
//! ([`ps_server::table`], [`ps_server::numeric`]). No network, no clock, no threads: time is
//! computed. `docs/TOPOLOGIES.md` has the formulas.

#![deny(clippy::disallowed_methods)]

mod args;
pub mod averaging;
pub mod cost;
mod deal;
pub mod graph;
#[expect(clippy::disallowed_methods, reason = "the one place that reads a file")]
pub mod graph_file;
pub mod map_reduce;
pub mod mixing;
pub mod network;
mod settings;
pub mod show;
pub mod spectrum;

pub use args::{Peers, PeersArgs, Topology};
pub use deal::Deal;
pub use network::Network;
pub use settings::{Links, Settings};
