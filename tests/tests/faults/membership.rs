//! Workers that are late, early, dead, or somebody else: rounds, staleness, leases, lives.

use std::time::{Duration, Instant};

use ps_common::wire::pb;
use ps_common::wire::pb::worker_status::State;
use ps_tests::rows::{Seen, outcome, refusal, stands};
use ps_tests::{Caller, PATIENCE, Process, patient_client, reason_of};
use tonic::{Code, Request};

use super::{DIM, ONES, ZEROS, refused, setting};

const NINES: [f32; DIM as usize] = [9.0; DIM as usize];
/// A lease whose end a test waits for, and that a worker which lives never outstays.
const LEASE_MS: &str = "4000";

/// A server of a job without end at rate 0.5, and its workers.
async fn job<const K: usize>(arguments: &[&str]) -> (Process, String, [Caller; K]) {
    let workers = K.to_string();
    let mut all = vec!["--workers", &workers, "--lr", "0.5", "--rounds", "0"];
    all.extend_from_slice(arguments);
    let (server, address) = Process::server(&all);
    let mut callers = Vec::new();
    for rank in 0..K {
        callers.push(Caller::joined(&address, u32::try_from(rank).expect("few"), DIM).await);
    }
    (server, address, callers.try_into().unwrap_or_else(|_| panic!("K callers")))
}

/// Both push for the clock that they owe; a round of two.
async fn round(a: &mut Caller, b: &mut Caller) -> [pb::PushResult; 2] {
    let version = a.pull().await.expect("theta").0;
    let (clock_a, clock_b) = (a.clock, b.clock);
    let (a, b) = tokio::join!(a.push(clock_a, version, &ONES), b.push(clock_b, version, &ONES));
    [a.expect("in the round"), b.expect("in the round")]
}

fn applied(result: &pb::PushResult) -> bool {
    result.outcome() == pb::Outcome::Applied
}

#[tokio::test]
async fn row_8_a_gradient_of_a_closed_round_is_dropped_and_one_of_an_old_theta_refused() {
    let (_server, _, [mut a, mut b, mut late]) = job(&["--backup-workers", "1"]).await;
    assert!(round(&mut a, &mut b).await.iter().all(applied));
    let before = a.pull().await.expect("theta");
    let dropped = late.push(0, 0, &NINES).await.expect("policy, not misuse");
    assert_eq!((dropped.outcome(), dropped.clock), (pb::Outcome::DroppedLate, 1));
    let stale = late.push(1, 0, &NINES).await.expect_err("round 1 is not computed at version 0");
    assert_eq!(reason_of(&stale), (Code::Aborted, "STALE_ROUND".to_owned()));
    let theta_unchanged = Some(a.pull().await.expect("theta") == before);
    let good_undisturbed = Some(round(&mut a, &mut b).await.iter().all(applied));
    let seen = Seen { theta_unchanged, good_undisturbed };
    stands(8, "a gradient of a round that closed without it", &outcome(&dropped), seen);
    let fault = "a gradient for the open round, computed at an older theta";
    stands(8, fault, &refusal(&stale), seen);
}

#[tokio::test]
async fn row_9_what_is_ahead_of_the_server_is_refused() {
    let (_server, address, mut good) = setting(&[]).await;
    let mut bad = Caller::joined(&address, 1, DIM).await;
    for (clock, version) in [(7, 1), (0, 99), (u64::MAX, u64::MAX)] {
        let messages = vec![bad.message(clock, version, &NINES)];
        let (code, reason, seen) = refused(&mut good, &mut bad, messages).await;
        assert_eq!((code, reason.as_str()), (Code::FailedPrecondition, "EPOCH_CHANGED"));
        let fault = "a clock or a version ahead of the server";
        stands(9, fault, "FAILED_PRECONDITION (EPOCH_CHANGED)", seen);
    }
    assert!(applied(&bad.push(0, 1, &ZEROS).await.expect("the clock that it owes")));
}

