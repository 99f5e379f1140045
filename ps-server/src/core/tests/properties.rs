//! Generated sequences of events: every promise of the ledger and every invariant, after each.
//!
//! A failing sequence is shrunk and written to `target/core-failures/`; `PS_REPLAY=FILE cargo test
//! -p ps-server replay -- --nocapture` shows what it does, step by step.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{TestCaseError, TestRunner};
use ps_common::job::{Aggregate, Durability, Mode, OnWorkerLoss};

use super::world;
use super::world::disk::{RESTORED, UNDONE};
use super::world::plan::{Case, EVERY, Event, Life, N_PROCESSES, Plan, SCALINGS};

/// The process that most often is an observer.
const WATCHER: u8 = N_PROCESSES - 1;
/// Sequences of each mode; together more than 10,000.
const CASES: u32 = 3_500;

#[test]
fn synchronous_sequences_keep_every_promise() {
    check("sync", Mode::Sync);
}

#[test]
fn bounded_sequences_keep_every_promise() {
    check("ssp", Mode::Ssp);
}

#[test]
fn asynchronous_sequences_keep_every_promise() {
    check("async", Mode::Async);
}

#[test]
fn sequences_without_locks_keep_every_promise() {
    check("hogwild", Mode::Hogwild);
}

#[test]
fn sequences_come_to_what_they_are_for() {
    // The same sequences every time.
    let mut runner = TestRunner::deterministic();
    let (mut restored, mut by_journal, mut undone) = (0, 0, 0);
    for mode in [Mode::Sync, Mode::Async].repeat(300) {
        let case = case(mode).new_tree(&mut runner).expect("generates").current();
        let (trace, result) = world::run(&case);
        assert_eq!(result, Ok(()), "{mode}");
        let lines = |what: &'static str| trace.iter().filter(move |line| line.starts_with(what));
        restored += lines(RESTORED).count();
        by_journal += lines(RESTORED).filter(|line| !line.contains(" 0 by the journal")).count();
        undone += lines(UNDONE).count();
    }
    let all = format!("{restored} restored, {by_journal} by the journal, {undone} told undone");
    assert!(restored >= 60 && by_journal >= 6 && undone >= 3, "{all}");
}

#[test]
fn replay() {
    let Some(path) = std::env::var_os("PS_REPLAY").map(PathBuf::from) else {
        // Nothing to replay: at least that a case survives its file, and means the same after it.
        let mut runner = TestRunner::deterministic();
        let case = case(Mode::Sync).new_tree(&mut runner).expect("generates").current();
        let text = serde_json::to_string(&case).expect("plain data");
        let back: Case = serde_json::from_str(&text).expect("plain data");
        assert_eq!(world::run(&case), world::run(&back));
        return;
    };
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("PS_REPLAY={}: {error}", path.display()));
    let case: Case = serde_json::from_str(&text).expect("a case as the property tests write it");
    // Whole, or up to the event at which the core panics.
    for n in 0..=case.events.len() {
        let part = Case { plan: case.plan.clone(), events: case.events[..n].to_vec() };
        let (trace, result) = world::run(&part);
        if n == case.events.len() || result.is_err() {
            trace.iter().for_each(|line| println!("{line}"));
            assert_eq!(result, Ok(()), "after {n} events");
        }
    }
}

fn check(name: &str, mode: Mode) {
    let config = ProptestConfig {
        cases: CASES,
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..ProptestConfig::default()
    };
    let result = TestRunner::new(config).run(&case(mode), |case| {
        let outcome = catch_unwind(AssertUnwindSafe(|| world::run(&case).1));
        let broken = match outcome {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(broken)) => broken,
            Err(panic) => panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()))
                .unwrap_or_else(|| "panic".to_owned()),
        };
        // The last one that is written is the smallest.
        let path = write(name, &case);
        Err(TestCaseError::fail(format!("{broken}\nreplay with PS_REPLAY={}", path.display())))
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
}

fn write(name: &str, case: &Case) -> PathBuf {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/core-failures");
    std::fs::create_dir_all(&directory).expect("target/ is writable");
    let path = directory.join(format!("{name}.json"));
    let text = serde_json::to_string_pretty(case).expect("plain data");
    std::fs::write(&path, text).expect("target/ is writable");
    path.canonicalize().unwrap_or(path)
}

fn plan(mode: Mode) -> impl Strategy<Value = Plan> {
    let crew = (1u32..=5, prop_oneof![4 => (1u64..=6).prop_map(Some), 1 => Just(None)]);
    let policy = (
        prop_oneof![
            Just(Aggregate::WeightedMean),
            Just(Aggregate::Mean),
            Just(Aggregate::Sum),
            Just(Aggregate::Collect),
            Just(Aggregate::Median),
            Just(Aggregate::TrimmedMean { k: 1 }),
        ],
        prop_oneof![
            1 => Just(OnWorkerLoss::Wait),
            2 => Just(OnWorkerLoss::Continue),
            1 => Just(OnWorkerLoss::Abort),
        ],
    );
    let consistency = (
        prop_oneof![2 => Just(0u32), 1 => 1u32..5],
        0u64..3,
        0..SCALINGS.len() as u8,
        prop::option::weighted(
            0.7,
            (0u64..4, prop_oneof![3 => Just(0u8), 1 => Just(1), 1 => Just(2)]),
        ),
    );
    let ends = (
        prop::option::weighted(0.1, Just(0.5)),
        prop::option::weighted(0.1, 1u32..4),
        prop::option::weighted(0.1, 100u64..3_000),
    );
    let times = (
        prop_oneof![4 => Just(0u32), 1 => Just(1)],
        prop_oneof![Just(100u64), Just(1_000)],
        prop_oneof![Just(50u64), Just(400), Just(3_000)],
        prop_oneof![Just(500u64), Just(60_000)],
    );
    let parts = (crew, policy, consistency, ends, times, checkpoints(), any::<bool>());
    parts.prop_map(move |(crew, policy, how, ends, times, checkpoints, overlap)| {
        let (n_workers, rounds) = crew;
        let (aggregate, on_worker_loss) = policy;
        let (backup_workers, staleness_bound, scaling, max_delay) = how;
        let (target_loss, plateau, max_ms) = ends;
        let (observers, lease_ms, hold_ms, replacement_ms) = times;
        Plan {
            mode,
            backup_workers,
            staleness_bound,
            scaling,
            max_delay,
            target_loss,
            plateau,
            max_ms,
            aggregate,
            on_worker_loss,
            n_workers,
            rounds,
            observers,
            lease_ms,
            hold_ms,
            replacement_ms,
            checkpoints,
            overlap,
        }
    })
}

