//! Who averages with whom in a round: the same neighbours in every one, or a new match each time.

use std::borrow::Cow;

use ps_common::exit::ExitError;
use ps_worker::data::{Purpose, permutation};

use super::graph::Graph;
use super::mixing::Mixing;

/// Matchings of a graph that the gap of gossip over it is taken from, at most and at least.
const MATCHINGS_MAX: u64 = 1000;
const MATCHINGS_MIN: u64 = 100;
/// Edges that these look at in all, where that permits more than the least.
const EDGES_LOOKED_AT: u64 = 1 << 24;

/// How peers are joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// All edges in every round.
    Fixed(Graph),
    /// One random matching a round, everybody with at most one other.
    Gossip {
        /// Peers.
        n_peers: u32,
        /// Of the matchings.
        seed: u64,
        /// Who may meet; `None`: anybody.
        graph: Option<Graph>,
    },
}

impl Network {
    /// Peers.
    pub fn n_peers(&self) -> u32 {
        match self {
            Self::Fixed(graph) => graph.n_peers(),
            Self::Gossip { n_peers, .. } => *n_peers,
        }
    }

    /// Edges that may be used at all.
    pub fn n_edges(&self) -> u64 {
        match self {
            Self::Fixed(graph) | Self::Gossip { graph: Some(graph), .. } => graph.n_edges(),
            Self::Gossip { n_peers, .. } => u64::from(*n_peers) * u64::from(n_peers - 1) / 2,
        }
    }

    /// Parts that never hear of each other.
    pub fn n_components(&self) -> usize {
        match self {
            Self::Fixed(graph) | Self::Gossip { graph: Some(graph), .. } => {
                graph.components().len()
            }
            Self::Gossip { .. } => 1,
        }
    }

    /// Refuses a network in several parts; `source` says whence it is.
    ///
    /// # Errors
    /// Configuration: the components, and the flag that permits them.
    pub fn check_connected(&self, source: &str) -> Result<(), ExitError> {
        match self {
            Self::Fixed(graph) | Self::Gossip { graph: Some(graph), .. } => {
                graph.check_connected(source)
            }
            Self::Gossip { graph: None, .. } => Ok(()),
        }
    }

    /// The edges used in `round`. A matching is a pure function of seed and round: without a graph
    /// a random order cut into pairs, which leaves one peer out where their number is odd; of a
    /// graph its edges in random order, each taken whose peers are both free, so that no more
    /// pair could be formed.
    pub fn of_round(&self, round: u64) -> Cow<'_, Graph> {
        match self {
            Self::Fixed(graph) => Cow::Borrowed(graph),
            Self::Gossip { n_peers, seed, graph } => {
                let purpose = Purpose::Match { round };
                let pairs = match graph {
                    None => pairs(&permutation(*n_peers, *seed, purpose)),
                    Some(graph) => {
                        let n_edges = u32::try_from(graph.n_edges()).expect("limited when made");
                        free_pairs(graph, &permutation(n_edges, *seed, purpose))
                    }
                };
                Cow::Owned(Graph::of_edges(*n_peers, pairs))
            }
        }
    }

    /// `1 - |lambda_2|` of the averaging matrix; of gossip, whose matrix is another in every round,
    /// that of its expectation (Boyd, Ghosh, Prabhakar and Shah 2006, "Randomized gossip algorithms").
    ///
    /// For gossip with anybody: each pair meets with probability 1/(n-1), n even, or 1/n, n odd, so
    /// that the expectation has the gap n/2 times that. Over a graph it is that of the mean of the
    /// first 1000 matchings, of fewer, but 100, where there are more than 16,777 edges.
    pub fn spectral_gap(&self) -> f64 {
        match self {
            Self::Fixed(graph) => Mixing::metropolis(graph).spectral_gap(),
            Self::Gossip { n_peers: 1, .. } => 1.0,
            Self::Gossip { n_peers, graph: None, .. } => {
                let others = n_peers - u32::from(n_peers.is_multiple_of(2));
                let eigenvalue = 1.0 - 0.5 * f64::from(*n_peers) / f64::from(others);
                1.0 - eigenvalue.abs()
            }
            Self::Gossip { graph: Some(_), .. } => {
                let affordable = EDGES_LOOKED_AT / self.n_edges().max(1);
                let n_matchings = affordable.clamp(MATCHINGS_MIN, MATCHINGS_MAX);
                let matchings = (0..n_matchings).map(|round| self.of_round(round));
                let all: Vec<Mixing> = matchings.map(|graph| Mixing::metropolis(&graph)).collect();
                Mixing::mean(&all).spectral_gap()
            }
        }
    }
}

fn pairs(order: &[u32]) -> Vec<(u32, u32)> {
    order.as_chunks().0.iter().map(|&[a, b]| (a, b)).collect()
}

fn free_pairs(graph: &Graph, order: &[u32]) -> Vec<(u32, u32)> {
    let edges: Vec<(u32, u32)> = graph.edges().collect();
    let mut free = vec![true; graph.n_peers() as usize];
    let mut taken = Vec::new();
    for &edge in order {
        let (a, b) = edges[edge as usize];
        if free[a as usize] && free[b as usize] {
            free[a as usize] = false;
            free[b as usize] = false;
            taken.push((a, b));
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::graph::Shape;

    fn gossip(n_peers: u32, graph: Option<Graph>) -> Network {
        Network::Gossip { n_peers, seed: 7, graph }
    }

    #[test]
    fn a_matching_is_one_and_another_each_round() {
        for n in [1, 2, 9, 10] {
            let network = gossip(n, None);
            let graph = network.of_round(3);
            assert_eq!(graph.n_edges(), u64::from(n / 2));
            assert!((0..n).all(|rank| graph.degree(rank) <= 1));
            assert_eq!(graph, network.of_round(3));
        }
        assert_ne!(gossip(10, None).of_round(3), gossip(10, None).of_round(4));
    }

    #[test]
    fn gossip_over_a_graph_uses_its_edges_only_and_all_of_them_at_some_time() {
        let ring = Graph::of_shape(Shape::Ring, 9).expect("small");
        let network = gossip(9, Some(ring.clone()));
        let mut used: Vec<(u32, u32)> = Vec::new();
        for round in 0..50 {
            let graph = network.of_round(round);
            assert!((0..9).all(|rank| graph.degree(rank) <= 1));
            assert!((3..=4).contains(&graph.n_edges()), "maximal");
            used.extend(graph.edges());
        }
        used.sort_unstable();
        used.dedup();
        assert!(used.into_iter().eq(ring.edges()));
    }

    #[test]
    fn the_gap_of_gossip_is_that_of_the_expectation() {
        // The closed form against a mean over matchings of the complete graph.
        for n in [2, 5, 8] {
            let anybody = gossip(n, None).spectral_gap();
            let complete = Graph::of_shape(Shape::Complete, n).expect("small");
            let measured = gossip(n, Some(complete)).spectral_gap();
            assert!((anybody - measured).abs() < 0.03, "{n}: {anybody} {measured}");
        }
        assert_eq!(gossip(8, None).spectral_gap(), 8.0 / 14.0);
        assert_eq!(gossip(5, None).spectral_gap(), 0.5);
        assert_eq!(gossip(2, None).spectral_gap(), 1.0);
        let islands = Graph::of_shape(Shape::Islands, 8).expect("small");
        assert!(gossip(8, Some(islands)).spectral_gap() < 1e-12);
    }
}
