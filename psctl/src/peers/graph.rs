//! Who is a neighbour of whom: undirected graphs over the ranks `0..n_peers`.
//!
//! Owns the named topologies and connectedness. Knows neither weights nor theta, files nor flags.

use std::collections::BTreeSet;
use std::fmt;

use ps_common::exit::ExitError;

/// More edges than this are refused: a complete graph of 4096 peers has half as many.
const EDGES_MAX: u64 = 1 << 24;
/// Components and peers that an error lists, each.
const LISTED_MAX: usize = 16;

/// An undirected graph without self loops and without double edges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Graph {
    /// Of each rank its neighbours, increasing.
    neighbours: Vec<Vec<u32>>,
}

/// A graph with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// Everybody with everybody.
    Complete,
    /// Rank i with i + 1, the last with the first.
    Ring,
    /// Rank 0 with all others.
    Star,
    /// A binary tree with rank 0 at its root: rank i with 2i + 1 and 2i + 2.
    Tree,
    /// A grid of two dimensions, as square as the number of peers divides, joined at its borders.
    Torus,
    /// A ring without the edge that closes it.
    Path,
    /// Two complete graphs, the lower and the upper half of the ranks, without an edge between.
    Islands,
}

impl Shape {
    /// Its edges over `n_peers`. Of few peers several shapes are the same graph.
    fn edges(self, n_peers: u32) -> Vec<(u32, u32)> {
        let n = n_peers;
        match self {
            Self::Complete => complete(0, n).collect(),
            Self::Path => (1..n).map(|i| (i - 1, i)).collect(),
            Self::Ring => (0..n).map(|i| (i, (i + 1) % n)).collect(),
            Self::Star => (1..n).map(|i| (0, i)).collect(),
            Self::Tree => (1..n).map(|i| ((i - 1) / 2, i)).collect(),
            Self::Torus => torus(n),
            Self::Islands => complete(0, n.div_ceil(2)).chain(complete(n.div_ceil(2), n)).collect(),
        }
    }

    /// About how many edges it has, before any is made.
    fn n_edges_about(self, n_peers: u32) -> u64 {
        let n = u64::from(n_peers);
        match self {
            Self::Complete | Self::Islands => n * n.saturating_sub(1) / 2,
            Self::Torus => 2 * n,
            Self::Path | Self::Ring | Self::Star | Self::Tree => n,
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        serde::Serialize::serialize(self, f)
    }
}

fn complete(from: u32, to: u32) -> impl Iterator<Item = (u32, u32)> {
    (from..to).flat_map(move |i| (i + 1..to).map(move |j| (i, j)))
}

/// Rows by columns, row-major, with as many rows as the largest divisor up to the square root. A
/// prime number of peers has one row: a ring.
fn torus(n_peers: u32) -> Vec<(u32, u32)> {
    let divisors = (1..=n_peers.isqrt()).rev().filter(|d| n_peers.is_multiple_of(*d));
    let rows = divisors.into_iter().next().unwrap_or(1);
    let columns = n_peers / rows;
    let at = |row: u32, column: u32| (row % rows) * columns + column % columns;
    let cells = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
    let to_right = cells.clone().map(|(r, c)| (at(r, c), at(r, c + 1)));
    to_right.chain(cells.map(|(r, c)| (at(r, c), at(r + 1, c)))).collect()
}

impl Graph {
    /// The named graph over `n_peers`.
    ///
    /// # Errors
    /// Configuration, naming the flag: no peers, or too many edges to keep.
    pub fn of_shape(shape: Shape, n_peers: u32) -> Result<Self, ExitError> {
        if n_peers == 0 {
            return Err(ExitError::config("--workers 0: a graph needs at least 1 peer"));
        }
        let n_edges = shape.n_edges_about(n_peers);
        if n_edges > EDGES_MAX {
            return Err(ExitError::config(format!(
                "--topology {shape} over {n_peers} peers has about {n_edges} edges, at most \
                 {EDGES_MAX} are possible: take fewer --workers or a sparser topology"
            )));
        }
        Ok(Self::of_edges(n_peers, shape.edges(n_peers)))
    }

    /// A graph of these edges; self loops are left out and double edges count once, as they come
    /// about where a named graph has few peers.
    ///
    /// # Panics
    /// If an edge names a rank that there is not.
    pub fn of_edges(n_peers: u32, edges: impl IntoIterator<Item = (u32, u32)>) -> Self {
        let mut neighbours = vec![Vec::new(); n_peers as usize];
        for (a, b) in edges.into_iter().filter(|(a, b)| a != b) {
            neighbours[a as usize].push(b);
            neighbours[b as usize].push(a);
        }
        for of_peer in &mut neighbours {
            of_peer.sort_unstable();
            of_peer.dedup();
        }
        Self { neighbours }
    }

    /// Ranks.
    pub fn n_peers(&self) -> u32 {
        u32::try_from(self.neighbours.len()).expect("made for a number of ranks")
    }

    /// Edges, each counted once.
    pub fn n_edges(&self) -> u64 {
        self.neighbours.iter().map(|of_peer| of_peer.len() as u64).sum::<u64>() / 2
    }

    /// Who is joined to `rank`, increasing.
    ///
    /// # Panics
    /// If there is no such rank.
    pub fn neighbours(&self, rank: u32) -> &[u32] {
        &self.neighbours[rank as usize]
    }

    /// How many are joined to `rank`.
    ///
    /// # Panics
    /// If there is no such rank.
    pub fn degree(&self, rank: u32) -> usize {
        self.neighbours(rank).len()
    }

