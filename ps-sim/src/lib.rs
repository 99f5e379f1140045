//! The real server and the real worker client in one process and one thread, on a network that is
//! simulated: connections, clocks and chance come from a seed, and so do the faults.
//!
//! `plan` says what a seed means, `stage` has the programs, `simulate` runs and checks them; `cli`
//! and `many` run seeds, each in a process of its own, because only then the same seed is the same
//! run. `report` has the figures of docs/RELIABILITY.md: those of the simulator, and those of the real
//! programs as processes.

mod cli;
mod disk;
mod faults;
mod ledger;
mod many;
mod net;
mod outcome;
mod plan;
mod report;
mod simulate;
mod stage;

pub use cli::main_with;
