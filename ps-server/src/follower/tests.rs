//! The rules of a server that decides nothing, one by one.

use ps_common::job::Combine;
use ps_common::partition::Joint;
use ps_common::tables::Table;

use super::*;

const PARTITION: Partition = Partition { index: 1, count: 2 };
const EPOCH: u32 = 3;
/// Of all of theta: this server has keys 3 to 5.
const DIM: u64 = 5;

fn settings(lr: &str) -> Fingerprint {
    [("lr".to_owned(), lr.to_owned()), ("dtype".to_owned(), "f64".to_owned())].into()
}

fn follower() -> Follower {
    follower_by(Optimizer::sgd(0.5))
}

fn follower_by(optimizer: Optimizer) -> Follower {
    Follower::new(Spec {
        partition: PARTITION,
        settings: settings("0.5"),
        optimizer,
        chunk_bytes: 1 << 10,
        start: None,
    })
}

fn open(settings: Fingerprint) -> Decision {
    Decision::Open { protocol_version: PROTOCOL_VERSION, partition: PARTITION, settings }
}

fn create() -> Decision {
    let tables = Tables::new(vec![Table::zeros("w", &[DIM], true)]).expect("sane");
    Decision::Create { tables, dtype: Dtype::F64, job: 77 }
}

/// A follower with theta, and its stream.
fn begun() -> (Follower, StreamId) {
    begun_by(Optimizer::sgd(0.5))
}

fn begun_by(optimizer: Optimizer) -> (Follower, StreamId) {
    let follower = follower_by(optimizer);
    let stream = follower.open(open(settings("0.5"))).expect("the same settings");
    let begin = Decision::Begin { epoch: EPOCH, checkpoint: None };
    assert!(matches!(follower.decide(stream, begin), Ok(Next::Load(None))));
    assert_eq!(follower.begin(stream, None), Ok(Word::Ready));
    done(&follower, stream, create());
    (follower, stream)
}

#[track_caller]
fn done(follower: &Follower, stream: StreamId, decision: Decision) {
    let next = follower.decide(stream, decision);
    assert!(matches!(next, Ok(Next::Nothing)), "{next:?}");
}

#[track_caller]
fn out_of_step(follower: &Follower, stream: StreamId, decision: Decision) {
    let error = follower.decide(stream, decision).expect_err("out of step");
    assert_eq!((error.code, error.facts["field"].as_str()), (ErrorCode::BadField, "decision"));
}

fn caller(rank: u32, n: u64) -> Caller {
    Caller { rank, incarnation: u64::from(EPOCH) << 32 | n }
}

fn name(rank: u32, clock: u64) -> PushName {
    PushName { caller: caller(rank, 1), clock }
}

fn stage(follower: &Follower, name: PushName, value: f64) -> Result<u32, Error> {
    let header = PushHeader {
        caller: name.caller,
        clock: name.clock,
        version_pulled: 0,
        n_samples: 1,
        loss: None,
        penalty: None,
        wait_max: None,
        exchange: 0,
    };
    let gradient = Gradient::F64(vec![value; 2].into());
    let digest = crc32fast::hash(gradient.as_le_bytes());
    follower.stage(&header, gradient, digest)
}

fn joint(names: &[PushName]) -> Joint {
    Joint {
        parts: names.iter().map(|name| (*name, 1.0)).collect(),
        combine: Combine::Sum,
        rate_factor: 1.0,
        compensation: None,
    }
}

#[track_caller]
fn prepare(follower: &Follower, stream: StreamId, names: &[PushName]) -> Option<u64> {
    match follower.decide(stream, Decision::Prepare(joint(names))) {
        Ok(Next::Say(Word::Prepared(overflow))) => overflow,
        other => panic!("{other:?}"),
    }
}

fn give(rank: u32, exchange: u64, version: u64) -> Decision {
    let (caller, state) = (caller(rank, 1), JobState::Running);
    Decision::Give(Give { caller, exchange, version, state, seconds: 0.5 })
}

fn take(follower: &Follower, rank: u32, exchange: u64) -> Result<Taken, Error> {
    follower.take(&Take { caller: caller(rank, 1), exchange, wait_max: None })
}

/// Version and elements of the theta that is taken.
#[track_caller]
fn taken(follower: &Follower, rank: u32, exchange: u64) -> (u64, Vec<f64>) {
    match take(follower, rank, exchange) {
        Ok(Taken::Given(given)) => {
            assert_eq!((given.first_key, given.give.version), (3, given.theta.version));
            (given.theta.version, given.theta.values())
        }
        other => panic!("{other:?}"),
    }
}

