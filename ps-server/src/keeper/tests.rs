//! Driver, keeper and a disk that fails: what was acknowledged survives, what was not written was
//! not applied.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ps_common::calls::{Caller, JoinRequest, Outcome, PushHeader};
use ps_common::dtype::as_le_bytes;
use ps_common::job::{Aggregate, Durability, OnWorkerLoss, PROTOCOL_VERSION, Role};
use ps_common::partition::Partition;
use ps_common::tables::{Table, Tables};
use ps_common::{Dtype, ErrorCode};

use super::{Keeper, Resumption, Settings};
use crate::core::{
    CallId, Checkpoints, Config, ConnId, Consistency, DelayScaling, Every, Input, StopRules, Time,
};
use crate::driver::{Delivery, Driver};
use crate::numeric::{Optimizer, Wish};
use crate::storage::{Disk, Error, Fault, FaultyDisk, Loss};

const DIM: usize = 7;
const PUSHES: u64 = 12;

fn directory() -> PathBuf {
    PathBuf::from("/checkpoints")
}

fn disk() -> Arc<FaultyDisk> {
    Arc::new(FaultyDisk::new(&directory()))
}

fn optimizer(name: &str) -> Optimizer {
    Optimizer::new(&Wish {
        optimizer: name,
        lr: Some(0.5),
        schedule: "constant",
        weight_decay: None,
        clip_norm: None,
    })
    .expect("known")
}

/// One life of a server, its clock going on from push to push.
struct Life {
    driver: Driver,
    answers: Arc<Mutex<Vec<(CallId, Delivery)>>>,
    resumption: Option<Resumption>,
    caller: Option<Caller>,
    /// The newest push: its clock, the version that it was computed at, its gradient.
    newest: Option<(u64, u64, Vec<f64>)>,
    n_calls: u64,
}

impl Life {
    fn begin(disk: &Arc<FaultyDisk>, rule: &str, n_workers: u32) -> Result<Self, Error> {
        let durability = Durability::Always;
        let settings = Settings {
            durability,
            partition: Partition::WHOLE,
            keep: 2,
            journal_bytes_max: 900,
            threads: false,
        };
        let keeper = Keeper::open(Arc::clone(disk) as Arc<dyn Disk>, &directory(), settings)?;
        let config = Config {
            consistency: Consistency::Async {
                delay_scaling: DelayScaling::None,
                max_gradient_delay: None,
            },
            n_workers,
            partition: ps_common::partition::Partition::WHOLE,
            aggregate: Aggregate::WeightedMean,
            rounds: None,
            lease: Duration::from_secs(1000),
            on_worker_loss: OnWorkerLoss::Wait,
            replacement_timeout: Duration::from_secs(1000),
            observers: 0,
            wait_max: Config::WAIT_MAX,
            stop: StopRules::default(),
            checkpoints: Some(Checkpoints { durability, every: Some(Every::Rounds(5)) }),
            boot: keeper.boot(),
        };
        let dtype = Dtype::F64;
        let driver = Driver::new(config.clone(), dtype, optimizer(rule), 24, "test");
        let (driver, resumption) = driver.kept_by(keeper, &config, dtype)?;
        let answers: Arc<Mutex<Vec<_>>> = Arc::default();
        let late = Arc::clone(&answers);
        driver.keep(Arc::new(move |answer| late.lock().push(answer)), Arc::new(|_| {}));
        driver.resume(&|| Time::ZERO, &mut |_, _| {});
        Ok(Self { driver, answers, resumption, caller: None, newest: None, n_calls: 0 })
    }

    fn feed(&mut self, gradient: Option<&[f64]>, input: impl FnOnce(CallId) -> Input) -> Delivery {
        self.n_calls += 1;
        let call = CallId(self.n_calls);
        // A life is slow enough for whatever is to be tried again.
        let now = Duration::from_secs(2 * self.n_calls);
        let answers = Arc::clone(&self.answers);
        let mut deliver = |to, delivery| answers.lock().push((to, delivery));
        let clock = || now;
        self.driver.feed(&clock, Input::Tick, &mut deliver);
        match gradient {
            None => self.driver.feed(&clock, input(call), &mut deliver),
            Some(values) => {
                let mut gradient = self.driver.empty_gradient(Dtype::F64);
                gradient.append(as_le_bytes(values), DIM).expect("finite");
                self.driver.feed_push(&clock, call, gradient, input(call), &mut deliver)
            }
        };
        // A push may wait for the first checkpoint, which is tried again.
        for second in 1..10 {
            let mut answers = self.answers.lock();
            if let Some(place) = answers.iter().position(|(to, _)| *to == call) {
                return answers.swap_remove(place).1;
            }
            drop(answers);
            let later = now + Duration::from_millis(190 * second);
            let answers = Arc::clone(&self.answers);
            self.driver.feed(&|| later, Input::Tick, &mut |to, delivery| {
                answers.lock().push((to, delivery));
            });
        }
        let what = "the server does not come to it";
        Delivery::Refused(ps_common::Error::new(ErrorCode::NotDurable, what))
    }

