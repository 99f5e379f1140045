//! Theta in fewer bytes (`--wire-pull`), and not at all where it is held already: what is saved, what it
//! costs, what is refused.

use std::process::Command;

use ps_common::wire::pb;
use ps_tests::{
    Caller, Group, Process, binary, final_loss, header, local_net, losses, reason_of, theta_sha256,
    wait_until,
};
use serde_json::Value;
use tonic::{Code, Status};

/// How many whole thetas of f32 each worker has received.
fn thetas_received(report: &Value) -> f64 {
    let workers = report["workers"].as_array().expect("a list");
    let bytes = workers.iter().map(|worker| worker["bytes_received"].as_f64().expect("a number"));
    bytes.sum::<f64>() / workers.len() as f64 / (4.0 * report["dim"].as_f64().expect("a number"))
}

#[test]
fn theta_takes_half_of_the_bytes_and_the_loss_falls_as_it_did() {
    let plain = local_net(&[]);
    let fallen = losses(&plain)[0] - final_loss(&plain);
    assert!(fallen > 1.0, "{fallen}");
    // The first theta and one a round; the last of these is the final one, which is not sent again.
    let got = thetas_received(&plain);
    assert!((31.0..31.4).contains(&got), "{got} thetas");
    let got = thetas_received(&local_net(&["--servers=2"]));
    assert!((31.0..31.6).contains(&got), "{got} thetas from two servers");
    for encoding in ["f16", "bf16"] {
        let pull = format!("--wire-pull={encoding}");
        let rounded = local_net(&[&pull]);
        let off = (final_loss(&rounded) - final_loss(&plain)).abs();
        assert!(off < 0.02 * fallen && off > 0.0, "{encoding}: off by {off} of {fallen}");
        // Half of each, and at last the exact one, which is measured for the report.
        let got = thetas_received(&rounded);
        assert!((16.5..16.9).contains(&got), "{encoding}: {got} thetas");
        assert_eq!(theta_sha256(&local_net(&[&pull])), theta_sha256(&rounded), "{encoding} again");
        let several = local_net(&[&pull, "--servers=2"]);
        assert_eq!(theta_sha256(&several), theta_sha256(&rounded), "{encoding}, 2 servers");
        assert_eq!(losses(&several), losses(&rounded), "{encoding}, 2 servers");
        let got = thetas_received(&several);
        assert!((16.5..17.1).contains(&got), "{encoding}: {got} thetas from two servers");
    }
    // Both ways at once, theta of f64: a quarter of it, and the exact one.
    let both = local_net(&["--wire=f16", "--wire-pull=f16", "--dtype=f64"]);
    let got = thetas_received(&both) / 2.0;
    assert!((31.0 / 4.0 + 1.0..31.0 / 4.0 + 1.4).contains(&got), "{got} thetas of f64");
}

#[test]
fn codecs_that_leave_elements_out_are_refused_by_name() {
    for (program, arguments, says) in [
        ("ps-worker", &["--wire-pull=int8"][..], "--wire-pull: `int8` is for gradients alone"),
        ("psctl", &["local", "--wire-pull=topk,ratio=0.1"], "of theta would never arrive"),
        ("psctl", &["local", "--wire-pull=f8"], "--wire-pull: `f8` is not f32, f16 or bf16"),
        ("ps-worker", &["--evaluate", "--wire-pull=f16"], "an evaluator measures theta as it is"),
    ] {
        let output = Command::new(binary(program)).args(arguments).output().expect("runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{program} {arguments:?}: {stderr}");
        assert!(stderr.contains(says), "{program} {arguments:?}: {stderr}");
    }
    for program in ["ps-worker", "psctl"] {
        let arguments = ["--print-config", "--wire-pull=bf16"];
        let role = if program == "psctl" { &["local"][..] } else { &[] };
        let output = Command::new(binary(program)).args(role).args(arguments).output();
        let shown = String::from_utf8(output.expect("runs").stdout).expect("text");
        assert!(shown.contains("wire-pull = \"bf16\""), "{program}: {shown}");
    }
}

