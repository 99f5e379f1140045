//! The worker's side of the wire: calls, retries, and the life that is made of them.
//!
//! Knows when to call, wait, retry and give up. Knows no losses and no file formats: those are
//! `model` and `data`.

pub mod client;
pub mod connect;
pub mod evaluate;
mod excerpt;
mod gradients;
mod held;
mod lesson;
pub mod link;
mod others;
pub mod retry;
pub mod session;
#[cfg(test)]
mod session_tests;
#[cfg(test)]
mod sparse_tests;
mod steps;
mod stream;
mod surroundings;
mod tensor;

pub use client::Client;
pub use connect::{Approach, Credentials};
pub use steps::Steps;
pub use surroundings::Surroundings;
pub use tensor::Parcel;
