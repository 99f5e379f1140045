//! Decentralised descent against closed forms, a synchronous run, and the published shapes.

use super::*;
use crate::peers::deal::Deal;
use crate::peers::graph::Shape;
use crate::peers::{golden_losses, problem};

const SETTINGS: Settings<'static> = Settings {
    dtype: Dtype::F64,
    rounds: 100,
    record_every: 100,
    deal: Deal::SortedByClass,
    links: Links { bytes_per_second: 1e6, latency_seconds: 0.01 },
    message_bytes: None,
    compute_seconds: &|_, _| 1.0,
};

fn fixed(shape: Shape, n_peers: u32) -> Network {
    Network::Fixed(Graph::of_shape(shape, n_peers).expect("small"))
}

/// Fisher's iris, softmax with bias, standardised: 150 rows, 3 classes.
fn iris(seed: u64) -> Problem {
    let file = concat!("--data=", env!("CARGO_MANIFEST_DIR"), "/../tests/data/iris/iris.csv");
    let seed = format!("--seed={seed}");
    problem(&[file, "--model=softmax", "--scale=standard", "--bias", &seed])
}

#[test]
fn the_mean_of_a_complete_graph_moves_as_a_synchronous_servers_theta() {
    let settings = Settings { record_every: 1, deal: Deal::AsRead, ..SETTINGS };
    let run = run(&problem(&[]), &fixed(Shape::Complete, 4), 0.01, &settings).expect("runs");
    let want = golden_losses("sync_k4.json");
    assert_eq!(run.history.len(), want.len());
    for (entry, want) in run.history.iter().zip(want) {
        assert!((entry.loss - want).abs() < 1e-9, "{entry:?}, not {want}");
    }
    let last = run.history.last().expect("entries");
    assert!(last.disagreement > 0.0 && last.loss_own > last.loss, "{last:?}");
    assert!(last.loss_worst >= last.loss_own && last.accuracy.is_none(), "{last:?}");
    // One exchange of 10 numbers with 3 neighbours over one link, then a second of computing.
    let round = 0.01 + 3.0 * 80.0 / 1e6 + 1.0;
    assert!((last.seconds - 100.0 * round).abs() < 1e-9, "{last:?}");
    assert_eq!(run.bytes_sent, 100 * 12 * 80);
}

/// Softmax on iris, shards sorted by class, learning rate 0.5, 100 rounds, mean over seeds 0 to 9
/// (which peer has which classes) of the mean objective of the peers' own thetas: complete < torus
/// < ring < tree < star.
#[test]
fn on_class_sorted_shards_the_error_grows_as_published() {
    let shapes = [Shape::Complete, Shape::Torus, Shape::Ring, Shape::Tree, Shape::Star];
    let problems: Vec<Problem> = (0..10).map(iris).collect();
    for n_peers in [9, 16, 25] {
        let errors = shapes.map(|shape| {
            let network = fixed(shape, n_peers);
            let of = |problem| {
                let run = run(problem, &network, 0.5, &SETTINGS).expect("runs");
                run.history.last().expect("entries").loss_own
            };
            problems.iter().map(of).sum::<f64>() / problems.len() as f64
        });
        assert!(errors.is_sorted_by(|a, b| a < b), "{n_peers} peers: {errors:?}");
        assert!(errors[4] > 1.5 * errors[0], "{n_peers} peers: {errors:?}");
    }
}

/// Smaller steps bring connected peers closer together (the distance goes with lr squared); two
/// islands learn two thetas, however small the steps.
#[test]
fn two_islands_never_agree_and_connected_peers_do() {
    let problem = iris(1);
    let disagreement = |network: &Network, lr: f64| {
        let settings = Settings { rounds: (100.0 / lr) as u64, record_every: 20, ..SETTINGS };
        let run = run(&problem, network, lr, &settings).expect("runs");
        run.history.iter().map(|entry| entry.disagreement).collect::<Vec<f64>>()
    };
    let gossip = Network::Gossip { n_peers: 6, seed: 1, graph: None };
    for network in [fixed(Shape::Ring, 6), fixed(Shape::Star, 6), gossip] {
        let last = [0.8, 0.1].map(|lr| *disagreement(&network, lr).last().expect("entries"));
        assert!(last[1] < last[0] / 20.0, "{network:?}: {last:?}");
    }
    let islands = fixed(Shape::Islands, 6);
    for lr in [0.8, 0.1] {
        let all = disagreement(&islands, lr);
        assert!(all[1..].is_sorted(), "lr {lr}: {all:?}");
        assert!(all[all.len() - 1] > 1.0, "lr {lr}: {all:?}");
    }
}

