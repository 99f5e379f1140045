//! Nobody gets in, and nobody stays who does not take part: TLS, tokens and limits against the real
//! programs, by the rows of the fault list.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ps_common::wire::pb;
use ps_tests::rows::{Seen, refusal, refusal_of, stands};
use ps_tests::{
    Caller, PATIENCE, Process, local, patient_client, reason_of, theta_sha256, wait_until,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde_json::Value;
use tempfile::TempDir;
use tonic::{Code, Request};

const DIM: u64 = 10;

/// Certificates and tokens, as `psctl certs` makes them.
struct Certs(TempDir);

impl Certs {
    fn new(hosts: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let out = folder.path().join("certs").to_string_lossy().into_owned();
        Process::start("psctl", &["certs", "--out", &out, "--host", hosts]).expect_exit(0);
        Self(folder)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join("certs").join(name).to_string_lossy().into_owned()
    }

    /// The server's flags: TLS both ways, tokens.
    fn server(&self) -> Vec<String> {
        let mut flags = self.tokens();
        for (flag, file) in [
            ("--tls-cert", "server.pem"),
            ("--tls-key", "server-key.pem"),
            ("--tls-client-ca", "ca.pem"),
        ] {
            flags.push(format!("{flag}={}", self.path(file)));
        }
        flags
    }

    /// The server's flags for tokens alone.
    fn tokens(&self) -> Vec<String> {
        vec![
            format!("--worker-token-file={}", self.path("worker.token")),
            format!("--operator-token-file={}", self.path("operator.token")),
        ]
    }

    /// The flags of whoever plays `role` at `address`.
    fn peer(&self, role: &str, address: &str) -> Vec<String> {
        let mut flags = self.trusting(address);
        flags.push(format!("--tls-cert={}", self.path(&format!("{role}.pem"))));
        flags.push(format!("--tls-key={}", self.path(&format!("{role}-key.pem"))));
        flags.push(format!("--token-file={}", self.path(&format!("{role}.token"))));
        flags
    }

    /// The flags of somebody who knows the CA, and has nothing to show.
    fn trusting(&self, address: &str) -> Vec<String> {
        vec![format!("--server=https://{address}"), format!("--tls-ca={}", self.path("ca.pem"))]
    }

    fn token(&self, role: &str) -> String {
        let text = std::fs::read_to_string(self.path(&format!("{role}.token"))).expect("a token");
        format!("Bearer {}", text.trim_end())
    }
}

fn server(flags: &[String], more: &[&str]) -> (Process, String) {
    let all: Vec<&str> = flags.iter().map(String::as_str).chain(more.iter().copied()).collect();
    Process::server(&all)
}

fn start(program: &str, command: &[&str], flags: &[String], more: &[&str]) -> Process {
    let flags = flags.iter().map(String::as_str);
    let all: Vec<&str> = command.iter().copied().chain(flags).chain(more.iter().copied()).collect();
    Process::start(program, &all)
}

fn psctl(command: &str, flags: &[String], more: &[&str]) -> Process {
    start("psctl", &[command], flags, more)
}

fn report_in(folder: &Path) -> Value {
    let text = std::fs::read_to_string(folder.join("report.json")).expect("a report");
    serde_json::from_str(&text).expect("JSON")
}

fn with_token<T>(message: T, token: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", token.parse().expect("visible"));
    }
    request
}

