//! Gradients that are clipped by the norm of all of theta: the real driver and real followers.

use ps_common::job::Combine;
use ps_common::partition::Squares;

use super::*;
use crate::follower::{Follower, Next, Spec};
use crate::table::{Store, Update};

const CLIP: Optimizer = Optimizer { clip_norm: Some(0.7), ..Optimizer::sgd(0.5) };
const SYNC: Consistency = Consistency::Sync { backup_workers: 0 };

fn follower(partition: Partition) -> Arc<Follower> {
    let spec = Spec {
        partition,
        settings: BTreeMap::new(),
        optimizer: CLIP,
        chunk_bytes: 64,
        start: None,
    };
    Arc::new(Follower::new(spec))
}

/// Carries decisions out and says what follows.
fn replies(follower: Arc<Follower>) -> Replies {
    let partition = follower.spec().partition;
    let (protocol_version, settings) = (PROTOCOL_VERSION, BTreeMap::new());
    let open = Decision::Open { protocol_version, partition, settings };
    let stream = follower.open(open).expect("as it is set");
    let begin = Decision::Begin { epoch: 3, checkpoint: None };
    follower.decide(stream, begin).expect("first");
    follower.begin(stream, None).expect("from nothing");
    Box::new(move |decision| match follower.decide(stream, decision.clone()).expect("it fits") {
        Next::Say(word) => vec![word],
        Next::TellSquares(squares) => squares.into_iter().map(Word::Squares).collect(),
        Next::Tell(theta) => {
            let n = theta.n_chunks();
            theta.chunks().enumerate().map(|(i, chunk)| Word::Part(chunk, i + 1 == n)).collect()
        }
        _ => Vec::new(),
    })
}

/// Has a follower hold what rank `caller` pushes at `clock`.
fn stage_at(follower: &Follower, caller: Caller, clock: u64) {
    // Until this thread has come, the follower may not have heard of theta.
    let (shape, _) = loop {
        match follower.admit(caller) {
            Ok(admitted) => break admitted,
            Err(error) => assert_eq!(error.code, ErrorCode::NotInitialized, "{error}"),
        }
        std::thread::yield_now();
    };
    let header = PushHeader {
        caller,
        clock,
        version_pulled: clock,
        n_samples: 1,
        loss: None,
        penalty: None,
        wait_max: None,
        exchange: 0,
    };
    let gradient = Gradient::F64(vec![0.25; shape.dim].into());
    follower.stage(&header, gradient, 7).expect("staged");
}

#[test]
fn any_number_of_servers_has_the_theta_of_one() {
    let tables = Tables::new(vec![Table::zeros("w", &[DIM], true)]).expect("sane");
    let mut lone = Store::new(&tables, Dtype::F64, CLIP, 64);
    for _ in 0..3 {
        let part = || (Gradient::F64(vec![0.25; DIM as usize].into()), 1.0);
        let (parts, combine) = ([part(), part()], Combine::Sum);
        let (rate_factor, compensation) = (1.0, None);
        lone.update(&Update { parts: &parts, combine, rate_factor, compensation }).expect("finite");
    }
    let want = lone.snapshot();
    let length = want.values::<f64>().iter().map(|x| x * x).sum::<f64>().sqrt();
    assert!((length - 3.0 * 0.5 * 0.7).abs() < 1e-12, "three steps, each clipped: {length}");
    for n_servers in 1..=DIM as u32 {
        let count = n_servers;
        let others: Vec<_> = (1..count).map(|index| follower(Partition { index, count })).collect();
        let replies = |index: u32| replies(Arc::clone(&others[index as usize - 1]));
        let stage = stage_by(CLIP, SYNC, (2, n_servers), &replies);
        let callers = [0, 1].map(|rank| stage.join(rank));
        for clock in 0..3 {
            for (follower, caller) in others.iter().flat_map(|f| callers.map(|c| (f, c))) {
                stage_at(follower, caller, clock);
            }
            let first = stage.begin_push(callers[0], clock, clock);
            let second = stage.push(callers[1], clock, clock);
            for delivery in [answer(&first), second] {
                assert!(matches!(delivery, Delivery::Pushed(..)), "{delivery:?}");
            }
        }
        let (_, theta) = stage.driver.results(Time::ZERO).expect("none is lost").expect("made");
        assert_eq!(theta.version, 3);
        assert_eq!(theta.sha256(), want.sha256(), "{n_servers} servers");
        let (logs, losses) = stage.end();
        assert_eq!(losses, []);
        for log in logs {
            let n_clips = log.iter().filter(|told| matches!(told, Decision::Clip(_))).count();
            assert_eq!((n_clips, play(&log).1), (3, 3));
        }
    }
}

/// A follower that answers an update with `words`.
fn saying(words: &[Word]) -> impl Fn(u32) -> Replies {
    let words = words.to_vec();
    move |_| {
        let words = words.clone();
        Box::new(move |decision| match decision {
            Decision::Prepare(_) => words.clone(),
            _ => Vec::new(),
        })
    }
}

#[test]
fn a_gradient_that_overflows_elsewhere_is_clipped_and_counted_nowhere() {
    let plain = Consistency::Async { delay_scaling: DelayScaling::None, max_gradient_delay: None };
    let stage = stage_by(CLIP, plain, (1, 3), &saying(&[Word::Prepared(Some(6))]));
    let caller = stage.join(0);
    let Delivery::Refused(error) = stage.push(caller, 0, 0) else { panic!("it overflows") };
    assert_eq!((error.code, &error.facts["key"][..]), (ErrorCode::UpdateOverflow, "6"));
    let (logs, losses) = stage.end();
    assert_eq!(losses, []);
    for log in logs {
        assert!(!log.iter().any(|told| matches!(told, Decision::Clip(_))), "{log:?}");
        assert!(log.contains(&Decision::Abort));
        assert_eq!(play(&log).1, 0);
    }
}

#[test]
fn a_follower_whose_squares_are_not_of_its_part_is_lost_by_name() {
    let few = Word::Squares(Squares { elements: vec![0.25; 2], sums: Vec::new() });
    for (words, says) in [
        (vec![few.clone()], "2 elements and 0 sums of squares, not 3 and 0"),
        (vec![Word::Prepared(None)], "that an update is computed"),
        (vec![Word::Ready], "that it is ready"),
    ] {
        let stage = stage_by(CLIP, SYNC, (1, 3), &saying(&words));
        let caller = stage.join(0);
        let Delivery::Refused(error) = stage.push(caller, 0, 0) else { panic!("{words:?}") };
        assert_eq!(error.code.retry(), ps_common::error::Retry::Same, "{error}");
        assert!(error.message.contains("1/3") && error.message.contains(says), "{error}");
        let (_, losses) = stage.end();
        assert_eq!(losses.len(), 1, "{losses:?}");
    }
}
