//! Map-reduce as a run beside those of a server: `peers::map_reduce` in this world.

use std::cell::Cell;
use std::sync::atomic::AtomicU64;

use ps_common::exit::ExitError;
use ps_common::report::GradientDelay;
use ps_worker::learning::Problem;

use super::clocks::Clocks;
use super::engine::World;
use super::mode::RunMode;
use super::outcome::{IdleShare, Point, RunResult, diverged_at};
use super::pace::Per;
use super::plan::Member;
use crate::peers::map_reduce::{self, MapReduce};
use crate::peers::{Deal, Settings};

/// How the run goes besides what its member says.
pub(super) struct Terms<'a> {
    pub(super) problem: &'a Problem,
    pub(super) world: &'a World,
    pub(super) deal: Deal,
    /// Rounds from one entry of the history to the next.
    pub(super) record_every: u64,
    /// Counts gradients.
    pub(super) progress: &'a AtomicU64,
}

/// Runs the job of `member`.
///
/// # Errors
/// Configuration, naming the flag; bad data. A job that diverges is a result.
pub(super) fn run(member: &Member, terms: &Terms<'_>) -> Result<RunResult, ExitError> {
    let Terms { problem, world, .. } = *terms;
    let n_workers = member.n_workers;
    let clocks = Clocks::new(world, member.sim_seed, n_workers, terms.progress);
    let n_rows = Cell::new(0);
    let compute_seconds = |rank, rows| {
        n_rows.set(n_rows.get() + rows);
        clocks.compute_seconds(rank, rows)
    };
    let config = &member.spec.config;
    let settings = Settings {
        dtype: member.spec.dtype,
        rounds: config.rounds.expect("checked: virtual time ends"),
        record_every: terms.record_every,
        deal: terms.deal,
        links: world.peer_links(),
        message_bytes: world.theta_bytes,
        compute_seconds: &compute_seconds,
    };
    let job = MapReduce { n_workers, reduce: config.aggregate, optimizer: member.spec.optimizer };
    let finished = map_reduce::run(problem, &job, &settings)?;
    let point = |entry: &map_reduce::Entry| Point {
        round: entry.round as f64,
        version: entry.round,
        pushes: entry.round * u64::from(n_workers),
        seconds: entry.seconds,
        loss: entry.loss,
    };
    let history: Vec<Point> = finished.history.iter().map(point).collect();
    let last = *history.last().expect("the last theta has an entry");
    let overflow = finished.diverged_in_round.map(|round| round as f64);
    let diverged_at_round = diverged_at(&history, overflow);
    let work = match world.pace.per {
        Per::Step => last.pushes as f64,
        Per::Row => n_rows.get() as f64,
    };
    Ok(RunResult {
        mode: RunMode::Mapreduce,
        n_workers,
        sim_seed: member.sim_seed,
        outcome: if diverged_at_round.is_some() { "diverged" } else { "done" }.to_owned(),
        diverged_at_round,
        virtual_seconds: last.seconds,
        rounds: last.round,
        pushes: last.pushes,
        final_loss: last.loss.is_finite().then_some(last.loss),
        train_accuracy: finished.accuracy,
        theta_sha256: finished.theta_sha256,
        idle_share: IdleShare::of(clocks.idle_shares(last.seconds)),
        gradient_delay: GradientDelay { histogram: vec![last.pushes], ..GradientDelay::default() },
        speedup: None,
        speedup_ideal: f64::from(n_workers),
        history: history.into_iter().filter(|point| point.loss.is_finite()).collect(),
        report: None,
        subject: format!("{}, {}", problem.model().kind(), member.spec.optimizer),
        rate: (work > 0.0 && last.seconds > 0.0).then(|| work / last.seconds),
    })
}
