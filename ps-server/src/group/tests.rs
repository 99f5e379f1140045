//! The order of decisions, as followers see it that keep it: the real driver, a thread for each follower.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, mpsc};

use ps_common::Dtype;
use ps_common::calls::{JoinRequest, PullRequest, PushHeader};
use ps_common::job::{Aggregate, OnWorkerLoss, PROTOCOL_VERSION, Role};
use ps_common::tables::Table;

use super::*;
use crate::core::{Config, ConnId, Consistency, DelayScaling, StopRules, Time};
use crate::driver::{Delivery, Driver};
use crate::numeric::Optimizer;
use crate::table::Gradient;

mod clipping;

const DIM: u64 = 9;

/// The way to a follower that notes what it is told.
struct Told {
    told: mpsc::Sender<Decision>,
}

impl Peer for Told {
    fn tell(&self, decision: Decision) {
        // One that is gone is told nothing.
        let _ = self.told.send(decision);
    }
}

/// Partition 0 of a job with followers on threads of their own.
struct Stage {
    driver: Driver,
    group: Arc<Group>,
    followers: Vec<std::thread::JoinHandle<Vec<Decision>>>,
    losses: Arc<Mutex<Vec<Lost>>>,
    calls: AtomicU64,
    waiting: Mutex<HashMap<CallId, mpsc::Sender<Delivery>>>,
}

fn answer(answer: &mpsc::Receiver<Delivery>) -> Delivery {
    answer.recv_timeout(Duration::from_secs(60)).expect("answered")
}

/// What follower `index` answers to its nth update; `None`: nothing, ever.
type Answers = fn(index: u32, nth: u64) -> Option<Option<u64>>;

fn well(_: u32, _: u64) -> Option<Option<u64>> {
    Some(None)
}

/// What a follower says to a decision.
type Replies = Box<dyn FnMut(&Decision) -> Vec<Word> + Send>;

fn stage(consistency: Consistency, n_workers: u32, n_servers: u32, answers: Answers) -> Stage {
    let replies = |index| -> Replies {
        let mut n_prepared = 0;
        Box::new(move |decision| {
            let Decision::Prepare(_) = decision else { return Vec::new() };
            n_prepared += 1;
            answers(index, n_prepared - 1).map(Word::Prepared).into_iter().collect()
        })
    };
    stage_by(Optimizer::sgd(0.5), consistency, (n_workers, n_servers), &replies)
}

fn stage_by(
    optimizer: Optimizer,
    consistency: Consistency,
    (n_workers, n_servers): (u32, u32),
    replies: &dyn Fn(u32) -> Replies,
) -> Stage {
    let config = Config {
        consistency,
        n_workers,
        partition: Partition { index: 0, count: n_servers },
        aggregate: Aggregate::Sum,
        rounds: Some(1000),
        lease: Duration::from_secs(10),
        on_worker_loss: OnWorkerLoss::Wait,
        replacement_timeout: Duration::from_secs(600),
        observers: 0,
        wait_max: Config::WAIT_MAX,
        stop: StopRules::default(),
        checkpoints: None,
        boot: 3,
    };
    let losses = Arc::new(Mutex::new(Vec::new()));
    let (place, mut members, mut followers) = (Arc::new(OnceLock::new()), Vec::new(), Vec::new());
    for index in 1..n_servers {
        let (told, decisions) = mpsc::channel();
        members.push(Member { url: format!("follower-{index}"), peer: Box::new(Told { told }) });
        let (place, replies) = (Arc::clone(&place), replies(index));
        followers.push(std::thread::spawn(move || follow(index, &decisions, &place, replies)));
    }
    let alarm = {
        let losses = Arc::clone(&losses);
        move |lost: &Lost| losses.lock().push(lost.clone())
    };
    let group = Arc::new(Group::new(members, Duration::from_secs(60), Box::new(alarm)));
    assert!(place.set(Arc::downgrade(&group)).is_ok());
    let driver =
        Driver::new(config, Dtype::F64, optimizer, 64, "test").followed_by(Arc::clone(&group));
    let (calls, waiting) = (AtomicU64::new(1), Mutex::default());
    Stage { driver, group, followers, losses, calls, waiting }
}

/// A follower's life: until nobody can tell it anything.
fn follow(
    index: u32,
    decisions: &mpsc::Receiver<Decision>,
    group: &OnceLock<std::sync::Weak<Group>>,
    mut replies: Replies,
) -> Vec<Decision> {
    let mut log = Vec::new();
    for decision in decisions {
        for word in replies(&decision) {
            if let Some(group) = group.get().and_then(std::sync::Weak::upgrade) {
                group.hear(index, word);
            }
        }
        log.push(decision);
    }
    log
}

