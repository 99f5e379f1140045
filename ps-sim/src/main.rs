//! The simulator: the real server and the real workers in a simulated network that fails.

use std::process::ExitCode;

fn main() -> ExitCode {
    ps_sim::main_with(std::env::args_os().collect())
}