fn code<T>(result: Result<T, Error>) -> Option<ErrorCode> {
    result.err().map(|error| error.code)
}

#[test]
fn m6_settings_that_differ_are_refused_with_both_values() {
    let follower = follower();
    let error = follower.open(open(settings("0.1"))).expect_err("another rate");
    assert_eq!(error.code, ErrorCode::ConfigMismatch);
    assert_eq!(
        ["field", "want", "got"].map(|fact| error.facts[fact].as_str()),
        ["--lr", "0.5", "0.1"]
    );
    let of_three = Decision::Open {
        protocol_version: PROTOCOL_VERSION,
        partition: Partition { index: 1, count: 3 },
        settings: settings("0.5"),
    };
    let error = follower.open(of_three).expect_err("another number of servers");
    assert_eq!((error.facts["want"].as_str(), error.facts["got"].as_str()), ("1/2", "1/3"));
    let newer = Decision::Open {
        protocol_version: PROTOCOL_VERSION + 1,
        partition: PARTITION,
        settings: settings("0.5"),
    };
    assert_eq!(code(follower.open(newer)), Some(ErrorCode::ProtoVersion));
    assert_eq!(code(follower.open(Decision::Commit)), Some(ErrorCode::BadField));
    // What one of the two does not say is not compared.
    let less = [("lr".to_owned(), "0.5".to_owned()), ("rounds".to_owned(), "9".to_owned())];
    follower.open(open(less.into())).expect("the rest is equal");
}

#[test]
fn m7_a_push_is_staged_counts_and_goes_out() {
    let (follower, stream) = begun();
    let first = stage(&follower, name(0, 0), 1.0).expect("staged");
    assert_eq!(stage(&follower, name(0, 0), 1.0), Ok(first), "the same bytes again");
    stage(&follower, name(1, 0), 2.0).expect("staged");
    assert_eq!(prepare(&follower, stream, &[name(0, 0), name(1, 0)]), None);
    assert_eq!(follower.view().version, 0, "not in force");
    done(&follower, stream, Decision::Commit);
    let wake = follower.decide(stream, give(0, 1, 1)).expect("version 1");
    assert!(matches!(wake, Next::Wake(woken) if woken == caller(0, 1)));
    assert_eq!(taken(&follower, 0, 1), (1, vec![-1.5; 2]));
    let view = follower.view();
    assert_eq!((view.state, view.version, view.dim), (JobState::Running, 1, 2));
}

#[test]
fn m7_other_bytes_under_a_name_are_refused() {
    let (follower, stream) = begun();
    stage(&follower, name(0, 0), 1.0).expect("staged");
    assert_eq!(code(stage(&follower, name(0, 0), 2.0)), Some(ErrorCode::SeqReused));
    prepare(&follower, stream, &[name(0, 0)]);
    done(&follower, stream, Decision::Commit);
    follower.decide(stream, give(0, 1, 1)).expect("version 1");
    assert_eq!(taken(&follower, 0, 1).1, [-0.5; 2], "the first bytes count");
}

#[test]
fn m7_two_pushes_of_a_rank_are_kept_the_oldest_goes() {
    let (follower, stream) = begun();
    for clock in 0..3 {
        stage(&follower, name(0, clock), 1.0).expect("staged");
    }
    stage(&follower, name(1, 0), 1.0).expect("another rank's are its own");
    out_of_step(&follower, stream, Decision::Prepare(joint(&[name(0, 0)])));
    assert_eq!(prepare(&follower, stream, &[name(0, 1), name(0, 2), name(1, 0)]), None);
}

#[test]
fn m7_what_is_forgotten_is_gone() {
    let (follower, stream) = begun();
    stage(&follower, name(0, 0), 1.0).expect("staged");
    done(&follower, stream, Decision::Forget(name(0, 0)));
    done(&follower, stream, Decision::Forget(name(0, 9)));
    out_of_step(&follower, stream, Decision::Prepare(joint(&[name(0, 0)])));
    stage(&follower, name(0, 0), 2.0).expect("other bytes may come under its name");
}

