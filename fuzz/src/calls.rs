//! Calls in any order, with any numbers in them, at the server without its network: nobody is
//! answered twice, theta stays finite, status and report can be made at any time.
//!
//! The core's own invariants are checked after every step in builds with debug assertions, which
//! these are.

use std::collections::BTreeSet;
use std::time::Duration;

use arbitrary::{Result, Unstructured};
use prost::Message;
use ps_common::calls::{Caller, Evaluation, JoinRequest, Leave, Outcome, PullRequest, Status};
use ps_common::job::{Aggregate, OnWorkerLoss, WorkerStats};
use ps_common::statistics::Statistics;
use ps_common::wire::pb;
use ps_common::{Error, ErrorCode};
use ps_server::core::{CallId, Config, ConnId, Consistency, DelayScaling, Input, Time};
use ps_server::driver::{Aftermath, Delivery, Driver};
use ps_server::net::{Assembly, Progress};
use ps_server::table::Pushed;

use crate::pushes::{DIM, config, join_request, server};

/// Plays the calls that the bytes stand for; whether a push was applied.
pub(crate) fn serve(input: &[u8]) -> bool {
    let mut source = Unstructured::new(input);
    let Ok(config) = configured(&mut source) else { return false };
    let mut world = World {
        driver: server(config),
        now: Time::ZERO,
        n_calls: 0,
        open: BTreeSet::new(),
        callers: Vec::new(),
        n_applied: 0,
    };
    while !source.is_empty() {
        if world.act(&mut source).is_err() {
            break;
        }
    }
    world.look();
    world.n_applied > 0
}

fn configured(source: &mut Unstructured<'_>) -> Result<Config> {
    let [mode, workers, more]: [u8; 3] = source.arbitrary()?;
    let aggregates = [
        Aggregate::Mean,
        Aggregate::WeightedMean,
        Aggregate::Sum,
        Aggregate::Collect,
        Aggregate::Median,
    ];
    let is_sync = mode % 4 == 0;
    let scaling = [DelayScaling::None, DelayScaling::Inverse, DelayScaling::InverseSqrt];
    Ok(Config {
        consistency: match mode % 4 {
            0 => Consistency::Sync { backup_workers: 0 },
            1 => Consistency::Ssp { staleness_bound: u64::from(mode >> 2) },
            2 => Consistency::Async {
                delay_scaling: scaling[usize::from(mode >> 2) % scaling.len()],
                max_gradient_delay: None,
            },
            _ => Consistency::Hogwild,
        },
        n_workers: 1 + u32::from(workers % 3),
        aggregate: match is_sync {
            true => aggregates[usize::from(workers >> 2) % aggregates.len()],
            false => Aggregate::Mean,
        },
        rounds: (more & 1 == 0).then_some(3),
        on_worker_loss: [OnWorkerLoss::Wait, OnWorkerLoss::Continue, OnWorkerLoss::Abort]
            [usize::from(more >> 1) % 3],
        observers: u32::from(more >> 7),
        ..config()
    })
}

struct World {
    driver: Driver,
    now: Time,
    n_calls: u64,
    /// Calls without an answer.
    open: BTreeSet<CallId>,
    callers: Vec<Caller>,
    n_applied: u64,
}

/// A number: rarely any, mostly one at an edge or near `due`.
fn number(source: &mut Unstructured<'_>, due: u64) -> Result<u64> {
    Ok(match source.arbitrary::<u8>()? % 16 {
        0..8 => due,
        8 => 0,
        9 => 1,
        10 => due.wrapping_add(1),
        11 => due.wrapping_sub(1),
        12 => u64::MAX,
        13 => u64::MAX - 1,
        14 => 1 << 63,
        _ => source.arbitrary()?,
    })
}

/// What arrives when `message` is sent.
fn sent<M: Message + Default>(message: &M) -> M {
    M::decode(&message.encode_to_vec()[..]).expect("our own bytes")
}