#[test]
fn a_run_ends_where_theta_grows_beyond_the_format() {
    let diverging = ["--model=linear", "--lr=3", "--rounds=500", "--wire-pull=f16"];
    let output = Command::new(binary("psctl")).arg("local").args(diverging).output().expect("runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    for says in
        ["theta's element ", ", and f16 ends at 65504: pull theta as it is (--wire-pull f32)"]
    {
        assert!(stderr.contains(says), "no `{says}` in {stderr}");
    }
}

/// An asynchronous job of one worker, whose theta is at version 1.
async fn at(theta: &[f32]) -> (Process, Caller) {
    let (server, address) =
        Process::server(&["--mode=async", "--workers=1", "--rounds=0", "--lr=1"]);
    let mut caller = Caller::joined(&address, 0, theta.len() as u64).await;
    let gradient: Vec<f32> = theta.iter().map(|x| -x).collect();
    let message = caller.message(0, 0, &gradient);
    caller.push_messages(vec![message]).await.expect("counted");
    assert_eq!(caller.theta().await, theta);
    (server, caller)
}

/// The messages of the answer to a pull that says more than who it is from.
async fn pull(caller: &Caller, wish: pb::PullRequest) -> Result<Vec<pb::PullResponse>, Status> {
    let (rank, incarnation) = (caller.rank, caller.incarnation);
    let wish = pb::PullRequest { rank, incarnation, ..wish };
    let mut stream = caller.parameters.clone().pull(wish).await?.into_inner();
    let mut chunks = Vec::new();
    while let Some(chunk) = stream.message().await? {
        chunks.push(chunk);
    }
    Ok(chunks)
}

fn wanting(dtype: i32) -> pb::PullRequest {
    pb::PullRequest { theta_dtype: dtype, ..Default::default() }
}

/// One step over PushPull that asks for theta in this dtype.
async fn step(
    caller: &Caller,
    clock: u64,
    dtype: pb::Dtype,
) -> Result<pb::PushPullResponse, Status> {
    let message = pb::PushRequest {
        header: Some(pb::PushHeader { theta_dtype: dtype.into(), ..header(caller, clock, clock) }),
        ..caller.message(clock, clock, &[0.0; 4])
    };
    let answers = caller.parameters.clone().push_pull(tokio_stream::iter([message])).await?;
    Ok(answers.into_inner().message().await?.expect("an answer"))
}

#[tokio::test]
async fn any_client_may_ask_for_theta_in_two_bytes_an_element() {
    let (_server, caller) = at(&[1.0, -2.5, 0.1, 65_504.0]).await;
    let own = pull(&caller, wanting(pb::Dtype::F32.into())).await.expect("its own type");
    assert_eq!(
        own,
        pull(&caller, wanting(0))
            .await
            .map(|mut chunks| {
                // Time goes on.
                chunks[0].seconds = own[0].seconds;
                chunks
            })
            .expect("as it is")
    );
    let half = [0x3c00u16, 0xc100, 0x2e66, 0x7bff].map(u16::to_le_bytes).concat();
    let [chunk] = &pull(&caller, wanting(3)).await.expect("f16")[..] else { panic!("one chunk") };
    assert_eq!((chunk.dtype(), &chunk.data[..], chunk.dim), (pb::Dtype::F16, &half[..], 4));
    assert!(chunk.last && !chunk.unchanged && chunk.version == 1);
    let brain = [0x3f80u16, 0xc020, 0x3dcd, 0x4780].map(u16::to_le_bytes).concat();
    let answer = step(&caller, 1, pb::Dtype::Bf16).await.expect("counted");
    assert_eq!((answer.dtype(), &answer.data[..]), (pb::Dtype::Bf16, &brain[..]));
    assert_eq!(answer.version, 2);
}

#[tokio::test]
async fn what_theta_cannot_be_sent_in_is_refused_and_nothing_counts() {
    let (_server, caller) = at(&[1.0, -2.5, 0.1, 3.0]).await;
    for dtype in [pb::Dtype::F64.into(), pb::Dtype::Int8.into(), pb::Dtype::TopK.into(), 77, -1] {
        let status = pull(&caller, wanting(dtype)).await.expect_err("refused");
        assert_eq!(reason_of(&status), (Code::InvalidArgument, "BAD_DTYPE".to_owned()));
        assert!(status.message().contains("ask for f16, for bf16"), "{status}");
    }
    let status = step(&caller, 1, pb::Dtype::Int8).await.expect_err("refused");
    assert_eq!(reason_of(&status).1, "BAD_DTYPE", "{status}");
    let answer = step(&caller, 1, pb::Dtype::Unspecified).await.expect("still owed");
    assert_eq!(answer.result.expect("a result").outcome(), pb::Outcome::Applied);
}

#[tokio::test]
async fn an_element_beyond_the_format_is_named_and_never_sent_as_infinity() {
    let (_server, mut caller) = at(&[1.0, -70_000.0, 0.1, 3.0]).await;
    let says = "theta's element 1 is -70000, and f16 ends at 65504";
    let status = pull(&caller, wanting(3)).await.expect_err("beyond");
    assert_eq!(reason_of(&status), (Code::InvalidArgument, "BAD_DTYPE".to_owned()));
    assert!(status.message().contains(says), "{status}");
    let status = step(&caller, 1, pb::Dtype::F16).await.expect_err("beyond");
    assert!(status.message().contains(says), "{status}");
    // The push has counted all the same, and other forms of theta are there.
    assert_eq!(caller.pull().await.expect("as it is").0, 2);
    assert_eq!(pull(&caller, wanting(4)).await.expect("bf16")[0].data[2..4], [0x89, 0xc7]);
}

#[tokio::test]
async fn a_theta_that_has_not_moved_is_not_sent_again() {
    let (_server, caller) = at(&[1.0, 2.0, 3.0, 4.0]).await;
    let having = |version| pb::PullRequest { version_have: Some(version), ..Default::default() };
    let [only] = &pull(&caller, having(1)).await.expect("answered")[..] else {
        panic!("one message")
    };
    assert!(only.unchanged && only.last && only.data.is_empty(), "{only:?}");
    assert_eq!((only.version, only.dim, only.state()), (1, 4, pb::JobState::Running));
    for other in [0, 2] {
        let chunks = pull(&caller, having(other)).await.expect("answered");
        assert!(!chunks[0].unchanged && chunks[0].data.len() == 16, "{other}: {chunks:?}");
    }
    step(&caller, 1, pb::Dtype::Unspecified).await.expect("counted");
    let moved = pull(&caller, having(1)).await.expect("answered");
    assert!(!moved[0].unchanged && moved[0].data.len() == 16, "by zeros, but moved: {moved:?}");
}

#[tokio::test]
async fn without_locks_a_version_is_no_name_of_a_theta() {
    let (_server, address) =
        Process::server(&["--mode=hogwild", "--workers=1", "--rounds=0", "--lr=1"]);
    let caller = Caller::joined(&address, 0, 4).await;
    let wish = pb::PullRequest { version_have: Some(0), ..Default::default() };
    let chunks = pull(&caller, wish).await.expect("answered");
    assert!(chunks[0].version == 0 && !chunks[0].unchanged && chunks[0].data.len() == 16);
}

#[tokio::test]
async fn each_of_several_servers_sends_its_part_as_it_is_asked_for() {
    let group = Group::start(2, &["--mode=async", "--workers=1", "--rounds=0", "--lr=1"], false);
    let addresses = group.addresses();
    for address in &addresses {
        wait_until("a server", || std::net::TcpStream::connect(address).ok());
    }
    let caller = Caller::joined(&addresses[0], 0, 5).await;
    let url = format!("http://{}", addresses[1]);
    let mut other = pb::partition_client::PartitionClient::connect(url).await.expect("it serves");
    let (rank, incarnation) = (caller.rank, caller.incarnation);
    let cases: [(u64, i32, Option<u64>, usize); 4] =
        [(1, 0, None, 4), (2, 3, None, 2), (3, 3, Some(0), 0), (4, 4, Some(1), 2)];
    for (exchange, theta_dtype, version_have, element_bytes) in cases {
        let wish = pb::PullRequest { exchange, theta_dtype, version_have, ..Default::default() };
        let take = pb::TakeRequest {
            rank,
            incarnation,
            exchange,
            wait_ms_max: 60_000,
            theta_dtype,
            version_have,
        };
        let own = pull(&caller, wish).await.expect("answered");
        let mut part = other.take(take).await.expect("given").into_inner();
        let part = part.message().await.expect("read").expect("a chunk");
        for (chunk, key, n) in [(&own[0], 0, 3), (&part, 3, 2)] {
            assert_eq!((chunk.key, chunk.data.len()), (key, n * element_bytes), "{chunk:?}");
            assert_eq!(chunk.unchanged, version_have == Some(0), "{chunk:?}");
        }
    }
    let take = pb::TakeRequest {
        rank,
        incarnation,
        exchange: 5,
        theta_dtype: 5,
        wait_ms_max: 60_000,
        ..Default::default()
    };
    pull(&caller, pb::PullRequest { exchange: 5, ..Default::default() }).await.expect("given");
    let status = other.take(take).await.expect_err("int8");
    assert_eq!(reason_of(&status).1, "BAD_DTYPE", "{status}");
}
