//! How a peer averages with its neighbours: the matrix W of a round.
//!
//! W is symmetric and its rows and columns sum to 1 (doubly stochastic), so that averaging never
//! moves the mean of all thetas. Knows no data and no time.

use ps_common::Element;
use ps_server::numeric::weighted_sum;

use super::graph::Graph;
use super::spectrum;

/// A symmetric, doubly stochastic matrix, by rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Mixing {
    /// Of each rank, in order of rank and its own included: whose theta counts how much.
    rows: Vec<Vec<(u32, f64)>>,
}

impl Mixing {
    /// Metropolis-Hastings weights: `w_ij = 1 / (1 + max(d_i, d_j))` on the edges, where d is a
    /// peer's number of neighbours, and the rest of each row on the diagonal.
    ///
    /// Xiao, Boyd and Lall 2006, "Distributed average consensus with time-varying Metropolis
    /// weights"; Xiao, Boyd and Kim 2007, "Distributed average consensus with least-mean-square
    /// deviation". Peers need to know their neighbours' degrees only. Of a matching they are one
    /// half: pairwise averaging.
    pub fn metropolis(graph: &Graph) -> Self {
        let row = |i: u32| {
            let weight = |j: u32| 1.0 / (1 + graph.degree(i).max(graph.degree(j))) as f64;
            let mut row: Vec<(u32, f64)> =
                graph.neighbours(i).iter().map(|&j| (j, weight(j))).collect();
            let own = 1.0 - row.iter().map(|(_, weight)| weight).sum::<f64>();
            let place = row.partition_point(|&(j, _)| j < i);
            row.insert(place, (i, own));
            row
        };
        Self { rows: (0..graph.n_peers()).map(row).collect() }
    }

    /// The mean of several matrices of the same peers.
    ///
    /// # Panics
    /// If there are none, or they differ in size.
    pub fn mean(of: &[Self]) -> Self {
        let first = of.first().expect("a mean of something");
        let mut sums = vec![std::collections::BTreeMap::<u32, f64>::new(); first.rows.len()];
        for mixing in of {
            assert_eq!(mixing.rows.len(), sums.len(), "peers");
            for (sum, row) in sums.iter_mut().zip(&mixing.rows) {
                for &(j, weight) in row {
                    *sum.entry(j).or_default() += weight / of.len() as f64;
                }
            }
        }
        Self { rows: sums.into_iter().map(|row| row.into_iter().collect()).collect() }
    }

    /// Row `rank` of W: whose theta counts how much, in order of rank, without zeros.
    ///
    /// # Panics
    /// If there is no such rank.
    pub fn row(&self, rank: u32) -> &[(u32, f64)] {
        &self.rows[rank as usize]
    }

    /// `mixed_i = sum over j of w_ij theta_j`, summed in order of rank in the precision of `T`.
    ///
    /// # Panics
    /// If lengths differ, or there are not as many thetas as peers.
    pub fn apply<T: Element>(&self, thetas: &[Vec<T>], mixed: &mut [Vec<T>]) {
        assert!(thetas.len() == self.rows.len() && mixed.len() == self.rows.len());
        let mut parts: Vec<(&[T], f64)> = Vec::new();
        for (row, mixed) in self.rows.iter().zip(mixed) {
            parts.clear();
            parts.extend(row.iter().map(|&(j, weight)| (&thetas[j as usize][..], weight)));
            weighted_sum(mixed, &parts);
        }
    }

