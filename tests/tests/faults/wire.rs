//! Messages that are wrong, and calls from those who may not make them.

use std::time::{Duration, Instant};

use ps_common::wire::pb;
use ps_tests::rows::{Seen, outcome, refusal, refusal_of, stands};
use ps_tests::{Caller, PATIENCE, Process, header, reason_of, wait_until};
use tonic::Code;

use super::{DIM, ONES, ZEROS, refused, setting};

fn invalid(reason: &str) -> (Code, String) {
    (Code::InvalidArgument, reason.to_owned())
}

/// Messages that must be refused as invalid for `reason`, which is what stands in the table.
async fn check(
    (good, bad): (&mut Caller, &mut Caller),
    (row, fault): (u32, &str),
    messages: Vec<pb::PushRequest>,
    reason: &str,
) {
    let (code, got, seen) = refused(good, bad, messages).await;
    assert_eq!((code, got), invalid(reason), "row {row}: {fault}");
    stands(row, fault, &refusal_of(code, reason), seen);
}

#[tokio::test]
async fn rows_1_to_5_malformed_gradients_leave_no_trace() {
    let (_server, address, mut good) = setting(&[]).await;
    let mut bad = Caller::joined(&address, 1, DIM).await;
    let gradient = |at: usize, value: f32| {
        let mut gradient = ONES;
        gradient[at] = value;
        gradient
    };

    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let messages = vec![bad.message(0, 1, &gradient(7, value))];
        let status = bad.push_messages(messages.clone()).await.expect_err("row 1");
        assert!(status.message().contains("element 7"), "{status:?}");
        let fault = "NaN, +Inf or -Inf in a gradient";
        check((&mut good, &mut bad), (1, fault), messages, "NON_FINITE").await;
    }
    // theta is -0.5; one step of f32::MAX at rate 0.5 fits, two do not.
    let huge = [f32::MAX; DIM as usize];
    good.step(&huge).await.expect("fits");
    good.step(&huge).await.expect("still fits");
    let overflow = vec![bad.message(0, 1, &huge)];
    let fault = "a finite gradient whose update overflows theta";
    check((&mut good, &mut bad), (2, fault), overflow, "UPDATE_OVERFLOW").await;

    for wrong in [&[1.0f32; 9][..], &[1.0; 11]] {
        let messages = vec![bad.message(0, 1, wrong)];
        let fault = "a gradient with an element too few or too many";
        check((&mut good, &mut bad), (3, fault), messages, "DIM_MISMATCH").await;
    }
    let mut odd = bad.message(0, 1, &ONES);
    odd.data.truncate(39);
    let fault = "bytes that are no whole number of elements";
    check((&mut good, &mut bad), (4, fault), vec![odd], "BAD_LENGTH").await;
    for dtype in [0, 2, 77] {
        let mut message = bad.message(0, 1, &ONES);
        message.dtype = dtype;
        let fault = "an element type that is unknown or not the job's";
        check((&mut good, &mut bad), (4, fault), vec![message], "BAD_DTYPE").await;
    }
    let empty = bad.message(0, 1, &[]);
    let fault = "a gradient without elements, a push without messages";
    check((&mut good, &mut bad), (5, fault), vec![empty], "EMPTY").await;
    check((&mut good, &mut bad), (5, fault), vec![], "EMPTY").await;
    let nothing = pb::PushRequest::default();
    let fault = "a message without any field";
    check((&mut good, &mut bad), (5, fault), vec![nothing], "BAD_FIELD").await;

    // The same clock is still owed, and counts.
    let result = bad.push(0, 1, &ZEROS).await.expect("a good push at last");
    assert_eq!(result.outcome(), pb::Outcome::Applied);
}

