//! The flags of `psctl compare`, and the variants that they ask for. Starts nothing.
//!
//! Job, data and model flags are those of `psctl local`; only what makes several runs of one job
//! stands here.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use ps_common::exit::ExitError;
use ps_common::export::check_creatable;
use ps_common::flags::{ConfigArgs, to_arguments};
use ps_common::job::Mode;
use ps_server::args::JobArgs;
use ps_worker::args::{EvaluationArgs, LearnArgs};
use ps_worker::coding::Wire;
use serde::Serialize;

use super::variant::{self, Variant};
use crate::local::args::ClusterArgs;
use crate::show::chart;
use crate::simulate::WorldArgs;

const EXAMPLES: &str = "\
Examples:
  psctl compare                                      sync beside async: the built-in problem
  psctl compare --modes sync,async --workers 1,2,4 --seeds 3 --batch 50 --plot loss.svg
  psctl compare --variant \"slow: --lr 0.01\" --variant \"fast: --lr 0.3 --mode async\"
  psctl compare --to-loss 0.1,0.05 --x seconds --plot loss.png --csv runs.csv
  psctl compare --simulated --modes sync,ssp,async --stragglers share=0.02,factor=10

Each variant is a real local cluster, as of psctl local, or with --simulated one in virtual time;
they run one after another. --modes and
--workers are lists: there is a variant for each pair. --variant adds one with options of its own,
which go before those of the command line; it runs with each of --workers unless it says --workers,
in sync mode unless it says --mode, and without --modes only such variants run. Quote values with
spaces in them: --variant \"mine: --data 'my file.csv'\". --eval-every counts where a variant has an
evaluator; --eval-every, or any other option, can stand in a --variant.

With --seeds figures are medians, with the least and the largest in brackets where there is room.
A variant that diverges (theta overflows, or the loss ends above ten times the first) is a result:
the exit code stays 0. A run that fails otherwise is shown with its reason, the others go on, and
the exit code is 1, or the run's own if all ended with the same one. Ctrl-C ends the run that is
under way and shows what there is.";

/// Runs one job in several ways and shows which came how far, by rounds, pushes and seconds
#[derive(Args, Debug, Clone, Serialize)]
#[command(after_help = EXAMPLES)]
#[serde(rename_all = "kebab-case")]
pub struct CompareArgs {
    /// Which variants.
    #[command(flatten)]
    #[serde(flatten)]
    pub axes: AxesArgs,
    /// The job.
    #[command(flatten)]
    #[serde(flatten)]
    pub job: JobArgs,
    /// Data and model.
    #[command(flatten)]
    #[serde(flatten)]
    pub learn: LearnArgs,
    /// What is looked at on the way.
    #[command(flatten)]
    #[serde(flatten)]
    pub evaluation: EvaluationArgs,
    /// What is shown and left behind.
    #[command(flatten)]
    #[serde(flatten)]
    pub output: OutputArgs,
    /// Processes.
    #[command(flatten)]
    #[serde(flatten)]
    pub cluster: ClusterArgs,
    /// Virtual time.
    #[command(flatten)]
    #[serde(flatten)]
    pub virtual_time: VirtualTimeArgs,
    /// Options from a file.
    #[command(flatten)]
    #[serde(skip)]
    pub file: ConfigArgs,
}

/// Runs without processes.
#[derive(Args, Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Virtual time")]
pub struct VirtualTimeArgs {
    /// Run in virtual time as psctl simulate does, not as real processes; seeds are those of compute
    /// times, too
    #[arg(long, env = "PS_SIMULATED", default_value_t = false, num_args = 0..=1, default_missing_value = "true", require_equals = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub simulated: bool,
    /// The world.
    #[command(flatten)]
    #[serde(flatten)]
    pub world: WorldArgs,
}

impl VirtualTimeArgs {
    fn check(&self) -> Result<(), ExitError> {
        let given = to_arguments(&self.world);
        match given.first() {
            Some(flag) if !self.simulated => Err(ExitError::config(format!(
                "{} has no meaning without --simulated: real processes live in real time",
                flag.to_string_lossy().split('=').next().unwrap_or_default()
            ))),
            _ => Ok(()),
        }
    }
}

