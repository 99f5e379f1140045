//! The program `psctl`: reads the command line and hands over to the library.

use std::io;
use std::process::ExitCode;

use clap::Parser;
use ps_common::exit;
use psctl::bench;

/// Large short-lived buffers dominate: glibc's allocator gives them back to the kernel each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(name = "psctl", version, about = "The tool around the parameter server")]
enum Command {
    /// Measures dense push-pull against the same work over bare sockets
    Bench(bench::Args),
    #[command(hide = true)]
    BenchRole(bench::RoleArgs),
}

fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Bench(args) => bench::run(&args, &mut io::stdout(), &mut io::stderr()),
        Command::BenchRole(args) => bench::play(&args),
    };
    exit::conclude("psctl", result)
}
