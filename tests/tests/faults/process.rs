//! Programs that are told to stop, stand still, or lack what the system gives: signals, clocks,
//! descriptors, memory.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use ps_common::wire::pb;
use ps_common::wire::pb::operator_client::OperatorClient;
use ps_common::wire::pb::worker_status::State;
use ps_tests::rows::{Seen, refusal, stands};
use ps_tests::{Caller, Process, Shim, binary, local, reason_of, theta_sha256, wait_until};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::{DIM, ONES};

/// A server that says what it does.
fn talking_server(arguments: &[&str]) -> (Process, String) {
    let mut command = Command::new(binary("ps-server"));
    command.env("PS_LOG", "info");
    Process::server_by(command, arguments)
}

/// A stream of steps that its caller leaves open, so that the server has a call in flight.
async fn standing_stream(caller: &mut Caller) -> mpsc::Sender<pb::PushRequest> {
    let (sender, messages) = mpsc::channel(1);
    let message = caller.message(0, 0, &ONES);
    sender.send(message).await.expect("room");
    let answers = caller.parameters.push_pull(ReceiverStream::new(messages)).await.expect("opened");
    let mut answers = answers.into_inner();
    answers.message().await.expect("a step").expect("an answer");
    // Keeps reading, as a worker does.
    tokio::spawn(async move { while let Ok(Some(_)) = answers.message().await {} });
    sender
}

#[tokio::test]
async fn row_36_a_second_signal_or_sigint_ends_it_at_once() {
    let job = ["--mode=async", "--workers=1", "--rounds=0", "--drain-timeout=60s"];
    for (signals, code) in [(&["TERM", "TERM"][..], 143), (&["TERM", "INT"], 130), (&["INT"], 130)]
    {
        let (server, address) = talking_server(&job);
        let mut caller = Caller::joined(&address, 0, DIM).await;
        let in_flight = standing_stream(&mut caller).await;
        for signal in signals {
            server.signal(signal);
            if signals.len() > 1 {
                wait_until("the drain", || server.output().contains("SIGTERM").then_some(()));
            }
        }
        server.expect_exit(code);
        drop(in_flight);
    }
    let fault = "SIGTERM or SIGINT to a server that drains; SIGINT";
    stands(36, fault, "ends at once, exit 143 or 130", Seen::NOBODY);
}

/// Reads HTTP/2 frames until one says that the connection goes away.
fn until_goaway(address: &str) -> std::thread::JoinHandle<bool> {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(ps_tests::PATIENCE)).expect("a time");
    // Empty settings are a client's first frame.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    stream.write_all(preface).expect("sent");
    std::thread::spawn(move || {
        let mut head = [0; 9];
        while stream.read_exact(&mut head).is_ok() {
            const GOAWAY: u8 = 7;
            if head[3] == GOAWAY {
                return true;
            }
            let length =
                usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            if stream.read_exact(&mut vec![0; length]).is_err() {
                break;
            }
        }
        false
    })
}