    /// `1 - |lambda_2|`, where lambda_2 is the eigenvalue of W largest in magnitude besides the 1 of
    /// the mean: how fast peers agree. 1 for a complete graph, 0 for one in several parts.
    ///
    /// To 1e-12 up to [`spectrum::STEPS_MAX`] peers; beyond, up to
    /// [`spectrum::TOLERANCE_BEYOND`] too large.
    pub fn spectral_gap(&self) -> f64 {
        let multiply = |x: &[f64], out: &mut [f64]| {
            for (row, out) in self.rows.iter().zip(out) {
                *out = row.iter().map(|&(j, weight)| weight * x[j as usize]).sum();
            }
        };
        (1.0 - spectrum::magnitude_besides_the_mean(self.rows.len(), multiply)).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use std::f64::consts::PI;

    use super::*;
    use crate::peers::graph::Shape;

    fn mixing(shape: Shape, n_peers: u32) -> Mixing {
        Mixing::metropolis(&Graph::of_shape(shape, n_peers).expect("small"))
    }

    #[test]
    fn weights_are_symmetric_not_negative_and_sum_to_one_both_ways() {
        let odd = Graph::of_edges(6, [(0, 1), (0, 2), (0, 3), (3, 4), (4, 0)]);
        let shapes = [Shape::Star, Shape::Tree, Shape::Torus, Shape::Islands, Shape::Complete];
        let all = shapes.map(|shape| mixing(shape, 11));
        for mixing in all.iter().chain([&Mixing::metropolis(&odd)]) {
            let n = mixing.rows.len();
            let mut dense = vec![vec![0.0; n]; n];
            for (i, row) in mixing.rows.iter().enumerate() {
                for &(j, weight) in row {
                    dense[i][j as usize] = weight;
                }
            }
            for i in 0..n {
                let column: f64 = dense.iter().map(|row| row[i]).sum();
                let row: f64 = dense[i].iter().sum();
                assert!((row - 1.0).abs() < 1e-14 && (column - 1.0).abs() < 1e-14, "{mixing:?}");
                for (j, weight) in dense[i].iter().enumerate() {
                    assert!(*weight >= -1e-15 && *weight == dense[j][i], "{mixing:?}");
                }
            }
        }
        // The hub has 3 neighbours: 1 / (1 + 3) each; a leaf keeps the rest.
        let star = mixing(Shape::Star, 4);
        assert_eq!(star.row(0), [(0, 0.25), (1, 0.25), (2, 0.25), (3, 0.25)]);
        assert_eq!(star.row(2), [(0, 0.25), (2, 0.75)]);
    }

    #[test]
    fn averaging_leaves_the_mean_where_it_is() {
        let thetas: Vec<Vec<f64>> = (0..7).map(|i| vec![f64::from(i * i), 1.0]).collect();
        let mut mixed = thetas.clone();
        mixing(Shape::Tree, 7).apply(&thetas, &mut mixed);
        let mean = |all: &[Vec<f64>]| all.iter().map(|theta| theta[0]).sum::<f64>() / 7.0;
        assert!((mean(&thetas) - mean(&mixed)).abs() < 1e-14);
        assert!(mixed.iter().all(|theta| (theta[1] - 1.0).abs() < 1e-14));
        assert!(mixed.iter().zip(&thetas).all(|(mixed, theta)| mixed[0] != theta[0]));
    }

    #[test]
    fn gaps_have_their_closed_forms() {
        let close = |got: f64, want: f64, what: &str| {
            assert!((got - want).abs() < 1e-12, "{what}: {got}, not {want}");
        };
        for n in [2u32, 3, 4, 5, 9, 16, 33, 100] {
            let k = f64::from(n);
            close(mixing(Shape::Complete, n).spectral_gap(), 1.0, "complete");
            // Circulant: 1/3 + 2/3 cos(2 pi j / n), so that j = 1 or the most negative counts.
            let eigenvalue = |j: u32| 1.0 / 3.0 + 2.0 / 3.0 * (2.0 * PI * f64::from(j) / k).cos();
            let largest = (1..n).map(|j| eigenvalue(j).abs()).fold(0.0, f64::max);
            if n > 2 {
                close(mixing(Shape::Ring, n).spectral_gap(), 1.0 - largest, "ring");
                // I - L / 3, where L's smallest positive eigenvalue is 2 - 2 cos(pi / n).
                let path = (2.0 - 2.0 * (PI / k).cos()) / 3.0;
                close(mixing(Shape::Path, n).spectral_gap(), path, "path");
                // Of leaves against leaves: 1 - 1/n.
                close(mixing(Shape::Star, n).spectral_gap(), 1.0 / k, "star");
            }
        }
        // 4 by 4: 1/5 + 2/5 (cos(pi i / 2) + cos(pi j / 2)); the largest is 3/5, as is the negative.
        close(mixing(Shape::Torus, 16).spectral_gap(), 0.4, "torus");
        close(mixing(Shape::Islands, 8).spectral_gap(), 0.0, "islands");
        close(mixing(Shape::Ring, 1).spectral_gap(), 1.0, "one peer");
    }

    #[test]
    fn of_large_graphs_the_gap_is_at_most_a_little_too_large() {
        // 1000 peers, but only 501 different eigenvalues.
        let ring = mixing(Shape::Ring, 1000).spectral_gap();
        let want = 2.0 / 3.0 * (1.0 - (2.0 * PI / 1000.0).cos());
        assert!((ring - want).abs() < 1e-12, "{ring} {want}");
        let too_large =
            mixing(Shape::Path, 900).spectral_gap() - (2.0 - 2.0 * (PI / 900.0).cos()) / 3.0;
        assert!((-1e-12..spectrum::TOLERANCE_BEYOND).contains(&too_large), "{too_large}");
    }

    #[test]
    fn a_mean_of_matchings_has_their_mean_weights() {
        let one = Mixing::metropolis(&Graph::of_edges(4, [(0, 1), (2, 3)]));
        let other = Mixing::metropolis(&Graph::of_edges(4, [(1, 2)]));
        assert_eq!(one.row(0), [(0, 0.5), (1, 0.5)]);
        let mean = Mixing::mean(&[one, other]);
        assert_eq!(mean.row(0), [(0, 0.75), (1, 0.25)]);
        assert_eq!(mean.row(1), [(0, 0.25), (1, 0.5), (2, 0.25)]);
    }
}