fn checkpoints() -> impl Strategy<Value = Option<(Durability, u8)>> {
    let durability = prop_oneof![
        1 => Just(Durability::None),
        2 => Just(Durability::Interval),
        2 => Just(Durability::Always),
    ];
    prop::option::weighted(0.6, (durability, 0..EVERY.len() as u8))
}

fn case(mode: Mode) -> impl Strategy<Value = Case> {
    let plan = plan(mode);
    let events = prop::collection::vec(event(), 0..90);
    // Most sequences begin with a job that is under way.
    let start = any::<bool>();
    (plan, start, events).prop_map(|(plan, start, events)| {
        let joins = (0..plan.n_workers as u8).map(|process| Event::Join {
            process,
            rank: Some(process.into()),
            observer: false,
            alike: true,
        });
        let watch = Event::Join { process: WATCHER, rank: None, observer: true, alike: true };
        let watch = (plan.observers > 0).then_some(watch);
        let events = if start { joins.chain(watch).chain(events).collect() } else { events };
        Case { plan, events }
    })
}

fn event() -> impl Strategy<Value = Event> {
    let process = || 0..N_PROCESSES;
    let within = || prop::option::weighted(0.3, 0u16..500);
    let life =
        || prop_oneof![8 => Just(Life::Now), 1 => Just(Life::Before), 1 => Just(Life::Stranger)];
    let theta = || prop::bool::weighted(0.8);
    let good_push =
        (process(), 0u8..4, theta()).prop_map(|(process, n_samples, theta)| Event::Push {
            process,
            life: Life::Now,
            clock: 0,
            pulled: 0,
            bytes: 0,
            n_samples,
            theta,
            within: None,
        });
    let any_push = (process(), life(), -3i8..=1, -2i8..=1, 0u8..3, 0u8..4, theta(), within());
    let any_push =
        any_push.prop_map(|(process, life, clock, pulled, bytes, n_samples, theta, within)| {
            Event::Push { process, life, clock, pulled, bytes, n_samples, theta, within }
        });
    // What a worker does first; without it few would push.
    let good_pull = process().prop_map(|process| Event::Pull {
        process,
        life: Life::Now,
        ahead: 0,
        r#final: false,
        within: None,
    });
    prop_oneof![
        12 => good_push,
        6 => any_push,
        6 => good_pull,
        10 => (any::<u8>(), prop::bool::weighted(0.05), prop::bool::weighted(0.1))
            .prop_map(|(which, overflow, unwritten)| Event::Updated { which, overflow, unwritten }),
        2 => Just(Event::Captured),
        4 => prop::bool::weighted(0.2).prop_map(|fails| Event::Saved { fails }),
        1 => process().prop_map(|process| Event::Checkpoint { process }),
        1 => prop::bool::weighted(0.7).prop_map(|rejoin| Event::Crash { rejoin }),
        4 => (process(), prop::option::of(0u32..6), prop::bool::weighted(0.2), prop::bool::weighted(0.9))
            .prop_map(|(process, rank, observer, alike)| Event::Join { process, rank, observer, alike }),
        3 => (process(), life(), 0u8..3, prop::bool::weighted(0.2), within()).prop_map(
            |(process, life, ahead, r#final, within)| Event::Pull { process, life, ahead, r#final, within }
        ),
        3 => (process(), life()).prop_map(|(process, life)| Event::Heartbeat { process, life }),
        1 => (process(), life()).prop_map(|(process, life)| Event::Leave { process, life }),
        2 => (prop_oneof![1 => process(), 2 => Just(WATCHER)], -1i8..3, 0u8..5, prop::bool::weighted(0.3))
            .prop_map(|(process, behind, loss, r#final)| Event::Evaluate { process, behind, loss, r#final }),
        1 => process().prop_map(|process| Event::Statistics { process }),
        2 => process().prop_map(|process| Event::Disconnect { process }),
        3 => (0u8..5, process()).prop_map(|(rank, process)| Event::Replace { rank, process }),
        2 => any::<u8>().prop_map(|which| Event::Drop { which }),
        3 => (0u16..300, any::<bool>()).prop_map(|(ms, tick)| Event::Pass { ms, tick }),
        2 => Just(Event::Alarm),
        1 => Just(Event::Concluded),
        1 => process().prop_map(|process| Event::Reject { process }),
        1 => prop::bool::weighted(0.15)
            .prop_map(|stop| if stop { Event::Stop } else { Event::Alarm }),
    ]
}