#[tokio::test]
async fn row_10_a_gradient_beyond_the_bound_is_dropped_and_theta_waits() {
    for policy in ["drop", "block"] {
        let bound = ["--max-gradient-delay", "1", "--on-excess", policy, "--mode", "async"];
        let (_server, _, [mut good, mut slow]) = job(&bound).await;
        if policy == "drop" {
            slow.pull().await.expect("theta");
        }
        for _ in 0..3 {
            assert!(applied(&good.step(&ONES).await.expect("within the bound")));
        }
        let before = good.pull().await.expect("theta");
        let answer = match slow.push(0, 0, &NINES).await {
            Ok(result) => {
                assert_eq!((policy, result.outcome()), ("drop", pb::Outcome::DroppedLate));
                outcome(&result)
            }
            Err(status) => {
                let want = (Code::Aborted, "STALE_ROUND".to_owned());
                assert_eq!((policy, reason_of(&status)), ("block", want));
                refusal(&status)
            }
        };
        let fault = match policy {
            "drop" => "a gradient whose delay is above the bound (--on-excess drop)",
            _ => "a gradient of a theta that it was not given (--on-excess block)",
        };
        stands(10, fault, &answer, Seen::by(&mut good, &before).await);
    }

    let ssp = ["--mode", "ssp", "--staleness-bound", "1"];
    let (_server, _, [mut fast, mut slow]) = job(&ssp).await;
    for clock in 0..2 {
        assert!(applied(&fast.push(clock, clock, &ONES).await.expect("a push never waits")));
    }
    let before = slow.pull().await.expect("theta");
    let wish = pb::PullRequest {
        rank: fast.rank,
        incarnation: fast.incarnation,
        wait_ms_max: 200,
        ..Default::default()
    };
    let status = fast.parameters.pull(wish).await.expect_err("two clocks ahead of the slowest");
    assert_eq!(reason_of(&status), (Code::DeadlineExceeded, "DEADLINE".to_owned()));
    let seen = Seen::by(&mut slow, &before).await;
    fast.pull().await.expect("theta is given once the slowest has moved");
    let fault = "theta for a clock beyond the staleness bound (ssp)";
    stands(10, fault, &format!("waits; at its deadline {}", refusal(&status)), seen);
}

#[tokio::test]
async fn row_12_other_bytes_under_the_name_of_a_push_are_refused() {
    let (_server, _, [mut good, mut bad]) = job(&[]).await;
    let waiting = bad.push_within(50, (0, 0), &ONES).await.expect("held");
    assert_eq!(waiting.outcome(), pb::Outcome::Waiting);
    let before = good.pull().await.expect("theta");
    let status = bad.push(0, 0, &NINES).await.expect_err("other bytes");
    assert_eq!(reason_of(&status), (Code::AlreadyExists, "SEQ_REUSED".to_owned()));
    let theta_unchanged = Some(good.pull().await.expect("theta") == before);
    let good_undisturbed = Some(applied(&good.push(0, 0, &ONES).await.expect("the round closes")));
    assert_eq!(good.theta().await, [-0.5; DIM as usize], "with the bytes that came first");
    let seen = Seen { theta_unchanged, good_undisturbed };
    stands(12, "other bytes under the name of a push that waits", &refusal(&status), seen);

    let before = good.pull().await.expect("theta");
    let status = bad.push(0, 0, &NINES).await.expect_err("other bytes than those that counted");
    assert_eq!(reason_of(&status), (Code::AlreadyExists, "SEQ_REUSED".to_owned()));
    let theta_unchanged = Some(good.pull().await.expect("theta") == before);
    let again = bad.push(0, 0, &ONES).await.expect("the same bytes");
    assert_eq!(again.outcome(), pb::Outcome::Duplicate);
    let good_undisturbed = Some(round(&mut good, &mut bad).await.iter().all(applied));
    let seen = Seen { theta_unchanged, good_undisturbed };
    stands(12, "other bytes under the name of a push that has counted", &refusal(&status), seen);
}

