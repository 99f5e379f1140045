//! What a person types: a local cluster, an operator's questions, the bench, and what they show.
//!
//! Owns processes, terminals and files. Decides nothing about training: the server and the workers
//! that it starts do.

pub mod bench;
pub mod certs;
pub mod cli;
pub mod local;
pub mod observe;
pub mod operator;
pub mod show;

pub use cli::main_with;
