//! The server's flags as parsed, and what the program may rely on once they are checked.

mod consistency;
mod durability;
mod peers;
mod place;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser};
use ps_common::Dtype;
use ps_common::cluster::TaskArgs;
use ps_common::exit::ExitError;
use ps_common::flags::ProgramArgs;
use ps_common::job::{Aggregate, Fingerprint, Mode, OnWorkerLoss};
use ps_common::partition::Partition;
use ps_common::units::parse_duration;
use serde::Serialize;

pub use self::consistency::ConsistencyArgs;
pub use self::durability::{DurabilityArgs, DurabilitySpec, Resume};
pub use self::peers::{PeerArgs, PeerSpec, refuse_of_several};
pub use self::place::implied;
use crate::core::Config;
use crate::numeric::{Optimizer, Rule};
use crate::security::{LimitArgs, Limits, Security, SecurityArgs};

mod update;

pub use update::UpdateArgs;

/// Keeps the global parameters theta and applies workers' gradients
#[derive(Parser, Debug, Clone, Serialize)]
#[command(name = "ps-server", version = crate::VERSION, after_help = EXAMPLES)]
#[serde(rename_all = "kebab-case")]
pub struct ServerArgs {
    /// Its mode and workers.
    #[command(flatten)]
    #[serde(flatten)]
    pub crew: CrewArgs,
    /// The job.
    #[command(flatten)]
    #[serde(flatten)]
    pub job: JobArgs,
    /// Where and how it is served.
    #[command(flatten)]
    #[serde(flatten)]
    pub serve: ServeArgs,
}

const EXAMPLES: &str = "\
Examples:
  ps-server --workers 4 --rounds 100                    synchronous, on 127.0.0.1:50051
  ps-server --mode async --workers 8 --lr 0.05          every gradient when it arrives
  ps-server --mode ssp --staleness-bound 2              nobody more than 2 steps ahead
  ps-server --listen 127.0.0.1:0 --port-file port.txt   any free port, written to a file
  psctl certs --out certs --host NAME                   for other machines: TLS and tokens; it
                                                        prints the flags that use them

Every option is also a PS_... environment variable and a key of --config FILE.toml.
Logs go to stderr; PS_LOG=debug shows more.";

/// In which mode, by how many: apart from the job's other flags because tools that run one job in
/// several ways have lists in their place.
#[derive(Args, Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Job")]
pub struct CrewArgs {
    /// How updates are ordered: a barrier per round, each gradient when it arrives, that with a
    /// bound on how far ahead of the slowest a worker may get, or all at once without locks
    #[arg(long, env = "PS_MODE", value_enum, default_value_t = Mode::Sync)]
    pub mode: Mode,
    /// Number of workers K
    #[arg(long, env = "PS_WORKERS", value_name = "K", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub workers: u32,
}

/// What is trained, how, whatever the mode and the number of workers: shared by `ps-server` and
/// psctl.
#[derive(Args, Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Job")]
pub struct JobArgs {
    /// How a round's gradients become one (sync only): weighted-mean, mean, sum, collect, median or
    /// trimmed-mean,k=N [default: weighted-mean]
    #[arg(long, env = "PS_AGGREGATE", value_name = "NAME")]
    pub aggregate: Option<Aggregate>,
    /// Element type of theta and gradients
    #[arg(long, env = "PS_DTYPE", value_enum, default_value_t = Dtype::F32)]
    pub dtype: Dtype,
    /// Stop after N steps of each worker, which in sync mode are N rounds; 0: run until stopped
    #[arg(long, env = "PS_ROUNDS", value_name = "N", default_value_t = 100)]
    pub rounds: u64,
    /// A worker that is silent for this many milliseconds is lost
    #[arg(long, env = "PS_LEASE_MS", value_name = "MS", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(100..=3_600_000))]
    pub lease_ms: u32,
    /// What becomes of a lost worker's rank [default: wait in sync mode, else continue]
    #[arg(long, env = "PS_ON_WORKER_LOSS", value_enum)]
    pub on_worker_loss: Option<OnWorkerLoss>,
    /// How long a rank may be without a worker before the job fails, or with `continue` goes on
    /// without it where others live [default: 10m]
    #[arg(long, env = "PS_REPLACEMENT_TIMEOUT", value_name = "TIME")]
    pub replacement_timeout: Option<String>,
    /// Who waits for whom.
    #[command(flatten)]
    #[serde(flatten)]
    pub consistency: ConsistencyArgs,
    /// How theta moves.
    #[command(flatten)]
    #[serde(flatten)]
    pub update: UpdateArgs,
}

