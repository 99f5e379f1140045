//! The flags that follow from a server's place in a cluster (`--cluster`, `TF_CONFIG`).

use std::net::{SocketAddr, ToSocketAddrs};

use clap::ArgMatches;
use clap::parser::ValueSource;
use ps_common::cluster::{Place, Task};
use ps_common::exit::ExitError;
use ps_common::flags::Implied;

/// Number of workers, partition, the other servers, and where to listen unless that is said.
///
/// # Errors
/// Configuration where the place is not a server's, or its own address is not to be found.
pub fn implied(place: &Place, given: &ArgMatches) -> Result<Vec<Implied>, ExitError> {
    let Task::Server(partition) = place.task else {
        return Err(ExitError::config("this task is no ps: start ps-worker for it"));
    };
    let mut implied = vec![
        Implied { flag: "workers", value: place.n_workers.to_string() },
        Implied { flag: "partition", value: partition.to_string() },
    ];
    if partition.is_authority() && partition.count > 1 {
        let scheme = if given.contains_id("peer_ca") { "https" } else { "http" };
        let others: Vec<_> =
            place.servers[1..].iter().map(|address| format!("{scheme}://{address}")).collect();
        implied.push(Implied { flag: "peers", value: others.join(",") });
    }
    // Others know it by a name that need not be an address of this machine.
    let source = given.value_source("listen");
    if !matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable)) {
        let address = &place.servers[partition.index as usize];
        implied.push(Implied { flag: "listen", value: look_up(address)?.to_string() });
    }
    Ok(implied)
}

fn look_up(address: &str) -> Result<SocketAddr, ExitError> {
    let error = |what: &str| {
        ExitError::config(format!(
            "the cluster says that this server is at {address}, {what}: --listen says where to listen"
        ))
    };
    let mut found: Vec<_> =
        address.to_socket_addrs().map_err(|e| error("which is not found").because(e))?.collect();
    found.sort_by_key(SocketAddr::is_ipv6);
    found.first().copied().ok_or_else(|| error("which has no address"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::ServerArgs;
    use clap::{CommandFactory, Parser};
    use ps_common::cluster::{TaskArgs, place};
    use ps_common::exit::Exit;

    const CLUSTER: &str =
        r#"{"ps": ["127.0.0.1:1", "localhost:2"], "worker": ["c:3", "d:4", "e:5"]}"#;

    fn of(cluster: &str, task: (&str, u32), more: &[&str]) -> Result<ServerArgs, ExitError> {
        let flags =
            TaskArgs { cluster: None, job_name: Some(task.0.to_owned()), task_index: Some(task.1) };
        let place = place(cluster, "c", &flags).expect("good").expect("a place");
        let given = ServerArgs::command().get_matches_from(["ps-server"].iter().chain(more));
        let implied = implied(&place, &given)?;
        let implied: Vec<_> = implied.iter().map(|f| format!("--{}={}", f.flag, f.value)).collect();
        let words = ["ps-server"].into_iter().chain(implied.iter().map(String::as_str));
        Ok(ServerArgs::try_parse_from(words.chain(more.to_vec())).expect("accepted"))
    }

    #[test]
    fn a_place_in_a_cluster_means_flags() {
        let first = of(CLUSTER, ("ps", 0), &[]).expect("fine");
        assert_eq!(
            (first.crew.workers, first.serve.listen.to_string().as_str()),
            (3, "127.0.0.1:1")
        );
        assert_eq!(first.serve.partition, "0/2");
        assert_eq!(first.serve.peers.peers, ["http://localhost:2"]);
        let second = of(CLUSTER, ("ps", 1), &[]).expect("fine");
        assert_eq!(second.serve.listen.to_string(), "127.0.0.1:2");
        assert_eq!(second.serve.partition, "1/2");
        assert!(second.serve.peers.peers.is_empty());
        let secure = of(CLUSTER, ("ps", 0), &["--peer-ca=ca.pem"]).expect("fine");
        assert_eq!(secure.serve.peers.peers, ["https://localhost:2"]);
        let elsewhere = of(CLUSTER, ("ps", 0), &["--listen=0.0.0.0:9"]).expect("fine");
        assert_eq!(elsewhere.serve.listen.to_string(), "0.0.0.0:9");
    }

    #[test]
    fn another_task_and_an_unknown_name_are_refused() {
        let nowhere = r#"{"ps": ["no-such-host.invalid:1"], "worker": ["c:3"]}"#;
        for (cluster, task, says) in [
            (CLUSTER, ("worker", 1), "start ps-worker"),
            (nowhere, ("ps", 0), "no-such-host.invalid:1, which is not found: --listen"),
        ] {
            let error = of(cluster, task, &[]).expect_err(says);
            assert!(error.exit == Exit::Config && error.message.contains(says), "{error}");
        }
    }
}
