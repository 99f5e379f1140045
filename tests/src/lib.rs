//! What the process tests share: real binaries on real ports, and a caller that can misbehave.
//!
//! Waits are on conditions with a deadline, never on sleeps of a guessed length.

// A test says on stdout why it skips; a failing one shows what its processes printed.
#![allow(clippy::print_stdout)]

mod caller;
mod cluster;
pub mod frames;
mod group;
mod processes;
mod proxy;
pub mod rows;
mod shim;

pub use caller::{Caller, Sent, header, patient_client, reason_of, tables};
pub use cluster::{assert_close, data, golden, local, losses, numbers};
pub use group::{Group, GroupCaller};
pub use processes::{Process, binary, data_dir, free_port, project_root, wait_until};
pub use proxy::{Proxy, Way};
pub use shim::{Killed, Shim};

use std::time::Duration;

/// How long a test waits for something that should come at once.
pub const PATIENCE: Duration = Duration::from_secs(60);