#[test]
fn averaging_alone_reaches_consensus_as_fast_as_the_gap_says() {
    let thetas =
        || -> Vec<Vec<f64>> { (0..12).map(|i| vec![f64::from(i), f64::from(i * i % 7)]).collect() };
    let apart = |thetas: &[Vec<f64>]| disagreement(thetas, &mean(thetas));
    let rounds = 40;
    for shape in [Shape::Ring, Shape::Star, Shape::Tree, Shape::Torus, Shape::Islands] {
        let mixing = Mixing::metropolis(&Graph::of_shape(shape, 12).expect("small"));
        let (mut now, mut next) = (thetas(), thetas());
        for _ in 0..rounds {
            mixing.apply(&now, &mut next);
            std::mem::swap(&mut now, &mut next);
        }
        let bound = (1.0 - mixing.spectral_gap()).powi(2 * rounds) * apart(&thetas());
        assert!(apart(&now) <= bound * (1.0 + 1e-9), "{shape}: {} {bound}", apart(&now));
        // The islands' own means, 2.5 and 8.5 in the first element, stay 3 from the common one.
        assert_eq!(apart(&now) > 9.0, shape == Shape::Islands, "{shape}: {}", apart(&now));
    }
}

#[test]
fn gossip_agrees_in_time() {
    let network = Network::Gossip { n_peers: 9, seed: 3, graph: None };
    let thetas: Vec<Vec<f64>> = (0..9).map(|i| vec![f64::from(i)]).collect();
    let (mut now, mut next) = (thetas.clone(), thetas);
    for round in 0..60 {
        Mixing::metropolis(&network.of_round(round)).apply(&now, &mut next);
        std::mem::swap(&mut now, &mut next);
    }
    assert!(now.iter().all(|theta| (theta[0] - 4.0).abs() < 1e-3), "{now:?}");
}

#[test]
fn a_peer_waits_for_its_neighbours_only() {
    let graph = Graph::of_shape(Shape::Path, 4).expect("small");
    let links = Links { bytes_per_second: 10.0, latency_seconds: 0.5 };
    // 5 bytes are half a second, a second for those with two neighbours.
    let met = arrivals(&graph, &[0.0, 1.0, 7.0, 2.0], 5, &links);
    assert_eq!(met, [2.5, 8.5, 8.5, 8.5]);
    let alone = arrivals(&Graph::of_edges(2, []), &[1.0, 2.0], 5, &links);
    assert_eq!(alone, [1.0, 2.0]);
}

#[test]
fn a_slow_peer_slows_all_down_in_the_end() {
    let slow = |rank, _| if rank == 5 { 3.0 } else { 1.0 };
    let links = Links { bytes_per_second: 1e9, latency_seconds: 0.0 };
    let seconds = |rounds| {
        let settings = Settings { rounds, compute_seconds: &slow, links, ..SETTINGS };
        let run = run(&iris(0), &fixed(Shape::Path, 6), 0.1, &settings).expect("runs");
        run.history.last().expect("entries").seconds
    };
    assert!((seconds(1) - 3.0).abs() < 1e-3);
    assert!((seconds(20) - 60.0).abs() < 1e-3);
}

#[test]
fn histories_have_the_first_and_the_last_theta_and_repeat_to_the_bit() {
    let settings = Settings { rounds: 10, record_every: 4, dtype: Dtype::F32, ..SETTINGS };
    let network = Network::Gossip { n_peers: 5, seed: 2, graph: None };
    let first = run(&iris(4), &network, 0.5, &settings).expect("runs");
    let rounds: Vec<u64> = first.history.iter().map(|entry| entry.round).collect();
    assert_eq!(rounds, [0, 4, 8, 10]);
    let start = first.history[0];
    assert!((start.loss - 3f64.ln()).abs() < 1e-6 && start.disagreement == 0.0, "{start:?}");
    assert!(first.history[3].accuracy > start.accuracy);
    assert_eq!(run(&iris(4), &network, 0.5, &settings).expect("runs"), first);
    let json = serde_json::to_value(&first).expect("plain data");
    assert_eq!(json["history"][3]["round"], 10);
    assert_eq!(json["spectral_gap"], 0.5);
}

#[test]
fn what_cannot_be_is_refused_and_divergence_is_told() {
    let network = fixed(Shape::Ring, 3);
    let refused = |problem: &Problem, lr| run(problem, &network, lr, &SETTINGS).expect_err("no");
    let error = refused(&problem(&[]), 0.1);
    assert!(error.message.contains("--deal sorted-by-class"), "{error}");
    for lr in [-1.0, f64::NAN] {
        assert!(refused(&iris(0), lr).message.contains("--lr"));
    }
    let settings = Settings { deal: Deal::AsRead, dtype: Dtype::F32, ..SETTINGS };
    let run = run(&problem(&[]), &network, 1e30, &settings).expect("runs");
    assert_eq!((run.diverged_in_round, run.history.len()), (Some(1), 1));
}
