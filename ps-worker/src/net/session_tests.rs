//! Whole lives of a worker and of an evaluator against a server for one worker, which fails as told.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clap::Parser;
use ps_common::calls::{Caller, Evaluation, JoinAnswer, JoinRequest, Leave};
use ps_common::exit::{Exit, ExitError};
use ps_common::job::{Aggregate, Fingerprint, JobState, Mode};
use ps_common::rows::{self, Rows};
use ps_common::tables::Tables;
use ps_common::wire::pb;
use ps_common::wire::pb::membership_server::{Membership, MembershipServer};
use ps_common::wire::pb::operator_server::{Operator, OperatorServer};
use ps_common::wire::pb::parameters_server::{Parameters, ParametersServer};
use ps_common::wire::status::to_status;
use ps_common::{Dtype, Error, ErrorCode, dtype};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::args::WorkerArgs;
use crate::learning::{Learner, Problem};
use crate::run::run;

pub(super) const ROUNDS: u64 = 6;
pub(super) const LR: f64 = 0.05;

/// What goes wrong with a push, once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Fault {
    /// Refused and not counted.
    Refuse(ErrorCode),
    /// Counted, and the stream breaks off before the answer.
    LoseAnswer,
    /// Not counted yet: the same push is wanted again.
    Wait,
    /// Counted, and the next clock is not owed any more.
    SkipNext,
}

/// A job of one worker: plain gradient descent.
#[derive(Default)]
pub(super) struct Job {
    pub(super) theta: Vec<f64>,
    pub(super) tables: Option<Tables>,
    fingerprint: Fingerprint,
    clock: u64,
    /// Of the newest member, and of the worker.
    incarnation: u64,
    incarnation_of_worker: u64,
    pub(super) joins: Vec<JoinRequest>,
    faults: VecDeque<(u64, Fault)>,
    /// Clocks as they were pushed, faults and repetitions included, and the versions pulled for them.
    pub(super) pushed: Vec<u64>,
    pub(super) pulled: Vec<u64>,
    /// The messages of sparse pushes, and what sparse pulls asked for, in order.
    pub(super) messages: Vec<pb::PushRequest>,
    pub(super) asked: Vec<Vec<Rows>>,
    /// The bytes of each gradient, by clock, version and life.
    bytes: BTreeMap<(u64, u64, u64), bytes::Bytes>,
    /// How long an answer takes.
    latency: Duration,
    /// Of each answered pull, by observers and the worker, the version that the caller said it has.
    haves: (Vec<Option<u64>>, Vec<Option<u64>>),
    pub(super) left: Vec<Leave>,
    evaluations: Vec<Evaluation>,
    heartbeats: u32,
}

impl Job {
    fn state(&self) -> JobState {
        if self.clock < ROUNDS { JobState::Running } else { JobState::Finishing }
    }

    /// Counts a push unless it has counted.
    fn push(&mut self, clock: u64, gradient: &[f64]) -> pb::Outcome {
        if clock < self.clock {
            return pb::Outcome::Duplicate;
        }
        assert_eq!(clock, self.clock, "the clock that is owed");
        self.theta.iter_mut().zip(gradient).for_each(|(t, g)| *t -= LR * g);
        self.clock += 1;
        pb::Outcome::Applied
    }

    fn check(&self, rank: u32, incarnation: u64) -> Result<(), Status> {
        if rank < Caller::FIRST_OBSERVER && incarnation != self.incarnation_of_worker {
            return Err(to_status(&Error::new(ErrorCode::Fenced, "an older life")));
        }
        Ok(())
    }

    /// theta, or these rows of it.
    fn bytes(&self, rows: Option<&[Rows]>) -> bytes::Bytes {
        let Some(rows) = rows else {
            return bytes::Bytes::copy_from_slice(dtype::as_le_bytes(&self.theta));
        };
        rows::elements(rows).flat_map(|key| self.theta[key].to_le_bytes()).collect()
    }

