//! Bad input and faults, each by its row of the fault list: the answer's status and reason, theta
//! unchanged to the bit, and the good worker undisturbed.

use ps_common::wire::pb;
use ps_tests::{Caller, Process, header, reason_of, wait_until};
use tonic::Code;

const DIM: u64 = 10;

/// A server with one good worker that has pushed once.
async fn setting(arguments: &[&str]) -> (Process, String, Caller) {
    let mut all = vec!["--mode", "async", "--workers", "2", "--lr", "0.5", "--rounds", "0"];
    all.extend_from_slice(arguments);
    let (server, address) = Process::server(&all);
    let mut good = Caller::joined(&address, 0, DIM).await;
    good.push(0, 0, &[1.0; DIM as usize]).await.expect("a good push");
    (server, address, good)
}

/// Sends a push that must be refused, and looks at everything that must not have changed.
async fn refused(
    good: &mut Caller,
    bad: &mut Caller,
    messages: Vec<pb::PushRequest>,
) -> (Code, String) {
    let before = good.pull().await.expect("theta");
    let status = bad.push_messages(messages).await.expect_err("a bad push is refused");
    assert_eq!(good.pull().await.expect("theta"), before, "a refused push left a trace");
    reason_of(&status)
}

fn invalid(reason: &str) -> (Code, String) {
    (Code::InvalidArgument, reason.to_owned())
}

#[tokio::test]
async fn rows_1_to_5_malformed_gradients_leave_no_trace() {
    let (_server, address, mut good) = setting(&[]).await;
    let mut bad = Caller::joined(&address, 1, DIM).await;
    let gradient = |at: usize, value: f32| {
        let mut gradient = [1.0f32; DIM as usize];
        gradient[at] = value;
        gradient
    };

    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let messages = vec![bad.message(0, 1, &gradient(7, value))];
        let status = bad.push_messages(messages.clone()).await.expect_err("row 1");
        assert!(status.message().contains("element 7"), "{status:?}");
        assert_eq!(refused(&mut good, &mut bad, messages).await, invalid("NON_FINITE"), "row 1");
    }
    // theta is -0.5; one step of f32::MAX at rate 0.5 fits, two do not.
    let huge = [f32::MAX; DIM as usize];
    good.push(1, 1, &huge).await.expect("fits");
    good.push(2, 2, &huge).await.expect("still fits");
    let overflow = vec![bad.message(0, 1, &huge)];
    assert_eq!(refused(&mut good, &mut bad, overflow).await, invalid("UPDATE_OVERFLOW"), "row 2");

    for wrong in [&[1.0f32; 9][..], &[1.0; 11]] {
        let messages = vec![bad.message(0, 1, wrong)];
        assert_eq!(refused(&mut good, &mut bad, messages).await, invalid("DIM_MISMATCH"), "row 3");
    }
    let mut odd = bad.message(0, 1, &[1.0; DIM as usize]);
    odd.data.truncate(39);
    assert_eq!(refused(&mut good, &mut bad, vec![odd]).await, invalid("BAD_LENGTH"), "row 4");
    for dtype in [0, 2, 77] {
        let mut message = bad.message(0, 1, &[1.0; DIM as usize]);
        message.dtype = dtype;
        assert_eq!(
            refused(&mut good, &mut bad, vec![message]).await,
            invalid("BAD_DTYPE"),
            "row 4"
        );
    }
    let empty = bad.message(0, 1, &[]);
    assert_eq!(refused(&mut good, &mut bad, vec![empty]).await, invalid("EMPTY"), "row 5");
    let nothing = pb::PushRequest::default();
    assert_eq!(refused(&mut good, &mut bad, vec![nothing]).await, invalid("BAD_FIELD"), "row 5");
    assert_eq!(refused(&mut good, &mut bad, vec![]).await, invalid("EMPTY"), "row 5");

    // The same clock is still owed, and counts.
    let result = bad.push(0, 1, &[0.0; DIM as usize]).await.expect("a good push at last");
    assert_eq!((result.outcome(), result.version), (pb::Outcome::Applied, 4));
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
        assert_eq!(refused(&mut good, &mut bad, messages).await, invalid(reason));
    }
    let whole = vec![head, chunk(5, true, &[1.0; 5])];
    bad.push_messages(whole).await.expect("the whole push counts");
    assert_eq!(good.theta().await, [-1.0; DIM as usize]);
}

#[tokio::test]
async fn row_11_a_push_sent_again_counts_once() {
    let (_server, _, mut good) = setting(&[]).await;
    let before = good.pull().await.expect("theta");
    for _ in 0..3 {
        let again = good.push(0, 0, &[1.0; DIM as usize]).await.expect("no error");
        assert_eq!((again.outcome(), again.version), (pb::Outcome::Duplicate, 1));
    }
    assert_eq!(good.pull().await.expect("theta"), before);
}