    /// Joins and gives the clock that is owed.
    fn join(&mut self) -> u64 {
        let tables = Tables::new(vec![Table::zeros("w", &[DIM as u64], true)]).expect("sane");
        let request = JoinRequest {
            protocol_version: PROTOCOL_VERSION,
            role: Role::Worker,
            rank: Some(0),
            fingerprint: Default::default(),
            tables: Some(tables),
            dtype: Some(Dtype::F64),
            program: "test".to_owned(),
            acknowledged_clock: None,
            overlap: false,
        };
        let conn = ConnId(0);
        let answer =
            self.feed(None, |call| Input::Join { call, conn, address: String::new(), request });
        let Delivery::Joined(answer) = answer else { panic!("{answer:?}") };
        self.caller = Some(answer.caller);
        answer.clock
    }

    /// Pushes what clock `clock` computes at theta, or the same again; whether that was acknowledged.
    fn push(&mut self, clock: u64) -> Result<Outcome, ErrorCode> {
        if self.newest.as_ref().is_none_or(|(newest, ..)| *newest != clock) {
            let theta = self.driver.snapshot().expect("joined");
            self.newest = Some((clock, theta.version, gradient(&theta.values(), clock)));
        }
        let (_, version_pulled, values) = self.newest.clone().expect("made above");
        let header = PushHeader {
            caller: self.caller.expect("joined"),
            clock,
            version_pulled,
            n_samples: 1,
            loss: None,
            penalty: None,
            wait_max: None,
            exchange: 0,
        };
        let digest = crc32fast::hash(as_le_bytes(&values));
        let answer = self.feed(Some(&values), |call| Input::Push {
            call,
            conn: ConnId(0),
            header,
            digest,
            theta: false,
        });
        match answer {
            Delivery::Pushed(result, _) => Ok(result.outcome),
            Delivery::Refused(error) => Err(error.code),
            other => panic!("{other:?}"),
        }
    }

    fn theta(&self) -> (u64, String) {
        let theta = self.driver.snapshot().expect("joined");
        (theta.version, theta.sha256())
    }
}

fn gradient(theta: &[f64], clock: u64) -> Vec<f64> {
    let element = |(i, x): (usize, &f64)| x * 0.3 + ((i as f64 + 1.7) * (clock as f64 + 0.1)).sin();
    theta.iter().enumerate().map(element).collect()
}

/// theta after each number of pushes, by a server whose disk never fails.
fn undisturbed(rule: &str) -> Vec<(u64, String)> {
    let mut life = Life::begin(&disk(), rule, 1).expect("an empty directory");
    life.join();
    let mut thetas = vec![life.theta()];
    for clock in 0..PUSHES {
        assert_eq!(life.push(clock), Ok(Outcome::Applied));
        thetas.push(life.theta());
    }
    thetas
}

/// Pushes from the clock that is owed on until all have counted or one has not; gives how many were
/// acknowledged.
fn push_on(life: &mut Life, from: u64) -> u64 {
    (from..PUSHES).find(|clock| life.push(*clock).is_err()).unwrap_or(PUSHES)
}

/// The power fails before every operation of the disk in turn, and what was not synced is lost, or
/// not, or partly: every acknowledged push is there again, and theta is what it was at that version.
#[test]
fn a_crash_anywhere_loses_nothing_that_was_acknowledged() {
    let want = undisturbed("momentum");
    let mut n_crashes = 0;
    for n_operations in 0.. {
        let mut is_over = true;
        for loss in [Loss::Everything, Loss::Nothing, Loss::Some(n_operations)] {
            let disk = disk();
            disk.order(n_operations, Fault::Crash);
            let mut acknowledged = 0;
            if let Ok(mut life) = Life::begin(&disk, "momentum", 1) {
                life.join();
                acknowledged = push_on(&mut life, 0);
                is_over &= acknowledged == PUSHES && disk.n_operations() < n_operations;
            } else {
                is_over = false;
            }
            disk.restart(loss);
            n_crashes += 1;
            let mut life = Life::begin(&disk, "momentum", 1)
                .unwrap_or_else(|e| panic!("operation {n_operations}, {loss:?}: {e}"));
            let clock = life.join();
            let told = format!("operation {n_operations}, {loss:?}: {acknowledged} acknowledged");
            assert!(clock >= acknowledged, "{told}, clock {clock}");
            assert_eq!(life.theta(), want[clock as usize], "{told}");
            assert_eq!(push_on(&mut life, clock), PUSHES, "{told}");
            assert_eq!(&life.theta(), want.last().expect("some"), "{told}");
        }
        if is_over {
            break;
        }
    }
    assert!(n_crashes > 100, "{n_crashes} crashes");
}

