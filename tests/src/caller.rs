//! A caller of the wire that sends what a test wants, well-formed or not.

use bytes::{Buf, BufMut, Bytes};
use hyper_util::rt::{TokioExecutor, TokioIo};
use ps_common::wire::pb;
use ps_common::wire::pb::membership_client::MembershipClient;
use ps_common::wire::pb::operator_client::OperatorClient;
use ps_common::wire::pb::parameters_client::ParametersClient;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::{Service, http};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use crate::PATIENCE;

/// A joined worker, or one that has yet to join.
#[derive(Clone)]
pub struct Caller {
    /// The connection.
    pub channel: Channel,
    /// Its services, as generated.
    pub membership: MembershipClient<Channel>,
    /// The same.
    pub parameters: ParametersClient<Channel>,
    /// The same.
    pub operator: OperatorClient<Channel>,
    /// The caller's name, once it has joined.
    pub rank: u32,
    /// The same.
    pub incarnation: u64,
    /// The clock that it owes, as the server said last.
    pub clock: u64,
}

/// What became of a push: its result, or the status.
pub type Sent = Result<pb::PushResult, Status>;

/// The tables of a theta of `dim` elements.
pub fn tables(dim: u64) -> Vec<pb::Table> {
    vec![pb::Table {
        name: "w".to_owned(),
        shape: vec![dim],
        initializer: Some(pb::Initializer {
            kind: pb::initializer::Kind::Zeros.into(),
            ..pb::Initializer::default()
        }),
        penalized: true,
    }]
}

/// The reason in a status's ErrorInfo, and its gRPC code.
pub fn reason_of(status: &Status) -> (Code, String) {
    (status.code(), status.get_details_error_info().map(|info| info.reason).unwrap_or_default())
}

/// A header for `clock`, at the theta of `version`.
pub fn header(caller: &Caller, clock: u64, version: u64) -> pb::PushHeader {
    pb::PushHeader {
        rank: caller.rank,
        incarnation: caller.incarnation,
        clock,
        version_pulled: version,
        n_samples: 1,
        ..Default::default()
    }
}

