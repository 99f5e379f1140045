//! Who is started with which arguments. Pure: no process, no file.
//!
//! Children get whole sets of flags on their command lines, regenerated from what was parsed, so
//! that a flag from the environment or the configuration file reaches them as well.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use ps_common::flags::to_arguments;

use super::args::LocalArgs;

/// A process of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Who {
    /// Keeps a part of theta: which, counted from 0, who decides.
    Server(u32),
    /// Has a rank.
    Worker(u32),
    /// Measures the objective.
    Evaluator,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(0) => f.write_str("server"),
            Self::Server(index) => write!(f, "server {index}"),
            Self::Worker(rank) => write!(f, "worker {rank}"),
            Self::Evaluator => f.write_str("evaluator"),
        }
    }
}

impl Who {
    /// The rank, where there is one.
    pub(super) fn rank(self) -> Option<u32> {
        match self {
            Self::Worker(rank) => Some(rank),
            Self::Server(_) | Self::Evaluator => None,
        }
    }
}

/// Where a server listens and what it leaves.
#[derive(Debug, Clone, Copy)]
pub(super) struct Post<'a> {
    /// Which of the servers, counted from 0.
    pub(super) index: u32,
    /// Where it listens; 0: anywhere.
    pub(super) port: u16,
    /// Ports of the servers after the first, which the first one calls.
    pub(super) others: &'a [u16],
    /// Where it leaves its port.
    pub(super) port_file: &'a Path,
    /// Where the first one leaves the report.
    pub(super) report: &'a Path,
}

/// Arguments of the server at `post`.
pub(super) fn server_arguments(args: &LocalArgs, post: Post<'_>) -> Vec<OsString> {
    let Post { index, port, others, port_file, report } = post;
    let n_servers = args.cluster.servers;
    let mut arguments = to_arguments(&args.crew);
    arguments.extend(to_arguments(&args.job));
    let mut durability = args.durability.clone();
    durability.checkpoint_dir = None;
    arguments.extend(to_arguments(&durability));
    if let Some(path) = checkpoint_dir(args, index) {
        arguments.push(path_argument("checkpoint-dir", &path));
    }
    arguments.push(format!("--listen=127.0.0.1:{port}").into());
    arguments.push(path_argument("port-file", port_file));
    if n_servers > 1 {
        arguments.push(format!("--partition={index}/{n_servers}").into());
    }
    if let Some(path) = &args.theta_in {
        arguments.push(path_argument("theta-in", path));
    }
    if index == 0 {
        if !others.is_empty() {
            arguments.push(format!("--peers={}", urls(others)).into());
        }
        arguments.push(path_argument("report", report));
        if let Some(path) = &args.output.theta_out {
            arguments.push(path_argument("theta-out", path));
        }
        if args.needs_evaluator() {
            arguments.push("--observers=1".into());
        }
    }
    arguments.push("--watch-stdin".into());
    arguments
}

/// Where a server keeps its checkpoints: several servers have a folder each in the one that was
/// named.
pub(super) fn checkpoint_dir(args: &LocalArgs, index: u32) -> Option<PathBuf> {
    let folder = args.durability.checkpoint_dir.as_ref()?;
    Some(match args.cluster.servers {
        1 => folder.clone(),
        _ => folder.join(format!("partition-{index}")),
    })
}

/// Servers on this machine.
fn urls(ports: &[u16]) -> String {
    let urls: Vec<_> = ports.iter().map(|port| format!("http://127.0.0.1:{port}")).collect();
    urls.join(",")
}