impl World {
    fn act(&mut self, source: &mut Unstructured<'_>) -> Result<()> {
        let done = match source.arbitrary::<u8>()? % 16 {
            0 | 1 => self.join(source)?,
            2..6 => self.push(source)?,
            6 => self.pull(source)?,
            7 => self.heartbeat(source)?,
            8 => self.leave(source)?,
            9 => self.evaluate(source)?,
            10 => self.statistics(source)?,
            11 => {
                let step = number(source, 1)?.min(u64::from(u32::MAX));
                self.now = self.now.saturating_add(Duration::from_millis(step));
                self.feed(None, Input::Tick);
                Ok(())
            }
            12 => {
                let n = source.arbitrary::<u8>()?.into();
                if let Some(call) = self.open.iter().nth(n).copied() {
                    self.open.remove(&call);
                    self.feed(None, Input::Dropped { call });
                }
                Ok(())
            }
            13 => {
                let conn = ConnId(u64::from(source.arbitrary::<u8>()? % 4));
                self.feed(None, Input::Disconnected { conn });
                Ok(())
            }
            14 => {
                self.look();
                Ok(())
            }
            _ => {
                match source.arbitrary::<u8>()? {
                    0 => self.feed(None, Input::Drain),
                    1 => self.feed(None, Input::Stop { reason: "enough".to_owned() }),
                    _ => {}
                }
                Ok(())
            }
        };
        if let Err(Error { code, .. }) = done {
            let caller = self.callers.first().copied();
            self.feed(None, Input::Rejected { caller, code });
        }
        Ok(())
    }

    fn call(&mut self) -> CallId {
        self.n_calls += 1;
        self.open.insert(CallId(self.n_calls));
        CallId(self.n_calls)
    }

    fn feed(&mut self, gradient: Option<(CallId, Pushed)>, input: Input) {
        let Self { driver, now, open, callers, n_applied, .. } = self;
        let mut deliver = |call: CallId, delivery: Delivery| {
            assert!(open.remove(&call), "{call:?} is answered, and nobody waits for that");
            match delivery {
                Delivery::Joined(answer) => callers.push(answer.caller),
                Delivery::Pushed(result, _) => {
                    *n_applied += u64::from(result.outcome == Outcome::Applied);
                }
                Delivery::Refused(error) => {
                    assert_ne!(error.code, ErrorCode::Internal, "{error}");
                }
                _ => {}
            }
        };
        let clock = || *now;
        let aftermath = match gradient {
            Some((call, gradient)) => driver.feed_push(&clock, call, gradient, input, &mut deliver),
            None => driver.feed(&clock, input, &mut deliver),
        };
        if aftermath == Aftermath::Conclude {
            driver.feed(&clock, Input::Concluded, &mut deliver);
        }
    }

    /// Somebody who has joined, or a made-up name.
    fn caller(&self, source: &mut Unstructured<'_>) -> Result<Caller> {
        let n = usize::from(source.arbitrary::<u8>()?);
        match self.callers.get(n % (self.callers.len() + 1)) {
            Some(caller) if n < 200 => Ok(*caller),
            _ => Ok(Caller { rank: number(source, 0)? as u32, incarnation: number(source, 1)? }),
        }
    }

    fn join(&mut self, source: &mut Unstructured<'_>) -> Result<std::result::Result<(), Error>> {
        let [rank, kind, conn]: [u8; 3] = source.arbitrary()?;
        let rank = match rank {
            0..128 => None,
            255 => Some(u32::MAX),
            rank => Some(u32::from(rank % 3)),
        };
        let mut request = join_request(rank);
        if kind & 7 == 7 {
            request.role = pb::Role::Observer.into();
        }
        if kind & 8 == 8 {
            request.acknowledged_clock = Some(number(source, 0)?);
        }
        request.overlap = kind & 192 == 192;
        if kind & 48 == 48 {
            request.tables.clear();
        }
        let request = match JoinRequest::try_from(sent(&request)) {
            Ok(request) => request,
            Err(error) => return Ok(Err(error)),
        };
        let (call, conn) = (self.call(), ConnId(u64::from(conn % 4)));
        self.feed(None, Input::Join { call, conn, address: String::new(), request });
        Ok(Ok(()))
    }