    /// Every edge once, the lower rank first, in order.
    pub fn edges(&self) -> impl Iterator<Item = (u32, u32)> {
        (0u32..)
            .zip(&self.neighbours)
            .flat_map(|(a, of_peer)| of_peer.iter().filter(move |b| a < **b).map(move |&b| (a, b)))
    }

    /// The parts between which no edge leads, each increasing, in the order of their lowest ranks.
    pub fn components(&self) -> Vec<Vec<u32>> {
        let mut left: BTreeSet<u32> = (0..self.n_peers()).collect();
        let mut components = Vec::new();
        while let Some(first) = left.pop_first() {
            let mut component = vec![first];
            let mut next = 0;
            while next < component.len() {
                for &other in self.neighbours(component[next]) {
                    if left.remove(&other) {
                        component.push(other);
                    }
                }
                next += 1;
            }
            component.sort_unstable();
            components.push(component);
        }
        components
    }

    /// Refuses a graph in several parts.
    ///
    /// # Errors
    /// Configuration: the components, and the flag that permits them.
    pub fn check_connected(&self, name: &str) -> Result<(), ExitError> {
        let components = self.components();
        if components.len() <= 1 {
            return Ok(());
        }
        let mut parts: Vec<String> =
            components.iter().take(LISTED_MAX).map(|part| show_ranks(part)).collect();
        if components.len() > LISTED_MAX {
            parts.push(format!("and {} more", components.len() - LISTED_MAX));
        }
        Err(ExitError::config(format!(
            "{name} is not connected: it has {} components: {}; what one learns never reaches the \
             others. Add edges, or permit it with --allow-disconnected",
            components.len(),
            parts.join(" ")
        )))
    }
}

/// `{0-3, 5, 8-9}`.
fn show_ranks(ranks: &[u32]) -> String {
    let mut spans: Vec<(u32, u32)> = Vec::new();
    for &rank in ranks {
        match spans.last_mut() {
            Some((_, last)) if *last + 1 == rank => *last = rank,
            _ => spans.push((rank, rank)),
        }
    }
    let mut shown: Vec<String> = spans
        .iter()
        .take(LISTED_MAX)
        .map(|&(first, last)| match last - first {
            0 => first.to_string(),
            1 => format!("{first}, {last}"),
            _ => format!("{first}-{last}"),
        })
        .collect();
    if spans.len() > LISTED_MAX {
        shown.push("...".to_owned());
    }
    format!("{{{}}}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ps_common::exit::Exit;

    const SHAPES: [Shape; 7] = [
        Shape::Complete,
        Shape::Ring,
        Shape::Star,
        Shape::Tree,
        Shape::Torus,
        Shape::Path,
        Shape::Islands,
    ];

    fn graph(shape: Shape, n_peers: u32) -> Graph {
        Graph::of_shape(shape, n_peers).expect("small")
    }

    #[test]
    fn every_shape_of_every_size_is_simple_and_symmetric() {
        for shape in SHAPES {
            for n in 1..=20 {
                let graph = graph(shape, n);
                assert_eq!(graph.n_peers(), n);
                for a in 0..n {
                    let of_peer = graph.neighbours(a);
                    assert!(of_peer.is_sorted_by(|x, y| x < y), "{shape} of {n}");
                    for &b in of_peer {
                        assert!(a != b && graph.neighbours(b).contains(&a), "{shape} of {n}");
                    }
                }
                let parts = if shape == Shape::Islands && n > 1 { 2 } else { 1 };
                assert_eq!(graph.components().len(), parts, "{shape} of {n}");
                assert_eq!(graph.edges().count() as u64, graph.n_edges());
            }
        }
    }

    #[test]
    fn shapes_have_the_edges_of_their_names() {
        let n_edges = SHAPES.map(|shape| graph(shape, 12).n_edges());
        assert_eq!(n_edges, [66, 12, 11, 11, 24, 11, 30]);
        assert_eq!(graph(Shape::Star, 5).degree(0), 4);
        assert_eq!(graph(Shape::Tree, 7).neighbours(1), [0, 3, 4]);
        // 3 rows of 4.
        assert_eq!(graph(Shape::Torus, 12).neighbours(0), [1, 3, 4, 8]);
        assert_eq!(graph(Shape::Torus, 7), graph(Shape::Ring, 7));
        assert_eq!(graph(Shape::Islands, 5).components(), [vec![0, 1, 2], vec![3, 4]]);
    }

    #[test]
    fn a_graph_in_parts_is_refused_with_the_parts() {
        let edges = [(0, 1), (1, 2), (2, 3), (5, 9), (9, 8), (4, 6)];
        let graph = Graph::of_edges(10, edges);
        let error = graph.check_connected("--graph net.txt").expect_err("in four parts");
        assert_eq!(error.exit, Exit::Config);
        let says = "--graph net.txt is not connected: it has 4 components: {0-3} {4, 6} {5, 8, 9} \
                    {7};";
        assert!(error.message.starts_with(says), "{error}");
        assert!(error.message.contains("--allow-disconnected"), "{error}");

        let none = Graph::of_edges(20, []).check_connected("it").expect_err("20 parts");
        assert!(none.message.contains("{15} and 4 more;"), "{none}");
        Graph::of_edges(2, [(1, 0)]).check_connected("it").expect("connected");
    }

    #[test]
    fn what_cannot_be_kept_is_refused_by_name() {
        for (shape, n_peers, says) in [
            (Shape::Complete, 65536, "--topology complete over 65536 peers"),
            (Shape::Ring, 0, "--workers 0"),
        ] {
            let error = Graph::of_shape(shape, n_peers).expect_err(says);
            assert!(error.exit == Exit::Config && error.message.starts_with(says), "{error}");
        }
        assert_eq!(graph(Shape::Ring, 65536).n_edges(), 65536);
    }
}
