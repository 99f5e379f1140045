//! The first of several servers, seen by a caller that speaks `proto/` alone: what it refuses, what it
//! decides for all, and where all go back to.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ps_common::wire::pb;
use ps_tests::{Group, GroupCaller, PATIENCE, Process, Proxy, free_port, reason_of, wait_until};
use tonic::Code;

const DIM: u64 = 90;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// A member of the group as soon as it serves, and all servers have theta: the others make it a moment
/// after partition 0 has let somebody in.
async fn joined(addresses: &[String]) -> GroupCaller {
    let end = tokio::time::Instant::now() + PATIENCE;
    let mut member = None;
    loop {
        let error = match &mut member {
            None => match GroupCaller::join(addresses, 0, DIM).await {
                Ok(caller) => {
                    member = Some(caller);
                    continue;
                }
                Err(error) => error.to_string(),
            },
            Some(caller) => match caller.pull().await {
                Ok(_) => return member.expect("it has joined"),
                Err(error) => error.to_string(),
            },
        };
        assert!(tokio::time::Instant::now() < end, "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Two servers, each with a directory of its own.
struct Pair {
    folder: tempfile::TempDir,
    ports: [u16; 2],
}

impl Pair {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for index in 0..2 {
            std::fs::create_dir(folder.path().join(index.to_string())).expect("a folder");
        }
        Self { folder, ports: [free_port(), free_port()] }
    }

    fn directory(&self, index: usize) -> PathBuf {
        self.folder.path().join(index.to_string())
    }

    fn addresses(&self) -> [String; 2] {
        self.ports.map(|port| format!("127.0.0.1:{port}"))
    }

    fn server(&self, index: usize, more: &[&str]) -> Process {
        self.server_by(index, &self.addresses()[1], more)
    }

    /// A server that finds the other one at `peer`.
    fn server_by(&self, index: usize, peer: &str, more: &[&str]) -> Process {
        let mut flags = vec![
            format!("--listen=127.0.0.1:{}", self.ports[index]),
            format!("--partition={index}/2"),
            format!("--checkpoint-dir={}", self.directory(index).display()),
            "--workers=1".to_owned(),
            "--rounds=0".to_owned(),
            "--checkpoint-every=1h".to_owned(),
        ];
        if !more.contains(&"--mode=sync") {
            flags.push("--mode=async".to_owned());
        }
        if index == 0 {
            flags.push(format!("--peers=http://{peer}"));
            flags.push(format!("--report={}", self.folder.path().join("report").display()));
        }
        flags.extend(more.iter().map(|flag| (*flag).to_owned()));
        Process::start("ps-server", &flags.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Has all servers write a checkpoint; theta's version in it.
    fn checkpoint(&self) -> u64 {
        let address = &self.addresses()[0];
        runtime().block_on(async {
            let address = format!("http://{address}");
            let mut operator =
                pb::operator_client::OperatorClient::connect(address).await.expect("it serves");
            let request = pb::CheckpointRequest::default();
            operator.checkpoint(request).await.expect("durable").into_inner().version
        })
    }
}

/// Names of files in a directory.
fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).expect("listed");
    entries.map(|entry| entry.expect("read").file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn a_push_or_pull_that_forgets_the_other_servers_is_refused() {
    let group = Group::start(2, &["--workers=1", "--mode=async", "--rounds=0"], false);
    runtime().block_on(async {
        let mut caller = joined(&group.addresses()).await;
        let half = vec![1.0; DIM as usize / 2];
        let refused = caller.first.push(0, 0, &half).await.expect_err("nothing is staged");
        assert_eq!(reason_of(&refused), (Code::InvalidArgument, "BAD_FIELD".to_owned()));
        assert!(refused.message().contains("`staged`"), "{refused}");
        let refused = caller.first.pull().await.expect_err("no exchange");
        assert_eq!(reason_of(&refused), (Code::InvalidArgument, "BAD_FIELD".to_owned()));
        assert!(refused.message().contains("`exchange`"), "{refused}");
        // Nothing has counted, and nobody is the worse for it.
        let (version, theta) = caller.pull().await.expect("theta");
        assert_eq!((version, theta), (0, vec![0.0; DIM as usize]));
        let result = caller.push(0, 0, &vec![1.0; DIM as usize]).await.expect("taken");
        assert_eq!(result.outcome(), pb::Outcome::Applied);
    });
}

#[test]
fn an_update_that_overflows_at_another_server_is_none_and_ends_a_round_everywhere() {
    let pair = Pair::new();
    let flags = ["--mode=sync", "--lr=10"];
    let servers = [1, 0].map(|index| pair.server(index, &flags));
    runtime().block_on(async {
        let mut caller = joined(&pair.addresses()).await;
        let mut gradient = vec![1.0; DIM as usize];
        caller.push(0, 0, &gradient).await.expect("finite");
        // In the keys of the second server alone.
        gradient[DIM as usize - 1] = f32::MAX;
        gradient[DIM as usize - 7] = f32::MAX;
        let refused = caller.push(1, 1, &gradient).await.expect_err("it overflows");
        assert_eq!(reason_of(&refused).1, "UPDATE_OVERFLOW");
        assert!(refused.message().contains(&format!("key {}", DIM - 7)), "{refused}");
    });
    // The job has failed, and every server says why.
    for server in servers {
        let output = server.expect_exit(1);
        assert!(output.contains("the job failed: DIVERGED: round 1"), "{output}");
    }
    let report = std::fs::read_to_string(pair.folder.path().join("report")).expect("written");
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    assert_eq!((&report["version"], &report["dim"]), (&1.into(), &DIM.into()));
}

#[test]
fn all_go_back_to_the_newest_checkpoint_that_every_server_has() {
    let pair = Pair::new();
    let (mut first, mut second) = (pair.server(0, &[]), pair.server(1, &[]));
    let mut versions = Vec::new();
    runtime().block_on(async {
        let mut caller = joined(&pair.addresses()).await;
        let gradient = vec![1.0; DIM as usize];
        for clock in 0..9 {
            caller.push(clock, clock, &gradient).await.expect("taken");
            if clock % 3 == 2 {
                versions.push(std::thread::scope(|scope| {
                    scope.spawn(|| pair.checkpoint()).join().expect("durable")
                }));
            }
        }
    });
    assert_eq!(versions, [3, 6, 9]);
    // The second server loses its newest: a crash could have come before it was there.
    second.signal("KILL");
    let newest = pair.directory(1).join(format!("checkpoint-{:020}.psck", 9));
    std::fs::remove_file(newest).expect("there was one");
    assert_eq!(std::mem::replace(&mut second, pair.server(1, &[])).wait().0, None);
    runtime().block_on(async {
        let mut caller = joined(&pair.addresses()).await;
        let (version, theta) = caller.pull().await.expect("theta");
        assert_eq!(version, 6, "9 is not on both");
        assert!(theta.iter().all(|x| *x == theta[0]), "one version on both: {theta:?}");
        let gradient = vec![2.0; DIM as usize];
        caller.push(6, 6, &gradient).await.expect("goes on from there");
        caller.push(7, 7, &gradient).await.expect("and on");
        let (version, again) = caller.pull().await.expect("theta");
        assert_eq!(version, 8);
        assert!(again.iter().all(|x| *x < theta[0] && *x == again[0]), "{again:?}");
    });
    assert!(first.is_running(), "it has begun anew by itself: {first:?}");
    let undone = format!("checkpoint-{:020}.psck.undone", 9);
    assert!(names(&pair.directory(0)).contains(&undone), "{:?}", names(&pair.directory(0)));
    // What did not happen is not in the way of another future.
    assert_eq!(pair.checkpoint(), 8);

    let urls = pair.addresses().map(|address| format!("http://{address}")).join(",");
    Process::start("psctl", &["stop", "--server", &urls]).expect_exit(0);
    for server in [first, second] {
        server.expect_exit(0);
    }
    let report = std::fs::read_to_string(pair.folder.path().join("report")).expect("written");
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    let events = report["events"].as_array().expect("events");
    let detail = |kind: &str| {
        let event = events.iter().find(|event| event["kind"] == kind);
        event.unwrap_or_else(|| panic!("no {kind} in {events:?}"))["detail"].to_string()
    };
    assert!(detail("server lost").contains("partition 1/2"), "{events:?}");
    assert!(detail("group began anew").contains("version 6"), "{events:?}");
    assert_eq!((&report["n_servers"], &report["version"]), (&2.into(), &8.into()));
}

#[test]
fn a_server_that_falls_silent_is_lost_and_found_again() {
    let pair = Pair::new();
    let second = pair.server(1, &[]);
    let proxy = Proxy::to(&pair.addresses()[1]);
    let mut first = pair.server_by(0, proxy.address(), &[]);
    runtime().block_on(async {
        let mut caller = joined(&pair.addresses()).await;
        caller.push(0, 0, &vec![1.0; DIM as usize]).await.expect("taken");
    });
    assert_eq!(pair.checkpoint(), 1);
    proxy.part();
    wait_until("the loss", || {
        first.output().contains("lost the server of partition 1/2").then_some(())
    });
    proxy.heal();
    proxy.cut();
    runtime().block_on(async {
        let mut caller = joined(&pair.addresses()).await;
        assert_eq!(caller.pull().await.expect("theta").0, 1);
        caller.push(1, 1, &vec![1.0; DIM as usize]).await.expect("it goes on");
    });
    assert!(first.is_running());
    drop((first, second));
}

#[test]
fn a_server_that_does_not_come_or_differs_is_named() {
    let pair = Pair::new();
    let alone = pair.server(0, &["--replacement-timeout=1s"]).expect_exit(1);
    let url = format!("server 1/2 (http://{})", pair.addresses()[1]);
    for part in [url.as_str(), "--replacement-timeout (1 s)"] {
        assert!(alone.contains(part), "{alone}");
    }
    let mut second = pair.server(1, &["--lr=0.25"]);
    let differs = pair.server(0, &["--lr=0.5"]).expect_exit(78);
    for part in [url.as_str(), "--lr", "0.25", "0.5"] {
        assert!(differs.contains(part), "{differs}");
    }
    assert!(second.is_running(), "it waits for another: {second:?}");
    // Two servers that take each other for the wrong one.
    let own = pair.addresses()[0].clone();
    let lone = Process::start("ps-server", &["--workers=1", &format!("--listen={own}")]);
    let peer = Pair { ports: [free_port(), pair.ports[0]], ..Pair::new() };
    let follows_nobody = peer.server(0, &[]).expect_exit(78);
    assert!(follows_nobody.contains("follows nobody"), "{follows_nobody}");
    drop((lone, second));
}

#[test]
fn checkpoints_of_another_number_of_servers_are_refused() {
    let pair = Pair::new();
    let directory = format!("--checkpoint-dir={}", pair.directory(0).display());
    let (mut lone, address) = Process::server(&["--workers=1", "--rounds=0", &directory]);
    runtime().block_on(async { ps_tests::Caller::joined(&address, 0, DIM).await });
    wait_until("the first checkpoint", || {
        names(&pair.directory(0)).iter().any(|name| name.ends_with(".psck")).then_some(())
    });
    assert!(lone.is_running());
    lone.signal("KILL");
    assert_eq!(lone.wait().0, None);
    let second = pair.server(1, &[]);
    let refused = pair.server(0, &[]).expect_exit(78);
    for part in ["by server 0/1", "this one is 0/2"] {
        assert!(refused.contains(part), "{refused}");
    }
    drop(second);
}