impl Stage {
    /// The answer comes by whichever thread the core gives it to.
    fn feed(
        &self,
        gradient: Option<f64>,
        input: impl FnOnce(CallId) -> Input,
    ) -> mpsc::Receiver<Delivery> {
        let call = CallId(self.calls.fetch_add(1, Ordering::Relaxed));
        let (sender, answer) = mpsc::channel();
        self.waiting.lock().insert(call, sender);
        let mut deliver = |to, delivery| {
            let sender = self.waiting.lock().remove(&to).expect("answered once");
            sender.send(delivery).expect("somebody waits");
        };
        let clock = || Time::ZERO;
        let keys = self.driver.shape().map_or(0, |(dim, _)| dim);
        match gradient {
            None => self.driver.feed(&clock, input(call), &mut deliver),
            Some(value) => {
                let gradient = Gradient::F64(vec![value; keys].into());
                self.driver.feed_push(&clock, call, gradient, input(call), &mut deliver)
            }
        };
        answer
    }

    fn join(&self, rank: u32) -> Caller {
        let tables = Tables::new(vec![Table::zeros("w", &[DIM], true)]).expect("sane");
        let request = JoinRequest {
            protocol_version: PROTOCOL_VERSION,
            role: Role::Worker,
            rank: Some(rank),
            fingerprint: BTreeMap::new(),
            tables: Some(tables),
            dtype: Some(Dtype::F64),
            program: "test".to_owned(),
            acknowledged_clock: None,
            overlap: false,
        };
        let (conn, address) = (ConnId(rank.into()), String::new());
        match answer(&self.feed(None, |call| Input::Join { call, conn, address, request })) {
            Delivery::Joined(answer) => answer.caller,
            other => panic!("{other:?}"),
        }
    }

    fn push(&self, caller: Caller, clock: u64, version_pulled: u64) -> Delivery {
        answer(&self.begin_push(caller, clock, version_pulled))
    }

    fn begin_push(&self, caller: Caller, clock: u64, pulled: u64) -> mpsc::Receiver<Delivery> {
        let header = PushHeader {
            caller,
            clock,
            version_pulled: pulled,
            n_samples: 1,
            loss: None,
            penalty: None,
            wait_max: None,
            exchange: clock + 1,
        };
        let (conn, digest) = (ConnId(caller.rank.into()), clock as u32);
        let input = |call| Input::Push { call, conn, header, digest, theta: true };
        self.feed(Some(0.25), input)
    }

