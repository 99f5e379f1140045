//! The core's promises seen in theta itself: same bits, every gradient once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use ps_common::calls::{Caller, JoinRequest, Outcome, PushHeader};
use ps_common::dtype::as_le_bytes;
use ps_common::job::{Aggregate, OnWorkerLoss, PROTOCOL_VERSION, Role};
use ps_common::tables::{Table, Tables};

use super::*;
use crate::core::{ConnId, Consistency, DelayScaling, StopRules};
use crate::numeric::Rule;

const DIM: usize = 37;

/// So many that another thread is woken for an update by them.
const LARGE: usize = crate::applier::LONG;

fn driver(consistency: Consistency, n_workers: u32, rounds: u64, dtype: Dtype, lr: f64) -> Driver {
    driver_of(Rule::Sgd, consistency, (n_workers, rounds), dtype, lr)
}

fn driver_of(
    rule: Rule,
    consistency: Consistency,
    (n_workers, rounds): (u32, u64),
    dtype: Dtype,
    lr: f64,
) -> Driver {
    let config = Config {
        consistency,
        n_workers,
        partition: ps_common::partition::Partition::WHOLE,
        aggregate: Aggregate::WeightedMean,
        rounds: Some(rounds),
        lease: Duration::from_secs(10),
        on_worker_loss: OnWorkerLoss::Wait,
        replacement_timeout: Duration::from_secs(600),
        observers: 0,
        wait_max: Config::WAIT_MAX,
        stop: StopRules::default(),
        checkpoints: None,
        boot: 0,
    };
    Driver::new(config, dtype, Optimizer { rule, ..Optimizer::sgd(lr) }, 64, "test")
}

fn join(driver: &Driver, rank: u32, dtype: Dtype) -> Caller {
    join_of(driver, rank, dtype, DIM)
}

fn join_of(driver: &Driver, rank: u32, dtype: Dtype, dim: usize) -> Caller {
    let tables = Tables::new(vec![Table::zeros("w", &[dim as u64], true)]).expect("sane");
    let request = JoinRequest {
        protocol_version: PROTOCOL_VERSION,
        role: Role::Worker,
        rank: Some(rank),
        fingerprint: BTreeMap::new(),
        tables: Some(tables),
        dtype: Some(dtype),
        program: "test".to_owned(),
        acknowledged_clock: None,
        overlap: false,
    };
    let call = CallId(1_000_000 + u64::from(rank));
    let conn = ConnId(rank.into());
    let input = Input::Join { call, conn, address: String::new(), request };
    let mut caller = None;
    driver.feed(&|| Time::ZERO, input, &mut |_, delivery| match delivery {
        Delivery::Joined(answer) => caller = Some(answer.caller),
        other => panic!("{other:?}"),
    });
    caller.expect("answered at once")
}

/// Pushes `values` as clock `clock`, computed at the newest theta.
fn push(
    driver: &Driver,
    call: u64,
    (caller, clock): (Caller, u64),
    (values, bytes): (usize, &[u8]),
    deliver: &mut dyn FnMut(CallId, Delivery),
) {
    let (dim, dtype) = driver.admit(caller).expect("somebody has joined");
    assert_eq!(dim, values);
    let mut gradient = driver.empty_gradient(dtype);
    gradient.append(bytes, dim).expect("finite");
    let header = PushHeader {
        caller,
        clock,
        version_pulled: driver.snapshot().map_or(0, |s| s.version).min(clock),
        n_samples: 10 + u64::from(caller.rank),
        loss: None,
        penalty: None,
        wait_max: None,
        exchange: 0,
    };
    let call = CallId(call);
    let conn = ConnId(caller.rank.into());
    let digest = crc32fast::hash(bytes);
    driver.feed_push(
        &|| Time::ZERO,
        call,
        gradient,
        Input::Push { call, conn, header, digest, theta: true },
        deliver,
    );
}

/// A small reproducible generator (Knuth's MMIX constants); the high bits are good enough here.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

/// As a worker's: of theta, the rank and the clock, and rounding in every element.
fn gradient_at(theta: &[f32], rank: u32, clock: u64) -> Vec<f32> {
    let (rank, clock) = (rank as f32, clock as f32);
    let element =
        |(i, &x): (usize, &f32)| x * 0.3 + ((i as f32 + 1.7) * (rank + 0.1)).sin() / (clock + 3.0);
    theta.iter().enumerate().map(element).collect()
}

