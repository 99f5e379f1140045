//! What a person types: a local cluster, a comparison, a simulation, a benchmark.

pub mod bench;
pub mod show;
