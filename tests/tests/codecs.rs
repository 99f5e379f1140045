//! Gradients in fewer bytes (`--wire`): what is saved, what it costs, what is refused.

use std::process::Command;

use ps_common::wire::pb;
use ps_tests::{Caller, Process, binary, final_loss, local_net, losses, reason_of, theta_sha256};
use serde_json::Value;
use tonic::Code;

fn bytes_sent(report: &Value) -> f64 {
    let workers = report["workers"].as_array().expect("a list");
    workers.iter().map(|worker| worker["bytes_sent"].as_f64().expect("a number")).sum()
}

#[test]
fn gradients_take_fewer_bytes_and_the_loss_falls_as_it_did() {
    let plain = local_net(&[]);
    let fallen = losses(&plain)[0] - final_loss(&plain);
    assert!(fallen > 1.0, "{fallen}");
    for (codec, share) in [
        ("f16", 0.5),
        ("bf16", 0.5),
        ("int8", 0.25 * (1.0 + 4.0 / 256.0)),
        ("topk,ratio=0.05", 0.1),
    ] {
        let coded = local_net(&[&format!("--wire={codec}")]);
        assert_eq!(losses(&coded)[0], losses(&plain)[0], "theta begins as it did");
        let off = (final_loss(&coded) - final_loss(&plain)).abs();
        assert!(off < 0.02 * fallen && off > 0.0, "{codec}: off by {off} of {fallen}");
        let got = bytes_sent(&coded) / bytes_sent(&plain);
        assert!((got - share).abs() < 0.01, "{codec}: {got} of the bytes, not {share}");
    }
}

#[test]
fn a_codec_gives_the_same_bits_again_and_on_several_servers() {
    // Elements are written one by one, or chosen over all of theta: where it is cut does not matter.
    for codec in ["--wire=f16", "--wire=topk,ratio=0.02"] {
        let one = local_net(&[codec]);
        assert_eq!(theta_sha256(&local_net(&[codec])), theta_sha256(&one), "{codec} again");
        assert_eq!(
            theta_sha256(&local_net(&[codec, "--servers=3"])),
            theta_sha256(&one),
            "{codec}, 3 servers"
        );
    }
}

#[test]
fn what_is_no_codec_is_refused_by_name() {
    for (program, arguments, says) in [
        ("ps-worker", &["--wire=f8"][..], "--wire: `f8` is not f32, f16, bf16, int8 or topk"),
        ("ps-worker", &["--wire=topk"], "topk,ratio=0.01"),
        ("ps-worker", &["--evaluate", "--wire=f16"], "an evaluator never pushes"),
        ("psctl", &["local", "--wire=int8,k=3"], "int8 has no options"),
    ] {
        let output = Command::new(binary(program)).args(arguments).output().expect("runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{program} {arguments:?}: {stderr}");
        assert!(stderr.contains(says), "{program} {arguments:?}: {stderr}");
    }
}

#[tokio::test]
async fn coded_chunks_that_are_malformed_leave_no_trace() {
    let (_server, address) =
        Process::server(&["--mode=async", "--workers=1", "--rounds=0", "--lr=1"]);
    let mut caller = Caller::joined(&address, 0, 4).await;
    let before = caller.pull().await.expect("theta");
    let push = |caller: &Caller, dtype: pb::Dtype, data: &[u8]| pb::PushRequest {
        dtype: dtype.into(),
        data: data.to_vec().into(),
        ..caller.message(0, 0, &[0.0; 4])
    };
    let [zero, one] = [0f32, 1.0].map(f32::to_le_bytes);
    let place = |place: u32| place.to_le_bytes();
    let cases: [(pb::Dtype, Vec<u8>, &str); 7] = [
        (pb::Dtype::F16, vec![0; 7], "BAD_LENGTH"),
        (pb::Dtype::F16, vec![0; 10], "DIM_MISMATCH"),
        (pb::Dtype::Bf16, [[0, 0], [0, 0], [0x80, 0x7f], [0, 0]].concat(), "NON_FINITE"),
        (pb::Dtype::Int8, [&f32::INFINITY.to_le_bytes()[..], &[1, 2, 3, 4]].concat(), "NON_FINITE"),
        (pb::Dtype::TopK, [place(4), place(4), one].concat(), "BAD_KEY"),
        (pb::Dtype::TopK, [place(4), place(2), place(1), one, zero].concat(), "BAD_KEY"),
        (pb::Dtype::TopK, [[0xff; 4], place(0), one].concat(), "BAD_LENGTH"),
    ];
    for (dtype, data, reason) in cases {
        let messages = tokio_stream::iter(vec![push(&caller, dtype, &data)]);
        let status = caller.parameters.push(messages).await.expect_err(reason);
        assert_eq!(reason_of(&status).1, reason, "{dtype:?} {data:?}: {status:?}");
        assert_ne!(status.code(), Code::Internal, "{status:?}");
        assert_eq!(caller.pull().await.expect("theta"), before, "{reason}");
    }
    // Any client may write so: elements 1 and 3 of four.
    let data = [place(4), place(1), place(3), one, one].concat();
    let messages = tokio_stream::iter(vec![push(&caller, pb::Dtype::TopK, &data)]);
    let result = caller.parameters.push(messages).await.expect("valid").into_inner().result;
    assert_eq!(result.expect("a result").outcome(), pb::Outcome::Applied);
    assert_eq!(caller.theta().await, [0.0, -1.0, 0.0, -1.0]);
}
