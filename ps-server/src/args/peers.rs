//! The flags of several servers: where the others are, and what no job of several can have yet.

use std::path::PathBuf;

use clap::Args;
use ps_common::exit::ExitError;
use ps_common::job::{Durability, Mode};
use ps_common::partition::Partition;
use serde::Serialize;

use super::{DurabilitySpec, JobSpec};

/// The way from the first of several servers to the others.
#[derive(Args, Debug, Clone, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Several servers")]
pub struct PeerArgs {
    /// The other servers, in order of --partition; for the first of them only, --partition 0/S
    #[arg(long, env = "PS_PEERS", value_name = "URL[,URL...]", value_delimiter = ',')]
    pub peers: Vec<String>,
    /// Certificate of the CA of the --peers with https://, PEM; --tls-cert and --operator-token-file
    /// are shown to them
    #[arg(long, env = "PS_PEER_CA", value_name = "FILE.pem")]
    pub peer_ca: Option<PathBuf>,
}

/// The other servers, checked: at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerSpec {
    /// In order of partition, from 1.
    pub urls: Vec<String>,
    /// Whom they are signed by, where they serve TLS.
    pub ca: Option<PathBuf>,
}

impl PeerArgs {
    /// Checks that `partition` is told of as many others as there are; `None` where it leads nobody.
    ///
    /// # Errors
    /// Configuration, naming the flags and both counts.
    pub fn check(&self, partition: Partition) -> Result<Option<PeerSpec>, ExitError> {
        let (n_peers, n_others) = (self.peers.len(), partition.count as usize - 1);
        if !partition.is_authority() {
            return match (n_peers, &self.peer_ca) {
                (0, None) => Ok(None),
                _ => Err(ExitError::config(format!(
                    "--peers is for --partition 0/{}; this is {partition}, which speaks to no other \
                     server",
                    partition.count
                ))),
            };
        }
        if n_peers != n_others {
            return Err(ExitError::config(format!(
                "--partition {partition} has {n_others} other servers, --peers names {n_peers}: give \
                 the URL of each, in order of partition"
            )));
        }
        match (n_others, &self.peer_ca) {
            (0, Some(_)) => Err(ExitError::config("--peer-ca has no meaning without --peers")),
            (0, None) => Ok(None),
            _ => Ok(Some(PeerSpec { urls: self.peers.clone(), ca: self.peer_ca.clone() })),
        }
    }
}

/// Refuses by name what several servers cannot do together yet.
///
/// # Errors
/// Configuration, naming flag and reason.
pub fn refuse_of_several(
    partition: Partition,
    job: &JobSpec,
    durability: Option<&DurabilitySpec>,
) -> Result<(), ExitError> {
    if partition.count == 1 {
        return Ok(());
    }
    let what = if job.config.consistency.mode() == Mode::Hogwild {
        "--mode hogwild: its updates have no order that all servers could share; take --mode async"
    } else if durability.is_some_and(|d| d.checkpoints.durability == Durability::Always) {
        "--durability always: the journal of several servers is not built; take --durability interval"
    } else {
        return Ok(());
    };
    Err(ExitError::config(format!("--partition {partition} with {what}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use ps_common::exit::Exit;

    use crate::args::ServerArgs;

    fn args(arguments: &[&str]) -> ServerArgs {
        ServerArgs::try_parse_from([&["ps-server"], arguments].concat()).expect("parses")
    }

    fn partition(text: &str) -> Partition {
        text.parse().expect("valid")
    }

    #[test]
    fn the_first_of_several_is_told_of_all_others() {
        let check = |of: &str, arguments: &[&str]| {
            args(arguments).serve.peers.check(partition(of)).map_err(|error| {
                assert_eq!(error.exit, Exit::Config);
                error.message
            })
        };
        assert_eq!(check("0/1", &[]), Ok(None));
        assert_eq!(check("2/3", &[]), Ok(None));
        let two = check("0/3", &["--peers", "a:1,b:2"]).expect("two").expect("some");
        assert_eq!(two.urls, ["a:1", "b:2"]);
        for (of, arguments, names) in [
            ("0/3", &["--peers", "a:1"][..], &["0/3", "2 other", "names 1"][..]),
            ("0/2", &[], &["1 other", "names 0"]),
            ("0/1", &["--peers", "a:1"], &["0 other", "names 1"]),
            ("1/2", &["--peers", "a:1"], &["--partition 0/2", "this is 1/2"]),
            ("1/2", &["--peer-ca", "f"], &["--partition 0/2"]),
            ("0/1", &["--peer-ca", "f"], &["--peer-ca", "--peers"]),
        ] {
            let message = check(of, arguments).expect_err(of);
            assert!(names.iter().all(|name| message.contains(name)), "{message}");
        }
    }

    #[test]
    fn what_several_servers_cannot_do_is_refused_by_name() {
        let check = |of: &str, arguments: &[&str]| {
            let ServerArgs { crew, job, serve } = args(arguments);
            let job = job.check(&crew).expect("valid");
            let durability = serve.durability.check(&job.config).expect("valid");
            refuse_of_several(partition(of), &job, durability.as_ref())
        };
        let always = ["--checkpoint-dir", "d", "--durability", "always"];
        for (arguments, name) in
            [(&["--mode", "hogwild"][..], "--mode hogwild"), (&always, "--durability always")]
        {
            check("0/1", arguments).expect("a lone server can");
            for of in ["0/2", "1/2"] {
                let error = check(of, arguments).expect_err(name);
                assert_eq!(error.exit, Exit::Config);
                assert!(error.message.contains(name) && error.message.contains(of), "{error}");
            }
        }
        let most = ["--checkpoint-dir", "d", "--keep", "2", "--clip-norm", "1"];
        check("0/2", &most).expect("what several can do");
    }
}
