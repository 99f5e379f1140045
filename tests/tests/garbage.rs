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
use ps_tests::frames::{
    self, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, PRIORITY,
    RST_STREAM, SETTINGS, WINDOW_UPDATE, claiming, frame,
};
use ps_tests::{Caller, Process, local, wait_until};
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
    let want = &local(&["--workers=2", &rounds])["final"]["theta_sha256"];

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
    let before_kib = resident_kib(server.id()).expect("the server runs");
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
    assert_eq!(&report["final"]["theta_sha256"], want, "garbage changed theta");
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
            if let Some(kib) = resident_kib(server.id()) {
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

/// The most that was ever resident of a process.
fn resident_kib(id: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
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
        let (kind, bytes) = hostile.connection(&mut rng);
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

impl Hostile {
    /// What one connection sends, and its name.
    fn connection(&self, rng: &mut ChaCha8Rng) -> (&'static str, Vec<u8>) {
        let n = rng.random_range(100..5000);
        let greet = |frames: Vec<u8>| [frames::greeting(), frames].concat();
        let block = frames::call("/ps.v1.Parameters/Push", Some(&self.token));
        let open = |stream: u32, flags: u8| frame(HEADERS, END_HEADERS | flags, stream, &block);
        let streams = |n: u32| (0..n).map(|i| 2 * i + 1);
        let repeated = |frame: Vec<u8>| greet(frame.repeat(n));
        match rng.random_range(0..20) {
            0 => {
                let mut noise = vec![0; rng.random_range(0..4096)];
                rng.fill_bytes(&mut noise);
                ("preface: noise", noise)
            }
            1 => ("preface: HTTP/1.1", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
            2 => ("preface: a part", PREFACE[..rng.random_range(0..24)].to_vec()),
            3 => ("preface: TLS", [&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3], &[7; 300][..]].concat()),
            4 => ("PING flood", repeated(frame(PING, 0, 0, &[1; 8]))),
            5 => ("SETTINGS flood", repeated(frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]))),
            6 => {
                let reset = |i| [open(i, 0), frame(RST_STREAM, 0, i, &[0, 0, 0, 8])].concat();
                ("rapid reset", greet(streams(n as u32).flat_map(reset).collect()))
            }
            7 => {
                let begun = frame(HEADERS, 0, 1, &block);
                let more = frame(CONTINUATION, 0, 1, &[0, 1, b'a', 1, b'b']).repeat(n);
                ("CONTINUATION flood", greet([begun, more].concat()))
            }
            8 => {
                let empty = frame(DATA, 0, 1, &[]).repeat(n);
                ("empty DATA flood", greet([open(1, 0), empty].concat()))
            }
            9 => {
                let length = [1 << 20, (1 << 24) - 1][rng.random_range(0..2)];
                let kind = [DATA, HEADERS, SETTINGS, PING][rng.random_range(0..4)];
                ("oversized frame", greet(claiming(length, kind, 0, 1, &vec![0; 100_000])))
            }
            10 => {
                let stream = rng.random_range(0..2);
                let grow = frame(WINDOW_UPDATE, 0, stream, &[0x7f, 0xff, 0xff, 0xff]).repeat(2);
                ("window overflow", greet([open(1, 0), grow].concat()))
            }
            11 => {
                let late = frame(DATA, 0, 1, &frames::message(3, b"abc"));
                ("DATA on a half-closed stream", greet([open(1, END_STREAM), late].concat()))
            }
            12 => ("header bomb", greet(frame(HEADERS, END_HEADERS, 1, &header_bomb(block)))),
            13 => ("large headers", greet(large_headers(block, rng))),
            14 => {
                ("streams left open", greet(streams(n as u32).flat_map(|i| open(i, 0)).collect()))
            }
            15 => {
                let claimed = [u32::MAX, 1 << 30, 2 << 20, 1 << 20][rng.random_range(0..4)];
                let begun = frame(DATA, 0, 1, &frames::message(claimed, &[0; 10]));
                ("a message that claims much", greet([open(1, 0), begun].concat()))
            }
            16 => ("PRIORITY flood", repeated(frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 9]))),
            17 => ("GOAWAY, then more", greet([frame(GOAWAY, 0, 0, &[0; 8]), open(1, 0)].concat())),
            18 => ("HPACK noise", greet(frame(HEADERS, END_HEADERS, 1, &noise(rng)))),
            _ => ("frames of noise", greet(frames_of_noise(rng))),
        }
    }
}

/// A field that is kept in the table once, then named again and again.
fn header_bomb(mut block: Vec<u8>) -> Vec<u8> {
    block.push(0x40);
    let mut kept = Vec::new();
    frames::field(&mut kept, "x", &"y".repeat(4000));
    block.extend(&kept[1..]);
    block.extend([0xbe].repeat(10_000));
    block
}

fn large_headers(mut block: Vec<u8>, rng: &mut ChaCha8Rng) -> Vec<u8> {
    (0..rng.random_range(1..4)).for_each(|_| {
        frames::field(&mut block, "x", &"y".repeat(15_000));
    });
    let chunks: Vec<&[u8]> = block.chunks(16_000).collect();
    let mut frames = frame(HEADERS, 0, 1, chunks[0]);
    chunks[1..].iter().for_each(|c| frames.extend(frame(CONTINUATION, 0, 1, c)));
    frames.extend(frame(CONTINUATION, END_HEADERS, 1, &[]));
    frames
}

fn frames_of_noise(rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut frames = Vec::new();
    for _ in 0..rng.random_range(1..50) {
        let (kind, flags) = (rng.random_range(0..12), rng.random());
        let stream = rng.random_range(0..6);
        frames.extend(frame(kind, flags, stream, &noise(rng)));
    }
    frames
}

fn noise(rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = vec![0; rng.random_range(0..64)];
    rng.fill_bytes(&mut bytes);
    bytes
}
