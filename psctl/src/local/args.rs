//! The flags of `psctl local`, and what may be relied on once they are checked.
//!
//! Job and learning flags are the server's and the worker's own; only what belongs to the whole
//! stands here. Starts nothing.

use std::path::PathBuf;

use clap::Args;
use ps_common::exit::ExitError;
use ps_common::export::{Format, check_creatable};
use ps_common::flags::ConfigArgs;
use ps_common::job::Mode;
use ps_common::partition::Partition;
use ps_server::args::{CrewArgs, DurabilityArgs, JobArgs, refuse_of_several};
use ps_server::run::read_start;
use ps_worker::args::{EvaluationArgs, LearnArgs};
use ps_worker::coding::WireArgs;
use ps_worker::data::BatchSize;
use ps_worker::overlap::OverlapArgs;
use ps_worker::sparse::SparseArgs;
use serde::Serialize;

const EXAMPLES: &str = "\
Examples:
  psctl local                                        the built-in problem: 4 workers, 100 rounds
  psctl local --mode async --workers 8 --lr 0.05     no barrier
  psctl local --data train.csv --target last --model logistic --report run.json --plot loss.svg
  psctl local --servers 2 --workers 4                theta cut between two servers
  psctl local --config run.toml --json | jq .final   the report on stdout

S server processes and K worker processes are started on this machine and ended with the command,
however it ends. Every option is also a PS_... environment variable and a key of --config FILE.toml.";

/// Trains on this machine: server processes, worker processes, progress, a report
#[derive(Args, Debug, Clone, Serialize)]
#[command(after_help = EXAMPLES)]
#[serde(rename_all = "kebab-case")]
pub struct LocalArgs {
    /// Mode and workers.
    #[command(flatten)]
    #[serde(flatten)]
    pub crew: CrewArgs,
    /// The job.
    #[command(flatten)]
    #[serde(flatten)]
    pub job: JobArgs,
    /// Data and model.
    #[command(flatten)]
    #[serde(flatten)]
    pub learn: LearnArgs,
    /// File to start theta from, as --theta-out writes it (.npy, .csv or .safetensors) [default: as
    /// the model says]
    #[arg(long, env = "PS_THETA_IN", value_name = "FILE", help_heading = "Job")]
    pub theta_in: Option<PathBuf>,
    /// What is looked at on the way.
    #[command(flatten)]
    #[serde(flatten)]
    pub evaluation: EvaluationArgs,
    /// What outlives the server's process.
    #[command(flatten)]
    #[serde(flatten)]
    pub durability: DurabilityArgs,
    /// What is left behind.
    #[command(flatten)]
    #[serde(flatten)]
    pub output: OutputArgs,
    /// Processes.
    #[command(flatten)]
    #[serde(flatten)]
    pub cluster: ClusterArgs,
    /// Options from a file.
    #[command(flatten)]
    #[serde(skip)]
    pub file: ConfigArgs,
}

/// What is left behind.
#[derive(Args, Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// File that gets the report (JSON)
    #[arg(long, env = "PS_REPORT", value_name = "FILE.json")]
    pub report: Option<PathBuf>,
    /// File that gets the final theta (.npy, .csv or .safetensors)
    #[arg(long, env = "PS_THETA_OUT", value_name = "FILE")]
    pub theta_out: Option<PathBuf>,
    /// File that gets the loss curve (.svg or .png)
    #[arg(long, env = "PS_PLOT", value_name = "FILE")]
    pub plot: Option<PathBuf>,
    /// No progress and no summary
    #[arg(long, short, env = "PS_QUIET", default_value_t = false, num_args = 0..=1, default_missing_value = "true", require_equals = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub quiet: bool,
    /// Print the report as one line of JSON instead of the summary
    #[arg(long, env = "PS_JSON", default_value_t = false, num_args = 0..=1, default_missing_value = "true", require_equals = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub json: bool,
}