#[tokio::test]
async fn row_13_what_lies_before_the_newest_gap_is_too_old() {
    let (_server, address, [mut good, mut bad]) = job(&["--on-worker-loss", "continue"]).await;
    assert!(round(&mut good, &mut bad).await.iter().all(applied));
    let (rank, incarnation) = (bad.rank, bad.incarnation);
    let goodbye = pb::LeaveRequest { rank, incarnation, ..Default::default() };
    bad.membership.leave(goodbye).await.expect("left");
    for _ in 0..2 {
        assert!(applied(&good.step(&ONES).await.expect("a round of one")));
    }
    let mut bad = Caller::joined(&address, 1, DIM).await;
    assert_eq!(bad.clock, 3, "clocks 1 and 2 were skipped");
    assert!(round(&mut good, &mut bad).await.iter().all(applied));
    let before = good.pull().await.expect("theta");
    let status = bad.push(0, 0, &NINES).await.expect_err("too old");
    assert_eq!(reason_of(&status), (Code::FailedPrecondition, "SEQ_TOO_OLD".to_owned()));
    let theta_unchanged = Some(good.pull().await.expect("theta") == before);
    let good_undisturbed = Some(round(&mut good, &mut bad).await.iter().all(applied));
    let seen = Seen { theta_unchanged, good_undisturbed };
    stands(13, "a push older than what the server remembers of its rank", &refusal(&status), seen);
}

