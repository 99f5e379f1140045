//! `ps-server`: see `ps_server::run`.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    ps_server::run::main_with(std::env::args_os().collect())
}