/// The processes of the cluster.
#[derive(Args, Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Processes")]
pub struct ClusterArgs {
    /// Servers that share theta, each with the keys of its part
    #[arg(long, env = "PS_SERVERS", default_value_t = 1, value_name = "S", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub servers: u32,
    /// Port of the first server on 127.0.0.1; 0 takes any free one
    #[arg(long, env = "PS_PORT", default_value_t = 0, value_name = "PORT")]
    pub port: u16,
    /// How often lost processes are started again, all of them together; servers only with
    /// --checkpoint-dir
    #[arg(long, env = "PS_RESTARTS", default_value_t = 3, value_name = "N")]
    pub restarts: u32,
    /// How gradients and theta travel.
    #[command(flatten)]
    #[serde(flatten)]
    pub wire: WireArgs,
    /// Whether workers compute ahead.
    #[command(flatten, next_help_heading = "Processes")]
    #[serde(flatten)]
    pub overlap: OverlapArgs,
    /// Whether only rows of theta come and go.
    #[command(flatten, next_help_heading = "Processes")]
    #[serde(flatten)]
    pub sparse: SparseArgs,
    /// Sleep of every worker before each push: delays for tests
    #[arg(long, hide = true, value_name = "MIN[..MAX]")]
    pub compute_delay_ms: Option<String>,
}

impl LocalArgs {
    /// Gives defaults that depend on other flags their values.
    pub fn settle(&mut self) {
        settle_rate(&mut self.job, &self.learn);
    }

    /// Checks what can be known before any process runs, so that the error is psctl's own. Gives
    /// what a person should know before the run begins.
    ///
    /// # Errors
    /// A configuration error that names the flag; an output that cannot be created.
    pub fn check(&self) -> Result<Option<String>, ExitError> {
        if !self.evaluation.test_labels.is_empty() && self.evaluation.test_data.is_empty() {
            return Err(ExitError::config(
                "--test-labels has no meaning without --test-data: name the file of the rows, too",
            ));
        }
        if self.evaluation.eval_every.is_some() && !self.needs_evaluator() {
            return Err(ExitError::config(
                "--eval-every has no meaning with --mode sync, --batch full, no --backup-workers and \
                 no --test-data: the workers' own losses give every round an entry",
            ));
        }
        if self.learn.data.data_is_shard {
            return Err(ExitError::config(
                "--data-is-shard has no meaning with psctl local: its workers all get the same \
                 files and each takes its share of the rows",
            ));
        }
        let job = self.job.check(&self.crew)?;
        let durability = self.durability.check(&job.config)?;
        let first = Partition { index: 0, count: self.cluster.servers };
        refuse_of_several(first, &job, durability.as_ref()).map_err(|mut error| {
            error.message = error
                .message
                .replace(&format!("--partition {first}"), &format!("--servers {}", first.count));
            error
        })?;
        if let Some(local) = self.learn.local.check()? {
            local.check_aggregate(self.crew.mode, job.config.aggregate)?;
        }
        if let Some(path) = &self.theta_in {
            read_start(path, job.dtype)?;
        }
        self.learn.data.check()?;
        self.learn.model.check()?;
        let ClusterArgs { servers, wire, overlap, sparse, .. } = &self.cluster;
        wire.check()?;
        sparse.check(&self.learn, wire, overlap, ("--servers", *servers as usize))?;
        if self.cluster.overlap.overlap {
            job.config.consistency.check_overlap().map_err(ExitError::config)?;
        }
        self.output.check()?;
        Ok(job.config.consistency.warning(self.crew.workers))
    }

    /// Whether the history takes a process of its own: the workers' losses make it up only in full
    /// batches behind a barrier, and they know nothing of test data.
    pub fn needs_evaluator(&self) -> bool {
        needs_evaluator(self.crew.mode, &self.job, &self.learn, &self.evaluation)
    }
}

/// Whether the history takes somebody who measures: the workers' losses make it up only in full
/// batches behind a barrier that waits for all, and they know nothing of test data.
pub fn needs_evaluator(
    mode: Mode,
    job: &JobArgs,
    learn: &LearnArgs,
    evaluation: &EvaluationArgs,
) -> bool {
    !mode.aggregates()
        || job.consistency.backup_workers.is_some_and(|spare| spare > 0)
        || learn.data.batch != BatchSize::Full
        || !evaluation.test_data.is_empty()
}

/// With local steps a server that is plain `sgd` has rate 1 (rule R13), unless --lr says otherwise.
pub fn settle_rate(job: &mut JobArgs, learn: &LearnArgs) {
    let update = &mut job.update;
    if learn.local.local_lr.is_some() && update.lr.is_none() && update.optimizer == "sgd" {
        update.lr = Some(1.0);
    }
}