/// Where the server listens and what it leaves behind.
#[derive(Args, Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Serving")]
pub struct ServeArgs {
    /// Address to listen on; port 0 takes any free one
    #[arg(long, env = "PS_LISTEN", value_name = "HOST:PORT", default_value = "127.0.0.1:50051")]
    pub listen: SocketAddr,
    /// File that gets the bound port, written whole once the server serves
    #[arg(long, env = "PS_PORT_FILE", value_name = "FILE")]
    pub port_file: Option<PathBuf>,
    /// File that gets the report when the job ends (JSON)
    #[arg(long, env = "PS_REPORT", value_name = "FILE.json")]
    pub report: Option<PathBuf>,
    /// File that gets the final theta (.npy, .csv or .safetensors)
    #[arg(long, env = "PS_THETA_OUT", value_name = "FILE")]
    pub theta_out: Option<PathBuf>,
    /// File to start theta from, as --theta-out writes it (.npy, .csv or .safetensors) [default: as
    /// the model says]
    #[arg(long, env = "PS_THETA_IN", value_name = "FILE")]
    pub theta_in: Option<PathBuf>,
    /// Evaluators that must have measured the first theta before the first update
    #[arg(long, env = "PS_OBSERVERS", value_name = "N", default_value_t = 0)]
    pub observers: u32,
    /// TCP congestion control of every connection, by the kernel's name, e.g. cubic [default: the
    /// system's]
    #[arg(long, env = "PS_CONGESTION", value_name = "NAME")]
    pub congestion: Option<String>,
    /// How long a stopping server waits for calls in flight
    #[arg(long, env = "PS_DRAIN_TIMEOUT", value_name = "TIME", default_value = "10s")]
    pub drain_timeout: String,
    /// What outlives the process.
    #[command(flatten)]
    #[serde(flatten)]
    pub durability: DurabilityArgs,
    /// Which of S servers this is: i/S, from 0/S, which decides and speaks to the others; each keeps its
    /// part of theta
    #[arg(
        long,
        env = "PS_PARTITION",
        value_name = "i/S",
        default_value = "0/1",
        help_heading = "Several servers"
    )]
    pub partition: String,
    /// The other servers.
    #[command(flatten)]
    #[serde(flatten)]
    pub peers: PeerArgs,
    /// Who may come in.
    #[command(flatten)]
    #[serde(flatten)]
    pub security: SecurityArgs,
    /// What a connection may do.
    #[command(flatten)]
    #[serde(flatten)]
    pub limits: LimitArgs,
    /// Its place in a cluster; some of the flags above are what follows from it.
    #[command(flatten)]
    #[serde(skip)]
    pub task: TaskArgs,
    /// As every program.
    #[command(flatten)]
    #[serde(flatten)]
    pub program: ProgramArgs,
}

/// The job, checked.
#[derive(Debug, Clone)]
pub struct JobSpec {
    /// What the core decides by.
    pub config: Config,
    /// How theta moves.
    pub optimizer: Optimizer,
    /// Of theta.
    pub dtype: Dtype,
}

