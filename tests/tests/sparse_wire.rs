//! Pushes and pulls of rows, by a caller made from the wire alone, against real servers.

use std::time::{Duration, Instant};

use ps_common::wire::pb;
use ps_common::wire::pb::partition_client::PartitionClient;
use ps_tests::{Caller, Group, GroupCaller, Names, PATIENCE, Process, reason_of, row_numbers};
use tonic::Code;

/// `V` has 9 rows of 3 elements, `b` 5 of one.
const DIM: usize = 32;

fn join_request(rank: u32) -> pb::JoinRequest {
    let table = |name: &str, shape: &[u64], penalized| pb::Table {
        name: name.to_owned(),
        shape: shape.to_vec(),
        penalized,
        initializer: Some(pb::Initializer {
            kind: pb::initializer::Kind::Uniform.into(),
            scale: 1.0,
            seed: 5,
        }),
    };
    let tables = vec![table("V", &[9, 3], true), table("b", &[5], false)];
    pb::JoinRequest { tables, ..Caller::join_request(Some(rank), 1) }
}

async fn joined(address: &str, rank: u32) -> Caller {
    let mut caller = Caller::connect(address).await;
    let end = Instant::now() + PATIENCE;
    // A server that was killed keeps the rank for its holder until the lease ends.
    while let Err(status) = caller.join(join_request(rank)).await {
        assert!(reason_of(&status).1 == "RANK_TAKEN" && Instant::now() < end, "{status:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    caller
}

fn server(arguments: &[&str]) -> (Process, String) {
    let mut all = vec!["--rounds=0", "--lr=0.5"];
    all.extend_from_slice(arguments);
    Process::server(&all)
}

/// Places of rows in theta.
fn keys(names: &[Names<'_>]) -> Vec<usize> {
    let of_table = |&(table, rows): &Names<'_>| {
        let (first, width) = [(0, 3), (27, 1)][table as usize];
        let keys = rows.iter().flat_map(move |&row| {
            let key = first + row as usize * width;
            key..key + width
        });
        keys.collect::<Vec<_>>()
    };
    names.iter().flat_map(of_table).collect()
}

/// Rows by table.
type Named = Vec<(u32, Vec<u32>)>;

/// The rows of a step, values for them, and what is asked for.
fn step(number: u64) -> (Named, Vec<f32>, Named) {
    let n = u32::try_from(number).expect("few");
    // Out of order, and one of them twice in every third step.
    let rows =
        vec![(1, vec![n % 5]), (0, vec![7 - n % 4, n % 3, if n % 3 == 0 { 7 - n % 4 } else { 8 }])];
    let values = (0..10).map(|i| f32::from(i as u8) * 0.25 - n as f32 * 0.125).collect();
    (rows, values, vec![(0, vec![n % 9, 8, 2]), (1, vec![4])])
}

fn names(rows: &[(u32, Vec<u32>)]) -> Vec<Names<'_>> {
    rows.iter().map(|(table, rows)| (*table, &rows[..])).collect()
}

fn filled(names: &[Names<'_>], values: &[f32]) -> Vec<f32> {
    let mut whole = vec![0.0; DIM];
    keys(names).into_iter().zip(values).for_each(|(key, value)| whole[key] += value);
    whole
}

/// One step of rows and the same with its zeros elsewhere: theta and what was asked of it have the same bits.
async fn both(sparse: &mut Caller, dense: &mut Caller, number: u64) {
    let (rows, values, asked) = step(number);
    let (rows, asked) = (names(&rows), names(&asked));
    let clock = (sparse.clock, number);
    let messages = sparse.rows_messages(clock, (&rows, &values), &asked);
    let (result, version, given) = sparse.step_messages(messages).await.expect("counts");
    assert_eq!(result.outcome(), pb::Outcome::Applied);
    dense.push(dense.clock, number, &filled(&rows, &values)).await.expect("counts");
    let (want_version, want) = (dense.pull().await.expect("theta").0, dense.theta().await);
    assert_eq!((version, sparse.theta().await), (want_version, want.clone()));
    let wanted: Vec<f32> = keys(&asked).into_iter().map(|key| want[key]).collect();
    assert_eq!(given, wanted, "what was asked, in this order");
    assert_eq!(sparse.pull_rows(&asked).await.expect("rows"), (version, wanted));
}

#[tokio::test]
async fn rows_move_theta_as_the_whole_gradient_does_by_every_rule_and_mode() {
    for arguments in [
        &["--mode=async", "--workers=1"][..],
        &["--mode=sync", "--workers=1", "--optimizer=adagrad"],
        &["--mode=hogwild", "--workers=1"],
        // These move what no row names as well: zeros are filled in.
        &["--mode=async", "--workers=1", "--optimizer=momentum"],
        &["--mode=ssp", "--workers=1", "--optimizer=adamw", "--staleness-bound=1"],
        &["--mode=async", "--workers=1", "--weight-decay=0.1"],
        &["--mode=sync", "--workers=1", "--clip-norm=0.5"],
        &["--mode=async", "--workers=1", "--delay-scaling=dc-asgd,lambda=0.1"],
        &["--mode=hogwild", "--workers=1", "--weight-decay=0.1"],
        &["--mode=sync", "--workers=1", "--aggregate=median"],
    ] {
        let ((_a, at_sparse), (_b, at_dense)) = (server(arguments), server(arguments));
        let (mut sparse, mut dense) = (joined(&at_sparse, 0).await, joined(&at_dense, 0).await);
        for number in 0..8 {
            both(&mut sparse, &mut dense, number).await;
        }
    }
}

#[tokio::test]
async fn a_round_sums_the_rows_of_all_workers() {
    let arguments = ["--mode=sync", "--workers=2"];
    let ((_a, at_sparse), (_b, at_dense)) = (server(&arguments), server(&arguments));
    let mut thetas = Vec::new();
    for address in [&at_sparse, &at_dense] {
        let mut callers = [joined(address, 0).await, joined(address, 1).await];
        for number in 0..5u64 {
            let send = |caller: Caller, number: u64| {
                let is_sparse = *address == at_sparse;
                async move {
                    let mut caller = caller;
                    let (rows, values, asked) = step(3 * number + u64::from(caller.rank));
                    let (rows, asked) = (names(&rows), names(&asked));
                    let clock = (caller.clock, number);
                    let messages = match is_sparse {
                        true => caller.rows_messages(clock, (&rows, &values), &asked),
                        false => vec![caller.message(clock.0, clock.1, &filled(&rows, &values))],
                    };
                    let (_, version, given) = caller.step_messages(messages).await.expect("counts");
                    let theta = caller.theta().await;
                    if is_sparse {
                        let wanted: Vec<f32> =
                            keys(&asked).into_iter().map(|key| theta[key]).collect();
                        assert_eq!((version, given), (number + 1, wanted));
                    }
                    (caller, theta)
                }
            };
            let [first, second] = callers;
            let ((first, theta), (second, _)) =
                tokio::join!(send(first, number), send(second, number));
            thetas.push((address.clone(), theta));
            callers = [first, second];
        }
    }
    let (sparse, dense) = thetas.split_at(5);
    for ((_, sparse), (_, dense)) in sparse.iter().zip(dense) {
        assert_eq!(sparse, dense);
    }
}

#[tokio::test]
async fn a_push_of_rows_counts_once_and_its_name_stays_its_own() {
    let (_server, address) = server(&["--mode=async", "--workers=1"]);
    let mut caller = joined(&address, 0).await;
    let rows: [Names<'_>; 1] = [(0, &[4])];
    let first = caller.rows_messages((0, 0), (&rows, &[1.0, 2.0, 3.0]), &rows);
    let (result, version, given) = caller.step_messages(first.clone()).await.expect("counts");
    assert_eq!((result.outcome(), version), (pb::Outcome::Applied, 1));
    let (again, version, same) = caller.step_messages(first).await.expect("known");
    assert_eq!((again.outcome(), version, same), (pb::Outcome::Duplicate, 1, given));
    // Whatever it asks for, it is the same push.
    let other = caller.rows_messages((0, 0), (&rows, &[1.0, 2.0, 3.0]), &[(1, &[0, 1])]);
    let (again, _, two) = caller.step_messages(other).await.expect("known");
    assert_eq!((again.outcome(), two.len()), (pb::Outcome::Duplicate, 2));
    for (rows, values) in [((0, &[5][..]), [1.0, 2.0, 3.0]), ((0, &[4]), [1.0, 2.0, 3.5])] {
        let messages = caller.rows_messages((0, 0), (&[rows], &values), &[]);
        let status = caller.step_messages(messages).await.expect_err("another push");
        assert_eq!(reason_of(&status), (Code::AlreadyExists, "SEQ_REUSED".to_owned()));
    }
    // Rows that are brought alone, and none at all.
    let messages = caller.rows_messages((1, 1), (&rows, &[0.0; 3]), &[]);
    let (result, _, nothing) = caller.step_messages(messages).await.expect("counts");
    assert_eq!((result.outcome(), nothing.len()), (pb::Outcome::Applied, 0));
    let messages = caller.rows_messages((2, 2), (&[], &[]), &rows);
    let (result, version, three) = caller.step_messages(messages).await.expect("counts");
    assert_eq!((result.outcome(), version, three.len()), (pb::Outcome::Applied, 3, 3));
    let messages = caller.rows_messages((3, 3), (&rows, &[0.5; 3]), &[]);
    let result = caller.push_messages(messages).await.expect("Push takes rows too");
    assert_eq!((result.outcome(), result.version), (pb::Outcome::Applied, 4));
}

#[tokio::test]
async fn what_is_wrong_with_rows_is_refused_by_name_and_leaves_no_trace() {
    let (_server, address) = server(&["--mode=async", "--workers=1"]);
    let mut caller = joined(&address, 0).await;
    let before = caller.pull().await.expect("theta");
    let push = |brought: &[Names<'_>], values: &[f32], asked: &[Names<'_>]| {
        caller.rows_messages((0, 0), (brought, values), asked)
    };
    let good = || push(&[(0, &[4])], &[1.0; 3], &[(1, &[0])]);
    let changed = |at: usize, change: &dyn Fn(&mut pb::PushRequest)| {
        let mut messages = good();
        change(&mut messages[at]);
        messages
    };
    let mut behind = good();
    behind[2].last = false;
    behind.push(pb::PushRequest { header: None, last: true, ..behind[0].clone() });
    let cases = [
        (push(&[(0, &[3, 9])], &[1.0; 6], &[]), Code::OutOfRange, "ROW_RANGE", "has 9 rows"),
        (push(&[(0, &[3])], &[1.0; 3], &[(1, &[5])]), Code::OutOfRange, "ROW_RANGE", "`b`"),
        (push(&[(2, &[0])], &[1.0; 3], &[]), Code::InvalidArgument, "BAD_FIELD", "2 tables"),
        (push(&[(0, &[3])], &[1.0; 2], &[]), Code::InvalidArgument, "DIM_MISMATCH", "have 3"),
        (push(&[(0, &[3])], &[1.0; 4], &[]), Code::InvalidArgument, "DIM_MISMATCH", "at least 4"),
        (push(&[], &[1.0], &[]), Code::InvalidArgument, "DIM_MISMATCH", "at least 1"),
        (push(&[(0, &[1; 11])], &[], &[]), Code::InvalidArgument, "DIM_MISMATCH", "33 elements"),
        (push(&[(0, &[])], &[], &[]), Code::InvalidArgument, "EMPTY", "has none"),
        (
            push(&[(0, &[3])], &[1.0, f32::NAN, 1.0], &[]),
            Code::InvalidArgument,
            "NON_FINITE",
            "element 1",
        ),
        (push(&[(0, &[3, 3])], &[f32::MAX; 6], &[]), Code::InvalidArgument, "NON_FINITE", "inf"),
        (behind, Code::InvalidArgument, "BAD_FIELD", "behind elements"),
        (
            changed(0, &|m| m.header.as_mut().expect("the first").sparse = false),
            Code::InvalidArgument,
            "BAD_FIELD",
            "does not say `sparse`",
        ),
        (changed(0, &|m| m.part = 3), Code::InvalidArgument, "BAD_FIELD", "no part 3"),
        (
            changed(1, &|m| m.data = row_numbers(&[0]).slice(..3)),
            Code::InvalidArgument,
            "BAD_LENGTH",
            "3 bytes",
        ),
        (
            changed(2, &|m| m.dtype = pb::Dtype::F16.into()),
            Code::InvalidArgument,
            "BAD_DTYPE",
            "the job's is f32",
        ),
        (changed(2, &|m| m.key = 1), Code::InvalidArgument, "BAD_KEY", "0 was next"),
    ];
    for (messages, code, reason, says) in cases {
        let status = caller.clone().step_messages(messages).await.expect_err(says);
        assert_eq!(reason_of(&status), (code, reason.to_owned()), "{status:?}");
        assert!(status.message().contains(says), "{says}: {status:?}");
        assert_eq!(caller.clone().pull().await.expect("theta"), before, "{says}");
    }
    let messages = caller.rows_messages((0, 0), (&[(0, &[4])], &[1.0; 3]), &[(1, &[0])]);
    let (result, _, _) = caller.step_messages(messages).await.expect("the clock is still owed");
    assert_eq!(result.outcome(), pb::Outcome::Applied);
}

#[tokio::test]
async fn rows_that_nobody_can_be_given_are_refused_by_name() {
    let (_server, address) = server(&["--mode=async", "--workers=1"]);
    let mut caller = joined(&address, 0).await;
    let messages = caller.rows_messages((0, 0), (&[(0, &[4])], &[1.0; 3]), &[(1, &[0])]);
    let status = caller.push_messages(messages).await.expect_err("asks for rows");
    assert_eq!(reason_of(&status).1, "BAD_FIELD", "{status:?}");
    let asked: [(&[Names<'_>], &str); 4] = [
        (&[(0, &[9])], "ROW_RANGE"),
        (&[(7, &[0])], "BAD_FIELD"),
        (&[(0, &[])], "EMPTY"),
        (&[(0, &[1; 11])], "DIM_MISMATCH"),
    ];
    for (asked, reason) in asked {
        let status = caller.pull_rows(asked).await.expect_err(reason);
        assert_eq!(reason_of(&status).1, reason, "{status:?}");
    }
    let both = pb::PullRequest {
        rank: caller.rank,
        incarnation: caller.incarnation,
        version_have: Some(0),
        asked: row_numbers(&[0, 1, 4]),
        ..Default::default()
    };
    let status = caller.parameters.pull(both).await.expect_err("of all of theta");
    assert_eq!(reason_of(&status).1, "BAD_FIELD", "{status:?}");
    // Whoever has not joined is told that, whatever it asks for.
    let stranger = pb::PullRequest { rank: 5, asked: row_numbers(&[9, 9]), ..Default::default() };
    let status = caller.parameters.pull(stranger).await.expect_err("a stranger");
    assert_eq!(reason_of(&status).1, "UNKNOWN_WORKER", "{status:?}");
}

#[tokio::test]
async fn acknowledged_rows_survive_a_kill() {
    let directory = tempfile::tempdir().expect("a folder");
    let path = directory.path().to_str().expect("UTF-8");
    let kept = ["--mode=async", "--workers=1", "--durability=always", "--checkpoint-dir", path];
    for optimizer in ["--optimizer=adagrad", "--optimizer=momentum"] {
        let arguments = [&kept[..], &[optimizer, "--resume=auto"]].concat();
        let (_b, at_dense) = server(&["--mode=async", "--workers=1", optimizer]);
        let mut dense = joined(&at_dense, 0).await;
        for life in 0..3 {
            let (process, address) = server(&arguments);
            let mut sparse = joined(&address, 0).await;
            assert_eq!(sparse.theta().await, dense.theta().await, "as it was, life {life}");
            for _ in 0..3 {
                let number = sparse.clock;
                both(&mut sparse, &mut dense, number).await;
            }
            process.signal("KILL");
            assert_eq!(process.wait().0, None);
        }
        std::fs::remove_dir_all(directory.path()).expect("removed");
        std::fs::create_dir(directory.path()).expect("made");
    }
}

#[tokio::test]
async fn several_servers_refuse_rows_by_name() {
    let group = Group::start(2, &["--mode=async", "--workers=1", "--rounds=0"], false);
    let end = Instant::now() + PATIENCE;
    let mut first = loop {
        match GroupCaller::join(&group.addresses(), 0, 10).await {
            Ok(caller) => break caller.first,
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let messages = first.rows_messages((0, 0), (&[(0, &[1])], &[1.0]), &[]);
    let status = first.step_messages(messages).await.expect_err("rows go to one server");
    assert_eq!(reason_of(&status), (Code::FailedPrecondition, "CONFIG_MISMATCH".to_owned()));
    assert!(status.message().contains("this job has 2"), "{status:?}");
    let mut second = PartitionClient::new(Caller::connect(&group.addresses()[1]).await.channel);
    loop {
        let messages = first.rows_messages((0, 0), (&[(0, &[1])], &[1.0]), &[]);
        let status = second.stage(tokio_stream::iter(messages)).await.expect_err("rows, again");
        match &reason_of(&status).1[..] {
            "CONFIG_MISMATCH" => return assert!(status.message().contains("this one has a part")),
            // It hears of the job after the first server has let somebody in.
            _ => assert!(Instant::now() < end, "{status:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
