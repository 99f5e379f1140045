//! psctl's command line: which subcommands there are and who does their work.

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::LazyLock;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;
use ps_common::exit::{Exit, ExitError, conclude};
use ps_common::{flags, logging};

use crate::compare::CompareArgs;
use crate::local::LocalArgs;
use crate::predict::{self, PredictArgs};
use crate::simulate::SimulateArgs;
use crate::{bench, certs, compare, local, operator, simulate};

/// Version, and the builds of both roles that psctl plays.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    format!(
        "{}\nps-server {}\nps-worker {}",
        env!("CARGO_PKG_VERSION"),
        ps_server::VERSION,
        ps_worker::VERSION
    )
});

const EXAMPLES: &str = "\
Examples:
  psctl local                       train on this machine: 1 server, 4 workers, 100 rounds
  psctl local --help                data, models, modes
  psctl compare --workers 1,4       sync beside async, on the same job
  psctl simulate --workers 1,4,16   the same in virtual time: who waits, what staleness does
  psctl status --watch              look at a running job
  psctl export --out theta.npy      take its theta
  source <(psctl completions bash)

Results go to stdout, progress and logs to stderr. PS_LOG=debug shows more, NO_COLOR=1 no colours.
Exit codes: 0 done, 1 failed, 2 usage, 65 bad data, 69 not reachable, 70 a bug, 73 cannot create an
output, 74 I/O, 78 configuration, 130 and 143 interrupted.";

/// Runs and watches parameter servers.
#[derive(Parser, Debug)]
#[command(name = "psctl", after_help = EXAMPLES, arg_required_else_help = true)]
struct Cli {
    /// Say more on stderr; once more: even more
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Local(Box<LocalArgs>),
    Compare(Box<CompareArgs>),
    Simulate(Box<SimulateArgs>),
    Status(operator::StatusArgs),
    Health(operator::HealthArgs),
    Export(operator::ExportArgs),
    Checkpoint(operator::CheckpointArgs),
    Stop(operator::StopArgs),
    Predict(Box<PredictArgs>),
    Certs(certs::CertsArgs),
    /// Measures dense push-pull against the same work over bare sockets
    Bench(bench::Args),
    #[command(hide = true)]
    BenchRole(bench::RoleArgs),
    /// Prints a script that completes psctl's arguments in a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Runs as ps-server; for its options: `psctl ps-server --help`
    #[command(name = SERVER, disable_help_flag = true)]
    Server(RoleArgs),
    /// Runs as ps-worker; for its options: `psctl ps-worker --help`
    #[command(name = WORKER, disable_help_flag = true)]
    Worker(RoleArgs),
}

const SERVER: &str = "ps-server";
const WORKER: &str = "ps-worker";

/// A role's own command line, which the role reads itself.
#[derive(Args, Debug)]
struct RoleArgs {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTION")]
    arguments: Vec<OsString>,
}

/// The whole program; `arguments` begin with its name.
pub fn main_with(arguments: Vec<OsString>) -> ExitCode {
    // A role's options are not psctl's, so psctl's parser must not see them.
    match arguments.get(1).and_then(|a| a.to_str()) {
        Some(SERVER) => return ps_server::run::main_with(arguments[1..].to_vec()),
        Some(WORKER) => return conclude(WORKER, ps_worker::run::main(&arguments[1..])),
        _ => {}
    }
    conclude("psctl", run(&arguments))
}

/// As `--version` prints it, without the program's name.
pub(crate) fn version() -> &'static str {
    VERSION.as_str()
}

fn command() -> clap::Command {
    Cli::command().version(version())
}

