//! What a person types: a local cluster, an operator's questions, the bench, the simulator, and what
//! they show.
//!
//! Owns processes, terminals and files. Decides nothing about training: the server and the workers
//! that it starts do, and in virtual time the server's core and the workers' learners.

pub mod bench;
pub mod certs;
pub mod cli;
pub mod compare;
pub mod local;
pub mod observe;
pub mod operator;
pub mod peers;
mod predict;
pub mod show;
pub mod simulate;

pub use cli::main_with;