impl JobSpec {
    /// What must be equal on all servers of the job, by the names of the flags that say it.
    pub fn settings(&self, serve: &ServeArgs) -> Fingerprint {
        let given = |is_given: bool| if is_given { "given" } else { "none" };
        let Optimizer { rule, lr, schedule, weight_decay, clip_norm } = &self.optimizer;
        let settings = [
            ("optimizer", format!("{}{rule}", rule.name())),
            ("lr", lr.to_string()),
            ("lr-schedule", schedule.to_string()),
            ("weight-decay", weight_decay.to_string()),
            ("clip-norm", clip_norm.map_or_else(|| "none".to_owned(), |norm| norm.to_string())),
            ("dtype", self.dtype.to_string()),
            ("checkpoint-dir", given(serve.durability.checkpoint_dir.is_some()).to_owned()),
            ("theta-in", given(serve.theta_in.is_some()).to_owned()),
        ];
        settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

impl JobArgs {
    /// The job in one of several modes that it is run in: without the options that only others of
    /// `modes` use. What none of them uses stays, to be refused.
    #[must_use]
    pub fn in_one_of(&self, mode: Mode, modes: &[Mode]) -> Self {
        let mut job = self.clone();
        let unused = |of: Mode| of != mode && modes.contains(&of);
        if unused(Mode::Sync) {
            job.aggregate = None;
            job.consistency.backup_workers = None;
        }
        if unused(Mode::Ssp) {
            job.consistency.staleness_bound = None;
        }
        if unused(Mode::Async) {
            job.consistency.delay_scaling = None;
            job.consistency.max_gradient_delay = None;
            job.consistency.on_excess = None;
        }
        job
    }

    /// Checks combinations with a crew and gives defaults their values.
    ///
    /// # Errors
    /// A configuration error that names the flag.
    pub fn check(&self, crew: &CrewArgs) -> Result<JobSpec, ExitError> {
        let consistency = self.consistency.check(crew, self.aggregate)?;
        let on_worker_loss =
            self.on_worker_loss.unwrap_or_else(|| consistency.default_on_worker_loss());
        Ok(JobSpec {
            config: Config {
                consistency,
                n_workers: crew.workers,
                partition: ps_common::partition::Partition::WHOLE,
                aggregate: self.aggregate.unwrap_or(Aggregate::WeightedMean),
                rounds: (self.rounds > 0).then_some(self.rounds),
                lease: Duration::from_millis(self.lease_ms.into()),
                on_worker_loss,
                replacement_timeout: duration(
                    "--replacement-timeout",
                    self.replacement_timeout.as_deref().unwrap_or("10m"),
                )?,
                observers: 0,
                wait_max: Config::WAIT_MAX,
                stop: self.consistency.stop_rules()?,
                checkpoints: None,
                boot: 0,
            },
            optimizer: self.optimizer(crew.mode)?,
            dtype: self.dtype,
        })
    }
}

impl JobArgs {
    fn optimizer(&self, mode: Mode) -> Result<Optimizer, ExitError> {
        let optimizer = self.update.check()?;
        if mode == Mode::Hogwild && optimizer.rule != Rule::Sgd {
            return Err(ExitError::config(format!(
                "--optimizer {} with --mode {mode}: what it remembers of each element cannot be \
                 shared without locks; take sgd, or --mode async",
                optimizer.rule.name()
            )));
        }
        Ok(optimizer)
    }
}

/// How the job is served, checked.
#[derive(Debug, Clone)]
pub struct ServeSpec {
    /// For calls in flight at the end.
    pub drain_timeout: Duration,
    /// Who may come in.
    pub security: Security,
    /// What a connection may do.
    pub limits: Limits,
}

impl ServeArgs {
    /// Which of how many servers this is.
    ///
    /// # Errors
    /// A configuration error, where it is none of them.
    pub fn partition(&self) -> Result<Partition, ExitError> {
        self.partition.parse().map_err(|what| ExitError::config(format!("--partition {what}")))
    }

    /// Checks what can be checked before anything is opened.
    ///
    /// # Errors
    /// A configuration error that names the flag.
    pub fn check(&self, crew: &CrewArgs) -> Result<ServeSpec, ExitError> {
        Ok(ServeSpec {
            drain_timeout: duration("--drain-timeout", &self.drain_timeout)?,
            security: self.security.check(self.listen)?,
            limits: self.limits.check(crew.workers)?,
        })
    }
}

pub(crate) fn duration(flag: &str, text: &str) -> Result<Duration, ExitError> {
    parse_duration(text).map_err(|what| ExitError::config(format!("{flag}: {what}")))
}
