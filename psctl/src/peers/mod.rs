//! Training without a server of its own standing between: peers that average with their
//! neighbours, and map-reduce; both in virtual time.
//!
//! Owns graphs, averaging weights, the rounds of both, and what a round's exchange costs. Gradients
//! are the worker's own ([`ps_worker::learning`]), updates the server's own
//! ([`ps_server::table`], [`ps_server::numeric`]). No network, no clock, no threads: time is
//! computed. Only `graph_file` opens a file. `docs/TOPOLOGIES.md` has formulas and figures.

#![deny(clippy::disallowed_methods)]

mod args;
pub mod averaging;
pub mod cost;
mod deal;
pub mod graph;
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

/// What the flags of a worker describe.
#[cfg(test)]
fn problem(arguments: &[&str]) -> ps_worker::learning::Problem {
    #[derive(clap::Parser)]
    struct Demo {
        #[command(flatten)]
        learn: ps_worker::args::LearnArgs,
    }
    let all = ["demo"].iter().chain(arguments);
    let demo = <Demo as clap::Parser>::try_parse_from(all).expect("parses");
    ps_worker::learning::Problem::survey(&demo.learn).expect("good data")
}

/// The losses of a file in `tests/golden`.
#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test reads its golden file")]
fn golden_losses(file: &str) -> Vec<f64> {
    let path = format!("{}/../tests/golden/{file}", env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(path).expect("part of the repository");
    let run: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
    let losses = run["loss_history"].as_array().expect("losses");
    losses.iter().map(|loss| loss.as_f64().expect("a number")).collect()
}