fn train_in_some_order(seed: u64) -> String {
    const K: u32 = 4;
    const ROUNDS: u64 = 5;
    let driver = driver(Consistency::Sync { backup_workers: 0 }, K, ROUNDS, Dtype::F32, 0.3);
    let callers: Vec<Caller> = (0..K).map(|rank| join(&driver, rank, Dtype::F32)).collect();
    let mut dice = Dice(seed);
    let mut n_calls = 0;
    for clock in 0..ROUNDS {
        let theta = driver.snapshot().expect("joined").values::<f32>();
        let mut order: Vec<usize> = (0..K as usize).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, dice.below(i + 1));
        }
        let mut applied = 0;
        let mut left = order.clone();
        while let Some(rank) = left.pop() {
            let values = gradient_at(&theta, rank as u32, clock);
            let mut deliver = |_, delivery| match delivery {
                Delivery::Pushed(result, _) => {
                    applied += u32::from(result.outcome == Outcome::Applied)
                }
                other => panic!("{other:?}"),
            };
            n_calls += 1;
            let name = (callers[rank], clock);
            push(&driver, n_calls, name, (DIM, as_le_bytes(&values)), &mut deliver);
            // Now and then somebody whose answer was lost sends again, also after the round.
            if dice.below(3) == 0 {
                left.push(order[dice.below(K as usize)]);
                let again = *left.last().expect("just pushed");
                if left.iter().filter(|&&r| r == again).count() > 2 {
                    left.pop();
                }
            }
        }
        assert_eq!(applied, K, "every rank's push of clock {clock} is acknowledged");
    }
    assert_eq!(driver.state().0, JobState::Finishing);
    driver.snapshot().expect("joined").sha256()
}

#[test]
fn any_order_and_any_resends_give_the_same_bits() {
    let first = train_in_some_order(0);
    for seed in 1..=200 {
        assert_eq!(train_in_some_order(seed), first, "seed {seed}");
    }
}

/// Several threads push gradients of ones at rate 1: each counts once, and theta is behind exactly
/// if updates were lost, which the report tells.
#[test]
fn updates_without_locks_count_once_and_own_up_to_what_they_lose() {
    const K: u32 = 4;
    const CLOCKS: u64 = 300;
    let driver = driver(Consistency::Hogwild, K, CLOCKS, Dtype::F64, 1.0);
    let callers: Vec<Caller> = (0..K).map(|rank| join(&driver, rank, Dtype::F64)).collect();
    std::thread::scope(|scope| {
        for caller in &callers {
            let driver = &driver;
            scope.spawn(move || {
                let ones = [1.0f64; DIM];
                for clock in 0..CLOCKS {
                    let call = (clock * 2) * u64::from(K) + u64::from(caller.rank);
                    for (call, outcome) in
                        [(call, Outcome::Applied), (call + u64::from(K), Outcome::Duplicate)]
                    {
                        let mut answers = Vec::new();
                        let mut deliver = |to, delivery| answers.push((to, delivery));
                        let name = (*caller, clock);
                        push(driver, call, name, (DIM, as_le_bytes(&ones)), &mut deliver);
                        let [(to, Delivery::Pushed(result, theta))] = &answers[..] else {
                            panic!("answered on the thread that brought it: {answers:?}")
                        };
                        assert_eq!((*to, result.outcome), (CallId(call), outcome));
                        assert_eq!(result.version, theta.version);
                    }
                }
            });
        }
    });
    let theta = driver.snapshot().expect("joined");
    let n = u64::from(K) * CLOCKS;
    assert_eq!((theta.version, driver.state().0), (n, JobState::Finishing));
    let report = driver.report(Time::ZERO).expect("joined");
    assert_eq!(report.gradient_delay.histogram.iter().sum::<u64>(), n);
    let lost = report.hogwild.expect("hogwild mode tells");
    assert_eq!(lost.checked, n * DIM as u64);
    let all = theta.values::<f64>().iter().all(|x| *x == -(n as f64));
    assert_eq!(lost.lost == 0, all, "{lost:?} {:?}", theta.values::<f64>());
    assert!(theta.values::<f64>().iter().all(|x| (-(n as f64)..=-1.0).contains(x)));
}