    /// The gradient that `messages` bring, and the rows that they ask for if it is sparse.
    fn read(&self, messages: &[pb::PushRequest]) -> (Vec<f64>, Option<Vec<Rows>>) {
        let header = messages[0].header.expect("in the first message");
        assert!(messages[1..].iter().all(|message| message.header.is_none()));
        let of = |part: pb::Part| messages.iter().filter(move |m| m.part == i32::from(part));
        let values: Vec<u8> = of(pb::Part::Values).flat_map(|m| m.data.to_vec()).collect();
        let mut brought = vec![0f64; values.len() / 8];
        dtype::copy_from_le_bytes(&mut brought, &values);
        if !header.sparse {
            assert!(messages.len() == 1 && header.loss.is_some(), "a full batch tells its loss");
            return (brought, None);
        }
        let tables = self.tables.as_ref().expect("joined");
        let rows = |part| -> Vec<Rows> {
            let read = |m: &pb::PushRequest| Rows::from_bytes(tables, m.table, &m.data[..]);
            of(part).map(|message| read(message).expect("rows of theta")).collect()
        };
        let mut gradient = vec![0.0; self.theta.len()];
        let rows_brought = rows(pb::Part::Rows);
        assert_eq!(rows::elements(&rows_brought).count(), brought.len());
        rows::elements(&rows_brought).zip(brought).for_each(|(key, g)| gradient[key] = g);
        (gradient, Some(rows(pb::Part::Asked)))
    }
}

#[derive(Clone, Default)]
pub(super) struct Fake(Arc<Mutex<Job>>);

impl Fake {
    pub(super) fn job(&self) -> std::sync::MutexGuard<'_, Job> {
        self.0.lock().expect("no panic under the lock")
    }
}

type Answers<T> = ReceiverStream<Result<T, Status>>;

#[tonic::async_trait]
impl Membership for Fake {
    async fn join(
        &self,
        request: Request<pb::JoinRequest>,
    ) -> Result<Response<pb::JoinResponse>, Status> {
        let request = JoinRequest::try_from(request.into_inner()).map_err(|e| to_status(&e))?;
        let mut job = self.job();
        let tables =
            job.tables.get_or_insert_with(|| request.tables.clone().expect("told")).clone();
        if job.theta.is_empty() {
            job.theta = vec![0.0; tables.dim()];
        }
        if job.joins.is_empty() {
            job.fingerprint = request.fingerprint.clone();
        }
        assert_eq!(job.fingerprint, request.fingerprint);
        job.incarnation += 1;
        let is_worker = request.role == ps_common::job::Role::Worker;
        let rank = if is_worker { request.rank.unwrap_or(0) } else { Caller::FIRST_OBSERVER };
        if is_worker {
            job.incarnation_of_worker = job.incarnation;
        }
        job.joins.push(request);
        let answer = JoinAnswer {
            caller: Caller { rank, incarnation: job.incarnation },
            lease: Duration::from_millis(30),
            clock: job.clock,
            shard: 0,
            n_shards: 1,
            dim: tables.dim(),
            dtype: Dtype::F64,
            mode: Mode::Sync,
            aggregate: Aggregate::WeightedMean,
            rounds: Some(ROUNDS),
            version: job.clock,
            state: job.state(),
            program: String::new(),
            fingerprint: job.fingerprint.clone(),
            tables,
            first_keys: vec![0],
        };
        Ok(Response::new(answer.into()))
    }

    async fn heartbeat(
        &self,
        request: Request<pb::HeartbeatRequest>,
    ) -> Result<Response<pb::HeartbeatResponse>, Status> {
        let mut job = self.job();
        job.check(request.get_ref().rank, request.get_ref().incarnation)?;
        job.heartbeats += 1;
        let state = pb::JobState::from(job.state()).into();
        Ok(Response::new(pb::HeartbeatResponse { version: job.clock, state }))
    }

    async fn leave(
        &self,
        request: Request<pb::LeaveRequest>,
    ) -> Result<Response<pb::LeaveResponse>, Status> {
        let leave = Leave::try_from(request.into_inner()).map_err(|e| to_status(&e))?;
        let mut job = self.job();
        job.left.push(leave);
        Ok(Response::new(pb::LeaveResponse { state: pb::JobState::from(job.state()).into() }))
    }
}

