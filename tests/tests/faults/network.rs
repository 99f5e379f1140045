//! Connections that break, stand still or carry only half: through a proxy between worker and server.

use std::time::{Duration, Instant};

use ps_common::wire::pb;
use ps_common::wire::pb::worker_status::State;
use ps_tests::rows::{Seen, stands};
use ps_tests::{Caller, Process, Proxy, Way, local, theta_sha256, wait_until};
use serde_json::Value;

use super::{DIM, ZEROS};

/// A worker through `proxy`.
fn worker(proxy: &Proxy, arguments: &[&str]) -> Process {
    Process::start("ps-worker", &[&["--server", &proxy.url()][..], arguments].concat())
}

/// The rank's clock, and theta's version.
async fn progress(onlooker: &mut Caller, rank: usize) -> (u64, u64) {
    let status = onlooker.status().await.expect("the server serves");
    (status.workers[rank].clock, status.version)
}

/// Waits for `condition` of the job's status.
async fn until(
    onlooker: &mut Caller,
    what: &str,
    condition: impl Fn(&pb::StatusResponse) -> bool,
) -> pb::StatusResponse {
    let end = Instant::now() + ps_tests::PATIENCE;
    loop {
        let status = onlooker.status().await.expect("the server serves");
        if condition(&status) {
            return status;
        }
        assert!(Instant::now() < end, "{what}: {status:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn row_31_a_black_hole_ends_at_both_ends_within_their_keepalive() {
    let job = ["--mode=async", "--workers=2", "--rounds=0", "--lease-ms=5000"];
    let (_server, address) = Process::server(&job);
    let proxy = Proxy::to(&address);
    let lost = worker(&proxy, &["--rank=1", "--compute-delay-ms=5"]);
    let mut good = Caller::connect(&address).await;
    until(&mut good, "a start", |status| status.workers.get(1).is_some_and(|w| w.clock > 3)).await;
    good.join(Caller::join_request(Some(0), DIM)).await.expect("the same tables");
    proxy.part();
    let begun = Instant::now();
    while good.status().await.expect("served").workers[1].state() != State::Lost {
        good.step(&ZEROS).await.expect("undisturbed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let before = good.pull().await.expect("theta");
    // (Worker, server): 10 s of silence and 5 s, 10 s without an answer to a ping.
    let (mut at_worker, mut at_server) = (None, None);
    while at_worker.is_none() || at_server.is_none() {
        let silent = begun.elapsed();
        assert!(silent < Duration::from_secs(60), "{at_worker:?} {at_server:?} {lost:?}");
        if lost.output().contains("trying again") {
            at_worker.get_or_insert(silent);
        }
        if proxy.n_ended_by_server() > 0 {
            at_server.get_or_insert(silent);
        }
        good.push(good.clock, before.0, &ZEROS).await.expect("undisturbed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (at_worker, at_server) = (at_worker.expect("seen"), at_server.expect("seen"));
    let slack = Duration::from_secs(5);
    assert!(at_worker <= Duration::from_secs(15) + slack, "worker {at_worker:?}");
    assert!(at_server <= Duration::from_secs(20) + slack, "server {at_server:?}");
    let theta = good.pull().await.expect("theta").1;
    let seen = Seen { theta_unchanged: Some(theta == before.1), good_undisturbed: Some(true) };
    let answer =
        "the worker tries again after keepalive 10 s + 5 s, the server closes after 10 s + 10 s";
    stands(31, "a connection that carries nothing any more", answer, seen);
}

/// A model whose gradient is several chunks and still one message, on the data that is built in.
const BIG: [&str; 2] = ["--model=mlp,hidden=20000,loss=squared", "--rank=1"];

#[tokio::test]
async fn row_32_a_worker_killed_in_its_upload_leaves_nothing() {
    let job = ["--mode=async", "--workers=2", "--rounds=0", "--lr=0.001"];
    let (_server, address) = Process::server(&job);
    let proxy = Proxy::to(&address);
    let victim = worker(&proxy, &[&BIG[..], &["--compute-delay-ms=20"]].concat());
    let mut good = Caller::connect(&address).await;
    until(&mut good, "a push", |s| s.workers.get(1).is_some_and(|w| w.clock > 0)).await;
    // A quarter of a gradient; whatever the worker thinks it has sent, no more comes.
    let tables = victim_tables(&mut good).await;
    let dim: u64 = tables.iter().map(|table| table.shape.iter().product::<u64>()).sum();
    let held = proxy.hold_after(Way::Up, dim);
    wait_until("the quarter", || (proxy.passed(Way::Up) >= held).then_some(()));
    let (clock, version) = progress(&mut good, 1).await;
    let request = pb::JoinRequest { tables, ..Caller::join_request(Some(0), DIM) };
    good.join(request).await.expect("the victim's tables");
    let before = good.pull().await.expect("theta");
    victim.signal("KILL");
    assert_eq!(victim.wait().0, None, "by the signal");
    proxy.cut();
    let zeros = vec![0.0; before.1.len() / 4];
    let mut counted = true;
    for _ in 0..3 {
        counted &= good.step(&zeros).await.is_ok_and(|r| r.outcome() == pb::Outcome::Applied);
    }
    let after = good.pull().await.expect("theta");
    assert_eq!((progress(&mut good, 1).await, after.0), ((clock, version + 3), version + 3));
    let seen = Seen { theta_unchanged: Some(after.1 == before.1), good_undisturbed: Some(counted) };
    stands(32, "kill -9 of a worker in the middle of its upload", "nothing is applied", seen);
}

/// The tables of the running job, as an observer hears them.
async fn victim_tables(onlooker: &mut Caller) -> Vec<pb::Table> {
    let request = pb::JoinRequest {
        protocol_version: 1,
        role: pb::Role::Observer.into(),
        ..Default::default()
    };
    onlooker.join(request).await.expect("observers are welcome").tables
}

#[tokio::test]
async fn row_33_a_worker_killed_before_it_reads_the_answer_counts_once() {
    const ROUNDS: u64 = 200;
    let rounds = format!("--rounds={ROUNDS}");
    let undisturbed = local(&["--dtype=f64", "--workers=2", &rounds]);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let report = folder.path().join("report.json").to_string_lossy().into_owned();
    // The first heartbeat comes after a third of it: what the server says is the answer to a push.
    let lease = "--lease-ms=20000";
    let job = ["--dtype=f64", "--workers=2", &rounds, lease, "--report", &report];
    let (server, address) = Process::server(&job);
    let proxy = Proxy::to(&address);
    let victim = worker(&proxy, &["--rank=1", "--compute-delay-ms=20"]);
    let direct = format!("http://{address}");
    let good = Process::start("ps-worker", &["--server", &direct, "--rank=0"]);
    let mut onlooker = Caller::connect(&address).await;
    until(&mut onlooker, "a start", |s| s.workers.len() == 2 && s.workers[1].clock > 5).await;
    proxy.hold(Way::Down);
    // Once an answer is held back, its latest push has been applied, and it does not know.
    wait_until("an answer", || (proxy.held(Way::Down) > 0).then_some(()));
    let clock = progress(&mut onlooker, 1).await.0;
    victim.signal("KILL");
    assert_eq!(victim.wait().0, None, "by the signal");
    proxy.cut();
    assert!(clock < ROUNDS, "the job was over before: {clock}");
    let second = Process::start("ps-worker", &["--server", &direct, "--rank=1"]);
    let output = second.expect_exit(0);
    assert!(output.contains(&format!("clock={clock}")), "goes on at {clock}: {output}");
    good.expect_exit(0);
    drop(onlooker);
    server.expect_exit(0);
    let text = std::fs::read_to_string(&report).expect("a report");
    let report: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(report["version"], ROUNDS);
    let seen = Seen {
        theta_unchanged: Some(theta_sha256(&report) == theta_sha256(&undisturbed)),
        good_undisturbed: Some(true),
    };
    let fault = "kill -9 of a worker after its push was applied, before it read the answer";
    stands(33, fault, "applied once; the next life goes on at the clock after it", seen);
}

#[tokio::test]
async fn row_38_a_partition_of_any_kind_ends_in_the_same_bits() {
    let learn = ["--dtype=f64", "--workers=2", "--rounds=400"];
    let undisturbed = local(&learn);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let report = folder.path().join("report.json").to_string_lossy().into_owned();
    let lease = format!("--lease-ms={}", LEASE.as_millis());
    let job = [&learn[..], &[&lease, "--report", &report]].concat();
    let (server, address) = Process::server(&job);
    let proxies = [Proxy::to(&address), Proxy::to(&address)];
    let workers = [("--rank=0", &proxies[0]), ("--rank=1", &proxies[1])]
        .map(|(rank, proxy)| worker(proxy, &[rank, "--compute-delay-ms=20"]));
    let mut onlooker = Caller::connect(&address).await;
    until(&mut onlooker, "a start", |status| status.version > 5).await;

    let one = &proxies[1];
    for (what, ways) in [
        ("both ways", &[Way::Up, Way::Down][..]),
        ("towards the server", &[Way::Up]),
        ("towards the worker", &[Way::Down]),
    ] {
        progress_resumes(&mut onlooker, &proxies, what, async || {
            ways.iter().for_each(|&way| one.hold(way));
            tokio::time::sleep(LEASE * 2).await;
        })
        .await;
    }
    progress_resumes(&mut onlooker, &proxies, "flapping", async || {
        for _ in 0..10 {
            one.part();
            tokio::time::sleep(Duration::from_millis(30)).await;
            one.heal();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    // Clogged one by one, let go in another order.
    for (hold, free) in [([0, 1], [1, 0]), ([1, 0], [1, 0])] {
        progress_resumes(&mut onlooker, &proxies, "swizzle-clog", async || {
            for i in hold {
                proxies[i].part();
                tokio::time::sleep(LEASE / 2).await;
            }
            for i in free {
                proxies[i].heal();
                tokio::time::sleep(LEASE / 2).await;
            }
        })
        .await;
    }

    for worker in workers {
        worker.expect_exit(0);
    }
    drop(onlooker);
    server.expect_exit(0);
    let text = std::fs::read_to_string(&report).expect("a report");
    let report: Value = serde_json::from_str(&text).expect("JSON");
    let seen = Seen {
        theta_unchanged: Some(theta_sha256(&report) == theta_sha256(&undisturbed)),
        good_undisturbed: Some(true),
    };
    let fault = "partitions: both ways, either way, flapping, swizzle-clog";
    stands(38, fault, "once healed, progress within the lease and the longest pause", seen);
}

const LEASE: Duration = Duration::from_secs(1);

/// Parts, lets everything pass again and waits for progress, which must come in time.
///
/// The time is the program's promise: the lease, and the longest pause between attempts. A machine
/// that is busy elsewhere adds to it, so the soonest of three partitions of a kind is held to it. Each
/// of them is held to ten seconds, which is less than a keepalive takes: nobody waited for that.
async fn progress_resumes(
    onlooker: &mut Caller,
    proxies: &[Proxy; 2],
    what: &str,
    mut part: impl AsyncFnMut(),
) {
    const PROMISE: Duration = Duration::from_millis(1000 + 2000 + 1000);
    let mut times = Vec::new();
    while times.iter().all(|&took| took >= PROMISE) {
        assert!(times.len() < 3, "{what}: progress only after {times:?}");
        part().await;
        let before = progress(onlooker, 1).await.1;
        assert!(before < 380, "{what}: the job is too far to see progress");
        proxies.iter().for_each(Proxy::heal);
        let healed = Instant::now();
        until(onlooker, what, |status| status.version > before + 1).await;
        let took = healed.elapsed();
        assert!(took < Duration::from_secs(10), "{what}: progress only after {took:?}");
        times.push(took);
    }
}
