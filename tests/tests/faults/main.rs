//! Bad input and faults by the rows of the fault list: the answer, theta's bits, and the good workers
//! beside. What each row saw stands in `docs/RELIABILITY.md`.

mod disk;
mod membership;
mod network;
mod process;
mod wire;

use std::collections::BTreeSet;

use ps_common::wire::pb;
use ps_tests::rows::{N_ROWS, Seen, table};
use ps_tests::{Caller, Process, project_root, reason_of};
use tonic::Code;

/// Elements of theta.
const DIM: u64 = 10;
const ONES: [f32; DIM as usize] = [1.0; DIM as usize];
const ZEROS: [f32; DIM as usize] = [0.0; DIM as usize];

/// A server with one good worker that has pushed once.
async fn setting(arguments: &[&str]) -> (Process, String, Caller) {
    let mut all = vec!["--mode", "async", "--workers", "2", "--lr", "0.5", "--rounds", "0"];
    all.extend_from_slice(arguments);
    let (server, address) = Process::server(&all);
    let mut good = Caller::joined(&address, 0, DIM).await;
    good.push(0, 0, &ONES).await.expect("a good push");
    (server, address, good)
}

/// Sends a push that must be refused, and looks at everything that must not have changed.
async fn refused(
    good: &mut Caller,
    bad: &mut Caller,
    messages: Vec<pb::PushRequest>,
) -> (Code, String, Seen) {
    let before = good.pull().await.expect("theta");
    let status = bad.push_messages(messages).await.expect_err("a bad push is refused");
    let seen = Seen::by(good, &before).await;
    assert!(seen.is_well(), "a refused push left a trace: {status:?} {seen:?}");
    let (code, reason) = reason_of(&status);
    (code, reason, seen)
}

#[test]
fn the_table_has_a_line_of_every_row_and_a_test_of_every_line() {
    let lines = table();
    let rows: BTreeSet<u32> = lines.iter().map(|line| line.row).collect();
    assert_eq!(rows, (1..=N_ROWS).collect());
    let sources: String = [
        "tests/tests/faults/disk.rs",
        "tests/tests/faults/wire.rs",
        "tests/tests/faults/membership.rs",
        "tests/tests/faults/network.rs",
        "tests/tests/faults/process.rs",
        "tests/tests/security.rs",
        "ps-server/src/net/router.rs",
        "ps-server/src/storage/directory/tests.rs",
    ]
    .map(|path| std::fs::read_to_string(project_root().join(path)).expect("a source"))
    .concat();
    for line in lines {
        assert!(line.is_well(), "{line}");
        assert!(sources.contains(&format!("\"{}\"", line.fault)), "no test has this line: {line}");
    }
}