#[test]
fn m8_callers_of_another_life_join_again() {
    let (follower, stream) = begun();
    let old = PushName { caller: Caller { rank: 0, incarnation: 2 << 32 | 9 }, clock: 0 };
    let new = PushName { caller: Caller { rank: 0, incarnation: 4 << 32 | 9 }, clock: 0 };
    for name in [old, new] {
        assert_eq!(code(stage(&follower, name, 1.0)), Some(ErrorCode::EpochChanged));
        assert_eq!(code(follower.admit(name.caller)), Some(ErrorCode::EpochChanged));
        let take = Take { caller: name.caller, exchange: 1, wait_max: None };
        assert_eq!(code(follower.take(&take)), Some(ErrorCode::EpochChanged));
    }
    let (shape, _) = follower.admit(caller(0, 1)).expect("of this life");
    assert_eq!(shape, Shape { first_key: 3, dim: 2, dtype: Dtype::F64 });
    assert!(follower.disconnect(stream));
    let error = follower.admit(caller(0, 1)).expect_err("no life");
    assert_eq!(error.code, ErrorCode::NotInitialized);
    assert!(error.retry_after.is_some() && error.message.contains("1/2"), "{error}");
}

#[test]
fn m9_theta_is_given_once_to_the_newest_exchange() {
    let (follower, stream) = begun();
    assert!(matches!(take(&follower, 0, 2), Ok(Taken::NotYet)));
    follower.decide(stream, give(0, 2, 0)).expect("version 0");
    assert!(matches!(take(&follower, 1, 2), Ok(Taken::NotYet)), "another's");
    assert!(matches!(take(&follower, 0, 3), Ok(Taken::NotYet)), "a later one");
    assert_eq!(code(take(&follower, 0, 1)), Some(ErrorCode::StaleRound));
    assert_eq!(taken(&follower, 0, 2), (0, vec![0.0; 2]));
    assert_eq!(code(take(&follower, 0, 2)), Some(ErrorCode::StaleRound), "it was taken");
    // A newer one takes the place of one that nobody came for.
    follower.decide(stream, give(0, 4, 0)).expect("version 0");
    follower.decide(stream, give(0, 6, 0)).expect("version 0");
    assert_eq!(code(take(&follower, 0, 4)), Some(ErrorCode::StaleRound));
    assert_eq!(taken(&follower, 0, 6).0, 0);
}

#[test]
fn m9_who_asks_before_theta_is_made_waits_and_who_pushes_tries_again() {
    let follower = follower();
    let stream = follower.open(open(settings("0.5"))).expect("the same settings");
    assert_eq!(code(take(&follower, 0, 1)), Some(ErrorCode::NotInitialized), "no life yet");
    let begin = Decision::Begin { epoch: EPOCH, checkpoint: None };
    follower.decide(stream, begin).expect("first");
    assert!(matches!(take(&follower, 0, 1), Ok(Taken::NotYet)));
    assert_eq!(code(follower.admit(caller(0, 1))), Some(ErrorCode::NotInitialized));
    done(&follower, stream, create());
    follower.decide(stream, give(0, 1, 0)).expect("version 0");
    assert_eq!(taken(&follower, 0, 1).0, 0);
}

#[test]
fn m9_what_was_given_stays_as_it_was() {
    let (follower, stream) = begun();
    follower.decide(stream, give(0, 1, 0)).expect("version 0");
    stage(&follower, name(1, 0), 1.0).expect("staged");
    prepare(&follower, stream, &[name(1, 0)]);
    done(&follower, stream, Decision::Commit);
    assert_eq!(taken(&follower, 0, 1), (0, vec![0.0; 2]));
    let error = follower.decide(stream, give(0, 2, 0)).expect_err("theta has version 1");
    assert_eq!((error.code, error.facts["got"].as_str()), (ErrorCode::Internal, "1"));
}

#[test]
fn m10_an_update_that_is_not_put_in_force_leaves_no_trace() {
    let (follower, stream) = begun();
    stage(&follower, name(0, 0), 1.0).expect("staged");
    prepare(&follower, stream, &[name(0, 0)]);
    done(&follower, stream, Decision::Abort);
    stage(&follower, name(0, 1), f64::MAX).expect("staged");
    stage(&follower, name(1, 1), f64::MAX).expect("staged");
    let overflow = prepare(&follower, stream, &[name(0, 1), name(1, 1)]);
    assert_eq!(overflow, Some(3), "counted over all of theta");
    done(&follower, stream, Decision::Abort);
    follower.decide(stream, give(0, 1, 0)).expect("still version 0");
    assert_eq!(taken(&follower, 0, 1), (0, vec![0.0; 2]));
    out_of_step(&follower, stream, Decision::Commit);
}