#[test]
fn a_job_over_mutual_tls_with_tokens_ends_in_the_same_bits() {
    let undisturbed = local(&["--dtype=f64"]);
    let certs = Certs::new("ps.test");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let report = folder.path().join("report.json").to_string_lossy().into_owned();
    // Connections come of age several times in the middle of the job, none before its first call.
    let age = "--connection-age-max=1500ms";
    let (server, address) = server(&certs.server(), &["--dtype=f64", "--report", &report, age]);
    let worker = certs.peer("worker", &address);
    let misled = start("ps-worker", &[], &worker, &["--workers=3"]).expect_exit(78);
    assert!(misled.contains("--workers is 3 here, 4 at"), "{misled}");
    // Far from done when an operator has had its answers.
    let slow = "--compute-delay-ms=40..90";
    let workers: Vec<Process> =
        (0..4).map(|_| start("ps-worker", &[], &worker, &["--workers=4", slow])).collect();

    let operator = certs.peer("operator", &address);
    wait_until("the tenth round", || {
        let (_, status) = psctl("status", &operator, &["--json"]).wait();
        let status: Value = serde_json::from_str(status.lines().last()?).ok()?;
        (status["version"].as_u64()? >= 10).then_some(())
    });
    let theta = folder.path().join("theta.npy").to_string_lossy().into_owned();
    // A connection whose time has come between handshake and call is no answer.
    let exported = wait_until("an export", || {
        let (code, output) = psctl("export", &operator, &["--out", &theta]).wait();
        assert!(matches!(code, Some(0 | 69)), "{output}");
        (code == Some(0)).then_some(output)
    });
    assert!(exported.contains("10 elements of f64"), "{exported}");

    for worker in workers {
        worker.expect_exit(0);
    }
    server.expect_exit(0);
    assert_eq!(theta_sha256(&report_in(folder.path())), theta_sha256(&undisturbed));
}

#[test]
fn an_operator_stops_a_job_and_a_worker_may_not() {
    let certs = Certs::new("ps.test");
    let (server, address) = server(&certs.server(), &["--rounds=0", "--workers=1", "--mode=async"]);
    let flags = certs.peer("worker", &address);
    let worker = start("ps-worker", &[], &flags, &["--compute-delay-ms=1"]);
    let operator = certs.peer("operator", &address);
    // A job that is stopped before the worker comes is over, and the server gone.
    wait_until("a first push", || {
        let status = psctl("status", &operator, &["--json"]).expect_exit(0);
        let status: Value = serde_json::from_str(status.lines().last()?).ok()?;
        (status["version"].as_u64()? > 0).then_some(())
    });
    for command in ["stop", "status"] {
        let output = psctl(command, &flags, &[]).expect_exit(78);
        assert!(output.contains("needs the token of an operator"), "{output}");
    }
    psctl("stop", &operator, &[]).expect_exit(0);
    worker.expect_exit(0);
    server.expect_exit(0);
}

