//! The flags of training without a server, and what may be relied on once they are checked.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use ps_common::exit::ExitError;
use serde::{Serialize, Serializer};

use super::deal::Deal;
use super::graph::{Graph, Shape};
use super::graph_file;
use super::network::Network;

/// How peers are joined and whose rows are whose
#[derive(Args, Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Topology")]
pub struct PeersArgs {
    /// No server: each peer has its own theta and averages it with its neighbours' in a complete
    /// graph, ring, star, tree, torus, path, in two islands, or with a random partner (gossip);
    /// several names: a run of each
    #[arg(
        id = "topologies",
        long = "topology",
        env = "PS_TOPOLOGY",
        value_name = "NAME",
        value_delimiter = ','
    )]
    #[serde(rename = "topology")]
    pub topologies: Vec<Topology>,
    /// Who is whose neighbour: a file of edges, two ranks a line; with --topology gossip: who may
    /// meet
    #[arg(long, env = "PS_GRAPH", value_name = "FILE")]
    pub graph: Option<PathBuf>,
    /// Permit a graph in several parts, which never agree
    #[arg(long, env = "PS_ALLOW_DISCONNECTED", value_name = "BOOL", default_value_t = false, num_args = 0..=1, default_missing_value = "true", require_equals = true, action = clap::ArgAction::Set)]
    pub allow_disconnected: bool,
    /// How rows are dealt to shards, with a topology or map-reduce [default: as-read]
    #[arg(long, env = "PS_DEAL", value_enum)]
    pub deal: Option<Deal>,
}

/// A topology by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topology {
    /// The same neighbours in every round.
    Fixed(Shape),
    /// A random matching a round.
    Gossip,
}

const GOSSIP: &str = "gossip";

impl FromStr for Topology {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == GOSSIP {
            return Ok(Self::Gossip);
        }
        Shape::from_str(text, false).map(Self::Fixed).map_err(|_| {
            let shapes: Vec<String> =
                Shape::value_variants().iter().map(Shape::to_string).collect();
            format!("there is no topology `{text}`, only {} and {GOSSIP}", shapes.join(", "))
        })
    }
}

impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(shape) => shape.fmt(f),
            Self::Gossip => f.write_str(GOSSIP),
        }
    }
}

impl Serialize for Topology {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The flags, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peers {
    /// For tables and legends.
    pub name: String,
    /// How they are joined.
    pub network: Network,
}

impl PeersArgs {
    /// Whether the flags ask for peers, and not for a job with a server.
    pub fn is_asked_for(&self) -> bool {
        !self.topologies.is_empty() || self.graph.is_some()
    }

    /// The networks of `n_peers` that the flags ask for, in their order; none: a job with a server.
    /// `seed` is that of the matchings.
    ///
    /// # Errors
    /// Configuration, naming the flag: what has no meaning, a graph in several parts; bad data: the
    /// graph file, naming its line.
    pub fn check(&self, n_peers: u32, seed: u64) -> Result<Vec<Peers>, ExitError> {
        if !self.is_asked_for() {
            if self.allow_disconnected {
                return Err(ExitError::config(
                    "--allow-disconnected has no meaning without --topology or --graph",
                ));
            }
            return Ok(Vec::new());
        }
        if n_peers == 0 {
            return Err(ExitError::config("--workers 0: a topology needs at least 1 peer"));
        }
        let from_file = match &self.graph {
            Some(path) => Some(graph_file::read(path, n_peers)?),
            None => None,
        };
        if self.topologies.is_empty() {
            return Ok(vec![self.network(None, from_file, n_peers, seed)?]);
        }
        let of = |&topology| self.network(Some(topology), from_file.clone(), n_peers, seed);
        self.topologies.iter().map(of).collect()
    }