/// What a thread is told.
enum Errand {
    Answer(CallId, Delivery),
    /// To carry it out.
    Update(Order),
}

#[test]
fn concurrent_gradients_count_exactly_once() {
    count_once(DIM, 300);
}

/// Threads that wait for their answers are given their updates by those that have some under way.
#[test]
fn concurrent_gradients_count_exactly_once_where_threads_carry_out_their_own() {
    // On one core threads may happen to take turns.
    let is_shared = (0..20).any(|_| count_once(LARGE, 40) > 0);
    assert!(is_shared, "no thread was ever given an update");
}

/// Some threads push gradients of `dim` integers, `clocks` each, now and then more than once: gives how
/// many updates were handed over.
fn count_once(dim: usize, clocks: u64) -> u64 {
    const K: u32 = 3;
    const LR: f64 = 0.5;
    let consistency =
        Consistency::Async { delay_scaling: DelayScaling::None, max_gradient_delay: None };
    // Without a memory of earlier steps it is plain descent, but computed before it is in force.
    let rule = Rule::Momentum { mu: 0.0 };
    let driver = driver_of(rule, consistency, (K, clocks), Dtype::F64, LR);
    let callers: Vec<Caller> = (0..K).map(|rank| join_of(&driver, rank, Dtype::F64, dim)).collect();
    let (told, inboxes): (Vec<Sender<_>>, Vec<_>) = (0..K).map(|_| channel()).unzip();
    let n_handed = Arc::new(AtomicU64::new(0));
    let (others, count) = (told.clone(), Arc::clone(&n_handed));
    driver.share(Box::new(move |call, order| {
        let to = &others[(call.0 % u64::from(K)) as usize];
        to.send(Errand::Update(order)).map_err(|refused| match refused.0 {
            Errand::Update(order) => order,
            Errand::Answer(..) => unreachable!("an update was sent"),
        })?;
        count.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }));
    std::thread::scope(|scope| {
        for (caller, inbox) in callers.iter().zip(inboxes) {
            let (driver, told) = (&driver, told.clone());
            scope.spawn(move || {
                let mut deliver = |call: CallId, delivery| {
                    // Whoever is dead does not listen.
                    let to = &told[(call.0 % u64::from(K)) as usize];
                    let _ = to.send(Errand::Answer(call, delivery));
                };
                let mut dice = Dice(caller.rank.into());
                let mut n_calls = 0;
                for clock in 0..clocks {
                    let values = integers(dim, caller.rank, clock);
                    let mut last = 0;
                    for _ in 0..=dice.below(3) {
                        n_calls += 1;
                        last = n_calls * u64::from(K) + u64::from(caller.rank);
                        let bytes = as_le_bytes(&values);
                        push(driver, last, (*caller, clock), (dim, bytes), &mut deliver);
                    }
                    loop {
                        let (call, delivery) = match inbox.recv().expect("every push is answered") {
                            Errand::Answer(call, delivery) => (call, delivery),
                            Errand::Update(order) => {
                                driver.carry_out(&|| Time::ZERO, order, &mut deliver);
                                continue;
                            }
                        };
                        let Delivery::Pushed(result, _) = delivery else { panic!("{delivery:?}") };
                        if call == CallId(last) {
                            let good = [Outcome::Applied, Outcome::Duplicate];
                            assert!(good.contains(&result.outcome), "{result:?}");
                            break;
                        }
                    }
                }
            });
        }
    });
    let theta = driver.snapshot().expect("joined");
    assert_eq!(theta.version, u64::from(K) * clocks);
    // Halves of integers: exact in f64 in whatever order they were added.
    let mut sum = vec![0.0; dim];
    for (rank, clock) in (0..K).flat_map(|rank| (0..clocks).map(move |clock| (rank, clock))) {
        sum.iter_mut().zip(integers(dim, rank, clock)).for_each(|(s, g)| *s -= LR * g);
    }
    assert!(theta.values::<f64>() == sum, "theta is not what all gradients amount to");
    n_handed.load(Ordering::Relaxed)
}

/// A worker's gradient.
fn integers(dim: usize, rank: u32, clock: u64) -> Vec<f64> {
    (0..dim as u64).map(|i| ((u64::from(rank) * 7 + clock * 3 + i) % 101) as f64).collect()
}
