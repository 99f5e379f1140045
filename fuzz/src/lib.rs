//! What is fuzzed: one function over bytes for each reader of bytes that others wrote, and valid
//! inputs to begin with.
//!
//! A target panics where a promise is broken; whether it accepted the input is its result. libFuzzer
//! calls the targets from `fuzz/fuzz_targets`; every `cargo test` (`tests/mutations.rs`) and `ps-sim
//! report` run them over changes of the valid inputs.
//! Owns no format: files with good checksums around bad contents are written by `storage` from what
//! docs/STORAGE.md says.

mod calls;
mod changes;
mod data;
mod mutate;
mod pushes;
mod rows;
mod storage;
mod theta;
mod wire;

pub use changes::{Tried, try_changes};
pub use mutate::Mutator;

use ps_worker::data::Format;

/// A reader under test.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Also of the libFuzzer program and of the corpus.
    pub name: &'static str,
    /// Whether the bytes are a valid input.
    pub run: fn(&[u8]) -> bool,
    /// Valid inputs.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: [Target; 12] = [
    Target { name: "checkpoint", run: storage::checkpoint, seeds: storage::checkpoint_seeds },
    Target { name: "journal", run: storage::journal, seeds: storage::journal_seeds },
    Target {
        name: "csv",
        run: |bytes| data::load(Format::Csv, bytes),
        seeds: || data::seeds(Format::Csv),
    },
    Target {
        name: "libsvm",
        run: |bytes| data::load(Format::Libsvm, bytes),
        seeds: || data::seeds(Format::Libsvm),
    },
    Target {
        name: "idx",
        run: |bytes| data::load(Format::Idx, bytes),
        seeds: || data::seeds(Format::Idx),
    },
    Target {
        name: "npy",
        run: |bytes| data::load(Format::Npy, bytes),
        seeds: || data::seeds(Format::Npy),
    },
    Target {
        name: "gzip",
        run: |bytes| data::load(Format::Auto, bytes),
        seeds: || data::seeds(Format::Auto),
    },
    Target { name: "theta", run: theta::import, seeds: theta::seeds },
    Target { name: "wire", run: wire::decode, seeds: wire::seeds },
    Target { name: "push", run: pushes::assemble, seeds: pushes::seeds },
    Target { name: "rows", run: rows::assemble, seeds: rows::seeds },
    Target { name: "calls", run: calls::serve, seeds: calls::seeds },
];

/// Runs the target of this name.
///
/// # Panics
/// If there is none, or it finds something.
pub fn run(name: &str, bytes: &[u8]) -> bool {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.expect("a target of this name").run)(bytes)
}
