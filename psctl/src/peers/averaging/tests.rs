//! Decentralised descent against closed forms, a synchronous run, and the published shape.

use clap::Parser;
use ps_worker::args::LearnArgs;

use super::*;
use crate::peers::deal::Deal;
use crate::peers::graph::Shape;

#[derive(Parser)]
struct Demo {
    #[command(flatten)]
    learn: LearnArgs,
}

fn problem(arguments: &[&str]) -> Problem {
    let learn = Demo::try_parse_from(["demo"].iter().chain(arguments)).expect("parses").learn;
    Problem::survey(&learn).expect("good data")
}

const SETTINGS: Settings<'static> = Settings {
    dtype: Dtype::F64,
    rounds: 100,
    record_every: 10,
    deal: Deal::SortedByClass,
    links: Links { bytes_per_second: 1e6, latency_seconds: 0.0 },
    compute_seconds: &|_, _| 1.0,
};

#[test]
fn explore() {
    let iris = concat!("--data=", env!("CARGO_MANIFEST_DIR"), "/../tests/data/iris/iris.csv");
    let p = problem(&[iris, "--model=softmax", "--scale=standard", "--bias"]);
    for n in [8, 9, 10, 12, 15, 16, 20, 25, 32] {
        for (lr, rounds) in [(0.1, 100), (0.5, 20), (0.5, 100), (1.0, 100)] {
            println!("n {n} lr {lr} rounds {rounds}");
            let mut runs = vec![];
            for shape in [Shape::Complete, Shape::Torus, Shape::Ring, Shape::Tree, Shape::Star] {
                let network = Network::Fixed(Graph::of_shape(shape, n).expect("small"));
                let settings = Settings { rounds, record_every: rounds, ..SETTINGS };
                let out = run(&p, &network, lr, &settings).expect("runs");
                runs.push((shape.to_string(), out));
            }
            println!("{}", crate::peers::show::comparison(&runs).render("  ", 120));
        }
    }
}
