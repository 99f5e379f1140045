//! The client against a server of a few lines: it doubles what is pushed and knows some tricks.

use std::net::SocketAddr;
use std::sync::Mutex;

use ps_common::calls::Outcome;
use ps_common::wire::pb::parameters_server::{Parameters, ParametersServer};
use ps_common::wire::status::to_status;
use ps_common::{Error, ErrorCode, dtype};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status as GrpcStatus, Streaming};

use super::*;
use ps_common::url;

/// Clocks with a meaning of their own.
const WAITS_ONCE: u64 = 11;
const REFUSED_AT_ONCE: u64 = 12;
const REFUSED_IN_THE_MIDDLE: u64 = 13;
const WRONG_LENGTH: u64 = 14;
const WAITS_AND_ENDS: u64 = 15;

/// What one push brought, doubled: little-endian bytes and their dtype.
#[derive(Default, Clone)]
struct Doubled {
    bytes: Vec<u8>,
    dtype: i32,
}

#[derive(Default)]
struct Fake {
    last: Mutex<Doubled>,
}

type Chunks<T> = ReceiverStream<Result<T, GrpcStatus>>;

/// Reads one push to its end, or `None` where the stream has ended.
async fn read(
    stream: &mut Streaming<pb::PushRequest>,
) -> Result<Option<(pb::PushHeader, Doubled)>, GrpcStatus> {
    let mut header = None;
    let mut doubled = Doubled::default();
    while let Some(chunk) = stream.message().await? {
        assert_eq!(chunk.key == 0, chunk.header.is_some(), "the header comes first and once");
        header = header.or(chunk.header);
        if header.is_some_and(|header| header.clock == REFUSED_AT_ONCE) {
            return Err(to_status(&Error::new(ErrorCode::Fenced, "another has the rank")));
        }
        assert!(chunk.data.len() <= dtype::CHUNK_BYTES);
        if chunk.dtype == i32::from(pb::Dtype::F32) {
            assert_eq!(chunk.key as usize * 4, doubled.bytes.len());
            doubled.bytes.extend(twice(&mut vec![0f32; chunk.data.len() / 4], &chunk.data));
        } else {
            assert_eq!(chunk.key as usize * 8, doubled.bytes.len());
            doubled.bytes.extend(twice(&mut vec![0f64; chunk.data.len() / 8], &chunk.data));
        }
        doubled.dtype = chunk.dtype;
        if chunk.last {
            return Ok(Some((header.expect("comes first"), doubled)));
        }
    }
    Ok(None)
}

fn twice<T: Element>(values: &mut [T], bytes: &[u8]) -> Vec<u8> {
    dtype::copy_from_le_bytes(values, bytes);
    values.iter_mut().for_each(|x| *x += *x);
    dtype::as_le_bytes(values).to_vec()
}

fn result(outcome: pb::Outcome, clock: u64) -> pb::PushResult {
    pb::PushResult {
        outcome: outcome.into(),
        version: clock + 1,
        clock: clock + 1,
        state: pb::JobState::Running.into(),
        waited_us: 1000,
        ..Default::default()
    }
}