#[tokio::test]
async fn rows_26_and_27_without_the_right_token_nothing_is_read() {
    let certs = Certs::new("ps.test");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let report = folder.path().join("report.json").to_string_lossy().into_owned();
    let job = ["--mode=async", "--workers=1", "--rounds=0", "--report", &report];
    let (server, address) = server(&certs.tokens(), &job);
    let (worker, operator) = (certs.token("worker"), certs.token("operator"));
    let mut caller = Caller::connect(&address).await;
    let join = |token: Option<&str>| with_token(Caller::join_request(Some(0), DIM), token);

    let unauthenticated = (Code::Unauthenticated, "UNAUTHENTICATED".to_owned());
    let with_a_space = format!("{worker} ");
    let shorter = &worker[..worker.len() - 1];
    for bad in [None, Some("Bearer x"), Some("Basic x"), Some(&with_a_space), Some(shorter)] {
        let status = caller.membership.join(join(bad)).await.expect_err("row 26");
        assert_eq!(reason_of(&status), unauthenticated, "{bad:?}");
        assert!(status.message().contains("token") || status.message().contains("Bearer"));
    }
    // Were the body looked at, these would be INTERNAL and OUT_OF_RANGE.
    for body in [vec![0xff; 11], vec![0; 4 << 20]] {
        for path in ["/ps.v1.Parameters/Push", "/ps.v1.Membership/Join", "/ps.v1.Operator/Stop"] {
            let status = caller.raw(path, body.clone()).await;
            assert_eq!(reason_of(&status), unauthenticated, "{path}");
        }
    }

    let joined = caller.membership.join(join(Some(&worker))).await.expect("a worker's token");
    let pb::JoinResponse { rank, incarnation, .. } = joined.into_inner();
    (caller.rank, caller.incarnation) = (rank, incarnation);
    let message = caller.message(0, 0, &[1.0; DIM as usize]);
    let push = || tokio_stream::iter(vec![message.clone()]);
    let mut parameters = caller.parameters.clone();
    let denied = (Code::PermissionDenied, "PERMISSION_DENIED".to_owned());
    let status = parameters.push(with_token(push(), Some(&operator))).await;
    assert_eq!(reason_of(&status.expect_err("row 27")), denied);
    for token in [None, Some("Bearer x")] {
        let status = parameters.push(with_token(push(), token)).await;
        assert_eq!(reason_of(&status.expect_err("row 26")), unauthenticated);
    }
    let stop = || pb::StopRequest { reason: "curiosity".to_owned() };
    let status = caller.operator.stop(with_token(stop(), Some(&worker))).await;
    assert_eq!(reason_of(&status.expect_err("row 27")), denied);
    let request = with_token(pb::StatusRequest {}, Some(&operator));
    let status = caller.operator.status(request).await.expect("an operator's token").into_inner();
    assert_eq!(status.version, 0, "no push has counted");
    let pull =
        with_token(pb::PullRequest { rank, incarnation, ..Default::default() }, Some(&worker));
    let theta = parameters.pull(pull).await.expect("a worker's token").into_inner().message().await;
    let theta = theta.expect("theta").expect("a chunk").data;
    parameters.push(with_token(push(), Some(&worker))).await.expect("a worker's token");
    let theta_unchanged = Some(theta[..] == [0; 4 * DIM as usize]);
    let seen = Seen { theta_unchanged, good_undisturbed: Some(true) };
    let answer = refusal_of(unauthenticated.0, &unauthenticated.1);
    stands(26, "no token, or one that the server does not know", &answer, seen);
    let answer = refusal_of(denied.0, &denied.1);
    stands(27, "a good token of the role that may not make the call", &answer, seen);

    // Probes have no token.
    let mut health = tonic_health::pb::health_client::HealthClient::new(caller.channel.clone());
    health.check(tonic_health::pb::HealthCheckRequest::default()).await.expect("open to all");

    caller.operator.stop(with_token(stop(), Some(&operator))).await.expect("stopped");
    let leave = pb::LeaveRequest { rank, incarnation, ..Default::default() };
    caller.membership.leave(with_token(leave, Some(&worker))).await.expect("left");
    let output = server.expect_exit(0);
    assert!(output.contains("no token that this server knows"), "{output}");
    for token in [worker, operator] {
        assert!(!output.contains(token.trim_start_matches("Bearer ")), "a token in the log");
    }
    let events = report_in(folder.path())["events"].to_string();
    assert!(events.contains("UNAUTHENTICATED (13 times)"), "{events}");
    assert!(events.contains("PERMISSION_DENIED (2 times)"), "{events}");
}

/// A CA, and a certificate by it for a client that was valid until `year`, in `folder`.
fn foreign(folder: &Path, year: i32) -> [String; 3] {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, format!("another CA of {year}"));
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key"));
    let ca = ca.expect("signed");
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.not_after = rcgen::date_time_ymd(year, 1, 1);
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, &ca).expect("signed");
    let files = [("ca", ca.pem()), ("cert", certificate.pem()), ("key", key.serialize_pem())];
    files.map(|(name, pem)| {
        let path = folder.join(format!("{name}-{year}.pem"));
        std::fs::write(&path, pem).expect("written");
        path.to_string_lossy().into_owned()
    })
}