/// Lets `good` push until the server has lost rank 1.
async fn until_lost(good: &mut Caller) {
    let end = Instant::now() + PATIENCE;
    loop {
        assert!(applied(&good.step(&ZEROS).await.expect("undisturbed")));
        let status = good.status().await.expect("status");
        if status.workers[1].state() == State::Lost {
            return;
        }
        assert!(Instant::now() < end, "rank 1 is not lost: {status:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn rows_15_and_16_a_lease_ends_and_a_zombie_is_fenced() {
    let (_server, address, mut good) = setting(&["--lease-ms", LEASE_MS]).await;
    let mut bad = Caller::joined(&address, 1, DIM).await;
    until_lost(&mut good).await;
    let messages = vec![bad.message(0, 1, &NINES)];
    let (code, reason, seen) = refused(&mut good, &mut bad, messages.clone()).await;
    assert_eq!((code, reason.as_str()), (Code::FailedPrecondition, "LEASE_EXPIRED"));
    stands(15, "a push after the end of the lease", "FAILED_PRECONDITION (LEASE_EXPIRED)", seen);

    // The zombie's connection still stands when another takes its rank.
    let mut second = Caller::joined(&address, 1, DIM).await;
    let (code, reason, seen) = refused(&mut good, &mut bad, messages).await;
    assert_eq!((code, reason.as_str()), (Code::FailedPrecondition, "FENCED"));
    let fault = "a push by a life whose rank has a newer one";
    stands(16, fault, "FAILED_PRECONDITION (FENCED)", seen);
    let status = bad.pull().await.expect_err("nor is it given theta");
    assert_eq!(reason_of(&status).1, "FENCED");
    assert!(applied(&second.step(&ZEROS).await.expect("the new life works")));
}

#[tokio::test]
async fn row_18_a_worker_that_dies_inside_a_round_ends_or_frees_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let theta_out = folder.path().join("theta.npy").to_string_lossy().into_owned();
    let job = async |policy| {
        // Nobody waits for the end of this one: another takes the rank.
        let lease = if policy == "wait" { "20000" } else { LEASE_MS };
        let flags = ["--on-worker-loss", policy, "--lease-ms", lease, "--theta-out", &theta_out];
        let (server, address, [mut good, mut bad]) = job(&flags).await;
        assert!(round(&mut good, &mut bad).await.iter().all(applied));
        drop(bad);
        (server, address, good)
    };

    let (_server, _, mut good) = job("continue").await;
    let begun = Instant::now();
    let result = good.push(1, 1, &[2.0; DIM as usize]).await.expect("the round closes");
    let good_undisturbed = Some(applied(&result) && begun.elapsed() < PATIENCE);
    // What the dead one had pushed counts, what it owes does not.
    let theta_unchanged = Some(good.theta().await == [-1.5; DIM as usize]);
    let seen = Seen { theta_unchanged, good_undisturbed };
    let answer = format!("{} by those who live, at the end of the lease", outcome(&result));
    let fault = "a worker dies inside a round (--on-worker-loss continue)";
    stands(18, fault, &answer, seen);

    let (server, _, mut good) = job("abort").await;
    let status = good.push(1, 1, &ONES).await.expect_err("the job fails");
    assert_eq!(reason_of(&status), (Code::FailedPrecondition, "JOB_ENDED".to_owned()));
    assert!(status.message().contains("rank 1"), "{status:?}");
    drop(good);
    server.expect_exit(1);
    let written = std::fs::read(&theta_out).expect("theta as it was is written");
    let before = [-0.5f32; DIM as usize].map(f32::to_le_bytes).concat();
    let seen = Seen { theta_unchanged: Some(written.ends_with(&before)), good_undisturbed: None };
    let answer = format!("{} for all at the end of the lease; exit 1", refusal(&status));
    let fault = "a worker dies inside a round (--on-worker-loss abort)";
    stands(18, fault, &answer, seen);

    let (_server, address, mut good) = job("wait").await;
    let waiting = good.push_within(600, (1, 1), &ONES).await.expect("held");
    assert_eq!(waiting.outcome(), pb::Outcome::Waiting);
    let before = good.pull().await.expect("theta");
    let theta_unchanged = Some((before.0, good.theta().await) == (1, vec![-0.5; DIM as usize]));
    let mut second = Caller::replacing(&address, 1, DIM).await;
    let (again, closing) = tokio::join!(good.push(1, 1, &ONES), second.push(1, 1, &ONES));
    // The server has the good one's gradient: whoever comes last, it counts once.
    let counted = |sent: &pb::PushResult| applied(sent) || sent.outcome() == pb::Outcome::Duplicate;
    let good_undisturbed = Some(
        again.is_ok_and(|sent| counted(&sent))
            && closing.is_ok_and(|sent| applied(&sent))
            && good.theta().await == [-1.0; DIM as usize],
    );
    let answer =
        format!("{} at the call's deadline, until another takes the rank", outcome(&waiting));
    let fault = "a worker dies inside a round (--on-worker-loss wait)";
    stands(18, fault, &answer, Seen { theta_unchanged, good_undisturbed });
}

#[tokio::test]
async fn row_19_a_barrier_wait_over_its_deadline_keeps_the_gradient_and_counts_it_once() {
    let (_server, address, [mut good, mut other]) = job(&[]).await;
    let before = good.pull().await.expect("theta");
    let waiting = good.push_within(100, (0, 0), &ONES).await.expect("held");
    assert_eq!(waiting.outcome(), pb::Outcome::Waiting);
    let mut impatient = Request::new(tokio_stream::iter(vec![good.message(0, 0, &ONES)]));
    impatient.metadata_mut().insert("grpc-timeout", "200m".parse().expect("ASCII"));
    let mut patient = patient_client(&address).await;
    let status = patient.push(impatient).await.expect_err("nobody else pushes");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    let theta_unchanged = Some(good.pull().await.expect("theta") == before);
    // Nobody holds the call any more; the gradient is there.
    let good_undisturbed = Some(applied(&other.push(0, 0, &ONES).await.expect("the round closes")));
    let again = good.push(0, 0, &ONES).await.expect("sent again");
    assert_eq!((again.outcome(), again.version), (pb::Outcome::Duplicate, 1));
    assert_eq!(good.theta().await, [-0.5; DIM as usize], "each once");
    let seen = Seen { theta_unchanged, good_undisturbed };
    let answer = format!("{}; the gradient is kept and counts once", outcome(&waiting));
    stands(19, "a barrier that outlasts the wait the caller asked for", &answer, seen);
    let answer = format!("{}; the gradient is kept and counts once", refusal(&status));
    stands(19, "a barrier that outlasts the call's own deadline", &answer, seen);
}
