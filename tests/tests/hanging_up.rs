//! Large updates of two workers that hang up while they wait and ask again: each counts once.

use std::time::Duration;

use ps_common::wire::pb;
use ps_tests::{Caller, Process};

/// So many that a server hands updates to the threads that wait for their answers.
const DIM: usize = 150_000;

const CLOCKS: u64 = 60;

/// Pushes ones, at first with little patience; gives how often it hung up.
async fn push_all(address: String, rank: u32) -> u32 {
    let mut caller = Caller::joined(&address, rank, DIM as u64).await;
    let ones = vec![1f32; DIM];
    let mut n_hung_up = 0;
    for clock in 0..CLOCKS {
        let patience = Duration::from_micros(clock * 37 % 11 * 150);
        let first = caller.push(clock, 0, &ones);
        let result = match tokio::time::timeout(patience, first).await {
            Ok(sent) => sent,
            Err(_) => {
                n_hung_up += 1;
                caller.push(clock, 0, &ones).await
            }
        };
        let outcome = result.expect("counts").outcome();
        assert!([pb::Outcome::Applied, pb::Outcome::Duplicate].contains(&outcome), "{outcome:?}");
    }
    n_hung_up
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_updates_count_once_whoever_hangs_up() {
    let arguments = [
        "--mode=async",
        "--workers=2",
        "--rounds=0",
        "--lr=1",
        // Without a memory of earlier steps it is plain descent, but computed before it is in force.
        "--optimizer=momentum,mu=0",
    ];
    let (server, address) = Process::server(&arguments);
    let workers = [0, 1].map(|rank| tokio::spawn(push_all(address.clone(), rank)));
    let mut n_hung_up = 0;
    for worker in workers {
        n_hung_up += worker.await.expect("no panic");
    }
    assert!(n_hung_up > 0, "nobody has hung up");
    let mut observer = Caller::replacing(&address, 0, DIM as u64).await;
    let (version, _) = observer.pull().await.expect("theta");
    assert_eq!(version, 2 * CLOCKS);
    assert!(observer.theta().await.iter().all(|x| *x == -((2 * CLOCKS) as f32)));
    drop(server);
}
