//! What the process tests and `ps-sim report` share: real binaries on real ports, and a caller that
//! can misbehave.
//!
//! Waits are on conditions with a deadline, never on sleeps of a guessed length.

// A test says on stdout why it skips; a failing one shows what its processes printed.
#![allow(clippy::print_stdout)]

mod caller;
mod cluster;
pub mod frames;
mod group;
pub mod hostile;
mod processes;
mod proxy;
pub mod rows;
mod shim;
mod sparse;

pub use caller::{Caller, Sent, header, patient_client, reason_of, tables};
pub use cluster::{
    assert_close, data, final_loss, golden, local, local_net, losses, numbers, theta_sha256,
};
pub use group::{Group, GroupCaller};
pub use processes::{
    Process, binary, data_dir, free_port, project_root, resident_kib_max, wait_until,
};
pub use proxy::{Proxy, Way};
pub use shim::{Killed, Shim};
pub use sparse::{Names, numbers as row_numbers};

use std::time::Duration;

/// How long a test waits for something that should come at once, on a machine with much else to do.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Where nobody listens: only root may, and nobody does.
pub const NOBODY: &str = "127.0.0.1:1";