#[tokio::test]
async fn rows_6_and_7_rows_of_tables_that_are_wrong_leave_no_trace() {
    let (_server, address, mut good) = setting(&[]).await;
    let mut bad = Caller::joined(&address, 1, DIM).await;
    let sender = bad.clone();
    let push = |rows: &[u32], n_values: usize, asked: &[u32]| {
        let asked: Vec<_> = if asked.is_empty() { vec![] } else { vec![(0, asked)] };
        sender.rows_messages((0, 1), (&[(0, rows)], &vec![1.0; n_values]), &asked)
    };
    for (fault, messages) in [
        ("a row beyond the table's last", push(&[3, 10], 2, &[])),
        ("a row asked for beyond the table's last", push(&[3], 1, &[10])),
    ] {
        let (code, reason, seen) = refused(&mut good, &mut bad, messages).await;
        assert_eq!((code, &reason[..]), (Code::OutOfRange, "ROW_RANGE"), "{fault}");
        stands(6, fault, &refusal_of(code, &reason), seen);
    }
    let fault = "more or fewer elements than the rows have";
    for n_values in [1, 3] {
        let messages = push(&[3, 4], n_values, &[]);
        check((&mut good, &mut bad), (7, fault), messages, "DIM_MISMATCH").await;
    }
    // A row that is named twice is the sum of both.
    let before = good.theta().await;
    bad.push_messages(push(&[3, 3], 2, &[])).await.expect("defined");
    let mut wanted = before.clone();
    wanted[3] -= 0.5 * (1.0 + 1.0);
    assert_eq!(good.theta().await, wanted);
    let after = good.pull().await.expect("theta");
    let seen = Seen { theta_unchanged: None, ..Seen::by(&mut good, &after).await };
    stands(7, "a row named twice in one push", "OK: both are added", seen);
    let chunk = |key: u64, last: bool| pb::PushRequest {
        header: (key != 3).then(|| header(&bad, 0, 1)),
        key,
        last,
        ..bad.message(0, 1, &[1.0; 5])
    };
    let beyond = vec![chunk(DIM, true)];
    let twice = vec![chunk(0, false), chunk(3, true)];
    let fault = "a chunk that begins beyond theta";
    check((&mut good, &mut bad.clone()), (6, fault), beyond, "BAD_KEY").await;
    let fault = "two chunks that share keys";
    check((&mut good, &mut bad.clone()), (7, fault), twice, "BAD_KEY").await;
}

#[tokio::test]
async fn a_push_whose_last_chunk_is_bad_counts_not_in_part() {
    let (_server, address, mut good) = setting(&[]).await;
    let mut bad = Caller::joined(&address, 1, DIM).await;
    let sender = bad.clone();
    let chunk = |key: u64, last: bool, values: &[f32]| pb::PushRequest {
        header: None,
        key,
        last,
        ..sender.message(0, 1, values)
    };
    let head = pb::PushRequest { header: Some(header(&bad, 0, 1)), ..chunk(0, false, &[1.0; 5]) };
    let cases = [
        (chunk(5, true, &[1.0, 1.0, 1.0, 1.0, f32::NAN]), "NON_FINITE"),
        (chunk(6, true, &[1.0; 5]), "BAD_KEY"),
        (chunk(5, true, &[1.0; 4]), "DIM_MISMATCH"),
        (chunk(5, false, &[1.0; 5]), "BAD_FIELD"),
        (
            pb::PushRequest { header: Some(header(&bad, 0, 1)), ..chunk(5, true, &[1.0; 5]) },
            "BAD_FIELD",
        ),
    ];
    for (tail, reason) in cases {
        let messages = vec![head.clone(), tail];
        let (code, got, _) = refused(&mut good, &mut bad, messages).await;
        assert_eq!((code, got), invalid(reason));
    }
    let whole = vec![head, chunk(5, true, &[1.0; 5])];
    bad.push_messages(whole).await.expect("the whole push counts");
    assert_eq!(good.theta().await, [-1.0; DIM as usize]);
}

#[tokio::test]
async fn row_11_a_push_sent_again_counts_once() {
    let (_server, _, mut good) = setting(&[]).await;
    let before = good.pull().await.expect("theta");
    let mut answer = String::new();
    for _ in 0..3 {
        let again = good.push(0, 0, &ONES).await.expect("no error");
        assert_eq!((again.outcome(), again.version), (pb::Outcome::Duplicate, 1));
        answer = outcome(&again);
    }
    let seen = Seen::by(&mut good, &before).await;
    stands(11, "a push sent again after its answer was lost", &answer, seen);
}