    fn push(&mut self, source: &mut Unstructured<'_>) -> Result<std::result::Result<(), Error>> {
        let Caller { rank, incarnation } = self.caller(source)?;
        let status = self.driver.status(self.now);
        let due = status.workers.iter().find(|worker| worker.rank == rank);
        let due = due.map_or(0, |worker| worker.clock);
        let [flags, value]: [u8; 2] = source.arbitrary()?;
        let header = pb::PushHeader {
            rank,
            incarnation,
            clock: number(source, due)?,
            version_pulled: number(source, status.version)?,
            n_samples: number(source, 1)?,
            loss: (flags & 1 == 1).then_some(if flags & 2 == 2 { f64::MAX } else { 0.5 }),
            penalty: (flags & 4 == 4).then_some(-f64::MAX),
            wait_ms_max: if flags & 8 == 8 { u32::MAX } else { 0 },
            ..Default::default()
        };
        let element = match flags >> 6 {
            3 => f32::MAX,
            _ => f32::from(value) - 100.0,
        };
        let bytes = [element; DIM].map(f32::to_le_bytes).concat();
        let (dtype, data) = (pb::Dtype::F32.into(), bytes.into());
        let header = Some(header);
        let message =
            pb::PushRequest { header, dtype, key: 0, last: true, data, ..Default::default() };
        let mut message = sent(&message);
        let header = message.header.take().expect("it has one");
        let data = std::mem::take(&mut message.data);
        let push = Assembly::begin(&self.driver, header)
            .and_then(|assembly| assembly.take(&message, data.into()));
        let push = match push {
            Ok(Progress::Whole(push)) => push,
            Ok(Progress::More(_)) => panic!("the last message is the last"),
            Err(error) => return Ok(Err(error)),
        };
        let (call, conn) = (self.call(), ConnId(u64::from(rank % 4)));
        let (header, digest, theta) = (push.header, push.digest, flags & 16 == 16);
        let input = Input::Push { call, conn, header, digest, theta };
        self.feed(Some((call, push.gradient)), input);
        Ok(Ok(()))
    }

    fn pull(&mut self, source: &mut Unstructured<'_>) -> Result<std::result::Result<(), Error>> {
        let Caller { rank, incarnation } = self.caller(source)?;
        let version = self.driver.status(self.now).version;
        let request = pb::PullRequest {
            rank,
            incarnation,
            version_min: number(source, version)?,
            r#final: source.ratio(1u8, 4u8)?,
            wait_ms_max: number(source, 0)? as u32,
            ..Default::default()
        };
        let request = PullRequest::from(sent(&request));
        let (call, conn) = (self.call(), ConnId(u64::from(rank % 4)));
        self.feed(None, Input::Pull { call, conn, request });
        Ok(Ok(()))
    }

    fn stats(source: &mut Unstructured<'_>) -> Result<pb::WorkerStats> {
        let sums = [0.0, 0.5, f64::MAX, -f64::MAX, f64::NAN];
        let sum = sums[usize::from(source.arbitrary::<u8>()?) % sums.len()];
        Ok(pb::WorkerStats {
            pushes: number(source, 1)?,
            samples: number(source, 1)?,
            compute_seconds: sum,
            bytes_sent: number(source, 1)?,
            loss_sum: Some(sum),
            ..pb::WorkerStats::default()
        })
    }

    fn heartbeat(
        &mut self,
        source: &mut Unstructured<'_>,
    ) -> Result<std::result::Result<(), Error>> {
        let Caller { rank, incarnation } = self.caller(source)?;
        let stats = Some(Self::stats(source)?);
        let request = sent(&pb::HeartbeatRequest { rank, incarnation, stats });
        let (caller, stats) = match <(Caller, WorkerStats)>::try_from(request) {
            Ok(parts) => parts,
            Err(error) => return Ok(Err(error)),
        };
        let call = self.call();
        self.feed(None, Input::Heartbeat { call, caller, stats });
        Ok(Ok(()))
    }

    fn metrics(source: &mut Unstructured<'_>) -> Result<pb::Metrics> {
        let losses = [0.5, 0.0, f64::MAX, -1.0, f64::INFINITY];
        let loss = losses[usize::from(source.arbitrary::<u8>()?) % losses.len()];
        let (n_samples, n_correct) = (number(source, 10)?, Some(number(source, 5)?));
        Ok(pb::Metrics { n_samples, loss, penalty: loss, n_correct })
    }