#[tokio::test]
async fn row_14_a_stranger_is_not_found() {
    let (_server, address, mut good) = setting(&[]).await;
    let mut stranger = Caller::connect(&address).await;
    for (rank, incarnation) in [(1, 1), (99, 1), (0, 77), (1 << 31, 1)] {
        (stranger.rank, stranger.incarnation) = (rank, incarnation);
        let messages = vec![stranger.message(0, 1, &[1.0; DIM as usize])];
        let answer = refused(&mut good, &mut stranger, messages).await;
        assert_eq!(answer, (Code::NotFound, "UNKNOWN_WORKER".to_owned()));
        let status = stranger.pull().await.expect_err("no theta for strangers");
        assert_eq!(reason_of(&status), (Code::NotFound, "UNKNOWN_WORKER".to_owned()));
    }
}

#[tokio::test]
async fn row_17_a_live_rank_is_not_given_away() {
    let (_server, address, mut good) = setting(&[]).await;
    let mut second = Caller::connect(&address).await;
    let status = second.join(Caller::join_request(Some(0), DIM)).await.expect_err("taken");
    assert_eq!(reason_of(&status), (Code::AlreadyExists, "RANK_TAKEN".to_owned()));
    good.push(1, 1, &[1.0; DIM as usize]).await.expect("the first holder goes on");
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
    }
    caller.join(Caller::join_request(Some(0), DIM)).await.expect("the first join makes theta");
    assert_eq!(caller.theta().await, [0.0; DIM as usize]);
    let mut tries = 0;
    while serving("ps.v1.Parameters").await != "SERVING" {
        tries += 1;
        assert!(tries < 1000, "Parameters never serves");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
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
    assert!(status.message().contains("[10]") && status.message().contains("[11]"), "{status:?}");
    let mut request = Caller::join_request(None, DIM);
    request.dtype = pb::Dtype::F64.into();
    let status = other.join(request).await.expect_err("dtype");
    assert_eq!(reason_of(&status), precondition("CONFIG_MISMATCH"));
    assert!(status.message().contains("f32") && status.message().contains("f64"), "{status:?}");

    let mut request = Caller::join_request(None, DIM);
    request.protocol_version = 2;
    let status = other.join(request).await.expect_err("wire");
    assert_eq!(reason_of(&status), precondition("PROTO_VERSION"));
    assert_eq!(good.pull().await.expect("theta"), before);
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
    assert_eq!(good.pull().await.expect("theta"), before);
}

#[tokio::test]
async fn row_25_malformed_protobuf_is_internal_and_hurts_nobody() {
    let (_server, address, mut good) = setting(&[]).await;
    let before = good.pull().await.expect("theta");
    let mut bad = Caller::connect(&address).await;
    // A length that runs out, a varint without end, a wire type that does not exist, a string
    // that is not UTF-8.
    let messages: [&[u8]; 4] = [&[0x7a, 0x05, 1], &[0xff; 11], &[0x0f], &[0x3a, 0x01, 0xff]];
    for message in messages {
        for path in ["/ps.v1.Parameters/Push", "/ps.v1.Membership/Join"] {
            let status = bad.raw(path, message.to_vec()).await;
            let expected = match path {
                // No string in a push: an unknown field is skipped, then there is no header.
                "/ps.v1.Parameters/Push" if message[0] == 0x3a => Code::InvalidArgument,
                _ => Code::Internal,
            };
            assert_eq!(status.code(), expected, "{path} {message:?}: {status:?}");
        }
    }
    assert_eq!(good.pull().await.expect("theta"), before);
    good.push(1, 1, &[1.0; DIM as usize]).await.expect("undisturbed");
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
        caller.push(clock, clock, &[1.0; DIM as usize]).await.expect("it logs into nothing");
    }
    assert!(server.try_wait().expect("waitable").is_none(), "the server lives");
    server.kill().expect("killable");
    server.wait().expect("waitable");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_48_a_thousand_workers_come_back_at_once() {
    const K: u32 = 1000;
    let (_server, address) =
        Process::server(&["--mode", "async", "--workers", "1000", "--rounds", "0"]);
    for life in 0..2 {
        let joins = (0..K).map(|rank| {
            let address = address.clone();
            tokio::spawn(async move {
                let mut caller = Caller::connect(&address).await;
                // The predecessor's connection may not be gone yet: the rank is free once it is.
                for _ in 0..100 {
                    match caller.join(Caller::join_request(Some(rank), DIM)).await {
                        Ok(_) => break,
                        Err(status) => assert_eq!(
                            reason_of(&status).1,
                            "RANK_TAKEN",
                            "{status:?} life {life} rank {rank}"
                        ),
                    }
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                }
                let result = caller.push(life, 0, &[1.0; DIM as usize]).await.expect("it counts");
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
}