#[tokio::test]
async fn row_14_a_stranger_is_not_found() {
    let (_server, address, mut good) = setting(&[]).await;
    let mut stranger = Caller::connect(&address).await;
    for (rank, incarnation) in [(1, 1), (99, 1), (0, 77), (1 << 31, 1)] {
        (stranger.rank, stranger.incarnation) = (rank, incarnation);
        let messages = vec![stranger.message(0, 1, &ONES)];
        let (code, reason, seen) = refused(&mut good, &mut stranger, messages).await;
        assert_eq!((code, reason.as_str()), (Code::NotFound, "UNKNOWN_WORKER"));
        let fault = "a push or pull by a rank or incarnation that nobody was given";
        stands(14, fault, &refusal_of(code, &reason), seen);
        let status = stranger.pull().await.expect_err("no theta for strangers");
        assert_eq!(reason_of(&status), (Code::NotFound, "UNKNOWN_WORKER".to_owned()));
    }
}

#[tokio::test]
async fn row_17_a_live_rank_is_not_given_away() {
    let (_server, address, mut good) = setting(&[]).await;
    let mut second = Caller::connect(&address).await;
    let before = good.pull().await.expect("theta");
    let status = second.join(Caller::join_request(Some(0), DIM)).await.expect_err("taken");
    assert_eq!(reason_of(&status), (Code::AlreadyExists, "RANK_TAKEN".to_owned()));
    let seen = Seen::by(&mut good, &before).await;
    stands(17, "a second worker for a rank whose holder lives", &refusal(&status), seen);
}

#[tokio::test]
async fn row_20_there_is_no_theta_before_the_first_join() {
    let (_server, address) = Process::server(&["--workers", "1"]);
    let mut caller = Caller::connect(&address).await;
    let mut health = tonic_health::pb::health_client::HealthClient::new(caller.channel.clone());
    let mut serving = async |service: &str| {
        let request = tonic_health::pb::HealthCheckRequest { service: service.to_owned() };
        health.check(request).await.expect("health answers").into_inner().status().as_str_name()
    };
    assert_eq!(serving("ps.v1.Parameters").await, "NOT_SERVING");
    assert_eq!(serving("ps.v1.Membership").await, "SERVING");
    caller.rank = 0;
    for status in [
        caller.pull().await.expect_err("nothing to pull"),
        caller.push(0, 0, &[1.0]).await.expect_err("nothing to push to"),
    ] {
        assert_eq!(reason_of(&status), (Code::FailedPrecondition, "NOT_INITIALIZED".to_owned()));
        let details = tonic_types::StatusExt::get_details_retry_info(&status);
        assert!(details.is_some(), "it says when to try again");
        let answer = format!("{}, RetryInfo; health NOT_SERVING", refusal(&status));
        stands(20, "a pull or push before there is theta", &answer, Seen::NOBODY);
    }
    caller.join(Caller::join_request(Some(0), DIM)).await.expect("the first join makes theta");
    assert_eq!(caller.theta().await, ZEROS);
    let end = Instant::now() + PATIENCE;
    while serving("ps.v1.Parameters").await != "SERVING" {
        assert!(Instant::now() < end, "Parameters never serves");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn rows_21_and_22_a_worker_of_another_job_or_wire_is_refused_with_both_values() {
    let (_server, address, mut good) = setting(&[]).await;
    let before = good.pull().await.expect("theta");
    let mut other = Caller::connect(&address).await;
    let precondition = |reason: &str| (Code::FailedPrecondition, reason.to_owned());

    let status = other.join(Caller::join_request(None, DIM + 1)).await.expect_err("tables");
    assert_eq!(reason_of(&status), precondition("CONFIG_MISMATCH"));
    let mismatch = format!("{} with both values", refusal(&status));
    assert!(status.message().contains("[10]") && status.message().contains("[11]"), "{status:?}");
    let mut request = Caller::join_request(None, DIM);
    request.dtype = pb::Dtype::F64.into();
    let status = other.join(request).await.expect_err("dtype");
    assert_eq!(reason_of(&status), precondition("CONFIG_MISMATCH"));
    assert!(status.message().contains("f32") && status.message().contains("f64"), "{status:?}");
    let fingerprint = |value: &str| {
        let mut request = Caller::join_request(Some(1), DIM);
        request.fingerprint.insert("seed".to_owned(), value.to_owned());
        request
    };
    let mut first = Caller::connect(&address).await;
    first.join(fingerprint("1")).await.expect("the first to say it decides");
    let status = other.join(fingerprint("2")).await.expect_err("fingerprint");
    assert_eq!(reason_of(&status), precondition("CONFIG_MISMATCH"));
    assert!(status.message().contains("`1`") && status.message().contains("`2`"), "{status:?}");

    let mut request = Caller::join_request(None, DIM);
    request.protocol_version = 2;
    let status = other.join(request).await.expect_err("wire");
    assert_eq!(reason_of(&status), precondition("PROTO_VERSION"));
    let seen = Seen::by(&mut good, &before).await;
    stands(21, "a join with other tables, another element type or fingerprint", &mismatch, seen);
    stands(22, "a join in another version of the wire", &refusal(&status), seen);
}

#[tokio::test]
async fn row_23_a_message_over_the_limit_is_refused() {
    let (_server, address, mut good) = setting(&[]).await;
    let mut bad = Caller::joined(&address, 1, DIM).await;
    let before = good.pull().await.expect("theta");
    let big = bad.message(0, 1, &vec![1.0; (1 << 18) + 1]);
    let status = bad.push_messages(vec![big]).await.expect_err("too large");
    // tonic says OUT_OF_RANGE where the gRPC text says RESOURCE_EXHAUSTED.
    assert!(matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted), "{status:?}");
    let mut request = Caller::join_request(None, DIM);
    request.program = "x".repeat(65 << 10);
    let status = bad.join(request).await.expect_err("too large");
    assert!(matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted), "{status:?}");
    let seen = Seen::by(&mut good, &before).await;
    stands(23, "a message above the limit of its call", &refusal(&status), seen);
}