#[test]
fn row_28_no_handshake_without_a_good_certificate() {
    let certs = Certs::new("ps.test");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let [old_ca, old_cert, old_key] = foreign(folder.path(), 2001);
    let [_, other_cert, other_key] = foreign(folder.path(), 2040);
    // The server trusts its own CA and that of the expired certificate.
    let both = folder.path().join("both.pem").to_string_lossy().into_owned();
    let pems = [certs.path("ca.pem"), old_ca].map(|path| std::fs::read(path).expect("a CA"));
    std::fs::write(&both, pems.concat()).expect("written");
    let mut flags = certs.server();
    flags.retain(|flag| !flag.starts_with("--tls-client-ca"));
    let (mut server, address) = server(&flags, &["--tls-client-ca", &both, "--workers=1"]);

    let stranger = certs.trusting(&address);
    for (shown, says) in [
        (vec![], "the server wants a certificate: --tls-cert"),
        (vec!["--tls-cert", &old_cert, "--tls-key", &old_key], "has expired"),
        (vec!["--tls-cert", &other_cert, "--tls-key", &other_key], "--tls-client-ca"),
    ] {
        let output = psctl("health", &stranger, &shown).expect_exit(78);
        assert!(output.contains(says), "{shown:?}: {output}");
        let output = start("ps-worker", &[], &stranger, &shown).expect_exit(78);
        assert!(output.contains(says), "{shown:?}: {output}");
    }
    psctl("health", &certs.peer("worker", &address), &[]).expect_exit(0);
    assert!(server.is_running());
    // Counted, and in the log with the peer, though not each of a flood.
    wait_until("a count in the log", || {
        psctl("health", &stranger, &[]).expect_exit(78);
        let log = server.output();
        let counts = log.lines().filter(|line| line.contains("turned away: no TLS handshake"));
        let more = |line: &&str| line.contains("n_total=1 ") || !line.contains("n_total=");
        let found = counts.clone().any(|line| !more(&line) && line.contains("address=127.0.0.1:"));
        found.then_some(())
    });
    let seen = Seen { theta_unchanged: None, good_undisturbed: Some(server.is_running()) };
    let fault = "TLS without a certificate, with an expired one, with one of another CA";
    stands(28, fault, "the handshake fails, counted in the log; the peer exits 78", seen);
}

#[test]
fn what_does_not_fit_is_said_with_the_flag_that_mends_it() {
    let certs = Certs::new("ps.test");
    let other = Certs::new("ps.test");
    let (_tls, address) = server(&certs.server(), &["--workers=1"]);
    let (_plain, plain_address) = server(&certs.tokens(), &["--workers=1"]);

    let http = vec![format!("--server=http://{address}")];
    for (program, command) in [("psctl", &["status"][..]), ("ps-worker", &[])] {
        let output = start(program, command, &http, &[]).expect_exit(78);
        assert!(output.contains("the server speaks TLS: use https://"), "{output}");
    }
    let https = certs.trusting(&plain_address);
    let output = psctl("status", &https, &["--connect-timeout=3s"]).expect_exit(69);
    assert!(output.contains("does it serve TLS?"), "{output}");

    let mut stranger = certs.peer("operator", &address);
    stranger.retain(|flag| !flag.starts_with("--tls-ca="));
    let output = psctl("status", &stranger, &["--tls-ca", &other.path("ca.pem")]).expect_exit(78);
    assert!(output.contains("signed by an unknown CA: --tls-ca"), "{output}");
    let operator = certs.peer("operator", &address);
    let output = psctl("status", &operator, &["--tls-name=elsewhere.test"]).expect_exit(78);
    assert!(output.contains("--tls-name"), "{output}");
    psctl("status", &operator, &["--tls-name=ps.test"]).expect_exit(0);

    let plain = vec![format!("--server=http://{plain_address}")];
    for (program, command) in [("psctl", &["status"][..]), ("ps-worker", &[])] {
        let output = start(program, command, &plain, &[]).expect_exit(78);
        assert!(output.contains("this server wants a token: --token-file"), "{output}");
        let wrong = ["--token-file", &other.path("worker.token")];
        let output = start(program, command, &plain, &wrong).expect_exit(78);
        assert!(output.contains("does not know the token"), "{output}");
    }
    let ca = ["--tls-ca", &certs.path("ca.pem")];
    let output = psctl("status", &plain, &ca).expect_exit(78);
    assert!(output.contains("--tls-ca has no meaning"), "{output}");
}