impl Caller {
    /// Connects to `address` (`host:port`).
    pub async fn connect(address: &str) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        Self::over(endpoint.tcp_nodelay(true).connect().await.expect("the server serves"))
    }

    /// A caller that has not joined, over a connection that stands.
    pub fn over(channel: Channel) -> Self {
        Self {
            membership: MembershipClient::new(channel.clone()),
            parameters: ParametersClient::new(channel.clone()),
            operator: OperatorClient::new(channel.clone()),
            channel,
            rank: u32::MAX,
            incarnation: 0,
            clock: 0,
        }
    }

    /// A well-formed wish to join with a theta of `dim` elements of f32.
    pub fn join_request(rank: Option<u32>, dim: u64) -> pb::JoinRequest {
        pb::JoinRequest {
            protocol_version: 1,
            role: pb::Role::Worker.into(),
            rank,
            tables: tables(dim),
            dtype: pb::Dtype::F32.into(),
            ..Default::default()
        }
    }

    /// Connects and joins as `rank` with a theta of `dim` elements of f32.
    pub async fn joined(address: &str, rank: u32, dim: u64) -> Self {
        let mut caller = Self::connect(address).await;
        caller.join(Self::join_request(Some(rank), dim)).await.expect("a rank is free");
        caller
    }

    /// As [`Caller::joined`], for a rank whose holder is gone: the server hears of a connection's
    /// end a little later.
    ///
    /// # Panics
    /// If the rank is not free within [`PATIENCE`], or is refused for another reason.
    pub async fn replacing(address: &str, rank: u32, dim: u64) -> Self {
        let mut caller = Self::connect(address).await;
        let end = std::time::Instant::now() + PATIENCE;
        while let Err(status) = caller.join(Self::join_request(Some(rank), dim)).await {
            let (_, reason) = reason_of(&status);
            assert!(reason == "RANK_TAKEN" && std::time::Instant::now() < end, "{status:?}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        caller
    }

    /// Joins, and goes by the given name from then on.
    pub async fn join(&mut self, request: pb::JoinRequest) -> Result<pb::JoinResponse, Status> {
        let answer = self.membership.join(request).await?.into_inner();
        (self.rank, self.incarnation) = (answer.rank, answer.incarnation);
        self.clock = answer.clock;
        Ok(answer)
    }

    /// Pushes these messages as they are.
    pub async fn push_messages(&mut self, messages: Vec<pb::PushRequest>) -> Sent {
        let answer = self.parameters.push(tokio_stream::iter(messages)).await?;
        let result = answer.into_inner().result.expect("an answer has a result");
        self.clock = result.clock;
        Ok(result)
    }

    /// Pushes a gradient of f32 in one message.
    pub async fn push(&mut self, clock: u64, version: u64, gradient: &[f32]) -> Sent {
        let message = self.message(clock, version, gradient);
        self.push_messages(vec![message]).await
    }

    /// Pulls, and pushes a gradient for the clock that it owes.
    pub async fn step(&mut self, gradient: &[f32]) -> Sent {
        let (version, _) = self.pull().await?;
        self.push(self.clock, version, gradient).await
    }

    /// A push as [`Caller::push`], to be answered within `wait_ms_max`.
    pub async fn push_within(
        &mut self,
        wait_ms_max: u32,
        (clock, version): (u64, u64),
        gradient: &[f32],
    ) -> Sent {
        let mut message = self.message(clock, version, gradient);
        message.header.as_mut().expect("the first message has one").wait_ms_max = wait_ms_max;
        self.push_messages(vec![message]).await
    }

    /// How the job stands.
    pub async fn status(&mut self) -> Result<pb::StatusResponse, Status> {
        Ok(self.operator.status(pb::StatusRequest {}).await?.into_inner())
    }

    /// A whole push of f32 in one message.
    pub fn message(&self, clock: u64, version: u64, gradient: &[f32]) -> pb::PushRequest {
        pb::PushRequest {
            header: Some(header(self, clock, version)),
            dtype: pb::Dtype::F32.into(),
            key: 0,
            last: true,
            data: Bytes::copy_from_slice(ps_common::dtype::as_le_bytes(gradient)),
            ..Default::default()
        }
    }

    /// A whole push of f32 in chunks as a worker sends them.
    pub fn chunks(&self, clock: u64, version: u64, gradient: &[f32]) -> Vec<pb::PushRequest> {
        let len = ps_common::dtype::CHUNK_BYTES / size_of::<f32>();
        let n_chunks = gradient.len().div_ceil(len);
        let chunks = gradient.chunks(len).enumerate();
        chunks
            .map(|(i, values)| pb::PushRequest {
                header: (i == 0).then(|| header(self, clock, version)),
                key: (i * len) as u64,
                last: i + 1 == n_chunks,
                ..self.message(clock, version, values)
            })
            .collect()
    }

    /// theta's version and bytes.
    pub async fn pull(&mut self) -> Result<(u64, Vec<u8>), Status> {
        let request = pb::PullRequest {
            rank: self.rank,
            incarnation: self.incarnation,
            ..Default::default()
        };
        let mut stream = self.parameters.pull(request).await?.into_inner();
        let (mut version, mut theta) = (0, Vec::new());
        while let Some(chunk) = stream.message().await? {
            version = chunk.version;
            theta.extend_from_slice(&chunk.data);
        }
        Ok((version, theta))
    }

    /// theta as numbers.
    pub async fn theta(&mut self) -> Vec<f32> {
        let (_, bytes) = self.pull().await.expect("theta can be pulled");
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four"))).collect()
    }

    /// Sends one gRPC message of these very bytes to `path` and gives the status of the answer.
    pub async fn raw(&mut self, path: &'static str, message: Vec<u8>) -> Status {
        self.raw_request(path, Request::new(message)).await
    }

    /// Sends a message that says it is compressed with `encoding` to `path`, and gives the status.
    ///
    /// # Panics
    /// If the connection is gone, or it is not refused at once.
    pub async fn compressed(&mut self, path: &str, encoding: &str) -> Status {
        // A flag that says compressed, a length, and what would be a bomb.
        let mut message = String::from("\u{1}\0\0\u{40}\0");
        message.extend(std::iter::repeat_n('x', 0x4000));
        let mut request = http::Request::new(Body::new(message));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = path.parse().expect("a path");
        let headers = request.headers_mut();
        headers.insert("te", "trailers".parse().expect("ASCII"));
        headers.insert("content-type", "application/grpc".parse().expect("ASCII"));
        headers.insert("grpc-encoding", encoding.parse().expect("ASCII"));
        let channel = &mut self.channel;
        std::future::poll_fn(|cx| channel.poll_ready(cx)).await.expect("the connection stands");
        let answer = channel.call(request).await.expect("an answer");
        Status::from_header_map(answer.headers()).expect("refused at once")
    }

    /// As [`Caller::raw`] with metadata, a token for one; UNAVAILABLE where the connection is gone.
    pub async fn raw_request(&mut self, path: &'static str, request: Request<Vec<u8>>) -> Status {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        if let Err(error) = grpc.ready().await {
            return Status::unavailable(error.to_string());
        }
        match grpc.unary(request, PathAndQuery::from_static(path), RawCodec).await {
            Ok(_) => Status::ok("answered"),
            Err(status) => status,
        }
    }
}

/// A client that does not time its calls itself, as tonic's channel does: what ends them is the
/// server.
pub async fn patient_client(
    address: &str,
) -> ParametersClient<
    impl Service<
        http::Request<Body>,
        Response = http::Response<hyper::body::Incoming>,
        Error = hyper::Error,
        Future: Send,
    >,
> {
    let tcp = tokio::net::TcpStream::connect(address).await.expect("the server listens");
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tcp));
    let (sender, connection) = handshake.await.expect("HTTP/2");
    tokio::spawn(connection);
    let service = tower::service_fn(move |request| sender.clone().send_request(request));
    let origin = format!("http://{address}").parse().expect("an address");
    ParametersClient::with_origin(service, origin)
}

/// Bytes as they are.
#[derive(Debug, Clone, Copy)]
struct RawCodec;

impl Codec for RawCodec {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for RawCodec {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut bytes = vec![0; buffer.remaining()];
        buffer.copy_to_slice(&mut bytes);
        Ok(Some(bytes))
    }
}
