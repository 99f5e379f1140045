//! The client against three servers of a few lines that double what is pushed, each its own keys.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use ps_common::calls::{Outcome, PullRequest};
use ps_common::job::JobState;
use ps_common::wire;
use ps_common::wire::pb::parameters_server::{Parameters, ParametersServer};
use ps_common::wire::pb::partition_server::{Partition as PartitionService, PartitionServer};
use ps_common::wire::status::to_status;
use ps_common::{Error, dtype};
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status as GrpcStatus, Streaming};

use super::*;
use crate::net::{Approach, Client};

const N_SERVERS: u32 = 3;
const DIM: usize = 200_003;
const CALLER: Caller = Caller { rank: 2, incarnation: 9 };

/// Clocks with a meaning of their own.
const WAITS_ONCE: u64 = 11;
const TWO_VERSIONS: u64 = 12;
const NOT_THERE_YET: u64 = 13;
const REFUSED_BY_A_FOLLOWER: u64 = 14;

/// What the servers know together.
#[derive(Default)]
struct Group {
    /// The last push as each server has it, doubled, and its digest.
    parts: [Mutex<(Vec<u8>, u32)>; N_SERVERS as usize],
    /// The exchanges that partition 0 has answered, with their version.
    given: watch::Sender<BTreeMap<u64, u64>>,
    /// Clocks as they were staged at partition 1.
    staged: Mutex<Vec<u64>>,
    /// Exchanges of all takes that were begun.
    taken: Mutex<Vec<u64>>,
    waits: Mutex<u32>,
}

#[derive(Clone)]
struct Server {
    group: Arc<Group>,
    index: u32,
}

type Chunks<T> = ReceiverStream<Result<T, GrpcStatus>>;

impl Server {
    fn first_key(&self) -> usize {
        Partition { index: self.index, count: N_SERVERS }.keys(DIM).start
    }

    /// Reads one push; `None` where the stream has ended.
    async fn read(
        &self,
        stream: &mut Streaming<pb::PushRequest>,
    ) -> Result<Option<(pb::PushHeader, Option<u32>)>, GrpcStatus> {
        let (mut header, mut hasher) = (None, crc32fast::Hasher::new());
        let mut values: Vec<f32> = Vec::new();
        while let Some(chunk) = stream.message().await? {
            header = header.or(chunk.header);
            assert_eq!(chunk.key as usize, self.first_key() + values.len(), "absolute keys");
            hasher.update(&chunk.data);
            let mut more = vec![0f32; chunk.data.len() / 4];
            dtype::copy_from_le_bytes(&mut more, &chunk.data);
            values.extend(more.iter().map(|x| x + x));
            if chunk.last {
                *self.group.parts[self.index as usize].lock().expect("no panic") =
                    (dtype::as_le_bytes(&values).to_vec(), hasher.finalize());
                return Ok(Some((header.expect("comes first"), chunk.staged)));
            }
            assert_eq!(chunk.staged, None, "only the last message says what was staged");
        }
        Ok(None)
    }

    fn theta(&self, version: u64) -> Vec<pb::PullResponse> {
        let bytes = self.group.parts[self.index as usize].lock().expect("no panic").0.clone();
        let n_chunks = bytes.len().div_ceil(100_000);
        let chunk = |(i, data): (usize, &[u8])| pb::PullResponse {
            version,
            state: pb::JobState::Running.into(),
            dtype: pb::Dtype::F32.into(),
            dim: (bytes.len() / 4) as u64,
            seconds: 0.5,
            waited_us: 7,
            key: (self.first_key() + i * 25_000) as u64,
            last: i + 1 == n_chunks,
            unchanged: false,
            data: bytes::Bytes::copy_from_slice(data),
        };
        bytes.chunks(100_000).enumerate().map(chunk).collect()
    }

    fn give(&self, exchange: u64, version: u64) {
        assert_ne!(exchange, 0, "several servers number their exchanges");
        self.group.given.send_modify(|given| {
            assert!(given.keys().all(|earlier| *earlier < exchange), "{exchange} after {given:?}");
            given.insert(exchange, version);
        });
    }

    /// The answer to one push at partition 0.
    fn answer(&self, header: &pb::PushHeader, staged: Option<u32>) -> Vec<pb::PushPullResponse> {
        let digests: Vec<u32> =
            self.group.parts[1..].iter().map(|part| part.lock().expect("no panic").1).collect();
        assert_eq!(staged, Some(staged_digest(&digests)));
        let mut result = pb::PushResult {
            outcome: pb::Outcome::Applied.into(),
            version: header.clock + 1,
            clock: header.clock + 1,
            state: pb::JobState::Running.into(),
            ..Default::default()
        };
        let mut waits = self.group.waits.lock().expect("no panic");
        if header.clock == WAITS_ONCE && *waits == 0 {
            *waits += 1;
            result.outcome = pb::Outcome::Waiting.into();
            return vec![pb::PushPullResponse {
                result: Some(result),
                last: true,
                ..Default::default()
            }];
        }
        if header.exchange > 0 {
            self.give(header.exchange, header.clock + 1);
        }
        let chunks = self.theta(header.clock + 1).into_iter();
        let answer = chunks.map(|chunk| pb::PushPullResponse {
            result: (chunk.key == 0).then_some(result),
            dtype: chunk.dtype,
            version: chunk.version,
            key: chunk.key,
            last: chunk.last,
            data: chunk.data,
        });
        answer.collect()
    }
}