#[tonic::async_trait]
impl Parameters for Fake {
    type PullStream = Answers<pb::PullResponse>;
    type PushPullStream = Answers<pb::PushPullResponse>;

    async fn push(
        &self,
        _: Request<Streaming<pb::PushRequest>>,
    ) -> Result<Response<pb::PushResponse>, Status> {
        Err(Status::unimplemented("a worker steps"))
    }

    async fn pull(
        &self,
        request: Request<pb::PullRequest>,
    ) -> Result<Response<Self::PullStream>, Status> {
        let request = request.into_inner();
        loop {
            if let Some(whole) = self.theta(&request)? {
                let chunks = cut(whole);
                let (out, answers) = mpsc::channel(chunks.len());
                for chunk in chunks {
                    out.try_send(Ok(chunk)).expect("room for all");
                }
                return Ok(Response::new(ReceiverStream::new(answers)));
            }
            tokio::task::yield_now().await;
        }
    }

    async fn push_pull(
        &self,
        request: Request<Streaming<pb::PushRequest>>,
    ) -> Result<Response<Self::PushPullStream>, Status> {
        let mut stream = request.into_inner();
        let (out, answers) = mpsc::channel(1);
        let fake = self.clone();
        tokio::spawn(async move {
            let mut push = Vec::new();
            while let Ok(Some(message)) = stream.message().await {
                push.push(message);
                if !push[push.len() - 1].last {
                    continue;
                }
                let latency = fake.job().latency;
                tokio::time::sleep(latency).await;
                let answer = fake.answer(&std::mem::take(&mut push));
                let over = answer.is_err();
                if out.send(answer).await.is_err() || over {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn evaluate(
        &self,
        request: Request<pb::EvaluateRequest>,
    ) -> Result<Response<pb::EvaluateResponse>, Status> {
        let evaluation = Evaluation::try_from(request.into_inner()).map_err(|e| to_status(&e))?;
        let mut job = self.job();
        job.evaluations.push(evaluation);
        Ok(Response::new(pb::EvaluateResponse { state: pb::JobState::from(job.state()).into() }))
    }

    async fn merge_statistics(
        &self,
        _: Request<pb::MergeStatisticsRequest>,
    ) -> Result<Response<pb::MergeStatisticsResponse>, Status> {
        Err(Status::unimplemented("nothing is scaled"))
    }
}

/// An answer in messages that are not too long.
fn cut(whole: pb::PullResponse) -> Vec<pb::PullResponse> {
    const CHUNK_LEN: usize = 1 << 16;
    let n_chunks = whole.data.len().div_ceil(CHUNK_LEN * 8).max(1);
    let chunk = |i: usize| pb::PullResponse {
        key: (i * CHUNK_LEN) as u64,
        last: i + 1 == n_chunks,
        data: whole.data.slice(i * CHUNK_LEN * 8..whole.data.len().min((i + 1) * CHUNK_LEN * 8)),
        ..whole.clone()
    };
    (0..n_chunks).map(chunk).collect()
}

impl Fake {
    fn theta(&self, request: &pb::PullRequest) -> Result<Option<pb::PullResponse>, Status> {
        let mut job = self.job();
        job.check(request.rank, request.incarnation)?;
        let ended = job.state() != JobState::Running;
        if !ended && (request.r#final || job.clock < request.version_min) {
            return Ok(None);
        }
        let haves = &mut job.haves;
        let haves = if request.rank == 0 { &mut haves.1 } else { &mut haves.0 };
        haves.push(request.version_have);
        let unchanged = request.version_have == Some(job.clock);
        let tables = job.tables.as_ref().expect("joined");
        let asked = rows::from_bytes(tables, &request.asked).expect("rows of theta");
        let asked = (!asked.is_empty()).then_some(asked);
        let data = if unchanged { bytes::Bytes::new() } else { job.bytes(asked.as_deref()) };
        let n_asked = asked.as_deref().map(rows::n_elements);
        let dim = n_asked.unwrap_or(job.theta.len()) as u64;
        job.asked.extend(asked);
        Ok(Some(pb::PullResponse {
            version: job.clock,
            state: pb::JobState::from(job.state()).into(),
            dtype: pb::Dtype::F64.into(),
            dim,
            last: true,
            unchanged,
            data,
            ..Default::default()
        }))
    }

    fn answer(&self, messages: &[pb::PushRequest]) -> Result<pb::PushPullResponse, Status> {
        let header = messages[0].header.expect("in the first message");
        let mut job = self.job();
        job.check(header.rank, header.incarnation)?;
        job.pushed.push(header.clock);
        job.pulled.push(header.version_pulled);
        if header.sparse {
            job.messages.extend_from_slice(messages);
        }
        let (gradient, asked) = job.read(messages);
        let name = (header.clock, header.version_pulled, header.incarnation);
        let data: bytes::Bytes = messages.iter().flat_map(|m| m.data.to_vec()).collect();
        let first = job.bytes.entry(name).or_insert_with(|| data.clone());
        assert_eq!(*first, data, "sent again with other bytes");
        let fault = match job.faults.front() {
            Some(&(clock, fault)) if clock == header.clock => {
                job.faults.pop_front();
                Some(fault)
            }
            _ => None,
        };
        if let Some(Fault::Refuse(code)) = fault {
            return Err(to_status(&Error::new(code, "as told")));
        }
        let outcome = match fault {
            Some(Fault::Wait) => pb::Outcome::Waiting,
            _ => job.push(header.clock, &gradient),
        };
        match fault {
            Some(Fault::LoseAnswer) => return Err(Status::unavailable("the answer is lost")),
            Some(Fault::SkipNext) => job.clock += 1,
            _ => {}
        }
        let bare = outcome == pb::Outcome::Waiting || asked.as_ref().is_some_and(Vec::is_empty);
        Ok(pb::PushPullResponse {
            result: Some(pb::PushResult {
                outcome: outcome.into(),
                version: job.clock,
                clock: job.clock,
                state: pb::JobState::from(job.state()).into(),
                ..Default::default()
            }),
            dtype: pb::Dtype::F64.into(),
            version: job.clock,
            key: 0,
            last: true,
            data: if bare { bytes::Bytes::new() } else { job.bytes(asked.as_deref()) },
        })
    }
}

#[tonic::async_trait]
impl Operator for Fake {
    async fn status(
        &self,
        _: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusResponse>, Status> {
        Ok(Response::new(pb::StatusResponse {
            state: pb::JobState::Empty.into(),
            mode: pb::Mode::Sync.into(),
            aggregate: pb::Aggregate::Mean.into(),
            dtype: pb::Dtype::F64.into(),
            n_workers: 1,
            ..Default::default()
        }))
    }

    async fn checkpoint(
        &self,
        _: Request<pb::CheckpointRequest>,
    ) -> Result<Response<pb::CheckpointResponse>, Status> {
        Err(Status::unimplemented("no checkpoints"))
    }

    async fn stop(
        &self,
        _: Request<pb::StopRequest>,
    ) -> Result<Response<pb::StopResponse>, Status> {
        Err(Status::unimplemented("it stops by itself"))
    }
}

/// A server that fails as `faults` say, and its address.
pub(super) fn serve(faults: &[(u64, Fault)]) -> (Fake, String) {
    let fake = Fake::default();
    fake.job().faults.extend(faults);
    let incoming = tonic::transport::server::TcpIncoming::bind(([127, 0, 0, 1], 0).into())
        .expect("a free port")
        .with_nodelay(Some(true));
    let address = incoming.local_addr().expect("bound");
    let server = tonic::transport::Server::builder()
        .add_service(MembershipServer::new(fake.clone()))
        .add_service(ParametersServer::new(fake.clone()))
        .add_service(OperatorServer::new(fake.clone()));
    tokio::spawn(server.serve_with_incoming(incoming));
    (fake, format!("http://{address}"))
}

pub(super) fn args(url: &str, more: &[&str]) -> WorkerArgs {
    let server = format!("--server={url}");
    WorkerArgs::try_parse_from(["ps-worker", &server].iter().chain(more)).expect("parses")
}

/// All rows of the built-in problem, and theta's length.
pub(super) fn learner() -> (Learner<f64>, usize) {
    learner_of(&[])
}

/// All rows of the problem that these arguments mean, and theta's length.
pub(super) fn learner_of(arguments: &[&str]) -> (Learner<f64>, usize) {
    let learn = args("none:1", arguments).learn;
    let problem = Problem::survey(&learn).expect("good data");
    let terms = JoinAnswer {
        caller: Caller { rank: 0, incarnation: 1 },
        lease: Duration::from_secs(1),
        clock: 0,
        shard: 0,
        n_shards: 1,
        dim: problem.tables().dim(),
        dtype: Dtype::F64,
        mode: Mode::Sync,
        aggregate: Aggregate::WeightedMean,
        rounds: Some(ROUNDS),
        version: 0,
        state: JobState::Running,
        program: String::new(),
        fingerprint: Fingerprint::new(),
        tables: problem.tables().clone(),
        first_keys: vec![0],
    };
    (problem.load_shard::<f64>(&terms).expect("loads"), terms.dim)
}

/// theta after all rounds, each with the gradient at the theta of this version, computed without a
/// server.
fn expected(at_versions: [usize; ROUNDS as usize]) -> Vec<f64> {
    let (mut learner, dim) = learner();
    let mut thetas = vec![vec![0.0; dim]];
    let mut gradient = thetas[0].clone();
    for (clock, at) in (0..).zip(at_versions) {
        learner.compute(clock, &thetas[at], &mut gradient);
        let moved = thetas[clock as usize].iter().zip(&gradient).map(|(t, g)| t - LR * g);
        thetas.push(moved.collect());
    }
    thetas.pop().expect("the last one")
}

/// Every fault in the course of one job.
const FAULTS: [(u64, Fault); 5] = [
    (1, Fault::Refuse(ErrorCode::Draining)),
    (2, Fault::LoseAnswer),
    (3, Fault::Refuse(ErrorCode::LeaseExpired)),
    (4, Fault::Refuse(ErrorCode::NotInitialized)),
    (5, Fault::LoseAnswer),
];

#[tokio::test]
async fn a_worker_goes_through_every_fault_to_the_same_theta() {
    let (fake, url) = serve(&FAULTS);
    let more = ["--workers=1", "--dtype=f64", "--compute-delay-ms=15..20"];
    run(args(&url, &more)).await.expect("done");
    let job = fake.job();
    assert_eq!(job.theta, expected([0, 1, 2, 3, 4, 5]));
    assert_eq!(job.pushed, [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]);
    assert_eq!(job.joins.len(), 3);
    // A server that is joined again may mean another theta by the same version.
    assert_eq!(job.haves.1, [None, None, None, Some(ROUNDS)], "the last theta is not sent twice");
    let again = &job.joins[1];
    assert_eq!((again.rank, again.acknowledged_clock), (Some(0), Some(2)));
    assert!(job.heartbeats > 0, "a lease of 30 ms in a run of more than 100");
    let [leave] = &job.left[..] else { panic!("one goodbye: {:?}", job.left) };
    let metrics = leave.final_metrics.expect("measured");
    assert!(metrics.n_samples > 0 && metrics.loss.is_finite());
    assert_eq!(leave.stats.pushes, ROUNDS);
    assert_eq!(leave.stats.samples, ROUNDS * metrics.n_samples);
    let loss_sum = leave.stats.loss_sum.expect("every loss was finite");
    assert!(loss_sum / leave.stats.samples as f64 > metrics.loss, "losses fall: {loss_sum}");
    assert!(leave.stats.bytes_sent > ROUNDS * 8 * job.theta.len() as u64);
    assert!(leave.stats.compute_seconds >= 0.015 * ROUNDS as f64);
    assert!(job.joins.iter().all(|join| !join.overlap));
}

#[tokio::test]
async fn with_overlap_a_gradient_is_of_the_theta_before_and_says_so_through_every_fault() {
    let (fake, url) = serve(&FAULTS);
    let more = ["--overlap", "--dtype=f64", "--compute-delay-ms=5"];
    run(args(&url, &more)).await.expect("done");
    let job = fake.job();
    assert_eq!(job.pushed, [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]);
    // What was computed ahead of a join is computed again, at theta as it is then.
    assert_eq!(job.pulled, [0, 0, 0, 1, 1, 2, 3, 3, 4, 4, 4]);
    assert_eq!(job.theta, expected([0, 0, 1, 3, 4, 4]));
    assert!(job.joins.len() == 3 && job.joins.iter().all(|join| join.overlap));
    assert_eq!(job.left.len(), 1);
    assert_eq!(job.left[0].stats.pushes, ROUNDS);
}

#[tokio::test]
async fn with_overlap_the_parts_of_a_run_are_not_counted_twice() {
    let (fake, url) = serve(&[]);
    fake.job().latency = Duration::from_millis(30);
    let begun = Instant::now();
    run(args(&url, &["--overlap", "--compute-delay-ms=30"])).await.expect("done");
    let wall = begun.elapsed().as_secs_f64();
    let stats = fake.job().left[0].stats;
    assert!(stats.compute_seconds >= 0.03 * ROUNDS as f64, "{stats:?}");
    // Nothing is computed beside the last push.
    assert!(stats.comm_seconds >= 0.025, "{stats:?}");
    let sum = stats.compute_seconds + stats.wait_seconds + stats.comm_seconds;
    assert!(sum <= wall, "{sum} s of {wall} s: {stats:?}");
}

#[tokio::test]
async fn an_evaluator_measures_on_the_way_and_at_the_end() {
    let (fake, url) = serve(&[]);
    let evaluator = args(&url, &["--evaluate", "--eval-every=2"]);
    let worker = args(&url, &["--compute-delay-ms=10"]);
    let (evaluated, worked) = tokio::join!(run(evaluator), run(worker));
    evaluated.expect("done");
    worked.expect("done");
    let job = fake.job();
    let versions: Vec<u64> = job.evaluations.iter().map(|e| e.version).collect();
    assert!(versions.windows(2).all(|pair| pair[1] >= pair[0] + 2), "{versions:?}");
    let last = job.evaluations.last().expect("at least the last");
    assert!(last.r#final && last.version == ROUNDS, "{last:?}");
    assert_eq!(job.evaluations.iter().filter(|e| e.r#final).count(), 1);
    let of_worker = job.left.iter().find_map(|leave| leave.final_metrics).expect("measured");
    assert_eq!(last.train, of_worker, "one worker has all rows");
    let (named, pulled) = (&job.haves.0[1..], &versions[..versions.len() - 1]);
    assert!(named.iter().zip(pulled).all(|(named, pulled)| *named == Some(*pulled)), "{named:?}");
    assert_eq!(job.left.len(), 2);
}

async fn ends_with(faults: &[(u64, Fault)], more: &[&str]) -> ExitError {
    let (_fake, url) = serve(faults);
    run(args(&url, more)).await.expect_err("must fail")
}

#[tokio::test]
async fn refusals_end_a_worker_with_their_exit_code() {
    for (code, exit, says) in [
        (ErrorCode::Fenced, Exit::Failed, "rank over"),
        (ErrorCode::NonFinite, Exit::Failed, "diverged, lower --lr"),
        (ErrorCode::UpdateOverflow, Exit::Failed, "diverged, lower --lr"),
        (ErrorCode::ConfigMismatch, Exit::Config, "as told"),
        (ErrorCode::Internal, Exit::Failed, "as told [INTERNAL]"),
    ] {
        let error = ends_with(&[(1, Fault::Refuse(code))], &[]).await;
        assert!(error.exit == exit && error.message.contains(says), "{code}: {error:?}");
    }
    let error = ends_with(&[], &["--workers=3"]).await;
    assert!(error.exit == Exit::Config && error.message.contains("--workers is 3 here, 1 at"));
    // Patience ends although each attempt is answered.
    let again = [(0, Fault::Refuse(ErrorCode::Overloaded)); 50];
    let error = ends_with(&again, &["--connect-timeout=100ms"]).await;
    assert_eq!(error.exit, Exit::Unavailable, "{error:?}");
}