#[test]
fn files_that_cannot_serve_are_refused_at_the_start() {
    let certs = Certs::new("ps.test");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let empty = folder.path().join("empty").to_string_lossy().into_owned();
    std::fs::write(&empty, "\n").expect("written");
    let [cert, key] = ["server.pem", "server-key.pem"].map(|name| certs.path(name));
    let (worker, operator) = (certs.path("worker.token"), certs.path("operator.token"));
    let worker_key = certs.path("worker-key.pem");
    let tls =
        |cert: &str, key: &str| vec![format!("--tls-cert={cert}"), format!("--tls-key={key}")];
    let tokens = |worker: &str, operator: &str| {
        vec![format!("--worker-token-file={worker}"), format!("--operator-token-file={operator}")]
    };
    for (flags, code, says) in [
        (tls("/no/such/file", &key), 74, "--tls-cert: cannot read /no/such/file"),
        (tls(&empty, &key), 78, "no certificate in it"),
        (tls(&cert, &empty), 78, "no private key in it"),
        (tls(&cert, &worker_key), 78, "do not go together"),
        (tokens(&empty, &operator), 78, "the file is empty"),
        (tokens(&worker, &worker), 78, "the same token"),
    ] {
        let output = start("ps-server", &["--listen=127.0.0.1:0"], &flags, &[]).expect_exit(code);
        assert!(output.contains(says), "{output}");
    }
    let open = ["--listen=0.0.0.0:0"];
    for flags in [tls(&cert, &key), tokens(&worker, &operator)] {
        let output = start("ps-server", &open, &flags, &[]).expect_exit(78);
        assert!(output.contains("--insecure"), "{output}");
    }
    let mut readable = std::process::Command::new("chmod");
    assert!(readable.args(["644", &worker]).status().expect("chmod runs").success());
    let (server, _) = server(&tokens(&worker, &operator), &[]);
    wait_until("the warning", || server.output().contains("chmod 600").then_some(()));
}

/// Waits until the server closes `stream`; gives how long that took.
fn until_closed(mut stream: TcpStream, since: Instant) -> Duration {
    stream.set_read_timeout(Some(PATIENCE)).expect("a time");
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return since.elapsed(),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                return since.elapsed();
            }
            Err(error) => panic!("the server did not close the connection: {error}"),
        }
    }
}