fn stream_of<T: Send + 'static>(items: Vec<T>) -> Response<Chunks<T>> {
    let (out, chunks) = mpsc::channel(items.len().max(1));
    for item in items {
        out.try_send(Ok(item)).unwrap_or_else(|_| panic!("there is room"));
    }
    Response::new(ReceiverStream::new(chunks))
}

#[tonic::async_trait]
impl Parameters for Server {
    type PullStream = Chunks<pb::PullResponse>;
    type PushPullStream = Chunks<pb::PushPullResponse>;

    async fn push(
        &self,
        request: Request<Streaming<pb::PushRequest>>,
    ) -> Result<Response<pb::PushResponse>, GrpcStatus> {
        let (header, staged) = self.read(&mut request.into_inner()).await?.expect("one push");
        assert_eq!(header.exchange, 0, "no theta is asked for");
        let result = self.answer(&header, staged)[0].result;
        Ok(Response::new(pb::PushResponse { result }))
    }

    async fn pull(
        &self,
        request: Request<pb::PullRequest>,
    ) -> Result<Response<Self::PullStream>, GrpcStatus> {
        self.give(request.get_ref().exchange, 3);
        Ok(stream_of(self.theta(3)))
    }

    async fn push_pull(
        &self,
        request: Request<Streaming<pb::PushRequest>>,
    ) -> Result<Response<Self::PushPullStream>, GrpcStatus> {
        let mut stream = request.into_inner();
        let mut next = self.read(&mut stream).await?;
        let server = self.clone();
        let (out, chunks) = mpsc::channel(1);
        tokio::spawn(async move {
            while let Some((header, staged)) = next {
                assert_ne!(header.exchange, 0, "several servers number their exchanges");
                for chunk in server.answer(&header, staged) {
                    if out.send(Ok(chunk)).await.is_err() {
                        return;
                    }
                }
                next = server.read(&mut stream).await.unwrap_or(None);
            }
        });
        Ok(Response::new(ReceiverStream::new(chunks)))
    }

    async fn evaluate(
        &self,
        _: Request<pb::EvaluateRequest>,
    ) -> Result<Response<pb::EvaluateResponse>, GrpcStatus> {
        panic!("nobody asks")
    }

    async fn merge_statistics(
        &self,
        _: Request<pb::MergeStatisticsRequest>,
    ) -> Result<Response<pb::MergeStatisticsResponse>, GrpcStatus> {
        panic!("nobody asks")
    }
}

#[tonic::async_trait]
impl PartitionService for Server {
    type TakeStream = Chunks<pb::PullResponse>;
    type FollowStream = Chunks<pb::Word>;

    async fn stage(
        &self,
        request: Request<Streaming<pb::PushRequest>>,
    ) -> Result<Response<pb::StageResponse>, GrpcStatus> {
        let (header, _) = self.read(&mut request.into_inner()).await?.expect("one part");
        let refusal = match header.clock {
            NOT_THERE_YET if self.index == 2 => Some(ErrorCode::NotInitialized),
            REFUSED_BY_A_FOLLOWER if self.index == 2 => Some(ErrorCode::EpochChanged),
            _ => None,
        };
        if let Some(code) = refusal {
            return Err(to_status(&Error::new(code, "as told")));
        }
        if self.index == 1 {
            self.group.staged.lock().expect("no panic").push(header.clock);
        }
        let digest = self.group.parts[self.index as usize].lock().expect("no panic").1;
        Ok(Response::new(pb::StageResponse { digest }))
    }

    async fn take(
        &self,
        request: Request<pb::TakeRequest>,
    ) -> Result<Response<Self::TakeStream>, GrpcStatus> {
        let request = request.into_inner();
        assert_eq!((request.rank, request.incarnation), (CALLER.rank, CALLER.incarnation));
        self.group.taken.lock().expect("no panic").push(request.exchange);
        let mut given = self.group.given.subscribe();
        let given = given.wait_for(|given| given.contains_key(&request.exchange)).await;
        let mut version = given.expect("the group lives")[&request.exchange];
        if version == TWO_VERSIONS + 1 && self.index == 2 {
            version += 1;
        }
        Ok(stream_of(self.theta(version)))
    }

    async fn follow(
        &self,
        _: Request<Streaming<pb::Decision>>,
    ) -> Result<Response<Self::FollowStream>, GrpcStatus> {
        panic!("no worker decides")
    }
}