/// Answers one push of a standing stream. `n_waits` counts the answers that were `Waiting`.
async fn answer(
    out: &mpsc::Sender<Result<pb::PushPullResponse, GrpcStatus>>,
    clock: u64,
    doubled: &Doubled,
    n_waits: &mut u32,
) {
    if clock == WAITS_AND_ENDS || (clock == WAITS_ONCE && *n_waits == 0) {
        *n_waits += 1;
        let mut result = result(pb::Outcome::Waiting, clock);
        if clock == WAITS_AND_ENDS && *n_waits > 1 {
            result.state = pb::JobState::Failed.into();
        }
        let waiting =
            pb::PushPullResponse { result: Some(result), last: true, ..Default::default() };
        out.send(Ok(waiting)).await.expect("the client listens");
        return;
    }
    let size = if doubled.dtype == i32::from(pb::Dtype::F32) { 4 } else { 8 };
    let len = if clock == WRONG_LENGTH { doubled.bytes.len() - size } else { doubled.bytes.len() };
    // Chunks of another size than the client's: any whole number of elements is right.
    let chunk_bytes = 100_000 / size * size;
    for (i, data) in doubled.bytes[..len].chunks(chunk_bytes).enumerate() {
        if i == 1 && clock == REFUSED_IN_THE_MIDDLE {
            let error = Error::new(ErrorCode::Draining, "stopping");
            let _ = out.send(Err(to_status(&error.retry_after(Duration::from_secs(1))))).await;
            return;
        }
        let chunk = pb::PushPullResponse {
            result: (i == 0).then(|| result(pb::Outcome::Applied, clock)),
            dtype: doubled.dtype,
            version: clock + 1,
            key: (i * chunk_bytes / size) as u64,
            last: (i + 1) * chunk_bytes >= len,
            data: bytes::Bytes::copy_from_slice(data),
        };
        if out.send(Ok(chunk)).await.is_err() {
            return;
        }
    }
}

#[tonic::async_trait]
impl Parameters for Fake {
    type PullStream = Chunks<pb::PullResponse>;
    type PushPullStream = Chunks<pb::PushPullResponse>;

    async fn push(
        &self,
        request: Request<Streaming<pb::PushRequest>>,
    ) -> Result<Response<pb::PushResponse>, GrpcStatus> {
        let mut stream = request.into_inner();
        let (header, doubled) = read(&mut stream).await?.expect("one push");
        assert!(stream.message().await?.is_none(), "one push and no more");
        *self.last.lock().expect("no panic") = doubled;
        let result = Some(result(pb::Outcome::Applied, header.clock));
        Ok(Response::new(pb::PushResponse { result }))
    }

    async fn pull(
        &self,
        request: Request<pb::PullRequest>,
    ) -> Result<Response<Self::PullStream>, GrpcStatus> {
        assert!(request.get_ref().wait_ms_max > 0, "the client names its wait");
        let last = self.last.lock().expect("no panic").clone();
        let size = if last.dtype == i32::from(pb::Dtype::F32) { 4 } else { 8 };
        let (out, chunks) = mpsc::channel(1);
        tokio::spawn(async move {
            let chunk_bytes = 200_000;
            for (i, data) in last.bytes.chunks(chunk_bytes).enumerate() {
                let chunk = pb::PullResponse {
                    version: 3,
                    state: pb::JobState::Running.into(),
                    dtype: last.dtype,
                    dim: (last.bytes.len() / size) as u64,
                    seconds: 0.5,
                    waited_us: 7,
                    key: (i * chunk_bytes / size) as u64,
                    last: (i + 1) * chunk_bytes >= last.bytes.len(),
                    unchanged: false,
                    data: bytes::Bytes::copy_from_slice(data),
                };
                if out.send(Ok(chunk)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(chunks)))
    }

    async fn push_pull(
        &self,
        request: Request<Streaming<pb::PushRequest>>,
    ) -> Result<Response<Self::PushPullStream>, GrpcStatus> {
        let mut stream = request.into_inner();
        // The headers wait for the first push: a client that waits for them first would hang.
        let mut next = read(&mut stream).await?;
        let (out, chunks) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut n_waits = 0;
            while let Some((header, doubled)) = next {
                answer(&out, header.clock, &doubled, &mut n_waits).await;
                next = match read(&mut stream).await {
                    Ok(next) => next,
                    Err(status) => {
                        let _ = out.send(Err(status)).await;
                        return;
                    }
                };
            }
        });
        Ok(Response::new(ReceiverStream::new(chunks)))
    }