/// A disk that fails once, with EIO or for want of space, at every operation in turn: no push is
/// acknowledged that a crash right after it would undo, and the job comes to its end.
#[test]
fn a_disk_that_fails_once_costs_a_refusal_and_no_update() {
    let want = undisturbed("adam");
    for fault in [Fault::Io, Fault::NoSpace] {
        for n_operations in 4..60 {
            let told = format!("{fault:?} at operation {n_operations}");
            let disk = disk();
            disk.order(n_operations, fault);
            // Nothing has begun: the directory could not be opened.
            let Ok(mut life) = Life::begin(&disk, "adam", 1) else { continue };
            life.join();
            for clock in 0..PUSHES {
                let mut n_refused = 0;
                while let Err(code) = life.push(clock) {
                    assert_eq!(code, ErrorCode::NotDurable, "{told}");
                    n_refused += 1;
                    assert!(n_refused < 5, "{told}: clock {clock} never counts");
                }
                assert_eq!(life.theta().0, clock + 1, "{told}");
            }
            assert_eq!(&life.theta(), want.last().expect("some"), "{told}");
            drop(life);
            disk.restart(Loss::Everything);
            let mut life = Life::begin(&disk, "adam", 1).unwrap_or_else(|e| panic!("{told}: {e}"));
            assert_eq!(life.join(), PUSHES, "{told}");
            assert_eq!(&life.theta(), want.last().expect("some"), "{told}");
        }
    }
}

#[test]
fn a_full_disk_refuses_pushes_and_takes_them_again_once_there_is_space() {
    let disk = disk();
    let mut life = Life::begin(&disk, "sgd", 1).expect("an empty directory");
    life.join();
    assert_eq!(life.push(0), Ok(Outcome::Applied));
    let before = life.theta();
    disk.limit_free_bytes(Some(0));
    for _ in 0..3 {
        assert_eq!(life.push(1), Err(ErrorCode::NotDurable));
        assert_eq!(life.theta(), before, "what could not be written was not applied");
    }
    disk.limit_free_bytes(None);
    assert_eq!(life.push(1), Ok(Outcome::Applied));
    assert_eq!(life.theta().0, 2);
}

/// The newest checkpoint rots: the one before it and the journal make up for it.
#[test]
fn a_damaged_checkpoint_is_put_aside_and_the_journal_covers_it() {
    let disk = disk();
    let mut life = Life::begin(&disk, "adam", 1).expect("an empty directory");
    life.join();
    assert_eq!(push_on(&mut life, 0), PUSHES);
    let want = life.theta();
    drop(life);
    let path = |version| directory().join(format!("checkpoint-{version:020}.psck"));
    let there: Vec<u64> = (0..=PUSHES).rev().filter(|v| disk.bytes(&path(*v)).is_some()).collect();
    let (newest, older) = (path(there[0]), there[1]);
    let n_bytes = disk.bytes(&newest).expect("it is there").len();
    disk.flip(&newest, n_bytes / 2, 3);
    let mut life = Life::begin(&disk, "adam", 1).expect("an older one is good");
    assert_eq!((life.join(), life.theta()), (PUSHES, want));
    let resumption = life.resumption.expect("there was a job");
    assert_eq!((resumption.version, resumption.recovered.n_records), (older, PUSHES - older));
    let [refused] = &resumption.refused[..] else { panic!("{:?}", resumption.refused) };
    assert!(refused.path == newest && refused.reason.contains("bad at byte"), "{refused:?}");
}

#[test]
fn what_does_not_fit_the_job_is_refused_with_both_values() {
    let disk = disk();
    let mut life = Life::begin(&disk, "momentum", 1).expect("an empty directory");
    life.join();
    assert_eq!(push_on(&mut life, 0), PUSHES);
    let want = life.theta();
    drop(life);
    let refused = Life::begin(&disk, "adam", 1).map(drop).expect_err("another rule");
    let text = refused.to_string();
    assert!(matches!(refused, Error::Mismatch { .. }), "{text}");
    assert!(text.contains("momentum, mu=0.9") && text.contains("adam, beta1=0.9"), "{text}");
    // Another number of workers means other shards, and the same theta.
    let mut life = Life::begin(&disk, "momentum", 3).expect("theta is the same");
    assert_eq!((life.join(), life.theta()), (PUSHES / 3, want));
}

#[test]
fn the_directory_is_named_where_it_cannot_be_had() {
    let settings = Settings {
        durability: Durability::None,
        partition: Partition::WHOLE,
        keep: 2,
        journal_bytes_max: 0,
        threads: false,
    };
    let elsewhere = Path::new("/elsewhere");
    let error = Keeper::open(disk() as Arc<dyn Disk>, elsewhere, settings).map(drop);
    assert!(error.expect_err("missing").to_string().contains("/elsewhere"));
    let disk = disk();
    let _one = Life::begin(&disk, "sgd", 1).expect("an empty directory");
    let second = Life::begin(&disk, "sgd", 1).map(drop).expect_err("locked");
    assert!(matches!(second, Error::Locked { .. }), "{second}");
}
