//! What it costs that n workers each bring B bytes and all get the sum: seconds of one exchange.
//!
//! Every participant has one full-duplex link of bandwidth W and latency L. Messages that share a
//! direction of a link share its bandwidth; adding up costs no time. Knows neither theta nor data.
//!
//! | exchange | seconds |
//! |---|---|
//! | star | `2 (L + n B / W)`: all pushes over the server's link, then all pulls |
//! | sharded star | `2 (L + max(n / S, 1) B / W)`: each of S servers has B/S; a worker's link carries B |
//! | ring | `2 (n - 1) (L + B / (n W))`: reduce-scatter, then all-gather (Patarasuk and Yuan 2009; Thakur et al. 2005) |
//! | tree | `2 sum over levels of (L + c B / W)`: reduce, then broadcast; c = 2 children share their parent's link, 1 where the last level has one peer (Thakur et al. 2005 have a binomial tree, `2 log2(n) (L + B / W)`) |
//! | gossip | `L + B / W`: one exchange with one other, after which they, not all, agree |
//!
//! Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations";
//! Thakur, Rabenseifner and Gropp 2005, "Optimization of collective communication operations in
//! MPICH".

use serde::Serialize;

use super::settings::Links;
use crate::show::number;
use crate::show::table::{Align, Table};

/// By which messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Exchange {
    /// One server.
    Star,
    /// Several servers with a part of theta each.
    ShardedStar {
        /// At least 1.
        n_servers: u32,
    },
    /// Ring all-reduce.
    Ring,
    /// Binary tree, rank 0 at the root.
    Tree,
    /// One random partner.
    Gossip,
}

impl Exchange {
    /// Seconds of one round of `n_workers` with `bytes` each.
    ///
    /// Without a server one worker alone exchanges nothing.
    pub fn seconds(self, n_workers: u32, bytes: f64, links: &Links) -> f64 {
        let n = f64::from(n_workers);
        let alone = n_workers < 2;
        match self {
            Self::Star => 2.0 * links.seconds(n * bytes),
            Self::ShardedStar { n_servers } => {
                let share = (n / f64::from(n_servers.max(1))).max(1.0);
                2.0 * links.seconds(share * bytes)
            }
            Self::Ring | Self::Tree | Self::Gossip if alone => 0.0,
            Self::Ring => 2.0 * (n - 1.0) * links.seconds(bytes / n),
            Self::Tree => {
                let levels = (1..=n_workers.ilog2()).map(|level| {
                    // The first rank of the level is 2^level - 1: is it the only one there?
                    let children = if n_workers == 1 << level { 1 } else { 2 };
                    links.shared_seconds(bytes, children)
                });
                2.0 * levels.sum::<f64>()
            }
            Self::Gossip => links.seconds(bytes),
        }
    }

    /// As tables and legends say it.
    pub fn name(self) -> String {
        match self {
            Self::Star => "star".to_owned(),
            Self::ShardedStar { n_servers } => format!("star, {n_servers} servers"),
            Self::Ring => "ring".to_owned(),
            Self::Tree => "tree".to_owned(),
            Self::Gossip => "gossip".to_owned(),
        }
    }
}

/// Seconds of one round.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cost {
    /// By which messages.
    pub exchange: Exchange,
    /// Workers.
    pub n_workers: u32,
    /// Of one exchange.
    pub seconds: f64,
}

/// The costs of every exchange with every number of workers, exchange by exchange.
pub fn costs(exchanges: &[Exchange], n_workers: &[u32], bytes: f64, links: &Links) -> Vec<Cost> {
    let of = |exchange: Exchange| {
        n_workers.iter().map(move |&n_workers| Cost {
            exchange,
            n_workers,
            seconds: exchange.seconds(n_workers, bytes, links),
        })
    };
    exchanges.iter().flat_map(|&exchange| of(exchange)).collect()
}