#[tokio::test]
async fn row_25_malformed_protobuf_is_internal_and_hurts_nobody() {
    let (_server, address, mut good) = setting(&[]).await;
    let before = good.pull().await.expect("theta");
    let mut bad = Caller::connect(&address).await;
    // A length that runs out, a varint without end, a wire type that does not exist, a string
    // that is not UTF-8 (in a push, bytes in the place of a number).
    let messages: [&[u8]; 4] = [&[0x7a, 0x05, 1], &[0xff; 11], &[0x0f], &[0x3a, 0x01, 0xff]];
    for message in messages {
        for path in ["/ps.v1.Parameters/Push", "/ps.v1.Membership/Join"] {
            let status = bad.raw(path, message.to_vec()).await;
            assert_eq!(status.code(), Code::Internal, "{path} {message:?}: {status:?}");
        }
    }
    // A field that nobody knows is skipped, whatever is in it; then there is no header.
    let status = bad.raw("/ps.v1.Parameters/Push", vec![0x72, 0x01, 0xff]).await;
    assert_eq!(reason_of(&status), invalid("BAD_FIELD"));
    let seen = Seen::by(&mut good, &before).await;
    let fault = "bytes that are no protobuf: cut off, endless, of unknown types, not UTF-8";
    stands(25, fault, &refusal_of(Code::Internal, ""), seen);
}

#[tokio::test]
async fn what_is_not_built_is_refused_by_name() {
    let (_server, _, mut good) = setting(&[]).await;
    let status = good.operator.checkpoint(pb::CheckpointRequest {}).await.expect_err("not built");
    assert_eq!(reason_of(&status), (Code::Unimplemented, "NOT_BUILT".to_owned()));
    let mut request = Caller::join_request(None, DIM);
    request.tables[0].initializer = Some(pb::Initializer { kind: 4, scale: 0.5, seed: 1 });
    let status = good.clone().join(request).await.expect_err("not built");
    assert_eq!(reason_of(&status), (Code::Unimplemented, "NOT_BUILT".to_owned()));
    let mut request = Caller::join_request(None, DIM);
    request.role = 9;
    let status = good.clone().join(request).await.expect_err("unknown");
    assert_eq!(reason_of(&status), invalid("BAD_FIELD"));
}