#[tokio::test]
async fn row_35_sigterm_drains_and_ends_well() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let theta_out = folder.path().join("theta.npy");
    let theta_text = theta_out.to_string_lossy();
    let job = ["--workers=2", "--rounds=0", "--drain-timeout=2s", "--theta-out", &theta_text];
    let (server, address) = Process::server(&job);
    let mut waiting = Caller::joined(&address, 0, DIM).await;
    let mut other = Caller::joined(&address, 1, DIM).await;
    let (a, b) = tokio::join!(waiting.push(0, 0, &ONES), other.push(0, 0, &ONES));
    a.and(b).expect("a round");
    let before = other.pull().await.expect("theta");
    let mut health = HealthClient::new(other.channel.clone());
    let mut watch =
        health.watch(HealthCheckRequest::default()).await.expect("watched").into_inner();
    let first = watch.message().await.expect("a state").expect("a state");
    assert_eq!(first.status().as_str_name(), "SERVING");
    let goaway = until_goaway(&address);

    let held = tokio::spawn(async move { waiting.push(1, 1, &ONES).await });
    let mut operator = OperatorClient::new(other.channel.clone());
    loop {
        // The push is held as soon as it has been heard: then its rank is not silent for long.
        let status = operator.status(pb::StatusRequest {}).await.expect("status").into_inner();
        if status.workers[0].silent_ms < status.workers[1].silent_ms {
            break;
        }
    }
    let begun = std::time::Instant::now();
    server.signal("TERM");
    let status: Status = held.await.expect("no panic").expect_err("the round never closes");
    assert_eq!(reason_of(&status), (Code::Unavailable, "DRAINING".to_owned()));
    let last = watch.message().await.expect("a state").expect("a state");
    assert_eq!(last.status().as_str_name(), "NOT_SERVING");
    assert!(goaway.join().expect("no panic"), "no GOAWAY");
    server.expect_exit(0);
    let took = begun.elapsed();
    // The watch stands to the end: the drain's limit ends it, and not that of 10 s where none is said.
    assert!(took < Duration::from_secs(2 + 7), "{took:?}");
    let written = std::fs::read(&theta_out).expect("theta was written");
    let theta_unchanged = Some(written.ends_with(&before.1));
    let seen = Seen { theta_unchanged, good_undisturbed: None };
    let answer = format!("{} to who waits; NOT_SERVING, GOAWAY, exit 0", refusal(&status));
    stands(35, "SIGTERM to the server", &answer, seen);
}

fn report_of(path: &str) -> Value {
    let text = std::fs::read_to_string(path).expect("a report");
    serde_json::from_str(&text).expect("JSON")
}

