//! Map-reduce: theta is broadcast, every worker maps its shard to a gradient, the gradients are
//! reduced to one step; one barrier a round.
//!
//! The gradients are combined by the server's own table as the core orders a synchronous round
//! (rules S3, S4 and S6), so that theta has the bits that a synchronous server gives it.

use ps_common::Dtype;
use ps_common::dtype::CHUNK_BYTES;
use ps_common::exit::ExitError;
use ps_common::job::{Aggregate, Metrics, Mode};
use ps_server::core::{CallId, Order};
use ps_server::numeric::Optimizer;
use ps_server::table::{Gradient, Store, Update};
use ps_worker::learning::{Learner, Problem};
use ps_worker::model::{Loss, Real};
use serde::Serialize;

use super::cost::Exchange;
use super::deal::{Use, learners};
use super::settings::Settings;

/// A job in rounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MapReduce {
    /// At least 1.
    pub n_workers: u32,
    /// How gradients become a step.
    pub reduce: Aggregate,
    /// What a step is.
    pub optimizer: Optimizer,
}

/// What a run shows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// Workers.
    pub n_workers: u32,
    /// How gradients became a step.
    pub reduce: Aggregate,
    /// Elements of theta.
    pub dim: usize,
    /// Broadcast and reduced in all, in bytes.
    pub bytes_sent: u64,
    /// The round whose step would have made theta overflow; there the run ended.
    pub diverged_in_round: Option<u64>,
    /// Before the first round, then as often as the settings say, and of the last theta.
    pub history: Vec<Entry>,
    /// Share of all rows that the last theta predicts right; `None` for regression.
    pub accuracy: Option<f64>,
    /// Of the last theta (rule R11).
    pub theta_sha256: String,
}

/// theta before a round.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Entry {
    /// Rounds before it.
    pub round: u64,
    /// Virtual time.
    pub seconds: f64,
    /// The objective over all shards.
    pub loss: f64,
}

/// Runs `settings.rounds` rounds. The same arguments give the same bits.
///
/// A round takes the exchange with one server ([`Exchange::Star`]) and the slowest worker's
/// computing.
///
/// # Errors
/// Configuration, naming the flag; bad data.
pub fn run(
    problem: &Problem,
    job: &MapReduce,
    settings: &Settings<'_>,
) -> Result<Outcome, ExitError> {
    if job.n_workers == 0 {
        return Err(ExitError::config("--workers 0: map-reduce needs at least 1 worker"));
    }
    match settings.dtype {
        Dtype::F32 => rounds::<f32>(problem, job, settings, |values| Gradient::F32(values.into())),
        Dtype::F64 => rounds::<f64>(problem, job, settings, |values| Gradient::F64(values.into())),
    }
}

fn rounds<T: Real>(
    problem: &Problem,
    job: &MapReduce,
    settings: &Settings<'_>,
    wrap: fn(Vec<T>) -> Gradient,
) -> Result<Outcome, ExitError> {
    let &MapReduce { n_workers, reduce, optimizer } = job;
    let barrier = Use { mode: Mode::Sync, aggregate: reduce };
    let mut workers = learners::<T>(problem, n_workers, barrier, settings)?;
    let mut store = Store::new(problem.tables(), settings.dtype, optimizer, CHUNK_BYTES);
    let dim = problem.model().dim();
    let bytes = settings.bytes(dim);
    let exchange = Exchange::Star.seconds(n_workers, bytes as f64, &settings.links);
    let (mut seconds, mut bytes_sent) = (0.0, 0);
    let mut history = Vec::new();
    let mut diverged_in_round = None;
    for round in 0..settings.rounds {
        let theta: Vec<T> = store.snapshot().values();
        let (gradients, losses) = map(&mut workers, round, &theta, wrap);
        let entry = || {
            let loss = objective(&workers, &theta, losses.iter().copied());
            Entry { round, seconds, loss }
        };
        if settings.is_recorded(round) {
            history.push(entry());
        }
        let named: Vec<(CallId, u64)> =
            (0..).map(CallId).zip(losses.iter().map(|loss| loss.n_samples)).collect();
        let order = Order::of_round(reduce, &named);
        let weights = order.parts.iter().map(|(_, weight)| *weight);
        let parts: Vec<(Gradient, f64)> = gradients.into_iter().zip(weights).collect();
        let update = Update {
            parts: &parts,
            combine: order.combine,
            rate_factor: order.rate_factor,
            compensation: None,
        };
        if store.update(&update).is_err() {
            diverged_in_round = Some(round);
            if !settings.is_recorded(round) {
                history.push(entry());
            }
            break;
        }
        let of = |(rank, loss): (u32, &Loss)| (settings.compute_seconds)(rank, loss.n_samples);
        let slowest = (0..n_workers).zip(&losses).map(of).fold(0.0, f64::max);
        seconds += exchange + slowest;
        bytes_sent += 2 * u64::from(n_workers) * bytes;
    }
    let snapshot = store.snapshot();
    let last = Metrics::merge(workers.iter().map(|worker| worker.metrics(&snapshot.values())));
    let last = last.expect("a job has workers");
    if diverged_in_round.is_none() {
        history.push(Entry { round: settings.rounds, seconds, loss: last.objective() });
    }
    Ok(Outcome {
        n_workers,
        reduce,
        dim,
        bytes_sent,
        diverged_in_round,
        history,
        accuracy: last.accuracy(),
        theta_sha256: snapshot.sha256(),
    })
}

/// Every worker's gradient of `round`, in order of rank.
fn map<T: Real>(
    workers: &mut [Learner<T>],
    round: u64,
    theta: &[T],
    wrap: fn(Vec<T>) -> Gradient,
) -> (Vec<Gradient>, Vec<Loss>) {
    let compute = |worker: &mut Learner<T>| {
        let mut gradient = vec![T::ZERO; theta.len()];
        let loss = worker.compute(round, theta, &mut gradient);
        (wrap(gradient), loss)
    };
    workers.iter_mut().map(compute).unzip()
}

/// The objective over all rows: full batches bring it with their gradients.
fn objective<T: Real>(
    workers: &[Learner<T>],
    theta: &[T],
    losses: impl Iterator<Item = Loss>,
) -> f64 {
    let merged = if workers.iter().all(Learner::is_full_batch) {
        Metrics::merge(losses.map(|Loss { loss, penalty, n_samples }| Metrics {
            n_samples,
            loss,
            penalty,
            n_correct: None,
        }))
    } else {
        Metrics::merge(workers.iter().map(|worker| worker.metrics(theta)))
    };
    merged.expect("a job has workers").objective()
}

#[cfg(test)]
mod tests;