/// Arguments of a worker, or of the evaluator, of the servers at `ports`.
///
/// # Panics
/// For a server, which has its own.
pub(super) fn worker_arguments(args: &LocalArgs, who: Who, ports: &[u16]) -> Vec<OsString> {
    let mut arguments = to_arguments(&args.learn);
    arguments.push(format!("--server={}", urls(ports)).into());
    match who {
        Who::Worker(rank) => {
            arguments.extend(to_arguments(&args.cluster.wire));
            arguments.extend(to_arguments(&args.cluster.overlap));
            arguments.extend(to_arguments(&args.cluster.sparse));
            arguments.push(format!("--rank={rank}").into());
            if let Some(ms) = &args.cluster.compute_delay_ms {
                arguments.push(format!("--compute-delay-ms={ms}").into());
            }
        }
        Who::Evaluator => {
            arguments.push("--evaluate".into());
            arguments.extend(to_arguments(&args.evaluation));
        }
        Who::Server(_) => panic!("a server is no worker"),
    }
    arguments.push("--watch-stdin".into());
    arguments
}

/// All processes besides the server, in the order of their start: the evaluator first, because the
/// first update waits for it.
pub(super) fn workers(args: &LocalArgs) -> Vec<Who> {
    let evaluator = args.needs_evaluator().then_some(Who::Evaluator);
    evaluator.into_iter().chain((0..args.crew.workers).map(Who::Worker)).collect()
}

