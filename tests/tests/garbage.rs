//! Garbage at a live server while good workers train: protobuf that is broken in every way, and
//! HTTP/2 that no library would send. The good workers' theta is the same to the bit, the server's
//! memory stays bounded, nothing hostile has an effect, the server ends well.
//!
//! `PS_GARBAGE_SECONDS=N` makes it longer, `PS_GARBAGE_SEED=N` another; the seed is printed.

// What was sent and answered is said on stdout.
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prost::Message;
use ps_common::wire::pb;
use ps_fuzz::{Mutator, TARGETS};
use ps_tests::frames;
use ps_tests::hostile::{KINDS, connection};
use ps_tests::{Caller, Process, local, resident_kib_max, theta_sha256, wait_until};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use tonic::Request;

/// What may be resident of the server: it has 10 parameters and about 60 MiB of program, runtimes
/// and buffers of connections.
const RESIDENT_KIB_MAX: u64 = 256 << 10;

/// Hostile connections at once: of each kind of garbage.
const N_HOSTILE: u64 = 3;

fn setting(name: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(name) else { return default };
    text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number"))
}

/// How often what was sent, and what came back.
#[derive(Default)]
struct Counts {
    sent: Mutex<BTreeMap<String, u64>>,
    answers: Mutex<BTreeMap<String, u64>>,
}

impl Counts {
    fn note(&self, kind: &str, answers: impl IntoIterator<Item = String>) {
        *self.sent.lock().expect("counts").entry(kind.to_owned()).or_default() += 1;
        let mut all = self.answers.lock().expect("counts");
        for answer in answers {
            *all.entry(answer).or_default() += 1;
        }
    }

    fn print(&self) {
        for (title, counts) in [("sent", &self.sent), ("answers", &self.answers)] {
            let counts = counts.lock().expect("counts");
            println!("{title}: {} in all", counts.values().sum::<u64>());
            counts.iter().for_each(|(what, n)| println!("  {n:8} {what}"));
        }
    }
}

/// A hostile peer's view of the world.
struct Hostile {
    address: String,
    /// Of a worker: who has none gets no further than the gate.
    token: String,
    /// The good workers by name. Who knows a worker's token and name is that worker.
    good: Vec<(u32, u64)>,
    stop: AtomicBool,
    counts: Counts,
}

/// Calls by path, and the number of a valid message for each among the seeds of the wire.
const CALLS: [(&str, u8); 8] = [
    ("/ps.v1.Membership/Join", 0),
    ("/ps.v1.Membership/Leave", 1),
    ("/ps.v1.Membership/Heartbeat", 8),
    ("/ps.v1.Parameters/Evaluate", 3),
    ("/ps.v1.Parameters/Pull", 7),
    ("/ps.v1.Parameters/Push", 10),
    ("/ps.v1.Parameters/PushPull", 10),
    ("/ps.v1.Operator/Stop", 11),
];

#[test]
fn garbage_does_not_reach_the_good_workers() {
    let seconds = setting("PS_GARBAGE_SECONDS", 15);
    let seed = setting("PS_GARBAGE_SEED", 1);
    println!("PS_GARBAGE_SECONDS={seconds} PS_GARBAGE_SEED={seed}");
    // A round takes the compute delay and some.
    let rounds = format!("--rounds={}", seconds * 20);
    let undisturbed = local(&["--workers=2", &rounds]);

    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    for role in ["worker", "operator"] {
        std::fs::write(path(role), format!("the-token-of-the-{role}-0123456789\n"))
            .expect("written");
    }
    let (worker_file, operator_file) = (path("worker"), path("operator"));
    let (report, rounds) = (path("report.json"), rounds.as_str());
    let (server, address) = Process::server(&[
        "--workers=2",
        rounds,
        "--report",
        &report,
        "--worker-token-file",
        &worker_file,
        "--operator-token-file",
        &operator_file,
        "--handshake-timeout=1s",
        "--stall-timeout=2s",
    ]);
    let url = format!("http://{address}");
    let flags = ["--server", &url, "--token-file", &worker_file, "--workers=2"];
    let workers: Vec<Process> = (0..2)
        .map(|_| Process::start("ps-worker", &[&flags[..], &["--compute-delay-ms=45"]].concat()))
        .collect();
    let good = names_of_workers(&url, &operator_file);

    let hostile = Arc::new(Hostile {
        address,
        token: "Bearer the-token-of-the-worker-0123456789".to_owned(),
        good,
        stop: AtomicBool::new(false),
        counts: Counts::default(),
    });
    let peak_kib = AtomicU64::new(0);
    let before_kib = resident_kib_max(server.id()).expect("the server runs");
    std::thread::scope(|scope| {
        for peer in 0..N_HOSTILE {
            let hostile = &hostile;
            scope.spawn(move || messages(hostile, seed.wrapping_add(peer)));
            scope.spawn(move || connections(hostile, seed.wrapping_add(1000 + peer)));
        }
        let patience = Duration::from_secs(60 + 10 * seconds);
        watch(workers, &server, &hostile, (patience, &peak_kib));
        hostile.stop.store(true, Ordering::Relaxed);
    });
    hostile.counts.print();
    let peak_kib = peak_kib.into_inner();
    println!(
        "resident: {} MiB before, {} MiB at most, limit {} MiB",
        before_kib >> 10,
        peak_kib >> 10,
        RESIDENT_KIB_MAX >> 10
    );
    server.expect_exit(0);
    assert!(peak_kib < RESIDENT_KIB_MAX, "{peak_kib} KiB were resident");
    let text = std::fs::read_to_string(&report).expect("a report");
    let report: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(theta_sha256(&report), theta_sha256(&undisturbed), "garbage changed theta");
    let sent: u64 = hostile.counts.sent.lock().expect("counts").values().sum();
    assert!(sent > 100, "only {sent} executions");
}