/// One row a number of workers, one column an exchange, both in the order in which they occur.
pub fn table(costs: &[Cost]) -> Table {
    let mut exchanges: Vec<Exchange> = Vec::new();
    let mut all_n: Vec<u32> = Vec::new();
    for cost in costs {
        if !exchanges.contains(&cost.exchange) {
            exchanges.push(cost.exchange);
        }
        if !all_n.contains(&cost.n_workers) {
            all_n.push(cost.n_workers);
        }
    }
    let names: Vec<String> = exchanges.iter().map(|exchange| exchange.name()).collect();
    let columns = names.iter().map(|name| (name.as_str(), Align::Right));
    let mut table = Table::new([("workers", Align::Right)].into_iter().chain(columns));
    for n in all_n {
        let cell = |exchange: &Exchange| {
            let of = costs.iter().find(|c| c.exchange == *exchange && c.n_workers == n);
            of.map_or(String::new(), |cost| number::seconds(cost.seconds))
        };
        table.row([number::count(n.into())].into_iter().chain(exchanges.iter().map(cell)));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    const THETA_BYTES: f64 = 4e6;
    /// 0.1 Gb/s, 1 ms.
    const LINKS: Links = Links { bytes_per_second: 1.25e7, latency_seconds: 1e-3 };
    const SERVERS: Exchange = Exchange::ShardedStar { n_servers: 4 };

    fn seconds(exchange: Exchange, n_workers: u32) -> f64 {
        exchange.seconds(n_workers, THETA_BYTES, &LINKS)
    }

    #[test]
    fn the_formulas_by_hand() {
        // B / W = 0.32 s.
        for (exchange, n_workers, want) in [
            (Exchange::Star, 16, 2.0 * (0.001 + 16.0 * 0.32)),
            (SERVERS, 16, 2.0 * (0.001 + 4.0 * 0.32)),
            (SERVERS, 2, 2.0 * (0.001 + 0.32)),
            (Exchange::Ring, 16, 30.0 * (0.001 + 0.02)),
            (Exchange::Ring, 2, 2.0 * (0.001 + 0.16)),
            (Exchange::Tree, 2, 2.0 * (0.001 + 0.32)),
            (Exchange::Tree, 3, 2.0 * (0.001 + 0.64)),
            // Ranks 0 | 1 2 | 3 4 5 6 | 7: the last has no sibling.
            (Exchange::Tree, 8, 2.0 * (2.0 * (0.001 + 0.64) + 0.001 + 0.32)),
            (Exchange::Tree, 15, 6.0 * (0.001 + 0.64)),
            (Exchange::Gossip, 16, 0.321),
            (Exchange::Gossip, 1, 0.0),
            (Exchange::Ring, 1, 0.0),
            (Exchange::Tree, 1, 0.0),
            (Exchange::Star, 1, 0.642),
        ] {
            let got = seconds(exchange, n_workers);
            assert!((got - want).abs() < 1e-12, "{exchange:?} {n_workers}: {got}, not {want}");
        }
    }

    #[test]
    fn a_round_of_4_mb_at_a_tenth_of_a_gigabit_has_the_published_shape() {
        for n in [8, 16, 32, 64, 128] {
            let order = [Exchange::Gossip, Exchange::Ring, SERVERS, Exchange::Star];
            let of = order.map(|exchange| seconds(exchange, n));
            assert!(of.is_sorted_by(|a, b| a < b), "{n}: {of:?}");
            assert!(seconds(Exchange::Tree, n) < seconds(Exchange::Star, n), "{n}");
            assert!(seconds(Exchange::Ring, n) < seconds(Exchange::Tree, n), "{n}");
        }
        let growth = |exchange| seconds(exchange, 128) / seconds(exchange, 16);
        // Linear, linear, by latency only, logarithmic, not at all.
        assert!((growth(Exchange::Star) - 8.0).abs() < 0.01);
        assert!((growth(SERVERS) - 8.0).abs() < 0.01);
        assert!(growth(Exchange::Ring) < 1.5);
        assert!((1.5..2.0).contains(&growth(Exchange::Tree)));
        assert_eq!(growth(Exchange::Gossip), 1.0);
        // Latency is what a ring pays with: of a small theta a tree is faster, and a star more so.
        let small = |exchange: Exchange| exchange.seconds(64, 1e3, &LINKS);
        assert!(small(Exchange::Tree) < small(Exchange::Ring));
        assert!(small(Exchange::Star) < small(Exchange::Tree));
    }

    #[test]
    fn a_table_has_a_row_a_number_of_workers() {
        let costs = costs(&[Exchange::Star, SERVERS, Exchange::Gossip], &[2, 16], 4e6, &LINKS);
        let text = "workers    star  star, 4 servers  gossip\n      2   1.3 s           642 ms  \
                    321 ms\n     16  10.2 s            2.6 s  321 ms\n";
        assert_eq!(table(&costs).render("", 80), text);
    }
}
