//! Tests of the core: scripts (`scripts/*.txt`), generated sequences, and the ledger that both keep.

#![allow(clippy::disallowed_methods, reason = "tests read scripts and write failures")]

mod ledger;
mod properties;
mod saved;
mod script;
mod words;
mod world;
