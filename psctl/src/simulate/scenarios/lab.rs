//! Where scenarios are played: calls of `psctl simulate` in this process, by flags as a person types
//! them. Knows no scenario.

use clap::builder::Resettable;
use clap::{Args, FromArgMatches};
use ps_common::exit::{Exit, ExitError};

use crate::local::args::settle_rate;
use crate::simulate::{RunResult, SimulateArgs, results};

/// Keeps what was called.
pub(super) struct Lab {
    sim_seed: Option<u64>,
    quiet: bool,
    commands: Vec<String>,
}

impl Lab {
    /// Nothing called yet. `quiet`: no progress.
    pub(super) fn new(sim_seed: Option<u64>, quiet: bool) -> Self {
        Self { sim_seed, quiet, commands: Vec::new() }
    }

    /// What has been called, as it can be typed.
    pub(super) fn commands(&self) -> &[String] {
        &self.commands
    }

    /// Remembers a call that is made by other means.
    pub(super) fn note(&mut self, flags: &str) {
        self.commands.push(format!("psctl simulate {flags}"));
    }

    /// The runs of `psctl simulate` with these flags, separated by blanks, and the user's seed.
    ///
    /// # Errors
    /// Those of the call.
    pub(super) fn simulate(&mut self, flags: &str) -> Result<Vec<RunResult>, ExitError> {
        let seed = self.sim_seed.map_or_else(String::new, |seed| format!(" --sim-seed {seed}"));
        let flags = format!("{flags}{seed}");
        self.note(&flags);
        let mut args: SimulateArgs = parse(&flags)?;
        settle_rate(&mut args.job, &args.learn);
        args.output.quiet = self.quiet;
        let rounds_given = flags.split_whitespace().any(|word| word == "--rounds");
        Ok(results(&args, rounds_given)?.runs)
    }
}

/// Reads flags, and nothing from the environment: a scenario is the same everywhere.
///
/// # Errors
/// A bug: the flags are a scenario's own.
pub(super) fn parse<A: Args + FromArgMatches>(flags: &str) -> Result<A, ExitError> {
    let bug = |error: clap::Error| {
        let what = format!("a scenario's own flags are refused: {flags}");
        ExitError::new(Exit::Bug, what).because(error)
    };
    let command = A::augment_args(clap::Command::new("simulate").no_binary_name(true))
        .mut_args(|arg| arg.env(Resettable::Reset));
    let matches = command.try_get_matches_from(flags.split_whitespace()).map_err(bug)?;
    A::from_arg_matches(&matches).map_err(bug)
}
