//! The flags of `psctl simulate`, as parsed; `plan` checks them.
//!
//! Job and learning flags are the server's and the worker's own; mode and workers are lists here.

use std::path::PathBuf;

use clap::Args;
use ps_common::flags::ConfigArgs;
use ps_server::args::JobArgs;
use ps_worker::args::{EvaluationArgs, LearnArgs};
use serde::Serialize;

use super::mode::RunMode;
use super::pace::Per;
use super::scenarios::ScenarioArgs;
use crate::local::LocalArgs;
use crate::peers::PeersArgs;

const EXAMPLES: &str = "\
Examples:
  psctl simulate --workers 1,2,4,8,16,32 --plot loss.svg --plot-speedup speedup.svg
  psctl simulate --workers 16 --mode async --lr 0.3          does it diverge?
  psctl simulate --compute-time log-normal,median=10ms,sigma=0.5 --stragglers share=0.02,factor=10
  psctl simulate --mode sync --fault crash:rank=2,at=200ms,back=30s
  psctl simulate --mode sync,mapreduce
  psctl simulate --topology ring,star --workers 16 --csv peers.csv
  psctl simulate --scenarios                                 published results, re-enacted
  psctl simulate --scenario bounded-delay --plot delay.svg
  psctl simulate --schedule order.txt --fixed-delay 3 --dtype f64 --json

The server's own core and theta and the workers' own models run in virtual time: nothing sleeps, and
the same flags give the same bytes. docs/SIMULATION.md says what is modelled and what is not.";

/// Trains in virtual time: the real server core and models, simulated clocks and network
#[derive(Args, Debug, Clone, Serialize)]
#[command(after_help = EXAMPLES)]
#[serde(rename_all = "kebab-case")]
pub struct SimulateArgs {
    /// What is simulated.
    #[command(flatten)]
    #[serde(flatten)]
    pub runs: RunsArgs,
    /// The job.
    #[command(flatten)]
    #[serde(flatten)]
    pub job: JobArgs,
    /// The world.
    #[command(flatten)]
    #[serde(flatten)]
    pub world: WorldArgs,
    /// Who stands in for the server.
    #[command(flatten)]
    #[serde(flatten)]
    pub peers: PeersArgs,
    /// Data and model.
    #[command(flatten)]
    #[serde(flatten)]
    pub learn: LearnArgs,
    /// What is looked at on the way.
    #[command(flatten)]
    #[serde(flatten)]
    pub evaluation: EvaluationArgs,
    /// What is left behind.
    #[command(flatten)]
    #[serde(flatten)]
    pub output: OutputArgs,
    /// A published result instead.
    #[command(flatten)]
    #[serde(flatten)]
    pub scenario: ScenarioArgs,
    /// Options from a file.
    #[command(flatten)]
    #[serde(skip)]
    pub file: ConfigArgs,
}

impl SimulateArgs {
    /// A single run of what `psctl local` would train, without a word about it.
    pub(super) fn of_one(local: &LocalArgs, world: WorldArgs) -> Self {
        Self {
            runs: RunsArgs {
                modes: vec![local.crew.mode.into()],
                workers: vec![local.crew.workers],
                sim_seed: vec![local.learn.data.seed],
                schedule: None,
                fixed_delay: None,
            },
            job: local.job.clone(),
            peers: PeersArgs::default(),
            scenario: ScenarioArgs::default(),
            world,
            learn: local.learn.clone(),
            evaluation: local.evaluation.clone(),
            output: OutputArgs { quiet: true, ..OutputArgs::default() },
            file: ConfigArgs::default(),
        }
    }
}

/// Which runs: one for each mode, number of workers and seed.
#[derive(Args, Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Runs")]
pub struct RunsArgs {
    /// How updates are ordered [default: sync,async; async with --schedule]
    #[arg(
        id = "modes",
        long = "mode",
        env = "PS_MODE",
        value_name = "MODE",
        value_enum,
        value_delimiter = ','
    )]
    #[serde(rename = "mode")]
    pub modes: Vec<RunMode>,
    /// Numbers of workers K
    #[arg(long, env = "PS_WORKERS", value_name = "K", value_delimiter = ',', default_value = "4", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub workers: Vec<u32>,
    /// Seeds of compute times; the data's is --seed [default: 0]
    #[arg(long, env = "PS_SIM_SEED", value_name = "N", value_delimiter = ',')]
    pub sim_seed: Vec<u64>,
    /// Fixed asynchronous schedule: line t names the worker whose gradient is update t, and perhaps
    /// its delay (or JSON: a list of workers). No virtual time then
    #[arg(long, env = "PS_SCHEDULE", value_name = "FILE")]
    pub schedule: Option<PathBuf>,
    /// Update t of --schedule is computed at theta of version max(0, t - N) [default: 0]
    #[arg(long, env = "PS_FIXED_DELAY", value_name = "N")]
    pub fixed_delay: Option<u64>,
}

