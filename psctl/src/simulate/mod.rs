//! `psctl simulate`: a job in virtual time, by the server's own core and theta and the workers' own
//! models.
//!
//! Owns virtual clocks, links, compute times and faults. Decides nothing about training: that is
//! `ps_server::core`, which is stepped here with a time that nobody waits for. What is modelled and
//! what is not stands in docs/SIMULATION.md.

#![deny(clippy::disallowed_methods)]

mod args;
mod clocks;
mod display;
mod engine;
mod faults;
mod fixed;
mod mapreduce;
mod mode;
mod network;
mod outcome;
mod pace;
mod plan;
mod queue;
pub mod scenarios;
mod schedule;
mod server;
mod serverless;
mod topology;
mod watch;
mod worker;

use std::io::Write;
use std::num::NonZero;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use ps_common::Dtype;
use ps_common::exit::{Exit, ExitError};
use ps_common::export::write_atomically;
use ps_worker::learning::Problem;
use ps_worker::model::Real;

use args::X;
pub use args::{SimulateArgs, WorldArgs};
use engine::{Setup, World};
pub use mode::RunMode;
pub use outcome::{IdleShare, Point, Results, RunResult};
use plan::{History, Member, Plan};
use watch::Rows;

use crate::cli::print;
use crate::local::LocalArgs;
use crate::show::Look;

/// Between two looks at how far the runs are.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// Simulates every run that `args` asks for and writes what is asked for. `rounds_given` says
/// whether `--rounds` was given by the user.
///
/// # Errors
/// As [`results`]; outputs that cannot be written.
pub fn run(args: &SimulateArgs, rounds_given: bool, out: &mut impl Write) -> Result<(), ExitError> {
    if args.peers.is_asked_for() {
        return topology::run(args, out);
    }
    let results = results(args, rounds_given)?;
    let output = &args.output;
    if let Some(path) = &output.csv {
        let text = display::csv(&results);
        write_atomically(path, |out| out.write_all(text.as_bytes()))?;
    }
    if let Some(path) = &output.plot {
        display::losses(&results, output.x.unwrap_or(X::Rounds)).write(path)?;
    }
    if let Some(path) = &output.plot_speedup {
        display::speedups(&results).write(path)?;
    }
    if output.json {
        let line = serde_json::to_string(&results)
            .map_err(|e| ExitError::new(Exit::Bug, "the results are no JSON").because(e))?;
        print(out, &format!("{line}\n"))
    } else if output.quiet {
        Ok(())
    } else {
        print(out, &display::table(&results, &Look::stdout()))
    }
}

/// Simulates every run with a server that `args` asks for, with progress on stderr.
/// `rounds_given` as in [`run`].
///
/// # Errors
/// Configuration, naming the flag; bad data. A job that fails or diverges is a result.
pub fn results(args: &SimulateArgs, rounds_given: bool) -> Result<Results, ExitError> {
    let plan = args.check(rounds_given)?;
    for member in &plan.members {
        if let Some(warning) = member.spec.config.consistency.warning(member.n_workers) {
            tracing::warn!("{warning}");
        }
    }
    match args.job.dtype {
        Dtype::F32 => simulate::<f32>(args, &plan),
        Dtype::F64 => simulate::<f64>(args, &plan),
    }
}

/// One run of what `psctl local` would train, in `world`; its data's seed is that of compute times.
///
/// # Errors
/// As [`results`].
pub fn one(local: &LocalArgs, world: WorldArgs) -> Result<RunResult, ExitError> {
    let args = SimulateArgs::of_one(local, world);
    let mut plan = args.check(true)?;
    plan.baselines.clear();
    let results = match args.job.dtype {
        Dtype::F32 => simulate::<f32>(&args, &plan),
        Dtype::F64 => simulate::<f64>(&args, &plan),
    };
    let run = results?.runs.pop();
    run.ok_or_else(|| ExitError::new(Exit::Bug, "a simulation without a run"))
}