    fn leave(&mut self, source: &mut Unstructured<'_>) -> Result<std::result::Result<(), Error>> {
        let Caller { rank, incarnation } = self.caller(source)?;
        let stats = Some(Self::stats(source)?);
        let final_metrics = Some(Self::metrics(source)?);
        let request = sent(&pb::LeaveRequest { rank, incarnation, stats, final_metrics });
        let leave = match Leave::try_from(request) {
            Ok(leave) => leave,
            Err(error) => return Ok(Err(error)),
        };
        let call = self.call();
        self.feed(None, Input::Leave { call, leave });
        Ok(Ok(()))
    }

    fn evaluate(
        &mut self,
        source: &mut Unstructured<'_>,
    ) -> Result<std::result::Result<(), Error>> {
        let Caller { rank, incarnation } = self.caller(source)?;
        let version = self.driver.status(self.now).version;
        let request = pb::EvaluateRequest {
            rank,
            incarnation,
            version: number(source, version)?,
            seconds: 0.5,
            train: Some(Self::metrics(source)?),
            test: None,
            r#final: source.arbitrary()?,
        };
        let evaluation = match Evaluation::try_from(sent(&request)) {
            Ok(evaluation) => evaluation,
            Err(error) => return Ok(Err(error)),
        };
        let call = self.call();
        self.feed(None, Input::Evaluate { call, evaluation });
        Ok(Ok(()))
    }

    fn statistics(
        &mut self,
        source: &mut Unstructured<'_>,
    ) -> Result<std::result::Result<(), Error>> {
        let Caller { rank, incarnation } = self.caller(source)?;
        let numbers = [0.0, -1.0, f64::MAX, f64::NAN, f64::NEG_INFINITY];
        let flags: u8 = source.arbitrary()?;
        let value = numbers[usize::from(flags) % numbers.len()];
        let column = vec![value.to_le_bytes(); 1 + usize::from(flags >> 7)].concat();
        let request = pb::MergeStatisticsRequest {
            rank,
            incarnation,
            n_samples: number(source, 3)?,
            kind: if flags & 64 == 0 { "moments" } else { "range" }.to_owned(),
            first: column.clone().into(),
            second: column.into(),
        };
        let kept = <(Caller, Statistics)>::try_from(sent(&request)).and_then(|(caller, value)| {
            self.driver.admit(caller)?;
            self.driver.keep_statistics(rank, value)?;
            Ok(caller)
        });
        let caller = match kept {
            Ok(caller) => caller,
            Err(error) => return Ok(Err(error)),
        };
        let call = self.call();
        self.feed(None, Input::Statistics { call, caller });
        Ok(Ok(()))
    }

    /// What an operator sees at any time.
    fn look(&self) {
        let status = self.driver.status(self.now);
        let message = sent(&pb::StatusResponse::from(status.clone()));
        assert!(Status::try_from(message).is_ok(), "psctl could not read {status:?}");
        if let Some(theta) = self.driver.snapshot() {
            assert!(theta.values::<f32>().iter().all(|x| x.is_finite()), "{theta:?}");
        }
        if let Some(report) = self.driver.report(self.now) {
            let text = serde_json::to_string(&report).expect("a report is JSON");
            let again: ps_common::report::Report =
                serde_json::from_str(&text).expect("a report reads back");
            assert_eq!(serde_json::to_string(&again).expect("a report is JSON"), text);
        }
    }
}

/// Jobs of one and two workers in each mode: joins, pushes, goodbyes.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let push = |who: u8| [2, who, 1, 100, 0, 0, 0];
    let leave = |who: u8| [8, who, 1, 0, 0, 0, 0, 0, 0];
    let mut seeds = Vec::new();
    for mode in 0..4 {
        let mut one = vec![mode, 0, 0, 0, 0, 0, 0];
        (0..3).for_each(|_| one.extend(push(0)));
        one.extend([14, 6, 0, 0, 0, 0]);
        one.extend(leave(0));
        seeds.push(one);
        let mut two = vec![mode, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1];
        for _ in 0..2 {
            [0, 1].iter().for_each(|&who| two.extend(push(who)));
        }
        two.extend([10, 0, 0, 0, 10, 1, 0, 0, 7, 0, 1, 0, 0, 0, 11, 0]);
        seeds.push(two);
    }
    seeds
}