#[tokio::test]
async fn row_30_silence_and_half_a_preface_end_in_time() {
    let certs = Certs::new("ps.test");
    // Longer than a busy machine keeps the good one waiting between connecting and its first word.
    let job = ["--handshake-timeout=2s", "--mode=async", "--workers=1", "--rounds=0"];
    let (mut plain, address) = Process::server(&job);
    let mut good = Caller::joined(&address, 0, DIM).await;
    let (mut tls, tls_address) = server(&certs.server(), &job);
    let limit = Duration::from_secs(2);

    for (address, says) in [
        (&address, &b""[..]),
        (&address, b"PRI * HTTP/2.0\r\n"),
        (&tls_address, b""),
        // The first bytes of a TLS hello of 512 bytes.
        (&tls_address, b"\x16\x03\x01\x02\x00\x01"),
    ] {
        let begun = Instant::now();
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream.write_all(says).expect("sent");
        let closed = tokio::task::spawn_blocking(move || until_closed(stream, begun));
        let version = good.push(0, 0, &[0.0; DIM as usize]).await.expect("undisturbed").version;
        assert_eq!(version, 1);
        let lived = closed.await.expect("closed");
        assert!(lived >= limit, "closed after {lived:?}, before the limit");
    }
    // What is no HTTP/2 is not waited for.
    for says in [&b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"[..], b"\x16\x03\x01\x02\x00\x01", b"\0\0\0"]
    {
        let mut stream = TcpStream::connect(&address).expect("it listens");
        stream.write_all(says).expect("sent");
        tokio::task::spawn_blocking(move || until_closed(stream, Instant::now()))
            .await
            .expect("closed");
    }
    wait_until("the peers in the log", || {
        let (plain, tls) = (plain.output(), tls.output());
        (plain.contains("turned away: no HTTP/2") && tls.contains("turned away: no TLS"))
            .then_some(())
    });
    assert!(plain.is_running() && tls.is_running());
    let seen = Seen { theta_unchanged: None, good_undisturbed: Some(true) };
    let fault = "a connection that says nothing, half a preface, half a TLS hello";
    stands(30, fault, "closed at the handshake timeout", seen);
}

#[tokio::test]
async fn row_30_a_request_that_stands_still_is_refused() {
    // Longer than a busy machine keeps the good one waiting inside a message.
    let limits = ["--stall-timeout=2s", "--lease-ms=60000"];
    let job = [&limits[..], &["--mode=async", "--workers=2", "--rounds=0"]].concat();
    let (_server, address) = Process::server(&job);
    let mut good = Caller::joined(&address, 0, DIM).await;
    let bad = Caller::joined(&address, 1, DIM).await;
    let half = pb::PushRequest { last: false, ..bad.message(0, 0, &[1.0; 5]) };
    let deadline = (Code::DeadlineExceeded, "DEADLINE".to_owned());

    // Nothing at all, and half a push, with Push; half a push over a standing stream.
    for first in [None, Some(half.clone())] {
        let (sender, messages) = tokio::sync::mpsc::channel(1);
        if let Some(first) = first {
            sender.send(first).await.expect("room");
        }
        let stream = tokio_stream::wrappers::ReceiverStream::new(messages);
        let status = bad.parameters.clone().push(stream).await.expect_err("row 30");
        assert_eq!(reason_of(&status), deadline);
        drop(sender);
    }
    let (sender, messages) = tokio::sync::mpsc::channel(1);
    sender.send(half).await.expect("room");
    let stream = tokio_stream::wrappers::ReceiverStream::new(messages);
    let answers = bad.parameters.clone().push_pull(stream).await.expect("opened");
    let status = answers.into_inner().message().await.expect_err("row 30");
    assert_eq!(reason_of(&status), deadline);
    drop(sender);
    let before = good.pull().await.expect("theta");
    assert_eq!(before, (0, vec![0; 4 * DIM as usize]), "nothing of the halves");
    let seen = Seen::by(&mut good, &before).await;
    let answer = refusal_of(deadline.0, &deadline.1);
    stands(30, "a push that stops half-way", &format!("{answer} at the stall timeout"), seen);
}

#[tokio::test]
async fn row_30_a_reader_that_never_reads_loses_its_connection() {
    // More than all windows and buffers on the way.
    let dim = 8 << 20;
    // Longer than a busy machine keeps the good one from reading.
    let limits = ["--stall-timeout=3s", "--lease-ms=60000"];
    let job = [&limits[..], &["--mode=async", "--workers=2", "--rounds=0"]].concat();
    let (server, address) = Process::server(&job);
    let mut good = Caller::joined(&address, 0, dim).await;
    let mut bad = Caller::joined(&address, 1, dim).await;
    let request =
        pb::PullRequest { rank: bad.rank, incarnation: bad.incarnation, ..Default::default() };
    let mut unread = bad.parameters.pull(request).await.expect("theta begins").into_inner();
    wait_until("the cut", || server.output().contains("cut off").then_some(()));
    let ended = loop {
        match unread.message().await {
            Ok(Some(_)) => {}
            Ok(None) => break None,
            Err(status) => break Some(status),
        }
    };
    assert!(ended.is_some(), "half a theta must not look like a whole one");
    let (version, theta) = good.pull().await.expect("undisturbed");
    assert_eq!((version, theta.len()), (0, 4 * dim as usize));
    let theta_unchanged = Some(theta.iter().all(|&byte| byte == 0));
    let seen = Seen { theta_unchanged, good_undisturbed: Some(true) };
    let fault = "a peer that reads nothing of the theta it asked for";
    stands(30, fault, "its connection is cut at the stall timeout", seen);
}

#[tokio::test]
async fn row_29_too_many_calls_are_refused_and_may_come_again() {
    // One connection: four calls at once.
    let job = ["--connections-max=1", "--mode=async", "--workers=1", "--rounds=0"];
    let (_server, address) = Process::server(&job);
    let mut caller = Caller::joined(&address, 0, DIM).await;
    let mut standing = Vec::new();
    for _ in 0..4 {
        let (sender, messages) = tokio::sync::mpsc::channel::<pb::PushRequest>(1);
        let stream = tokio_stream::wrappers::ReceiverStream::new(messages);
        let answers = caller.parameters.push_pull(stream).await.expect("within the limit");
        standing.push((sender, answers));
    }
    let status = caller.operator.status(pb::StatusRequest {}).await.expect_err("row 29");
    assert_eq!(reason_of(&status), (Code::ResourceExhausted, "OVERLOADED".to_owned()));
    let retry = tonic_types::StatusExt::get_details_retry_info(&status);
    assert!(retry.is_some(), "it says when to try again");
    let answer = format!("{}, RetryInfo", refusal(&status));
    let second = tonic::transport::Endpoint::from_shared(format!("http://{address}"));
    let second = async {
        let channel = second.expect("an address").connect().await?;
        let mut client = pb::operator_client::OperatorClient::new(channel);
        Ok::<_, Box<dyn std::error::Error>>(client.status(pb::StatusRequest {}).await?)
    };
    assert!(second.await.is_err(), "a second connection is closed");
    standing.pop();
    let mut again = caller.operator.status(pb::StatusRequest {}).await;
    let end = Instant::now() + PATIENCE;
    // The server hears of the stream's end a little later.
    while again.is_err() && Instant::now() < end {
        again = caller.operator.status(pb::StatusRequest {}).await;
    }
    again.expect("a place is free");
    let seen = Seen { theta_unchanged: None, good_undisturbed: Some(true) };
    stands(29, "more calls at once than the server takes", &answer, seen);
    let fault = "more connections than the server takes";
    stands(29, fault, "closed as they come", seen);
}

#[tokio::test]
async fn a_callers_deadline_is_kept_under_its_name() {
    let (_server, address) = Process::server(&["--mode=async", "--workers=1", "--rounds=0"]);
    let mut caller = Caller::joined(&address, 0, DIM).await;
    let pull = |caller: &Caller| pb::PullRequest {
        rank: caller.rank,
        incarnation: caller.incarnation,
        version_min: 5,
        wait_ms_max: 60_000,
        ..Default::default()
    };
    let mut request = Request::new(pull(&caller));
    request.metadata_mut().insert("grpc-timeout", "500m".parse().expect("ASCII"));
    let mut patient = patient_client(&address).await;
    let status = patient.pull(request).await.expect_err("nobody pushes");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    let mut request = Request::new(pull(&caller));
    request.metadata_mut().insert("grpc-timeout", "soon".parse().expect("ASCII"));
    let status = caller.parameters.pull(request).await.expect_err("no time");
    assert_eq!(reason_of(&status), (Code::InvalidArgument, "BAD_FIELD".to_owned()));
}

#[tokio::test]
async fn row_24_a_compressed_message_is_refused_unread() {
    let (_server, address) = Process::server(&["--mode=async", "--workers=1", "--rounds=0"]);
    let mut good = Caller::joined(&address, 0, DIM).await;
    let before = good.pull().await.expect("theta");
    let mut told = String::new();
    for encoding in ["gzip", "zstd", "deflate"] {
        let status = good.compressed("/ps.v1.Parameters/Push", encoding).await;
        assert_eq!(status.code(), Code::Unimplemented, "{encoding}: {status:?}");
        told = format!("{}, unread: no compression on this wire", refusal(&status));
    }
    let seen = Seen::by(&mut good, &before).await;
    stands(24, "a compressed message that would be a bomb", &told, seen);
}

/// The commands that `psctl certs` prints, as somebody would paste them: only the port is another.
#[test]
fn the_printed_commands_work_as_written() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let programs = ps_tests::binary("psctl").parent().map(PathBuf::from).expect("a folder");
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").expect("a PATH"));
    let port = ps_tests::free_port();
    let shell = |line: &str| {
        let mut command = std::process::Command::new("sh");
        let line = line.replace(":50051", &format!(":{port}"));
        command.args(["-c", &format!("exec {line}")]).current_dir(folder.path()).env("PATH", &path);
        Process::spawn("sh", command)
    };
    let printed = shell("psctl certs --out my-certs --host localhost").expect_exit(0);
    let printed = printed.replace("\\\n", " ");
    let command = |program: &str| {
        printed.lines().find(|line| line.starts_with(program)).expect("a command").to_owned()
    };
    let server = shell(&format!("{} --workers 1 --rounds 3", command("ps-server ")));
    let status = command("psctl status ");
    wait_until("the server", || (shell(&status).wait().0 == Some(0)).then_some(()));
    shell(&command("ps-worker ")).expect_exit(0);
    let output = server.expect_exit(0);
    assert!(!output.contains("WARN"), "{output}");
}