fn clipping() -> (Follower, StreamId) {
    begun_by(Optimizer { clip_norm: Some(1.0), ..Optimizer::sgd(0.5) })
}

/// What is told of the squares of an update, by step.
#[track_caller]
fn squares(follower: &Follower, stream: StreamId, joint: Joint) -> Vec<Squares> {
    match follower.decide(stream, Decision::Prepare(joint)) {
        Ok(Next::TellSquares(squares)) => squares,
        other => panic!("{other:?}"),
    }
}

#[test]
fn m10_gradients_are_clipped_as_partition_0_says() {
    let (follower, stream) = clipping();
    for (rank, value) in [(0, 3.0), (1, 1.0)] {
        stage(&follower, name(rank, 0), value).expect("staged");
    }
    let in_turn = Joint { combine: Combine::InTurn, ..joint(&[name(0, 0), name(1, 0)]) };
    // Keys 0 to 5 are summed in one, and the first of them are elsewhere.
    let elements = |value| Squares { elements: vec![value; 2], sums: Vec::new() };
    assert_eq!(squares(&follower, stream, in_turn), [elements(3.0), elements(1.0)]);
    let clips = Decision::Clip(vec![Some(0.5), None]);
    let next = follower.decide(stream, clips);
    assert!(matches!(next, Ok(Next::Say(Word::Prepared(None)))), "{next:?}");
    assert_eq!(follower.view().version, 0, "not in force");
    done(&follower, stream, Decision::Commit);
    follower.decide(stream, give(0, 1, 1)).expect("version 1");
    assert_eq!(taken(&follower, 0, 1), (1, vec![-0.5 * (1.5 + 1.0); 2]));
}

#[test]
fn m10_an_update_whose_squares_were_told_may_be_aborted() {
    let (follower, stream) = clipping();
    stage(&follower, name(0, 0), 1.0).expect("staged");
    squares(&follower, stream, joint(&[name(0, 0)]));
    done(&follower, stream, Decision::Abort);
    for rank in 0..2 {
        stage(&follower, name(rank, 1), f64::MAX).expect("staged");
    }
    // Their sum is infinite: there is no norm to tell of.
    assert_eq!(prepare(&follower, stream, &[name(0, 1), name(1, 1)]), Some(3));
    done(&follower, stream, Decision::Abort);
    assert_eq!(follower.view().version, 0);
}

#[test]
fn m10_a_clip_that_does_not_fit_is_refused() {
    let wrong = [Decision::Clip(vec![None; 2]), Decision::Commit, Decision::Prepare(joint(&[]))];
    for decision in wrong {
        let (follower, stream) = clipping();
        out_of_step(&follower, stream, Decision::Clip(vec![None]));
        stage(&follower, name(0, 0), 1.0).expect("staged");
        squares(&follower, stream, joint(&[name(0, 0)]));
        out_of_step(&follower, stream, decision);
    }
    let (follower, stream) = begun();
    stage(&follower, name(0, 0), 1.0).expect("staged");
    assert_eq!(prepare(&follower, stream, &[name(0, 0)]), None);
    out_of_step(&follower, stream, Decision::Clip(vec![None]));
}

#[test]
fn m10_decisions_that_do_not_fit_are_refused() {
    let (follower, stream) = begun();
    out_of_step(&follower, stream, create());
    out_of_step(&follower, stream, open(settings("0.5")));
    out_of_step(&follower, stream, Decision::Begin { epoch: 4, checkpoint: None });
    out_of_step(&follower, stream, Decision::Prepare(joint(&[name(0, 0)])));
    for combine in [Combine::Median, Combine::TrimmedMean { k: 0 }] {
        let nothing = Joint { combine, ..joint(&[]) };
        out_of_step(&follower, stream, Decision::Prepare(nothing));
    }
    stage(&follower, name(0, 0), 1.0).expect("staged");
    assert_eq!(prepare(&follower, stream, &[name(0, 0)]), None);
    out_of_step(&follower, stream, Decision::Prepare(joint(&[])));
}