fn run(arguments: &[OsString]) -> Result<(), ExitError> {
    let matches = flags::parse(&command(), arguments)?;
    let mut cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match &mut cli.command {
        Command::Local(args) => args.settle(),
        Command::Simulate(args) => local::args::settle_rate(&mut args.job, &args.learn),
        _ => {}
    }
    logging::init(["warn", "info", "debug"][usize::from(cli.verbose.min(2))], false);
    let mut out = io::stdout();
    match cli.command {
        Command::Local(args) if args.file.print_config => print(&mut out, &flags::to_toml(&args)),
        Command::Local(args) => block_on(local::run(*args, cli.verbose > 0)),
        Command::Compare(args) if args.file.print_config => print(&mut out, &flags::to_toml(&args)),
        Command::Compare(args) => block_on(compare::run(*args, cli.verbose > 0)),
        Command::Simulate(args) if args.scenario.is_asked() => {
            simulate::scenarios::run(&args, &given_flags(&matches), &mut out)
        }
        Command::Simulate(args) if args.file.print_config => {
            print(&mut out, &flags::to_toml(&args))
        }
        Command::Simulate(args) => simulate::run(&args, is_given(&matches, "rounds"), &mut out),
        Command::Status(args) => block_on(operator::status(args)),
        Command::Health(args) => block_on(operator::health(args)),
        Command::Export(args) => block_on(operator::export(args)),
        Command::Checkpoint(args) => block_on(operator::checkpoint(args)),
        Command::Stop(args) => block_on(operator::stop(args)),
        Command::Predict(args) => predict::run(&args, &mut out, &mut io::stderr()),
        Command::Certs(args) => certs::certs(&args),
        Command::Bench(args) => bench::run(&args, &mut out, &mut io::stderr()),
        Command::BenchRole(args) => bench::play(&args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command(), "psctl", &mut script);
            print(&mut out, &String::from_utf8_lossy(&script))
        }
        Command::Server(_) | Command::Worker(_) => Err(ExitError::new(
            Exit::Usage,
            "a role's name must be the first argument: psctl ps-server ..., psctl ps-worker ...",
        )),
    }
}

/// Whether the called subcommand's option was given, and is not merely its default.
fn is_given(matches: &ArgMatches, id: &str) -> bool {
    let source = matches.subcommand().and_then(|(_, called)| called.value_source(id));
    source.is_some_and(|source| source != ValueSource::DefaultValue)
}

/// The long names of the called subcommand's options that [`is_given`].
fn given_flags(matches: &ArgMatches) -> Vec<String> {
    let command = command();
    let called = matches.subcommand_name().and_then(|name| command.find_subcommand(name));
    let options = called.into_iter().flat_map(clap::Command::get_arguments);
    let given = options.filter(|option| is_given(matches, option.get_id().as_str()));
    given.filter_map(|option| option.get_long().map(str::to_owned)).collect()
}

/// psctl itself waits far more than it computes: one thread is enough, and starts fastest.
fn block_on(work: impl Future<Output = Result<(), ExitError>>) -> Result<(), ExitError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime
        .map_err(|e| ExitError::new(Exit::Io, "cannot set up asynchronous I/O").because(e))?;
    let result = runtime.block_on(work);
    // A simulation that nobody waits for any more must not hold up the end.
    runtime.shutdown_background();
    result
}

/// Writes a result. A reader that has seen enough (`| head`) is no failure.
///
/// # Errors
/// I/O for every other failure of the stream.
pub(crate) fn print(out: &mut impl Write, text: &str) -> Result<(), ExitError> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(ExitError::new(Exit::Io, "cannot write to stdout").because(e))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn every_subcommand_and_option_says_what_it_does() {
        for sub in command().get_subcommands().filter(|s| !s.is_hide_set()) {
            assert!(sub.get_about().is_some(), "{}", sub.get_name());
            for arg in sub.get_arguments().filter(|a| !a.is_hide_set() && a.get_long().is_some()) {
                assert!(arg.get_help().is_some(), "{} {:?}", sub.get_name(), arg.get_long());
            }
        }
    }

    #[test]
    fn a_closed_pipe_is_no_failure_and_a_full_disk_is() {
        struct Broken(io::ErrorKind);
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(self.0.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        assert!(print(&mut Broken(io::ErrorKind::BrokenPipe), "x").is_ok());
        let error = print(&mut Broken(io::ErrorKind::StorageFull), "x").expect_err("full");
        assert_eq!(error.exit, Exit::Io);
    }
}