impl OutputArgs {
    fn check(&self) -> Result<(), ExitError> {
        if let Some(path) = &self.theta_out {
            Format::of(path).map_err(|e| ExitError::config(format!("--theta-out {e}")))?;
        }
        if let Some(path) = &self.plot {
            crate::show::chart::Format::of(path)?;
        }
        for path in [&self.report, &self.theta_out, &self.plot].into_iter().flatten() {
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
        args: LocalArgs,
    }

    /// As parsed from a command line.
    pub(in crate::local) fn local(arguments: &[&str]) -> LocalArgs {
        let all = std::iter::once("local").chain(arguments.iter().copied());
        let mut args = Demo::try_parse_from(all).expect("accepted").args;
        args.settle();
        args
    }

    #[test]
    fn with_local_steps_the_server_moves_at_rate_1_unless_told() {
        let lr = |arguments: &[&str]| local(arguments).job.update.lr;
        assert_eq!(lr(&[]), None);
        assert_eq!(lr(&["--local-steps=5", "--local-lr=0.1"]), Some(1.0));
        assert_eq!(lr(&["--local-lr=0.1", "--lr=0.5"]), Some(0.5));
        assert_eq!(lr(&["--local-lr=0.1", "--optimizer=adam"]), None);
    }

    #[test]
    fn an_evaluator_is_needed_where_the_workers_losses_do_not_make_up_the_history() {
        for (arguments, needed) in [
            (&[][..], false),
            (&["--mode=async"], true),
            (&["--mode=ssp"], true),
            (&["--backup-workers=1"], true),
            (&["--backup-workers=0"], false),
            (&["--batch=16"], true),
            (&["--batch=full"], false),
            (&["--test-data=x"], true),
        ] {
            assert_eq!(local(arguments).needs_evaluator(), needed, "{arguments:?}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        for (arguments, says) in [
            (&["--servers=2", "--mode=hogwild"][..], "--servers 2 with --mode hogwild"),
            (&["--test-labels=x"], "--test-labels"),
            (&["--eval-every=3"], "--eval-every"),
            (&["--data=x", "--data-is-shard=true"], "--data-is-shard"),
            (&["--theta-out=x.bin"], "--theta-out x.bin"),
            (&["--plot=x.pdf"], "--plot x.pdf"),
            (&["--mode=async", "--aggregate=mean"], "--aggregate"),
            (&["--staleness-bound=1"], "--staleness-bound"),
            (&["--overlap"], "--overlap with --mode sync"),
            (&["--overlap", "--mode=ssp", "--staleness-bound=0"], "--staleness-bound 0"),
            (&["--overlap", "--mode=async", "--max-gradient-delay=9"], "--on-excess block"),
            (
                &["--overlap", "--mode=async", "--delay-scaling=dc-asgd,lambda=0.1"],
                "--delay-scaling dc-asgd",
            ),
            (&["--sparse", "--servers=2"], "--sparse and --servers (there are 2)"),
            (&["--sparse", "--l2=0.1"], "--sparse and --l2 0.1"),
            (&["--model=none"], "--model none"),
            (&["--take=0"], "--take 0"),
            (&["--theta-in=x.bin"], "--theta-in: x.bin"),
            (&["--local-steps=4"], "--local-steps 4 needs --local-lr"),
            (&["--local-lr=1", "--aggregate=sum"], "--local-lr and --aggregate sum"),
        ] {
            let error = local(arguments).check().expect_err(says);
            assert!(error.exit == Exit::Config && error.message.contains(says), "{error}");
        }
        let error = local(&["--report=/no/such/place/r.json"]).check().expect_err("no directory");
        assert_eq!(error.exit, Exit::CannotCreate);
        let check = |arguments: &[&str]| local(arguments).check().expect("fine");
        assert_eq!(check(&["--quiet", "--eval-every=3", "--mode=async"]), None);
        for mode in ["ssp", "async", "hogwild"] {
            assert_eq!(check(&["--overlap", &format!("--mode={mode}")]), None);
        }
        let starving = ["--mode=async", "--max-gradient-delay=1", "--on-excess=drop"];
        assert!(check(&starving).is_some_and(|warning| warning.contains("K - 1 = 3")));
    }

    #[test]
    fn the_options_in_force_read_back_from_toml() {
        let given = local(&["--workers=3", "--data=a,b", "--json", "--restarts=0", "--lr=1e-3"]);
        let toml = ps_common::flags::to_toml(&given);
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), &toml).expect("written");
        let command = <Demo as clap::CommandFactory>::command().name("local");
        let config = format!("--config={}", file.path().display());
        let matches = ps_common::flags::parse(&command, &["local".into(), config.into()])
            .expect("its own output");
        let again = <Demo as clap::FromArgMatches>::from_arg_matches(&matches).expect("parsed");
        assert_eq!(ps_common::flags::to_toml(&again.args), toml);
    }
}