    async fn evaluate(
        &self,
        request: Request<pb::EvaluateRequest>,
    ) -> Result<Response<pb::EvaluateResponse>, GrpcStatus> {
        let evaluation =
            Evaluation::try_from(request.into_inner()).map_err(|error| to_status(&error))?;
        assert!(evaluation.r#final && evaluation.test.is_none());
        Ok(Response::new(pb::EvaluateResponse { state: pb::JobState::Done.into() }))
    }

    async fn merge_statistics(
        &self,
        request: Request<pb::MergeStatisticsRequest>,
    ) -> Result<Response<pb::MergeStatisticsResponse>, GrpcStatus> {
        let (_, mut statistics) = <(Caller, Statistics)>::try_from(request.into_inner())
            .map_err(|error| to_status(&error))?;
        statistics.merge(&statistics.clone());
        Ok(Response::new(parameters::merge_response(&statistics)))
    }
}

/// A server on a free port, for as long as the runtime lives.
async fn serve() -> SocketAddr {
    let incoming = tonic::transport::server::TcpIncoming::bind(([127, 0, 0, 1], 0).into())
        .expect("a free port")
        .with_nodelay(Some(true));
    let address = incoming.local_addr().expect("bound");
    let service = ParametersServer::new(Fake::default())
        .max_decoding_message_size(wire::PARAMETERS_MESSAGE_BYTES_MAX);
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(incoming));
    address
}

async fn client() -> Client {
    let address = serve().await;
    Client::connect(&address.to_string(), Duration::from_secs(5)).await.expect("it listens")
}

const CALLER: Caller = Caller { rank: 2, incarnation: 9 };

fn header(clock: u64) -> PushHeader {
    PushHeader {
        caller: CALLER,
        clock,
        version_pulled: clock,
        n_samples: 1,
        loss: Some(0.5),
        penalty: None,
        wait_max: None,
        exchange: 5,
    }
}

fn gradient<T: Element>(n: usize) -> Vec<T> {
    (0..n).map(|i| T::from_f64(i as f64 * 0.25 - 7.0)).collect()
}

