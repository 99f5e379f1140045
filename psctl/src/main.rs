//! The program `psctl`: all of it is in the library.

use std::process::ExitCode;

/// Large short-lived buffers dominate: glibc's allocator gives them back to the kernel each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    psctl::main_with(std::env::args_os().collect())
}