fn simulate<T: Real>(args: &SimulateArgs, plan: &Plan) -> Result<Results, ExitError> {
    let problem = Problem::survey(&args.learn)?;
    let rows = Rows {
        model: problem.model().clone(),
        train: problem.load_all::<T>()?,
        test: problem.load_test::<T>(&args.evaluation)?,
    };
    let calm = plan.world.without_misfortunes();
    let jobs: Vec<(&Member, &World)> = plan
        .members
        .iter()
        .map(|member| (member, &plan.world))
        .chain(plan.baselines.iter().map(|member| (member, &calm)))
        .collect();
    let progress = AtomicU64::new(0);
    let one = |&(member, world): &(&Member, &World)| {
        let per_pass = || problem.updates_per_pass(member.mode.rules(), member.n_workers);
        if member.mode == RunMode::Mapreduce {
            let record_every = match member.history {
                History::Workers => 1,
                History::Observer => args.evaluation.eval_every.unwrap_or_else(per_pass),
                History::Nobody => u64::MAX,
            };
            let deal = args.peers.deal.unwrap_or_default();
            let terms = mapreduce::Terms {
                problem: &problem,
                world,
                deal,
                record_every,
                progress: &progress,
            };
            return mapreduce::run(member, &terms);
        }
        let watch = match (member.history, &plan.schedule) {
            (History::Nobody, _) => None,
            (History::Workers, _) => Some((&rows, None)),
            (History::Observer, Some(_)) => Some((&rows, args.evaluation.eval_every.or(Some(1)))),
            (History::Observer, None) => {
                Some((&rows, Some(args.evaluation.eval_every.unwrap_or_else(per_pass))))
            }
        };
        let setup = Setup {
            problem: &problem,
            spec: &member.spec,
            world,
            sim_seed: member.sim_seed,
            watch,
            progress: &progress,
        };
        let finished = match &plan.schedule {
            Some(turns) => fixed::run(setup, turns)?,
            None => engine::run(setup)?,
        };
        Ok(RunResult::new(member.mode, member.sim_seed, world.pace.per, finished))
    };
    let n_pushes = match &plan.schedule {
        Some(turns) => turns.len() as u64,
        None => jobs
            .iter()
            .map(|(m, _)| m.spec.config.rounds.unwrap_or(0) * u64::from(m.n_workers))
            .sum(),
    };
    let mut runs =
        with_progress(args.output.quiet, n_pushes, &progress, || in_parallel(&jobs, one))?;
    let baselines = runs.split_off(plan.members.len());
    outcome::compare(&mut runs, &baselines);
    Ok(Results { runs })
}

/// Does `work` with a bar on stderr, if that is a terminal, which shows `done` of `all`.
fn with_progress<A>(quiet: bool, all: u64, done: &AtomicU64, work: impl FnOnce() -> A) -> A {
    let style =
        ProgressStyle::with_template("{wide_bar} {percent} %  {pos} of {len} gradients  {eta}");
    let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(Some(all), target)
        .with_style(style.expect("a valid template"));
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let result = std::thread::scope(|scope| {
        let shown = bar.clone();
        scope.spawn(move || {
            // Ends when the sender does.
            while stopped.recv_timeout(PROGRESS_EVERY)
                == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
            {
                shown.set_position(done.load(Ordering::Relaxed));
            }
        });
        let result = work();
        drop(stop);
        result
    });
    bar.finish_and_clear();
    result
}

/// Does `work` for each of `items`, on as many threads as there are processors, and gives the
/// results in the order of the items, or the first error.
fn in_parallel<I: Sync, A: Send>(
    items: &[I],
    work: impl Fn(&I) -> Result<A, ExitError> + Sync,
) -> Result<Vec<A>, ExitError> {
    let n_threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(items.len());
    let next = AtomicUsize::new(0);
    let done: Vec<Mutex<Option<Result<A, ExitError>>>> =
        items.iter().map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for _ in 0..n_threads {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(at) else { break };
                    *done[at].lock().expect("nobody panics with it") = Some(work(item));
                }
            });
        }
    });
    done.into_iter()
        .map(|slot| slot.into_inner().expect("nobody panics with it").expect("all were done"))
        .collect()
}