async fn round_trips<T: Element>(client: &Client, n: usize) {
    let gradient = gradient::<T>(n);
    let doubled: Vec<T> = gradient.iter().map(|&x| x + x).collect();
    let mut steps = client.steps();
    for clock in 0..3 {
        let mut theta = vec![T::ZERO; n];
        let result = steps.step(header(clock), &gradient, &mut theta).await.expect("answered");
        assert_eq!((result.version, result.outcome), (clock + 1, Outcome::Applied));
        assert!(theta == doubled, "theta of {n} elements");
    }
    client.push(header(0), &gradient).await.expect("answered");
    let mut theta = vec![T::ZERO; n];
    let request =
        PullRequest { caller: CALLER, version_min: 0, r#final: false, wait_max: None, exchange: 0 };
    let pulled = client.pull(request, &mut theta).await.expect("answered");
    assert_eq!((pulled.version, pulled.seconds, pulled.waited.as_micros()), (3, 0.5, 7));
    assert!(theta == doubled, "theta of {n} elements");
    let failure = client.pull(request, &mut vec![T::ZERO; n + 1]).await.expect_err("too long");
    assert!(failure.to_string().contains(&format!("theta of {n} elements, not {}", n + 1)));
}

#[tokio::test]
async fn tensors_of_any_length_come_back() {
    let client = client().await;
    const CHUNK_LEN: usize = dtype::CHUNK_BYTES / 4;
    let lengths = [1, CHUNK_LEN, CHUNK_LEN + 1, 4 * CHUNK_LEN + 3];
    for n in lengths {
        round_trips::<f32>(&client, n).await;
        round_trips::<f64>(&client, n).await;
    }
    // Each in f32 and f64, four gradients and at least four thetas.
    let payload = lengths.iter().sum::<usize>() as u64 * 12 * 4;
    assert!((payload..payload + 20_000).contains(&client.traffic().sent()));
    assert!(client.traffic().received() > payload);
}

#[tokio::test]
async fn waiting_is_pushed_again_until_the_job_ends() {
    let client = client().await;
    let gradient = gradient::<f32>(dtype::CHUNK_BYTES / 4 + 1000);
    let mut theta = vec![0f32; gradient.len()];
    let mut steps = client.steps();
    let result = steps.step(header(WAITS_ONCE), &gradient, &mut theta).await.expect("answered");
    assert_eq!(result.outcome, Outcome::Applied);
    assert_eq!(result.waited, Duration::from_millis(2), "both waits");
    assert_eq!(theta[0], -14.0);
    theta.fill(1.0);
    let mut steps = client.steps();
    let result = steps.step(header(WAITS_AND_ENDS), &gradient, &mut theta).await.expect("answered");
    assert_eq!((result.outcome, result.state), (Outcome::Waiting, JobState::Failed));
    assert!(theta.iter().all(|&x| x == 1.0), "no theta follows");
}

#[tokio::test]
async fn an_error_ends_the_stream_and_says_why() {
    let client = client().await;
    let gradient = gradient::<f64>(1_000_000);
    let mut theta = gradient.clone();
    for (clock, code) in
        [(REFUSED_AT_ONCE, ErrorCode::Fenced), (REFUSED_IN_THE_MIDDLE, ErrorCode::Draining)]
    {
        let mut steps = client.steps();
        steps.step(header(1), &gradient, &mut theta).await.expect("answered");
        match steps.step(header(clock), &gradient, &mut theta).await {
            Err(Failure::Refused(error)) => assert_eq!(error.code, code),
            other => panic!("{code}: {other:?}"),
        }
        let after = steps.step(header(1), &gradient, &mut theta).await;
        assert!(matches!(after, Err(Failure::Transport(_))), "{after:?}");
    }
    let mut steps = client.steps();
    let failure = steps.step(header(WRONG_LENGTH), &gradient, &mut theta).await.expect_err("short");
    assert!(failure.to_string().contains("breaks the protocol"), "{failure}");
}

#[tokio::test]
async fn small_calls_are_answered() {
    let client = client().await;
    let mut statistics = Statistics::moments(2);
    statistics.add(&[1.0, -3.0]);
    let merged = client.merge_statistics(CALLER, &statistics).await.expect("answered");
    assert_eq!(merged.n_samples(), 2);
    let evaluation = Evaluation {
        caller: CALLER,
        version: 3,
        seconds: 1.0,
        train: ps_common::job::Metrics::default(),
        test: None,
        r#final: true,
    };
    assert_eq!(client.evaluate(evaluation).await, Ok(JobState::Done));
    // This server has no operator's service.
    assert!(matches!(client.status().await, Err(Failure::Other(..))));
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    // A port that only root may listen at, and nobody does; one that was just free may be given away.
    let url = "http://127.0.0.1:1";
    let error = Client::connect(url, Duration::from_millis(500)).await.expect_err("nobody");
    assert_eq!(error.exit, Exit::Unavailable);
    assert!(error.message.contains(url), "{error}");
    assert!(std::error::Error::source(&error).is_some());
}

#[test]
fn urls_are_read_with_or_without_a_scheme() {
    for text in ["http://127.0.0.1:50051", "127.0.0.1:50051", "http://127.0.0.1:50051/"] {
        assert_eq!(
            url::parse("--server", text).expect(text).authority().expect("has one"),
            "127.0.0.1:50051"
        );
    }
    assert_eq!(url::parse("--server", "[::1]:7").expect("v6").port_u16(), Some(7));
    assert_eq!(url::parse("--server", "https://h:1").expect("TLS").scheme_str(), Some("https"));
    for (text, says) in [
        ("ftp://h:1", "neither http nor https"),
        ("h", "there is no port"),
        ("http://h:0", "there is no port"),
        ("http://:5", "there is no host"),
        ("h:1/x", "after the port"),
        ("a b:1", "not a URL"),
    ] {
        let error = url::parse("--server", text).expect_err(text);
        assert!(error.exit == Exit::Config && error.message.contains(says), "{text}: {error}");
    }
}