/// Rank and incarnation of the two workers, once they are past the first rounds.
fn names_of_workers(url: &str, operator_file: &str) -> Vec<(u32, u64)> {
    let status = || -> Option<Value> {
        let flags = ["status", "--server", url, "--token-file", operator_file, "--json"];
        // The handshake's limit is short here: on a busy machine it may come too late.
        let (code, text) = Process::start("psctl", &flags).wait();
        serde_json::from_str(text.lines().last()?).ok().filter(|_| code == Some(0))
    };
    let status = wait_until("the second round", || {
        status().filter(|status| status["version"].as_u64() >= Some(2))
    });
    let name = |worker: &Value| {
        let rank = worker["rank"].as_u64().expect("a rank") as u32;
        (rank, worker["incarnation"].as_u64().expect("an incarnation"))
    };
    let good: Vec<_> = status["workers"].as_array().expect("workers").iter().map(name).collect();
    assert_eq!(good.len(), 2, "{status}");
    good
}

/// Waits until the good workers are done; looks at the server's memory meanwhile.
fn watch(
    workers: Vec<Process>,
    server: &Process,
    hostile: &Hostile,
    (patience, peak_kib): (Duration, &AtomicU64),
) {
    for mut worker in workers {
        let end = std::time::Instant::now() + patience;
        while worker.is_running() {
            if let Some(kib) = resident_kib_max(server.id()) {
                peak_kib.fetch_max(kib, Ordering::Relaxed);
            }
            if std::time::Instant::now() > end {
                hostile.stop.store(true, Ordering::Relaxed);
                panic!("not done in time: {worker:?} {server:?}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let (code, output) = worker.wait();
        hostile.stop.store(code != Some(0), Ordering::Relaxed);
        assert_eq!(code, Some(0), "{output}\n{server:?}");
    }
}

/// Calls in good HTTP/2 whose messages are garbage.
fn messages(hostile: &Hostile, seed: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let wire = TARGETS.iter().find(|target| target.name == "wire").expect("the wire's");
        let seeds = (wire.seeds)();
        let (mut mutator, mut rng) = (Mutator::new(seed), ChaCha8Rng::seed_from_u64(seed));
        let endpoint =
            tonic::transport::Endpoint::from_shared(format!("http://{}", hostile.address));
        let endpoint = endpoint.expect("an address");
        while !hostile.stop.load(Ordering::Relaxed) {
            let Ok(channel) = endpoint.connect().await else { continue };
            let mut caller = Caller::over(channel);
            for _ in 0..200 {
                let (path, kind) = CALLS[rng.random_range(0..CALLS.len())];
                let valid = &seeds[usize::from(kind)][1..];
                let other = &seeds[rng.random_range(0..seeds.len())][1..];
                let (how, bytes) = garbage(&mut mutator, &mut rng, valid, other);
                // Who has a worker's token and name is that worker: tokens guard them, not readers.
                if name_in(path, &bytes).is_some_and(|name| hostile.good.contains(&name)) {
                    continue;
                }
                let mut request = Request::new(bytes.clone());
                request.set_timeout(Duration::from_secs(2));
                if rng.random_range(0..10) > 0 {
                    let token = hostile.token.parse().expect("ASCII");
                    request.metadata_mut().insert("authorization", token);
                }
                let answer =
                    tokio::time::timeout(Duration::from_secs(5), caller.raw_request(path, request));
                let Ok(status) = answer.await else { break };
                hostile.counts.note(how, [format!("gRPC {:?}", status.code())]);
                if status.code() == tonic::Code::Ok {
                    let is_harmless = is_harmless(path, &bytes, hostile.good.len());
                    assert!(is_harmless, "{path} {}", bytes.escape_ascii());
                }
                if hostile.stop.load(Ordering::Relaxed) {
                    return;
                }
            }
        }
    });
}

/// Bytes for a call, and what is wrong with them.
fn garbage(
    mutator: &mut Mutator,
    rng: &mut ChaCha8Rng,
    valid: &[u8],
    other: &[u8],
) -> (&'static str, Vec<u8>) {
    let field = |number: u8, wire: u8| number << 3 | wire;
    match rng.random_range(0..8) {
        0..3 => ("protobuf: changed", mutator.mutate(valid, other)),
        3 => ("protobuf: another message", other.to_vec()),
        4 => {
            let (number, wire) = (rng.random_range(1..16), rng.random_range(0..8));
            let mut bytes = [valid, &[field(number, wire)]].concat();
            bytes.extend([rng.random::<u8>(), rng.random()]);
            ("protobuf: a wrong wire type", bytes)
        }
        5 => {
            let depth = rng.random_range(10..5000);
            ("protobuf: deep", [field(5, 3), field(3, 2)].repeat(depth))
        }
        6 => {
            let mut bytes = vec![field(rng.random_range(1..16), 2)];
            bytes.extend([[0xff; 9].as_slice(), &[1]].concat());
            bytes.extend(valid);
            ("protobuf: a huge length", bytes)
        }
        _ => {
            let mut bytes = vec![0; rng.random_range(0..100_000)];
            rng.fill_bytes(&mut bytes);
            ("protobuf: noise", bytes)
        }
    }
}

/// In whose name the message speaks, if it can be read and says so.
fn name_in(path: &str, bytes: &[u8]) -> Option<(u32, u64)> {
    let name = match path.rsplit('/').next() {
        Some("Leave") => pb::LeaveRequest::decode(bytes).map(|m| (m.rank, m.incarnation)),
        Some("Heartbeat") => pb::HeartbeatRequest::decode(bytes).map(|m| (m.rank, m.incarnation)),
        Some("Evaluate") => pb::EvaluateRequest::decode(bytes).map(|m| (m.rank, m.incarnation)),
        Some("Pull") => pb::PullRequest::decode(bytes).map(|m| (m.rank, m.incarnation)),
        Some("Push" | "PushPull") => pb::PushRequest::decode(bytes)
            .map(|m| m.header.map_or((0, 0), |header| (header.rank, header.incarnation))),
        _ => return None,
    };
    name.ok()
}

/// Whether an answer that is no refusal may be given: to an observer that joins, or speaks in the
/// name of one that did. It has no rank among the workers and no say.
fn is_harmless(path: &str, bytes: &[u8], n_workers: usize) -> bool {
    let observer = i32::from(pb::Role::Observer);
    match path.rsplit('/').next() {
        Some("Join") => pb::JoinRequest::decode(bytes).is_ok_and(|m| m.role == observer),
        Some("Push" | "PushPull" | "Stop") => false,
        _ => name_in(path, bytes).is_some_and(|(rank, _)| rank as usize >= n_workers),
    }
}

/// Connections whose HTTP/2 is garbage.
fn connections(hostile: &Hostile, seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    while !hostile.stop.load(Ordering::Relaxed) {
        let Ok(mut stream) = TcpStream::connect(&hostile.address) else { continue };
        let timeout = Some(Duration::from_millis(300));
        stream.set_read_timeout(timeout).expect("not zero");
        stream.set_write_timeout(timeout).expect("not zero");
        let kind = KINDS[rng.random_range(0..KINDS.len())];
        let bytes = connection(kind, &hostile.token, &mut rng);
        // Refused in the middle is as good as refused at the end.
        let sent = stream.write_all(&bytes);
        let mut answer = Vec::new();
        let end = (&mut stream).take(1 << 20).read_to_end(&mut answer);
        let mut said = frames::said(&answer);
        // One of each: a flood is answered by a flood.
        said.sort();
        said.dedup();
        said.push(match (sent, end) {
            (Ok(()), Ok(_)) => "closed".to_owned(),
            (Ok(()), Err(error)) if error.kind() == std::io::ErrorKind::WouldBlock => {
                "left open".to_owned()
            }
            _ => "reset".to_owned(),
        });
        hostile.counts.note(kind, said.into_iter().map(|what| format!("HTTP/2 {what}")));
    }
}
