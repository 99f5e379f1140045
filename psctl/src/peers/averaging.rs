//! Decentralised gradient descent: every peer has its own theta, averages it with its neighbours',
//! then steps by the gradient of its own shard.
//!
//! `theta_i <- sum over j of w_ij theta_j`, then `theta_i <- theta_i - lr * gradient_i(theta_i)`.
//! It is algorithm 1 of Lian et al. 2017, "Can decentralized algorithms outperform centralized
//! algorithms?", with the averaging first: the gradient is taken at the average, there at the theta
//! before it, so that both can go on at once. Sayed 2014, "Adaptation, learning, and optimization
//! over networks", calls the two orders "combine then adapt" and "consensus".
//!
//! In a complete graph, every shard having rows, the mean of all thetas moves as theta does on a
//! synchronous server with `--aggregate mean`. Each peer counts the same, however many rows it has.

use ps_common::check::first_non_finite;
use ps_common::dtype::CHUNK_BYTES;
use ps_common::exit::ExitError;
use ps_common::job::{Aggregate, Metrics, Mode};
use ps_common::{Dtype, Element};
use ps_server::numeric::{Optimizer, sgd_from};
use ps_server::table::Store;
use ps_worker::learning::{Learner, Problem};
use ps_worker::model::Real;
use ps_worker::samples::Samples;
use serde::Serialize;

use super::deal::{Use, learners};
use super::graph::Graph;
use super::mixing::Mixing;
use super::network::Network;
use super::settings::{Links, Settings};

/// What a run shows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// Peers.
    pub n_peers: u32,
    /// Edges of the graph.
    pub n_edges: u64,
    /// Parts of the graph that never hear of each other.
    pub n_components: usize,
    /// [`Network::spectral_gap`].
    pub spectral_gap: f64,
    /// Elements of theta.
    pub dim: usize,
    /// Thetas sent in all, in bytes.
    pub bytes_sent: u64,
    /// The round whose step made some theta overflow; there the run ended.
    pub diverged_in_round: Option<u64>,
    /// Before the first round, then as often as the settings say, and after the last.
    pub history: Vec<Entry>,
}

/// The thetas at the beginning of a round, over all rows of all shards.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Entry {
    /// Rounds before it.
    pub round: u64,
    /// Virtual time at which the last peer had done them.
    pub seconds: f64,
    /// The objective at the mean of all thetas.
    pub loss: f64,
    /// The mean of the objectives at the peers' own thetas.
    pub loss_own: f64,
    /// The largest of them.
    pub loss_worst: f64,
    /// Whose that is.
    pub rank_worst: u32,
    /// Mean over the peers of the squared distance to the mean theta.
    pub disagreement: f64,
    /// Share of rows that the mean theta predicts right; `None` for regression.
    pub accuracy: Option<f64>,
    /// The mean of the shares that the peers' own thetas predict right.
    pub accuracy_own: Option<f64>,
}

/// Runs `settings.rounds` rounds from theta as the model starts it, the same for all peers.
///
/// The same arguments give the same bits.
///
/// # Errors
/// Configuration, naming the flag; bad data.
pub fn run(
    problem: &Problem,
    network: &Network,
    lr: f64,
    settings: &Settings<'_>,
) -> Result<Outcome, ExitError> {
    if !(lr.is_finite() && lr >= 0.0) {
        return Err(ExitError::config(format!("--lr is {lr}; it must be 0 or more, and finite")));
    }
    match settings.dtype {
        Dtype::F32 => Run::<f32>::load(problem, network, lr, settings)?.run(),
        Dtype::F64 => Run::<f64>::load(problem, network, lr, settings)?.run(),
    }
}

struct Run<'a, T> {
    problem: &'a Problem,
    network: &'a Network,
    lr: f64,
    settings: &'a Settings<'a>,
    learners: Vec<Learner<T>>,
    all: Samples<T>,
    thetas: Vec<Vec<T>>,
    /// Each peer's own time.
    seconds: Vec<f64>,
    bytes_sent: u64,
}

impl<'a, T: Real> Run<'a, T> {
    fn load(
        problem: &'a Problem,
        network: &'a Network,
        lr: f64,
        settings: &'a Settings<'a>,
    ) -> Result<Self, ExitError> {
        let n = network.n_peers();
        // Each step is an update of its own, as an asynchronous gradient is.
        let own_update = Use { mode: Mode::Async, aggregate: Aggregate::Mean };
        // The server's own table knows how a model starts.
        let store = Store::new(problem.tables(), T::DTYPE, Optimizer::sgd(lr), CHUNK_BYTES);
        Ok(Self {
            problem,
            network,
            lr,
            settings,
            learners: learners(problem, n, own_update, settings)?,
            all: problem.load_all()?,
            thetas: vec![store.snapshot().values(); n as usize],
            seconds: vec![0.0; n as usize],
            bytes_sent: 0,
        })
    }