    fn pull(&self, caller: Caller, exchange: u64) -> Delivery {
        let request =
            PullRequest { caller, version_min: 0, r#final: false, wait_max: None, exchange };
        let conn = ConnId(caller.rank.into());
        answer(&self.feed(None, |call| Input::Pull { call, conn, request }))
    }

    /// Ends it; what each follower was told, and the losses.
    fn end(self) -> (Vec<Vec<Decision>>, Vec<Lost>) {
        drop((self.driver, self.group));
        let logs = self.followers.into_iter().map(|f| f.join().expect("no panic")).collect();
        let losses = self.losses.lock().clone();
        (logs, losses)
    }
}

/// What a worker was given: its exchange, and the version that partition 0 answered with.
type Given = BTreeSet<(u32, u64, u64)>;

/// Plays a log: each update is settled before the next, and a Give is of the version that stands there.
fn play(log: &[Decision]) -> (Given, u64) {
    let (mut given, mut version, mut prepared) = (Given::new(), 0, None);
    for decision in log {
        match decision {
            Decision::Prepare(joint) => {
                assert!(prepared.replace(joint.clone()).is_none(), "two updates at once");
            }
            Decision::Commit => {
                prepared.take().expect("prepared");
                version += 1;
            }
            Decision::Abort => drop(prepared.take().expect("prepared")),
            Decision::Give(give) => {
                assert_eq!(give.version, version, "{give:?}");
                given.insert((give.caller.rank, give.exchange, give.version));
            }
            _ => {}
        }
    }
    (given, version)
}

#[test]
fn theta_is_given_between_the_right_updates_however_many_threads_decide() {
    const CLOCKS: u64 = 60;
    let dc_asgd = Consistency::Async {
        delay_scaling: DelayScaling::DcAsgd { lambda: 0.1 },
        max_gradient_delay: None,
    };
    let stage = stage(dc_asgd, 4, 3, well);
    let callers: Vec<Caller> = (0..4).map(|rank| stage.join(rank)).collect();
    let answered = Mutex::new(Given::new());
    std::thread::scope(|scope| {
        for caller in callers {
            let (stage, answered) = (&stage, &answered);
            scope.spawn(move || {
                let mut version = 0;
                for clock in 0..CLOCKS {
                    let delivery = stage.push(caller, clock, version);
                    let Delivery::Pushed(result, theta) = delivery else { panic!("{delivery:?}") };
                    assert_eq!(result.version, theta.version);
                    version = result.version;
                    answered.lock().insert((caller.rank, clock + 1, version));
                    if clock % 7 == 0 {
                        let exchange = 1000 + clock;
                        let Delivery::Pulled(header, theta) = stage.pull(caller, exchange) else {
                            panic!("theta is there")
                        };
                        assert_eq!(header.version, theta.version);
                        answered.lock().insert((caller.rank, exchange, header.version));
                    }
                }
            });
        }
    });
    assert_eq!(stage.driver.snapshot().expect("made").version, 4 * CLOCKS);
    let (logs, losses) = stage.end();
    assert_eq!((logs.len(), losses), (2, vec![]));
    assert_eq!(logs[0], logs[1], "all are told the same in the same order");
    let (given, version) = play(&logs[0]);
    assert_eq!(version, 4 * CLOCKS);
    assert_eq!(given, answered.into_inner(), "what partition 0 answers is what the others give");
    let n_kept = logs[0].iter().filter(|told| matches!(told, Decision::Keep(_))).count();
    assert!(n_kept as u64 >= 4 * (CLOCKS - 1), "theta is kept where gradients are corrected");
    let Decision::Create { job: 0, dtype: Dtype::F64, tables } = &logs[0][0] else {
        panic!("{:?}", logs[0][0])
    };
    assert_eq!(tables.dim() as u64, DIM);
}

#[test]
fn an_overflow_anywhere_is_an_update_nowhere() {
    // The second update overflows at two servers, the smaller key at the last.
    let overflow: Answers = |index, nth| Some((nth == 1).then_some(10 - u64::from(index)));
    let plain = Consistency::Async { delay_scaling: DelayScaling::None, max_gradient_delay: None };
    let stage = stage(plain, 1, 4, overflow);
    let caller = stage.join(0);
    let outcome = |delivery: Delivery| match delivery {
        Delivery::Pushed(result, _) => Ok((result.outcome, result.version)),
        Delivery::Refused(error) => Err(error),
        other => panic!("{other:?}"),
    };
    assert_eq!(outcome(stage.push(caller, 0, 0)), Ok((Outcome::Applied, 1)));
    let before = stage.driver.snapshot().expect("made").values::<f64>();
    let refused = outcome(stage.push(caller, 1, 1)).expect_err("overflow");
    assert_eq!(refused.code, ErrorCode::UpdateOverflow);
    assert_eq!(refused.facts["key"], "7", "the smallest of all servers'");
    let theta = stage.driver.snapshot().expect("made");
    assert_eq!((theta.version, theta.values::<f64>()), (1, before), "theta is as it was");
    assert_eq!(outcome(stage.push(caller, 1, 1)), Ok((Outcome::Applied, 2)));
    let (logs, _) = stage.end();
    for log in &logs {
        assert_eq!(play(log).1, 2);
        assert_eq!(log.iter().filter(|told| **told == Decision::Abort).count(), 1);
    }
}

#[test]
fn who_waits_for_a_lost_server_is_told_to_come_again() {
    let silent: Answers = |index, nth| (index == 1 || nth == 0).then_some(None);
    let stage = stage(Consistency::Sync { backup_workers: 0 }, 1, 3, silent);
    let caller = stage.join(0);
    assert!(matches!(stage.push(caller, 0, 0), Delivery::Pushed(..)));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| stage.push(caller, 1, 1));
        // Whether it waits already or not makes no difference.
        stage.group.lose(2, "the connection broke", None);
        stage.group.lose(1, "the next one", None);
        let Delivery::Refused(error) = waiting.join().expect("no panic") else {
            panic!("it cannot have counted")
        };
        assert_eq!(error.code.retry(), ps_common::error::Retry::Same, "{error}");
        assert!(error.message.contains("2/3") && error.message.contains("broke"), "{error}");
    });
    assert_eq!(stage.driver.snapshot().expect("made").version, 1, "nothing was stored");
    let lost = stage.group.lost().expect("lost");
    assert_eq!((lost.partition.index, lost.url.as_str()), (2, "follower-2"));
    let (logs, losses) = stage.end();
    assert_eq!(losses, [lost], "the alarm rings once");
    assert_eq!(logs[0].last(), Some(&Decision::Abort));
}