/// A client of three servers, which live as long as the runtime.
async fn client() -> (Client, Arc<Group>) {
    let group = Arc::<Group>::default();
    let mut urls = Vec::new();
    for index in 0..N_SERVERS {
        let incoming = tonic::transport::server::TcpIncoming::bind(([127, 0, 0, 1], 0).into())
            .expect("a free port")
            .with_nodelay(Some(true));
        urls.push(incoming.local_addr().expect("bound").to_string());
        let server = Server { group: Arc::clone(&group), index };
        let mut router = tonic::transport::Server::builder();
        // Each has only the service that it should be asked for.
        let router = match index {
            0 => router.add_service(
                ParametersServer::new(server)
                    .max_decoding_message_size(wire::PARAMETERS_MESSAGE_BYTES_MAX),
            ),
            _ => router.add_service(
                PartitionServer::new(server)
                    .max_decoding_message_size(wire::PARAMETERS_MESSAGE_BYTES_MAX),
            ),
        };
        tokio::spawn(router.serve_with_incoming(incoming));
    }
    let approach = Approach::default();
    let client = Client::connect_with(&urls, Duration::from_secs(5), &approach);
    (client.await.expect("they listen"), group)
}

fn header(clock: u64) -> PushHeader {
    PushHeader {
        caller: CALLER,
        clock,
        version_pulled: clock,
        n_samples: 1,
        loss: None,
        penalty: None,
        wait_max: None,
        exchange: 0,
    }
}

fn gradient(scale: f32) -> Vec<f32> {
    (0..DIM).map(|i| i as f32 * scale).collect()
}

const PULL: PullRequest =
    PullRequest { caller: CALLER, version_min: 0, r#final: false, wait_max: None, exchange: 0 };

#[tokio::test]
async fn theta_is_put_together_from_all_servers() {
    let (client, group) = client().await;
    let mut steps = client.steps();
    let mut theta = vec![0f32; DIM];
    for clock in 0..3 {
        let gradient = gradient(clock as f32 + 0.5);
        let result = steps.step(header(clock), &gradient, &mut theta).await.expect("answered");
        assert_eq!((result.version, steps.theta_version()), (clock + 1, clock + 1));
        assert!(theta.iter().zip(&gradient).all(|(t, g)| *t == g + g), "clock {clock}");
    }
    client.push(header(3), &gradient(4.0)).await.expect("answered");
    let pulled = client.pull(PULL, &mut theta).await.expect("answered");
    assert_eq!((pulled.version, pulled.seconds), (3, 0.5));
    assert!(theta == gradient(8.0));
    assert_eq!(*group.staged.lock().expect("no panic"), [0, 1, 2, 3]);
    // Every byte of four gradients and four thetas is counted, whoever it goes to.
    let payload = 4 * 4 * DIM as u64;
    assert!((payload..payload + 10_000).contains(&client.traffic().sent()));
    assert!((payload..payload + 10_000).contains(&client.traffic().received()));
}

#[tokio::test]
async fn a_push_that_waits_is_staged_once_and_taken_with_a_number_of_its_own() {
    let (client, group) = client().await;
    let mut theta = vec![0f32; DIM];
    let mut steps = client.steps();
    let gradient = gradient(1.0);
    let result = steps.step(header(WAITS_ONCE), &gradient, &mut theta).await.expect("answered");
    assert_eq!(result.outcome, Outcome::Applied);
    assert!(theta.iter().zip(&gradient).all(|(t, g)| *t == g + g));
    assert_eq!(*group.staged.lock().expect("no panic"), [WAITS_ONCE]);
    let taken = group.taken.lock().expect("no panic").clone();
    assert!(taken.ends_with(&[2, 2]), "the exchange that waited is given up: {taken:?}");
    assert_eq!(group.given.borrow().keys().copied().collect::<Vec<_>>(), [2]);
}

#[tokio::test]
async fn a_failure_of_any_server_fails_the_step_and_names_its_partition() {
    let (client, _group) = client().await;
    let mut theta = vec![0f32; DIM];
    for (clock, says) in [
        (TWO_VERSIONS, "parts are of versions [13, 14]"),
        (NOT_THERE_YET, "connection failed: partition 2 is not there yet"),
        (REFUSED_BY_A_FOLLOWER, "partition 2: as told [EPOCH_CHANGED]"),
    ] {
        let mut steps = client.steps();
        let failure = steps.step(header(clock), &gradient(1.0), &mut theta).await;
        let failure = failure.expect_err(says);
        assert!(failure.to_string().contains(says), "{failure}");
        let again = steps.step(header(1), &gradient(1.0), &mut theta).await;
        assert!(matches!(again, Err(Failure::Transport(_))), "the stream has ended: {again:?}");
    }
    // The client is as good as before.
    let mut steps = client.steps();
    let result = steps.step(header(1), &gradient(1.0), &mut theta).await.expect("answered");
    assert_eq!(result.state, JobState::Running);
}