/// Asks for the job's status until `condition` holds.
fn until(address: &str, what: &str, condition: impl Fn(&pb::StatusResponse) -> bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let mut caller = Caller::connect(address).await;
        let end = std::time::Instant::now() + ps_tests::PATIENCE;
        loop {
            let status = caller.status().await.expect("the server serves");
            if condition(&status) {
                return;
            }
            assert!(std::time::Instant::now() < end, "{what}: {status:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

#[test]
fn row_37_a_worker_that_was_stopped_finds_its_lease_ended_or_its_rank_taken() {
    // Far from done by the time that the worker is stopped.
    let learn = ["--dtype=f64", "--workers=2", "--rounds=200"];
    let undisturbed = local(&learn);
    for replaced in [false, true] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let report = folder.path().join("report.json").to_string_lossy().into_owned();
        let job = [&learn[..], &["--lease-ms=2000", "--report", &report]].concat();
        let (server, address) = Process::server(&job);
        let url = format!("http://{address}");
        let worker =
            |rank| Process::start("ps-worker", &["--server", &url, rank, "--compute-delay-ms=20"]);
        let (good, stopped) = (worker("--rank=0"), worker("--rank=1"));
        until(&address, "a start", |s| s.workers.len() == 2 && s.version > 5);
        stopped.signal("STOP");
        until(&address, "the lease's end", |s| s.workers[1].state() == State::Lost);
        let second = replaced.then(|| worker("--rank=1"));
        if replaced {
            until(&address, "the replacement", |s| s.workers[1].state() == State::Live);
        }
        stopped.signal("CONT");
        let (code, says) = if replaced { (1, "FENCED") } else { (0, "LEASE_EXPIRED") };
        let output = stopped.expect_exit(code);
        assert!(output.contains(says), "{output}");
        second.map(|second| second.expect_exit(0));
        good.expect_exit(0);
        server.expect_exit(0);
        let same = theta_sha256(&report_of(&report)) == theta_sha256(&undisturbed);
        let seen = Seen { theta_unchanged: Some(same), good_undisturbed: Some(true) };
        let (fault, answer) = match replaced {
            true => ("SIGSTOP of a worker, another takes its rank, SIGCONT", "FENCED, exit 1"),
            false => (
                "SIGSTOP of a worker for longer than its lease, SIGCONT",
                "LEASE_EXPIRED, it joins again",
            ),
        };
        stands(37, fault, answer, seen);
    }
}

#[test]
fn row_46_leases_do_not_look_at_the_wall_clock() {
    // Far from done when the last shift comes.
    let learn = ["--dtype=f64", "--workers=2", "--rounds=500"];
    let undisturbed = local(&learn);
    let shim = Shim::new();
    let under = |program: &str| {
        let mut command = Command::new(binary(program));
        shim.put_under(&mut command, None);
        command
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let report = folder.path().join("report.json").to_string_lossy().into_owned();
    // Less than the shifts by far, more than a busy machine keeps a worker waiting.
    let job = [&learn[..], &["--lease-ms=20000", "--report", &report]].concat();
    let (server, address) = Process::server_by(under("ps-server"), &job);
    let workers = ["--rank=0", "--rank=1"].map(|rank| {
        let mut command = under("ps-worker");
        command.args(["--server", &format!("http://{address}"), rank, "--compute-delay-ms=10"]);
        Process::spawn("ps-worker", command)
    });
    for (hours, version) in [(1, 10), (-1, 40), (0, 70), (-1, 100), (1, 130)] {
        until(&address, "a step of the job", |status| status.version >= version);
        shim.shift_wall_clock(hours * 3600);
    }
    // A program that looks at the wall clock sees the shift: the shim does what it says.
    let mut date = Command::new("date");
    shim.put_under(date.arg("+%s"), None);
    let seen = String::from_utf8(date.output().expect("date runs").stdout).expect("digits");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("now");
    let ahead = seen.trim().parse::<u64>().expect("seconds") - now.as_secs();
    assert!((3590..3610).contains(&ahead), "{ahead}");
    let n_changed = shim.n_changed();
    for worker in workers {
        worker.expect_exit(0);
    }
    server.expect_exit(0);
    assert!(
        shim.n_changed() > n_changed,
        "the programs never saw the shift, not even in their logs"
    );
    let report = report_of(&report);
    let events = report["events"].as_array().expect("events");
    assert!(events.iter().all(|event| event["kind"] != "lost"), "{events:?}");
    let seconds = report["wall_seconds"].as_f64().expect("seconds");
    assert!((0.0..1800.0).contains(&seconds), "not an hour off: {seconds}");
    let same = theta_sha256(&report) == theta_sha256(&undisturbed);
    let seen = Seen { theta_unchanged: Some(same), good_undisturbed: Some(true) };
    let fault = "the wall clocks of server and workers jump by an hour, both ways";
    stands(46, fault, "nothing: no lease ends", seen);
}

/// Sets a limit of a running process.
fn limit(process: &Process, what: &str, value: u64) {
    let mut prlimit = Command::new("prlimit");
    prlimit.args(["--pid", &process.id().to_string(), &format!("--{what}={value}")]);
    assert!(prlimit.status().expect("prlimit runs").success());
}

#[tokio::test]
async fn row_47_without_file_descriptors_it_waits_without_spinning() {
    let job = ["--mode=async", "--workers=1", "--rounds=0", "--connections-max=1000"];
    let (server, address) = Process::server(&[&job[..], &["--handshake-timeout=60s"]].concat());
    let mut good = Caller::joined(&address, 0, DIM).await;
    let before = good.pull().await.expect("theta");
    let in_use = std::fs::read_dir(format!("/proc/{}/fd", server.id())).expect("it runs").count();
    limit(&server, "nofile", in_use as u64 + 5);
    let flood: Vec<_> =
        (0..100).map(|_| TcpStream::connect(&address).expect("the backlog has room")).collect();
    wait_until("the limit", || server.output().contains("cannot accept").then_some(()));
    let (cpu, begun) = (server.cpu_time(), std::time::Instant::now());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let share = (server.cpu_time() - cpu).as_secs_f64() / begun.elapsed().as_secs_f64();
    assert!(share < 0.3, "the server spins: {share} of a core");
    let seen = Seen::by(&mut good, &before).await;
    drop(flood);
    let mut later = Caller::connect(&address).await;
    later.status().await.expect("served once there is room");
    let fault = "more connections than file descriptors";
    stands(47, fault, "the rest wait to be accepted, at less than a third of a core", seen);
}

#[tokio::test]
async fn row_47_without_memory_it_refuses_and_lives() {
    const BIG: usize = 4 << 20;
    // Lease and stall timeout are longer than it takes to fill the memory.
    let patient = ["--lease-ms=120000", "--stall-timeout=120s"];
    let job = [&["--mode=async", "--workers=12", "--rounds=0", "--lr=0.5"][..], &patient].concat();
    let mut command = Command::new(binary("ps-server"));
    // KiB of address space that the allocator takes in advance: little, so that the limit is felt.
    command.env("MIMALLOC_ARENA_RESERVE", "16384");
    let (mut server, address) = Process::server_by(command, &job);
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.id())).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmSize:")).expect("a size");
    let kib: u64 = line.split_whitespace().nth(1).expect("a number").parse().expect("a number");
    limit(&server, "as", (kib << 10) + (160 << 20));
    let mut huge = Caller::connect(&address).await;
    let status = huge.join(Caller::join_request(Some(0), 1 << 30)).await.expect_err("4 GiB");
    assert_eq!(reason_of(&status), (Code::ResourceExhausted, "OVERLOADED".to_owned()));
    let answer = format!("{}, RetryInfo", refusal(&status));
    stands(47, "a theta that there is no memory for", &answer, Seen::NOBODY);

    // 16 MiB a gradient, all of them held open before their last chunk.
    let mut good = Caller::joined(&address, 0, BIG as u64).await;
    let before = good.pull().await.expect("theta");
    let gradient = vec![0.0; BIG];
    let mut open = Vec::new();
    let mut refused = Vec::new();
    for rank in 1..12 {
        let bad = Caller::joined(&address, rank, BIG as u64).await;
        let mut chunks = bad.chunks(0, 0, &gradient);
        chunks.pop();
        let (sender, messages) = mpsc::channel(chunks.len());
        let mut parameters = bad.parameters.clone();
        let call =
            tokio::spawn(async move { parameters.push(ReceiverStream::new(messages)).await });
        for chunk in chunks {
            sender.send(chunk).await.expect("room");
        }
        open.push((sender, call));
    }
    // Nobody lets go before the server has taken all of it but what the windows hold, and so has memory
    // for each, or has refused it.
    let end = std::time::Instant::now() + ps_tests::PATIENCE;
    let is_taken = |sender: &mpsc::Sender<_>| sender.capacity() == sender.max_capacity();
    while !open.iter().all(|(sender, _)| is_taken(sender)) {
        assert!(std::time::Instant::now() < end, "{server:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for (sender, call) in open {
        // Ends inside the push.
        drop(sender);
        refused.push(call.await.expect("no panic").expect_err("it is not whole"));
    }
    let exhausted = refused.iter().find(|status| status.code() == Code::ResourceExhausted);
    let exhausted = exhausted.unwrap_or_else(|| panic!("memory lasted: {refused:?}"));
    assert!(server.is_running(), "{server:?}");
    let theta_unchanged = Some(good.pull().await.expect("theta") == before);
    let result = good.push_messages(good.chunks(0, 0, &gradient)).await.expect("undisturbed");
    let good_undisturbed = Some(result.outcome() == pb::Outcome::Applied);
    let seen = Seen { theta_unchanged, good_undisturbed };
    let answer = format!("{}, RetryInfo", refusal(exhausted));
    stands(47, "more gradients at once than there is memory for", &answer, seen);
}