#[test]
fn a_follower_that_is_silent_or_astray_is_lost() {
    let member = |told| Member { url: "u".to_owned(), peer: Box::new(Told { told }) };
    let group = |patience| {
        let (told, decisions) = mpsc::channel();
        (Group::new(vec![member(told)], patience, Box::new(|_| ())), decisions)
    };
    let (silent, _decisions) = group(Duration::from_millis(20));
    let lost = silent.prepared().expect_err("nobody answers");
    assert!(lost.what.contains("not answered"), "{lost}");

    let (astray, _decisions) = group(Duration::from_secs(60));
    astray.hear(1, Word::Ready);
    let lost = astray.prepared().expect_err("another answer");
    assert!(lost.what.contains("that it is ready"), "{lost}");

    let (over, decisions) = group(Duration::from_secs(60));
    over.end(JobState::Done, String::new());
    over.lose(1, "it has gone", None);
    assert_eq!(over.lost(), None, "who goes at the end is not lost");
    assert!(matches!(decisions.recv(), Ok(Decision::End { state: JobState::Done, .. })));
}

#[test]
fn a_checkpoint_is_durable_once_it_is_on_all_servers() {
    let (told, _decisions) = mpsc::channel();
    let peer = || Box::new(Told { told: told.clone() });
    let member = |url: &str| Member { url: url.to_owned(), peer: peer() };
    let members = vec![member("a"), member("b")];
    let group = Group::new(members, Duration::from_secs(60), Box::new(|_| ()));
    let own = |version| Input::Saved { version, result: Ok(("own".to_owned(), 7)) };
    let saved = |index, version, result| group.hear(index, Word::Saved { version, result });
    let joined = |version| match group.saved_by_all(own(version)) {
        Input::Saved { version: of, result } => {
            assert_eq!(of, version);
            result
        }
        other => panic!("{other:?}"),
    };
    // Their words may come before, and between other answers.
    saved(2, 5, Ok(()));
    group.hear(1, Word::Prepared(None));
    saved(1, 5, Ok(()));
    assert_eq!(joined(5), Ok(("own".to_owned(), 7)));
    saved(1, 6, Ok(()));
    saved(2, 6, Err("no room".to_owned()));
    assert_eq!(joined(6), Err("server 2/3: no room".to_owned()));
    saved(1, 7, Ok(()));
    std::thread::scope(|scope| {
        scope.spawn(|| group.lose(2, "gone", None));
        let failed = joined(7).expect_err("lost");
        assert!(failed.contains("2/3") && failed.contains("gone"), "{failed}");
    });
}

#[test]
fn a_push_that_is_sent_again_is_not_forgotten_while_it_may_count() {
    let stage = stage(Consistency::Sync { backup_workers: 0 }, 2, 2, well);
    let callers = [stage.join(0), stage.join(1)];
    let first = stage.begin_push(callers[0], 0, 0);
    let again = stage.begin_push(callers[0], 0, 0);
    assert!(again.try_recv().is_err(), "it waits for the other rank");
    assert!(matches!(stage.push(callers[1], 0, 0), Delivery::Pushed(..)));
    assert!(matches!(answer(&again), Delivery::Pushed(..)));
    drop(first);
    // Counted: a third one is a duplicate, which the others have staged again.
    assert!(matches!(stage.push(callers[0], 0, 0), Delivery::Pushed(..)));
    let (logs, _) = stage.end();
    let name = PushName { caller: callers[0], clock: 0 };
    let place = |of: &dyn Fn(&Decision) -> bool| logs[0].iter().position(of);
    let forgotten = |told: &Decision| *told == Decision::Forget(name);
    let update = place(&|told| matches!(told, Decision::Prepare(_))).expect("one");
    let Decision::Prepare(joint) = &logs[0][update] else { panic!("found as one") };
    let names: Vec<PushName> = joint.parts.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, callers.map(|caller| PushName { caller, clock: 0 }), "in order of rank");
    assert!(place(&forgotten).expect("the duplicate is") > update);
    assert_eq!(logs[0].iter().filter(|told| forgotten(told)).count(), 1);
}