    fn run(mut self) -> Result<Outcome, ExitError> {
        let mut history = vec![self.entry(0)];
        let mut diverged_in_round = None;
        let mut mixed = self.thetas.clone();
        let mut gradient = vec![T::ZERO; self.problem.model().dim()];
        let fixed = match self.network {
            Network::Fixed(graph) => Some(Mixing::metropolis(graph)),
            Network::Gossip { .. } => None,
        };
        for round in 0..self.settings.rounds {
            let graph = self.network.of_round(round);
            match &fixed {
                Some(mixing) => mixing.apply(&self.thetas, &mut mixed),
                None => Mixing::metropolis(&graph).apply(&self.thetas, &mut mixed),
            }
            let mut n_rows = Vec::with_capacity(self.learners.len());
            for ((learner, theta), mixed) in
                self.learners.iter_mut().zip(&mut self.thetas).zip(&mixed)
            {
                n_rows.push(learner.compute(round, mixed, &mut gradient).n_samples);
                sgd_from(theta, mixed, &gradient, self.lr);
            }
            self.pass_time(&graph, &n_rows);
            if self.thetas.iter().any(|theta| first_non_finite(theta).is_some()) {
                diverged_in_round = Some(round);
                break;
            }
            if self.settings.is_recorded(round + 1) {
                history.push(self.entry(round + 1));
            }
        }
        Ok(Outcome {
            n_peers: self.network.n_peers(),
            n_edges: self.network.n_edges(),
            n_components: self.network.n_components(),
            spectral_gap: self.network.spectral_gap(),
            dim: self.problem.model().dim(),
            bytes_sent: self.bytes_sent,
            diverged_in_round,
            history,
        })
    }

    /// A peer averages once all its neighbours' thetas are there, then computes a gradient over so
    /// many rows.
    fn pass_time(&mut self, graph: &Graph, n_rows: &[u64]) {
        let bytes = self.settings.bytes(self.problem.model().dim());
        self.bytes_sent += 2 * graph.n_edges() * bytes;
        let met = arrivals(graph, &self.seconds, bytes, &self.settings.links);
        for (((rank, seconds), met), &n_rows) in (0..).zip(&mut self.seconds).zip(met).zip(n_rows) {
            *seconds = met + (self.settings.compute_seconds)(rank, n_rows);
        }
    }

    fn entry(&self, round: u64) -> Entry {
        let mean = mean(&self.thetas);
        let model = self.problem.model();
        let own: Vec<Metrics> =
            self.thetas.iter().map(|theta| model.metrics(theta, &self.all)).collect();
        let n = own.len() as f64;
        let of_mean = {
            let mean: Vec<T> = mean.iter().map(|&x| T::from_f64(x)).collect();
            model.metrics(&mean, &self.all)
        };
        // Of equal objectives the lowest rank's counts.
        let ranks = 0..self.network.n_peers();
        let (rank_worst, worst) = ranks
            .zip(&own)
            .rev()
            .max_by(|a, b| a.1.objective().total_cmp(&b.1.objective()))
            .expect("a network has peers");
        Entry {
            round,
            seconds: self.seconds.iter().copied().fold(0.0, f64::max),
            loss: of_mean.objective(),
            loss_own: own.iter().map(Metrics::objective).sum::<f64>() / n,
            loss_worst: worst.objective(),
            rank_worst,
            disagreement: disagreement(&self.thetas, &mean),
            accuracy: of_mean.accuracy(),
            accuracy_own: own.iter().map(Metrics::accuracy).sum::<Option<f64>>().map(|sum| sum / n),
        }
    }
}

/// When each peer has all its neighbours' thetas: the last of them to begin, and the exchange. A
/// link is shared by as many thetas as its owner has neighbours, and the busier side of an edge
/// sets its pace.
fn arrivals(graph: &Graph, seconds: &[f64], bytes: u64, links: &Links) -> Vec<f64> {
    let of_peer = |rank: u32| {
        let own = seconds[rank as usize];
        let from = |other: u32| {
            let busier = graph.degree(rank).max(graph.degree(other));
            own.max(seconds[other as usize]) + links.shared_seconds(bytes as f64, busier)
        };
        graph.neighbours(rank).iter().map(|&other| from(other)).fold(own, f64::max)
    };
    (0..graph.n_peers()).map(of_peer).collect()
}

/// Element by element, in f64, in order of rank.
fn mean<T: Element>(thetas: &[Vec<T>]) -> Vec<f64> {
    let mut sum = vec![0.0; thetas[0].len()];
    for theta in thetas {
        sum.iter_mut().zip(theta).for_each(|(sum, x)| *sum += x.to_f64());
    }
    sum.iter_mut().for_each(|sum| *sum /= thetas.len() as f64);
    sum
}

fn disagreement<T: Element>(thetas: &[Vec<T>], mean: &[f64]) -> f64 {
    let distance = |theta: &Vec<T>| -> f64 {
        theta.iter().zip(mean).map(|(x, mean)| (x.to_f64() - mean).powi(2)).sum()
    };
    thetas.iter().map(distance).sum::<f64>() / thetas.len() as f64
}

#[cfg(test)]
mod tests;