/// The world that the runs live in.
#[derive(Args, Debug, Clone, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Virtual time")]
pub struct WorldArgs {
    /// How long a gradient takes: constant=TIME, uniform=MIN..MAX, log-normal,median=TIME,sigma=F
    /// or exponential,mean=TIME [default: constant=10ms]
    #[arg(long, env = "PS_COMPUTE_TIME", value_name = "DISTRIBUTION")]
    pub compute_time: Option<String>,
    /// What --compute-time is the time of [default: step]
    #[arg(long, env = "PS_COMPUTE_PER", value_enum)]
    pub compute_per: Option<Per>,
    /// Steps that take longer, each with a probability: share=0.02,factor=10
    #[arg(long, env = "PS_STRAGGLERS", value_name = "share=F,factor=F")]
    pub stragglers: Option<String>,
    /// A worker whose every step takes FACTOR times as long; may be given several times
    #[arg(long, env = "PS_SLOW_WORKER", value_name = "RANK=FACTOR", value_delimiter = ',')]
    pub slow_worker: Vec<String>,
    /// Of every message [default: 1ms]
    #[arg(long, env = "PS_LATENCY", value_name = "TIME")]
    pub latency: Option<String>,
    /// Of each worker's link, either way, in bits per second: 100Mbit/s, 1Gbit/s [default: 1Gbit/s]
    #[arg(long, env = "PS_BANDWIDTH", value_name = "BITS/S")]
    pub bandwidth: Option<String>,
    /// Of the server's own link, either way, which all workers share [default: no limit]
    #[arg(long, env = "PS_SERVER_BANDWIDTH", value_name = "BITS/S")]
    pub server_bandwidth: Option<String>,
    /// Send messages as if theta had so many bytes, e.g. 4M [default: its real size]
    #[arg(long, env = "PS_THETA_BYTES", value_name = "N")]
    pub theta_bytes: Option<String>,
    /// How long the server takes for an update: TIME, or TIME/MB for each 10^6 bytes of the
    /// gradients that it is made of [default: 0.1ms]
    #[arg(long, env = "PS_APPLY_TIME", value_name = "TIME[/MB]")]
    pub apply_time: Option<String>,
    /// What a worker does when a round has closed without it (--backup-workers) [default: finish]
    #[arg(long, env = "PS_LATE", value_enum)]
    pub late: Option<Late>,
    /// Something that goes wrong; may be given several times: crash:rank=2,at=1.5s,back=3s,
    /// slow:rank=1,from=1s,to=2s,factor=10 or partition:ranks=0-3,from=1s,to=2s
    #[arg(long, value_name = "FAULT")]
    pub fault: Vec<String>,
    /// The same from a file: tables `[[crash]]`, `[[slow]]`, `[[partition]]`
    #[arg(long, env = "PS_FAULTS", value_name = "FILE.toml")]
    pub faults: Option<PathBuf>,
}

/// What becomes of the computation of a worker without which a round has closed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Late {
    /// It goes on, and its gradient is dropped when it comes, as with ps-worker
    #[default]
    Finish,
    /// A what-if: it hears of it after one latency, gives the gradient up and pulls the new theta
    Abandon,
}

/// What stands on the x axis of the losses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum X {
    /// version, divided by the number of workers where a push is an update
    Rounds,
    /// Virtual seconds
    Seconds,
    /// Gradients that have counted
    Pushes,
}

/// What is left behind.
#[derive(Args, Debug, Clone, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// File that gets every measured loss, by round, virtual time and pushes
    #[arg(long, env = "PS_CSV", value_name = "FILE.csv")]
    pub csv: Option<PathBuf>,
    /// File that gets the loss curves (.svg or .png)
    #[arg(long, env = "PS_PLOT", value_name = "FILE")]
    pub plot: Option<PathBuf>,
    /// What the curves of --plot are drawn against [default: rounds]
    #[arg(long, env = "PS_X", value_enum)]
    pub x: Option<X>,
    /// File that gets the speed-up over the number of workers beside the ideal (.svg or .png)
    #[arg(long, env = "PS_PLOT_SPEEDUP", value_name = "FILE")]
    pub plot_speedup: Option<PathBuf>,
    /// Print all results as one line of JSON instead of the table
    #[arg(long, env = "PS_JSON", default_value_t = false, num_args = 0..=1, default_missing_value = "true", require_equals = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub json: bool,
    /// No progress and no table
    #[arg(long, short, env = "PS_QUIET", default_value_t = false, num_args = 0..=1, default_missing_value = "true", require_equals = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub quiet: bool,
}
