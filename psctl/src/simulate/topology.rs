//! `--topology` and `--graph`: peers that average with their neighbours, `peers::averaging` in this
//! world.

mod display;

use std::io::Write;
use std::sync::atomic::AtomicU64;

use ps_common::exit::{Exit, ExitError};
use ps_common::export::write_atomically;
use ps_common::job::Mode;
use ps_worker::learning::Problem;
use serde::Serialize;

use super::args::{SimulateArgs, X};
use super::clocks::Clocks;
use super::engine::World;
use super::outcome::blown_up_at;
use super::{in_parallel, with_progress};
use crate::cli::print;
use crate::peers::{Peers, Settings, averaging, show};
use crate::show::Look;

/// One run of those that were asked for.
struct Member {
    peers: Peers,
    sim_seed: u64,
}

/// What was asked for, checked.
struct Plan {
    members: Vec<Member>,
    world: World,
    lr: f64,
}

/// All runs of a call: the JSON of `psctl simulate --topology`.
#[derive(Debug, Clone, Serialize)]
struct Results {
    /// In the order of the flags: by topology, number of peers, seed.
    runs: Vec<RunResult>,
    /// Model and update rule, for titles.
    #[serde(skip)]
    subject: String,
}

/// One run.
#[derive(Debug, Clone, Serialize)]
struct RunResult {
    /// Its name, or the graph's file.
    topology: String,
    /// Of compute times.
    sim_seed: u64,
    /// `done` or `diverged`.
    outcome: String,
    /// Where the peers' mean objective first was a thousand times its first value, if it ended above
    /// that; else where numbers left the range of floating point.
    diverged_at_round: Option<f64>,
    /// Until the last peer had done the last round that was measured.
    virtual_seconds: f64,
    /// Until then.
    rounds: u64,
    /// The objective at the mean of the final thetas; `None` if it is no number.
    final_loss: Option<f64>,
    /// The network, and the history.
    #[serde(flatten)]
    run: averaging::Outcome,
}

/// Simulates every network that `args` asks for and writes what is asked for.
///
/// # Errors
/// Configuration, naming the flag; bad data; outputs that cannot be written. A run that diverges is
/// a result.
pub(super) fn run(args: &SimulateArgs, out: &mut impl Write) -> Result<(), ExitError> {
    let plan = args.check_topology()?;
    let results = simulate(args, &plan)?;
    let output = &args.output;
    if let Some(path) = &output.csv {
        let text = display::csv(&results);
        write_atomically(path, |out| out.write_all(text.as_bytes()))?;
    }
    if let Some(path) = &output.plot {
        let over = match output.x {
            Some(X::Seconds) => show::Over::Seconds,
            Some(X::Rounds | X::Pushes) | None => show::Over::Rounds,
        };
        display::chart(&results, over).write(path)?;
    }
    if output.json {
        let line = serde_json::to_string(&results)
            .map_err(|e| ExitError::new(Exit::Bug, "the results are no JSON").because(e))?;
        print(out, &format!("{line}\n"))
    } else if output.quiet {
        Ok(())
    } else {
        print(out, &display::text(&results, &Look::stdout()))
    }
}

impl SimulateArgs {
    /// Checks what can be known before anything runs without a server.
    fn check_topology(&self) -> Result<Plan, ExitError> {
        self.check_beside_topology()?;
        // Without a schedule, which has been refused, nobody asks whether --rounds was given.
        self.check_combinations(false)?;
        self.learn.data.check()?;
        self.learn.model.check()?;
        self.output.check(&self.runs.workers)?;
        let world = self.world.check()?;
        world.check_ranks(self.runs.workers.iter().max().copied().unwrap_or(0))?;
        let mut members = Vec::new();
        let by_size = self.runs.workers.iter().map(|&n| self.peers.check(n, self.learn.data.seed));
        let by_size: Vec<Vec<Peers>> = by_size.collect::<Result<_, _>>()?;
        for network in 0..by_size.first().map_or(0, Vec::len) {
            for of_size in &by_size {
                for sim_seed in self.sim_seeds() {
                    members.push(Member { peers: of_size[network].clone(), sim_seed });
                }
            }
        }
        Ok(Plan { members, world, lr: self.job.update.check()?.lr })
    }
}

fn simulate(args: &SimulateArgs, plan: &Plan) -> Result<Results, ExitError> {
    let problem = Problem::survey(&args.learn)?;
    let progress = AtomicU64::new(0);
    let one = |member: &Member| run_one(args, plan, &problem, member, &progress);
    let n_gradients: u64 = plan
        .members
        .iter()
        .map(|member| u64::from(member.peers.network.n_peers()) * args.job.rounds)
        .sum();
    let runs = with_progress(args.output.quiet, n_gradients, &progress, || {
        in_parallel(&plan.members, one)
    })?;
    let subject = format!("{}, sgd, lr={}", problem.model().kind(), plan.lr);
    Ok(Results { runs, subject })
}

fn run_one(
    args: &SimulateArgs,
    plan: &Plan,
    problem: &Problem,
    member: &Member,
    progress: &AtomicU64,
) -> Result<RunResult, ExitError> {
    let network = &member.peers.network;
    let n_peers = network.n_peers();
    let clocks = Clocks::new(&plan.world, member.sim_seed, n_peers, progress);
    let compute_seconds = |rank, n_rows| clocks.compute_seconds(rank, n_rows);
    // A round is a batch of everybody, as behind a barrier.
    let per_pass = || problem.updates_per_pass(Mode::Sync, n_peers);
    let settings = Settings {
        dtype: args.job.dtype,
        rounds: args.job.rounds,
        record_every: args.evaluation.eval_every.unwrap_or_else(per_pass),
        deal: args.peers.deal.unwrap_or_default(),
        links: plan.world.peer_links(),
        message_bytes: plan.world.theta_bytes,
        compute_seconds: &compute_seconds,
    };
    let run = averaging::run(problem, network, plan.lr, &settings)?;
    let losses: Vec<(f64, f64)> =
        run.history.iter().map(|entry| (entry.round as f64, entry.loss_own)).collect();
    let overflow = run.diverged_in_round.map(|round| round as f64);
    let diverged_at_round = blown_up_at(&losses).or(overflow);
    let last = run.history.last().expect("the first thetas have an entry");
    Ok(RunResult {
        topology: member.peers.name.clone(),
        sim_seed: member.sim_seed,
        outcome: if diverged_at_round.is_some() { "diverged" } else { "done" }.to_owned(),
        diverged_at_round,
        virtual_seconds: last.seconds,
        rounds: last.round,
        final_loss: Some(last.loss).filter(|loss| loss.is_finite()),
        run,
    })
}