/// A path need not be UTF-8, which a formatted string would be.
fn path_argument(flag: &str, path: &Path) -> OsString {
    let mut argument = OsString::from(format!("--{flag}="));
    argument.push(path);
    argument
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::args::tests::local;
    use clap::Parser;
    use ps_server::args::ServerArgs;
    use ps_worker::args::WorkerArgs;

    fn parsed<P: Parser>(name: &str, arguments: Vec<OsString>) -> P {
        P::try_parse_from(std::iter::once(name.into()).chain(arguments)).expect("accepted")
    }

    fn post(args: &LocalArgs, index: u32, others: &'static [u16]) -> Post<'static> {
        let (port_file, report) = (Path::new("/t/port"), Path::new("/t/report"));
        Post { index, port: args.cluster.port, others, port_file, report }
    }

    fn server(args: &LocalArgs) -> ServerArgs {
        parsed("ps-server", server_arguments(args, post(args, 0, &[])))
    }

    fn worker(args: &LocalArgs, who: Who) -> WorkerArgs {
        parsed("ps-worker", worker_arguments(args, who, &[4711]))
    }

    #[test]
    fn the_server_gets_the_whole_job_and_no_data() {
        let args = local(&[
            "--mode=async",
            "--workers=3",
            "--lr=0.125",
            "--dtype=f64",
            "--rounds=7",
            "--lease-ms=2500",
            "--optimizer=sgd",
            "--on-worker-loss=continue",
            "--port=4000",
            "--theta-out=/t/theta.npy",
            "--theta-in=/t/start.csv",
            "--checkpoint-dir=/t/checkpoints",
            "--durability=always",
            "--data=a.csv",
        ]);
        let got = server(&args);
        assert_eq!(to_arguments(&got.crew), to_arguments(&args.crew));
        assert_eq!(to_arguments(&got.job), to_arguments(&args.job));
        assert_eq!(to_arguments(&got.serve.durability), to_arguments(&args.durability));
        assert_eq!(to_arguments(&args.durability).len(), 2);
        assert_eq!(got.serve.listen.to_string(), "127.0.0.1:4000");
        assert_eq!(got.serve.port_file.as_deref(), Some(Path::new("/t/port")));
        assert_eq!(got.serve.report.as_deref(), Some(Path::new("/t/report")));
        assert_eq!(got.serve.theta_out.as_deref(), Some(Path::new("/t/theta.npy")));
        assert_eq!(got.serve.theta_in.as_deref(), Some(Path::new("/t/start.csv")));
        assert!(got.serve.program.watch_stdin);
        assert_eq!(got.serve.observers, 1, "async: an evaluator is waited for");
        assert_eq!(server(&local(&[])).serve.observers, 0);
    }

    #[test]
    fn several_servers_get_the_same_job_and_what_is_their_own() {
        let flags = ["--servers=3", "--checkpoint-dir=/t/c", "--theta-in=/t/s.csv", "--batch=8"];
        let args = local(&flags);
        let words = |index, others| -> Vec<String> {
            let words = server_arguments(&args, post(&args, index, others));
            words.into_iter().map(|word| word.into_string().expect("text")).collect()
        };
        let (first, third) = (words(0, &[7001, 7002]), words(2, &[]));
        let has = |words: &[String], word: &str| words.iter().any(|w| w == word);
        assert!(has(&first, "--partition=0/3") && has(&third, "--partition=2/3"));
        assert!(has(&first, "--peers=http://127.0.0.1:7001,http://127.0.0.1:7002"));
        assert!(has(&first, "--checkpoint-dir=/t/c/partition-0"));
        assert!(has(&third, "--checkpoint-dir=/t/c/partition-2"));
        for of_all in ["--theta-in=/t/s.csv", "--watch-stdin", "--rounds=100", "--workers=4"] {
            assert!(has(&first, of_all) && has(&third, of_all), "{of_all}");
        }
        for of_the_first in ["--report=/t/report", "--observers=1"] {
            assert!(has(&first, of_the_first) && !has(&third, of_the_first), "{of_the_first}");
        }
        assert!(!third.iter().any(|word| word.starts_with("--peers")));
        let got: WorkerArgs =
            parsed("ps-worker", worker_arguments(&args, Who::Worker(0), &[7000, 7001, 7002]));
        assert_eq!(got.attach.server.len(), 3);
        assert_eq!(got.attach.server[2], "http://127.0.0.1:7002");
    }

    #[test]
    fn a_worker_gets_data_and_model_and_its_rank() {
        let args = local(&[
            "--data=a,b.csv",
            "--labels=c",
            "--scale=divide=255",
            "--take=100",
            "--batch=32",
            "--seed=9",
            "--shuffle=false",
            "--model=softmax,classes=10",
            "--l2=0.001",
            "--bias=false",
            "--test-data=d",
            "--eval-every=5",
            "--compute-delay-ms=2..5",
            "--overlap",
        ]);
        let got = worker(&args, Who::Worker(2));
        assert_eq!(to_arguments(&got.learn), to_arguments(&args.learn));
        assert_eq!(got.attach.server, ["http://127.0.0.1:4711"]);
        assert_eq!((got.attach.rank, got.attach.evaluate), (Some(2), false));
        assert_eq!(got.attach.compute_delay_ms.as_deref(), Some("2..5"));
        assert!(got.attach.program.watch_stdin && got.attach.overlap.overlap);
        got.check().expect("a worker takes it");

        let got = worker(&args, Who::Evaluator);
        assert_eq!(to_arguments(&got.learn), to_arguments(&args.learn));
        assert_eq!(to_arguments(&got.evaluation), to_arguments(&args.evaluation));
        assert_eq!((got.attach.rank, got.attach.evaluate), (None, true));
        got.check().expect("an evaluator takes it");
    }

    #[test]
    fn rows_of_theta_are_for_workers_alone() {
        let args = local(&["--sparse", "--wire-pull=f16", "--batch=8"]);
        let sparse = |who| worker(&args, who).attach.sparse.sparse;
        assert_eq!((sparse(Who::Worker(1)), sparse(Who::Evaluator)), (true, false));
        worker(&args, Who::Worker(1)).check().expect("a worker takes it");
        worker(&args, Who::Evaluator).check().expect("an evaluator takes the rest");
    }

    #[test]
    fn the_evaluator_comes_first_and_only_where_it_is_needed() {
        let two = [Who::Worker(0), Who::Worker(1)];
        assert_eq!(workers(&local(&["--workers=2"])), two);
        assert_eq!(
            workers(&local(&["--workers=2", "--batch=8"])),
            [Who::Evaluator, two[0], two[1]]
        );
    }
}