#[test]
fn row_45_what_cannot_be_opened_is_said_at_the_start() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = taken.local_addr().expect("bound").to_string();
    let output = Process::start("ps-server", &["--listen", &address]).expect_exit(69);
    assert!(output.contains(&address), "{output}");
    stands(45, "the port is taken", "exit 69, the address on stderr", Seen::NOBODY);

    for flag in ["--report", "--port-file"] {
        let path = folder.path().join("missing/file.json");
        let path = path.to_string_lossy();
        let output =
            Process::start("ps-server", &["--listen", "127.0.0.1:0", flag, &path]).expect_exit(73);
        assert!(output.contains(&*path), "{output}");
    }
    let path = folder.path().join("missing/theta.npy");
    let path = path.to_string_lossy();
    let output = Process::start("ps-server", &["--listen", "127.0.0.1:0", "--theta-out", &path])
        .expect_exit(73);
    assert!(output.contains(&*path), "{output}");
    let fault = "the folder of an output is missing";
    stands(45, fault, "exit 73 at the start, the path on stderr", Seen::NOBODY);
}

#[tokio::test]
async fn row_48_a_closed_stderr_hurts_nobody() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let port_file = folder.path().join("port");
    let (read_end, write_end) = std::io::pipe().expect("a pipe");
    drop(read_end);
    let mut server = std::process::Command::new(ps_tests::binary("ps-server"))
        .args(["--listen", "127.0.0.1:0", "--mode", "async", "--workers", "1", "--port-file"])
        .arg(&port_file)
        .env("PS_LOG", "trace")
        .stderr(write_end)
        .spawn()
        .expect("starts");
    let port = wait_until("the port", || std::fs::read_to_string(&port_file).ok());
    let mut caller = Caller::joined(&format!("127.0.0.1:{}", port.trim()), 0, DIM).await;
    for clock in 0..3 {
        caller.push(clock, clock, &ONES).await.expect("it logs into nothing");
    }
    assert!(server.try_wait().expect("waitable").is_none(), "the server lives");
    let before = caller.pull().await.expect("theta");
    let seen = Seen::by(&mut caller, &before).await;
    stands(48, "nobody reads the server's stderr any more (EPIPE)", "nothing: it goes on", seen);
    server.kill().expect("killable");
    server.wait().expect("waitable");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_48_a_thousand_workers_come_back_at_once() {
    const K: u32 = 1000;
    // Longer than a thousand joins may take.
    let lease = "--lease-ms=60000";
    let (_server, address) =
        Process::server(&["--mode", "async", "--workers", "1000", "--rounds", "0", lease]);
    for life in 0..2 {
        let joins = (0..K).map(|rank| {
            let address = address.clone();
            tokio::spawn(async move {
                let mut caller = Caller::replacing(&address, rank, DIM).await;
                let result = caller.push(life, 0, &ONES).await.expect("it counts");
                assert_eq!(result.outcome(), pb::Outcome::Applied);
            })
        });
        for join in joins.collect::<Vec<_>>() {
            join.await.expect("no worker fails");
        }
    }
    let mut observer = Caller::connect(&address).await;
    let request = pb::JoinRequest {
        protocol_version: 1,
        role: pb::Role::Observer.into(),
        ..Default::default()
    };
    observer.join(request).await.expect("observers are welcome");
    assert_eq!(observer.pull().await.expect("theta").0, 2 * u64::from(K));
    let seen = Seen { theta_unchanged: None, good_undisturbed: Some(true) };
    let fault = "1,000 workers come back at once";
    stands(48, fault, "OK: each joins, each push counts once", seen);
}