/// Which variants there are.
#[derive(Args, Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Comparison")]
pub struct AxesArgs {
    /// Modes to run the job in [default: sync,async, or none with --variant]
    #[arg(long, env = "PS_MODES", value_enum, value_delimiter = ',', value_name = "MODE,..")]
    pub modes: Vec<Mode>,
    /// Numbers of workers to run it with [default: 4]
    #[arg(long, env = "PS_WORKERS", value_delimiter = ',', value_name = "K,..", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub workers: Vec<u32>,
    /// One more variant, with options of its own; may be repeated
    #[arg(long = "variant", value_name = "NAME: OPTIONS")]
    #[serde(rename = "variant")]
    pub variants: Vec<String>,
    /// Runs of each variant, with the seeds --seed, --seed + 1 and so on
    #[arg(long, env = "PS_SEEDS", value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub seeds: u32,
    /// Say what it took to reach these losses [default: some that the curves cross]
    #[arg(
        long,
        env = "PS_TO_LOSS",
        value_name = "F,..",
        value_delimiter = ',',
        allow_negative_numbers = true
    )]
    pub to_loss: Vec<f64>,
}

/// What stands on the x axis of the picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Along {
    /// Steps of each worker
    Rounds,
    /// Gradients of all workers
    Pushes,
    /// Since the first join
    Seconds,
}

/// What is shown and left behind.
#[derive(Args, Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// File that gets the loss curves, one a variant, with the band of the seeds (.svg or .png)
    #[arg(long, env = "PS_PLOT", value_name = "FILE")]
    pub plot: Option<PathBuf>,
    /// What the picture has on its x axis [default: rounds]
    #[arg(long, env = "PS_X", value_enum)]
    pub x: Option<Along>,
    /// File that gets every measured loss of every run, one a line
    #[arg(long, env = "PS_CSV", value_name = "FILE.csv")]
    pub csv: Option<PathBuf>,
    /// File that gets the object of --json
    #[arg(long, env = "PS_REPORT", value_name = "FILE.json")]
    pub report: Option<PathBuf>,
    /// No progress and no table
    #[arg(long, short, env = "PS_QUIET", default_value_t = false, num_args = 0..=1, default_missing_value = "true", require_equals = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub quiet: bool,
    /// Print one line of JSON instead of the table
    #[arg(long, env = "PS_JSON", default_value_t = false, num_args = 0..=1, default_missing_value = "true", require_equals = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub json: bool,
}

impl CompareArgs {
    /// The variants in the order of the table, each checked as `psctl local` checks its own.
    ///
    /// # Errors
    /// A configuration or usage error that names the flag, and the variant where it is one's own;
    /// an output that cannot be created.
    pub fn check(&self) -> Result<Vec<Variant>, ExitError> {
        self.output.check()?;
        self.virtual_time.check()?;
        if let Some(level) = self.axes.to_loss.iter().find(|level| !level.is_finite()) {
            return Err(ExitError::config(format!("--to-loss {level} is not a finite number")));
        }
        let variants = variant::all(self)?;
        if self.evaluation.eval_every.is_some()
            && !variants.iter().any(|v| v.args.evaluation.eval_every.is_some())
        {
            return Err(ExitError::config(
                "--eval-every has no meaning with --batch full and no --test-data where every \
                 variant is synchronous: the workers' own losses give every round an entry",
            ));
        }
        for Variant { name, args, .. } in &variants {
            args.check().map_err(|mut error| {
                error.message = format!("variant `{name}`: {}", error.message);
                error
            })?;
            if self.virtual_time.simulated && args.cluster.servers > 1 {
                return Err(ExitError::config(format!(
                    "variant `{name}`: --servers {} with --simulated: virtual time has one server",
                    args.cluster.servers
                )));
            }
            let wire = args.cluster.wire.check()?;
            if self.virtual_time.simulated && wire != Wire::PLAIN {
                let (flag, value) = match wire.push == Wire::PLAIN.push {
                    true => ("--wire-pull", &args.cluster.wire.wire_pull),
                    false => ("--wire", &args.cluster.wire.wire),
                };
                return Err(ExitError::config(format!(
                    "variant `{name}`: {flag} {value} with --simulated: in virtual time gradients \
                     and theta arrive as they are"
                )));
            }
            if self.virtual_time.simulated && args.cluster.overlap.overlap {
                return Err(ExitError::config(format!(
                    "variant `{name}`: --overlap with --simulated: in virtual time a worker computes \
                     or waits"
                )));
            }
            if self.virtual_time.simulated && args.cluster.sparse.sparse {
                return Err(ExitError::config(format!(
                    "variant `{name}`: --sparse with --simulated: in virtual time all of theta comes \
                     and goes"
                )));
            }
            if args.job.rounds == 0 {
                return Err(ExitError::config(format!(
                    "variant `{name}`: --rounds 0 has no meaning with psctl compare: the next run \
                     begins when this one ends"
                )));
            }
        }
        Ok(variants)
    }
}

