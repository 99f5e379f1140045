//! Peers without a server: how much the topology matters, and what one exchange costs.

use clap::Args;
use ps_common::Dtype;
use ps_common::exit::{Exit, ExitError};
use ps_worker::args::LearnArgs;
use ps_worker::learning::Problem;

use super::About;
use super::findings::{Cell, Findings};
use super::lab::{self, Lab};
use crate::peers::averaging::{self, Outcome};
use crate::peers::cost::{Cost, Exchange, costs};
use crate::peers::graph::{Graph, Shape};
use crate::peers::{Deal, Links, Network, Settings};
use crate::show::chart::{Axis, Chart, Series};

pub(super) const TOPOLOGIES: About = About {
    paper: "Lian et al. 2017, section 4; shards as McMahan et al. 2017, section 3",
    seen: "error: complete < torus < ring < tree < star; two islands never agree",
};

pub(super) const ROUND_COST: About = About {
    paper: "Patarasuk and Yuan 2009; Lian et al. 2017, table 1",
    seen: "a star grows with the workers, a tree with their logarithm, ring and gossip hardly",
};

/// 1 Gbit/s, 1 ms: what `psctl simulate` has by default.
const LINKS: Links = Links { bytes_per_second: 1.25e8, latency_seconds: 1e-3 };
const COMPUTE_SECONDS: f64 = 0.01;
const N_PEERS: u32 = 16;
/// Seeds of who has which classes.
const SEEDS: std::ops::Range<u64> = 0..5;
const LEARNING_RATE: f64 = 0.5;
const ROUNDS: u64 = 100;

/// The flags of the data.
#[derive(Args)]
struct Learn {
    #[command(flatten)]
    learn: LearnArgs,
}

/// In the paper's order of their errors, and two islands.
const SHAPES: [Shape; 6] =
    [Shape::Complete, Shape::Torus, Shape::Ring, Shape::Tree, Shape::Star, Shape::Islands];

/// Means over seeds, because who sits where counts, too.
pub(super) fn topologies(lab: &mut Lab) -> Result<Findings, ExitError> {
    let names = SHAPES.map(|shape| shape.to_string()).join(",");
    let mut problems = Vec::new();
    for seed in SEEDS {
        let data = format!("--data clusters --model softmax --bias --seed {seed}");
        problems.push(Problem::survey(&lab::parse::<Learn>(&data)?.learn)?);
        lab.note(&format!(
            "--topology {names} --allow-disconnected --workers {N_PEERS} --deal sorted-by-class \
             --lr {LEARNING_RATE} --rounds {ROUNDS} --dtype f64 {data}"
        ));
    }
    let mut rows = Vec::new();
    let mut series = Vec::new();
    for shape in SHAPES {
        let network = Network::Fixed(Graph::of_shape(shape, N_PEERS)?);
        let runs = problems
            .iter()
            .map(|problem| averaging::run(problem, &network, LEARNING_RATE, &settings()));
        let runs: Vec<Outcome> = runs.collect::<Result<_, _>>()?;
        rows.push(summed_up(shape, &runs)?);
        series.push(Series::line(shape.to_string(), mean_curve(&runs)));
    }
    Ok(Findings {
        columns: vec![
            "topology",
            "spectral_gap",
            "own_loss",
            "train_error_share",
            "disagreement",
            "time_seconds",
        ],
        rows,
        chart: Chart {
            title: format!("Class-sorted shards: {N_PEERS} peers' own losses, simulated"),
            x: Axis::linear("round"),
            y: Axis::log("mean of the peers' own losses"),
            series,
        },
    })
}

fn settings() -> Settings<'static> {
    Settings {
        dtype: Dtype::F64,
        rounds: ROUNDS,
        record_every: 20,
        deal: Deal::SortedByClass,
        links: LINKS,
        message_bytes: None,
        compute_seconds: &|_, _| COMPUTE_SECONDS,
    }
}

fn summed_up(shape: Shape, runs: &[Outcome]) -> Result<Vec<Cell>, ExitError> {
    let last: Vec<_> = runs.iter().filter_map(|run| run.history.last()).collect();
    let (Some(run), false) = (runs.first(), last.is_empty()) else {
        return Err(ExitError::new(Exit::Bug, "a scenario without runs"));
    };
    let mean = |of: &dyn Fn(&averaging::Entry) -> f64| {
        last.iter().map(|entry| of(entry)).sum::<f64>() / last.len() as f64
    };
    Ok(vec![
        Cell::Word(shape.to_string()),
        Cell::Ratio(run.spectral_gap),
        Cell::Loss(mean(&|entry| entry.loss_own)),
        Cell::Share(mean(&|entry| 1.0 - entry.accuracy_own.unwrap_or(f64::NAN))),
        Cell::Loss(mean(&|entry| entry.disagreement)),
        Cell::Seconds(mean(&|entry| entry.seconds)),
    ])
}

/// Round by round, over runs that are measured at the same rounds.
fn mean_curve(runs: &[Outcome]) -> Vec<(f64, f64)> {
    let n_entries = runs.iter().map(|run| run.history.len()).min().unwrap_or(0);
    let at = |entry: usize| {
        let sum: f64 = runs.iter().map(|run| run.history[entry].loss_own).sum();
        (runs[0].history[entry].round as f64, sum / runs.len() as f64)
    };
    (0..n_entries).map(at).collect()
}

const EXCHANGES: [Exchange; 5] = [
    Exchange::Star,
    Exchange::ShardedStar { n_servers: 4 },
    Exchange::Tree,
    Exchange::Ring,
    Exchange::Gossip,
];

/// By formula: there is nothing to run.
pub(super) fn round_cost(_: &mut Lab) -> Result<Findings, ExitError> {
    let links = Links { bytes_per_second: 0.1e9 / 8.0, latency_seconds: 1e-3 };
    let all = costs(&EXCHANGES, &[2, 4, 8, 16, 32, 64], 4e6, &links);
    let of = |exchange: Exchange| all.iter().filter(move |cost| cost.exchange == exchange);
    let row = |first: &Cost| {
        let same = all.iter().filter(|cost| cost.n_workers == first.n_workers);
        let seconds = same.map(|cost| Cell::Seconds(cost.seconds));
        [Cell::Count(u64::from(first.n_workers))].into_iter().chain(seconds).collect()
    };
    let line = |exchange: Exchange| {
        let points = of(exchange).map(|cost| (f64::from(cost.n_workers), cost.seconds));
        Series::line(exchange.name(), points.collect())
    };
    Ok(Findings {
        columns: vec![
            "workers",
            "star_seconds",
            "star_of_4_servers_seconds",
            "tree_seconds",
            "ring_seconds",
            "gossip_seconds",
        ],
        rows: of(Exchange::Star).map(row).collect(),
        chart: Chart {
            title: "One exchange of 4 MB over 0.1 Gb/s, by formula".to_owned(),
            x: Axis::linear("workers"),
            y: Axis::log("seconds"),
            series: EXCHANGES.map(line).into(),
        },
    })
}