    /// One of the networks: `topology` or the graph of the file, or both.
    fn network(
        &self,
        topology: Option<Topology>,
        from_file: Option<Graph>,
        n_peers: u32,
        seed: u64,
    ) -> Result<Peers, ExitError> {
        let file = self.graph.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        let (name, source, network) = match (topology, from_file) {
            (Some(Topology::Fixed(shape)), Some(_)) => {
                return Err(ExitError::config(format!(
                    "--graph {file} and --topology {shape} both say who is whose neighbour: give \
                     one of them, or --graph with --topology {GOSSIP}"
                )));
            }
            (Some(Topology::Fixed(shape)), None) => {
                let graph = Graph::of_shape(shape, n_peers)?;
                (shape.to_string(), format!("--topology {shape}"), Network::Fixed(graph))
            }
            (None, Some(graph)) => (file.clone(), format!("--graph {file}"), Network::Fixed(graph)),
            (Some(Topology::Gossip), Some(graph)) => {
                let name = format!("{GOSSIP} on {file}");
                (
                    name,
                    format!("--graph {file}"),
                    Network::Gossip { n_peers, seed, graph: Some(graph) },
                )
            }
            (Some(Topology::Gossip), None) => {
                let network = Network::Gossip { n_peers, seed, graph: None };
                (GOSSIP.to_owned(), GOSSIP.to_owned(), network)
            }
            (None, None) => unreachable!("somebody has asked for peers"),
        };
        if !self.allow_disconnected {
            network.check_connected(&source)?;
        }
        Ok(Peers { name, network })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    use clap::Parser;
    use ps_common::exit::Exit;

    #[derive(Parser)]
    struct Demo {
        #[command(flatten)]
        args: PeersArgs,
    }

    fn args(arguments: &[&str]) -> PeersArgs {
        Demo::try_parse_from(["demo"].iter().chain(arguments)).expect("parses").args
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().write_all(text.as_bytes()).expect("written");
        file
    }

    #[test]
    fn flags_become_a_network() {
        assert_eq!(args(&[]).check(4, 0).expect("fine"), []);
        let ring = args(&["--topology=ring"]).check(4, 0).expect("fine").remove(0);
        assert_eq!(ring.name, "ring");
        assert_eq!(ring.network.n_edges(), 4);
        let gossip = args(&["--topology", "gossip"]).check(4, 9).expect("fine").remove(0);
        assert_eq!(gossip.network, Network::Gossip { n_peers: 4, seed: 9, graph: None });

        let two = args(&["--topology=star,path"]).check(4, 0).expect("fine");
        assert_eq!(
            two.iter().map(|peers| peers.name.as_str()).collect::<Vec<_>>(),
            ["star", "path"]
        );

        let path = file("0 1\n1 2\n2 3\n");
        let graph = format!("--graph={}", path.path().display());
        let fixed = args(&[&graph]).check(4, 0).expect("fine").remove(0);
        let same = Graph::of_shape(Shape::Path, 4).expect("small");
        assert_eq!(fixed.network, Network::Fixed(same.clone()));
        let gossip = args(&[&graph, "--topology=gossip"]).check(4, 9).expect("fine");
        let network = Network::Gossip { n_peers: 4, seed: 9, graph: Some(same) };
        assert_eq!(gossip[0].network, network);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        let apart = file("0 1\n2 3\n");
        let graph = format!("--graph={}", apart.path().display());
        for (arguments, n, says) in [
            (&["--allow-disconnected"][..], 4, "--allow-disconnected has no meaning"),
            (&["--topology=islands"], 4, "--topology islands is not connected"),
            (&[&graph], 4, "2 components: {0, 1} {2, 3};"),
            (&[&graph, "--topology=gossip"], 4, "2 components: {0, 1} {2, 3};"),
            (&[&graph, "--topology=ring"], 4, "--topology ring both say"),
            (&["--topology=ring,islands"], 4, "--topology islands is not connected"),
            (&["--topology=ring"], 0, "--workers 0"),
        ] {
            let error = args(arguments).check(n, 0).expect_err(says);
            assert!(error.exit == Exit::Config && error.message.contains(says), "{error}");
        }
        let error = args(&[&graph]).check(3, 0).expect_err("there is no rank 3");
        assert!(error.exit == Exit::BadData && error.message.contains(":2: there is"), "{error}");
        for arguments in [[graph.as_str()], ["--topology=islands"]] {
            let all = [&arguments[..], &["--allow-disconnected"]].concat();
            let peers = args(&all).check(4, 0).expect("permitted").remove(0);
            assert_eq!(peers.network.n_components(), 2);
        }
    }

    #[test]
    fn an_unknown_name_is_a_usage_error_that_lists_the_known() {
        let error = Demo::try_parse_from(["demo", "--topology=mesh"]).map(|demo| demo.args);
        let text = error.expect_err("unknown").to_string();
        assert!(text.contains("complete, ring, star, tree, torus, path, islands and gossip"));
    }

    #[test]
    fn arguments_round_trip() {
        let given = args(&["--topology=gossip", "--graph=g.txt", "--deal=sorted-by-class"]);
        let again = ps_common::flags::to_arguments(&given);
        let again: Vec<&str> = again.iter().map(|a| a.to_str().expect("text")).collect();
        assert_eq!(args(&again), given);
    }
}