impl OutputArgs {
    fn check(&self) -> Result<(), ExitError> {
        match &self.plot {
            Some(path) => drop(chart::Format::of(path)?),
            None if self.x.is_some() => {
                return Err(ExitError::config("--x has no meaning without --plot"));
            }
            None => {}
        }
        for path in [&self.report, &self.csv, &self.plot].into_iter().flatten() {
            check_creatable(path)?;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use clap::Parser;
    use ps_common::exit::Exit;

    #[derive(Parser)]
    struct Demo {
        #[command(flatten)]
        args: CompareArgs,
    }

    /// As parsed from a command line.
    pub(in crate::compare) fn compare(arguments: &[&str]) -> CompareArgs {
        let all = std::iter::once("compare").chain(arguments.iter().copied());
        Demo::try_parse_from(all).expect("accepted").args
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        for (arguments, exit, says) in [
            (&["--x=pushes"][..], Exit::Config, "--x has no meaning without --plot"),
            (&["--plot=x.pdf"], Exit::Config, "--plot x.pdf"),
            (&["--to-loss=nan"], Exit::Config, "--to-loss NaN"),
            (&["--csv=/no/such/place/r.csv"], Exit::CannotCreate, "/no/such/place"),
            (&["--modes=sync", "--eval-every=3"], Exit::Config, "--eval-every"),
            (&["--modes=async", "--aggregate=mean"], Exit::Config, "variant `async`: --aggregate"),
            (&["--latency=2ms"], Exit::Config, "--latency has no meaning without --simulated"),
            (&["--variant=a: --rounds 0"], Exit::Config, "variant `a`: --rounds 0"),
            (&["--variant=a: --take 0"], Exit::Config, "variant `a`: --take 0"),
            (&["--simulated", "--variant=a: --wire f16"], Exit::Config, "--wire f16 with --sim"),
            (
                &["--simulated", "--variant=a: --mode async --overlap"],
                Exit::Config,
                "variant `a`: --overlap with --simulated",
            ),
            (&["--simulated", "--variant=a: --sparse"], Exit::Config, "`a`: --sparse with --sim"),
            (&["--simulated", "--variant=a: --wire-pull f16"], Exit::Config, "--wire-pull f16 w"),
            (&["--variant=a: --wire f1"], Exit::Config, "--wire: `f1` is not f32, f16"),
            (
                &["--variant=a: --servers 2", "--simulated"],
                Exit::Config,
                "`a`: --servers 2 with --simulated",
            ),
        ] {
            let error = compare(arguments).check().expect_err(says);
            assert!(error.exit == exit && error.message.contains(says), "{error}");
        }
    }

    #[test]
    fn the_evaluators_pace_counts_where_there_is_one() {
        let variants = compare(&["--eval-every=3"]).check().expect("fine");
        let every: Vec<_> = variants.iter().map(|v| v.args.evaluation.eval_every).collect();
        assert_eq!(every, [None, Some(3)]);
        let error = compare(&["--variant=a: --eval-every 3"]).check().expect_err("its own");
        assert!(error.message.contains("variant `a`: --eval-every"), "{error}");
    }
}