#[test]
fn m10_nothing_is_decided_on_a_theta_that_is_not_there() {
    let follower = follower();
    let stream = follower.open(open(settings("0.5"))).expect("the same settings");
    for decision in [create(), Decision::Commit, Decision::Capture, give(0, 1, 0)] {
        out_of_step(&follower, stream, decision);
    }
    follower.decide(stream, Decision::Begin { epoch: 1, checkpoint: None }).expect("first");
    for decision in [Decision::Capture, Decision::Collect, Decision::Keep(0), give(0, 1, 0)] {
        out_of_step(&follower, stream, decision);
    }
    out_of_step(&follower, stream, Decision::Prepare(joint(&[])));
    let tables = Tables::new(vec![Table::zeros("w", &[1], true)]).expect("sane");
    let small = Decision::Create { tables, dtype: Dtype::F64, job: 1 };
    assert_eq!(code(follower.decide(stream, small)), Some(ErrorCode::ConfigMismatch));
}

#[test]
fn m11_a_life_goes_on_from_what_was_captured_under_another_epoch() {
    let (follower, stream) = begun();
    stage(&follower, name(0, 0), 1.0).expect("staged");
    prepare(&follower, stream, &[name(0, 0)]);
    done(&follower, stream, Decision::Commit);
    let Ok(Next::Save(picture)) = follower.decide(stream, Decision::Capture) else {
        panic!("there is a theta to write down")
    };
    assert_eq!(picture.name, CheckpointName { version: 1, epoch: EPOCH, job: 77 });
    stage(&follower, name(0, 1), 1.0).expect("staged");

    // The connection breaks, and partition 0 comes again.
    let second = follower.open(open(settings("0.5"))).expect("the same settings");
    assert_eq!(code(follower.decide(stream, Decision::Collect)), Some(ErrorCode::EpochChanged));
    assert!(!follower.disconnect(stream), "the newer stream stays");
    let begin = Decision::Begin { epoch: EPOCH + 1, checkpoint: Some(picture.name) };
    let next = follower.decide(second, begin).expect("first");
    assert!(matches!(next, Next::Load(Some(name)) if name == picture.name));
    let (tables, version) = (picture.tables.clone(), picture.name.version);
    let sgd = Optimizer::sgd(0.5);
    let mut restoring = Store::restoring((&tables, PARTITION), Dtype::F64, sgd, 64, version);
    for chunk in picture.theta.theta().chunks() {
        restoring.append("theta", &chunk).expect("fits");
    }
    let store = restoring.finish().expect("whole");
    let restored = Restored { job: picture.name.job, tables, store };
    assert_eq!(follower.begin(second, Some(restored)), Ok(Word::Ready));
    assert_eq!((follower.view().version, follower.view().dim), (1, 2));
    assert_eq!(code(follower.admit(caller(0, 1))), Some(ErrorCode::EpochChanged));
    out_of_step(&follower, second, Decision::Prepare(joint(&[name(0, 1)])));
    let Ok(Next::Tell(theta)) = follower.decide(second, Decision::Collect) else {
        panic!("there is a theta to tell")
    };
    assert_eq!(theta.values::<f64>(), [-0.5; 2]);
}

#[test]
fn m12_after_the_end_what_was_given_can_be_taken_and_nothing_else() {
    let (follower, stream) = begun();
    follower.decide(stream, give(0, 1, 0)).expect("version 0");
    let end = Decision::End { state: JobState::Failed, reason: "diverged".to_owned() };
    assert!(matches!(follower.decide(stream, end), Ok(Next::End)));
    assert_eq!(follower.ended(), Some((JobState::Failed, "diverged".to_owned())));
    follower.disconnect(stream);
    assert_eq!(taken(&follower, 0, 1).0, 0);
    assert_eq!(code(take(&follower, 1, 1)), Some(ErrorCode::JobEnded));
    assert_eq!(code(stage(&follower, name(0, 0), 1.0)), Some(ErrorCode::JobEnded));
}

#[test]
fn a_gradient_is_corrected_by_the_theta_that_was_kept() {
    let (follower, stream) = begun();
    done(&follower, stream, Decision::Keep(0));
    for (rank, clock) in [(1, 0), (0, 0)] {
        stage(&follower, name(rank, clock), 1.0).expect("staged");
    }
    prepare(&follower, stream, &[name(1, 0)]);
    done(&follower, stream, Decision::Commit);
    // theta went from 0 to -0.5 since: 1 + 0.4 * 1 * 1 * (-0.5 - 0) = 0.8.
    let corrected = Joint { compensation: Some((0.4, 0, 0)), ..joint(&[name(0, 0)]) };
    follower.decide(stream, Decision::Prepare(corrected)).expect("prepared");
    done(&follower, stream, Decision::Commit);
    follower.decide(stream, give(0, 1, 2)).expect("version 2");
    assert_eq!(taken(&follower, 0, 1).1, [-0.9; 2]);
}
