//! What a checkpoint holds, through JSON and back. How jobs go on from one is shown by scripts and
//! checked by the generated world.

use std::time::Duration;

use ps_common::calls::{Caller, JoinRequest, PushHeader};
use ps_common::job::{Aggregate, Durability, OnWorkerLoss, PROTOCOL_VERSION, Role};
use ps_common::tables::{Table, Tables};
use ps_common::{Dtype, ErrorCode};

use crate::core::{
    Answer, CallId, Checkpoints, Config, ConnId, Consistency, Core, Counted, Effect, Input, Saved,
    StopRules, Time,
};

fn config(n_workers: u32) -> Config {
    Config {
        consistency: Consistency::Sync { backup_workers: 0 },
        n_workers,
        partition: ps_common::partition::Partition::WHOLE,
        aggregate: Aggregate::TrimmedMean { k: 0 },
        rounds: Some(9),
        lease: Duration::from_secs(10),
        on_worker_loss: OnWorkerLoss::Wait,
        replacement_timeout: Duration::from_secs(600),
        observers: 0,
        wait_max: Config::WAIT_MAX,
        stop: StopRules::default(),
        checkpoints: Some(Checkpoints { durability: Durability::Always, every: None }),
        boot: 3,
    }
}

/// A job with one worker.
fn begun() -> (Core, Caller) {
    let mut core = Core::new(config(1), Dtype::F32);
    let request = JoinRequest {
        protocol_version: PROTOCOL_VERSION,
        role: Role::Worker,
        rank: None,
        fingerprint: [("model".to_owned(), "linear".to_owned())].into(),
        tables: Some(Tables::new(vec![Table::zeros("w", &[3], true)]).expect("sane")),
        dtype: None,
        program: "test".to_owned(),
        acknowledged_clock: None,
        overlap: false,
    };
    let (call, conn) = (CallId(0), ConnId(0));
    let join = Input::Join { call, conn, address: "here".to_owned(), request };
    let effects = core.step(Time::ZERO, join);
    let caller = effects.iter().find_map(|effect| match effect {
        Effect::Reply { answer: Answer::Joined(welcome), .. } => Some(welcome.caller),
        _ => None,
    });
    core.step(Time::ZERO, Input::Captured);
    core.step(Time::ZERO, Input::Saved { version: 0, result: Ok((String::new(), 0)) });
    (core, caller.expect("let in"))
}

/// Its worker has had a refusal, and a loss that is not finite.
fn diverging() -> (Core, Caller, Counted) {
    let (mut core, caller) = begun();
    let code = ErrorCode::NonFinite;
    core.step(Time::from_millis(1), Input::Rejected { caller: Some(caller), code });
    let header = PushHeader {
        caller,
        clock: 0,
        version_pulled: 0,
        n_samples: 7,
        loss: Some(f64::INFINITY),
        penalty: Some(0.1 + 0.2),
        wait_max: None,
        exchange: 0,
    };
    let (call, conn) = (CallId(1), ConnId(0));
    let push = Input::Push { call, conn, header, digest: 5, theta: false };
    let effects = core.step(Time::from_millis(1500), push);
    let [Effect::Update(order)] = effects.as_slice() else { panic!("{effects:?}") };
    let counted = core.counted_by(order);
    core.step(Time::from_millis(1700), Input::Updated { name: call, result: Ok(()) });
    (core, caller, counted[0])
}

fn reread(saved: &Saved) -> Saved {
    let text = serde_json::to_string(saved).expect("plain data");
    serde_json::from_str(&text).expect("its own")
}

#[test]
fn json_keeps_every_bit() {
    let (core, caller, counted) = diverging();
    assert_eq!(caller.incarnation, (3 << 32) + 1);
    let saved = core.save(Time::from_secs(2)).expect("somebody has joined");
    assert_eq!(reread(&saved), saved);
    assert_eq!((saved.version(), saved.n_workers(), saved.elapsed_seconds()), (1, 1, 2.0));

    let later = Config { boot: 4, ..config(1) };
    let mut restored = Core::restore(later, Dtype::F32, reread(&saved)).expect("the same job");
    restored.resume(Time::from_millis(5));
    let report = restored.report(Time::from_millis(1005), "", "", "").expect("a job");
    assert_eq!(report.history[0].loss, f64::INFINITY);
    assert_eq!(report.history[0].seconds, 1.5);
    assert_eq!(report.wall_seconds, 3.0);
    assert!(report.events.iter().any(|event| event.detail == "NON_FINITE (1 times)"));
    assert_eq!(report.durability.expect("kept").restarts, 1);
    assert_eq!(counted.digest, 5);
}

#[test]
fn a_replayed_update_counts_as_it_did() {
    let (core, caller, counted) = diverging();
    let saved = begun().0.save(Time::from_millis(1500)).expect("a job");
    let later = Config { boot: 4, ..config(1) };
    let mut replayed = Core::restore(later, Dtype::F32, saved).expect("the same job");
    replayed.replay(&[counted]).expect("follows");
    let report = |core: &Core| core.report(Time::ZERO, "", "", "").expect("a job");
    assert_eq!(replayed.version(), core.version());
    assert_eq!(report(&replayed).gradient_delay, report(&core).gradient_delay);
    assert_eq!(report(&replayed).history, report(&core).history);
    assert_eq!(report(&replayed).n_samples, 7);

    // It does not count twice, nor what cannot be.
    let again = replayed.replay(&[counted]).expect_err("behind");
    assert!(again.contains("clock 0 of rank 0, which owes 1"), "{again}");
    let of = |rank, clock, version_pulled| Counted {
        header: PushHeader {
            caller: Caller { rank, ..caller },
            clock,
            version_pulled,
            ..counted.header
        },
        digest: 0,
    };
    let stranger = replayed.replay(&[of(4, 1, 1)]).expect_err("no such rank");
    assert!(stranger.contains("rank 4") && stranger.contains("1 workers"), "{stranger}");
    assert!(replayed.replay(&[of(0, 1, 0)]).is_err(), "of an older theta");
    assert!(replayed.replay(&[]).is_err(), "of nothing");
    assert_eq!(replayed.replay(&[of(0, 1, 1)]), Ok(()));
}
